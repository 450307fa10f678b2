//! What a core counts about itself.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters with one writer, the core, that any thread may read. Adding is a plain load and store.
#[derive(Default)]
pub(super) struct Counters {
    turns: AtomicU64,
    busy_turns: AtomicU64,
    sleeps: AtomicU64,
    busy_ns: AtomicU64,
    spin_ns: AtomicU64,
    sleep_ns: AtomicU64,
    jobs: AtomicU64,
    task_polls: AtomicU64,
    timers_fired: AtomicU64,
    panics: AtomicU64,
}

/// A reading of a core's counters since its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CoreStats {
    /// Turns.
    pub turns: u64,
    /// Turns that found work.
    pub busy_turns: u64,
    /// Times that the core went to sleep.
    pub sleeps: u64,
    /// Time in turns that found work, in nanoseconds.
    pub busy_ns: u64,
    /// Time in turns that found none, in nanoseconds.
    pub spin_ns: u64,
    /// Time asleep, in nanoseconds.
    pub sleep_ns: u64,
    /// Mailbox jobs run.
    pub jobs: u64,
    /// Times that a task was run.
    pub task_polls: u64,
    /// Timers that fired.
    pub timers_fired: u64,
    /// Panics of pollers, tasks and jobs that were contained.
    pub panics: u64,
}

/// How the time since the last clock reading was spent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spent {
    Busy,
    Spinning,
    Asleep,
}

/// What one turn did.
#[derive(Clone, Copy, Default)]
pub(super) struct TurnCounts {
    pub(super) jobs: usize,
    pub(super) task_polls: usize,
    pub(super) timers_fired: usize,
    pub(super) panics: usize,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl Counters {
    pub(super) fn time(&self, spent: Spent, ns: u64) {
        match spent {
            Spent::Busy => add(&self.busy_ns, ns),
            Spent::Spinning => add(&self.spin_ns, ns),
            Spent::Asleep => add(&self.sleep_ns, ns),
        }
    }

    pub(super) fn turn(&self, busy: bool, did: TurnCounts) {
        add(&self.turns, 1);
        if busy {
            add(&self.busy_turns, 1);
            for (counter, n) in [
                (&self.jobs, did.jobs),
                (&self.task_polls, did.task_polls),
                (&self.timers_fired, did.timers_fired),
                (&self.panics, did.panics),
            ] {
                if n > 0 {
                    add(counter, n as u64);
                }
            }
        }
    }

    pub(super) fn sleep(&self) {
        add(&self.sleeps, 1);
    }

    pub(super) fn read(&self) -> CoreStats {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        CoreStats {
            turns: get(&self.turns),
            busy_turns: get(&self.busy_turns),
            sleeps: get(&self.sleeps),
            busy_ns: get(&self.busy_ns),
            spin_ns: get(&self.spin_ns),
            sleep_ns: get(&self.sleep_ns),
            jobs: get(&self.jobs),
            task_polls: get(&self.task_polls),
            timers_fired: get(&self.timers_fired),
            panics: get(&self.panics),
        }
    }
}
