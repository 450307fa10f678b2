//! Every dependency's licence against the list in `deny.toml`.
//!
//! `cargo deny` does this and more, but is a tool that a clean machine does not have. The list has one home.

use crate::process::{cargo, output, root};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeSet;

/// Returns each package whose licence expression the list does not satisfy.
pub(crate) fn check() -> Result<Vec<String>> {
    let path = root().join("deny.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let allowed = allowed(&text)?;
    let text = output(cargo().args(["metadata", "--format-version", "1", "--locked", "--quiet"]))?;
    let metadata: Value = serde_json::from_str(&text).context("reading the output of `cargo metadata`")?;
    let packages = metadata["packages"].as_array().context("`cargo metadata` names no packages")?;
    let mut found = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or("a package without a name");
        match package["license"].as_str() {
            Some(expression) if satisfied(expression, &allowed) => {}
            Some(expression) => {
                found.push(format!("{name}: licence `{expression}` is not in deny.toml's list"))
            }
            None => found.push(format!("{name}: names no licence")),
        }
    }
    Ok(found)
}

fn allowed(deny: &str) -> Result<BTreeSet<String>> {
    let table: toml::Table = deny.parse().context("reading deny.toml")?;
    let list = table.get("licenses").and_then(|l| l.get("allow")).and_then(toml::Value::as_array);
    let list = list.context("deny.toml has no list `licenses.allow`")?;
    Ok(list.iter().filter_map(toml::Value::as_str).map(String::from).collect())
}

/// Whether an SPDX expression can be met by allowed licences: OR needs one side, AND both. The old form
/// `A/B` means OR.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = tokens.as_slice();
    any_of(&mut rest, allowed) && rest.is_empty()
}

fn any_of(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(rest, allowed);
    while let [first, tail @ ..] = rest
        && *first == "OR"
    {
        *rest = tail;
        met |= all_of(rest, allowed);
    }
    met
}

fn all_of(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = one(rest, allowed);
    while let [first, tail @ ..] = rest
        && *first == "AND"
    {
        *rest = tail;
        met &= one(rest, allowed);
    }
    met
}

fn one(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    match *rest {
        ["(", tail @ ..] => {
            *rest = tail;
            let met = any_of(rest, allowed);
            match *rest {
                [")", tail @ ..] => {
                    *rest = tail;
                    met
                }
                _ => false,
            }
        }
        [id, "WITH", exception, tail @ ..] => {
            *rest = tail;
            allowed.contains(&format!("{id} WITH {exception}")) || allowed.contains(*id)
        }
        [id, tail @ ..] => {
            *rest = tail;
            allowed.contains(*id)
        }
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let list = allowed("[licenses]\nallow = [\"MIT\", \"Unicode-3.0\"]").expect("well formed");
        for good in [
            "MIT",
            "MIT OR GPL-2.0",
            "GPL-2.0/MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "GPL-2.0 AND MIT OR MIT",
        ] {
            assert!(satisfied(good, &list), "{good}");
        }
        for bad in
            ["", "GPL-2.0", "MIT AND GPL-2.0", "(MIT", "MIT)", "MIT MIT", "(GPL-2.0 OR Apache-2.0) AND MIT"]
        {
            assert!(!satisfied(bad, &list), "{bad}");
        }
    }
}
