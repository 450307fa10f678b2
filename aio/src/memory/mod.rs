//! Memory that takes part in I/O.
//!
//! # Map
//! - [`Memory`]: the registry of regions. Allocates them (huge pages when there are any, else normal pages;
//!   nothing is reserved beforehand), takes in foreign ones (a guest's, an embedder's), and tells backends
//!   ([`RegionObserver`]) what comes and goes, so that each keeps its own table (IOVA, lkey, fixed buffer).
//! - [`Region`]: one mapped piece, counted. Who submits I/O on it holds an `Arc<Region>` (or a [`DmaBuf`],
//!   which does) until the last completion; so the last drop is the point where no I/O names it any more.
//! - [`DmaPool`], [`DmaPools`], [`DmaBuf`]: per-core chunks cut from one region, O(1), capped.
//!
//! There is one process-wide registry, [`Memory::process`], because addresses are a property of the process;
//! tests make their own with [`Memory::new`].

mod map;
mod pool;
mod registry;

pub use map::PageKind;
pub use pool::{DmaBuf, DmaPool, DmaPools, PoolClass, PoolsConfig};
pub use registry::{Memory, MemoryConfig, MemoryError, Region, RegionInfo, RegionObserver, RegionSpec};
