//! What is fuzzed.
//!
//! # Map
//! - `wire`: the wire types of `nvme`: PDU headers, commands, descriptors, names.
//! - `engine`: the NVMe/TCP engine in both roles.
//! - `target`: a whole target under several peers. - `initiator`: the whole initiator under a lying target.
//! - `stream`: streams of PDUs, for all of these.
//! - `text`: what people write: device URIs.

mod engine;
mod initiator;
mod stream;
mod target;
mod text;
mod wire;

use crate::Target;

/// All targets.
pub const ALL: &[Target] = &[
    wire::PDU,
    wire::COMMAND,
    engine::CONTROLLER,
    engine::HOST,
    target::TARGET,
    initiator::INITIATOR,
    text::URI,
];
