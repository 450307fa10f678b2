//! Deterministic simulation: one seed drives the clock, the network, the disks and the workload, and the real
//! engine code runs on top in one thread.
//!
//! # Map
//! - [`Rng`]: every choice of a run comes from the seed through it.
//! - [`SimClock`]: virtual time.
//! - [`Trace`]: all events folded into a hash, so that a replay proves itself.
//! - [`net`]: simulated sockets. - [`World`]: all of it together, with reactors.
//! - [`seeds`]: runs a scenario over many seeds; a failure prints its seed and the command that replays it.
//! - [`scenarios`]: what is simulated.
//!
//! Rule for scenarios: no real clock, no thread, no `HashMap` iteration, no address-dependent order. Each seed
//! that is sampled for it runs twice, and differing traces are a failure.
#![deny(unsafe_code)]

pub mod client;
pub mod clock;
pub mod fake;
pub mod net;
pub mod rng;
pub mod scenarios;
pub mod seeds;
pub mod steady;
pub mod target;
pub mod trace;
pub mod workload;
pub mod world;

pub use clock::SimClock;
pub use net::{NetConfig, SimNet};
pub use rng::Rng;
pub use trace::Trace;
pub use world::World;
