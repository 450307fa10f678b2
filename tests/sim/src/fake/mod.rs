//! A controller that is only as honest as a test wants: it answers the initiator by a small, independent reading of
//! the specification, until its [`Trick`] tells it to do something else.
//!
//! # Map
//! - [`FakeTarget`]: the poller that listens and serves.
//! - [`Trick`]: how it misbehaves.
//! - `conn`: one connection. - `pdu`: building PDUs, right and wrong.

mod conn;
mod pdu;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use aio::reactor::Core;
use aio::{Instant, Listener, Poller, Sleep};

use conn::Conn;

/// Blocks of 512 bytes that the one namespace has.
pub const BLOCKS: u64 = 256;

/// What the controller does wrong. I/O tricks are done on the first I/O command of an I/O queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trick {
    /// Nothing.
    None,
    /// Never answers an ICReq.
    SilentInit,
    /// Answers an ICReq with random bytes.
    GarbageInit,
    /// Answers an ICReq with two ICResps.
    DoubleInit,
    /// Claims digests that were not asked for.
    UnaskedDigests,
    /// States a MAXH2CDATA below the minimum.
    TinyMaxH2c,
    /// Never becomes ready.
    NeverReady,
    /// Reports a fatal status.
    Fatal,
    /// Fills identify pages with random bytes.
    GarbageIdentify,
    /// Has no namespace.
    NoNamespace,
    /// Answers with a CID that is not in flight.
    WrongCid,
    /// Answers twice.
    DuplicateCid,
    /// Sends more data than was asked for.
    Overrun,
    /// Sends data at an offset that does not come next.
    BadOffset,
    /// Sends data for a CID that is not in flight.
    DataForNobody,
    /// Reports success without the data.
    NoData,
    /// Sends SUCCESS with half of the data.
    HalfSuccess,
    /// Asks for data that the command does not have.
    R2tOutOfRange,
    /// Asks for no data.
    R2tEmpty,
    /// Asks for the same data again and again.
    R2tRepeated,
    /// Asks for data of a read.
    R2tForRead,
    /// Sends a PDU of an unknown type.
    UnknownPdu,
    /// Sends a PDU that only hosts send.
    HostPdu,
    /// Sends a PDU whose length is less than its header's.
    ShortPdu,
    /// Sends a PDU that claims 4 GiB.
    HugePdu,
    /// Sends random bytes.
    Garbage,
    /// Sends a wrong header digest (when they are in use).
    BadHeaderDigest,
    /// Sends a wrong data digest (when they are in use).
    BadDataDigest,
    /// Sends a TermReq.
    Terminate,
    /// Closes the connection.
    Close,
    /// Closes the connection in the middle of a PDU.
    CloseInPdu,
    /// Never answers.
    Silence,
}

impl Trick {
    /// All that make an I/O fail.
    pub const ON_IO: &'static [Self] = &[
        Self::WrongCid,
        Self::DuplicateCid,
        Self::Overrun,
        Self::BadOffset,
        Self::DataForNobody,
        Self::NoData,
        Self::HalfSuccess,
        Self::R2tOutOfRange,
        Self::R2tEmpty,
        Self::R2tRepeated,
        Self::R2tForRead,
        Self::UnknownPdu,
        Self::HostPdu,
        Self::ShortPdu,
        Self::HugePdu,
        Self::Garbage,
        Self::BadHeaderDigest,
        Self::BadDataDigest,
        Self::Terminate,
        Self::Close,
        Self::CloseInPdu,
        Self::Silence,
    ];

    /// All that make connecting fail.
    pub const ON_CONNECT: &'static [Self] = &[
        Self::SilentInit,
        Self::GarbageInit,
        Self::DoubleInit,
        Self::UnaskedDigests,
        Self::TinyMaxH2c,
        Self::NeverReady,
        Self::Fatal,
        Self::NoNamespace,
    ];
}

/// Listens on an address and serves one namespace of [`BLOCKS`] blocks.
pub struct FakeTarget {
    listener: Box<dyn Listener>,
    conns: Vec<Conn>,
    disk: Rc<RefCell<Vec<u8>>>,
    trick: Trick,
    seed: u64,
    forgiving: bool,
}

impl FakeTarget {
    /// Starts serving on `core`.
    pub fn start(
        core: &Core,
        addr: SocketAddr,
        trick: Trick,
        seed: u64,
    ) -> std::io::Result<Rc<RefCell<Self>>> {
        let target = Rc::new(RefCell::new(Self {
            listener: core.network().listen(addr)?,
            conns: Vec::new(),
            disk: Rc::new(RefCell::new(vec![0; BLOCKS as usize * 512])),
            trick,
            seed,
            forgiving: false,
        }));
        core.add_poller(target.clone());
        Ok(target)
    }

    /// What is malformed was damaged on the way: it ends its connection, not the test.
    pub fn forgive(&mut self) {
        self.forgiving = true;
    }

    /// The namespace's bytes.
    pub fn disk(&self) -> Rc<RefCell<Vec<u8>>> {
        self.disk.clone()
    }
}

impl Poller for FakeTarget {
    fn poll(&mut self, _now: Instant) -> usize {
        let mut work = 0;
        while let Ok(Some(stream)) = self.listener.accept() {
            self.seed = self.seed.wrapping_add(1);
            self.conns.push(Conn::new(stream, self.trick, self.disk.clone(), self.seed, self.forgiving));
            work += 1;
        }
        let mut newest = None;
        for (i, conn) in self.conns.iter_mut().enumerate() {
            work += usize::from(conn.poll());
            if conn.take_new_association() {
                newest = Some(i);
            }
        }
        if let Some(newest) = newest {
            // One host, one association: commands of the old one must not be executed any more.
            let keep = self.conns.swap_remove(newest);
            self.conns.clear();
            self.conns.push(keep);
        }
        self.conns.retain(|c| !c.is_closed());
        work
    }

    fn kick(&mut self) {
        self.conns.iter_mut().for_each(Conn::send);
    }

    fn prepare_sleep(&mut self, _now: Instant) -> Sleep {
        Sleep::Armed
    }
}
