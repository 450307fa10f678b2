//! The gRPC services: thin, each call is a translation and one call of the [`engine`](crate::engine).
//!
//! - [`bdev`], [`host`], [`nexus`], [`pool`], [`replica`], [`snapshot`], [`stats`], [`mod@test`]: package `mayastor.v1`.
//! - [`subsystem`], and a part of [`pool`]: package `keelson.v1`.
//! - `describe`: objects of pools as the API shows them. - `describe_nexus`: nexuses.
//! - `status`: the one place where errors become gRPC codes.
//!
//! Health and reflection come from tonic.

pub mod bdev;
mod describe;
mod describe_nexus;
pub mod host;
pub mod nexus;
pub mod pool;
pub mod replica;
pub mod snapshot;
pub mod stats;
mod status;
pub mod subsystem;
pub mod test;
