//! Orders of events that only the inside can bring about, and see.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use aio::facade::ByteRange;
use aio::reactor::EngineChoice;
use aio::{BlockDevice, CoreId, Descriptor, Reactor, ReactorConfig};

use super::clean::Pace;
use super::log::Flow;
use super::space::State;
use super::{Inner, Store, open_stores};
use crate::info::{CreatePool, CreateVolume, ImportPool};
use crate::types::{BlockNo, LineId};
use crate::{LvsError, Pool};

const MIB: u64 = 1 << 20;

fn poll<T>(reactor: &Reactor, future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    match reactor.enter(|| future.poll(&mut Context::from_waker(Waker::noop()))) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn run<T>(reactor: &mut Reactor, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..10_000_000 {
        if let Some(value) = poll(reactor, future.as_mut()) {
            return value;
        }
        reactor.turn();
    }
    panic!("a hang");
}

/// A pool on a disk in memory, with a volume of 1 MiB: line 0.
struct Rig {
    reactor: Reactor,
    disk: Arc<dyn BlockDevice>,
    store: Rc<Store>,
    volume: Descriptor,
}

impl Rig {
    fn new() -> Self {
        let config =
            ReactorConfig { pin: false, engine: EngineChoice::None, ..ReactorConfig::new(CoreId(0)) };
        let mut reactor = Reactor::new(config).unwrap();
        let home = reactor.core().handle();
        let disk = aio::devices::create(&"malloc:///d?size_mb=32&blk_size=4096".parse().unwrap()).unwrap();
        let spec = CreatePool { name: "p".into(), uuid: None, force: false };
        let pool = run(&mut reactor, Pool::create(home, vec![disk.clone()], spec)).unwrap();
        let spec =
            CreateVolume { name: "v".into(), uuid: None, size_bytes: MIB, thin: true, entity_id: None };
        let device: Arc<dyn BlockDevice> = run(&mut reactor, pool.create_volume(spec)).unwrap();
        let volume = run(&mut reactor, Descriptor::open(device)).unwrap();
        let store = open_stores::get(pool.uuid()).unwrap();
        Self { reactor, disk, store, volume }
    }

    fn write(&mut self, block: u64) {
        let buf = self.reactor.core().pools().unwrap().alloc(4096).unwrap();
        run(&mut self.reactor, self.volume.write_at(block * 4096, 4096, buf)).0.unwrap();
    }

    fn unmap(&mut self, block: u64) {
        let range = ByteRange { offset_bytes: block * 4096, len_bytes: 4096 };
        run(&mut self.reactor, self.volume.unmap(&[range])).unwrap();
    }

    fn checkpoint(&mut self) -> Result<(), LvsError> {
        run(&mut self.reactor, self.store.checkpoint(false))
    }

    /// The store is gone without a word, and what is on its disk is found again.
    fn crash(mut self) -> (Reactor, Rc<Store>) {
        run(&mut self.reactor, async { (self.store.rest().await, self.store.close().await) });
        let core = self.reactor.core();
        let found = run(&mut self.reactor, Store::find(&core, vec![self.disk], ImportPool::default()));
        (self.reactor, found.unwrap())
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
        assert!(poll(&rig.reactor, cleaning.as_mut()).is_none(), "it ended before anything was on its way");
        let mut inner = store.inner();
        if inner.log.completed() < inner.log.last() {
            inner.freeze().unwrap();
            break;
        }
        drop(inner);
        rig.reactor.turn();
    }
    assert!(run(&mut rig.reactor, cleaning).unwrap());
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
    let (mut reactor, store) = rig.crash();
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
    run(&mut reactor, store.close());
}
