//! The gRPC services: thin, each call is a translation and one call of the [`engine`](crate::engine).
//!
//! - [`bdev`], [`host`]: package `mayastor.v1`. - [`subsystem`]: package `keelson.v1`.
//! - `status`: the one place where errors become gRPC codes.
//!
//! Health and reflection come from tonic.

pub mod bdev;
pub mod host;
mod status;
pub mod subsystem;
