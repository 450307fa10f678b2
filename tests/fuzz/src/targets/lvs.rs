//! What stands on a pool's disks.
//!
//! Checksums would stop every mutation at the door, so each target puts a good one on what it was given, worked out
//! here and not by the code under test. Structures that end in zeroes are given without them.

use crate::{Shape, Target};
use lvs::format::anchor::{Anchor, MAX_ANCHOR_BYTES, Member, MemberState, OpenSegment};
use lvs::format::blob::{BlobExtent, BlobPtr};
use lvs::format::catalog::{self, Change, Object, PoolObject, SnapshotObject, VolumeObject};
use lvs::format::label::{LABEL_BYTES, Label};
use lvs::format::lines::{Line, Lines, Root};
use lvs::format::page::{Child, Expected, Leaf, PAGE_BYTES, PageBuilder, PageView};
use lvs::format::record::{
    BlobKind, CatalogueHeader, DataEntry, DataHeader, HeaderSeal, MAX_HEADER_BLOCKS, NoteHeader, PageNote,
    PagesHeader, Record, RelocateHeader, Relocation, Stamp, header_blocks, looks_like_header,
};
use lvs::format::segtable::{self, Segment, SegmentState, Stream};
use lvs::format::{FormatError, crc32c};
use lvs::{BlockNo, LineId, PagePtr, Pba, Place, SegmentId, Seq, Version};
use nvme::digest::Digest;
use std::mem::discriminant;
use uuid::Uuid;

const POOL: Uuid = Uuid::from_u128(7);
const SALT: [u8; 16] = *b"salt of an open.";
const BLOCK: usize = 4096;

fn pba(block: u64) -> Pba {
    Pba::new(1, block).expect("in range")
}

fn without_zeroes(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    bytes
}

/// The kind of an error: its numbers are any.
fn kind(error: FormatError) -> (std::mem::Discriminant<FormatError>, &'static str) {
    match error {
        FormatError::Value { field, .. }
        | FormatError::TooMany { field, .. }
        | FormatError::Other { field, .. } => (discriminant(&error), field),
        _ => (discriminant(&error), ""),
    }
}

/// Headers of records.
pub(super) const RECORD: Target = Target {
    name: "lvs_record",
    about: "headers of records: what is accepted adds up, and written again says the same",
    run: record,
    seeds: record_seeds,
};

fn record_seeds() -> Vec<Vec<u8>> {
    let (seal, at) = (HeaderSeal::new(&POOL, &SALT), pba(1000));
    let stamp = Stamp { seq: Seq(9), durable: Seq(8), checkpoint: 3 };
    let mut seeds = Vec::new();
    let mut buffer = vec![0; 2 * BLOCK];
    let mut data = DataHeader::begin();
    for (block, count) in [(5, 1), (9, 3), (100, 2)] {
        data.push_extent(&mut buffer, LineId(1), BlockNo(block), count).expect("room");
        (0..count).for_each(|crc| data.push_crc(&mut buffer, crc));
        data.push_hole(&mut buffer, LineId(2), BlockNo(block), 1 << 33).expect("room");
    }
    data.finish(&mut buffer, &stamp, &seal, at);
    seeds.push(buffer.clone());
    let mut moved = RelocateHeader::begin();
    let one = Relocation { line: LineId(1), block: BlockNo(2), birth: Seq(3), from: pba(4), crc: 5 };
    (0..2).for_each(|_| moved.push(&mut buffer, &one).expect("room"));
    moved.finish(&mut buffer, &stamp, &seal, at);
    seeds.push(buffer.clone());
    let mut pages = PagesHeader::begin();
    let map = PageNote::Map { line: LineId(1), level: 2, block: BlockNo(3), birth: Seq(4), crc: 5 };
    let blob = PageNote::Blob { kind: BlobKind::Delta, checkpoint: 1, index: 2, crc: 3 };
    [map, blob].iter().for_each(|page| pages.push(&mut buffer, page).expect("room"));
    pages.finish(&mut buffer, &stamp, &seal, at);
    seeds.push(buffer.clone());
    let mut catalogue = CatalogueHeader::begin();
    catalogue.push(&mut buffer, b"a change").expect("room");
    catalogue.finish(&mut buffer, &stamp, &seal, at);
    seeds.push(buffer.clone());
    NoteHeader::write(&mut buffer, &stamp, &seal, at);
    seeds.push(buffer);
    seeds.into_iter().map(without_zeroes).collect()
}

fn record(bytes: &[u8]) -> Shape {
    let (seal, at) = (HeaderSeal::new(&POOL, &SALT), pba(1000));
    let raw = Record::parse(bytes, at, &seal);
    assert!(raw.is_err() || looks_like_header(bytes), "the filter lets everything pass that is a header");
    let blocks = header_blocks(bytes).unwrap_or(1);
    assert!(blocks <= MAX_HEADER_BLOCKS);
    let mut header = bytes.to_vec();
    header.resize(blocks * BLOCK, 0);
    header[48..56].copy_from_slice(&SALT[..8]);
    let mut digest = Digest::new();
    let place = at.bits().to_le_bytes();
    let parts = [POOL.as_bytes(), &SALT[..], &place, &header[..60], &header[64..]];
    parts.iter().for_each(|part| digest.update(part));
    header[60..64].copy_from_slice(&digest.value().to_le_bytes());
    let record = match Record::parse(&header, at, &seal) {
        Ok(record) => record,
        Err(error) => return Shape::of(kind(error)),
    };
    assert!(seal.may_begin(&header) && Record::parse(&header, pba(1001), &seal).is_err());
    let mut flat = Vec::new();
    flatten(&record, &mut flat);
    let payload = record.payload_blocks() as usize;
    let listed =
        flat.iter().filter(|entry| entry.3).count() + record.relocations().len() + record.pages().len();
    assert_eq!(listed, payload, "each payload block is listed once");
    let mut buffer = vec![0; MAX_HEADER_BLOCKS * BLOCK];
    rewrite(&record, &mut buffer, &seal, at);
    let again = Record::parse(&buffer, at, &seal).expect("what we write can be read");
    let mut flat_again = Vec::new();
    flatten(&again, &mut flat_again);
    assert_eq!((again.stamp(), again.payload_blocks()), (record.stamp(), record.payload_blocks()));
    assert_eq!(flat_again, flat);
    assert!(again.pages().eq(record.pages()) && again.relocations().eq(record.relocations()));
    assert_eq!(again.catalogue(), record.catalogue());
    Shape::of((record.kind() as u8, payload.min(5), record.entries().min(5), flat.len() > payload))
}

/// Line, block, CRC or length, whether it has payload.
type Flat = (u32, u64, u64, bool);

fn flatten(record: &Record<'_>, flat: &mut Vec<Flat>) {
    for entry in record.data() {
        match entry {
            DataEntry::Extent { line, block, payload_block, crcs } => {
                let before = flat.iter().filter(|entry| entry.3).count();
                assert_eq!(payload_block as usize, before, "extents follow each other in the payload");
                flat.extend(crcs.zip(block.0..).map(|(crc, block)| (line.0, block, crc.into(), true)));
            }
            DataEntry::Hole { line, block, count } => flat.push((line.0, block.0, count, false)),
        }
    }
}

fn rewrite(record: &Record<'_>, buffer: &mut [u8], seal: &HeaderSeal, at: Pba) {
    let stamp = record.stamp();
    match record.kind() as u8 {
        1 => {
            let mut data = DataHeader::begin();
            for entry in record.data() {
                match entry {
                    DataEntry::Extent { line, block, crcs, .. } => {
                        data.push_extent(buffer, line, block, crcs.len() as u32).expect("it fitted");
                        crcs.for_each(|crc| data.push_crc(buffer, crc));
                    }
                    DataEntry::Hole { line, block, count } => {
                        data.push_hole(buffer, line, block, count).expect("it fitted");
                    }
                }
            }
            data.finish(buffer, &stamp, seal, at);
        }
        2 => {
            let mut moved = RelocateHeader::begin();
            record.relocations().for_each(|one| moved.push(buffer, &one).expect("it fitted"));
            moved.finish(buffer, &stamp, seal, at);
        }
        3 => {
            let mut catalogue = CatalogueHeader::begin();
            catalogue.push(buffer, record.catalogue()).expect("it fitted");
            catalogue.finish(buffer, &stamp, seal, at);
        }
        4 => _ = NoteHeader::write(buffer, &stamp, seal, at),
        _ => {
            let mut pages = PagesHeader::begin();
            record.pages().for_each(|page| pages.push(buffer, &page).expect("it fitted"));
            pages.finish(buffer, &stamp, seal, at);
        }
    }
}

/// Map pages.
pub(super) const PAGE: Target = Target {
    name: "lvs_page",
    about: "map pages: reading stays inside whatever the bytes are; what is accepted is in order and searched right",
    run: page,
    seeds: page_seeds,
};

fn page_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut bytes = [0; PAGE_BYTES];
    let mut leaf = PageBuilder::new(&mut bytes, &POOL, LineId(3), 0);
    for block in 0..4 {
        let hole = Version { birth: Seq(9), place: Place::Hole };
        leaf.push_leaf(&Leaf { block: BlockNo(block * 9), len_blocks: 8, version: hole }).expect("room");
        let place = Place::Data { pba: pba(block), crc: 77 };
        let version = Version { birth: Seq(5), place };
        leaf.push_leaf(&Leaf { block: BlockNo(block * 9), len_blocks: 1, version }).expect("room");
    }
    leaf.finish().expect("it has entries");
    seeds.push(without_zeroes(bytes.to_vec()));
    let mut interior = PageBuilder::new(&mut bytes, &POOL, LineId(3), 1);
    for block in 0..4 {
        let ptr = PagePtr { pba: pba(block), copy: Pba::NONE, crc: 1, newest: Seq(8) };
        interior.push_child(&Child { block: BlockNo(block / 2), birth: Seq(9 - block), ptr }).expect("room");
    }
    interior.finish().expect("it has entries");
    seeds.push(without_zeroes(bytes.to_vec()));
    seeds
}

fn page(bytes: &[u8]) -> Shape {
    let mut page = [0; PAGE_BYTES];
    let len = bytes.len().min(PAGE_BYTES);
    page[..len].copy_from_slice(&bytes[..len]);
    page[16..32].copy_from_slice(POOL.as_bytes());
    let number = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("8 bytes"));
    let (block, before) = (BlockNo(number(64) >> 24), Seq(number(72)));
    let view = PageView::new(&page);
    let at = view.lower_bound(block, before);
    assert!(at <= view.len() && view.leaf(view.len()).is_none() && view.child(view.len()).is_none());
    let line = LineId(u32::from_le_bytes([page[8], page[9], page[10], page[11]]));
    let expected = Expected { pool: POOL, line, level: page[5], crc: crc32c(&page), newest: Seq::MAX };
    let view = match PageView::check(&page, &expected) {
        Ok(view) => view,
        Err(error) => return Shape::of(kind(error)),
    };
    let keys: Vec<(BlockNo, Seq)> = (0..view.len())
        .map(|index| match (view.leaf(index), view.child(index)) {
            (Some(leaf), None) => (leaf.block, leaf.version.birth),
            (None, Some(child)) => (child.block, child.birth),
            other => panic!("an entry is of one kind: {other:?}"),
        })
        .collect();
    assert!(!keys.is_empty(), "a page has entries");
    let later = |key: &(BlockNo, Seq)| key.0 > block || (key.0 == block && key.1 < before);
    assert_eq!(at, keys.iter().position(later).unwrap_or(keys.len()), "a search finds what a scan finds");
    let mut again = [0; PAGE_BYTES];
    let mut builder = PageBuilder::new(&mut again, &POOL, line, view.level());
    for index in 0..view.len() {
        if let Some(leaf) = view.leaf(index) {
            builder.push_leaf(&leaf).expect("what was read can be written");
        }
        if let Some(child) = view.child(index) {
            builder.push_child(&child).expect("what was read can be written");
        }
    }
    let summary = builder.finish().expect("it has entries");
    let entry_bytes = if view.level() == 0 { 24 } else { 40 };
    let used = 64 + summary.count * entry_bytes;
    assert_eq!(again[..used], page[..used], "there is one form only");
    Shape::of((view.level().min(2), view.len().min(6), at.min(6)))
}

/// Labels and anchors.
pub(super) const ANCHOR: Target = Target {
    name: "lvs_anchor",
    about: "labels and anchors: what is accepted can be written again, and is the same then",
    run: anchor,
    seeds: anchor_seeds,
};

fn anchor_seeds() -> Vec<Vec<u8>> {
    let label = Label {
        pool: POOL,
        name: "tank".to_owned(),
        device: Uuid::from_u128(3),
        member: 1,
        segment_blocks: 256,
        created_unix_s: 5,
        compatible: 0,
        incompatible: 0,
    };
    let member =
        |device, state| Member { device: Uuid::from_u128(device), size_blocks: 9000, segments: 30, state };
    let extent = BlobExtent { pba: pba(300), blocks: 2 };
    let blob = BlobPtr { len_bytes: 5000, crc: 1, extents: vec![extent], copy: vec![extent] };
    let anchor = Anchor {
        pool: POOL,
        incompatible: 0,
        compatible: 0,
        checkpoint: 4,
        opening: 2,
        clean: false,
        incarnation: [1; 16],
        salt: SALT,
        base: Seq::first_of(2),
        last: Seq::first_of(2).next(),
        segment_blocks: 256,
        members: vec![member(1, MemberState::Evacuating), member(2, MemberState::Active)],
        open: vec![OpenSegment { segment: SegmentId::new(1, 2), next_block: 3, stream: Stream::Hot }],
        next: vec![SegmentId::new(0, 2), SegmentId::new(1, 9)],
        catalogue: blob.clone(),
        lines: blob.clone(),
        segments: blob,
        delta: BlobPtr::default(),
    };
    let mut label = label.encode().expect("a good label");
    label[LABEL_BYTES - 4..].fill(0);
    vec![without_zeroes(label), without_zeroes(anchor.encode().expect("a good anchor"))]
}

fn anchor(bytes: &[u8]) -> Shape {
    let mut block = bytes.to_vec();
    block.resize(LABEL_BYTES, 0);
    let checksum = crc32c(&block[..LABEL_BYTES - 4]).to_le_bytes();
    block[LABEL_BYTES - 4..].copy_from_slice(&checksum);
    let label = Label::decode(&block).map(|label| {
        assert_eq!(label.encode().expect("what was read can be written"), block);
        label.name.len().min(9)
    });
    let mut slot = bytes.to_vec();
    slot.resize(slot.len().max(128), 0);
    let len = u32::from_le_bytes([slot[12], slot[13], slot[14], slot[15]]) as usize;
    if (128..=MAX_ANCHOR_BYTES).contains(&len) {
        slot.resize(slot.len().max(len), 0);
        let mut digest = Digest::new();
        digest.update(&slot[..124]);
        digest.update(&slot[128..len]);
        slot[124..128].copy_from_slice(&digest.value().to_le_bytes());
    }
    let anchor = Anchor::decode(&slot).map(|anchor| {
        assert_eq!(anchor.encode().expect("what was read can be written")[..len], slot[..len]);
        (anchor.members.len().min(4), anchor.open.len().min(3), anchor.next.len().min(3), anchor.clean)
    });
    Shape::of((label.map_err(kind), anchor.map_err(kind)))
}

/// The tables of a checkpoint.
pub(super) const TABLES: Target = Target {
    name: "lvs_tables",
    about: "tables of segments and lines: there is one form only, and no count is believed",
    run: tables,
    seeds: || {
        let full = Segment { live_blocks: 9, state: SegmentState::Full(Stream::Cold), ..Segment::default() };
        let ptr = PagePtr { pba: pba(900), copy: Pba::NONE, crc: 1, newest: Seq(8) };
        let first = Line {
            id: LineId(1),
            root: Some(Root { ptr, level: 1 }),
            head: true,
            parent: None,
            live_blocks: vec![3, 4],
            purge: None,
        };
        let parent = Some((LineId(1), Seq(4)));
        let clone = Line { id: LineId(2), root: None, parent, purge: Some(BlockNo(5)), ..first.clone() };
        let lines = Lines { next_id: 3, lines: vec![first, clone] };
        vec![
            segment_table(&[vec![full, Segment::default()], vec![full]]).expect("a good table"),
            lines.encode().expect("good lines"),
        ]
    },
};

fn segment_table(members: &[Vec<Segment>]) -> Result<Vec<u8>, FormatError> {
    let lengths: Vec<u32> = members.iter().map(|m| m.len() as u32).collect();
    let mut encoder = segtable::Encoder::new(&lengths)?;
    members.iter().flatten().for_each(|segment| encoder.push(segment));
    encoder.finish()
}

fn tables(bytes: &[u8]) -> Shape {
    let segments = segtable::decode(bytes, 1024).map(|table| {
        assert_eq!(segment_table(&table).expect("what was read can be written"), bytes);
        (table.len().min(4), table.iter().map(Vec::len).sum::<usize>().min(6))
    });
    let lines = Lines::decode(bytes).map(|lines| {
        assert_eq!(lines.encode().expect("what was read can be written"), bytes);
        lines.lines.len().min(5)
    });
    Shape::of((segments.map_err(kind), lines.map_err(kind)))
}

/// The catalogue.
pub(super) const CATALOG: Target = Target {
    name: "lvs_catalog",
    about: "objects and changes of the catalogue: what is accepted can be written again, unknown fields and all",
    run: catalogue,
    seeds: || {
        let changes: Vec<u8> = objects()
            .into_iter()
            .map(|object| Change::Put(Box::new(object)))
            .chain([Change::Remove(POOL)])
            .flat_map(|change| change.encode().expect("a good change"))
            .collect();
        vec![whole_catalogue(&objects()).expect("good objects"), changes]
    },
};

fn whole_catalogue(objects: &[Object]) -> Result<Vec<u8>, FormatError> {
    let mut encoder = catalog::Encoder::default();
    objects.iter().try_for_each(|object| encoder.push(object))?;
    Ok(encoder.finish())
}

fn objects() -> Vec<Object> {
    let (uuid, name) = (POOL, "tank".to_owned());
    let unknown = [("tier".to_owned(), 3.into())].into();
    let pool = PoolObject { uuid, name: name.clone(), properties: Default::default(), unknown };
    let volume = VolumeObject {
        uuid: Uuid::from_u128(8),
        name: name.clone(),
        line: LineId(1),
        size_bytes: 4096,
        block_bytes: 512,
        thin: false,
        created_unix_ns: 5,
        shared: Some("nvmf".to_owned()),
        allowed_hosts: vec!["nqn.2014-08.org.example:a".to_owned()],
        entity_id: None,
        clone_of: None,
        properties: Default::default(),
        unknown: Default::default(),
    };
    let snapshot = SnapshotObject {
        uuid: Uuid::from_u128(9),
        name,
        line: LineId(1),
        epoch: Seq(5),
        size_bytes: 4096,
        source: Uuid::from_u128(8),
        source_name: "tank".to_owned(),
        txn_id: "1".to_owned(),
        entity_id: "2".to_owned(),
        parent_id: "3".to_owned(),
        created_unix_ns: 4,
        discarded: false,
        properties: Default::default(),
        unknown: Default::default(),
    };
    vec![Object::Pool(pool), Object::Volume(volume), Object::Snapshot(snapshot)]
}

fn catalogue(bytes: &[u8]) -> Shape {
    let blob = catalog::decode(bytes).map(|objects| {
        let again = whole_catalogue(&objects).expect("what was read can be written");
        assert_same(&catalog::decode(&again).expect("what was written can be read"), &objects);
        objects.len().min(4)
    });
    // The number of changes stands in the header, which was believed before; here any number that fits will do.
    let changes = (0..6).find_map(|count| Change::decode_all(bytes, count).ok());
    let changed = changes.map(|changes| {
        for change in &changes {
            let again = Change::decode_all(&change.encode().expect("what was read can be written"), 1);
            match (&again.expect("what was written can be read")[..], change) {
                ([Change::Remove(again)], Change::Remove(uuid)) => assert_eq!(again, uuid),
                ([Change::Put(again)], Change::Put(object)) => {
                    assert_same(std::slice::from_ref(again), std::slice::from_ref(object));
                }
                other => panic!("a change became another: {other:?}"),
            }
        }
        changes.len()
    });
    Shape::of((blob.map_err(kind), changed))
}

/// The same but for values of unknown fields: a number with a fraction may come back rounded.
fn assert_same(again: &[Object], objects: &[Object]) {
    let known = |object: &Object| {
        let mut object = object.clone();
        let unknown = match &mut object {
            Object::Pool(pool) => &mut pool.unknown,
            Object::Volume(volume) => &mut volume.unknown,
            Object::Snapshot(snapshot) => &mut snapshot.unknown,
        };
        unknown.values_mut().for_each(|value| *value = 0.into());
        object
    };
    assert!(again.iter().map(known).eq(objects.iter().map(known)), "{again:?} was {objects:?}");
}
