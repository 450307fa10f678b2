//! Connections in memory. The target's end is a [`TargetEnd`]; the other is the rig itself, or a host of ours
//! that connected through [`Lines`].

#![allow(unsafe_code, reason = "ByteStream names memory by pointers, as sockets do")]

use super::script::Script;
use aio::{ByteStream, Listener, Network, Ready, SgEntry};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

/// More than any reply to one input; a target that says more has lost count.
const MAX_SENT: usize = 64 << 20;

/// What the two ends of a connection share.
#[derive(Default)]
pub(crate) struct Wire {
    /// On its way to the target.
    pub(super) incoming: VecDeque<u8>,
    /// The peer is gone.
    pub(super) ended: bool,
    /// All that the target ever sent.
    pub(super) sent: Vec<u8>,
    /// Most bytes that one send takes.
    window: usize,
    /// The target announced its end.
    shut: bool,
    /// The target closed its end.
    closed: bool,
    /// Bytes that moved, in any direction.
    pub(super) moved: u64,
}

impl Wire {
    pub(super) fn new(window: usize) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self { window: window.max(1), ..Self::default() }))
    }
}

/// Copies as much of `from` as `bufs` take, at most `limit` bytes.
///
/// # Safety
/// As for [`ByteStream::recv`].
unsafe fn give(from: &mut VecDeque<u8>, bufs: &[SgEntry], limit: usize) -> usize {
    let mut count = 0;
    for entry in bufs {
        let take = (entry.len_bytes as usize).min(from.len()).min(limit - count);
        for (at, byte) in from.drain(..take).enumerate() {
            // SAFETY: the caller promises that all bytes the entry names are writable; `at` is below its length.
            unsafe { entry.ptr.add(at).write(byte) };
        }
        count += take;
    }
    count
}

/// Shows `each` as much of `bufs` as `limit` allows.
///
/// # Safety
/// As for [`ByteStream::send`].
unsafe fn take(bufs: &[SgEntry], limit: usize, mut each: impl FnMut(&[u8])) -> usize {
    let mut left = limit;
    for entry in bufs {
        let take = (entry.len_bytes as usize).min(left);
        // SAFETY: the caller promises that all bytes the entry names are readable; `take` is within them.
        each(unsafe { std::slice::from_raw_parts(entry.ptr.as_ptr(), take) });
        left -= take;
    }
    limit - left
}

fn host_addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 40_000))
}

fn target_addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8420))
}

/// The target's end.
pub(super) struct TargetEnd(pub(super) Rc<RefCell<Wire>>);

impl ByteStream for TargetEnd {
    unsafe fn recv(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        let mut wire = self.0.borrow_mut();
        // SAFETY: passed on.
        let count = unsafe { give(&mut wire.incoming, bufs, usize::MAX) };
        wire.moved += count as u64;
        let asked = bufs.iter().any(|entry| entry.len_bytes > 0);
        Ok(if count == 0 && !(wire.ended && asked) { None } else { Some(count) })
    }

    unsafe fn send(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        let mut wire = self.0.borrow_mut();
        assert!(!wire.shut, "a send after the end was announced");
        let window = wire.window;
        // SAFETY: passed on.
        let count = unsafe { take(bufs, window, |bytes| wire.sent.extend_from_slice(bytes)) };
        wire.moved += count as u64;
        assert!(wire.sent.len() <= MAX_SENT, "the target does not stop talking");
        Ok(Some(count))
    }

    fn ready(&self) -> Ready {
        let wire = self.0.borrow();
        Ready { readable: !wire.incoming.is_empty() || wire.ended, writable: true }
    }

    fn arm(&mut self, _writable_too: bool) {}

    fn peer_addr(&self) -> SocketAddr {
        host_addr()
    }

    fn local_addr(&self) -> SocketAddr {
        target_addr()
    }

    fn shutdown(&mut self) {
        self.0.borrow_mut().shut = true;
    }
}

impl Drop for TargetEnd {
    fn drop(&mut self) {
        self.0.borrow_mut().closed = true;
    }
}

/// The end of a host of ours: the target's bytes come as the script has them.
struct HostEnd {
    wire: Rc<RefCell<Wire>>,
    script: Script,
    /// Bytes of [`Wire::sent`] that the script has seen.
    seen: usize,
    inbox: VecDeque<u8>,
}

impl HostEnd {
    /// Takes in what the target sent; whether the end of the stream is behind it.
    fn pull(&mut self) -> bool {
        let wire = self.wire.borrow();
        self.seen += self.script.pass(&wire.sent[self.seen..], &mut self.inbox);
        self.script.has_ended() || ((wire.closed || wire.shut) && self.seen == wire.sent.len())
    }
}

impl ByteStream for HostEnd {
    unsafe fn recv(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        let ended = self.pull();
        let window = self.wire.borrow().window;
        // SAFETY: passed on.
        let count = unsafe { give(&mut self.inbox, bufs, window) };
        self.wire.borrow_mut().moved += count as u64;
        let asked = bufs.iter().any(|entry| entry.len_bytes > 0);
        Ok(if count == 0 && !(ended && asked) { None } else { Some(count) })
    }

    unsafe fn send(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        let mut wire = self.wire.borrow_mut();
        if wire.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let window = wire.window;
        // SAFETY: passed on.
        let count = unsafe { take(bufs, window, |bytes| wire.incoming.extend(bytes)) };
        wire.moved += count as u64;
        Ok(Some(count))
    }

    fn ready(&self) -> Ready {
        let wire = self.wire.borrow();
        let more = self.seen < wire.sent.len() || wire.closed || wire.shut;
        let readable =
            !self.inbox.is_empty() || self.script.has_ended() || (more && !self.script.has_stalled());
        Ready { readable, writable: true }
    }

    fn arm(&mut self, _writable_too: bool) {}

    fn peer_addr(&self) -> SocketAddr {
        target_addr()
    }

    fn local_addr(&self) -> SocketAddr {
        host_addr()
    }

    fn shutdown(&mut self) {
        self.wire.borrow_mut().ended = true;
    }
}

impl Drop for HostEnd {
    fn drop(&mut self) {
        self.wire.borrow_mut().ended = true;
    }
}

/// The network of the rig: nobody listens; who connects gets the next script, and the rig hands the other end to
/// the target.
#[derive(Default)]
pub(super) struct Lines {
    dialed: RefCell<Vec<Rc<RefCell<Wire>>>>,
    expected: RefCell<(VecDeque<Script>, usize)>,
}

impl Lines {
    pub(super) fn expect(&self, scripts: Vec<Script>, window: usize) {
        *self.expected.borrow_mut() = (scripts.into(), window);
    }

    /// Connections since the last call.
    pub(super) fn dialed(&self) -> Vec<Rc<RefCell<Wire>>> {
        self.dialed.take()
    }
}

impl Network for Lines {
    fn listen(&self, _addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn connect(&self, _addr: SocketAddr) -> io::Result<Box<dyn ByteStream>> {
        let (scripts, window) = &mut *self.expected.borrow_mut();
        let script = scripts.pop_front().unwrap_or_default();
        let wire = Wire::new(*window);
        self.dialed.borrow_mut().push(wire.clone());
        Ok(Box::new(HostEnd { wire, script, seen: 0, inbox: VecDeque::new() }))
    }
}
