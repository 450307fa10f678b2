//! What a scenario or fuzz target proves something about: the folders and files that it runs.
//!
//! Its record stands for as long as these stay the same; a commit elsewhere, or one of documents, leaves it
//! alone. What a scope names is its git tree: the object ids of its paths, hashed.

use super::Kind;
use crate::process::{output, root};
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::process::{Command, Stdio};

/// Paths below the top of the tree, by what is recorded. A folder stands for everything in it.
const SCOPES: &[(&str, &[&str])] = &[
    ("sim bytes", &["aio", "tests/sim"]),
    ("sim initiator", &["nvme", "aio", "nvmf", "tests/sim"]),
    ("sim nvmf", &["nvme", "aio", "nvmf", "tests/sim"]),
    ("lvs model", ATTACK),
    ("lvs crash", ATTACK),
    ("lvs faults", ATTACK),
    ("lvs kill", &["nvme", "aio", "nvmf", "lvs/src", "lvs/Cargo.toml", "rpc", "daemon", "tests/pools"]),
    ("fuzz pdu", &["nvme", WIRE]),
    ("fuzz command", &["nvme", WIRE]),
    ("fuzz page", &["nvme", "tests/fuzz/src/targets/page.rs"]),
    ("fuzz controller", &["nvme", "nvmf/src/tcp", ENGINE, STREAM]),
    ("fuzz host", &["nvme", "nvmf/src/tcp", ENGINE, STREAM]),
    ("fuzz target", &["nvme", "aio", "nvmf", RIG, STREAM, "tests/fuzz/src/targets/target.rs"]),
    (
        "fuzz initiator",
        &["nvme", "aio", "nvmf", RIG, "tests/fuzz/src/targets/initiator.rs", "tests/sim/src/client.rs"],
    ),
    ("fuzz uri", &["aio/src/uri.rs", "nvme/src/nqn.rs", "nvmf/src/initiator/options.rs", TEXT]),
    ("fuzz setting", &["rpc/src/output", "daemon/src/serve", TEXT]),
    (
        "fuzz config",
        &["aio/src/uri.rs", "daemon/src/config.rs", STATE, DESIRED, "daemon/src/exports.rs", TEXT],
    ),
    ("fuzz state", &[STATE, DESIRED, TEXT]),
    ("fuzz lvs_record", &["lvs/src/format/record.rs", "lvs/src/format/record", LVS_TYPES, LVS]),
    ("fuzz lvs_page", &["lvs/src/format/page.rs", LVS_TYPES, LVS]),
    ("fuzz lvs_anchor", &["lvs/src/format", LVS_TYPES, LVS]),
    ("fuzz lvs_tables", &["lvs/src/format", LVS_TYPES, LVS]),
    ("fuzz lvs_catalog", &["lvs/src/format", LVS_TYPES, LVS]),
    (
        "fuzz lvs_delta",
        &[
            "lvs/src/index/delta.rs",
            "lvs/src/index/dump.rs",
            "lvs/src/index/holes.rs",
            "lvs/src/index/ordered.rs",
            LVS_TYPES,
            "tests/fuzz/src/targets/delta.rs",
        ],
    ),
    ("fuzz tables", &["daemon/src/host", "daemon/src/serve/iface.rs", TEXT]),
];

/// The attacks on pools, and what they run.
const ATTACK: &[&str] =
    &["nvme", "aio", "lvs/src", "lvs/Cargo.toml", "lvs/tests/harness", "lvs/tests/rig", "tests/pools"];
const WIRE: &str = "tests/fuzz/src/targets/wire.rs";
const ENGINE: &str = "tests/fuzz/src/targets/engine.rs";
const STREAM: &str = "tests/fuzz/src/targets/stream.rs";
const TEXT: &str = "tests/fuzz/src/targets/text.rs";
const RIG: &str = "tests/fuzz/src/rig";
const LVS: &str = "tests/fuzz/src/targets/lvs.rs";
const LVS_TYPES: &str = "lvs/src/types.rs";
const STATE: &str = "daemon/src/state.rs";
const DESIRED: &str = "daemon/src/desired.rs";

/// For what is not in [`SCOPES`]: everything that it could run.
const ALL: &[&str] =
    &["nvme", "aio", "nvmf", "lvs", "rpc", "daemon", "tests/sim", "tests/pools", "tests/fuzz"];

/// Digits of a tree's name.
const DIGITS: usize = 10;

/// Everything that has a scope.
pub(super) fn names() -> Vec<(Kind, String)> {
    let name = |what: &str| match what.split_once(' ') {
        Some(("sim", name)) => (Kind::Sim, name.to_owned()),
        Some(("lvs", name)) => (Kind::Pools, name.to_owned()),
        _ => (Kind::Fuzz, what.trim_start_matches("fuzz ").to_owned()),
    };
    SCOPES.iter().map(|(what, _)| name(what)).collect()
}

/// The paths that `what` covers.
pub(super) fn paths(what: &str) -> &'static [&'static str] {
    SCOPES.iter().find(|(name, _)| *name == what).map_or(ALL, |(_, paths)| paths)
}

/// The name of the committed tree that `what` covers. An error when something there is not committed: a record
/// has to name what ran.
pub(super) fn tree(what: &str) -> Result<String> {
    let paths = paths(what);
    let status = git(&[&["status", "--porcelain", "--"], paths].concat())?;
    ensure!(status.is_empty(), "`{what}` covers changes that are not committed:\n{status}commit them first");
    let objects = git(&[&["ls-tree", "HEAD", "--"], paths].concat())?;
    let mut hash = Command::new("git");
    hash.current_dir(root()).args(["hash-object", "--stdin"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = hash.spawn().context("starting `git hash-object`")?;
    let mut stdin = child.stdin.take().expect("invariant: stdin is piped");
    stdin.write_all(objects.as_bytes()).context("writing to `git hash-object`")?;
    drop(stdin);
    let done = child.wait_with_output().context("waiting for `git hash-object`")?;
    let name = String::from_utf8(done.stdout).context("`git hash-object` printed no text")?;
    ensure!(done.status.success() && name.len() > DIGITS, "`git hash-object` ended with {}", done.status);
    Ok(name[..DIGITS].to_owned())
}

/// The commit at hand.
pub(super) fn commit() -> Result<String> {
    Ok(git(&["rev-parse", "--short=10", "HEAD"])?.trim().to_owned())
}

fn git(arguments: &[&str]) -> Result<String> {
    output(Command::new("git").current_dir(root()).args(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_a_scope_exists() {
        for (what, paths) in SCOPES {
            for path in *paths {
                assert!(root().join(path).exists(), "{what} covers {path}, which is not there");
            }
        }
        assert_eq!(paths("sim of tomorrow"), ALL);
    }
}
