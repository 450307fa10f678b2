//! What is fuzzed.
//!
//! # Map
//! - [`wire`]: the wire types of `nvme`: PDU headers, commands, descriptors, names.
//! - [`text`]: what people write: device URIs.

mod text;
mod wire;

use crate::Target;

/// All targets.
pub const ALL: &[Target] = &[wire::PDU, wire::COMMAND, text::URI];
