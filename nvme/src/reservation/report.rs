//! Reservation Status (NVMe Base 2.0, section 7.5): what Reservation Report returns, in both forms.

use zerocopy::little_endian::{U16, U32, U64};

use super::state::Reservations;
use super::wire::ReservationType;
use crate::nqn::HostId;
use crate::nvm::wire_list;

wire_struct! {
    /// The fields that both forms begin with.
    #[derive(Debug)]
    StatusHeader, 24, {
        /// Generation (GEN).
        generation: U32,
        /// Reservation Type (RTYPE); 0 = there is no reservation.
        rtype: ReservationType,
        /// Number of Registered Controllers (REGCTL): entries that follow.
        regctl: U16,
        /// Reserved.
        reserved7: [u8; 2],
        /// Persist Through Power Loss State (PTPLS).
        ptpls: u8,
        /// Reserved.
        reserved10: [u8; 14],
    }
}

wire_struct! {
    /// Header of the extended form.
    #[derive(Debug)]
    ExtendedStatusHeader, 64, {
        /// As in the regular form.
        status: StatusHeader,
        /// Reserved.
        reserved24: [u8; 40],
    }
}

wire_struct! {
    /// Registered Controller, regular form.
    #[derive(Debug)]
    RegisteredController, 24, {
        /// Controller Identifier (CNTLID).
        cntlid: U16,
        /// Reservation Status (RCSTS): bit 0 = its host holds the reservation.
        rcsts: u8,
        /// Reserved.
        reserved3: [u8; 5],
        /// Host Identifier, 64 bits.
        hostid: [u8; 8],
        /// Reservation Key.
        key: U64,
    }
}

wire_struct! {
    /// Registered Controller, extended form.
    #[derive(Debug)]
    RegisteredControllerExtended, 64, {
        /// Controller Identifier (CNTLID).
        cntlid: U16,
        /// Reservation Status (RCSTS): bit 0 = its host holds the reservation.
        rcsts: u8,
        /// Reserved.
        reserved3: [u8; 5],
        /// Reservation Key.
        key: U64,
        /// Host Identifier, 128 bits.
        hostid: [u8; 16],
        /// Reserved.
        reserved32: [u8; 32],
    }
}

/// CNTLID where controllers come and go (the dynamic controller model of fabrics).
const CNTLID_DYNAMIC: u16 = 0xffff;

const HOLDER: u8 = 1;

/// One registrant as it is reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReportedRegistrant {
    /// Who. Of the regular form: the low 64 bits, the others 0.
    pub hostid: HostId,
    /// Its key.
    pub key: u64,
    /// It holds the reservation.
    pub holds: bool,
}

/// The reservations of a namespace as they are reported.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Changes with every registration, preemption and clear.
    pub generation: u32,
    /// The type of the reservation; `None` = nobody holds one.
    pub rtype: Option<ReservationType>,
    /// All of it persists through a power loss.
    pub persists: bool,
    /// Hosts that are registered.
    pub registrants: Vec<ReportedRegistrant>,
}

impl Report {
    /// The report on `state`.
    pub fn of(state: &Reservations) -> Self {
        let registrants = state.registrants().iter().map(|r| ReportedRegistrant {
            hostid: r.hostid,
            key: r.key,
            holds: state.is_holder(r.hostid),
        });
        Self {
            generation: state.generation(),
            rtype: state.held().map(|held| held.rtype),
            persists: state.persists(),
            registrants: registrants.collect(),
        }
    }

    /// The bytes: with 128-bit Host Identifiers (`extended`), or with their low 64 bits.
    pub fn build(&self, extended: bool) -> Vec<u8> {
        let header = StatusHeader {
            generation: self.generation.into(),
            rtype: self.rtype.unwrap_or(ReservationType::NONE),
            regctl: U16::new(self.registrants.len().min(usize::from(u16::MAX)) as u16),
            ptpls: u8::from(self.persists),
            ..StatusHeader::zeroed()
        };
        let mut out = header.wire().to_vec();
        if extended {
            out.resize(ExtendedStatusHeader::LEN_BYTES, 0);
        }
        for r in self.registrants.iter().take(usize::from(u16::MAX)) {
            let (cntlid, rcsts) = (U16::new(CNTLID_DYNAMIC), if r.holds { HOLDER } else { 0 });
            if extended {
                let entry = RegisteredControllerExtended {
                    cntlid,
                    rcsts,
                    key: r.key.into(),
                    hostid: r.hostid.0,
                    ..RegisteredControllerExtended::zeroed()
                };
                out.extend_from_slice(entry.wire());
            } else {
                let mut hostid = [0; 8];
                hostid.copy_from_slice(&r.hostid.0[..8]);
                let entry = RegisteredController {
                    cntlid,
                    rcsts,
                    hostid,
                    key: r.key.into(),
                    ..RegisteredController::zeroed()
                };
                out.extend_from_slice(entry.wire());
            }
        }
        out
    }

    /// How long the extended form is whose beginning is `bytes`; `None` when not even the header is there.
    pub fn extended_len_bytes(bytes: &[u8]) -> Option<usize> {
        let header = StatusHeader::view(bytes)?;
        let entries = usize::from(header.regctl.get());
        Some(ExtendedStatusHeader::LEN_BYTES + entries * RegisteredControllerExtended::LEN_BYTES)
    }

    /// Reads the extended form. Entries that `bytes` ends before are left out; a host that several controllers are
    /// reported of is there once. `None` when not even the header is there. Never panics.
    pub fn parse_extended(bytes: &[u8]) -> Option<Self> {
        let header = &ExtendedStatusHeader::view(bytes)?.status;
        let entries = &bytes[ExtendedStatusHeader::LEN_BYTES..];
        let list: &[RegisteredControllerExtended] = wire_list(entries, usize::from(header.regctl.get()));
        let mut report = Self {
            generation: header.generation.get(),
            rtype: (header.rtype != ReservationType::NONE).then_some(header.rtype),
            persists: header.ptpls & 1 != 0,
            registrants: Vec::with_capacity(list.len()),
        };
        for entry in list {
            let hostid = HostId(entry.hostid);
            if report.registrants.iter().all(|r| r.hostid != hostid) {
                report.registrants.push(ReportedRegistrant {
                    hostid,
                    key: entry.key.get(),
                    holds: entry.rcsts & HOLDER != 0,
                });
            }
        }
        Some(report)
    }
}
