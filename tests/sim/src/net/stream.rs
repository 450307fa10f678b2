//! The trait objects that reactors hold.
//!
//! `unsafe` here: payload is named by raw scatter-gather entries, copied once on each side.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use aio::sg::total_bytes;
use aio::{ByteStream, Listener, Ready, SgEntry};

use super::fabric::{ConnId, End, Fabric};

/// One end of a simulated connection.
pub(super) struct SimStream {
    fabric: Rc<RefCell<Fabric>>,
    conn: ConnId,
    end: End,
}

impl SimStream {
    pub(super) fn client(fabric: Rc<RefCell<Fabric>>, conn: ConnId) -> Self {
        Self { fabric, conn, end: End::Client }
    }
}

impl ByteStream for SimStream {
    unsafe fn recv(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        let room = usize::try_from(total_bytes(bufs)).unwrap_or(usize::MAX);
        let (mut entry, mut done) = (0, 0);
        self.fabric.borrow_mut().recv(self.conn, self.end, room, |mut piece| {
            while !piece.is_empty() {
                let e = &bufs[entry];
                let n = (e.len_bytes as usize - done).min(piece.len());
                // SAFETY: the caller promises that every byte of `bufs` is writable and untouched during the
                // call; `done + n` stays within the entry, and `piece` lies in the fabric's own memory.
                unsafe { e.ptr.as_ptr().add(done).copy_from_nonoverlapping(piece.as_ptr(), n) };
                piece = &piece[n..];
                done += n;
                if done == e.len_bytes as usize {
                    (entry, done) = (entry + 1, 0);
                }
            }
        })
    }

    unsafe fn send(&mut self, bufs: &[SgEntry]) -> io::Result<Option<usize>> {
        let offered = usize::try_from(total_bytes(bufs)).unwrap_or(usize::MAX);
        self.fabric.borrow_mut().send(self.conn, self.end, offered, |mut left, out| {
            let mut copy: Vec<u8> = Vec::with_capacity(left);
            for e in bufs {
                let n = (e.len_bytes as usize).min(left);
                let at = copy.len();
                // SAFETY: the caller promises that every byte of `bufs` is readable during the call; `copy`
                // was made with room for all of `left`, of which `n` is a part.
                unsafe { e.ptr.as_ptr().copy_to_nonoverlapping(copy.as_mut_ptr().add(at), n) };
                // SAFETY: the line above initialised these `n` bytes within the capacity.
                unsafe { copy.set_len(at + n) };
                left -= n;
            }
            out.extend(copy);
        })
    }

    fn ready(&self) -> Ready {
        let fabric = self.fabric.borrow();
        Ready {
            readable: fabric.readable(self.conn, self.end),
            writable: fabric.writable(self.conn, self.end),
        }
    }

    /// Nothing to do: the world turns every reactor after each step of the clock.
    fn arm(&mut self, _writable_too: bool) {}

    fn peer_addr(&self) -> SocketAddr {
        self.fabric.borrow().peer(self.conn, self.end)
    }

    fn local_addr(&self) -> SocketAddr {
        self.fabric.borrow().addr(self.conn, self.end)
    }

    fn shutdown(&mut self) {
        self.fabric.borrow_mut().shutdown(self.conn, self.end);
    }

    fn abort(&mut self) {
        self.fabric.borrow_mut().abort(self.conn, self.end);
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.fabric.borrow_mut().close(self.conn, self.end);
    }
}

/// A simulated listening socket.
pub(super) struct SimListener {
    fabric: Rc<RefCell<Fabric>>,
    addr: SocketAddr,
}

impl SimListener {
    pub(super) fn new(fabric: Rc<RefCell<Fabric>>, addr: SocketAddr) -> Self {
        Self { fabric, addr }
    }
}

impl Listener for SimListener {
    fn accept(&mut self) -> io::Result<Option<Box<dyn ByteStream>>> {
        let conn = self.fabric.borrow_mut().accept(self.addr);
        Ok(conn.map(|conn| {
            Box::new(SimStream { fabric: self.fabric.clone(), conn, end: End::Server }) as Box<dyn ByteStream>
        }))
    }

    fn local_addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.fabric.borrow_mut().unlisten(self.addr);
    }
}
