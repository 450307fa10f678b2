//! Marks of volumes: places in the log that changes are asked from. They are properties of the volume in the catalogue.

use std::rc::Rc;

use uuid::Uuid;

use super::{Inner, LOOK_AGAIN, Store, Target};
use crate::LvsError;
use crate::format::catalog::{Change, Object, VolumeObject};
use crate::types::Seq;
use aio::facets::{MOST_MARKS, Mark};

/// Properties of volumes that are marks begin so; the id in hexadecimal digits follows. The value is the number, decimal.
const MARK: &str = "mark.";

/// What says from when on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Past {
    /// A mark of the volume.
    Mark(u128),
    /// A snapshot of its line, or the one that it was cloned from.
    Snapshot(Uuid),
}

impl Store {
    /// Keeps a number of the log as a mark of a volume. Everything before it is durable first. False: the log did not
    /// reach it yet.
    pub(crate) async fn put_mark(self: &Rc<Self>, volume: Uuid, id: u128, at: Seq) -> Result<bool, LvsError> {
        if at > self.inner().position() {
            return Ok(false);
        }
        while self.inner().log.completed().next() < at {
            self.inner().check_fault()?;
            self.core.sleep(LOOK_AGAIN).await;
        }
        self.flush_all().await?;
        self.change_marks(volume, |object| {
            object.properties.insert(format!("{MARK}{id:032x}"), at.0.to_string());
            let marks = marks_in(object);
            for old in marks.iter().skip(MOST_MARKS) {
                object.properties.remove(&format!("{MARK}{:032x}", old.id));
            }
        })
        .await?;
        Ok(true)
    }

    /// Forgets a mark.
    pub(crate) async fn remove_mark(self: &Rc<Self>, volume: Uuid, id: u128) -> Result<(), LvsError> {
        self.change_marks(volume, |object| {
            object.properties.remove(&format!("{MARK}{id:032x}"));
        })
        .await
    }

    async fn change_marks(
        self: &Rc<Self>,
        volume: Uuid,
        change: impl FnOnce(&mut VolumeObject),
    ) -> Result<(), LvsError> {
        let _pass = self.changes.enter().await;
        let before = self.inner().volume(volume)?.clone();
        let mut object = before.clone();
        change(&mut object);
        if object == before {
            return Ok(());
        }
        self.change(Change::Put(Box::new(Object::Volume(object)))).await
    }
}

/// Marks of a volume, the newest first.
fn marks_in(object: &VolumeObject) -> Vec<Mark> {
    let mark = |(name, value): (&String, &String)| {
        let id = u128::from_str_radix(name.strip_prefix(MARK)?, 16).ok()?;
        Some(Mark { id, number: value.parse().ok()? })
    };
    let mut marks: Vec<Mark> = object.properties.iter().filter_map(mark).collect();
    marks.sort_unstable_by_key(|mark| core::cmp::Reverse((mark.number, mark.id)));
    marks
}

impl Inner {
    /// Marks of a volume, the newest first.
    pub(crate) fn marks_of(&self, volume: Uuid) -> Result<Vec<Mark>, LvsError> {
        self.volume(volume).map(marks_in)
    }

    /// The number from which on something changed, for a volume or snapshot that looks at `target`; `None`: it is not known.
    pub(crate) fn resolve(&self, uuid: Uuid, target: &Target, from: Past) -> Option<Seq> {
        match from {
            Past::Mark(id) => {
                let marks = self.marks_of(uuid).ok()?;
                marks.iter().find(|mark| mark.id == id).map(|mark| Seq(mark.number))
            }
            Past::Snapshot(snapshot) => {
                let object = self.catalogue.snapshots.get(&snapshot)?;
                if object.line == target.line {
                    return Some(object.epoch).filter(|epoch| *epoch <= target.view);
                }
                // All that a clone has itself came after that.
                let parent = self.lines.get(target.line)?.parent;
                (parent == Some((object.line, object.epoch))).then_some(Seq::ZERO)
            }
        }
    }
}
