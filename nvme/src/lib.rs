//! What the NVMe specifications define, as types and pure logic. No I/O, no `unsafe`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod status;

pub use status::Status;
