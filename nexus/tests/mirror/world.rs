//! A nexus, its disks, and the record of its members.

use std::sync::{Arc, Mutex};

use aio::devices::sim::{Latency, SimConfig, SimDisk};
use aio::facade::IoError;
use aio::{BlockDevice, Descriptor, DmaBuf, IoStatus, Lba};
use nexus::layout::DATA_OFFSET_BYTES;
use nexus::membership::{Loading, Saving};
use nexus::{
    ChildInfo, ChildSpec, ChildState, CreateNexus, MembershipStore, Nexus, NexusError, NexusState, Record,
    StoreError,
};
use uuid::Uuid;

use crate::replica::Replica;
use crate::rig::{Rig, on};

pub(crate) const BLOCK: u64 = 4096;
/// Blocks of the nexus that tests use.
pub(crate) const BLOCKS: u64 = 1024;
/// Blocks of a wide one: twelve regions of the account.
pub(crate) const WIDE_BLOCKS: u64 = 12 * 1024;

/// A record whose saving takes as long as a test wants, or fails.
#[derive(Default)]
pub(crate) struct Slow(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    saved: Vec<Record>,
    notes: Option<String>,
    held: bool,
    broken: bool,
    /// Savings that have begun, whether or not they ended.
    begun: usize,
}

impl Slow {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }

    /// What is left of it when everybody who uses it dies.
    fn left(&self) -> Self {
        let (saved, notes) = self.with(|s| (s.saved.clone(), s.notes.clone()));
        Self(Mutex::new(Inner { saved, notes, ..Inner::default() }))
    }

    /// Savings wait from now on, or go on.
    pub(crate) fn hold(&self, held: bool) {
        self.with(|s| s.held = held);
    }

    pub(crate) fn break_down(&self) {
        self.with(|s| s.broken = true);
    }

    pub(crate) fn begun(&self) -> usize {
        self.with(|s| s.begun)
    }

    /// Whether each of the members is healthy, as last recorded.
    pub(crate) fn healthy(&self) -> Vec<bool> {
        self.with(|s| s.saved.last().unwrap().children.iter().map(|c| c.healthy).collect())
    }

    pub(crate) fn last(&self) -> Record {
        self.with(|s| s.saved.last().unwrap().clone())
    }
}

pub(crate) struct Handle(pub(crate) Arc<Slow>);

impl MembershipStore for Handle {
    fn load(&self) -> Loading<Record> {
        let last = self.0.with(|s| s.saved.last().cloned());
        Box::pin(std::future::ready(Ok(last)))
    }

    fn load_notes(&self) -> Loading<String> {
        let notes = self.0.with(|s| s.notes.clone());
        Box::pin(std::future::ready(Ok(notes)))
    }

    fn save_notes(&self, notes: &str) -> Saving {
        self.0.with(|s| s.notes = Some(notes.to_owned()));
        Box::pin(std::future::ready(Ok(())))
    }

    fn save(&self, record: &Record) -> Saving {
        let (slow, record) = (self.0.clone(), record.clone());
        slow.with(|s| s.begun += 1);
        Box::pin(std::future::poll_fn(move |cx| {
            slow.with(|s| {
                if s.broken {
                    return std::task::Poll::Ready(Err(StoreError("the store is down".into())));
                }
                if s.held {
                    cx.waker().wake_by_ref();
                    return std::task::Poll::Pending;
                }
                s.saved.push(record.clone());
                std::task::Poll::Ready(Ok(()))
            })
        }))
    }
}

pub(crate) struct World {
    pub(crate) rig: Rig,
    pub(crate) disks: Vec<SimDisk>,
    /// On the disks, if they are replicas.
    pub(crate) replicas: Vec<Replica>,
    pub(crate) devices: Vec<Arc<dyn BlockDevice>>,
    pub(crate) nexus: Nexus,
    pub(crate) store: Arc<Slow>,
    pub(crate) host: Descriptor,
    blocks: u64,
}

/// Makes a nexus, and a host of it.
fn open(
    rig: &Rig,
    devices: &[Arc<dyn BlockDevice>],
    members: &[usize],
    store: &Arc<Slow>,
    uuid: u128,
    blocks: u64,
) -> (Result<Nexus, NexusError>, Option<Descriptor>) {
    let wish = CreateNexus {
        name: "m".into(),
        uuid: Uuid::from_u128(uuid),
        device_uuid: Uuid::from_u128(2),
        size_bytes: (blocks + 1) * BLOCK,
        offers: aio::Capabilities::all(),
        children: members.iter().map(|&n| spec(n, &devices[n])).collect(),
        reservation: None,
    };
    let nexus = rig.run(Nexus::create(rig.home(), wish, Arc::new(Handle(store.clone()))));
    let host = nexus.as_ref().ok().map(|nexus| {
        let device: Arc<dyn BlockDevice> = Arc::new(nexus.clone());
        rig.run(Descriptor::open(device)).unwrap()
    });
    (nexus, host)
}

pub(crate) fn uri(n: usize) -> String {
    format!("sim:///d{n}")
}

impl World {
    /// A nexus of `children` disks, and as many more disks without any use.
    pub(crate) fn new(children: usize, more: usize, seed: u64) -> Self {
        let rig = Rig::new();
        let disks: Vec<SimDisk> = (0..children + more)
            .map(|n| rig.disk(&format!("d{n}"), BLOCK as u32, 16, true, seed + n as u64))
            .collect();
        let devices: Vec<_> = disks.iter().map(on).collect();
        Self::over(rig, disks, devices, Vec::new(), children, seed, BLOCKS)
    }

    /// The same, with room for several regions of the account, on disks that are slow at times.
    pub(crate) fn wide(children: usize, more: usize, seed: u64) -> Self {
        let rig = Rig::new();
        let disk = |n: usize| {
            let config = SimConfig::new(BLOCK as u32, (64 << 20) / BLOCK, seed + n as u64);
            let latency = Latency { slow_one_in: 6, slow_ns: 1_000_000, ..config.latency };
            rig.disk_as(SimConfig { name: format!("d{n}"), latency, ..config })
        };
        let disks: Vec<SimDisk> = (0..children + more).map(disk).collect();
        let devices: Vec<_> = disks.iter().map(on).collect();
        Self::over(rig, disks, devices, Vec::new(), children, seed, WIDE_BLOCKS)
    }

    /// The same of replicas, on disks that are slow at times.
    pub(crate) fn of_replicas(children: usize, more: usize, seed: u64) -> Self {
        let rig = Rig::new();
        let disk = |n: usize| {
            let config = SimConfig::new(BLOCK as u32, (16 << 20) / BLOCK, seed + n as u64);
            let latency = Latency { slow_one_in: 6, slow_ns: 2_000_000, ..config.latency };
            rig.disk_as(SimConfig { name: format!("d{n}"), latency, ..config })
        };
        let disks: Vec<SimDisk> = (0..children + more).map(disk).collect();
        let replicas: Vec<Replica> =
            disks.iter().enumerate().map(|(n, disk)| Replica::new(disk, seed << 4 | n as u64)).collect();
        let devices: Vec<_> = replicas.iter().map(Replica::power_on).collect();
        Self::over(rig, disks, devices, replicas, children, seed, BLOCKS)
    }

    fn over(
        rig: Rig,
        disks: Vec<SimDisk>,
        devices: Vec<Arc<dyn BlockDevice>>,
        replicas: Vec<Replica>,
        children: usize,
        seed: u64,
        blocks: u64,
    ) -> Self {
        let store = Arc::new(Slow::default());
        let members: Vec<usize> = (0..children).collect();
        let (nexus, host) = open(&rig, &devices, &members, &store, u128::from(seed) << 8 | 1, blocks);
        let nexus = nexus.unwrap();
        let host = host.unwrap();
        assert_eq!(nexus.size().0, blocks);
        Self { rig, disks, replicas, devices, nexus, store, host, blocks }
    }

    /// The process of the nexus is killed, and another one begins, with these children: another nexus, as control planes make
    /// them, with what was recorded. Whatever the first one does from now on is nobody's.
    pub(crate) fn crash_and_reopen(&mut self, members: &[usize], uuid: u128) -> Result<(), NexusError> {
        let store = Arc::new(self.store.left());
        self.store.hold(true);
        let (nexus, host) = open(&self.rig, &self.devices, members, &store, uuid, self.blocks);
        self.nexus = nexus?;
        self.store = store;
        self.host = host.expect("a nexus has a host");
        Ok(())
    }

    pub(crate) fn buf(&self, fill: u8) -> DmaBuf {
        let mut buf = self.rig.core().pools().unwrap().alloc(BLOCK as u32).unwrap();
        buf[..BLOCK as usize].fill(fill);
        buf
    }

    pub(crate) async fn write_async(&self, block: u64, fill: u8) -> Result<(), IoError> {
        let buf = self.buf(fill);
        self.host.write_at(block * BLOCK, BLOCK as u32, buf).await.0
    }

    pub(crate) fn write(&self, block: u64, fill: u8) -> Result<(), IoError> {
        self.rig.run(self.write_async(block, fill))
    }

    /// The byte of which the whole block consists.
    pub(crate) fn read(&self, block: u64) -> Result<u8, IoError> {
        let (result, buf) = self.rig.run(self.host.read_at(block * BLOCK, BLOCK as u32, self.buf(0xee)));
        result?;
        let bytes = &buf[..BLOCK as usize];
        assert!(bytes.iter().all(|b| *b == bytes[0]), "a mixture");
        Ok(bytes[0])
    }

    /// The first byte of a block of the nexus on a disk, and whether all are equal to it.
    pub(crate) fn on_disk(&self, disk: usize, block: u64) -> u8 {
        let bytes = self.disks[disk].block(Lba(DATA_OFFSET_BYTES / BLOCK + block));
        assert!(bytes.iter().all(|b| *b == bytes[0]), "a mixture");
        bytes[0]
    }

    /// Whether two disks hold the same data.
    pub(crate) fn equal(&self, a: usize, b: usize) -> bool {
        (0..self.blocks).all(|block| {
            let at = Lba(DATA_OFFSET_BYTES / BLOCK + block);
            self.disks[a].block(at) == self.disks[b].block(at)
        })
    }

    pub(crate) fn info(&self) -> (NexusState, Vec<ChildInfo>) {
        let (state, _, children) = self.rig.run(self.nexus.info()).unwrap();
        (state, children)
    }

    pub(crate) fn states(&self) -> Vec<ChildState> {
        self.info().1.iter().map(|c| c.state).collect()
    }

    /// Turns until the child is in sync.
    pub(crate) fn wait_in_sync(&self, child: usize) {
        let find = || self.info().1.into_iter().find(|c| c.uri == uri(child)).unwrap().state;
        for _ in 0..100_000 {
            match find() {
                ChildState::Online => return,
                ChildState::OutOfSync => self.rig.turn(),
                other => panic!("the child is {other}"),
            }
        }
        panic!("the rebuild does not end");
    }
}

pub(crate) fn spec(n: usize, device: &Arc<dyn BlockDevice>) -> ChildSpec {
    ChildSpec { uri: uri(n), device: device.clone(), uuid: device.uuid() }
}

pub(crate) fn status(result: Result<(), IoError>) -> IoStatus {
    match result {
        Ok(()) => IoStatus::SUCCESS,
        Err(IoError::Status(status)) => status,
        Err(other) => panic!("{other}"),
    }
}
