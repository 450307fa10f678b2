//! One I/O on a file: which operations it takes, and what follows from each result. No system calls, so that
//! every turn of it can be tested.
//!
//! Short transfers go on where they ended. `EAGAIN` and `EINTR` are tried again. What a file system cannot do
//! is noted in [`Features`] and done another way from then on.
//!
//! # Unsafe
//! Compares scratch memory with callers' lists, and points into both.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::io::{Io, IoFlags, Opcode, Token};
use crate::sg::SgEntry;
use crate::{IoStatus, sgmem};

/// Zeroes are written, and blocks verified, this many bytes at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// How often `EAGAIN` is believed.
const MAX_TRIES: u16 = 1000;

/// What the file can do, as far as known. Starts with everything; what fails as unsupported is left off.
pub(super) struct Features {
    /// Writes with `RWF_DSYNC`.
    pub(super) dsync: AtomicBool,
    /// `FALLOC_FL_ZERO_RANGE`.
    pub(super) zero_range: AtomicBool,
    /// `FALLOC_FL_PUNCH_HOLE`.
    pub(super) punch_hole: AtomicBool,
    /// Unmap by discarding (block devices) rather than by punching holes.
    pub(super) discard: bool,
    /// A flush failed: the kernel has dropped what it could not write and will call the next flush good, so
    /// no flush is believed any more.
    pub(super) flush_failed: AtomicBool,
}

impl Features {
    /// `direct`: I/O bypasses the page cache. Through it, a failed `RWF_DSYNC` write would also report, and so hide from
    /// the next sync, that earlier writes were lost; only a sync may take that error, because it faults the device.
    pub(super) fn new(discard: bool, direct: bool) -> Self {
        Self {
            dsync: AtomicBool::new(direct),
            zero_range: AtomicBool::new(true),
            punch_hole: AtomicBool::new(true),
            discard,
            flush_failed: AtomicBool::new(false),
        }
    }
}

/// One system call's worth of work. Pointers lead into the task and to the memory of its I/O: both stay in
/// place until the result is in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    /// Read or write at an offset.
    Transfer { write: bool, iov: *const libc::iovec, count: u32, offset_bytes: u64, dsync: bool },
    /// Everything completed becomes durable.
    Sync,
    /// `fallocate`.
    Allocate { mode: i32, offset_bytes: u64, len_bytes: u64 },
    /// `BLKDISCARD`.
    Discard { offset_bytes: u64, len_bytes: u64 },
}

/// What follows from a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// The task has another operation.
    Again,
    /// It is finished.
    Done(IoStatus),
}

/// What a task must hold before it may begin, for the sake of Compare and Write on other cores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Nothing.
    Free,
    /// It changes blocks.
    Change,
    /// It compares and writes in one step.
    Exclusive,
}

/// What the current operation relies on. Asked when it fails, because others may have found out meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tried {
    Nothing,
    Dsync,
    PunchHole,
    ZeroRange,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Read,
    Write,
    Sync,
    Compare,
    CompareThenWrite,
    Verify,
    Zero,
    WriteZeroes,
    Unmap,
}

/// One I/O. Lives in a slot and is used again, so that its lists keep their memory.
pub(super) struct Task {
    pub(super) token: Token,
    step: Step,
    offset_bytes: u64,
    left_bytes: u64,
    fua: bool,
    deallocate: bool,
    tries: u16,
    tried: Tried,
    /// What is left of the current transfer: `iov[at..]`.
    iov: Vec<libc::iovec>,
    at: usize,
    /// What a compare expects.
    expected: Vec<SgEntry>,
    /// The write half of a Compare and Write.
    second: Vec<libc::iovec>,
    /// Ranges of an unmap that are left, last first, as offset and length.
    ranges: Vec<(u64, u64)>,
    scratch: Option<Scratch>,
}

impl Task {
    pub(super) fn new() -> Self {
        Self {
            token: Token(0),
            step: Step::Read,
            offset_bytes: 0,
            left_bytes: 0,
            fua: false,
            deallocate: false,
            tries: 0,
            tried: Tried::Nothing,
            iov: Vec::new(),
            at: 0,
            expected: Vec::new(),
            second: Vec::new(),
            ranges: Vec::new(),
            scratch: None,
        }
    }

    /// Takes up a valid I/O. `Done` = there is nothing to do, or no memory to do it with.
    pub(super) fn begin(&mut self, io: &Io<'_>, token: Token, block_bytes: u32, zeroes: NonNull<u8>) -> Next {
        self.token = token;
        self.fua = io.flags.contains(IoFlags::FUA);
        self.deallocate = io.flags.contains(IoFlags::DEALLOCATE);
        self.tries = 0;
        self.at = 0;
        self.iov.clear();
        self.step = match io.opcode {
            Opcode::Read => Step::Read,
            Opcode::Write => Step::Write,
            Opcode::Flush => Step::Sync,
            Opcode::WriteZeroes => Step::Zero,
            Opcode::Unmap => Step::Unmap,
            Opcode::Compare => Step::Compare,
            Opcode::CompareAndWrite => Step::CompareThenWrite,
            Opcode::Verify => Step::Verify,
            Opcode::Copy => return Next::Done(IoStatus::INVALID_OPCODE),
        };
        match self.step {
            // These two may carry anything as block and length.
            Step::Sync => return Next::Again,
            Step::Unmap => return self.begin_unmap(io, block_bytes),
            _ if io.blocks.0 == 0 => return Next::Done(IoStatus::SUCCESS),
            _ => {}
        }
        let len_bytes = io.blocks.0 * u64::from(block_bytes);
        self.offset_bytes = io.lba.0 * u64::from(block_bytes);
        self.left_bytes = len_bytes;
        match self.step {
            Step::Read | Step::Write => self.iov.extend(io.sg.iter().map(iovec)),
            Step::Zero => self.iov.push(piece(zeroes, CHUNK_BYTES)),
            _ => return self.begin_scratch(io, len_bytes),
        }
        Next::Again
    }

    fn begin_unmap(&mut self, io: &Io<'_>, block_bytes: u32) -> Next {
        let bytes = |blocks: u64| blocks * u64::from(block_bytes);
        let ranges = io.ranges.iter().rev().filter(|r| r.blocks.0 > 0);
        self.ranges.clear();
        self.ranges.extend(ranges.map(|r| (bytes(r.start.0), bytes(r.blocks.0))));
        if self.ranges.is_empty() { Next::Done(IoStatus::SUCCESS) } else { Next::Again }
    }

    fn begin_scratch(&mut self, io: &Io<'_>, len_bytes: u64) -> Next {
        let len = if self.step == Step::Verify { len_bytes.min(CHUNK_BYTES) } else { len_bytes };
        let Some(scratch) = Scratch::new(len as usize) else {
            return Next::Done(IoStatus::INTERNAL_ERROR);
        };
        self.iov.push(piece(scratch.ptr, len));
        self.scratch = Some(scratch);
        self.expected.clear();
        self.expected.extend_from_slice(io.sg);
        self.second.clear();
        self.second.extend(io.second.iter().map(iovec));
        Next::Again
    }

    /// What it has to hold while it runs.
    pub(super) fn access(&self) -> Access {
        match self.step {
            Step::CompareThenWrite => Access::Exclusive,
            Step::Write | Step::Zero | Step::WriteZeroes | Step::Unmap => Access::Change,
            Step::Read | Step::Sync | Step::Compare | Step::Verify => Access::Free,
        }
    }

    /// The next operation.
    pub(super) fn op(&mut self, features: &Features) -> Op {
        let on = |feature: &AtomicBool| feature.load(Ordering::Relaxed);
        self.tried = Tried::Nothing;
        match self.step {
            Step::Sync => Op::Sync,
            Step::Zero => {
                let punch = self.deallocate && !features.discard && on(&features.punch_hole);
                let how = if punch { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
                if !punch && !on(&features.zero_range) {
                    self.step = Step::WriteZeroes;
                    return self.op(features);
                }
                self.tried = if punch { Tried::PunchHole } else { Tried::ZeroRange };
                let mode = how | libc::FALLOC_FL_KEEP_SIZE;
                Op::Allocate { mode, offset_bytes: self.offset_bytes, len_bytes: self.left_bytes }
            }
            Step::Unmap => {
                let (offset_bytes, len_bytes) = self.ranges.last().copied().unwrap_or((0, 0));
                if features.discard {
                    return Op::Discard { offset_bytes, len_bytes };
                }
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                Op::Allocate { mode, offset_bytes, len_bytes }
            }
            Step::Verify | Step::WriteZeroes => {
                self.iov[0].iov_len = self.left_bytes.min(CHUNK_BYTES) as usize;
                self.transfer(features)
            }
            _ => self.transfer(features),
        }
    }

    fn transfer(&mut self, features: &Features) -> Op {
        let write = matches!(self.step, Step::Write | Step::WriteZeroes);
        let dsync = write && self.fua && features.dsync.load(Ordering::Relaxed);
        if dsync {
            self.tried = Tried::Dsync;
        }
        let rest = &self.iov[self.at..];
        Op::Transfer {
            write,
            iov: rest.as_ptr(),
            count: rest.len() as u32,
            offset_bytes: self.offset_bytes,
            dsync,
        }
    }

    /// Takes the result of the last operation: bytes, or minus an errno.
    pub(super) fn result(&mut self, result: i32, features: &Features) -> Next {
        let next =
            if result < 0 { self.failed(-result, features) } else { self.went_well(result as u64, features) };
        if matches!(next, Next::Done(_)) {
            self.scratch = None;
        }
        next
    }

    fn went_well(&mut self, bytes: u64, features: &Features) -> Next {
        self.tries = 0;
        match self.step {
            Step::Sync => match features.flush_failed.load(Ordering::Acquire) {
                true => Next::Done(IoStatus::WRITE_FAULT),
                false => Next::Done(IoStatus::SUCCESS),
            },
            Step::Zero => self.changed(false),
            Step::Unmap => {
                self.ranges.pop();
                if self.ranges.is_empty() { Next::Done(IoStatus::SUCCESS) } else { Next::Again }
            }
            // The file ends here: someone has cut it off.
            Step::Read | Step::Compare | Step::CompareThenWrite | Step::Verify if bytes == 0 => {
                Next::Done(IoStatus::UNRECOVERED_READ)
            }
            Step::Write | Step::WriteZeroes if bytes == 0 => Next::Done(IoStatus::WRITE_FAULT),
            _ => {
                self.advance(bytes.min(self.left_bytes));
                if self.left_bytes > 0 { Next::Again } else { self.transferred(features) }
            }
        }
    }

    /// Moves past bytes that were transferred.
    fn advance(&mut self, bytes: u64) {
        self.offset_bytes += bytes;
        self.left_bytes -= bytes;
        if matches!(self.step, Step::Verify | Step::WriteZeroes) {
            return;
        }
        let mut bytes = bytes as usize;
        while bytes > 0 {
            let entry = &mut self.iov[self.at];
            let part = bytes.min(entry.iov_len);
            entry.iov_base = entry.iov_base.wrapping_byte_add(part);
            entry.iov_len -= part;
            bytes -= part;
            self.at += usize::from(entry.iov_len == 0);
        }
    }

    /// The last byte of a transfer went over.
    fn transferred(&mut self, features: &Features) -> Next {
        match self.step {
            Step::Write | Step::WriteZeroes => self.changed(features.dsync.load(Ordering::Relaxed)),
            Step::Compare | Step::CompareThenWrite => {
                let equal = self.scratch.as_ref().is_some_and(|scratch| {
                    // SAFETY: the submitter keeps its list valid until the completion, and the scratch memory
                    // is as long as the list.
                    unsafe { sgmem::equal(&self.expected, scratch.ptr.as_ptr()) }
                });
                if !equal {
                    return Next::Done(IoStatus::COMPARE_FAILURE);
                }
                if self.step == Step::Compare {
                    return Next::Done(IoStatus::SUCCESS);
                }
                core::mem::swap(&mut self.iov, &mut self.second);
                self.at = 0;
                let len: u64 = self.iov.iter().map(|e| e.iov_len as u64).sum();
                self.offset_bytes -= len;
                self.left_bytes = len;
                self.step = Step::Write;
                Next::Again
            }
            _ => Next::Done(IoStatus::SUCCESS),
        }
    }

    /// Blocks were changed; FUA that was not part of it needs a flush.
    fn changed(&mut self, with_dsync: bool) -> Next {
        if !self.fua || with_dsync {
            return Next::Done(IoStatus::SUCCESS);
        }
        self.step = Step::Sync;
        Next::Again
    }

    fn failed(&mut self, errno: i32, features: &Features) -> Next {
        if matches!(errno, libc::EAGAIN | libc::EINTR) && self.tries < MAX_TRIES {
            self.tries += 1;
            return Next::Again;
        }
        let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENOTTY);
        let feature = match self.tried {
            Tried::Nothing => None,
            Tried::Dsync => Some(&features.dsync),
            Tried::PunchHole => Some(&features.punch_hole),
            Tried::ZeroRange => Some(&features.zero_range),
        };
        if let Some(feature) = feature.filter(|_| unsupported) {
            feature.store(false, Ordering::Relaxed);
            return Next::Again;
        }
        match self.step {
            // Advice that cannot be taken is no error.
            Step::Unmap if unsupported => Next::Done(IoStatus::SUCCESS),
            Step::Sync => {
                features.flush_failed.store(true, Ordering::Release);
                Next::Done(IoStatus::WRITE_FAULT)
            }
            Step::Read | Step::Compare | Step::CompareThenWrite | Step::Verify => {
                Next::Done(read_status(errno))
            }
            Step::Write | Step::WriteZeroes | Step::Zero | Step::Unmap => Next::Done(write_status(errno)),
        }
    }
}

/// Status of a failed read.
fn read_status(errno: i32) -> IoStatus {
    match errno {
        // EILSEQ and EBADMSG: checksums of dm-integrity and of file systems.
        libc::EIO | libc::ENODATA | libc::EILSEQ | libc::EBADMSG => IoStatus::UNRECOVERED_READ,
        other => common_status(other),
    }
}

/// Status of a failed write.
fn write_status(errno: i32) -> IoStatus {
    match errno {
        libc::EIO | libc::EILSEQ => IoStatus::WRITE_FAULT,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => IoStatus::CAPACITY_EXCEEDED,
        libc::EROFS | libc::EPERM | libc::EACCES | libc::EBADF => IoStatus::NAMESPACE_WRITE_PROTECTED,
        other => common_status(other),
    }
}

fn common_status(errno: i32) -> IoStatus {
    match errno {
        // The disk was pulled.
        libc::ENXIO | libc::ENODEV => IoStatus::NAMESPACE_NOT_READY,
        libc::ECANCELED => IoStatus::ABORT_REQUESTED,
        libc::EFAULT => IoStatus::DATA_TRANSFER_ERROR,
        _ => IoStatus::INTERNAL_ERROR,
    }
}

fn iovec(entry: &SgEntry) -> libc::iovec {
    piece(entry.ptr, entry.len_bytes.into())
}

fn piece(ptr: NonNull<u8>, len_bytes: u64) -> libc::iovec {
    libc::iovec { iov_base: ptr.as_ptr().cast(), iov_len: len_bytes as usize }
}

/// Memory for blocks that are read only to be looked at. Not for the fast path: it comes from the allocator.
struct Scratch {
    ptr: NonNull<u8>,
    layout: Layout,
}

impl Scratch {
    /// `None` without memory.
    fn new(len_bytes: usize) -> Option<Self> {
        // A page: what every kind of direct I/O accepts.
        let layout = Layout::from_size_align(len_bytes.max(1), 4096).ok()?;
        // SAFETY: not of size zero.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { ptr, layout })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; tasks drop it after the result of their last operation.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) };
    }
}
