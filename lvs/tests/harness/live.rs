//! A pool that runs, and its model beside it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::SystemTime;

use aio::facade::ByteRange;
use aio::{BlockDevice, Core, Descriptor, DmaBuf};
use lvs::Pool;
use lvs::info::{CreateSnapshot, CreateVolume};
use uuid::Uuid;

use super::disk::Disk;
use super::look::look;
use super::model::{Model, Op};
use super::tape::{Event, Tape};
use crate::rig::Rig;

/// Bytes of a part of a block.
pub(crate) const PART: u64 = 512;
/// Bits of the number of a part in what is written there; its stamp is above.
const PLACE_BITS: u32 = 24;

/// What a part with this stamp and place says, eight bytes by eight bytes.
pub(crate) fn word(stamp: u64, part: u64) -> u64 {
    if stamp == 0 { 0 } else { stamp << PLACE_BITS | part }
}

/// The stamp of a part at this place; [`GARBAGE`](super::model::GARBAGE) when it says anything else.
pub(crate) fn stamp_of(bytes: &[u8], part: u64) -> u64 {
    let first = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let stamp = first >> PLACE_BITS;
    let same = bytes.chunks_exact(8).all(|w| w == first.to_le_bytes());
    if same && word(stamp, part) == first { stamp } else { super::model::GARBAGE }
}

/// A pool and its model. What is done goes to the tape, if there is one.
pub(crate) struct Live {
    pub(crate) rig: Rc<Rig>,
    pub(crate) pool: Pool,
    pub(crate) model: RefCell<Model>,
    tape: Option<Tape>,
    next: RefCell<u64>,
    open: Rc<RefCell<BTreeMap<Uuid, Descriptor>>>,
    /// Disks that can join and leave.
    pub(crate) disks: Rc<RefCell<Vec<Disk>>>,
}

type Running = Pin<Box<dyn Future<Output = Result<(), String>>>>;

impl Live {
    /// `next`: the number of the next operation.
    pub(crate) fn new(rig: Rc<Rig>, pool: Pool, model: Model, tape: Option<Tape>, next: u64) -> Self {
        let (model, next) = (RefCell::new(model), RefCell::new(next));
        Self { rig, pool, model, tape, next, open: Rc::default(), disks: Rc::default() }
    }

    /// The same, with the pool as it was opened again.
    pub(crate) fn on(&self, pool: Pool) -> Self {
        let mut next = Self::new(self.rig.clone(), pool, Model::default(), self.tape.clone(), self.next());
        next.model.swap(&self.model);
        next.disks = self.disks.clone();
        next
    }

    /// The number of the next operation, for the pool that comes after this.
    pub(crate) fn next(&self) -> u64 {
        *self.next.borrow()
    }

    /// The identity of what the next operation makes.
    pub(crate) fn next_uuid(&self) -> Uuid {
        Uuid::from_u128(0xabc << 64 | u128::from(self.next()))
    }

    /// Does one thing.
    pub(crate) fn run(&self, op: Op) -> Result<(), String> {
        self.run_all(vec![op]).remove(0)
    }

    /// Does one thing, which has to succeed.
    pub(crate) fn good(&self, op: Op) {
        let name = format!("{op:?}");
        self.run(op).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// Does these at the same time.
    pub(crate) fn run_all(&self, ops: Vec<Op>) -> Vec<Result<(), String>> {
        let count = ops.len();
        let mut running: Vec<Option<(u64, Running)>> =
            ops.into_iter().map(|op| Some(self.begin(op))).collect();
        let mut results: Vec<Option<Result<(), String>>> = vec![None; count];
        let all = poll_fn(|cx| {
            for (slot, result) in running.iter_mut().zip(&mut results) {
                let Some((id, future)) = slot else { continue };
                if let Poll::Ready(done) = future.as_mut().poll(cx) {
                    self.end(*id, done.is_ok());
                    (*slot, *result) = (None, Some(done));
                }
            }
            if running.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
        });
        self.rig.run(all);
        results.into_iter().flatten().collect()
    }

    /// Begins these, and leaves them after so many turns.
    pub(crate) fn abandon(&self, ops: Vec<Op>, turns: u64) {
        let mut running: Vec<Option<(u64, Running)>> =
            ops.into_iter().map(|op| Some(self.begin(op))).collect();
        let all = poll_fn(|cx| {
            for slot in &mut running {
                let Some((id, future)) = slot else { continue };
                if let Poll::Ready(done) = future.as_mut().poll(cx) {
                    self.end(*id, done.is_ok());
                    *slot = None;
                }
            }
            Poll::<()>::Pending
        });
        let _ = self.rig.run_for(turns, all);
        // A write that nobody waits for any more keeps its buffer until it is done: as a host that is gone.
        drop(running);
    }

    fn begin(&self, op: Op) -> (u64, Running) {
        let id = *self.next.borrow();
        *self.next.borrow_mut() += 1;
        trace(|| format!("{id} begins: {op:?}"));
        self.model.borrow_mut().begin(id, &op);
        if let Some(tape) = &self.tape {
            tape.push(Event::Begin { id, op: op.clone() });
        }
        (id, Box::pin(perform(self.pool.clone(), self.open.clone(), self.disks.clone(), op, id)))
    }

    fn end(&self, id: u64, good: bool) {
        trace(|| format!("{id} ends: {good}"));
        self.model.borrow_mut().end(id, good);
        if let Some(tape) = &self.tape {
            tape.push(Event::End { id, good });
        }
    }

    /// Reads everything and compares it with the model.
    pub(crate) fn check(&self) {
        let seen = self.rig.run(look(&self.pool)).unwrap();
        let mut model = self.model.borrow_mut();
        model.check(&seen, false).unwrap();
        model.settle(&seen, false);
    }

    /// The pool's figures say what the model says, once everything is merged and given back.
    pub(crate) fn check_space(&self) {
        let expected = self.model.borrow().used_blocks() * 4096;
        let mut found = 0;
        for _ in 0..12 {
            self.rig.run(self.pool.checkpoint()).unwrap();
            found = self.rig.run(self.pool.info()).unwrap().used_bytes;
            if found == expected {
                break;
            }
        }
        let volumes = self.rig.run(self.pool.volumes()).unwrap();
        let snapshots = self.rig.run(self.pool.snapshots()).unwrap();
        assert!(
            found == expected || self.model.borrow().inexact,
            "{} blocks are in use, and should be {}: {:?}; there are {volumes:#?} {snapshots:#?}",
            found / 4096,
            expected / 4096,
            self.model.borrow().usage(),
        );
    }

    /// Lets go of the volumes.
    pub(crate) fn close(&self) {
        let open = std::mem::take(&mut *self.open.borrow_mut());
        for (_, descriptor) in open {
            self.rig.run(descriptor.close());
        }
    }
}

/// Says what is done, when `KEELSON_LVS_TRACE` is set.
pub(crate) fn trace(what: impl Fn() -> String) {
    if std::env::var_os("KEELSON_LVS_TRACE").is_some() {
        eprintln!("{}", what());
    }
}

/// The open volume.
async fn volume(
    pool: &Pool,
    open: &RefCell<BTreeMap<Uuid, Descriptor>>,
    uuid: Uuid,
) -> Result<Descriptor, String> {
    if let Some(found) = open.borrow().get(&uuid) {
        return Ok(found.clone());
    }
    let device = pool.volume(uuid).ok_or("no such volume")?;
    let device: std::sync::Arc<dyn BlockDevice> = device;
    let descriptor = Descriptor::open(device).await.map_err(|e| e.to_string())?;
    open.borrow_mut().insert(uuid, descriptor.clone());
    Ok(descriptor)
}

/// A buffer for this range of a volume, stamped.
fn stamped(stamp: u64, first: u64, count: u64) -> DmaBuf {
    let core = Core::current().expect("on a core");
    let len = (count * PART) as u32;
    let mut buf = core.pools().unwrap().alloc(len).unwrap();
    for (part, bytes) in (first..).zip(buf[..len as usize].chunks_exact_mut(PART as usize)) {
        let word = word(stamp, part).to_le_bytes();
        bytes.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&word));
    }
    buf
}

async fn perform(
    pool: Pool,
    open: Rc<RefCell<BTreeMap<Uuid, Descriptor>>>,
    disks: Rc<RefCell<Vec<Disk>>>,
    op: Op,
    id: u64,
) -> Result<(), String> {
    fn text(e: impl std::fmt::Display) -> String {
        e.to_string()
    }
    let range = |first: u64, count: u64| ByteRange { offset_bytes: first * PART, len_bytes: count * PART };
    match op {
        Op::Write { volume: uuid, first, count, fua } => {
            let v = volume(&pool, &open, uuid).await?;
            let (buf, len) = (stamped(id, first, count), (count * PART) as u32);
            let (result, _) = if fua {
                v.write_at_durable(first * PART, len, buf).await
            } else {
                v.write_at(first * PART, len, buf).await
            };
            result.map_err(text)
        }
        Op::Zeroes { volume: uuid, first, count } => {
            let v = volume(&pool, &open, uuid).await?;
            v.write_zeroes(range(first, count), true).await.map_err(text)
        }
        Op::Unmap { volume: uuid, first, count } => {
            let v = volume(&pool, &open, uuid).await?;
            v.unmap(&[range(first, count)]).await.map_err(text)
        }
        Op::Flush { volume: uuid } => volume(&pool, &open, uuid).await?.flush().await.map_err(text),
        Op::CreateVolume { uuid, blocks, thin } => {
            let spec = CreateVolume { thin, ..volume_spec(uuid, blocks) };
            pool.create_volume(spec).await.map(drop).map_err(text)
        }
        Op::CreateSnapshot { volume, uuid } => {
            pool.create_snapshot(volume, snapshot_spec(uuid)).await.map(drop).map_err(text)
        }
        Op::CreateClone { snapshot, uuid } => {
            pool.create_clone(snapshot, volume_spec(uuid, 1)).await.map(drop).map_err(text)
        }
        Op::DestroyVolume { uuid } => {
            open.borrow_mut().remove(&uuid);
            pool.destroy_volume(uuid).await.map_err(text)
        }
        Op::DestroySnapshot { uuid } => pool.destroy_snapshot(uuid).await.map_err(text),
        Op::Resize { uuid, blocks } => pool.resize_volume(uuid, blocks * 4096).await.map(drop).map_err(text),
        Op::Checkpoint => pool.checkpoint().await.map_err(text),
        Op::Grow => pool.grow().await.map(drop).map_err(text),
        Op::AddDisk { disk } => {
            let device = disks.borrow()[disk].device();
            pool.add_disk(device, true).await.map_err(text)
        }
        Op::RemoveDisk { disk } => {
            let name = disks.borrow()[disk].called().to_owned();
            pool.remove_disk(name).await.map_err(text)
        }
    }
}

fn volume_spec(uuid: Uuid, blocks: u64) -> CreateVolume {
    CreateVolume {
        name: uuid.to_string(),
        uuid: Some(uuid),
        size_bytes: blocks * 4096,
        thin: true,
        entity_id: None,
    }
}

fn snapshot_spec(uuid: Uuid) -> CreateSnapshot {
    CreateSnapshot {
        name: uuid.to_string(),
        uuid,
        txn_id: "t".to_owned(),
        entity_id: "e".to_owned(),
        created: SystemTime::UNIX_EPOCH,
    }
}
