//! `keelson demo`: the whole path in one command, on one machine, without root.
//!
//! A file becomes a disk, the disk is exported over NVMe/TCP, our own initiator connects to it like any host
//! would, writes, reads back and checks, and the result is printed with the line that connects a Linux host. Then
//! it goes on serving until Ctrl-C.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aio::reactor::{CoreHandle, EngineChoice, ReactorConfig, allowed_cores, spawn_thread};
use aio::{BlockDevice, CoreId, DeviceUri};
use anyhow::Context;
use clap::Args;
use nvmf::target::TargetConfig;
use rpc::output::{Units, parse_size};

use crate::desired::{Desired, Device};
use crate::exports::share;
use crate::node::VERSION;
use crate::perf::{Job, Pattern, Summary, Watch, run};
use crate::registry;
use crate::serve::args::DEFAULT_NVMF_PORT;
use crate::serve::run::Signals;
use crate::serve::{Daemon, Setup};

/// Folder below the current one, when nothing else is said.
const DEFAULT_DIR: &str = "keelson-demo";

/// The disk's file in it.
const DISK: &str = "disk.img";

/// Flags of `demo`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The disk is a sparse file: it takes as much space as is written. It stays when the demo ends, with what a host
has written to it, and is used again by the next one. The measured part rewrites its first 64 MiB only when the
file is new.

Port 8420 of 127.0.0.1 is where `keelson serve` listens as well; --port chooses another one.")]
pub struct DemoArgs {
    /// Port of the NVMe/TCP target on 127.0.0.1
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_NVMF_PORT)]
    port: u16,
    /// Folder of the disk [default: ./keelson-demo]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Size of the disk when it is made
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
    let (disk, is_new) = make_disk(&dir, args.size)?;
    let daemon = Daemon::start(setup(args.port, &disk)?).await?;
    if let Some(failure) = daemon.failures().first() {
        let failure = failure.clone();
        daemon.stop().await;
        anyhow::bail!("the demo's disk cannot be served: {failure}");
    }
    let demo = Demo { daemon, disk, is_new, time };
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
        signals.recv().await;
        writeln!(out, "\nShutting down.")?;
    }
    demo.daemon.stop().await;
    Ok(clean)
}

/// Makes the disk's file unless it is there; tells whether it is new.
fn make_disk(dir: &Path, size_bytes: u64) -> anyhow::Result<(PathBuf, bool)> {
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make the folder {} (--dir chooses another)", dir.display()))?;
    let dir = dir.canonicalize()?;
    let path = dir.join(DISK);
    let failed = || format!("cannot make the disk {} (--dir chooses another folder)", path.display());
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => {
            file.set_len(size_bytes / 4096 * 4096).with_context(failed)?;
            Ok((path, true))
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok((path, false)),
        Err(e) => Err(e).with_context(failed),
    }
}

/// The name of a device is its path, which makes an ugly NQN; a subsystem gives it a nice one.
const SUBSYSTEM: &str = "demo";

fn setup(port: u16, disk: &Path) -> anyhow::Result<Setup> {
    let path = disk.to_str().context("the folder's name is not UTF-8 (--dir chooses another)")?;
    // What a URI would take for its own punctuation.
    let escaped: String = path
        .chars()
        .map(|c| match c {
            '%' | '?' | '#' => format!("%{:02X}", u32::from(c)),
            c => c.to_string(),
        })
        .collect();
    let mut subsystem = share(path, Default::default());
    subsystem.nqn = rpc::nqn_from_name(SUBSYSTEM);
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok(Setup {
        node_name: "demo".to_owned(),
        hostnqn: None,
        // Of no use to anybody here, and must not get in the way of a daemon that runs already.
        grpc: loopback(0),
        nvmf: loopback(port),
        metrics: None,
        cores: vec![cores()?.0],
        pin: true,
        spin_window: Duration::from_micros(50),
        engine: EngineChoice::Auto,
        target: TargetConfig::default(),
        state: None,
        declared: Desired {
            devices: vec![Device { uri: format!("aio://{escaped}?blk_size=4096") }],
            subsystems: vec![subsystem],
        },
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
    is_new: bool,
    time: Duration,
}

impl Demo {
    fn nqn(&self) -> String {
        rpc::nqn_from_name(SUBSYSTEM)
    }

    fn introduce(&self, out: &mut dyn Write) -> io::Result<()> {
        let addr = self.daemon.engine().node().nvmf;
        let size = self.daemon.engine().registry().list().first().map_or(0, |e| e.size_bytes());
        let state = if self.is_new { "new" } else { "from an earlier demo" };
        writeln!(out, "Disk      {} ({}, {state})", self.disk.display(), Units::Binary.show(size))?;
        writeln!(out, "Exported  {}", self.nqn())?;
        writeln!(out, "On        {addr} (NVMe/TCP)\n")?;
        out.flush()
    }

    /// Connects like a host and measures. The disk of an earlier demo may hold somebody's file system: it is
    /// only read.
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
        let device = registry::open(&uri, host, None).await?.device;
        writeln!(out, "Connected to it with our own initiator, over TCP. Now some I/O, 4 KiB each:")?;
        let mut runs = vec![("random reads, 32 at a time", Pattern::RandRead, 32, false)];
        if self.is_new {
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
                size_bytes: Some(64 << 20),
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
        if !self.is_new {
            writeln!(
                out,
                "\nThe disk is from an earlier demo, so nothing was written to it; remove {} for a new one.",
                self.disk.display()
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
