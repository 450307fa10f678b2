//! The hot path allocates nothing.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use nvme::NvmOpcode;

use super::host::rw;
use super::rig::Rig;
use crate::tcp::Local;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts allocations of each thread; tests run on threads of their own.
struct Counting;

// SAFETY: everything is the system allocator's; the count is a plain thread-local cell without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the core's own turns (not the test host's) over `rounds` rounds of 16 commands.
fn allocations(
    uri: &str,
    local: Local,
    opcode: NvmOpcode,
    blocks: u32,
    in_capsule: bool,
    rounds: u32,
) -> u64 {
    let mut rig = Rig::new(uri);
    let (_, io) = rig.login(local, false, 1);
    let bytes = blocks as usize * 512;
    let data = vec![7u8; if opcode == NvmOpcode::WRITE { bytes } else { 0 }];
    let reads = if opcode == NvmOpcode::READ { bytes as u32 } else { 0 };
    let mut counted = 0;
    for round in 0..rounds {
        for cid in 0..16 {
            let sqe = rw(opcode, cid, 1, u64::from(cid) * u64::from(blocks), blocks);
            rig.hosts[io].send(sqe, &data, in_capsule, reads);
        }
        while rig.hosts[io].in_flight() > 0 {
            let before = ALLOCATIONS.get();
            rig.core_turn();
            // The first rounds size the lists.
            if round >= 4 {
                counted += ALLOCATIONS.get() - before;
            }
            rig.hosts[io].turn();
        }
        rig.hosts[io].done.clear();
    }
    counted
}

#[test]
fn steady_state_allocates_nothing() {
    const DISK: &str = "malloc:///disk?size_mb=8&blk_size=512";
    const NULL: &str = "null:///null?size_mb=8&blk_size=512";
    let digests = Local { header_digest: true, data_digest: true, ..Local::host() };
    for uri in [DISK, NULL] {
        for local in [Local::host(), digests] {
            for (opcode, blocks, in_capsule) in [
                (NvmOpcode::READ, 8, false),
                (NvmOpcode::READ, 256, false),
                (NvmOpcode::WRITE, 8, true),
                (NvmOpcode::WRITE, 8, false),
                (NvmOpcode::WRITE, 256, false),
            ] {
                let count = allocations(uri, local, opcode, blocks, in_capsule, 40);
                assert_eq!(count, 0, "{uri} {opcode:?} of {blocks} blocks, in capsule {in_capsule}");
            }
        }
    }
}
