//! Where the data of a nexus stands on each child, and what its hosts see: Mayastor's layout, so that a child that a
//! Mayastor node wrote works here unchanged, and back.
//!
//! ```text
//!   child:  | 1 MiB lead | 4 MiB metadata | data of the nexus ...          | 16 KiB and two blocks |
//!           0                             offset                       end (shared by all children)
//! ```

use aio::{BlockCount, BlockDevice, Capabilities, Geometry};

/// First byte of the data on a child.
pub const DATA_OFFSET_BYTES: u64 = 5 << 20;
/// What is kept free at the end of a child, beside two blocks.
const TAIL_BYTES: u64 = 16 << 10;
/// Most bytes of one transfer.
const MAX_TRANSFER_BYTES: u32 = 1 << 20;
/// Most entries of one payload list.
const MAX_SG: u16 = 256;
/// I/Os of one channel.
pub(crate) const QUEUE_DEPTH: u32 = 1024;
/// What hosts may rely on when every child has it.
const COMMON: Capabilities = Capabilities::WRITE_ZEROES
    .union(Capabilities::FUA)
    .union(Capabilities::COMPARE)
    .union(Capabilities::VERIFY);

/// First block of the data on a child.
pub fn offset_blocks(block_bytes: u32) -> u64 {
    DATA_OFFSET_BYTES / u64::from(block_bytes)
}

/// The last block of a child that data may stand on; `None` for a child without room for any.
pub(crate) fn last_usable(device: &dyn BlockDevice) -> Option<u64> {
    let block_bytes = device.geometry().block_bytes;
    let last = device.size().0.checked_sub(2 + TAIL_BYTES / u64::from(block_bytes))?;
    (last > offset_blocks(block_bytes)).then_some(last)
}

/// The least size of a child of a nexus of more than `size` blocks, in bytes.
pub(crate) fn child_bytes(size: BlockCount, block_bytes: u32) -> u64 {
    let around = offset_blocks(block_bytes) + 2 + TAIL_BYTES / u64::from(block_bytes);
    size.0.saturating_add(around + 2).saturating_mul(u64::from(block_bytes))
}

/// The blocks that hosts see of a nexus for which `requested` bytes were asked, over these children. `None` when one of
/// them has no room for any.
pub(crate) fn exported(requested_bytes: u64, children: &[&dyn BlockDevice]) -> Option<BlockCount> {
    let block_bytes = children.first()?.geometry().block_bytes;
    let start = offset_blocks(block_bytes);
    let wanted = start.checked_add(requested_bytes / u64::from(block_bytes))?.checked_sub(1)?;
    let mut end = wanted;
    for child in children {
        end = end.min(last_usable(*child)?);
    }
    end.checked_sub(start).filter(|&blocks| blocks > 0).map(BlockCount)
}

/// Shape and limits that fit every child.
pub(crate) fn geometry(children: &[&dyn BlockDevice]) -> Option<Geometry> {
    let first = children.first()?.geometry();
    let mut all = Geometry {
        meta_bytes: 0,
        max_sg: first.max_sg.min(MAX_SG),
        max_blocks: first.max_blocks.min(MAX_TRANSFER_BYTES / first.block_bytes),
        queue_depth: QUEUE_DEPTH,
        ..first
    };
    for child in children {
        let g = child.geometry();
        all.buf_align = all.buf_align.max(g.buf_align);
        all.sg_elem_align = all.sg_elem_align.max(g.sg_elem_align);
        all.max_sg = all.max_sg.min(g.max_sg);
        all.max_blocks = all.max_blocks.min(g.max_blocks);
        all.boundary_blocks = all.boundary_blocks.max(g.boundary_blocks);
        all.atomic_blocks = all.atomic_blocks.min(g.atomic_blocks);
        all.compare_write_blocks = all.compare_write_blocks.min(g.compare_write_blocks);
    }
    // A boundary is one of the children's addresses.
    if all.boundary_blocks > 0
        && !offset_blocks(all.block_bytes).is_multiple_of(u64::from(all.boundary_blocks))
    {
        all.boundary_blocks = 0;
    }
    Some(all)
}

/// What hosts are told. Always a volatile cache: a child that takes another one's place may have one (hazard H8).
/// Unmapped blocks read as zeroes on every child alike: children that do not promise it get zeroes written instead, or
/// there is no unmapping (hazard H11).
pub(crate) fn capabilities(children: &[&dyn BlockDevice]) -> Capabilities {
    let mut all = COMMON;
    let mut unmap = true;
    for child in children {
        let mut has = child.capabilities();
        // Without a cache every write is on media.
        has.set(
            Capabilities::FUA,
            has.contains(Capabilities::FUA) || !has.contains(Capabilities::VOLATILE_CACHE),
        );
        all &= has;
        unmap &= unmaps(has);
    }
    all.set(Capabilities::UNMAP | Capabilities::UNMAP_ZEROES, unmap);
    all.set(Capabilities::COMPARE_AND_WRITE, all.contains(Capabilities::COMPARE));
    all | Capabilities::VOLATILE_CACHE
}

/// Whether a child can give blocks back so that they read as zeroes.
fn unmaps(has: Capabilities) -> bool {
    has.contains(Capabilities::UNMAP | Capabilities::UNMAP_ZEROES) || has.contains(Capabilities::WRITE_ZEROES)
}

/// Whether no fabric lies between the device and this host.
pub(crate) fn is_local(device: &dyn BlockDevice) -> bool {
    !device.driver().starts_with("nvmf")
}

/// What a new child lacks of what hosts were told, in words.
pub(crate) fn lacks(told: Capabilities, child: Capabilities) -> Option<&'static str> {
    let fua = child.contains(Capabilities::FUA) || !child.contains(Capabilities::VOLATILE_CACHE);
    let checks = [
        (Capabilities::WRITE_ZEROES, child.contains(Capabilities::WRITE_ZEROES), "Write Zeroes"),
        (Capabilities::FUA, fua, "Force Unit Access"),
        (Capabilities::COMPARE, child.contains(Capabilities::COMPARE), "Compare"),
        (Capabilities::VERIFY, child.contains(Capabilities::VERIFY), "Verify"),
        (Capabilities::UNMAP, unmaps(child), "Deallocate"),
    ];
    if child.contains(Capabilities::READ_ONLY) {
        return Some("writing");
    }
    checks.iter().find(|(what, has, _)| told.contains(*what) && !has).map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn malloc(blocks: u64, block_bytes: u32) -> Arc<dyn BlockDevice> {
        let uri = format!("malloc:///l{blocks}-{block_bytes}?num_blocks={blocks}&blk_size={block_bytes}");
        aio::devices::create(&uri.parse().unwrap()).unwrap()
    }

    /// Figures of the interface's description.
    #[test]
    fn hosts_see_what_mayastor_shows() {
        let mib = 1 << 20;
        let large = malloc(100 * 2048, 512);
        assert_eq!(offset_blocks(512), 10240);
        assert_eq!(exported(50 * mib, &[&*large]), Some(BlockCount(50 * 2048 - 1)), "one block less");
        let exact = exported(100 * mib, &[&*large]).unwrap();
        assert_eq!(exact.0, 100 * 2048 - 34 - 10240, "to the last usable block");
        let small = malloc(60 * 2048, 512);
        assert_eq!(exported(100 * mib, &[&*large, &*small]), Some(BlockCount(60 * 2048 - 34 - 10240)));
        let none = malloc(10240 + 34, 512);
        assert_eq!(exported(100 * mib, &[&*none]), None);
        assert_eq!(exported(0, &[&*large]), None);
        assert_eq!(exported(u64::MAX, &[&*large]).unwrap(), exact);
    }
}
