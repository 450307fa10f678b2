//! The simulated disk passes the suite, on a clock that moves with the driver.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aio::devices::sim::{SimConfig, SimDisk};
use aio::{BlockDevice, Instant};
use conformance::{Driver, DriverRef, Fixture, Options, Spec, run};

struct Sims {
    time: Arc<AtomicU64>,
    seed: AtomicU64,
    volatile_cache: bool,
}

impl Sims {
    fn new(volatile_cache: bool) -> Self {
        Self { time: Arc::default(), seed: AtomicU64::new(1), volatile_cache }
    }
}

struct Clockwork(Arc<AtomicU64>);

impl Driver for Clockwork {
    fn turn(&mut self) {
        self.0.fetch_add(20_000, Ordering::Relaxed);
    }
}

impl Fixture for Sims {
    fn create(&self, spec: Spec, _driver: &DriverRef) -> Arc<dyn BlockDevice> {
        let seed = self.seed.fetch_add(1, Ordering::Relaxed);
        let config = SimConfig {
            volatile_cache: self.volatile_cache,
            ..SimConfig::new(spec.block_bytes, spec.blocks, seed)
        };
        let time = self.time.clone();
        let disk = SimDisk::new(config, Arc::new(move || Instant::from_ns(time.load(Ordering::Relaxed))));
        disk.power_on()
    }

    fn driver(&self) -> DriverRef {
        Rc::new(RefCell::new(Clockwork(self.time.clone())))
    }

    fn options(&self) -> Options {
        Options { effort: 600, ..Options::default() }
    }
}

#[test]
fn sim_512() {
    run(&Sims::new(true), 512);
}

#[test]
fn sim_4096() {
    run(&Sims::new(true), 4096);
}

#[test]
fn sim_without_cache() {
    run(&Sims::new(false), 512);
}
