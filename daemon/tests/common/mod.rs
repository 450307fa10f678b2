//! A daemon in this process, on ports of its own, with a client.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses some of it")]

pub mod etcd;
pub mod nexuses;
pub mod pools;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aio::reactor::{CoreHandle, EngineChoice, ReactorConfig, spawn_thread};
use aio::{BlockDevice, CoreId, DeviceUri};
use keelson::config;
use keelson::desired::Desired;
use keelson::perf::{Job, Outcome, Pattern, Watch, run};
use keelson::registry::{self, RemoteWishes};
use keelson::serve::{Daemon, Setup};
use nvmf::target::TargetConfig;
use rpc::mayastor::v1::{Bdev, CreateBdevRequest, ListBdevOptions};
use rpc::{Client, Endpoint};
use tonic::Code;

pub fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// One unpinned core, ephemeral ports, nothing declared.
pub fn setup() -> Setup {
    Setup {
        etcd: None,
        node_name: "test".into(),
        hostnqn: None,
        ana_feature: true,
        grpc: any_port(),
        nvmf: any_port(),
        nvmf_port_flag: "--nvmf-port",
        metrics: None,
        cores: vec![CoreId(0)],
        pin: false,
        spin_window: Duration::ZERO,
        engine: EngineChoice::Auto,
        target: TargetConfig::default(),
        state: None,
        ptpl: None,
        declared: Desired::default(),
    }
}

pub fn declared(toml: &str) -> Desired {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), toml).unwrap();
    config::read(file.path()).unwrap()
}

pub struct Running {
    pub daemon: Daemon,
    pub client: Client,
}

impl Running {
    pub async fn start(setup: Setup) -> Self {
        let daemon = Daemon::start(setup).await.unwrap();
        let endpoint: Endpoint = daemon.engine().node().grpc.to_string().parse().unwrap();
        let client = Client::connect(&endpoint).await.unwrap();
        Self { daemon, client }
    }

    pub async fn with_state(dir: &Path) -> Self {
        Self::start(Setup { state: Some(dir.to_owned()), ..setup() }).await
    }

    pub async fn stop(self) {
        drop(self.client);
        self.daemon.stop().await;
    }

    pub async fn create(&self, uri: &str) -> Result<Bdev, Code> {
        let answer = self.client.bdev().create(CreateBdevRequest { uri: uri.into() }).await;
        answer.map(|a| a.into_inner().bdev.unwrap()).map_err(|s| s.code())
    }

    pub async fn bdevs(&self) -> Vec<Bdev> {
        self.client.bdev().list(ListBdevOptions { name: None }).await.unwrap().into_inner().bdevs
    }

    pub async fn bdev(&self, name: &str) -> Option<Bdev> {
        let request = ListBdevOptions { name: Some(name.into()) };
        self.client.bdev().list(request).await.unwrap().into_inner().bdevs.into_iter().next()
    }
}

/// A short load that stamps and checks.
pub fn job(pattern: Pattern, seed: u64) -> Job {
    Job {
        pattern,
        read_percent: 50,
        io_bytes: 4096,
        depth: 4,
        queues: 1,
        time: Duration::from_millis(150),
        size_bytes: None,
        verify: true,
        seed,
    }
}

/// A host of its own: a reactor that connects to targets.
pub struct Host(CoreHandle);

impl Host {
    pub fn new() -> Self {
        let config =
            ReactorConfig { pin: false, spin_window: Duration::ZERO, ..ReactorConfig::new(CoreId(9)) };
        Self(spawn_thread(config).unwrap())
    }

    pub async fn connect(&self, uri: &str) -> Result<Arc<dyn BlockDevice>, String> {
        let parsed: DeviceUri = uri.parse().unwrap();
        let opened = registry::open(&parsed, &self.0, &RemoteWishes::default()).await;
        opened.map(|o| o.device).map_err(|e| e.to_string())
    }

    /// Runs a load on one device and returns what it did.
    pub async fn load(&self, device: &Arc<dyn BlockDevice>, job: &Job) -> Outcome {
        let (devices, cores) = ([device.clone()], [self.0.clone()]);
        run::run(&devices, &cores, job, &Watch::default()).await.unwrap().outcome
    }

    pub fn core(&self) -> &CoreHandle {
        &self.0
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.0.stop();
        self.0.join();
    }
}
