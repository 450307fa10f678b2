//! Records in etcd, where a control plane reads them: key and text are Mayastor's.
//!
//! # A record has one writer
//! Each save is a transaction: it writes only if the key is as this nexus saw it last. Who finds it changed or deleted is not
//! the volume's nexus any more, and gets an error, upon which the mirror ends (hazard H6). A save whose answer was lost may
//! have been done: it is done when the key has what was to be written.
//!
//! # When etcd does not answer
//! The mirror freezes I/O while it saves. Attempts are repeated, a second apart, until one succeeds or `--ps-retries` are
//! used up; then the save has failed for good, and the nexus ends. The last record of a nexus, that of its clean end, is
//! tried less: without it the next one only has more to copy.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nexus::membership::{Loading, Saving};
use nexus::{MembershipStore, Record, StoreError};
use rpc::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use rpc::etcd::kv_client::KvClient;
use rpc::etcd::request_op::Request;
use rpc::etcd::response_op::Response;
use rpc::etcd::{Compare, KeyValue, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};
use tracing::warn;

use super::{decode, encode};

/// Port of an address that names none.
const DEFAULT_PORT: u16 = 2379;

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// Attempts at what is not worth waiting for: reading before a nexus is made, its clean end, and notes.
const FEW_RETRIES: u8 = 1;

/// In front of the key of a record, for the notes: no control plane looks there.
const NOTES: &str = "/keelson/notes";

/// Where etcd is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EtcdAddr(String);

impl fmt::Display for EtcdAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for EtcdAddr {
    type Err = String;

    /// `HOST[:PORT]`, with `http://` in front or not.
    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let bad = |why: &str| format!("{text:?} is not an address of etcd: {why}; write HOST or HOST:PORT");
        if rest.is_empty() || rest.contains('/') || rest.contains('@') {
            return Err(bad("it has no host, or more than that"));
        }
        // A bare IPv6 address has colons of its own.
        let host = match rest.parse::<std::net::Ipv6Addr>() {
            Ok(ip) => format!("[{ip}]"),
            Err(_) => rest.to_owned(),
        };
        let uri: tonic::codegen::http::Uri =
            format!("http://{host}").parse().map_err(|_| bad("it cannot be parsed"))?;
        let authority = uri.authority().ok_or_else(|| bad("the host is missing"))?;
        match (authority.port_u16(), authority.as_str().len() > authority.host().len()) {
            (Some(_), _) => Ok(Self(host)),
            (None, true) => Err(bad("its port is no number up to 65535")),
            (None, false) => Ok(Self(format!("{host}:{DEFAULT_PORT}"))),
        }
    }
}

/// Where etcd is, and how patiently it is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EtcdOptions {
    /// Where it is.
    pub addr: EtcdAddr,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// Attempts after the first.
    pub retries: u8,
}

/// See the module.
#[derive(Clone)]
pub struct EtcdRecords {
    options: EtcdOptions,
    channel: Channel,
    runtime: Handle,
}

impl EtcdRecords {
    /// Connects when it is first needed. In a tokio runtime only.
    pub fn new(options: EtcdOptions) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", options.addr))?
            .connect_timeout(options.timeout)
            .http2_keep_alive_interval(options.timeout)
            .keep_alive_while_idle(true);
        Ok(Self { channel: endpoint.connect_lazy(), options, runtime: Handle::current() })
    }

    /// Resolves when etcd answers. As long as it does not, that is logged now and then.
    pub async fn reach(&self) {
        let mut attempt = 0_u32;
        while let Err(e) = self.attempt(|mut kv| async move { kv.range(range("/keelson")).await }).await {
            if attempt.is_multiple_of(30) {
                warn!("etcd at {} (-p) does not answer, and is waited for: {e}", self.options.addr);
            }
            attempt += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The record under `key`.
    pub fn of(&self, key: &str) -> EtcdRecord {
        EtcdRecord { etcd: self.clone(), key: key.to_owned(), seen: Arc::default() }
    }

    /// One attempt, within its time.
    async fn attempt<T, F>(&self, call: impl FnOnce(KvClient<Channel>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let addr = &self.options.addr;
        let limit = self.options.timeout;
        match tokio::time::timeout(limit, call(KvClient::new(self.channel.clone()))).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(StoreError(format!("etcd at {addr}: {}", crate::error::chain(&status)))),
            Err(_) => {
                Err(StoreError(format!("etcd at {addr} did not answer within {} s", limit.as_secs_f32())))
            }
        }
    }

    /// Attempts until one succeeds; `retries` after the first.
    async fn persist<T, F>(
        &self,
        retries: u8,
        mut call: impl FnMut(KvClient<Channel>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let mut left = retries;
        loop {
            match self.attempt(&mut call).await {
                Ok(answer) => return Ok(answer),
                Err(e) if left == 0 => return Err(e),
                Err(e) => warn!("{e}; it is tried again"),
            }
            left -= 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Runs `work` where etcd can be reached from. Goes on when the future is dropped.
    fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>> {
        let (tell, told) = oneshot::channel();
        self.runtime.spawn(async move {
            // Nobody waits any more when the nexus is gone.
            let _ = tell.send(work.await);
        });
        Box::pin(async move {
            told.await.unwrap_or_else(|_| Err(StoreError("the daemon is shutting down".into())))
        })
    }
}

/// The record of one nexus.
pub struct EtcdRecord {
    etcd: EtcdRecords,
    key: String,
    /// Of the key, as this nexus saw it last; 0 = it was not there.
    seen: Arc<Mutex<i64>>,
}

fn lock(seen: &Mutex<i64>) -> MutexGuard<'_, i64> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn range(key: &str) -> RangeRequest {
    RangeRequest { key: key.as_bytes().to_vec() }
}

/// Writes `key` if `guard` is as it was when it had this revision; else tells what `guard` has.
fn put_if_unchanged(guard: &str, revision: i64, key: &str, value: &[u8]) -> TxnRequest {
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: guard.as_bytes().to_vec(),
        target_union: Some(TargetUnion::ModRevision(revision)),
    };
    let put = PutRequest { key: key.as_bytes().to_vec(), value: value.to_vec() };
    TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(Request::RequestRange(range(guard))) }],
    }
}

/// What a transaction found instead of what it wanted.
fn found(answer: TxnResponse) -> Option<KeyValue> {
    answer.responses.into_iter().find_map(|r| match r.response {
        Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    })
}

impl EtcdRecord {
    /// See the module.
    async fn replace(
        etcd: EtcdRecords,
        key: String,
        seen: Arc<Mutex<i64>>,
        value: Vec<u8>,
        retries: u8,
    ) -> Result<(), StoreError> {
        let mut attempts = 0_u32;
        let answer = etcd
            .persist(retries, |mut kv| {
                attempts += 1;
                let request = put_if_unchanged(&key, *lock(&seen), &key, &value);
                async move { kv.txn(request).await }
            })
            .await?;
        let revision = answer.header.map_or(0, |h| h.revision);
        if answer.succeeded {
            *lock(&seen) = revision;
            return Ok(());
        }
        match found(answer) {
            // An attempt whose answer was lost.
            Some(kv) if attempts > 1 && kv.value == value => {
                *lock(&seen) = kv.mod_revision;
                Ok(())
            }
            other => {
                let what = if other.is_some() { "changed" } else { "deleted" };
                Err(StoreError(format!(
                    "key {key} in etcd at {} was {what} by somebody else: another nexus may have the volume now",
                    etcd.options.addr
                )))
            }
        }
    }
}

impl MembershipStore for EtcdRecord {
    fn load(&self) -> Loading<Record> {
        let (etcd, key, seen) = (self.etcd.clone(), self.key.clone(), self.seen.clone());
        self.etcd.spawn(async move {
            let request = range(&key);
            let answer = etcd.persist(FEW_RETRIES, |mut kv| {
                let request = request.clone();
                async move { kv.range(request).await }
            });
            let Some(kv) = answer.await?.kvs.into_iter().next() else { return Ok(None) };
            *lock(&seen) = kv.mod_revision;
            let record = decode(&kv.value);
            record.map(Some).map_err(|e| StoreError(format!("key {key} in etcd cannot be understood: {e}")))
        })
    }

    fn load_notes(&self) -> Loading<String> {
        let (etcd, key) = (self.etcd.clone(), notes_key(&self.key));
        self.etcd.spawn(async move {
            let answer = etcd.persist(FEW_RETRIES, |mut kv| {
                let request = range(&key);
                async move { kv.range(request).await }
            });
            let kv = answer.await?.kvs.into_iter().next();
            // What is no text is of no use, and nothing depends on it.
            Ok(kv.and_then(|kv| String::from_utf8(kv.value).ok()))
        })
    }

    /// Only while the record is ours.
    fn save_notes(&self, notes: &str) -> Saving {
        let (etcd, key, seen) = (self.etcd.clone(), self.key.clone(), self.seen.clone());
        let notes = notes.as_bytes().to_vec();
        self.etcd.spawn(async move {
            let request = put_if_unchanged(&key, *lock(&seen), &notes_key(&key), &notes);
            let answer = etcd.persist(FEW_RETRIES, |mut kv| {
                let request = request.clone();
                async move { kv.txn(request).await }
            });
            match answer.await?.succeeded {
                true => Ok(()),
                false => Err(StoreError(format!("key {key} in etcd was changed by somebody else"))),
            }
        })
    }

    fn save(&self, record: &Record) -> Saving {
        let retries = if record.clean_shutdown { FEW_RETRIES } else { self.etcd.options.retries };
        let retries = retries.min(self.etcd.options.retries);
        let (etcd, key, seen) = (self.etcd.clone(), self.key.clone(), self.seen.clone());
        let value = encode(record);
        self.etcd.spawn(Self::replace(etcd, key, seen, value, retries))
    }
}

fn notes_key(key: &str) -> String {
    let joint = if key.starts_with('/') { "" } else { "/" };
    format!("{NOTES}{joint}{key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let shown = |text: &str| text.parse::<EtcdAddr>().map(|a| a.to_string());
        for (text, want) in [
            ("etcd", "etcd:2379"),
            ("etcd:99", "etcd:99"),
            ("http://127.0.0.1:5/", "127.0.0.1:5"),
            ("::1", "[::1]:2379"),
            ("[::1]:7", "[::1]:7"),
            ("release-etcd.namespace.svc", "release-etcd.namespace.svc:2379"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(want), "{text}");
        }
        for text in ["", "http://", "a/b", "etcd:99999", "etcd:", "https://x", "u@h", "a b"] {
            assert!(shown(text).is_err(), "{text}");
        }
    }

    #[test]
    fn notes_stand_where_no_control_plane_looks() {
        assert_eq!(notes_key("/openebs.io/x/info"), "/keelson/notes/openebs.io/x/info");
        assert_eq!(notes_key("uuid"), "/keelson/notes/uuid");
    }
}
