//! The log-structured volume store: pools, replicas, snapshots, clones on any block device.
//!
//! # Map
//! - [`index`]: which version of a block is where: the delta in memory, the trees in pages.
//! - [`format`](mod@format): what stands on the disks, encoded and decoded.
//! - [`types`]: the numbers: lines, blocks, sequence numbers, addresses.
//! - [`info`]: what the control side asks for and is told. - [`error`]: why it is refused.
//! - `FORMAT.md`, beside this crate's manifest: every byte, and why each order of writes is safe.
#![warn(missing_docs)]

pub mod error;
#[forbid(unsafe_code)]
pub mod format;
pub mod index;
pub mod info;
pub mod types;

pub use error::LvsError;
pub use types::{BLOCK_BYTES, BlockNo, LineId, PagePtr, Pba, Place, SegmentId, Seq, Version};
