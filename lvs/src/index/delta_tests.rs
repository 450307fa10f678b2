//! The delta over a naive lower layer, against a naive model of everything.

use super::super::dump::DumpError;
use super::*;
use crate::index::testing::Rng;
use std::collections::{BTreeMap, BTreeSet};

const BLOCKS: u64 = 48;

fn at(n: u64) -> Seq {
    Seq(n)
}

fn pba(n: u64) -> Pba {
    Pba::new(0, n).unwrap()
}

fn data(birth: u64, block: u64) -> Version {
    Version { birth: at(birth), place: Place::Data { pba: pba(block), crc: block as u32 } }
}

fn hole(birth: u64) -> Version {
    Version { birth: at(birth), place: Place::Hole }
}

fn version(delta: &Delta, block: u64, before: Seq) -> Option<Version> {
    match delta.lookup(LineId(1), BlockNo(block), before) {
        Some(DeltaHit::Version(v)) => Some(v),
        Some(other) => panic!("{other:?}"),
        None => None,
    }
}

/// H9: records complete in another order than their numbers; what counts is the number.
#[test]
fn h9_a_version_that_arrives_late_takes_its_place_by_number_or_is_dropped() {
    let mut delta = Delta::with_capacity(64, 4);
    let (line, block) = (LineId(1), BlockNo(7));
    let mut gone = Vec::new();
    delta.put(line, block, data(30, 130), &[at(20)], |g| gone.push(g.pba));
    delta.put(line, block, data(25, 125), &[at(20)], |g| gone.push(g.pba));
    assert_eq!(gone, [pba(125)], "nobody sees what was superseded before it arrived");
    delta.put(line, block, data(10, 110), &[at(20)], |g| gone.push(g.pba));
    delta.put(line, block, data(15, 115), &[at(20)], |g| gone.push(g.pba));
    assert_eq!(gone, [pba(125), pba(110)], "the late one supersedes the earlier one below the snapshot");
    assert_eq!(version(&delta, 7, Seq::MAX), Some(data(30, 130)));
    assert_eq!(version(&delta, 7, at(20)), Some(data(15, 115)));
    assert_eq!(version(&delta, 7, at(15)), None);
    // The same under an unmapped range.
    let range = HoleRange { line, first: BlockNo(0), count: 100, birth: at(40) };
    assert!(delta.put_hole_range(range, &[at(20)], |g| gone.push(g.pba)));
    assert_eq!(gone.pop(), Some(pba(130)));
    delta.put(line, block, data(35, 135), &[at(20)], |_| ());
    assert_eq!(version(&delta, 7, Seq::MAX), Some(hole(40)));
    delta.put(line, block, data(41, 141), &[at(20)], |_| ());
    assert_eq!(version(&delta, 7, Seq::MAX), Some(data(41, 141)));
    assert_eq!(version(&delta, 8, Seq::MAX), Some(hole(40)));
}

/// H9: a move counts only while the map says that the version is where it was moved from.
#[test]
fn h9_a_move_never_overrides_another_version_or_address() {
    let mut delta = Delta::with_capacity(64, 4);
    let (line, block) = (LineId(1), BlockNo(7));
    delta.put(line, block, data(30, 130), &[], |_| ());
    assert_eq!(delta.relocate(line, block, at(30), pba(130), pba(230)), Moved::InPlace);
    assert_eq!(delta.relocate(line, block, at(30), pba(130), pba(330)), Moved::Stale, "no longer there");
    assert_eq!(delta.relocate(line, block, at(20), pba(120), pba(220)), Moved::Noted, "of a lower layer");
    assert_eq!(delta.relocate(line, block, at(20), pba(220), pba(320)), Moved::Noted, "and again");
    assert_eq!(delta.relocate(line, block, at(20), pba(120), pba(420)), Moved::Stale);
    assert_eq!(
        delta.relocate(line, block, at(33), pba(133), pba(233)),
        Moved::Stale,
        "would have to be here"
    );
    let place = Place::Data { pba: pba(230), crc: 130 };
    assert_eq!(version(&delta, 7, Seq::MAX), Some(Version { birth: at(30), place }), "same birth, same CRC");
    let moved = DeltaHit::Moved { birth: at(20), from: pba(120), to: pba(320) };
    assert_eq!(delta.lookup(line, block, at(30)), Some(moved));
    let lower = Version { birth: at(20), place: Place::Data { pba: pba(120), crc: 5 } };
    let expect = Version { birth: at(20), place: Place::Data { pba: pba(320), crc: 5 } };
    assert_eq!(delta.corrected(line, block, lower), expect);
    assert_eq!(delta.corrected(line, block, data(20, 121)), data(20, 121), "it is somewhere else by now");
    assert_eq!(delta.corrected(line, block, data(19, 120)), data(19, 120), "it is another version");
}

#[test]
fn a_full_delta_says_so_and_stays_as_it_is() {
    let mut delta = Delta::with_capacity(8, 2);
    for n in 0..8 {
        assert!(delta.put(LineId(1), BlockNo(n), data(n + 1, n), &[], |_| ()));
    }
    assert_eq!(delta.room(), (0, 2));
    assert!(!delta.put(LineId(1), BlockNo(9), data(20, 9), &[], |_| ()));
    assert_eq!(delta.relocate(LineId(1), BlockNo(10), at(1), pba(1), pba(2)), Moved::Full);
    let range = |first| HoleRange { line: LineId(1), first: BlockNo(first), count: 10, birth: at(30) };
    assert!(delta.put_hole_range(range(100), &[], |_| ()));
    assert!(delta.put_hole_range(range(200), &[], |_| ()));
    assert!(!delta.put_hole_range(range(300), &[], |_| ()));
    assert!(!delta.put_hole_range(HoleRange { count: 3, ..range(300) }, &[], |_| ()), "three points");
    assert_eq!(delta.len(), (8, 2));
    delta.clear();
    assert_eq!(delta.room(), (8, 2));
}

#[test]
fn ranges_of_one_record_that_touch_become_one_and_old_ones_below_go() {
    let mut delta = Delta::with_capacity(8, 4);
    let range =
        |first, count, birth| HoleRange { line: LineId(1), first: BlockNo(first), count, birth: at(birth) };
    for n in 0..10 {
        assert!(delta.put_hole_range(range(n * 10, 10, 5), &[], |_| ()));
    }
    assert_eq!(
        delta.ranges_over(LineId(1), BlockNo(0), BlockNo(u64::MAX)).collect::<Vec<_>>(),
        [&range(0, 100, 5)]
    );
    assert!(delta.put_hole_range(range(0, 200, 9), &[], |_| ()));
    assert_eq!(delta.len(), (0, 1));
    assert!(delta.put_hole_range(range(0, 300, 12), &[at(11)], |_| ()));
    assert_eq!(delta.len(), (0, 2), "a snapshot sees the older one");
    assert_eq!(delta.ranges_over(LineId(1), BlockNo(250), BlockNo(260)).count(), 1);
    assert_eq!(delta.ranges_over(LineId(1), BlockNo(199), BlockNo(260)).count(), 2);
    assert_eq!(delta.ranges_over(LineId(1), BlockNo(300), BlockNo(400)).count(), 0);
}

#[test]
fn a_damaged_dump_is_refused() {
    let mut delta = Delta::with_capacity(16, 4);
    delta.put(LineId(1), BlockNo(3), data(5, 6), &[], |_| ());
    delta.put(LineId(1), BlockNo(4), hole(5), &[], |_| ());
    let range = HoleRange { line: LineId(2), first: BlockNo(5), count: 100, birth: at(7) };
    delta.put_hole_range(range, &[], |_| ());
    delta.relocate(LineId(3), BlockNo(8), at(2), pba(8), pba(9));
    let mut bytes = Vec::new();
    delta.dump(&mut bytes);
    assert_eq!(bytes.len(), delta.dump_len_bytes());
    let mut copy = Delta::with_capacity(16, 4);
    copy.restore(&bytes).unwrap();
    let mut again = Vec::new();
    copy.dump(&mut again);
    assert_eq!(bytes, again);
    assert_eq!(delta.lines().collect::<Vec<_>>(), [LineId(1), LineId(2), LineId(3)]);
    for cut in 0..bytes.len() {
        copy.clear();
        assert!(copy.restore(&bytes[..cut]).is_err());
    }
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        copy.clear();
        let _ = copy.restore(&bad);
    }
    let mut small = Delta::with_capacity(2, 4);
    assert_eq!(small.restore(&bytes), Err(DumpError::TooMany { points: 3, ranges: 1 }));
}

/// Everything that a line should hold, and a lower layer that gets what the delta held whenever it is frozen.
struct Model {
    truth: BTreeMap<u64, BTreeMap<u64, Place>>,
    lower: BTreeMap<(u64, u64), Place>,
    snapshots: Vec<Seq>,
    /// Addresses that the delta or the lower layer answers for.
    held: BTreeSet<u64>,
}

impl Model {
    fn sees(&self, block: u64, before: Seq) -> Option<Version> {
        let (birth, place) = self.truth.get(&block)?.range(..before.0).next_back()?;
        Some(Version { birth: Seq(*birth), place: *place })
    }

    fn finds(&self, delta: &Delta, block: u64, before: Seq) -> Option<Version> {
        let line = LineId(1);
        if let Some(DeltaHit::Version(version)) = delta.lookup(line, BlockNo(block), before) {
            return Some(version);
        }
        let lower = self.lower.range((block, 0)..(block, before.0)).next_back();
        lower.map(|((_, birth), place)| {
            delta.corrected(line, BlockNo(block), Version { birth: Seq(*birth), place: *place })
        })
    }

    fn absorb(&mut self, delta: &mut Delta) {
        for u in delta.points_from(LineId(1), BlockNo(0)) {
            let key = (u.block.0, u.birth.0);
            match u.change {
                Change::Place(place) => drop(self.lower.insert(key, place)),
                Change::Moved { from, to } => match self.lower.get_mut(&key) {
                    Some(Place::Data { pba, .. }) if *pba == from => *pba = to,
                    _ => panic!("a move of nothing"),
                },
            }
        }
        for r in delta.ranges_over(LineId(1), BlockNo(0), BlockNo(u64::MAX)) {
            for block in r.first.0..r.end() {
                self.lower.insert((block, r.birth.0), Place::Hole);
            }
        }
        delta.clear();
    }
}

#[test]
fn look_ups_agree_with_the_model_under_late_arrivals_ranges_moves_and_snapshots() {
    for seed in 0..12 {
        run(seed);
    }
}

fn run(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut delta = Delta::with_capacity(400, 24);
    let mut m = Model {
        truth: BTreeMap::new(),
        lower: BTreeMap::new(),
        snapshots: Vec::new(),
        held: BTreeSet::new(),
    };
    let mut pending: Vec<(u64, u64, u64, Place)> = Vec::new();
    let (mut seq, mut address) = (1u64, 1u64);
    let line = LineId(1);
    for step in 0..3000 {
        match rng.below(20) {
            0..=9 => {
                address += 1;
                let place = Place::Data { pba: pba(address), crc: step };
                pending.push((seq, rng.below(BLOCKS), 1, place));
                seq += 1;
            }
            10 | 11 => {
                let first = rng.below(BLOCKS);
                let most = if rng.below(2) == 0 { 4 } else { BLOCKS };
                pending.push((seq, first, 1 + rng.below((BLOCKS - first).min(most)), Place::Hole));
                seq += 1;
            }
            12..=15 if delta.room().0 > 60 => {
                let block = rng.below(BLOCKS);
                let views = m.snapshots.iter().copied().chain([Seq::MAX]).collect::<Vec<_>>();
                let view = views[rng.below(views.len() as u64) as usize];
                if let Some(Version { birth, place: Place::Data { pba: from, crc } }) = m.sees(block, view) {
                    address += 1;
                    let moved = delta.relocate(line, BlockNo(block), birth, from, pba(address));
                    assert!(matches!(moved, Moved::InPlace | Moved::Noted), "seed {seed}: {moved:?}");
                    let place = Place::Data { pba: pba(address), crc };
                    m.truth.get_mut(&block).unwrap().insert(birth.0, place);
                    m.held.insert(address);
                    if moved == Moved::InPlace {
                        m.held.remove(&from.block());
                    }
                }
            }
            16 if pending.is_empty() && rng.below(4) == 0 => m.snapshots.push(Seq(seq)),
            17 if !m.snapshots.is_empty() && rng.below(4) == 0 => {
                m.snapshots.remove(rng.below(m.snapshots.len() as u64) as usize);
            }
            _ => {
                // Out of order, as completions are.
                while !pending.is_empty() && delta.room().0 > 60 && delta.room().1 > 1 {
                    let (birth, first, count, place) =
                        pending.swap_remove(rng.below(pending.len() as u64) as usize);
                    for block in first..first + count {
                        m.truth.entry(block).or_default().insert(birth, place);
                    }
                    if let Place::Data { pba, .. } = place {
                        m.held.insert(pba.block());
                    }
                    let held = &mut m.held;
                    let gone = |g: Gone| assert!(held.remove(&g.pba.block()), "seed {seed}: gone twice");
                    if count == 1 && place != Place::Hole {
                        let version = Version { birth: Seq(birth), place };
                        assert!(delta.put(line, BlockNo(first), version, &m.snapshots, gone));
                    } else {
                        let range = HoleRange { line, first: BlockNo(first), count, birth: Seq(birth) };
                        assert!(delta.put_hole_range(range, &m.snapshots, gone));
                    }
                }
                if pending.is_empty() && (delta.room().0 <= 60 || delta.room().1 <= 1 || rng.below(30) == 0) {
                    m.absorb(&mut delta);
                }
                if rng.below(10) == 0 {
                    let mut bytes = Vec::new();
                    delta.dump(&mut bytes);
                    delta.clear();
                    delta.restore(&bytes).unwrap();
                }
            }
        }
        let block = rng.below(BLOCKS);
        for view in m.snapshots.iter().copied().chain([Seq::MAX]) {
            assert_eq!(
                m.finds(&delta, block, view),
                m.sees(block, view),
                "seed {seed} step {step} view {view:?}"
            );
        }
    }
}
