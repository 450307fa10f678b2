//! `keelson serve`: the daemon.
//!
//! - [`args`]: flags. - [`cores`], [`iface`]: what `-l`, `-m` and `-T` mean.
//! - [`run`]: start and stop. - [`target_cores`]: the target's share of each core. - `banner`: what it says.

pub mod args;
mod banner;
pub mod cores;
pub mod iface;
pub mod run;
pub mod target_cores;

pub use run::{Daemon, Setup};
