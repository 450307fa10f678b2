//! What the NVMe specifications define, as types and pure logic. No I/O, no `unsafe`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[macro_use]
mod macros;

pub mod command;
pub mod digest;
pub mod fabrics;
pub mod nqn;
pub mod nvm;
pub mod property;
pub mod sgl;
pub mod status;
pub mod tcp;

pub use command::{AdminOpcode, Cid, Cntlid, Cqe, Nsid, NvmOpcode, Qid, Sqe};
pub use nqn::{HostId, Nqn};
pub use status::Status;
