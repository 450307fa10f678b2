//! What each opcode means.

use aio::{Capabilities, IoFlags, IoStatus, Opcode};

use super::has;
use crate::bench::{Bench, Request, World};
use crate::buf::Buf;

/// Flush and FUA complete, also on an idle device, and change nothing that is read.
pub(super) fn flush_and_fua(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    bench.run(Request::new(Opcode::Flush, 0, 0)).ok();
    bench.run(Request::new(Opcode::Flush, u64::MAX, u64::MAX)).ok();
    let block = vec![0x42; world.block_bytes as usize];
    bench.write(3, &block);
    bench.run(Request::new(Opcode::Flush, 0, 0)).ok();
    let fua =
        Request::new(Opcode::Write, 4, 1).data(Buf::of(&block), &[]).flags(IoFlags::FUA | IoFlags::STABLE);
    bench.run(fua).ok();
    let expected = if world.options.retains_data { block } else { vec![0; world.block_bytes as usize] };
    assert!(bench.read(3, 1) == expected && bench.read(4, 1) == expected);
    let fua_read = Request::new(Opcode::Read, 3, 1).data(Buf::new(expected.len()), &[]).flags(IoFlags::FUA);
    assert!(bench.run(fua_read).ok() == expected);
    // A flush among writes in flight: everything completes.
    for lba in 10..40 {
        bench.start_soon(Request::new(Opcode::Write, lba, 1).data(Buf::of(&expected), &[]));
        if lba % 10 == 0 {
            bench.start_soon(Request::new(Opcode::Flush, 0, 0));
        }
    }
    bench.settle();
    true
}

/// Fills 32 blocks, runs `request` on some, and gives the contents.
fn after(bench: &mut Bench, request: Request) -> Vec<u8> {
    let fill = vec![0xab; bench.bytes(32)];
    for lba in (0..32).step_by(4) {
        let part = bench.bytes(4);
        bench.write(lba, &fill[..part]);
    }
    bench.run(request).ok();
    (0..32).flat_map(|lba| bench.read(lba, 1)).collect()
}

/// Exactly the named blocks read as zeroes.
fn expect_zeroes(world: &World<'_>, got: &[u8], zero: &[u64]) {
    for lba in 0..32u64 {
        let len = world.block_bytes as usize;
        let expected = if zero.contains(&lba) || !world.options.retains_data { 0 } else { 0xab };
        let block = &got[lba as usize * len..][..len];
        assert!(block.iter().all(|b| *b == expected), "block {lba} should be full of {expected:#x}");
    }
}

/// Exactly the named blocks read as zeroes, with every flag and with long ranges.
pub(super) fn write_zeroes(world: &World<'_>) -> bool {
    if !has(world, Capabilities::WRITE_ZEROES) {
        return false;
    }
    let mut bench = world.bench();
    for flags in [IoFlags::empty(), IoFlags::DEALLOCATE, IoFlags::FUA, IoFlags::FUA | IoFlags::DEALLOCATE] {
        let request = Request::new(Opcode::WriteZeroes, 5, 9).flags(flags);
        let got = after(&mut bench, request);
        expect_zeroes(world, &got, &(5..14).collect::<Vec<_>>());
    }
    // Longer than a transfer may be: no data moves, so the bound does not apply.
    let size = bench.device.size().0;
    let last = vec![0xee; world.block_bytes as usize];
    bench.write(size - 1, &last);
    bench.write(0, &last);
    bench.run(Request::new(Opcode::WriteZeroes, 1, size - 1)).ok();
    assert!(bench.read(size - 1, 1).iter().all(|b| *b == 0), "the last block of a long range");
    assert!(bench.read(1, 1).iter().all(|b| *b == 0), "the first block of a long range");
    if world.options.retains_data {
        assert!(bench.read(0, 1) == last, "the block before the range");
    }
    true
}

/// Unmapped blocks read as zeroes or as before, as announced; their neighbours never change.
pub(super) fn unmap(world: &World<'_>) -> bool {
    if !has(world, Capabilities::UNMAP) {
        return false;
    }
    let mut bench = world.bench();
    let request = Request::new(Opcode::Unmap, 0, 0).ranges(&[(2, 1), (8, 0), (9, 4), (30, 2)]);
    let got = after(&mut bench, request);
    let unmapped = [2, 9, 10, 11, 12, 30, 31];
    if has(world, Capabilities::UNMAP_ZEROES) {
        expect_zeroes(world, &got, &unmapped);
    } else {
        let len = world.block_bytes as usize;
        for lba in 0..32u64 {
            let block = &got[lba as usize * len..][..len];
            let kept = block.iter().all(|b| *b == 0xab);
            let zero = block.iter().all(|b| *b == 0);
            assert!(kept || (zero && unmapped.contains(&lba)), "block {lba}");
        }
    }
    // The most ranges there can be; and one more.
    let many: Vec<(u64, u64)> = (0..256).map(|i| (i * 3, 1)).collect();
    bench.run(Request::new(Opcode::Unmap, 0, 0).ranges(&many)).ok();
    let too_many: Vec<(u64, u64)> = (0..257).map(|i| (i * 3, 1)).collect();
    bench.run(Request::new(Opcode::Unmap, 0, 0).ranges(&too_many)).fails(IoStatus::INVALID_FIELD);
    let size = bench.device.size().0;
    bench.run(Request::new(Opcode::Unmap, 0, 0).ranges(&[(0, size)])).ok();
    true
}

/// Equal compares succeed; a difference in any byte fails, and nothing changes.
pub(super) fn compare(world: &World<'_>) -> bool {
    if !has(world, Capabilities::COMPARE) {
        return false;
    }
    let mut bench = world.bench();
    let len = bench.bytes(3);
    let data: Vec<u8> = (0..len).map(|i| i as u8 ^ (i >> 8) as u8).collect();
    bench.write(7, &data);
    let align = bench.geometry.sg_elem_align.max(bench.geometry.buf_align);
    let cuts = [align, len as u32 - align];
    bench.run(Request::new(Opcode::Compare, 7, 3).data(Buf::of(&data), &cuts)).ok();
    for wrong in [0, 1, len / 2, len - 1] {
        let mut other = data.clone();
        other[wrong] ^= 0x80;
        let request = Request::new(Opcode::Compare, 7, 3).data(Buf::of(&other), &[]);
        bench.run(request).fails(IoStatus::COMPARE_FAILURE);
    }
    assert!(bench.read(7, 3) == data);
    true
}

/// Writes when equal, and only then.
pub(super) fn compare_and_write(world: &World<'_>) -> bool {
    if !has(world, Capabilities::COMPARE_AND_WRITE) {
        return false;
    }
    let mut bench = world.bench();
    let limit = u64::from(bench.geometry.compare_write_blocks);
    let n = limit.min(2);
    let (old, new) = (vec![1; bench.bytes(n)], vec![2; bench.bytes(n)]);
    let step = |from: &[u8], to: &[u8]| {
        Request::new(Opcode::CompareAndWrite, 9, n).data(Buf::of(from), &[]).second(Buf::of(to))
    };
    bench.write(9, &old);
    bench.run(step(&new, &old)).fails(IoStatus::COMPARE_FAILURE);
    assert!(bench.read(9, n) == old, "a failed compare wrote");
    bench.run(step(&old, &new)).ok();
    assert!(bench.read(9, n) == new);
    bench.run(step(&old, &new)).fails(IoStatus::COMPARE_FAILURE);
    // The second list is checked as well as the first.
    let short = Request::new(Opcode::CompareAndWrite, 9, n)
        .data(Buf::of(&new), &[])
        .second(Buf::new(bench.bytes(n) - 1));
    bench.run(short).fails(IoStatus::INVALID_FIELD);
    assert!(bench.read(9, n) == new);
    if limit < u64::from(bench.geometry.max_blocks) && limit < bench.device.size().0 {
        let long = Buf::new(bench.bytes(limit + 1));
        let request = Request::new(Opcode::CompareAndWrite, 0, limit + 1).data(long, &[]);
        bench
            .run(request.second(Buf::new(bench.bytes(limit + 1))))
            .fails(IoStatus::ATOMIC_WRITE_UNIT_EXCEEDED);
    }
    true
}

/// Verify succeeds on readable blocks and moves no data.
pub(super) fn verify(world: &World<'_>) -> bool {
    if !has(world, Capabilities::VERIFY) {
        return false;
    }
    let mut bench = world.bench();
    bench.write(0, &vec![9; world.block_bytes as usize]);
    bench.run(Request::new(Opcode::Verify, 0, 1)).ok();
    let size = bench.device.size().0;
    bench.run(Request::new(Opcode::Verify, 0, size)).ok();
    true
}

/// Copies one and several ranges, in order; leaves the sources.
pub(super) fn copy(world: &World<'_>) -> bool {
    if !has(world, Capabilities::COPY) {
        return false;
    }
    let mut bench = world.bench();
    let len = world.block_bytes as usize;
    for lba in 0..8u64 {
        bench.write(lba, &vec![lba as u8 + 1; len]);
    }
    bench.run(Request::new(Opcode::Copy, 100, 0).ranges(&[(5, 2), (0, 1), (7, 1)])).ok();
    let got: Vec<u8> = (100..104).map(|lba| bench.read(lba, 1)[len - 1]).collect();
    assert_eq!(got, [6, 7, 1, 8]);
    assert_eq!(bench.read(5, 1)[0], 6, "the source");
    bench.run(Request::new(Opcode::Copy, 100, 0)).ok();
    true
}

/// A read that may be lent gives the same bytes, from an empty list where the device lends.
pub(super) fn lending(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    let lends = has(world, Capabilities::LENDS);
    let len = bench.bytes(2);
    let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
    bench.write(20, &data);
    let expected = if world.options.retains_data { data } else { vec![0; len] };
    let full = Request::new(Opcode::Read, 20, 2).data(Buf::filled(len, 0x13), &[]).flags(IoFlags::MAY_LEND);
    let done = bench.run(full);
    assert!(lends || !done.lent, "a device that does not announce it lends");
    assert!(done.ok() == expected);
    let empty = Request::new(Opcode::Read, 20, 2).flags(IoFlags::MAY_LEND);
    let done = bench.run(empty);
    if lends {
        assert!(done.lent, "nowhere to put the data, and not lent");
        assert!(done.ok() == expected);
    } else {
        done.fails(IoStatus::INVALID_FIELD);
    }
    // Without the flag it is never lent.
    let plain = bench.run(Request::new(Opcode::Read, 20, 2).data(Buf::filled(len, 0x13), &[]));
    assert!(!plain.lent && plain.ok() == expected);
    let zero = bench.run(Request::new(Opcode::Read, 20, 0).flags(IoFlags::MAY_LEND));
    assert!(zero.ok().is_empty());
    true
}

/// Loans that are not given back take slots, block draining, and stay valid, also after a removal.
pub(super) fn loans_held(world: &World<'_>) -> bool {
    if !has(world, Capabilities::LENDS) {
        return false;
    }
    let mut bench = world.bench();
    bench.keep_loans = true;
    let len = world.block_bytes as usize;
    bench.write(1, &vec![0x61; len]);
    let expected = if world.options.retains_data { 0x61 } else { 0 };
    let depth = bench.geometry.queue_depth as usize;
    let mut tokens = Vec::new();
    while let Ok(token) = bench.start(Request::new(Opcode::Read, 1, 1).flags(IoFlags::MAY_LEND)) {
        tokens.push(token);
        assert!(tokens.len() <= 1 << 17, "loans without a bound");
    }
    assert!(tokens.len() >= depth, "Busy after {} of {depth}", tokens.len());
    for token in &tokens {
        assert!(bench.wait(*token).lent);
    }
    assert!(!bench.take_ready(), "everything is polled, nothing given back: there is no slot");
    let last = tokens.pop().expect("at least one");
    bench.release(last);
    assert!(bench.take_ready(), "a slot came free");
    assert!(!bench.channel().drained(), "loans are open");
    bench.device.remove();
    for token in tokens {
        assert!(bench.lent(token).iter().all(|b| *b == expected));
        bench.release(token);
    }
    assert!(bench.channel().drained());
    true
}
