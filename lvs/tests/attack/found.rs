//! What attacks have found, one test for each.

use std::rc::Rc;

use lvs::Pool;

use crate::harness::crash::{end, import};
use crate::harness::disk::{Disk, Image};
use crate::harness::live::Live;
use crate::harness::look::look;
use crate::harness::model::{Model, Op};
use crate::harness::walk::pool_spec;
use crate::rig::Rig;

/// A new pool on disks of so many MiB.
fn fresh(disks: &[Disk]) -> Live {
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
