//! Receiving: at most one receive per connection and turn, and what the bytes mean.
//!
//! Needs `unsafe` to receive into chunks and into the buffers of commands whose data is arriving.
#![allow(unsafe_code)]

use core::time::Duration;

use aio::{Instant, SgEntry};
use nvme::Status;
use nvme::tcp::{DIGEST_LEN_BYTES, PduError};

use super::CoreState;
use super::chunks::Received;
use super::conn::{Change, Conn, Fill, Phase};
use super::slots::{SlotId, State, Step};
use crate::tcp::{DataSpan, Event};

/// How long an empty receive in the middle of a payload keeps the next one away while more data was asked for. Every
/// receive takes the socket's lock, also from a sender on this machine that is filling it at that moment. Of 2, 5, 10
/// and 20 us, 10 us were measured to be best, with 16 % more writes of 128 KiB. Loopback brings 40 KiB meanwhile.
const PAYLOAD_PAUSE: Duration = Duration::from_micros(10);

impl Conn {
    /// Receives once and handles what came; returns how much was done.
    pub(super) fn receive(&mut self, core: &mut CoreState) -> usize {
        if !self.receives() {
            return 0;
        }
        let tries = self.hot > 0 && core.now >= self.pause_until;
        if !tries && !self.stream.ready().readable {
            return 0;
        }
        let in_place = self.place_of_payload(core);
        let max = match (self.overflow, self.awaiting_data) {
            (0, 0) => core.config.recv_bytes,
            (0, _) => core.config.recv_bytes_in_transfer,
            // Enough for the data digest.
            _ => DIGEST_LEN_BYTES as u32,
        };
        let window = core.chunks.window(max);
        let mut bufs = [window; 2];
        let bufs = match in_place {
            Some(entry) => {
                bufs[0] = entry;
                &bufs[..]
            }
            None => &bufs[..1],
        };
        // SAFETY: the window is memory of the chunk that nothing refers to; the payload's place is in a buffer
        // that belongs to a command which no device has yet.
        match unsafe { self.stream.recv(bufs) } {
            Ok(Some(0)) | Err(_) => {
                self.drop_link(core);
                1
            }
            Ok(None) => {
                // The last payload is not kept waiting: it would be somebody's latency.
                if in_place.is_some() && self.awaiting_data > 1 {
                    self.pause_until = core.now + PAYLOAD_PAUSE;
                }
                self.cool();
                0
            }
            Ok(Some(n)) => {
                self.hot = core.config.hot_turns;
                self.last_rx = core.now;
                core.stats.bytes_received += n as u64;
                let direct = in_place.map_or(0, |e| n.min(e.len_bytes as usize));
                if direct > 0 {
                    self.engine.received_in_place(direct as u32);
                    if let Some(fill) = &mut self.fill {
                        fill.at += direct as u32;
                    }
                }
                let received = core.chunks.commit(window, (n - direct) as u32);
                if let Some(controller) = self.controller() {
                    controller.saw_traffic(core.now);
                }
                self.parse(received, core);
                1
            }
        }
    }

    /// Nothing was there: after some turns the connection is not tried again before it reports readable.
    fn cool(&mut self) {
        self.hot = self.hot.saturating_sub(1);
        if self.hot == 0 {
            self.stream.arm(false);
        }
    }

    /// Where the rest of a payload goes that is arriving in pieces.
    fn place_of_payload(&self, core: &mut CoreState) -> Option<SgEntry> {
        let left = self.engine.payload_left();
        let fill = self.fill.filter(|_| left > 0)?;
        let slot = &self.slots[fill.slot.get()?];
        if slot.buffer.is_none() {
            return None;
        }
        core.sg.clear();
        slot.buffer.entries(fill.at, left, &mut core.sg);
        core.sg.first().copied()
    }

    /// Receives and throws away: the connection is ending.
    pub(super) fn discard_input(&mut self, core: &mut CoreState) -> usize {
        if !self.stream.ready().readable {
            self.stream.arm(false);
            return 0;
        }
        let window = core.chunks.window(core.config.recv_bytes);
        // SAFETY: nothing refers to the window.
        match unsafe { self.stream.recv(&[window]) } {
            Ok(None) => 0,
            Ok(Some(n)) if n > 0 => 1,
            Ok(Some(_)) | Err(_) => {
                self.drop_link(core);
                1
            }
        }
    }

    /// Handles what was received.
    fn parse(&mut self, received: Received, core: &mut CoreState) {
        let mut at = 0;
        // SAFETY: no window is taken before this returns; what is kept longer is held.
        let input = unsafe { received.bytes() };
        loop {
            match self.engine.next(input, &mut at, &mut self.tx) {
                Ok(Some(event)) => self.event(event, received, core),
                Ok(None) => return,
                Err(error) => return self.fail(error, core),
            }
            if !matches!(self.phase, Phase::Initializing | Phase::Greeting | Phase::Serving) {
                return;
            }
        }
    }

    #[inline]
    fn event(&mut self, event: Event<'_>, received: Received, core: &mut CoreState) {
        match event {
            Event::Command(sqe, data) => self.command(&sqe, data, received, core),
            Event::H2cData { cccid, span, data } => {
                if let Err(error) = self.h2c_data(cccid, span, core.now) {
                    return self.fail(error, core);
                }
                if let Some(bytes) = data.here {
                    self.piece(bytes);
                    self.payload_end(data.intact, core);
                }
            }
            Event::Piece(bytes) => self.piece(bytes),
            Event::PayloadEnd { digest } => {
                let intact = digest.is_none_or(|d| self.filled_crc(core).is_none_or(|crc| crc == d));
                self.payload_end(intact, core);
            }
            Event::Initialized(_) => {
                self.change(Change::Initialized);
                self.mark_dirty(core);
            }
            Event::Terminated(_) => self.drop_link(core),
            // An engine in the role of a controller reports none of these.
            Event::Response(_) | Event::C2hData { .. } | Event::R2t { .. } => {}
        }
    }

    /// Checks an H2CData PDU, and prepares to take its data.
    fn h2c_data(&mut self, cccid: u16, span: DataSpan, now: Instant) -> Result<(), PduError> {
        let index = span.ttag & TTAG_SLOT_MASK;
        let slot = self.slots.get_used(index).filter(|s| s.state() == State::Data && s.wants_data);
        let slot = slot.ok_or(PduError::TTAG)?;
        if slot.cid != cccid {
            return Err(PduError::CCCID);
        }
        slot.inbound.accept(span)?;
        slot.data_since = now;
        self.fill = Some(Fill { slot: SlotId(index), start: span.offset_bytes, at: span.offset_bytes });
        Ok(())
    }

    /// Copies payload that lies in the chunk to where it belongs.
    fn piece(&mut self, bytes: &[u8]) {
        if let Some(fill) = &mut self.fill
            && let Some(id) = fill.slot.get()
        {
            // Without a buffer the command has failed already, and its data is dropped.
            if !self.slots[id].buffer.is_none() {
                self.slots[id].buffer.write(fill.at, bytes);
            }
            fill.at += bytes.len() as u32;
        }
    }

    /// The digest of the payload that just ended; `None` when it was dropped.
    fn filled_crc(&self, core: &CoreState) -> Option<u32> {
        let fill = self.fill?;
        let slot = &self.slots[fill.slot.get()?];
        if slot.buffer.is_none() {
            return None;
        }
        Some(slot.buffer.crc32c(&core.chunks, fill.start, fill.at - fill.start))
    }

    /// A payload is complete.
    fn payload_end(&mut self, intact: bool, core: &mut CoreState) {
        let Some(id) = self.fill.take().and_then(|fill| fill.slot.get()) else { return };
        let slot = &mut self.slots[id];
        if !intact && slot.fault.is_success() {
            slot.fault = Status::TRANSIENT_TRANSPORT_ERROR;
        }
        if slot.wants_data {
            if !slot.inbound.is_complete() {
                return self.send_r2ts(id, core);
            }
            slot.wants_data = false;
            self.awaiting_data -= 1;
        }
        self.slots[id].go(Step::DataComplete);
        self.data_complete(id, core);
    }
}

/// Transfer tags: slot in the low bits, a count of the slot's R2Ts above, so that a late answer to an old R2T is
/// recognised.
pub(super) const TTAG_SLOT_MASK: u16 = 0x0fff;
