//! Starts a daemon, and ends it.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aio::memory::{Memory, MemoryConfig};
use aio::reactor::{CoreHandle, EngineChoice, EngineKind, ReactorConfig, allowed_cores, spawn_thread};
use aio::{Core, CoreId};
use anyhow::{Context, bail};
use nvmf::target::{Target, TargetConfig};
use rpc::FILE_DESCRIPTOR_SET;
use rpc::keelson::v1::pool_rpc_server::PoolRpcServer as OwnPoolRpcServer;
use rpc::keelson::v1::subsystem_rpc_server::SubsystemRpcServer;
use rpc::mayastor::v1::bdev_rpc_server::BdevRpcServer;
use rpc::mayastor::v1::host_rpc_server::HostRpcServer;
use rpc::mayastor::v1::nexus_rpc_server::NexusRpcServer;
use rpc::mayastor::v1::pool_rpc_server::PoolRpcServer;
use rpc::mayastor::v1::replica_rpc_server::ReplicaRpcServer;
use rpc::mayastor::v1::snapshot_rpc_server::SnapshotRpcServer;
use rpc::mayastor::v1::stats_rpc_server::StatsRpcServer;
use rpc::mayastor::v1::test_rpc_server::TestRpcServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

use super::args::{Engine as EngineArg, ServeArgs};
use super::target_cores;
use super::{banner, iface};
use crate::desired::Desired;
use crate::engine::Engine;
use crate::host::stacks;
use crate::metrics;
use crate::nexuses::records::Records;
use crate::nexuses::records::etcd::{EtcdOptions, EtcdRecords};
use crate::nexuses::records::file::FileRecords;
use crate::node::Node;
use crate::ptpl::ReservationDir;
use crate::registry::Origin;
use crate::services::bdev::BdevService;
use crate::services::host::HostService;
use crate::services::nexus::NexusService;
use crate::services::pool::{OwnPoolService, PoolService};
use crate::services::replica::ReplicaService;
use crate::services::snapshot::SnapshotService;
use crate::services::stats::StatsService;
use crate::services::subsystem::SubsystemService;
use crate::services::test::TestService;
use crate::state::StateDir;
use crate::{config, log, pools};

/// How long requests that are being answered may take when the daemon ends.
const GRPC_DRAIN: Duration = Duration::from_millis(500);

/// Calls that one client may have in progress; more wait.
const CALLS_PER_CONNECTION: usize = 64;

/// How often a silent client is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The variable by which deployments of Mayastor turn ANA of volumes on: `1`, and nothing else.
const ANA_ENABLE: &str = "NEXUS_NVMF_ANA_ENABLE";

/// Most bytes of one request.
const MAX_REQUEST_BYTES: usize = 4 << 20;

/// Everything that a daemon is made from.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Name of the node.
    pub node_name: String,
    /// NQN under which it connects to others; `None` = made from the name.
    pub hostnqn: Option<String>,
    /// Where gRPC is served. Port 0 = any.
    pub grpc: SocketAddr,
    /// Where NVMe/TCP is served. Port 0 = any.
    pub nvmf: SocketAddr,
    /// The flag that chooses another port for it: for messages.
    pub nvmf_port_flag: &'static str,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// One reactor each. Not empty.
    pub cores: Vec<CoreId>,
    /// Pin them.
    pub pin: bool,
    /// How long they spin.
    pub spin_window: Duration,
    /// What they wait in.
    pub engine: EngineChoice,
    /// Tell control planes that ANA is reported on volumes.
    pub ana_feature: bool,
    /// Limits of the target.
    pub target: TargetConfig,
    /// Where the members of nexuses are recorded, instead of in the state folder.
    pub etcd: Option<EtcdOptions>,
    /// The state folder.
    pub state: Option<std::path::PathBuf>,
    /// The folder of reservations that persist through power loss.
    pub ptpl: Option<std::path::PathBuf>,
    /// What to start with.
    pub declared: Desired,
}

/// A running daemon.
pub struct Daemon {
    engine: Arc<Engine>,
    engine_kind: EngineKind,
    stop: watch::Sender<bool>,
    servers: Vec<JoinHandle<()>>,
    failures: Vec<String>,
    metrics: Option<SocketAddr>,
    lost: mpsc::Receiver<CoreId>,
}

impl Daemon {
    /// Binds all ports first, so that a second daemon says so before it touches any device. Then opens and
    /// exports what was declared and saved.
    pub async fn start(setup: Setup) -> anyhow::Result<Self> {
        let grpc = bind("gRPC", "--grpc-port", setup.grpc).await?;
        let metrics_listener = match setup.metrics {
            Some(addr) => Some(bind("metrics", "--metrics", addr).await?),
            None => None,
        };
        let store = setup.state.as_deref().map(StateDir::open).transpose()?;
        let saved = store.as_ref().map(StateDir::load).transpose()?.unwrap_or_default();
        let reservations = setup.ptpl.as_deref().map(ReservationDir::open).transpose()?;
        let cores = start_cores(&setup)?;
        let engine_kind = cores[0].call(|| async { current().engine() }).await?;
        let target = Target::new(setup.target);
        let (tell_lost, lost) = mpsc::channel(1);
        let started =
            target_cores::start(&target, &cores, setup.nvmf, setup.nvmf_port_flag, &tell_lost).await;
        let nvmf = match started {
            Ok(addr) => addr,
            Err(e) => {
                cores.iter().for_each(CoreHandle::stop);
                cores.iter().for_each(CoreHandle::join);
                return Err(e);
            }
        };
        let node = Node::new(setup.node_name, grpc.local_addr()?, nvmf, setup.hostnqn);
        let node = Node { ana_feature: setup.ana_feature, ..node };
        let records = match (&setup.etcd, &setup.state) {
            (Some(options), _) => {
                let etcd =
                    EtcdRecords::new(options.clone()).context("the address of etcd (-p) cannot be used")?;
                etcd.reach().await;
                Records::Etcd(etcd)
            }
            (None, Some(folder)) => {
                Records::Files(FileRecords::new(folder).context("the state folder cannot be used")?)
            }
            (None, None) => Records::None,
        };
        let engine = Engine::new(node, cores, target, store, records);
        if let Some(dir) = reservations {
            engine.exports().keep_reservations(dir);
        }
        let mut failures = engine.restore(setup.declared, Origin::Config).await;
        failures.extend(engine.restore(saved, Origin::Request).await);
        target_cores::open(engine.cores()).await;

        let (stop, stopped) = watch::channel(false);
        let mut servers = vec![serve_grpc(engine.clone(), grpc, stopped.clone()).await?];
        let metrics = metrics_listener.as_ref().map(TcpListener::local_addr).transpose()?;
        if let Some(listener) = metrics_listener {
            servers.push(tokio::spawn(metrics::serve(listener, engine.clone(), stopped)));
        }
        info!(node = %engine.node().name, grpc = %engine.node().grpc, nvmf = %engine.node().nvmf, "serving");
        Ok(Self { engine, engine_kind, stop, servers, failures, metrics, lost })
    }

    /// Its engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// What its cores wait in.
    pub fn engine_kind(&self) -> EngineKind {
        self.engine_kind
    }

    /// What could not be opened or exported at the start.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Where metrics are served.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Resolves when a core stopped serving because of a bug of ours: the process had better end. Dropping the future
    /// changes nothing.
    pub async fn lost(&mut self) -> anyhow::Error {
        match self.lost.recv().await {
            Some(core) => anyhow::anyhow!(
                "core {core} panicked and serves nobody any more (a bug; the panic's message is above); start keelson \
                 again: hosts reconnect, and what was flushed is on its disks"
            ),
            // No core can be lost any more.
            None => std::future::pending().await,
        }
    }

    /// Stops taking requests, says goodbye to hosts, closes devices, ends the cores. Takes a second or two at
    /// most.
    pub async fn stop(self) {
        info!("shutting down");
        // Nobody listens when all servers have ended by themselves.
        let _ = self.stop.send(true);
        for mut server in self.servers {
            if tokio::time::timeout(GRPC_DRAIN, &mut server).await.is_err() {
                server.abort();
            }
        }
        self.engine.shut_down().await;
        info!("done");
    }
}

fn current() -> Core {
    Core::current().expect("invariant: calls run on a core")
}

async fn bind(what: &str, flag: &str, addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| match addr.port() {
        0 => format!("cannot serve {what} on {addr}"),
        _ => format!(
            "cannot serve {what} on {addr}; is another keelson running there? {flag} chooses another port"
        ),
    })
}

fn start_cores(setup: &Setup) -> anyhow::Result<Vec<CoreHandle>> {
    let mut cores: Vec<CoreHandle> = Vec::new();
    for &core in &setup.cores {
        let config = ReactorConfig {
            pin: setup.pin,
            spin_window: setup.spin_window,
            engine: setup.engine,
            ..ReactorConfig::new(core)
        };
        match spawn_thread(config) {
            Ok(handle) => cores.push(handle),
            Err(e) => {
                cores.iter().for_each(CoreHandle::stop);
                cores.iter().for_each(CoreHandle::join);
                return Err(e)
                    .with_context(|| format!("cannot start a reactor on core {core} (-l chooses others)"));
            }
        }
    }
    if cores.is_empty() {
        bail!("no core to run on: -l names them");
    }
    Ok(cores)
}

async fn serve_grpc(
    engine: Arc<Engine>,
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<JoinHandle<()>> {
    /// A service on the engine, with its limit, known to the health service.
    macro_rules! service {
        ($health:ident, $server:ident, $service:ident) => {{
            $health.set_serving::<$server<$service>>().await;
            $server::new($service(engine.clone())).max_decoding_message_size(MAX_REQUEST_BYTES)
        }};
    }
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("the descriptors of the API are broken")?;
    let server = tonic::transport::Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .max_concurrent_streams(Some(CALLS_PER_CONNECTION as u32))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(service!(health, BdevRpcServer, BdevService))
        .add_service(service!(health, HostRpcServer, HostService))
        .add_service(service!(health, NexusRpcServer, NexusService))
        .add_service(service!(health, PoolRpcServer, PoolService))
        .add_service(service!(health, ReplicaRpcServer, ReplicaService))
        .add_service(service!(health, SnapshotRpcServer, SnapshotService))
        .add_service(service!(health, StatsRpcServer, StatsService))
        .add_service(service!(health, TestRpcServer, TestService))
        .add_service(service!(health, OwnPoolRpcServer, OwnPoolService))
        .add_service(service!(health, SubsystemRpcServer, SubsystemService));
    let stop = async move {
        // An error means that the daemon is gone, which is a reason to stop as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    Ok(tokio::spawn(async move {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        if let Err(e) = server.serve_with_incoming_shutdown(incoming, stop).await {
            warn!("the gRPC server ended: {}", crate::error::chain(&e));
        }
    }))
}

impl ServeArgs {
    /// What the flags and the environment say.
    pub fn setup(&self) -> anyhow::Result<Setup> {
        let grpc = self.grpc_addr().map_err(anyhow::Error::msg)?;
        let environment = |name| std::env::var(name).ok();
        let pod_ip = environment("MY_POD_IP");
        let ip = iface::target_ip(&iface::Tables::default(), self.tgt_iface.as_deref(), pod_ip.as_deref())?;
        let mut declared = self.config.as_deref().map(config::read).transpose()?.unwrap_or_default();
        if let Some(path) = &self.pool_file {
            let (pools, failures) = pools::file::read(path);
            failures.iter().for_each(|e| warn!("{}", crate::error::chain(e)));
            declared.pools.extend(pools);
        }
        Ok(Setup {
            node_name: self.node_name.clone(),
            hostnqn: environment("HOSTNQN"),
            ana_feature: environment(ANA_ENABLE).as_deref() == Some("1"),
            grpc,
            nvmf: SocketAddr::new(ip, self.nvmf_port),
            metrics: self.metrics,
            cores: self.cores(&allowed_cores()?),
            nvmf_port_flag: "--nvmf-port",
            pin: true,
            spin_window: self.spin_window(),
            engine: match self.engine {
                EngineArg::Auto => EngineChoice::Auto,
                EngineArg::IoUring => EngineChoice::IoUring,
                EngineArg::Epoll => EngineChoice::Epoll,
            },
            target: TargetConfig {
                queue_entries: self.nvmf_queue_depth,
                io_queues: self.nvmf_queues,
                crdt: self.tgt_crdt.0,
                ..TargetConfig::default()
            },
            etcd: self.etcd(),
            state: self.state_dir.clone(),
            ptpl: self.ptpl_dir.clone(),
            declared,
        })
    }
}

/// Runs `serve` until it is told to stop.
pub async fn main(args: &ServeArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    if let Some(pid) = args.diagnose_stack {
        return Ok(stacks::write(out, pid)?);
    }
    log::init(&args.log, &args.log_format)?;
    Memory::init_process(MemoryConfig { huge_pages: !args.no_huge_pages })?;
    // Before anything else, so that a signal during the start is not lost.
    let mut signals = Signals::new()?;
    let setup = args.setup()?;
    let cores = setup.cores.clone();
    let mut daemon = tokio::select! {
        daemon = Daemon::start(setup) => daemon?,
        () = signals.recv() => return Ok(()),
    };
    let mut notes = args.compat.notes();
    if args.state_dir.is_none() {
        notes
            .push("--state-dir: not given, so what is created by request is gone after a restart".to_owned());
    }
    // A daemon does not end because nobody reads its greeting.
    let _ = banner::write(out, &daemon, &cores, args.no_huge_pages, &notes).and_then(|()| out.flush());
    tokio::select! {
        () = signals.recv() => {}
        error = daemon.lost() => return Err(error),
    }
    daemon.stop().await;
    Ok(())
}

/// SIGTERM and SIGINT.
pub struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Signals {
    /// From now on they do not kill the process.
    pub fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// The next of either.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
