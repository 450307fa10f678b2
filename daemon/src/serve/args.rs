//! The flags of `keelson serve`: those that deployments of Mayastor pass, and our own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use aio::CoreId;
use clap::Args;
use rpc::DEFAULT_GRPC_PORT;

use super::cores::{parse_list, parse_mask};
use crate::nexuses::records::etcd::{EtcdAddr, EtcdOptions};

/// Port of the NVMe/TCP target unless told otherwise.
pub const DEFAULT_NVMF_PORT: u16 = 8420;

const OWN: &str = "Keelson";
const COMPAT: &str = "Accepted so that existing deployments start; without effect for now";

/// Flags of `serve`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct ServeArgs {
    /// Address to serve gRPC on
    #[arg(value_name = "GRPC_IP")]
    pub grpc_ip_positional: Option<IpAddr>,
    /// Port to serve gRPC on
    #[arg(value_name = "GRPC_PORT")]
    pub grpc_port_positional: Option<u16>,
    /// As the first positional argument [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub grpc_ip: Option<IpAddr>,
    /// As the second positional argument [default: 10124]
    #[arg(long, value_name = "PORT")]
    pub grpc_port: Option<u16>,
    /// Address and maybe port in one; goes before the others
    #[arg(short = 'g', long, value_name = "IP[:PORT]")]
    pub grpc_endpoint: Option<String>,

    /// Cores to run reactors on, such as 1,2-4; goes before -m
    #[arg(short = 'l', value_name = "CORES", value_parser = parse_cores)]
    pub core_list: Option<CoreSet>,
    /// The same as a hexadecimal mask [default: the first core that this process may use]
    #[arg(short = 'm', value_name = "MASK", value_parser = parse_core_mask)]
    pub core_mask: Option<CoreSet>,

    /// Name of this node
    #[arg(short = 'N', value_name = "NAME", env = "HOSTNAME", default_value = "mayastor-node")]
    pub node_name: String,
    /// Where NVMe/TCP listens: a network interface (eth0 or name:eth0), mac:ADDRESS, ip:ADDRESS or
    /// subnet:10.0.0.0/8 [default: $MY_POD_IP, else 127.0.0.1]
    #[arg(short = 'T', long, value_name = "INTERFACE", env = "NVMF_TGT_IFACE")]
    pub tgt_iface: Option<String>,
    /// Command retry delays that hosts are told, in units of 100 ms: one number, or three with commas
    #[arg(long, value_name = "DELAYS", env = "NVMF_TGT_CRDT", default_value = "0", value_parser = parse_crdt)]
    pub tgt_crdt: Crdt,

    /// What to log, as RUST_LOG has it: info, debug, nvmf=trace, ...; repeatable
    #[arg(short = 'L', value_name = "FILTER")]
    pub log: Vec<String>,
    /// How to log: default, compact, json, color, nocolor, date, nodate, host, nohost; a comma list
    #[arg(short = 'F', value_name = "FORMAT", default_value = "default")]
    pub log_format: String,

    /// Show what the threads of that process are doing, and exit; for a daemon that seems to hang
    #[arg(short = 'd', long, value_name = "PID", env = "DIAGNOSE_STACK")]
    pub diagnose_stack: Option<u32>,
    /// Mayastor's pool file: pools to import, or to make, at the start
    #[arg(short = 'P', value_name = "YAML")]
    pub pool_file: Option<PathBuf>,

    /// etcd, for the members of nexuses: which children are healthy [default: files in --state-dir]
    #[arg(short = 'p', long, value_name = "HOST[:PORT]")]
    pub persistent_store: Option<EtcdAddr>,
    /// How long one request to it may take, such as 10s or 500ms; 1 to 60 seconds
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub ps_timeout: Duration,
    /// How often a request is repeated, a second apart, before a nexus that cannot record its members ends
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub ps_retries: u8,

    /// Devices, pools, subsystems and hosts to start with (TOML)
    #[arg(long, value_name = "FILE", help_heading = OWN)]
    pub config: Option<PathBuf>,
    /// Where to keep what is created by request, so that it is there again after a restart
    #[arg(long, value_name = "FOLDER", help_heading = OWN)]
    pub state_dir: Option<PathBuf>,
    /// Where to keep the NVMe reservations that hosts want to persist through power loss
    #[arg(long, value_name = "FOLDER")]
    pub ptpl_dir: Option<PathBuf>,
    /// Serve Prometheus metrics here, at /metrics
    #[arg(long, value_name = "IP:PORT", help_heading = OWN)]
    pub metrics: Option<SocketAddr>,
    /// Port of the NVMe/TCP target
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_NVMF_PORT, help_heading = OWN)]
    pub nvmf_port: u16,
    /// Leave huge pages alone also where there are some
    #[arg(long, help_heading = OWN)]
    pub no_huge_pages: bool,
    /// How long an idle core looks for work before it sleeps, in microseconds
    #[arg(long, value_name = "US", default_value_t = 50, help_heading = OWN)]
    pub spin_us: u64,
    /// Wait in this instead of the best there is
    #[arg(long, value_enum, default_value_t, value_name = "ENGINE", help_heading = OWN)]
    pub engine: Engine,
    /// Most commands in flight on one queue of a host
    #[arg(long, value_name = "N", env = "NVMF_TCP_MAX_QUEUE_DEPTH", default_value_t = 128, help_heading = OWN)]
    pub nvmf_queue_depth: u16,
    /// Most I/O queues of one host's connection
    #[arg(long, value_name = "N", env = "NVMF_TCP_MAX_QPAIRS_PER_CTRL", default_value_t = 32, help_heading = OWN)]
    pub nvmf_queues: u16,

    /// Flags without effect.
    #[command(flatten)]
    pub compat: CompatArgs,
}

const AFTER_HELP: &str = "\
Examples:
  keelson serve                                    gRPC on 127.0.0.1:10124, NVMe/TCP on 127.0.0.1:8420
  keelson serve -T eth0 -l 2,3 --state-dir /var/lib/keelson
  keelson serve --config keelson.toml --metrics 127.0.0.1:9502

A configuration file:
  [hosts]
  db1 = \"nqn.2014-08.org.nvmexpress:uuid:6f0c1b6e-5c0e-4d8e-9a55-6b9be5a3d001\"
  [[device]]
  uri = \"aio:///dev/sdb\"
  share = true
  hosts = [\"db1\"]
  [[pool]]
  name = \"tpool\"
  disks = [\"/dev/sdc\"]
  [[subsystem]]
  nqn = \"twins\"
  namespace = [{ device = \"ram0\" }, { device = \"ram1\" }]";

/// What a reactor waits in.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[value(rename_all = "lower")]
pub enum Engine {
    /// io_uring, or epoll where it is not allowed
    #[default]
    Auto,
    /// io_uring or nothing
    IoUring,
    /// epoll
    Epoll,
}

/// Cores, each once, ascending. A type of its own so that clap takes one argument for all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoreSet(pub Vec<CoreId>);

/// As `-l` takes them. For clap.
pub fn parse_cores(text: &str) -> Result<CoreSet, String> {
    parse_list(text).map(CoreSet)
}

fn parse_core_mask(text: &str) -> Result<CoreSet, String> {
    parse_mask(text).map(CoreSet)
}

/// Command Retry Delay Times 1 to 3, in units of 100 ms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Crdt(pub [u16; 3]);

/// One number sets only the first. For clap.
pub fn parse_crdt(text: &str) -> Result<Crdt, String> {
    let number = |text: &str| match text.trim().parse::<u16>() {
        Ok(n) if n <= 100 => Ok(n),
        _ => Err(format!("{text:?} is not a number up to 100")),
    };
    let numbers: Vec<u16> = text.split(',').map(number).collect::<Result<_, _>>()?;
    match numbers[..] {
        [first] => Ok(Crdt([first, 0, 0])),
        [a, b, c] => Ok(Crdt([a, b, c])),
        _ => Err("write one number or three".to_owned()),
    }
}

/// What Mayastor takes and this version has no use for.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = COMPAT)]
pub struct CompatArgs {
    /// Registration with a control plane
    #[arg(short = 'R', value_name = "URI")]
    registration: Option<String>,
    /// Limit of huge pages: none are reserved
    #[arg(short = 's', value_name = "MIB")]
    huge_limit: Option<String>,
    /// No PCI: nothing takes PCI devices unasked
    #[arg(short = 'u')]
    no_pci: bool,
    /// JSON-RPC socket
    #[arg(short = 'r', value_name = "SOCKET")]
    json_rpc: Option<PathBuf>,
    /// Mayastor's configuration file; ours is --config
    #[arg(short = 'y', value_name = "YAML")]
    engine_yaml: Option<PathBuf>,
    /// Mount point of huge pages: none is needed
    #[arg(long, value_name = "FOLDER")]
    huge_dir: Option<PathBuf>,
    /// Arguments for DPDK: there is none
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    env_context: Option<String>,
    #[arg(long, hide = true)]
    bdev_pool_size: Option<u64>,
    #[arg(long, hide = true)]
    nvme_ctl_pool_size: Option<u64>,
    /// Generations of the API: v1 is served
    #[arg(long, value_name = "LIST", env = "API_VERSIONS")]
    api_versions: Option<String>,
    #[arg(long, hide = true)]
    reactor_freeze_detection: bool,
    #[arg(long, hide = true, env = "REACTOR_FREEZE_TIMEOUT")]
    reactor_freeze_timeout: Option<u64>,
    /// NATS
    #[arg(long, value_name = "URL")]
    events_url: Option<String>,
    #[arg(long, hide = true, env = "ENABLE_LVM", num_args = 0..=1, default_missing_value = "true")]
    enable_lvm: Option<String>,
    #[arg(long, hide = true, env = "ENABLE_SNAPSHOT_REBUILD", num_args = 0..=1, default_missing_value = "true")]
    enable_snapshot_rebuild: Option<String>,
    #[arg(long, hide = true, env = "ENABLE_RDMA", num_args = 0..=1, default_missing_value = "true")]
    enable_rdma: Option<String>,
    #[arg(long, hide = true)]
    skip_sig_handler: bool,
    #[arg(long, hide = true)]
    enable_io_all_thrd_nexus_channels: bool,
    #[arg(long, hide = true)]
    enable_channel_dbg: bool,
    #[arg(long, hide = true)]
    developer_delay: bool,
    #[arg(long, hide = true)]
    bs_cluster_unmap: bool,
}

impl CompatArgs {
    /// One sentence for each flag whose absence an operator would notice.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |given: bool, text: &str| {
            if given {
                notes.push(text.to_owned());
            }
        };
        note(self.registration.is_some(), "-R: registration with a control plane is not there yet");
        note(self.json_rpc.is_some(), "-r: there is no JSON-RPC socket");
        note(self.engine_yaml.is_some(), "-y: Mayastor's settings are accepted and not read; see --config");
        note(self.events_url.is_some(), "--events-url: events are not there yet");
        let on = |v: &Option<String>| v.as_deref().is_some_and(|v| matches!(v, "true" | "1" | "yes" | "on"));
        note(on(&self.enable_rdma), "--enable-rdma: RDMA is not there yet");
        note(on(&self.enable_lvm), "--enable-lvm: LVM pools are not there yet");
        if let Some(versions) = &self.api_versions {
            let v1 = versions.split(',').any(|v| v.trim().eq_ignore_ascii_case("v1"));
            note(!v1, "--api-versions: v1 is served whatever it says; v0 is not");
        }
        notes
    }
}

/// A number and ms, s, m or h; without, seconds. For clap.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let bad = || format!("{text:?} is no time: write a number and ms, s, m or h");
    let number: u32 = number.parse().map_err(|_| bad())?;
    match unit.trim() {
        "ms" => Ok(Duration::from_millis(number.into())),
        "" | "s" => Ok(Duration::from_secs(number.into())),
        "m" => Ok(Duration::from_secs(u64::from(number) * 60)),
        "h" => Ok(Duration::from_secs(u64::from(number) * 3600)),
        _ => Err(bad()),
    }
}

impl ServeArgs {
    /// The persistent store.
    pub fn etcd(&self) -> Option<EtcdOptions> {
        let timeout = self.ps_timeout.clamp(Duration::from_secs(1), Duration::from_secs(60));
        let addr = self.persistent_store.clone()?;
        Some(EtcdOptions { addr, timeout, retries: self.ps_retries })
    }

    /// Where gRPC is served.
    pub fn grpc_addr(&self) -> Result<SocketAddr, String> {
        let ip = self.grpc_ip.or(self.grpc_ip_positional).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let port = self.grpc_port.or(self.grpc_port_positional).unwrap_or(DEFAULT_GRPC_PORT);
        let Some(text) = &self.grpc_endpoint else { return Ok(SocketAddr::new(ip, port)) };
        let bare = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
        text.parse::<SocketAddr>().or_else(|_| bare()).map_err(|_| {
            format!("-g {text:?} is not an address: write IP or IP:PORT, such as 0.0.0.0:10124 or [::]:10124")
        })
    }

    /// The cores to use: `allowed` are those that this process may use.
    pub fn cores(&self, allowed: &[CoreId]) -> Vec<CoreId> {
        match self.core_list.as_ref().or(self.core_mask.as_ref()) {
            Some(CoreSet(cores)) => cores.clone(),
            None => vec![allowed.first().copied().unwrap_or_default()],
        }
    }

    /// How long a core spins.
    pub fn spin_window(&self) -> Duration {
        Duration::from_micros(self.spin_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ServeArgs,
    }

    fn parse(args: &[&str]) -> Result<ServeArgs, clap::Error> {
        Cli::try_parse_from(["serve"].iter().chain(args)).map(|c| c.args)
    }

    fn grpc(args: &[&str]) -> String {
        parse(args).unwrap().grpc_addr().unwrap().to_string()
    }

    #[test]
    fn every_way_to_name_the_grpc_address() {
        assert_eq!(grpc(&[]), "127.0.0.1:10124");
        assert_eq!(grpc(&["::"]), "[::]:10124");
        assert_eq!(grpc(&["10.0.0.1", "99"]), "10.0.0.1:99");
        assert_eq!(grpc(&["--grpc-ip=10.0.0.1", "--grpc-port=98"]), "10.0.0.1:98");
        assert_eq!(grpc(&["--grpc-ip=10.0.0.1", "-g", "0.0.0.0"]), "0.0.0.0:10124");
        assert_eq!(grpc(&["-g", "[::1]:5"]), "[::1]:5");
        assert!(parse(&["-g", "host:5"]).unwrap().grpc_addr().is_err());
    }

    #[test]
    fn what_the_chart_passes_is_accepted() {
        let args = parse(&[
            "--grpc-ip=10.1.0.4",
            "-Nnode1",
            "-Rhttps://agent-core:50051",
            "-y/var/local/io-engine/config.yaml",
            "-l1,2",
            "-p=etcd:2379",
            "--ptpl-dir=/var/local/ptpl/",
            "--api-versions=v1",
            "--tgt-crdt=30",
            "-T=eth0",
            "--env-context=--iova-mode=pa",
            "--reactor-freeze-detection",
            "--events-url=nats://nats:4222",
            "-r",
            "/host/tmp/n.sock",
            "--enable-rdma",
        ])
        .unwrap();
        assert_eq!(args.node_name, "node1");
        assert_eq!(args.ptpl_dir.as_deref(), Some(std::path::Path::new("/var/local/ptpl/")));
        assert_eq!(args.cores(&[]), [CoreId(1), CoreId(2)]);
        assert_eq!(args.tgt_iface.as_deref(), Some("eth0"));
        assert_eq!(args.tgt_crdt, Crdt([30, 0, 0]));
        let etcd = args.etcd().unwrap();
        assert_eq!((etcd.addr.to_string(), etcd.retries), ("etcd:2379".into(), 30));
        assert_eq!(etcd.timeout, Duration::from_secs(10));
        let notes = args.compat.notes();
        for flag in ["-R", "-y", "-r", "--events-url", "--enable-rdma"] {
            assert!(notes.iter().any(|n| n.starts_with(&format!("{flag}:"))), "{flag} in {notes:?}");
        }
        assert!(!notes.iter().any(|n| n.starts_with("--api-versions")));
    }

    #[test]
    fn how_patiently_the_persistent_store_is_asked() {
        let timeout = |text: &str| {
            parse(&["-p=etcd", "--ps-timeout", text, "--ps-retries=3"]).map(|a| a.etcd().unwrap().timeout)
        };
        assert_eq!(timeout("1500ms").unwrap(), Duration::from_millis(1500));
        assert_eq!(timeout("10ms").unwrap(), Duration::from_secs(1), "no less");
        assert_eq!(timeout("5m").unwrap(), Duration::from_secs(60), "no more");
        assert_eq!(timeout("7").unwrap(), Duration::from_secs(7));
        for bad in ["", "s", "-1s", "1y", "99999999999s"] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
        assert!(parse(&["-p", "a/b"]).is_err());
        assert_eq!(parse(&[]).unwrap().etcd(), None);
    }

    #[test]
    fn lists_go_before_masks() {
        assert_eq!(parse(&["-m", "0x6"]).unwrap().cores(&[]), [CoreId(1), CoreId(2)]);
        assert_eq!(parse(&["-m", "0x6", "-l", "0"]).unwrap().cores(&[]), [CoreId(0)]);
        assert_eq!(parse(&[]).unwrap().cores(&[CoreId(3), CoreId(4)]), [CoreId(3)]);
        assert!(parse(&["-l", "x"]).is_err());
        assert!(parse(&["--tgt-crdt", "1,2"]).is_err());
        assert!(parse(&["--tgt-crdt", "101"]).is_err());
        assert!(parse(&["--unknown"]).is_err());
    }
}
