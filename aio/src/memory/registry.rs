//! The registry of regions.
//!
//! Needs `unsafe` because a [`Region`] vouches for an address range of its own or of a foreign owner.

use core::ptr::NonNull;
use std::any::Any;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::map::{Mapping, PageKind};
use crate::sg::{RegionId, SgEntry};

/// Most regions that live at one time. [`RegionId::NONE`] takes the last index.
const MAX_REGIONS: usize = u16::MAX as usize;

/// How a registry makes regions.
#[derive(Clone, Copy, Debug)]
pub struct MemoryConfig {
    /// Take huge pages when the system has free ones. `false` = `--no-huge-pages`.
    pub huge_pages: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { huge_pages: true }
    }
}

/// What [`Memory::allocate`] is asked for.
#[derive(Clone, Copy, Debug)]
pub struct RegionSpec {
    /// Bytes wanted; rounded up to whole pages.
    pub len_bytes: usize,
    /// Backed by a memory file, so that another process can map it ([`Region::file`]).
    pub shared: bool,
    /// Without huge pages from the pool, ask the kernel for transparent ones. Good for big long-lived areas
    /// that are touched everywhere; bad for sparse ones, which would become resident as a whole.
    pub transparent_huge: bool,
}

impl RegionSpec {
    /// A private region of `len_bytes`.
    pub const fn new(len_bytes: usize) -> Self {
        Self { len_bytes, shared: false, transparent_huge: false }
    }
}

/// Why a region was not made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Zero bytes, or more than an address space holds.
    #[error("cannot make a memory region of {len_bytes} bytes")]
    BadLength {
        /// What was asked for.
        len_bytes: usize,
    },
    /// All places of the registry are taken.
    #[error("cannot register another memory region: {MAX_REGIONS} are in use")]
    Full,
    /// The system has not enough memory, or forbids it.
    #[error("cannot map {len_bytes} bytes of memory; ask for less, or free some")]
    Map {
        /// What was asked for.
        len_bytes: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// [`Memory::init_process`] came after the first use of the process-wide registry.
    #[error(
        "the process-wide memory registry is in use already; configure it before the first reactor starts"
    )]
    AlreadyInUse,
}

/// What observers and look-ups learn of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionInfo {
    /// Its name.
    pub id: RegionId,
    /// First byte.
    pub ptr: NonNull<u8>,
    /// Length in bytes.
    pub len_bytes: usize,
    /// What its pages are.
    pub kind: PageKind,
}

// SAFETY: plain data, an address is not an access.
unsafe impl Send for RegionInfo {}
// SAFETY: as above.
unsafe impl Sync for RegionInfo {}

/// A backend's view of the registry. Called on any thread with the registry locked: it must neither block
/// nor make or drop regions itself.
pub trait RegionObserver: Send + Sync {
    /// A region came (or was there when the observer was added).
    fn added(&self, region: RegionInfo);

    /// No I/O names the region any more; its memory goes away when this returns.
    fn removed(&self, region: RegionId);
}

struct Place {
    generation: u16,
    info: Option<RegionInfo>,
}

#[derive(Default)]
struct Table {
    places: Vec<Place>,
    free: Vec<u16>,
    observers: Vec<Option<Arc<dyn RegionObserver>>>,
}

/// The registry of regions. See the module's map.
pub struct Memory {
    config: MemoryConfig,
    table: Mutex<Table>,
}

static PROCESS: OnceLock<Arc<Memory>> = OnceLock::new();

impl Memory {
    /// A registry of its own.
    pub fn new(config: MemoryConfig) -> Arc<Self> {
        Arc::new(Self { config, table: Mutex::default() })
    }

    /// The process-wide registry, made with the default configuration at its first use.
    pub fn process() -> Arc<Self> {
        PROCESS.get_or_init(|| Self::new(MemoryConfig::default())).clone()
    }

    /// Configures the process-wide registry. Only before its first use.
    pub fn init_process(config: MemoryConfig) -> Result<Arc<Self>, MemoryError> {
        let mine = Self::new(config);
        PROCESS.set(mine.clone()).map_err(|_| MemoryError::AlreadyInUse)?;
        Ok(mine)
    }

    /// How it makes regions.
    pub fn config(&self) -> MemoryConfig {
        self.config
    }

    /// Maps and registers zeroed memory.
    pub fn allocate(self: &Arc<Self>, spec: RegionSpec) -> Result<Arc<Region>, MemoryError> {
        let len_bytes = spec.len_bytes;
        if len_bytes == 0 || len_bytes > isize::MAX as usize {
            return Err(MemoryError::BadLength { len_bytes });
        }
        let huge = self.config.huge_pages;
        let mapping = if spec.shared {
            Mapping::shared(len_bytes, huge)
        } else {
            Mapping::private(len_bytes, huge, spec.transparent_huge)
        }
        .map_err(|source| MemoryError::Map { len_bytes, source })?;
        let (ptr, len_bytes, kind) = (mapping.ptr(), mapping.len_bytes(), mapping.kind());
        self.register(ptr, len_bytes, kind, Backing::Own(mapping))
    }

    /// Registers memory that somebody else owns. `keep` is dropped when the region goes.
    ///
    /// # Safety
    /// `[ptr, ptr + len_bytes)` is mapped readable and writable until `keep` is dropped.
    pub unsafe fn adopt(
        self: &Arc<Self>,
        ptr: NonNull<u8>,
        len_bytes: usize,
        keep: Box<dyn Any + Send + Sync>,
    ) -> Result<Arc<Region>, MemoryError> {
        if len_bytes == 0 || len_bytes > isize::MAX as usize {
            return Err(MemoryError::BadLength { len_bytes });
        }
        self.register(ptr, len_bytes, PageKind::Foreign, Backing::Foreign(keep))
    }

    /// The region of that name, unless it is gone.
    pub fn resolve(&self, id: RegionId) -> Option<RegionInfo> {
        let table = self.lock();
        table.places.get(usize::from(id.index))?.info.filter(|i| i.id == id)
    }

    /// All regions that are there now.
    pub fn regions(&self) -> Vec<RegionInfo> {
        self.lock().places.iter().filter_map(|p| p.info).collect()
    }

    /// Tells `observer` of all regions, now and later, until the guard is dropped.
    pub fn observe(self: &Arc<Self>, observer: Arc<dyn RegionObserver>) -> crate::device::Subscription {
        let mut table = self.lock();
        for info in table.places.iter().filter_map(|p| p.info) {
            observer.added(info);
        }
        let index = match table.observers.iter().position(Option::is_none) {
            Some(free) => {
                table.observers[free] = Some(observer);
                free
            }
            None => {
                table.observers.push(Some(observer));
                table.observers.len() - 1
            }
        };
        drop(table);
        crate::device::Subscription::new(Unobserve { memory: self.clone(), index })
    }

    fn register(
        self: &Arc<Self>,
        ptr: NonNull<u8>,
        len_bytes: usize,
        kind: PageKind,
        backing: Backing,
    ) -> Result<Arc<Region>, MemoryError> {
        let mut table = self.lock();
        let index = match table.free.pop() {
            Some(index) => index,
            None if table.places.len() < MAX_REGIONS => {
                table.places.push(Place { generation: 0, info: None });
                (table.places.len() - 1) as u16
            }
            None => return Err(MemoryError::Full),
        };
        let place = &mut table.places[usize::from(index)];
        let id = RegionId { index, generation: place.generation };
        let info = RegionInfo { id, ptr, len_bytes, kind };
        place.info = Some(info);
        for observer in table.observers.iter().flatten() {
            observer.added(info);
        }
        drop(table);
        Ok(Arc::new(Region { info, backing, memory: self.clone() }))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing under the lock leaves the table half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Unobserve {
    memory: Arc<Memory>,
    index: usize,
}

impl Drop for Unobserve {
    fn drop(&mut self) {
        let observer = self.memory.lock().observers[self.index].take();
        // Outside the lock: it may own anything.
        drop(observer);
    }
}

enum Backing {
    Own(Mapping),
    #[allow(dead_code, reason = "held for its Drop")]
    Foreign(Box<dyn Any + Send + Sync>),
}

/// One registered piece of memory. The memory stays until the last `Arc<Region>` is dropped: whoever has I/O
/// in flight on it holds one.
pub struct Region {
    info: RegionInfo,
    backing: Backing,
    memory: Arc<Memory>,
}

impl Region {
    /// Its name in scatter-gather entries.
    pub fn id(&self) -> RegionId {
        self.info.id
    }

    /// First byte.
    pub fn ptr(&self) -> NonNull<u8> {
        self.info.ptr
    }

    /// Length in bytes, as mapped.
    pub fn len_bytes(&self) -> usize {
        self.info.len_bytes
    }

    /// What its pages are.
    pub fn kind(&self) -> PageKind {
        self.info.kind
    }

    /// The memory file of a shared region.
    pub fn file(&self) -> Option<&File> {
        match &self.backing {
            Backing::Own(mapping) => mapping.file(),
            Backing::Foreign(_) => None,
        }
    }

    /// The entry for `len_bytes` bytes from `offset_bytes` on.
    ///
    /// # Panics
    /// When they do not lie within the region (a bug of the caller).
    pub fn sg(&self, offset_bytes: usize, len_bytes: u32) -> SgEntry {
        let end = offset_bytes.checked_add(len_bytes as usize);
        assert!(end.is_some_and(|e| e <= self.info.len_bytes), "invariant: an entry lies within its region");
        // SAFETY: the assertion keeps the address within this one mapping.
        let ptr = unsafe { self.info.ptr.add(offset_bytes) };
        SgEntry { ptr, len_bytes, region: self.info.id }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let mut table = self.memory.lock();
        for observer in table.observers.iter().flatten() {
            observer.removed(self.info.id);
        }
        let place = &mut table.places[usize::from(self.info.id.index)];
        place.info = None;
        // A slot whose generations are used up is never used again, so that no name comes twice.
        if let Some(next) = place.generation.checked_add(1) {
            place.generation = next;
            table.free.push(self.info.id.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal() -> Arc<Memory> {
        Memory::new(MemoryConfig { huge_pages: false })
    }

    #[test]
    fn names_are_not_reused() {
        let memory = normal();
        let a = memory.allocate(RegionSpec::new(10_000)).unwrap();
        let id = a.id();
        assert_eq!(a.kind(), PageKind::Normal);
        assert_eq!(a.len_bytes() % 4096, 0);
        assert_eq!(memory.resolve(id).unwrap().ptr, a.ptr());
        drop(a);
        assert_eq!(memory.resolve(id), None);
        let b = memory.allocate(RegionSpec::new(1)).unwrap();
        assert_eq!(b.id().index, id.index);
        assert_ne!(b.id(), id);
    }

    #[test]
    fn zero_length_is_an_error() {
        assert!(matches!(
            normal().allocate(RegionSpec::new(0)),
            Err(MemoryError::BadLength { len_bytes: 0 })
        ));
    }

    #[test]
    fn huge_pages_fall_back_to_normal_ones() {
        let memory = Memory::new(MemoryConfig::default());
        // Works whatever the machine has; both kinds give zeroed memory of the length asked for.
        let region = memory.allocate(RegionSpec::new(4 << 20)).unwrap();
        assert!(region.len_bytes() >= 4 << 20);
        let e = region.sg((4 << 20) - 1, 1);
        // SAFETY: the last byte of the region, which this test owns.
        unsafe {
            assert_eq!(e.ptr.read(), 0);
            e.ptr.write(7);
            assert_eq!(e.ptr.read(), 7);
        }
    }

    #[test]
    fn shared_regions_have_a_file_with_the_same_bytes() {
        use std::os::unix::fs::FileExt;
        let region = normal().allocate(RegionSpec { shared: true, ..RegionSpec::new(4096) }).unwrap();
        // SAFETY: the first byte of the region, which this test owns.
        unsafe { region.ptr().write(42) };
        let mut byte = [0];
        region.file().unwrap().read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [42]);
    }

    #[derive(Default)]
    struct Log(Mutex<Vec<(bool, RegionId)>>);

    impl RegionObserver for Log {
        fn added(&self, region: RegionInfo) {
            self.0.lock().unwrap().push((true, region.id));
        }
        fn removed(&self, region: RegionId) {
            self.0.lock().unwrap().push((false, region));
        }
    }

    #[test]
    fn observers_see_what_was_there_and_what_comes_and_goes() {
        let memory = normal();
        let a = memory.allocate(RegionSpec::new(1)).unwrap();
        let log = Arc::new(Log::default());
        let subscription = memory.observe(log.clone());
        let b = memory.allocate(RegionSpec::new(1)).unwrap();
        let (ida, idb) = (a.id(), b.id());
        drop(a);
        drop(subscription);
        drop(b);
        assert_eq!(*log.0.lock().unwrap(), [(true, ida), (true, idb), (false, ida)]);
    }

    #[test]
    fn foreign_memory_is_kept_until_the_region_goes() {
        let memory = normal();
        let owner: Arc<[u8; 64]> = Arc::new([0; 64]);
        let ptr = NonNull::from(&owner[0]);
        // SAFETY: the array lives as long as the `Arc` handed over; nobody accesses it in this test.
        let region = unsafe { memory.adopt(ptr, 64, Box::new(owner.clone())) }.unwrap();
        assert_eq!(region.kind(), PageKind::Foreign);
        assert_eq!(Arc::strong_count(&owner), 2);
        drop(region);
        assert_eq!(Arc::strong_count(&owner), 1);
    }
}
