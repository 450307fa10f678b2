//! What controllers of this project have beyond the specifications: opcodes and pages of the vendor ranges. Hosts and
//! controllers that do not know them refuse or ignore them.
//!
//! | what | number | for |
//! |---|---|---|
//! | [`AssociationPage`] | log page D0h | which association this is, and of which incarnation the namespace's data |
//! | [`EndAssociation`] | admin opcode D0h | another association of the same host is to end: none of its commands executes any more |
//! | [`facets`] | admin opcodes C1h and D2h to E6h | ranges, marks, snapshots of a namespace |

pub mod facets;

use zerocopy::little_endian::U64;

use crate::command::{AdminOpcode, Cntlid, Nsid, Sqe};
use crate::log::Lid;

/// Log page of an association and one namespace as it sees it, see [`AssociationPage`].
pub const LID_ASSOCIATION: Lid = Lid::new(0xd0);

/// Admin opcode of [`EndAssociation`]. Its low bits say that it carries no data.
pub const OPCODE_END_ASSOCIATION: AdminOpcode = AdminOpcode::new(0xd0);

wire_struct! {
    /// Get Log Page D0h for one namespace: 64 bytes.
    #[derive(Debug)]
    AssociationPage, 64, {
        /// [`AssociationPage::SIGNATURE`]: other vendors may use the page's number for something else.
        signature: [u8; 8],
        /// Tells the association apart from all others of the target, also of one that has restarted since.
        instance: U64,
        /// A value that is new whenever completed writes that were not flushed may have been lost; zeroes = not known.
        incarnation: [u8; 16],
        /// Reserved.
        reserved32: [u8; 32],
    }
}

impl AssociationPage {
    /// What [`signature`](Self::signature) has to be.
    pub const SIGNATURE: [u8; 8] = *b"KEELSON\x01";

    /// A page.
    pub fn new(instance: u64, incarnation: Option<u128>) -> Self {
        Self {
            signature: Self::SIGNATURE,
            instance: instance.into(),
            incarnation: incarnation.unwrap_or(0).to_le_bytes(),
            ..Self::zeroed()
        }
    }

    /// The page at the front of `bytes`; `None` when it is too short or somebody else's.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Self::read(bytes).filter(|page| page.signature == Self::SIGNATURE)
    }

    /// The incarnation, when it is known.
    pub fn incarnation(&self) -> Option<u128> {
        Some(u128::from_le_bytes(self.incarnation)).filter(|n| *n != 0)
    }
}

/// The arguments of the command that ends another association of the same host with the same subsystem.
///
/// The answer is success with [`EndAssociation::GONE`] when nothing of that association is in flight any more, down to the
/// device, or when there is no such association; [`EndAssociation::DRAINING`] when it was told to end and has not ended
/// yet: ask again. Associations of other hosts are not found, so that nobody can end those.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndAssociation {
    /// Controller identifier of the other association.
    pub cntlid: Cntlid,
    /// [`AssociationPage::instance`] of the other association.
    pub instance: u64,
}

impl EndAssociation {
    /// Result: none of its commands executes any more.
    pub const GONE: u64 = 0;
    /// Result: some may.
    pub const DRAINING: u64 = 1;

    /// Reads the dwords.
    pub const fn decode(sqe: &Sqe) -> Self {
        let instance = sqe.cdw11.get() as u64 | (sqe.cdw12.get() as u64) << 32;
        Self { cntlid: Cntlid(sqe.cdw10.get() as u16), instance }
    }

    /// A whole SQE.
    pub fn sqe(&self) -> Sqe {
        let mut sqe = Sqe::admin(OPCODE_END_ASSOCIATION, Nsid::NONE);
        sqe.cdw10.set(self.cntlid.0.into());
        sqe.cdw11.set(self.instance as u32);
        sqe.cdw12.set((self.instance >> 32) as u32);
        sqe
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Direction;

    #[test]
    fn arguments_and_page_survive_the_wire() {
        let end = EndAssociation { cntlid: Cntlid(0xfe01), instance: 0x0123_4567_89ab_cdef };
        assert_eq!(EndAssociation::decode(&end.sqe()), end);
        assert_eq!(end.sqe().direction(), Direction::None);
        let page = AssociationPage::new(7, Some(9));
        let read = AssociationPage::parse(page.wire()).unwrap();
        assert_eq!((read.instance.get(), read.incarnation()), (7, Some(9)));
        assert_eq!(AssociationPage::new(7, None).incarnation(), None);
    }

    #[test]
    fn pages_of_others_are_not_taken_for_ours() {
        assert!(AssociationPage::parse(&[0; 64]).is_none());
        assert!(AssociationPage::parse(&AssociationPage::new(1, None).wire()[..63]).is_none());
    }
}
