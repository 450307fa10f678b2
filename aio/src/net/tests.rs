//! Sockets over loopback, on every engine of this machine.

use core::ptr::NonNull;
use core::time::Duration;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::time::Instant;

use crate::reactor::{CoreId, EngineChoice, Reactor, ReactorConfig, Turn, probe_io_uring};
use crate::sg::{RegionId, SgEntry};
use crate::stream::ByteStream;

fn engines() -> Vec<EngineChoice> {
    match probe_io_uring() {
        Ok(()) => vec![EngineChoice::Epoll, EngineChoice::IoUring],
        Err(e) => {
            println!("SKIPPED: io_uring engine, not available here: {e}");
            vec![EngineChoice::Epoll]
        }
    }
}

fn each_engine(test: impl Fn(&mut Reactor)) {
    for engine in engines() {
        let spin_window = Duration::ZERO;
        let cfg = ReactorConfig { pin: false, engine, spin_window, ..ReactorConfig::new(CoreId(1)) };
        test(&mut Reactor::new(cfg).unwrap());
    }
}

/// Turns and sleeps until `done` answers; a minute is forever.
fn until<T>(r: &mut Reactor, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        if r.turn() == Turn::Idle {
            r.sleep(Some(Duration::from_millis(100)));
        }
        assert!(start.elapsed() < Duration::from_secs(60), "nothing happens");
    }
}

fn entry(bytes: &mut [u8]) -> SgEntry {
    let ptr = NonNull::new(bytes.as_mut_ptr()).unwrap();
    SgEntry { ptr, len_bytes: bytes.len() as u32, region: RegionId::NONE }
}

fn recv(s: &mut dyn ByteStream, bytes: &mut [u8]) -> std::io::Result<Option<usize>> {
    // SAFETY: the slice is exclusively ours during the call.
    unsafe { s.recv(&[entry(bytes)]) }
}

fn send(s: &mut dyn ByteStream, bytes: &[u8]) -> std::io::Result<Option<usize>> {
    let mut copy = bytes.to_vec();
    // SAFETY: the copy lives through the call.
    unsafe { s.send(&[entry(&mut copy)]) }
}

fn recv_when_there(r: &mut Reactor, s: &mut dyn ByteStream, bytes: &mut [u8]) -> usize {
    until(r, || {
        if let Some(n) = recv(s, bytes).unwrap() {
            return Some(n);
        }
        s.arm(false);
        None
    })
}

fn any(ip: &str) -> SocketAddr {
    format!("{ip}:0").parse().unwrap()
}

/// Two connected streams, both on this reactor.
fn pair(r: &mut Reactor) -> (Box<dyn ByteStream>, Box<dyn ByteStream>) {
    let net = r.core().network();
    let mut listener = net.listen(any("127.0.0.1")).unwrap();
    let a = net.connect(listener.local_addr()).unwrap();
    let b = until(r, || listener.accept().unwrap());
    (a, b)
}

#[test]
fn echo_both_ways_with_gathered_lists() {
    each_engine(|r| {
        let (mut a, mut b) = pair(r);
        assert_eq!((a.peer_addr(), b.peer_addr()), (b.local_addr(), a.local_addr()));
        for round in 0..50u8 {
            let sent = until(r, || send(&mut *a, &[round; 100]).unwrap());
            assert_eq!(sent, 100);
            let (mut x, mut y) = ([0; 30], [0; 100]);
            let got = until(r, || {
                // SAFETY: both arrays are exclusively ours during the call.
                let got = unsafe { b.recv(&[entry(&mut x), entry(&mut y)]) }.unwrap();
                b.arm(false);
                got
            });
            assert_eq!(got, 100);
            assert_eq!((x, &y[..70]), ([round; 30], &[round; 70][..]));
            // SAFETY: both arrays live through the call.
            let sent = unsafe { b.send(&[entry(&mut x), entry(&mut y)]) }.unwrap();
            assert_eq!(sent, Some(130));
            let mut back = [9; 200];
            assert_eq!(recv_when_there(r, &mut *a, &mut back), 130);
            assert_eq!(&back[..100], [round; 100]);
            assert_eq!(&back[100..130], [0; 30]);
        }
    });
}

#[test]
fn end_of_stream_is_zero_bytes_after_the_rest() {
    each_engine(|r| {
        let (mut a, mut b) = pair(r);
        until(r, || send(&mut *a, b"bye").unwrap());
        a.shutdown();
        let mut bytes = [0; 8];
        assert_eq!(recv_when_there(r, &mut *b, &mut bytes), 3);
        assert_eq!(recv_when_there(r, &mut *b, &mut bytes), 0);
        // The other direction still works.
        assert_eq!(send(&mut *b, b"too").unwrap(), Some(3));
        assert_eq!(recv_when_there(r, &mut *a, &mut bytes), 3);
        drop(b);
        assert_eq!(recv_when_there(r, &mut *a, &mut bytes), 0);
    });
}

#[test]
fn a_full_socket_takes_a_part_and_says_when_there_is_room() {
    each_engine(|r| {
        let (mut a, mut b) = pair(r);
        let chunk = vec![7; 1 << 20];
        let mut sent = 0;
        until(r, || {
            while let Some(n) = send(&mut *a, &chunk).unwrap() {
                sent += n;
            }
            a.arm(true);
            (sent > 0).then_some(())
        });
        assert!(!a.ready().writable);
        a.arm(true);
        let mut got = 0;
        let mut bytes = vec![0; 1 << 20];
        while got < sent {
            got += recv_when_there(r, &mut *b, &mut bytes);
        }
        assert_eq!(got, sent);
        until(r, || a.ready().writable.then_some(()));
        assert_eq!(send(&mut *a, b"x").unwrap(), Some(1));
    });
}

#[test]
fn lists_longer_than_a_call_takes_go_in_part() {
    each_engine(|r| {
        let (mut a, mut b) = pair(r);
        let mut byte = [5];
        let list = vec![entry(&mut byte); 1000];
        // SAFETY: the byte lives through the call.
        let sent = until(r, || unsafe { a.send(&list) }.unwrap());
        assert_eq!(sent, super::socket::MAX_IOV);
        let mut bytes = [0; 1000];
        assert_eq!(recv_when_there(r, &mut *b, &mut bytes), sent);
    });
}

#[test]
fn a_hundred_knocks() {
    each_engine(|r| {
        let net = r.core().network();
        let mut listener = net.listen(any("127.0.0.1")).unwrap();
        let addr = listener.local_addr();
        assert!(listener.accept().unwrap().is_none());
        let peers = std::thread::spawn(move || {
            (0..100u8)
                .map(|i| {
                    let mut s = StdStream::connect(addr).unwrap();
                    s.write_all(&[i]).unwrap();
                    s
                })
                .collect::<Vec<_>>()
        });
        let mut streams = Vec::new();
        until(r, || {
            while let Some(s) = listener.accept().unwrap() {
                streams.push(s);
            }
            (streams.len() == 100).then_some(())
        });
        let mut seen = [false; 100];
        for s in &mut streams {
            let mut byte = [0];
            assert_eq!(recv_when_there(r, &mut **s, &mut byte), 1);
            seen[usize::from(byte[0])] = true;
        }
        assert!(seen.iter().all(|&s| s));
        // Closing ours is seen by all of them.
        streams.clear();
        r.turn();
        r.turn();
        for mut peer in peers.join().unwrap() {
            peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        }
    });
}

#[test]
fn a_sleeping_core_is_woken_by_bytes() {
    for engine in engines() {
        let spin_window = Duration::ZERO;
        let mut r =
            Reactor::new(ReactorConfig { pin: false, engine, spin_window, ..ReactorConfig::new(CoreId(1)) })
                .unwrap();
        let mut listener = r.core().network().listen(any("127.0.0.1")).unwrap();
        let mut peer = StdStream::connect(listener.local_addr()).unwrap();
        let mut s = until(&mut r, || listener.accept().unwrap());
        assert_eq!(recv(&mut *s, &mut [0]).unwrap(), None);
        s.arm(false);
        while r.turn() == Turn::Busy {}
        assert!(!s.ready().readable);
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            peer.write_all(b"!").unwrap();
            peer
        });
        let start = Instant::now();
        // An event from before may end the first sleep, but nothing ticks.
        let mut sleeps = 0;
        while !s.ready().readable {
            r.sleep(Some(Duration::from_secs(30)));
            r.turn();
            sleeps += 1;
        }
        let slept = start.elapsed();
        assert!(slept >= Duration::from_millis(25) && slept < Duration::from_secs(29), "{slept:?}");
        assert!(sleeps <= 3, "{sleeps}");
        let mut byte = [0];
        assert_eq!(recv_when_there(&mut r, &mut *s, &mut byte), 1);
        drop(writer.join().unwrap());
    }
}

#[test]
fn refused_connections_are_an_error_of_the_first_send() {
    each_engine(|r| {
        let port = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut s = r.core().network().connect(port).unwrap();
        let e = until(r, || {
            s.arm(true);
            send(&mut *s, b"x").err()
        });
        assert_eq!(e.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_port_in_use_is_an_error() {
    each_engine(|r| {
        let net = r.core().network();
        let first = net.listen(any("127.0.0.1")).unwrap();
        let Err(e) = net.listen(first.local_addr()) else { panic!("two listeners on one port") };
        assert_eq!(e.kind(), ErrorKind::AddrInUse);
    });
}

#[test]
fn cores_share_a_port_and_others_do_not() {
    each_engine(|r| {
        let net = r.core().network();
        let mut first = net.listen(any("127.0.0.1")).unwrap();
        let addr = first.local_addr();
        let mut second = net.listen_shared(addr).unwrap();
        assert_eq!(second.local_addr(), addr);
        assert!(net.listen(addr).is_err_and(|e| e.kind() == ErrorKind::AddrInUse));
        let peers: Vec<_> = (0..64).map(|_| StdStream::connect(addr).unwrap()).collect();
        let (mut a, mut b) = (0, 0);
        until(r, || {
            a += std::iter::from_fn(|| first.accept().unwrap()).count();
            b += std::iter::from_fn(|| second.accept().unwrap()).count();
            (a + b == peers.len()).then_some(())
        });
        assert!(a > 0 && b > 0, "{a} {b}");
    });
}

#[test]
fn the_wildcard_of_ipv6_takes_ipv4_too() {
    each_engine(|r| {
        let net = r.core().network();
        let mut listener = match net.listen(any("[::]")) {
            Ok(listener) => listener,
            Err(e) => {
                println!("SKIPPED: no IPv6 here: {e}");
                return;
            }
        };
        let port = listener.local_addr().port();
        let v4: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        let v6: SocketAddr = format!("[::1]:{port}").parse().unwrap();
        for addr in [v4, v6] {
            let _peer = StdStream::connect(addr).unwrap();
            let s = until(r, || listener.accept().unwrap());
            assert_eq!(s.local_addr().port(), port);
        }
    });
}

#[test]
fn streams_may_outlive_their_reactor() {
    for engine in engines() {
        let mut r =
            Reactor::new(ReactorConfig { pin: false, engine, ..ReactorConfig::new(CoreId(1)) }).unwrap();
        let (mut a, mut b) = pair(&mut r);
        b.arm(true);
        drop(r);
        a.arm(true);
        assert_eq!(send(&mut *a, b"x").unwrap(), Some(1));
        let mut byte = [0];
        while recv(&mut *b, &mut byte).unwrap().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(&byte, b"x");
    }
}

#[test]
fn a_reactor_without_an_engine_has_no_network() {
    let cfg = ReactorConfig { pin: false, engine: EngineChoice::None, ..ReactorConfig::new(CoreId(1)) };
    let net = Reactor::new(cfg).unwrap().core().network();
    assert!(net.connect(any("127.0.0.1")).is_err_and(|e| e.kind() == ErrorKind::Unsupported));
    assert!(net.listen(any("127.0.0.1")).is_err_and(|e| e.kind() == ErrorKind::Unsupported));
}

#[test]
fn other_descriptors_wake_the_core_as_well() {
    use rustix::event::{EventfdFlags, eventfd};
    each_engine(|r| {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let core = r.core();
        let watch = core.watch(fd).unwrap();
        for _ in 0..3 {
            watch.arm(false);
            while r.turn() == Turn::Busy {}
            assert!(!watch.ready().readable);
            rustix::io::write(watch.get_ref(), &1u64.to_ne_bytes()).unwrap();
            until(r, || watch.ready().readable.then_some(()));
            rustix::io::read(watch.get_ref(), &mut [0; 8]).unwrap();
            watch.clear_readable();
        }
    });
}

#[test]
fn streams_move_between_cores() {
    let engines = engines();
    for &from in &engines {
        for &to in &engines {
            let make = |engine| {
                Reactor::new(ReactorConfig { pin: false, engine, ..ReactorConfig::new(CoreId(1)) }).unwrap()
            };
            let mut old = make(from);
            let (mut a, mut b) = pair(&mut old);
            b.arm(true);
            while old.turn() == Turn::Busy {}
            until(&mut old, || send(&mut *a, b"before").unwrap());
            let moving = b.detach().unwrap();
            let moved = std::thread::spawn(move || {
                let mut new = make(to);
                let mut b = new.core().network().adopt(moving).unwrap();
                let mut bytes = [0; 6];
                assert_eq!(recv_when_there(&mut new, &mut *b, &mut bytes), 6);
                assert_eq!(&bytes, b"before");
                assert_eq!(recv_when_there(&mut new, &mut *b, &mut bytes), 5);
                assert_eq!(&bytes[..5], b"after");
                b.peer_addr()
            });
            std::thread::sleep(Duration::from_millis(5));
            until(&mut old, || send(&mut *a, b"after").unwrap());
            assert_eq!(moved.join().unwrap(), a.local_addr());
        }
    }
    let net = make_network();
    assert!(
        net.adopt(crate::stream::Detached(Box::new(5))).is_err_and(|e| e.kind() == ErrorKind::InvalidInput)
    );
}

fn make_network() -> std::rc::Rc<dyn crate::stream::Network> {
    let cfg = ReactorConfig { pin: false, engine: EngineChoice::Epoll, ..ReactorConfig::new(CoreId(1)) };
    Reactor::new(cfg).unwrap().core().network()
}

/// Forbids io_uring on this thread, as `kernel.io_uring_disabled=2` does for all.
fn forbid_io_uring() {
    let filter = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let program = [
        // Load the number of the system call; io_uring_setup is refused with EPERM, everything else allowed.
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let prog = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: plain numbers; the flag concerns this thread only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the program lives through the call, which copies it.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &prog) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn where_io_uring_is_forbidden_epoll_takes_its_place() {
    use crate::reactor::EngineKind;
    std::thread::spawn(|| {
        forbid_io_uring();
        let cfg = ReactorConfig { pin: false, ..ReactorConfig::new(CoreId(1)) };
        assert!(probe_io_uring().is_err_and(|e| e.kind() == ErrorKind::PermissionDenied));
        let demanded = ReactorConfig { engine: EngineChoice::IoUring, ..cfg.clone() };
        assert!(Reactor::new(demanded).is_err());
        let mut r = Reactor::new(cfg).unwrap();
        assert_eq!(r.core().engine(), EngineKind::Epoll);
        let (mut a, mut b) = pair(&mut r);
        until(&mut r, || send(&mut *a, b"works").unwrap());
        assert_eq!(recv_when_there(&mut r, &mut *b, &mut [0; 9]), 5);
    })
    .join()
    .unwrap();
}
