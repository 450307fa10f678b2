//! `kill -9` of a daemon under verified load over NVMe/TCP, again and again, and what has to be there afterwards.
//!
//! - [`ledger`]: what the tester knows of a replica: for each unit what it may hold after a kill.
//! - [`host`]: our own initiator on a reactor of its own: load, and reading everything back.
//! - [`served`]: `keelson serve` as a process, and what is asked of it over gRPC.
//! - [`deeds`]: what is under way when the daemon is killed, and what has to be found of it afterwards.
//! - [`story`]: the rounds.
//!
//! A kill loses neither what the kernel has in its page cache nor what a disk has in its own. So this is about the order
//! in which the daemon does things, what it tells its hosts when, and its restart; cuts of the power are the business of the
//! store's own tests.

mod deeds;
mod host;
mod ledger;
mod served;
mod story;

pub(crate) use story::{Story, tell};
