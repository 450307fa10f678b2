//! Counters of one namespace on one core: written by that core only, read by anybody.

use std::sync::atomic::{AtomicU64, Ordering};

/// What one core did for one namespace. A single writer adds with a plain load and store, so counting costs
/// what a plain integer costs; readers sum over cores and may see a value that is a few I/Os old.
#[derive(Default, Debug)]
pub struct IoCounters {
    read_commands: AtomicU64,
    read_bytes: AtomicU64,
    write_commands: AtomicU64,
    write_bytes: AtomicU64,
    other_commands: AtomicU64,
    failed_commands: AtomicU64,
    media_errors: AtomicU64,
    busy_ns: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
}

/// Buckets of the latency histogram. Bucket `i` counts commands that took less than 2^i microseconds and at
/// least half of that; the last one also everything above (half a minute).
pub const LATENCY_BUCKETS: usize = 26;

/// A reading of [`IoCounters`], or a sum of several.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct IoTotals {
    /// Completed Read and Compare commands.
    pub read_commands: u64,
    /// Bytes that Read moved to the host.
    pub read_bytes: u64,
    /// Completed Write commands.
    pub write_commands: u64,
    /// Bytes that Write moved from the host.
    pub write_bytes: u64,
    /// Completed commands of all other kinds.
    pub other_commands: u64,
    /// Commands that completed with an error.
    pub failed_commands: u64,
    /// Those among them with a status of type Media and Data Integrity Errors, except Compare Failure.
    pub media_errors: u64,
    /// Time with at least one command in flight, in nanoseconds.
    pub busy_ns: u64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl IoCounters {
    /// A Read of `bytes` completed. Called by the owning core only, like all that follow.
    pub fn read(&self, bytes: u64) {
        add(&self.read_commands, 1);
        add(&self.read_bytes, bytes);
    }

    /// A Write of `bytes` completed.
    pub fn write(&self, bytes: u64) {
        add(&self.write_commands, 1);
        add(&self.write_bytes, bytes);
    }

    /// Another command completed.
    pub fn other(&self) {
        add(&self.other_commands, 1);
    }

    /// A command completed with `status`, which is not success.
    pub fn failed(&self, status: nvme::Status) {
        add(&self.failed_commands, 1);
        if status.sct() == nvme::status::sct::MEDIA && status.code() != nvme::Status::COMPARE_FAILURE.code() {
            add(&self.media_errors, 1);
        }
    }

    /// A command took `elapsed_ns` nanoseconds from its arrival to its completion, at the resolution of turns.
    #[inline]
    pub fn latency(&self, elapsed_ns: u64) {
        let us = elapsed_ns / 1000;
        let bucket = (64 - us.leading_zeros() as usize).min(LATENCY_BUCKETS - 1);
        add(&self.latency[bucket], 1);
    }

    /// How many commands fell into each bucket. Any thread.
    pub fn latency_histogram(&self) -> [u64; LATENCY_BUCKETS] {
        core::array::from_fn(|i| self.latency[i].load(Ordering::Relaxed))
    }

    /// Another `ns` nanoseconds went by with commands in flight.
    pub fn busy(&self, ns: u64) {
        add(&self.busy_ns, ns);
    }

    /// The current values. Any thread.
    pub fn totals(&self) -> IoTotals {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        IoTotals {
            read_commands: get(&self.read_commands),
            read_bytes: get(&self.read_bytes),
            write_commands: get(&self.write_commands),
            write_bytes: get(&self.write_bytes),
            other_commands: get(&self.other_commands),
            failed_commands: get(&self.failed_commands),
            media_errors: get(&self.media_errors),
            busy_ns: get(&self.busy_ns),
        }
    }
}

impl std::ops::AddAssign for IoTotals {
    fn add_assign(&mut self, o: Self) {
        self.read_commands = self.read_commands.wrapping_add(o.read_commands);
        self.read_bytes = self.read_bytes.wrapping_add(o.read_bytes);
        self.write_commands = self.write_commands.wrapping_add(o.write_commands);
        self.write_bytes = self.write_bytes.wrapping_add(o.write_bytes);
        self.other_commands = self.other_commands.wrapping_add(o.other_commands);
        self.failed_commands = self.failed_commands.wrapping_add(o.failed_commands);
        self.media_errors = self.media_errors.wrapping_add(o.media_errors);
        self.busy_ns = self.busy_ns.wrapping_add(o.busy_ns);
    }
}
