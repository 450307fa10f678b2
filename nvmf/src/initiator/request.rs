//! What one block-device I/O becomes on the wire: one command, a fused pair, or one command after the other.

use aio::{BlockCount, BlockRange, Capabilities, Io, IoFlags, Lba, Opcode, SgEntry, Token};
use nvme::nvm::{Dsm, DsmFlags, DsmRange, Rw, RwFlags};
use nvme::{Nsid, NvmOpcode, Sqe, Status};

/// What the controller takes in one command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    /// The namespace.
    pub(super) nsid: Nsid,
    /// Blocks of one Read, Write or Compare.
    pub(super) transfer_blocks: u32,
    /// Blocks of one Write Zeroes, 1 to 65,536.
    pub(super) zeroes_blocks: u32,
    /// Blocks of one Verify, 1 to 65,536.
    pub(super) verify_blocks: u32,
    /// Ranges of one Dataset Management, 1 to 256.
    pub(super) dsm_ranges: u32,
    /// Blocks of one range of it.
    pub(super) dsm_range_blocks: u32,
    /// Blocks of all its ranges together.
    pub(super) dsm_blocks: u64,
    /// What the device does.
    pub(super) capabilities: Capabilities,
}

impl Limits {
    /// Every command within `other` is within these too.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.transfer_blocks >= other.transfer_blocks
            && self.zeroes_blocks >= other.zeroes_blocks
            && self.verify_blocks >= other.verify_blocks
            && self.dsm_ranges >= other.dsm_ranges
            && self.dsm_range_blocks >= other.dsm_range_blocks
            && self.dsm_blocks >= other.dsm_blocks
    }
}

/// What is left to be sent for a request.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// Nothing.
    Done,
    /// One command that moves the caller's payload (or nothing, for Flush).
    One(Sqe),
    /// Commands without data over the rest of a span.
    Span { opcode: NvmOpcode, flags: RwFlags, lba: u64, left: u64, step: u32 },
    /// Dataset Management over the ranges from `index` on, of which `skip` blocks were sent.
    Ranges { index: usize, skip: u64 },
}

/// Where a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Not in use, or with its completion on the way out.
    Idle,
    /// Commands of it are in flight, or the next one waits for room on the same path.
    Path(u8),
    /// It waits for a path.
    Waiting,
    /// It was in flight on a path that ended, and that may still execute it.
    Held(u8),
}

/// One accepted I/O, with all that is needed to send it again.
#[derive(Debug)]
pub(super) struct Request {
    /// The caller's name for it.
    pub(super) token: Token,
    pub(super) place: Place,
    /// Commands in flight.
    pub(super) commands: u8,
    /// How often it was begun.
    pub(super) attempts: u8,
    /// Its path ended before the answer came.
    pub(super) lost: bool,
    /// The first error, else success.
    pub(super) status: Status,
    work: Work,
    opcode: Opcode,
    flags: IoFlags,
    lba: Lba,
    blocks: BlockCount,
    sg: Vec<SgEntry>,
    second: Vec<SgEntry>,
    ranges: Vec<BlockRange>,
    /// The descriptors of the Dataset Management in flight; the command's payload.
    descriptors: Vec<DsmRange>,
}

/// A command to issue.
pub(super) struct Command {
    /// The entry; the queue fills in CID and SGL.
    pub(super) sqe: Sqe,
    /// Where its data is.
    pub(super) payload: Payload,
}

/// Where the data of a command is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Payload {
    /// No data.
    None,
    /// The caller's list, host to controller.
    Out,
    /// The caller's list, controller to host.
    In,
    /// [`Request::descriptors`].
    Descriptors,
}

impl Request {
    pub(super) fn new() -> Self {
        Self {
            token: Token(0),
            place: Place::Idle,
            commands: 0,
            attempts: 0,
            lost: false,
            status: Status::SUCCESS,
            work: Work::Done,
            opcode: Opcode::Flush,
            flags: IoFlags::empty(),
            lba: Lba(0),
            blocks: BlockCount(0),
            sg: Vec::new(),
            second: Vec::new(),
            ranges: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// Takes in an `io` that may still be refused.
    pub(super) fn accept(&mut self, token: Token) {
        self.token = token;
        self.place = Place::Idle;
        self.commands = 0;
        self.attempts = 0;
        self.lost = false;
        self.status = Status::SUCCESS;
        self.work = Work::Done;
    }

    /// Keeps a valid `io`. The lists keep their capacity from I/O to I/O.
    #[inline]
    pub(super) fn keep(&mut self, io: &Io<'_>) {
        (self.opcode, self.flags, self.lba, self.blocks) = (io.opcode, io.flags, io.lba, io.blocks);
        self.sg.clear();
        self.sg.extend_from_slice(io.sg);
        match io.opcode {
            Opcode::CompareAndWrite => {
                self.second.clear();
                self.second.extend_from_slice(io.second);
            }
            Opcode::Unmap => {
                self.ranges.clear();
                self.ranges.extend_from_slice(io.ranges);
            }
            _ => {}
        }
    }

    /// The I/O as it was taken in.
    #[inline]
    pub(super) fn io(&self) -> Io<'_> {
        Io {
            flags: self.flags,
            sg: &self.sg,
            second: &self.second,
            ranges: &self.ranges,
            ..Io::new(self.opcode, self.lba, self.blocks)
        }
    }

    /// A fused pair, which goes out as one.
    #[inline]
    pub(super) fn is_pair(&self) -> bool {
        self.opcode == Opcode::CompareAndWrite && self.blocks.0 > 0
    }

    /// Whether it changes blocks: then it must not be sent again while an earlier copy may still be executed. A Flush
    /// changes none, and has to come after the writes before it, which it does wherever it goes.
    pub(super) fn changes(&self) -> bool {
        matches!(
            self.opcode,
            Opcode::Write | Opcode::WriteZeroes | Opcode::Unmap | Opcode::CompareAndWrite | Opcode::Copy
        )
    }

    /// Whether doing it twice is the same as doing it once. The second of two equal Compare and Writes finds what the first
    /// one wrote.
    pub(super) fn can_be_repeated(&self) -> bool {
        !matches!(self.opcode, Opcode::CompareAndWrite | Opcode::Copy)
    }

    /// Begins it, for the first time or anew.
    #[inline]
    pub(super) fn begin(&mut self, limits: &Limits) {
        self.commands = 0;
        self.attempts = self.attempts.saturating_add(1);
        self.lost = false;
        self.status = Status::SUCCESS;
        let flags = flags((self.opcode, self.flags), limits);
        let (lba, blocks) = (self.lba.0, self.blocks.0);
        let span = |opcode, step| Work::Span { opcode, flags, lba, left: blocks, step };
        let one = |opcode| Work::One(transfer((lba, blocks), opcode, flags, limits));
        self.work = match self.opcode {
            Opcode::Flush => Work::One(Sqe::nvm(NvmOpcode::FLUSH, limits.nsid)),
            Opcode::Unmap => Work::Ranges { index: 0, skip: 0 },
            Opcode::WriteZeroes => span(NvmOpcode::WRITE_ZEROES, limits.zeroes_blocks),
            Opcode::Verify => span(NvmOpcode::VERIFY, limits.verify_blocks),
            _ if blocks == 0 => Work::Done,
            Opcode::Read => one(NvmOpcode::READ),
            Opcode::Write => one(NvmOpcode::WRITE),
            Opcode::Compare => one(NvmOpcode::COMPARE),
            // Compare and Write goes through `fused`; Copy is no capability of this device.
            Opcode::CompareAndWrite | Opcode::Copy => Work::Done,
        };
    }

    /// The next command, if anything is left to be sent.
    pub(super) fn next(&mut self, limits: &Limits) -> Option<Command> {
        match self.work {
            Work::Done => None,
            Work::One(sqe) => {
                self.work = Work::Done;
                let payload = match sqe.nvm_opcode() {
                    NvmOpcode::FLUSH => Payload::None,
                    NvmOpcode::READ => Payload::In,
                    _ => Payload::Out,
                };
                Some(Command { sqe, payload })
            }
            Work::Span { left: 0, .. } => {
                self.work = Work::Done;
                None
            }
            Work::Span { opcode, flags, lba, left, step } => {
                let blocks = left.min(u64::from(step));
                // The span was checked against the size of the device, so `lba + left` does not overflow.
                self.work = Work::Span { opcode, flags, lba: lba + blocks, left: left - blocks, step };
                let sqe = Rw::new(lba, blocks as u32).with(flags).sqe(opcode, limits.nsid);
                Some(Command { sqe, payload: Payload::None })
            }
            Work::Ranges { index, skip } => self.next_ranges(index, skip, limits),
        }
    }

    /// True when the last command was issued.
    pub(super) fn exhausted(&self) -> bool {
        match self.work {
            Work::Done | Work::Span { left: 0, .. } => true,
            Work::Ranges { index, .. } => self.ranges[index..].iter().all(|r| r.blocks.0 == 0),
            _ => false,
        }
    }

    /// The payload of the Dataset Management in flight.
    pub(super) fn descriptors(&self) -> &[DsmRange] {
        &self.descriptors
    }

    fn next_ranges(&mut self, mut index: usize, mut skip: u64, limits: &Limits) -> Option<Command> {
        self.descriptors.clear();
        let mut room_blocks = limits.dsm_blocks;
        while let Some(range) = self.ranges.get(index) {
            let left = range.blocks.0 - skip;
            if left == 0 {
                (index, skip) = (index + 1, 0);
                continue;
            }
            let blocks = left.min(u64::from(limits.dsm_range_blocks)).min(room_blocks);
            if blocks == 0 || self.descriptors.len() == limits.dsm_ranges as usize {
                break;
            }
            self.descriptors.push(DsmRange::new(range.start.0 + skip, blocks as u32));
            room_blocks -= blocks;
            skip += blocks;
        }
        self.work = Work::Ranges { index, skip };
        if self.descriptors.is_empty() {
            self.work = Work::Done;
            return None;
        }
        let dsm = Dsm { ranges: self.descriptors.len() as u32, flags: DsmFlags::DEALLOCATE };
        Some(Command { sqe: dsm.sqe(limits.nsid), payload: Payload::Descriptors })
    }
}

/// The two commands of a Compare and Write (NVM Command Set 1.0, section 2.1.3): to be issued one right after
/// the other.
pub(super) fn fused(request: &Request, limits: &Limits) -> [Sqe; 2] {
    let flags = flags((request.opcode, request.flags), limits);
    let at = (request.lba.0, request.blocks.0);
    let mut compare = transfer(at, NvmOpcode::COMPARE, flags, limits);
    let mut write = transfer(at, NvmOpcode::WRITE, flags, limits);
    compare.set_fuse(nvme::command::Fuse::FIRST);
    write.set_fuse(nvme::command::Fuse::SECOND);
    [compare, write]
}

/// The status of a fused pair: the compare decides; the write is aborted when the compare failed, which says
/// nothing of its own.
pub(super) fn fused_status(first: Status, later: Status) -> Status {
    let abort = Status::ABORTED_FAILED_FUSED;
    if first.is_success() || (first.is(abort) && !later.is_success()) { later } else { first }
}

fn transfer((lba, blocks): (u64, u64), opcode: NvmOpcode, flags: RwFlags, limits: &Limits) -> Sqe {
    Rw::new(lba, blocks as u32).with(flags).sqe(opcode, limits.nsid)
}

fn flags((opcode, flags): (Opcode, IoFlags), limits: &Limits) -> RwFlags {
    // Without a volatile cache every write is FUA, and a controller need not take the bit then.
    let fua = flags.contains(IoFlags::FUA) && limits.capabilities.contains(Capabilities::FUA);
    let deallocate = opcode == Opcode::WriteZeroes && flags.contains(IoFlags::DEALLOCATE);
    RwFlags::NONE.with_if(RwFlags::FUA, fua).with_if(RwFlags::DEALLOCATE, deallocate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        nsid: Nsid(3),
        transfer_blocks: 256,
        zeroes_blocks: 10,
        verify_blocks: 65_536,
        dsm_ranges: 2,
        dsm_range_blocks: 100,
        dsm_blocks: 150,
        capabilities: Capabilities::FUA,
    };

    fn begin(request: &mut Request, io: &Io<'_>, limits: &Limits) {
        request.accept(Token(7));
        request.keep(io);
        request.begin(limits);
    }

    #[test]
    fn an_io_comes_back_as_it_was() {
        let ranges = [BlockRange { start: Lba(1), blocks: BlockCount(2) }];
        let mut request = Request::new();
        begin(&mut request, &Io::unmap(&ranges), &LIMITS);
        assert!(request.next(&LIMITS).is_some() && request.exhausted());
        assert_eq!(request.io().ranges, ranges);
        request.begin(&LIMITS);
        assert!(request.next(&LIMITS).is_some(), "all of it again");
        assert_eq!(request.attempts, 2);
        assert!(request.changes() && request.can_be_repeated());
        request.keep(&Io::new(Opcode::CompareAndWrite, Lba(0), BlockCount(1)));
        assert!(request.changes() && request.is_pair() && !request.can_be_repeated());
        request.keep(&Io::flush());
        assert!(!request.changes() && request.can_be_repeated());
    }

    fn commands(io: &Io<'_>) -> Vec<Sqe> {
        let mut request = Request::new();
        begin(&mut request, io, &LIMITS);
        let mut out = Vec::new();
        while let Some(command) = request.next(&LIMITS) {
            out.push(command.sqe);
        }
        assert!(request.exhausted());
        out
    }

    #[test]
    fn long_spans_are_cut() {
        let io = Io::new(Opcode::WriteZeroes, Lba(5), BlockCount(25)).with_flags(IoFlags::DEALLOCATE);
        let pieces: Vec<_> = commands(&io).iter().map(Rw::decode).collect();
        assert_eq!(
            pieces.iter().map(|p| (p.slba, p.len_blocks)).collect::<Vec<_>>(),
            [(5, 10), (15, 10), (25, 5)]
        );
        assert!(pieces.iter().all(Rw::deallocate));
        assert!(commands(&Io::new(Opcode::WriteZeroes, Lba(5), BlockCount(0))).is_empty());
    }

    #[test]
    fn ranges_are_cut_by_every_limit() {
        let range = |start, blocks| BlockRange { start: Lba(start), blocks: BlockCount(blocks) };
        let ranges = [range(0, 250), range(1000, 0), range(2000, 10), range(3000, 10), range(4000, 10)];
        let mut request = Request::new();
        begin(&mut request, &Io::unmap(&ranges), &LIMITS);
        let mut seen = Vec::new();
        while let Some(command) = request.next(&LIMITS) {
            let list = request.descriptors();
            assert_eq!(Dsm::decode(&command.sqe).ranges as usize, list.len());
            seen.push(list.iter().map(|d| (d.slba.get(), d.len_blocks.get())).collect::<Vec<_>>());
        }
        assert_eq!(
            seen,
            [vec![(0, 100), (100, 50)], vec![(150, 100), (2000, 10)], vec![(3000, 10), (4000, 10)],]
        );
        assert!(request.exhausted());
    }

    #[test]
    fn fua_only_where_the_controller_has_it() {
        let io = Io::write(Lba(1), BlockCount(2), &[]).with_flags(IoFlags::FUA);
        assert!(Rw::decode(&commands(&io)[0]).fua());
        let limits = Limits { capabilities: Capabilities::empty(), ..LIMITS };
        let mut request = Request::new();
        begin(&mut request, &io, &limits);
        assert!(!Rw::decode(&request.next(&limits).unwrap().sqe).fua());
    }

    #[test]
    fn the_compare_decides() {
        let abort = Status::ABORTED_FAILED_FUSED;
        assert_eq!(fused_status(Status::COMPARE_FAILURE, abort), Status::COMPARE_FAILURE);
        assert_eq!(fused_status(abort, Status::COMPARE_FAILURE), Status::COMPARE_FAILURE);
        assert_eq!(fused_status(Status::SUCCESS, Status::WRITE_FAULT), Status::WRITE_FAULT);
        assert_eq!(fused_status(abort, Status::SUCCESS), abort);
        assert_eq!(fused_status(Status::SUCCESS, Status::SUCCESS), Status::SUCCESS);
    }
}
