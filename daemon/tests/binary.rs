//! The binary as people and scripts meet it: exit codes, sentences, signals, the whole demo.

#![allow(clippy::unwrap_used)]

mod raw;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nvme::Status;
use raw::RawHost;

fn keelson() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keelson"));
    // What the caller's environment says must not matter.
    for name in ["MY_POD_IP", "RUST_LOG", "API_VERSION", "NVMF_TGT_IFACE", "HOSTNQN", "DIAGNOSE_STACK"] {
        command.env_remove(name);
    }
    command
}

fn run(args: &[&str]) -> Output {
    keelson().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A port that is free now. Somebody else may take it before we do, which is unlikely on loopback.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// `keelson serve`, killed when the test fails.
struct Served {
    child: Child,
    bind: String,
    grpc_port: u16,
    nvmf_port: u16,
}

impl Served {
    fn start(more: &[&str]) -> Self {
        let (grpc_port, nvmf_port) = (free_port(), free_port());
        let mut command = keelson();
        command.args(["serve", "-N", "test", "--no-huge-pages", "--grpc-port", &grpc_port.to_string()]);
        command.args(["--nvmf-port", &nvmf_port.to_string()]).args(more);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.find(|l| l.as_ref().is_ok_and(|l| l.ends_with("is ready.")));
        assert!(ready.is_some(), "it did not become ready");
        Self { child, bind: format!("127.0.0.1:{grpc_port}"), grpc_port, nvmf_port }
    }

    fn ask(&self, args: &[&str]) -> Output {
        keelson().args(["-b", &self.bind]).args(args).output().unwrap()
    }

    fn answer(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// TERM; then it ends with status 0 within two seconds.
    fn stop(mut self) {
        let begin = Instant::now();
        signal(&self.child, rustix::process::Signal::TERM);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Fails when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn wrong_arguments_end_with_2_and_help_with_0() {
    assert_eq!(run(&["bdev", "frobnicate"]).status.code(), Some(2));
    assert_eq!(run(&["serve", "--no-such-flag"]).status.code(), Some(2));
    assert_eq!(run(&["-q", "-v", "bdev", "list"]).status.code(), Some(2));
    assert_eq!(run(&[]).status.code(), Some(2));
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for want in ["keelson demo", "keelson serve", "nvme connect", "keelson perf", "Exit codes"] {
        assert!(text(&help.stdout).contains(want), "{want}");
    }
    for command in
        ["serve", "demo", "perf", "bdev", "subsystem", "pool", "replica", "snapshot", "stats", "test"]
    {
        assert_eq!(run(&[command, "--help"]).status.code(), Some(0), "{command}");
    }
}

#[test]
fn failures_end_with_1_and_a_sentence() {
    for (args, want) in [
        (vec!["-b", "https://h", "bdev", "list"], "not an address"),
        (vec!["-b", "127.0.0.1:1", "bdev", "list"], "keelson serve"),
        (vec!["perf", "ftp:///x"], "scheme"),
        (vec!["perf", "aio:///nonexistent"], "nonexistent"),
        (vec!["perf", "null:///n?size_mb=1", "--bs", "1000"], "multiple"),
        (vec!["serve", "--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (vec!["serve", "-T", "no-such-interface"], "no-such-interface"),
    ] {
        let output = run(&args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains("Error: "), "{args:?}: {stderr}");
        assert!(stderr.contains(want), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("Status {"), "{stderr}");
    }
}

#[test]
fn a_running_process_is_diagnosed_and_nothing_is_served() {
    let pid = std::process::id().to_string();
    let done = run(&["serve", "-d", &pid]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(text(&done.stdout).starts_with(&format!("Process {pid}, ")), "{}", text(&done.stdout));
    let none = run(&["serve", "--diagnose-stack", "4294967295"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("4294967295"), "{}", text(&none.stderr));
}

#[test]
fn a_daemon_is_used_from_the_command_line() {
    let d = Served::start(&[]);
    assert_eq!(d.answer(&["bdev", "list"]), "No bdevs found\n");
    assert_eq!(d.answer(&["-q", "bdev", "list"]), "");
    assert_eq!(
        d.answer(&["bdev", "create", "malloc:///a?size_mb=8&uuid=5f9a3a4e-0c1b-4b7e-9d57-0b1c52f7a001"]),
        "a\n"
    );
    let uri = d.answer(&["bdev", "share", "a"]);
    assert_eq!(uri, "malloc:///a?size_mb=8&uuid=5f9a3a4e-0c1b-4b7e-9d57-0b1c52f7a001\n");
    let share = format!("nvmf+tcp://127.0.0.1:{}/nqn.2019-05.io.openebs:a", d.nvmf_port);
    let list = d.answer(&["-u", "i", "bdev", "list"]);
    assert_eq!(
        list,
        format!(
            "UUID                                 NUM_BLOCKS BLK_SIZE CAPACITY CLAIMED_BY     NAME {:<width$}\n\
             5f9a3a4e-0c1b-4b7e-9d57-0b1c52f7a001 16384      512      8.00 MiB NVMe-oF Target a    {share}\n",
            "SHARE_URI",
            width = share.len()
        )
    );
    let json: serde_json::Value = serde_json::from_str(&d.answer(&["bdev", "list", "-o", "json"])).unwrap();
    assert_eq!(json["bdevs"][0]["share_uri"], share);
    assert_eq!(d.ask(&["bdev", "create", "malloc:///a?size_mb=8"]).status.code(), Some(1));
    assert_eq!(d.ask(&["bdev", "destroy", "nobody"]).status.code(), Some(1));

    assert_eq!(d.answer(&["subsystem", "namespace", "list"]).lines().count(), 2);
    assert_eq!(
        d.answer(&["subsystem", "namespace", "resize", "a", "1", "16MiB"]),
        "Namespace size was 8388608, now 16777216 bytes\n"
    );
    assert_eq!(d.answer(&["controller", "list"]), "No NVMe controllers found\n");
    assert!(d.answer(&["perf", "resource"]).starts_with("SOFT_FAULTS "));
    d.answer(&["device", "list", "--all"]);

    let perf = keelson()
        .args(["perf", &share, "--rw", "randrw", "--verify", "--time", "0.3", "-o", "json"])
        .output();
    let perf = perf.unwrap();
    assert!(perf.status.success(), "{}", text(&perf.stderr));
    let result: serde_json::Value = serde_json::from_slice(&perf.stdout).unwrap();
    assert!(result["verify"]["blocks"].as_u64().unwrap() > 0);
    assert_eq!(result["verify"]["damaged"], 0);

    assert_eq!(d.answer(&["bdev", "destroy", "a"]), "a\n", "it unshares first");
    assert_eq!(d.answer(&["bdev", "list"]), "No bdevs found\n");
    d.stop();
}

#[test]
fn damage_is_told_and_ends_with_1() {
    // This device forgets everything.
    let output = run(&["perf", "null:///n?size_mb=1", "--rw", "write", "--verify", "--time", "0.1"]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = text(&output.stdout);
    assert!(stdout.contains("LBA 0: no stamp, although this run wrote it"), "{stdout}");
}

#[test]
fn a_second_daemon_says_which_port_is_taken() {
    let d = Served::start(&[]);
    let (grpc, nvmf) = (d.grpc_port.to_string(), d.nvmf_port.to_string());
    let output = run(&["serve", "--grpc-port", &grpc, "--nvmf-port", &free_port().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--grpc-port"), "{}", text(&output.stderr));
    let output =
        run(&["demo", "--port", &nvmf, "--dir", tempfile::tempdir().unwrap().path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--port chooses another"), "{}", text(&output.stderr));
    d.stop();
}

#[test]
fn memory_stays_small() {
    let d = Served::start(&[]);
    d.answer(&["bdev", "create", "null:///n?size_mb=64"]);
    d.answer(&["bdev", "share", "n"]);
    let share = format!("nvmf+tcp://127.0.0.1:{}/nqn.2019-05.io.openebs:n", d.nvmf_port);
    let args = ["perf", &share, "--rw", "randrw", "--qd", "128", "--queues", "4", "--time", "0.5"];
    assert!(run(&args).status.success());
    let kib = d.resident_kib();
    assert!(kib <= 64 << 10, "{kib} KiB resident");
    d.stop();
}

/// A thousand connections that come and go at every point of being let in, and 512 at once, beside a host that works:
/// it goes on and reads what it wrote, and afterwards the daemon is as large as before and has no file more open.
#[test]
fn crowds_come_and_go_and_leave_nothing() {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: files.maximum, ..files };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();

    let d = Served::start(&[]);
    // Each load has a disk of its own: it checks what it wrote.
    for name in ["m", "n"] {
        d.answer(&["bdev", "create", &format!("malloc:///{name}?size_mb=8")]);
        d.answer(&["bdev", "share", name]);
    }
    let nqn = "nqn.2019-05.io.openebs:m";
    let load = |name, time| {
        let share = format!("nvmf+tcp://127.0.0.1:{}/nqn.2019-05.io.openebs:{name}", d.nvmf_port);
        let args =
            ["perf", &share, "--rw", "randrw", "--qd", "8", "--bs", "16KiB", "--verify", "--time", time];
        keelson().args(args).stdout(Stdio::null()).spawn().unwrap()
    };
    let addr = SocketAddr::from(([127, 0, 0, 1], d.nvmf_port));
    let crowd = |together: u16| {
        let mut hosts: Vec<RawHost> = (0..together).map(|_| RawHost::knock(addr).initialise()).collect();
        for (who, host) in (0..).zip(&mut hosts) {
            assert_eq!(host.connect(nqn, who), Status::SUCCESS, "host {who}");
        }
        hosts
    };
    let soon = |what: &str, holds: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let gone = || d.answer(&["-q", "subsystem", "connections"]).trim().is_empty();

    let thousand = || {
        for who in 0..1000 {
            let mut host = RawHost::knock(addr);
            match who % 4 {
                0 => {}
                1 => host.send(&[0, 0, 128, 0, 128]),
                step => {
                    let mut host = host.initialise();
                    assert_eq!(host.connect(nqn, who), Status::SUCCESS, "host {who}");
                    if step == 3 {
                        host.send(&[4, 0, 72, 0, 72, 0, 0, 0, 0x7f]);
                    }
                }
            }
        }
    };

    let mut working = load("m", "3");
    thousand();
    let hosts = crowd(512);
    assert!(load("n", "0.2").wait().unwrap().success(), "a host beside 512 others");
    drop(hosts);
    assert!(working.wait().unwrap().success(), "the host that worked all the while");
    soon("connections stay", &gone);

    // What crowds and loads needed once is kept for the next, within its cap; more of them need no more.
    let (files, resident_kib) = (d.open_files(), d.resident_kib());
    thousand();
    drop(crowd(512));
    soon("connections stay", &gone);
    soon("files stay open", &|| d.open_files() <= files);
    let grown_kib = d.resident_kib().saturating_sub(resident_kib);
    assert!(grown_kib <= 1024, "{grown_kib} KiB more than {resident_kib}");
    d.stop();
}

#[test]
fn state_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let mut d = Served::start(&["--state-dir", state]);
    d.answer(&["bdev", "create", "malloc:///a?size_mb=1"]);
    d.answer(&[
        "subsystem",
        "create",
        "s",
        "--namespace",
        "a",
        "--allowed-host",
        "nqn.2014-08.org.example:h",
    ]);
    d.child.kill().unwrap();
    d.child.wait().unwrap();
    let d = Served::start(&["--state-dir", state]);
    let list = d.answer(&["subsystem", "list"]);
    assert!(
        list.contains("nqn.2019-05.io.openebs:s") && list.contains("nqn.2014-08.org.example:h"),
        "{list}"
    );
    // One daemon a folder.
    let output =
        run(&["serve", "--state-dir", state, "--grpc-port", &free_port().to_string(), "--nvmf-port", "0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("in use by another keelson"), "{}", text(&output.stderr));
    d.stop();
}

#[test]
fn the_demo_does_as_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let demo = |time: &str| {
        let port = free_port().to_string();
        let args = [
            "demo",
            "--port",
            &port,
            "--dir",
            dir.path().to_str().unwrap(),
            "--size",
            "64MiB",
            "--time",
            time,
        ];
        (port.clone(), keelson().args(args).stdout(Stdio::piped()).spawn().unwrap())
    };
    let wait = |mut child: Child, meanwhile: &dyn Fn()| {
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut shown = String::new();
        for line in lines.by_ref() {
            shown.push_str(&line.unwrap());
            shown.push('\n');
            if shown.contains("Serving until Ctrl-C") {
                break;
            }
        }
        meanwhile();
        signal(&child, rustix::process::Signal::INT);
        // It writes some more, and must have somebody to read it.
        let mut rest = String::new();
        lines.for_each(|l| rest.push_str(&l.unwrap_or_default()));
        assert_eq!(child.wait().unwrap().code(), Some(0), "{shown}");
        shown
    };
    let (port, child) = demo("0.2");
    // A host writes to it while it serves.
    let uri = format!("nvmf+tcp://127.0.0.1:{port}/nqn.2019-05.io.openebs:demo");
    let host = || {
        let perf = run(&["perf", &uri, "--rw", "randwrite", "--time", "0.2", "--size", "1MiB"]);
        assert!(perf.status.success(), "{}", text(&perf.stderr));
    };
    let shown = wait(child, &host);
    let connect = format!("nvme connect -t tcp -a 127.0.0.1 -s {port} -n nqn.2019-05.io.openebs:demo");
    assert!(shown.contains(&connect), "{shown}");
    assert!(shown.contains("0 damaged"), "{shown}");
    assert!(Path::new(dir.path()).join("pool.img").exists());

    // Somebody's data in the replica is left alone.
    let shown = wait(demo("0.1").1, &|| {});
    assert!(shown.contains("nothing was written to it"), "{shown}");
}

/// The session of the first public README, and what scripts rely on.
#[test]
fn the_session_of_the_first_readme() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::File::create(&disk).unwrap().set_len(256 << 20).unwrap();
    let disk = disk.to_str().unwrap();
    let d = Served::start(&[]);
    assert_eq!(d.answer(&["pool", "list"]), "No pools found\n");
    assert_eq!(d.answer(&["replica", "list"]), "No replicas found\n");
    assert_eq!(d.answer(&["pool", "create", "tpool", disk]), "tpool\n");
    let list = d.answer(&["pool", "list"]);
    assert!(list.starts_with("NAME ") && list.contains("tpool ") && list.contains("online"), "{list}");
    let made = d.ask(&["replica", "create", "tpool", "replica1", "--size=10"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(text(&made.stdout).starts_with("bdev:///replica1?uuid="), "{}", text(&made.stdout));
    assert!(text(&made.stderr).contains("10.00 MiB (10485760 bytes), thick"), "{}", text(&made.stderr));
    d.answer(&["replica", "create", "tpool", "replica2", "--size=100", "--thin"]);
    let list = d.answer(&["-u", "i", "replica", "list"]);
    assert!(list.contains("10.00 MiB") && list.contains("100.00 MiB"), "{list}");
    assert_eq!(d.answer(&["replica", "destroy", "tpool", "replica1"]), "replica: replica1 is deleted\n");

    // The form of Mayastor's client: bytes, and nothing but the URI on stdout.
    let uuid = "7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c003";
    let made = d.answer(&["-q", "replica", "create", "r3", uuid, "tpool", "-s", "4194304", "-t"]);
    assert_eq!(made, format!("bdev:///r3?uuid={uuid}\n"));
    let json: serde_json::Value =
        serde_json::from_str(&d.answer(&["-o", "json", "replica", "list"])).unwrap();
    assert_eq!(json["replicas"].as_array().unwrap().len(), 2);
    let shared = d.answer(&["replica", "share", "r3", "nvmf"]);
    assert!(shared.starts_with("nvmf+tcp://127.0.0.1:"), "{shared}");
    assert_eq!(d.answer(&["replica", "resize", uuid, "8MiB"]), format!("replica {uuid} is resized\n"));
    assert_eq!(d.answer(&["-o", "json", "replica", "resize", uuid, "4MiB"]), "");
    let snapshot = "7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c004";
    let made = d.answer(&["snapshot", "create_for_replica", uuid, "volume/1", "volume", "1", snapshot]);
    assert!(made.starts_with("SNAP_UUID ") && made.contains("volume/1"), "{made}");
    let clone =
        d.answer(&["snapshot", "create_clone", snapshot, "c", "7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c005"]);
    assert!(clone.contains(snapshot), "{clone}");
    let sum = d.answer(&["test", "wipe", "replica", "c", "-m", "checksum"]);
    assert!(sum.lines().count() == 3 && sum.contains("  0x"), "{sum}");
    assert!(d.answer(&["stats", "replica"]).contains("r3"));
    assert!(d.answer(&["replica", "stats"]).starts_with("POOL "));
    assert_eq!(d.answer(&["stats", "reset"]), "Stats Reset Completed\n");

    for (args, want) in [
        (vec!["replica", "destroy", "nobody"], "replica list"),
        (vec!["replica", "destroy", "nowhere", "replica2"], "not there"),
        (vec!["replica", "create", "nowhere", "r", "--size=1"], "FAILED_PRECONDITION"),
        (vec!["pool", "create", "tpool", disk], "ALREADY_EXISTS"),
        (vec!["pool", "destroy", "nowhere"], "NOT_FOUND"),
    ] {
        let output = d.ask(&args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with("Error: ") && stderr.contains(want), "{args:?}: {stderr}");
        assert_eq!(text(&output.stdout), "", "{args:?}");
    }
    for args in [
        &["replica", "create", "tpool", "--size=1"][..],
        &["replica", "create", "a", "b", "c", "d", "--size=1"],
        &["replica", "create", "tpool", "r"],
        &["replica", "destroy", uuid, "--pool-uuid", "a", "--pool-name", "b"],
        &["pool", "create", "p"],
    ] {
        assert_eq!(d.ask(args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(d.answer(&["pool", "destroy", "tpool"]), "pool: tpool is deleted\n");
    assert_eq!(d.answer(&["-q", "pool", "list"]), "");
    d.stop();
}
