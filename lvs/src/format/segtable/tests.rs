use super::*;
use crate::format::testing::Rng;

fn some_segment(rng: &mut Rng) -> Segment {
    let stream = [Stream::Hot, Stream::Cold, Stream::Meta][rng.below(3) as usize];
    let state = match rng.below(3) {
        0 => SegmentState::Free,
        1 => SegmentState::Open(stream),
        _ => SegmentState::Full(stream),
    };
    let live_blocks = if state == SegmentState::Free { 0 } else { rng.below(1025) as u32 };
    Segment { live_blocks, generation: rng.next() as u32, state, age: rng.next() as u32 }
}

#[test]
fn it_comes_back() {
    let mut rng = Rng(6);
    for members in [0, 1, 2, MAX_MEMBERS] {
        let table: Vec<Vec<Segment>> = (0..members)
            .map(|member| (0..rng.below(50) + member as u64 % 2).map(|_| some_segment(&mut rng)).collect())
            .collect();
        let bytes = encode(&table).unwrap();
        assert_eq!(decode(&bytes, 1024), Ok(table.clone()));
        for len in 0..bytes.len() {
            let error = decode(&bytes[..len], 1024).unwrap_err();
            assert!(matches!(error, FormatError::Short { .. }), "{len}: {error}");
        }
        let longer = [&bytes[..], &[0]].concat();
        let end = FormatError::Value { what: What::SegmentTable, field: "end", at_bytes: bytes.len() };
        assert_eq!(decode(&longer, 1024), Err(end));
    }
    assert!(encode(&vec![Vec::new(); MAX_MEMBERS + 1]).is_err());
}

#[test]
fn what_cannot_be_is_refused() {
    let full = Segment { live_blocks: 1024, state: SegmentState::Full(Stream::Hot), ..Segment::default() };
    let good = encode(&[vec![Segment::default(), full]]).unwrap();
    let value = |field, at_bytes| FormatError::Value { what: What::SegmentTable, field, at_bytes };
    let too_many =
        |field, count, limit| FormatError::TooMany { what: What::SegmentTable, field, count, limit };
    let segments = MAX_SEGMENTS as usize;
    for (at, byte, why) in [
        (0, 0, FormatError::Magic(What::SegmentTable)),
        (8, 9, FormatError::Version { what: What::SegmentTable, found: 9 }),
        (10, 65, too_many("devices", 65, MAX_MEMBERS)),
        (12, 1, value("reserved part", 12)),
        (19, 2, too_many("segments of a device", 2 * segments + 2, segments)),
        (20, 1, value("segment", 20)),
        (32, 3, value("segment", 20)),
        (33, 1, value("segment", 20)),
        (36, 1, value("segment", 36)),
        (49, 0, value("segment", 36)),
        (49, 4, value("segment", 36)),
        (51, 1, value("segment", 36)),
    ] {
        let mut bytes = good.clone();
        bytes[at] = byte;
        assert_eq!(decode(&bytes, 1024), Err(why), "byte {at}");
    }
    // A count that the bytes do not have is no allocation.
    let mut bytes = good.clone();
    bytes[18] = 0xff;
    assert!(matches!(decode(&bytes, 1024), Err(FormatError::Short { .. })));
    assert_eq!(decode(&good, 1023), Err(value("segment", 36)), "more live blocks than a segment has");
}

/// A change of these bytes is a change of the format: it needs a new version, and the old one must stay readable.
#[test]
fn golden_bytes() {
    let state = SegmentState::Full(Stream::Meta);
    let full = Segment { live_blocks: 0x0102, generation: 0x1112_1314, state, age: 0x2122_2324 };
    let open = Segment { state: SegmentState::Open(Stream::Cold), ..Segment::default() };
    let bytes = encode(&[vec![full, open], vec![]]).unwrap();
    #[rustfmt::skip]
    let golden = [
        b'K', b'S', b's', b'e', b'g', b'm', b't', b's', 1, 0, 2, 0, 0, 0, 0, 0,
        2, 0, 0, 0, 0, 0, 0, 0,
        0x02, 0x01, 0, 0, 0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21, 2, 3, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0,
    ];
    assert_eq!(bytes, golden);
}
