//! End to end with real Linux kernels: the scenarios of `tests/vm`, each in an emulated machine of its own.
//!
//! # Map
//! - [`scenario`]: a script of `tests/vm/scenarios` and what its header asks for.
//! - [`machine`]: one QEMU from power-on to exit status, started again when a boot went wrong.
//! - [`tap`]: the lines `ok`, `not ok` and `skip` that a script prints.

mod machine;
mod scenario;
mod tap;

use crate::process::{cargo, root, shown, target};
use crate::report::{Report, Tally};
use anyhow::{Context, Result, ensure};
use machine::{Cache, End};
use scenario::{Daemon, Scenario};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most guests at a time unless told otherwise: a scenario keeps about one processor busy, and has gigabytes.
const MOST_AT_ONCE: usize = 4;

/// Which scenarios to run, and how.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Names of scenarios (see --list); all when none is named.
    scenarios: Vec<String>,
    /// Print the scenarios and what each shows, and run nothing.
    #[arg(long)]
    list: bool,
    /// Use this daemon instead of building one.
    #[arg(long, value_name = "FILE")]
    keelson: Option<PathBuf>,
    /// Boot this kernel series (6.12 or 6.1) instead of the one that a scenario asks for.
    #[arg(long, value_name = "SERIES")]
    kernel: Option<String>,
    /// How many guests run at once; one shows its output as it comes [default: one a processor, at most 4].
    #[arg(long, value_name = "N")]
    at_once: Option<usize>,
}

/// Runs what the command line names.
pub(crate) fn run(report: &mut Report, args: &Args) -> Result<()> {
    let mut scenarios = scenario::all(&root().join("tests/vm/scenarios"))?;
    if args.list {
        for scenario in &scenarios {
            println!("{:16} {}", scenario.name, scenario.about);
        }
        report.pass("list", std::time::Duration::ZERO);
        return Ok(());
    }
    for name in &args.scenarios {
        ensure!(
            scenarios.iter().any(|s| s.name == *name),
            "no scenario is called `{name}`; --list shows them"
        );
    }
    scenarios.retain(|s| args.scenarios.is_empty() || args.scenarios.contains(&s.name));
    if let Some(kernel) = &args.kernel {
        scenarios.iter_mut().for_each(|s| s.machine.kernel.clone_from(kernel));
    }
    play(report, &scenarios, args.keelson.as_deref(), args.at_once)
}

/// Runs every scenario with the programs that `cargo test --workspace` has built and left where `cargo build` does:
/// building them by themselves would build the crates below once more, for fewer of their features.
pub(crate) fn run_all(report: &mut Report) -> Result<()> {
    let scenarios = scenario::all(&root().join("tests/vm/scenarios"))?;
    play(report, &scenarios, Some(&target().join("debug/keelson")), None)
}

fn play(
    report: &mut Report,
    scenarios: &[Scenario],
    keelson: Option<&Path>,
    at_once: Option<usize>,
) -> Result<()> {
    let cache = Cache::locate();
    if let Err(reason) = cache.usable() {
        // One skip for each scenario, so that the count shows how much was not shown.
        for scenario in scenarios {
            report.skip(&format!("vm: {}", scenario.name), "vm", &reason);
        }
        return Ok(());
    }
    let keelson = match keelson {
        Some(path) => {
            path.canonicalize().with_context(|| format!("finding the daemon {}", path.display()))?
        }
        None => build()?,
    };
    let mut playable = Vec::new();
    for scenario in scenarios {
        match cache.has(&scenario.machine.kernel) {
            Ok(()) => playable.push(scenario),
            Err(reason) => report.skip(&format!("vm: {}", scenario.name), "vm", &reason),
        }
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let lanes = at_once.unwrap_or_else(|| processors.min(MOST_AT_ONCE)).clamp(1, playable.len().max(1));
    playable.sort_by_key(|s| std::cmp::Reverse(s.machine.about));
    side_by_side(report, &cache, playable, &keelson, lanes);
    Ok(())
}

/// Plays the scenarios in this order, so many at a time, and reports each when it has ended.
fn side_by_side(report: &mut Report, cache: &Cache, order: Vec<&Scenario>, keelson: &Path, lanes: usize) {
    let waiting = Mutex::new(VecDeque::from(order));
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let (sender, ended) = sync_channel(lanes);
    std::thread::scope(|threads| {
        for _ in 0..lanes {
            let sender = sender.clone();
            threads.spawn(move || {
                while let Some(scenario) = next() {
                    let played = one(cache, scenario, keelson, lanes == 1);
                    if sender.send((scenario, played)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut all: Vec<_> = ended.iter().inspect(|(_, played)| show(played.as_ref())).collect();
        all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        for (scenario, played) in all {
            enter(report, &scenario.name, played);
        }
    });
}

/// What one scenario came to.
struct Played {
    tap: tap::Counter,
    tally: Tally,
    took: Duration,
    /// Its output, unless that was shown as it came.
    lines: Vec<String>,
}

fn show(played: Result<&Played, &anyhow::Error>) {
    played.into_iter().flat_map(|p| &p.lines).for_each(|line| println!("{line}"));
}

fn enter(report: &mut Report, scenario: &str, played: Result<Played>) {
    let name = format!("vm: {scenario}");
    match played {
        Ok(Played { tap, tally, took, .. }) => {
            for (check, reason) in tap.skips() {
                report.skip(&format!("{name}: {check}"), "vm", reason);
            }
            report.add(&name, Tally { skipped: 0, ..tally }, took);
        }
        Err(error) => report.fail(&name, format!("{error:#}")),
    }
}

/// Builds the daemon and the conformance suite that the guest runs; both appear in the guest's tree as they
/// are here.
fn build() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--locked", "--package", "keelson", "--package", "conformance"]);
    let status = run_command(&mut command)?;
    ensure!(status, "`{}` failed", shown(&command));
    Ok(target().join("debug/keelson"))
}

fn run_command(command: &mut Command) -> Result<bool> {
    Ok(crate::process::run(command)?.success())
}

/// Plays one scenario. Its output is shown as it comes when `live`, else kept.
fn one(cache: &Cache, scenario: &Scenario, keelson: &Path, live: bool) -> Result<Played> {
    let start = Instant::now();
    let share = Share::new(&scenario.name)?;
    share.provide(scenario, keelson)?;
    let mut lines = Vec::new();
    let mut say = |line: String| {
        if live {
            println!("{line}");
        } else {
            lines.push(line);
        }
    };
    eprintln!("vm: {} starts", scenario.name);
    say(format!("== vm: {} (kernel {})", scenario.name, scenario.machine.kernel));
    let _host = Companion::start(scenario, share.path(), keelson)?;
    let mut tap = tap::Counter::default();
    let end = cache.boot(&scenario.machine, share.path(), |line| {
        tap.line(line);
        say(line.to_owned());
    })?;
    let mut tally = tap.tally();
    if let End::Failed(reason) = &end {
        say(format!("vm: {}: {reason}\n{}", scenario.name, share.console_tail()));
    }
    // A script that failed with all its checks good, or that checked nothing, has still failed.
    if tally.failed == 0 && (end != End::Success || tally.passed == 0) {
        tally.failed = 1;
    }
    if tally.failed > 0 {
        share.keep();
    }
    Ok(Played { tap, tally, took: start.elapsed(), lines })
}

/// The folder that the guest and the host both write: script in, status and logs out.
struct Share {
    path: PathBuf,
    kept: std::cell::Cell<bool>,
}

impl Share {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("keelson-vm-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { path, kept: false.into() })
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn provide(&self, scenario: &Scenario, keelson: &Path) -> Result<()> {
        let vm = root().join("tests/vm");
        for (from, to) in [
            (vm.join("guest-init"), "guest-init"),
            (vm.join("lib.sh"), "lib.sh"),
            (scenario.path.clone(), "scenario"),
        ] {
            let to = self.path.join(to);
            std::fs::copy(&from, &to)
                .with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
        }
        let shown = |path: &Path| path.display().to_string();
        // Cargo puts what it builds side by side.
        let conform = keelson.with_file_name("conform");
        let environment = format!(
            "export KEELSON={:?} CONFORM={:?} DAEMON={} HOST_SHARE={:?}\n",
            shown(keelson),
            shown(&conform),
            scenario.daemon.word(),
            shown(&self.path),
        );
        std::fs::write(self.path.join("environment"), environment).context("writing the guest's environment")
    }

    fn console_tail(&self) -> String {
        let text = std::fs::read(self.path.join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        format!("last lines of the guest's console:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"))
    }

    fn keep(&self) {
        self.kept.set(true);
        eprintln!("vm: what guest and host left behind is in {}", self.path.display());
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if !self.kept.get() {
            // A leftover folder in the system's temporary place harms nobody.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// What runs on the host, beside the guest: the daemon of scenarios that want it there.
struct Companion(Option<Child>);

impl Companion {
    fn start(scenario: &Scenario, share: &Path, keelson: &Path) -> Result<Self> {
        if scenario.daemon == Daemon::Guest {
            return Ok(Self(None));
        }
        let script = root().join("tests/vm/daemon.host");
        let child = Command::new("bash")
            .arg(&script)
            .env("SHARE", share)
            .env("KEELSON", keelson)
            .spawn()
            .with_context(|| format!("starting {}", script.display()))?;
        Ok(Self(Some(child)))
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        let Some(child) = &mut self.0 else { return };
        // TERM, so that the script ends what it started; it has nothing else to do for long.
        let _ = Command::new("kill").arg(child.id().to_string()).status();
        let _ = child.wait();
    }
}
