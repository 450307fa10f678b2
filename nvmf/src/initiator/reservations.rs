//! Reservations of a namespace of another host ([`aio::facets::Reservations`]): each call is one command, on an I/O queue of
//! its own that is connected for it. The host is the one that the device's associations are made for.

use aio::BlockDevice;
use aio::facets::{FacetError, FacetFuture, Reservations, errno};
use nvme::reservation::{Acquire, Register, Release, Report, ReportRequest};
use nvme::{HostId, Sqe};

use super::controller::{AdminReply, IoRequest, MAX_ADMIN_BYTES};
use super::device::NvmfDevice;
use super::error::{Error, PeerFault};

/// How much of a report is asked for first: what every controller transfers.
const FIRST_BYTES: usize = 4096;

/// Most of a report that is read at all: a thousand registrants.
const MOST_BYTES: usize = 64 << 10;

impl NvmfDevice {
    /// The device, where its namespace can be reserved in every way.
    pub(super) fn with_reservations(&self) -> Option<&Self> {
        self.can_be_reserved().then_some(self)
    }

    async fn reserve(
        &self,
        what: &'static str,
        (sqe, data): (Sqe, Vec<u8>),
    ) -> Result<AdminReply, FacetError> {
        let asked = self.io_command(IoRequest::new(&sqe, data)).await;
        asked.map_err(|error| self.facet_error(what, error))
    }

    async fn read_report(&self, len_bytes: usize) -> Result<Vec<u8>, FacetError> {
        let sqe = ReportRequest { len_bytes: len_bytes as u64, extended: true }.sqe(self.nsid());
        Ok(self.reserve(REPORT, (sqe, vec![0; len_bytes])).await?.data)
    }
}

const REPORT: &str = "ask for the reservations of";

impl Reservations for NvmfDevice {
    fn host(&self) -> HostId {
        self.options().hostid
    }

    fn register(&self, command: Register) -> FacetFuture<'_, ()> {
        Box::pin(async move { self.reserve("register at", command.encode(self.nsid())).await.map(|_| ()) })
    }

    fn acquire(&self, command: Acquire) -> FacetFuture<'_, ()> {
        Box::pin(async move { self.reserve("reserve", command.encode(self.nsid())).await.map(|_| ()) })
    }

    fn release(&self, command: Release) -> FacetFuture<'_, ()> {
        Box::pin(async move {
            self.reserve("give up the reservation of", command.encode(self.nsid())).await.map(|_| ())
        })
    }

    fn report(&self) -> FacetFuture<'_, Report> {
        Box::pin(async move {
            let geometry = self.geometry();
            let transfer = u64::from(geometry.max_blocks) * u64::from(geometry.block_bytes);
            let most = transfer.min(MOST_BYTES.min(MAX_ADMIN_BYTES) as u64) as usize & !3;
            let mut page = self.read_report(FIRST_BYTES.min(most)).await?;
            let whole = Report::extended_len_bytes(&page).unwrap_or(0).min(most);
            if whole > page.len() {
                page = self.read_report(whole).await?;
            }
            Report::parse_extended(&page).ok_or_else(|| {
                let fault = PeerFault::Nonsense("a report of reservations");
                let source = Box::new(Error::Peer { op: REPORT, addr: self.options().addr, fault });
                let device = self.name().to_owned();
                FacetError::Failed { what: REPORT, device, errno: errno::EIO, source }
            })
        })
    }
}
