//! Physical Region Page entries (NVMe Base 2.0, section 4.1.1): from scattered memory to PRP1, PRP2 and lists.
//!
//! The first entry may start anywhere in a page on a dword boundary; every further one names a whole page. So
//! memory in several pieces can be described only when the pieces meet at page boundaries. What PRPs cannot
//! describe, the caller copies into memory that they can. Addresses are the device's (IOVA); no memory is touched.

use core::fmt;

/// Why memory cannot be described by PRPs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrpError {
    /// The first address is not on a dword boundary.
    Unaligned,
    /// Two pieces meet inside a page.
    Gap,
    /// The entries do not fit the scratch list.
    TooMany,
    /// A piece runs over the end of the address space.
    Overflow,
}

impl fmt::Display for PrpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unaligned => "the first address is not on a dword boundary",
            Self::Gap => "two pieces of memory meet inside a page",
            Self::TooMany => "the memory needs more PRP entries than there is room for",
            Self::Overflow => "a piece of memory runs over the end of the address space",
        })
    }
}

impl std::error::Error for PrpError {}

/// Collects entries in a scratch list that the caller lends (one per page, and one more for an offset).
#[derive(Debug)]
pub struct PrpBuilder<'a> {
    entries: &'a mut [u64],
    len: usize,
    page_bytes: u64,
    end: u64,
}

/// What PRP2 holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prp2<'a> {
    /// Nothing: the memory lies in one page.
    None,
    /// The second and last page.
    Page(u64),
    /// The address of a list with these entries ([`write_list`] lays them out).
    List(&'a [u64]),
}

impl<'a> PrpBuilder<'a> {
    /// No memory yet, for pages of `2 ^ (12 + mps)` bytes (CC.MPS, 0 to 15).
    pub const fn new(entries: &'a mut [u64], mps: u8) -> Self {
        Self { entries, len: 0, page_bytes: 4096 << (mps & 0xf), end: 0 }
    }

    /// Adds the next piece; an empty one adds nothing.
    ///
    /// # Errors
    /// What PRPs cannot describe. The builder is of no use after that.
    pub fn push(&mut self, address: u64, len_bytes: u64) -> Result<(), PrpError> {
        if len_bytes == 0 {
            return Ok(());
        }
        let last = address.checked_add(len_bytes - 1).ok_or(PrpError::Overflow)?;
        let page_offset = address & (self.page_bytes - 1);
        if self.len == 0 {
            if address & 3 != 0 {
                return Err(PrpError::Unaligned);
            }
            self.add(address)?;
        } else if page_offset == 0 && self.end & (self.page_bytes - 1) == 0 {
            self.add(address)?;
        } else if address != self.end {
            return Err(PrpError::Gap);
        }
        let mut page = address - page_offset;
        while last - page >= self.page_bytes {
            page += self.page_bytes;
            self.add(page)?;
        }
        // Wraps to 0 only for the last byte of the address space, after which nothing can follow.
        self.end = last.wrapping_add(1);
        Ok(())
    }

    fn add(&mut self, entry: u64) -> Result<(), PrpError> {
        *self.entries.get_mut(self.len).ok_or(PrpError::TooMany)? = entry;
        self.len += 1;
        Ok(())
    }

    /// PRP1 and PRP2; PRP1 is 0 when there was no memory.
    pub fn finish(self) -> (u64, Prp2<'a>) {
        match &self.entries[..self.len] {
            [] => (0, Prp2::None),
            [one] => (*one, Prp2::None),
            [one, two] => (*one, Prp2::Page(*two)),
            [one, list @ ..] => (*one, Prp2::List(list)),
        }
    }
}

/// How many pages of `page_bytes` a list of `entries` takes. All but the last page end in a pointer to the next.
pub const fn list_pages(entries: usize, page_bytes: usize) -> usize {
    let slots = page_bytes / 8;
    if entries <= 1 || slots < 2 { 1 } else { (entries - 1).div_ceil(slots - 1) }
}

/// Lays `entries` out in `pages`: address and memory of each, all of one length ([`list_pages`] says how many).
/// The address of the first is what PRP2 holds.
///
/// # Errors
/// [`PrpError::TooMany`]: there are too few pages, or one without room for two entries.
pub fn write_list<'m>(
    entries: &[u64],
    pages: impl IntoIterator<Item = (u64, &'m mut [u8])>,
) -> Result<(), PrpError> {
    let mut pages = pages.into_iter();
    let (_, mut page) = pages.next().ok_or(PrpError::TooMany)?;
    let mut left = entries;
    loop {
        let slots = page.len() / 8;
        if left.len() <= slots {
            put_entries(page, left);
            return Ok(());
        }
        if slots < 2 {
            return Err(PrpError::TooMany);
        }
        let (here, rest) = left.split_at(slots - 1);
        let (next_address, next_page) = pages.next().ok_or(PrpError::TooMany)?;
        put_entries(page, here);
        put_entries(&mut page[(slots - 1) * 8..], &[next_address]);
        (page, left) = (next_page, rest);
    }
}

fn put_entries(page: &mut [u8], entries: &[u64]) {
    for (slot, entry) in page.chunks_exact_mut(8).zip(entries) {
        slot.copy_from_slice(&entry.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entries for these pieces with 4 KiB pages.
    fn entries(pieces: &[(u64, u64)]) -> Result<Vec<u64>, PrpError> {
        let mut scratch = [0; 9];
        let mut builder = PrpBuilder::new(&mut scratch, 0);
        for &(address, len_bytes) in pieces {
            builder.push(address, len_bytes)?;
        }
        let (first, second) = builder.finish();
        Ok(match second {
            Prp2::None => vec![first],
            Prp2::Page(page) => vec![first, page],
            Prp2::List(list) => [&[first], list].concat(),
        })
    }

    #[test]
    fn edges() {
        const P: u64 = 4096;
        type Case<'a> = (&'a str, &'a [(u64, u64)], Result<&'a [u64], PrpError>);
        let table: [Case<'_>; 24] = [
            ("nothing", &[], Ok(&[0])),
            ("empty piece", &[(3, 0)], Ok(&[0])),
            ("one block in a page", &[(P, 512)], Ok(&[P])),
            ("a whole page", &[(P, P)], Ok(&[P])),
            ("the end of a page", &[(2 * P - 512, 512)], Ok(&[2 * P - 512])),
            ("over the end of a page", &[(2 * P - 512, 516)], Ok(&[2 * P - 512, 2 * P])),
            ("a page and a byte", &[(P, P + 1)], Ok(&[P, 2 * P])),
            ("two pages", &[(P, 2 * P)], Ok(&[P, 2 * P])),
            ("two pages with an offset", &[(P + 4, 2 * P)], Ok(&[P + 4, 2 * P, 3 * P])),
            ("pages apart", &[(P, P), (9 * P, P), (5 * P, 8)], Ok(&[P, 9 * P, 5 * P])),
            ("offset, then a page", &[(P + 512, P - 512), (9 * P, P)], Ok(&[P + 512, 9 * P])),
            ("an empty piece between", &[(P, P), (77, 0), (3 * P, P)], Ok(&[P, 3 * P])),
            ("contiguous inside a page", &[(P, 512), (P + 512, 512)], Ok(&[P])),
            ("contiguous, odd", &[(P, 3), (P + 3, P)], Ok(&[P, 2 * P])),
            ("contiguous at the boundary", &[(P, P), (2 * P, P)], Ok(&[P, 2 * P])),
            ("the same page twice", &[(P, P), (P, P)], Ok(&[P, P])),
            ("not a dword", &[(P + 2, 512)], Err(PrpError::Unaligned)),
            ("gap: first ends inside", &[(P, 512), (2 * P, 512)], Err(PrpError::Gap)),
            ("gap: second starts inside", &[(P, P), (2 * P + 512, 512)], Err(PrpError::Gap)),
            ("gap: both", &[(P, 512), (P + 1024, 512)], Err(PrpError::Gap)),
            ("gap after several pages", &[(P, 2 * P + 4), (9 * P, P)], Err(PrpError::Gap)),
            ("scratch full", &[(0, 10 * P)], Err(PrpError::TooMany)),
            ("over the address space", &[(u64::MAX - 3, 5)], Err(PrpError::Overflow)),
            ("the last page of all", &[(0u64.wrapping_sub(P), P)], Ok(&[0u64.wrapping_sub(P)])),
        ];
        for (what, pieces, expected) in table {
            assert_eq!(entries(pieces), expected.map(<[u64]>::to_vec), "{what}");
        }
    }

    #[test]
    fn larger_pages() {
        let mut scratch = [0; 4];
        let mut builder = PrpBuilder::new(&mut scratch, 4);
        assert_eq!(builder.push(0x1_1000, 0x2_0000), Ok(()));
        assert_eq!(builder.finish(), (0x1_1000, Prp2::List(&[0x2_0000, 0x3_0000])));
    }

    /// Every byte of the memory is reached once and in order, whatever the pieces.
    #[test]
    fn entries_walk_the_same_bytes() {
        for start in (0..4096).step_by(508) {
            for len_bytes in [1, 4095, 4096, 4097, 8192, 20_000] {
                let list = entries(&[(start, len_bytes)]).unwrap();
                let mut at = start;
                let mut left = len_bytes;
                for (index, entry) in list.iter().enumerate() {
                    assert!(left > 0 && *entry == at, "entry {index} of {start}+{len_bytes}");
                    let step = (4096 - at % 4096).min(left);
                    at += step;
                    left -= step;
                }
                assert_eq!(left, 0);
            }
        }
    }

    #[test]
    fn lists_over_several_pages() {
        // Pages of 4 entries: 4 in one, 3 + 4 in two, 3 + 3 + 4 in three.
        for (count, pages) in [(1, 1), (4, 1), (5, 2), (7, 2), (8, 3), (10, 3), (11, 4)] {
            assert_eq!(list_pages(count, 32), pages, "{count} entries");
            let entries: Vec<u64> = (1..=count as u64).collect();
            let mut memory = vec![[0u8; 32]; pages];
            let with_address =
                memory.iter_mut().enumerate().map(|(n, page)| (1000 + n as u64, page.as_mut_slice()));
            write_list(&entries, with_address).unwrap();

            let mut read = Vec::new();
            let mut page = 0;
            loop {
                let slots: Vec<u64> =
                    memory[page].chunks(8).map(|slot| u64::from_le_bytes(slot.try_into().unwrap())).collect();
                let left = count - read.len();
                if left <= 4 {
                    read.extend(&slots[..left]);
                    break;
                }
                read.extend(&slots[..3]);
                assert_eq!(slots[3], 1000 + page as u64 + 1);
                page += 1;
            }
            assert_eq!((read, page), (entries, pages - 1));
        }
        let mut page = [0; 32];
        assert_eq!(write_list(&[0; 5], [(0, page.as_mut_slice())]), Err(PrpError::TooMany));
        assert_eq!(write_list(&[0; 5], []), Err(PrpError::TooMany));
        assert_eq!(write_list(&[0; 5], [(0, &mut page[..8])]), Err(PrpError::TooMany));
        assert_eq!((list_pages(512, 4096), list_pages(513, 4096)), (1, 2));
    }
}
