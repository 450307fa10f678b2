//! The log-structured volume store: pools, replicas, snapshots, clones on any block device.
//!
//! # Map
//! - [`Pool`], [`Volume`]: an open pool and its block devices, for the rest of the process.
//! - `store`: the running store, on its home core: the data path, checkpoints, import. Its `mod.rs` has the map.
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
pub mod pool;
mod store;
pub mod types;
mod volume;

pub use error::LvsError;
pub use pool::{Pool, check, repair};
pub use types::{BLOCK_BYTES, BlockNo, LineId, PagePtr, Pba, Place, SegmentId, Seq, Version};
pub use volume::Volume;
