//! Asymmetric Namespace Access (NVMe Base 2.0, section 8.1): states per group and listener.

use nvme::Status;
use nvme::status::sct;

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
            Self::PersistentLoss => Some(Status::new(sct::PATH, 0x01)),
            Self::Inaccessible => Some(Status::new(sct::PATH, 0x02)),
            Self::Change => Some(Status::new(sct::PATH, 0x03)),
        }
    }
}

/// The states of all groups of a subsystem as seen through each listener. Empty = ANA is not in use: all
/// optimized. Each core holds its own copy.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AnaTable {
    groups: u16,
    states: Vec<AnaState>,
}

impl AnaTable {
    /// `groups` groups, all optimized.
    pub(super) fn new(groups: u16) -> Self {
        Self { groups, states: Vec::new() }
    }

    /// The state of `group` (1-based) as seen through `listener`. Optimized where nothing was set.
    pub fn state(&self, listener: ListenerId, group: u32) -> AnaState {
        self.slot(listener, group).and_then(|i| self.states.get(i)).copied().unwrap_or_default()
    }

    /// How many groups there are.
    pub fn groups(&self) -> u16 {
        self.groups
    }

    /// Sets one state; returns whether it was another one before. `false` for a group that does not exist.
    pub(super) fn set(&mut self, listener: ListenerId, group: u32, state: AnaState) -> bool {
        let Some(i) = self.slot(listener, group) else { return false };
        if self.states.len() <= i {
            self.states.resize(i + 1, AnaState::default());
        }
        std::mem::replace(&mut self.states[i], state) != state
    }

    fn slot(&self, listener: ListenerId, group: u32) -> Option<usize> {
        let index = group.checked_sub(1).filter(|g| *g < u32::from(self.groups))?;
        Some(usize::from(listener.0) * usize::from(self.groups) + index as usize)
    }
}
