//! Which of its speed phases the machine is in.
//!
//! A small virtual machine flips between phases within seconds, without any load of ours: the round trip of a
//! cache line between two cores is about 50 ns in one and 325 ns in another, and everything that crosses cores
//! follows. Only figures of the same phase can be compared, so the round trip is measured before and after
//! each run.

use crate::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Bounces of one probe: some milliseconds.
const BOUNCES: u32 = 20_000;
/// Round trips below this are of the fast phase; the two lie far to either side.
const FAST_BELOW: Duration = Duration::from_nanos(150);

/// A phase of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub(crate) enum Phase {
    Fast,
    Slow,
}

impl Phase {
    fn of(round_trip: Duration) -> Self {
        if round_trip < FAST_BELOW { Self::Fast } else { Self::Slow }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Slow => "slow",
        }
    }
}

/// The mean round trip of a cache line between two cores.
pub(crate) fn round_trip(core_a: usize, core_b: usize) -> Duration {
    let line = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(core_a);
            for bounce in 0..BOUNCES {
                wait_for(&line, 2 * bounce + 1);
                // Release pairs with the acquire in `wait_for`; nothing but the number itself crosses.
                line.store(2 * bounce + 2, Ordering::Release);
            }
        });
        let bouncer = scope.spawn(|| {
            pin(core_b);
            let start = Instant::now();
            for bounce in 0..BOUNCES {
                line.store(2 * bounce + 1, Ordering::Release);
                wait_for(&line, 2 * bounce + 2);
            }
            start.elapsed() / BOUNCES
        });
        bouncer.join().expect("invariant: the bouncing thread does not panic")
    })
}

fn wait_for(line: &AtomicU32, value: u32) {
    while line.load(Ordering::Acquire) != value {
        std::hint::spin_loop();
    }
}

/// Runs `measure` with the phase of before and after; `None` when the machine flipped meanwhile.
pub(crate) fn within<T>(
    cores: (usize, usize),
    measure: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Option<Phase>)> {
    let before = Phase::of(round_trip(cores.0, cores.1));
    let value = measure()?;
    let after = Phase::of(round_trip(cores.0, cores.1));
    Ok((value, (before == after).then_some(before)))
}
