//! A real etcd in a folder of its own, on loopback.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keelson::nexuses::records::etcd::{EtcdOptions, EtcdRecords};
use rpc::etcd::kv_client::KvClient;
use rpc::etcd::request_op::Request;
use rpc::etcd::{PutRequest, RangeRequest, RequestOp, TxnRequest};

/// An etcd that this test started.
pub struct Etcd {
    dir: tempfile::TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    process: Option<Child>,
}

/// A port that is free now.
fn port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

impl Etcd {
    /// Starts it, and waits until it answers. Without etcd on this machine the test is skipped, and that is recorded.
    pub async fn start(test: &str) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            let line = format!("etcd {test}: there is no etcd on this machine (Debian: etcd-server)");
            let _ = writeln!(std::io::stderr(), "SKIPPED {line}");
            if let Ok(path) = std::env::var("KEELSON_SKIPS") {
                let file = std::fs::OpenOptions::new().append(true).open(path);
                writeln!(file.unwrap(), "{line}").unwrap();
            }
            return None;
        }
        let mut etcd =
            Self { dir: tempfile::tempdir().unwrap(), client: port(), peer: port(), process: None };
        etcd.up().await;
        Some(etcd)
    }

    pub fn options(&self) -> EtcdOptions {
        let addr = self.client.to_string().parse().unwrap();
        EtcdOptions { addr, timeout: Duration::from_secs(1), retries: 20 }
    }

    /// Starts it, with what it knew before.
    pub async fn up(&mut self) {
        let url = |addr: SocketAddr| format!("http://{addr}");
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(self.dir.path().join("data"));
        command.arg("--listen-client-urls").arg(url(self.client));
        command.arg("--advertise-client-urls").arg(url(self.client));
        command.arg("--listen-peer-urls").arg(url(self.peer));
        command.arg("--initial-advertise-peer-urls").arg(url(self.peer));
        command.arg("--initial-cluster").arg(format!("default={}", url(self.peer)));
        command.env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH);
        self.process = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let records = self.records();
        let reached = tokio::time::timeout(Duration::from_secs(30), records.reach());
        reached.await.expect("etcd does not answer");
    }

    pub fn records(&self) -> EtcdRecords {
        EtcdRecords::new(self.options()).unwrap()
    }

    /// Ends it at once.
    pub fn down(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// What a key holds, read by a client of its own.
    pub async fn get(&self, key: &str) -> Option<String> {
        let request = RangeRequest { key: key.into() };
        let kv = self.client().await.range(request).await.unwrap().into_inner().kvs.into_iter().next()?;
        Some(String::from_utf8(kv.value).unwrap())
    }

    /// Writes a key, as somebody else would.
    pub async fn put(&self, key: &str, value: &str) {
        let put = Request::RequestPut(PutRequest { key: key.into(), value: value.into() });
        let request = TxnRequest { success: vec![RequestOp { request: Some(put) }], ..Default::default() };
        assert!(self.client().await.txn(request).await.unwrap().into_inner().succeeded);
    }

    async fn client(&self) -> KvClient<tonic::transport::Channel> {
        KvClient::connect(format!("http://{}", self.client)).await.unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.down();
    }
}
