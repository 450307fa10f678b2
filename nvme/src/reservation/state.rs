//! The reservations of one namespace, and what each command does to them (NVMe Base 2.0, section 8.19; the
//! parts below are named as its subsections are).

use super::access::{Access, Rights};
use super::wire::{
    Acquire, AcquireAction, ChangePersistence, Command, Register, RegisterAction, Release, ReleaseAction,
    ReservationType,
};
use crate::Status;
use crate::log::ReservationNotice;
use crate::nqn::HostId;

/// Most registrants of a namespace. The specification states no limit; this one bounds what peers can make us
/// remember. Another one is refused with Internal Error, as for want of any other resource.
pub const MAX_REGISTRANTS: usize = 128;

/// A host that registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registrant {
    /// Who.
    pub hostid: HostId,
    /// Its key, which need not be unique.
    pub key: u64,
}

/// A reservation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its type.
    pub rtype: ReservationType,
    /// Who holds it; [`HostId::NONE`] for the types of which every registrant is a holder.
    pub holder: HostId,
}

/// What a command did beside changing the state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Whom to tell of what: hosts with controllers in the subsystem; never the host that issued the command.
    pub notices: Vec<(HostId, ReservationNotice)>,
    /// Whose commands to abort before the command completes: never those of the host that issued it.
    pub abort: Vec<HostId>,
}

/// Why a saved state cannot be one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inconsistent {
    /// More than [`MAX_REGISTRANTS`].
    TooMany,
    /// A host is registered twice, or is none.
    BadRegistrant,
    /// The type is none of the six.
    BadType,
    /// The holder is not registered, or a type that has no single holder names one.
    BadHolder,
}

impl core::fmt::Display for Inconsistent {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::TooMany => "there are more registrants than a namespace can have",
            Self::BadRegistrant => "a host is registered twice, or has no identifier",
            Self::BadType => "the reservation's type does not exist",
            Self::BadHolder => "the reservation's holder does not fit its type or is not registered",
        })
    }
}

impl core::error::Error for Inconsistent {}

/// The reservations of one namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reservations {
    generation: u32,
    held: Option<Held>,
    /// In the order in which they registered; no host twice.
    registrants: Vec<Registrant>,
    /// PTPL: all of this is there again after a power loss.
    persists: bool,
    can_persist: bool,
}

impl Reservations {
    /// Nobody registered. `can_persist`: PTPL may be set.
    pub const fn new(can_persist: bool) -> Self {
        Self { generation: 0, held: None, registrants: Vec::new(), persists: false, can_persist }
    }

    /// What persisted through a power loss. The generation begins anew, as the specification has it.
    ///
    /// # Errors
    /// No sequence of commands leads to such a state: it was damaged where it was kept.
    pub fn restore(registrants: Vec<Registrant>, held: Option<Held>) -> Result<Self, Inconsistent> {
        if registrants.len() > MAX_REGISTRANTS {
            return Err(Inconsistent::TooMany);
        }
        for (i, r) in registrants.iter().enumerate() {
            if r.hostid == HostId::NONE || registrants[..i].iter().any(|other| other.hostid == r.hostid) {
                return Err(Inconsistent::BadRegistrant);
            }
        }
        let state = Self { generation: 0, held, registrants, persists: true, can_persist: true };
        match held {
            Some(Held { rtype, .. }) if !rtype.is_known() => Err(Inconsistent::BadType),
            Some(Held { rtype, holder }) if rtype.is_all_registrants() => {
                let fits = holder == HostId::NONE && !state.registrants.is_empty();
                if fits { Ok(state) } else { Err(Inconsistent::BadHolder) }
            }
            Some(Held { holder, .. }) if state.find(holder).is_none() => Err(Inconsistent::BadHolder),
            _ => Ok(state),
        }
    }

    /// Counts registrations, preemptions and clears since power on; wraps around.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The reservation, when there is one.
    pub const fn held(&self) -> Option<Held> {
        self.held
    }

    /// Who is registered.
    pub fn registrants(&self) -> &[Registrant] {
        &self.registrants
    }

    /// Persist Through Power Loss State.
    pub const fn persists(&self) -> bool {
        self.persists
    }

    /// PTPL may be set.
    pub const fn can_persist(&self) -> bool {
        self.can_persist
    }

    /// Whether `host` holds the reservation, alone or with others.
    pub fn is_holder(&self, host: HostId) -> bool {
        match self.held {
            Some(held) if held.rtype.is_all_registrants() => self.find(host).is_some(),
            Some(held) => held.holder == host,
            None => false,
        }
    }

    /// Who may do what; `None` = everybody everything.
    pub fn access(&self) -> Option<Access> {
        let Held { rtype, holder } = self.held?;
        let others = if rtype.lets_others_read() { Rights::READ } else { Rights::NONE };
        let all = rtype.is_all_registrants() || rtype.is_registrants_only();
        let full = self.registrants.iter().map(|r| r.hostid).filter(|host| all || *host == holder);
        Some(Access::new(full, others))
    }

    /// Executes `command`, issued by `host`.
    ///
    /// # Errors
    /// The status to complete it with; the state is as before.
    pub fn apply(&mut self, host: HostId, command: &Command) -> Result<Outcome, Status> {
        match command {
            Command::Register(register) => self.register(host, register),
            Command::Acquire(acquire) => self.acquire(host, acquire),
            Command::Release(release) => self.release(host, release),
            Command::Persist(on) => {
                self.set_persistence(*on)?;
                Ok(Outcome::default())
            }
        }
    }

    fn find(&self, host: HostId) -> Option<usize> {
        self.registrants.iter().position(|r| r.hostid == host)
    }

    /// The place of `host`, when it is registered with `key`.
    fn registered_with(&self, host: HostId, key: u64) -> Result<usize, Status> {
        self.find(host).filter(|i| self.registrants[*i].key == key).ok_or(Status::RESERVATION_CONFLICT)
    }

    fn set_persistence(&mut self, on: bool) -> Result<(), Status> {
        if on && !self.can_persist {
            return Err(Status::INVALID_FIELD);
        }
        self.persists = on;
        Ok(())
    }

    /// Everybody who is registered, but `host`, is told `notice`.
    fn tell_others(&self, host: HostId, notice: ReservationNotice, outcome: &mut Outcome) {
        let others = self.registrants.iter().map(|r| r.hostid).filter(|other| *other != host);
        outcome.notices.extend(others.map(|other| (other, notice)));
    }

    // "Registering" and "Unregistering".

    fn register(&mut self, host: HostId, command: &Register) -> Result<Outcome, Status> {
        let persists = match command.persistence {
            ChangePersistence::NO_CHANGE => self.persists,
            ChangePersistence::CLEAR => false,
            ChangePersistence::SET if self.can_persist => true,
            _ => return Err(Status::INVALID_FIELD),
        };
        let mut outcome = Outcome::default();
        let registered = self.find(host);
        match (command.action, registered) {
            // Registering again with the same key is no error, with another one it is.
            (RegisterAction::REGISTER, Some(i)) if self.registrants[i].key == command.nrkey => {}
            (RegisterAction::REGISTER, None) => self.enrol(host, command.nrkey)?,
            (RegisterAction::REPLACE, Some(i))
                if command.ignore_existing_key || self.registrants[i].key == command.crkey =>
            {
                self.registrants[i].key = command.nrkey;
            }
            // "Without regard to its registration status."
            (RegisterAction::REPLACE, None) if command.ignore_existing_key => {
                self.enrol(host, command.nrkey)?;
            }
            (RegisterAction::UNREGISTER, Some(i))
                if command.ignore_existing_key || self.registrants[i].key == command.crkey =>
            {
                self.unregister(i, &mut outcome);
            }
            (RegisterAction::REGISTER | RegisterAction::REPLACE | RegisterAction::UNREGISTER, _) => {
                return Err(Status::RESERVATION_CONFLICT);
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        self.persists = persists;
        self.generation = self.generation.wrapping_add(1);
        Ok(outcome)
    }

    fn enrol(&mut self, hostid: HostId, key: u64) -> Result<(), Status> {
        if self.registrants.len() >= MAX_REGISTRANTS {
            return Err(Status::INTERNAL_ERROR);
        }
        self.registrants.push(Registrant { hostid, key });
        Ok(())
    }

    /// A host gives its registration up, and with it a reservation that it alone held.
    fn unregister(&mut self, index: usize, outcome: &mut Outcome) {
        let host = self.registrants.remove(index).hostid;
        let Some(Held { rtype, holder }) = self.held else { return };
        if rtype.is_all_registrants() {
            if self.registrants.is_empty() {
                self.held = None;
            }
        } else if holder == host {
            self.held = None;
            if rtype.is_registrants_only() {
                self.tell_others(host, ReservationNotice::RESERVATION_RELEASED, outcome);
            }
        }
    }

    // "Acquiring a Reservation" and "Preempting a Reservation or Registration".

    fn acquire(&mut self, host: HostId, command: &Acquire) -> Result<Outcome, Status> {
        if command.ignore_existing_key || !command.rtype.is_known() {
            return Err(Status::INVALID_FIELD);
        }
        let abort = match command.action {
            AcquireAction::ACQUIRE => {
                self.registered_with(host, command.crkey)?;
                return self.acquire_free(host, command.rtype);
            }
            AcquireAction::PREEMPT => false,
            AcquireAction::PREEMPT_AND_ABORT => true,
            _ => return Err(Status::INVALID_FIELD),
        };
        self.registered_with(host, command.crkey)?;
        let removed = self.preempt(host, command.rtype, command.prkey)?;
        let mut outcome = Outcome::default();
        let victims = removed.victims.iter().copied().filter(|victim| *victim != host);
        outcome
            .notices
            .extend(victims.clone().map(|victim| (victim, ReservationNotice::REGISTRATION_PREEMPTED)));
        if abort {
            outcome.abort.extend(victims);
        }
        if removed.type_changed {
            self.tell_others(host, ReservationNotice::RESERVATION_RELEASED, &mut outcome);
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(outcome)
    }

    fn acquire_free(&mut self, host: HostId, rtype: ReservationType) -> Result<Outcome, Status> {
        match self.held {
            None => self.hold(host, rtype),
            // Its holder may ask for what it has.
            Some(held) if self.is_holder(host) && held.rtype == rtype => {}
            Some(_) => return Err(Status::RESERVATION_CONFLICT),
        }
        Ok(Outcome::default())
    }

    fn hold(&mut self, host: HostId, rtype: ReservationType) {
        let holder = if rtype.is_all_registrants() { HostId::NONE } else { host };
        self.held = Some(Held { rtype, holder });
    }

    fn preempt(&mut self, host: HostId, rtype: ReservationType, prkey: u64) -> Result<Removed, Status> {
        let old = self.held.map(|held| held.rtype);
        // Whether the reservation itself changes hands, or only registrations go.
        let takes_over = match self.held {
            None => false,
            Some(held) if held.rtype.is_all_registrants() => prkey == 0,
            Some(held) => self.find(held.holder).is_some_and(|i| self.registrants[i].key == prkey),
        };
        if takes_over {
            let everybody = old.is_some_and(ReservationType::is_all_registrants);
            let victims = self.remove(|r| r.hostid != host && (everybody || r.key == prkey));
            self.hold(host, rtype);
            return Ok(Removed { victims, type_changed: old != Some(rtype) });
        }
        if prkey == 0 {
            return Err(Status::INVALID_FIELD);
        }
        // The host's own registration goes too, when it has that key. It then is no holder, or one of many.
        let victims = self.remove(|r| r.key == prkey);
        if victims.is_empty() {
            return Err(Status::RESERVATION_CONFLICT);
        }
        if self.registrants.is_empty() {
            self.held = None;
        }
        Ok(Removed { victims, type_changed: false })
    }

    fn remove(&mut self, whom: impl Fn(&Registrant) -> bool) -> Vec<HostId> {
        let victims = self.registrants.iter().filter(|r| whom(r)).map(|r| r.hostid).collect();
        self.registrants.retain(|r| !whom(r));
        victims
    }

    // "Releasing a Reservation" and "Clearing a Reservation".

    fn release(&mut self, host: HostId, command: &Release) -> Result<Outcome, Status> {
        if command.ignore_existing_key
            || !matches!(command.action, ReleaseAction::RELEASE | ReleaseAction::CLEAR)
        {
            return Err(Status::INVALID_FIELD);
        }
        self.registered_with(host, command.crkey)?;
        let mut outcome = Outcome::default();
        if command.action == ReleaseAction::CLEAR {
            self.tell_others(host, ReservationNotice::RESERVATION_PREEMPTED, &mut outcome);
            self.registrants.clear();
            self.held = None;
            self.generation = self.generation.wrapping_add(1);
            return Ok(outcome);
        }
        // A registrant that holds nothing has nothing to give up, which is no error.
        let Some(Held { rtype, .. }) = self.held.filter(|_| self.is_holder(host)) else {
            return Ok(outcome);
        };
        if rtype != command.rtype {
            return Err(Status::INVALID_FIELD);
        }
        self.held = None;
        if rtype.is_registrants_only() || rtype.is_all_registrants() {
            self.tell_others(host, ReservationNotice::RESERVATION_RELEASED, &mut outcome);
        }
        Ok(outcome)
    }
}

/// What a preemption did.
struct Removed {
    /// Whose registrations went.
    victims: Vec<HostId>,
    /// There is a reservation of another type than before.
    type_changed: bool,
}
