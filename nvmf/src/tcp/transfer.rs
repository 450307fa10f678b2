//! Bookkeeping of the data of one command, both roles: what was asked for by R2T, what arrived, what is legal next
//! (NVMe/TCP Transport 1.0, sections 3.3.2 and 3.6.2.9-3.6.2.11).
//!
//! Plain values, kept by the caller in its command slot.

use nvme::tcp::PduError;

/// Most R2Ts that a controller of ours has outstanding for one command, whatever MAXR2T allows.
pub const MAX_OUTSTANDING_R2T: usize = 4;

/// A piece of a command's data that one R2T asks for, or that one data PDU carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataSpan {
    /// Transfer tag that the controller chose.
    pub ttag: u16,
    /// First byte, counted from the start of the command's data.
    pub offset_bytes: u32,
    /// Length; never zero.
    pub len_bytes: u32,
    /// Nothing of the same R2T (or, towards the host, of the same command) follows.
    pub last: bool,
}

#[derive(Clone, Copy, Default)]
struct Grant {
    ttag: u16,
    at: u32,
    end: u32,
}

/// Controller: data that the host sends on our R2Ts.
#[derive(Clone, Copy, Default)]
pub struct Inbound {
    total: u32,
    asked: u32,
    received: u32,
    grants: [Grant; MAX_OUTSTANDING_R2T],
    outstanding: u8,
}

impl Inbound {
    /// A transfer of `total_bytes` bytes of which nothing was asked for yet.
    pub fn new(total_bytes: u32) -> Self {
        Self { total: total_bytes, ..Self::default() }
    }

    /// The next R2T to send, if one may be sent now: at most `max_outstanding` at once, each for at most
    /// `max_bytes`.
    pub fn next_r2t(&mut self, ttag: u16, max_outstanding: u32, max_bytes: u32) -> Option<DataSpan> {
        let limit = (max_outstanding as usize).min(MAX_OUTSTANDING_R2T);
        if usize::from(self.outstanding) >= limit || self.asked == self.total {
            return None;
        }
        let len_bytes = (self.total - self.asked).min(max_bytes);
        let span = DataSpan { ttag, offset_bytes: self.asked, len_bytes, last: true };
        self.asked += len_bytes;
        self.grants[usize::from(self.outstanding)] = Grant { ttag, at: span.offset_bytes, end: self.asked };
        self.outstanding += 1;
        Some(span)
    }

    /// Checks the header of an H2CData PDU against what was asked for, and counts its data as on its way.
    pub fn accept(&mut self, pdu: DataSpan) -> Result<(), PduError> {
        let open = &mut self.grants[..usize::from(self.outstanding)];
        let Some(i) = open.iter().position(|g| g.ttag == pdu.ttag) else {
            return Err(PduError::TTAG);
        };
        let grant = &mut open[i];
        if pdu.offset_bytes != grant.at || pdu.len_bytes == 0 || pdu.len_bytes > grant.end - grant.at {
            return Err(PduError::OutOfRange);
        }
        grant.at += pdu.len_bytes;
        let complete = grant.at == grant.end;
        if pdu.last != complete {
            return Err(PduError::FLAGS);
        }
        if complete {
            open[i..].rotate_left(1);
            self.outstanding -= 1;
        }
        self.received += pdu.len_bytes;
        Ok(())
    }

    /// True when the headers of all data were accepted.
    pub fn is_complete(&self) -> bool {
        self.received == self.total
    }
}

/// Host: data that we send on the controller's R2Ts.
#[derive(Clone, Copy, Default)]
pub struct Outbound {
    total: u32,
    asked: u32,
    grants: [Grant; MAX_OUTSTANDING_R2T],
    outstanding: u8,
}

impl Outbound {
    /// A command whose data of `total_bytes` bytes waits for R2Ts.
    pub fn new(total_bytes: u32) -> Self {
        Self { total: total_bytes, ..Self::default() }
    }

    /// Checks an R2T: in sequence, within the command's data, and not more at once than the `max_outstanding`
    /// that our ICReq allowed (at most [`MAX_OUTSTANDING_R2T`]).
    pub fn grant(&mut self, r2t: DataSpan, max_outstanding: u32) -> Result<(), PduError> {
        if usize::from(self.outstanding) >= (max_outstanding as usize).min(MAX_OUTSTANDING_R2T) {
            return Err(PduError::LimitExceeded);
        }
        if r2t.offset_bytes != self.asked || r2t.len_bytes == 0 || r2t.len_bytes > self.total - self.asked {
            return Err(PduError::OutOfRange);
        }
        self.asked += r2t.len_bytes;
        self.grants[usize::from(self.outstanding)] =
            Grant { ttag: r2t.ttag, at: r2t.offset_bytes, end: self.asked };
        self.outstanding += 1;
        Ok(())
    }

    /// True once the controller asked for any of it.
    pub fn was_asked(&self) -> bool {
        self.asked > 0
    }

    /// The next H2CData PDU to send, of at most `max_bytes` (MAXH2CDATA). Each piece is returned once.
    pub fn next_pdu(&mut self, max_bytes: u32) -> Option<DataSpan> {
        let grant = self.grants.first_mut().filter(|_| self.outstanding > 0)?;
        let len_bytes = (grant.end - grant.at).min(max_bytes);
        let span = DataSpan {
            ttag: grant.ttag,
            offset_bytes: grant.at,
            len_bytes,
            last: grant.at + len_bytes == grant.end,
        };
        grant.at += len_bytes;
        if span.last {
            self.grants.rotate_left(1);
            self.outstanding -= 1;
        }
        Some(span)
    }
}

/// Host: data that the controller sends for one command.
#[derive(Clone, Copy, Default)]
pub struct C2hProgress {
    total: u32,
    received: u32,
    last_seen: bool,
}

impl C2hProgress {
    /// A command that expects at most `total_bytes` bytes.
    pub fn new(total_bytes: u32) -> Self {
        Self { total: total_bytes, ..Self::default() }
    }

    /// Checks the header of a C2HData PDU (`success` as flagged) and counts its data as on its way.
    pub fn accept(&mut self, pdu: DataSpan, success: bool) -> Result<(), PduError> {
        if success && !pdu.last {
            return Err(PduError::FLAGS);
        }
        if self.last_seen {
            return Err(PduError::Sequence);
        }
        if pdu.offset_bytes != self.received || pdu.len_bytes > self.total - self.received {
            return Err(PduError::OutOfRange);
        }
        self.received += pdu.len_bytes;
        self.last_seen = pdu.last;
        Ok(())
    }

    /// Bytes whose headers were accepted.
    pub fn received_bytes(&self) -> u32 {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(ttag: u16, offset_bytes: u32, len_bytes: u32, last: bool) -> DataSpan {
        DataSpan { ttag, offset_bytes, len_bytes, last }
    }

    #[test]
    fn r2ts_are_bounded_and_in_sequence() {
        let mut t = Inbound::new(100);
        assert_eq!(t.next_r2t(1, 2, 40), Some(span(1, 0, 40, true)));
        assert_eq!(t.next_r2t(2, 2, 40), Some(span(2, 40, 40, true)));
        assert_eq!(t.next_r2t(3, 2, 40), None, "two are outstanding");
        t.accept(span(2, 40, 40, true)).unwrap();
        assert_eq!(t.next_r2t(3, 2, 40), Some(span(3, 80, 20, true)));
        t.accept(span(1, 0, 30, false)).unwrap();
        t.accept(span(1, 30, 10, true)).unwrap();
        assert!(!t.is_complete());
        t.accept(span(3, 80, 20, true)).unwrap();
        assert!(t.is_complete());
        assert_eq!(t.next_r2t(4, 2, 40), None);
        assert_eq!(t.accept(span(3, 80, 20, true)), Err(PduError::TTAG), "answered twice");
    }

    #[test]
    fn bad_h2c_data() {
        let fresh = || {
            let mut t = Inbound::new(100);
            t.next_r2t(7, 1, 100).unwrap();
            t
        };
        let cases = [
            (span(8, 0, 100, true), PduError::TTAG),
            (span(7, 10, 90, true), PduError::OutOfRange),
            (span(7, 0, 101, true), PduError::OutOfRange),
            (span(7, 0, u32::MAX, true), PduError::OutOfRange),
            (span(7, 0, 0, false), PduError::OutOfRange),
            (span(7, 0, 50, true), PduError::FLAGS),
            (span(7, 0, 100, false), PduError::FLAGS),
        ];
        for (pdu, fault) in cases {
            assert_eq!(fresh().accept(pdu), Err(fault), "{pdu:?}");
        }
    }

    #[test]
    fn host_answers_r2ts_in_pieces() {
        let mut t = Outbound::new(100);
        assert_eq!(t.next_pdu(64), None);
        t.grant(span(5, 0, 70, true), 2).unwrap();
        t.grant(span(6, 70, 30, true), 2).unwrap();
        assert_eq!(t.grant(span(9, 100, 1, true), 2), Err(PduError::LimitExceeded));
        assert_eq!(t.next_pdu(64), Some(span(5, 0, 64, false)));
        assert_eq!(t.next_pdu(64), Some(span(5, 64, 6, true)));
        assert_eq!(t.next_pdu(64), Some(span(6, 70, 30, true)));
        assert_eq!(t.next_pdu(64), None);
        assert_eq!(t.grant(span(9, 100, 1, true), 2), Err(PduError::OutOfRange));
    }

    #[test]
    fn c2h_data_is_checked() {
        let mut t = C2hProgress::new(100);
        assert_eq!(t.accept(span(0, 0, 10, false), true), Err(PduError::FLAGS));
        t.accept(span(0, 0, 60, false), false).unwrap();
        assert_eq!(t.accept(span(0, 0, 40, true), false), Err(PduError::OutOfRange));
        assert_eq!(t.accept(span(0, 60, 41, true), false), Err(PduError::OutOfRange));
        t.accept(span(0, 60, 40, true), true).unwrap();
        assert_eq!(t.accept(span(0, 100, 0, true), true), Err(PduError::Sequence));
        assert_eq!(t.received_bytes(), 100);
    }
}
