//! Volumes of a pool pass the suite: on the pool's home core, and from other cores, where a proxy stands in for it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aio::reactor::{CoreHandle, EngineChoice, spawn_thread};
use aio::{BlockCount, BlockDevice, CoreId, DeviceUri, ReactorConfig};
use conformance::reactor::ReactorDriver;
use conformance::{Driver, DriverRef, Fixture, Options, Spec, block_on, run};
use lvs::info::{CreatePool, CreateVolume};
use lvs::{LvsError, Pool};

thread_local! {
    /// Where this thread's devices were made.
    static DRIVER: RefCell<Option<Weak<RefCell<dyn Driver>>>> = const { RefCell::new(None) };
}

/// Each volume is in a pool of its own, on a malloc disk.
struct Volumes {
    /// Where the pools live; `None` = on the core that asks for a device, which is the only one then.
    home: Option<CoreHandle>,
    /// The newest last.
    pools: Mutex<VecDeque<Pool>>,
}

impl Volumes {
    fn on_the_core_that_asks() -> Self {
        Self { home: None, pools: Mutex::default() }
    }

    fn on_another_core() -> Self {
        let config = ReactorConfig { pin: false, ..ReactorConfig::new(CoreId(7)) };
        Self { home: Some(spawn_thread(config).expect("a core")), pools: Mutex::default() }
    }

    fn make(
        &self,
        spec: Spec,
        home: CoreHandle,
        driver: &DriverRef,
    ) -> Result<Arc<dyn BlockDevice>, LvsError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("p{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let disk = format!("malloc:///{name}?size_mb=64&blk_size={}", spec.block_bytes);
        let disk: DeviceUri = disk.parse().expect("a good URI");
        let disk = aio::devices::create(&disk).expect("memory");
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        // No case has that many.
        while pools.len() > 4 {
            let old = pools.pop_front().expect("there is one");
            block_on(driver, old.export())?;
        }
        let wish = CreatePool { name, uuid: None, force: false };
        let new = block_on(driver, Pool::create(home, vec![disk], wish))?;
        let size_bytes = spec.blocks * u64::from(spec.block_bytes);
        let wish = CreateVolume { name: "v".into(), uuid: None, size_bytes, thin: true, entity_id: None };
        let volume = block_on(driver, new.create_volume(wish))?;
        pools.push_back(new);
        Ok(volume)
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.stop();
            home.join();
        }
    }
}

impl Fixture for Volumes {
    fn create(&self, spec: Spec, driver: &DriverRef) -> Arc<dyn BlockDevice> {
        DRIVER.set(Some(Rc::downgrade(driver)));
        let mut here = None;
        driver.borrow_mut().enter(&mut || here = aio::Core::current());
        let here = here.expect("a driver with a core").handle();
        self.make(spec, self.home.clone().unwrap_or(here), driver).expect("a volume")
    }

    fn driver(&self) -> DriverRef {
        ReactorDriver::shared(EngineChoice::Auto).expect("a reactor")
    }

    fn options(&self) -> Options {
        Options { effort: 500, one_thread: self.home.is_none(), ..Options::default() }
    }

    fn grow(&self, device: &Arc<dyn BlockDevice>, blocks: BlockCount) -> bool {
        let driver = DRIVER.with_borrow(|d| d.as_ref().and_then(Weak::upgrade));
        let driver = driver.expect("the device was made on this thread");
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = pools.iter().find(|p| p.volume(device.uuid()).is_some()).expect("its pool");
        let size_bytes = blocks.0 * u64::from(device.geometry().block_bytes);
        block_on(&driver, pool.resize_volume(device.uuid(), size_bytes)).is_ok()
    }
}

#[test]
fn home_core_512() {
    run(&Volumes::on_the_core_that_asks(), 512);
}

#[test]
fn home_core_4096() {
    run(&Volumes::on_the_core_that_asks(), 4096);
}

#[test]
fn other_cores_512() {
    run(&Volumes::on_another_core(), 512);
}

#[test]
fn other_cores_4096() {
    run(&Volumes::on_another_core(), 4096);
}
