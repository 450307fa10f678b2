//! The command line of `keelson perf`.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use aio::BlockDevice;
use aio::reactor::{CoreHandle, ReactorConfig, allowed_cores, spawn_thread};
use anyhow::{Context, bail};
use clap::Args;
use rpc::cli::{GlobalArgs, PerfCommand};
use rpc::output::{Format, parse_size, write_json};

use super::{Job, Pattern, Summary, Watch, run};
use crate::registry::{self, RemoteWishes};
use crate::serve::args::CoreSet;

/// How often the progress line changes.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Flags of `perf`.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
pub struct PerfArgs {
    /// Asks a running daemon instead.
    #[command(subcommand)]
    pub daemon: Option<PerfCommand>,

    /// Devices to work on, as `bdev create` takes them; several are worked on at the same time
    #[arg(required = true, value_name = "URI")]
    uris: Vec<String>,
    /// What to do
    #[arg(long, alias = "pattern", value_enum, default_value_t = Pattern::RandRead)]
    rw: Pattern,
    /// Percentage of reads in randrw and rw
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    rwmixread: u8,
    /// Size of one I/O
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = parse_io_size)]
    bs: u32,
    /// I/Os in flight on each queue
    #[arg(long, alias = "depth", value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65536))]
    qd: u32,
    /// Queues of each device (connections, for a remote one), spread over the cores
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    queues: u32,
    /// How long, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    time: f64,
    /// Use only this much of each device, from its start
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Stamp every block that is written, check every block that is read, read all back at the end
    #[arg(long)]
    verify: bool,
    /// The same seed makes the same accesses
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Cores to run on, such as 1,2-4 [default: the last that this process may use; a local daemon takes the first]
    #[arg(short = 'l', long, value_name = "CORES", value_parser = crate::serve::args::parse_cores)]
    cores: Option<CoreSet>,
    /// Leave huge pages alone
    #[arg(long)]
    no_huge_pages: bool,
}

const AFTER_HELP: &str = "\
Examples:
  keelson perf 'malloc:///m?size_mb=256' --rw randread --qd 128
  keelson perf nvmf+tcp://10.0.0.2:8420/nqn.2019-05.io.openebs:disk0 --rw randrw --rwmixread 70 --queues 4
  keelson perf aio:///var/tmp/disk.img --rw randwrite --verify --time 60      DESTROYS what is on it

Patterns that write destroy the contents of the devices. CPU per I/O is that of this process: the initiator's
side of a remote device.";

fn parse_io_size(text: &str) -> Result<u32, String> {
    match parse_size(text)? {
        0 => Err("an I/O has at least one block".to_owned()),
        bytes => u32::try_from(bytes).map_err(|_| "larger than 4 GiB".to_owned()),
    }
}

impl PerfArgs {
    fn job(&self) -> anyhow::Result<Job> {
        let Ok(time) = Duration::try_from_secs_f64(self.time) else {
            bail!("--time {} is not a number of seconds", self.time);
        };
        Ok(Job {
            pattern: self.rw,
            read_percent: self.rwmixread,
            io_bytes: self.bs,
            depth: self.qd,
            queues: self.queues,
            time,
            size_bytes: self.size,
            verify: self.verify,
            seed: self.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0),
        })
    }
}

/// Runs `perf`. `Ok(false)` = it ran, and something failed or was damaged.
pub async fn main(globals: &GlobalArgs, args: &PerfArgs, out: &mut dyn Write) -> anyhow::Result<bool> {
    let job = args.job()?;
    if args.no_huge_pages {
        aio::memory::Memory::init_process(aio::memory::MemoryConfig { huge_pages: false })?;
    }
    let cores = start_cores(args.cores.as_ref())?;
    let queue_depth = u16::try_from(job.depth).unwrap_or(u16::MAX);
    let wishes = RemoteWishes { hostnqn: None, queue_depth: Some(queue_depth) };
    let mut devices = Vec::new();
    for text in &args.uris {
        let uri: aio::DeviceUri = text.parse()?;
        devices.push(registry::open(&uri, &cores[0], &wishes).await?.device);
    }
    let summary = watch_run(globals, &devices, &cores, &job).await?;
    let clean = summary.is_clean();
    match globals.output {
        Format::Json => write_json(out, &summary, std::io::stdout().is_terminal())?,
        Format::Default => summary.write(out, globals.quiet)?,
    }
    // Devices go first: remote ones say goodbye through their core.
    for device in devices {
        device.remove();
    }
    for core in &cores {
        core.stop();
        core.join();
    }
    Ok(clean)
}

fn start_cores(set: Option<&CoreSet>) -> anyhow::Result<Vec<CoreHandle>> {
    let chosen = match set {
        Some(CoreSet(cores)) => cores.clone(),
        None => vec![allowed_cores()?.last().copied().unwrap_or_default()],
    };
    let start = |core| {
        spawn_thread(ReactorConfig::new(core))
            .with_context(|| format!("cannot start a reactor on core {core}"))
    };
    chosen.into_iter().map(start).collect()
}

/// Runs the job, with a progress line on a terminal; Ctrl-C ends it early, with its result.
async fn watch_run(
    globals: &GlobalArgs,
    devices: &[Arc<dyn BlockDevice>],
    cores: &[CoreHandle],
    job: &Job,
) -> anyhow::Result<Summary> {
    let watch = Watch::default();
    let show = !globals.quiet && globals.output == Format::Default && std::io::stderr().is_terminal();
    let mut running = std::pin::pin!(run::run(devices, cores, job, &watch));
    let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
    let mut last = (std::time::Instant::now(), watch.sum());
    let report = loop {
        tokio::select! {
            result = &mut running => break result?,
            _ = tokio::signal::ctrl_c() => watch.stop(),
            _ = tick.tick(), if show => {
                let now = (std::time::Instant::now(), watch.sum());
                show_line(&progress_line(last, now));
                last = now;
            }
        }
    };
    if show {
        show_line("");
    }
    let names = devices.iter().map(|d| d.name().to_owned()).collect();
    Ok(Summary::new(names, job, &report))
}

/// Replaces the last line of the terminal. `eprint!` would panic when it has gone away.
fn show_line(text: &str) {
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "\r{text}\x1b[K").and_then(|()| stderr.flush());
}

type Sample = (std::time::Instant, (u64, u64, u64));

fn progress_line(before: Sample, now: Sample) -> String {
    let seconds = now.0.duration_since(before.0).as_secs_f64().max(1e-3);
    let ((ios, bytes, _), (ios_now, bytes_now, errors)) = (before.1, now.1);
    let iops = ios_now.saturating_sub(ios) as f64 / seconds;
    let mb = bytes_now.saturating_sub(bytes) as f64 / 1e6 / seconds;
    let mut line = format!("{ios_now} I/Os, {iops:.0} IOPS, {mb:.1} MB/s");
    if errors > 0 {
        line.push_str(&format!(", {errors} errors"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: PerfArgs,
    }

    fn parse(args: &[&str]) -> Result<PerfArgs, clap::Error> {
        Cli::try_parse_from(["perf"].iter().chain(args)).map(|c| c.args)
    }

    #[test]
    fn flags_become_a_job() {
        let job = parse(&["null:///a", "--rw", "randrw", "--rwmixread", "70", "--bs", "128KiB", "--qd", "8"]);
        let job = job.unwrap().job().unwrap();
        assert_eq!(
            (job.pattern, job.read_percent, job.io_bytes, job.depth),
            (Pattern::RandRw, 70, 131_072, 8)
        );
        let job = parse(&["null:///a", "--pattern", "write", "--depth", "16", "--size", "1GiB"]).unwrap();
        let job = job.job().unwrap();
        assert_eq!((job.pattern, job.depth, job.size_bytes), (Pattern::Write, 16, Some(1 << 30)));
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            &[][..],
            &["null:///a", "--bs", "0"],
            &["null:///a", "--bs", "8GiB"],
            &["null:///a", "--qd", "0"],
            &["null:///a", "--rw", "sideways"],
            &["null:///a", "--rwmixread", "101"],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
        assert!(
            parse(&["null:///a", "--time", "-1"]).is_err()
                || parse(&["null:///a", "--time=-1"]).unwrap().job().is_err()
        );
    }

    #[test]
    fn asking_the_daemon_is_a_subcommand() {
        assert!(parse(&["resource"]).unwrap().daemon.is_some());
    }
}
