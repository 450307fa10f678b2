//! TCP streams and listeners on a core.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, sockopt};

use super::socket;
use crate::reactor::watch::Watcher;
use crate::reactor::{Core, Watch};
use crate::sg::SgEntry;
use crate::stream::{ByteStream, Detached, Listener, Network, Ready};

/// Connections that the kernel completes while nobody accepts: a thousand hosts that come at once.
const BACKLOG: i32 = 4096;

/// How long a listener rests when the kernel had no memory for a connection: the knock stays, and trying again in
/// every turn would take a whole core, and more of what is short.
const REST: Duration = Duration::from_millis(100);

/// TCP through the core's engine.
pub struct SocketNetwork {
    watcher: Watcher,
}

impl SocketNetwork {
    pub(crate) fn new(watcher: Watcher) -> Self {
        Self { watcher }
    }

    fn listen_on(&self, fd: OwnedFd) -> io::Result<TcpListener> {
        let local = socket::local_addr(fd.as_fd())?;
        let watch = Watch::new(self.watcher.clone(), fd)?;
        watch.arm(false);
        let spare = RefCell::new(Some(spare()?));
        Ok(TcpListener { watch, local, watcher: self.watcher.clone(), spare, resting: Rc::default() })
    }
}

impl Network for SocketNetwork {
    fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(self.listen_on(socket::listening(addr, BACKLOG, false)?)?))
    }

    fn listen_shared(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(self.listen_on(socket::listening(addr, BACKLOG, true)?)?))
    }

    fn connect(&self, addr: SocketAddr) -> io::Result<Box<dyn ByteStream>> {
        let fd = socket::tcp(&addr)?;
        socket::set_stream_options(fd.as_fd())?;
        let connecting = match rustix::net::connect(&fd, &addr) {
            Ok(()) => false,
            Err(rustix::io::Errno::INPROGRESS) => true,
            Err(e) => return Err(e.into()),
        };
        let local = socket::local_addr(fd.as_fd())?;
        let watch = Watch::new(self.watcher.clone(), fd)?;
        let stream = TcpStream { watch, peer: addr, local, connecting: Cell::new(connecting) };
        stream.watch.arm(true);
        Ok(Box::new(stream))
    }

    fn adopt(&self, stream: Detached) -> io::Result<Box<dyn ByteStream>> {
        let Ok(parts) = stream.0.downcast::<Parts>() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a TCP stream"));
        };
        let Parts { fd, peer, local, connecting } = *parts;
        let watch = Watch::new(self.watcher.clone(), fd)?;
        Ok(Box::new(TcpStream { watch, peer, local, connecting: Cell::new(connecting) }))
    }
}

/// A stream without a core.
struct Parts {
    fd: OwnedFd,
    peer: SocketAddr,
    local: SocketAddr,
    connecting: bool,
}

struct TcpStream {
    watch: Watch<OwnedFd>,
    peer: SocketAddr,
    local: SocketAddr,
    /// The handshake was not seen to end.
    connecting: Cell<bool>,
}

impl TcpStream {
    /// True when the handshake is over. Learns that from readiness, so a stream that still connects makes no syscall.
    fn connected(&self) -> io::Result<bool> {
        if !self.connecting.get() {
            return Ok(true);
        }
        if !self.watch.ready().writable {
            self.watch.arm(true);
            return Ok(false);
        }
        sockopt::socket_error(self.watch.get_ref())??;
        // Readiness may be reported wrongly; only a peer proves the connection.
        if socket::peer_addr(self.watch.get_ref().as_fd()).is_err() {
            self.watch.clear_writable();
            self.watch.arm(true);
            return Ok(false);
        }
        self.connecting.set(false);
        Ok(true)
    }
}

impl ByteStream for TcpStream {
    unsafe fn recv(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        if self.connecting.get() && !self.connected()? {
            return Ok(None);
        }
        // SAFETY: promised by the caller.
        let got = unsafe { socket::recv(self.watch.get_ref().as_fd(), bufs) }?;
        if got.is_none() {
            self.watch.clear_readable();
        }
        Ok(got)
    }

    unsafe fn send(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        if self.connecting.get() && !self.connected()? {
            return Ok(None);
        }
        // SAFETY: promised by the caller.
        let sent = unsafe { socket::send(self.watch.get_ref().as_fd(), bufs) }?;
        if sent.is_none() {
            self.watch.clear_writable();
        }
        Ok(sent)
    }

    fn ready(&self) -> Ready {
        self.watch.ready()
    }

    fn arm(&mut self, writable_too: bool) {
        self.watch.arm(writable_too || self.connecting.get());
    }

    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn shutdown(&mut self) {
        // Fails only when the connection is gone already.
        let _ = rustix::net::shutdown(self.watch.get_ref(), Shutdown::Write);
    }

    fn abort(&mut self) {
        // Closing does the rest (tcp(7): a linger time of zero discards what was not sent and resets). Fails only when
        // the connection is gone already.
        let _ = sockopt::set_socket_linger(self.watch.get_ref(), Some(Duration::ZERO));
    }

    fn detach(self: Box<Self>) -> io::Result<Detached> {
        let Self { watch, peer, local, connecting } = *self;
        let parts = Parts { fd: watch.into_inner(), peer, local, connecting: connecting.get() };
        Ok(Detached(Box::new(parts)))
    }
}

struct TcpListener {
    watch: Watch<OwnedFd>,
    local: SocketAddr,
    watcher: Watcher,
    /// Given up to turn somebody away when the process has no descriptors left; else the knock would stay, and the core
    /// would try again in every turn.
    spare: RefCell<Option<OwnedFd>>,
    /// Until the [`REST`] is over.
    resting: Rc<Cell<bool>>,
}

/// A descriptor that is good for nothing.
fn spare() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?)
}

impl TcpListener {
    /// Accepts with the spare descriptor's place, and hangs up. False = nobody was there: the kernel looks for a free
    /// descriptor before it looks for a connection.
    fn turn_away(&self) -> bool {
        let mut place = self.spare.borrow_mut();
        place.take();
        let somebody = rustix::net::accept(self.watch.get_ref()).is_ok();
        *place = spare().ok();
        somebody
    }

    /// Nobody waits any more.
    fn nobody(&self) {
        self.watch.clear_readable();
        self.watch.arm(false);
    }

    /// Looks again when the rest is over; the timer wakes the core for it.
    fn rest(&self) {
        let Some(core) = Core::current() else { return };
        self.resting.set(true);
        let resting = self.resting.clone();
        let sleeper = core.clone();
        core.spawn(async move {
            sleeper.sleep(REST).await;
            resting.set(false);
        });
    }

    /// The kernel gave no connection. What is worth telling is the error.
    fn refused(&self, why: Errno) -> io::Result<()> {
        match why {
            Errno::AGAIN => {
                self.nobody();
                Ok(())
            }
            Errno::MFILE | Errno::NFILE if !self.turn_away() => {
                self.nobody();
                Ok(())
            }
            Errno::NOBUFS | Errno::NOMEM => {
                self.rest();
                Err(why.into())
            }
            _ => Err(why.into()),
        }
    }

    fn accepted(&self, fd: OwnedFd, peer: SocketAddr) -> io::Result<Box<dyn ByteStream>> {
        socket::set_stream_options(fd.as_fd())?;
        let local = socket::local_addr(fd.as_fd())?;
        let watch = Watch::new(self.watcher.clone(), fd)?;
        Ok(Box::new(TcpStream { watch, peer, local, connecting: Cell::new(false) }))
    }
}

impl Listener for TcpListener {
    fn accept(&mut self) -> io::Result<Option<Box<dyn ByteStream>>> {
        if self.resting.get() {
            return Ok(None);
        }
        if !self.watch.ready().readable {
            self.watch.arm(false);
            return Ok(None);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = loop {
            match rustix::net::acceptfrom_with(self.watch.get_ref(), flags) {
                // The knock was taken back: the next one. Going away without looking on would let the core sleep
                // over it.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                other => break other,
            }
        };
        match accepted {
            Ok((fd, peer)) => {
                // A connection that is gone before it was accepted has no peer address; it is not worth an error.
                let Some(peer) = peer.and_then(|p| SocketAddr::try_from(p).ok()) else { return Ok(None) };
                self.accepted(fd, peer).map(Some)
            }
            Err(e) => self.refused(e).map(|()| None),
        }
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::{CoreId, EngineChoice, Reactor, ReactorConfig, Turn};
    use std::net::TcpStream as StdStream;
    use std::time::Instant;

    /// A bug: without memory for a connection, the listener tried again in every turn.
    #[test]
    fn a_listener_rests_when_the_kernel_has_no_memory() {
        let config = ReactorConfig {
            pin: false,
            engine: EngineChoice::Epoll,
            spin_window: Duration::ZERO,
            ..ReactorConfig::new(CoreId(1))
        };
        let mut reactor = Reactor::new(config).unwrap();
        let watcher = reactor.core().watcher().unwrap();
        let fd = socket::listening("127.0.0.1:0".parse().unwrap(), BACKLOG, false).unwrap();
        let mut listener = reactor.enter(|| SocketNetwork::new(watcher).listen_on(fd)).unwrap();
        let _peer = StdStream::connect(listener.local_addr()).unwrap();
        while !listener.watch.ready().readable {
            reactor.turn();
        }
        for why in [Errno::NOBUFS, Errno::NOMEM] {
            let start = Instant::now();
            assert!(reactor.enter(|| listener.refused(why)).is_err(), "it is worth telling");
            assert!(
                reactor.enter(|| listener.accept()).unwrap().is_none(),
                "the knock is there, the listener rests"
            );
            let mut turns = 0;
            while listener.resting.get() {
                turns += 1;
                assert!(
                    start.elapsed() < Duration::from_secs(60),
                    "the core sleeps over the end of the rest"
                );
                if reactor.turn() == Turn::Idle {
                    reactor.sleep(None);
                }
            }
            assert!(start.elapsed() >= REST - Duration::from_millis(20), "{:?}", start.elapsed());
            assert!(turns < 100, "the core sleeps meanwhile: {turns} turns");
        }
        assert!(reactor.enter(|| listener.accept()).unwrap().is_some(), "the knock is answered");
    }
}
