//! Nexuses over malloc devices pass the suite: on their home core, and on others.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use aio::reactor::{CoreHandle, EngineChoice, spawn_thread};
use aio::{BlockCount, BlockDevice, CoreId, DeviceUri, ReactorConfig};
use conformance::reactor::ReactorDriver;
use conformance::{Driver, DriverRef, Fixture, Options, Spec, block_on, run};
use nexus::layout::DATA_OFFSET_BYTES;
use nexus::{ChildSpec, CreateNexus, Nexus, NoStore};

/// What stands behind the data on a child, and room to grow.
const ROOM_BYTES: u64 = 32 << 20;

thread_local! {
    /// Where this thread's devices were made.
    static DRIVER: RefCell<Option<Weak<RefCell<dyn Driver>>>> = const { RefCell::new(None) };
}

struct Mirrors {
    children: u32,
    /// Where decisions are made; `None` = on the core that asks for a device.
    home: Option<CoreHandle>,
    /// The newest last.
    made: Mutex<Vec<Nexus>>,
}

impl Mirrors {
    fn of(children: u32) -> Self {
        Self { children, home: None, made: Mutex::default() }
    }

    fn on_another_core(children: u32) -> Self {
        let config = ReactorConfig { pin: false, ..ReactorConfig::new(CoreId(7)) };
        Self { children, home: Some(spawn_thread(config).expect("a core")), made: Mutex::default() }
    }
}

impl Drop for Mirrors {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.stop();
            home.join();
        }
    }
}

impl Fixture for Mirrors {
    fn create(&self, spec: Spec, driver: &DriverRef) -> Arc<dyn BlockDevice> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        DRIVER.set(Some(Rc::downgrade(driver)));
        let mut here = None;
        driver.borrow_mut().enter(&mut || here = aio::Core::current());
        let home = self.home.clone().unwrap_or_else(|| here.expect("a driver with a core").handle());
        let block = u64::from(spec.block_bytes);
        // A nexus shows one block less than it was asked for.
        let size_bytes = (spec.blocks + 1) * block;
        let blocks = (size_bytes + DATA_OFFSET_BYTES + ROOM_BYTES) / block;
        let children: Vec<ChildSpec> = (0..self.children)
            .map(|n| {
                let uri = format!("malloc:///n{number}c{n}?num_blocks={blocks}&blk_size={block}");
                let parsed: DeviceUri = uri.parse().expect("a good URI");
                let device = aio::devices::create(&parsed).expect("memory");
                ChildSpec { uuid: device.uuid(), uri, device }
            })
            .collect();
        let uuid = uuid::Uuid::from_u128(u128::from(number) + 1);
        let wish = CreateNexus {
            name: format!("n{number}"),
            uuid,
            device_uuid: uuid,
            size_bytes,
            offers: aio::Capabilities::all(),
            children,
            reservation: None,
        };
        let nexus = block_on(driver, Nexus::create(home, wish, Arc::new(NoStore))).expect("a nexus");
        let mut made = self.made.lock().expect("no panic");
        made.push(nexus.clone());
        // No case has that many.
        if made.len() > 4 {
            block_on(driver, made.remove(0).destroy()).expect("an end");
        }
        Arc::new(nexus)
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
        let made = self.made.lock().expect("no panic");
        let nexus = made.iter().find(|n| n.uuid() == device.uuid()).expect("it was made here");
        let size_bytes = (blocks.0 + 1) * u64::from(device.geometry().block_bytes);
        block_on(&driver, nexus.resize(size_bytes)).is_ok()
    }
}

#[test]
fn one_child_512() {
    run(&Mirrors::of(1), 512);
}

#[test]
fn two_children_512() {
    run(&Mirrors::of(2), 512);
}

#[test]
fn three_children_4096() {
    run(&Mirrors::of(3), 4096);
}

#[test]
fn decided_on_another_core() {
    run(&Mirrors::on_another_core(2), 4096);
}
