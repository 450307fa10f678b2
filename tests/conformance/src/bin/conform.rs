//! The conformance suite against one namespace of an NVMe/TCP target that somebody else set up.
//!
//! `conform URI BLOCK_BYTES [--effort N] [--resize PROGRAM]`
//!
//! The namespace has `conformance::bench::BLOCKS` blocks, and its contents are overwritten. PROGRAM is run with a
//! number of blocks and gives the namespace that size: once before each case, and where a case grows the device.
//! Without it, growing does not apply. Prints `ok NAME`, `not ok NAME: REASON`, or `not applicable NAME` a case,
//! and ends with status 0 when none failed, 1 when one did, 2 when the arguments are wrong.
#![allow(clippy::unwrap_used, reason = "a test program: a panic is a failed test")]

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use aio::reactor::EngineChoice;
use aio::{BlockCount, BlockDevice, DeviceUri};
use conformance::reactor::ReactorDriver;
use conformance::{DriverRef, Fixture, Options, Outcome, Spec, block_on, run_each};
use nvmf::initiator::{self, NvmfDevice, resolve};

const USAGE: &str = "usage: conform nvmf+tcp://HOST:PORT/NQN BLOCK_BYTES [--effort N] [--resize PROGRAM]";

fn main() -> ExitCode {
    let (remote, block_bytes) = match parse(std::env::args().skip(1)) {
        Ok(parsed) => parsed,
        Err(why) => {
            eprintln!("conform: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut failed = false;
    run_each(&remote, block_bytes, |name, outcome, took| match outcome {
        Outcome::Passed => println!("ok {name} ({took:.0?})"),
        Outcome::NotApplicable => println!("not applicable {name}"),
        Outcome::Failed => {
            failed = true;
            println!("not ok {name}: see the panic above ({took:.0?})");
        }
    });
    ExitCode::from(u8::from(failed))
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<(Remote, u32), String> {
    let uri = args.next().ok_or("no URI")?;
    let block_bytes = args.next().ok_or("no block size")?;
    let block_bytes = block_bytes.parse().map_err(|e| format!("block size `{block_bytes}`: {e}"))?;
    let Ok(DeviceUri::Nvmf(parsed)) = uri.parse() else {
        return Err(format!("`{uri}` is no nvmf URI"));
    };
    let addr = resolve(&parsed).map_err(|e| e.to_string())?;
    let mut options = initiator::Options::from_uri(&parsed, addr).map_err(|e| e.to_string())?;
    // Some cases keep the home core from turning for a while, and emulated machines are slow.
    options.kato_ms = 0;
    options.io_timeout = Duration::from_secs(300);
    options.admin_timeout = Duration::from_secs(60);
    options.connect_timeout = Duration::from_secs(60);
    let mut remote = Remote { options, effort: Options::default().effort, resize: None };
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("`{flag}` without a value"))?;
        match flag.as_str() {
            "--effort" => remote.effort = value.parse().map_err(|e| format!("--effort {value}: {e}"))?,
            "--resize" => remote.resize = Some(value),
            _ => return Err(format!("`{flag}` is not known")),
        }
    }
    Ok((remote, block_bytes))
}

/// A namespace on the other side of a connection; every case connects anew.
struct Remote {
    options: initiator::Options,
    effort: u32,
    resize: Option<String>,
}

impl Remote {
    /// Gives the namespace this size; false when nobody said how.
    fn resize(&self, blocks: u64) -> bool {
        let Some(program) = &self.resize else { return false };
        let status = Command::new(program).arg(blocks.to_string()).status();
        assert!(status.is_ok_and(|s| s.success()), "`{program} {blocks}` failed");
        true
    }
}

impl Fixture for Remote {
    fn create(&self, spec: Spec, driver: &DriverRef) -> Arc<dyn BlockDevice> {
        self.resize(spec.blocks);
        block_on(driver, NvmfDevice::connect(self.options.clone())).expect("a connection")
    }

    fn driver(&self) -> DriverRef {
        ReactorDriver::shared(EngineChoice::Auto).expect("a reactor")
    }

    fn options(&self) -> Options {
        Options { effort: self.effort, ..Options::default() }
    }

    fn grow(&self, _: &Arc<dyn BlockDevice>, blocks: BlockCount) -> bool {
        self.resize(blocks.0)
    }
}
