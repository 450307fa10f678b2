//! A disk is emptied while the pool is in use, and leaves it (`FORMAT.md` section 12).
//!
//! The mark that it is being emptied is in the anchor, so that an import goes on with it. What is live on it is moved as the
//! cleaner does: blocks by records of the log, map pages by the next merge; the tables are written elsewhere by every
//! checkpoint.

use std::rc::Rc;

use aio::gate::Pass;

use super::clean::Pace;
use super::member::Member;
use super::{Inner, LOOK_AGAIN, Store};
use crate::LvsError;
use crate::format::anchor::{Member as AnchorMember, MemberState};
use crate::format::label;
use crate::types::{BLOCK_BYTES, SegmentId};

/// Blocks that are moved between two checkpoints.
const MOST_MOVED: u32 = 16 * 1024;
/// Rounds without anything moved after which the disk cannot be emptied.
const IDLE_ROUNDS: u32 = 8;

impl Store {
    /// Empties a disk and removes it. An error leaves it in the pool, still marked; calling again goes on.
    pub(crate) async fn remove_disk(self: &Rc<Self>, disk: String) -> Result<(), LvsError> {
        if self.evacuating.replace(true) {
            let inner = self.inner();
            let pool = inner.name.clone();
            return Err(LvsError::DiskStays { disk, pool, why: "another disk is being removed".to_owned() });
        }
        let removed = async {
            let member = self.begin_evacuation(&disk).await?;
            self.evacuate(member).await?;
            self.part_with(member).await
        };
        let removed = removed.await;
        self.evacuating.set(false);
        removed
    }

    /// Nothing more is put on the disk, durably. Its index.
    async fn begin_evacuation(self: &Rc<Self>, disk: &str) -> Result<usize, LvsError> {
        let _pass = self.enter_changes().await?;
        let member = {
            let inner = self.inner();
            inner.check_fault()?;
            let member = inner.find_disk(disk)?;
            if inner.members[member].state == MemberState::Removed {
                // The checkpoint that lists it as removed did not fit.
                return Ok(member);
            }
            inner.check_can_leave(member)?;
            member
        };
        // What an import took over counts as newer than its own checkpoint, and moves only when a checkpoint has a record behind
        // that: nobody else may write one.
        let quiet = {
            let inner = self.inner();
            inner.log.last() <= inner.anchor.base
        };
        if quiet {
            self.note_in_catalogue().await?;
        }
        {
            let _between = self.checkpoints.enter().await;
            self.inner().leave(member);
        }
        self.checkpoint(false).await?;
        Ok(member)
    }

    /// Moves everything off the disk.
    async fn evacuate(self: &Rc<Self>, member: usize) -> Result<(), LvsError> {
        let mut idle = 0;
        loop {
            let before = self.inner().space.held(member as u8);
            if before.0 == 0 {
                return Ok(());
            }
            self.empty_some(member).await?;
            self.checkpoint(false).await?;
            idle = if self.inner().space.held(member as u8) < before { 0 } else { idle + 1 };
            if idle >= IDLE_ROUNDS {
                return Err(self.inner().why_it_stays(member));
            }
        }
    }

    /// Moves what is live in segments of the disk until enough was moved for one checkpoint.
    async fn empty_some(self: &Rc<Self>, member: usize) -> Result<(), LvsError> {
        let mut looked_at: Vec<SegmentId> = Vec::new();
        let mut moved = 0;
        while moved < MOST_MOVED {
            let next = {
                let inner = self.inner();
                inner.check_fault()?;
                inner.space.next_to_empty(member as u8, inner.anchor.base, &looked_at)
            };
            let Some((id, live)) = next else { return Ok(()) };
            if self.closing.get() {
                return Err(LvsError::Closed { pool: self.inner().name.clone() });
            }
            if !self.inner().fits(id, live) {
                if moved > 0 {
                    return Ok(());
                }
                self.make_room_to_move(id, live).await?;
            }
            looked_at.push(id);
            let began = self.core.now();
            if !self.clean_segment(id, Pace::OfCaller).await? {
                return Ok(());
            }
            moved += live;
            // Half of the time at most, so that others get their share of the disks.
            let took = self.core.now().since(began);
            self.core.sleep(took.max(LOOK_AGAIN)).await;
        }
        Ok(())
    }

    /// The log has no segments to spare, or the delta no room: a checkpoint, and whatever the cleaner can do.
    async fn make_room_to_move(self: &Rc<Self>, id: SegmentId, live: u32) -> Result<(), LvsError> {
        self.checkpoint(false).await?;
        if self.inner().fits(id, live) {
            return Ok(());
        }
        self.inner().budget.want_cleaning = true;
        self.look_after();
        while self.background.get() || self.cleaning.get() {
            self.core.sleep(LOOK_AGAIN).await;
        }
        self.inner().check_fault()
    }

    /// The disk is empty: a checkpoint without it, and then it is erased.
    async fn part_with(self: &Rc<Self>, member: usize) -> Result<(), LvsError> {
        let _pass = self.enter_changes().await?;
        {
            let _between = self.checkpoints.enter().await;
            let mut inner = self.inner();
            inner.check_fault()?;
            if inner.space.held(member as u8) != (0, 0) {
                return Err(inner.why_it_stays(member));
            }
            inner.members[member].state = MemberState::Removed;
            inner.space.remove_member(member as u8);
        }
        // It does not get this anchor itself. Reads that may go there end before this does.
        self.checkpoint(false).await?;
        let gone = self.take_out(member).await?;
        // Whether this succeeds or not, the anchor says that it is no disk of the pool.
        let zeroes = vec![0; label::FIRST_SEGMENT_BLOCK as usize * BLOCK_BYTES as usize];
        let _ = self.write_beside(&gone, 0, &zeroes).await;
        gone.close().await;
        Ok(())
    }

    /// Puts something absent in the disk's place once nothing is in flight to it.
    async fn take_out(self: &Rc<Self>, member: usize) -> Result<Member, LvsError> {
        while self.inner().is_busy(member) {
            self.core.sleep(LOOK_AGAIN).await;
        }
        let (pool, listed, like) = {
            let inner = self.inner();
            let like = inner.volume_geometry();
            let listed: AnchorMember = inner.anchor.members[member];
            (inner.name.clone(), listed, inner.members.get(member).map_or(like, |m| m.geometry))
        };
        let absent = Member::absent(&pool, &listed, member, like).await?;
        let mut inner = self.inner();
        let Some(place) = inner.members.get_mut(member) else {
            return Err(LvsError::Closed { pool });
        };
        Ok(core::mem::replace(place, absent))
    }

    /// As [`Gate::enter`](aio::gate::Gate::enter) for changes, unless the pool is being closed.
    async fn enter_changes(&self) -> Result<Pass<'_>, LvsError> {
        loop {
            if self.closing.get() {
                return Err(LvsError::Closed { pool: self.inner().name.clone() });
            }
            if let Some(pass) = self.changes.try_enter() {
                return Ok(pass);
            }
            self.core.sleep(LOOK_AGAIN).await;
        }
    }
}

impl Inner {
    /// Can the pool do without the disk?
    fn check_can_leave(&self, member: usize) -> Result<(), LvsError> {
        let disk = self.members[member].device.name().to_owned();
        let stays = |why: String| Err(LvsError::DiskStays { disk, pool: self.name.clone(), why });
        let others = self
            .members
            .iter()
            .enumerate()
            .filter(|(index, m)| *index != member && m.state == MemberState::Active && !m.absent);
        if others.count() == 0 {
            let why = "it is the only one that stays; add another one first, or destroy the pool";
            return stays(why.to_owned());
        }
        let left = self.space.capacity_without(Some(member as u8));
        let needed = self.taken_blocks();
        if needed > left {
            let bytes = |blocks: u64| blocks * u64::from(BLOCK_BYTES);
            return stays(format!(
                "{} bytes are in use, and the other disks can hold {}; delete something or add a disk",
                bytes(needed),
                bytes(left)
            ));
        }
        Ok(())
    }

    /// Nothing more is put on the disk from now on. Between checkpoints.
    fn leave(&mut self, member: usize) {
        self.members[member].state = MemberState::Evacuating;
        self.space.leave(member as u8);
        self.log.leave(member as u8, &mut self.space);
        for stream in &mut self.page_streams {
            if let Some(open) = stream.take_if(|s| usize::from(s.segment.member()) == member) {
                self.space.close(open.segment, super::space::State::Pages);
            }
        }
        // Written elsewhere by the next checkpoint.
        self.catalogue.dirty = true;
    }

    fn why_it_stays(&self, member: usize) -> LvsError {
        let (segments, live) = self.space.held(member as u8);
        let why = format!(
            "{live} blocks in {segments} of its segments could not be moved: they cannot be read, or a map page that \
             leads to them cannot, or there is no room elsewhere; `keelson pool check` says which they are"
        );
        let disk = self.members[member].device.name().to_owned();
        LvsError::DiskStays { disk, pool: self.name.clone(), why }
    }

    /// Is anything in flight to this disk?
    fn is_busy(&self, member: usize) -> bool {
        let busy = |m: &Member| m.flushing > 0 || !m.is_idle();
        self.members.get(member).is_some_and(busy)
    }
}
