//! The cleaner from inside: counts that are wrong, and both ways to read a segment.

#[path = "../../tests/rig/mod.rs"]
mod rig;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use aio::{BlockDevice, Descriptor};

use self::rig::{Rig, Rng, on};
use super::super::open_stores;
use super::super::space::Segment;
use super::{BLOCK, Candidate, Pace, State, Store};
use crate::info::{CreatePool, CreateVolume};
use crate::types::{Pba, SegmentId};
use crate::{Pool, Volume};

const BLOCKS: u64 = 2048;

/// A pool with a volume that was written, and overwritten at random with records of `depth` blocks.
struct Bed {
    rig: Rig,
    pool: Pool,
    store: Rc<Store>,
    descriptor: Descriptor,
    rng: Rng,
}

impl Bed {
    fn new(depth: u64) -> Self {
        let rig = Rig::new();
        let disk = rig.disk("d0", 4096, 64, true, 7);
        let spec = CreatePool { name: "tpool".to_owned(), uuid: None, force: false };
        let pool = rig.run(Pool::create(rig.home(), vec![on(&disk)], spec)).unwrap();
        let spec = CreateVolume {
            name: "v".to_owned(),
            uuid: None,
            size_bytes: BLOCKS * BLOCK as u64,
            thin: true,
            entity_id: None,
        };
        let volume: Arc<Volume> = rig.run(pool.create_volume(spec)).unwrap();
        let device: Arc<dyn BlockDevice> = volume;
        let descriptor = rig.run(Descriptor::open(device)).unwrap();
        let store = open_stores::get(pool.uuid()).unwrap();
        let mut bed = Self { rig, pool, store, descriptor, rng: Rng::new(depth) };
        (0..BLOCKS / 32).for_each(|at| bed.write(at * 32, 32));
        for _ in 0..BLOCKS / depth {
            let at = bed.rng.below(BLOCKS - depth);
            bed.write(at, depth);
        }
        // So many that segments of map pages are full, too.
        for at in 0..40 {
            bed.write(at * 32, 1);
            bed.checkpoint();
        }
        bed
    }

    fn write(&self, first: u64, count: u64) {
        let len = count as u32 * BLOCK as u32;
        let buf = self.rig.core().pools().unwrap().alloc(len).unwrap();
        self.rig.run(self.descriptor.write_at(first * BLOCK as u64, len, buf)).0.unwrap();
    }

    fn checkpoint(&self) {
        self.rig.run(self.pool.checkpoint()).unwrap();
    }

    /// Closed segments in which something is live, and how much.
    fn used(&self, state: State) -> Vec<(SegmentId, u32)> {
        let is_used = |s: &Segment| s.state == state && s.live > 0;
        let inner = self.store.inner();
        inner.space.iter().filter(|(_, s)| is_used(s)).map(|(id, s)| (id, s.live)).collect()
    }

    fn live(&self, id: SegmentId) -> u32 {
        self.store.inner().space.get(id).unwrap().live
    }

    fn miscount(&self, id: SegmentId, live: u32) {
        self.store.inner().space.recounted(id, live);
    }
}

#[test]
fn h20_a_recount_finds_what_refers_to_doubtful_segments_and_leaves_others() {
    let bed = Bed::new(8);
    let data = bed.used(State::Log);
    let pages = bed.used(State::Pages);
    let [(a, a_live), (b, b_live), (c, c_live)] = data[..3] else { panic!("{data:?}") };
    let total = bed.store.inner().space.live();
    bed.miscount(a, a_live + 9);
    bed.miscount(b, b_live - 1);
    bed.miscount(c, c_live + 1);
    let mut doubtful = vec![a, b];
    for &(id, live) in &pages {
        bed.miscount(id, live + 3);
        doubtful.push(id);
    }
    bed.store.inner().budget.doubtful = doubtful;
    bed.rig.run(bed.store.recount());
    assert_eq!([bed.live(a), bed.live(b)], [a_live, b_live]);
    assert_eq!(bed.live(c), c_live + 1, "nobody doubted it");
    assert_eq!(bed.used(State::Pages), pages);
    assert_eq!(bed.store.inner().space.live(), total + 1);
}

#[test]
fn h20_a_segment_whose_count_was_too_high_becomes_free_after_a_recount() {
    let bed = Bed::new(8);
    let (id, live) = bed.used(State::Log)[0];
    bed.miscount(id, live + 5);
    assert!(bed.rig.run(bed.store.clean_segment(id, Pace::OfCaller)).unwrap());
    bed.store.inner().cleaned(id, true);
    bed.write(0, 1);
    bed.checkpoint();
    bed.store.inner().judge_cleaned();
    assert_eq!((bed.live(id), bed.store.inner().budget.doubtful.clone()), (5, vec![id]));
    bed.rig.run(bed.store.recount());
    bed.checkpoint();
    let now = *bed.store.inner().space.get(id).unwrap();
    assert!(matches!(now.state, State::Free | State::Named), "{now:?}");
}

/// What a reading found: blocks as (address, checksum), and pages.
fn found(bed: &Bed, id: SegmentId, sparse: bool) -> BTreeSet<(Pba, u32)> {
    let (content, mut held) = bed.rig.run(bed.store.read_segment(id, sparse)).unwrap();
    let mut live: Vec<Candidate> = Vec::new();
    let mut all: BTreeSet<(Pba, u32)> = content.pages.iter().map(|&(tag, pba)| (pba, tag.line.0)).collect();
    for candidate in content.blocks {
        all.insert((candidate.pba, candidate.crc));
        if bed.rig.run(bed.store.is_live(&candidate)).unwrap() {
            live.push(candidate);
        }
    }
    bed.rig.run(bed.store.read_live(&mut held, &live)).unwrap();
    for c in &live {
        assert_eq!(held.block(c.pba).map(nvme::digest::crc32c), Some(c.crc), "{:?}, sparse: {sparse}", c.pba);
    }
    bed.store.give_back(held);
    all
}

#[test]
fn a_segment_holds_the_same_whether_all_of_it_is_read_or_what_its_headers_name() {
    for depth in [1, 2, 7, 8, 32] {
        let bed = Bed::new(depth);
        let (data, pages) = (bed.used(State::Log), bed.used(State::Pages));
        assert!(data.len() > 3 && !pages.is_empty(), "{depth}: {data:?}, {pages:?}");
        for &(id, _) in data.iter().chain(&pages) {
            let whole = found(&bed, id, false);
            // As if next to nothing of it were live.
            bed.miscount(id, 1);
            assert_eq!(found(&bed, id, true), whole, "{depth}: {id:?}");
            assert!(!whole.is_empty());
        }
    }
}
