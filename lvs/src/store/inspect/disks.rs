//! Labels and anchors: both copies on each disk. One of each could be read, or there would be nothing to inspect.

use super::{Inspection, Mend};
use crate::LvsError;
use crate::format::FormatError;
use crate::format::anchor::{Anchor, MAX_ANCHOR_BYTES};
use crate::format::label::{self, LABEL_BLOCKS, LABEL_BYTES, Label};
use crate::store::Store;
use crate::types::{BLOCK_BYTES, Pba};

/// What copies are called.
const COPIES: [&str; 2] = ["A", "B"];

/// How a copy is.
enum Copy {
    /// As it should be; or as it was before a crash that came between the two, which the next import makes good.
    Good,
    /// Damaged, for this reason.
    Damaged(String),
    /// Whole, and something that cannot be.
    Strange(String),
}

impl Store {
    pub(super) async fn inspect_disks(&self, inspection: &mut Inspection) -> Result<(), LvsError> {
        let (anchor, followed, disks) = {
            let inner = self.inner();
            let there = inner.members.iter().enumerate().filter(|(_, m)| !m.absent);
            let disks: Vec<_> =
                there.map(|(index, m)| (index as u8, m.uuid, m.device.name().to_owned())).collect();
            (inner.anchor.clone(), inner.anchor_followed, disks)
        };
        for (member, uuid, disk) in &disks {
            let member = *member;
            for (block, name) in LABEL_BLOCKS.into_iter().zip(COPIES) {
                let bytes = self.read_copy(member, block, LABEL_BYTES).await?;
                let copy = match bytes.map(|bytes| Label::decode(&bytes)) {
                    Some(Ok(label)) if label.pool == anchor.pool && label.device == *uuid => Copy::Good,
                    Some(Ok(label)) => Copy::Strange(format!("is that of a disk of pool {}", label.name)),
                    Some(Err(error)) => Copy::Damaged(error.to_string()),
                    None => Copy::Damaged("it cannot be read".to_owned()),
                };
                let what = format!("copy {name} of the label of {disk}");
                inspection.judge(&what, copy, |mend| mend.labels.push((member, block)));
            }
            for (copy, name) in COPIES.into_iter().enumerate() {
                let block = label::anchor_block(copy, anchor.checkpoint);
                let bytes = self.read_copy(member, block, MAX_ANCHOR_BYTES).await?;
                let what = format!("copy {name} of the newest anchor of {disk}");
                let copy = match judge_anchor(bytes.as_deref(), &anchor) {
                    // As a crash in the middle of it leaves it.
                    Copy::Damaged(_) if bytes.is_some() && !followed => Copy::Good,
                    copy => copy,
                };
                inspection.judge(&what, copy, |mend| mend.anchors.push((member, block)));
            }
        }
        Ok(())
    }

    /// The bytes of a copy; `None` when they cannot be read.
    pub(in crate::store) async fn read_copy(
        &self,
        member: u8,
        block: u64,
        len_bytes: usize,
    ) -> Result<Option<Vec<u8>>, LvsError> {
        let pba = Pba::new(member, block).unwrap_or(Pba::NONE);
        match self.read_blocks(pba, (len_bytes as u32).div_ceil(BLOCK_BYTES)).await {
            Ok(buf) => Ok(Some(buf[..len_bytes].to_vec())),
            Err(LvsError::Io { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

fn judge_anchor(bytes: Option<&[u8]>, newest: &Anchor) -> Copy {
    let Some(bytes) = bytes else { return Copy::Damaged("it cannot be read".to_owned()) };
    match Anchor::decode(bytes) {
        Ok(found) if found == *newest => Copy::Good,
        // Of an earlier pool, or of this one and older: it was to be written next.
        Ok(found) if found.pool != newest.pool || found.checkpoint < newest.checkpoint => Copy::Good,
        Ok(found) => {
            Copy::Strange(format!("is of checkpoint {} and not like the other ones", found.checkpoint))
        }
        // The first one of its slot was to be written next.
        Err(FormatError::Magic(_)) if bytes.iter().all(|b| *b == 0) => Copy::Good,
        Err(error) => Copy::Damaged(error.to_string()),
    }
}

impl Inspection {
    fn judge(&mut self, what: &str, copy: Copy, note: impl FnOnce(&mut Mend)) {
        match copy {
            Copy::Good => {}
            Copy::Strange(why) => self.find(format!("{what} {why}")),
            Copy::Damaged(why) => {
                note(&mut self.mend);
                self.find_mendable(format!("{what} is damaged: {why}"));
            }
        }
    }
}
