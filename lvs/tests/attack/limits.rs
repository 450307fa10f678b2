//! Tails, tables and pools that are as large, or as full, as they can be.
//!
//! Needs `unsafe` to submit I/Os to a channel that is then dropped: their memory lives longer, as
//! [`aio::IoChannel::submit`] demands.

use std::ptr::NonNull;

use aio::facade::ByteRange;
use aio::{BlockCount, BlockDevice, Descriptor, Io, IoFlags, IoStatus, Lba, RegionId, SgEntry, Token};
use lvs::info::{CreateVolume, VolumeProperties};

use crate::found::fresh;
use crate::harness::crash::{end, import};
use crate::harness::disk::{Disk, Image};
use crate::harness::live::Live;
use crate::harness::look::look;
use crate::harness::model::Op;
use crate::review::{again, pool, write};
use crate::rig::Rng;

/// H16, a bug: a tail of more than one delta is merged before the pool is open, and nobody took from the disks the map pages
/// that the merge had asked for ahead: the import hung.
#[test]
fn h16_a_tail_of_two_deltas_over_a_map_of_many_pages_is_imported() {
    for turns in [50, 90, 130, 170] {
        let (disk, live, volume, blocks) = pool(4096, 64, Ok(6000));
        (0..blocks).step_by(32).for_each(|block| live.good(write(volume, block, 32.min(blocks - block))));
        live.good(Op::Checkpoint);
        let unmap = |i: u64| Op::Unmap { volume, first: (i * 10) % blocks * 8, count: 5 * 8 };
        live.run_all((0..500).map(unmap).collect()).into_iter().for_each(Result::unwrap);
        let more = (500..1000).map(|i| Op::Unmap { volume, first: ((i - 500) * 10 + 5) * 8, count: 5 * 8 });
        live.abandon([Op::Checkpoint].into_iter().chain(more).collect(), turns);
        let before = live.model.borrow().clone();
        let (_disk, live) = again(&disk, live);
        before.check(&live.rig.run(look(&live.pool)).unwrap(), true).unwrap();
    }
}

/// H18: the tail of a full pool holds as many updates as it can, and the import has to write them down.
#[test]
fn h18_a_full_pool_with_a_long_tail_can_be_imported() {
    for (turns, mib) in [(40, 20), (100, 24)] {
        let disk = Disk::new(0, Image::empty(4096, mib), false, 1, None);
        let live = fresh(std::slice::from_ref(&disk));
        let blocks = live.rig.run(live.pool.info()).unwrap().capacity_bytes / 4096;
        let volume = live.next_uuid();
        live.good(Op::CreateVolume { uuid: volume, blocks, thin: true });
        fill(&live, volume, blocks);
        let others: Vec<_> = (0..2 * 62_000 / blocks + 1)
            .map(|n| {
                let spec = thin(format!("v{n}"), blocks * 4096);
                live.rig.run(live.pool.create_volume(spec)).unwrap()
            })
            .collect();
        let open = |v: &std::sync::Arc<lvs::Volume>| {
            let device: std::sync::Arc<dyn BlockDevice> = v.clone();
            live.rig.run(Descriptor::open(device)).unwrap()
        };
        let unmap = |d: Descriptor| async move {
            for first in (0..blocks).step_by(4 * 64) {
                let last = (first + 4 * 64).min(blocks);
                let part = |b: u64| ByteRange { offset_bytes: b * 4096, len_bytes: 4.min(last - b) * 4096 };
                let ranges: Vec<ByteRange> = (first..last).step_by(4).map(part).collect();
                let _ = d.unmap(&ranges).await;
            }
        };
        let half = others.len() / 2;
        for v in &others[..half] {
            let d = open(v);
            live.rig.run(unmap(d.clone()));
            live.rig.run(d.close());
        }
        // What is there is merged while as much comes again.
        let all: Vec<Descriptor> = others[half..].iter().map(open).collect();
        let pool = live.pool.clone();
        let mut checkpoint = Box::pin(async move { drop(pool.checkpoint().await) });
        let mut rest = Box::pin(async {
            for d in &all {
                unmap(d.clone()).await;
            }
        });
        let _ = live.rig.run_for(1, checkpoint.as_mut());
        let _ = live.rig.run_for(turns, rest.as_mut());
        disk.cut();
        drop((checkpoint, rest));
        drop(all);
        let main = |seen: crate::harness::model::Seen| seen.volumes[&volume].blocks.clone();
        let (disk, live) = again(&disk, live);
        let seen = live.rig.run(look(&live.pool)).unwrap();
        assert!(main(seen).iter().take(64).all(|b| b[0] != 0), "{mib} MiB, cut after {turns} turns");
        disk.cut();
    }
}

/// Writes until nothing more goes in, then everything again.
fn fill(live: &Live, volume: uuid::Uuid, blocks: u64) {
    for _ in 0..2 {
        for block in (0..blocks).step_by(32) {
            let _ = live.run(write(volume, block, 32.min(blocks - block)));
        }
    }
}

fn thin(name: String, size_bytes: u64) -> CreateVolume {
    CreateVolume { name, uuid: None, size_bytes, thin: true, entity_id: None }
}

/// A bug: what was copied for a record counted as one piece of memory, and was one for each write: a disk refused a record of
/// too many, and the pool took no more writes.
#[test]
fn a_record_has_no_more_pieces_of_memory_than_a_disk_takes() {
    for pieces in [1, 2, 3] {
        let (disk, live, volume, blocks) = pool(4096, 24, Ok(400));
        let mut memory = vec![[7u64; 512]; blocks as usize];
        let mut channel = live.rig.run(live.pool.volume(volume).unwrap().open_channel()).unwrap();
        for (i, buf) in memory.iter_mut().enumerate() {
            let piece = |(at, bytes): (usize, u32)| SgEntry {
                ptr: NonNull::from(&mut buf[at]).cast(),
                len_bytes: bytes,
                region: RegionId::NONE,
            };
            let cuts: &[(usize, u32)] = match pieces {
                1 => &[(0, 4096)],
                2 => &[(0, 512), (64, 3584)],
                _ => &[(0, 512), (64, 512), (128, 3072)],
            };
            let sg: Vec<SgEntry> = cuts.iter().copied().map(piece).collect();
            let io = Io::write(Lba(i as u64), BlockCount(1), &sg);
            let io = Io { flags: if i % 3 > 0 { IoFlags::STABLE } else { IoFlags::empty() }, ..io };
            // SAFETY: the memory lives until the channel is gone.
            unsafe { channel.submit(&io, Token::new(i as u32, 0)) }.unwrap();
        }
        channel.kick();
        let mut done = Vec::new();
        while done.len() < blocks as usize {
            live.rig.turn();
            channel.poll(&mut done, 1000);
        }
        assert!(done.iter().all(|c| c.status == IoStatus::SUCCESS), "{pieces} pieces");
        drop(channel);
        assert_eq!(live.rig.run(live.pool.info()).unwrap().fault, None);
        end(&live.rig, &[disk], &live.pool);
    }
}

/// A bug: a channel that was dropped with writes of parts of blocks in flight waited for a checkpoint that could not be made
/// while it waited, and then gave the pool up.
#[test]
fn h18_a_channel_that_goes_while_a_full_pool_makes_room_does_not_take_it_along() {
    for turns in (0..400).step_by(40) {
        let (disk, live, volume, blocks) = pool(512, 20, Err(100));
        (0..blocks).step_by(32).for_each(|block| live.good(write(volume, block, 32.min(blocks - block))));
        let rig = live.rig.clone();
        let mut rng = Rng::new(turns);
        let mut memory = vec![[0u64; 64]; 600];
        let mut channel = rig.run(live.pool.volume(volume).unwrap().open_channel()).unwrap();
        for (i, buf) in memory.iter_mut().enumerate() {
            let sg = [SgEntry { ptr: NonNull::from(buf).cast(), len_bytes: 512, region: RegionId::NONE }];
            let io = Io::write(Lba(rng.below(blocks) * 8 + 1), BlockCount(1), &sg);
            // SAFETY: the memory lives until the channel is gone.
            let _ = unsafe { channel.submit(&io, Token::new(i as u32, 0)) };
        }
        channel.kick();
        (0..turns).for_each(|_| rig.turn());
        drop(channel);
        assert_eq!(rig.run(live.pool.info()).unwrap().fault, None, "dropped after {turns} turns");
        live.close();
        rig.run_for(3_000_000, live.pool.export()).expect("the export hangs").unwrap();
        disk.cut();
    }
}

/// A bug: a record of the catalogue takes a block more than it needs, and what stood in that block before was read by the
/// cleaner as a record that covers those behind it: their blocks stayed where they were for ever.
#[test]
fn what_an_earlier_use_of_a_segment_left_hides_nothing_from_the_cleaner() {
    let disks = [0, 1].map(|i| Disk::new(i, Image::empty(4096, 20), true, 1, None));
    let live = fresh(&disks);
    let blocks = live.rig.run(live.pool.info()).unwrap().capacity_bytes / 4096 / 7;
    let volume = live.next_uuid();
    live.good(Op::CreateVolume { uuid: volume, blocks, thin: true });
    let mut rng = Rng::new(4);
    let mut hosts = 0;
    for round in 0..30 {
        for _ in 0..60 {
            let ops = (0..1 + rng.below(12)).map(|_| write(volume, rng.below(blocks - 8), 1 + rng.below(6)));
            live.run_all(ops.collect()).into_iter().for_each(Result::unwrap);
            if round > 10 {
                hosts += 1;
                let properties = VolumeProperties {
                    allowed_hosts: vec![format!("nqn.{hosts}")],
                    ..VolumeProperties::default()
                };
                live.rig.run(live.pool.set_properties(volume, properties)).unwrap();
            }
        }
        live.good(Op::Checkpoint);
    }
    live.check();
    live.rig.run(live.pool.remove_disk("disk0".to_owned())).unwrap();
    live.check();
    live.close();
    end(&live.rig, &disks, &live.pool);
    let disk = Disk::new(1, disks[1].image(), true, 2, None);
    let pool = import(&live.rig, std::slice::from_ref(&disk)).unwrap();
    live.model.borrow().check(&live.rig.run(look(&pool)).unwrap(), true).unwrap();
    end(&live.rig, &[disk], &pool);
}
