//! Rules about the tree itself: the fixed top level, file sizes, maps, leftovers.

use crate::process::{output, root};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// What may stand at the top beside dot-files. Anything new needs a decision, not a habit.
const TOP_LEVEL: [&str; 17] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "aio",
    "clippy.toml",
    "daemon",
    "deny.toml",
    "docs",
    "drivers",
    "lvs",
    "nexus",
    "nvme",
    "nvmf",
    "rpc",
    "rustfmt.toml",
    "tests",
];

/// A source file above this is split.
const MAX_LINES: usize = 1_200;

/// Returns what is out of order, one sentence each.
pub(crate) fn check() -> Result<Vec<String>> {
    let top = root();
    let mut listing = Command::new("git");
    listing.current_dir(&top).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let files = output(&mut listing).context("listing the tree with git")?;
    let files: Vec<&str> = files.split('\0').filter(|f| !f.is_empty()).collect();
    let mut found: Vec<String> = files.iter().filter_map(|file| top_level(file)).collect();
    found.sort();
    found.dedup();
    for file in files.iter().filter(|f| f.ends_with(".rs")) {
        // A file that git still lists and that is gone from the tree is being removed.
        if let Ok(text) = std::fs::read_to_string(top.join(file)) {
            found.extend(source(file, &text));
        }
    }
    Ok(found)
}

fn top_level(file: &str) -> Option<String> {
    let name = file.split('/').next().unwrap_or(file);
    let known = name.starts_with('.') || TOP_LEVEL.contains(&name);
    (!known).then(|| format!("`{name}` does not belong at the top of the tree"))
}

fn source(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        found.push(format!("{file}: {lines} lines; split it (limit {MAX_LINES}, most files have 200-600)"));
    }
    let name = Path::new(file).file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if matches!(name, "lib.rs" | "main.rs" | "mod.rs") && !text.starts_with("//!") {
        found.push(format!("{file}: starts with no `//!` map of what is where"));
    }
    for (number, line) in text.lines().enumerate() {
        if ["TODO", "FIXME", "XXX"].iter().any(|word| is_comment_with(line, word)) {
            found.push(format!("{file}:{}: leftover note; finish it or file an issue", number + 1));
        }
    }
    found
}

/// Whether a line's comment holds the word. Strings that hold it (as the list above) are not comments.
fn is_comment_with(line: &str, word: &str) -> bool {
    line.find("//").is_some_and(|at| line[at..].split(|c: char| !c.is_alphanumeric()).any(|w| w == word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_level_is_fixed() {
        assert_eq!(top_level("nvme/src/lib.rs"), None);
        assert_eq!(top_level(".ci/run"), None);
        assert_eq!(top_level("tests/xtask/Cargo.toml"), None);
        assert!(top_level("utils/src/lib.rs").is_some());
        assert!(top_level("notes.md").is_some());
    }

    #[test]
    fn sources() {
        assert!(source("a/src/lib.rs", "//! Map.\n").is_empty());
        assert_eq!(source("a/src/lib.rs", "mod x;\n").len(), 1);
        assert_eq!(
            source("a/src/b.rs", &format!("let a = 1; // {}: later\n", ["TO", "DO"].concat())).len(),
            1
        );
        assert_eq!(source("a/src/b.rs", &"\n".repeat(MAX_LINES + 1)).len(), 1);
    }
}
