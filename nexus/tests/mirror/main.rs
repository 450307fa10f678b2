//! A nexus over simulated disks, on a virtual clock: what its children hold, and what its hosts are told.
//!
//! - [`world`]: a nexus, its disks, its record. - `faults`: children fail. - `order`: writes that overlap.
//! - `account`: regions that are being written, on disks that cannot tell what changed.
//! - [`replica`]: a disk that tells what changed. - `resync`: what is copied when children come back.
//! - `fencing`: two nexuses of one volume, over [`guard`]ed disks.
//! - `copies`: rebuilds and repairs. - `walk`: everything at random, beside a model.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod account;
mod copies;
mod faults;
mod fencing;
mod guard;
mod order;
mod replica;
mod resync;
#[path = "../../../lvs/tests/rig/mod.rs"]
mod rig;
mod walk;
mod world;
