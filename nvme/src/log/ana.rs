//! Asymmetric Namespace Access log page (LID 0Ch; NVMe Base 2.0, sections 5.16.1.13 and 8.1).
//!
//! A header of 16 bytes, then for each group a descriptor of 32 bytes followed by its NSIDs (none with
//! [`RETURN_GROUPS_ONLY`]).

use zerocopy::little_endian::{U16, U32, U64};

use crate::Status;
use crate::command::Nsid;
use crate::nvm::wire_list;

/// Log Specific Field bit: descriptors without NSIDs.
pub const RETURN_GROUPS_ONLY: u8 = 1;

open_codes! {
    /// ANA state of a group, as one controller sees it.
    AnaState(u8 => u8) {
        OPTIMIZED = 0x1, "ANA Optimized";
        NON_OPTIMIZED = 0x2, "ANA Non-Optimized";
        INACCESSIBLE = 0x3, "ANA Inaccessible";
        PERSISTENT_LOSS = 0x4, "ANA Persistent Loss";
        CHANGE = 0xf, "ANA Change";
    }
}

impl AnaState {
    /// What commands to the namespaces of such a group get: nothing where access works, else the path status.
    pub const fn access(self) -> Result<(), Status> {
        match self.get() {
            0x3 => Err(Status::ANA_INACCESSIBLE),
            0x4 => Err(Status::ANA_PERSISTENT_LOSS),
            0xf => Err(Status::ANA_TRANSITION),
            _ => Ok(()),
        }
    }
}

wire_struct! {
    /// Header of the page: 16 bytes.
    #[derive(Debug)]
    AnaHeader, 16, {
        /// Change Count: grows whenever a state or a group changes.
        change_count: U64,
        /// Number of group descriptors.
        groups: U16,
        /// Reserved.
        reserved10: [u8; 6],
    }
}

wire_struct! {
    /// ANA Group Descriptor: 32 bytes, then `nsids` identifiers.
    #[derive(Debug)]
    AnaGroupHeader, 32, {
        /// ANA Group ID, from 1 on.
        grpid: U32,
        /// Number of NSID Values.
        nsids: U32,
        /// Change Count of the page when this group changed last; 0 = not reported.
        change_count: U64,
        /// State in bits 3:0.
        state: AnaState,
        /// Reserved.
        reserved17: [u8; 15],
    }
}

/// Builds the page group by group, in increasing order of group ID and NSID.
pub struct AnaLog {
    page: Vec<u8>,
    groups: u16,
    groups_only: bool,
}

impl AnaLog {
    /// An empty page; with `groups_only` the NSIDs are left out.
    pub fn new(change_count: u64, groups_only: bool) -> Self {
        let header = AnaHeader { change_count: change_count.into(), ..AnaHeader::zeroed() };
        Self { page: header.wire().to_vec(), groups: 0, groups_only }
    }

    /// Adds a group.
    pub fn group(
        &mut self,
        grpid: u32,
        state: AnaState,
        change_count: u64,
        nsids: impl IntoIterator<Item = Nsid>,
    ) {
        let at = self.page.len();
        let mut header = AnaGroupHeader {
            grpid: grpid.into(),
            change_count: change_count.into(),
            state,
            ..AnaGroupHeader::zeroed()
        };
        self.page.extend_from_slice(header.wire());
        if !self.groups_only {
            let mut count = 0u32;
            for nsid in nsids {
                self.page.extend_from_slice(&nsid.0.to_le_bytes());
                count += 1;
            }
            header.nsids.set(count);
            self.page[at..at + AnaGroupHeader::LEN_BYTES].copy_from_slice(header.wire());
        }
        self.groups += 1;
    }

    /// The page.
    pub fn finish(mut self) -> Vec<u8> {
        self.page[8..10].copy_from_slice(&self.groups.to_le_bytes());
        self.page
    }
}

/// One group of a page that is read.
#[derive(Clone, Copy, Debug)]
pub struct AnaGroup<'a> {
    /// The descriptor.
    pub header: &'a AnaGroupHeader,
    nsids: &'a [U32],
}

impl AnaGroup<'_> {
    /// State, without the reserved bits.
    pub const fn state(&self) -> AnaState {
        AnaState::new(self.header.state.get() & 0xf)
    }

    /// The namespaces of the group.
    pub fn nsids(&self) -> impl Iterator<Item = Nsid> + '_ {
        self.nsids.iter().map(|nsid| Nsid(nsid.get()))
    }
}

/// Reads a page: its header, and its groups as far as they are whole. `None` when there is no whole header.
/// Never panics.
pub fn parse(page: &[u8]) -> Option<(&AnaHeader, impl Iterator<Item = AnaGroup<'_>>)> {
    let header = AnaHeader::view(page)?;
    let mut rest = &page[AnaHeader::LEN_BYTES..];
    let mut left = header.groups.get();
    let groups = core::iter::from_fn(move || {
        left = left.checked_sub(1)?;
        let descriptor = AnaGroupHeader::view(rest)?;
        let after = &rest[AnaGroupHeader::LEN_BYTES..];
        let count = usize::try_from(descriptor.nsids.get()).ok()?;
        let nsids = wire_list::<U32>(after, count);
        if nsids.len() < count {
            left = 0;
            return None;
        }
        rest = &after[count * 4..];
        Some(AnaGroup { header: descriptor, nsids })
    });
    Some((header, groups))
}
