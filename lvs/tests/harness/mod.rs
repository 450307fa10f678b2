//! What attacks the store: a model of what it has to hold, disks that are written down, crashes put together from that.
//!
//! # Map
//! - [`model`]: what volumes and snapshots may hold. - [`live`]: a pool that runs beside its model.
//! - [`script`]: operations by a seed. - [`walk`]: long walks with crashes in between.
//! - [`disk`], [`tape`]: disks in memory, and what happened to them. - [`crash`]: every moment of a tape as a crash.
//! - [`faults`]: disks that fail otherwise. - [`scenes`]: what is cut. - [`look`]: reading everything.
#![allow(dead_code, reason = "each program uses its part")]

pub(crate) mod crash;
pub(crate) mod disk;
pub(crate) mod faults;
pub(crate) mod live;
pub(crate) mod look;
pub(crate) mod model;
pub(crate) mod scenes;
pub(crate) mod script;
pub(crate) mod tape;
pub(crate) mod walk;
