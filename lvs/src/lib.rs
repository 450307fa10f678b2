//! The log-structured volume store: pools, replicas, snapshots, clones on any block device.
//!
//! # Map
//! - [`types`]: the numbers: lines, blocks, sequence numbers, addresses.
//! - `FORMAT.md`, beside this crate's manifest: every byte, and why each order of writes is safe.
#![warn(missing_docs)]

pub mod types;

pub use types::{BLOCK_BYTES, BlockNo, LineId, PagePtr, Pba, Place, SegmentId, Seq, Version};
