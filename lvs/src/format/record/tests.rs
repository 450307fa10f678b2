use super::*;
use crate::format::page::{MAX_BLOCKS, MAX_LEVEL};
use crate::format::testing::{Rng, flip_every_bit};

const POOL: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
const SALT: [u8; 16] = *b"0123456789abcdef";

fn seal() -> HeaderSeal {
    HeaderSeal::new(&POOL, &SALT)
}

fn at() -> Pba {
    Pba::new(2, 0x1234_5678).unwrap()
}

fn stamp() -> Stamp {
    Stamp { seq: Seq(0x1112_1314_1516_1718), durable: Seq(0x1112_1314_1516_1700), checkpoint: 0x2122_2324 }
}

/// What a Data header is to list.
#[derive(Clone, PartialEq, Debug)]
enum Want {
    Extent(u32, u64, Vec<u32>),
    Hole(u32, u64, u64),
}

fn listed(record: &Record<'_>) -> Vec<Want> {
    let mut next_payload_block = 0;
    record
        .data()
        .map(|entry| match entry {
            DataEntry::Extent { line, block, payload_block, crcs } => {
                assert_eq!(payload_block, next_payload_block);
                next_payload_block += crcs.len() as u32;
                Want::Extent(line.0, block.0, crcs.collect())
            }
            DataEntry::Hole { line, block, count } => Want::Hole(line.0, block.0, count),
        })
        .collect()
}

/// Writes the list with the CRCs some steps behind, as a writer does that learns them later.
fn write_data(buffer: &mut [u8], wanted: &[Want], rng: &mut Rng) -> usize {
    let mut header = DataHeader::begin();
    let mut waiting: std::collections::VecDeque<&u32> = Default::default();
    for want in wanted {
        match want {
            Want::Extent(line, block, crcs) => {
                header.push_extent(buffer, LineId(*line), BlockNo(*block), crcs.len() as u32).unwrap();
                waiting.extend(crcs);
            }
            Want::Hole(line, block, count) => {
                header.push_hole(buffer, LineId(*line), BlockNo(*block), *count).unwrap();
            }
        }
        for _ in 0..rng.below(6) {
            if let Some(crc) = waiting.pop_front() {
                header.push_crc(buffer, *crc);
            }
        }
    }
    for crc in waiting {
        header.push_crc(buffer, *crc);
    }
    let blocks = header.header_blocks();
    assert_eq!(header.finish(buffer, &stamp(), &seal(), at()), blocks);
    blocks
}

#[test]
fn data_comes_back() {
    let mut rng = Rng(1);
    let mut buffer = vec![0xee; MAX_HEADER_BLOCKS * BLOCK];
    for round in 0..300 {
        let wanted: Vec<Want> = (0..rng.below(1 + round * 2))
            .map(|_| {
                let (line, block) = (rng.next() as u32, rng.below(MAX_BLOCKS - 50));
                match rng.below(4) {
                    0 => Want::Hole(line, block, 1 + rng.below(MAX_BLOCKS - block)),
                    _ => {
                        Want::Extent(line, block, (0..1 + rng.below(9)).map(|_| rng.next() as u32).collect())
                    }
                }
            })
            .collect();
        let blocks = write_data(&mut buffer, &wanted, &mut rng);
        assert!(looks_like_header(&buffer[..16]) && seal().may_begin(&buffer[..64]));
        assert_eq!(header_blocks(&buffer[..16]), Some(blocks));
        let record = Record::parse(&buffer, at(), &seal()).unwrap();
        assert_eq!((record.kind(), record.stamp(), record.header_blocks()), (Kind::Data, stamp(), blocks));
        assert_eq!(listed(&record), wanted);
        let payload: usize =
            wanted.iter().map(|w| if let Want::Extent(_, _, c) = w { c.len() } else { 0 }).sum();
        assert_eq!(record.payload_blocks() as usize, payload);
        assert_eq!(record.len_blocks() as usize, payload + blocks);
        assert!(
            record.catalogue().is_empty() && record.pages().len() == 0 && record.relocations().len() == 0
        );
    }
}

#[test]
fn blocks_that_follow_each_other_are_one_extent() {
    let mut buffer = vec![0; BLOCK];
    let mut header = DataHeader::begin();
    let line = LineId(5);
    let mut crc = 0;
    for (line, block) in [(line, 10), (line, 11), (line, 12), (line, 14), (LineId(6), 15), (LineId(6), 16)] {
        header.push_extent(&mut buffer, line, BlockNo(block), 1).unwrap();
        header.push_crc(&mut buffer, crc);
        crc += 1;
    }
    header.push_hole(&mut buffer, LineId(6), BlockNo(17), 1).unwrap();
    header.push_extent(&mut buffer, LineId(6), BlockNo(17), 2).unwrap();
    header.push_extent(&mut buffer, LineId(6), BlockNo(19), 1).unwrap();
    for _ in 0..3 {
        header.push_crc(&mut buffer, crc);
        crc += 1;
    }
    header.finish(&mut buffer, &stamp(), &seal(), at());
    let record = Record::parse(&buffer, at(), &seal()).unwrap();
    let wanted = [
        Want::Extent(5, 10, vec![0, 1, 2]),
        Want::Extent(5, 14, vec![3]),
        Want::Extent(6, 15, vec![4, 5]),
        Want::Hole(6, 17, 1),
        Want::Extent(6, 17, vec![6, 7, 8]),
    ];
    assert_eq!(listed(&record), wanted);
}

#[test]
fn a_header_takes_what_was_promised_and_no_more() {
    let mut buffer = vec![0; BLOCK];
    let mut header = DataHeader::begin();
    for n in 0..MAX_BLOCKS_IN_ONE_HEADER_BLOCK as u64 {
        header.push_extent(&mut buffer, LineId(1), BlockNo(n * 2), 1).unwrap();
        header.push_crc(&mut buffer, n as u32);
    }
    assert_eq!(MAX_BLOCKS_IN_ONE_HEADER_BLOCK, 201);
    assert_eq!(header.push_extent(&mut buffer, LineId(1), BlockNo(9999), 1), Err(Full));
    assert_eq!(header.push_hole(&mut buffer, LineId(1), BlockNo(9999), 1), Err(Full));
    // Three CRCs still fit behind the extent that is open, a fourth does not; a refusal changes nothing.
    let next = BlockNo(MAX_BLOCKS_IN_ONE_HEADER_BLOCK as u64 * 2 - 1);
    assert_eq!(header.push_extent(&mut buffer, LineId(1), next, 4), Err(Full));
    header.push_extent(&mut buffer, LineId(1), next, 3).unwrap();
    (0..3).for_each(|n| header.push_crc(&mut buffer, n));
    assert_eq!((header.payload_blocks(), header.header_blocks()), (204, 1));
    header.finish(&mut buffer, &stamp(), &seal(), at());
    let record = Record::parse(&buffer, at(), &seal()).unwrap();
    assert_eq!((record.payload_blocks(), record.entries()), (204, 201));

    // However large the buffer is, a header ends at its limit.
    let mut buffer = vec![0; (MAX_HEADER_BLOCKS + 1) * BLOCK];
    let mut header = CatalogueHeader::begin();
    assert_eq!(header.push(&mut buffer, &vec![1; MAX_CATALOGUE_BYTES + 1]), Err(Full));
    header.push(&mut buffer, &vec![1; MAX_CATALOGUE_BYTES]).unwrap();
    assert_eq!(header.finish(&mut buffer, &stamp(), &seal(), at()), MAX_HEADER_BLOCKS);
    assert_eq!(Record::parse(&buffer, at(), &seal()).unwrap().catalogue().len(), MAX_CATALOGUE_BYTES);
}

#[test]
fn the_other_kinds_come_back() {
    let mut rng = Rng(2);
    let mut buffer = vec![0xee; 4 * BLOCK];
    for count in [0, 1, MAX_RELOCATIONS_IN_ONE_HEADER_BLOCK, 300] {
        let moved: Vec<Relocation> = (0..count)
            .map(|_| Relocation {
                line: LineId(rng.next() as u32),
                block: BlockNo(rng.below(MAX_BLOCKS)),
                birth: Seq(rng.next()),
                from: Pba::new(rng.below(64) as u8, rng.below(1 << 40)).unwrap(),
                crc: rng.next() as u32,
            })
            .collect();
        let mut header = RelocateHeader::begin();
        moved.iter().for_each(|m| header.push(&mut buffer, m).unwrap());
        let blocks = header.finish(&mut buffer, &stamp(), &seal(), at());
        assert_eq!(blocks, count.div_ceil(MAX_RELOCATIONS_IN_ONE_HEADER_BLOCK).max(1));
        let record = Record::parse(&buffer[..blocks * BLOCK], at(), &seal()).unwrap();
        assert_eq!((record.kind(), record.payload_blocks() as usize), (Kind::Relocate, count));
        assert_eq!(record.relocations().collect::<Vec<_>>(), moved);

        let pages: Vec<PageNote> = (0..count as u64)
            .map(|index| match rng.below(2) {
                0 => PageNote::Map {
                    line: LineId(rng.next() as u32),
                    level: rng.below(u64::from(MAX_LEVEL) + 1) as u8,
                    block: BlockNo(rng.below(MAX_BLOCKS)),
                    birth: Seq(rng.next()),
                    crc: rng.next() as u32,
                },
                _ => PageNote::Blob { kind: BlobKind::Delta, checkpoint: rng.next(), index, crc: 7 },
            })
            .collect();
        let mut header = PagesHeader::begin();
        pages.iter().for_each(|page| header.push(&mut buffer, page).unwrap());
        let blocks = header.finish(&mut buffer, &stamp(), &seal(), at());
        assert_eq!(blocks, count.div_ceil(MAX_PAGES_IN_ONE_HEADER_BLOCK).max(1));
        let record = Record::parse(&buffer, at(), &seal()).unwrap();
        assert_eq!((record.kind(), record.payload_blocks() as usize), (Kind::Pages, count));
        assert_eq!(record.pages().collect::<Vec<_>>(), pages);
    }
    let mut header = CatalogueHeader::begin();
    header.push(&mut buffer, b"one").unwrap();
    header.push(&mut buffer, b"and two").unwrap();
    header.finish(&mut buffer, &stamp(), &seal(), at());
    let record = Record::parse(&buffer, at(), &seal()).unwrap();
    assert_eq!((record.kind(), record.entries(), record.payload_blocks()), (Kind::Catalogue, 2, 0));
    assert_eq!(record.catalogue(), b"oneand two");

    assert_eq!(NoteHeader::write(&mut buffer, &stamp(), &seal(), at()), 1);
    let record = Record::parse(&buffer, at(), &seal()).unwrap();
    assert_eq!((record.kind(), record.entries(), record.len_blocks()), (Kind::Note, 0, 1));
    assert_eq!((record.stamp(), record.data().count()), (stamp(), 0));
}

/// H5: a header of another pool, of another opening or from another place is none, whatever it holds.
#[test]
fn h5_a_header_from_elsewhere_is_not_a_header() {
    let mut buffer = vec![0; BLOCK];
    NoteHeader::write(&mut buffer, &stamp(), &seal(), at());
    let judge = |pba, seal: HeaderSeal| Record::parse(&buffer, pba, &seal).map(|_| ()).unwrap_err();
    assert_eq!(judge(at().plus(1), seal()), FormatError::Checksum(What::Record));
    assert_eq!(judge(Pba::new(3, at().block()).unwrap(), seal()), FormatError::Checksum(What::Record));
    let other_pool = HeaderSeal::new(&Uuid::from_u128(1), &SALT);
    assert_eq!(judge(at(), other_pool), FormatError::Checksum(What::Record));
    let mut salt = SALT;
    salt[15] ^= 1;
    assert_eq!(
        judge(at(), HeaderSeal::new(&POOL, &salt)),
        FormatError::Checksum(What::Record),
        "secret half"
    );
    let mut salt = SALT;
    salt[0] ^= 1;
    let other = HeaderSeal::new(&POOL, &salt);
    assert_eq!(judge(at(), other), FormatError::Other { what: What::Record, field: "opening" });
    assert!(!other.may_begin(&buffer) && seal().may_begin(&buffer) && !seal().may_begin(&buffer[..55]));
    assert!(!looks_like_header(&[0; 64]) && !looks_like_header(&buffer[..11]));
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let mut rng = Rng(3);
    let wanted: Vec<Want> = (0..150).map(|n| Want::Extent(1, n * 3, vec![n as u32; 6])).collect();
    let mut buffer = vec![0xee; 8 * BLOCK];
    let blocks = write_data(&mut buffer, &wanted, &mut rng);
    assert_eq!(blocks, 2);
    let header = &buffer[..blocks * BLOCK];
    flip_every_bit(header, |flipped| assert!(Record::parse(flipped, at(), &seal()).is_err()));
    for len in 0..header.len() {
        let error = Record::parse(&header[..len], at(), &seal()).map(|_| ()).unwrap_err();
        assert!(
            matches!(error, FormatError::Short { have_bytes, .. } if have_bytes == len),
            "{len}: {error}"
        );
    }
}

/// Puts a good checksum on a changed header, so that the fields themselves are judged.
fn sealed(header: &mut [u8]) {
    let blocks = header_blocks(header).unwrap_or(1).min(header.len() / BLOCK);
    let checksum = seal().checksum(&header[..blocks * BLOCK], at());
    header[CHECKSUM_AT..FIXED_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn fields_that_cannot_be_are_refused_even_with_a_good_checksum() {
    let mut data = vec![0; 2 * BLOCK];
    let wanted = [Want::Extent(1, 2, vec![3, 4]), Want::Hole(5, 6, 7)];
    write_data(&mut data, &wanted, &mut Rng(1));
    let mut moved = vec![0; 2 * BLOCK];
    let mut header = RelocateHeader::begin();
    let one = Relocation { line: LineId(1), block: BlockNo(2), birth: Seq(3), from: at(), crc: 4 };
    header.push(&mut moved, &one).unwrap();
    header.finish(&mut moved, &stamp(), &seal(), at());
    let mut pages = vec![0; 2 * BLOCK];
    let mut header = PagesHeader::begin();
    let page = PageNote::Blob { kind: BlobKind::Lines, checkpoint: 1, index: 2, crc: 3 };
    header.push(&mut pages, &page).unwrap();
    header.finish(&mut pages, &stamp(), &seal(), at());
    let mut note = vec![0; 2 * BLOCK];
    NoteHeader::write(&mut note, &stamp(), &seal(), at());

    // Header, byte, its new value, what is said.
    let cases: &[(&[u8], usize, u8, FormatError)] = &[
        (&data, 8, 2, FormatError::Version { what: What::Record, found: 2 }),
        (&data, 9, 0, bad("kind", 9)),
        (&data, 9, 6, bad("kind", 9)),
        (&data, 10, 0, bad("number of header blocks", 10)),
        (&data, 10, 65, bad("number of header blocks", 10)),
        (&data, 10, 2, bad("length of the list", 44)),
        (&data, 12, 3, bad("number of payload blocks", 12)),
        (&data, 24, 0x19, bad("durable number", 24)),
        (&data, 40, 3, bad("number of entries", 40)),
        (&data, 44, 47, bad("extent", 88)),
        (&data, 45, 16, bad("length of the list", 44)),
        (&data, 47, 255, bad("length of the list", 44)),
        (&data, 58, 1, bad("reserved part", 56)),
        (&data, 68, 0, bad("extent", 64)),
        (&data, 68, 255, bad("extent", 64)),
        (&data, 71, 0x81, bad("extent", 64)),
        (&data, 77, 1, bad("extent", 64)),
        (&data, 79, 255, bad("extent", 64)),
        (&data, 104, 0, bad("extent", 88)),
        (&data, 109, 1, bad("extent", 88)),
        (&data, 111, 255, bad("extent", 88)),
        (&moved, 44, 31, bad("length of the list", 44)),
        (&moved, 77, 1, bad("entry", 64)),
        (&moved, 88 + 5, 64, bad("entry", 64)),
        (&moved, 88 + 6, 1, bad("entry", 64)),
        (&pages, 64, 2, bad("entry", 64)),
        (&pages, 65, 9, bad("entry", 64)),
        (&pages, 66, 1, bad("entry", 64)),
        (&pages, 68, 1, bad("entry", 64)),
        (&pages, 95, 1, bad("entry", 64)),
        (&note, 12, 1, bad("number of payload blocks", 12)),
        (&note, 40, 1, bad("number of entries", 40)),
        (&note, 44, 1, bad("length of the list", 44)),
    ];
    for (number, (header, byte, value, why)) in cases.iter().enumerate() {
        let mut header = header.to_vec();
        header[*byte] = *value;
        sealed(&mut header);
        let error = Record::parse(&header, at(), &seal()).map(|_| ()).unwrap_err();
        assert_eq!(error, *why, "case {number}");
    }
}

#[test]
fn garbage_with_a_good_checksum_does_not_panic() {
    let mut rng = Rng(5);
    let mut good = vec![0; 2 * BLOCK];
    let wanted: Vec<Want> = (0..20).map(|n| Want::Extent(n, 1, vec![2; n as usize + 1])).collect();
    write_data(&mut good, &wanted, &mut rng);
    let mut parsed = 0;
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        bytes[9] = 1 + rng.below(5) as u8;
        for _ in 0..rng.below(4) {
            bytes[rng.below(200) as usize] = rng.next() as u8;
        }
        sealed(&mut bytes);
        if let Ok(record) = Record::parse(&bytes, at(), &seal()) {
            parsed += 1;
            let payload = u64::from(record.payload_blocks());
            assert!(record.data().count() + record.pages().len() + record.relocations().len() <= 4096);
            assert_eq!(record.len_blocks(), payload + record.header_blocks() as u64);
        }
    }
    assert!(parsed > 1000, "{parsed}");
}

/// A change of these bytes is a change of the format: it needs a new version, and the old one must stay readable.
#[test]
fn golden_bytes() {
    let mut buffer = vec![0xee; BLOCK];
    let wanted =
        [Want::Extent(0x3132_3334, 0x41_4243_4445, vec![0x5152_5354, 0x6162_6364]), Want::Hole(1, 2, 3)];
    write_data(&mut buffer, &wanted, &mut Rng(1));
    #[rustfmt::skip]
    let golden = [
        b'K', b'S', b'r', b'e', b'c', b'o', b'r', b'd', 1, 1, 1, 0, 2, 0, 0, 0,
        0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, 0x00, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,
        0x24, 0x23, 0x22, 0x21, 0, 0, 0, 0, 2, 0, 0, 0, 48, 0, 0, 0,
        b'0', b'1', b'2', b'3', b'4', b'5', b'6', b'7', 0, 0, 0, 0,
    ];
    assert_eq!(buffer[..60], golden);
    assert_eq!(buffer[60..64], GOLDEN_CHECKSUM.to_le_bytes());
    #[rustfmt::skip]
    let list = [
        0x34, 0x33, 0x32, 0x31, 2, 0, 0, 0, 0x45, 0x44, 0x43, 0x42, 0x41, 0, 0, 0,
        0x54, 0x53, 0x52, 0x51, 0x64, 0x63, 0x62, 0x61,
        1, 0, 0, 0, 0, 0, 0, 0x80, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(buffer[64..112], list);
    assert!(buffer[112..].iter().all(|byte| *byte == 0));

    let mut header = RelocateHeader::begin();
    let from = Pba::from_bits(0x2122_2324_2526);
    let one = Relocation { line: LineId(1), block: BlockNo(2), birth: Seq(3), from, crc: 4 };
    header.push(&mut buffer, &one).unwrap();
    header.finish(&mut buffer, &stamp(), &seal(), at());
    #[rustfmt::skip]
    let list = [
        1, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
        3, 0, 0, 0, 0, 0, 0, 0, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21, 0, 0,
    ];
    assert_eq!((buffer[9], &buffer[64..96]), (2, &list[..]));

    let mut header = PagesHeader::begin();
    let (line, block, birth) = (LineId(1), BlockNo(2), Seq(3));
    header.push(&mut buffer, &PageNote::Map { line, level: 5, block, birth, crc: 4 }).unwrap();
    let (kind, checkpoint) = (BlobKind::Segments, 7);
    header.push(&mut buffer, &PageNote::Blob { kind, checkpoint, index: 8, crc: 9 }).unwrap();
    header.finish(&mut buffer, &stamp(), &seal(), at());
    #[rustfmt::skip]
    let list = [
        0, 5, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0,
        1, 3, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!((buffer[9], &buffer[64..128]), (5, &list[..]));
    CatalogueHeader::begin().finish(&mut buffer, &stamp(), &seal(), at());
    assert_eq!(buffer[9], 3);
    NoteHeader::write(&mut buffer, &stamp(), &seal(), at());
    assert_eq!(buffer[9], 4);
}

/// Over pool, salt, address and the header above: worked out apart from this code, bit by bit.
const GOLDEN_CHECKSUM: u32 = 0x2591_ad26;
