//! `keelson demo`: the whole path in one command, on one machine, without root.
//!
//! A file becomes a disk, the disk is exported over NVMe/TCP, our own initiator connects to it like any host
//! would, writes, reads back and checks, and the result is printed with the line that connects a Linux host. Then
//! it goes on serving until Ctrl-C.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
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

/// The disk's file in it.
const DISK: &str = "disk.img";

/// Flags of `demo`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The disk is a sparse file: it takes as much space as is written. It stays when the demo ends, with what a host
has written to it, and is used again by the next one. The measured part writes to its first 64 MiB, but only as
long as nothing but earlier demos has written to the disk; otherwise it only reads.

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
    let disk = make_disk(&dir, args.size)?;
    let is_ours = {
        let disk = disk.clone();
        tokio::task::spawn_blocking(move || holds_only_stamps(&disk)).await??
    };
    let daemon = Daemon::start(setup(args.port, &disk)?).await?;
    if let Some(failure) = daemon.failures().first() {
        let failure = failure.clone();
        daemon.stop().await;
        anyhow::bail!("the demo's disk cannot be served: {failure}");
    }
    let mut demo = Demo { daemon, disk, is_ours, time };
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

/// Makes the disk's file unless it is there.
fn make_disk(dir: &Path, size_bytes: u64) -> anyhow::Result<PathBuf> {
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

/// Whether every block of the disk is empty or was stamped by a demo: then nobody's data is on it. A disk that is
/// too large to look through counts as somebody's.
fn holds_only_stamps(disk: &Path) -> anyhow::Result<bool> {
    const LARGEST_BYTES: u64 = 8 << 30;
    const ZEROES: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
    let failed = || format!("cannot read the disk {}", disk.display());
    let mut file = std::fs::File::open(disk).with_context(failed)?;
    if file.metadata()?.len() > LARGEST_BYTES {
        return Ok(false);
    }
    let mut chunk = vec![0; 1 << 20];
    let mut lba = 0;
    loop {
        let len = file.read(&mut chunk).with_context(failed)?;
        // A file's length is a multiple of the block; reads of regular files are cut at its end only.
        for block in chunk[..len].chunks(BLOCK_BYTES as usize) {
            let empty = *block == ZEROES[..block.len()];
            if !empty && Stamp::read(block, lba).is_err() {
                return Ok(false);
            }
            lba += 1;
        }
        if len == 0 {
            return Ok(true);
        }
    }
}

/// The name of a device is its path, which makes an ugly NQN; a subsystem gives it a nice one.
const SUBSYSTEM: &str = "demo";

fn setup(port: u16, disk: &Path) -> anyhow::Result<Setup> {
    let path = disk.to_str().context("the folder's name is not UTF-8 (--dir chooses another)")?;
    let escaped = escape(path, &['%', '?', '#']);
    let mut subsystem = share(path, Default::default());
    subsystem.nqn = rpc::nqn_from_name(SUBSYSTEM);
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok(Setup {
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
        declared: Desired {
            devices: vec![Device { uri: format!("aio://{escaped}?blk_size={BLOCK_BYTES}") }],
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
    is_ours: bool,
    time: Duration,
}

impl Demo {
    fn nqn(&self) -> String {
        rpc::nqn_from_name(SUBSYSTEM)
    }

    fn introduce(&self, out: &mut dyn Write) -> io::Result<()> {
        let addr = self.daemon.engine().node().nvmf;
        let size = self.daemon.engine().registry().list().first().map_or(0, |e| e.size_bytes());
        writeln!(out, "Disk      {} ({})", self.disk.display(), Units::Binary.show(size))?;
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
        if self.is_ours {
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
        if !self.is_ours {
            let disk = self.disk.display();
            writeln!(
                out,
                "\nSomebody's data is on the disk, so nothing was written to it; remove {disk} for a new one."
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
        let dir = tempfile::tempdir().unwrap();
        let disk = make_disk(dir.path(), 3 << 20).unwrap();
        assert!(holds_only_stamps(&disk).unwrap(), "new");
        let mut bytes = std::fs::read(&disk).unwrap();
        let stamp = Stamp { lba: 5, version: 1, writer: 2 };
        stamp.write(&mut bytes[5 * 4096..6 * 4096]);
        std::fs::write(&disk, &bytes).unwrap();
        assert_eq!(make_disk(dir.path(), 1 << 20).unwrap(), disk, "an old disk is used again");
        assert!(holds_only_stamps(&disk).unwrap(), "written by a demo");
        bytes[700 * 4096 + 9] = 1;
        std::fs::write(&disk, &bytes).unwrap();
        assert!(!holds_only_stamps(&disk).unwrap());
    }

    #[test]
    fn odd_folders_become_sound_uris() {
        let setup = setup(0, Path::new("/tmp/a b%?#/disk.img")).unwrap();
        let uri: DeviceUri = setup.declared.devices[0].uri.parse().unwrap();
        assert_eq!(uri.name(), "/tmp/a b%?#/disk.img");
        assert_eq!(setup.declared.subsystems[0].namespaces[0].device, uri.name());
    }
}
