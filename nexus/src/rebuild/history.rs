//! Rebuilds that ended, the oldest first, of one nexus. In memory.

use std::collections::VecDeque;
use std::time::SystemTime;

use super::{Job, RebuildState};

/// Records that are kept.
const MAX_RECORDS: usize = 128;

/// A rebuild that ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RebuildRecord {
    /// The child that was written.
    pub child_uri: String,
    /// The child that was read.
    pub source_uri: String,
    /// How it ended.
    pub state: RebuildState,
    /// Length of a block, in bytes.
    pub block_size: u64,
    /// Blocks of the nexus.
    pub blocks_total: u64,
    /// Blocks that were copied.
    pub blocks_transferred: u64,
    /// Blocks that were left to be copied.
    pub blocks_remaining: u64,
    /// Blocks that were copied at once.
    pub segment_blocks: u64,
    /// Only what the child missed was copied.
    pub is_partial: bool,
    /// When it began.
    pub start_time: SystemTime,
    /// When it ended.
    pub end_time: SystemTime,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct History(VecDeque<RebuildRecord>);

impl History {
    /// Adds a rebuild that has just ended; beyond the bound, the oldest is forgotten.
    pub(crate) fn add(&mut self, job: &Job) {
        if self.0.len() == MAX_RECORDS {
            self.0.pop_front();
        }
        let stats = job.stats();
        self.0.push_back(RebuildRecord {
            child_uri: job.uri.clone(),
            source_uri: job.source_uri.borrow().clone(),
            state: stats.state,
            block_size: stats.block_size,
            blocks_total: stats.blocks_total,
            blocks_transferred: stats.blocks_recovered,
            blocks_remaining: stats.blocks_remaining,
            segment_blocks: stats.segment_blocks,
            is_partial: stats.is_partial,
            start_time: stats.start_time,
            end_time: SystemTime::now(),
        });
    }

    /// The records, the oldest first.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &RebuildRecord> {
        self.0.iter()
    }
}
