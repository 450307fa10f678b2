use super::*;
use crate::format::testing::Rng;

fn some_lines(rng: &mut Rng, count: u32) -> Lines {
    let mut lines: Vec<Line> = Vec::new();
    let mut id = 0;
    for _ in 0..count {
        id += 1 + rng.below(3) as u32;
        let ptr = PagePtr {
            pba: Pba::new(rng.below(64) as u8, rng.below(1 << 40)).unwrap(),
            copy: if rng.below(2) == 0 { Pba::NONE } else { Pba::new(1, rng.below(1 << 40)).unwrap() },
            crc: rng.next() as u32,
            newest: Seq(rng.next()),
        };
        let parent = lines.get(rng.below(20) as usize).map(|line| (line.id, Seq(rng.next())));
        lines.push(Line {
            id: LineId(id),
            root: (rng.below(3) > 0).then_some(Root { ptr, level: rng.below(13) as u8 }),
            head: rng.below(2) == 0,
            parent,
            live_blocks: (0..rng.below(5)).map(|_| rng.next()).collect(),
            purge: (rng.below(3) == 0).then_some(BlockNo(rng.below(MAX_BLOCKS + 1))),
        });
    }
    Lines { next_id: id + 1, lines }
}

#[test]
fn they_come_back() {
    let mut rng = Rng(8);
    for count in [0, 1, 2, 50] {
        let lines = some_lines(&mut rng, count);
        let bytes = lines.encode().unwrap();
        assert_eq!(Lines::decode(&bytes), Ok(lines));
        for len in 0..bytes.len() {
            let error = Lines::decode(&bytes[..len]).unwrap_err();
            assert!(matches!(error, FormatError::Short { .. }), "{len}: {error}");
        }
        assert!(Lines::decode(&[&bytes[..], &[0]].concat()).is_err());
    }
}

fn golden() -> Lines {
    let ptr = PagePtr {
        pba: Pba::from_bits(0x2122_2324_2526),
        copy: Pba::NONE,
        crc: 0x3132_3334,
        newest: Seq(0x4142_4344),
    };
    let first = Line {
        id: LineId(1),
        root: Some(Root { ptr, level: 2 }),
        head: true,
        parent: None,
        live_blocks: vec![0x51, 0x52],
        purge: None,
    };
    let parent = Some((LineId(1), Seq(0x61)));
    let second = Line {
        id: LineId(5),
        root: None,
        head: false,
        parent,
        live_blocks: vec![],
        purge: Some(BlockNo(0x71)),
    };
    Lines { next_id: 6, lines: vec![first, second] }
}

#[test]
fn what_cannot_be_is_refused() {
    let good = golden().encode().unwrap();
    let value = |field, at_bytes| FormatError::Value { what: What::Lines, field, at_bytes };
    // The first line begins at 24, its counters at 88, the second line at 104.
    for (at, byte, why) in [
        (0, 0, FormatError::Magic(What::Lines)),
        (8, 2, FormatError::Version { what: What::Lines, found: 2 }),
        (10, 1, value("reserved part", 10)),
        (16, 5, value("next line", 0)),
        (20, 1, value("reserved part", 10)),
        (24, 9, value("order of lines", 0)),
        (28, 16 + 3, value("line", 24)),
        (28, 1, value("line", 24)),
        (29, 13, value("line", 24)),
        (30, 1, value("line", 24)),
        (36, 1, value("line", 24)),
        (56 + 5, 64, value("line", 24)),
        (56 + 7, 1, value("line", 24)),
        (64 + 7, 1, value("line", 24)),
        (87, 1, value("line", 24)),
        (104 + 4, 12 + 2, value("line", 104)),
        (104 + 5, 1, value("line", 104)),
        (104 + 12, 5, value("line", 104)),
        (104 + 12, 3, value("parent of a line", 0)),
        (104 + 24 + 5, 1, value("line", 104)),
    ] {
        let mut bytes = good.clone();
        bytes[at] = byte;
        assert_eq!(Lines::decode(&bytes), Err(why), "byte {at}");
    }
    // Counts that the bytes do not have are no allocation.
    for (at, field) in [(13, "lines"), (33, "counters of a line")] {
        let mut bytes = good.clone();
        bytes[at] = 0xff;
        assert!(Lines::decode(&bytes).is_err(), "{field}");
        bytes[at + 2] = 0xff;
        let error = Lines::decode(&bytes).unwrap_err();
        assert!(matches!(error, FormatError::TooMany { field: which, .. } if which == field), "{error}");
    }
    let mut circle = golden();
    circle.lines[0].parent = Some((LineId(5), Seq(1)));
    assert!(circle.encode().is_err());
    let mut twice = golden();
    twice.lines[1].id = LineId(1);
    assert!(twice.encode().is_err());
}

/// A change of these bytes is a change of the format: it needs a new version, and the old one must stay readable.
#[test]
fn golden_bytes() {
    #[rustfmt::skip]
    let bytes = [
        b'K', b'S', b'l', b'i', b'n', b'e', b's', 0, 1, 0, 0, 0, 2, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
        1, 0, 0, 0, 3, 2, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0x26, 0x25, 0x24, 0x23, 0x22, 0x21, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0,
        0x44, 0x43, 0x42, 0x41, 0, 0, 0, 0, 0x34, 0x33, 0x32, 0x31, 0, 0, 0, 0,
        0x51, 0, 0, 0, 0, 0, 0, 0, 0x52, 0, 0, 0, 0, 0, 0, 0,
        5, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x61, 0, 0, 0, 0, 0, 0, 0, 0x71, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(golden().encode().unwrap(), bytes);
}
