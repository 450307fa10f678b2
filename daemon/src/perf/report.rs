//! A run's result, as a table and as JSON.

use std::io::{self, Write};
use std::time::Duration;

use rpc::output::Table;
use serde::Serialize;

use super::plan::Pattern;
use super::run::{Job, Report};
use super::stamp::Damage;
use super::worker::Direction;

/// What is shown of a run.
#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct Summary {
    devices: Vec<String>,
    pattern: Pattern,
    io_bytes: u32,
    depth: u32,
    queues: u32,
    seconds: f64,
    read: Option<Figures>,
    write: Option<Figures>,
    errors: u64,
    first_error: Option<String>,
    cpu_ns_per_io: u64,
    verify: Option<Verify>,
}

/// One direction.
#[derive(Serialize, Clone, PartialEq, Debug)]
struct Figures {
    ios: u64,
    bytes: u64,
    iops: f64,
    /// Of 1,000,000 bytes.
    mb_per_second: f64,
    mean_us: f64,
    p50_us: f64,
    p99_us: f64,
    p99_9_us: f64,
    p99_99_us: f64,
    max_us: f64,
}

#[derive(Serialize, Clone, PartialEq, Debug)]
struct Verify {
    blocks: u64,
    unstamped: u64,
    damaged: u64,
    findings: Vec<String>,
}

impl Summary {
    /// Sums a run up.
    pub fn new(devices: Vec<String>, job: &Job, report: &Report) -> Self {
        let outcome = &report.outcome;
        let ios = outcome.ios();
        let verified = &outcome.verified;
        let finding = |(lba, damage): &(aio::Lba, Damage)| format!("LBA {}: {}", lba.0, describe(damage));
        Self {
            devices,
            pattern: job.pattern,
            io_bytes: job.io_bytes,
            depth: job.depth,
            queues: job.queues,
            seconds: outcome.elapsed.as_secs_f64(),
            read: figures(&outcome.read, outcome.elapsed),
            write: figures(&outcome.write, outcome.elapsed),
            errors: outcome.errors,
            first_error: outcome.first_error.map(|(lba, status)| format!("LBA {}: {status:?}", lba.0)),
            cpu_ns_per_io: (report.cpu.as_nanos().checked_div(ios.into()).unwrap_or(0)) as u64,
            verify: job.verify.then(|| Verify {
                blocks: verified.blocks,
                unstamped: verified.unstamped,
                damaged: verified.damaged,
                findings: verified.findings.iter().map(finding).collect(),
            }),
        }
    }

    /// Nothing failed and nothing was damaged.
    pub fn is_clean(&self) -> bool {
        self.errors == 0 && self.verify.as_ref().is_none_or(|v| v.damaged == 0)
    }

    /// For people.
    pub fn write(&self, out: &mut dyn Write, quiet: bool) -> io::Result<()> {
        let mut table = Table::new(&[
            "OP",
            ">IOPS",
            ">MB/s",
            ">MEAN_us",
            ">P50_us",
            ">P99_us",
            ">P99.9_us",
            ">P99.99_us",
            ">MAX_us",
        ]);
        for (name, figures) in [("read", &self.read), ("write", &self.write)] {
            let Some(f) = figures else { continue };
            let us = [f.mean_us, f.p50_us, f.p99_us, f.p99_9_us, f.p99_99_us, f.max_us];
            let mut row = vec![name.to_owned(), format!("{:.0}", f.iops), format!("{:.1}", f.mb_per_second)];
            row.extend(us.iter().map(|us| format!("{us:.1}")));
            table.row(row);
        }
        table.write(out, quiet)?;
        if !quiet {
            writeln!(
                out,
                "{:.2} s, {} ns of CPU per I/O, {} errors",
                self.seconds, self.cpu_ns_per_io, self.errors
            )?;
        }
        if let Some(first) = &self.first_error {
            writeln!(out, "first error: {first}")?;
        }
        let Some(v) = &self.verify else { return Ok(()) };
        writeln!(
            out,
            "verified {} blocks: {} damaged, {} without a stamp",
            v.blocks, v.damaged, v.unstamped
        )?;
        v.findings.iter().try_for_each(|finding| writeln!(out, "  {finding}"))
    }
}

fn figures(direction: &Direction, elapsed: Duration) -> Option<Figures> {
    let h = &direction.latency_ns;
    if h.total() == 0 {
        return None;
    }
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let us = |ns: u64| ns as f64 / 1000.0;
    Some(Figures {
        ios: h.total(),
        bytes: direction.bytes,
        iops: h.total() as f64 / seconds,
        mb_per_second: direction.bytes as f64 / 1e6 / seconds,
        mean_us: us(h.mean()),
        p50_us: us(h.quantile(500_000)),
        p99_us: us(h.quantile(990_000)),
        p99_9_us: us(h.quantile(999_000)),
        p99_99_us: us(h.quantile(999_900)),
        max_us: us(h.max()),
    })
}

fn describe(damage: &Damage) -> String {
    match damage {
        Damage::Unstamped => "no stamp, although this run wrote it".to_owned(),
        Damage::Misplaced(s) => format!("holds the block of LBA {}, version {}", s.lba, s.version),
        Damage::Torn(s) => format!("its contents do not belong to its stamp (version {})", s.version),
        Damage::Stale(s) => {
            format!("holds version {} of writer {:#x}, not the last one", s.version, s.writer)
        }
    }
}
