//! A volume that tells what changed, and keeps marks: what the store's volumes promise of themselves, in few lines, over a
//! simulated disk.
//!
//! It is exact where that hurts: what power took away it does not know of any more, a question takes a while, and answers hold
//! what completed before and nothing more that it could leave out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aio::device::{Cancel, EventSink, Sleep, Subscription};
use aio::devices::sim::SimDisk;
use aio::facets::{
    Extent, FacetError, FacetFuture, MOST_MARKS, Mark, Marks, Page, Piece, Position, Ranges, Since,
};
use aio::{
    BlockCount, BlockDevice, BlockRange, Busy, Capabilities, Completion, Core, DeviceError, Geometry, Io,
    IoChannel, Lba, Lent, LocalBoxFuture, Opcode, Token,
};
use uuid::Uuid;

use crate::rig::Rng;

/// A block that was changed and not flushed: how it was before.
struct Old {
    bytes: Vec<u8>,
    changed: Option<u64>,
    allocated: bool,
}

/// What a replica knows of itself.
struct Book {
    clock: u64,
    /// When each block changed last.
    changed: BTreeMap<u64, u64>,
    unflushed: HashMap<u64, Old>,
    /// Changes of each block that are under way.
    flying: HashMap<u64, u32>,
    allocated: BTreeSet<u64>,
    /// The newest first.
    marks: Vec<Mark>,
    /// Of the device that has the power.
    incarnation: u128,
    rng: Rng,
    /// Questions that were answered, for tests of how many there are.
    asked: u64,
}

/// A replica; its disk is known to the test.
#[derive(Clone)]
pub(crate) struct Replica {
    disk: SimDisk,
    book: Arc<Mutex<Book>>,
}

impl Replica {
    pub(crate) fn new(disk: &SimDisk, seed: u64) -> Self {
        let book = Book {
            clock: 1,
            changed: BTreeMap::new(),
            unflushed: HashMap::new(),
            flying: HashMap::new(),
            allocated: BTreeSet::new(),
            marks: Vec::new(),
            incarnation: 0,
            rng: Rng::new(seed),
            asked: 0,
        };
        Self { disk: disk.clone(), book: Arc::new(Mutex::new(book)) }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        work(&mut self.book.lock().unwrap())
    }

    /// A new device, of a new incarnation.
    pub(crate) fn power_on(&self) -> Arc<dyn BlockDevice> {
        self.cut_power();
        let sim: Arc<dyn BlockDevice> = self.disk.power_on();
        let incarnation = sim.incarnation().unwrap();
        self.with(|book| book.incarnation = incarnation);
        Arc::new(Device { replica: self.clone(), sim, incarnation })
    }

    /// The power goes. What is as it was before the last flush has not changed.
    pub(crate) fn cut_power(&self) {
        self.disk.cut_power();
        self.with(|book| {
            book.incarnation = 0;
            book.flying.clear();
            for (block, old) in core::mem::take(&mut book.unflushed) {
                if self.disk.block(Lba(block)) != old.bytes {
                    continue;
                }
                match old.changed {
                    Some(at) => book.changed.insert(block, at),
                    None => book.changed.remove(&block),
                };
                if old.allocated {
                    book.allocated.insert(block);
                } else {
                    book.allocated.remove(&block);
                }
            }
        });
    }

    /// Blocks that hold something.
    pub(crate) fn allocated(&self) -> BTreeSet<u64> {
        self.with(|book| book.allocated.clone())
    }

    pub(crate) fn asked(&self) -> u64 {
        self.with(|book| book.asked)
    }

    pub(crate) fn marks(&self) -> Vec<u128> {
        self.with(|book| book.marks.iter().map(|mark| mark.id).collect())
    }

    fn begin(&self, range: BlockRange, holds: bool) {
        self.with(|book| {
            for block in range.start.0..range.start.0 + range.blocks.0 {
                book.unflushed.entry(block).or_insert_with(|| Old {
                    bytes: self.disk.block(Lba(block)),
                    changed: book.changed.get(&block).copied(),
                    allocated: book.allocated.contains(&block),
                });
                book.changed.insert(block, book.clock);
                *book.flying.entry(block).or_default() += 1;
                if holds {
                    book.allocated.insert(block);
                } else {
                    book.allocated.remove(&block);
                }
            }
            book.clock += 1;
        });
    }

    fn end(&self, range: BlockRange) {
        self.with(|book| {
            for block in range.start.0..range.start.0 + range.blocks.0 {
                if let Some(count) = book.flying.get_mut(&block) {
                    *count = count.saturating_sub(1);
                }
            }
        });
    }

    /// Blocks that a flush that begins now makes durable.
    fn completed(&self) -> Vec<(u64, u64)> {
        self.with(|book| {
            let still = |block: &u64| book.flying.get(block).is_none_or(|n| *n == 0);
            let blocks = book.unflushed.keys().copied().filter(still);
            blocks.map(|block| (block, book.changed.get(&block).copied().unwrap_or(0))).collect()
        })
    }

    fn flushed(&self, blocks: &[(u64, u64)]) {
        self.with(|book| {
            for (block, at) in blocks {
                if book.changed.get(block).copied().unwrap_or(0) == *at {
                    book.unflushed.remove(block);
                }
            }
        });
    }
}

struct Device {
    replica: Replica,
    sim: Arc<dyn BlockDevice>,
    incarnation: u128,
}

impl Device {
    fn gone<T>(&self) -> Result<T, FacetError> {
        Err(FacetError::Gone { device: self.name().to_owned() })
    }

    /// Answers after a while, before and after which the device may have gone.
    async fn ask<T>(&self, answer: impl Future<Output = Result<T, FacetError>>) -> Result<T, FacetError> {
        let pause = self.replica.with(|book| (1 + book.rng.below(40), 1 + book.rng.below(40)));
        let core = Core::current().unwrap();
        core.sleep(Duration::from_micros(pause.0)).await;
        let alive = || self.replica.with(|book| book.incarnation == self.incarnation);
        if !alive() {
            return self.gone();
        }
        let answer = answer.await;
        core.sleep(Duration::from_micros(pause.1)).await;
        if alive() { answer } else { self.gone() }
    }

    fn page(&self, piece: &Piece, found: Vec<(u64, bool)>) -> Page {
        self.replica.with(|book| book.asked += 1);
        let mut page = Page::default();
        for (block, data) in found {
            let is_full = page.extents.len() == piece.most.min(16);
            match page.extents.last_mut() {
                Some(last) if last.range.end() == Some(Lba(block)) && last.data == data => {
                    last.range.blocks.0 += 1;
                }
                _ if is_full => {
                    page.next = Some(Lba(block));
                    break;
                }
                _ => {
                    let range = BlockRange { start: Lba(block), blocks: BlockCount(1) };
                    page.extents.push(Extent { range, data });
                }
            }
        }
        page
    }
}

fn within(piece: &Piece) -> std::ops::Range<u64> {
    piece.range.start.0..piece.range.start.0 + piece.range.blocks.0
}

impl Ranges for Device {
    fn granularity(&self) -> BlockCount {
        BlockCount(1)
    }

    fn allocated(&self, piece: Piece) -> FacetFuture<'_, Page> {
        Box::pin(self.ask(async move {
            let found =
                self.replica.with(|b| b.allocated.range(within(&piece)).map(|b| (*b, true)).collect());
            Ok(self.page(&piece, found))
        }))
    }

    fn changed(&self, since: Since, piece: Piece) -> FacetFuture<'_, Page> {
        Box::pin(self.ask(async move {
            let Since::Mark(id) = since else { panic!("a resync asks since marks") };
            let found = self.replica.with(|book| {
                let mark = book.marks.iter().find(|mark| mark.id == id)?;
                let changed = book.changed.range(within(&piece)).filter(|(_, at)| **at >= mark.number);
                Some(changed.map(|(block, _)| (*block, book.allocated.contains(block))).collect())
            });
            let unknown = FacetError::Unknown { device: self.name().to_owned(), why: "no such mark" };
            Ok(self.page(&piece, found.ok_or(unknown)?))
        }))
    }
}

impl Marks for Device {
    fn position(&self) -> FacetFuture<'_, Position> {
        Box::pin(self.ask(async move {
            let number = self.replica.with(|book| book.clock);
            Ok(Position { incarnation: self.incarnation, number })
        }))
    }

    fn put_mark(&self, id: u128, at: Position) -> FacetFuture<'_, ()> {
        Box::pin(self.ask(async move {
            if at.incarnation != self.incarnation {
                return Err(FacetError::Unknown { device: self.name().to_owned(), why: "incarnation" });
            }
            let completed = self.replica.completed();
            self.replica.disk.flush_cache();
            self.replica.flushed(&completed);
            self.replica.with(|book| {
                book.marks.insert(0, Mark { id, number: at.number });
                book.marks.truncate(MOST_MARKS);
            });
            Ok(())
        }))
    }

    fn remove_mark(&self, id: u128) -> FacetFuture<'_, ()> {
        Box::pin(self.ask(async move {
            self.replica.with(|book| book.marks.retain(|mark| mark.id != id));
            Ok(())
        }))
    }

    fn marks(&self) -> FacetFuture<'_, Vec<Mark>> {
        Box::pin(self.ask(async move { Ok(self.replica.with(|book| book.marks.clone())) }))
    }
}

impl BlockDevice for Device {
    fn name(&self) -> &str {
        self.sim.name()
    }

    fn uuid(&self) -> Uuid {
        self.sim.uuid()
    }

    fn driver(&self) -> &'static str {
        "replica"
    }

    fn geometry(&self) -> Geometry {
        self.sim.geometry()
    }

    fn size(&self) -> BlockCount {
        self.sim.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.sim.capabilities()
    }

    fn incarnation(&self) -> Option<u128> {
        Some(self.incarnation)
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.sim.subscribe(sink)
    }

    fn remove(&self) {
        self.sim.remove();
    }

    fn ranges(&self) -> Option<&dyn Ranges> {
        Some(self)
    }

    fn marks(&self) -> Option<&dyn Marks> {
        Some(self)
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        Box::pin(async move {
            let inner = self.sim.open_channel().await?;
            let (replica, incarnation) = (self.replica.clone(), self.incarnation);
            let channel = Channel { inner, replica, incarnation, flying: HashMap::new() };
            Ok(Box::new(channel) as Box<dyn IoChannel>)
        })
    }
}

enum Flight {
    Change(Vec<BlockRange>),
    Flush(Vec<(u64, u64)>),
}

struct Channel {
    inner: Box<dyn IoChannel>,
    replica: Replica,
    incarnation: u128,
    flying: HashMap<Token, Flight>,
}

impl IoChannel for Channel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        let before = match io.opcode {
            Opcode::Flush => Some(Flight::Flush(self.replica.completed())),
            Opcode::Write | Opcode::WriteZeroes => {
                Some(Flight::Change(vec![BlockRange { start: io.lba, blocks: io.blocks }]))
            }
            Opcode::Unmap => Some(Flight::Change(io.ranges.to_vec())),
            _ => None,
        };
        let alive = self.replica.with(|book| book.incarnation == self.incarnation);
        // Looked at before: afterwards the disk may have it already.
        let old = match &before {
            Some(Flight::Change(ranges)) if alive => ranges.clone(),
            _ => Vec::new(),
        };
        // SAFETY: as the caller promises.
        unsafe { self.inner.submit(io, token) }?;
        for range in old {
            self.replica.begin(range, io.opcode == Opcode::Write);
        }
        if let Some(flight) = before {
            self.flying.insert(token, flight);
        }
        Ok(())
    }

    fn kick(&mut self) {
        self.inner.kick();
    }

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        let from = out.len();
        let count = self.inner.poll(out, budget);
        let alive = self.replica.with(|book| book.incarnation == self.incarnation);
        for done in &out[from..] {
            match self.flying.remove(&done.token) {
                Some(Flight::Change(ranges)) if alive => ranges.iter().for_each(|r| self.replica.end(*r)),
                Some(Flight::Flush(blocks)) if alive && done.status.is_success() => {
                    self.replica.flushed(&blocks);
                }
                _ => {}
            }
        }
        count
    }

    fn take_ready(&mut self) -> bool {
        self.inner.take_ready()
    }

    fn prepare_sleep(&mut self) -> Sleep {
        self.inner.prepare_sleep()
    }

    fn cancel(&mut self, token: Token) -> Cancel {
        self.inner.cancel(token)
    }

    fn lent(&self, token: Token) -> Lent<'_> {
        self.inner.lent(token)
    }

    fn release(&mut self, token: Token) {
        self.inner.release(token);
    }

    fn close(&mut self) {
        self.inner.close();
    }

    fn drained(&self) -> bool {
        self.inner.drained()
    }
}
