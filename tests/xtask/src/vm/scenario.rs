//! A scenario: a bash script that runs in the guest, with a header that says what machine it wants.
//!
//! The header is comment lines at the top: the first is what `--list` shows, `# machine: KEY=VALUE ...` changes
//! the defaults of [`Machine`], and `# daemon: guest host` says where the daemon runs: the scenario is played once
//! for each, with the host's under the name `NAME-host`. Without that line it is the guest.

use super::machine::Machine;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the daemon of a scenario runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Daemon {
    /// In the guest, started by the script itself.
    Guest,
    /// Beside QEMU, reached through user networking; `tests/vm/daemon.host` starts and ends it when asked.
    Host,
}

impl Daemon {
    /// The word for it in headers and in the guest's environment.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Host => "host",
        }
    }
}

/// One script, the machine that it wants, and where its daemon is.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) path: PathBuf,
    pub(crate) daemon: Daemon,
    pub(crate) machine: Machine,
}

/// The scenarios of a folder, by name.
pub(crate) fn all(folder: &Path) -> Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
        if path.extension().is_some_and(|e| e == "sh") {
            scenarios.extend(read(&path).with_context(|| format!("reading {}", path.display()))?);
        }
    }
    scenarios.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(scenarios)
}

fn read(path: &Path) -> Result<Vec<Scenario>> {
    let header = header(&std::fs::read_to_string(path)?)?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let scenario = |&daemon: &Daemon| Scenario {
        name: if daemon == Daemon::Host && header.daemons.len() > 1 {
            format!("{stem}-host")
        } else {
            stem.clone()
        },
        about: header.about.clone(),
        path: path.into(),
        daemon,
        machine: header.machine.clone(),
    };
    Ok(header.daemons.iter().map(scenario).collect())
}

struct Header {
    about: String,
    daemons: Vec<Daemon>,
    machine: Machine,
}

fn header(text: &str) -> Result<Header> {
    let mut about = None;
    let mut daemons = Vec::new();
    let mut machine = Machine::default();
    for line in text.lines().map_while(|line| line.strip_prefix('#')) {
        match line.trim().split_once(": ") {
            Some(("machine", settings)) => {
                settings.split_whitespace().try_for_each(|s| set(&mut machine, s))?
            }
            Some(("daemon", places)) => {
                daemons = places.split_whitespace().map(place).collect::<Result<_>>()?;
            }
            _ => about = about.or_else(|| Some(line.trim().to_owned())),
        }
    }
    if daemons.is_empty() {
        daemons.push(Daemon::Guest);
    }
    let about = about.context("the first line is no comment that says what the scenario shows")?;
    Ok(Header { about, daemons, machine })
}

fn place(word: &str) -> Result<Daemon> {
    let known = [Daemon::Guest, Daemon::Host].into_iter().find(|d| d.word() == word);
    known.with_context(|| format!("a daemon runs in the `guest` or on the `host`, not in `{word}`"))
}

fn set(machine: &mut Machine, setting: &str) -> Result<()> {
    let (key, value) = setting.split_once('=').with_context(|| format!("`{setting}` is not KEY=VALUE"))?;
    let seconds = || value.parse().map(Duration::from_secs).with_context(|| format!("`{setting}`"));
    match key {
        "kernel" => machine.kernel = value.into(),
        "cpus" => machine.cpus = value.parse().with_context(|| format!("`{setting}`"))?,
        "memory_mib" => machine.memory_mib = value.parse().with_context(|| format!("`{setting}`"))?,
        "limit_s" => machine.limit = seconds()?,
        "about_s" => machine.about = seconds()?,
        _ => bail!("`{key}` is not known; use kernel, cpus, memory_mib, limit_s or about_s"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let read = header("# Shows: it.\n# machine: cpus=4 kernel=6.1\nset -e\n# machine: cpus=9\n").unwrap();
        assert_eq!(
            (read.about.as_str(), read.machine.cpus, read.machine.kernel.as_str()),
            ("Shows: it.", 4, "6.1")
        );
        assert_eq!(read.daemons, [Daemon::Guest]);
        assert_eq!(header("# a\n# daemon: guest host\n").unwrap().daemons, [Daemon::Guest, Daemon::Host]);
        for wrong in
            ["set -e\n", "# a\n# machine: cpu=4\n", "# a\n# machine: cpus=many\n", "# a\n# daemon: moon\n"]
        {
            assert!(header(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_scenarios_of_the_tree_are_well_formed() {
        let scenarios = all(&crate::process::root().join("tests/vm/scenarios")).unwrap();
        let both = |s: &&Scenario| ["commands", "commands-host"].contains(&s.name.as_str());
        assert_eq!(scenarios.iter().filter(both).count(), 2);
    }
}
