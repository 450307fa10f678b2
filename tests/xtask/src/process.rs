//! Running other programs: at the top of the tree, with their output shown as it comes.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// The top of the source tree.
pub(crate) fn root() -> PathBuf {
    // This crate stands two folders below the top; the path is that of the tree that built this binary.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("invariant: tests/xtask is two deep")
        .into()
}

/// Where Cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The Cargo that runs us, else the one on the path; started at the top of the tree.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Whether a program of that name can be started.
pub(crate) fn exists(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// How a reader would type the command.
pub(crate) fn shown(command: &Command) -> String {
    let mut line =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Runs to the end with output going straight through.
pub(crate) fn run(command: &mut Command) -> Result<ExitStatus> {
    eprintln!("+ {}", shown(command));
    command.status().with_context(|| format!("starting `{}`", shown(command)))
}

/// Runs to the end, passes each line of standard output through, and shows it to `each` as well.
/// Standard error goes straight through.
pub(crate) fn run_lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    eprintln!("+ {}", shown(command));
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting `{}`", shown(command)))?;
    let mut lines = BufReader::new(child.stdout.take().expect("invariant: stdout is piped"));
    let mut line = Vec::new();
    // Read bytes, not `lines()`: what a test or a guest prints need not be UTF-8.
    while lines.read_until(b'\n', &mut line).context("reading a program's output")? > 0 {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        println!("{text}");
        each(text);
        line.clear();
    }
    child.wait().with_context(|| format!("waiting for `{}`", shown(command)))
}

/// Runs to the end and returns standard output; a failure is an error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting `{}`", shown(command)))?;
    anyhow::ensure!(output.status.success(), "`{}` ended with {}", shown(command), output.status);
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed bytes that are no text", shown(command)))
}
