//! SPDK's `nvmf_tgt` under the same client, when `KEELSON_SPDK` names its binary.
//!
//! It polls without end, so it is stopped (SIGSTOP) whenever it is not its turn: three busy pollers on two cores
//! would measure the scheduler.

use crate::cell::Cell;
use crate::served;
use crate::table::Settings;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PORT: u16 = 4429;

/// A running `nvmf_tgt`, stopped until it is asked for figures.
pub(crate) struct Spdk {
    child: Child,
    config: PathBuf,
}

impl Spdk {
    pub(crate) fn start(binary: &Path, core: usize, device_mib: usize) -> Result<Self> {
        let config = std::env::temp_dir().join(format!("keelson-bench-spdk-{}.json", std::process::id()));
        std::fs::write(&config, configuration(device_mib).to_string())
            .with_context(|| format!("writing {}", config.display()))?;
        let child = Command::new(binary)
            .args(["-m", &format!("{:#x}", 1_u64 << core), "--no-huge", "-s", "1024", "--json"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let spdk = Self { child, config };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", PORT)).is_err() {
            ensure!(start.elapsed() < Duration::from_secs(20), "SPDK does not listen on port {PORT}");
            std::thread::sleep(Duration::from_millis(100));
        }
        spdk.signal("-STOP")?;
        Ok(spdk)
    }

    /// I/Os per second of the cell under our client.
    pub(crate) fn iops(&self, settings: &Settings<'_>, cell: &Cell) -> Result<f64> {
        self.signal("-CONT")?;
        let uri = format!("nvmf+tcp://127.0.0.1:{PORT}/{}", nqn(cell.device));
        let sample = served::perf(settings.keelson, &uri, cell, settings.cores.1, settings.time);
        self.signal("-STOP")?;
        Ok(sample?.iops)
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        ensure!(status.context("starting `kill`")?.success(), "SPDK has ended");
        Ok(())
    }
}

impl Drop for Spdk {
    fn drop(&mut self) {
        // KILL works on a stopped process too; all fail only when it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.config);
    }
}

fn nqn(device: &str) -> String {
    format!("nqn.2016-06.io.spdk:{device}")
}

fn configuration(device_mib: usize) -> serde_json::Value {
    let blocks = device_mib * 2048;
    let mut nvmf = vec![json!({ "method": "nvmf_create_transport", "params": { "trtype": "TCP" } })];
    for device in ["malloc", "null"] {
        let nqn = nqn(device);
        nvmf.push(json!({ "method": "nvmf_create_subsystem",
            "params": { "nqn": nqn, "allow_any_host": true, "serial_number": "BENCH" } }));
        nvmf.push(json!({ "method": "nvmf_subsystem_add_ns",
            "params": { "nqn": nqn, "namespace": { "bdev_name": device } } }));
        nvmf.push(json!({ "method": "nvmf_subsystem_add_listener", "params": { "nqn": nqn,
            "listen_address": { "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
                                "trsvcid": PORT.to_string() } } }));
    }
    let device = |method: &str, name: &str| json!({ "method": method, "params": { "name": name, "num_blocks": blocks, "block_size": 512 } });
    json!({ "subsystems": [
        { "subsystem": "bdev", "config": [device("bdev_malloc_create", "malloc"), device("bdev_null_create", "null")] },
        { "subsystem": "nvmf", "config": nvmf },
    ] })
}
