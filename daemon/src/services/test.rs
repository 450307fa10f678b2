//! `mayastor.v1.TestRpc`: wiping of replicas, and their checksums.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aio::facade::{ByteRange, Descriptor};
use aio::memory::DmaPool;
use aio::reactor::CoreHandle;
use aio::{BlockDevice, Core};
use nvme::digest::Digest;
use rpc::mayastor::v1::test_rpc_server::TestRpc;
use rpc::mayastor::v1::wipe_options::{CheckSumAlgorithm, WipeMethod};
use rpc::mayastor::v1::{
    AddFaultInjectionRequest, ListFaultInjectionsReply, ListFaultInjectionsRequest,
    RemoveFaultInjectionRequest, TestFeatures, WipeReplicaRequest, WipeReplicaResponse, wipe_replica_request,
    wipe_replica_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::engine::Engine;
use crate::error::{EngineError, PoolError, PoolOp, chain};
use crate::pools::replicas::check_pool;
use crate::pools::{PoolEntry, PoolRef};

/// Blocks at the end that a wipe leaves alone, as clients know it.
const TAIL_BLOCKS: u64 = 33;

/// Most answers of one wipe.
const MAX_ANSWERS: u64 = 1024;

/// Bytes that one I/O zeroes at most.
const ZERO_UNIT_BYTES: u64 = 8 << 20;

/// Bytes that one I/O reads at most: that much memory is taken for it.
const READ_UNIT_BYTES: u64 = 1 << 20;

/// Answers that wait for a slow client, before the wipe waits too.
const QUEUED_ANSWERS: usize = 16;

/// The service.
pub struct TestService(pub Arc<Engine>);

#[tonic::async_trait]
impl TestRpc for TestService {
    type WipeReplicaStream = ReceiverStream<Result<WipeReplicaResponse, Status>>;

    async fn get_features(&self, _: Request<()>) -> Result<Response<TestFeatures>, Status> {
        let methods = [WipeMethod::None, WipeMethod::WriteZeroes, WipeMethod::Checksum];
        Ok(Response::new(TestFeatures {
            wipe_methods: methods.map(i32::from).to_vec(),
            cksum_algs: vec![CheckSumAlgorithm::Crc32c.into()],
        }))
    }

    async fn wipe_replica(
        &self,
        request: Request<WipeReplicaRequest>,
    ) -> Result<Response<Self::WipeReplicaStream>, Status> {
        let WipeReplicaRequest { uuid, pool, wipe_options } = request.into_inner();
        let pool = pool.map(|p| match p {
            wipe_replica_request::Pool::PoolName(name) => PoolRef::Name(name),
            wipe_replica_request::Pool::PoolUuid(uuid) => PoolRef::Uuid(uuid),
        });
        let stream = wipe_options.ok_or(EngineError::Missing("the options"))?;
        let options = stream.options.ok_or(EngineError::Missing("the wipe options"))?;
        let method = parse_method(options.wipe_method)?;
        let (entry, device) = self.find(&uuid, pool).await?;
        let plan = Plan::new(&*device, stream.chunk_size)?;
        let (to, answers) = mpsc::channel(QUEUED_ANSWERS);
        tokio::spawn(run(entry.pool.home().clone(), device, method, plan, to));
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn add_fault_injection(
        &self,
        _: Request<AddFaultInjectionRequest>,
    ) -> Result<Response<()>, Status> {
        Err(no_injection())
    }

    async fn remove_fault_injection(
        &self,
        _: Request<RemoveFaultInjectionRequest>,
    ) -> Result<Response<()>, Status> {
        Err(no_injection())
    }

    async fn list_fault_injections(
        &self,
        _: Request<ListFaultInjectionsRequest>,
    ) -> Result<Response<ListFaultInjectionsReply>, Status> {
        Err(no_injection())
    }
}

fn no_injection() -> Status {
    Status::unimplemented("Fault injection feature is disabled")
}

fn parse_method(number: i32) -> Result<WipeMethod, EngineError> {
    match WipeMethod::try_from(number) {
        Ok(m @ (WipeMethod::None | WipeMethod::WriteZeroes | WipeMethod::Checksum)) => Ok(m),
        _ => Err(EngineError::BadValue {
            what: "wipe method",
            value: number.to_string(),
            expected: "methods are 0 (none), 1 (write zeroes) and 4 (checksum)",
        }),
    }
}

impl TestService {
    /// A replica or a snapshot.
    async fn find(
        &self,
        uuid: &str,
        pool: Option<PoolRef>,
    ) -> Result<(PoolEntry, Arc<dyn BlockDevice>), EngineError> {
        let pool = pool.map(|p| self.0.pools().containing(&p)).transpose()?;
        if let Ok(found) = self.0.replica(uuid).await {
            check_pool("replica", found.info.uuid, &found.entry, pool.as_ref())?;
            let device = found.entry.pool.volume(found.info.uuid);
            let device = device.ok_or_else(|| PoolError::NoReplica(uuid.to_owned()))?;
            return Ok((found.entry, device));
        }
        let found = self.0.snapshot(uuid).await.map_err(|e| match e {
            EngineError::Pool(PoolError::NoSnapshot(uuid)) => PoolError::NoReplica(uuid).into(),
            e => e,
        })?;
        check_pool("snapshot", found.info.uuid, &found.entry, pool.as_ref())?;
        let opened = found.entry.pool.open_snapshot(found.info.uuid).await;
        let device = opened.map_err(PoolOp::List.failed(&found.info.name))?;
        Ok((found.entry, device))
    }
}

/// What is done, and in which steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Plan {
    total_bytes: u64,
    chunk_bytes: u64,
}

impl Plan {
    fn new(device: &dyn BlockDevice, chunk_bytes: u64) -> Result<Self, EngineError> {
        let block_bytes = u64::from(device.geometry().block_bytes);
        Self::of(device.size().0, block_bytes, chunk_bytes)
    }

    fn of(blocks: u64, block_bytes: u64, chunk_bytes: u64) -> Result<Self, EngineError> {
        let bad =
            |expected| EngineError::BadValue { what: "chunk size", value: chunk_bytes.to_string(), expected };
        let total_bytes = blocks.saturating_sub(TAIL_BLOCKS).saturating_mul(block_bytes);
        if total_bytes == 0 {
            return Err(bad("the device has no more than the 33 blocks that are left alone"));
        }
        if !chunk_bytes.is_multiple_of(block_bytes) {
            return Err(bad("it is not a multiple of the device's block size"));
        }
        let chunk_bytes = if chunk_bytes == 0 { total_bytes } else { chunk_bytes.min(total_bytes) };
        let plan = Self { total_bytes, chunk_bytes };
        // One before the first chunk.
        if plan.chunks() + 1 > MAX_ANSWERS {
            return Err(bad("it makes more than 1024 answers: choose larger chunks"));
        }
        Ok(plan)
    }

    fn chunks(self) -> u64 {
        self.total_bytes.div_ceil(self.chunk_bytes)
    }

    fn chunk(self, index: u64) -> ByteRange {
        let offset_bytes = index * self.chunk_bytes;
        ByteRange { offset_bytes, len_bytes: self.chunk_bytes.min(self.total_bytes - offset_bytes) }
    }

    fn answer(self, uuid: &str, done: u64, since: Duration, crc: Option<u32>) -> WipeReplicaResponse {
        let wiped_bytes = (done * self.chunk_bytes).min(self.total_bytes);
        WipeReplicaResponse {
            uuid: uuid.to_owned(),
            total_bytes: self.total_bytes,
            chunk_size: self.chunk_bytes,
            last_chunk_size: self.chunk(self.chunks() - 1).len_bytes,
            total_chunks: self.chunks(),
            wiped_bytes,
            wiped_chunks: done,
            remaining_bytes: self.total_bytes - wiped_bytes,
            since: prost_types::Duration::try_from(since).ok(),
            checksum: crc.map(wipe_replica_response::Checksum::Crc32),
        }
    }
}

type Answers = mpsc::Sender<Result<WipeReplicaResponse, Status>>;

/// Wipes on the pool's core, and tells. Ends early when nobody listens any more.
async fn run(home: CoreHandle, device: Arc<dyn BlockDevice>, method: WipeMethod, plan: Plan, to: Answers) {
    let name = device.name().to_owned();
    let answers = to.clone();
    let result = match home.call(move || wipe(device, method, plan, to)).await {
        Ok(result) => result,
        Err(gone) => Err(EngineError::from(gone).into()),
    };
    if let Err(status) = result {
        tracing::warn!(%name, "not wiped: {}", status.message());
        // Whoever asked may be gone.
        let _ = answers.send(Err(status)).await;
    }
}

async fn wipe(
    device: Arc<dyn BlockDevice>,
    method: WipeMethod,
    plan: Plan,
    to: Answers,
) -> Result<(), Status> {
    let begin = Instant::now();
    let uuid = device.uuid().to_string();
    let lost = |e: &dyn std::error::Error| Status::data_loss(format!("cannot wipe {uuid}: {}", chain(e)));
    let disk = Descriptor::open(device.clone()).await.map_err(|e| lost(&e))?;
    let mut digest = (method == WipeMethod::Checksum).then(Digest::new);
    for done in 0..=plan.chunks() {
        if done > 0 {
            let range = plan.chunk(done - 1);
            let step = match (method, &mut digest) {
                (_, Some(digest)) => read(&disk, range, digest).await,
                (WipeMethod::WriteZeroes, None) => zero(&disk, range).await,
                _ => Ok(()),
            };
            step.map_err(|e| lost(e.as_ref()))?;
        }
        let crc = digest.as_ref().map(Digest::value);
        let answer = plan.answer(&uuid, done, begin.elapsed(), crc);
        if to.send(Ok(answer)).await.is_err() {
            return Err(Status::aborted(format!("wiping {uuid} ended early: the client is gone")));
        }
    }
    disk.close().await;
    Ok(())
}

type StepError = Box<dyn std::error::Error>;

/// The pieces of a range that one I/O may do.
fn pieces(disk: &Descriptor, range: ByteRange, unit_bytes: u64) -> impl Iterator<Item = ByteRange> + use<> {
    let geometry = disk.geometry();
    let most = u64::from(geometry.max_blocks).saturating_mul(geometry.block_bytes.into());
    let unit = unit_bytes.min(most).max(geometry.block_bytes.into());
    (0..range.len_bytes.div_ceil(unit)).map(move |i| {
        let offset = i * unit;
        let len_bytes = unit.min(range.len_bytes - offset);
        ByteRange { offset_bytes: range.offset_bytes + offset, len_bytes }
    })
}

async fn zero(disk: &Descriptor, range: ByteRange) -> Result<(), StepError> {
    for piece in pieces(disk, range, ZERO_UNIT_BYTES) {
        disk.write_zeroes(piece, false).await?;
    }
    Ok(())
}

async fn read(disk: &Descriptor, range: ByteRange, digest: &mut Digest) -> Result<(), StepError> {
    let core = Core::current().expect("invariant: wipes run on a core");
    let pool = DmaPool::new(core.memory(), READ_UNIT_BYTES as u32, 1)?;
    let mut buffer = pool.alloc();
    for piece in pieces(disk, range, READ_UNIT_BYTES) {
        let free = buffer.take().expect("invariant: each read gives the buffer back");
        let (result, filled) = disk.read_at(piece.offset_bytes, piece.len_bytes as u32, free).await;
        result?;
        digest.update(&filled[..piece.len_bytes as usize]);
        buffer = Some(filled);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_but_the_tail() {
        let plan = Plan::of(2048 + 33, 512, 300 * 512).unwrap();
        assert_eq!((plan.total_bytes, plan.chunks()), (1 << 20, 7));
        let lens: Vec<u64> = (0..7).map(|i| plan.chunk(i).len_bytes / 512).collect();
        assert_eq!(lens, [300, 300, 300, 300, 300, 300, 248]);
        assert_eq!(Plan::of(2081, 512, 0).unwrap().chunks(), 1, "all at once");
        assert_eq!(Plan::of(2081, 512, 1 << 30).unwrap().chunk_bytes, 1 << 20, "no more than there is");
        let last = plan.answer("u", 7, Duration::from_millis(1), Some(5));
        assert_eq!((last.remaining_bytes, last.wiped_bytes, last.last_chunk_size), (0, 1 << 20, 248 * 512));
        let first = plan.answer("u", 0, Duration::ZERO, None);
        assert_eq!((first.wiped_chunks, first.remaining_bytes), (0, 1 << 20));
    }

    #[test]
    fn impossible_chunks_are_refused() {
        for (blocks, chunk) in [(33, 0), (0, 0), (2081, 1), (1024 + 33, 512)] {
            assert!(Plan::of(blocks, 512, chunk).is_err(), "{blocks} {chunk}");
        }
        assert!(Plan::of(1023 + 33, 512, 512).is_ok());
        for method in [2, 3, 5, -1] {
            assert!(parse_method(method).is_err(), "{method}");
        }
    }
}
