//! The limit: two threads that move the same bytes in the same batches over loopback TCP, and do nothing else.
//!
//! Each side makes one non-blocking receive, looks how many whole messages have come, and answers all of them
//! with one gathered send straight from memory. The first byte of a message tells which step of an I/O it is;
//! no protocol is parsed, no device asked, nothing timed but the whole. What is left is what the kernel's TCP
//! costs, and Keelson's ratio to it is what Keelson adds.

use crate::cell::{Cell as Measured, Direction};
use crate::pin::pin;
use anyhow::{Context, Result};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Header lengths of NVMe/TCP PDUs.
pub(crate) const COMMAND: usize = 72;
pub(crate) const RESPONSE: usize = 24;
/// The largest in-capsule write; above it, data is asked for by an R2T.
const IN_CAPSULE: usize = 8 << 10;
/// What one gathered send carries at most, for small and for large I/O: bounds that were found best.
const SEND_SMALL: usize = 64 << 10;
const SEND_LARGE: usize = 512 << 10;
/// As much memory as the device that is compared with has, so that caches miss alike.
const MEMORY: usize = 256 << 20;
const RECEIVE: usize = 1 << 20;

/// The messages of one I/O, in turn: from the host, from the target, ...; in bytes.
fn exchange(cell: &Measured) -> Vec<usize> {
    match cell.direction {
        Direction::Read => vec![COMMAND, RESPONSE + cell.io_bytes],
        Direction::Write if cell.io_bytes <= IN_CAPSULE => vec![COMMAND + cell.io_bytes, RESPONSE],
        Direction::Write => vec![COMMAND, RESPONSE, RESPONSE + cell.io_bytes, RESPONSE],
    }
}

/// I/Os per second of the bare loop; the target's side runs on the first core.
pub(crate) fn iops(cell: &Measured, cores: (usize, usize), time: Duration) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
    let address = listener.local_addr().context("asking for our own address")?;
    let (ready, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let target = scope.spawn(|| {
            pin(cores.0);
            let outcome = serve(cell, &listener, &ready, &stop);
            stop.store(true, Ordering::Relaxed);
            outcome
        });
        let host = scope.spawn(|| {
            pin(cores.1);
            let outcome = drive(cell, address, time, &ready, &stop);
            stop.store(true, Ordering::Relaxed);
            outcome
        });
        let result = host.join().expect("invariant: the host thread does not panic")?;
        target.join().expect("invariant: the target thread does not panic")?;
        result.context("the target's side ended early")
    })
}

fn serve(cell: &Measured, listener: &TcpListener, ready: &AtomicBool, stop: &AtomicBool) -> Result<()> {
    let memory = Memory::new(cell);
    let accept = |_| Side::new(listener.accept().context("accepting on loopback")?.0, cell);
    let mut sides = (0..cell.connections).map(accept).collect::<Result<Vec<_>>>()?;
    ready.store(true, Ordering::Relaxed);
    while !stop.load(Ordering::Relaxed) {
        for side in &mut sides {
            side.receive()?;
            side.send(&memory)?;
        }
    }
    Ok(())
}

/// Returns `None` when the other side ended first.
fn drive(
    cell: &Measured,
    address: SocketAddr,
    time: Duration,
    ready: &AtomicBool,
    stop: &AtomicBool,
) -> Result<Option<f64>> {
    let memory = Memory::new(cell);
    let connect = |_| Side::new(TcpStream::connect(address).context("connecting on loopback")?, cell);
    let mut sides = (0..cell.connections).map(connect).collect::<Result<Vec<_>>>()?;
    for side in &mut sides {
        side.owed.extend(std::iter::repeat_n(0, cell.depth / cell.connections));
    }
    // The other side's memory takes as long to fill as a short run does.
    while !ready.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    // Without the first quarter: windows open and caches fill.
    let (mut start, mut done, mut warm) = (Instant::now(), 0, false);
    while !stop.load(Ordering::Relaxed) {
        for side in &mut sides {
            side.send(&memory)?;
            done += side.receive()?;
        }
        let elapsed = start.elapsed();
        if !warm && elapsed >= time / 4 {
            (start, done, warm) = (Instant::now(), 0, true);
        } else if warm && elapsed >= time {
            return Ok(Some(done as f64 / elapsed.as_secs_f64()));
        }
    }
    Ok(None)
}

/// Memory to send data from: other places each time, as random I/O does.
struct Memory {
    bytes: Vec<u8>,
    at: Cell<usize>,
}

impl Memory {
    fn new(cell: &Measured) -> Self {
        // The null device has no memory to miss; neither has its limit.
        let len = if cell.device == "null" { cell.io_bytes * 2 } else { MEMORY };
        // Not zero: pages that were never written are all one page.
        Self { bytes: vec![0x5a; len], at: Cell::new(0) }
    }

    fn next(&self, len: usize) -> &[u8] {
        // An odd number of pages as the stride visits all pages of a power of two.
        let at = ((self.at.get() + 0x9e37_79b1 * 4096) % (self.bytes.len() - len + 1)) & !4095;
        self.at.set(at);
        &self.bytes[at..at + len]
    }
}

/// One end of one connection.
struct Side {
    stream: TcpStream,
    messages: Vec<usize>,
    /// Steps that are due to be sent, in order.
    owed: VecDeque<u8>,
    /// How much of the first of them is sent already.
    sent: usize,
    /// What is still to come of the message that is being received, and its step.
    rest: usize,
    step: u8,
    headers: Vec<[u8; COMMAND]>,
    bound: usize,
    buffer: Vec<u8>,
}

impl Side {
    fn new(stream: TcpStream, cell: &Measured) -> Result<Self> {
        stream.set_nodelay(true).context("setting TCP_NODELAY")?;
        stream.set_nonblocking(true).context("setting a socket non-blocking")?;
        let messages = exchange(cell);
        let headers = (0..messages.len()).map(|step| [step as u8; COMMAND]).collect();
        let bound = if cell.io_bytes > IN_CAPSULE { SEND_LARGE } else { SEND_SMALL };
        let buffer = vec![0; RECEIVE];
        Ok(Self {
            stream,
            messages,
            owed: VecDeque::new(),
            sent: 0,
            rest: 0,
            step: 0,
            headers,
            bound,
            buffer,
        })
    }

    /// One receive. What came whole is answered later; returns how many I/Os are done, each of which owes a new
    /// one.
    fn receive(&mut self) -> Result<u64> {
        let count = match self.stream.read(&mut self.buffer) {
            Ok(0) => return Ok(0),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            // The other side hung up with something in flight: the end of a run.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(0),
            Err(error) => return Err(error).context("receiving on loopback"),
        };
        let (mut at, mut done) = (0, 0);
        while at < count {
            if self.rest == 0 {
                self.step = self.buffer[at];
                self.rest = self.messages[usize::from(self.step)];
            }
            let taken = self.rest.min(count - at);
            at += taken;
            self.rest -= taken;
            if self.rest == 0 {
                let last = usize::from(self.step) + 1 == self.messages.len();
                self.owed.push_back(if last { 0 } else { self.step + 1 });
                done += u64::from(last);
            }
        }
        Ok(done)
    }

    /// One gathered send of what is due, up to a bound.
    fn send(&mut self, memory: &Memory) -> Result<()> {
        if self.owed.is_empty() {
            return Ok(());
        }
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(2 * self.owed.len());
        let (mut total, mut skip) = (0, self.sent);
        for step in &self.owed {
            let header = &self.headers[usize::from(*step)][..if *step == 0 { COMMAND } else { RESPONSE }];
            let data = memory.next(self.messages[usize::from(*step)] - header.len());
            for part in [header, data] {
                let cut = skip.min(part.len());
                skip -= cut;
                if cut < part.len() {
                    slices.push(IoSlice::new(&part[cut..]));
                    total += part.len() - cut;
                }
            }
            if total >= self.bound {
                break;
            }
        }
        let mut count = match self.stream.write_vectored(&slices) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            Err(error) => return Err(error).context("sending on loopback"),
        };
        count += self.sent;
        while let Some(step) = self.owed.front() {
            let len = self.messages[usize::from(*step)];
            if count < len {
                break;
            }
            count -= len;
            self.owed.pop_front();
        }
        self.sent = count;
        Ok(())
    }
}
