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
use machine::Cache;
use scenario::Scenario;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

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
    play(report, &scenarios, args.keelson.as_deref())
}

/// Runs every scenario with a daemon built now.
pub(crate) fn run_all(report: &mut Report) -> Result<()> {
    let scenarios = scenario::all(&root().join("tests/vm/scenarios"))?;
    play(report, &scenarios, None)
}

fn play(report: &mut Report, scenarios: &[Scenario], keelson: Option<&Path>) -> Result<()> {
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
    for scenario in scenarios {
        if let Err(reason) = cache.has(&scenario.machine.kernel) {
            report.skip(&format!("vm: {}", scenario.name), "vm", &reason);
            continue;
        }
        one(report, &cache, scenario, &keelson)
            .with_context(|| format!("running the VM scenario `{}`", scenario.name))?;
    }
    Ok(())
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

fn one(report: &mut Report, cache: &Cache, scenario: &Scenario, keelson: &Path) -> Result<()> {
    let start = Instant::now();
    let share = Share::new(&scenario.name)?;
    share.provide(scenario, keelson)?;
    println!("== vm: {} (kernel {})", scenario.name, scenario.machine.kernel);
    let _host = Companion::start(scenario, share.path(), keelson)?;
    let mut tap = tap::Counter::default();
    let end = cache.boot(&scenario.machine, share.path(), |line| {
        println!("{line}");
        tap.line(line);
    })?;
    let mut tally = tap.tally();
    if let machine::End::Failed(reason) = &end {
        eprintln!("vm: {}: {reason}\n{}", scenario.name, share.console_tail());
    }
    // A script that failed with all its checks good, or that checked nothing, has still failed.
    if tally.failed == 0 && (end != machine::End::Success || tally.passed == 0) {
        tally.failed = 1;
    }
    if tally.failed > 0 {
        share.keep();
    }
    let name = format!("vm: {}", scenario.name);
    for (check, reason) in tap.skips() {
        report.skip(&format!("{name}: {check}"), "vm", reason);
    }
    report.add(&name, Tally { skipped: 0, ..tally }, start.elapsed());
    Ok(())
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
        let environment = format!("export KEELSON={:?} CONFORM={:?}\n", shown(keelson), shown(&conform));
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

/// The part of a scenario that runs on the host, beside the guest.
struct Companion(Option<Child>);

impl Companion {
    fn start(scenario: &Scenario, share: &Path, keelson: &Path) -> Result<Self> {
        let Some(script) = &scenario.host else { return Ok(Self(None)) };
        let child = Command::new("bash")
            .arg(script)
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
