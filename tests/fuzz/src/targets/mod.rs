//! What is fuzzed.
//!
//! # Map
//! - `wire`: the wire types of `nvme`: PDU headers, commands, descriptors, names. - `page`: Identify and log pages.
//! - `engine`: the NVMe/TCP engine in both roles.
//! - `target`: a whole target under several peers. - `initiator`: the whole initiator under a lying target.
//! - `stream`: streams of PDUs, for all of these.
//! - `text`: what people and programs write: URIs, settings, the configuration, the state file, the kernel's tables.

mod engine;
mod initiator;
mod page;
mod stream;
mod target;
mod text;
mod wire;

use crate::Target;

/// All targets.
pub const ALL: &[Target] = &[
    wire::PDU,
    wire::COMMAND,
    page::PAGE,
    engine::CONTROLLER,
    engine::HOST,
    target::TARGET,
    initiator::INITIATOR,
    text::URI,
    text::SETTING,
    text::CONFIG,
    text::STATE,
    text::HOST,
];
