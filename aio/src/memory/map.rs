//! One mapping: huge or normal pages, private or shareable.
//!
//! Needs `unsafe` for `mmap`, `munmap` and the huge-page allocator: a mapping is made here once, and unmapped
//! by the drop of its one owner.

use core::ptr::NonNull;
use std::alloc::Layout;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::LazyLock;

use memmap2::{MmapMut, MmapOptions};
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// What a region's pages are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageKind {
    /// Pages of the system's default huge size, from its pool.
    Huge,
    /// Normal pages, populated when first touched.
    Normal,
    /// Somebody else's memory.
    Foreign,
}

/// Size of a normal page in bytes.
pub(super) fn page_bytes() -> usize {
    rustix::param::page_size()
}

/// The system's default huge page size in bytes; `None` when the kernel has no huge pages.
///
/// Looked up here although the allocator does it too, because the allocator panics when there is none.
pub(super) fn huge_page_bytes() -> Option<usize> {
    static BYTES: LazyLock<Option<usize>> = LazyLock::new(|| {
        let info = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = info.lines().find_map(|l| l.strip_prefix("Hugepagesize:"))?;
        let mut words = line.split_whitespace();
        let kib: usize = words.next()?.parse().ok()?;
        (words.next() == Some("kB")).then(|| kib.checked_mul(1024)).flatten().filter(|b| b.is_power_of_two())
    });
    *BYTES
}

/// A mapping that unmaps itself.
pub(super) enum Mapping {
    /// Whole huge pages, anonymous and private.
    Huge { ptr: NonNull<u8>, layout: Layout },
    /// Normal pages, anonymous and private.
    Anonymous { ptr: NonNull<u8>, len_bytes: usize },
    /// A memory file that another process or device can map; `file` is what is handed to it.
    Shared { map: MmapMut, file: File, kind: PageKind },
}

// SAFETY: a mapping is plain memory; which thread unmaps it does not matter, and nothing here hands out
// references into it.
unsafe impl Send for Mapping {}
// SAFETY: as above; all methods that take `&self` only read the address and the length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps zeroed memory of at least `len_bytes`, rounded up to whole pages.
    pub(super) fn private(len_bytes: usize, huge: bool, transparent_huge: bool) -> io::Result<Self> {
        if huge
            && let Some(page) = huge_page_bytes()
            && let Some(m) = Self::huge(len_bytes, page)
        {
            return Ok(m);
        }
        let len_bytes = round_up(len_bytes, page_bytes())?;
        // SAFETY: an anonymous mapping at an address of the kernel's choice replaces nothing.
        let ptr = unsafe {
            mmap_anonymous(
                core::ptr::null_mut(),
                len_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        if transparent_huge {
            // Advice only: a kernel without transparent huge pages refuses, and nothing is lost.
            // SAFETY: the range is the fresh mapping; this advice does not change its contents.
            let _ = unsafe { madvise(ptr, len_bytes, Advice::LinuxHugepage) };
        }
        let ptr = NonNull::new(ptr.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self::Anonymous { ptr, len_bytes })
    }

    /// Whole huge pages, or nothing: small pieces do not waste one, and the pool may be empty.
    fn huge(len_bytes: usize, page: usize) -> Option<Self> {
        let rounded = len_bytes.checked_next_multiple_of(page)?;
        // At most a quarter of the memory may be the rounding.
        if rounded - len_bytes > rounded / 4 {
            return None;
        }
        let layout = Layout::from_size_align(rounded, page).ok()?;
        // SAFETY: `layout` has a size above zero, because `len_bytes` has.
        let ptr = unsafe { hugepage_rs::alloc(layout) };
        Some(Self::Huge { ptr: NonNull::new(ptr)?, layout })
    }

    /// Maps a new memory file of at least `len_bytes`.
    pub(super) fn shared(len_bytes: usize, huge: bool) -> io::Result<Self> {
        if huge
            && let Some(page) = huge_page_bytes()
            && let Ok(m) = Self::memfd(round_up(len_bytes, page)?, MemfdFlags::HUGETLB, PageKind::Huge)
        {
            return Ok(m);
        }
        Self::memfd(round_up(len_bytes, page_bytes())?, MemfdFlags::empty(), PageKind::Normal)
    }

    fn memfd(len_bytes: usize, flags: MemfdFlags, kind: PageKind) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("aio-region", MemfdFlags::CLOEXEC | flags)?;
        rustix::fs::ftruncate(fd.as_fd(), len_bytes as u64)?;
        let file = File::from(fd);
        // SAFETY: the file is ours and never truncated afterwards, so its pages stay there for the life of
        // the mapping. The bytes may be changed by whoever gets the file; they are only used through raw
        // pointers.
        let map = unsafe { MmapOptions::new().len(len_bytes).map_mut(&file)? };
        Ok(Self::Shared { map, file, kind })
    }

    pub(super) fn ptr(&self) -> NonNull<u8> {
        match self {
            Self::Huge { ptr, .. } | Self::Anonymous { ptr, .. } => *ptr,
            Self::Shared { map, .. } => {
                NonNull::new(map.as_ptr().cast_mut()).expect("invariant: a mapping is never at zero")
            }
        }
    }

    pub(super) fn len_bytes(&self) -> usize {
        match self {
            Self::Huge { layout, .. } => layout.size(),
            Self::Anonymous { len_bytes, .. } => *len_bytes,
            Self::Shared { map, .. } => map.len(),
        }
    }

    pub(super) fn kind(&self) -> PageKind {
        match self {
            Self::Huge { .. } => PageKind::Huge,
            Self::Anonymous { .. } => PageKind::Normal,
            Self::Shared { kind, .. } => *kind,
        }
    }

    pub(super) fn file(&self) -> Option<&File> {
        match self {
            Self::Shared { file, .. } => Some(file),
            _ => None,
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        match self {
            // SAFETY: allocated by `hugepage_rs::alloc` with this very layout; this is the one owner.
            Self::Huge { ptr, layout } => unsafe { hugepage_rs::dealloc(ptr.as_ptr(), *layout) },
            Self::Anonymous { ptr, len_bytes } => {
                // SAFETY: mapped in `private` with this length; this is the one owner. It can only fail for
                // arguments that are wrong, which these are not.
                let _ = unsafe { munmap(ptr.as_ptr().cast(), *len_bytes) };
            }
            Self::Shared { .. } => {}
        }
    }
}

fn round_up(len_bytes: usize, page: usize) -> io::Result<usize> {
    len_bytes.checked_next_multiple_of(page).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}
