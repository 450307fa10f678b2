//! Orders of events that only the inside can bring about, and see.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aio::facade::ByteRange;
use aio::reactor::{EngineChoice, ManualClock};
use aio::stream::{ByteStream, Listener, Network};
use aio::{
    BlockCount, BlockDevice, BlockRange, CoreId, Descriptor, Instant, Lba, Reactor, ReactorConfig, Token,
};

use super::clean::{Hold, Pace};
use super::log::{Flow, Log};
use super::space::State;
use super::{Inner, Store, Target, open_stores};
use crate::index::Change;
use crate::info::{CreatePool, CreateVolume, ImportPool};
use crate::types::{BlockNo, LineId, Place, Seq};
use crate::{LvsError, Pool};

const MIB: u64 = 1 << 20;

/// Nothing to connect to.
struct NoNetwork;

impl Network for NoNetwork {
    fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn connect(&self, _: SocketAddr) -> io::Result<Box<dyn ByteStream>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A reactor whose time is its turns.
struct Turns {
    reactor: Reactor,
    clock: Rc<ManualClock>,
}

impl Turns {
    fn turn(&mut self) {
        self.reactor.turn();
        self.clock.advance(Duration::from_micros(1));
    }
}

fn poll<T>(turns: &Turns, future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    match turns.reactor.enter(|| future.poll(&mut Context::from_waker(Waker::noop()))) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn run<T>(turns: &mut Turns, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..1_000_000 {
        if let Some(value) = poll(turns, future.as_mut()) {
            return value;
        }
        turns.turn();
    }
    panic!("a hang");
}

/// A pool on a disk in memory, with a volume of 1 MiB: line 0.
struct Rig {
    turns: Turns,
    disk: Arc<dyn BlockDevice>,
    store: Rc<Store>,
    volume: Descriptor,
}

impl Rig {
    fn new() -> Self {
        let config =
            ReactorConfig { pin: false, engine: EngineChoice::None, ..ReactorConfig::new(CoreId(0)) };
        let clock = Rc::new(ManualClock::new(Instant::from_ns(1_000_000)));
        let reactor = Reactor::with_parts(config, clock.clone(), Rc::new(NoNetwork)).unwrap();
        let home = reactor.core().handle();
        let mut turns = Turns { reactor, clock };
        let disk = aio::devices::create(&"malloc:///d?size_mb=32&blk_size=4096".parse().unwrap()).unwrap();
        let spec = CreatePool { name: "p".into(), uuid: None, force: false };
        let pool = run(&mut turns, Pool::create(home, vec![disk.clone()], spec)).unwrap();
        let spec =
            CreateVolume { name: "v".into(), uuid: None, size_bytes: MIB, thin: true, entity_id: None };
        let device: Arc<dyn BlockDevice> = run(&mut turns, pool.create_volume(spec)).unwrap();
        let volume = run(&mut turns, Descriptor::open(device)).unwrap();
        let store = open_stores::get(pool.uuid()).unwrap();
        Self { turns, disk, store, volume }
    }

    fn write(&mut self, block: u64) {
        let buf = self.turns.reactor.core().pools().unwrap().alloc(4096).unwrap();
        run(&mut self.turns, self.volume.write_at(block * 4096, 4096, buf)).0.unwrap();
    }

    fn unmap(&mut self, block: u64) {
        let range = ByteRange { offset_bytes: block * 4096, len_bytes: 4096 };
        run(&mut self.turns, self.volume.unmap(&[range])).unwrap();
    }

    fn checkpoint(&mut self) -> Result<(), LvsError> {
        run(&mut self.turns, self.store.checkpoint(false))
    }

    /// The store is gone without a word, and what is on its disk is found again.
    fn crash(mut self) -> (Turns, Rc<Store>) {
        run(&mut self.turns, async { (self.store.rest().await, self.store.close().await) });
        let core = self.turns.reactor.core();
        let found = run(&mut self.turns, Store::find(&core, vec![self.disk], ImportPool::default()));
        (self.turns, found.unwrap())
    }
}

/// So many blocks are left in both open segments of pages.
fn leave_for_pages(inner: &mut Inner, blocks: u32) {
    let segment_blocks = inner.space.segment_blocks();
    inner.page_streams.iter_mut().flatten().for_each(|stream| stream.offset = segment_blocks - blocks);
}

/// H16, a bug: when there was room for a merge and none for its tables, the next checkpoint froze another delta, and the
/// tail behind the last durable anchor grew beyond what an import takes.
#[test]
fn h16_nothing_is_frozen_until_what_was_frozen_before_is_anchored() {
    let mut rig = Rig::new();
    {
        // A header and a leaf, and no more. Writes are refused then; what unmaps goes on.
        let mut inner = rig.store.inner();
        while inner.space.open_pages(None).is_some() {}
        leave_for_pages(&mut inner, 2);
    }
    rig.unmap(1);
    let no_space =
        |made: Result<(), LvsError>| assert!(matches!(made, Err(LvsError::NoSpace { .. })), "{made:?}");
    no_space(rig.checkpoint());
    let base = {
        let inner = rig.store.inner();
        assert!(inner.frozen.is_none() && inner.active.is_empty(), "it was merged");
        assert!(inner.anchor.base < inner.frozen_base);
        inner.frozen_base
    };
    rig.unmap(2);
    no_space(rig.checkpoint());
    let inner = rig.store.inner();
    assert_eq!((inner.frozen_base, inner.active.len().0, &inner.fault), (base, 1, &None));
}

/// H4, a bug: a record of moves that was on its way when a checkpoint began has a number that the checkpoint covers. Put into the
/// new delta, its moves were not merged, and where they led counted as empty.
#[test]
fn h4_moves_on_their_way_when_a_checkpoint_begins_belong_to_it() {
    let mut rig = Rig::new();
    (0..20).for_each(|block| rig.write(block));
    rig.checkpoint().unwrap();
    let store = rig.store.clone();
    let segment = store.inner().log.stream(Flow::Hot).unwrap().segment;
    let mut cleaning = pin!(store.clean_segment(segment, Pace::OfCaller));
    for _ in 0..100_000 {
        assert!(poll(&rig.turns, cleaning.as_mut()).is_none(), "it ended before anything was on its way");
        let mut inner = store.inner();
        // Nobody else reserves anything.
        if inner.reserved.0 > 0 {
            inner.freeze().unwrap();
            break;
        }
        drop(inner);
        rig.turns.turn();
    }
    assert!(run(&mut rig.turns, cleaning).unwrap());
    let inner = store.inner();
    let frozen = inner.frozen.as_deref().expect("it was frozen");
    assert_eq!((frozen.len().0, inner.active.len().0), (20, 0));
    assert_eq!(frozen.points_from(LineId(0), BlockNo(0)).count(), 20);
}

/// H4, a bug: the table of segments is written before its own blob has a place. An import took the segment for free, and what it
/// wrote there first may have been over the tables of the only anchor.
#[test]
fn h4_an_import_keeps_the_segments_of_the_tables_that_it_was_led_by() {
    let mut rig = Rig::new();
    (0..20).for_each(|block| rig.write(block));
    rig.checkpoint().unwrap();
    // The table of lines, and then no room for that of segments.
    leave_for_pages(&mut rig.store.inner(), 2);
    rig.checkpoint().unwrap();
    let (mut turns, store) = rig.crash();
    {
        let inner = store.inner();
        let anchor = &inner.anchor;
        let tables = [&anchor.catalogue, &anchor.lines, &anchor.segments];
        let segment = |blob: &crate::format::blob::BlobPtr| inner.space.segment_of(blob.extents[0].pba);
        assert_ne!(segment(&anchor.lines), segment(&anchor.segments), "one has no segment of its own");
        for piece in tables.iter().flat_map(|blob| blob.extents.iter().chain(&blob.copy)) {
            let id = inner.space.segment_of(piece.pba).unwrap();
            assert_ne!(inner.space.get(id).unwrap().state, State::Free, "{id:?}");
        }
    }
    run(&mut turns, store.close());
}

/// H4: what a checkpoint found empty is not free before all reads that began before it ended.
#[test]
fn h4_a_checkpoint_waits_for_the_reads_that_began_before_it() {
    let mut rig = Rig::new();
    (0..20).for_each(|block| rig.write(block));
    rig.checkpoint().unwrap();
    let store = rig.store.clone();
    let hold = Hold::new(&store);
    let mut checkpoint = pin!(store.checkpoint(false));
    for _ in 0..2000 {
        assert!(poll(&rig.turns, checkpoint.as_mut()).is_none(), "a read is under way");
        rig.turns.turn();
    }
    drop(hold);
    run(&mut rig.turns, checkpoint).unwrap();
}

/// H4: what only the delta of an import leads to is counted by no table. Its segments stay beyond the import's own checkpoint.
#[test]
fn h4_an_import_keeps_the_segments_of_its_tail() {
    let mut rig = Rig::new();
    (0..20).for_each(|block| rig.write(block));
    let (mut turns, store) = rig.crash();
    run(&mut turns, store.begin_opening()).unwrap();
    {
        let inner = store.inner();
        assert_eq!(inner.active.len().0, 20);
        for update in inner.active.points_from(LineId(0), BlockNo(0)) {
            let Change::Place(Place::Data { pba, .. }) = update.change else { panic!("{update:?}") };
            let segment = inner.space.get(inner.space.segment_of(pba).unwrap()).unwrap();
            assert!(segment.state == State::Log && segment.newest > inner.anchor.base, "{segment:?}");
        }
    }
    run(&mut turns, async { (store.rest().await, store.close().await) });
}

/// A bug: moves took room of the delta that records in flight had reserved, and what these put was left out of the map after it
/// was acknowledged.
#[test]
fn moves_leave_the_room_that_records_in_flight_have_reserved() {
    let mut rig = Rig::new();
    (0..20).for_each(|block| rig.write(block));
    rig.checkpoint().unwrap();
    let store = rig.store.clone();
    let segment = store.inner().log.stream(Flow::Hot).unwrap().segment;
    let reserved = store.inner().active.room().0 - 19;
    store.inner().reserved.0 = reserved;
    assert!(!run(&mut rig.turns, store.clean_segment(segment, Pace::OfCaller)).unwrap(), "there was no room");
    assert_eq!(store.inner().active.len().0, 0);
    store.inner().reserved.0 -= 1;
    assert!(run(&mut rig.turns, store.clean_segment(segment, Pace::OfCaller)).unwrap());
    let mut inner = store.inner();
    assert_eq!((inner.active.len().0, inner.reserved.0), (20, reserved - 1));
    inner.reserved.0 = 0;
}

/// A bug: each of the ranges of an unmap was cut into up to 256 parts, each with a context of its own.
#[test]
fn an_unmap_of_many_long_ranges_has_few_parts() {
    let rig = Rig::new();
    let mut inner = rig.store.inner();
    inner.lines.get_mut(LineId(0)).unwrap().add_snapshot(Seq(5));
    let target = Target { line: LineId(0), view: Seq::MAX, block_bytes: 4096 };
    let queue = inner.open_queue(1);
    assert!(inner.reserve(queue));
    let io = inner.begin(queue, Token(0), &target);
    let ranges = [BlockRange { start: Lba(0), blocks: BlockCount(1 << 32) }; 256];
    let before = inner.ios.used();
    inner.unmap(io, &target, &ranges);
    let parts = inner.ios.used() - before;
    assert!((256..=512).contains(&parts), "{parts}");
    // Nobody waits for them.
    inner.fail_pool("the test is over");
}

/// A bug: more segments than their table has pieces for faulted the pool at its next checkpoint.
#[test]
fn a_table_of_segments_that_no_anchor_could_name_is_refused() {
    let rig = Rig::new();
    let inner = rig.store.inner();
    inner.check_segments(400_000).unwrap();
    assert!(matches!(inner.check_segments(600_000), Err(LvsError::TooManySegments { .. })));
}

/// H5: no number is used twice, so a pool stops before those of an opening run into those of the next.
#[test]
fn h5_a_pool_stops_before_the_numbers_of_its_opening_are_used_up() {
    let mut rig = Rig::new();
    rig.write(1);
    rig.checkpoint().unwrap();
    rig.store.inner().log = Log::new(Seq(Seq::first_of(2).0 - 1000));
    assert!(matches!(rig.checkpoint(), Err(LvsError::Faulted { .. })));
    assert!(rig.store.inner().fault.as_ref().is_some_and(|why| why.contains("numbers")));
}
