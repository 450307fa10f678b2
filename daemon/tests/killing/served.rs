//! `keelson serve` as a process of its own, and what is asked of it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aio::reactor::allowed_cores;
use rpc::keelson::v1 as own;
use rpc::mayastor::v1 as api;
use rpc::{Client, Endpoint};
use tonic::{Code, Response, Status};
use uuid::Uuid;

/// Longer than anything that works takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What belongs to every daemon of a story.
pub(super) struct Place {
    pub(super) keelson: PathBuf,
    pub(super) folder: PathBuf,
    /// Let it have two cores, where there are two.
    pub(super) two_cores: bool,
}

impl Place {
    /// A command that the environment of this process does not change.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.keelson);
        for name in ["MY_POD_IP", "RUST_LOG", "API_VERSION", "NVMF_TGT_IFACE", "HOSTNQN", "DIAGNOSE_STACK"] {
            command.env_remove(name);
        }
        command
    }

    /// `keelson pool check` of disks that nobody has open: its status and all that it printed.
    pub(super) fn check(&self, disks: &[&Path], data: bool) -> (Option<i32>, String) {
        let begin = Instant::now();
        loop {
            let mut check = self.command();
            check.args(["pool", "check"]).args(disks).args(data.then_some("--data"));
            let output = check.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            // The kernel may take its time to close the files of a process that was killed.
            let used = output.status.code() == Some(2) && text.contains("something uses it");
            if !used || begin.elapsed() > Duration::from_secs(10) {
                return (output.status.code(), text.into_owned());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A daemon. Killed when dropped.
pub(super) struct Served {
    child: Child,
    client: Client,
}

/// A port that is free now.
fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

impl Served {
    /// Starts it, and waits until it is ready: what its state folder says is open then.
    pub(super) async fn start(place: &Place) -> Self {
        let grpc = free_port();
        let mut child = Self::spawn(place, &grpc);
        let stdout = child.stdout.take().unwrap();
        let ready = tokio::task::spawn_blocking(move || {
            let mut lines = BufReader::new(stdout).lines();
            lines.any(|line| line.is_ok_and(|line| line.ends_with("is ready.")))
        });
        let ready = tokio::time::timeout(PATIENCE, ready).await;
        assert!(matches!(ready, Ok(Ok(true))), "it did not become ready: {ready:?}");
        let endpoint: Endpoint = format!("127.0.0.1:{grpc}").parse().unwrap();
        let client = Client::connect(&endpoint).await.unwrap();
        Self { child, client }
    }

    /// Starts one, and kills it so much later, whatever it is about then.
    pub(super) fn start_and_kill(place: &Place, delay: Duration) {
        let mut child = Self::spawn(place, &free_port());
        std::thread::sleep(delay);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn spawn(place: &Place, grpc: &str) -> Child {
        let mut command = place.command();
        command.args(["serve", "-N", "test", "--no-huge-pages", "--grpc-port", grpc]);
        command.args(["--nvmf-port", &free_port()]).arg("--state-dir").arg(place.folder.join("state"));
        let cores = allowed_cores().unwrap();
        if let ([first, second, ..], true) = (&cores[..], place.two_cores) {
            command.args(["-l", &format!("{first},{second}")]);
        }
        let log = File::options().create(true).append(true).open(place.folder.join("log")).unwrap();
        command.stdout(Stdio::piped()).stderr(log).spawn().unwrap()
    }

    /// `kill -9`, and the end of the process.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// For requests that are on their way when it is killed.
    pub(super) fn asker(&self) -> Asker {
        Asker(self.client.clone())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Fails when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The name of the pool under load.
pub(super) const POOL: &str = "tpool";

/// Asks a daemon.
#[derive(Clone)]
pub(super) struct Asker(Client);

type Answer<T> = Result<T, Status>;

fn inner<T>(answer: Answer<Response<T>>) -> Answer<T> {
    answer.map(Response::into_inner)
}

/// What was there already is as good as made.
pub(super) fn made<T>(answer: Answer<T>) -> Answer<()> {
    match answer {
        Err(e) if e.code() != Code::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// What was not there is as good as gone.
pub(super) fn gone<T>(answer: Answer<T>) -> Answer<()> {
    match answer {
        Err(e) if e.code() != Code::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl Asker {
    pub(super) async fn create_pool(&self, name: &str, disk: &str) -> Answer<api::Pool> {
        let request =
            api::CreatePoolRequest { name: name.into(), disks: vec![disk.into()], ..Default::default() };
        inner(self.0.pool().create_pool(request).await)
    }

    pub(super) async fn destroy_pool(&self, name: &str) -> Answer<()> {
        inner(self.0.pool().destroy_pool(api::DestroyPoolRequest { name: name.into(), uuid: None }).await)
    }

    pub(super) async fn export_pool(&self, name: &str) -> Answer<()> {
        inner(self.0.pool().export_pool(api::ExportPoolRequest { name: name.into(), uuid: None }).await)
    }

    pub(super) async fn pool(&self, name: &str) -> Answer<Option<api::Pool>> {
        let options = api::ListPoolOptions { name: Some(name.into()), ..Default::default() };
        Ok(inner(self.0.pool().list_pools(options).await)?.pools.into_iter().next())
    }

    pub(super) async fn add_disk(&self, disk: &str) -> Answer<()> {
        let request = own::AddDiskRequest { pool: POOL.into(), disk: disk.into(), force: false };
        inner(self.0.own_pool().add_disk(request).await).map(drop)
    }

    pub(super) async fn remove_disk(&self, disk: &str) -> Answer<()> {
        let request = own::RemoveDiskRequest { pool: POOL.into(), disk: disk.into() };
        inner(self.0.own_pool().remove_disk(request).await).map(drop)
    }

    pub(super) async fn disks(&self) -> Answer<Vec<own::Disk>> {
        let request = own::ListDisksRequest { pool: POOL.into() };
        Ok(inner(self.0.own_pool().list_disks(request).await)?.disks)
    }

    /// A replica of the pool under load, shared.
    pub(super) async fn create_replica(
        &self,
        name: &str,
        uuid: Uuid,
        size_bytes: u64,
        thin: bool,
    ) -> Answer<api::Replica> {
        let request = api::CreateReplicaRequest {
            name: name.into(),
            uuid: uuid.to_string(),
            pooluuid: POOL.into(),
            size: size_bytes,
            thin,
            share: 1,
            ..Default::default()
        };
        inner(self.0.replica().create_replica(request).await)
    }

    pub(super) async fn destroy_replica(&self, uuid: Uuid) -> Answer<()> {
        let request = api::DestroyReplicaRequest { uuid: uuid.to_string(), pool: None };
        inner(self.0.replica().destroy_replica(request).await)
    }

    pub(super) async fn resize(&self, uuid: Uuid, size_bytes: u64) -> Answer<()> {
        let request = api::ResizeReplicaRequest { uuid: uuid.to_string(), requested_size: size_bytes };
        inner(self.0.replica().resize_replica(request).await).map(drop)
    }

    /// Shares it, and says where.
    pub(super) async fn share(&self, uuid: Uuid) -> Answer<String> {
        let request =
            api::ShareReplicaRequest { uuid: uuid.to_string(), share: 1, allowed_hosts: Vec::new() };
        Ok(inner(self.0.replica().share_replica(request).await)?.uri)
    }

    pub(super) async fn replica(&self, uuid: Uuid) -> Answer<Option<api::Replica>> {
        let options = api::ListReplicaOptions { uuid: Some(uuid.to_string()), ..Default::default() };
        Ok(inner(self.0.replica().list_replicas(options).await)?.replicas.into_iter().next())
    }

    pub(super) async fn snapshot(&self, replica: Uuid, uuid: Uuid) -> Answer<()> {
        let request = api::CreateReplicaSnapshotRequest {
            replica_uuid: replica.to_string(),
            snapshot_uuid: uuid.to_string(),
            snapshot_name: uuid.to_string(),
            entity_id: "story".into(),
            txn_id: "1".into(),
        };
        inner(self.0.snapshot().create_replica_snapshot(request).await).map(drop)
    }

    pub(super) async fn destroy_snapshot(&self, uuid: Uuid) -> Answer<()> {
        let request = api::DestroySnapshotRequest { snapshot_uuid: uuid.to_string(), pool: None };
        inner(self.0.snapshot().destroy_snapshot(request).await)
    }

    /// Without discarded ones.
    pub(super) async fn snapshots(&self) -> Answer<Vec<Uuid>> {
        let listed = inner(self.0.snapshot().list_snapshot(api::ListSnapshotsRequest::default()).await)?;
        let kept = listed.snapshots.into_iter().filter(|s| !s.discarded_snapshot);
        Ok(kept.map(|s| s.snapshot_uuid.parse().unwrap()).collect())
    }

    pub(super) async fn clone_of(&self, snapshot: Uuid, uuid: Uuid) -> Answer<()> {
        let request = api::CreateSnapshotCloneRequest {
            snapshot_uuid: snapshot.to_string(),
            clone_name: uuid.to_string(),
            clone_uuid: uuid.to_string(),
        };
        inner(self.0.snapshot().create_snapshot_clone(request).await).map(drop)
    }
}
