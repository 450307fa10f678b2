//! Building what runs seeds and the fuzz targets, and running a piece of work.

use crate::process::{cargo, output, root, run, target};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Coverage as libFuzzer reads it, by flags of stable Rust; nothing here needs a sanitizer.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// How often a running piece is looked at.
const TICK: Duration = Duration::from_millis(200);

/// The program of one kind of work.
pub(super) struct Program(PathBuf);

/// A piece that ran to its end.
pub(super) struct Piece {
    /// Without a failure.
    pub(super) good: bool,
    /// How long it ran, without the time that this process was stopped.
    pub(super) took: Duration,
    /// What it printed.
    pub(super) log: PathBuf,
}

/// Where soaking builds and keeps things: apart from other builds, for its flags differ.
fn folder() -> PathBuf {
    target().join("soak")
}

/// Checks of overflow and of our own claims stay on: a seed that wraps around quietly proves nothing.
fn release() -> Command {
    let mut build = cargo();
    build.args(["build", "--release", "--locked"]);
    build.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
    build.env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true");
    build.env("CARGO_TARGET_DIR", folder());
    build
}

/// Builds a program that runs seeds: its package has its name. `beside`: what it starts.
pub(super) fn seeds(package: &str, beside: &[&str]) -> Result<Program> {
    let mut build = release();
    for package in [&[package], beside].concat() {
        build.args(["--package", package]);
    }
    ensure!(run(&mut build)?.success(), "`{package}` does not build");
    Ok(Program(folder().join("release").join(package)))
}

/// Builds all fuzz targets, as one program.
pub(super) fn fuzzer() -> Result<Program> {
    let text = output(Command::new("rustc").args(["--version", "--verbose"]))?;
    let triple = text.lines().find_map(|line| line.strip_prefix("host: "));
    let triple = triple.context("`rustc --version --verbose` names no host")?;
    let mut build = release();
    build.args(["--target", triple, "--package", "fuzz", "--features", "libfuzzer", "--bin", "libfuzzer"]);
    // `RUSTFLAGS` with a target: build scripts and macros are built without them.
    build.env("RUSTFLAGS", COVERAGE).env("CARGO_PROFILE_RELEASE_LTO", "off");
    ensure!(run(&mut build)?.success(), "the fuzz targets do not build with coverage");
    Ok(Program(folder().join(triple).join("release/libfuzzer")))
}

impl Program {
    /// What it can run: the first word of each indented line below the heading of its usage text.
    pub(super) fn names(&self, heading: &str) -> Result<Vec<String>> {
        let mut help = Command::new(&self.0);
        help.arg("--help").env("KEELSON_FUZZ_TARGET", "--help");
        let output = help.output().with_context(|| format!("asking {}", self.0.display()))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let names = text.lines().skip_while(|line| *line != heading).skip(1);
        let names: Vec<String> =
            names.filter_map(|line| Some(line.split_whitespace().next()?.into())).collect();
        ensure!(!names.is_empty(), "{} lists nothing below `{heading}`", self.0.display());
        Ok(names)
    }

    /// Runs seeds `from` to `to` (exclusive) of a scenario.
    /// `what`: as it is recorded.
    pub(super) fn seeds(&self, what: &str, scenario: &str, from: u64, to: u64) -> Result<Piece> {
        let mut sweep = Command::new(&self.0);
        sweep.args([scenario, "--seeds", &format!("{from}..{to}")]);
        piece(&mut sweep, &format!("{}-{from}", what.replace(' ', "-")))
    }

    /// Fuzzes a target for so long. What it finds on the way is kept beside the build, for the next time; the
    /// tree's corpus and the target's seeds are where it starts.
    pub(super) fn inputs(&self, name: &str, seconds: u64) -> Result<Piece> {
        let (kept, finds) = (folder().join("corpus").join(name), folder().join("finds"));
        make(&kept)?;
        make(&finds)?;
        let mut seeds = Command::new(&self.0);
        seeds.env("KEELSON_FUZZ_TARGET", name).env("KEELSON_FUZZ_SEEDS", &kept);
        let written = seeds.stderr(Stdio::null()).status();
        ensure!(written.context("starting the fuzzer")?.success(), "no seeds for `{name}`");
        let mut fuzzer = Command::new(&self.0);
        fuzzer
            .env("KEELSON_FUZZ_TARGET", name)
            .args([format!("-max_total_time={seconds}"), "-max_len=16384".into()])
            .args(["-timeout=30", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"])
            .arg(format!("-artifact_prefix={}/{name}-", finds.display()))
            .arg(&kept);
        let given = root().join("tests/fuzz/corpus").join(name);
        if given.is_dir() {
            fuzzer.arg(given);
        }
        piece(&mut fuzzer, &format!("fuzz-{name}"))
    }
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))
}

/// Runs a program to its end, with its output in a file of this name.
fn piece(command: &mut Command, name: &str) -> Result<Piece> {
    let logs = folder().join("log");
    make(&logs)?;
    let log = logs.join(format!("{name}.log"));
    let out = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let err = out.try_clone().with_context(|| format!("writing {}", log.display()))?;
    let mut child =
        command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().context("starting a piece")?;
    let (status, took) = wait(&mut child)?;
    match status.code() {
        Some(code) => Ok(Piece { good: code == 0, took, log }),
        // Whoever killed it knows why; it says nothing about the seeds.
        None => bail!("{name} was killed ({status}); see {}", log.display()),
    }
}

/// Waits, and counts the time without pauses: when somebody stops the soak to measure something, the pause is no
/// soaking.
fn wait(child: &mut Child) -> Result<(ExitStatus, Duration)> {
    let (mut took, mut last) = (Duration::ZERO, Instant::now());
    loop {
        if let Some(status) = child.try_wait().context("waiting for a piece")? {
            return Ok((status, took + last.elapsed().min(TICK * 2)));
        }
        std::thread::sleep(TICK);
        // A busy machine may wake us late, but not by seconds.
        took += last.elapsed().min(Duration::from_secs(2));
        last = Instant::now();
    }
}
