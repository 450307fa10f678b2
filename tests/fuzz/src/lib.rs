//! Fuzz targets: plain functions of bytes, for every parser and for both protocol roles.
//!
//! # Map
//! - [`targets`]: what is fuzzed. A target checks what it knows about the answer; a panic is a find.
//! - [`mutate`]: a deterministic mutator, so that a plain `cargo test` can fuzz on stable Rust.
//! - [`driver`]: corpus first, then mutations of it, led by the [`Shape`] that each input took.
//! - `rig`: a whole target in memory, for the targets that need one.
//! - `bin/libfuzzer.rs`: the same targets under libFuzzer with coverage; `cargo xtask soak` builds and runs it.
//!
//! A find is kept: its bytes go into `corpus/TARGET/` under a name that says what it found.
#![deny(unsafe_code)]

pub mod driver;
pub mod mutate;
mod rig;
pub mod targets;

use std::hash::{DefaultHasher, Hash, Hasher};

/// One thing to fuzz.
pub struct Target {
    /// As on the command line, and the name of its corpus folder.
    pub name: &'static str,
    /// One line: what is fed, and what is checked.
    pub about: &'static str,
    /// Feeds the bytes; panics when something is wrong.
    pub run: fn(&[u8]) -> Shape,
    /// Well-formed inputs to start from, made by the code that writes them.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// A coarse summary of what an input did. The driver keeps inputs of a new shape to mutate further; it stands
/// in for coverage where there is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Shape(u64);

impl Shape {
    /// The same for equal things, in every run.
    pub fn of(what: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self(hasher.finish())
    }
}
