//! Notes: when the log is quiet, a record that says how far it is durable.
//!
//! Recovery leaves out what is damaged beyond the newest `durable` that a header states, because a crash may have torn
//! it. The next record states more; when none comes, a note does, so that what was durable when the pool became quiet
//! is never taken for torn.

use core::time::Duration;
use std::rc::Rc;

use aio::time::Instant;

use super::log::Flow;
use super::{Inner, Store};
use crate::format::record::{NoteHeader, Stamp};
use crate::types::{BLOCK_BYTES, Pba, Seq};

/// How long the log has to be quiet.
const QUIET: Duration = Duration::from_millis(5);

/// How long the log has to be quiet until it is merged.
const IDLE: Duration = Duration::from_secs(1);

/// What has been stated, and since when the log is quiet.
#[derive(Default)]
pub(super) struct Noted {
    /// The newest record that is not a note.
    pub(super) last: Seq,
    /// What the newest header states.
    pub(super) durable: Seq,
    /// When it was made.
    pub(super) at: Instant,
}

impl Inner {
    /// A header was made.
    pub(super) fn stated(&mut self, seq: Seq) {
        self.noted = Noted { last: seq, durable: self.log.durable(), at: self.now };
    }

    /// When what the log holds should be merged although nothing asks for it, so that what was freed is counted; `None`
    /// when it holds nothing.
    pub(super) fn merge_due(&self) -> Option<Instant> {
        let idle = !self.active.is_empty() && self.check_fault().is_ok() && !self.want_checkpoint;
        idle.then(|| self.noted.at + IDLE)
    }

    /// When a note is due; `None` when there is nothing to say.
    pub(super) fn note_due(&self) -> Option<Instant> {
        let due = self.noted.durable < self.noted.last && self.log.durable() >= self.noted.last;
        (due && self.check_fault().is_ok()).then(|| self.noted.at + QUIET)
    }
}

impl Store {
    /// Writes a note. Failing is no harm: it states what is true anyway.
    pub(super) async fn write_note(self: Rc<Self>) {
        let mut buf = self.buffer().await;
        let placed = {
            let mut inner = self.inner();
            let inner = &mut *inner;
            let due = inner.note_due().is_some() && inner.pending.is_empty();
            // A note is not worth a segment.
            let room = due && inner.log.left(Flow::Hot, &inner.space) >= 1;
            let stream = inner.log.stream(Flow::Hot).filter(|_| room);
            // Before it has a number: one that is never complete would keep all checkpoints waiting.
            let place = stream.and_then(|stream| inner.device_at(stream).ok());
            if let Some((descriptor, at)) = place {
                let seq = inner.log.number();
                let pba = inner.log.place(Flow::Hot, seq, 1, &mut inner.space).unwrap_or(Pba::NONE);
                let durable = inner.log.durable();
                inner.noted.durable = durable;
                let stamp = Stamp { seq, durable, checkpoint: inner.checkpoint };
                NoteHeader::write(&mut buf, &stamp, &inner.seal, pba);
                inner.budget.written.headers += 1;
                Some((seq, pba, descriptor, at))
            } else {
                inner.noted.durable = inner.noted.last;
                None
            }
        };
        if let Some((seq, pba, descriptor, offset_bytes)) = placed {
            let (result, _) = descriptor.write_at(offset_bytes, BLOCK_BYTES, buf).await;
            if self.wrote(pba, result).is_ok() {
                self.inner().record_complete(seq);
            }
        }
        self.noting.set(false);
    }
}
