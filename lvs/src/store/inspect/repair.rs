//! Makes right what can be derived from what is right.
//!
//! Copies are written one at a time, in the place of the damaged one, while the other copy stays as it is: whatever a crash
//! leaves of the write, the other one counts. Counts come with a new checkpoint, which is as safe as any other.

use std::rc::Rc;
use std::sync::Arc;

use aio::{BlockDevice, Core};

use super::Mend;
use crate::LvsError;
use crate::format::anchor::MAX_ANCHOR_BYTES;
use crate::format::label::{LABEL_BLOCKS, LABEL_BYTES, Label};
use crate::info::{CheckWish, ImportPool};
use crate::store::Store;
use crate::types::{BLOCK_BYTES, Pba};

impl Mend {
    /// Counts are only as sure as what was counted: everything else has to be right.
    fn can_count(&self) -> bool {
        self.others == 0 && !self.counts.is_empty()
    }

    /// What can be done, in words.
    pub(super) fn in_words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let copies = |count: usize| if count == 1 { "copy" } else { "copies" };
        if !self.labels.is_empty() {
            let count = self.labels.len();
            words.push(format!("write {count} {} of labels anew, from the other one", copies(count)));
        }
        if !self.anchors.is_empty() {
            let count = self.anchors.len();
            words.push(format!("write {count} {} of the newest anchor anew, from a good one", copies(count)));
        }
        if self.can_count() {
            words.push(format!("set the live blocks of {} segments to what was counted", self.counts.len()));
        }
        words
    }
}

impl Store {
    /// See [`crate::repair`].
    pub(crate) async fn repair(
        core: &Core,
        devices: Vec<Arc<dyn BlockDevice>>,
    ) -> Result<Vec<String>, LvsError> {
        let store = Self::find(core, devices, ImportPool::default()).await?;
        let done = store.repair_found().await;
        store.rest().await;
        store.close().await;
        done
    }

    async fn repair_found(self: &Rc<Self>) -> Result<Vec<String>, LvsError> {
        let mend = self.inspect_all(&CheckWish::default()).await?.mend;
        let mut done = Vec::new();
        for &(member, block) in &mend.labels {
            done.push(self.repair_label(member, block).await?);
        }
        for &(member, block) in &mend.anchors {
            done.push(self.repair_anchor(member, block).await?);
        }
        if mend.can_count() {
            {
                let mut inner = self.inner();
                for (&id, &live) in &mend.counts {
                    inner.space.set_live(id, live);
                }
            }
            // As an import and an export: the table of segments is written anew, and then an anchor that names it.
            self.begin_opening().await?;
            self.fit_delta().await?;
            self.checkpoint_cleanly().await?;
            done.push(format!("set the live blocks of {} segments to what was counted", mend.counts.len()));
        }
        Ok(done)
    }

    pub(in crate::store) async fn repair_label(&self, member: u8, block: u64) -> Result<String, LvsError> {
        let (uuid, pool) = {
            let inner = self.inner();
            (inner.members[usize::from(member)].uuid, inner.uuid)
        };
        for other in LABEL_BLOCKS.into_iter().filter(|b| *b != block) {
            let Some(bytes) = self.read_copy(member, other, LABEL_BYTES).await? else { continue };
            if Label::decode(&bytes).is_ok_and(|l| l.pool == pool && l.device == uuid) {
                let disk = self.write_copy(member, block, &bytes).await?;
                return Ok(format!("wrote the label of {disk} anew in block {block}, from block {other}"));
            }
        }
        Err(self.inner().damaged("no copy of a label is good any more"))
    }

    async fn repair_anchor(&self, member: u8, block: u64) -> Result<String, LvsError> {
        let anchor = self.inner().anchor.clone();
        let mut bytes = anchor.encode().map_err(|source| LvsError::Encode { source })?;
        // All of the slot: a block behind the anchor that cannot be read keeps an import from reading it, too.
        bytes.resize(MAX_ANCHOR_BYTES, 0);
        let disk = self.write_copy(member, block, &bytes).await?;
        Ok(format!("wrote anchor {} of {disk} anew in block {block}", anchor.checkpoint))
    }

    /// Writes a copy in its place, durably, and looks whether it is there. Returns the disk's name.
    async fn write_copy(&self, member: u8, block: u64, bytes: &[u8]) -> Result<String, LvsError> {
        let pba = Pba::new(member, block).unwrap_or(Pba::NONE);
        let mut buf = self.buffer().await;
        buf[..bytes.len()].copy_from_slice(bytes);
        let (descriptor, offset_bytes) = self.inner().device_of(pba)?;
        let (result, _) = descriptor.write_at_durable(offset_bytes, bytes.len() as u32, buf).await;
        self.wrote(pba, result)?;
        let disk = self.inner().disk_name(pba);
        let blocks = bytes.len().next_multiple_of(BLOCK_BYTES as usize);
        let there = self.read_copy(member, block, blocks).await?;
        if there.is_none_or(|there| there[..bytes.len()] != *bytes) {
            return Err(self.inner().damaged(&format!("{disk} does not keep what is written to it")));
        }
        Ok(disk)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use aio::reactor::EngineChoice;
    use aio::{CoreId, Descriptor, Reactor, ReactorConfig};

    use super::*;
    use crate::info::{CreatePool, CreateVolume};
    use crate::store::open_stores;
    use crate::{Pool, check, repair};

    fn run<T>(reactor: &mut Reactor, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        for _ in 0..10_000_000 {
            let polled = reactor.enter(|| future.as_mut().poll(&mut Context::from_waker(Waker::noop())));
            if let Poll::Ready(value) = polled {
                return value;
            }
            reactor.turn();
        }
        panic!("a hang");
    }

    /// Counts of live blocks that are wrong are found, and set to what was counted, while everything else is right.
    #[test]
    fn counts_of_live_blocks_are_set_to_what_is_counted() {
        let config =
            ReactorConfig { pin: false, engine: EngineChoice::None, ..ReactorConfig::new(CoreId(0)) };
        let reactor = &mut Reactor::new(config).unwrap();
        let home = reactor.core().handle();
        let disk = aio::devices::create(&"malloc:///d?size_mb=48&blk_size=4096".parse().unwrap()).unwrap();
        let disks = || vec![disk.clone()];
        let spec = CreatePool { name: "p".into(), uuid: None, force: false };
        let pool = run(reactor, Pool::create(home.clone(), disks(), spec)).unwrap();
        let spec =
            CreateVolume { name: "v".into(), uuid: None, size_bytes: 1 << 20, thin: true, entity_id: None };
        let volume = run(reactor, pool.create_volume(spec)).unwrap();
        let device: Arc<dyn BlockDevice> = volume;
        let d = run(reactor, Descriptor::open(device)).unwrap();
        for block in 0..200 {
            let buf = reactor.core().pools().unwrap().alloc(4096).unwrap();
            run(reactor, d.write_at(block * 4096, 4096, buf)).0.unwrap();
        }
        run(reactor, d.close());
        run(reactor, pool.checkpoint()).unwrap();
        let wrong = {
            let store = open_stores::get(pool.uuid()).unwrap();
            let mut inner = store.inner();
            let live: Vec<_> =
                inner.space.iter().filter(|(_, s)| s.live > 0).map(|(id, s)| (id, s.live)).collect();
            live.iter().for_each(|&(id, live)| inner.space.set_live(id, live + 5));
            live.len()
        };
        run(reactor, pool.export()).unwrap();

        let report = run(reactor, check(home.clone(), disks(), CheckWish::everything())).unwrap();
        assert!(wrong > 0 && report.wrong > 0, "{report:?}");
        assert!(
            report.findings.iter().all(|f| f.contains("blocks are live, its counter says")),
            "{report:?}"
        );
        assert_eq!(report.repairable.len(), 1, "{report:?}");
        let done = run(reactor, repair(home.clone(), disks())).unwrap();
        assert_eq!(done.len(), 1, "{done:?}");
        let report = run(reactor, check(home.clone(), disks(), CheckWish::everything())).unwrap();
        assert_eq!((report.findings, report.blocks), (vec![], 200));

        // Not while something else is wrong: what was counted is not sure then.
        let sure = Mend { counts: [(crate::SegmentId::new(0, 1), 2)].into(), ..Mend::default() };
        assert!(sure.can_count() && sure.in_words().len() == 1);
        assert!(!Mend { others: 1, ..sure }.can_count());
    }
}
