//! What attacks have found, one test for each.

use std::rc::Rc;

use lvs::Pool;
use lvs::info::ImportPool;

use crate::harness::crash::{end, import};
use crate::harness::disk::{Disk, Image};
use crate::harness::live::Live;
use crate::harness::look::look;
use crate::harness::model::{Model, Op};
use crate::harness::walk::pool_spec;
use crate::rig::Rig;

/// A new pool on disks of so many MiB.
pub(crate) fn fresh(disks: &[Disk]) -> Live {
    let rig = Rc::new(Rig::new());
    let devices = disks.iter().map(Disk::device).collect();
    let pool = rig.run(Pool::create(rig.home(), devices, pool_spec())).unwrap();
    Live::new(rig, pool, Model::default(), None, 1)
}

fn disk(mib: u64) -> Disk {
    Disk::new(0, Image::empty(4096, mib), true, 1, None)
}

/// A bug: data and a hole for one block, submitted together, shared a record. The running pool let the hole win, the import
/// what came last.
#[test]
fn h9_a_write_and_an_unmap_that_meet_have_one_order_also_after_a_crash() {
    for write_first in [false, true] {
        let disk = disk(24);
        let live = fresh(std::slice::from_ref(&disk));
        let volume = live.next_uuid();
        live.good(Op::CreateVolume { uuid: volume, blocks: 64, thin: true });
        let mut ops = vec![
            Op::Unmap { volume, first: 8, count: 64 },
            Op::Write { volume, first: 16, count: 16, fua: false },
        ];
        if write_first {
            ops.reverse();
        }
        live.run_all(ops).into_iter().for_each(Result::unwrap);
        live.good(Op::Flush { volume });
        let before = live.rig.run(look(&live.pool)).unwrap();
        let expected = if write_first { [0; 8] } else { [3; 8] };
        assert_eq!(before.volumes[&volume].blocks[2], expected);
        live.close();
        end(&live.rig, std::slice::from_ref(&disk), &live.pool);
        let again = Disk::new(0, disk.image(), true, 2, None);
        let pool = import(&live.rig, std::slice::from_ref(&again)).unwrap();
        assert_eq!(live.rig.run(look(&pool)).unwrap(), before);
        end(&live.rig, &[again], &pool);
    }
}

/// Imports and is cut off after so many turns. What is on the disks then.
fn cut_import(rig: &Rig, images: &[Image], turns: u64, seed: u64) -> Result<Vec<Image>, String> {
    let disks: Vec<Disk> =
        images.iter().enumerate().map(|(i, image)| Disk::new(i, image.clone(), true, seed, None)).collect();
    let devices = disks.iter().map(Disk::device).collect();
    let mut import = Box::pin(Pool::import(rig.home(), devices, ImportPool::default()));
    let imported = rig.run_for(turns, import.as_mut());
    disks.iter().for_each(Disk::cut);
    match imported {
        Some(Err(error)) => return Err(error.to_string()),
        Some(Ok(pool)) => drop(rig.run(pool.export())),
        // It ends, well or not, now that its disks are gone.
        None => {
            if let Ok(pool) = rig.run(import) {
                let _ = rig.run(pool.export());
            }
        }
    }
    Ok(disks.iter().map(Disk::image).collect())
}

/// A bug: each import took segments for its tables, and only a checkpoint after it gave those of the one before back. Cut off
/// often enough, a pool had none left, and could not be imported any more. With several disks it was the checkpoint's number:
/// a disk that was written last fell behind by more than one, and was refused as an old copy.
#[test]
fn imports_that_are_cut_off_again_and_again_use_nothing_up() {
    for count in [1, 2] {
        let mut images: Vec<Image> = (0..count).map(|_| Image::empty(4096, 20)).collect();
        let disks: Vec<Disk> =
            images.iter().enumerate().map(|(i, m)| Disk::new(i, m.clone(), true, 1, None)).collect();
        let live = fresh(&disks);
        let blocks = live.rig.run(live.pool.info()).unwrap().capacity_bytes / 4096 * 8 / 10;
        let volume = live.next_uuid();
        live.good(Op::CreateVolume { uuid: volume, blocks, thin: true });
        for first in (0..blocks - 32).step_by(16) {
            live.good(Op::Write { volume, first: first * 8, count: 32 * 8, fua: false });
        }
        live.good(Op::Flush { volume });
        let before = live.rig.run(look(&live.pool)).unwrap();
        live.close();
        end(&live.rig, &disks, &live.pool);
        images = disks.iter().map(Disk::image).collect();
        for round in 0..90 {
            let cut = cut_import(&live.rig, &images, 100 + round % 60 * 5, round);
            images = cut.unwrap_or_else(|e| panic!("{count} disks, cut {round} times: {e}"));
        }
        let disks: Vec<Disk> =
            images.iter().enumerate().map(|(i, m)| Disk::new(i, m.clone(), true, 3, None)).collect();
        let pool = import(&live.rig, &disks).unwrap();
        assert_eq!(live.rig.run(look(&pool)).unwrap(), before);
        end(&live.rig, &disks, &pool);
    }
}
