//! Where and how to connect, and the parameters that a URI takes.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::OnceLock;
use std::time::Duration;

use aio::uri::NvmfUri;
use nvme::{HostId, Nqn};
use uuid::Uuid;

use super::error::{Error, UriProblem};

/// I/Os that one queue of a device takes when nothing else is asked for.
pub const DEFAULT_QUEUE_DEPTH: u16 = 128;

/// How to connect to a subsystem. Made by [`Options::new`] or [`Options::from_uri`], then adjusted freely.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The controller's transport address.
    pub addr: SocketAddr,
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
    /// An I/O command without an answer for this long takes the connection down.
    pub io_timeout: Duration,
    /// The same for admin and Fabrics commands.
    pub admin_timeout: Duration,
    /// For the TCP connection and the exchange of ICReq and ICResp.
    pub connect_timeout: Duration,
    /// The namespace to use; `None` = the first active one.
    pub nsid: Option<u32>,
    /// Name of the block device; empty = built from the address and the NQN.
    pub name: String,
}

impl Options {
    /// Defaults for the subsystem `subnqn` at `addr`.
    pub fn new(addr: SocketAddr, subnqn: Nqn) -> Self {
        let hostid = process_hostid();
        Self {
            addr,
            subnqn,
            hostnqn: Nqn::from_uuid(hostid.0),
            hostid,
            header_digest: false,
            data_digest: false,
            queue_depth: DEFAULT_QUEUE_DEPTH,
            max_queues: 64,
            kato_ms: 10_000,
            io_timeout: Duration::from_secs(30),
            admin_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            nsid: None,
            name: String::new(),
        }
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
    /// `queues`, `kato_ms`, `timeout_ms`, `nsid`. Others are ignored, as control planes of Mayastor expect.
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
        match key {
            "hostid" => {
                let id = Uuid::parse_str(value).map_err(|_| UriProblem::Parameter("hostid"))?;
                self.hostid = HostId(id.into_bytes());
            }
            "hdgst" => self.header_digest = switch(value).ok_or(UriProblem::Parameter("hdgst"))?,
            "ddgst" => self.data_digest = switch(value).ok_or(UriProblem::Parameter("ddgst"))?,
            "queue_depth" => {
                self.queue_depth = positive(value).ok_or(UriProblem::Parameter("queue_depth"))?;
            }
            "queues" => self.max_queues = positive(value).ok_or(UriProblem::Parameter("queues"))?,
            "kato_ms" => self.kato_ms = value.parse().map_err(|_| UriProblem::Parameter("kato_ms"))?,
            "timeout_ms" => {
                let ms = positive::<u32>(value).ok_or(UriProblem::Parameter("timeout_ms"))?;
                self.io_timeout = Duration::from_millis(ms.into());
            }
            "nsid" => self.nsid = Some(positive(value).ok_or(UriProblem::Parameter("nsid"))?),
            _ => {}
        }
        Ok(())
    }
}

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
    fn mistakes_are_named() {
        for (query, problem) in [
            ("nqn", UriProblem::Nqn),
            ("nqn.2019-05.io.x?queue_depth=0", UriProblem::Parameter("queue_depth")),
            ("nqn.2019-05.io.x?hdgst=maybe", UriProblem::Parameter("hdgst")),
            ("nqn.2019-05.io.x?hostnqn=h", UriProblem::Parameter("hostnqn")),
            ("nqn.2019-05.io.x?nsid=-1", UriProblem::Parameter("nsid")),
        ] {
            let got = parse(&format!("nvmf://10.0.0.1/{query}"));
            assert!(matches!(&got, Err(Error::Uri { problem: p, .. }) if *p == problem), "{query}: {got:?}");
        }
    }
}
