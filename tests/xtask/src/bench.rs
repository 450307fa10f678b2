//! `cargo xtask bench`: builds for release and runs `tests/bench`.

use crate::process::{cargo, run as run_command, shown, target};
use crate::report::Report;
use anyhow::{Result, ensure};
use std::process::Command;
use std::time::Instant;

/// What goes to the bench program.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of the bench program.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Builds and measures. A figure that misses its gate is a failure.
pub(crate) fn run(report: &mut Report, args: &Args) -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--package", "keelson", "--package", "bench"]);
    ensure!(run_command(&mut build)?.success(), "`{}` failed", shown(&build));
    let start = Instant::now();
    let mut bench = Command::new(target().join("release/bench"));
    bench.arg("--keelson").arg(target().join("release/keelson")).args(&args.rest);
    if run_command(&mut bench)?.success() {
        report.pass("bench", start.elapsed());
    } else {
        report.fail("bench", "a figure misses its gate (see above)".into());
    }
    Ok(())
}
