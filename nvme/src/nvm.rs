//! Command dwords and payloads of the NVM command set (NVM Command Set 1.0, section 3.2).
//!
//! Each command has a plain host-side struct with `decode` and `encode`; counts are one-based here and
//! zero-based only inside the dwords. Decoding never fails and never panics: what a field may be is checked
//! against the namespace by whoever executes the command.

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::command::{Nsid, NvmOpcode, Sqe};

bit_set! {
    /// CDW12 bits of Read, Write, Compare, Write Zeroes and Verify.
    RwFlags(u32 => U32) {
        STORAGE_TAG_CHECK = 1 << 24, "Storage Tag Check";
        DEALLOCATE = 1 << 25, "Deallocate (Write Zeroes)";
        PRCHK_REF = 1 << 26, "Check the reference tag";
        PRCHK_APP = 1 << 27, "Check the application tag";
        PRCHK_GUARD = 1 << 28, "Check the guard";
        PRACT = 1 << 29, "Protection Information Action";
        FUA = 1 << 30, "Force Unit Access";
        LIMITED_RETRY = 1 << 31, "Limited Retry";
    }
}

/// The arguments of Read, Write, Compare, Write Zeroes, Verify and Write Uncorrectable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rw {
    /// Starting LBA.
    pub slba: u64,
    /// Number of logical blocks, 1 to 65,536.
    pub len_blocks: u32,
    /// FUA, Deallocate and the like.
    pub flags: RwFlags,
    /// Directive Type (Write; CDW12 bits 23:20).
    pub dtype: u8,
    /// Dataset Management hints (CDW13 bits 7:0).
    pub dsm: u8,
    /// Directive Specific (CDW13 bits 31:16).
    pub dspec: u16,
    /// Initial or Expected Initial Logical Block Reference Tag (CDW14).
    pub reference_tag: u32,
    /// Application Tag (CDW15 bits 15:0).
    pub application_tag: u16,
    /// Application Tag Mask (CDW15 bits 31:16).
    pub application_tag_mask: u16,
}

impl Rw {
    /// A plain transfer of `len_blocks` (1 to 65,536) from `slba`.
    pub const fn new(slba: u64, len_blocks: u32) -> Self {
        Self {
            slba,
            len_blocks,
            flags: RwFlags::NONE,
            dtype: 0,
            dsm: 0,
            dspec: 0,
            reference_tag: 0,
            application_tag: 0,
            application_tag_mask: 0,
        }
    }

    /// The same with these flags added.
    pub const fn with(mut self, flags: RwFlags) -> Self {
        self.flags = self.flags.with(flags);
        self
    }

    /// Reads the dwords.
    pub const fn decode(sqe: &Sqe) -> Self {
        let (cdw12, cdw13, cdw15) = (sqe.cdw12.get(), sqe.cdw13.get(), sqe.cdw15.get());
        Self {
            slba: sqe.cdw10_11(),
            len_blocks: (cdw12 & 0xffff) + 1,
            flags: RwFlags::from_bits(cdw12 & 0xff00_0000),
            dtype: (cdw12 >> 20) as u8 & 0xf,
            dsm: cdw13 as u8,
            dspec: (cdw13 >> 16) as u16,
            reference_tag: sqe.cdw14.get(),
            application_tag: cdw15 as u16,
            application_tag_mask: (cdw15 >> 16) as u16,
        }
    }

    /// Writes the dwords. A length outside 1 to 65,536 is wrapped into 16 bits: check it before.
    pub fn encode(&self, sqe: &mut Sqe) {
        let nlb_z = self.len_blocks.wrapping_sub(1) & 0xffff;
        sqe.set_cdw10_11(self.slba);
        sqe.cdw12.set(nlb_z | (self.dtype as u32 & 0xf) << 20 | self.flags.bits() & 0xff00_0000);
        sqe.cdw13.set(self.dsm as u32 | (self.dspec as u32) << 16);
        sqe.cdw14.set(self.reference_tag);
        sqe.cdw15.set(self.application_tag as u32 | (self.application_tag_mask as u32) << 16);
    }

    /// A whole SQE for this opcode and namespace; CID and DPTR are left to the caller.
    pub fn sqe(&self, opcode: NvmOpcode, nsid: Nsid) -> Sqe {
        let mut sqe = Sqe::nvm(opcode, nsid);
        self.encode(&mut sqe);
        sqe
    }

    /// Force Unit Access.
    pub const fn fua(&self) -> bool {
        self.flags.contains(RwFlags::FUA)
    }

    /// Deallocate (Write Zeroes).
    pub const fn deallocate(&self) -> bool {
        self.flags.contains(RwFlags::DEALLOCATE)
    }

    /// Limited Retry.
    pub const fn limited_retry(&self) -> bool {
        self.flags.contains(RwFlags::LIMITED_RETRY)
    }

    /// PRINFO: PRACT and the three PRCHK bits as one number (CDW12 bits 29:26).
    pub const fn prinfo(&self) -> u8 {
        (self.flags.bits() >> 26) as u8 & 0xf
    }

    /// One past the last block, or `None` when that does not fit 64 bits.
    pub const fn end_lba(&self) -> Option<u64> {
        self.slba.checked_add(self.len_blocks as u64)
    }
}

bit_set! {
    /// Attributes of Dataset Management (CDW11).
    DsmFlags(u32 => U32) {
        INTEGRAL_READ = 1 << 0, "Integral Dataset for Read";
        INTEGRAL_WRITE = 1 << 1, "Integral Dataset for Write";
        DEALLOCATE = 1 << 2, "Deallocate";
    }
}

/// The arguments of Dataset Management.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dsm {
    /// Number of ranges, 1 to 256.
    pub ranges: u32,
    /// What to do.
    pub flags: DsmFlags,
}

impl Dsm {
    /// Reads the dwords.
    pub const fn decode(sqe: &Sqe) -> Self {
        Self { ranges: (sqe.cdw10.get() & 0xff) + 1, flags: DsmFlags::from_bits(sqe.cdw11.get()) }
    }

    /// A whole SQE; `ranges` outside 1 to 256 is wrapped: check it before.
    pub fn sqe(&self, nsid: Nsid) -> Sqe {
        let mut sqe = Sqe::nvm(NvmOpcode::DATASET_MANAGEMENT, nsid);
        sqe.cdw10.set(self.ranges.wrapping_sub(1) & 0xff);
        sqe.cdw11.set(self.flags.bits());
        sqe
    }

    /// Length of the range list in bytes.
    pub const fn data_len_bytes(&self) -> u32 {
        self.ranges * DsmRange::LEN_BYTES as u32
    }
}

wire_struct! {
    /// One range of Dataset Management.
    #[derive(Debug, PartialEq, Eq)]
    DsmRange, 16, {
        /// Context Attributes (hints).
        cattr: U32,
        /// Length in logical blocks; this one is not zero-based.
        len_blocks: U32,
        /// Starting LBA.
        slba: U64,
    }
}

impl DsmRange {
    /// A range without hints.
    pub const fn new(slba: u64, len_blocks: u32) -> Self {
        Self { cattr: U32::new(0), len_blocks: U32::new(len_blocks), slba: U64::new(slba) }
    }

    /// The whole ranges at the start of `bytes`, at most `count`; a part of a range at the end is left out.
    pub fn list(bytes: &[u8], count: usize) -> &[Self] {
        wire_list(bytes, count)
    }
}

bit_set! {
    /// CDW12 bits of Copy.
    CopyFlags(u32 => U32) {
        STORAGE_TAG_CHECK_WRITE = 1 << 24, "Storage Tag Check Write";
        STORAGE_TAG_CHECK_READ = 1 << 25, "Storage Tag Check Read";
        FUA = 1 << 30, "Force Unit Access";
        LIMITED_RETRY = 1 << 31, "Limited Retry";
    }
}

/// The arguments of Copy (without protection information).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// Starting Destination LBA.
    pub sdlba: u64,
    /// Number of source ranges, 1 to 256.
    pub ranges: u32,
    /// Descriptor Format: 0 is [`CopyRange0`], 1 is [`CopyRange1`].
    pub format: u8,
    /// FUA and the like.
    pub flags: CopyFlags,
}

impl Copy {
    /// Reads the dwords.
    pub const fn decode(sqe: &Sqe) -> Self {
        let cdw12 = sqe.cdw12.get();
        Self {
            sdlba: sqe.cdw10_11(),
            ranges: (cdw12 & 0xff) + 1,
            format: (cdw12 >> 8) as u8 & 0xf,
            flags: CopyFlags::from_bits(cdw12 & 0xff00_0000),
        }
    }

    /// A whole SQE; `ranges` outside 1 to 256 is wrapped: check it before.
    pub fn sqe(&self, nsid: Nsid) -> Sqe {
        let mut sqe = Sqe::nvm(NvmOpcode::COPY, nsid);
        sqe.set_cdw10_11(self.sdlba);
        sqe.cdw12.set(
            self.ranges.wrapping_sub(1) & 0xff
                | (self.format as u32 & 0xf) << 8
                | self.flags.bits() & 0xff00_0000,
        );
        sqe
    }

    /// Length of the range list in bytes, or `None` for a format that this crate does not know.
    pub const fn data_len_bytes(&self) -> Option<u32> {
        match self.format {
            0 => Some(self.ranges * CopyRange0::LEN_BYTES as u32),
            1 => Some(self.ranges * CopyRange1::LEN_BYTES as u32),
            _ => None,
        }
    }
}

wire_struct! {
    /// Source range of Copy, descriptor format 0: 32 bytes.
    #[derive(Debug, PartialEq, Eq)]
    CopyRange0, 32, {
        /// Reserved.
        reserved0: [u8; 8],
        /// Starting LBA.
        slba: U64,
        /// Number of logical blocks, zero-based.
        nlb_z: U16,
        /// Reserved.
        reserved18: [u8; 6],
        /// Expected Initial Logical Block Reference Tag.
        eilbrt: U32,
        /// Expected Logical Block Application Tag.
        elbat: U16,
        /// Expected Logical Block Application Tag Mask.
        elbatm: U16,
    }
}

impl CopyRange0 {
    /// A range of `len_blocks` (1 to 65,536) from `slba`.
    pub fn new(slba: u64, len_blocks: u32) -> Self {
        Self { slba: slba.into(), nlb_z: (len_blocks.wrapping_sub(1) as u16).into(), ..Self::zeroed() }
    }

    /// Number of logical blocks, 1 to 65,536.
    pub const fn len_blocks(&self) -> u32 {
        self.nlb_z.get() as u32 + 1
    }

    /// The whole ranges at the start of `bytes`, at most `count`.
    pub fn list(bytes: &[u8], count: usize) -> &[Self] {
        wire_list(bytes, count)
    }
}

wire_struct! {
    /// Source range of Copy, descriptor format 1 (for 32- and 64-bit guards): 40 bytes.
    #[derive(Debug, PartialEq, Eq)]
    CopyRange1, 40, {
        /// Reserved.
        reserved0: [u8; 8],
        /// Starting LBA.
        slba: U64,
        /// Number of logical blocks, zero-based.
        nlb_z: U16,
        /// Reserved.
        reserved18: [u8; 8],
        /// Expected Logical Block Storage and Reference Tag.
        elbt: [u8; 10],
        /// Expected Logical Block Application Tag.
        elbat: U16,
        /// Expected Logical Block Application Tag Mask.
        elbatm: U16,
    }
}

/// The whole elements at the start of `bytes`, at most `count`. Never panics.
pub(crate) fn wire_list<T>(bytes: &[u8], count: usize) -> &[T]
where
    T: FromBytes + zerocopy::Immutable + zerocopy::KnownLayout + zerocopy::Unaligned,
{
    let count = count.min(bytes.len() / size_of::<T>());
    match <[T]>::ref_from_prefix_with_elems(bytes, count) {
        Ok((list, _)) => list,
        Err(_) => &[],
    }
}
