//! The index: which version of a block is where. Knows pages and memory, never devices.
//!
//! # Map
//! - [`delta`]: what came since the last merge, in memory of fixed size; asked first by every look-up.
//!   - `ordered`: its sorted map; `holes`: its long unmapped ranges; `dump`: it as bytes, for the import checkpoint.
pub mod delta;
mod dump;
mod holes;
mod ordered;
#[cfg(test)]
mod testing;

pub use delta::{Change, Delta, DeltaHit, Gone, Moved, Update};
pub use dump::DumpError;
pub use holes::HoleRange;
