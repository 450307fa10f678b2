//! What hosts of this project ask about associations, and how they end one of theirs ([`nvme::vendor`]).
//!
//! A host that lost a connection does not know what became of its commands, and the target may not have noticed: it
//! hears nothing from the host and waits for the Keep Alive Timer. Until the old association has ended *and drained*, a
//! command of it may still execute, after newer ones of the host's next association (`HAZARDS` H3). So the host asks.

use nvme::vendor::{AssociationPage, EndAssociation};
use nvme::{Nsid, Sqe};

use super::AdminOutcome;
use crate::target::controller::{Controller, Death};
use crate::target::model::Subsystem;

impl Controller {
    /// Which association this is, and what is known of the data's past.
    pub(super) fn association_page(&self, subsystem: &Subsystem, nsid: Nsid) -> Vec<u8> {
        let incarnation = subsystem.namespace(nsid).and_then(|ns| ns.incarnation);
        AssociationPage::new(self.instance(), incarnation).wire().to_vec()
    }

    /// Ends another association of this host with this subsystem. A controller leaves the subsystem's list when its last
    /// queue has drained, down to the device; so one that is not in the list executes nothing any more.
    pub(super) fn end_association(&self, sqe: &Sqe) -> AdminOutcome {
        let EndAssociation { cntlid, instance } = EndAssociation::decode(sqe);
        let model = self.shared.lock();
        // A subsystem that was deleted may still drain when another one has its name.
        let other = model
            .subsystems
            .iter()
            .flatten()
            .filter_map(|s| s.controllers.get(&cntlid))
            .filter(|c| c.subnqn() == self.subnqn() && c.is_host(self.hostnqn(), self.hostid()))
            .find(|c| c.instance() == instance && instance != self.instance());
        match other {
            None => AdminOutcome::success(EndAssociation::GONE),
            Some(other) => {
                other.die(Death::EndedByHost);
                AdminOutcome::success(EndAssociation::DRAINING)
            }
        }
    }
}
