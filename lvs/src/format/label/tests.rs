use super::*;
use crate::format::testing::flip_every_bit;

fn label() -> Label {
    Label {
        pool: Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        name: "tänk".to_owned(),
        device: Uuid::from_u128(0xf0e1_d2c3_b4a5_9687_7869_5a4b_3c2d_1e0f),
        member: 3,
        segment_blocks: 1024,
        created_unix_s: 0x6543_2100,
        compatible: 0x8000,
        incompatible: 0,
    }
}

#[test]
fn it_comes_back() {
    for name in ["a".to_owned(), "x".repeat(255), "tänk / 1".to_owned()] {
        for member in [0, 63] {
            for segment_blocks in [MIN_SEGMENT_BLOCKS, 1024, MAX_SEGMENT_BLOCKS] {
                let label = Label { name: name.clone(), member, segment_blocks, ..label() };
                let bytes = label.encode().unwrap();
                assert_eq!(bytes.len(), LABEL_BYTES);
                assert_eq!(Label::decode(&bytes), Ok(label.clone()));
                let longer = [&bytes[..], &[7; 100]].concat();
                assert_eq!(Label::decode(&longer), Ok(label));
            }
        }
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let bytes = label().encode().unwrap();
    flip_every_bit(&bytes, |flipped| {
        let error = Label::decode(flipped).unwrap_err();
        assert!(matches!(error, FormatError::Checksum(_) | FormatError::Magic(_)), "{error}");
    });
    for len in 0..LABEL_BYTES {
        assert!(matches!(Label::decode(&bytes[..len]), Err(FormatError::Short { .. })));
    }
}

fn value(field: &'static str, at_bytes: usize) -> FormatError {
    FormatError::Value { what: What::Label, field, at_bytes }
}

#[test]
fn what_cannot_be_is_refused_even_with_a_good_checksum() {
    let cases: &[(usize, u8, FormatError)] = &[
        (0, 0, FormatError::Magic(What::Label)),
        (8, 2, FormatError::Version { what: What::Label, found: 2 }),
        (10, 0, value("name", 96)),
        (10, 4, value("name", 96)),
        (11, 1, value("length of the name", 10)),
        (12, 64, value("index of the device", 12)),
        (13, 1, value("index of the device", 12)),
        (23, 0x80, FormatError::Incompatible { what: What::Label, bits: 1 << 63 }),
        (64, 1, value("segment size", 64)),
        (65, 0, value("segment size", 64)),
        (67, 0x20, value("segment size", 64)),
        (68, 1, value("reserved part", 68)),
        (95, 1, value("reserved part", 68)),
        (96, 10, value("name", 96)),
        (98, b'x', value("name", 96)),
        (351, 1, value("name", 96)),
        (352, 1, value("reserved part", 68)),
        (4091, 1, value("reserved part", 68)),
    ];
    for (number, (at, byte, why)) in cases.iter().enumerate() {
        let mut bytes = label().encode().unwrap();
        bytes[*at] = *byte;
        let checksum = crc32c(&bytes[..4092]).to_le_bytes();
        bytes[4092..].copy_from_slice(&checksum);
        assert_eq!(Label::decode(&bytes), Err(*why), "case {number}");
    }
    for name in ["", "a\nb", "\u{7f}", &"x".repeat(256)] {
        let label = Label { name: name.to_owned(), ..label() };
        assert_eq!(label.encode(), Err(value("name", 96)), "{name:?}");
    }
    assert_eq!(Label { member: 64, ..label() }.encode(), Err(value("index of the device", 12)));
    assert_eq!(Label { segment_blocks: 255, ..label() }.encode(), Err(value("segment size", 64)));
    let incompatible = FormatError::Incompatible { what: What::Label, bits: 6 };
    assert_eq!(Label { incompatible: 6, ..label() }.encode(), Err(incompatible));
}

/// A change of these bytes is a change of the format: it needs a new version, and the old one must stay readable.
#[test]
fn golden_bytes() {
    let bytes = label().encode().unwrap();
    #[rustfmt::skip]
    let golden = [
        b'K', b'E', b'E', b'L', b'S', b'O', b'N', 0, 1, 0, 5, 0, 3, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x80, 0, 0, 0, 0, 0, 0,
        0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
        0xf0, 0xe1, 0xd2, 0xc3, 0xb4, 0xa5, 0x96, 0x87, 0x78, 0x69, 0x5a, 0x4b, 0x3c, 0x2d, 0x1e, 0x0f,
        0, 4, 0, 0, 0, 0, 0, 0, 0x00, 0x21, 0x43, 0x65, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        b't', 0xc3, 0xa4, b'n', b'k', 0,
    ];
    assert_eq!(bytes[..102], golden);
    assert!(bytes[102..4092].iter().all(|byte| *byte == 0));
    assert_eq!(bytes[4092..], crc32c(&bytes[..4092]).to_le_bytes());
}

#[test]
fn places_on_a_disk() {
    assert_eq!((anchor_block(0, 0), anchor_block(0, 7), anchor_block(1, 2)), (16, 64, 112));
    assert_eq!(anchor_block(1, u64::MAX) + ANCHOR_SLOT_BLOCKS, 144);
    assert_eq!((segments_of(0, 256), segments_of(511, 256), segments_of(512, 256)), (0, 0, 1));
    assert_eq!(segments_of(u64::MAX, 256), MAX_SEGMENTS);
    for segment in [SegmentId::new(0, 0), SegmentId::new(5, 77), SegmentId::new(63, MAX_SEGMENTS - 1)] {
        for offset in [0, 1, 255] {
            let pba = segment_start(segment, 256).unwrap().plus(offset.into());
            assert_eq!(segment_at(pba, 256), Some((segment, offset)));
        }
    }
    assert_eq!(segment_at(Pba::NONE, 256), None);
    assert_eq!(segment_at(Pba::new(0, 255).unwrap(), 256), None);
    assert_eq!(segment_at(Pba::new(0, MAX_DEVICE_BLOCKS - 1).unwrap(), 256), None, "no such segment");
    assert_eq!(segment_start(SegmentId::new(0, MAX_SEGMENTS - 1), MAX_SEGMENT_BLOCKS), None, "beyond 2^40");
    assert_eq!(segment_start(SegmentId(u32::MAX), 256), None);
}

#[test]
fn the_table_of_segments_stays_small_and_small_pools_have_a_choice() {
    const MIB: u64 = 1 << 20;
    let blocks = |bytes: u64| u64::from(segment_blocks_for(bytes)) * 4096 / MIB;
    assert_eq!((blocks(64 * MIB), blocks(1023 * MIB), blocks(1024 * MIB)), (1, 1, 4));
    assert_eq!((blocks(1 << 41), blocks(10 << 40), blocks(1 << 50)), (4, 32, 2048));
    assert!(segments_of(64 * MIB / 4096, segment_blocks_for(64 * MIB)) >= 48);
    // 64 devices of 2^40 blocks are 2^58 bytes.
    for shift in 20..=58 {
        let bytes = (1_u64 << shift) - 1;
        let segment = segment_blocks_for(bytes);
        assert!(is_segment_size(segment));
        assert!(bytes / 4096 / u64::from(segment) * 16 <= 8 * MIB, "{bytes} bytes");
    }
    assert_eq!(segment_blocks_for(u64::MAX), MAX_SEGMENT_BLOCKS);
    assert!(![0, 128, 257, 1 << 29].iter().any(|blocks| is_segment_size(*blocks)));
}
