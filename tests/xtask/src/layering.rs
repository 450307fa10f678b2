//! The floors of the house: which crate may depend on which.
//!
//! A crate uses crates on lower floors only. `nvmf`, `lvs` and `nexus` never see each other: they meet at the
//! block-device contract of `aio`, and only `daemon` knows every concrete type. Nothing uses `tests`. Some
//! outside crates have a fixed place too: an async runtime never stands on the I/O path, and raw system
//! interfaces stay on the floors whose job they are.

use crate::process::{cargo, output, root};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;

/// A place in the house, known by its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nvme,
    Aio,
    Driver,
    Nvmf,
    Lvs,
    Nexus,
    Daemon,
    Rpc,
    Tests,
}

impl Place {
    /// The place of a crate whose folder is `folder`, relative to the top of the tree.
    fn of(folder: &str) -> Option<Self> {
        Some(match folder {
            "nvme" => Self::Nvme,
            "aio" => Self::Aio,
            "nvmf" => Self::Nvmf,
            "lvs" => Self::Lvs,
            "nexus" => Self::Nexus,
            "daemon" => Self::Daemon,
            "rpc" => Self::Rpc,
            _ if folder.starts_with("drivers/") => Self::Driver,
            _ if folder.starts_with("tests/") => Self::Tests,
            _ => return None,
        })
    }

    /// Whether a crate here may depend on a crate there.
    fn may_use(self, other: Self) -> bool {
        use Place::{Aio, Daemon, Driver, Lvs, Nexus, Nvme, Nvmf, Rpc, Tests};
        match self {
            Nvme | Rpc => false,
            Aio => other == Nvme,
            Driver => matches!(other, Nvme | Aio),
            Nvmf | Lvs | Nexus => matches!(other, Nvme | Aio | Driver),
            Daemon => other != Tests,
            Tests => true,
        }
    }

    /// Whether a crate here may depend directly on an outside crate; the reason when not.
    fn may_use_outside(self, name: &str) -> Result<(), &'static str> {
        let is =
            |family: &str| name == family || name.strip_prefix(family).is_some_and(|r| r.starts_with('-'));
        if (is("tokio") || is("tonic")) && !matches!(self, Self::Daemon | Self::Rpc | Self::Tests) {
            return Err("tokio and tonic live in `daemon` and `rpc`, never on the I/O path");
        }
        if matches!(name, "io-uring" | "libc") && !matches!(self, Self::Aio | Self::Driver | Self::Tests) {
            return Err("raw system interfaces live in `aio` and `drivers`; `rustix` has typed ones");
        }
        Ok(())
    }
}

/// Crates that may not be anywhere in the default build, which needs Rust and a C compiler only.
const NOT_IN_THE_DEFAULT_BUILD: [(&str, &str); 6] = [
    ("openssl-sys", "needs OpenSSL's headers"),
    ("bindgen", "needs libclang"),
    ("clang-sys", "needs libclang"),
    ("cmake", "needs cmake"),
    ("protoc-bin-vendored", "runs a foreign binary; protox compiles our protobufs"),
    ("tokio-uring", "is unmaintained; the reactor drives its own ring"),
];

/// Reads `cargo metadata` and returns each forbidden edge as a sentence.
pub(crate) fn check() -> Result<Vec<String>> {
    let text = output(cargo().args(["metadata", "--format-version", "1", "--locked", "--quiet"]))?;
    let metadata: Value = serde_json::from_str(&text).context("reading the output of `cargo metadata`")?;
    forbidden(&metadata, &root())
}

fn forbidden(metadata: &Value, top: &Path) -> Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("`cargo metadata` names no packages")?;
    let mut found = Vec::new();
    for package in packages {
        let name = text(package, "name")?;
        if let Some((_, why)) = NOT_IN_THE_DEFAULT_BUILD.iter().find(|(banned, _)| *banned == name) {
            found.push(format!("`{name}` is in the default build, and {why}"));
        }
        // Only packages of the tree itself have no source.
        if package["source"].is_null() {
            found.extend(forbidden_from(package, top)?);
        }
    }
    Ok(found)
}

/// The forbidden edges of one package of ours.
fn forbidden_from(package: &Value, top: &Path) -> Result<Vec<String>> {
    let name = text(package, "name")?;
    let manifest = Path::new(text(package, "manifest_path")?);
    let Some(folder) = manifest.parent().and_then(|p| folder_below(p, top)) else {
        bail!("package `{name}` lies outside of the tree: {}", manifest.display());
    };
    let Some(place) = Place::of(&folder) else {
        return Ok(vec![format!("`{folder}` has no place among the floors (ARCHITECTURE.md names them)")]);
    };
    let mut found = Vec::new();
    for dependency in package["dependencies"].as_array().context("a package without a dependency list")? {
        let used = text(dependency, "name")?;
        let reason = match dependency["path"].as_str() {
            Some(path) => {
                let used_folder = folder_below(Path::new(path), top).unwrap_or_else(|| path.to_owned());
                match Place::of(&used_folder) {
                    Some(there) if place.may_use(there) => Ok(()),
                    Some(Place::Tests) => Err("nothing uses `tests`"),
                    _ => Err("a crate uses lower floors only"),
                }
            }
            None => place.may_use_outside(used),
        };
        if let Err(why) = reason {
            let kind = dependency["kind"].as_str().map(|k| format!(" ({k})")).unwrap_or_default();
            found.push(format!("{folder} -> {used}{kind}: {why}"));
        }
    }
    Ok(found)
}

fn text<'v>(value: &'v Value, field: &str) -> Result<&'v str> {
    value[field]
        .as_str()
        .with_context(|| format!("`cargo metadata`: a package or dependency without `{field}`"))
}

fn folder_below(path: &Path, top: &Path) -> Option<String> {
    Some(path.strip_prefix(top).ok()?.to_str()?.replace('\\', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(folder: &str, dependencies: &[Value]) -> Value {
        json!({ "name": folder.rsplit('/').next(), "source": null,
                "manifest_path": format!("/top/{folder}/Cargo.toml"), "dependencies": dependencies })
    }

    fn ours(folder: &str) -> Value {
        json!({ "name": folder.rsplit('/').next(), "path": format!("/top/{folder}"), "kind": null })
    }

    fn outside(name: &str, kind: Option<&str>) -> Value {
        json!({ "name": name, "kind": kind })
    }

    fn verdict(folder: &str, dependency: Value) -> Vec<String> {
        let metadata = json!({ "packages": [package(folder, &[dependency])] });
        forbidden(&metadata, Path::new("/top")).expect("well formed")
    }

    #[test]
    fn each_allowed_edge_is_allowed() {
        for (from, to) in [
            ("aio", "nvme"),
            ("drivers/pcie", "aio"),
            ("nvmf", "aio"),
            ("nvmf", "nvme"),
            ("lvs", "drivers/pcie"),
            ("nexus", "aio"),
            ("daemon", "nvmf"),
            ("daemon", "rpc"),
            ("daemon", "nexus"),
            ("tests/sim", "nvmf"),
            ("tests/conformance", "tests/sim"),
        ] {
            assert_eq!(verdict(from, ours(to)), Vec::<String>::new(), "{from} -> {to}");
        }
        for (from, to) in
            [("daemon", "tokio"), ("rpc", "tonic-prost"), ("aio", "libc"), ("drivers/vfio", "libc")]
        {
            assert_eq!(verdict(from, outside(to, None)), Vec::<String>::new(), "{from} -> {to}");
        }
    }

    #[test]
    fn each_forbidden_edge_is_refused() {
        for (from, to) in [
            ("nvme", "aio"),
            ("aio", "nvmf"),
            ("aio", "drivers/vfio"),
            ("drivers/pcie", "drivers/vfio"),
            ("nvmf", "lvs"),
            ("nvmf", "nexus"),
            ("lvs", "nvmf"),
            ("lvs", "nexus"),
            ("nexus", "nvmf"),
            ("nexus", "lvs"),
            ("nvmf", "daemon"),
            ("rpc", "aio"),
            ("rpc", "nvme"),
            ("nvmf", "rpc"),
            ("daemon", "tests/sim"),
            ("aio", "tests/conformance"),
        ] {
            assert_eq!(verdict(from, ours(to)).len(), 1, "{from} -> {to}");
        }
        for (from, to) in [
            ("nvmf", "tokio"),
            ("aio", "tokio-util"),
            ("nvme", "tonic"),
            ("nvmf", "libc"),
            ("daemon", "io-uring"),
            ("rpc", "libc"),
        ] {
            assert_eq!(verdict(from, outside(to, None)).len(), 1, "{from} -> {to}");
            assert_eq!(verdict(from, outside(to, Some("dev"))).len(), 1, "{from} -> {to} (dev)");
        }
    }

    #[test]
    fn a_crate_without_a_floor_is_refused() {
        assert_eq!(verdict("utils", outside("serde", None)).len(), 1);
    }

    #[test]
    fn names_that_only_begin_alike_are_not_meant() {
        assert!(
            verdict("nvmf", outside("tokio", None)).len() == 1
                && verdict("nvmf", outside("tokiox", None)).is_empty()
        );
    }

    #[test]
    fn a_library_that_needs_more_than_a_compiler_is_refused() {
        let metadata =
            json!({ "packages": [{ "name": "openssl-sys", "source": "registry", "dependencies": [] }] });
        assert_eq!(forbidden(&metadata, Path::new("/top")).expect("well formed").len(), 1);
    }
}
