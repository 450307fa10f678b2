//! Labels, anchors and tables: all of their copies.

use super::{Halt, Scrubber};
use crate::LvsError;
use crate::format::anchor::{Anchor, MAX_ANCHOR_BYTES, MemberState};
use crate::format::blob::BlobPtr;
use crate::format::label::{self, LABEL_BLOCKS, LABEL_BYTES, Label};
use crate::info::ScrubReport;
use crate::store::Inner;
use crate::store::clean::Hold;
use crate::store::inspect::tables;
use crate::store::verify::Wrong;

/// What copies are called.
const COPIES: [&str; 2] = ["A", "B"];

/// A copy on a disk that is not as it should be.
struct Bad {
    member: u8,
    block: u64,
    wrong: Wrong,
    what: String,
}

impl Scrubber {
    /// One copy of something was looked at. True when it is good.
    pub(super) fn judged(&self, wrong: Option<Wrong>, what: &str) -> bool {
        match wrong {
            None => return true,
            Some(Wrong::Checksum) => self.tell(format!("{what} is not what was written")),
            Some(Wrong::Unreadable) => self.tell(format!("{what} cannot be read")),
        }
        self.note(|report| count(report, wrong));
        false
    }

    /// Labels and the newest anchor, both copies on each disk.
    pub(super) async fn superblocks(&self) -> Result<(), Halt> {
        let bad = {
            // Between checkpoints no anchor is being written, and no disk joins or leaves.
            let _between = self.store.checkpoints.enter().await;
            let (labels, anchors) = self.look_at_superblocks(true).await?;
            self.mend_labels(&labels).await;
            anchors.len()
        };
        if bad > 0 && self.write_anew().await {
            // A new anchor is everywhere now.
            let _between = self.store.checkpoints.enter().await;
            let still = self.look_at_superblocks(false).await?.1.len();
            self.note(|report| report.repaired += bad.saturating_sub(still) as u64);
        }
        self.rest().await
    }

    /// A checkpoint, if the pool takes writes.
    pub(super) async fn write_anew(&self) -> bool {
        let writable = self.store.inner().check_fault().is_ok();
        writable && self.store.checkpoint(false).await.is_ok()
    }

    /// Bad copies of labels, and of the newest anchor. `first`: they count.
    async fn look_at_superblocks(&self, first: bool) -> Result<(Vec<Bad>, Vec<Bad>), Halt> {
        let disks = self.store.inner().disks_with_superblocks();
        let (mut labels, mut anchors) = (Vec::new(), Vec::new());
        for (member, disk) in disks {
            for (block, name) in LABEL_BLOCKS.into_iter().zip(COPIES) {
                let what = format!("copy {name} of the label of {disk}");
                let bytes = self.read_copy(member, block, LABEL_BYTES).await?;
                let wrong = self.store.inner().judge_label(member, bytes.as_deref());
                labels.extend(wrong.map(|wrong| Bad { member, block, wrong, what }));
            }
            for (copy, name) in COPIES.into_iter().enumerate() {
                let what = format!("copy {name} of the newest anchor of {disk}");
                let block = label::anchor_block(copy, self.store.inner().anchor.checkpoint);
                let bytes = self.read_copy(member, block, MAX_ANCHOR_BYTES).await?;
                let wrong = self.store.inner().judge_newest(bytes.as_deref());
                anchors.extend(wrong.map(|wrong| Bad { member, block, wrong, what }));
            }
            if first {
                let copies = LABEL_BLOCKS.len() + COPIES.len();
                self.note(|report| report.superblocks += copies as u64);
            }
        }
        if first {
            for bad in labels.iter().chain(&anchors) {
                self.judged(Some(bad.wrong), &bad.what);
            }
        }
        Ok((labels, anchors))
    }

    /// The bytes of a copy; `None` when the disk does not read them, twice.
    async fn read_copy(&self, member: u8, block: u64, len_bytes: usize) -> Result<Option<Vec<u8>>, Halt> {
        let began = self.store.core.now();
        let mut bytes = self.store.read_copy(member, block, len_bytes).await?;
        if bytes.is_none() {
            bytes = self.store.read_copy(member, block, len_bytes).await?;
        }
        self.has_read(len_bytes as u64, began);
        Ok(bytes)
    }

    /// Writes damaged copies of labels anew, from the other one.
    async fn mend_labels(&self, bad: &[Bad]) {
        for Bad { member, block, .. } in bad {
            let writable = self.store.inner().check_fault().is_ok();
            if writable && self.store.repair_label(*member, *block).await.is_ok() {
                self.note(|report| report.repaired += 1);
            }
        }
    }

    /// Both copies of the tables.
    pub(super) async fn tables(&self) -> Result<(), Halt> {
        let mut bad = Vec::new();
        let count = tables(&self.store.inner().anchor).len();
        for table in 0..count {
            for copy in 0..2 {
                let Some((name, wrong)) = self.look_at_table(table, copy).await? else { continue };
                self.note(|report| report.tables += 1);
                let which = ["first", "second"][copy];
                if !self.judged(wrong, &format!("the {which} copy of {name}")) {
                    bad.push((table, copy));
                }
                self.rest().await?;
            }
        }
        if bad.is_empty() {
            return Ok(());
        }
        // All of them are written anew, from what is in memory.
        self.store.inner().catalogue.dirty = true;
        if self.write_anew().await {
            for (table, copy) in bad {
                let good = !matches!(self.look_at_table(table, copy).await?, Some((_, Some(_))));
                self.note(|report| report.repaired += u64::from(good));
            }
        }
        Ok(())
    }

    /// Looks at one copy of one table; `None` when there is no such.
    async fn look_at_table(
        &self,
        table: usize,
        copy: usize,
    ) -> Result<Option<(&'static str, Option<Wrong>)>, Halt> {
        // As long as it is held the anchor's tables stay, whatever checkpoints come.
        let _hold = Hold::new(&self.store);
        let (name, ptr): (&str, BlobPtr) = {
            let inner = self.store.inner();
            let (name, ptr) = tables(&inner.anchor)[table];
            (name, ptr.clone())
        };
        let extents = if copy == 0 { &ptr.extents } else { &ptr.copy };
        if extents.is_empty() {
            return Ok(None);
        }
        let began = self.store.core.now();
        let mut read = self.store.read_blob_copy(&ptr, extents).await;
        if read.is_err() {
            // It may have been a slip of the disk.
            read = self.store.read_blob_copy(&ptr, extents).await;
        }
        self.has_read(ptr.len_bytes, began);
        match read {
            Ok(_) => Ok(Some((name, None))),
            Err(LvsError::Io { .. }) => Ok(Some((name, Some(Wrong::Unreadable)))),
            Err(error) if error.is_damage() => Ok(Some((name, Some(Wrong::Checksum)))),
            Err(error) => Err(error.into()),
        }
    }
}

/// Counts what is wrong.
pub(super) fn count(report: &mut ScrubReport, wrong: Option<Wrong>) {
    match wrong {
        None => {}
        Some(Wrong::Checksum) => report.wrong_checksums += 1,
        Some(Wrong::Unreadable) => report.unreadable += 1,
    }
}

impl Inner {
    /// Disks that have to have labels and anchors, and their names.
    fn disks_with_superblocks(&self) -> Vec<(u8, String)> {
        let mut disks = Vec::new();
        for (index, (m, listed)) in self.members.iter().zip(&self.anchor.members).enumerate() {
            let has = |state| matches!(state, MemberState::Active | MemberState::Evacuating);
            if !m.absent && has(m.state) && has(listed.state) {
                disks.push((index as u8, m.device.name().to_owned()));
            }
        }
        disks
    }

    fn judge_label(&self, member: u8, bytes: Option<&[u8]>) -> Option<Wrong> {
        let Some(bytes) = bytes else { return Some(Wrong::Unreadable) };
        let disk = self.members.get(usize::from(member)).map(|m| m.uuid);
        let good = |label: Label| label.pool == self.uuid && Some(label.device) == disk;
        if Label::decode(bytes).is_ok_and(good) { None } else { Some(Wrong::Checksum) }
    }

    fn judge_newest(&self, bytes: Option<&[u8]>) -> Option<Wrong> {
        let Some(bytes) = bytes else { return Some(Wrong::Unreadable) };
        let good = match Anchor::decode(bytes) {
            // What a crash left is not made good in a pool that is only read.
            Ok(found) => found == self.anchor || self.is_read_only(),
            Err(_) => false,
        };
        if good { None } else { Some(Wrong::Checksum) }
    }
}
