//! `cargo xtask soak`: many simulation seeds and long fuzzing, recorded in docs/soak.md and resumed from it.

use crate::process::{cargo, exists, output, root, run_lines, target};
use crate::report::{Report, Tally};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// Seeds of one row of work; what is done when a run is interrupted is at least recorded up to here.
const SEEDS_AT_A_TIME: u64 = 5_000;

/// Coverage as libFuzzer reads it, by flags of stable Rust; nothing here needs a sanitizer.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// How long to soak, and what.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many more seeds of each simulation scenario.
    #[arg(long, default_value_t = 100_000)]
    seeds: u64,
    /// How many more minutes of each fuzz target.
    #[arg(long, default_value_t = 10)]
    fuzz_minutes: u64,
    /// Only this scenario or fuzz target; repeat for more.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

/// Soaks, and records each piece as it is done.
pub(crate) fn run(report: &mut Report, args: &Args) -> Result<()> {
    let mut record = Record::read()?;
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    if args.seeds > 0 {
        simulate(report, &mut record, args.seeds, &wanted)?;
    }
    if args.fuzz_minutes > 0 {
        fuzz(report, &mut record, args.fuzz_minutes, &wanted)?;
    }
    Ok(())
}

fn simulate(
    report: &mut Report,
    record: &mut Record,
    seeds: u64,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<()> {
    // Checks of overflow and of our own claims stay on: a seed that wraps around quietly proves nothing.
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--package", "sim"]);
    build.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
    build.env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true");
    build.env("CARGO_TARGET_DIR", soak_folder());
    ensure!(crate::process::run(&mut build)?.success(), "the simulator does not build");
    let binary = soak_folder().join("release/sim");
    for scenario in names(&binary, "scenarios:")?.iter().filter(|name| wanted(name)) {
        let name = format!("sim {scenario}");
        let start = Instant::now();
        let first = record.reached(&name);
        let end = first + seeds;
        let mut at = first;
        while at < end {
            let next = (at + SEEDS_AT_A_TIME).min(end);
            let mut sweep = Command::new(&binary);
            sweep.args([scenario.as_str(), "--seeds", &format!("{at}..{next}")]);
            let good = run_lines(&mut sweep, |_| ())?.success();
            record.add(&name, at, next, if good { "no failure" } else { "FAILED" })?;
            if !good {
                break;
            }
            at = next;
        }
        let failed = u64::from(at < end);
        report.add(&name, Tally { passed: 1 - failed, failed, skipped: 0 }, start.elapsed());
    }
    Ok(())
}

fn fuzz(report: &mut Report, record: &mut Record, minutes: u64, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    if !exists("c++") && !exists("g++") {
        report.skip("fuzz", "c++", "libFuzzer is C++ and there is no compiler for it (Debian: g++)");
        return Ok(());
    }
    let triple = host()?;
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--locked",
        "--target",
        &triple,
        "--package",
        "fuzz",
        "--features",
        "libfuzzer",
        "--bin",
        "libfuzzer",
    ]);
    // `RUSTFLAGS` with a target: build scripts and macros are built without them.
    build.env("RUSTFLAGS", COVERAGE).env("CARGO_TARGET_DIR", soak_folder());
    build.env("CARGO_PROFILE_RELEASE_LTO", "off");
    build.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
    build.env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true");
    ensure!(crate::process::run(&mut build)?.success(), "the fuzz targets do not build with coverage");
    let binary = soak_folder().join(&triple).join("release/libfuzzer");
    let mut list = cargo();
    list.args(["run", "--quiet", "--locked", "--package", "fuzz"]);
    for target in names_from(&mut list, "targets:")?.iter().filter(|name| wanted(name)) {
        let name = format!("fuzz {target}");
        let start = Instant::now();
        // New inputs are kept beside the build; the tree's corpus and seeds are where it starts.
        let kept = soak_folder().join("corpus").join(target);
        let finds = soak_folder().join("finds");
        std::fs::create_dir_all(&kept).with_context(|| format!("creating {}", kept.display()))?;
        std::fs::create_dir_all(&finds).with_context(|| format!("creating {}", finds.display()))?;
        let mut seeds = cargo();
        seeds
            .args(["run", "--quiet", "--locked", "--package", "fuzz", "--", target, "--write-seeds"])
            .arg(&kept);
        ensure!(crate::process::run(&mut seeds)?.success(), "no seeds for `{target}`");
        let mut fuzzer = Command::new(&binary);
        fuzzer
            .env("KEELSON_FUZZ_TARGET", target)
            .args([format!("-max_total_time={}", minutes * 60), "-max_len=16384".into()])
            .args(["-timeout=30", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"])
            .arg(format!("-artifact_prefix={}/{target}-", finds.display()))
            .arg(&kept);
        let given = root().join("tests/fuzz/corpus").join(target);
        if given.is_dir() {
            fuzzer.arg(given);
        }
        let good = run_lines(&mut fuzzer, |_| ())?.success();
        let before = record.reached(&name);
        let outcome = if good { "no failure".to_owned() } else { format!("FAILED, see {}", finds.display()) };
        record.add(&name, before, before + minutes, if good { &outcome } else { "FAILED" })?;
        if !good {
            eprintln!("soak: {name}: {outcome}");
        }
        report.add(&name, Tally { passed: good.into(), failed: (!good).into(), skipped: 0 }, start.elapsed());
    }
    Ok(())
}

/// Where soaking builds and keeps things: apart from other builds, for its flags differ.
fn soak_folder() -> PathBuf {
    target().join("soak")
}

fn host() -> Result<String> {
    let text = output(Command::new("rustc").args(["--version", "--verbose"]))?;
    let triple = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(triple.context("`rustc --version --verbose` names no host")?.into())
}

fn names(binary: &std::path::Path, heading: &str) -> Result<Vec<String>> {
    names_from(Command::new(binary).arg("--help"), heading)
}

/// The names that a program's usage text lists below `heading`: the first word of each indented line.
fn names_from(command: &mut Command, heading: &str) -> Result<Vec<String>> {
    let output = command.output().with_context(|| format!("asking `{}`", crate::process::shown(command)))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let names = text.lines().skip_while(|line| *line != heading).skip(1);
    let names: Vec<String> = names.filter_map(|line| Some(line.split_whitespace().next()?.into())).collect();
    ensure!(!names.is_empty(), "`{}` lists nothing below `{heading}`", crate::process::shown(command));
    Ok(names)
}

/// docs/soak.md: prose, then a table of what was soaked.
struct Record {
    path: PathBuf,
    prose: String,
    rows: Vec<Row>,
    commit: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    what: String,
    commit: String,
    from: u64,
    to: u64,
    result: String,
}

const HEADING: &str = "| what | commit | from | to | result |\n|---|---|--:|--:|---|\n";

impl Record {
    fn read() -> Result<Self> {
        let path = root().join("docs/soak.md");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let (prose, table) = text.split_once(HEADING).context("docs/soak.md has lost its table")?;
        let mut git = Command::new("git");
        git.current_dir(root()).args(["rev-parse", "--short=10", "HEAD"]);
        let commit = output(&mut git)?.trim().to_owned();
        Ok(Self { path, prose: prose.into(), rows: rows(table)?, commit })
    }

    /// Where the next piece of `what` begins: behind everything that was recorded, whatever the commit.
    fn reached(&self, what: &str) -> u64 {
        self.rows.iter().filter(|row| row.what == what).map(|row| row.to).max().unwrap_or(0)
    }

    /// Adds a piece and writes the file; a piece that continues a row of the same commit makes that row longer.
    fn add(&mut self, what: &str, from: u64, to: u64, result: &str) -> Result<()> {
        let row = Row { what: what.into(), commit: self.commit.clone(), from, to, result: result.into() };
        add(&mut self.rows, row);
        let table: String = self.rows.iter().map(Row::line).collect();
        std::fs::write(&self.path, format!("{}{HEADING}{table}", self.prose))
            .with_context(|| format!("writing {}", self.path.display()))
    }
}

impl Row {
    fn line(&self) -> String {
        format!("| {} | {} | {} | {} | {} |\n", self.what, self.commit, self.from, self.to, self.result)
    }
}

fn add(rows: &mut Vec<Row>, row: Row) {
    let continues = |old: &&mut Row| {
        old.what == row.what && old.commit == row.commit && old.to == row.from && old.result == row.result
    };
    match rows.iter_mut().find(continues) {
        Some(old) => old.to = row.to,
        None => rows.push(row),
    }
}

fn rows(table: &str) -> Result<Vec<Row>> {
    let lines = table.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| row(line).with_context(|| format!("docs/soak.md: not a row of the table: {line}")))
        .collect()
}

fn row(line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
    let [what, commit, from, to, result] = cells.as_slice() else { return None };
    let [what, commit, result] = [what, commit, result].map(|cell| (*cell).to_owned());
    Some(Row { what, commit, from: from.parse().ok()?, to: to.parse().ok()?, result })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_a_round_trip_and_grow() {
        let table = "| sim net | abc | 0 | 5000 | no failure |\n";
        let mut read = rows(table).unwrap();
        assert_eq!(read[0].line(), table);
        let piece = |commit: &str, from, to| Row {
            what: "sim net".into(),
            commit: commit.into(),
            from,
            to,
            result: "no failure".into(),
        };
        add(&mut read, piece("abc", 5000, 9000));
        assert_eq!((read.len(), read[0].to), (1, 9000));
        add(&mut read, piece("def", 9000, 9500));
        assert_eq!(read.len(), 2);
        assert!(rows("| too | few |\n").is_err());
    }

    #[test]
    fn the_record_of_the_tree_is_readable() {
        Record::read().unwrap();
    }
}
