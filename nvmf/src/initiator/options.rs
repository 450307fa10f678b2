//! Where and how to connect, and the parameters that a URI takes.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::OnceLock;
use std::time::Duration;

use aio::uri::NvmfUri;
use nvme::{HostId, Nqn};
use uuid::Uuid;

use super::error::{Error, UriProblem};
use super::unsettled::Unsettled;

/// I/Os that one queue of a device takes when nothing else is asked for.
pub const DEFAULT_QUEUE_DEPTH: u16 = 128;

/// How to connect to a subsystem. Made by [`Options::new`] or [`Options::from_uri`], then adjusted freely.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The controller's transport address.
    pub addr: SocketAddr,
    /// Addresses of further controllers of the same subsystem: further paths to the same namespace.
    pub more_addrs: Vec<SocketAddr>,
    /// Which of several equally good paths an I/O takes.
    pub policy: PathPolicy,
    /// What happens when connections end.
    pub recovery: Recovery,
    /// The subsystem's NQN.
    pub subnqn: Nqn,
    /// Our NQN.
    pub hostnqn: Nqn,
    /// Our host identifier; controllers tell hosts apart by it.
    pub hostid: HostId,
    /// Offer CRC32C over PDU headers; used when the controller agrees.
    pub header_digest: bool,
    /// Offer CRC32C over PDU data; used when the controller agrees.
    pub data_digest: bool,
    /// Most commands in flight on one I/O queue; the controller's limits may lower it.
    pub queue_depth: u16,
    /// I/O queues to ask for: an upper bound on the channels open at once.
    pub max_queues: u16,
    /// Keep Alive Timeout told to the controller; half of it is our interval. 0 = no keep alive.
    pub kato_ms: u32,
    /// An I/O command without an answer for this long is aborted; when that does not help within
    /// [`abort_timeout`](Self::abort_timeout), the association is ended.
    pub io_timeout: Duration,
    /// How long an aborted command may take to be answered.
    pub abort_timeout: Duration,
    /// The same for admin and Fabrics commands.
    pub admin_timeout: Duration,
    /// For the TCP connection and the exchange of ICReq and ICResp.
    pub connect_timeout: Duration,
    /// The namespace to use; `None` = the first active one.
    pub nsid: Option<u32>,
    /// Name of the block device; empty = built from the address and the NQN.
    pub name: String,
    /// Associations that ended and may still execute commands: shared by all devices of the process.
    pub unsettled: Unsettled,
}

/// Which of several equally good paths an I/O takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PathPolicy {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// Where answers came fastest lately, weighted with what is in flight there.
    Latency,
}

/// What happens when a connection ends, in the terms of `nvme-cli`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Recovery {
    /// Longest pause between two attempts to reconnect; the first comes after [`FIRST_RECONNECT`], each later one after
    /// twice the time. `None` = [`DEFAULT_RECONNECT_DELAY`].
    pub reconnect_delay: Option<Duration>,
    /// How long a path is tried before it is given up, and with the last path the device. `None` = not at all for a
    /// device with one path, [`DEFAULT_CTRL_LOSS`] with several.
    pub ctrl_loss: Option<Duration>,
    /// How long I/O waits while there is no usable path, before it fails. `None` = until the device is given up.
    pub fast_io_fail: Option<Duration>,
    /// Go on with a namespace whose controller has a volatile cache and cannot tell whether it restarted: who says so
    /// knows that it does not lose what it acknowledged.
    pub trust_cache: bool,
}

/// Pause before the first attempt to reconnect.
pub const FIRST_RECONNECT: Duration = Duration::from_millis(100);

/// Longest pause between attempts to reconnect, unless said otherwise.
pub const DEFAULT_RECONNECT_DELAY: Duration = Duration::from_secs(10);

/// How long a device with several paths tries to reconnect one, unless said otherwise.
pub const DEFAULT_CTRL_LOSS: Duration = Duration::from_secs(600);

/// Most paths of one device.
pub const MAX_PATHS: usize = 16;

impl Options {
    /// Defaults for the subsystem `subnqn` at `addr`.
    pub fn new(addr: SocketAddr, subnqn: Nqn) -> Self {
        let hostid = process_hostid();
        Self {
            addr,
            more_addrs: Vec::new(),
            policy: PathPolicy::default(),
            recovery: Recovery::default(),
            subnqn,
            hostnqn: Nqn::from_uuid(hostid.0),
            hostid,
            header_digest: false,
            data_digest: false,
            queue_depth: DEFAULT_QUEUE_DEPTH,
            max_queues: 64,
            kato_ms: 10_000,
            io_timeout: Duration::from_secs(30),
            abort_timeout: Duration::from_secs(5),
            admin_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            nsid: None,
            name: String::new(),
            unsettled: Unsettled::process(),
        }
    }

    /// How many paths there are.
    pub(super) fn paths(&self) -> usize {
        1 + self.more_addrs.len().min(MAX_PATHS - 1)
    }

    /// The same for path `index` alone.
    pub(super) fn of_path(&self, index: usize) -> Self {
        let further = index.checked_sub(1).and_then(|i| self.more_addrs.get(i));
        Self { addr: further.copied().unwrap_or(self.addr), ..self.clone() }
    }

    /// How long a path is tried; zero = not at all.
    pub(super) fn ctrl_loss(&self) -> Duration {
        let default = if self.paths() > 1 { DEFAULT_CTRL_LOSS } else { Duration::ZERO };
        self.recovery.ctrl_loss.unwrap_or(default)
    }

    /// The name of the block device: what was asked for, else Mayastor's form `host:port/nqn` + `n1`.
    pub(super) fn device_name(&self) -> String {
        if self.name.is_empty() {
            format!("{}/{}n1", self.addr, self.subnqn.as_str())
        } else {
            self.name.clone()
        }
    }
}

/// One host identifier a process, so that all its connections belong together.
fn process_hostid() -> HostId {
    static HOSTID: OnceLock<Uuid> = OnceLock::new();
    HostId(HOSTID.get_or_init(Uuid::new_v4).into_bytes())
}

impl Options {
    /// The options that `uri` asks for, at `addr`: [`resolve`] tells which that is.
    ///
    /// Parameters of ours beside those of [`NvmfUri`]: `hostid`, `hdgst` and `ddgst` (`on`/`off`), `queue_depth`,
    /// `kato_ms`, `timeout_ms`, `nsid`, `paths` (further addresses, as in `10.0.0.2:8420,10.0.0.3:8420`), `iopolicy`
    /// (`round-robin` or `latency`), `trust_cache`; and, with the names and units (seconds) of `nvme connect`:
    /// `nr-io-queues`, `keep-alive-tmo`, `reconnect-delay`, `ctrl-loss-tmo` (-1 = for ever), `fast_io_fail_tmo` (-1 =
    /// off). `-` and `_` are the same. Others are ignored, as control planes of Mayastor expect.
    pub fn from_uri(uri: &NvmfUri, addr: SocketAddr) -> Result<Self, Error> {
        let bad = |problem| Error::Uri { uri: uri.device_name(), problem };
        let subnqn = Nqn::parse(&uri.nqn).map_err(|_| bad(UriProblem::Nqn))?;
        let mut options = Self { name: uri.device_name(), ..Self::new(addr, subnqn) };
        if let Some(hostnqn) = &uri.hostnqn {
            options.hostnqn = Nqn::parse(hostnqn).map_err(|_| bad(UriProblem::Parameter("hostnqn")))?;
        }
        for (key, value) in &uri.others {
            options.parameter(key, value).map_err(bad)?;
        }
        Ok(options)
    }

    fn parameter(&mut self, key: &str, value: &str) -> Result<(), UriProblem> {
        let bad = |name| move || UriProblem::Parameter(name);
        let seconds = |name| {
            let whole: Option<i64> = value.parse().ok();
            whole.filter(|s| (-1..=MAX_SECONDS).contains(s)).ok_or(UriProblem::Parameter(name))
        };
        let time = |name| match seconds(name)? {
            ..0 => Ok(FOR_EVER),
            s => Ok(Duration::from_secs(s.unsigned_abs())),
        };
        match key.replace('-', "_").as_str() {
            "hostid" => {
                let id = Uuid::parse_str(value).map_err(|_| UriProblem::Parameter("hostid"))?;
                self.hostid = HostId(id.into_bytes());
            }
            "hdgst" => self.header_digest = switch(value).ok_or_else(bad("hdgst"))?,
            "ddgst" => self.data_digest = switch(value).ok_or_else(bad("ddgst"))?,
            "queue_depth" => self.queue_depth = positive(value).ok_or_else(bad("queue_depth"))?,
            "queues" | "nr_io_queues" => self.max_queues = positive(value).ok_or_else(bad("nr-io-queues"))?,
            "kato_ms" => self.kato_ms = value.parse().map_err(|_| UriProblem::Parameter("kato_ms"))?,
            "keep_alive_tmo" => {
                let s = seconds("keep-alive-tmo")?;
                let ms = u32::try_from(s).ok().and_then(|s| s.checked_mul(1000));
                self.kato_ms = ms.ok_or_else(bad("keep-alive-tmo"))?;
            }
            "timeout_ms" => {
                let ms = positive::<u32>(value).ok_or_else(bad("timeout_ms"))?;
                self.io_timeout = Duration::from_millis(ms.into());
            }
            "nsid" => self.nsid = Some(positive(value).ok_or_else(bad("nsid"))?),
            "paths" => {
                let addrs: Result<Vec<SocketAddr>, _> = value.split(',').map(str::parse).collect();
                let addrs = addrs.ok().filter(|a| a.len() < MAX_PATHS);
                self.more_addrs = addrs.ok_or_else(bad("paths"))?;
            }
            "iopolicy" => {
                self.policy = match value {
                    "round-robin" => PathPolicy::RoundRobin,
                    "latency" => PathPolicy::Latency,
                    _ => return Err(UriProblem::Parameter("iopolicy")),
                }
            }
            "reconnect_delay" => {
                let delay = time("reconnect-delay")?;
                if delay.is_zero() || delay == FOR_EVER {
                    return Err(UriProblem::Parameter("reconnect-delay"));
                }
                self.recovery.reconnect_delay = Some(delay);
            }
            "ctrl_loss_tmo" => self.recovery.ctrl_loss = Some(time("ctrl-loss-tmo")?),
            "fast_io_fail_tmo" => {
                self.recovery.fast_io_fail = Some(time("fast_io_fail_tmo")?).filter(|t| *t != FOR_EVER);
            }
            "trust_cache" => self.recovery.trust_cache = switch(value).ok_or_else(bad("trust_cache"))?,
            _ => {}
        }
        Ok(())
    }
}

/// Longest time that a parameter names, in seconds: a century.
const MAX_SECONDS: i64 = 100 * 365 * 86_400;

/// What -1 stands for.
const FOR_EVER: Duration = Duration::from_secs(MAX_SECONDS.unsigned_abs() * 2);

/// Looks up the address of `uri`. Blocks on the resolver when the host is a name: not for reactor threads.
pub fn resolve(uri: &NvmfUri) -> Result<SocketAddr, Error> {
    let fail = |source| Error::Resolve { host: uri.host.clone(), source };
    (uri.host.as_str(), uri.port)
        .to_socket_addrs()
        .map_err(fail)?
        .next()
        .ok_or_else(|| fail(std::io::ErrorKind::NotFound.into()))
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "on" | "true" | "1" | "" => Some(true),
        "off" | "false" | "0" => Some(false),
        _ => None,
    }
}

fn positive<T: std::str::FromStr + Default + PartialEq>(value: &str) -> Option<T> {
    value.parse().ok().filter(|n| *n != T::default())
}

#[cfg(test)]
mod tests {
    use aio::uri::DeviceUri;

    use super::*;

    fn parse(text: &str) -> Result<Options, Error> {
        match text.parse() {
            Ok(DeviceUri::Nvmf(uri)) => Options::from_uri(&uri, resolve(&uri)?),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn parameters_and_defaults() {
        let options = parse("nvmf://10.1.2.3/nqn.2019-05.io.openebs:v?reftag=1").unwrap();
        assert_eq!(options.addr, "10.1.2.3:8420".parse().unwrap());
        assert_eq!(options.device_name(), "10.1.2.3/nqn.2019-05.io.openebs:vn1");
        assert_eq!((options.queue_depth, options.nsid), (DEFAULT_QUEUE_DEPTH, None));
        let options = parse(
            "nvmf+tcp://[::1]:4420/nqn.2019-05.io.x?hdgst=on&ddgst=1&queue_depth=16&nsid=3&hostnqn=nqn.2024-01.io.h",
        )
        .unwrap();
        assert_eq!(options.addr, "[::1]:4420".parse().unwrap());
        assert!(options.header_digest && options.data_digest);
        assert_eq!((options.queue_depth, options.nsid), (16, Some(3)));
        assert_eq!(options.hostnqn.as_str(), "nqn.2024-01.io.h");
    }

    #[test]
    fn recovery_is_named_as_in_nvme_cli() {
        let options = parse("nvmf://10.0.0.1/nqn.2019-05.io.x").unwrap();
        assert_eq!((options.ctrl_loss(), options.recovery.fast_io_fail), (Duration::ZERO, None));
        let options = parse(
            "nvmf://10.0.0.1/nqn.2019-05.io.x?reconnect-delay=2&ctrl-loss-tmo=-1&fast_io_fail_tmo=7&\
             keep-alive-tmo=5&nr-io-queues=3",
        )
        .unwrap();
        let second = Duration::from_secs(1);
        assert_eq!(options.recovery.reconnect_delay, Some(2 * second));
        assert_eq!((options.ctrl_loss(), options.recovery.fast_io_fail), (FOR_EVER, Some(7 * second)));
        assert_eq!((options.kato_ms, options.max_queues), (5000, 3));
        let options =
            parse("nvmf://10.0.0.1/nqn.2019-05.io.x?paths=10.0.0.2:4420,[::1]:8420&fast_io_fail_tmo=-1");
        let options = options.unwrap();
        assert_eq!((options.paths(), options.ctrl_loss()), (3, DEFAULT_CTRL_LOSS));
        assert_eq!(options.recovery.fast_io_fail, None);
        let addrs: Vec<String> = (0..3).map(|i| options.of_path(i).addr.to_string()).collect();
        assert_eq!(addrs, ["10.0.0.1:8420", "10.0.0.2:4420", "[::1]:8420"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (query, problem) in [
            ("nqn", UriProblem::Nqn),
            ("nqn.2019-05.io.x?queue_depth=0", UriProblem::Parameter("queue_depth")),
            ("nqn.2019-05.io.x?hdgst=maybe", UriProblem::Parameter("hdgst")),
            ("nqn.2019-05.io.x?hostnqn=h", UriProblem::Parameter("hostnqn")),
            ("nqn.2019-05.io.x?nsid=-1", UriProblem::Parameter("nsid")),
            ("nqn.2019-05.io.x?reconnect-delay=0", UriProblem::Parameter("reconnect-delay")),
            ("nqn.2019-05.io.x?ctrl-loss-tmo=-2", UriProblem::Parameter("ctrl-loss-tmo")),
            ("nqn.2019-05.io.x?keep-alive-tmo=-1", UriProblem::Parameter("keep-alive-tmo")),
            ("nqn.2019-05.io.x?paths=host2", UriProblem::Parameter("paths")),
            ("nqn.2019-05.io.x?iopolicy=numa", UriProblem::Parameter("iopolicy")),
        ] {
            let got = parse(&format!("nvmf://10.0.0.1/{query}"));
            assert!(matches!(&got, Err(Error::Uri { problem: p, .. }) if *p == problem), "{query}: {got:?}");
        }
    }
}
