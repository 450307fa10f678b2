//! What an import costs, and what becomes of one that nobody waits for.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "harness/mod.rs"]
mod harness;
#[allow(dead_code, reason = "another test's, too")]
mod rig;

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use aio::{BlockDevice, Descriptor};
use harness::disk::{Disk, Image};
use lvs::info::{CreatePool, CreateVolume, ImportPool};
use lvs::{LvsError, Pool, Volume};
use rig::{Rig, Rng, on};

const MIB: u64 = 1 << 20;
/// Blocks that a checkpoint leaves to the log, at most, in bytes (`FORMAT.md`, section 10, H16).
const NAMED_BYTES: u64 = 192 * MIB;
/// Two deltas as a blob, with 64 Ki updates of 48 bytes each.
const DELTA_BYTES: u64 = 2 * 65_536 * 48;

fn pool_spec() -> CreatePool {
    CreatePool { name: "tpool".into(), uuid: None, force: false }
}

fn thin(size_bytes: u64) -> CreateVolume {
    CreateVolume { name: "v".into(), uuid: None, size_bytes, thin: true, entity_id: None }
}

fn open(rig: &Rig, volume: &Arc<Volume>) -> Descriptor {
    let device: Arc<dyn BlockDevice> = volume.clone();
    rig.run(Descriptor::open(device)).unwrap()
}

/// H16: however much a pool holds, an import reads the superblock, the tables, what its anchor leaves to the log, and of that
/// once more what may be torn; and no page of the map.
#[test]
fn h16_an_import_reads_no_more_than_the_log_since_the_last_checkpoint() {
    let rig = Rig::new();
    let mut disk = Disk::new(0, Image::empty(4096, 2048), true, 1, None);
    let pool = rig.run(Pool::create(rig.home(), vec![disk.device()], pool_spec())).unwrap();
    let volume = rig.run(pool.create_volume(thin(1024 * MIB))).unwrap();
    let uuid = volume.uuid();
    let (mut rng, mut pool) = (Rng::new(3), pool);
    let mut pages = Vec::new();
    for round in 1..=3 {
        let d = open(&rig, &pool.volume(uuid).unwrap());
        for n in 0..3_000 {
            if n == 1_500 {
                rig.run(pool.checkpoint()).unwrap();
            }
            let mut buf = rig.core().pools().unwrap().alloc(65_536).unwrap();
            buf[..65_536].fill(round);
            let at = rng.below(1024 * MIB / 65_536);
            rig.run(d.write_at(at * 65_536, 65_536, buf)).0.unwrap();
        }
        rig.run(d.flush()).unwrap();
        rig.run(d.close());
        let info = rig.run(pool.info()).unwrap();
        pages.push(info.map_pages);
        disk.cut();
        let _ = rig.run(pool.export());
        disk = Disk::new(0, disk.image(), true, 1 + u64::from(round), None);
        let before = disk.counts();
        pool = rig.run(Pool::import(rig.home(), vec![disk.device()], ImportPool::default())).unwrap();
        let after = disk.counts();
        let (reads, bytes) = (after.reads - before.reads, after.read_bytes - before.read_bytes);
        let tables = u64::from(info.segments.0) * 16 + 64 * 1024;
        let log = NAMED_BYTES.max(6 * info.segment_bytes) + 2 * info.segment_bytes;
        // Nobody flushed while this was written, so it is checked.
        let torn = 1_500 * 65_536;
        let most = MIB + tables + DELTA_BYTES + log + torn;
        assert!((MIB..=most).contains(&bytes), "round {round}: {bytes} bytes of at most {most}");
        // In pieces of 1 MiB, for each record that is checked one, and a few for the rest.
        let pieces = log / MIB + 1_500 + 64;
        assert!(reads <= pieces, "round {round}: {reads} reads of at most {pieces}");
    }
    assert!(pages[2] > 2 * pages[0] && pages[0] > 100, "{pages:?} pages of map");
}

/// A bug: a crash while a pool was made left labels without a checkpoint, which was taken for a damaged pool, and refused.
#[test]
fn a_pool_that_a_crash_left_half_made_can_be_made_again() {
    let (mut none, mut whole) = (0, 0);
    for round in 0..100 {
        let rig = Rig::new();
        let disk = rig.disk("a", if round % 2 == 0 { 512 } else { 4096 }, 64, true, round);
        // Over an older pool as well.
        if round % 3 == 0 {
            let pool = rig.run(Pool::create(rig.home(), vec![on(&disk)], pool_spec())).unwrap();
            rig.run(pool.destroy()).unwrap();
        }
        let turns = round * 6;
        let made = rig.run_for(turns, Pool::create(rig.home(), vec![on(&disk)], pool_spec()));
        disk.cut_power();
        if let Some(pool) = made {
            let _ = rig.run(pool.unwrap().export());
        }
        // The one that is cut off notices that its disk is gone.
        (0..8_000).for_each(|_| rig.turn());
        let imported = rig.run(Pool::import(rig.home(), vec![on(&disk)], ImportPool::default()));
        match imported {
            Ok(pool) => {
                whole += 1;
                rig.run(pool.export()).unwrap();
            }
            Err(LvsError::NoPool { .. }) => {
                none += 1;
                let made = rig.run(Pool::create(rig.home(), vec![on(&disk)], pool_spec()));
                rig.run(made.unwrap().export()).unwrap();
            }
            Err(other) => panic!("after {turns} turns: {other}"),
        }
    }
    assert!(none > 20 && whole > 10, "{none} were not there, {whole} were");
}

/// A bug: a pool whose import nobody waited for any more stayed open, and could neither be used nor opened.
#[test]
fn an_import_that_nobody_waits_for_leaves_the_pool_closed() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 64, true, 1);
    let pool = rig.run(Pool::create(rig.home(), vec![on(&disk)], pool_spec())).unwrap();
    rig.run(pool.create_volume(thin(MIB))).unwrap();
    rig.run(pool.export()).unwrap();
    // Given up at each of its first moments, and at later ones.
    for turns in (0..20).chain((60..6_000).step_by(297)) {
        {
            let device = disk.power_on();
            let mut import = pin!(Pool::import(rig.home(), vec![device], ImportPool::default()));
            for _ in 0..turns {
                let mut cx = Context::from_waker(Waker::noop());
                if let Poll::Ready(imported) = import.as_mut().poll(&mut cx) {
                    rig.run(imported.unwrap().export()).unwrap();
                    break;
                }
                rig.turn();
            }
        }
        for _ in 0..20_000 {
            rig.turn();
        }
        let imported = rig.run(Pool::import(rig.home(), vec![on(&disk)], ImportPool::default()));
        let pool = imported.unwrap_or_else(|e| panic!("given up after {turns} turns: {e}"));
        assert_eq!(rig.run(pool.volumes()).unwrap().len(), 1);
        rig.run(pool.export()).unwrap();
        assert!(matches!(rig.run(pool.info()), Err(LvsError::Closed { .. })));
    }
}

/// A bug: two imports of a pool at once were both let in, and each wrote a log of its own.
#[test]
fn of_two_imports_at_once_one_opens_the_pool() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4096, 64, true, 1);
    let pool = rig.run(Pool::create(rig.home(), vec![on(&disk)], pool_spec())).unwrap();
    rig.run(pool.export()).unwrap();
    for apart in [0, 1, 5, 20, 60, 200] {
        let device = on(&disk);
        let import = || Pool::import(rig.home(), vec![device.clone()], ImportPool::default());
        let mut first = pin!(import());
        let mut opened = Vec::new();
        let mut poll = |import: std::pin::Pin<&mut _>| match Future::poll(
            import,
            &mut Context::from_waker(Waker::noop()),
        ) {
            Poll::Ready(ended) => {
                let ended: Result<Pool, LvsError> = ended;
                opened.push(ended);
                true
            }
            Poll::Pending => false,
        };
        let mut over = false;
        for _ in 0..apart {
            over = over || poll(first.as_mut());
            rig.turn();
        }
        let (mut second, mut second_over) = (pin!(import()), false);
        while !over || !second_over {
            over = over || poll(first.as_mut());
            second_over = second_over || poll(second.as_mut());
            rig.turn();
        }
        let (good, bad): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
        assert_eq!((good.len(), bad.len()), (1, 1), "{apart} turns apart");
        assert!(
            matches!(bad[0], Err(LvsError::Exists { .. })),
            "{apart} turns apart: {:?}",
            bad[0].as_ref().err()
        );
        rig.run(good.into_iter().next().unwrap().unwrap().export()).unwrap();
    }
}
