//! Counts under callgrind and compares with `baseline.toml`.
//!
//! Each cell runs twice with different numbers of I/Os; the difference, divided, is what one I/O costs, without
//! what starting and connecting cost. The compiler decides a good part of the figure, so a baseline holds for
//! the compiler that it names.

use crate::{stage, store};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// I/Os of the two runs.
const FEW: u64 = 200;
const MANY: u64 = 1_200;
/// How far a figure may be from its baseline, either way: an improvement is recorded, not kept as slack.
const TOLERANCE: f64 = 0.03;

/// Counts all cells; with `bless` writes the baseline instead of comparing.
pub(crate) fn run(bless: bool) -> Result<ExitCode> {
    let compiler = compiler()?;
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("baseline.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let baseline: toml::Table = text.parse().with_context(|| format!("reading {}", path.display()))?;
    let known = baseline.get("compiler").and_then(toml::Value::as_str).unwrap_or_default();
    let comparable = known == compiler;
    let mut counted = toml::Table::new();
    let mut failed = false;
    println!(
        "{:16} {:>12} {:>9} {:>9} {:>12}",
        "per I/O", "instructions", "target", "baseline", "allocations"
    );
    for cell in stage::CELLS.iter().chain(&store::CELLS) {
        let all = instructions(cell.name, None)?;
        let target = instructions(cell.name, Some("*target_turn*"))?;
        let allocations = allocations(cell.name)?;
        let before = baseline.get(cell.name).and_then(toml::Value::as_integer);
        let off = before.is_some_and(|before| (all / before as f64 - 1.0).abs() > TOLERANCE);
        let verdict = match (allocations > 0, comparable && !bless, before, off) {
            (true, ..) => "  not ok: allocates",
            (_, true, None, _) => "  not ok: has no baseline",
            (_, true, _, true) => "  not ok: more than 3 % from its baseline",
            _ => "  ok",
        };
        failed |= verdict.contains("not ok");
        let before = before.map_or_else(|| "-".into(), |before| before.to_string());
        println!("{:16} {all:>12.0} {target:>9.0} {before:>9} {allocations:>12}{verdict}", cell.name);
        counted.insert(cell.name.into(), toml::Value::Integer(all.round() as i64));
    }
    if bless {
        counted.insert("compiler".into(), compiler.into());
        let comment = text.lines().take_while(|line| line.starts_with('#')).map(|line| format!("{line}\n"));
        std::fs::write(&path, format!("{}{counted}", comment.collect::<String>()))
            .with_context(|| format!("writing {}", path.display()))?;
    } else if !comparable {
        println!("the baseline is of `{known}`, this is `{compiler}`: instructions were not compared");
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn compiler() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("starting rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Instructions of one I/O, of all code or of one function and what it calls.
fn instructions(cell: &str, within: Option<&str>) -> Result<f64> {
    let few = collected(cell, FEW, within)?;
    let many = collected(cell, MANY, within)?;
    Ok(many.saturating_sub(few) as f64 / (MANY - FEW) as f64)
}

fn collected(cell: &str, ios: u64, within: Option<&str>) -> Result<u64> {
    let mut callgrind = Command::new("valgrind");
    callgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    if let Some(function) = within {
        callgrind.arg(format!("--toggle-collect={function}"));
    }
    let own = std::env::current_exe().context("finding this program")?;
    let output = callgrind.arg(own).args(["run", cell, &ios.to_string()]).output();
    let output = output.context("starting valgrind (Debian: apt-get install valgrind)")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "callgrind on `{cell}`: {text}");
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    let count = line.and_then(|(_, number)| number.trim().parse().ok());
    count.with_context(|| format!("callgrind on `{cell}` does not say what it collected: {text}"))
}

/// Allocations of [`MANY`] I/Os.
fn allocations(cell: &str) -> Result<u64> {
    let own = std::env::current_exe().context("finding this program")?;
    let output =
        Command::new(own).args(["run", cell, &MANY.to_string()]).output().context("starting this program")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text.trim().strip_prefix("allocations ").and_then(|number| number.parse().ok());
    number.with_context(|| format!("`count run {cell}`: {text}{}", String::from_utf8_lossy(&output.stderr)))
}
