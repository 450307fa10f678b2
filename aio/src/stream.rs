//! Connected byte streams, as the reactor's sockets and the simulator's network provide them.
//!
//! Non-blocking and readiness-driven: who owns a stream receives and sends when it likes, and arms it before
//! its core sleeps. One receive and one gathered send a turn is the intended use.

use std::any::Any;
use std::io;
use std::net::SocketAddr;

use crate::sg::SgEntry;

/// What a stream knows of its readiness.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ready {
    /// A receive may return bytes, end of stream or an error.
    pub readable: bool,
    /// A send may take bytes.
    pub writable: bool,
}

/// One end of a connected byte stream. Lives on one core.
pub trait ByteStream {
    /// Receives into `bufs`, in order. `Ok(None)` = nothing there now; `Ok(Some(0))` = end of stream.
    ///
    /// # Safety
    /// Every byte that `bufs` names is writable and untouched by others during the call.
    unsafe fn recv(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>>;

    /// Sends from `bufs`, in order, as much as fits now. `Ok(None)` = nothing fits now.
    ///
    /// # Safety
    /// Every byte that `bufs` names is readable during the call. Bytes that change meanwhile are sent in
    /// either state.
    unsafe fn send(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>>;

    /// The last known readiness, without a syscall. A stream that found nothing to receive reports
    /// `readable: false` until its wake-up source says otherwise; hot streams may be tried regardless.
    fn ready(&self) -> Ready;

    /// Asks to wake this core when the stream becomes readable, or also writable. Cheap when already armed.
    /// The event shows in [`ready`](Self::ready) on a later turn.
    fn arm(&mut self, writable_too: bool);

    /// The other end.
    fn peer_addr(&self) -> SocketAddr;

    /// This end.
    fn local_addr(&self) -> SocketAddr;

    /// Announces end of stream; what was sent before still arrives.
    fn shutdown(&mut self);

    /// Ends the connection at once, both ways: what was taken for sending and has not left yet is never sent, and the
    /// other end sees a reset as soon as it can be told. Dropping a stream instead lets the system go on delivering what
    /// it took, for minutes when the peer cannot be reached. The stream is of no use afterwards.
    fn abort(&mut self) {
        self.shutdown();
    }

    /// Takes the stream off its core, to be adopted by another core's network. What was received or sent before is not
    /// affected. An error (and the stream is closed) for kinds that cannot move.
    fn detach(self: Box<Self>) -> io::Result<Detached> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this kind of stream cannot move to another core"))
    }
}

/// A stream on its way from one core to another.
pub struct Detached(pub Box<dyn Any + Send>);

/// A listening socket. Lives on one core; wakes it when somebody knocks.
pub trait Listener {
    /// The next connection, if any waits. Without a known waiting connection this makes no syscall. An error concerns
    /// one connection, which is lost; the listener goes on.
    fn accept(&mut self) -> io::Result<Option<Box<dyn ByteStream>>>;

    /// Where it listens (with the port filled in when 0 was asked for).
    fn local_addr(&self) -> SocketAddr;
}

/// Where streams come from: sockets, or the simulator.
pub trait Network {
    /// Listens on `addr`. An address in use is an error, also when this process uses it.
    fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>>;

    /// A further core's share of the knocks on an `addr` where this process listens already: each connection goes to
    /// one of the listeners. An error for kinds of networks that have one core.
    fn listen_shared(&self, _addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this network cannot share a port between cores"))
    }

    /// Starts to connect; returns at once. The stream becomes writable when connected; a failure shows as
    /// the error of the first send.
    fn connect(&self, addr: SocketAddr) -> io::Result<Box<dyn ByteStream>>;

    /// Takes over a stream of the same kind that another core let go. An error, and the stream is closed, for other kinds.
    fn adopt(&self, _stream: Detached) -> io::Result<Box<dyn ByteStream>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this network does not take streams of other cores"))
    }
}
