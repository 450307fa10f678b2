//! Trees and deltas together against a naive model: every version that ever was, and who looks at it.

use super::testing::{Rng, Store, run};
use super::*;
use crate::format::page::{CHILD_CAPACITY, LEAF_CAPACITY};
use crate::types::{BlockNo, LineId, Pba, Place, Seq, Version, is_needed};
use std::collections::{BTreeMap, BTreeSet};

const LINE: LineId = LineId(3);

fn pba(n: u64) -> Pba {
    Pba::new(0, n).unwrap()
}

/// A line as the store would keep it, and as it should be.
struct World {
    store: Store,
    tree: Tree,
    active: Delta,
    frozen: Delta,
    snapshots: Vec<Seq>,
    head: bool,
    has_parent: bool,
    /// All versions that ever were, with their present address.
    truth: BTreeMap<u64, BTreeMap<u64, Place>>,
    /// Addresses that events say are in the tree.
    live: BTreeSet<u64>,
    blocks: u64,
    seq: u64,
    address: u64,
    /// A purge under way.
    purge: Option<(PurgeCursor, Seq)>,
}

impl World {
    fn new(capacities: (usize, usize), blocks: u64, has_parent: bool) -> Self {
        Self {
            store: Store::new(capacities, 24),
            tree: Tree { line: LINE, root: None },
            active: Delta::with_capacity(4000, 40),
            frozen: Delta::with_capacity(4000, 40),
            snapshots: Vec::new(),
            head: true,
            has_parent,
            truth: BTreeMap::new(),
            live: BTreeSet::new(),
            blocks,
            seq: 1,
            address: 1,
            purge: None,
        }
    }

    fn views(&self) -> impl Iterator<Item = Seq> + '_ {
        self.snapshots.iter().copied().chain(self.head.then_some(Seq::MAX))
    }

    fn expects(&self, block: u64, before: Seq) -> Option<Version> {
        let (birth, place) = self.truth.get(&block)?.range(..before.0).next_back()?;
        Some(Version { birth: Seq(*birth), place: *place })
    }

    fn finds(&self, block: u64, before: Seq) -> Option<Version> {
        let at = BlockNo(block);
        if let Some(DeltaHit::Version(version)) = self.active.lookup(LINE, at, before) {
            return Some(version);
        }
        let found = match self.frozen.lookup(LINE, at, before) {
            Some(DeltaHit::Version(version)) => Some(version),
            _ => run(find(&self.store, &self.tree, at, before)).unwrap(),
        };
        found.map(|v| self.active.corrected(LINE, at, self.frozen.corrected(LINE, at, v)))
    }

    /// What a reader gets: a hole and nothing are the same, except for a clone.
    fn content(&self, version: Option<Version>) -> Option<Version> {
        version.filter(|v| self.has_parent || v.place != Place::Hole)
    }

    fn compare(&self, block: u64, context: &str) {
        for view in self.views() {
            let (found, expected) = (self.finds(block, view), self.expects(block, view));
            if view == Seq::MAX {
                assert_eq!(found, expected, "{context} block {block} head");
            } else {
                // Of holes one over the other, an older one may stand for both.
                let place = |v: Option<Version>| self.content(v).map(|v| v.place);
                assert_eq!(place(found), place(expected), "{context} block {block} view {view:?}");
            }
        }
    }

    fn compare_all(&self, context: &str) {
        (0..self.blocks).for_each(|block| self.compare(block, context));
    }

    fn put(&mut self, block: u64, birth: u64, place: Place) {
        self.truth.entry(block).or_default().insert(birth, place);
        let version = Version { birth: Seq(birth), place };
        assert!(self.active.put(LINE, BlockNo(block), version, &self.snapshots, |_| ()));
    }

    fn write(&mut self, block: u64) {
        self.address += 1;
        let place = Place::Data { pba: pba(self.address), crc: block as u32 };
        self.put(block, self.seq, place);
        self.seq += 1;
    }

    fn unmap(&mut self, first: u64, count: u64) {
        for block in first..first + count {
            self.truth.entry(block).or_default().insert(self.seq, Place::Hole);
        }
        let range = HoleRange { line: LINE, first: BlockNo(first), count, birth: Seq(self.seq) };
        assert!(self.active.put_hole_range(range, &self.snapshots, |_| ()));
        self.seq += 1;
    }

    fn snapshot(&mut self) {
        self.snapshots.push(Seq(self.seq));
        self.seq += 1;
    }

    fn delete_snapshot(&mut self, index: usize) {
        let since = if index == 0 { Seq::ZERO } else { self.snapshots[index - 1] };
        self.snapshots.remove(index);
        self.begin_purge(since);
    }

    fn begin_purge(&mut self, since: Seq) {
        let since = self.purge.map_or(since, |(_, other)| since.min(other));
        self.purge = Some((PurgeCursor::START, since));
    }

    /// The cleaner moves what a view sees of a block.
    fn relocate(&mut self, block: u64, view: Seq) {
        let Some(Version { birth, place: Place::Data { pba: from, crc } }) = self.finds(block, view) else {
            return;
        };
        self.address += 1;
        let to = pba(self.address);
        let moved = self.active.relocate(LINE, BlockNo(block), birth, from, to);
        assert!(matches!(moved, Moved::InPlace | Moved::Noted), "{moved:?}");
        self.truth.get_mut(&block).unwrap().insert(birth.0, Place::Data { pba: to, crc });
    }

    fn freeze(&mut self) {
        assert!(self.frozen.is_empty());
        core::mem::swap(&mut self.active, &mut self.frozen);
    }

    fn merge(&mut self, touched: &[PageTag]) {
        let (snapshots, live) = (self.snapshots.clone(), &mut self.live);
        let view = LineView { snapshots: &snapshots, head: self.head, has_parent: self.has_parent };
        let events = |event| account(live, event);
        self.tree = run(merge(&self.store, &self.tree, &self.frozen, view, touched, events)).unwrap();
        self.store.forget_dropped();
        self.frozen.clear();
    }

    fn purge_step(&mut self, most: u32) {
        let Some((cursor, since)) = self.purge else { return };
        let (snapshots, live) = (self.snapshots.clone(), &mut self.live);
        let view = LineView { snapshots: &snapshots, head: self.head, has_parent: self.has_parent };
        let events = |event| account(live, event);
        let (tree, next) = run(purge(&self.store, &self.tree, cursor, view, since, most, events)).unwrap();
        self.tree = tree;
        self.store.forget_dropped();
        self.purge = next.map(|next| (next, since));
    }

    /// Checks the tree itself: order, pages, that the events told the truth, and, when `clean`, that all is needed.
    fn check_tree(&self, clean: bool, context: &str) {
        let mut pages = BTreeSet::new();
        let mut entries = Vec::new();
        let findings = run(check(&self.store, &self.tree, |seen| match seen {
            Seen::Page(page) => assert!(pages.insert(page.ptr.pba.bits())),
            Seen::Entry(leaf) => entries.push(leaf),
        }));
        assert!(findings.is_empty(), "{context}: {findings:?}");
        let stored = self.store.pages.borrow().keys().copied().collect::<BTreeSet<_>>();
        assert_eq!(pages, stored, "{context}: every page is in the tree or was dropped");
        let data = |place| if let Place::Data { pba, .. } = place { Some(pba.bits()) } else { None };
        let live = entries.iter().filter_map(|leaf| data(leaf.version.place)).collect::<BTreeSet<_>>();
        assert_eq!(live, self.live, "{context}: events and tree");
        let mut until = (BlockNo(u64::MAX), Seq::MAX);
        for leaf in entries.iter().filter(|_| clean) {
            let end = if until.0 == leaf.block { until.1 } else { Seq::MAX };
            let needed = is_needed(leaf.version.birth, end, &self.snapshots, self.head);
            assert!(needed, "{context}: {leaf:?} until {end:?}");
            until = (leaf.block, leaf.version.birth);
        }
    }

    fn query(&self, query_for: &Query) -> Vec<Span> {
        let layers = [&self.active, &self.frozen];
        let (mut spans, mut from) = (Vec::<Span>::new(), query_for.from);
        loop {
            let part = Query { from, ..*query_for };
            let answer = run(query(&self.store, &self.tree, &layers[..], &part)).unwrap();
            assert!(answer.spans.len() <= query_for.most_spans);
            for span in answer.spans {
                match spans.last_mut() {
                    Some(last) if last.first.0 + last.count == span.first.0 && last.data == span.data => {
                        last.count += span.count;
                    }
                    _ => spans.push(span),
                }
            }
            match answer.next {
                Some(next) => from = next,
                None => return spans,
            }
        }
    }

    fn compare_query(&self, rng: &mut Rng, context: &str) {
        let views = self.views().collect::<Vec<_>>();
        let Some(&before) = views.get(rng.below(views.len().max(1) as u64) as usize) else { return };
        let since = if rng.below(2) == 0 { Seq::ZERO } else { Seq(rng.below(self.seq)) };
        // Epochs are asked about heads.
        let before = if since > Seq::ZERO && self.head { Seq::MAX } else { before };
        let since = if self.head { since } else { Seq::ZERO };
        let (from, most_spans) = (BlockNo(rng.below(self.blocks)), 1 + rng.below(9) as usize);
        let most_leaves = [1, 2, usize::MAX][rng.below(3) as usize];
        let asked = Query { from, end: BlockNo(self.blocks), before, since, most_spans, most_leaves };
        let mut found = BTreeMap::new();
        for span in self.query(&asked) {
            found.extend((0..span.count).map(|i| (span.first.0 + i, span.data)));
        }
        let mut expected = BTreeMap::new();
        for block in from.0..self.blocks {
            if let Some(version) = self.expects(block, before).filter(|v| v.birth >= since) {
                expected.insert(block, version.place != Place::Hole);
            }
        }
        if before != Seq::MAX && !self.has_parent {
            found.retain(|_, data| *data);
            expected.retain(|_, data| *data);
        }
        assert_eq!(found, expected, "{context}: {asked:?}");
    }
}

fn account(live: &mut BTreeSet<u64>, event: Event) {
    match event {
        Event::Added { pba, .. } => assert!(live.insert(pba.bits())),
        Event::Lapsed { pba, .. } => assert!(!live.contains(&pba.bits())),
        Event::Dropped { pba, .. } => assert!(live.remove(&pba.bits())),
        Event::Moved { from, to, .. } => assert!(live.remove(&from.bits()) && live.insert(to.bits())),
    }
}

#[test]
fn trees_and_deltas_agree_with_the_model_through_snapshots_moves_ranges_merges_and_purges() {
    for seed in 0..8 {
        history(seed);
    }
}

fn history(seed: u64) {
    let mut rng = Rng::new(seed);
    let capacities = [(6, 4), (9, 5), (20, 8), (LEAF_CAPACITY, CHILD_CAPACITY)][seed as usize % 4];
    let blocks = [300, 1200][seed as usize / 4 % 2];
    let mut w = World::new(capacities, blocks, seed % 3 == 2);
    for step in 0..400 {
        let context = format!("seed {seed} step {step}");
        match rng.below(16) {
            0..=3 => (0..rng.below(60)).for_each(|_| w.write(rng.below(blocks))),
            4 => {
                let first = rng.below(blocks);
                (first..blocks.min(first + 80)).for_each(|block| w.write(block));
            }
            5 => {
                // One block again and again, and two that finish in the wrong order.
                let block = rng.below(blocks.min(20));
                w.write(block);
                let (late, soon) = (w.seq, w.seq + 1);
                w.seq += 2;
                w.address += 2;
                let at = |address| Place::Data { pba: pba(address), crc: 9 };
                w.put(block, soon, at(w.address));
                w.put(block, late, at(w.address - 1));
            }
            6 if w.active.room().1 > 5 => {
                let first = rng.below(blocks);
                let most = [3, 30, blocks][rng.below(3) as usize];
                w.unmap(first, 1 + rng.below((blocks - first).min(most)));
            }
            7 | 8 if w.snapshots.len() < 30 => w.snapshot(),
            9 if !w.snapshots.is_empty() => w.delete_snapshot(rng.below(w.snapshots.len() as u64) as usize),
            10 => {
                for _ in 0..rng.below(30) {
                    let views = w.views().collect::<Vec<_>>();
                    w.relocate(rng.below(blocks), views[rng.below(views.len() as u64) as usize]);
                }
            }
            11 => w.purge_step(1 + rng.below(12) as u32),
            12 => w.compare_query(&mut rng, &context),
            _ => {
                if w.frozen.is_empty() {
                    w.freeze();
                    continue;
                }
                let touched = some_pages(&w, &mut rng);
                w.merge(&touched.iter().map(|t| t.0).collect::<Vec<_>>());
                let pages = w.store.pages.borrow();
                assert!(
                    touched.iter().all(|t| !pages.contains_key(&t.1)),
                    "{context}: touched pages are moved"
                );
                drop(pages);
                w.check_tree(false, &context);
            }
        }
        if w.active.room().0 < 500 || w.active.room().1 < 3 {
            w.merge(&[]);
            w.freeze();
        }
        w.compare(rng.below(blocks), &context);
        if step % 100 == 0 {
            w.compare_all(&context);
        }
    }
    take_down(w, &mut rng, seed);
}

/// Everything merged; then the head goes, then the snapshots, until nothing is left.
fn take_down(mut w: World, rng: &mut Rng, seed: u64) {
    let finish = |w: &mut World, context: &str| {
        while w.purge.is_some() {
            w.purge_step(7);
        }
        w.check_tree(true, context);
        w.compare_all(context);
    };
    w.merge(&[]);
    w.freeze();
    w.merge(&[]);
    finish(&mut w, &format!("seed {seed} merged"));
    let before = w.store.appended.get();
    w.begin_purge(Seq::ZERO);
    finish(&mut w, &format!("seed {seed} merged"));
    assert_eq!(w.store.appended.get(), before, "a purge that finds nothing writes nothing");
    w.head = false;
    w.begin_purge(w.snapshots.last().copied().unwrap_or(Seq::ZERO));
    finish(&mut w, &format!("seed {seed} without head"));
    while !w.snapshots.is_empty() {
        w.delete_snapshot(rng.below(w.snapshots.len() as u64) as usize);
        let context = format!("seed {seed}, {} snapshots left", w.snapshots.len());
        finish(&mut w, &context);
    }
    assert_eq!(w.tree.root, None);
    assert!(w.store.pages.borrow().is_empty() && w.live.is_empty());
}

/// Some pages of the tree that the cleaner wants moved, with their addresses.
fn some_pages(w: &World, rng: &mut Rng) -> Vec<(PageTag, u64)> {
    let pages = w.store.pages.borrow();
    let mut some = Vec::new();
    for (address, (tag, _)) in pages.iter() {
        assert!(run(is_page_live(&w.store, &w.tree, tag, Pba::from_bits(*address))).unwrap());
        assert!(!run(is_page_live(&w.store, &w.tree, tag, pba(1 << 30))).unwrap());
        if rng.below(20) == 0 {
            some.push((*tag, *address));
        }
    }
    some
}

#[test]
fn what_a_merge_supersedes_goes_with_it_wherever_it_stands() {
    let mut rng = Rng::new(3);
    let mut w = World::new((6, 4), 200, false);
    for round in 0..300 {
        (0..1 + rng.below(4)).for_each(|_| w.write(rng.below(200)));
        if round % 7 == 0 {
            w.unmap(rng.below(150), 20);
        }
        w.freeze();
        w.merge(&[]);
        w.check_tree(true, &format!("round {round}"));
    }
    w.compare_all("at the end");
}

/// A tree of `blocks` written blocks, one by one in the order of `order`, merged every 3000.
fn filled(blocks: u64, order: impl Fn(u64) -> u64) -> World {
    let mut w = World::new((LEAF_CAPACITY, CHILD_CAPACITY), blocks, false);
    for n in 0..blocks {
        w.write(order(n));
        if n % 3000 == 2999 || n + 1 == blocks {
            w.freeze();
            w.merge(&[]);
        }
    }
    w.check_tree(true, "filled");
    w
}

#[test]
fn blocks_written_in_order_make_full_leaves_and_scattered_ones_at_least_half_full() {
    let leaves = |w: &World| w.store.pages.borrow().values().filter(|(tag, _)| tag.level == 0).count() as u64;
    let w = filled(40_000, |n| n);
    assert!(leaves(&w) <= 40_000 / LEAF_CAPACITY as u64 + 2, "{} leaves", leaves(&w));
    let w = filled(40_000, |n| n * 7919 % 40_000);
    assert!(leaves(&w) <= 40_000 / (LEAF_CAPACITY as u64 / 2), "{} leaves", leaves(&w));
}

#[test]
fn a_trim_of_everything_leaves_one_hole_and_no_other_page() {
    let mut w = filled(20_000, |n| n * 7919 % 20_000);
    w.unmap(0, 20_000);
    w.freeze();
    w.merge(&[]);
    w.check_tree(true, "trimmed");
    assert_eq!((w.store.pages.borrow().len(), w.live.len()), (1, 0));
    assert_eq!(w.finds(19_999, Seq::MAX).map(|v| v.place), Some(Place::Hole));
    w.write(777);
    w.freeze();
    w.merge(&[]);
    w.check_tree(true, "written again");
    w.compare_all("written again");
}

/// H11: what was unmapped is known to have changed, however long ago and whatever was deleted or cleaned since; moves
/// change nothing.
#[test]
fn h11_trims_stay_in_the_change_log_and_moves_do_not_enter_it() {
    let mut w = filled(2000, |n| n);
    w.snapshot();
    let epoch = Seq(w.seq);
    w.unmap(100, 50);
    w.unmap(1700, 1);
    w.write(5);
    for block in 400..500 {
        w.relocate(block, Seq::MAX);
    }
    let changes = [(5, 1, true), (100, 50, false), (1700, 1, false)];
    let expected = changes.map(|(first, count, data)| Span { first: BlockNo(first), count, data });
    let ask = Query::changed_since(epoch, BlockNo(0), BlockNo(2000), 100);
    assert_eq!(w.query(&ask), expected, "in the delta");
    w.freeze();
    w.merge(&[]);
    assert_eq!(w.query(&ask), expected, "in the tree");
    w.delete_snapshot(0);
    while w.purge.is_some() {
        w.purge_step(3);
    }
    assert_eq!(w.query(&ask), expected, "after the snapshot that they hid from went");
    let tags = w.store.pages.borrow().values().map(|(tag, _)| *tag).collect::<Vec<_>>();
    w.merge(&tags);
    assert_eq!(w.query(&ask), expected, "after all pages were moved");
    w.check_tree(true, "moved");
    let ask = Query::changed_since(Seq(w.seq), BlockNo(0), BlockNo(2000), 100);
    assert_eq!(w.query(&ask), []);
}

/// H11: the search for changes leaves out what is older, so that it costs about its answer.
#[test]
fn h11_a_search_for_changes_reads_only_what_changed() {
    let mut w = filled(100_000, |n| n);
    let epoch = Seq(w.seq);
    [7, 50_000, 99_999].into_iter().for_each(|block| w.write(block));
    w.freeze();
    w.merge(&[]);
    w.store.cache.replace(PageCache::new(4000).unwrap());
    w.store.reads.take();
    let spans = w.query(&Query::changed_since(epoch, BlockNo(0), BlockNo(100_000), 100));
    assert_eq!(spans.len(), 3);
    assert!(w.store.total_reads() <= 3 * 3, "{:?}", w.store.reads);
}

/// Page reads of looking blocks up, of asking whether versions are live, and of moving them, with `snapshots` snapshots
/// and a block that was written between all of them.
fn cost_with_snapshots(snapshots: u64) -> [u64; 4] {
    let mut w = World::new((LEAF_CAPACITY, CHILD_CAPACITY), 30_000, false);
    for n in 0..30_000 {
        w.write(n);
        if w.active.room().0 < 100 {
            w.freeze();
            w.merge(&[]);
        }
    }
    for _ in 0..snapshots {
        w.snapshot();
        w.write(15_000);
        if w.active.room().0 < 100 {
            w.freeze();
            w.merge(&[]);
        }
    }
    w.freeze();
    w.merge(&[]);
    let mut costs = [0; 4];
    let cold = |w: &World| {
        w.store.cache.replace(PageCache::new(4000).unwrap());
        w.store.reads.take();
    };
    let oldest = w.snapshots.first().copied().unwrap_or(Seq::MAX);
    for (cost, before) in [(0, Seq::MAX), (1, oldest)] {
        cold(&w);
        assert!(w.finds(15_000, before).is_some());
        costs[cost] = w.store.total_reads();
    }
    let old = w.finds(15_000, oldest).unwrap();
    cold(&w);
    assert!(run(locate_block(&w.store, &w.tree, BlockNo(15_000), old.birth)).unwrap().is_some());
    costs[2] = w.store.total_reads();
    w.relocate(15_000, oldest);
    cold(&w);
    w.freeze();
    w.merge(&[]);
    costs[3] = w.store.total_reads();
    w.check_tree(true, "moved");
    w.compare(15_000, "moved");
    costs
}

/// H13: neither look-ups nor the cleaner's work depend on the number of snapshots.
#[test]
fn h13_look_ups_and_moves_cost_the_same_with_ten_thousand_snapshots() {
    let (none, many) = (cost_with_snapshots(0), cost_with_snapshots(10_000));
    let sum = |costs: [u64; 4]| costs.iter().sum::<u64>();
    assert!(sum(many) <= 2 * sum(none), "page reads: {none:?} without, {many:?} with 10,000 snapshots");
}

/// H16: what an import replays goes to the delta; no page of the tree is read or written.
#[test]
fn h16_replay_reads_no_page() {
    let mut w = filled(10_000, |n| n);
    w.store.cache.replace(PageCache::new(4000).unwrap());
    w.store.reads.take();
    let written = w.store.appended.get();
    let moved = (0..500).map(|n| w.expects(n, Seq::MAX).unwrap()).collect::<Vec<_>>();
    (2000..4000).for_each(|n| w.write(n));
    (0..20).for_each(|n| w.unmap(5000 + n * 100, 50));
    for (n, version) in moved.iter().enumerate() {
        let Place::Data { pba: from, crc } = version.place else { panic!() };
        w.address += 1;
        let to = pba(w.address);
        assert_eq!(w.active.relocate(LINE, BlockNo(n as u64), version.birth, from, to), Moved::Noted);
        w.truth.get_mut(&(n as u64)).unwrap().insert(version.birth.0, Place::Data { pba: to, crc });
    }
    assert_eq!((w.store.total_reads(), w.store.appended.get()), (0, written));
    w.compare_all("replayed");
    w.freeze();
    w.merge(&[]);
    w.check_tree(true, "merged");
    w.compare_all("merged");
}

#[test]
fn a_flipped_bit_in_any_page_is_found_and_named() {
    let w = filled(3000, |n| n * 7 % 3000);
    let addresses = w.store.pages.borrow().keys().copied().collect::<Vec<_>>();
    for (n, address) in addresses.iter().enumerate() {
        w.store.cache.replace(PageCache::new(100).unwrap());
        let flip = || w.store.pages.borrow_mut().get_mut(address).unwrap().1[n * 199 % 4096] ^= 1 << (n % 8);
        flip();
        let findings = run(check(&w.store, &w.tree, |_| ()));
        assert_eq!(findings.len(), 1, "{findings:?}");
        let Finding { page, .. } = &findings[0];
        assert_eq!(page.ptr.pba.bits(), *address);
        assert!(findings[0].to_string().contains("cannot be read"), "{}", findings[0]);
        flip();
    }
}
