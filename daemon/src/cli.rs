//! The command line of the binary.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rpc::cli::{GlobalArgs, Printer};

use crate::check::CheckArgs;
use crate::demo::DemoArgs;
use crate::error::chain;
use crate::perf::args::PerfArgs;
use crate::serve::args::ServeArgs;

/// Keelson: a userspace NVMe storage engine. Serves disks, files and RAM as NVMe over TCP to any Linux host.
#[derive(Parser, Debug)]
#[command(name = "keelson", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub struct Cli {
    /// For every command.
    #[command(flatten)]
    pub globals: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Start here:
  keelson demo                                     a disk over NVMe/TCP, and how to connect a Linux host to it

A daemon, and a disk of it:
  keelson serve &                                  gRPC on 127.0.0.1:10124, NVMe/TCP on 127.0.0.1:8420
  keelson bdev create 'malloc:///ram0?size_mb=64'
  keelson bdev share ram0
  keelson bdev list
  nvme connect -t tcp -a 127.0.0.1 -s 8420 -n nqn.2019-05.io.openebs:ram0      on the Linux host

A pool, and a replica of it:
  keelson pool create tpool /dev/sdb
  keelson replica create tpool replica1 --size=10GiB --thin -p nvmf
  keelson replica list

Measure:
  keelson perf 'malloc:///m?size_mb=256' --rw randread --qd 128

Exit codes: 0 done; 1 it failed, and stderr says why and what to do; 2 wrong arguments.";

/// Status of a `pool check` that could not look.
const CANNOT_LOOK: u8 = 2;

/// Commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the daemon: block devices over NVMe/TCP, controlled over gRPC
    Serve(Box<ServeArgs>),
    /// Show it all in one go: a disk, exported, written and read over NVMe/TCP, and served until Ctrl-C
    Demo(DemoArgs),
    /// Generate load on devices and measure them; `perf resource` asks a running daemon
    Perf(PerfArgs),
    /// Pools: storage of one or more disks
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Asks a running daemon.
    #[command(flatten)]
    Client(rpc::cli::Command),
}

/// Commands of `pool`.
#[derive(Subcommand, Debug)]
pub enum PoolCommand {
    /// Look whether everything is right with a pool that is not open; asks no daemon
    Check(CheckArgs),
    /// Asks a running daemon.
    #[command(flatten)]
    Client(rpc::cli::PoolCommand),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Wrong arguments end here, with status 2.
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(e) if is_closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            tell(&e);
            ExitCode::FAILURE
        }
    }
}

fn tell(error: &anyhow::Error) {
    // stderr may be closed as well, and then there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "Error: {}", chain(error.as_ref()));
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    // The control side is small: one thread serves it, and a few more do what blocks.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
    let mut stdout = std::io::stdout().lock();
    let colour = stdout.is_terminal();
    match &cli.command {
        Command::Serve(args) => runtime.block_on(crate::serve::run::main(args, &mut stdout))?,
        Command::Demo(args) => {
            if !runtime.block_on(crate::demo::main(args, &mut stdout))? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Client(command) => {
            let mut printer = Printer::new(&cli.globals, &mut stdout, colour);
            runtime.block_on(rpc::cli::run(&cli.globals, command, &mut printer))?;
        }
        Command::Pool(PoolCommand::Client(command)) => {
            let mut printer = Printer::new(&cli.globals, &mut stdout, colour);
            runtime.block_on(rpc::cli::run_pool(&cli.globals, command, &mut printer))?;
        }
        Command::Pool(PoolCommand::Check(args)) => {
            let checked = runtime.block_on(crate::check::main(&cli.globals, args, &mut stdout));
            return match checked {
                Ok(true) => Ok(ExitCode::SUCCESS),
                Ok(false) => Ok(ExitCode::FAILURE),
                Err(e) if is_closed_pipe(&e) => Err(e),
                // That nothing could be looked at is another matter than that something is wrong.
                Err(e) => {
                    tell(&e);
                    Ok(ExitCode::from(CANNOT_LOOK))
                }
            };
        }
        Command::Perf(PerfArgs { daemon: Some(command), .. }) => {
            let mut printer = Printer::new(&cli.globals, &mut stdout, colour);
            runtime.block_on(rpc::cli::run_perf(&cli.globals, command, &mut printer))?;
        }
        Command::Perf(args) => {
            if !runtime.block_on(crate::perf::args::main(&cli.globals, args, &mut stdout))? {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whoever read our output has had enough (`keelson bdev list | head -1`): no failure of ours.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        let client = cause.downcast_ref::<rpc::ClientError>();
        io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
            || client.is_some_and(rpc::ClientError::is_closed_pipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
