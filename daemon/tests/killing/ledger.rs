//! What the tester knows of a replica, unit by unit. A unit is a block of the device.
//!
//! Each unit has one writer at a time. What it may hold after a kill is the newest content known to be durable, or
//! anything that was submitted since. A snapshot has, for each unit, one of the contents between the one
//! that was acknowledged when it was asked for and the one that was submitted last when the answer came; once it was read,
//! exactly that.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use keelson::perf::stamp::{Damage, Stamp};
use uuid::Uuid;

/// What is in a unit. No version is written twice in a story.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    Zeroes,
    Version(u64),
}

/// What a unit may hold.
#[derive(Clone, Debug)]
struct Unit {
    /// Oldest first; never empty.
    may: VecDeque<Content>,
    /// Contents that were submitted before those in `may`.
    gone: u64,
    /// The number of the newest acknowledged content.
    acked: u64,
}

impl Unit {
    fn exactly(content: Content) -> Self {
        Self { may: [content].into(), gone: 0, acked: 0 }
    }

    fn acked(&self) -> Content {
        self.may[(self.acked - self.gone) as usize]
    }
}

/// What a snapshot may hold.
#[derive(Clone, Debug)]
struct View {
    may: Vec<Vec<Content>>,
    /// What is submitted now may be in it.
    open: bool,
}

/// The numbers of the contents that were acknowledged at one moment.
pub(super) struct Mark(Vec<u64>);

/// See the module.
pub(super) struct Ledger {
    writer: u64,
    units: Vec<Unit>,
    views: BTreeMap<Uuid, View>,
}

impl Ledger {
    /// Of a replica that is new.
    pub(super) fn new(writer: u64, units: u64) -> Self {
        let units = (0..units).map(|_| Unit::exactly(Content::Zeroes)).collect();
        Self { writer, units, views: BTreeMap::new() }
    }

    /// Of a clone: the view has been read.
    pub(super) fn of_clone(&self, snapshot: Uuid) -> Self {
        let units = self.views[&snapshot].may.iter().map(|may| Unit::exactly(may[0])).collect();
        Self { writer: self.writer, units, views: BTreeMap::new() }
    }

    pub(super) fn len(&self) -> u64 {
        self.units.len() as u64
    }

    /// A write, or an unmapped range, is submitted.
    pub(super) fn begin(&mut self, units: Range<u64>, content: Content) {
        for at in units {
            let unit = &mut self.units[at as usize];
            assert_eq!(unit.acked - unit.gone + 1, unit.may.len() as u64, "unit {at} has two writers");
            unit.may.push_back(content);
            for view in self.views.values_mut().filter(|view| view.open) {
                view.may[at as usize].push(content);
            }
        }
    }

    /// What was begun there is acknowledged.
    pub(super) fn done(&mut self, units: Range<u64>) {
        units.for_each(|at| self.units[at as usize].acked += 1);
    }

    /// What was begun and acknowledged there is durable, too.
    pub(super) fn done_durably(&mut self, units: Range<u64>) {
        for at in units {
            let unit = &mut self.units[at as usize];
            unit.acked += 1;
            unit.gone = unit.acked;
            unit.may.drain(..unit.may.len() - 1);
        }
    }

    /// What a flush, or a snapshot, that is asked for now makes durable.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.units.iter().map(|unit| unit.acked).collect())
    }

    /// It succeeded.
    pub(super) fn durable(&mut self, mark: &Mark) {
        for (unit, &acked) in self.units.iter_mut().zip(&mark.0) {
            let old = acked.saturating_sub(unit.gone);
            unit.may.drain(..old as usize);
            unit.gone += old;
        }
    }

    /// A snapshot is asked for.
    pub(super) fn open_view(&mut self, snapshot: Uuid) {
        let may = self.units.iter().map(|unit| {
            let from = (unit.acked - unit.gone) as usize;
            unit.may.iter().skip(from).copied().collect()
        });
        self.views.insert(snapshot, View { may: may.collect(), open: true });
    }

    /// It was made: what is submitted from now on is not in it.
    pub(super) fn close_view(&mut self, snapshot: Uuid) {
        if let Some(view) = self.views.get_mut(&snapshot) {
            view.open = false;
        }
    }

    /// It is gone.
    pub(super) fn forget_view(&mut self, snapshot: Uuid) {
        self.views.remove(&snapshot);
    }

    /// The newest content of a unit, of which nothing is in flight, is what was acknowledged last.
    pub(super) fn check_newest(&self, unit: u64, found: &[u8]) -> Result<(), String> {
        let want = self.units[unit as usize].acked();
        let found = self.read(unit, found);
        if found == Ok(want) {
            return Ok(());
        }
        Err(format!("unit {unit} reads {found:?} while the daemon lives; {want:?} was acknowledged"))
    }

    /// What the daemon has after a restart is one of what may be there, and counts from now on.
    pub(super) fn settle(&mut self, unit: u64, found: &[u8]) -> Result<(), String> {
        let found = self.read(unit, found);
        let unit_state = &mut self.units[unit as usize];
        match found {
            Ok(content) if unit_state.may.contains(&content) => {
                *unit_state = Unit::exactly(content);
                Ok(())
            }
            _ => Err(format!("unit {unit} reads {found:?} after a kill; it may hold {:?}", unit_state.may)),
        }
    }

    /// The same for a snapshot.
    pub(super) fn settle_view(&mut self, snapshot: Uuid, unit: u64, found: &[u8]) -> Result<(), String> {
        let found = self.read(unit, found);
        let may = &mut self.views.get_mut(&snapshot).expect("a snapshot that is known").may[unit as usize];
        match found {
            Ok(content) if may.contains(&content) => {
                *may = vec![content];
                Ok(())
            }
            _ => Err(format!("unit {unit} of snapshot {snapshot} reads {found:?}; it has one of {may:?}")),
        }
    }

    fn read(&self, unit: u64, block: &[u8]) -> Result<Content, Damage> {
        if block.iter().all(|b| *b == 0) {
            return Ok(Content::Zeroes);
        }
        match Stamp::read(block, unit)? {
            stamp if stamp.writer == self.writer => Ok(Content::Version(stamp.version)),
            stamp => Err(Damage::Stale(stamp)),
        }
    }

    /// The bytes of a version of a unit.
    pub(super) fn stamp(&self, unit: u64, version: u64) -> Stamp {
        Stamp { lba: unit, version, writer: self.writer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(version: u64) -> Vec<u8> {
        let mut block = vec![0; 512];
        Stamp { lba: 0, version, writer: 7 }.write(&mut block);
        block
    }

    /// Version 1 flushed, 2 acknowledged after the mark, 3 in flight.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(7, 2);
        ledger.begin(0..1, Content::Version(1));
        ledger.done(0..1);
        let mark = ledger.mark();
        ledger.begin(0..1, Content::Version(2));
        ledger.done(0..1);
        ledger.durable(&mark);
        ledger.open_view(Uuid::nil());
        ledger.begin(0..1, Content::Version(3));
        ledger
    }

    #[test]
    fn what_was_flushed_or_came_later_may_be_there() {
        for (version, good) in [(1, true), (2, true), (3, true), (4, false)] {
            assert_eq!(ledger().settle(0, &block(version)).is_ok(), good, "{version}");
        }
        assert!(ledger().settle(0, &[0; 512]).is_err(), "older than what was flushed");
        assert!(ledger().settle(1, &[0; 512]).is_ok() && ledger().settle(1, &block(1)).is_err());
        let mut torn = block(2);
        torn[300] ^= 1;
        assert!(ledger().settle(0, &torn).is_err());
    }

    #[test]
    fn a_snapshot_is_of_one_moment_between_request_and_answer() {
        for (version, good) in [(1, false), (2, true), (3, true), (4, false)] {
            let mut ledger = ledger();
            ledger.close_view(Uuid::nil());
            ledger.done(0..1);
            ledger.begin(0..1, Content::Version(4));
            assert_eq!(ledger.settle_view(Uuid::nil(), 0, &block(version)).is_ok(), good, "{version}");
            if good {
                let other = if version == 2 { 3 } else { 2 };
                assert!(ledger.settle_view(Uuid::nil(), 0, &block(other)).is_err(), "it changed");
            }
        }
    }

    #[test]
    fn what_was_written_through_is_all_that_may_be_there() {
        let mut ledger = ledger();
        ledger.done_durably(0..1);
        assert!(ledger.check_newest(0, &block(3)).is_ok() && ledger.check_newest(0, &block(2)).is_err());
        assert!(ledger.settle(0, &block(2)).is_err());
        assert!(ledger.settle(0, &block(3)).is_ok());
    }
}
