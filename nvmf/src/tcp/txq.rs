//! The transmit list of one connection: PDU headers in a small ring, payload by reference, one gathered send.
//!
//! A PDU is built by [`TxQueue::header`], any number of [`TxQueue::data`] and [`TxQueue::trailer`], and closed
//! by [`TxQueue::finish`] with a tag of the caller's choice, which comes back from [`TxQueue::pop_sent`] once
//! the last byte of the PDU was handed to the stream. Headers are copied into the ring; payload is only named,
//! so its owner keeps it until the tag came back. In the steady state nothing here allocates.

use core::cell::Cell;
use core::ptr::NonNull;

use aio::{RegionId, SgEntry};

/// Most entries of one gathered send: what sockets of `aio` take in one call, and 32 reads of 4 KiB with their
/// headers, beyond which a larger send was measured not to pay.
pub const MAX_GATHER: usize = 64;

/// Longest piece that [`TxQueue::header`] takes: a TermReq.
pub const MAX_PIECE_BYTES: usize = nvme::tcp::MAX_TERM_LEN_BYTES;

/// Who queued a PDU; opaque to the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TxTag(pub u32);

impl TxTag {
    /// A PDU that nobody waits for.
    pub const NONE: Self = Self(u32::MAX);
}

/// A PDU in the queue.
#[derive(Clone, Copy)]
struct TxPdu {
    tag: TxTag,
    /// Stream positions of its first byte and after its last.
    start: u64,
    end: u64,
    /// Ring position after its last header byte.
    ring_end: u64,
    /// Number of its first entry, counted like [`TxQueue::base`].
    first_seg: u64,
    /// It is one header piece and never taken back, so the next such PDU may share its entry.
    merges: bool,
}

/// See the module's documentation.
pub struct TxQueue {
    /// Header bytes. Cells, because entries point into it while later headers are written beside them.
    ring: Box<[Cell<u8>]>,
    ring_head: u64,
    ring_tail: u64,
    segs: Vec<SgEntry>,
    /// Index in `segs` of the first entry that was not sent completely.
    seg_at: usize,
    /// Number of the entry `segs[0]`; numbers never repeat.
    base: u64,
    pdus: Vec<TxPdu>,
    /// Index in `pdus` of the first PDU that was not sent completely.
    pdu_at: usize,
    /// Stream positions: queued so far, sent so far.
    queued: u64,
    sent: u64,
    /// Where the open PDU begins: number of its first entry, stream position.
    open_seg: u64,
    open_start: u64,
}

impl TxQueue {
    /// A queue for `pdus` PDUs at once with `header_bytes` bytes of headers and `segs` entries in all. More
    /// PDUs and entries are taken (the lists grow); header bytes are a hard bound, see [`Self::has_room`].
    pub fn new(header_bytes: usize, pdus: usize, segs: usize) -> Self {
        Self {
            ring: vec![Cell::new(0); header_bytes].into_boxed_slice(),
            ring_head: 0,
            ring_tail: 0,
            segs: Vec::with_capacity(segs),
            seg_at: 0,
            base: 0,
            pdus: Vec::with_capacity(pdus),
            pdu_at: 0,
            queued: 0,
            sent: 0,
            open_seg: 0,
            open_start: 0,
        }
    }

    /// True when a PDU with `n` bytes of headers and trailers fits now. Adding more than that panics.
    #[inline]
    pub fn has_room(&self, n: usize) -> bool {
        // One piece that does not fit before the end of the ring starts again at its beginning.
        (self.ring_tail - self.ring_head) as usize + n + MAX_PIECE_BYTES <= self.ring.len()
    }

    /// Bytes that wait to be sent.
    #[inline]
    pub fn unsent_bytes(&self) -> u64 {
        self.queued - self.sent
    }

    /// True when nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queued == self.sent
    }

    /// Entries that wait.
    #[inline]
    pub fn unsent_entries(&self) -> usize {
        self.segs.len() - self.seg_at
    }

    /// Adds header bytes (copied).
    #[inline]
    pub fn header(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let cap = self.ring.len() as u64;
        let mut at = (self.ring_tail % cap) as usize;
        if at + bytes.len() > self.ring.len() {
            self.ring_tail += cap - at as u64;
            at = 0;
        }
        self.ring_tail += bytes.len() as u64;
        assert!(
            self.ring_tail - self.ring_head <= cap,
            "invariant: room was checked before the PDU was begun"
        );
        let cells = &self.ring[at..at + bytes.len()];
        for (cell, byte) in cells.iter().zip(bytes) {
            cell.set(*byte);
        }
        let ptr = NonNull::from(cells).cast::<u8>();
        self.push(SgEntry { ptr, len_bytes: bytes.len() as u32, region: RegionId::NONE });
    }

    /// Adds payload (named, not copied). Its bytes stay as they are until the PDU's tag came back.
    #[inline]
    pub fn data(&mut self, entry: SgEntry) {
        if entry.len_bytes > 0 {
            self.push(entry);
        }
    }

    /// Adds trailing bytes, i.e. a data digest (copied).
    #[inline]
    pub fn trailer(&mut self, bytes: &[u8]) {
        self.header(bytes);
    }

    #[inline]
    fn push(&mut self, entry: SgEntry) {
        self.queued += u64::from(entry.len_bytes);
        self.segs.push(entry);
    }

    /// Closes the PDU.
    #[inline]
    pub fn finish(&mut self, tag: TxTag) {
        self.close(tag, self.open_seg, false);
    }

    /// Closes a PDU that is nothing but one [`Self::header`], and that is never taken back. Such PDUs share one
    /// entry when they lie beside each other: a turn's responses are one piece for the socket.
    #[inline]
    pub fn finish_short(&mut self, tag: TxTag) {
        debug_assert_eq!(self.open_seg + 1, self.base + self.segs.len() as u64);
        let mut first_seg = self.open_seg;
        if let [.., before, last] = self.segs[self.seg_at..]
            && let Some(pdu) = self.pdus.last().filter(|pdu| pdu.merges)
            && before.ptr.addr().get() + before.len_bytes as usize == last.ptr.addr().get()
        {
            first_seg = pdu.first_seg;
            let both = SgEntry { len_bytes: before.len_bytes + last.len_bytes, ..before };
            let both = self.within_ring(both);
            self.segs.truncate(self.segs.len() - 2);
            self.segs.push(both);
        }
        self.close(tag, first_seg, true);
    }

    /// The same bytes with a pointer that may reach all of them.
    fn within_ring(&self, entry: SgEntry) -> SgEntry {
        let at = entry.ptr.addr().get() - self.ring.as_ptr().addr();
        let cells = &self.ring[at..at + entry.len_bytes as usize];
        SgEntry { ptr: NonNull::from(cells).cast(), ..entry }
    }

    #[inline]
    fn close(&mut self, tag: TxTag, first_seg: u64, merges: bool) {
        self.pdus.push(TxPdu {
            tag,
            start: self.open_start,
            end: self.queued,
            ring_end: self.ring_tail,
            first_seg,
            merges,
        });
        self.open_seg = self.base + self.segs.len() as u64;
        self.open_start = self.queued;
    }

    /// What to send next, at most [`MAX_GATHER`] entries.
    #[inline]
    pub fn gather(&self) -> &[SgEntry] {
        let end = self.segs.len().min(self.seg_at + MAX_GATHER);
        &self.segs[self.seg_at..end]
    }

    /// Notes that the stream took the first `n` bytes of [`Self::gather`].
    #[inline]
    pub fn advance(&mut self, n: usize) {
        self.sent += n as u64;
        if self.sent == self.queued {
            self.base += self.segs.len() as u64;
            self.segs.clear();
            self.seg_at = 0;
            return;
        }
        let mut left = n;
        while left > 0 {
            let entry = &mut self.segs[self.seg_at];
            let len = entry.len_bytes as usize;
            if left < len {
                *entry = split_front(*entry, left as u32);
                break;
            }
            left -= len;
            self.seg_at += 1;
        }
    }

    /// The tag of the next PDU that is sent completely, oldest first.
    #[inline]
    pub fn pop_sent(&mut self) -> Option<TxTag> {
        let pdu = *self.pdus.get(self.pdu_at)?;
        if pdu.end > self.sent {
            self.compact();
            return None;
        }
        self.pdu_at += 1;
        self.ring_head = pdu.ring_end;
        if self.pdu_at == self.pdus.len() {
            self.pdus.clear();
            self.pdu_at = 0;
            if self.is_empty() {
                // Start over: the same few cache lines serve every turn.
                self.ring_head = 0;
                self.ring_tail = 0;
            }
        }
        Some(pdu.tag)
    }

    /// Drops what was sent from the front of the lists when it makes up most of them.
    fn compact(&mut self) {
        if self.seg_at > self.segs.len() / 2 {
            self.segs.drain(..self.seg_at);
            self.base += self.seg_at as u64;
            self.seg_at = 0;
        }
        if self.pdu_at > self.pdus.len() / 2 {
            self.pdus.drain(..self.pdu_at);
            self.pdu_at = 0;
        }
    }

    /// The tag of the PDU whose first bytes were sent but not its last.
    pub fn partly_sent(&self) -> Option<TxTag> {
        let pdu = self.pdus.get(self.pdu_at)?;
        (pdu.start < self.sent && self.sent < pdu.end).then_some(pdu.tag)
    }

    /// Puts other memory under the unsent payload of the partly sent PDU: calls `replace` for each of its
    /// entries with the entry; what it returns (same length) is sent instead.
    pub fn replace_partly_sent(&mut self, mut replace: impl FnMut(SgEntry) -> SgEntry) {
        if self.partly_sent().is_none() {
            return;
        }
        let range = self.segs_of(self.pdu_at);
        for entry in &mut self.segs[range] {
            let inside = self.ring.as_ptr_range().contains(&entry.ptr.as_ptr().cast_const().cast());
            if !inside {
                let new = replace(*entry);
                debug_assert_eq!(new.len_bytes, entry.len_bytes);
                *entry = new;
            }
        }
    }

    /// Takes every PDU back of which nothing was sent and whose tag `take` answers with true. The others
    /// keep their order.
    pub fn take_back(&mut self, mut take: impl FnMut(TxTag) -> bool) {
        let first = self.pdu_at + usize::from(self.partly_sent().is_some());
        let Some(oldest) = self.pdus.get(first) else { return };
        let mut write_seg = (oldest.first_seg - self.base) as usize;
        let mut write_pdu = first;
        let mut position = oldest.start;
        for i in first..self.pdus.len() {
            let pdu = self.pdus[i];
            if take(pdu.tag) {
                continue;
            }
            let segs = self.segs_of(i);
            let count = segs.len();
            self.segs.copy_within(segs, write_seg);
            let (start, end) = (position, position + (pdu.end - pdu.start));
            self.pdus[write_pdu] = TxPdu { start, end, first_seg: self.base + write_seg as u64, ..pdu };
            (write_pdu, write_seg, position) = (write_pdu + 1, write_seg + count, end);
        }
        self.segs.truncate(write_seg);
        self.pdus.truncate(write_pdu);
        self.queued = position;
        self.open_start = position;
        self.open_seg = self.base + write_seg as u64;
        if self.pdu_at == self.pdus.len() {
            self.pdus.clear();
            self.pdu_at = 0;
            self.ring_head = self.ring_tail;
        }
    }

    /// Where the entries of PDU `i` stand in `segs`.
    fn segs_of(&self, i: usize) -> core::ops::Range<usize> {
        let from = self.pdus[i].first_seg.saturating_sub(self.base) as usize;
        let to = self.pdus.get(i + 1).map_or(self.open_seg, |next| next.first_seg);
        from.max(self.seg_at)..(to - self.base) as usize
    }
}

/// `entry` without its first `n` bytes.
fn split_front(entry: SgEntry, n: u32) -> SgEntry {
    debug_assert!(n < entry.len_bytes);
    // `map_addr` keeps the provenance and needs no unsafe arithmetic: `n` is below the length.
    let ptr = entry.ptr.map_addr(|a| a.saturating_add(n as usize));
    SgEntry { ptr, len_bytes: entry.len_bytes - n, region: entry.region }
}
