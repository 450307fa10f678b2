//! Block devices pass the suite: loop devices over files, which need root and the loop driver.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aio::devices::FileDevice;
use aio::reactor::EngineChoice;
use aio::uri::FileUri;
use aio::{BlockCount, BlockDevice, Capabilities, DeviceError, IoStatus, Opcode};
use conformance::bench::{Request, World};
use conformance::buf::Buf;
use conformance::reactor::ReactorDriver;
use conformance::{DriverRef, Fixture, Options, Spec, run, skip};

/// Runs `losetup`; its output, or why not.
fn losetup(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("losetup").args(arguments).output().map_err(|e| format!("losetup: {e}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!("losetup: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// A loop device over a new file. The file has no name any more when this returns.
fn attach(bytes: u64, sector_bytes: u32) -> Result<(String, File), String> {
    attach_with(bytes, sector_bytes, &[])
}

/// The same, with more options.
fn attach_with(bytes: u64, sector_bytes: u32, options: &[&str]) -> Result<(String, File), String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("keelson-loop-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path: PathBuf = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let file = File::options().create_new(true).read(true).write(true).open(&path);
    let file = file.and_then(|file| file.set_len(bytes).map(|()| file)).map_err(|e| e.to_string())?;
    let sector = sector_bytes.to_string();
    let text = path.to_str().expect("UTF-8");
    let usual = ["--find", "--show", "--direct-io=on", "--sector-size", &sector, text];
    let device = losetup(&[options, &usual].concat());
    let _ = fs::remove_file(&path);
    Ok((device?, file))
}

struct Loops {
    engine: EngineChoice,
    /// Backing files by device, for growing them.
    files: std::sync::Mutex<Vec<(String, File)>>,
}

impl Loops {
    fn new(engine: EngineChoice) -> Self {
        Self { engine, files: Default::default() }
    }
}

fn uri(path: &str, block_bytes: Option<u32>) -> FileUri {
    FileUri { path: path.to_owned(), block_bytes, uuid: None, rescan: false }
}

impl Fixture for Loops {
    fn create(&self, spec: Spec, _driver: &DriverRef) -> Arc<dyn BlockDevice> {
        let bytes = spec.blocks * u64::from(spec.block_bytes);
        let (path, file) = attach(bytes, spec.block_bytes).expect("a loop device, as for the probe");
        let device = FileDevice::open(&uri(&path, None), "uring");
        // It is open now, so this detaches it at the last close.
        losetup(&["--detach", &path]).expect("detach");
        let mut files = self.files.lock().expect("no panic before");
        files.retain(|(name, _)| *name != path);
        files.push((path, file));
        Arc::new(device.expect("open"))
    }

    fn driver(&self) -> DriverRef {
        ReactorDriver::shared(self.engine).expect("a reactor")
    }

    fn options(&self) -> Options {
        Options { effort: 150, ..Options::default() }
    }

    fn grow(&self, device: &Arc<dyn BlockDevice>, blocks: BlockCount) -> bool {
        let files = self.files.lock().expect("no panic before");
        let (_, file) = files.iter().find(|(name, _)| name == device.name()).expect("its file");
        file.set_len(blocks.0 * u64::from(device.geometry().block_bytes)).expect("a larger file");
        losetup(&["--set-capacity", device.name()]).expect("the loop device looks at its file again");
        device.rescan().expect("rescan") == blocks
    }
}

/// True when loop devices with this sector size can be made here.
fn possible(test: &str, sector_bytes: u32) -> bool {
    match attach(1 << 20, sector_bytes) {
        Ok((path, _)) => losetup(&["--detach", &path]).is_ok(),
        Err(why) => {
            skip("loop", test, &why);
            false
        }
    }
}

fn suite(test: &str, engine: EngineChoice, block_bytes: u32) {
    if possible(test, block_bytes) {
        run(&Loops::new(engine), block_bytes);
    }
}

#[test]
fn block_device_512() {
    suite("block::block_device_512", EngineChoice::Auto, 512);
}

#[test]
fn block_device_4096() {
    suite("block::block_device_4096", EngineChoice::Auto, 4096);
}

#[test]
fn block_device_through_threads() {
    suite("block::block_device_through_threads", EngineChoice::Epoll, 512);
}

#[test]
fn geometry_and_exclusive_use() {
    if !possible("block::geometry_and_exclusive_use", 4096) {
        return;
    }
    let (path, _file) = attach(1 << 20, 4096).expect("as for the probe");
    let first = FileDevice::open(&uri(&path, None), "aio").expect("free");
    assert_eq!(first.geometry().block_bytes, 4096, "asked of the device");
    assert_eq!(first.size(), BlockCount(256));
    assert!(
        !first.capabilities().contains(Capabilities::UNMAP_ZEROES),
        "discarded blocks may read as anything"
    );
    let again = FileDevice::open(&uri(&path, None), "aio").map(|_| ());
    assert!(matches!(again, Err(DeviceError::InUse { .. })), "{again:?}");
    drop(first);
    let small = FileDevice::open(&uri(&path, Some(512)), "aio").map(|_| ());
    assert!(matches!(small, Err(DeviceError::BlockSize { needed_bytes: 4096, .. })), "{small:?}");
    let large = FileDevice::open(&uri(&path, Some(8192)), "aio").expect("a multiple works");
    assert_eq!(large.size(), BlockCount(128));
    losetup(&["--detach", &path]).expect("detach");
}

#[test]
fn write_protected_devices() {
    if !possible("block::write_protected_devices", 512) {
        return;
    }
    let (path, _file) = attach_with(1 << 20, 512, &["--read-only"]).expect("as for the probe");
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(&uri(&path, None), "aio").expect("open"));
    losetup(&["--detach", &path]).expect("detach");
    assert!(device.capabilities().contains(Capabilities::READ_ONLY));
    assert!(device.notices().iter().any(|notice| notice.contains("read-only")));
    let loops = Loops::new(EngineChoice::Auto);
    let mut bench = World::new(&loops, loops.driver(), 512).open(&device);
    bench.read(0, 1);
    for request in
        [Request::new(Opcode::Write, 0, 1).data(Buf::new(512), &[]), Request::new(Opcode::WriteZeroes, 0, 1)]
    {
        bench.run(request).fails(IoStatus::NAMESPACE_WRITE_PROTECTED);
    }
}

/// A disk whose blocks cannot be read any more: that command fails as a media error, the others go on.
#[test]
fn media_errors() {
    if !possible("block::media_errors", 512) {
        return;
    }
    for engine in [EngineChoice::Auto, EngineChoice::Epoll] {
        let (path, file) = attach(1 << 20, 512).expect("as for the probe");
        let device: Arc<dyn BlockDevice> =
            Arc::new(FileDevice::open(&uri(&path, None), "aio").expect("open"));
        losetup(&["--detach", &path]).expect("detach");
        let loops = Loops::new(engine);
        let mut bench = World::new(&loops, loops.driver(), 512).open(&device);
        // The loop driver answers reads behind the end of its file with an I/O error.
        file.set_len(4096).expect("cut");
        let read = || Request::new(Opcode::Read, 16, 4).data(Buf::new(2048), &[]);
        bench.run(read()).fails(IoStatus::UNRECOVERED_READ);
        bench.run(Request::new(Opcode::Verify, 0, 64)).fails(IoStatus::UNRECOVERED_READ);
        let compare = Request::new(Opcode::Compare, 16, 1).data(Buf::new(512), &[]);
        bench.run(compare).fails(IoStatus::UNRECOVERED_READ);
        bench.read(0, 8);
        file.set_len(1 << 20).expect("whole again");
        assert!(bench.run(read()).status.is_success());
    }
}
