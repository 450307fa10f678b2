//! Instructions and allocations per I/O: our initiator on our target over a transport in memory, and the volume store.
//!
//! # Map
//! - [`pipe`]: the transport. - [`stage`]: initiator and target on it, in one thread, turn by turn.
//! - [`store`]: a volume of the store on a RAM disk, without a network.
//! - [`allocations`]: the counting allocator. - [`gate`]: runs under callgrind, compared with `baseline.toml`.
//!
//! Neither figure depends on the machine's speed, so both can be gates where throughput cannot. No kernel is
//! involved: what is counted is what Keelson adds to the kernel's work, plus two copies of the payload.
#![deny(unsafe_code)]

mod allocations;
mod gate;
mod pipe;
mod stage;
mod store;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Write what was counted into the baseline.
    #[arg(long)]
    bless: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Runs so many I/Os of a cell; what callgrind watches.
    #[command(hide = true)]
    Run { cell: String, ios: u64 },
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Run { cell, ios }) => {
            let named = |cells: &'static [stage::Cell]| cells.iter().find(|c| c.name == cell);
            let allocated = match (named(&stage::CELLS), named(&store::CELLS)) {
                (Some(cell), _) => stage::run(cell, ios)?,
                (_, Some(cell)) => store::run(cell, ios)?,
                _ => anyhow::bail!("no cell is called `{cell}`"),
            };
            println!("allocations {allocated}");
            Ok(ExitCode::SUCCESS)
        }
        None => gate::run(cli.bless),
    }
}
