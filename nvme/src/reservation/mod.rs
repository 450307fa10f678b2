//! Reservations (NVMe Base 2.0, section 8.19): hosts take turns in writing to, or in using, a namespace.
//!
//! - [`wire`]: the arguments and payloads of Reservation Register, Acquire, Release and Report.
//! - [`report`]: the Reservation Status data structure, built and parsed.
//! - [`state`]: [`Reservations`], the state of one namespace, and what each command does to it.
//! - [`access`]: [`Access`], who may read and write under a reservation.
//!
//! All of it is pure. Whoever executes the commands owns the state, makes a change durable where it has to persist,
//! has [`Access`] obeyed wherever commands are executed, and tells the hosts that [`Outcome`] names.
//!
//! Hosts are told apart by their Host Identifier alone (section 8.19): two controllers of one host are one
//! registrant. The identifier 0 is no host; Connect refuses it, so it never gets here.

pub mod access;
pub mod report;
pub mod state;
pub mod wire;

pub use access::{Access, Rights};
pub use report::{Report, ReportedRegistrant};
pub use state::{Held, Inconsistent, MAX_REGISTRANTS, Outcome, Registrant, Reservations};
pub use wire::{
    Acquire, AcquireAction, ChangePersistence, Command, Register, RegisterAction, Release, ReleaseAction,
    ReportRequest, ReservationType,
};

use crate::identify::namespace::Rescap;

/// What a namespace with all of this says in RESCAP: every type, Ignore Existing Key as since revision 1.3, and, where
/// the state `persists`, Persist Through Power Loss.
pub const fn capabilities(persists: bool) -> Rescap {
    Rescap::WRITE_EXCLUSIVE
        .with(Rescap::EXCLUSIVE_ACCESS)
        .with(Rescap::WRITE_EXCLUSIVE_REGISTRANTS)
        .with(Rescap::EXCLUSIVE_ACCESS_REGISTRANTS)
        .with(Rescap::WRITE_EXCLUSIVE_ALL)
        .with(Rescap::EXCLUSIVE_ACCESS_ALL)
        .with(Rescap::IGNORE_EXISTING_KEY)
        .with_if(Rescap::PERSIST, persists)
}
