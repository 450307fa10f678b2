//! Cancel, resize, removal, drop, close.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aio::{BlockCount, Cancel, DeviceError, DeviceEvent, IoStatus, Opcode, Token, check};

use super::data::stamp;
use crate::PATIENCE;
use crate::bench::{BLOCKS, Bench, Request, World};
use crate::buf::Buf;

/// Starts up to `n` writes of stamped blocks at `lba`..; gives their tokens in order.
fn start_writes(bench: &mut Bench, lba: u64, n: u64, version: u64) -> Vec<Token> {
    let mut tokens = Vec::new();
    for lba in lba..lba + n {
        let mut block = Buf::new(bench.bytes(1));
        stamp(block.bytes_mut(), lba, version);
        match bench.start(Request::new(Opcode::Write, lba, 1).data(block, &[])) {
            Ok(token) => tokens.push(token),
            Err(_) => break,
        }
    }
    tokens
}

/// A cancelled write completes with Command Abort Requested and has no effect; any other in its own way.
pub(super) fn cancel(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    for round in 0..10u64 {
        let n = 32;
        for lba in 0..n {
            let mut block = vec![0; bench.bytes(1)];
            stamp(&mut block, lba, round * 2);
            bench.write(lba, &block);
        }
        let tokens = start_writes(&mut bench, 0, n, round * 2 + 1);
        let mut answers = Vec::new();
        for (i, token) in tokens.iter().enumerate() {
            if i % 5 == 4 {
                bench.turn();
            }
            answers.push(bench.cancel(*token));
        }
        for ((token, answer), lba) in tokens.into_iter().zip(answers).zip(0u64..) {
            let status = bench.wait(token).status;
            let version = match answer {
                Cancel::Cancelled => {
                    assert_eq!(status.code(), IoStatus::ABORT_REQUESTED.code(), "a cancelled write");
                    round * 2
                }
                Cancel::TooLate | Cancel::Unsupported => {
                    assert!(status.is_success(), "a write that was not cancelled: {status:?}");
                    round * 2 + 1
                }
            };
            let mut expected = vec![0; bench.bytes(1)];
            if world.options.retains_data {
                stamp(&mut expected, lba, version);
            }
            assert!(bench.read(lba, 1) == expected, "block {lba} after {answer:?}");
        }
    }
    // Tokens that are not in flight: no effect, no completion.
    assert_ne!(bench.cancel(Token(u64::MAX)), Cancel::Cancelled);
    bench.turn();
    true
}

/// A device that grows says so, and the new blocks are there, also on channels that were open before.
pub(super) fn resize(world: &World<'_>) -> bool {
    let device = world.device();
    let mut bench = world.open(&device);
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let _subscription = device.subscribe(Arc::new(move |event| sink.lock().unwrap().push(event)));
    if !world.fixture.grow(&device, BlockCount(BLOCKS * 2)) {
        return false;
    }
    device.rescan().expect("rescan");
    let started = Instant::now();
    while device.size() != BlockCount(BLOCKS * 2) {
        assert!(started.elapsed() < PATIENCE, "the size stays {:?}", device.size());
        bench.turn();
    }
    assert_eq!(events.lock().unwrap().as_slice(), [DeviceEvent::Resized(BlockCount(BLOCKS * 2))]);
    let block = vec![0x2f; world.block_bytes as usize];
    bench.write(BLOCKS * 2 - 1, &block);
    if world.options.retains_data {
        assert!(bench.read(BLOCKS * 2 - 1, 1) == block);
        assert!(world.open(&device).read(BLOCKS * 2 - 1, 1) == block, "on a new channel");
    }
    let len = bench.bytes(1);
    let outside = Request::new(Opcode::Read, BLOCKS * 2, 1).data(Buf::new(len), &[]);
    bench.run(outside).fails(IoStatus::LBA_OUT_OF_RANGE);
    true
}

/// Everything accepted before a removal completes; everything after it fails; the event comes once.
pub(super) fn removal(world: &World<'_>) -> bool {
    let device = world.device();
    let mut bench = world.open(&device);
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let _subscription = device.subscribe(Arc::new(move |event| sink.lock().unwrap().push(event)));
    let tokens = start_writes(&mut bench, 0, 64, 1);
    bench.channel().kick();
    device.remove();
    device.remove();
    for token in tokens {
        bench.wait(token);
    }
    let started = Instant::now();
    while events.lock().unwrap().is_empty() {
        assert!(started.elapsed() < PATIENCE, "no event");
        bench.turn();
    }
    assert_eq!(events.lock().unwrap().as_slice(), [DeviceEvent::Removed]);
    for opcode in [Opcode::Read, Opcode::Write] {
        let len = bench.bytes(1);
        bench.run(Request::new(opcode, 0, 1).data(Buf::new(len), &[])).fails(check::REMOVED);
    }
    bench.run(Request::new(Opcode::Flush, 0, 0)).fails(check::REMOVED);
    assert!(bench.channel().drained());
    assert!(matches!(world.try_open(&device), Err(DeviceError::Gone(_))), "a channel of a removed device");
    true
}

/// Once a channel was dropped nobody touches the memory of what was in flight, and the device goes on.
pub(super) fn drop_in_flight(world: &World<'_>) -> bool {
    let device = world.device();
    for kicked in [false, true, true, true] {
        let mut bench = world.open(&device);
        start_writes(&mut bench, 0, 16, 7);
        for lba in 0..64 {
            let data = Buf::filled(bench.bytes(1), 0xa5);
            if bench.start(Request::new(Opcode::Read, lba, 1).data(data, &[])).is_err() {
                break;
            }
        }
        if kicked {
            bench.channel().kick();
        }
        let mut memory = bench.drop_channel();
        memory.iter_mut().for_each(|buf| buf.bytes_mut().fill(0x3c));
        let until = Instant::now() + Duration::from_millis(5);
        while Instant::now() < until {
            world.driver.borrow_mut().turn();
        }
        assert!(
            memory.iter().all(|buf| buf.bytes().iter().all(|b| *b == 0x3c)),
            "memory written after the drop"
        );
    }
    let mut bench = world.open(&device);
    let block = vec![0x19; world.block_bytes as usize];
    bench.write(0, &block);
    assert!(!world.options.retains_data || bench.read(0, 1) == block);
    drop(device);
    bench.run(Request::new(Opcode::Flush, 0, 0)).ok();
    true
}

/// A closed channel refuses new I/O, completes the old, and is drained then. Others go on.
pub(super) fn close_and_drain(world: &World<'_>) -> bool {
    let device = world.device();
    let (mut bench, mut other) = (world.open(&device), world.open(&device));
    let tokens = start_writes(&mut bench, 0, 32, 3);
    // Short queues take fewer.
    let last = tokens.len() as u64 - 1;
    bench.channel().close();
    let len = bench.bytes(1);
    let late = bench.start_soon(Request::new(Opcode::Write, 100, 1).data(Buf::filled(len, 0x77), &[]));
    assert!(!bench.wait(late).status.is_success(), "accepted after close");
    for token in tokens {
        bench.wait(token).ok();
    }
    let started = Instant::now();
    while !bench.channel().drained() {
        assert!(started.elapsed() < PATIENCE, "never drained");
        bench.turn();
    }
    let mut expected = vec![0; len];
    if world.options.retains_data {
        stamp(&mut expected, last, 3);
    }
    assert!(other.read(last, 1) == expected, "what was accepted before the close");
    assert!(other.read(100, 1).iter().any(|b| *b != 0x77), "what was refused");
    true
}

/// A dropped subscription hears nothing; the others do.
pub(super) fn subscriptions(world: &World<'_>) -> bool {
    let device = world.device();
    let counts = [(); 3].map(|()| Arc::new(Mutex::new(0)));
    let mut subscriptions: Vec<_> = counts
        .iter()
        .map(|count| {
            let count = count.clone();
            device.subscribe(Arc::new(move |_| *count.lock().unwrap() += 1))
        })
        .collect();
    drop(subscriptions.remove(1));
    device.remove();
    assert_eq!(counts.map(|c| *c.lock().unwrap()), [1, 0, 1]);
    true
}
