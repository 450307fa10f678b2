//! Garbage never panics, never hangs a controller, and never leaves the namespace.

use aio::devices::prng::Prng;
use aio::{IoFlags, Lba};
use nvme::fabrics::FABRICS_OPCODE;

use super::super::nvm::{self, NvmOp, Payload};
use super::*;

/// Random bytes with a bias towards what exists: low numbers, valid descriptors, known opcodes.
fn garbage(random: &mut Prng) -> Sqe {
    let mut bytes = [0; 64];
    random.fill(&mut bytes);
    let mut sqe = Sqe::read(&bytes).unwrap();
    if !random.one_in(4) {
        sqe.opcode = random.below(0x1a) as u8;
        sqe.nsid.set(random.below(4) as u32);
        sqe.flags = 0x40 | random.below(4) as u8;
        sqe.set_cdw10_11(random.below(4096));
        sqe.cdw12.set(random.below(300) as u32);
        let len_bytes = (random.below(300) as u32 + 1) * 512;
        sqe.set_sgl1(match random.below(3) {
            0 => SglDescriptor::in_capsule(random.below(16), len_bytes),
            1 => SglDescriptor::transport(len_bytes),
            _ => SglDescriptor::transport(4096),
        });
    }
    if random.one_in(8) {
        sqe.opcode = FABRICS_OPCODE;
        sqe.nsid.set(random.below(10) as u32);
    }
    sqe
}

#[test]
fn io_commands() {
    let mut random = Prng::new(1);
    let (mut valid, mut out) = (0, Vec::new());
    for _ in 0..200_000 {
        let ns = NsInfo {
            nsid: Nsid(1),
            size_blocks: random.below(4096),
            block_shift: 9 + random.below(8) as u8,
            caps: Capabilities::from_bits_truncate(random.next_u64() as u32),
            max_transfer_bytes: 1 << (12 + random.below(10)),
            atomic_blocks: 1,
            fused_blocks: 8,
            ana_group: 1,
            write_through: random.one_in(2),
        };
        let sqe = garbage(&mut random);
        let Ok(command) = nvm::decode(&sqe, &ns) else { continue };
        valid += 1;
        let uses_range = matches!(
            command.op,
            NvmOp::Read | NvmOp::Write | NvmOp::Compare | NvmOp::WriteZeroes | NvmOp::Verify
        );
        if uses_range {
            assert!(command.lba.0 + command.blocks.0 <= ns.size_blocks && command.blocks.0 > 0);
        }
        if matches!(command.op, NvmOp::Write | NvmOp::WriteZeroes | NvmOp::Unmap { .. } | NvmOp::Copy { .. })
        {
            assert!(!ns.caps.contains(Capabilities::READ_ONLY));
            let through = !ns.write_through || matches!(command.op, NvmOp::Unmap { .. });
            assert!(through || command.flags.contains(IoFlags::FUA));
        }
        assert_eq!(command.payload == Payload::None, command.len_bytes == 0);
        let mut data = vec![0; random.below(5000) as usize];
        random.fill(&mut data);
        match command.op {
            NvmOp::Unmap { ranges } => {
                let _ = nvm::unmap_ranges(&data, ranges, &ns, &mut out);
                assert!(out.len() <= 256);
            }
            NvmOp::Copy { ranges } => {
                if let Ok(total) = nvm::copy_ranges(&data, ranges, Lba(3), &ns, &mut out) {
                    assert!(3 + total.0 <= ns.size_blocks);
                }
            }
            _ => (),
        }
    }
    assert!(valid > 1000, "the generator finds valid commands: {valid}");
}

#[test]
fn admin_commands() {
    for seed in 0..20 {
        let mut random = Prng::new(seed);
        let mut bench = Bench::new();
        let nqn = if random.one_in(3) { nvme::nqn::DISCOVERY_NQN } else { NQN };
        let admin = granted(bench.admin_of(nqn, HOST));
        let controller = admin.controller().clone();
        enable(&admin);
        let mut outstanding = 0i64;
        for step in 0..3000 {
            let sqe = garbage(&mut random);
            let mut data = vec![0; random.below(600) as usize];
            random.fill(&mut data);
            match controller.admin(&sqe, &data, at(step / 1000)) {
                AdminOutcome::Later => outstanding += 1,
                AdminOutcome::Data { data, .. } => assert!(data.len() <= 128 * 1024),
                AdminOutcome::Done { .. } => (),
            }
            if random.one_in(50) {
                bench.device.event(DeviceEvent::Resized(BlockCount(random.below(9000) + 1)));
            }
            bench.core.serve();
            outstanding -= completions(&admin).len() as i64;
            assert!((0..=4).contains(&outstanding), "each late command completes once: {outstanding}");
        }
        controller.tick(at(3));
        drop(admin);
        assert!(bench.target.subsystem(nqn).unwrap().controllers.is_empty());
    }
}

#[test]
fn connects() {
    let bench = Bench::new();
    let mut random = Prng::new(7);
    for _ in 0..20_000 {
        let mut sqe = ConnectSqe::new(Qid(0), 32, 0);
        let mut data = connect_data(NQN, HOST, Cntlid::DYNAMIC);
        for _ in 0..random.below(4) {
            let at = random.below(1024) as usize;
            let mut bytes = data.wire().to_vec();
            bytes[at] = random.next_u64() as u8;
            data = ConnectData::read(&bytes).unwrap();
        }
        let mut bytes = sqe.wire().to_vec();
        bytes[40 + random.below(12) as usize] = random.below(3) as u8;
        sqe = ConnectSqe::read(&bytes).unwrap();
        // What is granted is dropped at once.
        drop(bench.offer(&sqe, &data, at(0)));
    }
    assert!(bench.target.subsystem(NQN).unwrap().controllers.is_empty());
}
