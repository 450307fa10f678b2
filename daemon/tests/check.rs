//! `keelson pool check` as people and scripts meet it: what it says and how it ends.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const BLOCK: u64 = 4096;
const DISK_BYTES: u64 = 64 << 20;

fn keelson() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keelson"));
    for name in ["MY_POD_IP", "RUST_LOG", "API_VERSION", "NVMF_TGT_IFACE", "HOSTNQN", "DIAGNOSE_STACK"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `pool check`; gives its status, stdout, stderr.
fn check(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = keelson().args(["pool", "check"]).args(args).output().unwrap();
    (status.code(), text(&stdout), text(&stderr))
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// A daemon, killed in the hardest way when dropped.
struct Served {
    child: Child,
    bind: String,
}

impl Served {
    fn start() -> Self {
        let (grpc, nvmf) = (free_port(), free_port());
        let args = ["serve", "-N", "test", "--no-huge-pages", "--grpc-port", &grpc, "--nvmf-port", &nvmf];
        let mut child = keelson().args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|l| l.is_ok_and(|l| l.ends_with("is ready."))), "it did not become ready");
        Self { child, bind: format!("127.0.0.1:{grpc}") }
    }

    fn answer(&self, args: &[&str]) -> String {
        let output = keelson().args(["-b", &self.bind]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A folder with files for disks.
struct Disks {
    /// Goes with the test.
    _folder: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

impl Disks {
    fn new(count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let make = |n: usize| {
            let path = folder.path().join(format!("disk{n}"));
            File::create(&path).unwrap().set_len(DISK_BYTES).unwrap();
            path
        };
        let paths = (0..count).map(make).collect();
        Self { _folder: folder, paths }
    }

    fn names(&self) -> Vec<&str> {
        self.paths.iter().map(|p| p.to_str().unwrap()).collect()
    }

    /// A pool with a replica to which something was written; `end` says how the daemon ends.
    fn filled(&self, end: impl FnOnce(&mut Served)) {
        let mut daemon = Served::start();
        let mut create = vec!["pool", "create", "tpool"];
        create.extend(self.names());
        daemon.answer(&create);
        daemon.answer(&["replica", "create", "tpool", "r", "--size=8MiB", "--thin", "-p", "nvmf"]);
        let replicas = daemon.answer(&["replica", "list", "-q"]);
        let uri =
            replicas.split_whitespace().find(|word| word.starts_with("nvmf+tcp://")).unwrap().to_owned();
        let perf = ["perf", &uri, "--rw", "randwrite", "--time", "0.3", "--bs", "16KiB", "--verify"];
        let perf = keelson().args(perf).output().unwrap();
        assert!(perf.status.success(), "{}", text(&perf.stderr));
        end(&mut daemon);
    }
}

fn exported(daemon: &mut Served) {
    daemon.answer(&["pool", "export", "tpool"]);
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

#[test]
fn clean_pools_end_with_0_and_are_not_changed() {
    let disks = Disks::new(2);
    disks.filled(exported);
    let before: Vec<_> = disks.paths.iter().map(|p| std::fs::read(p).unwrap()).collect();
    let mut args = disks.names();
    let (status, out, err) = check(&args);
    assert_eq!((status, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.starts_with("Pool tpool: 1 volumes") && out.ends_with("Nothing is wrong.\n"), "{out}");
    args.push("--data");
    let (status, out, _) = check(&args);
    assert_eq!(status, Some(0));
    assert!(out.contains("\nData read: "), "{out}");

    // The order does not matter, nor do URIs; JSON has everything.
    let uris: Vec<_> = disks.names().iter().rev().map(|p| format!("aio://{p}?blk_size=512")).collect();
    let (status, out, _) = check(&[&uris[0], &uris[1], "--data", "--repair", "--yes", "-o", "json"]);
    assert_eq!(status, Some(0));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((json["pool"].as_str(), json["wrong"].as_u64()), (Some("tpool"), Some(0)));
    assert!(json["blocks"].as_u64().unwrap() > 100);
    assert_eq!(json["verified_bytes"].as_u64(), json["blocks"].as_u64().map(|b| b * BLOCK));
    assert_eq!(
        (json["findings"].as_array().map(Vec::len), json["repaired"].as_array().map(Vec::len)),
        (Some(0), Some(0))
    );
    let after: Vec<_> = disks.paths.iter().map(|p| std::fs::read(p).unwrap()).collect();
    assert!(before == after, "a look changed a disk");
}

#[test]
fn a_pool_that_is_open_is_refused_and_one_after_a_kill_is_clean() {
    let disks = Disks::new(1);
    let name = disks.names()[0];
    disks.filled(|daemon| {
        let (status, out, err) = check(&[name]);
        assert_eq!((status, out.as_str()), (Some(2), ""));
        assert!(err.contains("in use") && err.contains("pool export"), "{err}");
        daemon.kill();
    });
    let (status, out, err) = check(&[name, "--data", "-o", "json"]);
    assert_eq!(status, Some(0), "{out}{err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(json["blocks"].as_u64().unwrap() + json["tail_blocks"].as_u64().unwrap() > 100, "{json}");
}

#[test]
fn flipped_bits_are_told_and_copies_repaired() {
    let disks = Disks::new(1);
    let (name, path) = (disks.names()[0], &disks.paths[0]);
    disks.filled(exported);
    // Copy B of the label.
    flip(path, 8 * BLOCK + 33);
    let (status, out, _) = check(&[name]);
    assert_eq!(status, Some(1));
    assert!(out.contains("copy B of the label of") && out.contains("--repair can write 1 copy"), "{out}");

    // Nobody is there to say yes.
    let before = std::fs::read(path).unwrap();
    let (status, _, err) = check(&[name, "--repair"]);
    assert_eq!(status, Some(2));
    assert!(err.contains("--yes"), "{err}");
    assert!(std::fs::read(path).unwrap() == before);

    let (status, out, err) = check(&[name, "--repair", "--yes"]);
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(out.contains("Repaired: wrote the label of") && out.ends_with("Nothing is wrong.\n"), "{out}");

    // Data: found only when it is read, and nothing can be done about it.
    let image = std::fs::read(path).unwrap();
    let blocks = image.chunks_exact(BLOCK as usize).enumerate().skip(256);
    let mut hit = 0;
    for (at, block) in blocks {
        // Not what the store made: payload, some of which is not in use any more.
        if !block.starts_with(b"KS") && block.iter().filter(|b| **b != 0).count() > 1_000 {
            flip(path, at as u64 * BLOCK + 2_000);
            hit += 1;
        }
    }
    assert!(hit > 0, "perf writes stamps all over its blocks");
    assert_eq!(check(&[name]).0, Some(0));
    let (status, out, _) = check(&[name, "--data"]);
    assert_eq!(status, Some(1));
    assert!(out.contains("has a wrong checksum") && out.contains("things are wrong."), "{out}");
    assert!(!out.contains("--repair can"), "{out}");
}

#[test]
fn what_is_no_pool_or_not_all_of_it_ends_with_2() {
    let disks = Disks::new(2);
    disks.filled(exported);
    let names = disks.names();
    let (status, out, err) = check(&names[..1]);
    assert_eq!((status, out.as_str()), (Some(2), ""));
    assert!(err.contains("has 2 disks, and these are missing"), "{err}");

    let other = Disks::new(1);
    let empty = other.names()[0];
    for (args, want) in [
        (vec![empty], "there is no pool on"),
        (vec![names[0], empty], "there is no pool on"),
        (vec!["/nonexistent/disk"], "does not exist"),
        (vec![names[0], names[0]], "named twice"),
        (vec!["bdev:///nothing"], "nothing"),
        (vec!["ftp://x/y"], "scheme"),
        (vec!["malloc:///m?size_mb=64"], "there is no pool on"),
        (vec![], "Usage"),
        (vec![names[0], names[1], "--yes"], "--repair"),
    ] {
        let (status, out, err) = check(&args);
        assert_eq!((status, out.as_str()), (Some(2), ""), "{args:?}");
        assert!(err.contains(want), "{args:?}: {err}");
    }
}
