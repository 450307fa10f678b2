//! Asymmetric Namespace Access (NVMe Base 2.0, section 8.1): states per group and listener.

use nvme::Status;

/// Index of a listener of this target; the discovery log's port identifier is one more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ListenerId(pub u16);

/// The state of one ANA group as seen through one listener (NVMe Base 2.0, figure 219).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum AnaState {
    /// Full performance.
    #[default]
    Optimized = 0x1,
    /// Works, slower.
    NonOptimized = 0x2,
    /// Commands fail; may come back.
    Inaccessible = 0x3,
    /// Commands fail for good.
    PersistentLoss = 0x4,
    /// In transition; commands fail, retry within ANATT.
    Change = 0xf,
}

impl AnaState {
    /// What a command that needs access to the namespace's data is answered with, if not served. The host
    /// tries another path, so Do Not Retry is clear.
    pub const fn refusal(self) -> Option<Status> {
        match self {
            Self::Optimized | Self::NonOptimized => None,
            Self::PersistentLoss => Some(Status::ANA_PERSISTENT_LOSS),
            Self::Inaccessible => Some(Status::ANA_INACCESSIBLE),
            Self::Change => Some(Status::ANA_TRANSITION),
        }
    }
}

/// The states of all groups of a subsystem as seen through each listener. Without groups ANA is not in use: all
/// optimized. Each core holds its own copy.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AnaTable {
    /// By group: through every listener that has no state of its own.
    common: Vec<AnaState>,
    /// By listener and group.
    own: Vec<Option<AnaState>>,
}

impl AnaTable {
    /// `groups` groups, all optimized.
    pub(super) fn new(groups: u16) -> Self {
        Self { common: vec![AnaState::default(); usize::from(groups)], own: Vec::new() }
    }

    /// The state of `group` (1-based) as seen through `listener`. Optimized for a group that does not exist.
    pub fn state(&self, listener: ListenerId, group: u32) -> AnaState {
        let Some(index) = self.index(group) else { return AnaState::default() };
        let own = self.own.get(usize::from(listener.0) * self.common.len() + index);
        own.copied().flatten().unwrap_or(self.common[index])
    }

    /// How many groups there are.
    pub fn groups(&self) -> u16 {
        self.common.len() as u16
    }

    /// Sets the state of `group` as seen through one listener, or through all. `None`: there is no such group.
    pub(super) fn set(&mut self, listener: Option<ListenerId>, group: u32, state: AnaState) -> Option<()> {
        let index = self.index(group)?;
        let groups = self.common.len();
        match listener {
            None => {
                self.common[index] = state;
                self.own.iter_mut().skip(index).step_by(groups).for_each(|own| *own = None);
            }
            Some(listener) => {
                let at = usize::from(listener.0) * groups + index;
                if self.own.len() <= at {
                    self.own.resize((usize::from(listener.0) + 1) * groups, None);
                }
                self.own[at] = Some(state);
            }
        }
        Some(())
    }

    fn index(&self, group: u32) -> Option<usize> {
        group.checked_sub(1).map(|g| g as usize).filter(|g| *g < self.common.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_by_listener_and_group() {
        let (a, b) = (ListenerId(0), ListenerId(3));
        let mut table = AnaTable::new(2);
        assert_eq!(table.set(Some(b), 2, AnaState::Inaccessible), Some(()));
        assert_eq!(table.set(Some(b), 3, AnaState::Inaccessible), None);
        assert_eq!(table.set(None, 0, AnaState::Inaccessible), None);
        assert_eq!((table.state(a, 2), table.state(b, 2)), (AnaState::Optimized, AnaState::Inaccessible));
        assert_eq!(table.state(b, 1), AnaState::Optimized);
        assert_eq!(table.set(None, 1, AnaState::NonOptimized), Some(()));
        assert_eq!((table.state(a, 1), table.state(b, 1)), (AnaState::NonOptimized, AnaState::NonOptimized));
        assert_eq!(table.state(b, 2), AnaState::Inaccessible, "the other group keeps its own state");
        assert_eq!(table.set(None, 2, AnaState::Change), Some(()));
        assert_eq!((table.state(a, 2), table.state(b, 2)), (AnaState::Change, AnaState::Change));
        assert_eq!(table.state(a, 0), AnaState::Optimized);
        assert_eq!(table.state(a, u32::MAX), AnaState::Optimized);
        assert_eq!(AnaTable::default().state(b, 1), AnaState::Optimized);
    }

    #[test]
    fn refusals_let_the_host_try_another_path() {
        assert_eq!(AnaState::Optimized.refusal(), None);
        assert_eq!(AnaState::NonOptimized.refusal(), None);
        for state in [AnaState::Inaccessible, AnaState::PersistentLoss, AnaState::Change] {
            let status = state.refusal().unwrap();
            assert!(status.is_path() && !status.dnr(), "{state:?}");
        }
    }
}
