//! How a store comes to be: its devices, a new pool on them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use aio::gate::Gate;
use aio::memory::DmaPool;
use aio::{BlockDevice, Core};
use uuid::Uuid;

use super::catalogue::Catalogue;
use super::control::check_name;
use super::fetch::{self, Fetches};
use super::io::IoCtx;
use super::lines::Lines;
use super::log::Log;
use super::member::{DevOp, Member};
use super::open_stores::Claim;
use super::seal::seal;
use super::slab::Slab;
use super::space::{Segment, Space};
use super::superblock::{anchor_members, check_vacant};
use super::write::{MAX_RECORDS, RecordCtx};
use super::{DELTA_RANGES, DELTA_UPDATES, Inner, Store};
use crate::LvsError;
use crate::format::anchor::Anchor;
use crate::format::blob::BlobPtr;
use crate::format::label;
use crate::index::{Delta, PageCache};
use crate::info::CreatePool;
use crate::types::{BLOCK_BYTES, MAX_MEMBERS, Seq};

/// Map pages in memory, for each pool: 32 MiB.
const CACHE_PAGES: usize = 8192;
/// Segments that each device of a pool has at least.
const LEAST_SEGMENTS: u32 = 16;
/// Buffers for blocks that I/Os cover in part.
const EDGE_BUFFERS: u32 = 512;
/// Buffers of slow work.
const SLOW_BUFFERS: u32 = 6;

/// A pool's disks have all the same block size, of those that it can have.
pub(super) fn check_block_size(device: &dyn BlockDevice, wanted: u32) -> Result<(), LvsError> {
    let geometry = device.geometry();
    let block_bytes = geometry.block_bytes;
    if !matches!(block_bytes, 512 | 4096) || geometry.meta_bytes != 0 || block_bytes != wanted {
        return Err(LvsError::DiskBlockSize { disk: device.name().to_owned(), block_bytes });
    }
    Ok(())
}

/// Devices of a pool, opened.
pub(super) async fn open_members(
    pool: &str,
    devices: Vec<Arc<dyn BlockDevice>>,
) -> Result<Vec<Member>, LvsError> {
    if devices.is_empty() || devices.len() > MAX_MEMBERS {
        return Err(LvsError::DiskCount { given: devices.len() });
    }
    let first = devices[0].geometry().block_bytes;
    let mut members = Vec::with_capacity(devices.len());
    for device in &devices {
        check_block_size(device.as_ref(), first)?;
    }
    for device in devices {
        match Member::open(pool, device).await {
            Ok(member) => members.push(member),
            Err(error) => {
                close_members(members).await;
                return Err(error);
            }
        }
    }
    Ok(members)
}

/// Closes devices that no store has.
pub(super) async fn close_members(members: Vec<Member>) {
    for member in members {
        member.close().await;
    }
}

/// Everything of a store whose trees, segments and log are known.
pub(super) struct Parts {
    pub(super) name: String,
    pub(super) uuid: Uuid,
    pub(super) members: Vec<Member>,
    pub(super) anchor: Anchor,
    pub(super) space: Space,
    pub(super) lines: Lines,
    pub(super) catalogue: Catalogue,
    pub(super) delta: Delta,
    pub(super) last: Seq,
}

/// A store of them.
pub(super) fn assemble(core: &Core, parts: Parts) -> Result<Rc<Store>, LvsError> {
    let memory = core.memory();
    let missing = |source| LvsError::Memory { pool: parts.name.clone(), source };
    let pool = |chunk_bytes, capacity| DmaPool::new(memory, chunk_bytes, capacity).map_err(missing);
    let cache = PageCache::new(CACHE_PAGES).map_err(missing)?;
    let inner = Inner {
        seal: seal(&parts.uuid, &parts.anchor.salt, parts.anchor.opening),
        headers: pool(BLOCK_BYTES, MAX_RECORDS as u32)?,
        copies: pool(1 << 20, MAX_RECORDS as u32)?,
        edges: pool(BLOCK_BYTES, EDGE_BUFFERS)?,
        uuid: parts.uuid,
        members: parts.members,
        ops: Slab::new(256, DevOp::empty),
        records: Slab::new(MAX_RECORDS as u32, RecordCtx::empty),
        ios: Slab::new(256, IoCtx::empty),
        queues: Vec::new(),
        pending: VecDeque::with_capacity(1024),
        fetches: Fetches::new(pool(BLOCK_BYTES, fetch::MOST as u32)?),
        blocked: Vec::with_capacity(64),
        flush: super::flush::Flushes::default(),
        active: parts.delta,
        spare: Some(Delta::with_capacity(DELTA_UPDATES, DELTA_RANGES)),
        frozen: None,
        aside: None,
        frozen_base: Seq::ZERO,
        cache: RefCell::new(cache),
        lines: parts.lines,
        catalogue: parts.catalogue,
        space: parts.space,
        budget: super::budget::Budget::default(),
        log: Log::new(parts.last),
        page_streams: [None; 2],
        thin_pending: Cell::new(0),
        thin_frozen: 0,
        used_blocks: 0,
        reads: [0; 2],
        phase: 0,
        read_at: aio::Instant::default(),
        noted: super::note::Noted::default(),
        now: core.now(),
        turn: 0,
        log_lags: false,
        fault: None,
        read_only: None,
        anchored: true,
        want_checkpoint: false,
        cleaning: Vec::new(),
        merges: 0,
        touched: Vec::new(),
        partial_writes: 0,
        reserved: (0, 0),
        refused: Vec::new(),
        checkpoint: parts.anchor.checkpoint,
        anchor: parts.anchor,
        anchor_followed: true,
        read_errors: 0,
        checksum_errors: 0,
        page_errors: 0,
        scratch: Vec::with_capacity(256),
        cut: Vec::with_capacity(64),
        name: parts.name.clone(),
    };
    let slow = pool(super::pages::SLOW_BUFFER_BYTES, SLOW_BUFFERS)?;
    Ok(Rc::new(Store {
        core: core.clone(),
        slow,
        inner: RefCell::new(inner),
        feeding: Cell::new(false),
        noting: Cell::new(false),
        background: Cell::new(false),
        evacuating: Cell::new(false),
        cleaning: Cell::new(false),
        segment: Cell::default(),
        closing: Cell::new(false),
        closed: Cell::new(false),
        claim: Cell::new(None),
        scrub: super::scrub::Scrub::default(),
        checkpoints: Gate::default(),
        changes: Gate::default(),
    }))
}

impl Store {
    /// Writes a new pool over `devices`, and opens it.
    pub(crate) async fn create(
        core: &Core,
        devices: Vec<Arc<dyn BlockDevice>>,
        spec: CreatePool,
    ) -> Result<Rc<Self>, LvsError> {
        check_name(&spec.name)?;
        let uuid = spec.uuid.unwrap_or_else(Uuid::new_v4);
        let Some(claim) = Claim::new(uuid) else {
            return Err(LvsError::Exists { what: "pool", name: uuid.to_string(), pool: spec.name });
        };
        let mut members = open_members(&spec.name, devices).await?;
        let space = match new_space(&mut members, spec.force).await {
            Ok(space) => space,
            Err(error) => {
                close_members(members).await;
                return Err(error);
            }
        };
        let store = Self::new_pool(core, members, space, spec.name, uuid)?;
        store.claim.set(Some(claim));
        // What an earlier pool left goes first, then comes the first checkpoint, then the labels: a disk that has a label
        // has a pool, and one that a crash left without is as empty as before.
        let written = async {
            store.erase_superblocks().await?;
            store.checkpoint(false).await?;
            store.write_labels().await
        };
        if let Err(error) = written.await {
            store.close().await;
            return Err(error);
        }
        store.begin_to_poll();
        store.open_for_use();
        Ok(store)
    }

    /// A store without content on devices that were looked at.
    fn new_pool(
        core: &Core,
        members: Vec<Member>,
        mut space: Space,
        name: String,
        uuid: Uuid,
    ) -> Result<Rc<Self>, LvsError> {
        let opening = 1;
        let base = Seq::first_of(opening);
        let anchor = Anchor {
            pool: uuid,
            incompatible: 0,
            compatible: 0,
            checkpoint: 0,
            opening,
            clean: false,
            incarnation: *Uuid::new_v4().as_bytes(),
            salt: *Uuid::new_v4().as_bytes(),
            base,
            last: base,
            segment_blocks: space.segment_blocks(),
            members: anchor_members(&members, &space, &[]),
            open: Vec::new(),
            next: Vec::new(),
            catalogue: BlobPtr::default(),
            lines: BlobPtr::default(),
            segments: BlobPtr::default(),
            delta: BlobPtr::default(),
        };
        space.collect_free();
        let parts = Parts {
            name,
            uuid,
            members,
            anchor,
            space,
            lines: Lines::default(),
            catalogue: Catalogue { dirty: true, ..Catalogue::default() },
            delta: Delta::with_capacity(DELTA_UPDATES, DELTA_RANGES),
            last: base,
        };
        assemble(core, parts)
    }
}

/// Devices for a new pool get their identities and segments.
async fn new_space(members: &mut [Member], force: bool) -> Result<Space, LvsError> {
    for m in members.iter() {
        check_vacant(m, force).await?;
    }
    let total: u64 = members.iter().map(Member::len_blocks).sum();
    let segment_blocks = label::segment_blocks_for(total * u64::from(BLOCK_BYTES));
    let mut space = Space::new(segment_blocks);
    for m in members {
        let segments = segments_for(m, segment_blocks)?;
        m.uuid = Uuid::new_v4();
        space.add_member(vec![Segment::FREE; segments as usize]);
    }
    Ok(space)
}

/// How many segments a device has; an error when they are too few.
pub(super) fn segments_for(m: &Member, segment_blocks: u32) -> Result<u32, LvsError> {
    let segments = label::segments_of(m.len_blocks(), segment_blocks);
    if segments < LEAST_SEGMENTS {
        let block = u64::from(BLOCK_BYTES);
        let needed = label::FIRST_SEGMENT_BLOCK + u64::from(LEAST_SEGMENTS) * u64::from(segment_blocks);
        return Err(LvsError::DiskTooSmall {
            disk: m.device.name().to_owned(),
            size_bytes: m.len_blocks() * block,
            needed_bytes: needed * block,
        });
    }
    Ok(segments)
}
