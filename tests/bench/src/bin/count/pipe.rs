//! Byte streams in memory that allocate nothing once they are connected.

#![allow(unsafe_code, reason = "ByteStream names memory by pointers, as sockets do")]

use aio::{ByteStream, Listener, Network, Ready, SgEntry};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

/// Bytes on their way in one direction, as a socket's buffers hold them.
const CAPACITY: usize = 1 << 20;

/// One direction: a ring.
struct Ring {
    bytes: Box<[u8]>,
    head: usize,
    len: usize,
    ended: bool,
}

impl Ring {
    fn new() -> Self {
        Self { bytes: vec![0; CAPACITY].into(), head: 0, len: 0, ended: false }
    }

    /// The longest stretch that can be read, or written, without a wrap.
    fn readable(&self) -> &[u8] {
        &self.bytes[self.head..(self.head + self.len).min(CAPACITY)]
    }

    fn writable(&mut self) -> &mut [u8] {
        let tail = (self.head + self.len) % CAPACITY;
        let end = (tail + CAPACITY - self.len).min(CAPACITY);
        &mut self.bytes[tail..end]
    }
}

/// One end.
struct Pipe {
    incoming: Rc<RefCell<Ring>>,
    outgoing: Rc<RefCell<Ring>>,
    own: SocketAddr,
    peer: SocketAddr,
}

impl ByteStream for Pipe {
    unsafe fn recv(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        let mut ring = self.incoming.borrow_mut();
        let mut count = 0;
        for entry in bufs {
            let mut done = 0;
            while done < entry.len_bytes as usize && ring.len > 0 {
                let from = ring.readable();
                let take = from.len().min(entry.len_bytes as usize - done);
                // SAFETY: the caller promises that the entry's bytes are writable and nobody else's; `done + take`
                // is at most its length, and the ring is memory of its own.
                unsafe { entry.ptr.add(done).as_ptr().copy_from_nonoverlapping(from.as_ptr(), take) };
                ring.head = (ring.head + take) % CAPACITY;
                ring.len -= take;
                done += take;
            }
            count += done;
        }
        Ok(if count == 0 && !ring.ended { None } else { Some(count) })
    }

    unsafe fn send(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        let mut ring = self.outgoing.borrow_mut();
        let mut count = 0;
        for entry in bufs {
            let mut done = 0;
            while done < entry.len_bytes as usize && ring.len < CAPACITY {
                let to = ring.writable();
                let take = to.len().min(entry.len_bytes as usize - done);
                // SAFETY: the caller promises that the entry's bytes are readable; `done + take` is at most its
                // length, and the ring is memory of its own.
                unsafe { to.as_mut_ptr().copy_from_nonoverlapping(entry.ptr.add(done).as_ptr(), take) };
                ring.len += take;
                done += take;
            }
            count += done;
        }
        Ok(if count == 0 { None } else { Some(count) })
    }

    fn ready(&self) -> Ready {
        let incoming = self.incoming.borrow();
        let readable = incoming.len > 0 || incoming.ended;
        Ready { readable, writable: self.outgoing.borrow().len < CAPACITY }
    }

    fn arm(&mut self, _writable_too: bool) {}

    fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    fn local_addr(&self) -> SocketAddr {
        self.own
    }

    fn shutdown(&mut self) {
        self.outgoing.borrow_mut().ended = true;
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// A network of one listener; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Pipes {
    waiting: Rc<RefCell<VecDeque<Pipe>>>,
}

struct Door {
    waiting: Rc<RefCell<VecDeque<Pipe>>>,
    address: SocketAddr,
}

impl Listener for Door {
    fn accept(&mut self) -> io::Result<Option<Box<dyn ByteStream>>> {
        Ok(self.waiting.borrow_mut().pop_front().map(|pipe| Box::new(pipe) as Box<dyn ByteStream>))
    }

    fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Network for Pipes {
    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(Door { waiting: self.waiting.clone(), address }))
    }

    fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn ByteStream>> {
        let [there, back] = [(); 2].map(|()| Rc::new(RefCell::new(Ring::new())));
        let own = SocketAddr::from(([127, 0, 0, 1], 40_000));
        let far = Pipe { incoming: there.clone(), outgoing: back.clone(), own: address, peer: own };
        self.waiting.borrow_mut().push_back(far);
        Ok(Box::new(Pipe { incoming: back, outgoing: there, own, peer: address }))
    }
}
