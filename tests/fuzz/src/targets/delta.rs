//! The updates of a pool that no merge has seen, as an import writes them down.

use crate::{Shape, Target};
use lvs::index::{Delta, DumpError, HoleRange};
use lvs::{BlockNo, LineId, Pba, Place, Seq, Version};

/// Room of the deltas.
const POINTS: usize = 96;
const RANGES: usize = 24;

/// Dumps of deltas.
pub(super) const DELTA: Target = Target {
    name: "lvs_delta",
    about: "dumps of deltas: what is accepted can be looked up, and dumped again is the same then",
    run: delta,
    seeds: delta_seeds,
};

fn empty() -> Delta {
    Delta::with_capacity(POINTS, RANGES)
}

fn delta_seeds() -> Vec<Vec<u8>> {
    let pba = |block| Pba::new(1, block).expect("in range");
    let data = |birth, block| Version { birth: Seq(birth), place: Place::Data { pba: pba(block), crc: 7 } };
    let snapshots = [Seq(5), Seq(9)];
    let mut some = empty();
    for birth in 1..14 {
        assert!(some.put(LineId(1), BlockNo(birth % 3), data(birth, 300 + birth), &snapshots, |_| {}));
    }
    let hole = Version { birth: Seq(20), place: Place::Hole };
    assert!(some.put(LineId(2), BlockNo(8), hole, &[], |_| {}));
    let range = |line, first, birth| HoleRange {
        line: LineId(line),
        first: BlockNo(first),
        count: 1 << 20,
        birth: Seq(birth),
    };
    assert!(some.put_hole_range(range(2, 100, 21), &[], |_| {}));
    assert!(some.put_hole_range(range(3, 1 << 30, 22), &[], |_| {}));
    some.relocate(LineId(1), BlockNo(0), Seq(12), pba(312), pba(900));
    some.relocate(LineId(4), BlockNo(77), Seq(2), pba(400), pba(901));
    [empty(), some].iter().map(dumped).collect()
}

fn dumped(delta: &Delta) -> Vec<u8> {
    let mut bytes = Vec::new();
    delta.dump(&mut bytes);
    assert_eq!(bytes.len(), delta.dump_len_bytes());
    bytes
}

fn delta(bytes: &[u8]) -> Shape {
    let mut delta = empty();
    let restored = delta.restore(bytes);
    let (points, ranges) = delta.len();
    assert!(points <= POINTS && ranges <= RANGES, "no more than there is room for");
    if let Err(error) = restored {
        delta.clear();
        assert!(delta.is_empty() && delta.room() == (POINTS, RANGES));
        let kind = match error {
            DumpError::Length { .. } => 0,
            DumpError::TooMany { .. } => 1,
            DumpError::Entry { .. } => 2,
        };
        return Shape::of((kind, points.min(4), ranges.min(4)));
    }
    // In whatever order it was, it is sorted now.
    let sorted = dumped(&delta);
    assert_eq!(sorted.len(), bytes.len(), "each entry once");
    let mut again = empty();
    again.restore(&sorted).expect("what was dumped can be restored");
    assert_eq!(dumped(&again), sorted);
    let lines: Vec<LineId> = delta.lines().collect();
    assert!(lines.is_sorted_by(|a, b| a < b), "each line once, ascending");
    let mut found = 0;
    for &line in &lines {
        for update in delta.points_from(line, BlockNo(0)) {
            assert_eq!(update.line, line);
            assert_eq!(delta.exact(line, update.block, update.birth), Some(update.change));
            found += usize::from(delta.lookup(line, update.block, Seq::MAX).is_some());
        }
    }
    Shape::of((points.min(8), ranges.min(4), lines.len().min(4), found.min(8)))
}
