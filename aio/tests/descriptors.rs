//! A process without descriptors left turns connections away instead of spinning. In a process of its own, because the
//! limit concerns all threads.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use aio::reactor::{CoreId, EngineChoice, Reactor, ReactorConfig, Turn};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn connections_beyond_the_limit_are_turned_away() {
    let cfg = ReactorConfig { pin: false, engine: EngineChoice::Epoll, ..ReactorConfig::new(CoreId(0)) };
    let mut r = Reactor::new(cfg).unwrap();
    let mut listener = r.core().network().listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut peers: Vec<_> = (0..3).map(|_| TcpStream::connect(listener.local_addr()).unwrap()).collect();
    let old = getrlimit(Resource::Nofile);
    // Descriptors are given out from below, so the next number is the count to allow.
    let next = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let limit = std::os::fd::AsRawFd::as_raw_fd(&next) as u64 + 1;
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: old.maximum }).unwrap();
    let start = Instant::now();
    let mut refused = 0;
    while refused < 3 {
        match listener.accept() {
            Ok(None) => {
                r.turn();
            }
            Ok(Some(_)) => panic!("accepted beyond the limit"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(rustix::io::Errno::MFILE.raw_os_error()));
                refused += 1;
            }
        }
        assert!(start.elapsed() < Duration::from_secs(30));
    }
    assert!(listener.accept().unwrap().is_none());
    setrlimit(Resource::Nofile, old).unwrap();
    for peer in &mut peers {
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "hung up");
    }
    // And it goes on.
    drop(next);
    let _peer = TcpStream::connect(listener.local_addr()).unwrap();
    while listener.accept().unwrap().is_none() {
        if r.turn() == Turn::Idle {
            r.sleep(Some(Duration::from_millis(50)));
        }
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}
