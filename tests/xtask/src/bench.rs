//! `cargo xtask bench`: builds for release and runs `tests/bench`.

use crate::process::{cargo, exists, run as run_command, run_lines, shown, target};
use crate::report::{Report, Tally};
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

/// Builds packages for release.
fn build(packages: &[&str]) -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--release", "--locked"]);
    for package in packages {
        build.args(["--package", package]);
    }
    ensure!(run_command(&mut build)?.success(), "`{}` failed", shown(&build));
    Ok(())
}

/// Instructions and allocations per I/O: figures that a busy machine does not change, so tests can gate them.
pub(crate) fn count(report: &mut Report) -> Result<()> {
    if exists("valgrind") {
        build(&["bench"])?;
    }
    count_built(report)
}

/// The same, of what is built already.
fn count_built(report: &mut Report) -> Result<()> {
    const NAME: &str = "instructions and allocations per I/O";
    if !exists("valgrind") {
        report.skip(NAME, "valgrind", "valgrind is not installed (Debian: apt-get install valgrind)");
        return Ok(());
    }
    let start = Instant::now();
    let mut tally = Tally::default();
    let mut other_compiler = false;
    let status = run_lines(&mut Command::new(target().join("release/count")), |line| {
        tally.passed += u64::from(line.ends_with("  ok"));
        tally.failed += u64::from(line.contains("  not ok"));
        other_compiler |= line.ends_with("instructions were not compared");
    })?;
    if tally.failed == 0 && (!status.success() || tally.passed == 0) {
        tally.failed = 1;
    }
    report.add(NAME, tally, start.elapsed());
    if other_compiler {
        report.skip(
            "instructions against the baseline",
            "baseline-compiler",
            "the baseline is of another compiler",
        );
    }
    Ok(())
}

/// Builds and measures. A figure that misses its gate is a failure.
pub(crate) fn run(report: &mut Report, args: &Args) -> Result<()> {
    // At once: alone, `bench` asks less of some dependencies, and all that stands on them would be built twice.
    build(&["keelson", "bench"])?;
    count_built(report)?;
    let start = Instant::now();
    let mut bench = Command::new(target().join("release/bench"));
    bench.arg("--keelson").arg(target().join("release/keelson")).args(&args.rest);
    if run_command(&mut bench)?.success() {
        report.pass("bench", start.elapsed());
    } else {
        report.fail("bench", "a figure misses its gate, or could not be measured (see above)".into());
    }
    Ok(())
}
