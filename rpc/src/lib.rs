//! The gRPC API of Keelson: messages and services, a client, and the command line that speaks it.
//!
//! # Map
//! - [`mayastor`]: package `mayastor.v1`, wire compatible with what the OpenEBS control plane speaks. Its
//!   numbers are a contract, watched by `tests/wire.rs`.
//! - [`keelson`]: package `keelson.v1`, for what that API has no call for.
//! - [`etcd`]: the part of etcd's API that the daemon calls.
//! - [`client`]: an endpoint and the typed clients of it.
//! - [`cli`]: commands `pool`, `replica`, `nexus`, `rebuild`, `snapshot`, `stats`, `test`, `bdev`, `device`, `controller`, `subsystem` and
//!   `perf resource`.
//! - [`output`]: tables, JSON and sizes as the commands print them.
//!
//! This crate knows tonic and nothing of the engine; mapping the engine's errors to gRPC codes is the daemon's.
//! Errors that reach a person are sentences: see [`ClientError`].
#![forbid(unsafe_code)]

pub mod cli;
pub mod client;
mod error;
pub mod output;

pub use client::{Client, Endpoint};
pub use error::ClientError;

/// Packages named `mayastor`.
pub mod mayastor {
    /// Package `mayastor.v1`.
    #[allow(clippy::all, missing_docs, rust_2018_idioms, unreachable_pub, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("mayastor.v1");
    }
}

/// Packages named `keelson`.
pub mod keelson {
    /// Package `keelson.v1`.
    #[allow(clippy::all, missing_docs, rust_2018_idioms, unreachable_pub, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("keelson.v1");
    }
}

/// Package `etcdserverpb`: etcd's, of version 3 of its API.
pub mod etcd {
    #![allow(clippy::all, missing_docs, rust_2018_idioms, unreachable_pub, reason = "generated")]
    tonic::include_proto!("etcdserverpb");
}

/// A `google.protobuf.FileDescriptorSet` of the packages that are served, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptors");

/// Port of the gRPC server unless told otherwise.
pub const DEFAULT_GRPC_PORT: u16 = 10124;

/// Every NQN that the engine makes from a name starts with this.
pub const NQN_PREFIX: &str = "nqn.2019-05.io.openebs:";

/// The NQN for `name`: itself when it is one already, else [`NQN_PREFIX`] and the name.
pub fn nqn_from_name(name: &str) -> String {
    if name.starts_with("nqn.") { name.to_owned() } else { format!("{NQN_PREFIX}{name}") }
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_become_nqns_once() {
        assert_eq!(super::nqn_from_name("disk0"), "nqn.2019-05.io.openebs:disk0");
        assert_eq!(super::nqn_from_name("nqn.2024-01.org.example:x"), "nqn.2024-01.org.example:x");
    }
}
