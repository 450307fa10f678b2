//! A scenario: a bash script that runs in the guest, with a header that says what machine it wants.
//!
//! The header is comment lines at the top: the first is what `--list` shows, `# machine: KEY=VALUE ...` changes
//! the defaults of [`Machine`]. A file of the same name with the ending `.host` runs beside it on the host.

use super::machine::Machine;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One script and the machine that it wants.
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) path: PathBuf,
    /// What runs on the host meanwhile.
    pub(crate) host: Option<PathBuf>,
    pub(crate) machine: Machine,
}

/// The scenarios of a folder, by name.
pub(crate) fn all(folder: &Path) -> Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
        if path.extension().is_some_and(|e| e == "sh") {
            scenarios.push(read(&path).with_context(|| format!("reading {}", path.display()))?);
        }
    }
    scenarios.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(scenarios)
}

fn read(path: &Path) -> Result<Scenario> {
    let text = std::fs::read_to_string(path)?;
    let (about, machine) = header(&text)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let host = Some(path.with_extension("host")).filter(|p| p.exists());
    Ok(Scenario { name, about, path: path.into(), host, machine })
}

fn header(text: &str) -> Result<(String, Machine)> {
    let mut about = None;
    let mut machine = Machine::default();
    for line in text.lines().map_while(|line| line.strip_prefix('#')) {
        match line.trim().strip_prefix("machine:") {
            Some(settings) => settings.split_whitespace().try_for_each(|s| set(&mut machine, s))?,
            None => about = about.or_else(|| Some(line.trim().to_owned())),
        }
    }
    Ok((about.context("the first line is no comment that says what the scenario shows")?, machine))
}

fn set(machine: &mut Machine, setting: &str) -> Result<()> {
    let (key, value) = setting.split_once('=').with_context(|| format!("`{setting}` is not KEY=VALUE"))?;
    match key {
        "kernel" => machine.kernel = value.into(),
        "cpus" => machine.cpus = value.parse().with_context(|| format!("`{setting}`"))?,
        "memory_mib" => machine.memory_mib = value.parse().with_context(|| format!("`{setting}`"))?,
        "limit_s" => {
            machine.limit = Duration::from_secs(value.parse().with_context(|| format!("`{setting}`"))?);
        }
        _ => bail!("`{key}` is not known; use kernel, cpus, memory_mib or limit_s"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let (about, machine) =
            header("# Shows it.\n# machine: cpus=4 kernel=6.1\nset -e\n# machine: cpus=9\n").unwrap();
        assert_eq!((about.as_str(), machine.cpus, machine.kernel.as_str()), ("Shows it.", 4, "6.1"));
        assert!(header("set -e\n").is_err());
        assert!(header("# a\n# machine: cpu=4\n").is_err());
        assert!(header("# a\n# machine: cpus=many\n").is_err());
    }

    #[test]
    fn the_scenarios_of_the_tree_are_well_formed() {
        let scenarios = all(&crate::process::root().join("tests/vm/scenarios")).unwrap();
        assert!(!scenarios.is_empty());
    }
}
