//! `keelson demo`: the whole path in one command, on one machine, without root.
//!
//! A file becomes the disk of a pool, a thin replica of it is exported over NVMe/TCP, our own initiator connects to it
//! like any host would, writes, reads back and checks, and the result is printed with the line that connects a Linux
//! host. Then it goes on serving until Ctrl-C.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aio::facade::Descriptor;
use aio::memory::DmaPool;
use aio::reactor::{CoreHandle, EngineChoice, ReactorConfig, allowed_cores, spawn_thread};
use aio::{BlockDevice, Core, CoreId, DeviceUri};
use anyhow::Context;
use clap::Args;
use nvmf::target::TargetConfig;
use rpc::output::{Units, parse_size};

use crate::desired::{Desired, Pool, Replica};
use crate::node::{VERSION, escape};
use crate::perf::stamp::Stamp;
use crate::perf::{Job, Pattern, Summary, Watch, run};
use crate::registry::{self, RemoteWishes};
use crate::serve::args::DEFAULT_NVMF_PORT;
use crate::serve::run::Signals;
use crate::serve::{Daemon, Setup};

/// Folder below the current one, when nothing else is said.
const DEFAULT_DIR: &str = "keelson-demo";

/// Block size of the disk.
const BLOCK_BYTES: u32 = 4096;

/// The pool's file in it.
const DISK: &str = "pool.img";

/// Name of the pool, and of the replica in it: the last part of its NQN.
const NAME: &str = "demo";

/// What the measured part uses of the replica.
const USED_BYTES: u64 = 64 << 20;

/// Flags of `demo`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The pool's disk is a sparse file, and the replica in it is thin: they take as much space as is written. They stay
when the demo ends, with what a host has written to them, and are used again by the next one. The measured part
writes to the first 64 MiB of the replica, but only as long as nothing but earlier demos has written there; otherwise
it only reads.

Port 8420 of 127.0.0.1 is where `keelson serve` listens as well; --port chooses another one.")]
pub struct DemoArgs {
    /// Port of the NVMe/TCP target on 127.0.0.1
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_NVMF_PORT)]
    port: u16,
    /// Folder of the pool's file [default: ./keelson-demo]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Size of the replica when it is made
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    size: u64,
    /// Seconds of measuring for each of the three runs
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    time: f64,
    /// End after measuring instead of serving on
    #[arg(long)]
    no_serve: bool,
}

/// Runs the demo. `Ok(false)` = it ran, and something was wrong with the data.
pub async fn main(args: &DemoArgs, out: &mut dyn Write) -> anyhow::Result<bool> {
    let mut signals = Signals::new()?;
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => std::env::current_dir()?.join(DEFAULT_DIR),
    };
    let time = Duration::try_from_secs_f64(args.time).context("--time is not a number of seconds")?;
    writeln!(out, "{VERSION}, a userspace NVMe storage engine\n")?;
    let disk = make_disk(&dir, args.size)?;
    let daemon = Daemon::start(setup(args.port, &disk, args.size)?).await?;
    if let Some(failure) = daemon.failures().first() {
        let failure = failure.clone();
        daemon.stop().await;
        anyhow::bail!("the demo's pool cannot be served: {failure}");
    }
    let mut demo = Demo { daemon, disk, time };
    demo.introduce(out)?;
    let result = tokio::select! {
        result = demo.measure(out) => result,
        () = signals.recv() => Ok(true),
    };
    let clean = match result {
        Ok(clean) => clean,
        Err(e) => {
            demo.daemon.stop().await;
            return Err(e);
        }
    };
    if !args.no_serve {
        demo.tell_how_to_connect(out)?;
        tokio::select! {
            () = signals.recv() => {}
            error = demo.daemon.lost() => return Err(error),
        }
        writeln!(out, "\nShutting down.")?;
    }
    demo.daemon.stop().await;
    Ok(clean)
}

/// Makes the pool's file unless it is there: with room for a replica of that size, for what the pool needs itself, and
/// for a snapshot or two. It is sparse, so that this costs nothing.
fn make_disk(dir: &Path, size_bytes: u64) -> anyhow::Result<PathBuf> {
    let size_bytes = size_bytes.saturating_mul(2).saturating_add(64 << 20);
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make the folder {} (--dir chooses another)", dir.display()))?;
    let dir = dir.canonicalize()?;
    let path = dir.join(DISK);
    let failed = || format!("cannot make the disk {} (--dir chooses another folder)", path.display());
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => file.set_len(size_bytes / 4096 * 4096).with_context(failed)?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e).with_context(failed),
    }
    Ok(path)
}

/// Whether every block that the measured part may write is empty or was stamped by a demo: then nobody's data is there.
/// Runs on a core.
async fn holds_only_stamps(device: Arc<dyn BlockDevice>) -> anyhow::Result<bool> {
    const CHUNK_BYTES: u32 = 128 << 10;
    let core = Core::current().expect("invariant: runs on a core");
    let disk = Descriptor::open(device).await?;
    let pool = DmaPool::new(core.memory(), CHUNK_BYTES, 1)?;
    let mut buffer = pool.alloc();
    let (mut offset_bytes, end) = (0, disk.len_bytes().min(USED_BYTES));
    while offset_bytes < end {
        let free = buffer.take().expect("invariant: each read gives the buffer back");
        let len_bytes = u64::from(CHUNK_BYTES).min(end - offset_bytes) as u32;
        let (result, filled) = disk.read_at(offset_bytes, len_bytes, free).await;
        result?;
        if !is_only_stamps(&filled[..len_bytes as usize], offset_bytes / u64::from(BLOCK_BYTES)) {
            return Ok(false);
        }
        buffer = Some(filled);
        offset_bytes += u64::from(len_bytes);
    }
    disk.close().await;
    Ok(true)
}

/// The same of whole blocks from `lba` on.
fn is_only_stamps(bytes: &[u8], lba: u64) -> bool {
    const ZEROES: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
    let blocks = bytes.chunks(BLOCK_BYTES as usize).zip(lba..);
    blocks.into_iter().all(|(block, lba)| *block == ZEROES[..block.len()] || Stamp::read(block, lba).is_ok())
}

fn setup(port: u16, disk: &Path, size_bytes: u64) -> anyhow::Result<Setup> {
    let path = disk.to_str().context("the folder's name is not UTF-8 (--dir chooses another)")?;
    let escaped = escape(path, &['%', '?', '#']);
    let replica = Replica {
        name: NAME.to_owned(),
        size_bytes: size_bytes / 4096 * 4096,
        thin: true,
        share: true,
        hosts: Default::default(),
    };
    let pool = Pool {
        name: NAME.to_owned(),
        disks: vec![format!("aio://{escaped}?blk_size={BLOCK_BYTES}")],
        replicas: vec![replica],
    };
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok(Setup {
        etcd: None,
        node_name: "demo".to_owned(),
        hostnqn: None,
        ana_feature: false,
        // Of no use to anybody here, and must not get in the way of a daemon that runs already.
        grpc: loopback(0),
        nvmf: loopback(port),
        nvmf_port_flag: "--port",
        metrics: None,
        cores: vec![cores()?.0],
        pin: true,
        spin_window: Duration::from_micros(50),
        engine: EngineChoice::Auto,
        target: TargetConfig::default(),
        state: None,
        ptpl: None,
        declared: Desired { pools: vec![pool], ..Desired::default() },
    })
}

/// Target and initiator on different cores, where there are two.
fn cores() -> io::Result<(CoreId, CoreId)> {
    let cores = allowed_cores()?;
    let first = cores.first().copied().unwrap_or_default();
    Ok((first, cores.last().copied().unwrap_or(first)))
}

struct Demo {
    daemon: Daemon,
    disk: PathBuf,
    time: Duration,
}

impl Demo {
    fn nqn(&self) -> String {
        rpc::nqn_from_name(NAME)
    }

    fn introduce(&self, out: &mut dyn Write) -> io::Result<()> {
        let addr = self.daemon.engine().node().nvmf;
        let size = self.daemon.engine().registry().find(NAME).map_or(0, |e| e.size_bytes());
        writeln!(out, "Pool      {NAME}, on {}", self.disk.display())?;
        writeln!(out, "Replica   {NAME}, {}, thin", Units::Binary.show(size))?;
        writeln!(out, "Exported  {}", self.nqn())?;
        writeln!(out, "On        {addr} (NVMe/TCP)\n")?;
        out.flush()
    }

    /// Connects like a host and measures. A disk that holds somebody's data is only read.
    async fn measure(&self, out: &mut dyn Write) -> anyhow::Result<bool> {
        let core = cores()?.1;
        let config = ReactorConfig { engine: EngineChoice::Auto, ..ReactorConfig::new(core) };
        let host = spawn_thread(config).with_context(|| format!("cannot start a reactor on core {core}"))?;
        let result = self.measure_on(&host, out).await;
        host.stop();
        host.join();
        result
    }

    async fn measure_on(&self, host: &CoreHandle, out: &mut dyn Write) -> anyhow::Result<bool> {
        let text = self.daemon.engine().node().export_uri(&self.nqn());
        let uri: DeviceUri = text.parse()?;
        let device = registry::open(&uri, host, &RemoteWishes::default()).await?.device;
        writeln!(out, "Connected to it with our own initiator, over TCP. Now some I/O, 4 KiB each:")?;
        let mut runs = vec![("random reads, 32 at a time", Pattern::RandRead, 32, false)];
        let is_ours = {
            let device = device.clone();
            host.call(move || async { holds_only_stamps(device).await }).await??
        };
        if is_ours {
            runs = vec![
                (
                    "random writes, 32 at a time, each block stamped, all read back and checked",
                    Pattern::RandWrite,
                    32,
                    true,
                ),
                ("random reads and writes, 32 at a time, every read checked", Pattern::RandRw, 32, true),
                ("random reads, one at a time", Pattern::RandRead, 1, false),
            ];
        }
        let mut clean = true;
        for (what, pattern, depth, verify) in runs {
            writeln!(out, "\n{what}:")?;
            out.flush()?;
            let job = Job {
                pattern,
                read_percent: 50,
                io_bytes: 4096,
                depth,
                queues: 1,
                time: self.time,
                size_bytes: Some(USED_BYTES),
                verify,
                seed: 1,
            };
            let devices: [Arc<dyn BlockDevice>; 1] = [device.clone()];
            let report = run::run(&devices, std::slice::from_ref(host), &job, &Watch::default()).await?;
            let summary = Summary::new(vec![text.clone()], &job, &report);
            clean &= summary.is_clean();
            summary.write(out, false)?;
        }
        device.remove();
        if !is_ours {
            let disk = self.disk.display();
            writeln!(
                out,
                "\nSomebody's data is in the replica, so nothing was written to it; remove {disk} for a new one."
            )?;
        }
        Ok(clean)
    }

    fn tell_how_to_connect(&self, out: &mut dyn Write) -> io::Result<()> {
        let addr = self.daemon.engine().node().nvmf;
        let (ip, port, nqn) = (addr.ip(), addr.port(), self.nqn());
        writeln!(
            out,
            "\nUse it as a disk of this machine (as root, with nvme-cli):\n\n  \
             modprobe nvme-tcp\n  nvme connect -t tcp -a {ip} -s {port} -n {nqn}\n  \
             nvme list\n  mkfs.ext4 /dev/nvme0n1      # the name that `nvme list` shows\n  \
             nvme disconnect -n {nqn}\n\nServing until Ctrl-C."
        )?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebodys_data_is_recognised() {
        let mut bytes = vec![0; 3 << 20];
        assert!(is_only_stamps(&bytes, 0), "new");
        let stamp = Stamp { lba: 5, version: 1, writer: 2 };
        stamp.write(&mut bytes[5 * 4096..6 * 4096]);
        assert!(is_only_stamps(&bytes, 0), "written by a demo");
        assert!(!is_only_stamps(&bytes, 1), "a stamp of elsewhere");
        bytes[700 * 4096 + 9] = 1;
        assert!(!is_only_stamps(&bytes, 0));
    }

    #[test]
    fn an_old_pool_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = make_disk(dir.path(), 3 << 20).unwrap();
        std::fs::write(&disk, b"x").unwrap();
        assert_eq!(make_disk(dir.path(), 1 << 20).unwrap(), disk);
        assert_eq!(std::fs::read(&disk).unwrap(), b"x");
    }

    #[test]
    fn odd_folders_become_sound_uris() {
        let setup = setup(0, Path::new("/tmp/a b%?#/pool.img"), 1 << 30).unwrap();
        let uri: DeviceUri = setup.declared.pools[0].disks[0].parse().unwrap();
        assert_eq!(uri.name(), "/tmp/a b%?#/pool.img");
    }
}
