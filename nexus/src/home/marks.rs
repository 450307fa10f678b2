//! Marks: places in the children's histories that a resync asks from (hazard H2).
//!
//! # A mark, and why it is enough
//! 1. Each child in sync says where it is (its *position*): what it is sent later is behind that.
//! 2. Every write that was sent to the children before the last of these answers completes, on all of them.
//! 3. Each child makes everything durable that completed, and keeps the position under the mark's id, which is random.
//!
//! A write that was sent after step 1 is behind the position of each child that gets it, and so among what that child tells as
//! changed since the mark. A write that was sent before is on every child, durably, before that child has the mark: no crash takes it away.
//! So two children that both have the mark differ at most in what one of them *or* the other tells as changed since, whatever
//! happened since, and whoever of them crashed. A resync copies the union, and asks nothing about which of them is newer.
//!
//! When a child leaves between steps 1 and 2, a write of before may be missing on it: the mark is given up. When it leaves
//! later, the mark is good. A child that lost power in between refuses to keep a position of its former incarnation.
//!
//! Marks stand on the children, so they are there after a crash of the nexus, or of everything, and whatever the next nexus is
//! called.
//!
//! # How many
//! A child keeps few marks, and the oldest goes first. The nexus removes those that it does not need any more: a mark is needed
//! as long as two of the children have none in common that is newer.

use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use aio::BlockDevice;
use uuid::Uuid;

use super::{Home, Life};
use crate::channel;
use crate::child::ChildState;

/// How often a mark is put while hosts write: that much of what was written before a child crashed is copied with what it missed.
const MARK_EVERY: Duration = Duration::from_secs(10);
/// Marks that are kept at most, of those that were put by this nexus.
const MOST_ROUNDS: usize = 8;

/// A mark that was put, and the children that have it.
struct Round {
    id: u128,
    holders: Vec<Uuid>,
}

/// What is known of marks.
#[derive(Default)]
pub(super) struct Rounds {
    /// The newest last.
    put: Vec<Round>,
    /// A mark is being put.
    busy: bool,
    /// Changes that hosts had made at the last one.
    changes: u64,
}

impl Rounds {
    /// Takes out what nobody needs, and gives the ids.
    fn superfluous(&mut self) -> Vec<u128> {
        let mut gone = Vec::new();
        let mut at = 0;
        while at < self.put.len() {
            let pairs = |round: &Round| {
                let h = round.holders.clone();
                let pair = |i: usize| h[i + 1..].iter().map(|b| (h[i], *b)).collect::<Vec<_>>();
                (0..h.len()).flat_map(pair).collect::<Vec<_>>()
            };
            let later = &self.put[at + 1..];
            let newer = |(a, b): &(Uuid, Uuid)| {
                later.iter().any(|round| round.holders.contains(a) && round.holders.contains(b))
            };
            let too_many = self.put.len() > MOST_ROUNDS && at == 0;
            if too_many || pairs(&self.put[at]).iter().all(newer) {
                gone.push(self.put.remove(at).id);
            } else {
                at += 1;
            }
        }
        gone
    }
}

impl Home {
    /// Puts marks from now on, until the nexus is no more.
    pub(super) fn start_marking(self: &Rc<Self>) {
        let (home, core) = (Rc::downgrade(self), self.core.clone());
        // Detached: it ends with the nexus.
        drop(self.core.spawn(async move {
            loop {
                match home.upgrade().filter(|h| h.is_alive()) {
                    Some(home) => home.mark_what_was_written().await,
                    None => return,
                }
                core.sleep(MARK_EVERY).await;
            }
        }));
    }

    fn is_alive(&self) -> bool {
        matches!(self.state.borrow().life, Life::Open | Life::Lost)
    }

    async fn mark_what_was_written(self: &Rc<Self>) {
        let sum = self.shared.stats.sum();
        let changes = sum.writes.ops.wrapping_add(sum.unmaps.ops);
        let idle = {
            let rounds = self.rounds.borrow();
            rounds.changes == changes && !rounds.put.is_empty()
        };
        if !idle && self.mark().await {
            self.rounds.borrow_mut().changes = changes;
        }
        self.sweep_account().await;
    }

    /// Puts a mark in a task of its own: for who has a decision to make meanwhile.
    pub(super) fn mark_soon(self: &Rc<Self>) {
        let home = self.clone();
        // Detached: it ends by itself.
        drop(self.core.spawn(async move { home.mark().await }));
    }

    /// Puts a mark on all children in sync that have marks. False when there are not two of them, or one left meanwhile. Not
    /// within a decision, which the writes that this waits for may wait for in turn.
    pub(crate) async fn mark(self: &Rc<Self>) -> bool {
        if core::mem::replace(&mut self.rounds.borrow_mut().busy, true) {
            return false;
        }
        let put = self.put_mark().await;
        self.rounds.borrow_mut().busy = false;
        put.is_some()
    }

    async fn put_mark(self: &Rc<Self>) -> Option<()> {
        let leavings = self.leavings.get();
        let children = self.marked_children();
        if children.len() < 2 {
            return None;
        }
        let mut positions = Vec::new();
        for (_, device) in &children {
            positions.push(device.marks()?.position().await.ok()?);
        }
        self.passed().await;
        if self.leavings.get() != leavings {
            return None;
        }
        let id = Uuid::new_v4().as_u128();
        let mut holders = Vec::new();
        for ((uuid, device), at) in children.iter().zip(positions) {
            if device.marks()?.put_mark(id, at).await.is_ok() {
                holders.push(*uuid);
            }
        }
        let put = (holders.len() > 1).then_some(());
        let superfluous = {
            let mut rounds = self.rounds.borrow_mut();
            rounds.put.push(Round { id, holders });
            rounds.superfluous()
        };
        for (_, device) in &children {
            for id in &superfluous {
                // A mark that stays is in nobody's way.
                let _ = device.marks()?.remove_mark(*id).await;
            }
        }
        put
    }

    /// Children in sync that have marks.
    fn marked_children(&self) -> Vec<(Uuid, Arc<dyn BlockDevice>)> {
        let state = self.state.borrow();
        let online = state.children.iter().flatten().filter(|c| c.state == ChildState::Online);
        let marked = online.filter(|c| c.device.marks().is_some());
        marked.map(|c| (c.uuid, c.device.clone())).collect()
    }

    /// Resolves when every change that was sent to the children before has ended, on all cores.
    pub(super) async fn passed(&self) {
        for peer in self.peers() {
            let id = peer.id;
            // A core that is gone has nothing on its way.
            let _ = peer.core.call(move || channel::passed(id)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_kept_as_long_as_two_children_have_no_newer_one() {
        let [a, b, c] = [1, 2, 3].map(Uuid::from_u128);
        let mut rounds = Rounds::default();
        let mut put = |id, holders: &[Uuid]| {
            rounds.put.push(Round { id, holders: holders.to_vec() });
            rounds.superfluous()
        };
        assert!(put(1, &[a, b, c]).is_empty());
        assert!(put(2, &[a, b]).is_empty(), "c is away, and has the first only");
        assert_eq!(put(3, &[a, b]), [2]);
        assert_eq!(put(4, &[a]), [4], "of no use to anybody");
        assert_eq!(put(5, &[a, b, c]), [1, 3]);
        for id in 6..30 {
            put(id, &[Uuid::from_u128(id), Uuid::from_u128(id + 1)]);
        }
        assert!(rounds.put.len() <= MOST_ROUNDS);
    }
}
