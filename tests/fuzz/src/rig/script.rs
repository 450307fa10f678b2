//! What is done to the bytes of an honest target on their way to a host: the host then has a hostile one, which
//! still gets as far as the lies allow. From the first byte to the last, a script can be anything.
//!
//! A record: connection and kind (one byte), honest bytes before it (two), length (two), and for some kinds as
//! many bytes.

use std::collections::VecDeque;

/// Of a record's first byte: which connection.
const CONNECTION: u8 = 0x03;
/// Connections that have scripts.
pub(crate) const CONNECTIONS: usize = 4;

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// These bytes stand in for as many of the target's.
    Replace = 0,
    /// These bytes come in addition.
    Insert = 1,
    /// As many bytes of the target are combined with these by exclusive or.
    Flip = 2,
    /// So many bytes of the target are lost.
    Lose = 3,
    /// So many bytes of the target become 0.
    Clear = 4,
    /// So many bytes of the target become FFh.
    Set = 5,
    /// Nothing comes any more.
    Stall = 6,
    /// The stream ends.
    End = 7,
}

impl Kind {
    const ALL: [Self; 8] =
        [Self::Replace, Self::Insert, Self::Flip, Self::Lose, Self::Clear, Self::Set, Self::Stall, Self::End];

    fn has_bytes(self) -> bool {
        matches!(self, Self::Replace | Self::Insert | Self::Flip)
    }
}

struct Edit {
    kind: Kind,
    /// Honest bytes before it.
    after: usize,
    /// What is left to do of it.
    left: usize,
    bytes: VecDeque<u8>,
}

/// The edits of one connection.
#[derive(Default)]
pub(crate) struct Script(VecDeque<Edit>);

/// Writes one record.
pub(crate) fn record(connection: u8, kind: Kind, after: u16, len: u16, bytes: &[u8]) -> Vec<u8> {
    let head = [connection & CONNECTION | (kind as u8) << 2];
    [&head[..], &after.to_le_bytes(), &len.to_le_bytes(), bytes].concat()
}

impl Script {
    /// Reads the records of all connections; what is cut off counts as far as it goes.
    pub(crate) fn read(mut records: &[u8]) -> Vec<Self> {
        let mut all: Vec<Self> = (0..CONNECTIONS).map(|_| Self::default()).collect();
        while let [what, a, b, c, d, tail @ ..] = records {
            let (after, len) = (u16::from_le_bytes([*a, *b]), usize::from(u16::from_le_bytes([*c, *d])));
            let kind = Kind::ALL[usize::from(what >> 2 & 7)];
            let (bytes, rest) = tail.split_at(if kind.has_bytes() { len.min(tail.len()) } else { 0 });
            records = rest;
            let left = if kind.has_bytes() { bytes.len() } else { len };
            let edit = Edit { kind, after: after.into(), left, bytes: bytes.iter().copied().collect() };
            all[usize::from(what & CONNECTION)].0.push_back(edit);
        }
        all
    }

    /// Nothing comes any more, not even the end.
    pub(super) fn has_stalled(&self) -> bool {
        self.0.front().is_some_and(|edit| edit.kind == Kind::Stall && edit.after == 0)
    }

    /// The end has come.
    pub(super) fn has_ended(&self) -> bool {
        self.0.front().is_some_and(|edit| edit.kind == Kind::End && edit.after == 0)
    }

    /// Passes the target's bytes on, as edited; returns how many of them were used up.
    pub(super) fn pass(&mut self, honest: &[u8], out: &mut VecDeque<u8>) -> usize {
        let mut rest = honest;
        loop {
            let Some(edit) = self.0.front_mut() else {
                out.extend(rest);
                return honest.len();
            };
            let (as_they_are, behind) = rest.split_at(edit.after.min(rest.len()));
            out.extend(as_they_are);
            edit.after -= as_they_are.len();
            rest = behind;
            if edit.after > 0 || matches!(edit.kind, Kind::Stall | Kind::End) {
                break;
            }
            if edit.kind == Kind::Insert {
                out.extend(edit.bytes.drain(..));
                edit.left = 0;
            }
            let (used, behind) = rest.split_at(edit.left.min(rest.len()));
            rest = behind;
            edit.left -= used.len();
            match edit.kind {
                Kind::Replace => out.extend(edit.bytes.drain(..used.len())),
                Kind::Flip => out.extend(edit.bytes.drain(..used.len()).zip(used).map(|(a, b)| a ^ b)),
                Kind::Clear => out.extend(used.iter().map(|_| 0)),
                Kind::Set => out.extend(used.iter().map(|_| 0xff)),
                Kind::Insert | Kind::Lose | Kind::Stall | Kind::End => {}
            }
            if edit.left > 0 {
                break;
            }
            self.0.pop_front();
        }
        honest.len() - rest.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_apply_in_turn_however_the_bytes_come() {
        let script = [
            record(1, Kind::Replace, 2, 2, b"XY"),
            record(1, Kind::Insert, 1, 3, b"new"),
            record(0, Kind::End, 0, 0, b""),
            record(1, Kind::Flip, 0, 1, &[0x20]),
            record(1, Kind::Lose, 1, 2, b""),
            record(1, Kind::Set, 0, 1, b""),
            record(1, Kind::Clear, 0, 1, b""),
            record(1, Kind::Stall, 1, 0, b""),
        ]
        .concat();
        for piece in 1..15 {
            let mut scripts = Script::read(&script);
            assert!(scripts[0].has_ended());
            let (mut out, mut waiting) = (VecDeque::new(), Vec::new());
            for bytes in b"abcdefghijklmnop".chunks(piece) {
                waiting.extend_from_slice(bytes);
                let used = scripts[1].pass(&waiting, &mut out);
                waiting.drain(..used);
            }
            assert_eq!(out, b"abXYenewFg\xff\0l", "pieces of {piece}");
            assert!(scripts[1].has_stalled() && !scripts[1].has_ended());
        }
    }
}
