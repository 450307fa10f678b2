//! Data goes through unharmed, in every way there is.
#![allow(unsafe_code)]

use nvme::nvm::{Dsm, DsmFlags, DsmRange};
use nvme::{Cid, Nsid, NvmOpcode, Status};

use super::gate::Gate;
use super::host::rw;
use super::rig::Rig;
use crate::target::core::CoreConfig;
use crate::tcp::Local;

fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2654435761).wrapping_add(seed * 77) >> 13) as u8).collect()
}

const DISK: &str = "malloc:///disk?size_mb=8&blk_size=512";

#[test]
fn read_back_what_was_written() {
    for (hd, dd) in [(false, false), (true, false), (false, true), (true, true)] {
        for flow_control in [false, true] {
            for step in [usize::MAX, 1000, 77] {
                let mut rig = Rig::new(DISK);
                let local =
                    Local { header_digest: hd, data_digest: dd, pda_z: 3, max_r2t: 2, ..Local::host() };
                let (_, io) = rig.login(local, flow_control, 1);
                let mut cid = 10;
                for (blocks, in_capsule) in [(1, true), (8, true), (8, false), (256, false), (100, false)] {
                    let data = pattern(blocks, blocks as usize * 512);
                    // The host's writes arrive in steps.
                    rig.core.conns.iter_mut().flatten().for_each(|c| c.hot = 1000);
                    rig.hosts[io].stream.step = usize::MAX;
                    set_step(&mut rig, step);
                    rig.hosts[io].send(rw(NvmOpcode::WRITE, cid, 1, 40, blocks), &data, in_capsule, 0);
                    assert_eq!(rig.wait(io, cid).status, Status::SUCCESS);
                    rig.hosts[io].send(rw(NvmOpcode::READ, cid + 1, 1, 40, blocks), &[], false, blocks * 512);
                    let done = rig.wait(io, cid + 1);
                    assert_eq!(done.status, Status::SUCCESS);
                    assert!(done.data == data, "digests {hd} {dd}, {blocks} blocks, step {step}");
                    cid += 2;
                }
            }
        }
    }
}

/// Most bytes that the target receives at once.
fn set_step(rig: &mut Rig, step: usize) {
    rig.core.state.config.recv_bytes = step.min(256 << 10) as u32;
    rig.core.state.config.recv_bytes_in_transfer = step.min(16 << 10) as u32;
}

#[test]
fn several_r2ts_of_one_command() {
    let config = CoreConfig { max_r2t: 4, r2t_bytes: 20_000, ..CoreConfig::default() };
    let mut rig = Rig::with(DISK, config, Default::default());
    let (_, io) = rig.login(Local { max_r2t: 3, ..Local::host() }, false, 1);
    let data = pattern(3, 131_072);
    rig.hosts[io].send(rw(NvmOpcode::WRITE, 5, 1, 0, 256), &data, false, 0);
    assert_eq!(rig.wait(io, 5).status, Status::SUCCESS);
    assert_eq!(rig.hosts[io].r2ts, 7);
    rig.hosts[io].send(rw(NvmOpcode::READ, 6, 1, 0, 256), &[], false, 131_072);
    assert!(rig.wait(io, 6).data == data);
}

#[test]
fn many_commands_at_once() {
    let mut rig = Rig::new(DISK);
    let (_, io) = rig.login(Local::host(), false, 1);
    for round in 0..20u32 {
        for i in 0..31u16 {
            let data = pattern(u32::from(i) + round, 4096);
            let sqe = rw(NvmOpcode::WRITE, 100 + i, 1, u64::from(i) * 8, 8);
            rig.hosts[io].send(sqe, &data, true, 0);
        }
        for i in 0..31 {
            assert_eq!(rig.wait(io, 100 + i).status, Status::SUCCESS);
        }
        for i in 0..31u16 {
            rig.hosts[io].send(rw(NvmOpcode::READ, 200 + i, 1, u64::from(i) * 8, 8), &[], false, 4096);
        }
        for i in 0..31 {
            assert!(rig.wait(io, 200 + i).data == pattern(u32::from(i) + round, 4096));
        }
    }
    assert_eq!(rig.core.state.chunks.held(), 0);
}

#[test]
fn a_slow_receiver_gets_what_was_there_when_it_was_read() {
    let mut rig = Rig::new(DISK);
    rig.pipe_bytes = 3000;
    let config = &mut rig.core.state.config;
    config.read_window_bytes = 64 << 10;
    let (_, io) = rig.login(Local::host(), false, 1);
    rig.hosts[io].stream.step = 3000;
    let (_, other) = {
        rig.pipe_bytes = 1 << 20;
        rig.login(Local::host(), false, 2)
    };
    for blocks in 0..4u64 {
        rig.hosts[other].send(
            rw(NvmOpcode::WRITE, 9, 1, blocks * 8, 8),
            &vec![blocks as u8 + 1; 4096],
            true,
            0,
        );
        rig.wait(other, 9);
    }
    let spare = u64::from(rig.core.state.spill.is_some()) << 17;
    let before = rig.core.state.free_bytes();
    rig.hosts[io].deaf = true;
    for i in 0..4 {
        rig.hosts[io].send(rw(NvmOpcode::READ, 20 + i, 1, u64::from(i) * 8, 8), &[], false, 4096);
    }
    rig.turns(5);
    assert_eq!(rig.hosts[io].in_flight(), 4);
    // The first answer has begun: its rest may not change any more. The others were not begun: they may.
    rig.hosts[other].send(rw(NvmOpcode::WRITE, 9, 1, 0, 32), &vec![0xee; 16384], false, 0);
    assert_eq!(rig.wait(other, 9).status, Status::SUCCESS);
    let wire = collect(&mut rig, io, 4 * (24 + 4096));
    let mut at = 0;
    for i in 0..4 {
        let data = &wire[at + 24..at + 24 + 4096];
        let expect = if i == 0 { 1 } else { 0xee };
        assert!(data.iter().all(|b| *b == expect), "answer {i}: {:?}", &data[..4]);
        at += 24 + 4096;
    }
    rig.turns(5);
    let spill = u64::from(rig.core.state.spill.is_some()) << 17;
    assert_eq!(rig.core.state.free_bytes() + spill, before + spare);
}

/// Receives `len` bytes of host `h` by hand.
fn collect(rig: &mut Rig, h: usize, len: usize) -> Vec<u8> {
    use aio::ByteStream;
    let mut wire = Vec::new();
    for _ in 0..1000 {
        let mut buf = [0u8; 5000];
        let entry = aio::SgEntry {
            ptr: core::ptr::NonNull::from(&mut buf).cast(),
            len_bytes: 5000,
            region: aio::RegionId::NONE,
        };
        // SAFETY: `buf` is ours.
        let got = unsafe { rig.hosts[h].stream.recv(&[entry]) };
        if let Ok(Some(n)) = got {
            wire.extend_from_slice(&buf[..n]);
        }
        rig.turn();
        if wire.len() >= len {
            return wire;
        }
    }
    panic!("{} of {len} bytes came", wire.len());
}

#[test]
fn other_commands() {
    let mut rig = Rig::new(DISK);
    let (_, io) = rig.login(Local::host(), false, 1);
    let mut run = |sqe, data: &[u8], inside, reads| {
        rig.hosts[io].send(sqe, data, inside, reads);
        rig.wait(io, 3)
    };
    let data = pattern(1, 4096);
    assert_eq!(run(rw(NvmOpcode::WRITE, 3, 1, 0, 8), &data, true, 0).status, Status::SUCCESS);
    assert_eq!(run(rw(NvmOpcode::COMPARE, 3, 1, 0, 8), &data, true, 0).status, Status::SUCCESS);
    let other = pattern(2, 4096);
    assert_eq!(run(rw(NvmOpcode::COMPARE, 3, 1, 0, 8), &other, false, 0).status, Status::COMPARE_FAILURE);
    assert_eq!(run(rw(NvmOpcode::FLUSH, 3, 1, 0, 1), &[], false, 0).status, Status::SUCCESS);
    assert_eq!(run(rw(NvmOpcode::FLUSH, 3, u32::MAX, 0, 1), &[], false, 0).status, Status::SUCCESS);
    assert_eq!(run(rw(NvmOpcode::VERIFY, 3, 1, 0, 8), &[], false, 0).status, Status::SUCCESS);
    assert_eq!(run(rw(NvmOpcode::WRITE_ZEROES, 3, 1, 4, 2), &[], false, 0).status, Status::SUCCESS);
    let mut expect = data.clone();
    expect[4 * 512..6 * 512].fill(0);
    assert!(run(rw(NvmOpcode::READ, 3, 1, 0, 8), &[], false, 4096).data == expect);
    let range = DsmRange { cattr: 0.into(), len_blocks: 3.into(), slba: 0.into() };
    let mut dsm = Dsm { ranges: 1, flags: DsmFlags::DEALLOCATE }.sqe(Nsid(1));
    dsm.set_cid(Cid(3));
    assert_eq!(run(dsm, range.wire(), true, 0).status, Status::SUCCESS);
    expect[..3 * 512].fill(0);
    assert!(run(rw(NvmOpcode::READ, 3, 1, 0, 8), &[], false, 4096).data == expect);
    assert_eq!(run(rw(NvmOpcode::READ, 3, 1, 16380, 8), &[], false, 4096).status, Status::LBA_OUT_OF_RANGE);
    assert_eq!(run(rw(NvmOpcode::READ, 3, 2, 0, 8), &[], false, 4096).status, Status::INVALID_NAMESPACE);
    assert_eq!(run(rw(NvmOpcode::READ, 3, 1, 0, 8), &[], false, 512).status, Status::DATA_SGL_LENGTH_INVALID);
    assert_eq!(run(rw(NvmOpcode::new(0x7e), 3, 1, 0, 8), &[], false, 0).status, Status::INVALID_OPCODE);
}

mod fused {
    use nvme::Sqe;
    use nvme::command::Fuse;

    use super::*;

    fn half(opcode: NvmOpcode, cid: u16, fuse: Fuse, slba: u64) -> Sqe {
        let mut sqe = rw(opcode, cid, 1, slba, 8);
        sqe.set_fuse(fuse);
        sqe
    }

    #[test]
    fn compare_and_write() {
        for (first_inside, second_inside) in [(true, true), (false, true), (true, false), (false, false)] {
            let mut rig = Rig::new(DISK);
            let (_, io) = rig.login(Local::host(), false, 1);
            let (old, new) = (vec![0u8; 4096], pattern(9, 4096));
            let mut go = |compare: &[u8]| {
                let h = &mut rig.hosts[io];
                h.send(half(NvmOpcode::COMPARE, 3, Fuse::FIRST, 8), compare, first_inside, 0);
                h.send(half(NvmOpcode::WRITE, 4, Fuse::SECOND, 8), &new, second_inside, 0);
                (rig.wait(io, 3).status, rig.wait(io, 4).status)
            };
            assert_eq!(go(&old), (Status::SUCCESS, Status::SUCCESS));
            assert_eq!(go(&old), (Status::COMPARE_FAILURE, Status::ABORTED_FAILED_FUSED));
            assert_eq!(go(&new), (Status::SUCCESS, Status::SUCCESS));
            rig.hosts[io].send(rw(NvmOpcode::READ, 5, 1, 8, 8), &[], false, 4096);
            assert!(rig.wait(io, 5).data == new);
        }
    }

    #[test]
    fn halves_without_the_other() {
        for inside in [true, false] {
            let mut rig = Rig::new(DISK);
            let (_, io) = rig.login(Local::host(), false, 1);
            let data = vec![0u8; 4096];
            rig.hosts[io].send(half(NvmOpcode::WRITE, 3, Fuse::SECOND, 8), &data, inside, 0);
            assert_eq!(rig.wait(io, 3).status, Status::ABORTED_MISSING_FUSED);
            rig.hosts[io].send(half(NvmOpcode::COMPARE, 4, Fuse::FIRST, 8), &data, inside, 0);
            rig.turns(3);
            assert_eq!(rig.hosts[io].in_flight(), 1, "waits for the second half");
            rig.hosts[io].send(rw(NvmOpcode::READ, 5, 1, 8, 8), &[], false, 4096);
            assert_eq!(rig.wait(io, 4).status, Status::ABORTED_MISSING_FUSED);
            assert_eq!(rig.wait(io, 5).status, Status::SUCCESS);
            rig.hosts[io].send(half(NvmOpcode::COMPARE, 6, Fuse::FIRST, 8), &data, inside, 0);
            rig.hosts[io].send(half(NvmOpcode::WRITE, 7, Fuse::SECOND, 16), &data, inside, 0);
            assert_eq!(rig.wait(io, 6).status, Status::INVALID_FIELD);
            assert_eq!(rig.wait(io, 7).status, Status::INVALID_FIELD);
        }
    }

    /// Bug: a first half that was refused was still remembered as the one that waits. The next command, in the
    /// same slot, was answered twice, and the slot freed twice.
    #[test]
    fn a_refused_first_half_is_forgotten() {
        for (opcode, fuse) in [(NvmOpcode::READ, Fuse::NORMAL), (NvmOpcode::WRITE, Fuse::SECOND)] {
            let mut rig = Rig::new(DISK);
            let (_, io) = rig.login(Local::host(), false, 1);
            let data = vec![0u8; 4096];
            // In-capsule data of the wrong length.
            let h = &mut rig.hosts[io];
            h.send_as(half(NvmOpcode::COMPARE, 3, Fuse::FIRST, 8), &data[..512], 4096);
            assert_eq!(rig.wait(io, 3).status, Status::DATA_SGL_LENGTH_INVALID);
            let writes = opcode == NvmOpcode::WRITE;
            let (data, reads) = if writes { (&data[..], 0) } else { (&[][..], 4096) };
            rig.hosts[io].send(half(opcode, 4, fuse, 8), data, true, reads);
            let expect = if writes { Status::ABORTED_MISSING_FUSED } else { Status::SUCCESS };
            assert_eq!(rig.wait(io, 4).status, expect);
        }
    }

    /// Bug: a second half that was refused left the first one without an answer, and paired with whatever command
    /// had its slot next.
    #[test]
    fn a_refused_second_half_fails_the_first() {
        let mut rig = Rig::new(DISK);
        let (_, io) = rig.login(Local::host(), false, 1);
        let data = vec![0u8; 4096];
        for _ in 0..3 {
            rig.hosts[io].send(half(NvmOpcode::COMPARE, 3, Fuse::FIRST, 8), &data, true, 0);
            rig.hosts[io].send_as(half(NvmOpcode::WRITE, 4, Fuse::SECOND, 8), &data[..512], 4096);
            assert_eq!(rig.wait(io, 3).status, Status::ABORTED_FAILED_FUSED);
            assert_eq!(rig.wait(io, 4).status, Status::DATA_SGL_LENGTH_INVALID);
        }
        assert_eq!(rig.core.state.chunks.held(), 0);
    }

    /// Bug: a send that failed while one half was being answered dropped the connection at once, and then the other
    /// half, whose slot was gone, was answered too.
    #[test]
    fn a_connection_that_breaks_between_two_answers() {
        for (opcode, fuse) in [(NvmOpcode::READ, Fuse::NORMAL), (NvmOpcode::WRITE, Fuse::SECOND)] {
            for slba in [8, 16] {
                let config = CoreConfig { send_bytes: 1, ..CoreConfig::default() };
                let mut rig = Rig::with(DISK, config, Default::default());
                let (_, io) = rig.login(Local::host(), false, 1);
                let data = vec![0u8; 4096];
                rig.hosts[io].send(half(NvmOpcode::COMPARE, 3, Fuse::FIRST, 8), &data, true, 0);
                let writes = opcode == NvmOpcode::WRITE;
                let (data, reads) = if writes { (&data[..], 0) } else { (&[][..], 4096) };
                rig.hosts[io].send(half(opcode, 4, fuse, slba), data, true, reads);
                rig.vanish(io);
                rig.turns(5);
                assert_eq!(rig.core.connections(), 1);
                assert_eq!(rig.core.state.chunks.held(), 0);
            }
        }
    }

    /// Bug: the memory of the second half of a fused operation was given back while the device had it, when the
    /// connection ended.
    #[test]
    fn both_halves_keep_their_memory_until_the_device_is_done() {
        let gate = Gate::new(64, 1, false);
        let mut rig =
            Rig::with_device(std::sync::Arc::new(gate.clone()), CoreConfig::default(), Default::default());
        let (_, io) = rig.login(Local::host(), false, 1);
        let free = rig.core.state.free_bytes();
        let data = vec![0u8; 4096];
        rig.hosts[io].send(half(NvmOpcode::COMPARE, 3, Fuse::FIRST, 8), &data, false, 0);
        rig.hosts[io].send(half(NvmOpcode::WRITE, 4, Fuse::SECOND, 8), &data, false, 0);
        rig.turns(5);
        assert_eq!(gate.waiting(), 1);
        let held = free - rig.core.state.free_bytes();
        rig.vanish(io);
        rig.turns(5);
        assert_eq!(free - rig.core.state.free_bytes(), held, "the device has both buffers");
        gate.complete(1, 0);
        rig.turns(5);
        assert_eq!((rig.core.state.free_bytes(), rig.core.connections()), (free, 1));
    }
}

/// Bug: the response to a read whose data was sent was taken back together with the lent memory, and the data was
/// sent again. Linux hosts use flow control, so each of their reads has a response of its own.
#[test]
fn data_is_sent_once_when_the_socket_takes_nothing_but_the_data() {
    let mut rig = Rig::new(DISK);
    rig.pipe_bytes = 24 + 4096;
    let (_, io) = rig.login(Local::host(), true, 1);
    let before = rig.core.stats().bytes_sent;
    rig.hosts[io].deaf = true;
    rig.hosts[io].send(rw(NvmOpcode::READ, 5, 1, 0, 8), &[], false, 4096);
    rig.turns(5);
    assert_eq!(rig.core.stats().bytes_sent - before, 24 + 4096);
    rig.hosts[io].deaf = false;
    assert_eq!(rig.wait(io, 5).status, Status::SUCCESS);
    rig.turns(5);
    assert_eq!(rig.core.stats().bytes_sent - before, 24 + 4096 + 24);
}
