//! What is fuzzed.
//!
//! # Map
//! - `wire`: the wire types of `nvme`: PDU headers, commands, descriptors, names. - `page`: Identify and log pages.
//! - `engine`: the NVMe/TCP engine in both roles.
//! - `target`: a whole target under several peers. - `initiator`: the whole initiator under a lying target.
//! - `stream`: streams of PDUs, for all of these.
//! - `text`: what people and programs write: URIs, settings, the configuration, the state file, the kernel's tables.
//! - `lvs`: what stands on a pool's disks. - `delta`: the updates that an import writes down.

mod delta;
mod engine;
mod initiator;
mod lvs;
mod page;
mod stream;
mod target;
mod text;
mod wire;

use crate::Target;
use std::path::Path;

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
    lvs::RECORD,
    lvs::PAGE,
    lvs::ANCHOR,
    lvs::TABLES,
    lvs::CATALOG,
    delta::DELTA,
];

/// The targets, one a line, below a heading.
pub fn list() -> String {
    ALL.iter()
        .fold("targets:".to_owned(), |text, target| format!("{text}\n  {:12} {}", target.name, target.about))
}

/// Writes what the target starts from into a folder, one file each.
pub fn write_seeds(target: &Target, folder: &Path) -> std::io::Result<()> {
    let seeds = (target.seeds)();
    seeds
        .iter()
        .enumerate()
        .try_for_each(|(number, seed)| std::fs::write(folder.join(format!("seed-{number}")), seed))
}
