//! Pointers to blobs: the parts of a pool's state that a checkpoint writes as a whole, in payload blocks of Pages
//! records.

use super::bytes::at_most;
use super::{FormatError, What, crc32c};
use crate::types::{BLOCK_BYTES, Pba};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most pieces of one copy of a blob.
pub const MAX_BLOB_EXTENTS: usize = 24;
/// Most bytes of a blob: what may be allocated to read one.
pub const MAX_BLOB_BYTES: u64 = 256 << 20;
/// Bytes of an encoded pointer.
pub const BLOB_PTR_BYTES: usize = 592;

/// Blocks of a blob that stand one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlobExtent {
    /// Where.
    pub pba: Pba,
    /// How many, at least 1.
    pub blocks: u32,
}

/// Points to a blob. The default points to one of no bytes: there is none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BlobPtr {
    /// Its length. What its last block has beyond is zero.
    pub len_bytes: u64,
    /// CRC32C over these bytes.
    pub crc: u32,
    /// Where it is, in order.
    pub extents: Vec<BlobExtent>,
    /// Where its second copy is; empty = there is none.
    pub copy: Vec<BlobExtent>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawExtent {
    pba: U64,
    blocks: U32,
}

/// As it stands in the anchor.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawBlobPtr {
    len_bytes: U64,
    crc: U32,
    extents: u8,
    copy_extents: u8,
    reserved: U16,
    places: [[RawExtent; MAX_BLOB_EXTENTS]; 2],
}

const _: () = assert!(size_of::<RawBlobPtr>() == BLOB_PTR_BYTES);

impl BlobPtr {
    /// True when there is no blob.
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Blocks of one copy.
    pub fn blocks(&self) -> u64 {
        self.len_bytes.div_ceil(BLOCK_BYTES.into())
    }

    /// Whether `bytes` are the blob's.
    pub fn check_content(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.len_bytes && crc32c(bytes) == self.crc
    }

    pub(super) fn to_raw(&self) -> Result<RawBlobPtr, FormatError> {
        self.check(0)?;
        let mut raw = RawBlobPtr::new_zeroed();
        raw.len_bytes = self.len_bytes.into();
        raw.crc = self.crc.into();
        raw.extents = self.extents.len() as u8;
        raw.copy_extents = self.copy.len() as u8;
        for (places, extents) in raw.places.iter_mut().zip([&self.extents, &self.copy]) {
            for (place, extent) in places.iter_mut().zip(extents) {
                *place = RawExtent { pba: extent.pba.bits().into(), blocks: extent.blocks.into() };
            }
        }
        Ok(raw)
    }

    /// `at_bytes` is where it stands, for messages.
    pub(super) fn from_raw(raw: &RawBlobPtr, at_bytes: usize) -> Result<Self, FormatError> {
        let what = What::BlobPtr;
        let mut copies = [Vec::new(), Vec::new()];
        for ((extents, places), count) in
            copies.iter_mut().zip(&raw.places).zip([raw.extents, raw.copy_extents])
        {
            at_most(what, "pieces", count.into(), MAX_BLOB_EXTENTS)?;
            let (used, unused) = places.split_at(count.into());
            if unused.iter().any(|place| place.as_bytes() != [0; 12]) || raw.reserved.get() != 0 {
                return Err(FormatError::Value { what, field: "reserved part", at_bytes });
            }
            for place in used {
                if place.pba.get() >> 48 != 0 {
                    return Err(FormatError::Value { what, field: "address", at_bytes });
                }
                let pba = Pba::from_bits(place.pba.get());
                extents.push(BlobExtent { pba, blocks: place.blocks.get() });
            }
        }
        let [extents, copy] = copies;
        let blob = Self { len_bytes: raw.len_bytes.get(), crc: raw.crc.get(), extents, copy };
        blob.check(at_bytes)?;
        Ok(blob)
    }

    fn check(&self, at_bytes: usize) -> Result<(), FormatError> {
        let what = What::BlobPtr;
        if self.len_bytes > MAX_BLOB_BYTES {
            return Err(FormatError::Value { what, field: "length", at_bytes });
        }
        for (number, extents) in [&self.extents, &self.copy].into_iter().enumerate() {
            at_most(what, "pieces", extents.len(), MAX_BLOB_EXTENTS)?;
            if extents
                .iter()
                .any(|e| e.pba.is_none() || e.blocks == 0 || e.pba.block() + u64::from(e.blocks) > 1 << 40)
            {
                return Err(FormatError::Value { what, field: "piece", at_bytes });
            }
            let blocks: u64 = extents.iter().map(|e| u64::from(e.blocks)).sum();
            let no_copy = number == 1 && extents.is_empty();
            if blocks != self.blocks() && !no_copy {
                return Err(FormatError::Value { what, field: "number of blocks", at_bytes });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
