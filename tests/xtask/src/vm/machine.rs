//! One emulated machine, from power-on to the exit status of the script in it.
//!
//! The guest boots a Debian kernel with a small initramfs that mounts this host's `/` read-only by 9p under a
//! tmpfs overlay: every binary of the host is there, the guest may write anywhere, and the host is never
//! changed. A second share, writable, carries the script in and its status out. See `tests/vm/README.md`.

use crate::process::exists;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How often a boot that did not reach user space is started again. Multi-threaded emulation trips over the
/// kernel's own code patching in about one boot of 45.
const BOOT_RETRIES: u32 = 2;
/// From power-on to user space. Three seconds on an idle machine; this one may be crowded, and other guests boot
/// beside. A kernel that panics ends QEMU at once and does not wait for this.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How many lines of output may wait for us before the guest does.
const LINES_WAITING: usize = 256;

/// What a scenario wants to run on.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// The kernel series: `6.12` or `6.1`.
    pub(crate) kernel: String,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    /// From user space to exit. Nothing in a guest is fast, and this is a net, not a measurement.
    pub(crate) limit: Duration,
    /// About how long it takes: the longest are started first.
    pub(crate) about: Duration,
}

impl Default for Machine {
    fn default() -> Self {
        let (limit, about) = (Duration::from_secs(900), Duration::from_secs(60));
        Self { kernel: "6.12".into(), cpus: 2, memory_mib: 2048, limit, about }
    }
}

/// How a guest's run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Success,
    Failed(String),
}

/// Where `tests/vm/fetch` put kernels and initramfs.
pub(crate) struct Cache {
    path: PathBuf,
}

impl Cache {
    /// `KEELSON_VM_CACHE`, else `keelson-vm` in the user's cache folder; never in the tree.
    pub(crate) fn locate() -> Self {
        let given = std::env::var_os("KEELSON_VM_CACHE").map(PathBuf::from);
        let xdg = || std::env::var_os("XDG_CACHE_HOME").map(|p| PathBuf::from(p).join("keelson-vm"));
        let home = || std::env::var_os("HOME").map(|p| PathBuf::from(p).join(".cache/keelson-vm"));
        Self { path: given.or_else(xdg).or_else(home).unwrap_or_else(|| "/var/cache/keelson-vm".into()) }
    }

    /// Whether guests can run here; else why not and what to do.
    pub(crate) fn usable(&self) -> Result<(), String> {
        if !exists("qemu-system-x86_64") {
            return Err(
                "qemu-system-x86_64 is not installed (as root, `tests/vm/fetch` gets what is needed)".into(),
            );
        }
        // Who we are, without a system call of our own: the owner of our own entry.
        let root = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
        if !root.unwrap_or(false) {
            return Err("needs root: the guest shares this machine's files as they are".into());
        }
        if !self.path.join("initrd-6.12").exists() {
            return Err(format!("no guest kernel in {} (run `tests/vm/fetch`)", self.path.display()));
        }
        Ok(())
    }

    /// Whether a kernel series is there; else what to do.
    pub(crate) fn has(&self, kernel: &str) -> Result<(), String> {
        let file = self.path.join(format!("initrd-{kernel}"));
        if file.exists() {
            Ok(())
        } else {
            Err(format!("no kernel {kernel} (run `tests/vm/fetch {kernel}`)"))
        }
    }

    /// Boots, shows each line that the script prints to `each`, and waits for the end.
    pub(crate) fn boot(&self, machine: &Machine, share: &Path, mut each: impl FnMut(&str)) -> Result<End> {
        for attempt in 0..=BOOT_RETRIES {
            let mut guest = Guest::start(self.command(machine, share)?, share)?;
            if guest.reaches_user_space()? {
                return guest.finish(machine.limit, &mut each);
            }
            eprintln!("vm: boot {} did not reach user space", attempt + 1);
        }
        Ok(End::Failed(format!("none of {} boots reached user space", BOOT_RETRIES + 1)))
    }

    fn command(&self, machine: &Machine, share: &Path) -> Result<Command> {
        let series = &machine.kernel;
        let version = self.path.join(format!("version-{series}"));
        let version =
            std::fs::read_to_string(&version).with_context(|| format!("reading {}", version.display()))?;
        let version = version.trim();
        let kernel = self.path.join(format!("kernel-{series}"));
        let memory = machine.memory_mib;
        let mut command = Command::new("qemu-system-x86_64");
        // Emulation is what works on every machine; a nested or odd /dev/kvm exists and does not.
        match std::env::var("KEELSON_VM_ACCEL").as_deref() {
            Ok("kvm") => command.args(["-accel", "kvm", "-cpu", "host"]),
            _ => command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
        };
        command
            .args(["-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-smp", &machine.cpus.to_string(), "-m", &memory.to_string()])
            .args(["-object", &format!("memory-backend-memfd,id=mem0,size={memory}M,share=on")])
            .args(["-numa", "node,memdev=mem0"])
            .arg("-kernel")
            .arg(kernel.join(format!("boot/vmlinuz-{version}")))
            .arg("-initrd")
            .arg(self.path.join(format!("initrd-{series}")))
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-device", "virtio-rng-pci"])
            .args(["-serial", &format!("file:{}", share.join("console.log").display())])
            .args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=con,signal=off"])
            .args(["-device", "virtconsole,chardev=con"])
            .args(["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="]);
        let modules = kernel.join(format!("lib/modules/{version}"));
        for (tag, path, mode) in [
            ("hostroot", Path::new("/"), ",readonly=on,multidevs=remap"),
            ("modules", modules.as_path(), ",readonly=on"),
            ("share", share, ""),
        ] {
            let path = path.display();
            command
                .args(["-fsdev", &format!("local,id={tag},path={path},security_model=passthrough{mode}")])
                .args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
        }
        Ok(command)
    }
}

/// A running QEMU. Dropped, it is killed.
struct Guest {
    qemu: Child,
    lines: Receiver<String>,
    share: PathBuf,
}

impl Guest {
    fn start(mut command: Command, share: &Path) -> Result<Self> {
        for leftover in ["started", "status"] {
            let path = share.join(leftover);
            if path.exists() {
                std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting qemu-system-x86_64")?;
        let mut output = BufReader::new(qemu.stdout.take().expect("invariant: stdout is piped"));
        let (sender, lines) = sync_channel(LINES_WAITING);
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
                if sender.send(text).is_err() {
                    break;
                }
                line.clear();
            }
        });
        Ok(Self { qemu, lines, share: share.into() })
    }

    /// Waits until the guest says so in the share, it ends, or [`BOOT_LIMIT`] has passed.
    fn reaches_user_space(&mut self) -> Result<bool> {
        let start = Instant::now();
        while start.elapsed() < BOOT_LIMIT {
            if self.share.join("started").exists() {
                return Ok(true);
            }
            if self.qemu.try_wait().context("waiting for QEMU")?.is_some() {
                return Ok(self.share.join("started").exists());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(false)
    }

    fn finish(&mut self, limit: Duration, each: &mut impl FnMut(&str)) -> Result<End> {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => each(&line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Ok(End::Failed(format!("not done after {} s", limit.as_secs())));
                }
            }
        }
        let status = self.qemu.wait().context("waiting for QEMU")?;
        Ok(match std::fs::read_to_string(self.share.join("status")).as_deref().map(str::trim) {
            Ok("0") => End::Success,
            Ok(code) => End::Failed(format!("the script ended with status {code}")),
            Err(_) => End::Failed(format!("the guest died before its script ended (QEMU: {status})")),
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
