//! Reading bytes front to back without trusting them.

use super::{FormatError, What};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Bytes of `what`, from front to back.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    what: What,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(what: What, bytes: &'a [u8]) -> Self {
        Self { what, bytes, at: 0 }
    }

    /// Where the next byte is.
    pub(super) fn at_bytes(&self) -> usize {
        self.at
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(super) fn take_bytes(&mut self, len_bytes: usize) -> Result<&'a [u8], FormatError> {
        let end = self.at.saturating_add(len_bytes);
        let taken = self.bytes.get(self.at..end).ok_or(FormatError::Short {
            what: self.what,
            need_bytes: end,
            have_bytes: self.bytes.len(),
        })?;
        self.at = end;
        Ok(taken)
    }

    pub(super) fn take<T: FromBytes>(&mut self) -> Result<T, FormatError> {
        let bytes = self.take_bytes(size_of::<T>())?;
        Ok(T::read_from_bytes(bytes).expect("invariant: as many bytes as the type has"))
    }

    /// `count` values one after the other, in place: a count that is too large is an error, not an allocation.
    pub(super) fn take_list<T>(&mut self, count: usize) -> Result<&'a [T], FormatError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let bytes = self.take_bytes(count.saturating_mul(size_of::<T>()))?;
        Ok(<[T]>::ref_from_bytes(bytes).expect("invariant: whole values"))
    }

    /// An error about the field that begins `back_bytes` before the next byte.
    pub(super) fn bad(&self, field: &'static str, back_bytes: usize) -> FormatError {
        FormatError::Value { what: self.what, field, at_bytes: self.at.saturating_sub(back_bytes) }
    }
}

/// Refuses more of something than there may be.
pub(super) fn at_most(
    what: What,
    field: &'static str,
    count: usize,
    limit: usize,
) -> Result<(), FormatError> {
    if count > limit { Err(FormatError::TooMany { what, field, count, limit }) } else { Ok(()) }
}
