//! Syscalls per I/O of the target, counted by `strace` in a run of its own.
//!
//! Under strace each call costs so much that more I/Os wait for the next one: batches are larger than in a run
//! that is measured, and the figure is a lower bound. At depth 1 there are no batches, and it is exact.

use crate::cell::Cell;
use crate::served::{self, Daemon};
use crate::table::Settings;
use anyhow::{Context, Result};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Calls per I/O; `None` where strace is not installed or not allowed.
pub(crate) fn per_io(
    daemon: &Daemon,
    settings: &Settings<'_>,
    cell: &Cell,
    uri: &str,
) -> Result<Option<f64>> {
    let mut strace = Command::new("strace");
    strace.args(["-c", "-f", "-q", "-p", &daemon.pid().to_string()]);
    let Ok(strace) = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn() else {
        return Ok(None);
    };
    // It has to attach to every thread first.
    std::thread::sleep(Duration::from_millis(300));
    let time = Duration::from_secs(1);
    let sample = served::perf(settings.keelson, uri, cell, settings.cores.1, time)?;
    Command::new("kill").args(["-INT", &strace.id().to_string()]).status().context("ending strace")?;
    let output = strace.wait_with_output().context("waiting for strace")?;
    let text = String::from_utf8_lossy(&output.stderr);
    Ok(total_calls(&text).map(|calls| calls as f64 / (sample.iops * time.as_secs_f64()).max(1.0)))
}

/// The sum of strace's table: the calls column of its line `total`.
fn total_calls(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().last() == Some("total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read() {
        let text = "% time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n \
            99.00    0.100000          10     10000       123 recvmsg\n\
            100.00    0.100000          10     10500       123 total\n";
        assert_eq!(total_calls(text), Some(10_500));
        assert_eq!(total_calls("strace: attach: Operation not permitted"), None);
    }
}
