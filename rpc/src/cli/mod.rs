//! The commands that speak gRPC. `daemon` puts them into the binary beside `serve`, `perf` and `demo`.
//!
//! Each command is two steps: the call, and a pure function from its answer to a
//! [`Table`]. Exit codes: 0 done (an empty list too), 1 refused or failed, 2 wrong
//! arguments (from clap).

mod bdev;
mod controller;
mod device;
mod disks;
mod nexus;
mod pool;
mod rebuild;
mod replica;
mod resource;
mod scrub;
mod snapshot;
mod stats;
mod subsystem;
mod test;

use std::io::Write;

use clap::{ArgAction, Args, Subcommand};
use serde::Serialize;

pub use pool::Command as PoolCommand;
pub use resource::PerfCommand;

use crate::output::{Format, Table, Units, write_json};
use crate::{Client, ClientError, Endpoint};

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct GlobalArgs {
    /// Address of the daemon; scheme and port are filled in when missing
    #[arg(
        short,
        long,
        global = true,
        env = "MY_POD_IP",
        default_value = "http://127.0.0.1:10124",
        value_name = "HOST"
    )]
    pub bind: String,

    /// No headers, no padding, no notices
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Say more; twice: also what is being done
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// Units of sizes: i = KiB, MiB, GiB; d = KB, MB, GB; none = bytes. Goes before the command
    #[arg(short, long, value_enum, value_name = "i|d")]
    pub units: Option<Units>,

    /// How to show results
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Commands that ask a running daemon.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Block devices of the daemon: create, destroy, list, share, unshare
    #[command(subcommand)]
    Bdev(bdev::Command),
    /// Replicas: volumes of a pool
    #[command(subcommand)]
    Replica(replica::Command),
    /// Nexuses: volumes that are mirrored over children
    #[command(subcommand)]
    Nexus(nexus::Command),
    /// Rebuilds: copies of what the children of nexuses lack
    #[command(subcommand)]
    Rebuild(rebuild::Command),
    /// Snapshots of replicas, and clones of them
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Counters of pools, nexuses and replicas
    #[command(subcommand)]
    Stats(stats::Command),
    /// Wipe or checksum a replica
    #[command(subcommand)]
    Test(test::Command),
    /// Disks and partitions of the host
    #[command(subcommand)]
    Device(device::Command),
    /// NVMe controllers that the daemon is connected to
    #[command(subcommand)]
    Controller(controller::Command),
    /// NVMe-oF subsystems: namespaces, hosts, ANA, who is connected
    #[command(subcommand)]
    Subsystem(subsystem::Command),
}

/// Where results go and how.
pub struct Printer<'a> {
    out: &'a mut dyn Write,
    format: Format,
    quiet: bool,
    verbose: u8,
    units: Option<Units>,
    colour: bool,
}

impl<'a> Printer<'a> {
    /// `colour`: whether `out` is a terminal.
    pub fn new(globals: &GlobalArgs, out: &'a mut dyn Write, colour: bool) -> Self {
        let GlobalArgs { quiet, verbose, units, output, .. } = *globals;
        Self { out, format: output, quiet, verbose, units, colour }
    }

    fn size(&self, bytes: u64) -> String {
        Units::show_or_plain(self.units, bytes)
    }

    /// The answer as JSON, or the table made of it; an empty one is `none_notice`.
    fn list(&mut self, answer: &impl Serialize, table: &Table, none_notice: &str) -> Result<(), ClientError> {
        match self.format {
            Format::Json => write_json(self.out, answer, self.colour),
            Format::Default if table.is_empty() && self.quiet => Ok(()),
            Format::Default if table.is_empty() => Ok(writeln!(self.out, "{none_notice}")?),
            Format::Default => Ok(table.write(self.out, self.quiet)?),
        }
    }

    /// Text in any format.
    fn text(&mut self, text: &str) -> Result<(), ClientError> {
        Ok(writeln!(self.out, "{text}")?)
    }

    /// Text that has no form in JSON.
    fn text_only(&mut self, text: &str) -> Result<(), ClientError> {
        match self.format {
            Format::Json => Ok(()),
            Format::Default => self.text(text),
        }
    }

    /// For the eyes of whoever typed the command: not part of the result.
    fn note(&self, text: &str) {
        if !self.quiet {
            // `eprintln!` would panic when nobody reads it.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// The answer as JSON, or one line of text.
    fn line(&mut self, answer: &impl Serialize, text: &str) -> Result<(), ClientError> {
        match self.format {
            Format::Json => write_json(self.out, answer, self.colour),
            Format::Default => Ok(writeln!(self.out, "{text}")?),
        }
    }
}

/// What an empty message looks like in JSON.
#[derive(Serialize)]
struct Empty {}

/// Runs one command against the daemon that `globals` names.
pub async fn run(
    globals: &GlobalArgs,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let client = connect(globals, printer).await?;
    match command {
        Command::Bdev(c) => bdev::run(&client, c, printer).await,
        Command::Replica(c) => replica::run(&client, c, printer).await,
        Command::Nexus(c) => nexus::run(&client, c, printer).await,
        Command::Rebuild(c) => rebuild::run(&client, c, printer).await,
        Command::Snapshot(c) => snapshot::run(&client, c, printer).await,
        Command::Stats(c) => stats::run(&client, c, printer).await,
        Command::Test(c) => test::run(&client, c, printer).await,
        Command::Device(c) => device::run(&client, c, printer).await,
        Command::Controller(c) => controller::run(&client, c, printer).await,
        Command::Subsystem(c) => subsystem::run(&client, c, printer).await,
    }
}

/// Runs one command of `pool`.
pub async fn run_pool(
    globals: &GlobalArgs,
    command: &PoolCommand,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let client = connect(globals, printer).await?;
    pool::run(&client, command, printer).await
}

/// Runs `perf resource`.
pub async fn run_perf(
    globals: &GlobalArgs,
    command: &PerfCommand,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let client = connect(globals, printer).await?;
    resource::run(&client, command, printer).await
}

async fn connect(globals: &GlobalArgs, printer: &Printer<'_>) -> Result<Client, ClientError> {
    match std::env::var("API_VERSION") {
        Ok(version) if version != "v1" => return Err(ClientError::ApiVersion(version)),
        _ => {}
    }
    let endpoint: Endpoint = globals.bind.parse()?;
    if printer.verbose >= 2 {
        // `eprintln!` would panic when nobody reads it.
        let _ = writeln!(std::io::stderr(), "Connecting to {endpoint}");
    }
    Client::connect(&endpoint).await
}

#[cfg(test)]
mod testing {
    //! Golden files: `tests/golden/NAME.txt` holds what a command prints.
    //! `KEELSON_BLESS=1 cargo test -p rpc` writes them anew; read the difference before committing it.

    use std::path::Path;

    use super::{Format, Printer, Units};

    pub(super) fn golden(
        name: &str,
        format: Format,
        units: Option<Units>,
        quiet: bool,
        show: impl FnOnce(&mut Printer<'_>),
    ) {
        let mut out = Vec::new();
        show(&mut Printer { out: &mut out, format, quiet, verbose: 0, units, colour: false });
        let got = String::from_utf8(out).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
        if std::env::var_os("KEELSON_BLESS").is_some() {
            std::fs::write(&path, &got).unwrap();
        }
        let want = std::fs::read_to_string(&path).unwrap();
        assert_eq!(got, want, "output of {name} changed");
    }
}
