//! `cargo xtask`: the one entry point for everything that proves the project.
//!
//! # Map
//! - [`mod@bench`]: `cargo xtask bench`, figures that mean something on a noisy machine.
//! - [`check`]: formatting, lints, documentation, and the rules below.
//! - [`layering`]: which crate may depend on which (DESIGN's floors), read from `cargo metadata`.
//! - [`licenses`]: every dependency's licence against `deny.toml`.
//! - [`tidy`]: the fixed top level, file sizes, leftovers.
//! - [`suite`]: `cargo xtask test`, all that CI runs.
//! - [`vm`]: end to end against a Linux kernel in an emulated machine (`tests/vm`).
//! - [`soak`]: many seeds and long fuzzing, recorded in docs/soak.md.
//! - [`report`]: what passed, failed and was skipped, and the last line that CI counts.
#![forbid(unsafe_code)]

mod bench;
mod check;
mod layering;
mod licenses;
mod process;
mod report;
mod soak;
mod suite;
mod tidy;
mod vm;

use clap::{Parser, Subcommand};
use report::Report;
use std::process::ExitCode;

/// Checks, tests, benchmarks and soak runs of Keelson.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Formatting, lints, layering, licences, documentation: seconds once built, no tests.
    Check,
    /// `check`, then every test: units, conformance, simulation, fuzz corpora, and the VM scenarios.
    ///
    /// What cannot run on this machine is skipped and says so. A comma-separated list in
    /// KEELSON_REQUIRE (`vm`, `netns`, ...) makes the skip of a named thing a failure.
    Test {
        /// Leave the VM scenarios out (they are then counted as skipped).
        #[arg(long)]
        no_vm: bool,
    },
    /// End to end with the Linux kernel's NVMe/TCP initiator and target in an emulated machine.
    Vm(vm::Args),
    /// Throughput as ratios to a bare loop, instructions and allocations per I/O, idle and memory figures.
    ///
    /// With KEELSON_SPDK=<nvmf_tgt> SPDK runs beside it under the same client. Arguments after `--` go to the
    /// bench program (`-- --help` shows them).
    Bench(bench::Args),
    /// Simulation seeds and fuzzing for long, recorded in docs/soak.md and resumed from it.
    Soak(soak::Args),
}

fn main() -> ExitCode {
    let mut report = Report::from_env();
    let outcome = match Cli::parse().command {
        Command::Check => check::run(&mut report),
        Command::Test { no_vm } => suite::run(&mut report, no_vm),
        Command::Vm(args) => vm::run(&mut report, &args),
        Command::Bench(args) => bench::run(&mut report, &args),
        Command::Soak(args) => soak::run(&mut report, &args),
    };
    if let Err(error) = outcome {
        report.fail("xtask", format!("{error:#}"));
    }
    report.print();
    if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
