//! Decoding of I/O commands at its edges.

use aio::{BlockRange, IoFlags, Lba};
use nvme::NvmOpcode;
use nvme::command::{Fuse, Psdt};
use nvme::nvm::{Copy, CopyFlags, CopyRange0, Dsm, DsmFlags, DsmRange, Rw, RwFlags};

use super::super::nvm::*;
use super::*;

fn ns() -> NsInfo {
    NsInfo {
        nsid: Nsid(1),
        size_blocks: 1000,
        block_shift: 9,
        caps: ALL_CAPS,
        max_transfer_bytes: 128 * 1024,
        atomic_blocks: 1,
        fused_blocks: 8,
        ana_group: 1,
        write_through: false,
    }
}

/// A command with an SGL descriptor that fits, in-capsule for data from the host.
fn rw(opcode: NvmOpcode, slba: u64, len_blocks: u32, flags: RwFlags) -> Sqe {
    let mut sqe = Rw::new(slba, len_blocks).with(flags).sqe(opcode, Nsid(1));
    let len_bytes = len_blocks * 512;
    sqe.set_sgl1(match opcode {
        NvmOpcode::READ => SglDescriptor::transport(len_bytes),
        _ => SglDescriptor::in_capsule(0, len_bytes),
    });
    sqe
}

fn status(sqe: &Sqe) -> Status {
    decode(sqe, &ns()).unwrap_err()
}

#[test]
fn plain_commands() {
    let read = decode(&rw(NvmOpcode::READ, 5, 8, RwFlags::LIMITED_RETRY), &ns()).unwrap();
    assert_eq!((read.op, read.lba, read.blocks.0, read.len_bytes), (NvmOp::Read, Lba(5), 8, 4096));
    assert_eq!((read.payload, read.flags, read.fused), (Payload::ToHost, IoFlags::empty(), Fused::No));
    let write = decode(&rw(NvmOpcode::WRITE, 5, 8, RwFlags::FUA), &ns()).unwrap();
    assert_eq!((write.op, write.flags), (NvmOp::Write, IoFlags::FUA));
    assert_eq!(write.payload, Payload::InCapsule { offset_bytes: 0 });
    let mut asked = rw(NvmOpcode::WRITE, 5, 8, RwFlags::NONE);
    asked.set_sgl1(SglDescriptor::transport(4096));
    assert_eq!(decode(&asked, &ns()).unwrap().payload, Payload::FromHost);
    let zeroes = decode(&rw(NvmOpcode::WRITE_ZEROES, 0, 1000, RwFlags::DEALLOCATE), &ns()).unwrap();
    assert_eq!((zeroes.op, zeroes.flags, zeroes.len_bytes), (NvmOp::WriteZeroes, IoFlags::DEALLOCATE, 0));
    let compare = decode(&rw(NvmOpcode::COMPARE, 0, 1, RwFlags::NONE), &ns()).unwrap();
    assert_eq!((compare.op, compare.len_bytes), (NvmOp::Compare, 512));
    let verify = decode(&rw(NvmOpcode::VERIFY, 0, 1000, RwFlags::NONE), &ns()).unwrap();
    assert_eq!((verify.op, verify.payload), (NvmOp::Verify, Payload::None));
    assert_eq!(decode(&Sqe::nvm(NvmOpcode::FLUSH, Nsid(1)), &ns()).unwrap(), flush());
}

#[test]
fn ranges_near_the_ends() {
    for opcode in
        [NvmOpcode::READ, NvmOpcode::WRITE, NvmOpcode::COMPARE, NvmOpcode::WRITE_ZEROES, NvmOpcode::VERIFY]
    {
        let case = |slba, blocks| decode(&rw(opcode, slba, blocks, RwFlags::NONE), &ns()).err();
        assert_eq!(case(999, 1), None, "{opcode}");
        assert_eq!(case(900, 100), None, "{opcode}");
        let out = Some(Status::LBA_OUT_OF_RANGE);
        assert_eq!(case(1000, 1), out, "{opcode}");
        assert_eq!(case(999, 2), out, "{opcode}");
        assert_eq!(case(u64::MAX, 1), out, "{opcode}: sum overflows");
        assert_eq!(case(u64::MAX - 65_535, 65_536), out, "{opcode}: sum is 2^64");
    }
    let mut big = ns();
    big.size_blocks = u64::MAX;
    assert!(decode(&rw(NvmOpcode::VERIFY, u64::MAX - 1, 1, RwFlags::NONE), &big).is_ok());
}

#[test]
fn transfers_have_a_limit_and_zeroes_have_none() {
    assert!(decode(&rw(NvmOpcode::READ, 0, 256, RwFlags::NONE), &ns()).is_ok());
    assert_eq!(status(&rw(NvmOpcode::READ, 0, 257, RwFlags::NONE)), Status::INVALID_FIELD);
    assert_eq!(status(&rw(NvmOpcode::WRITE, 0, 257, RwFlags::NONE)), Status::INVALID_FIELD);
    let mut large = ns();
    large.size_blocks = 1 << 40;
    large.block_shift = 16;
    assert!(decode(&rw(NvmOpcode::WRITE_ZEROES, 0, 65_536, RwFlags::NONE), &large).is_ok());
    // 65,536 blocks of 64 KiB are 4 GiB, which does not fit in 32 bits.
    assert_eq!(decode(&rw(NvmOpcode::READ, 0, 65_536, RwFlags::NONE), &large), Err(Status::INVALID_FIELD));
}

#[test]
fn sgl_descriptors() {
    let case = |opcode, sgl: SglDescriptor| {
        let mut sqe = rw(opcode, 0, 8, RwFlags::NONE);
        sqe.set_sgl1(sgl);
        decode(&sqe, &ns()).map(|c| c.payload)
    };
    let (read, write) = (NvmOpcode::READ, NvmOpcode::WRITE);
    assert_eq!(case(read, SglDescriptor::in_capsule(0, 4096)), Err(Status::SGL_TYPE_INVALID));
    assert_eq!(case(read, SglDescriptor::data(0, 4096)), Err(Status::SGL_TYPE_INVALID));
    assert_eq!(case(write, SglDescriptor::data(0, 4096)), Err(Status::SGL_TYPE_INVALID));
    assert_eq!(case(write, SglDescriptor::segment(0, 32, true)), Err(Status::SGL_TYPE_INVALID));
    assert_eq!(case(write, SglDescriptor::keyed(0, 4096, 1, false)), Err(Status::SGL_TYPE_INVALID));
    let mut unknown = SglDescriptor::transport(4096);
    unknown.identifier = 0x7b;
    assert_eq!(case(write, unknown), Err(Status::SGL_TYPE_INVALID));
    for len_bytes in [0, 4095, 4097, u32::MAX] {
        let bad = Err(Status::DATA_SGL_LENGTH_INVALID);
        assert_eq!(case(read, SglDescriptor::transport(len_bytes)), bad);
        assert_eq!(case(write, SglDescriptor::in_capsule(0, len_bytes)), bad);
    }
    assert_eq!(case(write, SglDescriptor::in_capsule(8, 4096)), Ok(Payload::InCapsule { offset_bytes: 8 }));
    for (psdt, fine) in
        [(Psdt::PRP, false), (Psdt::SGL_BUFFER, true), (Psdt::SGL_SEGMENT, true), (Psdt::new(3), false)]
    {
        let mut sqe = rw(read, 0, 8, RwFlags::NONE);
        sqe.set_psdt(psdt);
        assert_eq!(decode(&sqe, &ns()).err(), (!fine).then_some(Status::INVALID_FIELD), "{psdt}");
    }
}

#[test]
fn in_capsule_data_has_to_be_there() {
    assert_eq!(in_capsule_fits(0, 4096, 4096), Ok(0));
    assert_eq!(in_capsule_fits(4096, 0, 4096), Ok(4096));
    assert_eq!(in_capsule_fits(1, 4096, 4096), Err(Status::DATA_SGL_LENGTH_INVALID));
    assert_eq!(in_capsule_fits(4097, 0, 4096), Err(Status::SGL_OFFSET_INVALID));
    assert_eq!(in_capsule_fits(u64::MAX, 4096, 4096), Err(Status::SGL_OFFSET_INVALID));
    assert_eq!(in_capsule_fits(1 << 32, 1, 4096), Err(Status::SGL_OFFSET_INVALID));
    assert_eq!(in_capsule_fits(0, u32::MAX, 4096), Err(Status::DATA_SGL_LENGTH_INVALID));
}

#[test]
fn protection_information_is_refused() {
    for flag in [
        RwFlags::PRACT,
        RwFlags::PRCHK_GUARD,
        RwFlags::PRCHK_APP,
        RwFlags::PRCHK_REF,
        RwFlags::STORAGE_TAG_CHECK,
    ] {
        assert_eq!(status(&rw(NvmOpcode::READ, 0, 1, flag)), Status::INVALID_FIELD);
        assert_eq!(status(&rw(NvmOpcode::WRITE_ZEROES, 0, 1, flag)), Status::INVALID_FIELD);
    }
}

#[test]
fn reserved_fields_are_ignored() {
    let mut sqe = rw(NvmOpcode::READ, 0, 1, RwFlags::NONE);
    sqe.cdw2.set(u32::MAX);
    sqe.cdw3.set(u32::MAX);
    sqe.mptr.set(u64::MAX);
    sqe.cdw13.set(u32::MAX);
    sqe.cdw14.set(u32::MAX);
    sqe.cdw15.set(u32::MAX);
    sqe.flags |= 0x3c;
    assert!(decode(&sqe, &ns()).is_ok());
}

#[test]
fn devices_that_cannot() {
    let mut bare = ns();
    bare.caps = Capabilities::empty();
    for opcode in [NvmOpcode::COMPARE, NvmOpcode::WRITE_ZEROES, NvmOpcode::VERIFY, NvmOpcode::COPY] {
        assert_eq!(decode(&rw(opcode, 0, 1, RwFlags::NONE), &bare), Err(Status::INVALID_OPCODE), "{opcode}");
    }
    let mut dsm = Dsm { ranges: 1, flags: DsmFlags::DEALLOCATE }.sqe(Nsid(1));
    dsm.set_sgl1(SglDescriptor::in_capsule(0, 16));
    assert_eq!(decode(&dsm, &bare).unwrap().op, NvmOp::Ignore);
    let mut protected = ns();
    protected.caps |= Capabilities::READ_ONLY;
    for opcode in [NvmOpcode::WRITE, NvmOpcode::WRITE_ZEROES, NvmOpcode::COPY] {
        let got = decode(&rw(opcode, 0, 1, RwFlags::NONE), &protected);
        assert_eq!(got, Err(Status::NAMESPACE_WRITE_PROTECTED), "{opcode}");
    }
    assert_eq!(decode(&dsm, &protected), Err(Status::NAMESPACE_WRITE_PROTECTED));
    assert!(decode(&rw(NvmOpcode::READ, 0, 1, RwFlags::NONE), &protected).is_ok());
    for opcode in [0x04u8, 0x7f, 0x80, 0xff] {
        assert_eq!(status(&rw(NvmOpcode::new(opcode), 0, 1, RwFlags::NONE)), Status::INVALID_OPCODE);
    }
}

#[test]
fn write_through_forces_writes_only() {
    let mut through = ns();
    through.write_through = true;
    let flags = |opcode| decode(&rw(opcode, 0, 1, RwFlags::NONE), &through).unwrap().flags;
    assert_eq!(flags(NvmOpcode::WRITE), IoFlags::FUA);
    assert_eq!(flags(NvmOpcode::WRITE_ZEROES), IoFlags::FUA);
    assert_eq!(flags(NvmOpcode::READ), IoFlags::empty());
}

#[test]
fn dataset_management() {
    let command = |ranges, flags, len_bytes| {
        let mut sqe = Dsm { ranges, flags }.sqe(Nsid(1));
        sqe.set_sgl1(SglDescriptor::transport(len_bytes));
        decode(&sqe, &ns())
    };
    let all = command(256, DsmFlags::DEALLOCATE, 4096).unwrap();
    assert_eq!((all.op, all.payload, all.len_bytes), (NvmOp::Unmap { ranges: 256 }, Payload::FromHost, 4096));
    assert_eq!(command(1, DsmFlags::INTEGRAL_READ, 16).unwrap().op, NvmOp::Ignore);
    assert_eq!(command(2, DsmFlags::DEALLOCATE, 16), Err(Status::DATA_SGL_LENGTH_INVALID));
    // Hosts that send a whole page for one range.
    assert_eq!(command(1, DsmFlags::DEALLOCATE, 4096).unwrap().len_bytes, 4096);

    let list = |ranges: &[(u64, u32)]| {
        let data: Vec<u8> =
            ranges.iter().flat_map(|(slba, len)| DsmRange::new(*slba, *len).wire().to_vec()).collect();
        let mut out = vec![BlockRange::default(); 3];
        unmap_ranges(&data, ranges.len() as u16, &ns(), &mut out).map(|()| out)
    };
    let range = |start, blocks| BlockRange { start: Lba(start), blocks: BlockCount(blocks) };
    assert_eq!(list(&[(0, 10), (5, 0), (990, 10)]), Ok(vec![range(0, 10), range(990, 10)]));
    assert_eq!(list(&[(0, 10), (990, 11)]), Err(Status::LBA_OUT_OF_RANGE));
    assert_eq!(list(&[(u64::MAX, u32::MAX)]), Err(Status::LBA_OUT_OF_RANGE));
    assert_eq!(list(&[(1000, 0)]), Ok(vec![]));
    let mut out = Vec::new();
    assert_eq!(unmap_ranges(&[0; 15], 256, &ns(), &mut out), Ok(()), "a short list is no reason to panic");
}

#[test]
fn copies() {
    let command = |sdlba, ranges: u32, format, flags, len_bytes| {
        let mut sqe = Copy { sdlba, ranges, format, flags }.sqe(Nsid(1));
        sqe.set_sgl1(SglDescriptor::in_capsule(0, len_bytes));
        decode(&sqe, &ns())
    };
    let one = command(7, 2, 0, CopyFlags::FUA, 64).unwrap();
    assert_eq!((one.op, one.lba, one.flags), (NvmOp::Copy { ranges: 2 }, Lba(7), IoFlags::FUA));
    assert_eq!(command(7, 2, 1, CopyFlags::NONE, 80), Err(Status::INVALID_FIELD));
    assert_eq!(command(1000, 1, 0, CopyFlags::NONE, 32), Err(Status::LBA_OUT_OF_RANGE));
    assert_eq!(command(0, 129, 0, CopyFlags::NONE, 129 * 32), Err(Status::COMMAND_SIZE_LIMIT));
    let list = |destination, ranges: &[(u64, u32)]| {
        let data: Vec<u8> =
            ranges.iter().flat_map(|(slba, len)| CopyRange0::new(*slba, *len).wire().to_vec()).collect();
        copy_ranges(&data, ranges.len() as u16, Lba(destination), &ns(), &mut Vec::new()).map(|n| n.0)
    };
    assert_eq!(list(0, &[(10, 100), (500, 156)]), Ok(256));
    assert_eq!(list(0, &[(10, 100), (500, 157)]), Err(Status::COMMAND_SIZE_LIMIT));
    assert_eq!(list(0, &[(900, 101)]), Err(Status::LBA_OUT_OF_RANGE));
    assert_eq!(list(950, &[(0, 51)]), Err(Status::LBA_OUT_OF_RANGE));
    assert_eq!(list(0, &[(u64::MAX, 65_536)]), Err(Status::LBA_OUT_OF_RANGE));
}

#[test]
fn fused_operations() {
    let fused = |opcode, slba, blocks, fuse| {
        let mut sqe = rw(opcode, slba, blocks, RwFlags::NONE);
        sqe.set_fuse(fuse);
        decode(&sqe, &ns())
    };
    let compare = fused(NvmOpcode::COMPARE, 8, 1, Fuse::FIRST).unwrap();
    let write = fused(NvmOpcode::WRITE, 8, 1, Fuse::SECOND).unwrap();
    assert_eq!((compare.fused, write.fused), (Fused::First, Fused::Second));
    assert_eq!(fuse(&compare, &write, &ns()), Ok(()));
    let elsewhere = fused(NvmOpcode::WRITE, 9, 1, Fuse::SECOND).unwrap();
    let longer = fused(NvmOpcode::WRITE, 8, 2, Fuse::SECOND).unwrap();
    assert_eq!(fuse(&compare, &elsewhere, &ns()), Err(Status::INVALID_FIELD));
    assert_eq!(fuse(&compare, &longer, &ns()), Err(Status::INVALID_FIELD));
    let mut cannot = ns();
    cannot.caps.remove(Capabilities::COMPARE_AND_WRITE);
    assert_eq!(fuse(&compare, &write, &cannot), Err(Status::INVALID_OPCODE));
    for (opcode, how) in [
        (NvmOpcode::READ, Fuse::FIRST),
        (NvmOpcode::WRITE, Fuse::FIRST),
        (NvmOpcode::COMPARE, Fuse::SECOND),
        (NvmOpcode::WRITE, Fuse::new(3)),
    ] {
        assert_eq!(fused(opcode, 8, 1, how), Err(Status::INVALID_FIELD), "{opcode} {how}");
    }
}
