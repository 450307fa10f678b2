//! The one place that decides whether an [`Io`] is valid on a device. Every device calls [`validate`] first
//! and completes the I/O with the status that it returns.

use crate::IoStatus;
use crate::device::{Capabilities, Geometry};
use crate::io::{BlockCount, BlockRange, Io, IoFlags, MAX_RANGES, Opcode};
use crate::sg::{SgEntry, total_bytes};

/// Status of every I/O offered to a device that was removed: Namespace Not Ready, and retrying is useless.
pub const REMOVED: IoStatus = IoStatus::NAMESPACE_NOT_READY.with_dnr();

/// Status of every I/O offered to a closed channel: Command Abort Requested.
pub const CLOSED: IoStatus = IoStatus::ABORT_REQUESTED;

/// Checks capability, range, length and shape of `io` against a device with these properties.
///
/// Order: opcode (Invalid Opcode), write protection, range (LBA Out of Range), size and list (Invalid
/// Field). A length of zero blocks is valid, and there is nothing to do then; a zero-length list entry is not.
pub fn validate(
    io: &Io<'_>,
    geometry: &Geometry,
    caps: Capabilities,
    size: BlockCount,
) -> Result<(), IoStatus> {
    let (needs, changes) = match io.opcode {
        Opcode::Read => return validate_transfer(io, geometry, caps, size),
        Opcode::Write => (Capabilities::empty(), true),
        Opcode::Flush => return Ok(()),
        Opcode::WriteZeroes => (Capabilities::WRITE_ZEROES, true),
        Opcode::Unmap => (Capabilities::UNMAP, true),
        Opcode::Compare => (Capabilities::COMPARE, false),
        Opcode::CompareAndWrite => (Capabilities::COMPARE_AND_WRITE, true),
        Opcode::Verify => (Capabilities::VERIFY, false),
        Opcode::Copy => (Capabilities::COPY, true),
    };
    if !caps.contains(needs) {
        return Err(IoStatus::INVALID_OPCODE);
    }
    if changes && caps.contains(Capabilities::READ_ONLY) {
        return Err(IoStatus::NAMESPACE_WRITE_PROTECTED);
    }
    match io.opcode {
        Opcode::WriteZeroes | Opcode::Verify => in_range(io, io.blocks, size),
        Opcode::Unmap => validate_ranges(io.ranges, size).map(|_| ()),
        Opcode::Copy => {
            let total = validate_ranges(io.ranges, size)?;
            in_range(io, total, size)?;
            if total.0 > u64::from(geometry.max_blocks) { Err(IoStatus::INVALID_FIELD) } else { Ok(()) }
        }
        _ => validate_transfer(io, geometry, caps, size),
    }
}

/// Checks an opcode that moves `blocks` blocks between the device and one or two lists.
#[inline]
fn validate_transfer(
    io: &Io<'_>,
    g: &Geometry,
    caps: Capabilities,
    size: BlockCount,
) -> Result<(), IoStatus> {
    in_range(io, io.blocks, size)?;
    if io.blocks.0 > u64::from(g.max_blocks) {
        return Err(IoStatus::INVALID_FIELD);
    }
    if io.opcode == Opcode::CompareAndWrite && io.blocks.0 > u64::from(g.compare_write_blocks) {
        return Err(IoStatus::ATOMIC_WRITE_UNIT_EXCEEDED);
    }
    let len_bytes = io.blocks.0 * u64::from(g.block_bytes);
    let lent = io.opcode == Opcode::Read
        && io.flags.contains(IoFlags::MAY_LEND)
        && caps.contains(Capabilities::LENDS)
        && io.sg.is_empty();
    if !lent {
        validate_list(io.sg, len_bytes, g)?;
    }
    if io.opcode == Opcode::CompareAndWrite { validate_list(io.second, len_bytes, g) } else { Ok(()) }
}

/// True range check: nothing is computed from `lba` that could overflow.
#[inline]
fn in_range(io: &Io<'_>, blocks: BlockCount, size: BlockCount) -> Result<(), IoStatus> {
    let range = BlockRange { start: io.lba, blocks };
    if range.fits(size) { Ok(()) } else { Err(IoStatus::LBA_OUT_OF_RANGE) }
}

/// Checks a list of ranges; returns the total length.
fn validate_ranges(ranges: &[BlockRange], size: BlockCount) -> Result<BlockCount, IoStatus> {
    if ranges.len() > MAX_RANGES {
        return Err(IoStatus::INVALID_FIELD);
    }
    let mut total = 0u64;
    for range in ranges {
        if !range.fits(size) {
            return Err(IoStatus::LBA_OUT_OF_RANGE);
        }
        total = total.checked_add(range.blocks.0).ok_or(IoStatus::INVALID_FIELD)?;
    }
    Ok(BlockCount(total))
}

/// Checks count, total length and alignment of one payload list.
#[inline]
fn validate_list(sg: &[SgEntry], len_bytes: u64, g: &Geometry) -> Result<(), IoStatus> {
    if sg.len() > usize::from(g.max_sg) || total_bytes(sg) != len_bytes {
        return Err(IoStatus::INVALID_FIELD);
    }
    let last = sg.len().saturating_sub(1);
    for (i, entry) in sg.iter().enumerate() {
        let misplaced = entry.ptr.addr().get() & (g.buf_align as usize - 1) != 0;
        let odd = i != last && entry.len_bytes & (g.sg_elem_align - 1) != 0;
        if misplaced || odd || entry.len_bytes == 0 {
            return Err(IoStatus::INVALID_FIELD);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use core::ptr::NonNull;

    use super::*;
    use crate::io::Lba;
    use crate::sg::RegionId;

    const G: Geometry = Geometry {
        block_bytes: 512,
        meta_bytes: 0,
        buf_align: 4,
        sg_elem_align: 8,
        max_sg: 2,
        max_blocks: 16,
        boundary_blocks: 0,
        atomic_blocks: 1,
        compare_write_blocks: 4,
        queue_depth: 1,
    };
    const SIZE: BlockCount = BlockCount(100);

    fn entry(addr: usize, len_bytes: u32) -> SgEntry {
        let ptr = NonNull::new(core::ptr::without_provenance_mut::<u8>(addr)).unwrap();
        SgEntry { ptr, len_bytes, region: RegionId::NONE }
    }

    fn read(lba: u64, blocks: u64, sg: &[SgEntry]) -> Result<(), IoStatus> {
        validate(&Io::read(Lba(lba), BlockCount(blocks), sg), &G, Capabilities::LENDS, SIZE)
    }

    #[test]
    fn ranges_near_the_ends() {
        let one = [entry(0x1000, 512)];
        assert_eq!(read(99, 1, &one), Ok(()));
        assert_eq!(read(100, 1, &one), Err(IoStatus::LBA_OUT_OF_RANGE));
        assert_eq!(read(u64::MAX, 1, &one), Err(IoStatus::LBA_OUT_OF_RANGE));
        assert_eq!(read(1, u64::MAX, &one), Err(IoStatus::LBA_OUT_OF_RANGE));
        assert_eq!(read(100, 0, &[]), Ok(()));
        assert_eq!(read(101, 0, &[]), Err(IoStatus::LBA_OUT_OF_RANGE));
        assert_eq!(read(0, 17, &[]), Err(IoStatus::INVALID_FIELD));
    }

    #[test]
    fn list_shapes() {
        let bad = Err(IoStatus::INVALID_FIELD);
        assert_eq!(read(0, 1, &[entry(0x1000, 8), entry(0x2000, 504)]), Ok(()));
        assert_eq!(read(0, 1, &[entry(0x1000, 505), entry(0x2000, 7)]), bad, "element alignment");
        assert_eq!(read(0, 1, &[entry(0x1001, 512)]), bad, "address alignment");
        assert_eq!(read(0, 1, &[entry(0x1000, 520)]), bad, "too long");
        assert_eq!(read(0, 1, &[entry(0x1000, 504)]), bad, "too short");
        assert_eq!(read(0, 1, &[entry(0x1000, 512), entry(0x2000, 0)]), bad, "empty entry");
        assert_eq!(read(0, 1, &[entry(0x1000, 8), entry(0x2000, 8), entry(0x3000, 496)]), bad, "too many");
    }

    #[test]
    fn empty_list_only_where_the_device_lends() {
        let io = Io::read(Lba(0), BlockCount(1), &[]).with_flags(IoFlags::MAY_LEND);
        assert_eq!(validate(&io, &G, Capabilities::LENDS, SIZE), Ok(()));
        assert_eq!(validate(&io, &G, Capabilities::empty(), SIZE), Err(IoStatus::INVALID_FIELD));
    }

    #[test]
    fn capabilities_and_protection() {
        let zero = Io::new(Opcode::WriteZeroes, Lba(0), BlockCount(100));
        assert_eq!(validate(&zero, &G, Capabilities::empty(), SIZE), Err(IoStatus::INVALID_OPCODE));
        assert_eq!(validate(&zero, &G, Capabilities::WRITE_ZEROES, SIZE), Ok(()));
        let protected = Capabilities::WRITE_ZEROES | Capabilities::READ_ONLY;
        assert_eq!(validate(&zero, &G, protected, SIZE), Err(IoStatus::NAMESPACE_WRITE_PROTECTED));
        assert_eq!(validate(&Io::flush(), &G, protected, SIZE), Ok(()));
    }

    #[test]
    fn range_lists() {
        let far = [BlockRange { start: Lba(u64::MAX), blocks: BlockCount(2) }];
        let caps = Capabilities::UNMAP | Capabilities::COPY;
        assert_eq!(validate(&Io::unmap(&far), &G, caps, SIZE), Err(IoStatus::LBA_OUT_OF_RANGE));
        let whole = [BlockRange { start: Lba(0), blocks: SIZE }];
        assert_eq!(validate(&Io::unmap(&whole), &G, caps, SIZE), Ok(()));
        let many = [BlockRange::default(); MAX_RANGES + 1];
        assert_eq!(validate(&Io::unmap(&many), &G, caps, SIZE), Err(IoStatus::INVALID_FIELD));
        let copy = |lba, blocks| {
            let ranges = [BlockRange { start: Lba(0), blocks: BlockCount(blocks) }];
            let io = Io { ranges: &ranges, ..Io::new(Opcode::Copy, Lba(lba), BlockCount(0)) };
            validate(&io, &G, caps, SIZE)
        };
        assert_eq!(copy(50, 16), Ok(()));
        assert_eq!(copy(50, 17), Err(IoStatus::INVALID_FIELD));
        assert_eq!(copy(90, 16), Err(IoStatus::LBA_OUT_OF_RANGE));
    }
}
