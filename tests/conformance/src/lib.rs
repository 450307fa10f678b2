//! One suite that every block device passes.
//!
//! A device's test writes a [`Fixture`], which makes fresh devices and drives whatever they need to make
//! progress, and calls [`run`]. Each case gets a device of its own, checks one property of the contract in
//! `aio::device`, and panics with the property's name when it does not hold. Accounting is everywhere: a
//! completion for an unknown token, a second one, a missing one, or more than the budget fails any case.
//!
//! # Map
//! - [`mod@bench`]: drives one channel and keeps the accounts. - [`buf`]: the payload memory.
//! - [`reactor`]: a driver that turns a reactor.
//! - `cases`: bounds and shapes, data and semantics, queueing and lifecycle, cores.
//! - `bin/conform`: the suite against a namespace of any NVMe/TCP target, by URI; the VM runs it on the kernel's.
//!
//! # Unsafe
//! `bench` and `buf` hand memory to devices and read what they lent.
#![allow(clippy::unwrap_used, reason = "all of this is test code: a panic is a failed test")]
#![allow(clippy::result_large_err, reason = "a refused request goes back to its owner")]

pub mod bench;
pub mod buf;
mod cases;
pub mod reactor;

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use aio::{BlockCount, BlockDevice};

/// How long anything may take before it counts as hanging. Generous: test machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The device that a case asks for.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Logical block size.
    pub block_bytes: u32,
    /// Size.
    pub blocks: u64,
}

/// Lets a thread's devices make progress: turns the reactor, moves the simulated clock.
pub trait Driver {
    /// One round. Must not block for long.
    fn turn(&mut self);

    /// Runs `work` as code of the thread's core.
    fn enter(&mut self, work: &mut dyn FnMut()) {
        work();
    }
}

/// For devices that need nothing but being polled.
pub struct NoDriver;

impl Driver for NoDriver {
    fn turn(&mut self) {}
}

/// The driver of one thread, shared by the channels on it.
pub type DriverRef = Rc<RefCell<dyn Driver>>;

/// What the suite has to know about a device beyond its own description.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Reads give back what was written. False only for `null`: then reads give zeroes.
    pub retains_data: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// How many random operations the longer cases do.
    pub effort: u32,
    /// The device's world is one thread (simulation): the cases with several threads do not apply.
    pub one_thread: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { retains_data: true, seed: 0x6b65_656c, effort: 2000, one_thread: false }
    }
}

/// Makes devices of one kind.
pub trait Fixture: Sync {
    /// A fresh device. Contents are anything, of the size and block size asked for.
    fn create(&self, spec: Spec, driver: &DriverRef) -> Arc<dyn BlockDevice>;

    /// The driver of the thread that calls. A thread has at most one at a time.
    fn driver(&self) -> DriverRef {
        Rc::new(RefCell::new(NoDriver))
    }

    /// What to expect.
    fn options(&self) -> Options {
        Options::default()
    }

    /// Makes the device larger, from outside where that is how it happens. False = this kind cannot grow.
    fn grow(&self, device: &Arc<dyn BlockDevice>, blocks: BlockCount) -> bool {
        device.resize(blocks).is_ok()
    }
}

/// Runs every case with the block size, each on a fresh device. Panics at the first that fails; prints the
/// names of those that do not apply.
pub fn run(fixture: &dyn Fixture, block_bytes: u32) {
    let driver = fixture.driver();
    let mut skipped = Vec::new();
    for (name, case) in cases::ALL {
        let guard = NameOnPanic { case: name, block_bytes };
        let started = Instant::now();
        let world = bench::World::new(fixture, driver.clone(), block_bytes);
        if !case(&world) {
            skipped.push(*name);
        }
        println!("  {name}: {:.0?}", started.elapsed());
        core::mem::forget(guard);
    }
    println!("{} cases at {block_bytes} B, not applicable: {skipped:?}", cases::ALL.len() - skipped.len());
}

/// How one case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// The device lacks what the case is about.
    NotApplicable,
    /// It panicked; the panic's message went to standard error.
    Failed,
}

/// The same as [`run`] for a program that reports: goes on after a failure, and tells `each` how every case ended
/// and how long it took. Each case gets a driver of its own, so that nothing of a failed one is left.
pub fn run_each(
    fixture: &dyn Fixture,
    block_bytes: u32,
    mut each: impl FnMut(&'static str, Outcome, Duration),
) {
    for (name, case) in cases::ALL {
        let started = Instant::now();
        let applies = catch_unwind(AssertUnwindSafe(|| {
            case(&bench::World::new(fixture, fixture.driver(), block_bytes))
        }));
        let outcome = match applies {
            Ok(true) => Outcome::Passed,
            Ok(false) => Outcome::NotApplicable,
            Err(_) => Outcome::Failed,
        };
        each(name, outcome, started.elapsed());
    }
}

/// Runs a future of the control side while its thread's driver turns.
pub fn block_on<T>(driver: &DriverRef, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    let started = Instant::now();
    loop {
        let mut polled = Poll::Pending;
        driver.borrow_mut().enter(&mut || polled = future.as_mut().poll(&mut context));
        if let Poll::Ready(value) = polled {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "a control operation hangs");
        driver.borrow_mut().turn();
    }
}

/// Says that `test` cannot run here, because the machine lacks what the word `needs` names. Besides the line on
/// the output there is the file of `KEELSON_SKIPS`, by which `cargo xtask test` counts it as skipped.
pub fn skip(needs: &str, test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
    let Ok(path) = std::env::var("KEELSON_SKIPS") else { return };
    let line = format!("{needs} {test}: {}\n", reason.replace('\n', " "));
    let appended = OpenOptions::new().append(true).open(path).and_then(|mut f| f.write_all(line.as_bytes()));
    appended.expect("the file of KEELSON_SKIPS takes a line");
}

/// Says which case failed; forgotten when it did not.
struct NameOnPanic {
    case: &'static str,
    block_bytes: u32,
}

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        eprintln!("FAILED: conformance case {} with {} B blocks", self.case, self.block_bytes);
    }
}
