//! What Keelson costs, as figures that mean something on a noisy machine. `cargo xtask bench` runs it.
//!
//! # Map
//! - [`table`]: throughput and latency of each [`cell`], as ratios to a [`bare`] loop in the same [`phase`].
//! - [`served`]: Keelson as users run it; [`spdk`]: its rival under the same client.
//! - [`syscalls`]: calls into the kernel per I/O.
//! - [`lvs`]: the volume store beside the device that it is on, without a network.
//! - [`idle`]: CPU and memory of a daemon that has nothing to do; [`wake`]: the first I/O after that, beside a bare
//!   process that sleeps ([`sleepers`]).
#![deny(unsafe_code)]

mod bare;
mod cell;
mod idle;
mod lvs;
mod phase;
mod pin;
mod served;
mod sleepers;
mod spdk;
mod syscalls;
mod table;
mod wake;

use anyhow::Result;
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Measures a built daemon on this machine, which should do nothing else meanwhile.
#[derive(Parser)]
struct Cli {
    /// The daemon, built for release.
    #[arg(long, value_name = "FILE")]
    keelson: PathBuf,
    /// SPDK's nvmf_tgt, to be measured beside it.
    #[arg(long, value_name = "FILE", env = "KEELSON_SPDK")]
    spdk: Option<PathBuf>,
    /// Core of the target.
    #[arg(long, default_value_t = 0)]
    target_core: usize,
    /// Core of the load.
    #[arg(long, default_value_t = 1)]
    host_core: usize,
    /// Milliseconds of one run.
    #[arg(long, default_value_t = 1_000)]
    time_ms: u64,
    /// Only cells whose name contains this, such as "malloc randread"; "lvs" and longer ones are of the store.
    #[arg(long)]
    only: Option<String>,
    /// Where files of some GiB may be while the store is measured.
    #[arg(long, value_name = "FOLDER", default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
    /// Leave out the idle figures.
    #[arg(long)]
    no_idle: bool,
    /// Only the idle figures.
    #[arg(long, conflicts_with_all = ["no_idle", "only"])]
    only_idle: bool,
}

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(sleepers::ARGUMENT) => {
            sleepers::run(arguments)?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(lvs::ARGUMENT) => {
            lvs::fill_until_killed(arguments)?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let cli = Cli::parse();
    let cores = (cli.target_core, cli.host_core);
    let settings = table::Settings {
        keelson: &cli.keelson,
        spdk: cli.spdk.as_deref(),
        cores,
        time: Duration::from_millis(cli.time_ms),
        only: cli.only.as_deref(),
    };
    let only_store = cli.only.as_deref().is_some_and(lvs::is_meant);
    let mut failures = if cli.only_idle || only_store { Vec::new() } else { table::run(&settings)? };
    if !cli.only_idle && (cli.only.is_none() || only_store) {
        let settings = lvs::Settings {
            core: cli.target_core,
            time: settings.time,
            scratch: cli.scratch,
            only: cli.only.as_deref(),
        };
        failures.extend(lvs::run(&settings)?);
    }
    if !cli.no_idle && !only_store {
        failures.extend(idle::run(&cli.keelson, cores)?);
    }
    for failure in &failures {
        println!("FAILED {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
