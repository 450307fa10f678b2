//! Arguments and payloads of the four reservation commands (NVMe Base 2.0, sections 7.2 to 7.5).
//!
//! Decoding never fails for want of a known value: unknown actions and types are for [`Reservations::apply`] to
//! refuse. It fails only when the payload is shorter than the command's.
//!
//! [`Reservations::apply`]: super::Reservations::apply

use zerocopy::little_endian::U64;

use crate::command::{Nsid, NvmOpcode, Sqe};

open_codes! {
    /// Reservation Type (RTYPE).
    ReservationType(u8 => u8) {
        NONE = 0, "No reservation";
        WRITE_EXCLUSIVE = 1, "Write Exclusive";
        EXCLUSIVE_ACCESS = 2, "Exclusive Access";
        WRITE_EXCLUSIVE_REGISTRANTS = 3, "Write Exclusive - Registrants Only";
        EXCLUSIVE_ACCESS_REGISTRANTS = 4, "Exclusive Access - Registrants Only";
        WRITE_EXCLUSIVE_ALL = 5, "Write Exclusive - All Registrants";
        EXCLUSIVE_ACCESS_ALL = 6, "Exclusive Access - All Registrants";
    }
}

impl ReservationType {
    /// Every type that a reservation can have.
    pub const ALL: [Self; 6] = [
        Self::WRITE_EXCLUSIVE,
        Self::EXCLUSIVE_ACCESS,
        Self::WRITE_EXCLUSIVE_REGISTRANTS,
        Self::EXCLUSIVE_ACCESS_REGISTRANTS,
        Self::WRITE_EXCLUSIVE_ALL,
        Self::EXCLUSIVE_ACCESS_ALL,
    ];

    /// One of the six types.
    pub const fn is_known(self) -> bool {
        matches!(self.get(), 1..=6)
    }

    /// Every registrant is a holder.
    pub const fn is_all_registrants(self) -> bool {
        matches!(self.get(), 5 | 6)
    }

    /// There is one holder, but every registrant has its rights.
    pub const fn is_registrants_only(self) -> bool {
        matches!(self.get(), 3 | 4)
    }

    /// Whoever is shut out may still read.
    pub const fn lets_others_read(self) -> bool {
        matches!(self.get(), 1 | 3 | 5)
    }
}

open_codes! {
    /// Reservation Register Action (RREGA).
    RegisterAction(u8 => u8) {
        REGISTER = 0, "Register";
        UNREGISTER = 1, "Unregister";
        REPLACE = 2, "Replace";
    }
}

open_codes! {
    /// Change Persist Through Power Loss State (CPTPL).
    ChangePersistence(u8 => u8) {
        NO_CHANGE = 0, "No change";
        CLEAR = 2, "Released and unregistered on power on";
        SET = 3, "Persists through power loss";
    }
}

open_codes! {
    /// Reservation Acquire Action (RACQA).
    AcquireAction(u8 => u8) {
        ACQUIRE = 0, "Acquire";
        PREEMPT = 1, "Preempt";
        PREEMPT_AND_ABORT = 2, "Preempt and Abort";
    }
}

open_codes! {
    /// Reservation Release Action (RRELA).
    ReleaseAction(u8 => u8) {
        RELEASE = 0, "Release";
        CLEAR = 1, "Clear";
    }
}

wire_struct! {
    /// Payload of Reservation Register and of Reservation Acquire: two keys.
    #[derive(Debug, PartialEq, Eq)]
    KeyPair, 16, {
        /// Current Reservation Key (CRKEY).
        current: U64,
        /// New Reservation Key (NRKEY) of Register, Preempt Reservation Key (PRKEY) of Acquire.
        other: U64,
    }
}

wire_struct! {
    /// Payload of Reservation Release.
    #[derive(Debug, PartialEq, Eq)]
    CurrentKey, 8, {
        /// Current Reservation Key (CRKEY).
        current: U64,
    }
}

/// Ignore Existing Key: bit 3 of dword 10 in each command that has it.
const IEKEY: u32 = 1 << 3;

/// Reservation Register: becomes a registrant, changes its key, or ceases to be one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// What to do.
    pub action: RegisterAction,
    /// Do not look at `crkey`.
    pub ignore_existing_key: bool,
    /// What becomes of reservation and registrants at a power loss.
    pub persistence: ChangePersistence,
    /// The key that this host registered with.
    pub crkey: u64,
    /// The key to register with.
    pub nrkey: u64,
}

/// Reservation Acquire: takes a reservation, or takes it and registrations away from others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acquire {
    /// What to do.
    pub action: AcquireAction,
    /// Refused by revision 1.3 and later.
    pub ignore_existing_key: bool,
    /// The type of the new reservation.
    pub rtype: ReservationType,
    /// The key that this host registered with.
    pub crkey: u64,
    /// The key of those to be preempted.
    pub prkey: u64,
}

/// Reservation Release: gives a reservation up, or (Clear) ends it and all registrations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Release {
    /// What to do.
    pub action: ReleaseAction,
    /// Refused by revision 1.3 and later.
    pub ignore_existing_key: bool,
    /// The type of the reservation that is given up.
    pub rtype: ReservationType,
    /// The key that this host registered with.
    pub crkey: u64,
}

/// Reservation Report: asks for the [`Report`](super::Report).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReportRequest {
    /// How much of it, in bytes: a multiple of 4, at least 4.
    pub len_bytes: u64,
    /// The form with 128-bit Host Identifiers, which is the only one over fabrics.
    pub extended: bool,
}

/// What changes the reservations of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Reservation Register.
    Register(Register),
    /// Reservation Acquire.
    Acquire(Acquire),
    /// Reservation Release.
    Release(Release),
    /// Set Features, Reservation Persistence (section 5.27): the new PTPL.
    Persist(bool),
}

impl Command {
    /// How many bytes the host sends with a command that changes something; `None` for every other opcode.
    pub const fn payload_len_bytes(opcode: NvmOpcode) -> Option<u32> {
        match opcode {
            NvmOpcode::RESERVATION_REGISTER | NvmOpcode::RESERVATION_ACQUIRE => {
                Some(KeyPair::LEN_BYTES as u32)
            }
            NvmOpcode::RESERVATION_RELEASE => Some(CurrentKey::LEN_BYTES as u32),
            _ => None,
        }
    }

    /// Reads an SQE and its payload; `None` when it is another command, or the payload is too short.
    pub fn decode(sqe: &Sqe, data: &[u8]) -> Option<Self> {
        let cdw10 = sqe.cdw10.get();
        let (action, iekey, rtype) =
            (cdw10 as u8 & 7, cdw10 & IEKEY != 0, ReservationType::new((cdw10 >> 8) as u8));
        Some(match sqe.nvm_opcode() {
            NvmOpcode::RESERVATION_REGISTER => {
                let keys = KeyPair::view(data)?;
                Self::Register(Register {
                    action: RegisterAction::new(action),
                    ignore_existing_key: iekey,
                    persistence: ChangePersistence::new((cdw10 >> 30) as u8),
                    crkey: keys.current.get(),
                    nrkey: keys.other.get(),
                })
            }
            NvmOpcode::RESERVATION_ACQUIRE => {
                let keys = KeyPair::view(data)?;
                Self::Acquire(Acquire {
                    action: AcquireAction::new(action),
                    ignore_existing_key: iekey,
                    rtype,
                    crkey: keys.current.get(),
                    prkey: keys.other.get(),
                })
            }
            NvmOpcode::RESERVATION_RELEASE => Self::Release(Release {
                action: ReleaseAction::new(action),
                ignore_existing_key: iekey,
                rtype,
                crkey: CurrentKey::view(data)?.current.get(),
            }),
            _ => return None,
        })
    }
}

fn keys(current: u64, other: u64) -> Vec<u8> {
    KeyPair { current: current.into(), other: other.into() }.wire().to_vec()
}

impl Register {
    /// A whole SQE and its payload; CID and DPTR are left to the caller.
    pub fn encode(&self, nsid: Nsid) -> (Sqe, Vec<u8>) {
        let mut sqe = Sqe::nvm(NvmOpcode::RESERVATION_REGISTER, nsid);
        sqe.cdw10.set(
            u32::from(self.action.get() & 7)
                | if self.ignore_existing_key { IEKEY } else { 0 }
                | u32::from(self.persistence.get() & 3) << 30,
        );
        (sqe, keys(self.crkey, self.nrkey))
    }
}

impl Acquire {
    /// A whole SQE and its payload; CID and DPTR are left to the caller.
    pub fn encode(&self, nsid: Nsid) -> (Sqe, Vec<u8>) {
        let mut sqe = Sqe::nvm(NvmOpcode::RESERVATION_ACQUIRE, nsid);
        sqe.cdw10.set(
            u32::from(self.action.get() & 7)
                | if self.ignore_existing_key { IEKEY } else { 0 }
                | u32::from(self.rtype.get()) << 8,
        );
        (sqe, keys(self.crkey, self.prkey))
    }
}

impl Release {
    /// A whole SQE and its payload; CID and DPTR are left to the caller.
    pub fn encode(&self, nsid: Nsid) -> (Sqe, Vec<u8>) {
        let mut sqe = Sqe::nvm(NvmOpcode::RESERVATION_RELEASE, nsid);
        sqe.cdw10.set(
            u32::from(self.action.get() & 7)
                | if self.ignore_existing_key { IEKEY } else { 0 }
                | u32::from(self.rtype.get()) << 8,
        );
        (sqe, CurrentKey { current: self.crkey.into() }.wire().to_vec())
    }
}

impl ReportRequest {
    /// Reads the dwords.
    pub const fn decode(sqe: &Sqe) -> Self {
        Self { len_bytes: (sqe.cdw10.get() as u64 + 1) * 4, extended: sqe.cdw11.get() & 1 != 0 }
    }

    /// A whole SQE; a length that is no multiple of 4 is rounded up, 0 counts as 4.
    pub fn sqe(&self, nsid: Nsid) -> Sqe {
        let mut sqe = Sqe::nvm(NvmOpcode::RESERVATION_REPORT, nsid);
        sqe.cdw10.set(self.len_bytes.div_ceil(4).saturating_sub(1).min(u64::from(u32::MAX)) as u32);
        sqe.cdw11.set(u32::from(self.extended));
        sqe
    }
}
