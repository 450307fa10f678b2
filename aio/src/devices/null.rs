//! `null`: a device that stores nothing. Reads give zeroes, writes are discarded.
//!
//! A read that may be lent costs no copy: all reads of the process share one region of zeroes that nobody
//! writes, so the system backs it with its zero page. A read into the caller's list fills it with zeroes:
//! leaving the list as it was would show one host what another's buffer held.
//!
//! # Unsafe
//! Fills callers' lists, under `submit`'s contract.

use std::sync::Arc;

use super::instant_queue::InstantQueue;
use super::memory_device::{self, Medium, MemoryDevice};
use super::zeroes::Zeroes;
use crate::device::{Busy, Cancel, Capabilities, DeviceError, IoChannel, Sleep};
use crate::io::{Completion, Io, IoFlags, Lent, Opcode, Token};
use crate::sg::{RegionId, SgEntry};
use crate::uri::MemoryUri;
use crate::{IoStatus, check, sgmem};

/// A device that stores nothing.
pub type Null = MemoryDevice<Nothing>;

type Shared = memory_device::Shared<Nothing>;

/// What is read from it.
pub struct Nothing {
    zeroes: &'static Zeroes,
}

impl Null {
    /// Makes the device that `uri` describes. A size of zero is fine.
    pub fn new(uri: &MemoryUri) -> Result<Self, DeviceError> {
        let zeroes = Zeroes::get().map_err(|source| DeviceError::Os {
            op: "mapping the region of zeroes",
            device: uri.name.clone(),
            source,
        })?;
        Ok(Self::on(Nothing { zeroes }, uri))
    }
}

impl Medium for Nothing {
    const DRIVER: &'static str = "null";

    /// No Compare: a host that compares what it wrote would only learn that nothing was stored.
    const CAPABILITIES: Capabilities = Capabilities::FUA
        .union(Capabilities::UNMAP)
        .union(Capabilities::UNMAP_ZEROES)
        .union(Capabilities::WRITE_ZEROES)
        .union(Capabilities::VERIFY)
        .union(Capabilities::LENDS);

    fn max_bytes(&self) -> u64 {
        u64::MAX
    }

    fn channel(shared: Arc<Shared>) -> Box<dyn IoChannel> {
        let queue = InstantQueue::new(shared.geometry().queue_depth);
        Box::new(Channel { shared, queue })
    }
}

struct Channel {
    shared: Arc<Shared>,
    queue: InstantQueue,
}

impl IoChannel for Channel {
    #[inline]
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        self.queue.reserve()?;
        let status = match self.admit(io) {
            Err(status) => status,
            Ok(()) if io.opcode != Opcode::Read => IoStatus::SUCCESS,
            Ok(()) if io.flags.contains(IoFlags::MAY_LEND) && io.blocks.0 > 0 => {
                let len_bytes = io.blocks.0 as u32 * self.shared.geometry().block_bytes;
                let entry =
                    SgEntry { ptr: self.shared.medium().zeroes.start(), len_bytes, region: RegionId::NONE };
                self.queue.lend(token, entry);
                return Ok(());
            }
            Ok(()) => {
                // SAFETY: the caller's promise about the list of a read.
                unsafe { sgmem::fill_zero(io.sg) };
                IoStatus::SUCCESS
            }
        };
        self.queue.complete(token, status);
        Ok(())
    }

    fn kick(&mut self) {}

    #[inline]
    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        self.queue.poll(out, budget)
    }

    fn take_ready(&mut self) -> bool {
        self.queue.take_ready()
    }

    fn prepare_sleep(&mut self) -> Sleep {
        self.queue.prepare_sleep()
    }

    /// Always too late: there is nothing to do after submission.
    fn cancel(&mut self, _token: Token) -> Cancel {
        Cancel::TooLate
    }

    fn lent(&self, token: Token) -> Lent<'_> {
        self.queue.lent(token, true)
    }

    fn release(&mut self, token: Token) {
        self.queue.release(token);
    }

    fn close(&mut self) {
        self.queue.close();
    }

    fn drained(&self) -> bool {
        self.queue.drained()
    }
}

impl Channel {
    #[inline]
    fn admit(&self, io: &Io<'_>) -> Result<(), IoStatus> {
        if self.queue.is_closed() {
            return Err(check::CLOSED);
        }
        self.shared.admit(io)
    }
}
