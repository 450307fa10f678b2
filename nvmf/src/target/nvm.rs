//! Decoding and validation of I/O commands (NVM Command Set 1.0, section 3.2). Pure and hot: no allocation, no
//! lock. Every field that a host can set badly is judged here, once; what comes out fits the namespace.
//!
//! Reserved fields and bits that are hints (LR, DSM of Read and Write, context attributes) are ignored.

use aio::{BlockCount, BlockRange, Capabilities, IoFlags, Lba};
use nvme::command::{Fuse, Psdt};
use nvme::nvm::{Copy as CopyCommand, CopyRange0, Dsm, DsmFlags, DsmRange, Rw, RwFlags};
use nvme::reservation::Rights;
use nvme::sgl::Sgl;
use nvme::{NvmOpcode, Sqe, Status};

use super::ns::NsInfo;
use super::reserve::payload_of;

/// Most ranges of one Dataset Management command.
pub const MAX_DSM_RANGES: u32 = 256;

/// Most source ranges of one Copy command (MSRC + 1).
pub const MAX_COPY_RANGES: u32 = 128;

/// Most bytes that the data of Dataset Management or Copy takes: 256 ranges of 16 bytes, 128 of 32.
pub const MAX_LIST_BYTES: u32 = 4096;

/// What an I/O command does. Everything here is checked against the namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NvmOp {
    /// Device to host.
    Read,
    /// Host to device.
    Write,
    /// All completed writes become durable.
    Flush,
    /// No data; [`IoFlags::DEALLOCATE`] allows giving the space back.
    WriteZeroes,
    /// Host data compared with the device.
    Compare,
    /// Media is read and checked.
    Verify,
    /// The host sends this many 16-byte ranges, to be parsed by [`unmap_ranges`].
    Unmap {
        /// 1 to 256.
        ranges: u16,
    },
    /// The host sends this many 32-byte source ranges, to be parsed by [`copy_ranges`].
    Copy {
        /// 1 to 128.
        ranges: u16,
    },
    /// One of the four reservation commands: for the control side, which decodes it.
    Reservation,
    /// Nothing to do, with data to be taken and thrown away (advice that the device has no use for).
    Ignore,
}

/// Where the data of a command is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload {
    /// There is none.
    None,
    /// The controller sends it (C2HData).
    ToHost,
    /// The controller asks for it (R2T, H2CData).
    FromHost,
    /// It came with the command. The caller checks offset and length against the capsule that it received:
    /// [`in_capsule_fits`].
    InCapsule {
        /// From the start of in-capsule data.
        offset_bytes: u64,
    },
}

impl NvmOp {
    /// What a host needs to be allowed while there is a reservation.
    pub const fn needed(self) -> Rights {
        match self {
            Self::Read | Self::Compare | Self::Verify => Rights::READ,
            Self::Write
            | Self::Flush
            | Self::WriteZeroes
            | Self::Unmap { .. }
            // Dataset Management without an effect is that command all the same.
            | Self::Ignore => Rights::WRITE,
            Self::Copy { .. } => Rights::ALL,
            Self::Reservation => Rights::NONE,
        }
    }
}

/// Role in a fused operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fused {
    /// Alone.
    No,
    /// Compare of a Compare and Write: hold it until the next command of the queue.
    First,
    /// Write of a Compare and Write: legal only directly after a matching [`First`](Self::First).
    Second,
}

/// A valid I/O command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NvmCommand {
    /// What to do.
    pub op: NvmOp,
    /// First block (destination of a Copy).
    pub lba: Lba,
    /// Length; 0 where `op` does not use it.
    pub blocks: BlockCount,
    /// How: FUA, DEALLOCATE.
    pub flags: IoFlags,
    /// Length of the data in bytes; 0 without.
    pub len_bytes: u32,
    /// Where the data is.
    pub payload: Payload,
    /// Role in a fused operation.
    pub fused: Fused,
}

/// Decodes `sqe`, which names the namespace `ns`, and checks it against that namespace.
///
/// Not checked here, because they are the caller's business: whether the namespace exists
/// ([`Status::INVALID_NAMESPACE`]), its ANA state, the pairing of fused commands ([`fuse`]), and whether in-capsule
/// data really came ([`in_capsule_fits`]).
///
/// # Errors
/// The status to complete the command with.
#[inline]
pub fn decode(sqe: &Sqe, ns: &NsInfo) -> Result<NvmCommand, Status> {
    let opcode = sqe.nvm_opcode();
    let fused = fused_of(sqe, opcode)?;
    let mut command = match opcode {
        NvmOpcode::READ => transfer(sqe, ns, NvmOp::Read)?,
        NvmOpcode::WRITE => transfer(sqe, ns, NvmOp::Write)?,
        NvmOpcode::FLUSH => flush(),
        _ => decode_rare(sqe, ns, opcode)?,
    };
    command.fused = fused;
    Ok(command)
}

/// A Flush, of one namespace or (nsid FFFFFFFFh, NVM Command Set 1.0, section 3.2.3) of all.
pub const fn flush() -> NvmCommand {
    NvmCommand {
        op: NvmOp::Flush,
        lba: Lba(0),
        blocks: BlockCount(0),
        flags: IoFlags::empty(),
        len_bytes: 0,
        payload: Payload::None,
        fused: Fused::No,
    }
}

fn fused_of(sqe: &Sqe, opcode: NvmOpcode) -> Result<Fused, Status> {
    match (sqe.fuse(), opcode) {
        (Fuse::NORMAL, _) => Ok(Fused::No),
        (Fuse::FIRST, NvmOpcode::COMPARE) => Ok(Fused::First),
        (Fuse::SECOND, NvmOpcode::WRITE) => Ok(Fused::Second),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// Read, Write and Compare.
#[inline]
fn transfer(sqe: &Sqe, ns: &NsInfo, op: NvmOp) -> Result<NvmCommand, Status> {
    let rw = Rw::decode(sqe);
    let mut flags = range_flags(&rw, ns)?;
    if op == NvmOp::Write {
        writable(ns)?;
        flags.set(IoFlags::FUA, rw.fua() || ns.write_through);
    }
    let len_bytes = u64::from(rw.len_blocks) << ns.block_shift;
    if len_bytes > u64::from(ns.max_transfer_bytes) {
        return Err(Status::INVALID_FIELD);
    }
    let to_host = op == NvmOp::Read;
    let payload = payload(sqe, len_bytes as u32, to_host)?;
    Ok(NvmCommand {
        op,
        lba: Lba(rw.slba),
        blocks: BlockCount(u64::from(rw.len_blocks)),
        flags,
        len_bytes: len_bytes as u32,
        payload,
        fused: Fused::No,
    })
}

/// Checks range and protection information; returns FUA.
#[inline]
fn range_flags(rw: &Rw, ns: &NsInfo) -> Result<IoFlags, Status> {
    // No namespace of ours is formatted with protection information; asking for its check is an error (PRACT
    // and PRCHK), as asking for a storage tag check is.
    if rw.prinfo() != 0 || rw.flags.contains(RwFlags::STORAGE_TAG_CHECK) {
        return Err(Status::INVALID_FIELD);
    }
    match rw.end_lba() {
        Some(end) if end <= ns.size_blocks => (),
        _ => return Err(Status::LBA_OUT_OF_RANGE),
    }
    Ok(if rw.fua() { IoFlags::FUA } else { IoFlags::empty() })
}

fn writable(ns: &NsInfo) -> Result<(), Status> {
    let protected = ns.caps.contains(Capabilities::READ_ONLY);
    if protected { Err(Status::NAMESPACE_WRITE_PROTECTED) } else { Ok(()) }
}

fn needs(ns: &NsInfo, caps: Capabilities) -> Result<(), Status> {
    if ns.caps.contains(caps) { Ok(()) } else { Err(Status::INVALID_OPCODE) }
}

/// Judges the SGL descriptor of a command that transfers exactly `len_bytes` (TCP Transport 1.0, section 3.3:
/// one descriptor, in-capsule or transport data block; NVMe Base 2.0, section 4.1.2).
#[inline]
pub fn payload(sqe: &Sqe, len_bytes: u32, to_host: bool) -> Result<Payload, Status> {
    sgl_only(sqe)?;
    let (payload, stated) = descriptor(sqe, to_host)?;
    if stated == len_bytes { Ok(payload) } else { Err(Status::DATA_SGL_LENGTH_INVALID) }
}

#[inline]
fn sgl_only(sqe: &Sqe) -> Result<(), Status> {
    let sgl = matches!(sqe.psdt(), Psdt::SGL_BUFFER | Psdt::SGL_SEGMENT);
    if sgl { Ok(()) } else { Err(Status::INVALID_FIELD) }
}

/// Where the data is, and how much of it the host says there is.
#[inline]
fn descriptor(sqe: &Sqe, to_host: bool) -> Result<(Payload, u32), Status> {
    match sqe.sgl1().parse()? {
        Sgl::Transport { len_bytes } if to_host => Ok((Payload::ToHost, len_bytes)),
        Sgl::Transport { len_bytes } => Ok((Payload::FromHost, len_bytes)),
        Sgl::InCapsule { offset_bytes, len_bytes } if !to_host => {
            Ok((Payload::InCapsule { offset_bytes }, len_bytes))
        }
        _ => Err(Status::SGL_TYPE_INVALID),
    }
}

/// Judges the descriptor of a command that brings a list of `needed_bytes`. The host may send more, up to
/// [`MAX_LIST_BYTES`]: Linux sends a whole page with every Dataset Management. Returns what it sends.
fn list_payload(sqe: &Sqe, needed_bytes: u32) -> Result<(Payload, u32), Status> {
    sgl_only(sqe)?;
    let (payload, stated) = descriptor(sqe, false)?;
    let fits = (needed_bytes..=MAX_LIST_BYTES).contains(&stated);
    if fits { Ok((payload, stated)) } else { Err(Status::DATA_SGL_LENGTH_INVALID) }
}

/// Checks in-capsule data of `len_bytes` at `offset_bytes` against the `received_bytes` that followed the SQE.
///
/// # Errors
/// [`Status::SGL_OFFSET_INVALID`] when it starts outside, [`Status::DATA_SGL_LENGTH_INVALID`] when it ends outside.
#[inline]
pub fn in_capsule_fits(offset_bytes: u64, len_bytes: u32, received_bytes: u32) -> Result<u32, Status> {
    let offset = u32::try_from(offset_bytes).ok().filter(|o| *o <= received_bytes);
    let offset = offset.ok_or(Status::SGL_OFFSET_INVALID)?;
    if received_bytes - offset < len_bytes { Err(Status::DATA_SGL_LENGTH_INVALID) } else { Ok(offset) }
}

#[cold]
fn decode_rare(sqe: &Sqe, ns: &NsInfo, opcode: NvmOpcode) -> Result<NvmCommand, Status> {
    match opcode {
        NvmOpcode::COMPARE => {
            needs(ns, Capabilities::COMPARE)?;
            transfer(sqe, ns, NvmOp::Compare)
        }
        NvmOpcode::WRITE_ZEROES => {
            needs(ns, Capabilities::WRITE_ZEROES)?;
            writable(ns)?;
            let rw = Rw::decode(sqe);
            let mut command = without_data(&rw, ns, NvmOp::WriteZeroes)?;
            command.flags.set(IoFlags::DEALLOCATE, rw.deallocate());
            command.flags.set(IoFlags::FUA, rw.fua() || ns.write_through);
            Ok(command)
        }
        NvmOpcode::VERIFY => {
            needs(ns, Capabilities::VERIFY)?;
            without_data(&Rw::decode(sqe), ns, NvmOp::Verify)
        }
        NvmOpcode::DATASET_MANAGEMENT => dataset_management(sqe, ns),
        NvmOpcode::COPY => copy(sqe, ns),
        NvmOpcode::RESERVATION_REGISTER
        | NvmOpcode::RESERVATION_REPORT
        | NvmOpcode::RESERVATION_ACQUIRE
        | NvmOpcode::RESERVATION_RELEASE => {
            let (len_bytes, payload) = payload_of(sqe, ns.max_transfer_bytes)?;
            Ok(NvmCommand { op: NvmOp::Reservation, len_bytes, payload, ..flush() })
        }
        _ => Err(Status::INVALID_OPCODE),
    }
}

fn without_data(rw: &Rw, ns: &NsInfo, op: NvmOp) -> Result<NvmCommand, Status> {
    let flags = range_flags(rw, ns)?;
    let blocks = BlockCount(u64::from(rw.len_blocks));
    Ok(NvmCommand { op, lba: Lba(rw.slba), blocks, flags, ..flush() })
}

fn dataset_management(sqe: &Sqe, ns: &NsInfo) -> Result<NvmCommand, Status> {
    let dsm = Dsm::decode(sqe);
    let deallocates = dsm.flags.contains(DsmFlags::DEALLOCATE);
    if deallocates {
        writable(ns)?;
    }
    let (payload, len_bytes) = list_payload(sqe, dsm.data_len_bytes())?;
    // The other attributes are hints, and so is Deallocate to a device that cannot.
    let useful = deallocates && ns.caps.contains(Capabilities::UNMAP);
    let op = if useful { NvmOp::Unmap { ranges: dsm.ranges as u16 } } else { NvmOp::Ignore };
    Ok(NvmCommand { op, len_bytes, payload, ..flush() })
}

fn copy(sqe: &Sqe, ns: &NsInfo) -> Result<NvmCommand, Status> {
    needs(ns, Capabilities::COPY)?;
    writable(ns)?;
    let copy = CopyCommand::decode(sqe);
    // Format 1 is for protection information with large guards, which no namespace of ours has. PRINFOR and
    // PRINFOW (bits 15:12 and 29:26) ask for checks that there is nothing to check with.
    if copy.format != 0 || copy.flags.bits() & 0x3f00_0000 != 0 || sqe.cdw12.get() & 0xf000 != 0 {
        return Err(Status::INVALID_FIELD);
    }
    if copy.ranges > MAX_COPY_RANGES {
        return Err(Status::COMMAND_SIZE_LIMIT);
    }
    if copy.sdlba >= ns.size_blocks {
        return Err(Status::LBA_OUT_OF_RANGE);
    }
    let (payload, len_bytes) = list_payload(sqe, copy.ranges * CopyRange0::LEN_BYTES as u32)?;
    let fua = copy.flags.contains(nvme::nvm::CopyFlags::FUA) || ns.write_through;
    let flags = if fua { IoFlags::FUA } else { IoFlags::empty() };
    let op = NvmOp::Copy { ranges: copy.ranges as u16 };
    Ok(NvmCommand { op, lba: Lba(copy.sdlba), flags, len_bytes, payload, ..flush() })
}

/// Parses the ranges of a Dataset Management command into `out`, leaving out empty ones. All or nothing: a range
/// beyond the end of the namespace fails the command before anything was deallocated.
///
/// # Errors
/// [`Status::LBA_OUT_OF_RANGE`].
pub fn unmap_ranges(data: &[u8], ranges: u16, ns: &NsInfo, out: &mut Vec<BlockRange>) -> Result<(), Status> {
    out.clear();
    for range in DsmRange::list(data, usize::from(ranges)) {
        let range = BlockRange {
            start: Lba(range.slba.get()),
            blocks: BlockCount(u64::from(range.len_blocks.get())),
        };
        if !range.fits(BlockCount(ns.size_blocks)) {
            return Err(Status::LBA_OUT_OF_RANGE);
        }
        if range.blocks.0 > 0 {
            out.push(range);
        }
    }
    Ok(())
}

/// Parses the source ranges of a Copy command into `out`; returns the total length.
///
/// # Errors
/// [`Status::LBA_OUT_OF_RANGE`] for a source or the destination, [`Status::COMMAND_SIZE_LIMIT`] when it copies more
/// than [`copy_limit_blocks`].
pub fn copy_ranges(
    data: &[u8],
    ranges: u16,
    destination: Lba,
    ns: &NsInfo,
    out: &mut Vec<BlockRange>,
) -> Result<BlockCount, Status> {
    out.clear();
    let size = BlockCount(ns.size_blocks);
    let mut total = 0u64;
    for range in CopyRange0::list(data, usize::from(ranges)) {
        let blocks = u64::from(range.len_blocks());
        let range = BlockRange { start: Lba(range.slba.get()), blocks: BlockCount(blocks) };
        if !range.fits(size) {
            return Err(Status::LBA_OUT_OF_RANGE);
        }
        // At most 128 ranges of 65,536 blocks: cannot overflow.
        total += blocks;
        out.push(range);
    }
    let total = BlockCount(total);
    if total.0 > u64::from(copy_limit_blocks(ns)) {
        return Err(Status::COMMAND_SIZE_LIMIT);
    }
    if !(BlockRange { start: destination, blocks: total }).fits(size) {
        return Err(Status::LBA_OUT_OF_RANGE);
    }
    Ok(total)
}

/// Most blocks that one Copy moves (MCL), and that one of its ranges has (MSSRL).
pub fn copy_limit_blocks(ns: &NsInfo) -> u32 {
    (ns.max_transfer_bytes >> ns.block_shift).min(u32::from(u16::MAX))
}

/// Judges whether `second` completes the fused operation that `first` began (NVM Command Set 1.0, section 2.1.2.1:
/// same namespace is the caller's check; both halves have the same range).
///
/// # Errors
/// [`Status::INVALID_FIELD`] for both when the ranges differ, [`Status::INVALID_OPCODE`] when the device has no
/// atomic Compare and Write.
pub fn fuse(first: &NvmCommand, second: &NvmCommand, ns: &NsInfo) -> Result<(), Status> {
    needs(ns, Capabilities::COMPARE_AND_WRITE)?;
    let same = first.lba == second.lba && first.blocks == second.blocks;
    if same { Ok(()) } else { Err(Status::INVALID_FIELD) }
}
