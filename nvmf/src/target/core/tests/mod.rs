//! The core with streams in memory, real devices, and a host that speaks through the engine.

mod gate;
mod host;
mod pipe;
mod reserve;
mod rig;
mod shares;

mod admission;
mod alloc;
mod association;
mod data;
mod limits;
mod quiet;
mod storm;
