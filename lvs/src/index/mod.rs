//! The index: which version of a block is where. Knows pages and memory, never devices: pages come and go through
//! [`PageSource`] and [`PageSink`].
//!
//! # Map
//! - [`delta`]: what came since the last merge, in memory of fixed size; asked first by every look-up.
//!   - `ordered`: its sorted map; `holes`: its long unmapped ranges; `dump`: it as bytes, for the import checkpoint.
//! - [`cache`]: pages in memory; `frames`: that memory.
//! - [`tree`]: what the algorithms on the trees of pages share.
//!   - [`mod@lookup`]: one block, without waiting. - [`mod@query`]: ranges. - [`mod@check`]: everything, and what is wrong with it.
//!   - [`mod@scan`]: leaf by leaf, while the tree changes.
//!   - [`mod@merge`]: a new tree from an old one and a delta; also moves pages and leaves out what nobody needs. It walks; `weave`
//!     puts entries and updates in order; `packer` makes pages of them.
//!
//! # Cost
//! A look-up takes one path of pages (two when the block lies in a long hole), a move of a block one entry of the delta
//! and one leaf at the next merge, whatever the number of snapshots (H13). Putting never reads a page, so an import reads
//! no leaves (H16). A merge reads and writes each leaf that an update falls in once.

pub mod cache;
pub mod check;
pub mod delta;
mod dump;
mod frames;
mod holes;
pub mod lookup;
pub mod merge;
mod ordered;
mod packer;
pub mod query;
pub mod scan;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod tree;
mod weave;

pub use cache::{CacheStats, PageCache, PageRef};
pub use check::{Finding, Seen, check};
pub use delta::{Change, Delta, DeltaHit, Gone, Moved, Update};
pub use dump::DumpError;
pub use holes::HoleRange;
pub(crate) use lookup::lookup_in;
pub use lookup::{Lookup, find, is_page_live, locate_block, lookup};
pub(crate) use lookup::{newer_version, oldest_version};
pub use merge::{PurgeCursor, merge, purge};
pub use query::{Layers, Query, Span, Spans, query};
pub use scan::{Cursor, Scanned, Unread, scan};
pub use tree::{LineView, PREFETCH, PageAt, PageSink, PageSource, PageTag, Root, Tree, TreeError};
pub use weave::Event;
