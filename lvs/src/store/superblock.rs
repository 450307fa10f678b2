//! Labels and anchors on the devices: which pool this is, and its newest durable checkpoint.

use std::time::SystemTime;

use super::Store;
use super::member::Member;
use super::occupied::{LOOK_BYTES, recognise};
use super::space::Space;
use crate::LvsError;
use crate::format::FormatError;
use crate::format::anchor::{Anchor, MAX_ANCHOR_BYTES, Member as AnchorMember, MemberState};
use crate::format::label::{self, LABEL_BLOCKS, LABEL_BYTES, Label};
use crate::info::ImportPool;
use crate::types::{BLOCK_BYTES, Pba};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Reads blocks of a device that belongs to no store yet.
async fn read(member: &Member, block: u64, len_bytes: usize) -> Result<Vec<u8>, LvsError> {
    let core = aio::Core::current().expect("invariant: stores are made on a core");
    let memory = |source| LvsError::Memory { pool: String::new(), source };
    let mut bytes = Vec::with_capacity(len_bytes);
    let step = (64 << 10).min(len_bytes as u32);
    let pool = aio::DmaPool::new(core.memory(), step, 1).map_err(memory)?;
    while bytes.len() < len_bytes {
        let Some(buf) = pool.alloc() else { break };
        let len = step.min((len_bytes - bytes.len()) as u32);
        let (result, buf) = member.descriptor.read_at(block * BLOCK + bytes.len() as u64, len, buf).await;
        let disk = || member.device.name().to_owned();
        result.map_err(|source| LvsError::Io { op: "read", disk: disk(), source })?;
        bytes.extend_from_slice(&buf[..len as usize]);
    }
    Ok(bytes)
}

/// The label of a device; `None` when it has none. An error when it has one that cannot be read.
pub(crate) async fn label_of(member: &Member) -> Result<Option<Label>, LvsError> {
    let mut wrong = None;
    let mut unreadable = None;
    for block in LABEL_BLOCKS {
        if member.len_blocks() <= block {
            continue;
        }
        let bytes = match read(member, block, LABEL_BYTES).await {
            Ok(bytes) => bytes,
            // The other copy may be readable.
            Err(error) => {
                unreadable = Some(error);
                continue;
            }
        };
        match Label::decode(&bytes) {
            Ok(label) => return Ok(Some(label)),
            Err(FormatError::Magic(_)) => {}
            Err(error) => wrong = Some(error),
        }
    }
    if let Some(error) = unreadable {
        return Err(error);
    }
    match wrong {
        None => Ok(None),
        Some(FormatError::Incompatible { bits, .. }) => {
            Err(LvsError::UnknownFeatures { pool: member.device.name().to_owned(), flags: bits })
        }
        Some(error) => Err(LvsError::Damaged {
            pool: format!("on {}", member.device.name()),
            what: format!("no copy of its label is whole: {error}"),
        }),
    }
}

/// Refuses a device that holds something, unless forced. A pool has to be destroyed, or forced.
pub(super) async fn check_vacant(member: &Member, force: bool) -> Result<(), LvsError> {
    if force {
        return Ok(());
    }
    let disk = member.device.name().to_owned();
    if let Some(label) = label_of(member).await? {
        return Err(LvsError::DiskOfPool { disk, name: label.name, uuid: label.pool });
    }
    let len = LOOK_BYTES.min((member.len_blocks() * BLOCK) as usize);
    match recognise(&read(member, 0, len).await?) {
        Some(found) => Err(LvsError::DiskOccupied { disk, found }),
        None => Ok(()),
    }
}

/// Reads the labels of all devices, which have to be of one pool and of the one that is wanted, and notes which is which.
pub(super) async fn labels(members: &mut [Member], wanted: &ImportPool) -> Result<Label, LvsError> {
    let mut first: Option<Label> = None;
    for member in members {
        let disk = member.device.name().to_owned();
        let label = label_of(member).await?.ok_or(LvsError::NoPool { disk: disk.clone() })?;
        let is_it = wanted.name.as_ref().is_none_or(|n| *n == label.name)
            && wanted.uuid.is_none_or(|u| u == label.pool)
            && first.as_ref().is_none_or(|f| f.pool == label.pool);
        if !is_it {
            let uuid = wanted.uuid.map(|u| u.to_string());
            let known = wanted.name.clone().or(uuid).or(first.map(|f| f.name));
            let (found_name, found_uuid) = (label.name, label.pool);
            return Err(LvsError::OtherPool {
                disk,
                found_name,
                found_uuid,
                wanted: known.unwrap_or_default(),
            });
        }
        member.uuid = label.device;
        if first.as_ref().is_some_and(|f| f.segment_blocks != label.segment_blocks) {
            let what = format!("the labels of its disks differ in the size of segments, that of {disk} too");
            return Err(LvsError::Damaged { pool: label.name, what });
        }
        first.get_or_insert(label);
    }
    first.ok_or(LvsError::NoPool { disk: String::new() })
}

/// The newest anchor of the pool on any of the devices, on which it is noted who lacks it. Refuses a device with an older
/// state than it should have.
pub(super) async fn newest_anchor(members: &mut [Member], label: &Label) -> Result<Anchor, LvsError> {
    let mut newest: Option<Anchor> = None;
    let mut features = None;
    // How many devices cannot read a slot at all, and why.
    let mut lost = [0; label::ANCHOR_SLOTS as usize];
    let mut unreadable_slot = None;
    // The checkpoints that each device has, by slot; and in which of its copies.
    let mut found = Vec::with_capacity(members.len());
    for member in &*members {
        let mut slots = [None; label::ANCHOR_SLOTS as usize];
        let mut copies = [[None; label::ANCHOR_SLOTS as usize]; label::ANCHOR_BLOCKS.len()];
        for slot in 0..label::ANCHOR_SLOTS {
            let mut unreadable = 0;
            for (copy, seen) in copies.iter_mut().enumerate() {
                let bytes = match read(member, label::anchor_block(copy, slot), MAX_ANCHOR_BYTES).await {
                    Ok(bytes) => bytes,
                    // The other copy may be readable, or those of the other devices.
                    Err(error) => {
                        unreadable += 1;
                        if unreadable == label::ANCHOR_BLOCKS.len() {
                            lost[slot as usize] += 1;
                            unreadable_slot = Some(error);
                        }
                        continue;
                    }
                };
                match Anchor::decode(&bytes) {
                    Ok(anchor) if anchor.pool == label.pool => {
                        let here = &mut slots[slot as usize];
                        *here = (*here).max(Some(anchor.checkpoint));
                        seen[slot as usize] = Some(anchor.checkpoint);
                        if newest.as_ref().is_none_or(|n| n.checkpoint < anchor.checkpoint) {
                            newest = Some(anchor);
                        }
                    }
                    Err(FormatError::Incompatible { bits, .. }) => features = Some(bits),
                    // Never written.
                    Err(FormatError::Magic(_)) if bytes.iter().all(|&byte| byte == 0) => {
                        let here = &mut slots[slot as usize];
                        *here = (*here).max(Some(0));
                    }
                    Ok(_) | Err(_) => {}
                }
            }
        }
        found.push((slots, copies));
    }
    // Nowhere: the newest checkpoint may be what is lost.
    if let Some(error) = unreadable_slot.filter(|_| lost.contains(&members.len())) {
        return Err(error);
    }
    if let Some(flags) = features {
        return Err(LvsError::UnknownFeatures { pool: label.name.clone(), flags });
    }
    let what = "none of its checkpoints is whole".to_owned();
    let newest = newest.ok_or(LvsError::Damaged { pool: label.name.clone(), what })?;
    if newest.segment_blocks != label.segment_blocks {
        let what = "its labels and its checkpoints differ in the size of segments".to_owned();
        return Err(LvsError::Damaged { pool: label.name.clone(), what });
    }
    for (member, (slots, copies)) in members.iter_mut().zip(&found) {
        let slot = (newest.checkpoint % label::ANCHOR_SLOTS) as usize;
        member.lacks_anchor = copies.map(|copy| copy[slot] != Some(newest.checkpoint));
        // A crash leaves a device one checkpoint behind, and the next import makes up for that first. Where the newest two should stand there may be damage, but
        // not whole ones that are older.
        let stale = [newest.checkpoint, newest.checkpoint.saturating_sub(1)].iter().all(|checkpoint| {
            slots[(checkpoint % label::ANCHOR_SLOTS) as usize].is_some_and(|found| found < *checkpoint)
        });
        let is_member =
            newest.members.iter().any(|m| m.device == member.uuid && m.state != MemberState::Removed);
        if stale && is_member {
            let (disk, pool) = (member.device.name().to_owned(), label.name.clone());
            return Err(LvsError::StaleDisk { disk, pool, why: "it is an older copy of one" });
        }
    }
    Ok(newest)
}

/// The devices in the order that the anchor has them, with something absent in the place of those that are missing, and the
/// indices of these. Those that are there have to be large enough.
pub(super) async fn in_order(
    members: &mut Vec<Member>,
    anchor: &Anchor,
    label: &Label,
) -> Result<(Vec<Member>, Vec<usize>), LvsError> {
    let is_listed = |m: &Member| anchor.members.iter().find(|a| a.device == m.uuid);
    let stale = |m: &Member, why| {
        let (disk, pool) = (m.device.name().to_owned(), label.name.clone());
        Err(LvsError::StaleDisk { disk, pool, why })
    };
    for (at, member) in members.iter().enumerate() {
        if members[..at].iter().any(|m| m.uuid == member.uuid) {
            return stale(member, "it is a copy of another one of the disks");
        }
        let Some(listed) = is_listed(member) else {
            return stale(member, "it was never added completely");
        };
        if listed.state == MemberState::Removed {
            return stale(member, "it was removed");
        }
        let needed =
            label::FIRST_SEGMENT_BLOCK + u64::from(listed.segments) * u64::from(anchor.segment_blocks);
        if member.len_blocks() < needed {
            let disk = member.device.name().to_owned();
            let size_bytes = member.len_blocks() * BLOCK;
            return Err(LvsError::DiskTooSmall { disk, size_bytes, needed_bytes: needed * BLOCK });
        }
    }
    let Some(like) = members.first().map(|m| m.geometry) else {
        return Err(LvsError::NoPool { disk: String::new() });
    };
    let mut ordered = Vec::with_capacity(anchor.members.len());
    let mut missing = Vec::new();
    for (index, wanted) in anchor.members.iter().enumerate() {
        match members.iter().position(|m| m.uuid == wanted.device) {
            Some(at) => {
                let member = members.swap_remove(at);
                ordered.push(Member { state: wanted.state, ..member });
            }
            None => {
                ordered.push(Member::absent(&label.name, wanted, index, like).await?);
                if wanted.state != MemberState::Removed {
                    missing.push(index);
                }
            }
        }
    }
    Ok((ordered, missing))
}

/// The members, as the anchor lists them; `before` is how the last one did.
pub(super) fn anchor_members(
    members: &[Member],
    space: &Space,
    before: &[AnchorMember],
) -> Vec<AnchorMember> {
    let entry = |(index, m): (usize, &Member)| {
        let segments = space.member(index as u8).len() as u32;
        // A device may have become larger without the pool's using it yet.
        let same = before.get(index).filter(|b| b.segments == segments);
        let size_blocks = same.map_or(m.len_blocks(), |b| b.size_blocks);
        AnchorMember { device: m.uuid, size_blocks, segments, state: m.state }
    };
    members.iter().enumerate().map(entry).collect()
}

impl Store {
    /// Writes the labels of all devices.
    pub(super) async fn write_labels(&self) -> Result<(), LvsError> {
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let labels: Vec<Label> = {
            let inner = self.inner();
            let of = |(index, m): (usize, &Member)| Label {
                pool: inner.uuid,
                name: inner.name.clone(),
                device: m.uuid,
                member: index as u8,
                segment_blocks: inner.space.segment_blocks(),
                created_unix_s: created,
                compatible: 0,
                incompatible: 0,
            };
            inner.members.iter().enumerate().filter(|(_, m)| !m.absent).map(of).collect()
        };
        for label in &labels {
            let bytes = label.encode().map_err(|source| LvsError::Encode { source })?;
            for block in LABEL_BLOCKS {
                let pba = Pba::new(label.member, block).unwrap_or(Pba::NONE);
                let mut buf = self.buffer().await;
                buf[..bytes.len()].copy_from_slice(&bytes);
                let (descriptor, offset_bytes) = self.inner().device_of(pba)?;
                let (result, _) = descriptor.write_at_durable(offset_bytes, bytes.len() as u32, buf).await;
                self.wrote(pba, result)?;
            }
        }
        Ok(())
    }
}
