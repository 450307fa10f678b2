//! An endpoint and the typed clients of it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use tonic::transport::Channel;

use crate::keelson::v1::pool_rpc_client::PoolRpcClient as OwnPoolRpcClient;
use crate::keelson::v1::subsystem_rpc_client::SubsystemRpcClient;
use crate::mayastor::v1::bdev_rpc_client::BdevRpcClient;
use crate::mayastor::v1::host_rpc_client::HostRpcClient;
use crate::mayastor::v1::nexus_rpc_client::NexusRpcClient;
use crate::mayastor::v1::pool_rpc_client::PoolRpcClient;
use crate::mayastor::v1::replica_rpc_client::ReplicaRpcClient;
use crate::mayastor::v1::snapshot_rpc_client::SnapshotRpcClient;
use crate::mayastor::v1::stats_rpc_client::StatsRpcClient;
use crate::mayastor::v1::test_rpc_client::TestRpcClient;
use crate::{ClientError, DEFAULT_GRPC_PORT};

/// How long to wait for the daemon to take the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer that is taken: lists of tens of thousands of snapshots.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Where a daemon listens: `http://HOST:PORT`, with scheme and port filled in when they were left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint(tonic::codegen::http::Uri);

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.0.authority().map_or("", |a| a.as_str());
        write!(f, "{}://{authority}", self.0.scheme_str().unwrap_or("http"))
    }
}

impl FromStr for Endpoint {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let bad = |reason| ClientError::BadEndpoint { text: text.to_owned(), reason };
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        if scheme != "http" {
            return Err(bad("only the scheme http is spoken"));
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.is_empty() {
            return Err(bad("the host is missing"));
        }
        // A bare IPv6 address has colons of its own: give it its brackets.
        let host = match rest.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
            _ => rest.to_owned(),
        };
        let uri = |authority: &str| format!("http://{authority}/").parse::<tonic::codegen::http::Uri>();
        let parsed = uri(&host).map_err(|_| bad("it cannot be parsed"))?;
        let authority = parsed.authority().ok_or_else(|| bad("the host is missing"))?;
        if parsed.path() != "/" {
            return Err(bad("it has a path"));
        }
        if authority.as_str().contains('@') {
            return Err(bad("it has a user name"));
        }
        let has_port_text = authority.as_str().len() > authority.host().len();
        match (authority.port_u16(), has_port_text) {
            (Some(_), _) => Ok(Self(parsed)),
            (None, true) => Err(bad("the port is not a number up to 65535")),
            (None, false) => {
                uri(&format!("{host}:{DEFAULT_GRPC_PORT}")).map(Self).map_err(|_| bad("it cannot be parsed"))
            }
        }
    }
}

/// One connection, shared by the clients of all services.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects. Dropping the future gives up.
    pub async fn connect(endpoint: &Endpoint) -> Result<Self, ClientError> {
        let channel = Channel::builder(endpoint.0.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .connect()
            .await
            .map_err(|source| ClientError::Connect { endpoint: endpoint.clone(), source })?;
        Ok(Self { channel })
    }

    /// Block devices.
    pub fn bdev(&self) -> BdevRpcClient<Channel> {
        BdevRpcClient::new(self.channel.clone())
    }

    /// The node.
    pub fn host(&self) -> HostRpcClient<Channel> {
        HostRpcClient::new(self.channel.clone())
    }

    /// Nexuses.
    pub fn nexus(&self) -> NexusRpcClient<Channel> {
        NexusRpcClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Pools.
    pub fn pool(&self) -> PoolRpcClient<Channel> {
        PoolRpcClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Pools: what `mayastor.v1` has no call for.
    pub fn own_pool(&self) -> OwnPoolRpcClient<Channel> {
        OwnPoolRpcClient::new(self.channel.clone())
    }

    /// Replicas.
    pub fn replica(&self) -> ReplicaRpcClient<Channel> {
        ReplicaRpcClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Snapshots and clones.
    pub fn snapshot(&self) -> SnapshotRpcClient<Channel> {
        SnapshotRpcClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Counters.
    pub fn stats(&self) -> StatsRpcClient<Channel> {
        StatsRpcClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Wiping and checksums.
    pub fn test(&self) -> TestRpcClient<Channel> {
        TestRpcClient::new(self.channel.clone())
    }

    /// Exported subsystems.
    pub fn subsystem(&self) -> SubsystemRpcClient<Channel> {
        SubsystemRpcClient::new(self.channel.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        text.parse::<Endpoint>().map(|e| e.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn scheme_and_port_are_filled_in() {
        for (text, want) in [
            ("127.0.0.1", "http://127.0.0.1:10124"),
            ("http://127.0.0.1", "http://127.0.0.1:10124"),
            ("http://node-1:99/", "http://node-1:99"),
            ("node-1:99", "http://node-1:99"),
            ("::1", "http://[::1]:10124"),
            ("[::1]:5", "http://[::1]:5"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for (text, want) in [
            ("", "host is missing"),
            ("https://h", "only the scheme http"),
            ("h:99999", "port"),
            ("h:", "port"),
            ("h/path", "path"),
            ("a b", "cannot be parsed"),
            ("u@h", "user name"),
        ] {
            let e = shown(text).expect_err(text);
            assert!(e.contains(want), "{text}: {e}");
        }
    }
}
