//! A host that writes all the time, reads back what it wrote, and knows what has to be there.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aio::facade::Descriptor;
use aio::reactor::{Core, CoreHandle, spawn_thread};
use aio::{BlockDevice, CoreId, ReactorConfig};
use nvme::Nqn;
use nvmf::initiator::{NvmfDevice, Options};

use crate::space::Space;
use crate::wait;

/// Workers of one host, each with a region of its own.
pub(crate) const WORKERS: u64 = 8;
/// Length of a region, which is written as a whole: in several commands' worth of R2Ts or in a capsule.
const LENGTHS: [u32; 2] = [4096, 131_072];
/// The unit that is old or new after an error.
const BLOCK: usize = 512;

/// What one worker knows about its region: the number of the last write that succeeded, and of the last that began.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Known {
    written: u64,
    begun: u64,
}

/// A thread with a reactor in a namespace, and a record over all its connections.
pub(crate) struct Host {
    core: CoreHandle,
    salt: u64,
    known: Arc<Mutex<[Known; WORKERS as usize]>>,
    /// Rounds of write and read that came to a good end.
    pub(crate) rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Host {
    pub(crate) fn new(space: &Space, number: u32) -> Self {
        let config = ReactorConfig { pin: false, ..ReactorConfig::new(CoreId(number)) };
        let core = space.enter(|| spawn_thread(config)).expect("a core");
        Self {
            core,
            salt: u64::from(number) << 32,
            known: Arc::default(),
            rounds: Arc::default(),
            stop: Arc::default(),
        }
    }

    /// A connection that gives up soon, with a Keep Alive Timeout of two seconds.
    pub(crate) fn connect(&self, addr: SocketAddr, nqn: &str) -> Result<Arc<dyn BlockDevice>, String> {
        let mut options = Options::new(addr, Nqn::parse(nqn).expect("an NQN"));
        options.kato_ms = 2000;
        options.io_timeout = Duration::from_secs(3);
        options.admin_timeout = Duration::from_secs(2);
        let connecting = self.core.call(move || NvmfDevice::connect(options));
        let device = wait(connecting).expect("the core lives").map_err(|e| e.to_string())?;
        Ok(device)
    }

    /// Checks what is on the device, then has all workers write and verify until [`Self::stop`] or an error. The
    /// receiver gets one word of each worker.
    pub(crate) fn load(&self, device: &Arc<dyn BlockDevice>) -> Receiver<Result<(), String>> {
        self.stop.store(false, Ordering::Relaxed);
        let (tell, told) = sync_channel(WORKERS as usize);
        for worker in 0..WORKERS {
            let (device, known, rounds) = (device.clone(), self.known.clone(), self.rounds.clone());
            let (stop, tell, salt) = (self.stop.clone(), tell.clone(), self.salt);
            let job = move || {
                let core = Core::current().expect("jobs run on their core");
                let work = async move {
                    let end = work(device, salt, worker, &known, &rounds, &stop).await;
                    // Whoever does not listen any more has seen enough.
                    let _ = tell.send(end);
                };
                drop(core.spawn(work));
            };
            self.core.post(job).expect("the mailbox has room");
        }
        told
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.core.stop();
        self.core.join();
    }
}

/// The bytes of write `number` of a worker.
fn fill(bytes: &mut [u8], stamp: u64) {
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at as u64;
        word.copy_from_slice(&value.to_le_bytes());
    }
}

async fn work(
    device: Arc<dyn BlockDevice>,
    salt: u64,
    worker: u64,
    known: &Mutex<[Known; WORKERS as usize]>,
    rounds: &AtomicU64,
    stop: &AtomicBool,
) -> Result<(), String> {
    let problem = |what: &str, e: &dyn std::fmt::Display| format!("worker {worker}: {what}: {e}");
    let len_bytes = LENGTHS[worker as usize % LENGTHS.len()];
    let offset_bytes = worker * 131_072;
    let core = Core::current().expect("workers run on their core");
    let pools = core.pools().map_err(|e| problem("memory", &e))?;
    let mut buf = pools.alloc(len_bytes).ok_or("no buffer")?;
    let mut want = vec![0; len_bytes as usize];
    let descriptor = Descriptor::open(device).await.map_err(|e| problem("open", &e))?;
    let lookup = || known.lock().expect("no panic while held")[worker as usize];
    let stamp = |number: u64| salt | worker << 56 | number;
    loop {
        // What was written is there, whole; a write without an answer may be there, block by block.
        let Known { written, begun } = lookup();
        let (result, back) = descriptor.read_at(offset_bytes, len_bytes, buf).await;
        buf = back;
        result.map_err(|e| problem("read", &e))?;
        let mut new = vec![0; len_bytes as usize];
        if written > 0 {
            fill(&mut want, stamp(written));
        }
        fill(&mut new, stamp(begun));
        for (at, block) in buf[..len_bytes as usize].chunks(BLOCK).enumerate() {
            let range = at * BLOCK..(at + 1) * BLOCK;
            if block != &want[range.clone()] && (begun == written || block != &new[range]) {
                panic!("worker {worker}: block {at} is neither of write {written} nor of write {begun}");
            }
        }
        rounds.fetch_add(1, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            descriptor.close().await;
            return Ok(());
        }
        let number = begun + 1;
        known.lock().expect("no panic while held")[worker as usize].begun = number;
        fill(&mut buf[..len_bytes as usize], stamp(number));
        let (result, back) = descriptor.write_at(offset_bytes, len_bytes, buf).await;
        buf = back;
        result.map_err(|e| problem("write", &e))?;
        known.lock().expect("no panic while held")[worker as usize].written = number;
    }
}
