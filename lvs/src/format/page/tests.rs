use super::*;
use crate::format::testing::{Rng, flip_every_bit};

const POOL: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
const LINE: LineId = LineId(0x1122_3344);

fn data(block: u64, birth: u64, pba: u64, crc: u32) -> Leaf {
    let place = Place::Data { pba: Pba::from_bits(pba), crc };
    Leaf { block: BlockNo(block), len_blocks: 1, version: Version { birth: Seq(birth), place } }
}

fn hole(block: u64, birth: u64, len_blocks: u64) -> Leaf {
    Leaf { block: BlockNo(block), len_blocks, version: Version { birth: Seq(birth), place: Place::Hole } }
}

fn leaf_page(entries: &[Leaf]) -> ([u8; PAGE_BYTES], PageSummary) {
    let mut bytes = [0xee; PAGE_BYTES];
    let mut builder = PageBuilder::new(&mut bytes, &POOL, LINE, 0);
    for entry in entries {
        builder.push_leaf(entry).unwrap();
    }
    let summary = builder.finish().unwrap();
    (bytes, summary)
}

fn child_page(level: u8, entries: &[Child]) -> ([u8; PAGE_BYTES], PageSummary) {
    let mut bytes = [0xee; PAGE_BYTES];
    let mut builder = PageBuilder::new(&mut bytes, &POOL, LINE, level);
    for entry in entries {
        builder.push_child(entry).unwrap();
    }
    let summary = builder.finish().unwrap();
    (bytes, summary)
}

fn expected(level: u8, summary: &PageSummary) -> Expected {
    Expected { pool: POOL, line: LINE, level, crc: summary.crc, newest: summary.newest }
}

/// As `check` sees a page whose pointer was made for just these bytes: only the content is judged.
fn check_content(bytes: &[u8; PAGE_BYTES], level: u8) -> Result<(), FormatError> {
    let expected = Expected { pool: POOL, line: LINE, level, crc: crc32c(bytes), newest: Seq::MAX };
    PageView::check(bytes, &expected).map(|_| ())
}

fn some_leaves(rng: &mut Rng, count: usize) -> Vec<Leaf> {
    let mut keys: Vec<(u64, u64)> = (0..count).map(|_| (rng.below(400), rng.below(1 << 60))).collect();
    keys.sort_by(|a, b| key_order(*a, *b));
    keys.dedup();
    keys.iter()
        .map(|&(block, birth)| match rng.below(4) {
            0 => hole(block, birth, 1 + rng.below(MAX_RUN_BLOCKS)),
            _ => data(block, birth, rng.below(64) << 40 | rng.below((1 << 40) - 1), rng.next() as u32),
        })
        .collect()
}

#[test]
fn entries_come_back_and_searches_agree_with_a_scan() {
    let mut rng = Rng(7);
    for round in 0..200 {
        let entries = some_leaves(&mut rng, 1 + round % LEAF_CAPACITY);
        let (bytes, summary) = leaf_page(&entries);
        let page = PageView::check(&bytes, &expected(0, &summary)).unwrap();
        assert_eq!((page.len(), page.level(), page.line()), (entries.len(), 0, LINE));
        assert_eq!(summary.count, entries.len());
        assert_eq!((summary.block, summary.birth), (entries[0].block, entries[0].version.birth));
        assert_eq!(summary.newest, entries.iter().map(|e| e.version.birth).max().unwrap());
        let back: Vec<Leaf> = (0..page.len()).map(|i| page.leaf(i).unwrap()).collect();
        assert_eq!(back, entries);
        assert!(page.leaf(entries.len()).is_none() && page.child(0).is_none());
        for _ in 0..200 {
            let (block, before) = match rng.below(3) {
                0 => (BlockNo(rng.below(402)), Seq(rng.below(1 << 60))),
                1 => (BlockNo(rng.below(402)), Seq::MAX),
                _ => {
                    let one = entries[rng.below(entries.len() as u64) as usize];
                    (one.block, Seq(one.version.birth.0 + rng.below(2)))
                }
            };
            let scanned = entries
                .iter()
                .position(|e| e.block > block || (e.block == block && e.version.birth < before))
                .unwrap_or(entries.len());
            assert_eq!(page.lower_bound(block, before), scanned);
        }
    }
}

#[test]
fn children_come_back() {
    let mut rng = Rng(9);
    for count in [1, 2, 57, CHILD_CAPACITY] {
        let entries: Vec<Child> = (0..count as u64)
            .map(|i| {
                let copy =
                    if rng.below(2) == 0 { Pba::NONE } else { Pba::new(63, rng.below(1 << 40)).unwrap() };
                let pba = Pba::new(rng.below(64) as u8, rng.below(1 << 40)).unwrap();
                let newest = Seq(rng.below(1 << 62));
                let ptr = PagePtr { pba, copy, crc: rng.next() as u32, newest };
                Child { block: BlockNo(i / 2), birth: Seq(100 - i % 2), ptr }
            })
            .collect();
        let (bytes, summary) = child_page(3, &entries);
        let page = PageView::check(&bytes, &expected(3, &summary)).unwrap();
        let back: Vec<Child> = (0..page.len()).map(|i| page.child(i).unwrap()).collect();
        assert_eq!(back, entries);
        assert!(page.leaf(0).is_none() && page.child(count).is_none());
        assert_eq!(summary.newest, entries.iter().map(|e| e.ptr.newest).max().unwrap());
        assert_eq!(page.lower_bound(BlockNo(0), Seq(100)), 1.min(count));
        assert_eq!(page.lower_bound(BlockNo(0), Seq(101)), 0);
        assert_eq!(page.lower_bound(BlockNo(1), Seq::MAX), 2.min(count));
        assert_eq!(page.lower_bound(BlockNo(MAX_BLOCKS), Seq::MAX), count);
    }
}

#[test]
fn the_largest_values_fit_and_larger_ones_are_refused() {
    let top = Pba::new(63, (1 << 40) - 1).unwrap();
    let entries = [
        data(0, u64::MAX, top.bits(), u32::MAX),
        data(0, 0, 0, 0),
        hole(1, 5, MAX_RUN_BLOCKS),
        hole(MAX_BLOCKS - 1, u64::MAX, 1),
    ];
    let (bytes, summary) = leaf_page(&entries);
    let page = PageView::check(&bytes, &expected(0, &summary)).unwrap();
    assert_eq!((0..4).map(|i| page.leaf(i).unwrap()).collect::<Vec<_>>(), entries);

    let mut bytes = [0; PAGE_BYTES];
    let mut builder = PageBuilder::new(&mut bytes, &POOL, LINE, 0);
    for bad in [
        data(MAX_BLOCKS, 1, 5, 5),
        data(1, 1, Pba::NONE.bits(), 5),
        Leaf { len_blocks: 2, ..data(1, 1, 5, 5) },
        hole(1, 1, 0),
        hole(1, 1, MAX_RUN_BLOCKS + 1),
        hole(MAX_BLOCKS - 1, 1, 2),
    ] {
        assert_eq!(builder.push_leaf(&bad), Err(Refused::Invalid), "{bad:?}");
    }
    builder.push_leaf(&hole(7, 7, 3)).unwrap();
    assert_eq!(builder.push_leaf(&hole(7, 7, 3)), Err(Refused::Invalid), "twice");
    assert_eq!(builder.push_leaf(&hole(7, 8, 3)), Err(Refused::Invalid), "a newer one comes first");
    assert_eq!(builder.push_leaf(&hole(6, 1, 1)), Err(Refused::Invalid), "backwards");
    let ptr = PagePtr { pba: top, copy: Pba::NONE, crc: 0, newest: Seq(1) };
    let child = Child { block: BlockNo(9), birth: Seq(9), ptr };
    assert_eq!(builder.push_child(&child), Err(Refused::Invalid), "a child in a leaf");
    for block in 8..7 + LEAF_CAPACITY as u64 {
        builder.push_leaf(&hole(block, 1, 1)).unwrap();
    }
    assert!(builder.is_full());
    assert_eq!(builder.push_leaf(&hole(5000, 1, 1)), Err(Refused::Full));
    assert_eq!(builder.finish().unwrap().count, LEAF_CAPACITY);
    assert!(PageBuilder::new(&mut bytes, &POOL, LINE, 1).finish().is_none());
}

#[test]
fn every_flipped_bit_is_found() {
    let mut rng = Rng(3);
    let (bytes, summary) = leaf_page(&some_leaves(&mut rng, 40));
    let expected = expected(0, &summary);
    flip_every_bit(&bytes, |flipped| {
        let page: &[u8; PAGE_BYTES] = flipped.try_into().unwrap();
        assert_eq!(
            PageView::check(page, &expected).map(|_| ()).unwrap_err(),
            FormatError::Checksum(What::Page)
        );
    });
    for bit in 0..32 {
        let other = Expected { crc: expected.crc ^ 1 << bit, ..expected };
        assert!(PageView::check(&bytes, &other).is_err());
    }
}

#[test]
fn a_page_of_another_owner_is_refused() {
    let (bytes, summary) = leaf_page(&[data(1, 2, 3, 4)]);
    let good = expected(0, &summary);
    let other = |field| Err(FormatError::Other { what: What::Page, field });
    let judge = |expected: Expected| PageView::check(&bytes, &expected).map(|_| ());
    assert_eq!(judge(good), Ok(()));
    assert_eq!(judge(Expected { pool: Uuid::nil(), ..good }), other("pool"));
    assert_eq!(judge(Expected { line: LineId(1), ..good }), other("line"));
    assert_eq!(judge(Expected { level: 1, ..good }), other("level"));
    assert_eq!(judge(Expected { newest: Seq(3), ..good }), Ok(()));
    let value = FormatError::Value { what: What::Page, field: "birth", at_bytes: 64 };
    assert_eq!(judge(Expected { newest: Seq(1), ..good }), Err(value), "newer than the pointer says");
}

#[test]
fn content_that_cannot_be_is_refused_even_with_a_good_checksum() {
    let (leaf, _) = leaf_page(&[data(1, 9, 3, 4), data(1, 2, 3, 4), hole(5, 1, 9)]);
    let ptr = PagePtr { pba: Pba::new(0, 5).unwrap(), copy: Pba::NONE, crc: 1, newest: Seq(1) };
    let (interior, _) = child_page(
        1,
        &[Child { block: BlockNo(1), birth: Seq(2), ptr }, Child { block: BlockNo(1), birth: Seq(1), ptr }],
    );
    let value = |field, at_bytes| FormatError::Value { what: What::Page, field, at_bytes };
    // Page, byte to change, its new value, what is said.
    let cases: &[(&[u8; PAGE_BYTES], u8, usize, u8, FormatError)] = &[
        (&leaf, 0, 0, 0, FormatError::Magic(What::Page)),
        (&leaf, 0, 4, 2, FormatError::Version { what: What::Page, found: 2 }),
        (&leaf, 0, 6, 0, value("number of entries", 6)),
        (&leaf, 0, 6, LEAF_CAPACITY as u8 + 1, value("number of entries", 6)),
        (&leaf, 0, 7, 1, value("number of entries", 6)),
        (&leaf, 0, 15, 1, value("reserved part", 12)),
        (&leaf, 0, 63, 1, value("reserved part", 12)),
        (&leaf, 0, 66, 2, value("kind", 64)),
        (&leaf, 0, 65, 64, value("address", 64)),
        (&leaf, 0, 64 + 24 + 8, 9, value("order", 88)),
        (&leaf, 0, 64 + 48, 1, value("length of a hole", 112)),
        (&leaf, 0, 64 + 48 + 16, 0, value("length of a hole", 112)),
        (&leaf, 0, 64 + 48 + 20, 2, value("length of a hole", 112)),
        (&interior, 1, 6, CHILD_CAPACITY as u8 + 1, value("number of entries", 6)),
        (&interior, 1, 64, 1, value("key", 64)),
        (&interior, 1, 64 + 24 + 5, 64, value("address", 64)),
        (&interior, 1, 64 + 24 + 7, 64, value("address of the copy", 64)),
        (&interior, 1, 104 + 8, 2, value("order", 104)),
    ];
    for (number, (page, level, at, byte, why)) in cases.iter().enumerate() {
        let mut bytes = **page;
        bytes[*at] = *byte;
        assert_eq!(check_content(&bytes, *level), Err(*why), "case {number}");
    }
}

#[test]
fn a_view_of_garbage_stays_inside_and_does_not_panic() {
    let mut rng = Rng(11);
    for _ in 0..2000 {
        let mut bytes = [0; PAGE_BYTES];
        bytes.iter_mut().for_each(|byte| *byte = rng.next() as u8);
        bytes[5] = rng.below(3) as u8;
        let page = PageView::new(&bytes);
        assert!(page.len() <= LEAF_CAPACITY);
        let at = page.lower_bound(BlockNo(rng.next()), Seq(rng.next()));
        let _ = (page.leaf(at), page.child(at), page.leaf(usize::MAX), page.is_empty());
        let _ = check_content(&bytes, bytes[5]);
        bytes[..5].copy_from_slice(b"KSmp\x01");
        let _ = check_content(&bytes, bytes[5]);
    }
}

/// A change of these bytes is a change of the format: it needs a new version, and the old one must stay readable.
#[test]
fn golden_bytes() {
    let (bytes, summary) = leaf_page(&[
        data(0x01_0203_0405, 0x1112_1314_1516_1718, 0x2122_2324_2526, 0x3132_3334),
        hole(0x01_0203_0406, 2, 3),
    ]);
    #[rustfmt::skip]
    let head = [
        b'K', b'S', b'm', b'p', 1, 0, 2, 0, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0,
        0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
    ];
    assert_eq!(bytes[..32], head);
    assert_eq!(bytes[32..64], [0; 32]);
    #[rustfmt::skip]
    let entries = [
        0x22, 0x21, 0, 0x05, 0x04, 0x03, 0x02, 0x01, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,
        0x34, 0x33, 0x32, 0x31, 0x26, 0x25, 0x24, 0x23,
        0, 0, 1, 0x06, 0x04, 0x03, 0x02, 0x01, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(bytes[64..112], entries);
    assert!(bytes[112..].iter().all(|byte| *byte == 0));
    assert_eq!(summary.crc, crc32c(&bytes));

    let ptr = PagePtr {
        pba: Pba::from_bits(0x2122_2324_2526),
        copy: Pba::from_bits(0x3132_3334_3536),
        crc: 0x4142_4344,
        newest: Seq(0x5152_5354_5556_5758),
    };
    let (bytes, _) = child_page(1, &[Child { block: BlockNo(0x01_0203_0405), birth: Seq(9), ptr }]);
    #[rustfmt::skip]
    let entry = [
        0, 0, 0, 0x05, 0x04, 0x03, 0x02, 0x01, 9, 0, 0, 0, 0, 0, 0, 0,
        0x58, 0x57, 0x56, 0x55, 0x54, 0x53, 0x52, 0x51, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21, 0x32, 0x31,
        0x36, 0x35, 0x34, 0x33, 0x44, 0x43, 0x42, 0x41,
    ];
    assert_eq!(bytes[5], 1);
    assert_eq!(bytes[64..104], entry);
}
