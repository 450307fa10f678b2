use super::*;
use crate::format::testing::Rng;

fn extent(block: u64, blocks: u32) -> BlobExtent {
    BlobExtent { pba: Pba::new(1, block).unwrap(), blocks }
}

fn round(blob: &BlobPtr) -> Result<BlobPtr, FormatError> {
    BlobPtr::from_raw(&blob.to_raw()?, 0)
}

#[test]
fn it_comes_back() {
    let mut rng = Rng(4);
    assert_eq!(round(&BlobPtr::default()), Ok(BlobPtr::default()));
    assert!(BlobPtr::default().is_empty());
    for count in 1..=MAX_BLOB_EXTENTS {
        let mut some = || -> Vec<BlobExtent> { (0..count).map(|_| extent(rng.below(1 << 39), 7)).collect() };
        let (extents, mut copy) = (some(), some());
        if count % 2 == 0 {
            copy.clear();
        }
        let len_bytes = count as u64 * 7 * 4096 - 4095;
        let blob = BlobPtr { len_bytes, crc: 9, extents, copy };
        assert_eq!((round(&blob), blob.blocks()), (Ok(blob.clone()), count as u64 * 7));
    }
    let blob = BlobPtr { len_bytes: 9, crc: 0xe306_9283, extents: vec![extent(1, 1)], copy: vec![] };
    assert!(blob.check_content(b"123456789") && !blob.check_content(b"123456780"));
    assert!(!blob.check_content(b"12345678"));
}

#[test]
fn what_cannot_be_is_refused() {
    let good = BlobPtr { len_bytes: 8192, crc: 1, extents: vec![extent(9, 2)], copy: vec![extent(5, 2)] };
    let value = |field| Err(FormatError::Value { what: What::BlobPtr, field, at_bytes: 0 });
    let refused = |blob: BlobPtr| round(&blob);
    assert_eq!(refused(BlobPtr { len_bytes: 8193, ..good.clone() }), value("number of blocks"));
    assert_eq!(refused(BlobPtr { len_bytes: 4096, ..good.clone() }), value("number of blocks"));
    assert_eq!(refused(BlobPtr { len_bytes: 0, ..good.clone() }), value("number of blocks"));
    assert_eq!(refused(BlobPtr { len_bytes: MAX_BLOB_BYTES + 1, ..good.clone() }), value("length"));
    assert_eq!(refused(BlobPtr { extents: vec![], ..good.clone() }), value("number of blocks"));
    assert_eq!(refused(BlobPtr { copy: vec![extent(5, 1)], ..good.clone() }), value("number of blocks"));
    assert_eq!(refused(BlobPtr { copy: vec![extent(5, 2), extent(5, 0)], ..good.clone() }), value("piece"));
    assert_eq!(refused(BlobPtr { extents: vec![extent((1 << 40) - 1, 2)], ..good.clone() }), value("piece"));
    let many = BlobPtr { extents: vec![extent(1, 1); 25], ..good.clone() };
    assert!(matches!(refused(many), Err(FormatError::TooMany { count: 25, limit: 24, .. })));

    // Byte of the encoded pointer, its new value.
    for (at, byte, field) in [
        (13, 0, "reserved part"),
        (14, 1, "reserved part"),
        (16 + 12, 1, "reserved part"),
        (16 + 6, 1, "address"),
        (16 + 5, 64, "piece"),
        (16 + 8, 3, "number of blocks"),
    ] {
        let mut raw = good.to_raw().unwrap();
        raw.as_mut_bytes()[at] = byte;
        assert_eq!(BlobPtr::from_raw(&raw, 0), value(field), "byte {at}");
    }
    let mut raw = good.to_raw().unwrap();
    raw.as_mut_bytes()[12] = 25;
    assert!(matches!(BlobPtr::from_raw(&raw, 0), Err(FormatError::TooMany { count: 25, .. })));
}

/// A change of these bytes is a change of the format: it needs a new version, and the old one must stay readable.
#[test]
fn golden_bytes() {
    let pba = Pba::from_bits(0x2122_2324_2526);
    let extents = vec![BlobExtent { pba, blocks: 0x1001 }];
    let copy = vec![BlobExtent { pba: Pba::from_bits(5), blocks: 0x1000 }, BlobExtent { pba, blocks: 1 }];
    let raw = BlobPtr { len_bytes: 0x100_0001, crc: 0x3132_3334, extents, copy }.to_raw().unwrap();
    let bytes = raw.as_bytes();
    #[rustfmt::skip]
    let golden = [
        1, 0, 0, 1, 0, 0, 0, 0, 0x34, 0x33, 0x32, 0x31, 1, 2, 0, 0,
        0x26, 0x25, 0x24, 0x23, 0x22, 0x21, 0, 0, 1, 0x10, 0, 0,
    ];
    assert_eq!(bytes[..28], golden);
    assert!(bytes[28..304].iter().all(|byte| *byte == 0));
    #[rustfmt::skip]
    let copy = [
        5, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0,
        0x26, 0x25, 0x24, 0x23, 0x22, 0x21, 0, 0, 1, 0, 0, 0,
    ];
    assert_eq!(bytes[304..328], copy);
    assert!(bytes[328..].iter().all(|byte| *byte == 0));
}
