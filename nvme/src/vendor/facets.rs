//! Vendor specific admin commands: what a namespace can tell and do beyond the specifications. All of it stands in this file.
//!
//! | opcode | command | data | says |
//! |---|---|---|---|
//! | C1h | Create Snapshot, as Mayastor has it | to the controller | [`SnapshotMessage`]; the time in seconds in dwords 10, 11 |
//! | D2h | Read Facets | to the host | [`FacetsPage`] |
//! | D5h | Put Mark | to the controller | [`MarkData`] |
//! | D6h | Read Ranges: allocated | to the host | [`ReadRanges`] in the dwords; a [`RangesPage`] |
//! | D8h | Remove Mark | none | the id in dwords 12 to 15 |
//! | DAh, DEh, E2h | Read Ranges: changed since a position, mark, snapshot | to the host | as D6h |
//! | E6h | Read Marks | to the host | a [`MarksPage`] |
//!
//! Bits 1:0 of an opcode say which way the data goes, as everywhere. The namespace is that of the command. The transfer is
//! as long as the SGL descriptor says; a page that is shorter is filled up with zeroes, one that would be longer ends earlier and
//! says where to ask on.
//!
//! # Who has them
//! A controller with [`SIGNATURE`] at the start of the vendor's part of Identify Controller takes D2h to E6h, and Read Facets says of
//! each namespace which of them make sense there. No other controller is ever sent one of them: their meaning is another one
//! there. C1h is taken by controllers of Mayastor's model as well.
//!
//! # Errors
//! [`UNKNOWN_PAST`] when nothing is known of the time that is asked about; [`Status::INTERNAL_ERROR`](crate::Status::INTERNAL_ERROR) with
//! an error number of Linux in dword 0 of the completion when the device failed, as Mayastor has it for C1h; Invalid Opcode, Invalid Field
//! and Invalid Namespace as usual.

use zerocopy::little_endian::{U16, U32, U64};

use crate::command::{AdminOpcode, Nsid, Sqe};
use crate::identify::IdentifyController;
use crate::status::{Status, sct};

/// Create Snapshot, in Mayastor's form.
pub const CREATE_SNAPSHOT: AdminOpcode = AdminOpcode::new(0xc1);
/// Which facets a namespace has.
pub const READ_FACETS: AdminOpcode = AdminOpcode::new(0xd2);
/// Keeps a position as a mark.
pub const PUT_MARK: AdminOpcode = AdminOpcode::new(0xd5);
/// Ranges that hold something.
pub const READ_ALLOCATED: AdminOpcode = AdminOpcode::new(0xd6);
/// Forgets a mark.
pub const REMOVE_MARK: AdminOpcode = AdminOpcode::new(0xd8);
/// Ranges that changed since a position.
pub const READ_SINCE_POSITION: AdminOpcode = AdminOpcode::new(0xda);
/// Ranges that changed since a mark.
pub const READ_SINCE_MARK: AdminOpcode = AdminOpcode::new(0xde);
/// Ranges that changed since a snapshot.
pub const READ_SINCE_SNAPSHOT: AdminOpcode = AdminOpcode::new(0xe2);
/// The position, and the marks.
pub const READ_MARKS: AdminOpcode = AdminOpcode::new(0xe6);

/// All of them.
pub const OPCODES: [AdminOpcode; 9] = [
    CREATE_SNAPSHOT,
    READ_FACETS,
    PUT_MARK,
    READ_ALLOCATED,
    REMOVE_MARK,
    READ_SINCE_POSITION,
    READ_SINCE_MARK,
    READ_SINCE_SNAPSHOT,
    READ_MARKS,
];

/// Nothing is known of the time that is asked about: everything may have changed (vendor specific status, code 1).
pub const UNKNOWN_PAST: Status = Status::new(sct::VENDOR, 1).with_dnr();

/// What the vendor's part of Identify Controller begins with where these commands are known.
pub const SIGNATURE: [u8; 16] = *b"Keelson facets 1";

/// What model Mayastor's targets say they are: these know Create Snapshot.
pub const MAYASTOR_MODEL: &str = "Mayastor NVMe controller";

/// Most bytes of a [`SnapshotMessage`].
pub const MAX_SNAPSHOT_MESSAGE_BYTES: usize = 4096;

/// Whether a controller takes the commands D2h to E6h.
pub fn has_facets(identify: &IdentifyController) -> bool {
    identify.vendor.starts_with(&SIGNATURE)
}

/// Says in Identify Controller that these commands are taken.
pub fn sign(identify: &mut IdentifyController) {
    identify.vendor[..SIGNATURE.len()].copy_from_slice(&SIGNATURE);
}

bit_set! {
    /// What a namespace can do.
    Facets(u16 => U16) {
        RANGES = 1, "Read Ranges";
        MARKS = 1 << 1, "Put Mark, Remove Mark, Read Marks";
        SNAPSHOTS = 1 << 2, "Create Snapshot";
    }
}

wire_struct! {
    /// The answer to Read Facets.
    FacetsPage, 64, {
        /// What the namespace can do.
        facets: Facets,
        /// Zero.
        reserved2: U16,
        /// Blocks that hold something, or changed, together; 0 without ranges.
        granularity_blocks: U32,
        /// Zero.
        reserved8: [u8; 56],
    }
}

impl Sqe {
    /// Command dwords 12 to 15 as one number.
    pub const fn cdw12_15(&self) -> u128 {
        self.cdw12.get() as u128
            | (self.cdw13.get() as u128) << 32
            | (self.cdw14.get() as u128) << 64
            | (self.cdw15.get() as u128) << 96
    }

    /// Writes command dwords 12 to 15 as one number.
    pub fn set_cdw12_15(&mut self, value: u128) {
        self.cdw12.set(value as u32);
        self.cdw13.set((value >> 32) as u32);
        self.cdw14.set((value >> 64) as u32);
        self.cdw15.set((value >> 96) as u32);
    }
}

/// Which ranges are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Those that hold something.
    Allocated,
    /// Those that changed since a position.
    SincePosition {
        /// Of the namespace.
        incarnation: u128,
        /// Where in it.
        number: u64,
    },
    /// Those that changed since a mark of this id.
    SinceMark(u128),
    /// Those that changed since a snapshot of this uuid, as a number.
    SinceSnapshot(u128),
}

/// The arguments of Read Ranges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadRanges {
    /// What.
    pub asked: Asked,
    /// From this block to the end of the namespace.
    pub start_lba: u64,
}

impl ReadRanges {
    /// Reads the dwords; `None` when the command is another one.
    pub fn decode(sqe: &Sqe) -> Option<Self> {
        let id = sqe.cdw12_15();
        let asked = match sqe.admin_opcode() {
            READ_ALLOCATED => Asked::Allocated,
            READ_SINCE_POSITION => {
                let number = u64::from(sqe.cdw2.get()) | u64::from(sqe.cdw3.get()) << 32;
                Asked::SincePosition { incarnation: id, number }
            }
            READ_SINCE_MARK => Asked::SinceMark(id),
            READ_SINCE_SNAPSHOT => Asked::SinceSnapshot(id),
            _ => return None,
        };
        Some(Self { asked, start_lba: sqe.cdw10_11() })
    }

    /// A whole SQE but for DPTR.
    pub fn sqe(&self, nsid: Nsid) -> Sqe {
        let (opcode, id, number) = match self.asked {
            Asked::Allocated => (READ_ALLOCATED, 0, 0),
            Asked::SincePosition { incarnation, number } => (READ_SINCE_POSITION, incarnation, number),
            Asked::SinceMark(id) => (READ_SINCE_MARK, id, 0),
            Asked::SinceSnapshot(id) => (READ_SINCE_SNAPSHOT, id, 0),
        };
        let mut sqe = Sqe::admin(opcode, nsid);
        sqe.set_cdw10_11(self.start_lba);
        sqe.set_cdw12_15(id);
        sqe.cdw2.set(number as u32);
        sqe.cdw3.set((number >> 32) as u32);
        sqe
    }
}

wire_struct! {
    /// The beginning of the answer to Read Ranges.
    RangesHeader, 16, {
        /// Where to ask on; all ones: this was all.
        next_lba: U64,
        /// Entries that follow.
        count: U32,
        /// Zero.
        reserved12: U32,
    }
}

wire_struct! {
    /// Blocks side by side.
    RangeEntry, 24, {
        /// The first.
        start_lba: U64,
        /// How many.
        blocks: U64,
        /// Bit 0: they hold something. Clear: they read as zeroes since they changed.
        flags: U32,
        /// Zero.
        reserved20: U32,
    }
}

impl RangeEntry {
    /// In `flags`: they hold something.
    pub const DATA: u32 = 1;

    /// An entry.
    pub fn new(start_lba: u64, blocks: u64, data: bool) -> Self {
        let flags = if data { Self::DATA } else { 0 };
        Self { start_lba: start_lba.into(), blocks: blocks.into(), flags: flags.into(), ..Self::zeroed() }
    }

    /// They hold something.
    pub fn is_data(&self) -> bool {
        self.flags.get() & Self::DATA != 0
    }
}

/// The answer to Read Ranges: a [`RangesHeader`] and entries in ascending order, apart from each other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangesPage {
    /// First block, blocks, and whether they hold something.
    pub ranges: Vec<(u64, u64, bool)>,
    /// Where to ask on; `None`: this was all.
    pub next_lba: Option<u64>,
}

impl RangesPage {
    /// Most entries of a transfer of `len_bytes`; `None` when not even one fits.
    pub fn capacity(len_bytes: u32) -> Option<usize> {
        let room = (len_bytes as usize).checked_sub(RangesHeader::LEN_BYTES)? / RangeEntry::LEN_BYTES;
        (room > 0).then_some(room)
    }

    /// Bytes of a page with `entries`.
    pub fn len_bytes(entries: usize) -> usize {
        RangesHeader::LEN_BYTES + entries * RangeEntry::LEN_BYTES
    }

    /// The page, filled up with zeroes to `len_bytes`, which is at least [`len_bytes`](Self::len_bytes) of what it holds.
    pub fn to_wire(&self, len_bytes: usize) -> Vec<u8> {
        let header = RangesHeader {
            next_lba: self.next_lba.unwrap_or(u64::MAX).into(),
            count: (self.ranges.len() as u32).into(),
            ..RangesHeader::zeroed()
        };
        let mut page = Vec::with_capacity(len_bytes);
        page.extend_from_slice(header.wire());
        for (start_lba, blocks, data) in &self.ranges {
            page.extend_from_slice(RangeEntry::new(*start_lba, *blocks, *data).wire());
        }
        page.resize(len_bytes.max(page.len()), 0);
        page
    }

    /// Reads what a controller answered to a question from `start_lba` on. `None` when it makes no sense: more entries than
    /// bytes, entries that are empty, out of order, before the start or beyond the last block, or a `next_lba` that leads back.
    pub fn parse(bytes: &[u8], start_lba: u64) -> Option<Self> {
        let header = RangesHeader::view(bytes)?;
        let count = usize::try_from(header.count.get()).ok()?;
        let entries = bytes.get(RangesHeader::LEN_BYTES..)?;
        let entries = entries.get(..count.checked_mul(RangeEntry::LEN_BYTES)?)?;
        let mut at = start_lba;
        let mut ranges = Vec::with_capacity(count);
        for entry in entries.chunks_exact(RangeEntry::LEN_BYTES) {
            let entry = RangeEntry::view(entry)?;
            let (start, blocks) = (entry.start_lba.get(), entry.blocks.get());
            if start < at || blocks == 0 {
                return None;
            }
            at = start.checked_add(blocks)?;
            ranges.push((start, blocks, entry.is_data()));
        }
        let next_lba = Some(header.next_lba.get()).filter(|next| *next != u64::MAX);
        let leads_on = next_lba.is_none_or(|next| next > start_lba && next >= at);
        leads_on.then_some(Self { ranges, next_lba })
    }
}

wire_struct! {
    /// The data of Put Mark.
    MarkData, 40, {
        /// The mark.
        id: [u8; 16],
        /// Of the namespace when the position was read.
        incarnation: [u8; 16],
        /// The position.
        number: U64,
    }
}

wire_struct! {
    /// The beginning of the answer to Read Marks.
    MarksHeader, 32, {
        /// Of the namespace.
        incarnation: [u8; 16],
        /// The position: what is submitted after the answer is behind it.
        number: U64,
        /// Entries that follow.
        count: U32,
        /// Zero.
        reserved28: U32,
    }
}

wire_struct! {
    /// A mark.
    MarkEntry, 24, {
        /// Which.
        id: [u8; 16],
        /// Its position.
        number: U64,
    }
}

/// The answer to Read Marks: a [`MarksHeader`] and entries, the newest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MarksPage {
    /// Of the namespace.
    pub incarnation: u128,
    /// The position.
    pub number: u64,
    /// Id and position of each mark.
    pub marks: Vec<(u128, u64)>,
}

impl MarksPage {
    /// A transfer that holds all marks that a namespace may have.
    pub const LEN_BYTES: usize = 4096;

    /// The page as long as `len_bytes`; the oldest marks are left out where there is no room. `None`: not even for the header.
    pub fn to_wire(&self, len_bytes: usize) -> Option<Vec<u8>> {
        let room = len_bytes.checked_sub(MarksHeader::LEN_BYTES)? / MarkEntry::LEN_BYTES;
        let count = self.marks.len().min(room);
        let header = MarksHeader {
            incarnation: self.incarnation.to_le_bytes(),
            number: self.number.into(),
            count: (count as u32).into(),
            ..MarksHeader::zeroed()
        };
        let mut page = Vec::with_capacity(len_bytes);
        page.extend_from_slice(header.wire());
        for (id, number) in &self.marks[..count] {
            let entry = MarkEntry { id: id.to_le_bytes(), number: (*number).into() };
            page.extend_from_slice(entry.wire());
        }
        page.resize(len_bytes, 0);
        Some(page)
    }

    /// Reads what a controller answered. `None`: more entries than bytes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let header = MarksHeader::view(bytes)?;
        let count = usize::try_from(header.count.get()).ok()?;
        let entries = bytes.get(MarksHeader::LEN_BYTES..)?.get(..count.checked_mul(MarkEntry::LEN_BYTES)?)?;
        let mark = |bytes| {
            let entry = MarkEntry::view(bytes)?;
            Some((u128::from_le_bytes(entry.id), entry.number.get()))
        };
        let marks = entries.chunks_exact(MarkEntry::LEN_BYTES).filter_map(mark).collect();
        let incarnation = u128::from_le_bytes(header.incarnation);
        Some(Self { incarnation, number: header.number.get(), marks })
    }
}

/// The data of Create Snapshot: variant 0 of a versioned message, in the form that `bincode` 1 gives it.
///
/// A 32-bit variant, six optional texts (a byte that is 0 or 1, a 64-bit length, UTF-8), and a byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SnapshotMessage<'a> {
    /// The owner's name for it.
    pub entity_id: Option<&'a str>,
    /// Of what it is made.
    pub parent_id: Option<&'a str>,
    /// The transaction that it belongs to.
    pub txn_id: Option<&'a str>,
    /// Its name.
    pub name: Option<&'a str>,
    /// Its uuid.
    pub uuid: Option<&'a str>,
    /// When it was made, as [`UnixTime`] reads and writes it.
    pub create_time: Option<&'a str>,
    /// It is to be deleted.
    pub discarded: bool,
}

impl<'a> SnapshotMessage<'a> {
    /// The bytes.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        let texts = [self.entity_id, self.parent_id, self.txn_id, self.name, self.uuid, self.create_time];
        for text in texts {
            out.push(u8::from(text.is_some()));
            if let Some(text) = text {
                out.extend_from_slice(&(text.len() as u64).to_le_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
        out.push(u8::from(self.discarded));
        out
    }

    /// Reads the bytes; what follows is left alone. `None` when they are no such message, or a longer one than
    /// [`MAX_SNAPSHOT_MESSAGE_BYTES`]. Old senders leave the last byte out.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() > MAX_SNAPSHOT_MESSAGE_BYTES {
            return None;
        }
        let (variant, mut rest) = bytes.split_first_chunk::<4>()?;
        if *variant != [0; 4] {
            return None;
        }
        let mut text = || -> Option<Option<&'a str>> {
            let (there, after) = rest.split_first()?;
            rest = after;
            match there {
                0 => return Some(None),
                1 => {}
                _ => return None,
            }
            let (len, after) = rest.split_first_chunk::<8>()?;
            let (text, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
            rest = after;
            Some(Some(core::str::from_utf8(text).ok()?))
        };
        let (entity_id, parent_id, txn_id) = (text()?, text()?, text()?);
        let (name, uuid, create_time) = (text()?, text()?, text()?);
        let discarded = rest.first().is_some_and(|byte| *byte == 1);
        Some(Self { entity_id, parent_id, txn_id, name, uuid, create_time, discarded })
    }
}

/// A time as text: RFC 3339 in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct UnixTime {
    /// Seconds since the beginning of 1970.
    pub seconds: u64,
    /// And billionths of one, below 10^9.
    pub nanos: u32,
}

/// Days from 0000-03-01 to 1970-01-01 in the calendar in use now.
const EPOCH_DAYS: u64 = 719_468;
/// Days of 400 years.
const ERA_DAYS: u64 = 146_097;

impl UnixTime {
    /// As `2024-10-05T07:30:00.000000000Z`.
    pub fn text(&self) -> String {
        let (days, second) = (self.seconds / 86_400, self.seconds % 86_400);
        // Years begin in March here, so that the day of a leap year is the last of its year.
        let shifted = days + EPOCH_DAYS;
        let (era, day) = (shifted / ERA_DAYS, shifted % ERA_DAYS);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = era * 400 + year + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let nanos = self.nanos;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
    }

    /// Reads a time in UTC from 1970 to 9999, with a space or a `T` before the time of day, a fraction or none, and `Z`, `UTC` or
    /// `+00:00` at the end. `None`: it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (date, rest) = text.split_at_checked(10)?;
        let rest = rest.strip_prefix(['T', 't', ' '])?;
        let zone = ["Z", "z", " UTC", "+00:00"];
        let rest = zone.iter().find_map(|zone| rest.strip_suffix(zone))?;
        let (time, fraction) = rest.split_once('.').unwrap_or((rest, ""));
        let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
        let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
        let sane = (1970..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second <= 60;
        if !sane || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let year = year - u64::from(month <= 2);
        let month = if month > 2 { month - 3 } else { month + 9 };
        let (era, of_era) = (year / 400, year % 400);
        let day = (153 * month + 2) / 5 + day - 1 + of_era * 365 + of_era / 4 - of_era / 100;
        let days = (era * ERA_DAYS + day).checked_sub(EPOCH_DAYS)?;
        let nanos = format!("{fraction:0<9}").parse().ok()?;
        Some(Self { seconds: days * 86_400 + hour * 3600 + minute * 60 + second, nanos })
    }
}

/// Three numbers of fixed widths.
fn numbers(text: &str, separator: char, widths: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut number = |width: usize| -> Option<u64> {
        let part = parts.next()?;
        let plain = part.len() == width && part.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| part.parse().ok()).flatten()
    };
    let all = [number(widths[0])?, number(widths[1])?, number(widths[2])?];
    parts.next().is_none().then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Direction;

    #[test]
    fn directions_are_those_of_the_opcodes_and_none_is_used_twice() {
        use Direction::{ControllerToHost as ToHost, HostToController as FromHost};
        let expected = [FromHost, ToHost, FromHost, ToHost, Direction::None, ToHost, ToHost, ToHost, ToHost];
        assert_eq!(OPCODES.map(|o| Direction::of(o.get())), expected);
        let mut numbers = OPCODES.map(AdminOpcode::get);
        numbers.sort_unstable();
        assert!(numbers.windows(2).all(|w| w[0] < w[1]) && numbers[0] >= 0xc0);
    }

    #[test]
    fn questions_come_back_as_they_went() {
        let id = 0x0123_4567_89ab_cdef_0011_2233_4455_6677_u128;
        for asked in [
            Asked::Allocated,
            Asked::SincePosition { incarnation: id, number: u64::MAX - 5 },
            Asked::SinceMark(id),
            Asked::SinceSnapshot(!id),
        ] {
            let read = ReadRanges { asked, start_lba: 0x8877_6655_4433_2211 };
            assert_eq!(ReadRanges::decode(&read.sqe(Nsid(3))), Some(read));
        }
        assert_eq!(ReadRanges::decode(&Sqe::admin(READ_MARKS, Nsid(1))), None);
    }

    #[test]
    fn pages_of_ranges_hold_what_fits_and_nonsense_is_none() {
        let page =
            RangesPage { ranges: vec![(8, 8, true), (16, 1, false), (99, 1, true)], next_lba: Some(200) };
        let bytes = page.to_wire(200);
        assert_eq!(bytes.len(), 200);
        assert_eq!(RangesPage::parse(&bytes, 8), Some(page.clone()));
        assert_eq!(RangesPage::parse(&bytes, 9), None, "before the start");
        assert_eq!(RangesPage::parse(&bytes[..87], 0), None, "more entries than bytes");
        for (ranges, next_lba) in [
            (vec![(8, 0, true)], None),
            (vec![(8, 8, true), (15, 1, true)], None),
            (vec![(u64::MAX, 1, true)], None),
            (vec![(8, 8, true)], Some(15)),
            (vec![], Some(0)),
        ] {
            let wrong = RangesPage { ranges, next_lba };
            assert_eq!(RangesPage::parse(&wrong.to_wire(64), 0), None, "{wrong:?}");
        }
        let empty = RangesPage::default();
        assert_eq!(RangesPage::parse(&empty.to_wire(16), 5), Some(empty));
        assert_eq!(RangesPage::parse(&[0; 15], 0), None);
        assert_eq!((RangesPage::capacity(39), RangesPage::capacity(40)), (None, Some(1)));
        assert_eq!(RangesPage::capacity(131_072), Some(5460));
    }

    #[test]
    fn pages_of_marks_leave_out_the_oldest() {
        let page = MarksPage { incarnation: 7 << 100, number: 9, marks: vec![(u128::MAX, 8), (1, 3)] };
        let bytes = page.to_wire(4096).unwrap();
        assert_eq!(MarksPage::parse(&bytes), Some(page.clone()));
        let short = MarksPage::parse(&page.to_wire(79).unwrap()).unwrap();
        assert_eq!(short.marks, [(u128::MAX, 8)]);
        assert_eq!(page.to_wire(31), None);
        assert_eq!(MarksPage::parse(&bytes[..79]), None, "more entries than bytes");
    }

    #[test]
    fn a_snapshot_message_is_as_mayastor_writes_it() {
        let message = SnapshotMessage {
            entity_id: Some("e1"),
            txn_id: Some("7"),
            name: Some(""),
            discarded: true,
            ..SnapshotMessage::default()
        };
        let mut expected = vec![0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, b'e', b'1', 0];
        expected.extend([1, 1, 0, 0, 0, 0, 0, 0, 0, b'7', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(message.to_wire(), expected);
        assert_eq!(SnapshotMessage::parse(&expected), Some(message));
        let old = &expected[..expected.len() - 1];
        assert_eq!(SnapshotMessage::parse(old), Some(SnapshotMessage { discarded: false, ..message }));
        for len in 0..old.len() {
            assert_eq!(SnapshotMessage::parse(&expected[..len]), None, "cut at {len}");
        }
        let mut wrong = expected.clone();
        wrong[0] = 1;
        assert_eq!(SnapshotMessage::parse(&wrong), None, "another version");
        wrong = expected.clone();
        wrong[12] = 0xff;
        assert_eq!(SnapshotMessage::parse(&wrong), None, "a text longer than memory");
        wrong = expected;
        wrong[13] = 0xff;
        assert_eq!(SnapshotMessage::parse(&wrong), None, "no UTF-8");
        assert_eq!(SnapshotMessage::parse(&[0; 4097]), None, "too long");
    }

    #[test]
    fn times_are_text_and_back() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 5, "2000-02-29T00:00:00.000000005Z"),
            (1_728_113_400, 120_000_000, "2024-10-05T07:30:00.120000000Z"),
            (4_107_542_399, 999_999_999, "2100-02-28T23:59:59.999999999Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ] {
            let time = UnixTime { seconds, nanos };
            assert_eq!(time.text(), text);
            assert_eq!(UnixTime::parse(text), Some(time));
        }
        let plain = UnixTime { seconds: 1_728_113_400, nanos: 0 };
        assert_eq!(UnixTime::parse("2024-10-05 07:30:00 UTC"), Some(plain));
        assert_eq!(UnixTime::parse("2024-10-05T07:30:00+00:00"), Some(plain));
        for wrong in [
            "",
            "2024-10-05",
            "2024-13-05T07:30:00Z",
            "1969-10-05T07:30:00Z",
            "2024-10-05T07:30:00",
            "2024-10-05T07:30:00.x1Z",
            "2024-10-05T07:30:00.0123456789Z",
            "2024-10-5T07:30:00Z  ",
            "2024-1é-05T07:30:00Z",
        ] {
            assert_eq!(UnixTime::parse(wrong), None, "{wrong}");
        }
    }
}
