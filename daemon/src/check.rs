//! `keelson pool check`: looks at the disks of a pool that is not open, without a daemon.
//!
//! It ends with status 0 when nothing is wrong, 1 when something is, 2 when it could not look.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aio::device::DeviceError;
use aio::reactor::{CoreHandle, ReactorConfig, allowed_cores, spawn_thread};
use aio::{BlockDevice, DeviceUri};
use anyhow::{Context, bail};
use clap::Args;
use lvs::info::{CheckProgress, CheckReport, CheckWish};
use rpc::cli::GlobalArgs;
use rpc::output::{Format, Units, write_json};
use serde::Serialize;

use crate::error::EngineError;
use crate::pools::lifecycle::disk_uri;
use crate::registry::{self, RemoteWishes};

/// How often the progress line changes.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Flags of `pool check`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct CheckArgs {
    /// Paths or device URIs: all disks of the pool
    #[arg(required = true, value_name = "DISK")]
    disks: Vec<String>,
    /// Read every block of data and compare its checksum, too
    #[arg(long)]
    data: bool,
    /// Make right what can be derived from what is right, after asking: damaged copies of labels and of the newest
    /// anchor, counts of live blocks
    #[arg(long)]
    repair: bool,
    /// Repair without asking
    #[arg(long, requires = "repair")]
    yes: bool,
}

const AFTER_HELP: &str = "\
Examples:
  keelson pool check /dev/sdb
  keelson pool check /dev/nvme0n1 /dev/nvme1n1 --data
  keelson pool check /dev/sdb --repair

No daemon is asked, and a pool that one has open is refused: `keelson pool export NAME` closes it. Nothing is
written without --repair.

Exit codes: 0 nothing is wrong; 1 something is; 2 it could not look, and stderr says why.";

/// What is shown.
#[derive(Serialize)]
struct Shown<'a> {
    pool: &'a str,
    uuid: String,
    disks: Vec<&'a str>,
    lines: u64,
    pages: u64,
    blocks: u64,
    tail_blocks: u64,
    verified_bytes: u64,
    wrong: u64,
    findings: &'a [String],
    repairable: &'a [String],
    repaired: &'a [String],
}

/// Runs `pool check`. `Ok(false)` = something is wrong with the pool.
pub async fn main(globals: &GlobalArgs, args: &CheckArgs, out: &mut dyn Write) -> anyhow::Result<bool> {
    // Few I/Os in flight: it goes where it does not disturb.
    let core = allowed_cores()?.last().copied().unwrap_or_default();
    let config = ReactorConfig { pin: false, spin_window: Duration::ZERO, ..ReactorConfig::new(core) };
    let core = spawn_thread(config).context("cannot start a reactor")?;
    let ended = run(globals, args, &core, out).await;
    core.stop();
    core.join();
    ended
}

async fn run(
    globals: &GlobalArgs,
    args: &CheckArgs,
    core: &CoreHandle,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let devices = open(&args.disks, core).await?;
    let mut report = look(globals, args, core, &devices).await?;
    let mut repaired = Vec::new();
    if args.repair && !report.repairable.is_empty() {
        if !args.yes && !ask(&report)? {
            bail!("nothing was repaired");
        }
        repaired = lvs::repair(core.clone(), devices.clone()).await.context("cannot repair")?;
        // What it is like now counts.
        report = look(globals, args, core, &devices).await?;
    }
    match globals.output {
        Format::Json => {
            let shown = Shown {
                pool: &report.pool,
                uuid: report.uuid.to_string(),
                disks: devices.iter().map(|d| d.name()).collect(),
                lines: report.lines,
                pages: report.pages,
                blocks: report.blocks,
                tail_blocks: report.tail_blocks,
                verified_bytes: report.verified_bytes,
                wrong: report.wrong,
                findings: &report.findings,
                repairable: &report.repairable,
                repaired: &repaired,
            };
            write_json(out, &shown, std::io::stdout().is_terminal())?;
        }
        Format::Default => out.write_all(text(globals, args, &report, &repaired).as_bytes())?,
    }
    for device in devices {
        device.remove();
    }
    Ok(report.wrong == 0)
}

/// Opens all disks; nobody else may have one of them.
async fn open(disks: &[String], core: &CoreHandle) -> anyhow::Result<Vec<Arc<dyn BlockDevice>>> {
    let mut devices: Vec<Arc<dyn BlockDevice>> = Vec::new();
    for disk in disks {
        let path = if disk.is_empty() || disk.contains("://") {
            disk.clone()
        } else {
            std::path::absolute(disk)?.to_string_lossy().into_owned()
        };
        let uri: DeviceUri =
            disk_uri(&path).parse().with_context(|| format!("\"{disk}\" is neither a path nor a URI"))?;
        if devices.iter().any(|d| d.name() == uri.name()) {
            bail!("{disk} is named twice");
        }
        let opened = registry::open(&uri, core, &RemoteWishes::default()).await;
        let opened = opened.map_err(|error| {
            let used = matches!(&error, EngineError::CreateDevice { source: DeviceError::InUse { .. }, .. });
            let error = anyhow::Error::new(error);
            match used {
                true => error.context(format!(
                    "cannot look at {disk} while something uses it; if that is a running keelson, `keelson pool \
                     export NAME` closes the pool there"
                )),
                false => error,
            }
        });
        devices.push(opened?.device);
    }
    Ok(devices)
}

/// One look, with progress on a terminal.
async fn look(
    globals: &GlobalArgs,
    args: &CheckArgs,
    core: &CoreHandle,
    devices: &[Arc<dyn BlockDevice>],
) -> anyhow::Result<CheckReport> {
    let wish = CheckWish { data: args.data, ..CheckWish::default() };
    let progress = wish.progress.clone();
    let show = !globals.quiet && std::io::stderr().is_terminal();
    let mut looking = std::pin::pin!(lvs::check(core.clone(), devices.to_vec(), wish));
    let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
    let looked = loop {
        tokio::select! {
            result = &mut looking => break result,
            _ = tick.tick(), if show => show_line(&progress_line(globals, args.data, &progress)),
        }
    };
    if show {
        show_line("");
    }
    Ok(looked?)
}

/// Replaces the last line of the terminal. `eprint!` would panic when it has gone away.
fn show_line(text: &str) {
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "\r{text}\x1b[K").and_then(|()| stderr.flush());
}

fn progress_line(globals: &GlobalArgs, data: bool, progress: &CheckProgress) -> String {
    let (pages, blocks) = (progress.pages.load(Ordering::Relaxed), progress.blocks.load(Ordering::Relaxed));
    let all = progress.blocks_in_all.load(Ordering::Relaxed).max(blocks);
    let mut line = format!("{pages} map pages, {blocks} of {all} blocks");
    if data {
        let bytes = progress.verified_bytes.load(Ordering::Relaxed);
        let done = (bytes / u64::from(lvs::BLOCK_BYTES)).min(all);
        let percent = (done * 100).checked_div(all).unwrap_or(0);
        line.push_str(&format!(", {} of data read ({percent} %)", size(globals, bytes)));
    }
    line
}

fn size(globals: &GlobalArgs, bytes: u64) -> String {
    Units::show_or_plain(Some(globals.units.unwrap_or(Units::Binary)), bytes)
}

/// Whether to write, from whoever is at the terminal.
fn ask(report: &CheckReport) -> anyhow::Result<bool> {
    let (stdin, mut stderr) = (std::io::stdin(), std::io::stderr());
    if !stdin.is_terminal() {
        bail!("--repair asks before it writes, and nobody is here to be asked; --yes answers for you");
    }
    for finding in &report.findings {
        writeln!(stderr, "  {finding}")?;
    }
    writeln!(stderr, "To repair the disks of pool {}:", report.pool)?;
    for what in &report.repairable {
        writeln!(stderr, "  {what}")?;
    }
    write!(stderr, "Write to these disks? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    stdin.read_line(&mut answer)?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

/// The report for people.
fn text(globals: &GlobalArgs, args: &CheckArgs, report: &CheckReport, repaired: &[String]) -> String {
    let mut text = String::new();
    let mut line = |what: &str| {
        text.push_str(what);
        text.push('\n');
    };
    if !globals.quiet {
        let CheckReport { pool, lines, pages, blocks, tail_blocks, .. } = report;
        line(&format!(
            "Pool {pool}: {lines} volumes with their snapshots, {pages} map pages, {blocks} blocks of data, {tail_blocks} \
             in the log."
        ));
        match args.data {
            true => line(&format!("Data read: {}.", size(globals, report.verified_bytes))),
            false => line("Data was not read; --data does that."),
        }
    }
    repaired.iter().for_each(|what| line(&format!("Repaired: {what}.")));
    report.findings.iter().for_each(|what| line(what));
    let more = report.wrong.saturating_sub(report.findings.len() as u64);
    if more > 0 {
        line(&format!("And {more} more."));
    }
    if !globals.quiet {
        match report.wrong {
            0 => line("Nothing is wrong."),
            1 => line("1 thing is wrong."),
            wrong => line(&format!("{wrong} things are wrong.")),
        }
        if !report.repairable.is_empty() {
            line(&format!("--repair can {}.", report.repairable.join("; ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        globals: GlobalArgs,
        #[command(flatten)]
        args: CheckArgs,
    }

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["check"].iter().chain(args))
    }

    #[test]
    fn arguments() {
        assert!(parse(&[]).is_err(), "no disk");
        assert!(parse(&["/dev/a", "--yes"]).is_err(), "--yes alone");
        let cli = parse(&["/dev/a", "b", "--data", "--repair", "--yes"]).unwrap();
        assert!(cli.args.data && cli.args.repair && cli.args.yes && cli.args.disks.len() == 2);
        assert!(is_yes("y\n") && is_yes(" Yes ") && !is_yes("\n") && !is_yes("no") && !is_yes("yy"));
    }

    #[test]
    fn the_report_in_words() {
        let cli = parse(&["/dev/a"]).unwrap();
        let mut report = CheckReport { pool: "p".into(), lines: 2, pages: 3, ..CheckReport::default() };
        let clean = text(&cli.globals, &cli.args, &report, &["wrote it".into()]);
        assert!(clean.starts_with("Pool p: 2 volumes with their snapshots, 3 map pages"), "{clean}");
        assert!(clean.ends_with("Repaired: wrote it.\nNothing is wrong.\n"), "{clean}");
        report.findings = vec!["a is bad".into()];
        report.wrong = 1001;
        report.repairable = vec!["mend a".into(), "mend b".into()];
        let bad = text(&cli.globals, &cli.args, &report, &[]);
        let end = "a is bad\nAnd 1000 more.\n1001 things are wrong.\n--repair can mend a; mend b.\n";
        assert!(bad.ends_with(end), "{bad}");
        let quiet = parse(&["/dev/a", "-q"]).unwrap();
        assert_eq!(text(&quiet.globals, &quiet.args, &report, &[]), "a is bad\nAnd 1000 more.\n");
    }
}
