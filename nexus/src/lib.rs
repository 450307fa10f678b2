//! The mirror: one volume on several children, which are devices of this host or of others.
//!
//! # Map
//! - [`Nexus`]: the control side, and the block device that hosts use.
//! - `channel`: the data side on a core: writes to all members, reads from one.
//! - `home`: decisions: children fail, come, go and come back, in an order that loses nothing acknowledged.
//! - [`rebuild`]: copies to a child what it lacks. - `dirty`: what a child that is away misses.
//! - `intent`: regions that are being written, for children that cannot tell what changed.
//! - `locks`: ranges that are being written, over all cores.
//! - [`membership`]: who is healthy, where it outlives the process. - [`layout`]: where the data stands on a child.
//! - [`fencing`]: keeping others from the children. - [`child`]: states and reasons. - [`error`]: why an operation is refused. - `shared`: what all cores see.
//! - [`stats`]: what it was asked to do.
//!
//! A nexus knows its children by the block-device contract only. What it copies when they come back, and why nothing is missed:
//! `docs/nexus.md`.
#![warn(missing_docs)]

mod channel;
pub mod child;
mod dirty;
pub mod error;
pub mod fencing;
mod home;
mod intent;
pub mod layout;
mod locks;
pub mod membership;
mod nexus;
pub mod rebuild;
mod shared;
pub mod stats;

pub use child::{ChildInfo, ChildState, Fault, NexusState};
pub use error::NexusError;
pub use fencing::{Preempt, Reservation};
pub use membership::{MemberRecord, MembershipStore, NoStore, Record, StoreError};
pub use nexus::{ChildSpec, CreateNexus, Nexus};

/// Status of I/O on a nexus that was shut down: hosts with another path take that.
pub const SHUT_DOWN: aio::IoStatus = aio::IoStatus::INTERNAL_PATH_ERROR;
