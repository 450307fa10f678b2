use super::*;
use crate::format::blob::BlobExtent;
use crate::format::testing::{Rng, flip_every_bit};

fn anchor() -> Anchor {
    let member = |device, segments: u32, state| Member {
        device: Uuid::from_u128(device),
        size_blocks: 256 + u64::from(segments) * 1024 + 5,
        segments,
        state,
    };
    let blob = |block| BlobPtr {
        len_bytes: 5000,
        crc: 0x6162_6364,
        extents: vec![BlobExtent { pba: Pba::new(0, block).unwrap(), blocks: 2 }],
        copy: vec![BlobExtent { pba: Pba::new(2, block).unwrap(), blocks: 2 }],
    };
    Anchor {
        pool: Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        incompatible: 0,
        compatible: 4,
        checkpoint: 0x1112_1314,
        opening: 0x0203,
        clean: true,
        incarnation: *b"0123456789abcdef",
        salt: *b"fedcba9876543210",
        base: Seq::first_of(0x0203),
        last: Seq(Seq::first_of(0x0203).0 + 9),
        segment_blocks: 1024,
        members: vec![
            member(1, 10, MemberState::Active),
            member(2, 4, MemberState::Removed),
            member(3, 7, MemberState::Evacuating),
        ],
        open: vec![
            OpenSegment { segment: SegmentId::new(0, 3), next_block: 1024, stream: Stream::Hot },
            OpenSegment { segment: SegmentId::new(2, 6), next_block: 7, stream: Stream::Cold },
        ],
        next: vec![SegmentId::new(0, 4), SegmentId::new(0, 1)],
        catalogue: blob(300),
        lines: blob(400),
        segments: blob(500),
        delta: BlobPtr::default(),
    }
}

#[test]
fn it_comes_back() {
    let bytes = anchor().encode().unwrap();
    assert_eq!(bytes.len(), 4096);
    assert_eq!(Anchor::decode(&bytes), Ok(anchor()));
    let mut slot = bytes.clone();
    slot.resize(MAX_ANCHOR_BYTES, 0xee);
    assert_eq!(Anchor::decode(&slot), Ok(anchor()));
}

#[test]
fn the_largest_fits_into_its_slot() {
    let mut rng = Rng(1);
    let member = |device: u128| Member {
        device: Uuid::from_u128(device),
        size_blocks: MAX_DEVICE_BLOCKS,
        segments: 1 << 20,
        state: MemberState::Active,
    };
    let extents: Vec<BlobExtent> = (0..24)
        .map(|_| BlobExtent { pba: Pba::new(5, 256 + rng.below(1 << 29)).unwrap(), blocks: 9 })
        .collect();
    let blob = BlobPtr { len_bytes: 24 * 9 * 4096, crc: 1, extents: extents.clone(), copy: extents };
    let largest = Anchor {
        members: (0..MAX_MEMBERS as u128).map(member).collect(),
        open: (0..MAX_OPEN_STREAMS as u32)
            .map(|n| OpenSegment { segment: SegmentId::new(9, n), next_block: 0, stream: Stream::Meta })
            .collect(),
        next: (0..MAX_NEXT_SEGMENTS as u32).map(|n| SegmentId::new(10, n)).collect(),
        catalogue: blob.clone(),
        lines: blob.clone(),
        segments: blob.clone(),
        delta: blob,
        ..anchor()
    };
    let bytes = largest.encode().unwrap();
    assert!(bytes.len() <= MAX_ANCHOR_BYTES && bytes.len() > 5 * 4096, "{}", bytes.len());
    assert_eq!(Anchor::decode(&bytes), Ok(largest.clone()));

    let mut more = largest.clone();
    more.members.push(member(99));
    assert!(matches!(more.encode(), Err(FormatError::TooMany { count: 65, .. })));
    let mut more = largest.clone();
    more.open.push(OpenSegment { segment: SegmentId::new(11, 0), next_block: 0, stream: Stream::Hot });
    assert!(matches!(more.encode(), Err(FormatError::TooMany { count: 17, .. })));
    let mut more = largest;
    more.next.push(SegmentId::new(11, 0));
    assert!(matches!(more.encode(), Err(FormatError::TooMany { count: 4097, .. })));
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let bytes = anchor().encode().unwrap();
    let len = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    assert_eq!(len, 128 + 3 * 32 + 2 * 16 + 2 * 4 + 4 * 592);
    flip_every_bit(&bytes[..len], |flipped| assert!(Anchor::decode(flipped).is_err()));
    for cut in 0..len {
        assert!(matches!(Anchor::decode(&bytes[..cut]), Err(FormatError::Short { .. })), "{cut}");
    }
    // A torn write: blocks of the anchor that was in the slot before.
    let older = Anchor { checkpoint: 7, next: (0..1500).map(|n| SegmentId::new(4, n)).collect(), ..wide() };
    let newer = Anchor { checkpoint: 11, ..older.clone() };
    let (older, newer) = (older.encode().unwrap(), newer.encode().unwrap());
    assert!(older.len() > 8192);
    for block in 1..older.len() / 4096 {
        let torn = [&newer[..block * 4096], &older[block * 4096..]].concat();
        assert_eq!(Anchor::decode(&torn).is_ok(), torn == newer, "{block}");
    }
    let torn = [&older[..4096], &newer[4096..]].concat();
    assert!(
        Anchor::decode(&torn).is_ok_and(|anchor| anchor.checkpoint == 7),
        "they differ in the first block only"
    );
}

/// With a member that has many segments, at index 4.
fn wide() -> Anchor {
    let mut wide = anchor();
    let many = Member { size_blocks: 1 << 22, segments: 2000, ..wide.members[0] };
    wide.members.extend([many, many]);
    wide
}

#[test]
fn unknown_features_are_named() {
    for bits in [1, 1 << 63] {
        let mut bytes = anchor().encode().unwrap();
        bytes[16..24].copy_from_slice(&u64::to_le_bytes(bits));
        seal(&mut bytes);
        let error = FormatError::Incompatible { what: What::Anchor, bits };
        assert_eq!(Anchor::decode(&bytes), Err(error));
        assert!(error.to_string().contains(&format!("{bits:#x}")));
        assert_eq!(Anchor { incompatible: bits, ..anchor() }.encode(), Err(error));
    }
    let odd = Anchor { compatible: u64::MAX, ..anchor() };
    assert_eq!(Anchor::decode(&odd.encode().unwrap()), Ok(odd));
}

fn seal(bytes: &mut [u8]) {
    let len = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let sum = checksum(&bytes[..len]).to_le_bytes();
    bytes[CHECKSUM_AT..FIXED_BYTES].copy_from_slice(&sum);
}

#[test]
fn what_cannot_be_is_refused_even_with_a_good_checksum() {
    let value = |field, at_bytes| FormatError::Value { what: What::Anchor, field, at_bytes };
    let members = 128;
    let open = members + 3 * 32;
    let next = open + 2 * 16;
    let blobs = next + 2 * 4;
    let good = anchor().encode().unwrap();
    for (number, (at, byte, why)) in [
        (0, 0, FormatError::Magic(What::Anchor)),
        (8, 2, FormatError::Version { what: What::Anchor, found: 2 }),
        (10, 1, value("reserved part", 10)),
        (59, 1, value("opening", 56)),
        (57, 1, value("opening", 56)),
        (60, 2, value("mark of a clean export", 60)),
        (61, 1, value("reserved part", 10)),
        (96, 10, value("last sequence number", 104)),
        (111, 1, value("opening", 56)),
        (112, 1, value("segment size", 112)),
        (members + 16 + 5, 0xff, value("device", 128)),
        (members + 16 + 7, 1, value("device", 128)),
        (members + 24, 11, value("device", 128)),
        (members + 24 + 3, 1, value("device", 128)),
        (members + 28, 0, value("state of a device", members + 28)),
        (members + 28, 4, value("state of a device", members + 28)),
        (members + 28, 3, value("segment to write to", 118)),
        (members + 29, 1, value("reserved part", members + 29)),
        (open, 4, value("segment to write to", 118)),
        (open, 10, value("segment to write to", 118)),
        (open + 3, 1, value("segment to write to", 118)),
        (open + 3, 0xff, value("segment to write to", 118)),
        (open + 4, 1, value("next block of a segment", 118)),
        (open + 8, 0, value("stream of an open segment", open + 8)),
        (open + 15, 1, value("reserved part", open + 9)),
        (next, 1, value("segment to write to", 118)),
        (next + 3, 63, value("segment to write to", 118)),
        (blobs + 16 + 1, 0, value("address of a blob", 128)),
        (blobs + 16 + 3, 1, value("address of a blob", 128)),
        (blobs + 16 + 5, 1, value("address of a blob", 128)),
    ]
    .into_iter()
    .enumerate()
    {
        let mut bytes = good.clone();
        bytes[at] = byte;
        seal(&mut bytes);
        assert_eq!(Anchor::decode(&bytes), Err(why), "case {number}, byte {at}");
    }
    // Counts that do not fit the length.
    for at in [116, 118, 120] {
        for byte in [0, 1, 4, 0x40, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            seal(&mut bytes);
            assert!(Anchor::decode(&bytes).is_err(), "byte {at}");
        }
    }
    let mut bytes = good.clone();
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Anchor::decode(&bytes), Err(value("length", 12)));
    assert!(Anchor { members: vec![], open: vec![], next: vec![], ..anchor() }.encode().is_err());
}

#[test]
fn garbage_with_a_good_checksum_does_not_panic() {
    let mut rng = Rng(2);
    let good = anchor().encode().unwrap();
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..1 + rng.below(4) {
            bytes[16 + rng.below(2600) as usize] = rng.next() as u8;
        }
        seal(&mut bytes);
        if let Ok(anchor) = Anchor::decode(&bytes) {
            assert_eq!(Anchor::decode(&anchor.encode().unwrap()), Ok(anchor));
        }
    }
}

/// A change of these bytes is a change of the format: it needs a new version, and the old one must stay readable.
#[test]
fn golden_bytes() {
    let bytes = anchor().encode().unwrap();
    #[rustfmt::skip]
    let fixed = [
        b'K', b'S', b'a', b'n', b'c', b'h', b'o', b'r', 1, 0, 0, 0, 0x48, 0x0a, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0,
        0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
        0x14, 0x13, 0x12, 0x11, 0, 0, 0, 0, 3, 2, 0, 0, 1, 0, 0, 0,
        b'0', b'1', b'2', b'3', b'4', b'5', b'6', b'7', b'8', b'9', b'a', b'b', b'c', b'd', b'e', b'f',
        b'f', b'e', b'd', b'c', b'b', b'a', b'9', b'8', b'7', b'6', b'5', b'4', b'3', b'2', b'1', b'0',
        0, 0, 0, 0, 0, 3, 2, 0, 9, 0, 0, 0, 0, 3, 2, 0, 0, 4, 0, 0, 3, 0, 2, 0, 2, 0, 0, 0,
    ];
    assert_eq!(bytes[..124], fixed);
    let rest = [&bytes[..124], &bytes[128..2632]].concat();
    assert_eq!(bytes[124..128], crate::format::crc32c(&rest).to_le_bytes());
    #[rustfmt::skip]
    let lists = [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x05, 0x29, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x05, 0x11, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0x05, 0x1d, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0,
        3, 0, 0, 0, 0, 4, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 2, 7, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
        4, 0, 0, 0, 1, 0, 0, 0,
        0x88, 0x13, 0, 0, 0, 0, 0, 0, 0x64, 0x63, 0x62, 0x61, 1, 1, 0, 0, 0x2c, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0,
    ];
    assert_eq!(bytes[128..128 + lists.len()], lists);
    assert!(bytes[2632..].iter().all(|byte| *byte == 0));
}
