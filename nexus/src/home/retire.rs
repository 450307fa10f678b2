//! What happens when children fail.
//!
//! # Order, and why nothing acknowledged is lost
//! 1. Channels stop admission, and say which children have failed writes that wait. What is on its way goes on.
//! 2. One child in sync at least stays. When all have failed, one stays although it failed, and its answers are the
//!    hosts' answers; the others go, for nobody can tell which of the failed writes they have (hazard H7).
//! 3. The record says that those who go are not healthy, durably. A crash before this leaves them healthy, and the writes
//!    that they missed unacknowledged; a crash after it, and nobody ever reads from them.
//! 4. Every channel takes them out. From then on no read goes to them.
//! 5. Only then the waiting writes are acknowledged, and admission goes on.
//!
//! A child that answers Reservation Conflict is not retired: this nexus was shut out ([`crate::fencing`]), and ends.
//!
//! When the record cannot be saved the nexus shuts itself down: what waits fails, and nothing is acknowledged that could
//! be forgotten. When no child can be reached, I/O waits until one comes back.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use aio::IoStatus;

use super::{Home, Life, note};
use crate::channel::{self, Verdict, is_conflict, is_gone};
use crate::child::{ChildState, Fault, Mask, places};
use crate::dirty::DirtyMap;
use crate::membership::StoreError;

impl Home {
    /// Children at these places have failed.
    pub(super) async fn retire(self: &Rc<Self>, failures: BTreeMap<usize, IoStatus>) {
        let _pass = self.gate.enter().await;
        if self.check_open("use").is_err() {
            return;
        }
        let mut failures = failures;
        for (place, status) in self.freeze().await {
            note(&mut failures, place, status);
        }
        if failures.values().any(|s| is_conflict(*s)) {
            // Somebody else owns the volume now: its children are his, and healthy. Also one that is out already tells.
            return self.end(Life::Shutdown).await;
        }
        failures.retain(|&place, _| self.is_member(place));
        if self.state.borrow().life == Life::Lost {
            // The news of children that are out already.
            return self.settle(Verdict::Wait).await;
        }
        let failed = failures.keys().fold(0, |mask: Mask, place| mask | 1 << place);
        let synced = self.synced();
        let mut lost = None;
        let mut goes = failed;
        if synced & !failed == 0 && synced != 0 {
            let kept = keep(synced, &failures);
            goes = self.members() & !(1 << kept);
            lost = failures.get(&kept).is_some_and(|&s| is_gone(s)).then_some(kept);
        }
        let fault = |place| failures.get(&place).map_or(Fault::IoError, |&s| Fault::of(s));
        if self.take_out(goes, fault).await.is_err() {
            return self.end(Life::Shutdown).await;
        }
        let Some(kept) = lost else { return self.settle(Verdict::Settle).await };
        self.state.borrow_mut().life = Life::Lost;
        self.mark_out(kept, ChildState::Faulted(fault(kept)));
        self.settle(Verdict::Wait).await;
    }

    /// A child refused a copy because another nexus has taken it over.
    pub(super) async fn fenced(self: &Rc<Self>) {
        let _pass = self.gate.enter().await;
        if self.check_open("use").is_ok() {
            self.freeze().await;
            self.end(Life::Shutdown).await;
        }
    }

    /// A child's channel could not be opened on some core. For a decision that is being made already, and never for the
    /// last child in sync.
    pub(super) async fn retire_unopened(self: &Rc<Self>, place: usize) {
        self.freeze().await;
        if self.take_out(1 << place, |_| Fault::CantOpen).await.is_err() {
            return self.end(Life::Shutdown).await;
        }
        self.settle(Verdict::Settle).await;
    }

    /// Makes every channel as the state says, which only takes children out.
    pub(super) async fn settle(self: &Rc<Self>, verdict: Verdict) {
        let table = self.table(verdict);
        // Nothing is opened, so nothing fails to open.
        let _ = self.apply(&table).await;
    }

    /// Records that children are not healthy, and then takes them out of the state.
    pub(super) async fn take_out(
        self: &Rc<Self>,
        goes: Mask,
        fault: impl Fn(usize) -> Fault,
    ) -> Result<(), StoreError> {
        let record = {
            let state = self.state.borrow();
            let mut record = state.record.clone();
            for place in places(goes) {
                let Some(child) = &state.children[place] else { continue };
                // The last healthy member stays so: it is where the data is.
                if record.healthy() > 1 {
                    record.set_healthy(child.uuid, false);
                }
            }
            (record != state.record).then_some(record)
        };
        if let Some(record) = record {
            self.store.save(&record).await?;
            self.state.borrow_mut().record = record;
        }
        for place in places(goes) {
            self.mark_out(place, ChildState::Faulted(fault(place)));
        }
        Ok(())
    }

    /// A member is none any more.
    pub(super) fn mark_out(self: &Rc<Self>, place: usize, becomes: ChildState) {
        let mut state = self.state.borrow_mut();
        // Before anything is acknowledged that this one lacks.
        state.children.iter().flatten().filter_map(|c| c.job.as_ref()).for_each(|j| j.lose_source(place));
        let peers = state.peers.clone();
        self.leavings.set(self.leavings.get() + 1);
        let Some(child) = &mut state.children[place] else { return };
        child.written = None;
        self.leave_account(place);
        child.fault_time = Some(SystemTime::now());
        if !child.is_member() {
            child.state = becomes;
            return;
        }
        // Of a child that had everything, what it misses from now on is all that it misses, if it forgets nothing.
        let was_synced = child.state == ChildState::Online;
        child.log = was_synced.then(|| child.device.incarnation()).flatten().map(|incarnation| {
            let (size, block_bytes) = (self.shared.size(), self.shared.geometry.block_bytes);
            (Arc::new(DirtyMap::clean(size, block_bytes)), incarnation)
        });
        child.state = becomes;
        if let Some(job) = child.job.take() {
            job.abandon();
        }
        child.leaving.set(peers.len() as u32);
        for peer in peers {
            let home = self.clone();
            // Detached: it ends with the child's last answer.
            drop(self.core.spawn(async move {
                let id = peer.id;
                let _ = peer.core.call(move || channel::gone(id, place)).await;
                if let Some(child) = &home.state.borrow().children[place] {
                    child.leaving.set(child.leaving.get().saturating_sub(1));
                }
            }));
        }
    }

    fn members(&self) -> Mask {
        (0..crate::child::MAX_CHILDREN).filter(|&p| self.is_member(p)).fold(0, |mask, p| mask | 1 << p)
    }

    fn is_member(&self, place: usize) -> bool {
        self.state.borrow().children[place].as_ref().is_some_and(super::Child::is_member)
    }

    /// The end: channels let go of all children, and what waits fails.
    pub(super) async fn end(self: &Rc<Self>, life: Life) {
        self.state.borrow_mut().life = life;
        let jobs: Vec<_> = {
            let mut state = self.state.borrow_mut();
            state.children.iter_mut().flatten().filter_map(|c| c.job.take()).collect()
        };
        jobs.iter().for_each(|j| j.abandon());
        self.settle(Verdict::Fail(crate::SHUT_DOWN)).await;
    }
}

/// Which of the children in sync, that all have failed, stays: rather one that answers than one that is gone.
fn keep(synced: Mask, failures: &BTreeMap<usize, IoStatus>) -> usize {
    let gone = |place: &usize| failures.get(place).is_some_and(|&s| is_gone(s));
    places(synced).min_by_key(gone).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_answers_is_kept() {
        let gone = IoStatus::NAMESPACE_NOT_READY;
        let failures = |list: &[(usize, IoStatus)]| list.iter().copied().collect::<BTreeMap<_, _>>();
        assert_eq!(keep(0b110, &failures(&[(1, gone), (2, IoStatus::CAPACITY_EXCEEDED)])), 2);
        assert_eq!(keep(0b110, &failures(&[(1, gone), (2, gone)])), 1);
        assert_eq!(keep(0b100, &failures(&[(2, gone)])), 2);
    }
}
