//! What stands on the disks: encoding and decoding of every structure that `FORMAT.md` draws. No I/O.
//!
//! Everything decoded here is hostile until checked: a wrong length, number or checksum is a [`FormatError`] that
//! says what and where. Nothing panics, and nothing is allocated by a number that was not bounded before.
//!
//! # Map
//! - [`page`]: map pages, on the hot path of reads: checked once, then viewed in place.
//! - [`record`]: headers of records, on the hot path of writes: written straight into the buffer that goes out.
//! - [`label`]: what a disk is, and where things are on it.
//! - [`anchor`]: what the pool is at a checkpoint; it leads to the blobs ([`blob`]):
//!   [`segtable`], the segments; [`lines`], the trees; [`catalog`], volumes and snapshots with their properties.
//! - [`error`]: what can be wrong.

pub mod anchor;
pub mod blob;
mod bytes;
pub mod catalog;
pub mod error;
pub mod label;
pub mod lines;
pub mod page;
pub mod record;
pub mod segtable;
#[cfg(test)]
mod testing;

pub use error::{FormatError, What};

/// CRC32C, the checksum of everything on disk.
pub use nvme::digest::crc32c;
