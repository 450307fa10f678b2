//! Submission and completion queue entries, opcodes, identifiers (NVMe Base 2.0, sections 3.3.3.1, 3.3.3.2, 5).

use core::fmt;

use zerocopy::little_endian::{U16, U32, U64};

use crate::Status;
use crate::sgl::SglDescriptor;

macro_rules! identifier {
    ($(#[$meta:meta])* $name:ident($native:ty)) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub $native);

        impl $name {
            /// The number.
            pub const fn get(self) -> $native {
                self.0
            }
        }

        impl From<$native> for $name {
            fn from(value: $native) -> Self {
                Self(value)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }
    };
}

identifier! {
    /// Command Identifier: unique among the commands in flight on one submission queue.
    Cid(u16)
}
identifier! {
    /// Queue Identifier: 0 is the admin queue.
    Qid(u16)
}
identifier! {
    /// Namespace Identifier: 0 = none, FFFFFFFFh = all (section 3.2.1).
    Nsid(u32)
}
identifier! {
    /// Controller Identifier: unique within the NVM subsystem.
    Cntlid(u16)
}

impl Cid {
    /// FFFFh: reserved for the error log (section 3.3.3.1: "should not be used").
    pub const NONE: Self = Self(0xffff);
}

impl Qid {
    /// The admin queue.
    pub const ADMIN: Self = Self(0);

    /// True for the admin queue.
    pub const fn is_admin(self) -> bool {
        self.0 == 0
    }
}

impl Nsid {
    /// No namespace.
    pub const NONE: Self = Self(0);
    /// Every namespace attached to the controller.
    pub const BROADCAST: Self = Self(0xffff_ffff);
    /// The largest number that can name a namespace (FFFFFFFEh).
    pub const MAX: Self = Self(0xffff_fffe);

    /// True for a number that can name one namespace (neither 0 nor broadcast).
    pub const fn is_one(self) -> bool {
        self.0 != 0 && self.0 != u32::MAX
    }
}

impl Cntlid {
    /// In Connect: any static controller the subsystem chooses (section 6.3).
    pub const ANY_STATIC: Self = Self(0xfffe);
    /// In Connect: the dynamic controller model.
    pub const DYNAMIC: Self = Self(0xffff);
    /// The largest identifier that a controller may have (FFEFh).
    pub const MAX: Self = Self(0xffef);
}

open_codes! {
    /// Opcodes of the admin command set. Bits 1:0 give the direction of data.
    AdminOpcode(u8 => u8) {
        DELETE_SQ = 0x00, "Delete I/O Submission Queue";
        CREATE_SQ = 0x01, "Create I/O Submission Queue";
        GET_LOG_PAGE = 0x02, "Get Log Page";
        DELETE_CQ = 0x04, "Delete I/O Completion Queue";
        CREATE_CQ = 0x05, "Create I/O Completion Queue";
        IDENTIFY = 0x06, "Identify";
        ABORT = 0x08, "Abort";
        SET_FEATURES = 0x09, "Set Features";
        GET_FEATURES = 0x0a, "Get Features";
        ASYNC_EVENT_REQUEST = 0x0c, "Asynchronous Event Request";
        NAMESPACE_MANAGEMENT = 0x0d, "Namespace Management";
        FIRMWARE_COMMIT = 0x10, "Firmware Commit";
        FIRMWARE_DOWNLOAD = 0x11, "Firmware Image Download";
        DEVICE_SELF_TEST = 0x14, "Device Self-test";
        NAMESPACE_ATTACHMENT = 0x15, "Namespace Attachment";
        KEEP_ALIVE = 0x18, "Keep Alive";
        DIRECTIVE_SEND = 0x19, "Directive Send";
        DIRECTIVE_RECEIVE = 0x1a, "Directive Receive";
        VIRTUALIZATION_MANAGEMENT = 0x1c, "Virtualization Management";
        MI_SEND = 0x1d, "NVMe-MI Send";
        MI_RECEIVE = 0x1e, "NVMe-MI Receive";
        CAPACITY_MANAGEMENT = 0x20, "Capacity Management";
        LOCKDOWN = 0x24, "Lockdown";
        DOORBELL_BUFFER_CONFIG = 0x7c, "Doorbell Buffer Config";
        FABRICS = 0x7f, "Fabrics Command";
        FORMAT_NVM = 0x80, "Format NVM";
        SECURITY_SEND = 0x81, "Security Send";
        SECURITY_RECEIVE = 0x82, "Security Receive";
        SANITIZE = 0x84, "Sanitize";
        GET_LBA_STATUS = 0x86, "Get LBA Status";
    }
}

open_codes! {
    /// Opcodes of the NVM command set (NVM Command Set 1.0; Base 2.0).
    NvmOpcode(u8 => u8) {
        FLUSH = 0x00, "Flush";
        WRITE = 0x01, "Write";
        READ = 0x02, "Read";
        WRITE_UNCORRECTABLE = 0x04, "Write Uncorrectable";
        COMPARE = 0x05, "Compare";
        WRITE_ZEROES = 0x08, "Write Zeroes";
        DATASET_MANAGEMENT = 0x09, "Dataset Management";
        VERIFY = 0x0c, "Verify";
        RESERVATION_REGISTER = 0x0d, "Reservation Register";
        RESERVATION_REPORT = 0x0e, "Reservation Report";
        RESERVATION_ACQUIRE = 0x11, "Reservation Acquire";
        RESERVATION_RELEASE = 0x15, "Reservation Release";
        COPY = 0x19, "Copy";
        FABRICS = 0x7f, "Fabrics Command";
    }
}

/// Which way the data of a command goes (opcode bits 1:0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// No data.
    None,
    /// From the host to the controller (write-like).
    HostToController,
    /// From the controller to the host (read-like).
    ControllerToHost,
    /// Both ways; no standard command does.
    Both,
}

impl Direction {
    /// The direction that the opcode (or, for Fabrics commands, the FCTYPE) states in its bits 1:0.
    pub const fn of(opcode: u8) -> Self {
        match opcode & 3 {
            0 => Self::None,
            1 => Self::HostToController,
            2 => Self::ControllerToHost,
            _ => Self::Both,
        }
    }
}

open_codes! {
    /// Fused operation (SQE byte 1 bits 1:0).
    Fuse(u8 => u8) {
        NORMAL = 0, "Normal operation";
        FIRST = 1, "Fused operation, first command";
        SECOND = 2, "Fused operation, second command";
    }
}

open_codes! {
    /// How DPTR and MPTR are written (SQE byte 1 bits 7:6).
    Psdt(u8 => u8) {
        PRP = 0, "PRPs";
        SGL_BUFFER = 1, "SGL, MPTR is one contiguous buffer";
        SGL_SEGMENT = 2, "SGL, MPTR is an SGL segment";
    }
}

wire_struct! {
    /// Submission Queue Entry: 64 bytes (figure 87).
    Sqe, 64, {
        /// Opcode; what it means depends on the queue ([`AdminOpcode`], [`NvmOpcode`]).
        opcode: u8,
        /// FUSE in bits 1:0, PSDT in bits 7:6.
        flags: u8,
        /// Command Identifier.
        cid: U16,
        /// Namespace Identifier. In a Fabrics command byte 4 is FCTYPE and the rest is reserved.
        nsid: U32,
        /// Command dword 2.
        cdw2: U32,
        /// Command dword 3.
        cdw3: U32,
        /// Metadata Pointer.
        mptr: U64,
        /// Data Pointer: two PRP entries or one SGL descriptor.
        dptr: [u8; 16],
        /// Command dword 10.
        cdw10: U32,
        /// Command dword 11.
        cdw11: U32,
        /// Command dword 12.
        cdw12: U32,
        /// Command dword 13.
        cdw13: U32,
        /// Command dword 14.
        cdw14: U32,
        /// Command dword 15.
        cdw15: U32,
    }
}

impl Sqe {
    /// An admin command with everything else zero and an SGL in DPTR, as fabrics require (PSDT 01b).
    pub fn admin(opcode: AdminOpcode, nsid: Nsid) -> Self {
        Self { opcode: opcode.get(), flags: 1 << 6, nsid: nsid.0.into(), ..Self::zeroed() }
    }

    /// An I/O command of the NVM command set, everything else zero, PSDT 01b.
    pub fn nvm(opcode: NvmOpcode, nsid: Nsid) -> Self {
        Self { opcode: opcode.get(), flags: 1 << 6, nsid: nsid.0.into(), ..Self::zeroed() }
    }

    /// The opcode as an admin queue reads it.
    pub const fn admin_opcode(&self) -> AdminOpcode {
        AdminOpcode::new(self.opcode)
    }

    /// The opcode as an I/O queue of the NVM command set reads it.
    pub const fn nvm_opcode(&self) -> NvmOpcode {
        NvmOpcode::new(self.opcode)
    }

    /// True for a Fabrics command (opcode 7Fh).
    pub const fn is_fabrics(&self) -> bool {
        self.opcode == 0x7f
    }

    /// Which way the data goes. For Fabrics commands FCTYPE says it.
    pub const fn direction(&self) -> Direction {
        let code = if self.is_fabrics() { self.nsid.get() as u8 } else { self.opcode };
        Direction::of(code)
    }

    /// Fused operation.
    pub const fn fuse(&self) -> Fuse {
        Fuse::new(self.flags & 3)
    }

    /// Sets the fused operation.
    pub fn set_fuse(&mut self, fuse: Fuse) {
        self.flags = self.flags & !3 | fuse.get() & 3;
    }

    /// PRP or SGL for data transfer.
    pub const fn psdt(&self) -> Psdt {
        Psdt::new(self.flags >> 6)
    }

    /// Sets PRP or SGL for data transfer.
    pub fn set_psdt(&mut self, psdt: Psdt) {
        self.flags = self.flags & 0x3f | psdt.get() << 6;
    }

    /// Command Identifier.
    pub const fn cid(&self) -> Cid {
        Cid(self.cid.get())
    }

    /// Sets the Command Identifier.
    pub fn set_cid(&mut self, cid: Cid) {
        self.cid.set(cid.0);
    }

    /// Namespace Identifier.
    pub const fn nsid(&self) -> Nsid {
        Nsid(self.nsid.get())
    }

    /// DPTR as an SGL descriptor.
    pub fn sgl1(&self) -> SglDescriptor {
        SglDescriptor::from_wire(self.dptr)
    }

    /// Writes DPTR as an SGL descriptor.
    pub fn set_sgl1(&mut self, sgl: SglDescriptor) {
        self.dptr = sgl.to_wire();
    }

    /// DPTR as two PRP entries.
    pub fn prps(&self) -> [u64; 2] {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.dptr[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        [word(0), word(8)]
    }

    /// Writes DPTR as two PRP entries.
    pub fn set_prps(&mut self, prps: [u64; 2]) {
        self.dptr[..8].copy_from_slice(&prps[0].to_le_bytes());
        self.dptr[8..].copy_from_slice(&prps[1].to_le_bytes());
    }

    /// Command dwords 10 and 11 as one 64-bit number (SLBA and the like).
    pub const fn cdw10_11(&self) -> u64 {
        self.cdw10.get() as u64 | (self.cdw11.get() as u64) << 32
    }

    /// Writes command dwords 10 and 11 as one 64-bit number.
    pub fn set_cdw10_11(&mut self, value: u64) {
        self.cdw10.set(value as u32);
        self.cdw11.set((value >> 32) as u32);
    }
}

impl fmt::Debug for Sqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqe")
            .field("opcode", &format_args!("{:#04x}", self.opcode))
            .field("flags", &format_args!("{:#04x}", self.flags))
            .field("cid", &self.cid.get())
            .field("nsid", &format_args!("{:#x}", self.nsid.get()))
            .field("dptr", &self.sgl1())
            .field(
                "cdw10_15",
                &format_args!(
                    "[{:#x}, {:#x}, {:#x}, {:#x}, {:#x}, {:#x}]",
                    self.cdw10.get(),
                    self.cdw11.get(),
                    self.cdw12.get(),
                    self.cdw13.get(),
                    self.cdw14.get(),
                    self.cdw15.get()
                ),
            )
            .finish()
    }
}

wire_struct! {
    /// Completion Queue Entry: 16 bytes.
    Cqe, 16, {
        /// Command specific result, dword 0.
        dw0: U32,
        /// Command specific result, dword 1.
        dw1: U32,
        /// Submission Queue Head Pointer.
        sqhd: U16,
        /// Submission Queue Identifier; reserved over fabrics.
        sqid: U16,
        /// Command Identifier of the command that completed.
        cid: U16,
        /// Phase Tag in bit 0 (reserved over fabrics), status in bits 15:1.
        status: U16,
    }
}

impl Cqe {
    /// A completion with a 64-bit result; SQHD, SQID and phase zero.
    pub const fn new(cid: Cid, status: Status, result: u64) -> Self {
        Self {
            dw0: U32::new(result as u32),
            dw1: U32::new((result >> 32) as u32),
            sqhd: U16::new(0),
            sqid: U16::new(0),
            cid: U16::new(cid.0),
            status: U16::new(status.bits() << 1),
        }
    }

    /// Command Identifier.
    pub const fn cid(&self) -> Cid {
        Cid(self.cid.get())
    }

    /// Status without the phase tag.
    pub const fn status(&self) -> Status {
        Status::from_bits(self.status.get() >> 1)
    }

    /// Sets the status; the phase tag stays.
    pub fn set_status(&mut self, status: Status) {
        self.status.set(status.bits() << 1 | self.status.get() & 1);
    }

    /// Phase Tag.
    pub const fn phase(&self) -> bool {
        self.status.get() & 1 != 0
    }

    /// Sets the Phase Tag.
    pub fn set_phase(&mut self, phase: bool) {
        self.status.set(self.status.get() & !1 | phase as u16);
    }

    /// Dwords 0 and 1 as one number.
    pub const fn result(&self) -> u64 {
        self.dw0.get() as u64 | (self.dw1.get() as u64) << 32
    }
}

impl fmt::Debug for Cqe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cqe")
            .field("cid", &self.cid.get())
            .field("status", &self.status())
            .field("result", &format_args!("{:#x}", self.result()))
            .field("sqhd", &self.sqhd.get())
            .field("sqid", &self.sqid.get())
            .field("phase", &self.phase())
            .finish()
    }
}
