//! Reservations against the tables and sentences of NVMe Base 2.0, section 8.19, and their wire forms.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashSet;

use nvme::log::ReservationNotice as Notice;
use nvme::reservation::wire::{CurrentKey, KeyPair};
use nvme::reservation::{
    Acquire, AcquireAction, ChangePersistence, Command, Held, Inconsistent, MAX_REGISTRANTS, Outcome,
    Register, RegisterAction, Registrant, Release, ReleaseAction, Report, ReportRequest, ReportedRegistrant,
    ReservationType, Reservations, Rights,
};
use nvme::{HostId, Nsid, NvmOpcode, Status};

const A: HostId = HostId([0xa; 16]);
const B: HostId = HostId([0xb; 16]);
const C: HostId = HostId([0xc; 16]);

const WE: ReservationType = ReservationType::WRITE_EXCLUSIVE;
const EA: ReservationType = ReservationType::EXCLUSIVE_ACCESS;
const WERO: ReservationType = ReservationType::WRITE_EXCLUSIVE_REGISTRANTS;
const EARO: ReservationType = ReservationType::EXCLUSIVE_ACCESS_REGISTRANTS;
const WEAR: ReservationType = ReservationType::WRITE_EXCLUSIVE_ALL;
const EAAR: ReservationType = ReservationType::EXCLUSIVE_ACCESS_ALL;

fn register(nrkey: u64) -> Command {
    Command::Register(Register {
        action: RegisterAction::REGISTER,
        ignore_existing_key: false,
        persistence: ChangePersistence::NO_CHANGE,
        crkey: 0xdead,
        nrkey,
    })
}

fn change(action: RegisterAction, iekey: bool, crkey: u64, nrkey: u64) -> Command {
    Command::Register(Register {
        action,
        ignore_existing_key: iekey,
        persistence: ChangePersistence::NO_CHANGE,
        crkey,
        nrkey,
    })
}

fn acquire(rtype: ReservationType, crkey: u64) -> Command {
    preempting(AcquireAction::ACQUIRE, rtype, crkey, 0)
}

fn preempt(rtype: ReservationType, crkey: u64, prkey: u64) -> Command {
    preempting(AcquireAction::PREEMPT, rtype, crkey, prkey)
}

fn preempting(action: AcquireAction, rtype: ReservationType, crkey: u64, prkey: u64) -> Command {
    Command::Acquire(Acquire { action, ignore_existing_key: false, rtype, crkey, prkey })
}

fn release(rtype: ReservationType, crkey: u64) -> Command {
    Command::Release(Release { action: ReleaseAction::RELEASE, ignore_existing_key: false, rtype, crkey })
}

fn clear(crkey: u64) -> Command {
    Command::Release(Release { action: ReleaseAction::CLEAR, ignore_existing_key: false, rtype: WE, crkey })
}

/// A registered with 1, B with 2; A holds `rtype`.
fn held(rtype: ReservationType) -> Reservations {
    let mut state = Reservations::new(true);
    state.apply(A, &register(1)).unwrap();
    state.apply(B, &register(2)).unwrap();
    state.apply(A, &acquire(rtype, 1)).unwrap();
    state
}

fn hosts(state: &Reservations) -> Vec<(HostId, u64)> {
    state.registrants().iter().map(|r| (r.hostid, r.key)).collect()
}

fn told(outcome: &Outcome) -> Vec<(HostId, Notice)> {
    outcome.notices.clone()
}

#[test]
fn command_behavior_in_the_presence_of_a_reservation() {
    // Type; then (read, write) of the holder, of a registrant, and of a host that is not registered.
    let table = [
        (WE, (true, true), (true, false), (true, false)),
        (EA, (true, true), (false, false), (false, false)),
        (WERO, (true, true), (true, true), (true, false)),
        (EARO, (true, true), (true, true), (false, false)),
        (WEAR, (true, true), (true, true), (true, false)),
        (EAAR, (true, true), (true, true), (false, false)),
    ];
    for (rtype, holder, registrant, stranger) in table {
        let access = held(rtype).access().unwrap();
        for (host, (read, write)) in [(A, holder), (B, registrant), (C, stranger)] {
            assert_eq!(access.allows(host, Rights::READ), read, "{rtype} {host:?}");
            assert_eq!(access.allows(host, Rights::WRITE), write, "{rtype} {host:?}");
            assert_eq!(access.allows(host, Rights::ALL), read && write, "{rtype} {host:?}");
            assert!(access.allows(host, Rights::NONE), "reservation commands are judged by the state");
        }
    }
    assert_eq!(Reservations::new(true).access(), None);
    let mut registered = Reservations::new(true);
    registered.apply(A, &register(1)).unwrap();
    assert_eq!(registered.access(), None, "a registration alone keeps nobody out");
}

#[test]
fn command_groups() {
    let table = [
        (NvmOpcode::READ, Rights::READ),
        (NvmOpcode::COMPARE, Rights::READ),
        (NvmOpcode::VERIFY, Rights::READ),
        (NvmOpcode::WRITE, Rights::WRITE),
        (NvmOpcode::FLUSH, Rights::WRITE),
        (NvmOpcode::WRITE_ZEROES, Rights::WRITE),
        (NvmOpcode::WRITE_UNCORRECTABLE, Rights::WRITE),
        (NvmOpcode::DATASET_MANAGEMENT, Rights::WRITE),
        (NvmOpcode::COPY, Rights::ALL),
        (NvmOpcode::RESERVATION_REPORT, Rights::NONE),
        (NvmOpcode::RESERVATION_ACQUIRE, Rights::NONE),
        (NvmOpcode::new(0x99), Rights::ALL),
    ];
    for (opcode, needed) in table {
        assert_eq!(Rights::needed(opcode), needed, "{opcode}");
    }
}

#[test]
fn registering() {
    let mut state = Reservations::new(true);
    // The state of A before (its key), the command, and what becomes of it.
    let table = [
        (None, register(5), Ok(Some(5))),
        (Some(5), register(5), Ok(Some(5))),
        (Some(5), register(6), Err(Status::RESERVATION_CONFLICT)),
        (Some(5), change(RegisterAction::REPLACE, false, 5, 7), Ok(Some(7))),
        (Some(5), change(RegisterAction::REPLACE, false, 4, 7), Err(Status::RESERVATION_CONFLICT)),
        (Some(5), change(RegisterAction::REPLACE, true, 4, 7), Ok(Some(7))),
        (None, change(RegisterAction::REPLACE, false, 0, 7), Err(Status::RESERVATION_CONFLICT)),
        (None, change(RegisterAction::REPLACE, true, 0, 7), Ok(Some(7))),
        (Some(5), change(RegisterAction::UNREGISTER, false, 5, 0), Ok(None)),
        (Some(5), change(RegisterAction::UNREGISTER, false, 4, 0), Err(Status::RESERVATION_CONFLICT)),
        (Some(5), change(RegisterAction::UNREGISTER, true, 4, 0), Ok(None)),
        (None, change(RegisterAction::UNREGISTER, false, 0, 0), Err(Status::RESERVATION_CONFLICT)),
        (None, change(RegisterAction::UNREGISTER, true, 0, 0), Err(Status::RESERVATION_CONFLICT)),
        (None, change(RegisterAction::new(3), false, 0, 0), Err(Status::INVALID_FIELD)),
    ];
    for (before, command, after) in table {
        state = Reservations::new(true);
        if let Some(key) = before {
            state.apply(A, &register(key)).unwrap();
        }
        let generation = state.generation();
        let got = state.apply(A, &command).map(|_| state.registrants().first().map(|r| r.key));
        assert_eq!(got, after, "{before:?} {command:?}");
        let counted = u32::from(after.is_ok());
        assert_eq!(state.generation(), generation + counted, "{command:?}");
    }
    // Two hosts may have one key.
    state.apply(A, &register(9)).unwrap();
    state.apply(B, &register(9)).unwrap();
    assert_eq!(hosts(&state), [(A, 9), (B, 9)]);
}

#[test]
fn replacing_a_key_leaves_the_reservation_alone() {
    for rtype in ReservationType::ALL {
        let mut state = held(rtype);
        let before = state.held();
        let outcome = state.apply(A, &change(RegisterAction::REPLACE, false, 1, 77)).unwrap();
        assert_eq!((state.held(), outcome), (before, Outcome::default()));
        state.apply(A, &release(rtype, 77)).unwrap();
        assert_eq!(state.held(), None);
    }
}

#[test]
fn unregistering_the_holder_releases() {
    for rtype in ReservationType::ALL {
        let mut state = held(rtype);
        let outcome = state.apply(A, &change(RegisterAction::UNREGISTER, false, 1, 0)).unwrap();
        let released = !rtype.is_all_registrants();
        assert_eq!(state.held().is_none(), released, "{rtype}");
        let notices =
            if rtype.is_registrants_only() { vec![(B, Notice::RESERVATION_RELEASED)] } else { vec![] };
        assert_eq!(told(&outcome), notices, "{rtype}");
        // The last registrant takes the reservation along, whatever its type.
        state.apply(B, &change(RegisterAction::UNREGISTER, false, 2, 0)).unwrap();
        assert_eq!((state.held(), state.registrants().len()), (None, 0));
    }
    for rtype in ReservationType::ALL {
        let mut state = held(rtype);
        let outcome = state.apply(B, &change(RegisterAction::UNREGISTER, false, 2, 0)).unwrap();
        assert!(state.held().is_some() && outcome == Outcome::default(), "{rtype}: B held nothing alone");
    }
}

#[test]
fn acquiring() {
    for rtype in ReservationType::ALL {
        let mut state = held(rtype);
        assert_eq!(state.apply(C, &acquire(rtype, 0)), Err(Status::RESERVATION_CONFLICT), "not registered");
        assert_eq!(state.apply(A, &acquire(rtype, 3)), Err(Status::RESERVATION_CONFLICT), "wrong key");
        // A holder may ask for what it has; every registrant is one of the types for all of them.
        assert_eq!(state.apply(A, &acquire(rtype, 1)), Ok(Outcome::default()));
        let b = state.apply(B, &acquire(rtype, 2));
        assert_eq!(b.is_ok(), rtype.is_all_registrants(), "{rtype}");
        for other in ReservationType::ALL.into_iter().filter(|t| *t != rtype) {
            assert_eq!(state.apply(A, &acquire(other, 1)), Err(Status::RESERVATION_CONFLICT));
        }
        assert_eq!(state.generation(), 2, "acquiring does not count");
        let holder = if rtype.is_all_registrants() { HostId::NONE } else { A };
        assert_eq!(state.held(), Some(Held { rtype, holder }));
    }
    let mut state = held(WE);
    for rtype in [0, 7, 255] {
        let command = acquire(ReservationType::new(rtype), 1);
        assert_eq!(state.apply(A, &command), Err(Status::INVALID_FIELD));
    }
    let iekey =
        Acquire { action: AcquireAction::ACQUIRE, ignore_existing_key: true, rtype: WE, crkey: 1, prkey: 0 };
    assert_eq!(state.apply(A, &Command::Acquire(iekey)), Err(Status::INVALID_FIELD), "since revision 1.3");
    let unknown = preempting(AcquireAction::new(3), WE, 1, 0);
    assert_eq!(state.apply(A, &unknown), Err(Status::INVALID_FIELD));
}

#[test]
fn releasing() {
    for rtype in ReservationType::ALL {
        let mut state = held(rtype);
        assert_eq!(state.apply(C, &release(rtype, 0)), Err(Status::RESERVATION_CONFLICT));
        assert_eq!(state.apply(A, &release(rtype, 2)), Err(Status::RESERVATION_CONFLICT));
        let other = if rtype == WE { EA } else { WE };
        assert_eq!(state.apply(A, &release(other, 1)), Err(Status::INVALID_FIELD), "{rtype}");
        if !rtype.is_all_registrants() {
            assert_eq!(state.apply(B, &release(other, 2)), Ok(Outcome::default()), "B holds nothing");
        }
        assert!(state.held().is_some());
        let outcome = state.apply(A, &release(rtype, 1)).unwrap();
        assert_eq!((state.held(), state.registrants().len()), (None, 2));
        let quiet = rtype == WE || rtype == EA;
        let notices = if quiet { vec![] } else { vec![(B, Notice::RESERVATION_RELEASED)] };
        assert_eq!(told(&outcome), notices, "{rtype}");
        assert_eq!(state.apply(A, &release(rtype, 1)), Ok(Outcome::default()), "nothing is held: no error");
        assert_eq!(state.generation(), 2, "releasing does not count");
    }
    // Of the types for all registrants any of them releases.
    for rtype in [WEAR, EAAR] {
        let mut state = held(rtype);
        let outcome = state.apply(B, &release(rtype, 2)).unwrap();
        assert_eq!((state.held(), told(&outcome)), (None, vec![(A, Notice::RESERVATION_RELEASED)]));
    }
    let iekey = Release { action: ReleaseAction::RELEASE, ignore_existing_key: true, rtype: WE, crkey: 1 };
    assert_eq!(held(WE).apply(A, &Command::Release(iekey)), Err(Status::INVALID_FIELD));
    let unknown = Release { action: ReleaseAction::new(2), ignore_existing_key: false, rtype: WE, crkey: 1 };
    assert_eq!(held(WE).apply(A, &Command::Release(unknown)), Err(Status::INVALID_FIELD));
}

#[test]
fn clearing() {
    for rtype in ReservationType::ALL {
        let mut state = held(rtype);
        assert_eq!(state.apply(C, &clear(0)), Err(Status::RESERVATION_CONFLICT));
        assert_eq!(state.apply(B, &clear(1)), Err(Status::RESERVATION_CONFLICT));
        let outcome = state.apply(B, &clear(2)).unwrap();
        assert_eq!((state.held(), state.registrants().len(), state.generation()), (None, 0, 3));
        assert_eq!(told(&outcome), [(A, Notice::RESERVATION_PREEMPTED)]);
    }
}

#[test]
fn preempting_the_holder_takes_the_reservation_over() {
    for old in [WE, EA, WERO, EARO] {
        for new in ReservationType::ALL {
            let mut state = held(old);
            state.apply(C, &register(1)).unwrap();
            let outcome = state.apply(B, &preempt(new, 2, 1)).unwrap();
            assert_eq!(hosts(&state), [(B, 2)], "the holder and C had that key");
            let holder = if new.is_all_registrants() { HostId::NONE } else { B };
            assert_eq!(state.held(), Some(Held { rtype: new, holder }));
            let gone = [(A, Notice::REGISTRATION_PREEMPTED), (C, Notice::REGISTRATION_PREEMPTED)];
            assert_eq!(told(&outcome), gone);
            assert!(outcome.abort.is_empty());
            assert_eq!(state.generation(), 4);
        }
    }
    // Who remains is told when the type changes.
    let mut state = held(WE);
    state.apply(C, &register(3)).unwrap();
    let outcome = state.apply(B, &preempt(EA, 2, 1)).unwrap();
    let notices = [(A, Notice::REGISTRATION_PREEMPTED), (C, Notice::RESERVATION_RELEASED)];
    assert_eq!(told(&outcome), notices);
}

#[test]
fn preempting_others_takes_registrations_only() {
    for rtype in ReservationType::ALL {
        let mut state = held(rtype);
        let before = state.held();
        state.apply(C, &register(3)).unwrap();
        let outcome = state.apply(A, &preempt(WE, 1, 3)).unwrap();
        assert_eq!((hosts(&state), state.held()), (vec![(A, 1), (B, 2)], before), "{rtype}");
        assert_eq!(told(&outcome), [(C, Notice::REGISTRATION_PREEMPTED)]);
        // A host can preempt itself: of its registration, where it does not hold the reservation alone.
        state.apply(B, &preempt(WE, 2, 2)).unwrap();
        assert_eq!((hosts(&state), state.held()), (vec![(A, 1)], before), "{rtype}");
        assert_eq!(state.apply(A, &preempt(WE, 1, 3)), Err(Status::RESERVATION_CONFLICT), "nobody has it");
    }
    // Nothing is held.
    let mut state = held(WE);
    state.apply(A, &release(WE, 1)).unwrap();
    assert_eq!(state.apply(A, &preempt(WE, 1, 0)), Err(Status::INVALID_FIELD));
    assert_eq!(state.apply(A, &preempt(WE, 1, 9)), Err(Status::RESERVATION_CONFLICT));
    state.apply(A, &preempt(WE, 1, 2)).unwrap();
    assert_eq!(
        (hosts(&state), state.held()),
        (vec![(A, 1)], None),
        "a preemption of nobody's reservation takes none"
    );
}

#[test]
fn preempting_with_key_zero() {
    for rtype in [WE, EA, WERO, EARO] {
        assert_eq!(held(rtype).apply(B, &preempt(WE, 2, 0)), Err(Status::INVALID_FIELD), "{rtype}");
    }
    // Zero means all others, where all are holders.
    for rtype in [WEAR, EAAR] {
        let mut state = held(rtype);
        state.apply(C, &register(3)).unwrap();
        let outcome = state.apply(B, &preempt(EA, 2, 0)).unwrap();
        assert_eq!((hosts(&state), state.held()), (vec![(B, 2)], Some(Held { rtype: EA, holder: B })));
        assert_eq!(told(&outcome).len(), 2);
    }
    // Where the holder's key is zero, it names the holder.
    let mut state = Reservations::new(false);
    state.apply(A, &register(0)).unwrap();
    state.apply(A, &acquire(WE, 0)).unwrap();
    state.apply(B, &register(2)).unwrap();
    state.apply(B, &preempt(WE, 2, 0)).unwrap();
    assert_eq!(state.held(), Some(Held { rtype: WE, holder: B }));
}

#[test]
fn the_last_of_all_registrants_preempts_itself() {
    let mut state = Reservations::new(false);
    state.apply(A, &register(1)).unwrap();
    state.apply(A, &acquire(WEAR, 1)).unwrap();
    state.apply(A, &preempt(WEAR, 1, 1)).unwrap();
    assert_eq!((state.held(), state.registrants().len()), (None, 0));
}

#[test]
fn a_holder_preempts_itself_to_change_the_type() {
    let mut state = held(WE);
    let outcome = state.apply(A, &preempt(WERO, 1, 1)).unwrap();
    assert_eq!((hosts(&state), state.held()), (vec![(A, 1), (B, 2)], Some(Held { rtype: WERO, holder: A })));
    assert_eq!(told(&outcome), [(B, Notice::RESERVATION_RELEASED)]);
}

#[test]
fn preempt_and_abort_names_the_victims() {
    let mut state = held(EA);
    state.apply(C, &register(1)).unwrap();
    let command = preempting(AcquireAction::PREEMPT_AND_ABORT, EA, 2, 1);
    let outcome = state.apply(B, &command).unwrap();
    assert_eq!(outcome.abort, [A, C]);
    let itself = preempting(AcquireAction::PREEMPT_AND_ABORT, EA, 2, 2);
    assert!(state.apply(B, &itself).unwrap().abort.is_empty(), "the command itself is one of that host");
}

#[test]
fn only_registrants_preempt_and_only_with_their_key() {
    for action in [AcquireAction::PREEMPT, AcquireAction::PREEMPT_AND_ABORT] {
        let mut state = held(EA);
        let before = state.clone();
        for (host, crkey) in [(C, 0), (C, 1), (B, 1), (B, 0)] {
            let command = preempting(action, EA, crkey, 1);
            assert_eq!(state.apply(host, &command), Err(Status::RESERVATION_CONFLICT));
        }
        assert_eq!(state, before);
    }
}

#[test]
fn persistence() {
    let with = |persistence| {
        Command::Register(Register {
            action: RegisterAction::REGISTER,
            ignore_existing_key: false,
            persistence,
            crkey: 0,
            nrkey: 1,
        })
    };
    let mut state = Reservations::new(true);
    state.apply(A, &with(ChangePersistence::SET)).unwrap();
    assert!(state.persists());
    state.apply(A, &with(ChangePersistence::NO_CHANGE)).unwrap();
    assert!(state.persists());
    assert_eq!(state.apply(A, &with(ChangePersistence::new(1))), Err(Status::INVALID_FIELD), "reserved");
    assert!(state.persists());
    state.apply(A, &with(ChangePersistence::CLEAR)).unwrap();
    assert!(!state.persists());
    // A command that fails changes nothing, not even this.
    let wrong = Command::Register(Register {
        action: RegisterAction::REGISTER,
        ignore_existing_key: false,
        persistence: ChangePersistence::SET,
        crkey: 0,
        nrkey: 2,
    });
    assert_eq!(state.apply(A, &wrong), Err(Status::RESERVATION_CONFLICT));
    assert!(!state.persists());
    state.apply(A, &Command::Persist(true)).unwrap();
    assert!(state.persists());
    let mut never = Reservations::new(false);
    assert_eq!(never.apply(A, &with(ChangePersistence::SET)), Err(Status::INVALID_FIELD));
    assert_eq!(never.apply(A, &Command::Persist(true)), Err(Status::INVALID_FIELD));
    assert_eq!(never, Reservations::new(false));
}

#[test]
fn restoring() {
    let one = |hostid, key| Registrant { hostid, key };
    let two = vec![one(A, 1), one(B, 2)];
    let state = Reservations::restore(two.clone(), Some(Held { rtype: EA, holder: B })).unwrap();
    assert!(state.persists() && state.can_persist() && state.is_holder(B) && !state.is_holder(A));
    assert_eq!(state.generation(), 0);
    let all = Reservations::restore(two.clone(), Some(Held { rtype: WEAR, holder: HostId::NONE })).unwrap();
    assert!(all.is_holder(A) && all.is_holder(B));
    let bad = |registrants: Vec<Registrant>, held| Reservations::restore(registrants, held).unwrap_err();
    assert_eq!(bad(vec![one(A, 1), one(A, 2)], None), Inconsistent::BadRegistrant);
    assert_eq!(bad(vec![one(HostId::NONE, 1)], None), Inconsistent::BadRegistrant);
    assert_eq!(bad(two.clone(), Some(Held { rtype: EA, holder: C })), Inconsistent::BadHolder);
    assert_eq!(bad(two.clone(), Some(Held { rtype: EAAR, holder: A })), Inconsistent::BadHolder);
    assert_eq!(bad(vec![], Some(Held { rtype: EAAR, holder: HostId::NONE })), Inconsistent::BadHolder);
    assert_eq!(bad(two, Some(Held { rtype: ReservationType::new(9), holder: A })), Inconsistent::BadType);
    let host = |i: usize| HostId((i as u128 + 1).to_le_bytes());
    let many = (0..=MAX_REGISTRANTS).map(|i| one(host(i), 0)).collect();
    assert_eq!(bad(many, None), Inconsistent::TooMany);
}

#[test]
fn registrants_are_bounded() {
    let mut state = Reservations::new(false);
    let host = |i: usize| HostId((i as u128 + 1).to_le_bytes());
    for i in 0..MAX_REGISTRANTS {
        state.apply(host(i), &register(1)).unwrap();
    }
    assert_eq!(state.apply(host(MAX_REGISTRANTS), &register(1)), Err(Status::INTERNAL_ERROR));
    assert_eq!(state.registrants().len(), MAX_REGISTRANTS);
}

/// Every command that three hosts with keys out of {0, 1, 2} can issue.
fn all_commands() -> Vec<Command> {
    let keys = [0, 1, 2];
    let mut out = Vec::new();
    for crkey in keys {
        out.push(clear(crkey));
        for rtype in ReservationType::ALL {
            out.push(acquire(rtype, crkey));
            out.push(release(rtype, crkey));
        }
        for other in keys {
            for rtype in [WE, EARO, WEAR] {
                out.push(preempting(AcquireAction::PREEMPT, rtype, crkey, other));
                out.push(preempting(AcquireAction::PREEMPT_AND_ABORT, rtype, crkey, other));
            }
            for action in [RegisterAction::REGISTER, RegisterAction::UNREGISTER, RegisterAction::REPLACE] {
                out.push(change(action, false, crkey, other));
                out.push(change(action, true, crkey, other));
            }
        }
    }
    out
}

/// All states that three hosts can bring about, and every command in each of them: what has to hold always.
#[test]
fn every_command_in_every_state() {
    type Key = (Vec<(HostId, u64)>, Option<(u8, HostId)>);
    let key = |s: &Reservations| -> Key { (hosts(s), s.held().map(|held| (held.rtype.get(), held.holder))) };
    let mut seen = HashSet::new();
    let mut open = vec![Reservations::new(true)];
    let commands = all_commands();
    let mut steps = 0;
    while let Some(state) = open.pop() {
        if !seen.insert(format!("{:?}", key(&state))) {
            continue;
        }
        for host in [A, B, C] {
            for command in &commands {
                steps += 1;
                let mut next = state.clone();
                match next.apply(host, command) {
                    Err(status) => {
                        assert_eq!(next, state, "{status}: a failure changes nothing");
                        let plain = [Status::RESERVATION_CONFLICT, Status::INVALID_FIELD];
                        assert!(plain.contains(&status));
                    }
                    Ok(outcome) => {
                        check(&state, &next, host, command, &outcome);
                        open.push(next);
                    }
                }
            }
        }
    }
    assert!(seen.len() > 500 && steps > 200_000, "{} states, {steps} steps", seen.len());
}

fn check(before: &Reservations, after: &Reservations, host: HostId, command: &Command, outcome: &Outcome) {
    let registered = |s: &Reservations, h: HostId| s.registrants().iter().any(|r| r.hostid == h);
    match after.held() {
        Some(held) if held.rtype.is_all_registrants() => assert!(!after.registrants().is_empty()),
        Some(held) => assert!(registered(after, held.holder), "a holder is a registrant"),
        None => {}
    }
    for (whom, notice) in &outcome.notices {
        assert!(*whom != host && registered(before, *whom), "only others, and only who was registered");
        let gone = !registered(after, *whom);
        assert_eq!(gone, *notice != Notice::RESERVATION_RELEASED, "{notice}");
    }
    // Everybody else whose registration goes is told, and nobody twice.
    for r in before.registrants().iter().filter(|r| r.hostid != host && !registered(after, r.hostid)) {
        assert_eq!(outcome.notices.iter().filter(|(h, _)| *h == r.hostid).count(), 1);
    }
    let aborts = matches!(command, Command::Acquire(a) if a.action == AcquireAction::PREEMPT_AND_ABORT);
    assert!(outcome.abort.iter().all(|h| aborts && *h != host && !registered(after, *h)));
    // Whoever could write before and was not preempted, cleared or unregistered by itself still can, unless a
    // reservation came into being or changed.
    if before.held() == after.held()
        && let (Some(old), Some(new)) = (before.access(), after.access())
    {
        for r in after.registrants().iter().filter(|r| registered(before, r.hostid)) {
            assert_eq!(old.rights(r.hostid), new.rights(r.hostid));
        }
    }
    let counts = match command {
        Command::Register(_) => true,
        Command::Acquire(a) => a.action != AcquireAction::ACQUIRE,
        Command::Release(r) => r.action == ReleaseAction::CLEAR,
        Command::Persist(_) => false,
    };
    assert_eq!(after.generation(), before.generation() + u32::from(counts));
}

// The wire.

#[test]
fn commands_on_the_wire() {
    let nsid = Nsid(7);
    let register = Register {
        action: RegisterAction::REPLACE,
        ignore_existing_key: true,
        persistence: ChangePersistence::SET,
        crkey: 0x1122_3344_5566_7788,
        nrkey: 9,
    };
    let (sqe, data) = register.encode(nsid);
    assert_eq!((sqe.opcode, sqe.nsid(), sqe.cdw10.get()), (0x0d, nsid, 0xc000_000a));
    assert_eq!(data[..9], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 9]);
    assert_eq!(Command::decode(&sqe, &data), Some(Command::Register(register)));
    let acquire = Acquire {
        action: AcquireAction::PREEMPT_AND_ABORT,
        ignore_existing_key: false,
        rtype: EAAR,
        crkey: 1,
        prkey: 2,
    };
    let (sqe, data) = acquire.encode(nsid);
    assert_eq!((sqe.opcode, sqe.cdw10.get(), data.len()), (0x11, 0x0602, 16));
    assert_eq!(Command::decode(&sqe, &data), Some(Command::Acquire(acquire)));
    let release = Release { action: ReleaseAction::CLEAR, ignore_existing_key: true, rtype: EA, crkey: 3 };
    let (sqe, data) = release.encode(nsid);
    assert_eq!((sqe.opcode, sqe.cdw10.get(), data.len()), (0x15, 0x0209, 8));
    assert_eq!(Command::decode(&sqe, &data), Some(Command::Release(release)));
    assert_eq!(Command::decode(&sqe, &data[..7]), None, "too short");
    let report = ReportRequest { len_bytes: 4096, extended: true };
    let sqe = report.sqe(nsid);
    assert_eq!((sqe.opcode, sqe.cdw10.get(), sqe.cdw11.get()), (0x0e, 1023, 1));
    assert_eq!(ReportRequest::decode(&sqe), report);
    assert_eq!(Command::decode(&sqe, &[0; 64]), None);
    for (opcode, len) in [
        (NvmOpcode::RESERVATION_REGISTER, Some(16)),
        (NvmOpcode::RESERVATION_ACQUIRE, Some(16)),
        (NvmOpcode::RESERVATION_RELEASE, Some(8)),
        (NvmOpcode::RESERVATION_REPORT, None),
        (NvmOpcode::WRITE, None),
    ] {
        assert_eq!(Command::payload_len_bytes(opcode), len);
    }
    assert_eq!((size_of::<KeyPair>(), size_of::<CurrentKey>()), (16, 8));
}

#[test]
fn report_on_the_wire() {
    let mut state = held(EARO);
    state.apply(A, &Command::Persist(true)).unwrap();
    let report = Report::of(&state);
    let wire = report.build(true);
    assert_eq!(wire.len(), 64 + 2 * 64);
    // GEN, RTYPE, REGCTL, PTPLS.
    assert_eq!((wire[..4].to_vec(), wire[4], wire[5], wire[6], wire[9]), (vec![2, 0, 0, 0], 4, 2, 0, 1));
    // CNTLID, RCSTS, RKEY, HOSTID of the first.
    assert_eq!((&wire[64..66], wire[66], wire[72], &wire[80..96]), (&[0xff, 0xff][..], 1, 1, &[0xa; 16][..]));
    assert_eq!((wire[128 + 2], wire[128 + 8], wire[128 + 16]), (0, 2, 0xb));
    assert_eq!(Report::parse_extended(&wire), Some(report.clone()));
    assert_eq!(Report::extended_len_bytes(&wire), Some(wire.len()));
    let regular = report.build(false);
    assert_eq!(regular.len(), 24 + 2 * 24);
    assert_eq!((&regular[24..26], regular[26], regular[32], regular[40]), (&[0xff, 0xff][..], 1, 0xa, 1));
    // All registrants hold it.
    let all = Report::of(&held(WEAR));
    assert!(all.registrants.iter().all(|r| r.holds));
    let none = Report::of(&Reservations::new(false)).build(true);
    assert_eq!(none, [0; 64]);
    assert_eq!(Report::parse_extended(&none), Some(Report::default()));
    assert_eq!(Report::parse_extended(&none[..63]), None);
}

#[test]
fn a_report_that_lies_about_its_length() {
    let mut wire = Report::of(&held(EA)).build(true);
    wire[5] = 0xff;
    wire[6] = 0xff;
    wire.truncate(64 + 64 + 10);
    let report = Report::parse_extended(&wire).unwrap();
    assert_eq!(report.registrants, [ReportedRegistrant { hostid: A, key: 1, holds: true }]);
    // One host, two controllers.
    let mut twice = Report::of(&held(EA)).build(true);
    let (first, second) = twice[64..].split_at_mut(64);
    second.copy_from_slice(first);
    assert_eq!(Report::parse_extended(&twice).unwrap().registrants.len(), 1);
}
