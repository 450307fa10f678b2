//! What a pool has to hold: volumes, snapshots and clones, 512 bytes by 512 bytes, with everything that a crash may leave
//! instead.
//!
//! Each write has a number, its *stamp*, and what is written says stamp and place. A 4 KiB block has a chain of states. A
//! state is possible as long as no other that began after it was acknowledged is known to be there: is acknowledged
//! (while the pool runs), or is durable (after a crash).

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

/// Parts of a block that have a stamp each.
pub(crate) const PARTS: usize = 8;

/// The stamp of what nobody wrote.
pub(crate) const GARBAGE: u64 = u64::MAX;
/// The stamp of what could not be read.
pub(crate) const UNREADABLE: u64 = u64::MAX - 1;

/// Stamps of a block's parts; 0 = zeroes.
pub(crate) type Stamps = [u64; PARTS];

/// Blocks and what wrote them.
type Versions = BTreeSet<(u64, u64)>;

/// One state of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Content {
    /// The operation that wrote the block; 0 = it takes no space.
    pub(crate) version: u64,
    pub(crate) stamps: Stamps,
}

/// What is done to a pool. Ranges of volumes in units of 512 bytes.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Write {
        volume: Uuid,
        first: u64,
        count: u64,
        fua: bool,
    },
    Zeroes {
        volume: Uuid,
        first: u64,
        count: u64,
    },
    Unmap {
        volume: Uuid,
        first: u64,
        count: u64,
    },
    Flush {
        volume: Uuid,
    },
    CreateVolume {
        uuid: Uuid,
        blocks: u64,
        thin: bool,
    },
    CreateSnapshot {
        volume: Uuid,
        uuid: Uuid,
    },
    CreateClone {
        snapshot: Uuid,
        uuid: Uuid,
    },
    DestroyVolume {
        uuid: Uuid,
    },
    DestroySnapshot {
        uuid: Uuid,
    },
    Resize {
        uuid: Uuid,
        blocks: u64,
    },
    Checkpoint,
    Grow,
    /// By its number on the tape.
    AddDisk {
        disk: usize,
    },
    RemoveDisk {
        disk: usize,
    },
}

impl Op {
    /// Is it about blocks, and not about what there is?
    pub(crate) fn is_data(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Zeroes { .. } | Self::Unmap { .. } | Self::Flush { .. })
    }
}

#[derive(Clone, Debug)]
struct Entry {
    op: u64,
    content: Content,
    submitted: u64,
    acked: Option<u64>,
    durable: bool,
}

/// A block that its line wrote.
#[derive(Clone, Debug, Default)]
struct Cell {
    /// What was there before the first of `entries` may still be there.
    base: bool,
    entries: Vec<Entry>,
}

impl Cell {
    fn is_possible(&self, submitted_after: Option<u64>, known: impl Fn(&Entry) -> bool) -> bool {
        submitted_after.is_none_or(|acked| !self.entries.iter().any(|f| known(f) && f.submitted > acked))
    }

    /// States that can be there, with `None` for what was there before.
    fn possible(&self, known: impl Fn(&Entry) -> bool + Copy) -> Vec<Option<Content>> {
        let mut all: Vec<_> = self
            .entries
            .iter()
            .filter(|e| self.is_possible(e.acked, known))
            .map(|e| Some(e.content))
            .collect();
        if self.base && self.is_possible(Some(0), known) {
            all.push(None);
        }
        all
    }

    fn prune(&mut self) {
        self.base &= self.is_possible(Some(0), |f| f.durable);
        let kept: Vec<bool> = self.entries.iter().map(|e| self.is_possible(e.acked, |f| f.durable)).collect();
        let mut kept = kept.into_iter();
        self.entries.retain(|_| kept.next() == Some(true));
    }
}

#[derive(Clone, Debug)]
struct Head {
    uuid: Uuid,
    blocks: u64,
    thin: bool,
}

#[derive(Clone, Debug)]
struct Snap {
    uuid: Uuid,
    blocks: u64,
    /// What the line itself had written: one state, or several while it is not known which.
    content: BTreeMap<u64, Vec<Option<Content>>>,
    discarded: bool,
}

/// A volume and its snapshots.
#[derive(Clone, Debug)]
struct Line {
    head: Option<Head>,
    parent: Option<Uuid>,
    /// What a clone began with.
    base: BTreeMap<u64, Content>,
    cells: BTreeMap<u64, Cell>,
    snaps: Vec<Snap>,
}

impl Line {
    fn before(&self, block: u64) -> Content {
        self.base.get(&block).copied().unwrap_or_default()
    }

    fn newest(&self, block: u64) -> Content {
        let entry = self.cells.get(&block).and_then(|c| c.entries.last());
        entry.map_or_else(|| self.before(block), |e| e.content)
    }

    fn is_dead(&self) -> bool {
        self.head.is_none() && self.snaps.is_empty()
    }

    fn write(&mut self, op: u64, at: u64, block: u64, content: Content) {
        let cell = self.cells.entry(block).or_insert_with(|| Cell { base: true, entries: Vec::new() });
        cell.entries.push(Entry { op, content, submitted: at, acked: None, durable: false });
    }

    /// Versions of its own, by block, that the head sees and the newest snapshot does not; and all others that somebody
    /// sees.
    fn versions(&self) -> (Versions, Versions) {
        let (mut head, mut older) = (Versions::new(), Versions::new());
        if self.head.is_some() {
            for (&block, cell) in &self.cells {
                head.extend(cell.entries.last().map(|e| (block, e.content.version)));
            }
        }
        for snap in &self.snaps {
            for (&block, states) in &snap.content {
                older.extend(states.iter().flatten().map(|c| (block, c.version)));
            }
        }
        head.retain(|version| version.1 != 0 && !older.contains(version));
        older.retain(|version| version.1 != 0);
        (head, older)
    }
}

/// A view of the pool, as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) volumes: BTreeMap<Uuid, SeenVolume>,
    pub(crate) snapshots: BTreeMap<Uuid, SeenVolume>,
}

/// A volume or snapshot, as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SeenVolume {
    pub(crate) discarded: bool,
    pub(crate) blocks: Vec<Stamps>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    clock: u64,
    lines: BTreeMap<u32, Line>,
    next_line: u32,
    /// Operations that did not end, and when they began.
    running: BTreeMap<u64, (Op, u64)>,
    /// Blocks of which it is not known which of several equal states they have: what they take is not exact.
    pub(crate) inexact: bool,
    /// A disk failed otherwise than by power: what cannot be read is no surprise, but nothing else is excused.
    pub(crate) damaged: bool,
}

impl Model {
    fn line_of(&mut self, volume: Uuid) -> Option<&mut Line> {
        self.lines.values_mut().find(|l| l.head.as_ref().is_some_and(|h| h.uuid == volume))
    }

    /// Volumes and their sizes in blocks.
    pub(crate) fn volumes(&self) -> Vec<(Uuid, u64)> {
        self.lines.values().filter_map(|l| l.head.as_ref()).map(|h| (h.uuid, h.blocks)).collect()
    }

    /// Snapshots that can be cloned.
    pub(crate) fn snapshots(&self) -> Vec<Uuid> {
        self.lines.values().flat_map(|l| &l.snaps).filter(|s| !s.discarded).map(|s| s.uuid).collect()
    }

    /// An operation was submitted.
    pub(crate) fn begin(&mut self, id: u64, op: &Op) {
        self.clock += 1;
        let at = self.clock;
        self.running.insert(id, (op.clone(), at));
        match *op {
            Op::Write { volume, first, count, .. } => self.put(id, volume, first, count, id, true),
            Op::Zeroes { volume, first, count } => self.put(id, volume, first, count, 0, true),
            Op::Unmap { volume, first, count } => self.put(id, volume, first, count, 0, false),
            Op::Resize { uuid, blocks } => {
                let Some(line) = self.line_of(uuid) else { return };
                let end = line.head.as_ref().map_or(0, |h| h.blocks);
                (blocks..end).for_each(|b| line.write(id, at, b, Content::default()));
            }
            _ => {}
        }
    }

    /// `partly`: blocks that are covered in part change in part.
    fn put(&mut self, id: u64, volume: Uuid, first: u64, count: u64, stamp: u64, partly: bool) {
        let at = self.clock;
        let Some(line) = self.line_of(volume) else { return };
        let parts = PARTS as u64;
        for block in first / parts..(first + count).div_ceil(parts) {
            let begin = first.max(block * parts) - block * parts;
            let end = (first + count).min((block + 1) * parts) - block * parts;
            let whole = end - begin == parts;
            if !whole && !partly {
                continue;
            }
            let mut content = line.newest(block);
            content.version = if whole && stamp == 0 { 0 } else { id };
            content.stamps[begin as usize..end as usize].fill(stamp);
            line.write(id, at, block, content);
        }
    }

    /// It ended. What failed may have been done or not.
    pub(crate) fn end(&mut self, id: u64, good: bool) {
        self.clock += 1;
        let now = self.clock;
        let Some((op, began)) = self.running.remove(&id) else { return };
        if !good {
            if self.damaged && !op.is_data() {
                self.running.insert(id, (op, began));
            }
            return;
        }
        match op {
            Op::Write { volume, fua, .. } => self.acknowledge(id, volume, now, fua),
            Op::Zeroes { volume, .. } | Op::Unmap { volume, .. } => self.acknowledge(id, volume, now, false),
            Op::Flush { volume } => {
                let forget = !self.is_snapshot_running();
                if let Some(line) = self.line_of(volume) {
                    make_durable(line, began, forget);
                }
            }
            other => {
                if let Op::Resize { uuid, .. } = other {
                    self.acknowledge(id, uuid, now, true);
                }
                self.change(&other, began);
            }
        }
    }

    fn acknowledge(&mut self, id: u64, volume: Uuid, now: u64, durable: bool) {
        // What a snapshot that is being made may hold is kept until it is made.
        let forget = durable && !self.is_snapshot_running();
        let Some(line) = self.line_of(volume) else { return };
        for cell in line.cells.values_mut() {
            for entry in cell.entries.iter_mut().filter(|e| e.op == id) {
                (entry.acked, entry.durable) = (Some(now), durable);
            }
            if forget {
                cell.prune();
            }
        }
    }

    fn is_snapshot_running(&self) -> bool {
        self.running.values().any(|(op, _)| matches!(op, Op::CreateSnapshot { .. }))
    }

    /// Changes what there is.
    fn change(&mut self, op: &Op, began: u64) {
        match *op {
            Op::CreateVolume { uuid, blocks, thin } => {
                self.add_line(Head { uuid, blocks, thin }, None, BTreeMap::new());
            }
            Op::CreateSnapshot { volume, uuid } => {
                let Some(line) = self.line_of(volume) else { return };
                let content = line.cells.iter().map(|(&block, cell)| {
                    (block, cell.possible(|f| f.acked.is_some_and(|acked| acked < began)))
                });
                let content = content.collect();
                let blocks = line.head.as_ref().map_or(0, |h| h.blocks);
                line.snaps.push(Snap { uuid, blocks, content, discarded: false });
                make_durable(line, began, true);
            }
            Op::CreateClone { snapshot, uuid } => {
                let Some((base, blocks)) = self.content_of(snapshot) else { return };
                self.add_line(Head { uuid, blocks, thin: true }, Some(snapshot), base);
            }
            Op::DestroyVolume { uuid } => {
                if let Some(line) = self.line_of(uuid) {
                    line.head = None;
                }
                self.drop_orphans();
            }
            Op::DestroySnapshot { uuid } => {
                let cloned = self.is_cloned(uuid);
                for line in self.lines.values_mut() {
                    if cloned {
                        line.snaps.iter_mut().filter(|s| s.uuid == uuid).for_each(|s| s.discarded = true);
                    } else {
                        line.snaps.retain(|s| s.uuid != uuid);
                    }
                }
                self.drop_orphans();
            }
            Op::Resize { uuid, blocks } => {
                if let Some(head) = self.line_of(uuid).and_then(|l| l.head.as_mut()) {
                    head.blocks = blocks;
                }
            }
            _ => {}
        }
    }

    fn add_line(&mut self, head: Head, parent: Option<Uuid>, base: BTreeMap<u64, Content>) {
        let line = Line { head: Some(head), parent, base, cells: BTreeMap::new(), snaps: Vec::new() };
        self.lines.insert(self.next_line, line);
        self.next_line += 1;
    }

    fn content_of(&self, snapshot: Uuid) -> Option<(BTreeMap<u64, Content>, u64)> {
        let (line, snap) =
            self.lines.values().find_map(|l| Some((l, l.snaps.iter().find(|s| s.uuid == snapshot)?)))?;
        let mut base = line.base.clone();
        for (&block, states) in &snap.content {
            // Several: nobody looked yet. The newest will do, for what is checked is what was read.
            if let Some(Some(content)) = states.last() {
                base.insert(block, *content);
            }
        }
        base.retain(|&block, _| block < snap.blocks);
        Some((base, snap.blocks))
    }

    fn is_cloned(&self, snapshot: Uuid) -> bool {
        self.lines.values().any(|l| l.parent == Some(snapshot) && !l.is_dead())
    }

    /// A discarded snapshot goes with the last clone of it.
    fn drop_orphans(&mut self) {
        loop {
            let mut all = self.lines.values().flat_map(|l| &l.snaps);
            let Some(orphan) = all.find(|s| s.discarded && !self.is_cloned(s.uuid)).map(|s| s.uuid) else {
                break;
            };
            self.lines.values_mut().for_each(|l| l.snaps.retain(|s| s.uuid != orphan));
        }
        self.lines.retain(|_, l| !l.is_dead());
    }

    /// Blocks that everything takes, exactly, when nothing is in flight.
    pub(crate) fn used_blocks(&self) -> u64 {
        let of = |line: &Line| {
            let (head, older) = line.versions();
            let reserved = line.head.as_ref().filter(|h| !h.thin).map_or(0, |h| h.blocks);
            older.len() as u64 + reserved.max(head.len() as u64)
        };
        self.lines.values().map(of).sum()
    }

    /// Blocks that each line takes, without reservations: of its head since the newest snapshot, and before.
    pub(crate) fn usage(&self) -> Vec<(Option<Uuid>, u64, u64)> {
        let of = |line: &Line| {
            let (head, older) = line.versions();
            (line.head.as_ref().map(|h| h.uuid), head.len() as u64, older.len() as u64)
        };
        self.lines.values().map(of).collect()
    }

    /// What is wrong with what was read. After a crash (`crashed`) an operation on what there is that did not end may have
    /// been done or not.
    pub(crate) fn check(&self, seen: &Seen, crashed: bool) -> Result<(), String> {
        let now = self.compare(seen, crashed);
        if now.is_ok() || !(crashed || self.damaged) {
            return now;
        }
        let changes = self.running.values().filter(|(op, _)| !op.is_data());
        let after: Vec<_> =
            changes.map(|(op, began)| (op, self.after(op, *began).compare(seen, crashed))).collect();
        if after.iter().any(|(_, result)| result.is_ok()) {
            return Ok(());
        }
        now.map_err(|now| if after.is_empty() { now } else { format!("{now}; or else {after:?}") })
    }

    /// The model with a change done.
    fn after(&self, op: &Op, began: u64) -> Self {
        let mut after = self.clone();
        after.change(op, began);
        after
    }

    fn compare(&self, seen: &Seen, crashed: bool) -> Result<(), String> {
        let known = move |f: &Entry| if crashed { f.durable } else { f.acked.is_some() };
        let (mut volumes, mut snapshots) = (0, 0);
        for line in self.lines.values() {
            if let Some(head) = &line.head {
                volumes += 1;
                let found = seen.volumes.get(&head.uuid).ok_or(format!("volume {} is gone", head.uuid))?;
                let states = |block: u64| match line.cells.get(&block) {
                    Some(cell) => cell.possible(known),
                    None => vec![None],
                };
                self.compare_blocks(&format!("volume {}", head.uuid), head.blocks, found, line, states)?;
            }
            for snap in &line.snaps {
                snapshots += 1;
                let name = format!("snapshot {}", snap.uuid);
                let found = seen.snapshots.get(&snap.uuid).ok_or(format!("{name} is gone"))?;
                if found.discarded != snap.discarded {
                    return Err(format!("{name}: discarded is {}", found.discarded));
                }
                let states = |block: u64| snap.content.get(&block).cloned().unwrap_or(vec![None]);
                self.compare_blocks(&name, snap.blocks, found, line, states)?;
            }
        }
        if (volumes, snapshots) != (seen.volumes.len(), seen.snapshots.len()) {
            let (found, also) = (seen.volumes.len(), seen.snapshots.len());
            return Err(format!(
                "{found} volumes and {also} snapshots are there, and should be {volumes} and {snapshots}"
            ));
        }
        Ok(())
    }

    fn compare_blocks(
        &self,
        name: &str,
        blocks: u64,
        found: &SeenVolume,
        line: &Line,
        states: impl Fn(u64) -> Vec<Option<Content>>,
    ) -> Result<(), String> {
        if found.blocks.len() as u64 != blocks {
            return Err(format!("{name} has {} blocks instead of {blocks}", found.blocks.len()));
        }
        for (block, stamps) in (0u64..).zip(&found.blocks) {
            let states = states(block);
            if self.damaged && *stamps == [UNREADABLE; PARTS] {
                continue;
            }
            if !states.iter().any(|s| s.unwrap_or_else(|| line.before(block)).stamps == *stamps) {
                let may: Vec<Stamps> =
                    states.iter().map(|s| s.unwrap_or_else(|| line.before(block)).stamps).collect();
                return Err(format!("{name}: block {block} holds {stamps:?}, and may hold {may:?}"));
            }
        }
        Ok(())
    }

    /// What was read is how it is from now on: nothing is in flight, and what survived a crash stays.
    pub(crate) fn settle(&mut self, seen: &Seen, crashed: bool) {
        if crashed {
            let running = std::mem::take(&mut self.running);
            let mut changes = running.values().filter(|(op, _)| !op.is_data());
            if self.compare(seen, true).is_err()
                && let Some((op, began)) =
                    changes.find(|(op, began)| self.after(op, *began).compare(seen, true).is_ok())
            {
                self.change(op, *began);
            }
        }
        self.clock += 1;
        let now = self.clock;
        let mut inexact = false;
        for line in self.lines.values_mut() {
            let base = line.base.clone();
            let before = |block: &u64| base.get(block).copied().unwrap_or_default();
            for snap in &mut line.snaps {
                let Some(found) = seen.snapshots.get(&snap.uuid) else { continue };
                for (block, states) in &mut snap.content {
                    let Some(&stamps) = found.blocks.get(*block as usize) else { continue };
                    *states = vec![choose(states, stamps, before(block), &mut inexact)];
                }
                snap.content.retain(|_, states| states[0].is_some());
            }
            let Some(head) = &line.head else { continue };
            let Some(found) = seen.volumes.get(&head.uuid) else { continue };
            for (block, cell) in &mut line.cells {
                // Behind the end of the volume: nothing can be seen of it, and it was cut off durably.
                let Some(&stamps) = found.blocks.get(*block as usize) else { continue };
                let known = move |f: &Entry| if crashed { f.durable } else { f.acked.is_some() };
                let states = cell.possible(known);
                let content = choose(&states, stamps, before(block), &mut inexact);
                if crashed {
                    cell.base = content.is_none();
                    let entry =
                        |content| Entry { op: 0, content, submitted: now, acked: Some(now), durable: true };
                    cell.entries = content.map(entry).into_iter().collect();
                } else if let (Some(content), true) = (content, states.len() > 1)
                    && let Some(at) = cell.entries.iter().rposition(|e| e.content == content)
                {
                    // It came after the others. A crash may take it back all the same, and leave one of those.
                    let mut entry = cell.entries.remove(at);
                    (entry.submitted, entry.acked) = (now, Some(now));
                    cell.entries.push(entry);
                }
            }
            line.cells.retain(|_, cell| !cell.entries.is_empty());
        }
        self.inexact |= inexact;
    }
}

/// The state of these that was seen.
fn choose(
    states: &[Option<Content>],
    stamps: Stamps,
    before: Content,
    inexact: &mut bool,
) -> Option<Content> {
    let fits: Vec<_> = states.iter().filter(|s| s.unwrap_or(before).stamps == stamps).copied().collect();
    let version = |s: &Option<Content>| s.map_or(0, |c| c.version);
    *inexact |= fits.windows(2).any(|w| version(&w[0]) != version(&w[1]));
    fits.first().copied().flatten()
}

fn make_durable(line: &mut Line, began: u64, forget: bool) {
    for cell in line.cells.values_mut() {
        for entry in &mut cell.entries {
            entry.durable |= entry.acked.is_some_and(|acked| acked < began);
        }
        if forget {
            cell.prune();
        }
    }
}
