//! How an I/O travels: a head, which holds a short list, and further cells for a long one.
//!
//! `Io` and its lists are borrowed for the time of the submission only, so everything is copied. The *memory* that
//! entries name is not touched here. Needs `unsafe` to send such entries to another thread.

use aio::{BlockCount, BlockRange, Io, IoFlags, Lba, MAX_RANGES, Opcode, SgEntry};

use super::ring::{Reader, Writer};

/// Entries that the head holds: nearly all I/Os have no more.
const SHORT: usize = 2;
/// Entries or ranges that each further cell holds.
const PER_CELL: usize = 4;

/// A place in the ring.
#[derive(Clone, Copy)]
pub(super) enum Cell {
    Head(Head),
    Sg([SgEntry; PER_CELL]),
    Ranges([BlockRange; PER_CELL]),
}

// SAFETY: an entry is plain data that names memory of an I/O in flight. Its submitter promised that the memory is valid
// until the completion whoever works on it, and says nothing of threads; devices hand it to other threads as well.
unsafe impl Send for Cell {}

/// The first cell of an I/O.
#[derive(Clone, Copy)]
pub(super) struct Head {
    /// The proxy's slot, in place of a token.
    slot: u32,
    opcode: Opcode,
    flags: IoFlags,
    lba: Lba,
    blocks: BlockCount,
    entries: u16,
    ranges: u16,
    short: [SgEntry; SHORT],
}

/// An entry that names nothing, to fill up.
const NOTHING: SgEntry =
    SgEntry { ptr: core::ptr::NonNull::dangling(), len_bytes: 0, region: aio::RegionId::NONE };

/// Most cells that an I/O takes whose list has at most `max_sg` entries.
pub(super) fn most_cells(max_sg: u16) -> usize {
    1 + usize::from(max_sg).div_ceil(PER_CELL).max(MAX_RANGES.div_ceil(PER_CELL))
}

/// Writes an I/O that was checked: its lists are not longer than the device takes, and it has no second payload. False, and
/// nothing done, when there is no room.
#[inline]
pub(super) fn write(ring: &mut Writer<Cell>, io: &Io<'_>, slot: u32) -> bool {
    let long = if io.sg.len() > SHORT { io.sg } else { &[] };
    let cells = 1 + long.len().div_ceil(PER_CELL) + io.ranges.len().div_ceil(PER_CELL);
    if !ring.has_room(cells) {
        return false;
    }
    let mut head = Head {
        slot,
        opcode: io.opcode,
        flags: io.flags,
        lba: io.lba,
        blocks: io.blocks,
        entries: io.sg.len() as u16,
        ranges: io.ranges.len() as u16,
        short: [NOTHING; SHORT],
    };
    if long.is_empty() {
        head.short[..io.sg.len()].copy_from_slice(io.sg);
    }
    let mut done = ring.push(Cell::Head(head));
    for part in long.chunks(PER_CELL) {
        let mut entries = [NOTHING; PER_CELL];
        entries[..part.len()].copy_from_slice(part);
        done &= ring.push(Cell::Sg(entries));
    }
    for part in io.ranges.chunks(PER_CELL) {
        let mut ranges = [BlockRange::default(); PER_CELL];
        ranges[..part.len()].copy_from_slice(part);
        done &= ring.push(Cell::Ranges(ranges));
    }
    debug_assert!(done, "there was room");
    true
}

/// Where the lists of the I/O at hand are put together.
pub(super) struct Lists {
    sg: Vec<SgEntry>,
    ranges: Vec<BlockRange>,
}

impl Lists {
    /// With room for whatever a device takes with lists of at most `max_sg` entries.
    pub(super) fn new(max_sg: u16) -> Self {
        let round = |count: usize| count.next_multiple_of(PER_CELL);
        Self {
            sg: Vec::with_capacity(round(usize::from(max_sg))),
            ranges: Vec::with_capacity(round(MAX_RANGES)),
        }
    }

    /// Reads the next I/O of the ring with its slot.
    #[inline]
    pub(super) fn read(&mut self, ring: &mut Reader<Cell>) -> Option<(Io<'_>, u32)> {
        let Cell::Head(head) = ring.next()? else {
            debug_assert!(false, "an I/O begins with its head");
            return None;
        };
        let (entries, ranges) = (usize::from(head.entries), usize::from(head.ranges));
        self.sg.clear();
        self.ranges.clear();
        if entries <= SHORT {
            self.sg.extend_from_slice(&head.short);
        }
        while self.sg.len() < entries || self.ranges.len() < ranges {
            // All cells of an I/O are published together.
            match ring.next()? {
                Cell::Sg(part) => self.sg.extend_from_slice(&part),
                Cell::Ranges(part) => self.ranges.extend_from_slice(&part),
                Cell::Head(_) => return None,
            }
        }
        self.sg.truncate(entries);
        self.ranges.truncate(ranges);
        let io = Io {
            flags: head.flags,
            sg: &self.sg,
            ranges: &self.ranges,
            ..Io::new(head.opcode, head.lba, head.blocks)
        };
        Some((io, head.slot))
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::ring;
    use super::*;
    use core::ptr::NonNull;

    fn entry(n: u32) -> SgEntry {
        let ptr = NonNull::new(core::ptr::without_provenance_mut::<u8>(0x1000 + n as usize)).unwrap();
        SgEntry { ptr, len_bytes: 1 + n, region: aio::RegionId { index: n as u16, generation: 3 } }
    }

    /// Lists of every length arrive as they were, also across the end of the ring, and in a ring that is just large enough.
    #[test]
    fn lists_of_all_lengths_arrive() {
        let max_sg = 21;
        let (mut writer, mut reader) = ring(most_cells(max_sg).next_power_of_two());
        let mut lists = Lists::new(max_sg);
        for round in 0..3 {
            for len in 0..=u32::from(max_sg) {
                let sg: Vec<_> = (0..len).map(entry).collect();
                let io = Io::write(Lba(u64::from(len) + 7), BlockCount(round), &sg).with_flags(IoFlags::FUA);
                assert!(write(&mut writer, &io, len) && writer.publish());
                let (seen, slot) = lists.read(&mut reader).unwrap();
                assert_eq!((seen.sg, seen.ranges.len(), slot), (sg.as_slice(), 0, len));
                assert_eq!(
                    (seen.opcode, seen.flags, seen.lba, seen.blocks),
                    (io.opcode, io.flags, io.lba, io.blocks)
                );
                reader.give_back();
            }
            for len in [0, 1, 3, 4, 5, 200, MAX_RANGES] {
                let range = |n| BlockRange { start: Lba(n), blocks: BlockCount(n * 2 + round) };
                let ranges: Vec<_> = (0..len as u64).map(range).collect();
                assert!(write(&mut writer, &Io::unmap(&ranges), 1) && writer.publish());
                let (seen, _) = lists.read(&mut reader).unwrap();
                assert_eq!((seen.ranges, seen.sg.len()), (ranges.as_slice(), 0));
                reader.give_back();
            }
        }
        assert!(reader.is_empty());
    }

    #[test]
    fn an_io_is_taken_whole_or_not_at_all() {
        let (mut writer, mut reader) = ring(4);
        let mut lists = Lists::new(64);
        let sg: Vec<_> = (0..9).map(entry).collect();
        assert!(write(&mut writer, &Io::flush(), 1));
        assert!(
            !write(&mut writer, &Io::write(Lba(0), BlockCount(1), &sg), 2),
            "four cells, and three are free"
        );
        assert!(write(&mut writer, &Io::write(Lba(0), BlockCount(1), &sg[..8]), 3) && writer.publish());
        assert_eq!(lists.read(&mut reader).unwrap().1, 1);
        let mark = reader.mark();
        assert_eq!(lists.read(&mut reader).unwrap().1, 3);
        reader.rewind(mark);
        let (again, slot) = lists.read(&mut reader).unwrap();
        assert_eq!((again.sg, slot), (&sg[..8], 3));
        assert!(lists.read(&mut reader).is_none());
    }
}
