//! Ranges, lengths and overflow.

use aio::{BlockCount, Capabilities, IoStatus, Opcode};

use crate::bench::{BLOCKS, Bench, Request, World};
use crate::buf::Buf;

/// Geometry and identity make sense and stay the same.
pub(super) fn describes_itself(world: &World<'_>) -> bool {
    let device = world.device();
    let g = device.geometry();
    assert!(g.block_bytes.is_power_of_two() && (512..=65536).contains(&g.block_bytes), "block size");
    assert!(g.buf_align.is_power_of_two(), "buf_align");
    assert!(g.sg_elem_align.is_power_of_two() && g.sg_elem_align <= g.block_bytes, "sg_elem_align");
    assert!(g.max_sg >= 1 && g.max_blocks >= 1 && g.queue_depth >= 1 && g.atomic_blocks >= 1);
    assert!(!device.name().is_empty() && !device.driver().is_empty());
    assert_eq!(device.uuid(), device.uuid());
    assert!(!device.uuid().is_nil(), "identity");
    assert_eq!(device.geometry(), g);
    let other = world.device();
    if let (Some(a), Some(b)) = (device.incarnation(), other.incarnation()) {
        assert_ne!(a, b, "two devices share an incarnation");
        assert_eq!(device.incarnation(), Some(a), "it changes only with the device");
    }
    true
}

/// Blocks beyond the end are out of range for every opcode, also where `lba` or the byte offset overflows.
pub(super) fn ranges(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    let caps = bench.device.capabilities();
    let byte_overflow = u64::MAX / u64::from(world.block_bytes) + 1;
    let outside = [
        (BLOCKS, 1),
        (BLOCKS - 1, 2),
        (BLOCKS + 1, 1),
        (byte_overflow, 1),
        (byte_overflow - 1, 2),
        (i64::MAX as u64, 1),
        (u64::MAX, 1),
        (u64::MAX - 1, 2),
        (u64::MAX, 8),
    ];
    for (lba, blocks) in outside {
        for (opcode, cap) in [
            (Opcode::Read, Capabilities::empty()),
            (Opcode::Write, Capabilities::empty()),
            (Opcode::Compare, Capabilities::COMPARE),
        ] {
            if caps.contains(cap) {
                let data = Buf::new(bench.bytes(blocks));
                out_of_range(&mut bench, Request::new(opcode, lba, blocks).data(data, &[]));
            }
        }
        for (opcode, cap) in
            [(Opcode::WriteZeroes, Capabilities::WRITE_ZEROES), (Opcode::Verify, Capabilities::VERIFY)]
        {
            if caps.contains(cap) {
                out_of_range(&mut bench, Request::new(opcode, lba, blocks));
                out_of_range(&mut bench, Request::new(opcode, 1, u64::MAX));
            }
        }
        if caps.contains(Capabilities::UNMAP) {
            out_of_range(&mut bench, Request::new(Opcode::Unmap, 0, 0).ranges(&[(0, 1), (lba, blocks)]));
        }
        if caps.contains(Capabilities::COPY) {
            out_of_range(&mut bench, Request::new(Opcode::Copy, 0, 0).ranges(&[(lba, blocks)]));
            out_of_range(&mut bench, Request::new(Opcode::Copy, lba, 0).ranges(&[(0, blocks)]));
        }
        if caps.contains(Capabilities::COMPARE_AND_WRITE) {
            let data = || Buf::new(blocks as usize * world.block_bytes as usize);
            let request = Request::new(Opcode::CompareAndWrite, lba, blocks).data(data(), &[]).second(data());
            out_of_range(&mut bench, request);
        }
    }
    // The last block is inside.
    let last = bench.read(BLOCKS - 1, 1);
    bench.write(BLOCKS - 1, &last);
    let whole = bench.geometry.max_blocks.min(8).into();
    bench.read(BLOCKS - whole, whole);
    true
}

#[track_caller]
fn out_of_range(bench: &mut Bench, request: Request) {
    bench.run(request).fails(IoStatus::LBA_OUT_OF_RANGE);
}

/// Nothing to do is done well, anywhere up to the end of the device.
pub(super) fn zero_length(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    let caps = bench.device.capabilities();
    for lba in [0, 1, BLOCKS] {
        bench.run(Request::new(Opcode::Read, lba, 0)).ok();
        bench.run(Request::new(Opcode::Write, lba, 0)).ok();
        if caps.contains(Capabilities::WRITE_ZEROES) {
            bench.run(Request::new(Opcode::WriteZeroes, lba, 0)).ok();
        }
        if caps.contains(Capabilities::VERIFY) {
            bench.run(Request::new(Opcode::Verify, lba, 0)).ok();
        }
        if caps.contains(Capabilities::UNMAP) {
            bench.run(Request::new(Opcode::Unmap, 0, 0).ranges(&[(lba, 0)])).ok();
        }
    }
    for lba in [BLOCKS + 1, u64::MAX] {
        out_of_range(&mut bench, Request::new(Opcode::Read, lba, 0));
        out_of_range(&mut bench, Request::new(Opcode::Write, lba, 0));
    }
    if caps.contains(Capabilities::UNMAP) {
        bench.run(Request::new(Opcode::Unmap, 0, 0)).ok();
    }
    true
}

/// One block more than the largest transfer is refused, the largest itself is not.
pub(super) fn too_large(world: &World<'_>) -> bool {
    let max: u64 = world.device().geometry().max_blocks.into();
    if max * u64::from(world.block_bytes) > 64 << 20 {
        return false;
    }
    let device = world.device();
    if device.size().0 <= max && !world.fixture.grow(&device, BlockCount(max + 1)) {
        return false;
    }
    let mut bench = world.open(&device);
    let bytes = bench.bytes(max + 1);
    for opcode in [Opcode::Read, Opcode::Write] {
        let list = |b: &Buf| vec![b.piece(0, bytes)];
        let request = Request::new(opcode, 0, max + 1).data(Buf::new(bytes), &[]).list(list);
        bench.run(request).fails(IoStatus::INVALID_FIELD);
    }
    let data = Buf::filled(bench.bytes(max), 0x77).bytes().to_vec();
    bench.write(0, &data);
    let expected = if world.options.retains_data { 0x77 } else { 0 };
    assert!(bench.read(0, max).iter().all(|b| *b == expected));
    true
}

/// What the device does not announce it refuses as an invalid opcode, without any effect.
pub(super) fn missing_capabilities(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    let caps = bench.device.capabilities();
    let before = bench.read(0, 1);
    let block = || Buf::filled(world.block_bytes as usize, 0x31);
    let requests = [
        (Capabilities::WRITE_ZEROES, Request::new(Opcode::WriteZeroes, 0, 1)),
        (Capabilities::UNMAP, Request::new(Opcode::Unmap, 0, 0).ranges(&[(0, 1)])),
        (Capabilities::VERIFY, Request::new(Opcode::Verify, 0, 1)),
        (Capabilities::COMPARE, Request::new(Opcode::Compare, 0, 1).data(block(), &[])),
        (
            Capabilities::COMPARE_AND_WRITE,
            Request::new(Opcode::CompareAndWrite, 0, 1).data(block(), &[]).second(block()),
        ),
        (Capabilities::COPY, Request::new(Opcode::Copy, 0, 0).ranges(&[(1, 1)])),
    ];
    let mut any = false;
    for (cap, request) in requests {
        if !caps.contains(cap) {
            any = true;
            bench.run(request).fails(IoStatus::INVALID_OPCODE);
        }
    }
    assert!(bench.read(0, 1) == before, "a refused command changed the block");
    any
}
