//! Command dwords of the admin commands that every fabrics controller has (NVMe Base 2.0, section 5).
//!
//! Identify, Get Log Page and the features have modules of their own: [`crate::identify`], [`crate::log`],
//! [`crate::feature`], [`crate::aen`].

use crate::command::{AdminOpcode, Cid, Nsid, Qid, Sqe};

/// The arguments of Abort (section 5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abort {
    /// Submission queue of the command to abort.
    pub sqid: Qid,
    /// Identifier of the command to abort.
    pub cid: Cid,
}

impl Abort {
    /// Result, dword 0: the command was aborted.
    pub const ABORTED: u64 = 0;
    /// Result, dword 0: the command was not aborted (it completed before, or it cannot be aborted).
    pub const NOT_ABORTED: u64 = 1;

    /// Reads the dwords.
    pub const fn decode(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self { sqid: Qid(cdw10 as u16), cid: Cid((cdw10 >> 16) as u16) }
    }

    /// A whole SQE.
    pub fn sqe(&self) -> Sqe {
        let mut sqe = Sqe::admin(AdminOpcode::ABORT, Nsid::NONE);
        sqe.cdw10.set(self.sqid.0 as u32 | (self.cid.0 as u32) << 16);
        sqe
    }
}
