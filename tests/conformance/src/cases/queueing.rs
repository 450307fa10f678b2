//! Busy, budgets, many in flight, sleep.

use std::time::Instant;

use aio::devices::prng::Prng;
use aio::{Opcode, Sleep};

use crate::PATIENCE;
use crate::bench::{Bench, Request, World};
use crate::buf::Buf;

/// Submits reads until the channel is busy or `limit` are accepted; true when it became busy.
fn fill(bench: &mut Bench, limit: usize) -> bool {
    while bench.in_flight() < limit {
        let len = bench.bytes(1);
        let request = Request::new(Opcode::Read, bench.in_flight() as u64 % 64, 1).data(Buf::new(len), &[]);
        if bench.start(request).is_err() {
            return true;
        }
    }
    false
}

/// At least the announced depth is accepted; after Busy the ready bit comes, once; then there is room.
pub(super) fn busy_and_recovery(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    let depth = bench.geometry.queue_depth as usize;
    assert!(!bench.take_ready(), "ready without a Busy before");
    for round in 0..3 {
        let busy = fill(&mut bench, depth.max(1) * 4);
        assert!(busy, "round {round}: four times the announced depth was accepted without Busy");
        assert!(bench.in_flight() >= depth, "round {round}: Busy after {} of {depth}", bench.in_flight());
        let started = Instant::now();
        while !bench.take_ready() {
            assert!(started.elapsed() < PATIENCE, "round {round}: no ready bit after Busy");
            bench.turn();
        }
        assert!(!bench.take_ready(), "round {round}: the ready bit came twice");
        let len = bench.bytes(1);
        let retried = bench.start(Request::new(Opcode::Read, 0, 1).data(Buf::new(len), &[]));
        assert!(retried.is_ok(), "round {round}: ready, but still Busy");
        if round == 1 {
            // The bit also comes when everything has drained before anybody looks.
            fill(&mut bench, depth * 4);
            bench.settle();
            let started = Instant::now();
            while !bench.take_ready() {
                assert!(started.elapsed() < PATIENCE, "no ready bit with nothing in flight");
                bench.turn();
            }
        }
        bench.settle();
    }
    assert!(bench.channel().drained());
    true
}

/// Many I/Os of random kinds, always as many in flight as the channel takes.
pub(super) fn thousands(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    let mut rng = Prng::new(world.options.seed ^ 3);
    let size = bench.device.size().0;
    let most = u64::from(bench.geometry.max_blocks).min(8);
    for _ in 0..world.options.effort * 3 {
        let blocks = rng.between(1, most);
        let lba = rng.below(size - blocks + 1);
        let data = Buf::new(bench.bytes(blocks));
        let request = match rng.below(20) {
            0 => Request::new(Opcode::Flush, 0, 0),
            1 => Request::new(Opcode::Read, size, 1).data(Buf::new(bench.bytes(1)), &[]),
            2..=9 => Request::new(Opcode::Write, lba, blocks).data(data, &[]),
            _ => Request::new(Opcode::Read, lba, blocks).data(data, &[]),
        };
        bench.start_soon(request);
    }
    bench.settle();
    assert!(bench.channel().drained(), "everything completed, but not drained");
    true
}

/// Poll gives no more than its budget, and nothing for a budget of nothing.
pub(super) fn budget(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    let n = (bench.geometry.queue_depth as usize).min(40);
    fill(&mut bench, n);
    let started = Instant::now();
    let mut got = 0;
    bench.channel().kick();
    while got < n {
        assert!(started.elapsed() < PATIENCE, "{got} of {n} completions");
        assert_eq!(bench.poll(0), 0);
        let some = bench.poll(1);
        got += some;
        if some == 0 {
            bench.turn_only();
        }
    }
    assert_eq!(bench.in_flight(), 0);
    assert_eq!(bench.poll(64), 0);
    true
}

/// An idle channel lets its core sleep; one with completions at hand does not lose them to sleep.
pub(super) fn sleep(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    for _ in 0..3 {
        bench.turn();
    }
    assert_ne!(bench.channel().prepare_sleep(), Sleep::KeepPolling, "an idle device keeps its core busy");
    let n = (bench.geometry.queue_depth as usize).min(4);
    fill(&mut bench, n);
    bench.channel().kick();
    bench.channel().prepare_sleep();
    bench.settle();
    for _ in 0..3 {
        bench.turn();
    }
    assert_ne!(bench.channel().prepare_sleep(), Sleep::KeepPolling, "a drained device keeps its core busy");
    true
}
