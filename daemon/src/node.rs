//! Who this engine is: what it tells control planes and hosts of itself.

use std::net::{IpAddr, SocketAddr};

use rpc::mayastor::v1::{ApiVersion, MayastorBugFixes, MayastorFeatures, RegisterRequest};
use uuid::Uuid;

/// Version text of this build.
pub const VERSION: &str = concat!("keelson ", env!("CARGO_PKG_VERSION"));

/// Identity of this process.
#[derive(Clone, Debug)]
pub struct Node {
    /// `-N`.
    pub name: String,
    /// Where gRPC is served.
    pub grpc: SocketAddr,
    /// Where NVMe/TCP is served.
    pub nvmf: SocketAddr,
    /// New at each start.
    pub instance: Uuid,
    /// NQN under which we connect to others.
    pub hostnqn: String,
    /// Whether control planes are told that ANA is reported on volumes.
    pub ana_feature: bool,
}

impl Node {
    /// `hostnqn`: `$HOSTNQN`, else made from the name. Without the feature of ANA.
    pub fn new(name: String, grpc: SocketAddr, nvmf: SocketAddr, hostnqn: Option<String>) -> Self {
        let made = || format!("{}node-name:{name}", rpc::NQN_PREFIX);
        let hostnqn = hostnqn.filter(|n| !n.is_empty()).unwrap_or_else(made);
        Self { hostnqn, name, grpc, nvmf, instance: Uuid::new_v4(), ana_feature: false }
    }

    /// Where hosts connect for the subsystem `nqn`. What a URI would take for its own punctuation (a shared file
    /// has slashes in its name) is escaped.
    pub fn export_uri(&self, nqn: &str) -> String {
        format!("nvmf+tcp://{}/{}", self.nvmf, escape(nqn, &['/', '?', '#', '%']))
    }

    /// How the engine introduces itself. The endpoint names an address that others can reach, so an unspecified
    /// listen address is replaced by that of the target.
    pub fn registration(&self) -> RegisterRequest {
        let ip: IpAddr = if self.grpc.ip().is_unspecified() { self.nvmf.ip() } else { self.grpc.ip() };
        RegisterRequest {
            id: self.name.clone(),
            grpc_endpoint: SocketAddr::new(ip, self.grpc.port()).to_string(),
            instance_uuid: Some(self.instance.to_string()),
            api_version: vec![ApiVersion::V1.into()],
            hostnqn: Some(self.hostnqn.clone()),
            features: Some(MayastorFeatures {
                asymmetric_namespace_access: self.ana_feature,
                logical_volume_manager: Some(false),
                snapshot_rebuild: Some(false),
                rdma_capable_io_engine: Some(false),
            }),
            bugfixes: Some(MayastorBugFixes { nexus_rebuild_replica_ancestry: true }),
            version: Some(VERSION.to_owned()),
        }
    }
}

/// `text` with percent escapes for these ASCII characters.
pub fn escape(text: &str, which: &[char]) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match which.contains(&c) {
            true => out.push_str(&format!("%{:02X}", u32::from(c))),
            false => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registration_names_a_reachable_endpoint() {
        let addr = |text: &str| text.parse().unwrap();
        let node = Node::new("n1".into(), addr("[::]:10124"), addr("10.0.0.1:8420"), None);
        let registration = node.registration();
        assert_eq!(registration.grpc_endpoint, "10.0.0.1:10124");
        assert_eq!(registration.hostnqn.as_deref(), Some("nqn.2019-05.io.openebs:node-name:n1"));
        let node = Node::new("n1".into(), addr("127.0.0.1:1"), addr("[::1]:8420"), Some("nqn.h".into()));
        assert_eq!(node.registration().grpc_endpoint, "127.0.0.1:1");
        assert_eq!(node.hostnqn, "nqn.h");
        // A bug: it was claimed whether it was turned on or not.
        let claimed = |node: &Node| node.registration().features.unwrap().asymmetric_namespace_access;
        assert!(!claimed(&node));
        assert!(claimed(&Node { ana_feature: true, ..node.clone() }));
        assert_eq!(node.export_uri("nqn.x"), "nvmf+tcp://[::1]:8420/nqn.x");
        assert_eq!(node.export_uri("nqn.x:/dev/sdb"), "nvmf+tcp://[::1]:8420/nqn.x:%2Fdev%2Fsdb");
    }
}
