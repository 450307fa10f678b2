//! `cargo xtask check`: everything that needs no test run.

use crate::process::{cargo, exists};
use crate::report::Report;
use crate::{layering, licenses, tidy};
use anyhow::Result;
use std::process::Command;
use std::time::Instant;

/// Runs every check, also after one failed, so that one run shows all there is to mend.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    command(report, "rustfmt", cargo().args(["fmt", "--all", "--check"]))?;
    command(
        report,
        "clippy",
        cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    command(
        report,
        "rustdoc",
        cargo()
            .args(["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    findings(report, "layering", layering::check)?;
    findings(report, "licences", licenses::check)?;
    findings(report, "tidy", tidy::check)?;
    deny(report)
}

fn command(report: &mut Report, name: &str, command: &mut Command) -> Result<()> {
    let start = Instant::now();
    let status = crate::process::run(command)?;
    if status.success() {
        report.pass(name, start.elapsed());
    } else {
        report.fail(name, format!("`{}` ended with {status}", crate::process::shown(command)));
    }
    Ok(())
}

/// One of our own rules: it returns what is wrong, one sentence each.
fn findings(report: &mut Report, name: &str, rule: impl FnOnce() -> Result<Vec<String>>) -> Result<()> {
    let start = Instant::now();
    let found = rule()?;
    if found.is_empty() {
        report.pass(name, start.elapsed());
    } else {
        report.fail(name, found.join("\n  "));
    }
    Ok(())
}

/// `cargo deny` adds bans and sources to our own licence check. Its advisories need a network, so they are
/// not part of a check that must give the same answer everywhere.
fn deny(report: &mut Report) -> Result<()> {
    if !exists("cargo-deny") {
        report.skip(
            "cargo deny",
            "cargo-deny",
            "cargo-deny is not installed; bans and sources were not checked",
        );
        return Ok(());
    }
    command(report, "cargo deny", cargo().args(["deny", "--offline", "check", "licenses", "bans", "sources"]))
}
