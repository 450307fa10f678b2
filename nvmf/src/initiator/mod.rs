//! The host role: subsystems of other hosts as block devices.
//!
//! # Map
//! - [`NvmfDevice`] (`device`): the block device; `channel` its data side, one I/O queue each.
//! - [`Controller`]: the association: admin queue, identify data, keep alive, asynchronous events.
//! - [`discover`]: what a discovery controller offers.
//! - [`Options`]: where and how to connect, from a URI.
//! - `request`: what an I/O becomes on the wire. - `queue`, `slot`: one queue pair over TCP.
//! - `namespace`: a namespace's shape and limits. - `home`: what runs on the device's home core.
//! - `facets`: what it can do beyond I/O, where its target tells.
//! - `calls`, `connect`: commands as futures, for everything but I/O. - `memory`: pieces of the caller's memory.
//!
//! # Data path
//! `submit` turns an I/O into a command in a slot and a capsule in the transmit list; `kick` sends all capsules of
//! the turn at once; `poll` makes one receive, whose payload goes straight to the caller's memory as far as the
//! headers before it are known, and hands out completions. Nothing on the way allocates once the lists have grown.
//!
//! # Faults
//! A peer that breaks the rules, goes silent or goes away ends its connection. With the first connection the
//! whole device faults: it announces [`DeviceEvent::Faulted`](aio::DeviceEvent::Faulted), everything in flight completes
//! with [`Status::HOST_PATHING_ERROR`](nvme::Status::HOST_PATHING_ERROR), exactly once, and so does all later I/O.

mod calls;
mod channel;
mod connect;
mod controller;
mod device;
mod discovery;
mod error;
mod facets;
mod home;
mod memory;
mod namespace;
mod options;
mod queue;
mod request;
mod slot;
mod stats;

pub use controller::{AdminReply, AdminRequest, Controller, MAX_ADMIN_BYTES};
pub use device::NvmfDevice;
pub use discovery::{DiscoveryEntry, discover, discover_with};
pub use error::{Error, PeerFault, UriProblem};
pub use options::{DEFAULT_QUEUE_DEPTH, Options, resolve};
pub use stats::DeviceStats;
