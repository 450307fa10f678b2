//! A disk joins a pool that is open (`FORMAT.md` section 12).

use std::rc::Rc;
use std::sync::Arc;

use aio::{BlockDevice, Geometry};
use uuid::Uuid;

use super::create::{check_block_size, segments_for};
use super::member::Member;
use super::superblock::{check_vacant, label_of};
use super::{Inner, Store};
use crate::LvsError;
use crate::format::label::{self, Label};
use crate::types::{BLOCK_BYTES, MAX_MEMBERS};

impl Store {
    /// Adds a disk. A disk that holds something is refused, unless forced.
    pub(crate) async fn add_disk(
        self: &Rc<Self>,
        device: Arc<dyn BlockDevice>,
        force: bool,
    ) -> Result<(), LvsError> {
        let _pass = self.changes.enter().await;
        {
            let inner = self.inner();
            inner.check_fault()?;
            inner.check_suits(device.as_ref())?;
        }
        let pool = self.inner().name.clone();
        let mut member = Member::open(&pool, device).await?;
        match self.prepare(&mut member, force).await {
            Ok(segments) => self.take_in(member, segments).await,
            Err(error) => {
                member.close().await;
                Err(error)
            }
        }
    }

    /// Looks at the disk and erases what was on it. Returns its segments.
    async fn prepare(self: &Rc<Self>, member: &mut Member, force: bool) -> Result<u32, LvsError> {
        let disk = || member.device.name().to_owned();
        let known = label_of(member).await.ok().flatten();
        let own = known.is_some_and(|label| {
            let inner = self.inner();
            let is_member = |m: &Member| m.uuid == label.device && !m.absent;
            label.pool == inner.uuid && !inner.members.iter().any(is_member)
        });
        // What an interrupted addition or a removal left of this pool holds nothing.
        check_vacant(member, force || own).await?;
        let segments = segments_for(member, self.inner().space.segment_blocks())?;
        self.inner().check_segments(segments.into())?;
        member.uuid = Uuid::new_v4();
        {
            let inner = self.inner();
            if inner.members.iter().any(|m| m.device.name() == member.device.name()) {
                let (pool, disk) = (inner.name.clone(), disk());
                return Err(LvsError::Exists { what: "disk", name: disk, pool });
            }
        }
        // Anchors of an earlier pool go.
        self.write_beside(member, 0, &vec![0; label::FIRST_SEGMENT_BLOCK as usize * BLOCK_BYTES as usize])
            .await?;
        Ok(segments)
    }

    /// Writes to a device that is no member yet, durably. An error is no fault of the pool.
    pub(super) async fn write_beside(
        &self,
        member: &Member,
        block: u64,
        bytes: &[u8],
    ) -> Result<(), LvsError> {
        let mut buf = self.buffer().await;
        buf[..bytes.len()].copy_from_slice(bytes);
        let (result, _) =
            member.descriptor.write_at_durable(block * u64::from(BLOCK_BYTES), bytes.len() as u32, buf).await;
        let disk = member.device.name().to_owned();
        result.map_err(|source| LvsError::Io { op: "write", disk, source })
    }

    /// Writes to a device that is no member yet what makes it one as soon as an anchor names it. Between checkpoints: the
    /// newest anchor, which does not, so that an import which finds the next one on other disks only does not take this
    /// one for stale; then the label.
    async fn introduce(&self, member: &Member) -> Result<(), LvsError> {
        let (label, anchor) = {
            let inner = self.inner();
            (inner.new_label(member.uuid), inner.anchor.clone())
        };
        let encoded = |source| LvsError::Encode { source };
        let (label_bytes, anchor_bytes) =
            (label.encode().map_err(encoded)?, anchor.encode().map_err(encoded)?);
        for copy in 0..label::ANCHOR_BLOCKS.len() {
            self.write_beside(member, label::anchor_block(copy, anchor.checkpoint), &anchor_bytes).await?;
        }
        for block in label::LABEL_BLOCKS {
            self.write_beside(member, block, &label_bytes).await?;
        }
        Ok(())
    }

    /// The disk is a member from the checkpoint on that this makes.
    async fn take_in(self: &Rc<Self>, member: Member, segments: u32) -> Result<(), LvsError> {
        {
            // Between checkpoints: one that is being made names all members or none of the new one's segments.
            let _between = self.checkpoints.enter().await;
            if let Err(error) = self.introduce(&member).await {
                member.close().await;
                return Err(error);
            }
            let mut inner = self.inner();
            let inner = &mut *inner;
            let index = inner.members.len() as u8;
            inner.members.push(member);
            inner.space.add_member(Vec::new());
            inner.space.grow_member(index, segments);
            inner.catalogue.dirty = true;
        }
        self.checkpoint(false).await
    }
}

impl Inner {
    /// Refuses a device that differs from the others in what volumes that are in use have promised.
    fn check_suits(&self, device: &dyn BlockDevice) -> Result<(), LvsError> {
        if self.members.len() >= MAX_MEMBERS {
            return Err(LvsError::DiskCount { given: self.members.len() + 1 });
        }
        check_block_size(device, self.block_bytes())?;
        let unfit = |why| {
            let (disk, pool) = (device.name().to_owned(), self.name.clone());
            Err(LvsError::DiskUnfit { disk, pool, why })
        };
        if device.capabilities().contains(aio::Capabilities::READ_ONLY) {
            return unfit("it can only be read");
        }
        // H8: hosts learn of a volatile cache when they connect.
        if device.capabilities().contains(aio::Capabilities::VOLATILE_CACHE) && !self.any_volatile() {
            return unfit(
                "it has a volatile write cache, and the pool's disks have none; turn the cache off",
            );
        }
        let (has, theirs): (Geometry, Vec<&Geometry>) =
            (device.geometry(), self.members.iter().map(|m| &m.geometry).collect());
        let most = |of: fn(&Geometry) -> u32| theirs.iter().map(|g| of(g)).max().unwrap_or(0);
        let least = theirs.iter().map(|g| g.max_sg).min().unwrap_or(0);
        if has.buf_align > most(|g| g.buf_align) || has.sg_elem_align > most(|g| g.sg_elem_align) {
            return unfit("it needs buffers that are better aligned than those for the pool's disks");
        }
        if has.max_sg < least {
            return unfit("it takes fewer pieces of memory for an I/O than the pool's disks do");
        }
        Ok(())
    }

    fn new_label(&self, device: Uuid) -> Label {
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        Label {
            pool: self.uuid,
            name: self.name.clone(),
            device,
            member: self.members.len() as u8,
            segment_blocks: self.space.segment_blocks(),
            created_unix_s: now.unwrap_or_default().as_secs(),
            compatible: 0,
            incompatible: 0,
        }
    }

    /// The member with this uuid or name, and its index.
    pub(super) fn find_disk(&self, disk: &str) -> Result<usize, LvsError> {
        let uuid = Uuid::parse_str(disk).ok();
        let is_it = |m: &Member| !m.absent && (m.device.name() == disk || Some(m.uuid) == uuid);
        self.members.iter().position(is_it).ok_or_else(|| {
            let names: Vec<&str> =
                self.members.iter().filter(|m| !m.absent).map(|m| m.device.name()).collect();
            let (pool, disks) = (self.name.clone(), names.join(", "));
            LvsError::NoSuchDisk { pool, disk: disk.to_owned(), disks }
        })
    }
}
