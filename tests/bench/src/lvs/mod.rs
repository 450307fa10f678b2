//! The volume store: a pool beside the device that it is on, in one thread on one reactor, without a network.
//!
//! # Map
//! - [`cells`]: the table: throughput and latency, raw and lvs in turn. - [`pressure`]: nearly full; read in order what was
//!   written at random. - [`cleaning`]: moving a block, with many snapshots and deep clones. - [`control`]: create, snapshot, clone; import of a pool whose process was killed.
//! - [`cores`]: from another core than the pool's. - [`rig`]: reactor, files, pools. - [`load`]: the I/O. - [`counted`]: a device that counts what the store asks of it.
//!
//! All names begin with `lvs`, so `--only lvs` is this group, and `--only "lvs import"` a part of it.

mod cells;
mod cleaning;
mod control;
mod cores;
mod counted;
mod load;
mod pressure;
mod rig;

use anyhow::Result;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use control::{ARGUMENT, fill_until_killed};

/// How it is measured.
pub(crate) struct Settings<'a> {
    /// The core that does everything.
    pub(crate) core: usize,
    /// Of one run of a cell.
    pub(crate) time: Duration,
    /// Where files of some GiB may be.
    pub(crate) scratch: PathBuf,
    /// Only what contains this in its name.
    pub(crate) only: Option<&'a str>,
}

impl Settings<'_> {
    fn wants(&self, name: &str) -> bool {
        self.only.is_none_or(|only| name.contains(only) || only.contains(name))
    }
}

/// Does this name something of the group?
pub(crate) fn is_meant(only: &str) -> bool {
    only.starts_with("lvs")
}

/// Prints all figures; returns those that miss their goal.
pub(crate) fn run(settings: &Settings<'_>) -> Result<Vec<String>> {
    let other = cores::other_than(settings.core)?;
    crate::pin::pin(settings.core);
    let mut missed = cells::run(settings)?;
    missed.extend(pressure::run(settings)?);
    missed.extend(cleaning::run(settings)?);
    missed.extend(control::run(settings)?);
    cores::run(settings, other)?;
    Ok(missed)
}
