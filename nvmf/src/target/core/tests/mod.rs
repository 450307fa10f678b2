//! The core with streams in memory, real devices, and a host that speaks through the engine.

mod host;
mod pipe;
mod rig;

mod data;
