//! The Error Information log: the last commands of this controller that failed.

use std::collections::VecDeque;

use nvme::log::ErrorEntry;
use nvme::log::discovery::TransportType;
use nvme::{Cid, Nsid, Qid, Status};

use crate::target::controller::Controller;

/// Entries that are kept (ELPE + 1).
pub(super) const MAX_ERRORS: usize = 64;

#[derive(Default)]
pub(super) struct ErrorLog {
    /// Newest first.
    entries: VecDeque<ErrorEntry>,
    count: u64,
}

/// A command that failed.
#[derive(Clone, Copy, Debug)]
pub struct FailedCommand {
    /// On which queue.
    pub sqid: Qid,
    /// Which command.
    pub cid: Cid,
    /// How.
    pub status: Status,
    /// Which namespace; 0 = none.
    pub nsid: Nsid,
    /// First block of the command; 0 where that means nothing.
    pub lba: u64,
}

impl ErrorLog {
    pub(super) fn record(&mut self, failed: &FailedCommand) {
        self.count += 1;
        let mut entry = ErrorEntry::new(self.count, failed.sqid, failed.cid, failed.status, failed.nsid);
        entry.lba = failed.lba.into();
        entry.trtype = TransportType::TCP.get();
        self.entries.truncate(MAX_ERRORS - 1);
        self.entries.push_front(entry);
    }

    /// Errors over the controller's life.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The page: all places, the empty ones zero.
    pub(super) fn page(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(MAX_ERRORS * ErrorEntry::LEN_BYTES);
        for entry in &self.entries {
            page.extend_from_slice(entry.wire());
        }
        page.resize(MAX_ERRORS * ErrorEntry::LEN_BYTES, 0);
        page
    }
}

impl Controller {
    /// Notes a failed I/O command for the Error Information log page. Failed admin commands note themselves.
    pub fn record_error(&self, failed: &FailedCommand) {
        self.lock().admin.errors.record(failed);
    }
}
