//! A byte stream in memory, with a bounded buffer each way.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use aio::{ByteStream, Ready, SgEntry};

#[derive(Default)]
struct Way {
    bytes: VecDeque<u8>,
    capacity: usize,
    closed: bool,
    /// Receives that found nothing.
    empty_receives: u32,
}

/// One end.
pub(super) struct PipeEnd {
    incoming: Rc<RefCell<Way>>,
    outgoing: Rc<RefCell<Way>>,
    /// Most bytes that one receive takes.
    pub(super) step: usize,
}

/// Two connected ends; `capacity` bytes fit in each direction.
pub(super) fn pipe(capacity: usize) -> (PipeEnd, PipeEnd) {
    let way = || {
        let bytes = VecDeque::with_capacity(capacity);
        Rc::new(RefCell::new(Way { bytes, capacity, closed: false, empty_receives: 0 }))
    };
    let (a, b) = (way(), way());
    let end = |incoming: &Rc<RefCell<Way>>, outgoing: &Rc<RefCell<Way>>| PipeEnd {
        incoming: incoming.clone(),
        outgoing: outgoing.clone(),
        step: usize::MAX,
    };
    (end(&a, &b), end(&b, &a))
}

impl PipeEnd {
    /// From now on only so many bytes fit into what this end sends.
    pub(super) fn limit_send(&mut self, capacity: usize) {
        self.outgoing.borrow_mut().capacity = capacity;
    }

    /// How often the other end found nothing to receive, since this was asked last.
    pub(super) fn peer_empty_receives(&mut self) -> u32 {
        std::mem::take(&mut self.outgoing.borrow_mut().empty_receives)
    }
}

impl ByteStream for PipeEnd {
    unsafe fn recv(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        let mut way = self.incoming.borrow_mut();
        if way.bytes.is_empty() {
            way.empty_receives += 1;
            return Ok(way.closed.then_some(0));
        }
        let mut total = 0;
        for buf in bufs {
            // SAFETY: the caller promises writable memory.
            let room = unsafe { core::slice::from_raw_parts_mut(buf.ptr.as_ptr(), buf.len_bytes as usize) };
            let n = room.len().min(way.bytes.len()).min(self.step - total);
            let (a, b) = way.bytes.as_slices();
            let from_a = n.min(a.len());
            room[..from_a].copy_from_slice(&a[..from_a]);
            room[from_a..n].copy_from_slice(&b[..n - from_a]);
            way.bytes.drain(..n);
            total += n;
        }
        Ok(Some(total))
    }

    unsafe fn send(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        let mut way = self.outgoing.borrow_mut();
        if way.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut total = 0;
        for buf in bufs {
            // SAFETY: the caller promises readable memory.
            let bytes = unsafe { core::slice::from_raw_parts(buf.ptr.as_ptr(), buf.len_bytes as usize) };
            let n = bytes.len().min(way.capacity - way.bytes.len());
            way.bytes.extend(&bytes[..n]);
            total += n;
        }
        Ok((total > 0).then_some(total))
    }

    fn ready(&self) -> Ready {
        let (i, o) = (self.incoming.borrow(), self.outgoing.borrow());
        Ready { readable: !i.bytes.is_empty() || i.closed, writable: o.bytes.len() < o.capacity || o.closed }
    }

    fn arm(&mut self, _writable_too: bool) {}

    fn peer_addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], 40000).into()
    }

    fn local_addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], 8420).into()
    }

    fn shutdown(&mut self) {
        self.outgoing.borrow_mut().closed = true;
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        self.outgoing.borrow_mut().closed = true;
        // What the other end still sends goes nowhere.
        self.incoming.borrow_mut().closed = true;
    }
}
