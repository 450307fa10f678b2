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

/// Reads the labels of all devices, which have to be of one pool, and notes which is which.
pub(super) async fn labels(members: &mut [Member], disk: &str) -> Result<Label, LvsError> {
    let mut first: Option<Label> = None;
    for member in members {
        let disk = member.device.name().to_owned();
        let label = label_of(member).await?.ok_or(LvsError::NoPool { disk: disk.clone() })?;
        if let Some(first) = first.as_ref().filter(|f| f.pool != label.pool) {
            let wanted = first.name.clone();
            return Err(LvsError::OtherPool { disk, found_name: label.name, found_uuid: label.pool, wanted });
        }
        member.uuid = label.device;
        first.get_or_insert(label);
    }
    first.ok_or(LvsError::NoPool { disk: disk.to_owned() })
}

/// The newest anchor of the pool on any of the devices.
pub(super) async fn newest_anchor(members: &[Member], label: &Label) -> Result<Anchor, LvsError> {
    let mut newest: Option<Anchor> = None;
    let mut features = None;
    for member in members {
        for slot in 0..label::ANCHOR_SLOTS {
            let mut unreadable = 0;
            for copy in 0..label::ANCHOR_BLOCKS.len() {
                let bytes = match read(member, label::anchor_block(copy, slot), MAX_ANCHOR_BYTES).await {
                    Ok(bytes) => bytes,
                    // The other copy may be readable; without both, the newest checkpoint may be what is lost.
                    Err(_) if unreadable + 1 < label::ANCHOR_BLOCKS.len() => {
                        unreadable += 1;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                match Anchor::decode(&bytes) {
                    Ok(found) if found.pool == label.pool => {
                        if newest.as_ref().is_none_or(|n| n.checkpoint < found.checkpoint) {
                            newest = Some(found);
                        }
                    }
                    Err(FormatError::Incompatible { bits, .. }) => features = Some(bits),
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }
    if let Some(flags) = features {
        return Err(LvsError::UnknownFeatures { pool: label.name.clone(), flags });
    }
    let what = "none of its checkpoints is whole".to_owned();
    newest.ok_or(LvsError::Damaged { pool: label.name.clone(), what })
}

/// The devices in the order that the anchor has them. All have to be there, and large enough.
pub(super) fn in_order(
    members: Vec<Member>,
    anchor: &Anchor,
    label: &Label,
) -> Result<Vec<Member>, LvsError> {
    let mut rest = members;
    let mut ordered = Vec::with_capacity(rest.len());
    for wanted in &anchor.members {
        if let Some(at) = rest.iter().position(|m| m.uuid == wanted.device) {
            let member = rest.swap_remove(at);
            let needed =
                label::FIRST_SEGMENT_BLOCK + u64::from(wanted.segments) * u64::from(label.segment_blocks);
            if member.len_blocks() < needed {
                let disk = member.device.name().to_owned();
                let size_bytes = member.len_blocks() * BLOCK;
                return Err(LvsError::DiskTooSmall { disk, size_bytes, needed_bytes: needed * BLOCK });
            }
            ordered.push(member);
        }
    }
    if ordered.len() < anchor.members.len() {
        let (members, missing) = (anchor.members.len(), anchor.members.len() - ordered.len());
        return Err(LvsError::DiskMissing { pool: label.name.clone(), members, missing });
    }
    if let Some(stranger) = rest.first() {
        let what =
            format!("{} was a disk of it once, and is no longer; leave it out", stranger.device.name());
        return Err(LvsError::Damaged { pool: label.name.clone(), what });
    }
    Ok(ordered)
}

/// The members, as the anchor lists them.
pub(super) fn anchor_members(members: &[Member], space: &Space) -> Vec<AnchorMember> {
    let entry = |(index, m): (usize, &Member)| AnchorMember {
        device: m.uuid,
        size_blocks: m.len_blocks(),
        segments: space.member(index as u8).len() as u32,
        state: MemberState::Active,
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
            inner.members.iter().enumerate().map(of).collect()
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
