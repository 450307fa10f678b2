//! How results are shown: [`Table`], JSON and sizes.
//!
//! Rules that scripts rely on: a table starts with its headers; cells are padded to the widest of their column
//! and joined by one space; quiet output has neither headers nor padding. JSON is the whole answer, field names
//! in snake case, enums as integers.

mod json;
mod size;
mod table;

pub(crate) use json::time;
pub use json::write_json;
pub use size::{Units, parse_size};
pub use table::Table;

/// What `-o` chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// Tables and sentences.
    #[default]
    Default,
    /// JSON.
    Json,
}
