//! Who may do what under a reservation (NVMe Base 2.0, section 8.19, figure "Command Behavior in the Presence of a
//! Reservation"; NVM Command Set 1.0, for which command is in which group).

use crate::command::NvmOpcode;
use crate::nqn::HostId;

bit_set! {
    /// What a host may do with a namespace, and what a command does to it.
    Rights(u8 => u8) {
        READ = 1 << 0, "The NVM Read Command Group";
        WRITE = 1 << 1, "The NVM Write Command Group";
    }
}

impl Rights {
    /// Everything.
    pub const ALL: Self = Self::READ.with(Self::WRITE);

    /// What a host needs for a command of the NVM command set. Copy reads and writes; the reservation commands need
    /// nothing, because the state itself judges them. A command that this crate does not know needs everything.
    pub const fn needed(opcode: NvmOpcode) -> Self {
        match opcode {
            NvmOpcode::READ | NvmOpcode::COMPARE | NvmOpcode::VERIFY => Self::READ,
            NvmOpcode::WRITE
            | NvmOpcode::FLUSH
            | NvmOpcode::WRITE_UNCORRECTABLE
            | NvmOpcode::WRITE_ZEROES
            | NvmOpcode::DATASET_MANAGEMENT => Self::WRITE,
            NvmOpcode::RESERVATION_REGISTER
            | NvmOpcode::RESERVATION_REPORT
            | NvmOpcode::RESERVATION_ACQUIRE
            | NvmOpcode::RESERVATION_RELEASE => Self::NONE,
            _ => Self::ALL,
        }
    }
}

/// The rights of every host while a reservation is held. Plain data, small, to be looked at for each command; where
/// there is no reservation there is none of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Access {
    /// Those with all rights: the holder, or every registrant.
    full: Box<[HostId]>,
    /// What everybody else may do.
    others: Rights,
}

impl Access {
    pub(super) fn new(full: impl Iterator<Item = HostId>, others: Rights) -> Self {
        Self { full: full.collect(), others }
    }

    /// What `host` may do. Compares with few identifiers: one holder, or the registrants.
    #[inline]
    pub fn rights(&self, host: HostId) -> Rights {
        if self.full.contains(&host) { Rights::ALL } else { self.others }
    }

    /// Whether `host` may execute a command that needs these rights.
    #[inline]
    pub fn allows(&self, host: HostId, needed: Rights) -> bool {
        self.rights(host).contains(needed)
    }
}
