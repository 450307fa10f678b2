//! Disks that join, leave and grow, with the power cut at every write.

use super::*;

#[test]
fn disks_are_added_and_removed_while_volumes_are_in_use() {
    let rig = Rig::new();
    let [a, b, c] = [("a", 1), ("b", 2), ("c", 3)].map(|(name, seed)| rig.disk(name, 4096, 40, true, seed));
    let (pool, volume) = filled(&rig, &[&a]);
    let before = rig.run(pool.info()).unwrap();
    rig.run(pool.add_disk(on(&b), false)).unwrap();
    let third = on(&c);
    rig.run(pool.add_disk(third.clone(), false)).unwrap();
    let after = rig.run(pool.info()).unwrap();
    assert!(after.capacity_bytes > 2 * before.capacity_bytes);
    assert_eq!(after.disks, ["a", "b", "c"]);
    let error = rig.run(pool.add_disk(third, false)).unwrap_err();
    assert!(matches!(error, LvsError::DiskOfPool { .. }), "{error}");
    // Writes go on while two of the three leave.
    let d = open(&rig, &volume);
    let mut rng = Rng::new(3);
    let mut holds: Vec<u64> = (0..BLOCKS * 2).map(|b| if b % 2 == 0 { b / 2 + 1 } else { 0 }).collect();
    for (disk, left) in [("a", ["b", "c"].as_slice()), ("b", &["c"])] {
        let mut removal = Box::pin(pool.remove_disk(disk.to_owned()));
        let mut stamp = 10_000;
        loop {
            if let Some(removed) = rig.run_for(3, removal.as_mut()) {
                removed.unwrap();
                break;
            }
            let block = rng.below(BLOCKS * 2);
            stamp += 1;
            write(&rig, &d, block, stamp);
            holds[block as usize] = stamp;
            let block = rng.below(BLOCKS * 2);
            assert_eq!(read(&rig, &d, block), Some(holds[block as usize]));
        }
        assert_eq!(rig.run(pool.info()).unwrap().disks, left);
        assert!(stamp > 10_010, "nothing was written meanwhile");
    }
    assert!(matches!(rig.run(pool.remove_disk("c".to_owned())), Err(LvsError::DiskStays { .. })));
    assert!(matches!(rig.run(pool.remove_disk("b".to_owned())), Err(LvsError::NoSuchDisk { .. })));
    (0..BLOCKS * 2).for_each(|block| assert_eq!(read(&rig, &d, block), Some(holds[block as usize])));
    rig.run(d.close());
    rig.run(pool.export()).unwrap();
    assert_eq!(findings(&rig, &[&c]), Vec::<String>::new());
    let pool = import(&rig, &[&c]).unwrap();
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    (0..BLOCKS * 2).for_each(|block| assert_eq!(read(&rig, &d, block), Some(holds[block as usize])));
    // A disk that was removed can come back.
    rig.run(pool.add_disk(on(&a), false)).unwrap();
    let disks = rig.run(pool.disks()).unwrap();
    assert_eq!(disks.iter().map(|d| d.index).collect::<Vec<_>>(), [2, 3]);
}

/// A disk was left out of the list before the checkpoint without it was durable: whoever took it away then, and lost power, had
/// a pool with a disk missing.
#[test]
fn a_disk_that_is_not_listed_any_more_is_not_missed_by_an_import() {
    let rig = Rig::new();
    let disks = [rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2)];
    let disks = [&disks[0], &disks[1]];
    let (pool, volume) = filled(&rig, &disks);
    let mut removal = Box::pin(pool.remove_disk("a".to_owned()));
    let mut seen = Vec::new();
    loop {
        let _ = rig.run_for(1, removal.as_mut());
        let listed = rig.run(pool.disks()).unwrap();
        let Some(a) = listed.iter().find(|d| d.name == "a") else { break };
        if seen.last() != Some(&a.state) {
            seen.push(a.state);
        }
    }
    assert_eq!(seen, [DiskState::Active, DiskState::Evacuating]);
    drop(removal);
    crash(&rig, pool, &disks);
    assert_filled(&rig, &import(&rig, &disks[1..]).unwrap(), &volume);
}

/// Runs `operation` on a filled pool on `disks`, and cuts the power at the `n`th write after it began. False when it ended before.
fn cut_at_write<'a, F: Future<Output = Result<(), LvsError>> + 'a>(
    rig: &Rig,
    disks: &[&SimDisk],
    pool: &Pool,
    n: u64,
    operation: F,
) -> bool {
    let writes = || disks.iter().map(|d| d.stats().writes).sum::<u64>();
    let before = writes();
    let mut operation = Box::pin(operation);
    let mut ended = false;
    while !ended && writes() - before < n {
        ended =
            rig.run_for(1, operation.as_mut()).inspect(|done| assert!(done.is_ok(), "{done:?}")).is_some();
    }
    disks.iter().for_each(|d| d.cut_power());
    drop(operation);
    let _ = rig.run(pool.export());
    !ended
}

/// Every write of an addition: before it counts the pool is as it was, from then on the disk belongs to it.
#[test]
fn an_addition_is_safe_at_every_write() {
    let mut tried = Tried::default();
    (1..).find(|&n| !cut_addition(n, n, false, &mut tried).0);
    assert!(tried.without > 5 && tried.with > 0, "{tried:?}");
}

/// A bug: the anchor that a disk gets before it joins was the newest one when that began. With two checkpoints since, a crash
/// while the first one that lists it is written left it too far behind: it was refused as an old copy, and without it there
/// was no import, either.
#[test]
fn an_addition_beside_checkpoints_is_safe_at_every_write() {
    let mut tried = Tried::default();
    for seed in 1..6 {
        let (_, writes) = cut_addition(seed, u64::MAX, true, &mut tried);
        for n in writes - 16..writes {
            cut_addition(seed, n, true, &mut tried);
        }
    }
    assert!(tried.without > 5 && tried.with > 5, "{tried:?}");
}

/// Both, beside each other.
async fn both<A: Future<Output = Result<(), LvsError>>, B: Future<Output = Result<(), LvsError>>>(
    a: A,
    b: B,
) -> Result<(), LvsError> {
    let (mut a, mut b) = (Box::pin(a), Box::pin(b));
    let mut done = (None, None);
    std::future::poll_fn(|cx| {
        fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>, cx: &mut Context<'_>) -> Option<T> {
            if let Poll::Ready(value) = future.poll(cx) { Some(value) } else { None }
        }
        if done.0.is_none() {
            done.0 = poll(a.as_mut(), cx);
        }
        if done.1.is_none() {
            done.1 = poll(b.as_mut(), cx);
        }
        if done.0.is_some() && done.1.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.0.unwrap().and(done.1.unwrap())
}

/// How often the disk did not belong to the pool after a cut, and did.
#[derive(Debug, Default)]
struct Tried {
    without: u32,
    with: u32,
}

/// Adds a disk, perhaps while one checkpoint after the other is made, and cuts the power at write `n`. False when it ended
/// before; and how many writes there were.
fn cut_addition(seed: u64, n: u64, checkpoints: bool, tried: &mut Tried) -> (bool, u64) {
    let rig = Rig::new();
    // Beside checkpoints: a slow one, so that some are made meanwhile.
    let slow = Latency { min_ns: 200_000, max_ns: 300_000, ..Latency::default() };
    let latency = if checkpoints { slow } else { Latency::default() };
    let a = rig.disk("a", 4096, 40, true, seed);
    let b = SimConfig { name: "b".to_owned(), latency, ..SimConfig::new(4096, 40 * 256, seed + 1) };
    let b = rig.disk_as(b);
    let (pool, volume) = filled(&rig, &[&a]);
    let writes = || a.stats().writes + b.stats().writes;
    let before = writes();
    let added = Cell::new(false);
    let add = async {
        let done = pool.add_disk(on(&b), false).await;
        added.set(true);
        done
    };
    let beside = async {
        while checkpoints && !added.get() {
            pool.checkpoint().await?;
        }
        Ok(())
    };
    let cut = cut_at_write(&rig, &[&a, &b], &pool, n, both(add, beside));
    let writes = writes() - before;
    match import(&rig, &[&a]) {
        Ok(pool) => {
            tried.without += 1;
            assert_filled(&rig, &pool, &volume);
            rig.run(pool.export()).unwrap();
            let both = import(&rig, &[&a, &b]).map(|_| ()).unwrap_err();
            assert!(matches!(both, LvsError::StaleDisk { .. } | LvsError::NoPool { .. }), "{both}");
            let pool = import(&rig, &[&a]).unwrap();
            // Again, without force: what was left of it is the pool's own.
            rig.run(pool.add_disk(on(&b), false)).unwrap();
            rig.run(pool.export()).unwrap();
        }
        Err(error) => {
            tried.with += 1;
            assert!(matches!(error, LvsError::DiskMissing { missing: _, members: 2, .. }), "{error}");
        }
    }
    assert_eq!(findings(&rig, &[&a, &b]), Vec::<String>::new(), "write {n}");
    let pool = import(&rig, &[&a, &b]).unwrap();
    assert_filled(&rig, &pool, &volume);
    assert_eq!(rig.run(pool.disks()).unwrap().len(), 2);
    (cut, writes)
}

/// Every write of a removal, or as many as there is time for: it goes on after the next import.
#[test]
fn a_removal_is_safe_at_every_write() {
    let step = std::env::var("KEELSON_LVS_STEP").ok().and_then(|s| s.parse().ok()).unwrap_or(9);
    ["a", "b"].into_iter().for_each(|leaving| cut_removals(leaving, step));
}

fn cut_removals(leaving: &str, step: usize) {
    let (mut again, mut done) = (0, 0);
    for n in (1..).step_by(step) {
        let rig = Rig::new();
        let (a, b) = (rig.disk("a", 4096, 40, true, n), rig.disk("b", 4096, 40, true, n + 1));
        let (pool, volume) = filled(&rig, &[&a, &b]);
        let (gone, stays) = if leaving == "a" { (&a, &b) } else { (&b, &a) };
        let cut = cut_at_write(&rig, &[&a, &b], &pool, n, pool.remove_disk(leaving.to_owned()));
        match import(&rig, &[&a, &b]) {
            Ok(pool) => {
                again += 1;
                assert_filled(&rig, &pool, &volume);
                rig.run(pool.export()).unwrap();
                assert_eq!(findings(&rig, &[&a, &b]), Vec::<String>::new(), "write {n}");
                let pool = import(&rig, &[&a, &b]).unwrap();
                rig.run(pool.remove_disk(leaving.to_owned())).unwrap();
                rig.run(pool.export()).unwrap();
            }
            Err(error) => {
                done += 1;
                let known = matches!(error, LvsError::StaleDisk { .. } | LvsError::NoPool { .. });
                // Its superblock area was being erased.
                assert!(known || matches!(error, LvsError::Damaged { .. }), "{error}");
            }
        }
        assert_eq!(findings(&rig, &[stays]), Vec::<String>::new(), "write {n}");
        let pool = import(&rig, &[stays]).unwrap();
        assert_filled(&rig, &pool, &volume);
        // What left is as good as new.
        rig.run(pool.add_disk(on(gone), !known_empty(gone))).unwrap();
        if !cut {
            break;
        }
    }
    assert!(again > 1 && done > 0, "{again} {done}");
}

/// Both labels are gone.
fn known_empty(disk: &SimDisk) -> bool {
    [0, 8].iter().all(|&b| disk.block(Lba(b)).iter().all(|&byte| byte == 0))
}

/// A disk that cannot read a range: exactly its blocks are errors, and it leaves once nothing needs them.
#[test]
fn a_disk_with_bad_blocks_is_emptied_when_nothing_needs_them_any_more() {
    let rig = Rig::new();
    let (a, b) = (rig.disk("a", 4096, 40, true, 1), rig.disk("b", 4096, 40, true, 2));
    let (pool, volume) = filled(&rig, &[&a, &b]);
    rig.run(pool.export()).unwrap();
    // Where blocks 100 to 119 of the volume are, by their stamps.
    let stamped = |disk: &SimDisk, stamp: u64| {
        blocks_that(disk, 40, |block| block.chunks_exact(8).all(|c| c == stamp.to_le_bytes())).pop()
    };
    let disk = if stamped(&a, 101).is_some() { &a } else { &b };
    let name = if stamped(&a, 101).is_some() { "a" } else { "b" };
    let places: Vec<Lba> = (101..121).map(|stamp| stamped(disk, stamp).unwrap()).collect();
    let pool = import(&rig, &[&a, &b]).unwrap();
    places.iter().for_each(|&lba| disk.damage(lba));
    let d = open(&rig, &pool.volume(volume.uuid()).unwrap());
    for block in 0..BLOCKS {
        let want = if (100..120).contains(&block) { None } else { Some(block + 1) };
        assert_eq!(read(&rig, &d, block * 2), want, "block {block}");
    }
    let errors = rig.run(pool.info()).unwrap().errors;
    assert_eq!((errors.reads, errors.checksums, errors.map_pages), (20, 0, 0));
    let stays = rig.run(pool.remove_disk(name.to_owned())).unwrap_err();
    assert!(matches!(&stays, LvsError::DiskStays { why, .. } if why.contains("20 blocks")), "{stays}");
    // What could be moved was, and the pool goes on.
    assert_eq!(rig.run(pool.info()).unwrap().fault, None);
    let left = rig.run(pool.disks()).unwrap().into_iter().find(|disk| disk.name == name).unwrap();
    assert_eq!((left.state, left.live_bytes), (DiskState::Evacuating, 20 * BLOCK));
    (100..120).for_each(|block| write(&rig, &d, block * 2, block + 1));
    rig.run(pool.remove_disk(name.to_owned())).unwrap();
    rig.run(d.close());
    assert_filled(&rig, &pool, &volume);
    rig.run(pool.export()).unwrap();
    let other = if name == "a" { &b } else { &a };
    assert_eq!(findings(&rig, &[other]), Vec::<String>::new());
}

/// A disk of which only a part was there when the pool was made.
struct Part {
    of: Arc<dyn BlockDevice>,
    blocks: AtomicU64,
}

impl Part {
    fn new(disk: &SimDisk, blocks: u64) -> Arc<Self> {
        Arc::new(Self { of: on(disk), blocks: AtomicU64::new(blocks) })
    }
}

impl BlockDevice for Part {
    fn name(&self) -> &str {
        self.of.name()
    }

    fn uuid(&self) -> uuid::Uuid {
        self.of.uuid()
    }

    fn driver(&self) -> &'static str {
        self.of.driver()
    }

    fn geometry(&self) -> Geometry {
        self.of.geometry()
    }

    fn size(&self) -> BlockCount {
        BlockCount(self.blocks.load(Ordering::Relaxed))
    }

    fn capabilities(&self) -> Capabilities {
        self.of.capabilities()
    }

    fn incarnation(&self) -> Option<u128> {
        self.of.incarnation()
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.of.subscribe(sink)
    }

    fn remove(&self) {
        self.of.remove();
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        self.of.open_channel()
    }
}

/// Every write of a growth: the pool has one size or the other, and everything that was in it.
#[test]
fn a_growth_is_safe_at_every_write() {
    let (mut smaller, mut larger) = (0, 0);
    for n in 1.. {
        let rig = Rig::new();
        let disk = rig.disk("a", 4096, 40, true, n);
        let part = Part::new(&disk, 28 * 256);
        let spec = CreatePool { name: "tpool".to_owned(), uuid: None, force: false };
        let pool = rig.run(Pool::create(rig.home(), vec![part.clone()], spec)).unwrap();
        let volume = fill(&rig, &pool);
        let before = rig.run(pool.info()).unwrap().capacity_bytes;
        let d = open(&rig, &volume);
        (0..50).for_each(|block| write(&rig, &d, block * 2, block + 1));
        rig.run(d.flush()).unwrap();
        rig.run(d.close());
        part.blocks.store(40 * 256, Ordering::Relaxed);
        let cut = cut_at_write(&rig, &[&disk], &pool, n, async { pool.grow().await.map(|_| ()) });
        assert_eq!(findings(&rig, &[&disk]), Vec::<String>::new(), "write {n}");
        let pool = import(&rig, &[&disk]).unwrap();
        match rig.run(pool.info()).unwrap().capacity_bytes > before {
            true => larger += 1,
            false => smaller += 1,
        }
        assert_filled(&rig, &pool, &volume);
        rig.run(pool.grow()).unwrap();
        assert!(rig.run(pool.info()).unwrap().capacity_bytes > before);
        assert_filled(&rig, &pool, &volume);
        if !cut {
            break;
        }
    }
    assert!(smaller > 2 && larger > 0, "{smaller} {larger}");
}
