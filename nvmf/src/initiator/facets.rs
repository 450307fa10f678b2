//! Facets of a namespace of another host: vendor specific commands ([`nvme::vendor::facets`]), on the device's home core.

use std::time::UNIX_EPOCH;

use aio::facets::{
    CreateSnapshot, Extent, FacetError, FacetFuture, MOST_RANGES, Mark, Marks, Page, Piece, Position, Ranges,
    Since, Snapshots, errno,
};
use aio::{BlockCount, BlockDevice, BlockRange, Lba};
use nvme::vendor::facets::{
    self as wire, Asked, Facets, FacetsPage, MarkData, MarksPage, RangesPage, ReadRanges, SnapshotMessage,
    UNKNOWN_PAST, UnixTime,
};
use nvme::{Nsid, Sqe, Status};

use super::controller::{AdminRequest, Controller, MAX_ADMIN_BYTES};
use super::device::NvmfDevice;
use super::error::Error;

/// What is known of a namespace's facets. It is read once, when the device is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct FacetFacts {
    facets: Facets,
    granularity_blocks: u64,
    /// Ranges that one answer has room for.
    most_ranges: usize,
}

impl FacetFacts {
    /// Asks a controller that says that it can be asked; of a Mayastor target it is known.
    pub(super) async fn read(
        controller: &Controller,
        nsid: Nsid,
        max_transfer_bytes: u64,
    ) -> Result<Self, Error> {
        if !wire::has_facets(controller.identify()) {
            let is_mayastor = controller.identify().model() == wire::MAYASTOR_MODEL;
            let facets = Facets::NONE.with_if(Facets::SNAPSHOTS, is_mayastor);
            return Ok(Self { facets, ..Self::default() });
        }
        let sqe = Sqe::admin(wire::READ_FACETS, nsid);
        let request = AdminRequest::new(&sqe, vec![0; FacetsPage::LEN_BYTES]);
        let page = match controller.admin(request).await {
            Ok(reply) => FacetsPage::read(&reply.data).unwrap_or_default(),
            // It does without.
            Err(Error::Refused { .. }) => FacetsPage::zeroed(),
            Err(error) => return Err(error),
        };
        let room_bytes = max_transfer_bytes.min(MAX_ADMIN_BYTES as u64) as u32;
        let most_ranges = RangesPage::capacity(room_bytes).unwrap_or(0).min(MOST_RANGES);
        let granularity_blocks = u64::from(page.granularity_blocks.get());
        let has_ranges = granularity_blocks > 0 && most_ranges > 0;
        let known = Facets::RANGES | Facets::MARKS | Facets::SNAPSHOTS;
        let facets = page.facets & if has_ranges { known } else { known.without(Facets::RANGES) };
        Ok(Self { facets, granularity_blocks, most_ranges })
    }
}

impl NvmfDevice {
    /// The device, where it has this facet.
    pub(super) fn with_facet(&self, facet: Facets) -> Option<&Self> {
        self.facts().facets.contains(facet).then_some(self)
    }

    /// Runs a command; `data` is what is sent, or room for the answer.
    async fn ask(&self, what: &'static str, sqe: Sqe, data: Vec<u8>) -> Result<Vec<u8>, FacetError> {
        self.admin(AdminRequest::new(&sqe, data))
            .await
            .map(|reply| reply.data)
            .map_err(|error| self.facet_error(what, error))
    }

    pub(super) fn facet_error(&self, what: &'static str, error: Error) -> FacetError {
        let device = self.name().to_owned();
        match error {
            Error::Gone(_) => FacetError::Gone { device },
            Error::Refused { status, .. } if status.is(Status::INVALID_NAMESPACE) => {
                FacetError::Gone { device }
            }
            Error::Refused { status, .. } if status.is(UNKNOWN_PAST) => {
                FacetError::Unknown { device, why: "its target says so" }
            }
            Error::Refused { status, .. } => FacetError::Refused { what, device, status },
            Error::Device { errno, .. } => {
                FacetError::Failed { what, device, errno, source: Box::new(error) }
            }
            error => FacetError::Failed { what, device, errno: errno::EIO, source: Box::new(error) },
        }
    }

    fn nonsense(&self, what: &'static str) -> FacetError {
        let source = Box::new(Error::Peer {
            op: what,
            addr: self.options().addr,
            fault: super::PeerFault::Nonsense("a page of a vendor specific command"),
        });
        FacetError::Failed { what, device: self.name().to_owned(), errno: errno::EIO, source }
    }

    async fn read_ranges(&self, asked: Asked, piece: Piece) -> Result<Page, FacetError> {
        const WHAT: &str = "ask for ranges of";
        let start = piece.range.start.0;
        let end = start.saturating_add(piece.range.blocks.0).min(self.size().0);
        if start >= end {
            return Ok(Page::default());
        }
        let room = piece.most.clamp(1, self.facts().most_ranges);
        let sqe = ReadRanges { asked, start_lba: start }.sqe(self.nsid());
        let data = self.ask(WHAT, sqe, vec![0; RangesPage::len_bytes(room)]).await?;
        let page = RangesPage::parse(&data, start).ok_or_else(|| self.nonsense(WHAT))?;
        // The question was for everything from there on.
        let within = page.ranges.iter().filter(|(first, ..)| *first < end);
        let extent = |&(first, blocks, data): &(u64, u64, bool)| {
            let blocks = BlockCount(blocks.min(end - first));
            Extent { range: BlockRange { start: Lba(first), blocks }, data }
        };
        let next = page.next_lba.filter(|next| *next < end).map(Lba);
        Ok(Page { extents: within.map(extent).collect(), next })
    }

    async fn read_marks(&self) -> Result<MarksPage, FacetError> {
        const WHAT: &str = "ask for marks of";
        let sqe = Sqe::admin(wire::READ_MARKS, self.nsid());
        let data = self.ask(WHAT, sqe, vec![0; MarksPage::LEN_BYTES]).await?;
        MarksPage::parse(&data).ok_or_else(|| self.nonsense(WHAT))
    }
}

impl Ranges for NvmfDevice {
    fn granularity(&self) -> BlockCount {
        BlockCount(self.facts().granularity_blocks)
    }

    fn allocated(&self, piece: Piece) -> FacetFuture<'_, Page> {
        Box::pin(self.read_ranges(Asked::Allocated, piece))
    }

    fn changed(&self, since: Since, piece: Piece) -> FacetFuture<'_, Page> {
        let asked = match since {
            Since::Position(Position { incarnation, number }) => Asked::SincePosition { incarnation, number },
            Since::Mark(id) => Asked::SinceMark(id),
            Since::Snapshot(uuid) => Asked::SinceSnapshot(uuid.as_u128()),
        };
        Box::pin(self.read_ranges(asked, piece))
    }
}

impl Marks for NvmfDevice {
    fn position(&self) -> FacetFuture<'_, Position> {
        Box::pin(async move {
            let MarksPage { incarnation, number, .. } = self.read_marks().await?;
            Ok(Position { incarnation, number })
        })
    }

    fn put_mark(&self, id: u128, at: Position) -> FacetFuture<'_, ()> {
        let mark = MarkData {
            id: id.to_le_bytes(),
            incarnation: at.incarnation.to_le_bytes(),
            number: at.number.into(),
        };
        let sqe = Sqe::admin(wire::PUT_MARK, self.nsid());
        Box::pin(async move { self.ask("put a mark on", sqe, mark.wire().to_vec()).await.map(drop) })
    }

    fn remove_mark(&self, id: u128) -> FacetFuture<'_, ()> {
        let mut sqe = Sqe::admin(wire::REMOVE_MARK, self.nsid());
        sqe.set_cdw12_15(id);
        Box::pin(async move { self.ask("remove a mark from", sqe, Vec::new()).await.map(drop) })
    }

    fn marks(&self) -> FacetFuture<'_, Vec<Mark>> {
        Box::pin(async move {
            let page = self.read_marks().await?;
            Ok(page.marks.into_iter().map(|(id, number)| Mark { id, number }).collect())
        })
    }
}

impl Snapshots for NvmfDevice {
    fn create_snapshot(&self, spec: CreateSnapshot) -> FacetFuture<'_, ()> {
        let since = spec.created.duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = UnixTime { seconds: since.as_secs(), nanos: since.subsec_nanos() };
        let (parent, uuid, text) = (self.uuid().to_string(), spec.uuid.to_string(), time.text());
        let message = SnapshotMessage {
            entity_id: Some(&spec.entity_id),
            parent_id: Some(&parent),
            txn_id: Some(&spec.txn_id),
            name: Some(&spec.name),
            uuid: Some(&uuid),
            create_time: Some(&text),
            discarded: false,
        };
        let data = message.to_wire();
        let mut sqe = Sqe::admin(wire::CREATE_SNAPSHOT, self.nsid());
        sqe.set_cdw10_11(time.seconds);
        Box::pin(async move { self.ask("make a snapshot of", sqe, data).await.map(drop) })
    }
}
