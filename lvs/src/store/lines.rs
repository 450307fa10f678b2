//! Lines in memory: where each volume's tree is, and who sees what in it.

use crate::format::lines as format;
use crate::index::Root;
use crate::types::{BlockNo, LineId, Seq};

/// One line: a volume's head and its snapshots.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Which.
    pub(crate) id: LineId,
    /// Epochs that have to stay readable, ascending: snapshots, also discarded ones and such that are being made.
    pub(crate) snapshots: Vec<Seq>,
    /// A volume can still be written.
    pub(crate) head: bool,
    /// Reserved blocks of a thick head; 0 for thin ones.
    pub(crate) reserved_blocks: u64,
    /// What a clone was made of.
    pub(crate) parent: Option<(LineId, Seq)>,
    /// The tree; `None` while it is empty.
    pub(crate) root: Option<Root>,
    /// Data blocks in the tree by when they were born: up to the first snapshot, ..., after the last one. One more than
    /// there are `snapshots`.
    pub(crate) born: Vec<u64>,
    /// The tree may hold versions that nobody needs: where the search for them goes on.
    pub(crate) purge: Option<BlockNo>,
    /// A page of the tree could not be read, with none of its copies, since the pool was opened.
    pub(crate) damaged: bool,
    /// Of the blocks that count as the head's, those that were a snapshot's which is being purged: some of them are the
    /// same blocks of the volume, written twice.
    pub(crate) unpurged: u64,
}

impl Line {
    /// An empty line with a head.
    pub(crate) fn new(id: LineId, reserved_blocks: u64, parent: Option<(LineId, Seq)>) -> Self {
        Self {
            id,
            snapshots: Vec::new(),
            head: true,
            reserved_blocks,
            parent,
            root: None,
            born: vec![0],
            purge: None,
            damaged: false,
            unpurged: 0,
        }
    }

    /// As it stood at a checkpoint; its snapshots and what it reserves come from the catalogue.
    pub(crate) fn load(line: format::Line) -> Self {
        Self {
            id: line.id,
            snapshots: Vec::new(),
            head: line.head,
            reserved_blocks: 0,
            parent: line.parent,
            root: line.root.map(|r| Root { ptr: r.ptr, level: r.level }),
            unpurged: line.purge.and(line.live_blocks.last().copied()).unwrap_or(0),
            born: line.live_blocks,
            purge: line.purge,
            damaged: false,
        }
    }

    /// For the table of lines.
    fn store(&self) -> format::Line {
        format::Line {
            id: self.id,
            root: self.root.map(|r| format::Root { ptr: r.ptr, level: r.level }),
            head: self.head,
            parent: self.parent,
            live_blocks: self.born.clone(),
            purge: self.purge,
        }
    }

    /// In which part of `born` a version counts.
    pub(crate) fn interval(&self, birth: Seq) -> usize {
        self.snapshots.partition_point(|&s| s <= birth)
    }

    /// Data blocks in its tree.
    pub(crate) fn live_blocks(&self) -> u64 {
        self.born.iter().sum()
    }

    /// Data blocks that the head wrote since the newest snapshot.
    pub(crate) fn head_blocks(&self) -> u64 {
        self.born.last().copied().unwrap_or(0)
    }

    /// What it takes of the pool: its blocks, and what is reserved for a thick head beyond what that has written.
    pub(crate) fn used_blocks(&self) -> u64 {
        let own = self.head_blocks().saturating_sub(self.unpurged);
        self.live_blocks() + self.reserved_blocks.saturating_sub(own)
    }

    /// A snapshot at `epoch`, newer than all others.
    pub(crate) fn add_snapshot(&mut self, epoch: Seq) {
        self.snapshots.push(epoch);
        self.born.push(0);
    }

    /// The snapshot at `epoch` is gone: what only it needs can be purged.
    pub(crate) fn remove_snapshot(&mut self, epoch: Seq) {
        if let Some(at) = self.snapshots.iter().position(|&s| s == epoch) {
            self.snapshots.remove(at);
            let blocks = self.born.remove(at);
            self.born[at] += blocks;
            if at == self.snapshots.len() {
                self.unpurged += blocks;
            }
            self.purge = Some(BlockNo(0));
        }
    }

    /// Nothing sees it any more.
    pub(crate) fn is_dead(&self) -> bool {
        !self.head && self.snapshots.is_empty()
    }
}

/// All lines, by number.
#[derive(Default, Debug)]
pub(crate) struct Lines {
    list: Vec<Option<Box<Line>>>,
}

impl Lines {
    /// A line.
    pub(crate) fn get(&self, id: LineId) -> Option<&Line> {
        self.list.get(id.0 as usize)?.as_deref()
    }

    /// A line, to change it.
    pub(crate) fn get_mut(&mut self, id: LineId) -> Option<&mut Line> {
        self.list.get_mut(id.0 as usize)?.as_deref_mut()
    }

    /// Adds or replaces a line.
    pub(crate) fn put(&mut self, line: Line) {
        let at = line.id.0 as usize;
        if at >= self.list.len() {
            self.list.resize_with(at + 1, || None);
        }
        self.list[at] = Some(Box::new(line));
    }

    /// Removes a line.
    pub(crate) fn remove(&mut self, id: LineId) {
        if let Some(slot) = self.list.get_mut(id.0 as usize) {
            *slot = None;
        }
    }

    /// True for a line that another one was cloned from.
    pub(crate) fn is_parent(&self, id: LineId) -> bool {
        self.iter().any(|l| l.parent.is_some_and(|(parent, _)| parent == id))
    }

    /// True when somebody reads line `id` as it was at `epoch` because a clone was made of it: the clone, or a snapshot
    /// of the clone that outlived it.
    pub(crate) fn is_cloned_at(&self, id: LineId, epoch: Seq) -> bool {
        self.iter().any(|l| l.parent == Some((id, epoch)) && !l.is_dead())
    }

    /// All lines, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Line> {
        self.list.iter().filter_map(|l| l.as_deref())
    }

    /// The table of lines, as it goes to the disks.
    pub(crate) fn table(&self, next_id: u32) -> format::Lines {
        format::Lines { next_id, lines: self.iter().map(Line::store).collect() }
    }
}
