//! What can be wrong with bytes from a disk.

use core::fmt;

/// A structure of the format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum What {
    /// What a disk is.
    Label,
    /// What the pool is at a checkpoint.
    Anchor,
    /// The header of a record of the log.
    Record,
    /// A page of a map.
    Page,
    /// A pointer to a blob.
    BlobPtr,
    /// The table of segments.
    SegmentTable,
    /// The table of lines.
    Lines,
    /// Objects of the catalogue.
    Catalogue,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Label => "label",
            Self::Anchor => "anchor",
            Self::Record => "record header",
            Self::Page => "map page",
            Self::BlobPtr => "blob pointer",
            Self::SegmentTable => "segment table",
            Self::Lines => "table of lines",
            Self::Catalogue => "catalogue",
        })
    }
}

/// Why bytes were not taken, or a value could not be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// There is no such structure here.
    #[error("no {0} here: its first bytes are missing")]
    Magic(What),
    /// A version of the structure that this program does not know.
    #[error("{what} of version {found}, which this version of Keelson does not know")]
    Version {
        /// Of what.
        what: What,
        /// The version that it states.
        found: u16,
    },
    /// Made by a version that has features which have to be understood to read it.
    #[error("{what} uses features that this version of Keelson does not know (bits {bits:#x})")]
    Incompatible {
        /// Of what.
        what: What,
        /// The unknown bits.
        bits: u64,
    },
    /// The bytes are not those that were written.
    #[error("{0} is damaged: its checksum does not match")]
    Checksum(What),
    /// It belongs to another pool, line or level than asked for.
    #[error("{what} is not the one that was asked for: {field} differs")]
    Other {
        /// Of what.
        what: What,
        /// What tells them apart.
        field: &'static str,
    },
    /// It ends before it should.
    #[error("{what} ends at byte {have_bytes}, where {need_bytes} bytes are needed")]
    Short {
        /// Of what.
        what: What,
        /// Bytes needed.
        need_bytes: usize,
        /// Bytes that there are.
        have_bytes: usize,
    },
    /// A value that cannot be.
    #[error("{what}: the {field} at byte {at_bytes} cannot be")]
    Value {
        /// Of what.
        what: What,
        /// Which field.
        field: &'static str,
        /// Where it begins.
        at_bytes: usize,
    },
    /// More of something than the format has room for.
    #[error("{what}: {count} {field}, where at most {limit} fit")]
    TooMany {
        /// Of what.
        what: What,
        /// Of which things.
        field: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
}
