//! What is simulated. Each scenario is one file; [`ALL`] is what the command line knows.

pub mod bytes;
pub mod fabric;
pub mod paths;

use crate::seeds::Scenario;

/// Every scenario.
pub const ALL: &[&Scenario] = &[&bytes::SCENARIO, &fabric::INITIATOR, &fabric::NVMF, &paths::PATHS];
