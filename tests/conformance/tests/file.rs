//! Files pass the suite, through io_uring and through helper threads, with and without direct I/O.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aio::devices::FileDevice;
use aio::reactor::{EngineChoice, probe_io_uring};
use aio::uri::FileUri;
use aio::{BlockCount, BlockDevice, Capabilities, DeviceError, IoStatus, Opcode};
use conformance::bench::{Request, World};
use conformance::buf::Buf;
use conformance::reactor::ReactorDriver;
use conformance::{DriverRef, Fixture, Options, Spec, run, skip};

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(parent: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("keelson-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(parent).join(name);
        fs::create_dir_all(&path).expect("a folder for the test's files");
        Self(path)
    }

    fn file(&self, bytes: u64) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = self.0.join(format!("{}.img", NEXT.fetch_add(1, Ordering::Relaxed)));
        File::create(&path).and_then(|f| f.set_len(bytes)).expect("a file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn uri(path: &std::path::Path, block_bytes: Option<u32>) -> FileUri {
    FileUri { path: path.to_str().expect("UTF-8").to_owned(), block_bytes, uuid: None, rescan: false }
}

struct Files {
    folder: Folder,
    engine: EngineChoice,
}

impl Files {
    /// Next to the build: a real disk, usually.
    fn on_disk(engine: EngineChoice) -> Self {
        Self { folder: Folder::new(env!("CARGO_TARGET_TMPDIR")), engine }
    }
}

impl Fixture for Files {
    fn create(&self, spec: Spec, _driver: &DriverRef) -> Arc<dyn BlockDevice> {
        let path = self.folder.file(spec.blocks * u64::from(spec.block_bytes));
        Arc::new(FileDevice::open(&uri(&path, Some(spec.block_bytes)), "uring").expect("open"))
    }

    fn driver(&self) -> DriverRef {
        ReactorDriver::shared(self.engine).expect("a reactor")
    }

    fn options(&self) -> Options {
        Options { effort: 300, ..Options::default() }
    }

    fn grow(&self, device: &Arc<dyn BlockDevice>, blocks: BlockCount) -> bool {
        let file = File::options().write(true).open(device.name()).expect("the file");
        file.set_len(blocks.0 * u64::from(device.geometry().block_bytes)).expect("a larger file");
        device.rescan().expect("rescan") == blocks
    }
}

fn on_ring(block_bytes: u32) {
    match probe_io_uring() {
        Ok(()) => run(&Files::on_disk(EngineChoice::IoUring), block_bytes),
        Err(e) => skip("io_uring", &format!("file::ring_{block_bytes}"), &format!("no io_uring here: {e}")),
    }
}

#[test]
fn ring_512() {
    on_ring(512);
}

#[test]
fn ring_4096() {
    on_ring(4096);
}

#[test]
fn threads_512() {
    run(&Files::on_disk(EngineChoice::Epoll), 512);
}

#[test]
fn threads_4096() {
    run(&Files::on_disk(EngineChoice::Epoll), 4096);
}

/// Memory file systems have no holes to punch at some ranges, no zeroing, and often no direct I/O.
#[test]
fn memory_file_system() {
    if !fs::metadata("/dev/shm").is_ok_and(|m| m.is_dir()) {
        skip("shm", "file::memory_file_system", "there is no /dev/shm");
        return;
    }
    run(&Files { folder: Folder::new("/dev/shm"), engine: EngineChoice::Auto }, 512);
}

/// Without a reactor on the thread channels work all the same.
#[test]
fn no_reactor() {
    let files = Files::on_disk(EngineChoice::Epoll);
    let driver: DriverRef = std::rc::Rc::new(std::cell::RefCell::new(conformance::NoDriver));
    let world = World::new(&files, driver, 512);
    let mut bench = world.bench();
    let data = vec![0x44; 512];
    bench.write(7, &data);
    assert!(bench.read(7, 1) == data);
}

#[test]
fn refusals_say_what_to_do() {
    let folder = Folder::new(env!("CARGO_TARGET_TMPDIR"));
    let open = |path: PathBuf, block| FileDevice::open(&uri(&path, block), "aio").map(|_| ());
    let missing = open(folder.0.join("none"), None).expect_err("missing");
    assert!(matches!(missing, DeviceError::Missing { .. }) && missing.to_string().contains("truncate"));
    assert!(matches!(open(folder.0.join("none/x"), None), Err(DeviceError::Missing { .. })));
    assert!(matches!(open(folder.0.clone(), None), Err(DeviceError::NotBlocks { .. })));
    assert!(matches!(open("/dev/null".into(), None), Err(DeviceError::NotBlocks { .. })));
    assert!(matches!(open(folder.file(0), None), Err(DeviceError::TooSmall { .. })));
    assert!(matches!(open(folder.file(511), None), Err(DeviceError::TooSmall { .. })));
    assert!(matches!(open(folder.file(4095), Some(4096)), Err(DeviceError::TooSmall { .. })));
    let path = folder.file(8192);
    let first = FileDevice::open(&uri(&path, None), "aio").expect("free");
    assert!(matches!(open(path.clone(), None), Err(DeviceError::InUse { .. })));
    drop(first);
    open(path, None).expect("free again");
}

#[test]
fn sizes_and_identity() {
    let folder = Folder::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.file(10_000);
    let device = FileDevice::open(&uri(&path, None), "aio").expect("open");
    assert_eq!(device.size(), BlockCount(19), "whole blocks only");
    assert!(device.capabilities().contains(Capabilities::VOLATILE_CACHE), "a file's writes are not durable");
    let (uuid, incarnation) = (device.uuid(), device.incarnation());
    assert_eq!(device.driver(), "aio");
    assert!(device.notices().iter().any(|n| n.contains("last 272 bytes")), "{:?}", device.notices());
    drop(device);
    let again = FileDevice::open(&uri(&path, Some(4096)), "aio").expect("open");
    assert_eq!((again.uuid(), again.incarnation()), (uuid, incarnation), "the same file is the same device");
    assert_eq!(again.size(), BlockCount(2));
    let other = FileDevice::open(&uri(&folder.file(10_000), None), "aio").expect("open");
    assert_ne!(other.uuid(), uuid);
    // Cut off from outside: rescan adopts it, and what is gone is out of range.
    File::options().write(true).open(&path).and_then(|f| f.set_len(4096)).expect("cut");
    assert_eq!(again.rescan().expect("rescan"), BlockCount(1));
}

/// Reads of a file that was cut off behind our back fail; nothing hangs or invents data.
#[test]
fn a_file_cut_off() {
    for engine in [EngineChoice::Auto, EngineChoice::Epoll] {
        let files = Files::on_disk(engine);
        let world = World::new(&files, files.driver(), 512);
        let mut bench = world.bench();
        File::options().write(true).open(bench.device.name()).and_then(|f| f.set_len(4096)).expect("cut");
        let request = || Request::new(Opcode::Read, 8, 4).data(Buf::new(2048), &[]);
        bench.run(request()).fails(IoStatus::UNRECOVERED_READ);
        let across = Request::new(Opcode::Read, 6, 4).data(Buf::new(2048), &[1024, 1024]);
        bench.run(across).fails(IoStatus::UNRECOVERED_READ);
        bench.read(0, 8);
    }
}

#[test]
fn read_only_files() {
    let folder = Folder::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.file(8192);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).expect("chmod");
    if File::options().write(true).open(&path).is_ok() {
        skip("user", "file::read_only_files", "this user may write to read-only files");
        return;
    }
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(&uri(&path, None), "aio").expect("open"));
    assert!(device.capabilities().contains(Capabilities::READ_ONLY));
    let files = Files::on_disk(EngineChoice::Auto);
    let world = World::new(&files, files.driver(), 512);
    let mut bench = world.open(&device);
    bench.read(0, 1);
    let write = Request::new(Opcode::Write, 0, 1).data(Buf::new(512), &[]);
    bench.run(write).fails(IoStatus::NAMESPACE_WRITE_PROTECTED);
}

/// A core that sleeps is woken by each completion, from the ring and from helper threads.
#[test]
fn completions_wake_the_core() {
    use std::time::{Duration, Instant};
    for engine in [EngineChoice::Auto, EngineChoice::Epoll] {
        let files = Files::on_disk(engine);
        let mut driver = ReactorDriver::new(engine).expect("a reactor");
        let idle: DriverRef = std::rc::Rc::new(std::cell::RefCell::new(conformance::NoDriver));
        let device = files.create(Spec { block_bytes: 512, blocks: 64 }, &idle);
        let mut open = device.open_channel();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut channel = None;
        driver.reactor().enter(|| {
            if let std::task::Poll::Ready(opened) = open.as_mut().poll(&mut context) {
                channel = Some(opened.expect("a channel"));
            }
        });
        let mut channel = channel.expect("opening a file's channel waits for nothing");
        let buf = Buf::new(4096);
        for round in 0..50u64 {
            let list = [buf.piece(0, 512)];
            let io = match round % 2 {
                0 => aio::Io::flush(),
                _ => aio::Io::write(aio::Lba(round), BlockCount(1), &list),
            };
            // SAFETY: `buf` lives longer than the channel.
            unsafe { channel.submit(&io, aio::Token(round)) }.expect("room");
            channel.kick();
            let started = Instant::now();
            let mut out = Vec::with_capacity(1);
            while channel.poll(&mut out, 1) == 0 {
                assert!(started.elapsed() < Duration::from_secs(20), "never woken");
                driver.reactor().turn();
                if channel.prepare_sleep() != aio::Sleep::KeepPolling {
                    driver.reactor().sleep(Some(Duration::from_secs(25)));
                }
            }
            assert!(out[0].status.is_success());
        }
        drop(channel);
        drop(driver);
        drop(buf);
    }
}
