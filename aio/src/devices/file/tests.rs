//! Every turn of a task, played by hand; and a disk that is really full.

use core::ptr::NonNull;

use super::task::{Access, Features, Next, Op, Task};
use crate::IoStatus;
use crate::io::{BlockCount, BlockRange, Io, IoFlags, Lba, Opcode, Token};
use crate::sg::{RegionId, SgEntry};

const BLOCK: u32 = 512;

/// A task with the features of its file, and memory for its zeroes.
struct Play {
    task: Task,
    features: Features,
    zeroes: Vec<u8>,
}

impl Play {
    fn new() -> Self {
        Self { task: Task::new(), features: Features::new(false, true), zeroes: vec![0; 1 << 20] }
    }

    /// Of a file without direct I/O.
    fn buffered() -> Self {
        Self { features: Features::new(false, false), ..Self::new() }
    }

    fn begin(&mut self, io: &Io<'_>) -> Next {
        let zeroes = NonNull::new(self.zeroes.as_mut_ptr()).unwrap();
        self.task.begin(io, Token(1), BLOCK, zeroes)
    }

    /// The next operation: kind, offset, length, dsync.
    fn op(&mut self) -> (&'static str, u64, u64, bool) {
        match self.task.op(&self.features) {
            Op::Transfer { write, iov, count, offset_bytes, dsync } => {
                // SAFETY: the list is the task's, which is not changed meanwhile.
                let list = unsafe { core::slice::from_raw_parts(iov, count as usize) };
                let len = list.iter().map(|e| e.iov_len as u64).sum();
                (if write { "write" } else { "read" }, offset_bytes, len, dsync)
            }
            Op::Sync => ("sync", 0, 0, false),
            Op::Allocate { mode, offset_bytes, len_bytes } => {
                let punch = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
                (if punch { "punch" } else { "zero" }, offset_bytes, len_bytes, false)
            }
            Op::Discard { offset_bytes, len_bytes } => ("discard", offset_bytes, len_bytes, false),
        }
    }

    fn result(&mut self, result: i32) -> Next {
        self.task.result(result, &self.features)
    }
}

fn entry(data: &mut [u8]) -> SgEntry {
    let ptr = NonNull::from(&mut *data).cast();
    SgEntry { ptr, len_bytes: data.len() as u32, region: RegionId::NONE }
}

const DONE: Next = Next::Done(IoStatus::SUCCESS);

/// Bug: when two FUA writes were under way and the file did not know `RWF_DSYNC`, only the first to fail was tried in
/// the other way; the second was answered with an error. Likewise two Write Zeroes, of which the second failure was
/// taken for one of the way that was not tried yet.
#[test]
fn what_is_not_supported_fails_nobody_who_tried_it_at_the_same_time() {
    let mut data = vec![0; 512];
    let list = [entry(&mut data)];
    let mut first = Play::new();
    let mut second = Task::new();
    let zeroes = NonNull::new(first.zeroes.as_mut_ptr()).unwrap();
    let fua = Io::write(Lba(1), BlockCount(1), &list).with_flags(IoFlags::FUA);
    first.begin(&fua);
    second.begin(&fua, Token(2), BLOCK, zeroes);
    assert_eq!(first.op(), ("write", 512, 512, true));
    assert!(matches!(second.op(&first.features), Op::Transfer { dsync: true, .. }));
    assert_eq!(first.result(-libc::EOPNOTSUPP), Next::Again);
    assert_eq!(second.result(-libc::EOPNOTSUPP, &first.features), Next::Again);
    assert!(matches!(second.op(&first.features), Op::Transfer { dsync: false, .. }));
    // Tried without it, the failure is an answer.
    assert!(matches!(second.result(-libc::EOPNOTSUPP, &first.features), Next::Done(s) if !s.is_success()));

    let zero = Io::new(Opcode::WriteZeroes, Lba(1), BlockCount(1)).with_flags(IoFlags::DEALLOCATE);
    first.begin(&zero);
    second.begin(&zero, Token(2), BLOCK, zeroes);
    assert_eq!(first.op().0, "punch");
    assert!(matches!(second.op(&first.features), Op::Allocate { .. }));
    assert_eq!(first.result(-libc::EOPNOTSUPP), Next::Again);
    assert_eq!(second.result(-libc::EOPNOTSUPP, &first.features), Next::Again);
    assert_eq!(first.op().0, "zero");
}

/// Bug: through the page cache, a write with `RWF_DSYNC` reports, and so uses up, the errors of everything that the
/// kernel could not write back before. It failed as any write may, and the next Flush was called good although
/// completed writes were lost. Only an explicit sync, whose failure faults the device, may take such an error.
#[test]
fn forced_writes_through_the_page_cache_end_with_a_sync() {
    let mut data = vec![0; 512];
    let list = [entry(&mut data)];
    let mut play = Play::buffered();
    play.begin(&Io::write(Lba(1), BlockCount(1), &list).with_flags(IoFlags::FUA));
    assert_eq!(play.op(), ("write", 512, 512, false));
    assert_eq!(play.result(512), Next::Again);
    assert_eq!(play.op().0, "sync");
    assert_eq!(play.result(-libc::EIO), Next::Done(IoStatus::WRITE_FAULT));
    play.begin(&Io::flush());
    assert_eq!(play.op().0, "sync");
    assert_eq!(play.result(0), Next::Done(IoStatus::WRITE_FAULT), "no flush is believed any more");
}

#[test]
fn short_transfers_go_on_in_the_middle_of_an_entry() {
    let mut data = vec![0; 2048];
    let (a, b) = data.split_at_mut(512);
    let list = [entry(a), entry(b)];
    let mut play = Play::new();
    play.begin(&Io::read(Lba(10), BlockCount(4), &list));
    assert_eq!(play.op(), ("read", 5120, 2048, false));
    assert_eq!(play.result(100), Next::Again);
    assert_eq!(play.op(), ("read", 5220, 1948, false));
    assert_eq!(play.result(412), Next::Again);
    let Op::Transfer { iov, count: 1, .. } = play.task.op(&play.features) else { panic!() };
    // SAFETY: one entry of the task's list.
    assert_eq!(unsafe { iov.read() }.iov_base.cast(), list[1].ptr.as_ptr());
    assert_eq!(play.result(1536), DONE);
}

#[test]
fn interrupted_operations_are_tried_again_but_not_for_ever() {
    let mut data = vec![0; 512];
    let list = [entry(&mut data)];
    let mut play = Play::new();
    play.begin(&Io::write(Lba(0), BlockCount(1), &list));
    for _ in 0..1000 {
        assert_eq!(play.result(-libc::EAGAIN), Next::Again);
    }
    assert_eq!(play.result(-libc::EAGAIN), Next::Done(IoStatus::INTERNAL_ERROR));
}

#[test]
fn errors_become_their_status() {
    let cases = [
        (Opcode::Read, libc::EIO, IoStatus::UNRECOVERED_READ),
        (Opcode::Read, libc::EILSEQ, IoStatus::UNRECOVERED_READ),
        (Opcode::Read, libc::ENODEV, IoStatus::NAMESPACE_NOT_READY),
        (Opcode::Write, libc::EIO, IoStatus::WRITE_FAULT),
        (Opcode::Write, libc::ENOSPC, IoStatus::CAPACITY_EXCEEDED),
        (Opcode::Write, libc::EDQUOT, IoStatus::CAPACITY_EXCEEDED),
        (Opcode::Write, libc::EROFS, IoStatus::NAMESPACE_WRITE_PROTECTED),
        (Opcode::WriteZeroes, libc::ENOSPC, IoStatus::CAPACITY_EXCEEDED),
        (Opcode::Compare, libc::EIO, IoStatus::UNRECOVERED_READ),
        (Opcode::Verify, libc::EIO, IoStatus::UNRECOVERED_READ),
        (Opcode::Write, libc::EFAULT, IoStatus::DATA_TRANSFER_ERROR),
        (Opcode::Write, libc::ECANCELED, IoStatus::ABORT_REQUESTED),
    ];
    for (opcode, errno, status) in cases {
        let mut data = vec![0; 512];
        let list = [entry(&mut data)];
        let mut play = Play::new();
        play.begin(&Io { sg: &list, ..Io::new(opcode, Lba(0), BlockCount(1)) });
        play.op();
        assert_eq!(play.result(-errno), Next::Done(status), "{opcode:?} with errno {errno}");
    }
}

#[test]
fn fua_is_dsync_or_a_flush() {
    let mut data = vec![0; 512];
    let list = [entry(&mut data)];
    let io = Io::write(Lba(0), BlockCount(1), &list).with_flags(IoFlags::FUA);
    let mut play = Play::new();
    play.begin(&io);
    assert_eq!(play.op(), ("write", 0, 512, true));
    assert_eq!(play.result(-libc::EOPNOTSUPP), Next::Again);
    assert_eq!(play.op(), ("write", 0, 512, false));
    assert_eq!(play.result(512), Next::Again);
    assert_eq!(play.op().0, "sync");
    assert_eq!(play.result(0), DONE);
    // It is not tried again, and a plain write needs no flush.
    play.begin(&io);
    assert_eq!(play.op(), ("write", 0, 512, false));
    play.begin(&io.with_flags(IoFlags::empty()));
    assert_eq!(play.op(), ("write", 0, 512, false));
    assert_eq!(play.result(512), DONE);
}

#[test]
fn zeroes_are_punched_allocated_or_written() {
    let io =
        Io::new(Opcode::WriteZeroes, Lba(8), BlockCount(4096)).with_flags(IoFlags::DEALLOCATE | IoFlags::FUA);
    let mut play = Play::new();
    assert_eq!(play.begin(&io), Next::Again);
    assert_eq!(play.task.access(), Access::Change);
    assert_eq!(play.op(), ("punch", 4096, 2 << 20, false));
    assert_eq!(play.result(-libc::EOPNOTSUPP), Next::Again);
    assert_eq!(play.op(), ("zero", 4096, 2 << 20, false));
    assert_eq!(play.result(-libc::EOPNOTSUPP), Next::Again);
    assert_eq!(play.op(), ("write", 4096, 1 << 20, true));
    assert_eq!(play.result(1 << 20), Next::Again);
    assert_eq!(play.op(), ("write", 4096 + (1 << 20), 1 << 20, true));
    assert_eq!(play.result(1000), Next::Again);
    assert_eq!(play.op().2, (1 << 20) - 1000);
    assert_eq!(play.result((1 << 20) - 1000), DONE);
    // Where the file system zeroes the range, FUA still needs its flush.
    let mut play = Play::new();
    play.begin(&io.with_flags(IoFlags::FUA));
    assert_eq!(play.op().0, "zero");
    assert_eq!(play.result(0), Next::Again);
    assert_eq!(play.op().0, "sync");
}

#[test]
fn unmap_takes_every_range_and_no_for_an_answer() {
    let range = |start, blocks| BlockRange { start: Lba(start), blocks: BlockCount(blocks) };
    let ranges = [range(1, 2), range(5, 0), range(7, 1)];
    let mut play = Play::new();
    assert_eq!(play.begin(&Io::unmap(&ranges)), Next::Again);
    assert_eq!(play.op(), ("punch", 512, 1024, false));
    assert_eq!(play.result(0), Next::Again);
    assert_eq!(play.op(), ("punch", 3584, 512, false));
    assert_eq!(play.result(-libc::EOPNOTSUPP), DONE);
    play.features = Features::new(true, true);
    play.begin(&Io::unmap(&ranges[..1]));
    assert_eq!(play.op(), ("discard", 512, 1024, false));
    assert_eq!(play.result(-libc::EIO), Next::Done(IoStatus::WRITE_FAULT));
    assert_eq!(play.begin(&Io::unmap(&ranges[1..2])), DONE);
}

#[test]
fn a_failed_flush_is_never_forgotten() {
    let mut play = Play::new();
    assert_eq!(play.begin(&Io::flush()), Next::Again);
    assert_eq!(play.result(-libc::EIO), Next::Done(IoStatus::WRITE_FAULT));
    play.begin(&Io::flush());
    assert_eq!(play.result(0), Next::Done(IoStatus::WRITE_FAULT), "the kernel calls the next one good");
}

#[test]
fn compare_and_write_writes_from_its_second_list() {
    let (mut old, mut new) = (vec![0; 1024], vec![1; 1024]);
    let (sg, second) = ([entry(&mut old)], [entry(&mut new)]);
    let mut play = Play::new();
    let io = Io {
        sg: &sg,
        second: &second,
        flags: IoFlags::FUA,
        ..Io::new(Opcode::CompareAndWrite, Lba(3), BlockCount(2))
    };
    play.begin(&io);
    assert_eq!(play.task.access(), Access::Exclusive);
    // Fresh scratch memory is zeroes, as the list expects: nothing has to be read for this test.
    assert_eq!(play.op(), ("read", 1536, 1024, false));
    assert_eq!(play.result(1024), Next::Again);
    assert_eq!(play.op(), ("write", 1536, 1024, true));
    let Op::Transfer { iov, .. } = play.task.op(&play.features) else { panic!() };
    // SAFETY: one entry of the task's list.
    assert_eq!(unsafe { iov.read() }.iov_base.cast(), second[0].ptr.as_ptr());
    assert_eq!(play.result(1024), DONE);
    old[1000] = 1;
    play.begin(&io);
    play.op();
    assert_eq!(play.result(1024), Next::Done(IoStatus::COMPARE_FAILURE));
}

#[test]
fn verify_reads_everything_in_pieces() {
    let mut play = Play::new();
    play.begin(&Io::new(Opcode::Verify, Lba(0), BlockCount(5000)));
    assert_eq!(play.op(), ("read", 0, 1 << 20, false));
    assert_eq!(play.result(1 << 20), Next::Again);
    assert_eq!(play.op(), ("read", 1 << 20, 1 << 20, false));
    assert_eq!(play.result(1 << 20), Next::Again);
    assert_eq!(play.op(), ("read", 2 << 20, 5000 * 512 - (2 << 20), false));
    assert_eq!(play.result(0), Next::Done(IoStatus::UNRECOVERED_READ), "the file ends too early");
}

/// Gives the calling thread a file system of its own with this many bytes; an error says why not.
fn small_file_system(at: &std::path::Path, bytes: u32) -> std::io::Result<()> {
    let check = |result| if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
    let path = std::ffi::CString::new(at.as_os_str().as_encoded_bytes())?;
    let options = std::ffi::CString::new(format!("size={bytes}"))?;
    let (none, tmpfs) = (core::ptr::null::<libc::c_void>(), c"tmpfs".as_ptr());
    // SAFETY: no pointers; only this thread gets a mount namespace of its own.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) })?;
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: strings that live for the call.
    check(unsafe { libc::mount(tmpfs, c"/".as_ptr(), core::ptr::null(), flags, none) })?;
    // SAFETY: strings that live for the call.
    check(unsafe { libc::mount(tmpfs, path.as_ptr(), tmpfs, 0, options.as_ptr().cast()) })
}

#[test]
fn a_full_disk_is_capacity_exceeded_until_there_is_room() {
    let folder = std::env::temp_dir().join(format!("keelson-full-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let inside = folder.clone();
    let outcome = std::thread::spawn(move || {
        small_file_system(&inside, 256 << 10)?;
        let (path, ballast) = (inside.join("disk"), inside.join("ballast"));
        std::fs::File::create(&path)?.set_len(8 << 20)?;
        std::fs::write(&ballast, vec![1; 128 << 10])?;
        fill_up(&path, &ballast);
        Ok::<(), std::io::Error>(())
    });
    let outcome = outcome.join().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    if let Err(why) = outcome {
        let test = "aio::devices::file::tests::a_full_disk_is_capacity_exceeded_until_there_is_room";
        println!("SKIPPED: {test}: no mount namespace of our own ({why})");
        // By this file `cargo xtask test` counts it as skipped.
        if let Ok(path) = std::env::var("KEELSON_SKIPS") {
            use std::io::Write as _;
            let mut file = std::fs::File::options().append(true).open(path).unwrap();
            writeln!(file, "mountns {test}: {why}").unwrap();
        }
    }
}

/// Writes until the file system is full, makes room, and goes on.
fn fill_up(path: &std::path::Path, ballast: &std::path::Path) {
    use crate::device::BlockDevice;
    let uri = crate::uri::FileUri {
        path: path.to_str().unwrap().to_owned(),
        block_bytes: Some(4096),
        uuid: None,
        rescan: false,
    };
    let device = super::FileDevice::open(&uri, "aio").unwrap();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut open = device.open_channel();
    let std::task::Poll::Ready(Ok(mut channel)) = open.as_mut().poll(&mut context) else { panic!() };
    // Direct I/O wants aligned memory.
    let mut data = vec![7; 8192];
    let start = data.as_ptr().align_offset(4096);
    let list = [entry(&mut data[start..start + 4096])];
    let mut write = |lba| {
        // SAFETY: `data` lives until the channel is gone.
        unsafe { channel.submit(&Io::write(Lba(lba), BlockCount(1), &list), Token(lba)) }.unwrap();
        let mut out = Vec::with_capacity(1);
        while channel.poll(&mut out, 1) == 0 {
            std::thread::yield_now();
        }
        out[0].status
    };
    let full = (0..2048).find(|lba| !write(*lba).is_success()).expect("8 MiB do not fit in 256 KiB");
    assert_eq!(write(full), IoStatus::CAPACITY_EXCEEDED);
    assert!(write(0).is_success(), "blocks that have their space can be written");
    std::fs::remove_file(ballast).unwrap();
    assert!(write(full).is_success(), "there is room again");
    drop(channel);
    drop(data);
}
