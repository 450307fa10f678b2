//! Vendor specific commands: the facets of a namespace's device, over the wire ([`nvme::vendor::facets`]).
//!
//! Each runs as a task of the admin queue's core and answers later. A controller has at most [`MAX_CALLS`] at a time, each
//! with one answer of at most the longest transfer, which bounds their memory. They count as commands in flight: an association
//! that died is not gone before the last of them has ended (`HAZARDS` H3).

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aio::facets::{CreateSnapshot, FacetError, MOST_RANGES, Page, Piece, Position, Since};
use aio::{BlockCount, BlockDevice, BlockRange, Core, Lba};
use nvme::sgl::Sgl;
use nvme::vendor::facets::{
    self as wire, Asked, Facets, FacetsPage, MarkData, MarksPage, RangesPage, ReadRanges, SnapshotMessage,
    UNKNOWN_PAST, UnixTime,
};
use nvme::{AdminOpcode, Cid, Nsid, Sqe, Status};
use uuid::Uuid;

use super::{AdminOutcome, to_host};
use crate::target::controller::{AdminCompletion, Controller, ControllerKind};

/// Commands of this kind that one controller executes at a time.
pub(super) const MAX_CALLS: u8 = 4;

/// What a command came to: the status, the number for dwords 0 and 1, and data for the host.
type Answer = Result<Vec<u8>, (Status, u64)>;

impl Controller {
    /// Executes a vendor specific command about a namespace. `data` is what the host sent with it.
    pub(super) fn facet(self: &Arc<Self>, sqe: &Sqe, data: &[u8]) -> Result<AdminOutcome, Status> {
        if self.kind() != ControllerKind::Io {
            return Err(Status::INVALID_OPCODE);
        }
        let opcode = sqe.admin_opcode();
        let device = self.device_of(sqe.nsid(), opcode == wire::CREATE_SNAPSHOT)?;
        let has = facets_of(&*device);
        let needed = match opcode {
            wire::READ_FACETS => return to_host(sqe, page(&*device, has)),
            wire::CREATE_SNAPSHOT => Facets::SNAPSHOTS,
            wire::READ_MARKS | wire::PUT_MARK | wire::REMOVE_MARK => Facets::MARKS,
            _ => Facets::RANGES,
        };
        if !has.contains(needed) {
            return Err(Status::INVALID_OPCODE);
        }
        match opcode {
            wire::CREATE_SNAPSHOT => {
                let spec = snapshot(sqe, data)?;
                self.begin(sqe, async move { create_snapshot(&*device, spec).await })
            }
            wire::PUT_MARK => {
                let mark = MarkData::read(data).ok_or(Status::DATA_SGL_LENGTH_INVALID)?;
                self.begin(sqe, async move { put_mark(&*device, &mark).await })
            }
            wire::REMOVE_MARK => {
                let id = sqe.cdw12_15();
                self.begin(sqe, async move { remove_mark(&*device, id).await })
            }
            wire::READ_MARKS => {
                let len_bytes = self.room(sqe)?;
                // Room for the header, so that this is not found out after the work.
                MarksPage::default().to_wire(len_bytes as usize).ok_or(Status::DATA_SGL_LENGTH_INVALID)?;
                self.begin(sqe, async move { marks(&*device, len_bytes as usize).await })
            }
            _ => {
                let read = ReadRanges::decode(sqe).ok_or(Status::INVALID_OPCODE)?;
                let len_bytes = self.room(sqe)?;
                let most = RangesPage::capacity(len_bytes).ok_or(Status::DATA_SGL_LENGTH_INVALID)?;
                if read.start_lba >= device.size().0 {
                    return Err(Status::LBA_OUT_OF_RANGE);
                }
                self.begin(sqe, async move { ranges(&*device, read, most, len_bytes as usize).await })
            }
        }
    }

    /// The device of a namespace. Mayastor's hosts leave the number out in Create Snapshot: the one that there is.
    fn device_of(&self, nsid: Nsid, may_be_any: bool) -> Result<Arc<dyn BlockDevice>, Status> {
        let model = self.shared.lock();
        let subsystem = model.subsystem(self.subsystem()).ok_or(Status::INTERNAL_ERROR)?;
        if may_be_any && !nsid.is_one() {
            let mut all = subsystem.active();
            return match (all.next(), all.next()) {
                (Some(only), None) => Ok(only.device.clone()),
                _ => Err(Status::INVALID_NAMESPACE),
            };
        }
        subsystem.namespace(nsid).map(|ns| ns.device.clone()).ok_or(Status::INVALID_NAMESPACE)
    }

    /// How much the host takes, in bytes.
    fn room(&self, sqe: &Sqe) -> Result<u32, Status> {
        match sqe.sgl1().parse()? {
            Sgl::Transport { len_bytes } if len_bytes <= self.shared.config.max_io_bytes => Ok(len_bytes),
            Sgl::Transport { .. } => Err(Status::INVALID_FIELD),
            _ => Err(Status::SGL_TYPE_INVALID),
        }
    }

    /// Has `work` done on this core; its end completes the command.
    fn begin(
        self: &Arc<Self>,
        sqe: &Sqe,
        work: impl Future<Output = Answer> + 'static,
    ) -> Result<AdminOutcome, Status> {
        let core = Core::current().ok_or(Status::INTERNAL_ERROR)?;
        let mut state = self.lock();
        if state.calls >= MAX_CALLS {
            return Err(Status::COMMAND_INTERRUPTED);
        }
        state.calls += 1;
        drop(state);
        let answer = (Status::INTERNAL_ERROR, 0);
        let mut call = Call { controller: self.clone(), cid: sqe.cid(), answer: Err(answer) };
        // Detached: the call answers however the task ends.
        drop(core.spawn(async move {
            // As a whole: a closure takes what it names.
            let whole = &mut call;
            whole.answer = work.await;
        }));
        Ok(AdminOutcome::Later)
    }
}

/// A command in flight. Answers the host when dropped, so that no path can forget to.
struct Call {
    controller: Arc<Controller>,
    cid: Cid,
    answer: Answer,
}

impl Drop for Call {
    fn drop(&mut self) {
        let (status, result, data) = match core::mem::replace(&mut self.answer, Ok(Vec::new())) {
            Ok(data) => (Status::SUCCESS, 0, data),
            Err((status, result)) => (status, result, Vec::new()),
        };
        self.controller.call_over(AdminCompletion { cid: self.cid, status, result, data });
    }
}

/// What a device has.
fn facets_of(device: &dyn BlockDevice) -> Facets {
    Facets::NONE
        .with_if(Facets::RANGES, device.ranges().is_some())
        .with_if(Facets::MARKS, device.marks().is_some())
        .with_if(Facets::SNAPSHOTS, device.snapshots().is_some())
}

fn page(device: &dyn BlockDevice, facets: Facets) -> Vec<u8> {
    let granularity = device.ranges().map_or(0, |r| r.granularity().0);
    let granularity_blocks = u32::try_from(granularity).unwrap_or(u32::MAX).into();
    FacetsPage { facets, granularity_blocks, ..FacetsPage::zeroed() }.wire().to_vec()
}

/// What Create Snapshot asks for.
fn snapshot(sqe: &Sqe, data: &[u8]) -> Result<CreateSnapshot, Status> {
    let message = SnapshotMessage::parse(data).ok_or(Status::INVALID_FIELD)?;
    let uuid = message.uuid.and_then(|text| Uuid::parse_str(text).ok()).ok_or(Status::INVALID_FIELD)?;
    let name = message.name.filter(|name| !name.is_empty()).ok_or(Status::INVALID_FIELD)?;
    let time = match message.create_time {
        Some(text) => UnixTime::parse(text).ok_or(Status::INVALID_FIELD)?,
        None => UnixTime { seconds: sqe.cdw10_11(), nanos: 0 },
    };
    let created = UNIX_EPOCH.checked_add(Duration::new(time.seconds, time.nanos));
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    Ok(CreateSnapshot {
        name: name.to_owned(),
        uuid,
        txn_id: text(message.txn_id),
        entity_id: text(message.entity_id),
        created: created.ok_or(Status::INVALID_FIELD)?,
    })
}

/// The device lost a facet that it had a moment ago.
const LOST: (Status, u64) = (Status::INVALID_OPCODE, 0);

async fn create_snapshot(device: &dyn BlockDevice, spec: CreateSnapshot) -> Answer {
    let made = device.snapshots().ok_or(LOST)?.create_snapshot(spec).await;
    made.map(|()| Vec::new()).map_err(|e| status_of(&e))
}

async fn put_mark(device: &dyn BlockDevice, mark: &MarkData) -> Answer {
    let at = Position { incarnation: u128::from_le_bytes(mark.incarnation), number: mark.number.get() };
    let put = device.marks().ok_or(LOST)?.put_mark(u128::from_le_bytes(mark.id), at).await;
    put.map(|()| Vec::new()).map_err(|e| status_of(&e))
}

async fn remove_mark(device: &dyn BlockDevice, id: u128) -> Answer {
    let removed = device.marks().ok_or(LOST)?.remove_mark(id).await;
    removed.map(|()| Vec::new()).map_err(|e| status_of(&e))
}

async fn marks(device: &dyn BlockDevice, len_bytes: usize) -> Answer {
    let facet = device.marks().ok_or(LOST)?;
    let at = facet.position().await.map_err(|e| status_of(&e))?;
    let marks = facet.marks().await.map_err(|e| status_of(&e))?;
    let marks = marks.iter().map(|mark| (mark.id, mark.number)).collect();
    let page = MarksPage { incarnation: at.incarnation, number: at.number, marks };
    page.to_wire(len_bytes).ok_or((Status::DATA_SGL_LENGTH_INVALID, 0))
}

async fn ranges(device: &dyn BlockDevice, read: ReadRanges, most: usize, len_bytes: usize) -> Answer {
    let facet = device.ranges().ok_or(LOST)?;
    let blocks = BlockCount(device.size().0.saturating_sub(read.start_lba));
    let range = BlockRange { start: Lba(read.start_lba), blocks };
    let piece = Piece { range, most: most.min(MOST_RANGES) };
    let found = match read.asked {
        Asked::Allocated => facet.allocated(piece).await,
        Asked::SincePosition { incarnation, number } => {
            facet.changed(Since::Position(Position { incarnation, number }), piece).await
        }
        Asked::SinceMark(id) => facet.changed(Since::Mark(id), piece).await,
        Asked::SinceSnapshot(id) => facet.changed(Since::Snapshot(Uuid::from_u128(id)), piece).await,
    };
    let Page { extents, next } = found.map_err(|e| status_of(&e))?;
    let ranges = extents.iter().take(most).map(|e| (e.range.start.0, e.range.blocks.0, e.data)).collect();
    // A device that answers more than it was asked for is asked again from there on.
    let next = extents.get(most).map_or(next, |more| Some(more.range.start));
    Ok(RangesPage { ranges, next_lba: next.map(|lba| lba.0) }.to_wire(len_bytes))
}

/// What the host is told.
fn status_of(error: &FacetError) -> (Status, u64) {
    match error {
        FacetError::Gone { .. } => (Status::INVALID_NAMESPACE, 0),
        FacetError::Unknown { .. } => (UNKNOWN_PAST, 0),
        FacetError::Refused { status, .. } => (*status, 0),
        // As Mayastor's targets: the number in dword 0.
        FacetError::Failed { errno, .. } => (Status::INTERNAL_ERROR, u64::from(errno.unsigned_abs())),
    }
}

/// Whether `opcode` is one of these.
pub(super) fn is_facet(opcode: AdminOpcode) -> bool {
    wire::OPCODES.contains(&opcode)
}
