//! Checkpoints: freeze, merge, write what has to be found, anchor, free.
//!
//! `FORMAT.md` section 5 says why each step is where it is.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::catalogue::Listed;
use super::counts::Counts;
use super::lines::Line;
use super::log::{Marks, Stream};
use super::member::Member;
use super::pages::{PageReader, PageWriter, aio_yield};
use super::superblock::anchor_members;
use super::{DELTA_RANGES, DELTA_UPDATES, Inner, LOOK_AGAIN, Store};
use crate::LvsError;
use crate::format::anchor::{Anchor, MemberState, OpenSegment};
use crate::format::blob::BlobPtr;
use crate::format::record::BlobKind;
use crate::format::{catalog, label, segtable};
use crate::index::{Delta, LineView, PurgeCursor, Seen, Tree, TreeError, check, merge, purge};
use crate::types::{BLOCK_BYTES, LineId, Pba, SegmentId, Seq};

/// Segments that the next anchor names, in bytes: what an import has to read at most.
const NAMED_BYTES: u64 = 192 << 20;
/// At least so many.
const NAMED_LEAST: usize = 6;
/// Free segments that an anchor leaves for pages.
const KEEP_FOR_PAGES: usize = 3;
/// How long a checkpoint that did not fit waits for space.
const RETRY: core::time::Duration = core::time::Duration::from_secs(1);
/// Segments that are looked at, or written down, in one turn, and objects of the catalogue.
const SEGMENTS_OF_A_TURN: u32 = 16 * 1024;
const OBJECTS_OF_A_TURN: usize = 64;
/// Leaves that one checkpoint looks at for versions that nobody needs, at least and at most.
const PURGE_LEAVES: (u32, u32) = (8, 512);

impl Store {
    /// What the hot path asked for.
    pub(super) async fn checkpoint_in_background(self: Rc<Self>) {
        // An error faults the pool, and whoever writes next is told; all but one, which waits for better times.
        while self.checkpoint(false).await.is_ok() && self.inner().want_checkpoint && !self.closing.get() {}
        self.inner().publish();
        self.background.set(false);
    }

    /// Makes everything that completed before durable and found again at once. `clean`: nothing will follow.
    ///
    /// [`LvsError::NoSpace`]: nothing is lost, what was frozen stays so, and the next one goes on with it.
    pub(crate) async fn checkpoint(self: &Rc<Self>, clean: bool) -> Result<(), LvsError> {
        let _pass = self.checkpoints.enter().await;
        self.inner().want_checkpoint = false;
        let made = self.checkpoint_inside(clean).await;
        let mut inner = self.inner();
        inner.budget.retry_at = None;
        match &made {
            Ok(()) => {}
            Err(LvsError::NoSpace { .. }) => {
                inner.budget.retry_at = Some(inner.now + RETRY);
                inner.give_up_on_space();
            }
            // What was frozen is in no tree, and a later checkpoint would leave it out.
            Err(error) => inner.fail_pool(&error.to_string()),
        }
        drop(inner);
        made
    }

    async fn checkpoint_inside(self: &Rc<Self>, clean: bool) -> Result<(), LvsError> {
        self.inner().freeze()?;
        let base = self.inner().frozen_base;
        while self.inner().log.completed() < base {
            self.inner().check_fault()?;
            self.core.sleep(LOOK_AGAIN).await;
        }
        let writer = PageWriter::new(self.clone());
        self.merge_frozen(&writer).await?;
        self.purge_lines(&writer).await?;
        let anchor = self.write_tables(&writer, base, clean).await?;
        self.flush_all().await?;
        self.write_anchor(&anchor).await?;
        self.settle(&anchor).await;
        Ok(())
    }

    /// Merges the frozen delta into the trees, line by line; the new trees count from the end of it on.
    async fn merge_frozen(self: &Rc<Self>, writer: &PageWriter) -> Result<(), LvsError> {
        let frozen = self.inner().frozen.clone();
        let Some(frozen) = frozen else { return Ok(()) };
        let mut trees = Vec::new();
        let mut counts = Counts::new(self);
        // What is touched from now on is for the next merge.
        let touched = self.inner().touched.clone();
        let lines: BTreeSet<LineId> = frozen.lines().chain(touched.iter().map(|tag| tag.line)).collect();
        for id in lines {
            let Some(line) = self.inner().lines.get(id).cloned() else { continue };
            let tree = Tree { line: id, root: line.root };
            let merged = merge(writer, &tree, &frozen, view_of(&line), &touched, |e| {
                counts.add(id, &line.snapshots, e);
            })
            .await;
            trees.push(merged.map_err(|e| self.tree_error(e))?);
        }
        writer.finish().await?;
        self.inner().set_aside(&frozen, &writer.take_unreadable())?;
        writer.count_new_pages().await;
        counts.count_segments().await;
        // From here on without a break: look-ups ask either the delta and the old trees, or the new ones.
        self.adopt(trees, counts);
        {
            let mut inner = self.inner();
            inner.touched.drain(..touched.len());
            inner.thin_frozen = 0;
            inner.frozen = None;
            inner.budget.merged = inner.frozen_base;
            (inner.budget.unmapped.1, inner.budget.pierced.1) = (0, 0);
            inner.unpark();
        }
        writer.count_old_pages().await;
        if let Ok(mut spare) = Rc::try_unwrap(frozen) {
            spare.clear();
            // That of an import is larger.
            self.inner().spare = (spare.room().1 == DELTA_RANGES).then_some(spare);
        }
        Ok(())
    }

    /// Gives back what nobody needs since a snapshot or a volume was deleted, some of it at each checkpoint.
    async fn purge_lines(self: &Rc<Self>, writer: &PageWriter) -> Result<(), LvsError> {
        // Clones come after what they were made of: a line is in the table as long as it is the parent of another.
        let lines: Vec<Line> = {
            let inner = self.inner();
            let may_go = |l: &&Line| l.purge.is_some() && !(l.is_dead() && inner.lines.is_parent(l.id));
            inner.lines.iter().filter(may_go).cloned().collect()
        };
        // A leaf is written anew, and perhaps the one after it, and what is above them.
        let mut left = {
            let inner = self.inner();
            let keep = inner.checkpoint_segments(0);
            let spare = u64::from(inner.space.available()).saturating_sub(keep);
            let leaves = spare * u64::from(inner.space.segment_blocks()) / 3;
            u32::try_from(leaves).unwrap_or(u32::MAX).clamp(PURGE_LEAVES.0, PURGE_LEAVES.1)
        };
        for line in lines {
            let Some(from) = line.purge else { continue };
            if line.is_dead() {
                self.inner().forget_aside(line.id);
            }
            if left == 0 {
                self.inner().want_checkpoint = true;
                break;
            }
            let most = left;
            left = 0;
            let mut counts = Counts::new(self);
            let tree = Tree { line: line.id, root: line.root };
            let cursor = PurgeCursor::at(from);
            let purged = purge(writer, &tree, cursor, view_of(&line), Seq::ZERO, most, |e| {
                counts.add(line.id, &line.snapshots, e);
            })
            .await;
            let (tree, next) = purged.map_err(|e| self.tree_error(e))?;
            writer.finish().await?;
            // What is below a damaged page stays in use.
            let whole = writer.take_unreadable().is_empty();
            writer.count_new_pages().await;
            counts.count_segments().await;
            self.adopt(vec![tree], counts);
            writer.count_old_pages().await;
            let dead = {
                let mut inner = self.inner();
                let Some(now) = inner.lines.get_mut(line.id) else { continue };
                // Another deletion meanwhile begins anew.
                let same = now.head == line.head && now.snapshots == line.snapshots;
                if same && now.purge == line.purge {
                    now.purge = next.map(PurgeCursor::block);
                    now.unpurged = if next.is_none() { 0 } else { now.unpurged };
                }
                // Only what was purged for nobody has no data left.
                next.is_none() && line.is_dead() && whole
            };
            if dead {
                self.bury(line.id, &tree).await?;
            } else if next.is_some() {
                self.inner().want_checkpoint = true;
            }
        }
        Ok(())
    }

    /// A line that nobody sees has only holes left: its pages go, and the line.
    async fn bury(self: &Rc<Self>, id: LineId, tree: &Tree) -> Result<(), LvsError> {
        let mut pages = Vec::new();
        let reader = PageReader(self.clone());
        let findings = check(&reader, tree, |seen| {
            if let Seen::Page(page) = seen {
                pages.extend([page.ptr.pba, page.ptr.copy]);
            }
        });
        if !findings.await.is_empty() {
            // It is in nobody's way.
            return Ok(());
        }
        let mut inner = self.inner();
        for pba in pages {
            inner.space.drop_live(pba);
        }
        inner.lines.remove(id);
        inner.merges += 1;
        inner.count_used();
        inner.unpark();
        Ok(())
    }

    /// New trees count from now on. Segments have counted what is in them by then, and let go of old pages later: neither is
    /// short (H15).
    fn adopt(&self, trees: Vec<Tree>, counts: Counts<'_>) {
        let mut inner = self.inner();
        inner.merges += 1;
        for tree in trees {
            if let Some(line) = inner.lines.get_mut(tree.line) {
                line.root = tree.root;
            }
        }
        drop(inner);
        counts.count_lines();
        self.inner().count_used();
    }

    fn tree_error(&self, error: TreeError<LvsError>) -> LvsError {
        match error {
            TreeError::Page(error) => error,
            other => self.inner().damaged(&other.to_string()),
        }
    }
}

/// The catalogue as a blob. The objects are as they were, whatever becomes of them meanwhile.
async fn encode_objects(objects: &[Listed]) -> Result<Vec<u8>, LvsError> {
    let mut blob = catalog::Encoder::default();
    for some in objects.chunks(OBJECTS_OF_A_TURN) {
        let pushed = some.iter().try_for_each(|listed| blob.push(&listed.object()));
        pushed.map_err(|source| LvsError::Encode { source })?;
        aio_yield().await;
    }
    Ok(blob.finish())
}

fn open_segments(marks: &Marks) -> Vec<OpenSegment> {
    let flows = [segtable::Stream::Hot, segtable::Stream::Cold];
    let open = |(mark, stream): (&Option<Stream>, segtable::Stream)| {
        let mark = mark.as_ref()?;
        Some(OpenSegment { segment: mark.segment, next_block: mark.offset, stream })
    };
    marks.iter().zip(flows).filter_map(open).collect()
}

/// Where the tables of a checkpoint are.
fn held_by(anchor: &Anchor) -> Vec<Pba> {
    let blobs = [&anchor.catalogue, &anchor.lines, &anchor.segments, &anchor.delta];
    blobs.into_iter().flat_map(|b| b.extents.iter().chain(&b.copy)).map(|e| e.pba).collect()
}

fn view_of(line: &Line) -> LineView<'_> {
    LineView { snapshots: &line.snapshots, head: line.head, has_parent: line.parent.is_some() }
}

impl Store {
    /// Writes catalogue, lines and segments, and composes the anchor that leads to them. When it fails, nothing has changed.
    async fn write_tables(
        self: &Rc<Self>,
        writer: &PageWriter,
        base: Seq,
        clean: bool,
    ) -> Result<Anchor, LvsError> {
        let dirty = self.inner().catalogue.dirty;
        let mut names = Vec::new();
        let written = self.write_blobs(writer, base, clean, &mut names).await;
        if written.is_err() {
            let mut inner = self.inner();
            inner.catalogue.dirty |= dirty;
            inner.space.return_names(&names);
        }
        written
    }

    async fn write_blobs(
        self: &Rc<Self>,
        writer: &PageWriter,
        base: Seq,
        clean: bool,
        names: &mut Vec<SegmentId>,
    ) -> Result<Anchor, LvsError> {
        let (objects, lines, mut anchor) = {
            // Both of one moment: lines count what each of their snapshots has.
            let mut inner = self.inner();
            let dirty = core::mem::take(&mut inner.catalogue.dirty);
            let objects = dirty.then(|| inner.catalogue_objects());
            let lines = inner.line_table().encode().map_err(|source| LvsError::Encode { source })?;
            (objects, lines, inner.anchor.clone())
        };
        if let Some(objects) = objects {
            let bytes = encode_objects(&objects).await?;
            anchor.catalogue = writer.blob(BlobKind::Catalogue, &bytes).await?;
        }
        anchor.lines = writer.blob(BlobKind::Lines, &lines).await?;
        let aside = self.inner().dump_aside();
        anchor.delta = match aside.is_empty() {
            true => BlobPtr::default(),
            false => writer.blob(BlobKind::Delta, &aside).await?,
        };
        {
            let mut inner = self.inner();
            *names = inner.next_names();
            inner.space.reserve_names(names);
        }
        let lengths = {
            let inner = self.inner();
            // Together with the table that has their segments.
            anchor.members = anchor_members(&inner.members, &inner.space, &inner.anchor.members);
            inner.space.lengths()
        };
        let table = self.encode_segments(&lengths).await?;
        anchor.segments = writer.blob(BlobKind::Segments, &table).await?;
        anchor.checkpoint += 1;
        anchor.base = base;
        anchor.clean = clean;
        anchor.last = self.inner().log.last();
        anchor.open = open_segments(&self.inner().budget.marks);
        {
            // What the log opened while the tables were written is among both.
            let inner = self.inner();
            let opened = inner.log.opened();
            let rest = names.iter().filter(|id| !opened.contains(id));
            anchor.next = opened.iter().chain(rest).copied().collect();
        }
        let blobs = [&anchor.catalogue, &anchor.lines, &anchor.segments, &anchor.delta];
        let pieces = blobs.into_iter().flat_map(|b| b.extents.iter().chain(&b.copy));
        self.inner().budget.tables = pieces.map(|piece| u64::from(piece.blocks)).sum();
        Ok(anchor)
    }

    /// The table of segments, of which devices have so many. The log opens and closes some meanwhile: it may have them as
    /// they were or as they are, for an import looks into those that an anchor names anyway.
    async fn encode_segments(&self, lengths: &[u32]) -> Result<Vec<u8>, LvsError> {
        let wrong = |source| LvsError::Encode { source };
        let mut table = segtable::Encoder::new(lengths).map_err(wrong)?;
        for (member, &len) in lengths.iter().enumerate() {
            for from in (0..len).step_by(SEGMENTS_OF_A_TURN as usize) {
                let until = (from + SEGMENTS_OF_A_TURN).min(len);
                self.inner().space.encode(member as u8, from..until, &mut table);
                aio_yield().await;
            }
        }
        table.finish().map_err(wrong)
    }

    /// Finds what nothing refers to since checkpoint `anchor` is durable.
    async fn find_unreferred(&self, anchor: &Anchor) {
        let (held, members) = {
            let mut inner = self.inner();
            (inner.space.begin_to_find(anchor.checkpoint, &held_by(anchor)), inner.members.len() as u8)
        };
        for member in 0..members {
            let mut from = 0;
            while self.inner().space.find_unreferred(
                member,
                from..from + SEGMENTS_OF_A_TURN,
                anchor.base,
                &held,
            ) {
                from += SEGMENTS_OF_A_TURN;
                aio_yield().await;
            }
        }
    }

    /// Writes the anchor's two copies to every device.
    async fn write_anchor(&self, anchor: &Anchor) -> Result<(), LvsError> {
        self.write_anchor_where(anchor, |_, _| true).await
    }

    /// Writes those copies of the anchor that an import did not find: so no crash of an import leaves a device two checkpoints
    /// behind, as only an older copy of it is. Copies that are there are not touched.
    async fn level_anchors(&self) -> Result<(), LvsError> {
        let anchor = self.inner().anchor.clone();
        self.write_anchor_where(&anchor, |member, copy| member.lacks_anchor[copy]).await
    }

    async fn write_anchor_where(
        &self,
        anchor: &Anchor,
        wanted: impl Fn(&Member, usize) -> bool,
    ) -> Result<(), LvsError> {
        let bytes = anchor.encode().map_err(|source| LvsError::Encode { source })?;
        for copy in 0..label::ANCHOR_BLOCKS.len() {
            let count = self.inner().members.len();
            for member in 0..count {
                // A device that this anchor lists as removed does not get it: it may not come back with the only copy.
                let gets_it = |m: &Member| !m.absent && m.state != MemberState::Removed && wanted(m, copy);
                if !self.inner().members.get(member).is_some_and(gets_it) {
                    continue;
                }
                let at = label::anchor_block(copy, anchor.checkpoint);
                let pba = Pba::new(member as u8, at).unwrap_or(Pba::NONE);
                let mut buf = self.buffer().await;
                buf[..bytes.len()].copy_from_slice(&bytes);
                let len = (bytes.len() as u32).next_multiple_of(BLOCK_BYTES);
                buf[bytes.len()..len as usize].fill(0);
                let (descriptor, offset_bytes) = self.inner().device_of(pba)?;
                let (result, _) = descriptor.write_at_durable(offset_bytes, len, buf).await;
                self.wrote(pba, result)?;
            }
        }
        Ok(())
    }

    /// The anchor is durable: what only older ones refer to becomes free, once no read points there any more.
    async fn settle(&self, anchor: &Anchor) {
        {
            let mut inner = self.inner();
            let inner = &mut *inner;
            inner.checkpoint = anchor.checkpoint;
            inner.anchor = anchor.clone();
            inner.anchored = true;
            inner.space.names_durable(&anchor.next);
            inner.log.named_more();
            inner.hold_aside(anchor.base.next());
            inner.budget.victims.clear();
        }
        self.find_unreferred(anchor).await;
        let old = {
            let mut inner = self.inner();
            let old = inner.phase;
            inner.phase ^= 1;
            old
        };
        while self.inner().reads[usize::from(old)] > 0 {
            self.core.sleep(LOOK_AGAIN).await;
        }
        let mut inner = self.inner();
        inner.space.reads_drained();
        inner.budget.want_cleaning = true;
        inner.publish();
    }

    /// After an import: a new opening begins, with what was found written down, so that it is never judged again. First what
    /// nothing refers to is free: a pool that is cut off during import after import would have no segment left otherwise.
    pub(super) async fn begin_opening(self: &Rc<Self>) -> Result<(), LvsError> {
        self.level_anchors().await?;
        let writer = PageWriter::new(self.clone());
        let (base, dump) = {
            let mut inner = self.inner();
            let inner = &mut *inner;
            let opening = inner.anchor.opening + 1;
            inner.anchor.opening = opening;
            if !inner.anchor.clean {
                inner.anchor.incarnation = *uuid::Uuid::new_v4().as_bytes();
            }
            let base = Seq::first_of(opening);
            inner.log = super::log::Log::new(base);
            inner.seal = super::seal::seal(&inner.uuid, &inner.anchor.salt, opening);
            inner.hold_delta(base.next());
            inner.space.collect_free();
            let found = &inner.anchor;
            inner.space.checkpoint_durable(found.checkpoint, found.base, &held_by(found));
            inner.space.reads_drained();
            inner.catalogue.dirty = true;
            let mut dump = Vec::new();
            inner.active.dump(&mut dump);
            (base, dump)
        };
        self.inner().count_used();
        let delta =
            if dump.is_empty() { BlobPtr::default() } else { writer.blob(BlobKind::Delta, &dump).await? };
        let mut anchor = self.write_tables(&writer, base, false).await?;
        anchor.delta = delta;
        self.flush_all().await?;
        self.write_anchor(&anchor).await?;
        self.settle(&anchor).await;
        // A merge asks for pages ahead, and somebody has to take them from the disks.
        self.begin_to_poll();
        Ok(())
    }
}

impl Inner {
    /// What the next anchor names.
    fn next_names(&self) -> Vec<SegmentId> {
        self.space.names_for_anchor(self.most_names(), KEEP_FOR_PAGES)
    }

    fn most_names(&self) -> usize {
        NAMED_LEAST.max((NAMED_BYTES / self.segment_bytes()) as usize)
    }

    /// Are so few segments named that a checkpoint had better begin, so that it is done before the log needs more? Not
    /// when it could name few more: then it costs more than the wait that it saves.
    pub(super) fn runs_low_on_names(&self) -> bool {
        let (most, named) = (self.most_names(), self.space.named());
        let lead = self.log.lead().clamp(most / 8, most / 2) + super::budget::KEEP_FROM_DATA;
        if named > lead {
            return false;
        }
        let free = (self.space.available() as usize).saturating_sub(named + KEEP_FOR_PAGES);
        free >= most / 2 && self.check_fault().is_ok() && !self.active.is_empty()
    }

    pub(super) fn can_name_more(&self) -> bool {
        self.next_names().len() > self.space.named()
    }

    /// The delta becomes frozen, a new one takes what comes; unless what was frozen before could not be merged yet, or there
    /// was no room for the tables that lead to what it was merged into.
    pub(super) fn freeze(&mut self) -> Result<(), LvsError> {
        self.check_fault()?;
        if self.frozen.is_some() || !self.anchored {
            return Ok(());
        }
        if self.log.is_used_up() {
            // H5: no number is used twice.
            self.fail_pool("this opening of the pool has used up its numbers; export and import the pool");
            return self.check_fault();
        }
        (self.frozen_base, self.anchored) = (self.log.last(), false);
        self.budget.marks = self.log.mark(self.space.named());
        let fresh = self.spare.take().unwrap_or_else(|| Delta::with_capacity(DELTA_UPDATES, DELTA_RANGES));
        self.frozen = Some(Rc::new(core::mem::replace(&mut self.active, fresh)));
        self.thin_frozen = self.thin_pending.replace(0);
        self.budget.unmapped = (0, self.budget.unmapped.0);
        self.budget.pierced = (0, self.budget.pierced.0);
        Ok(())
    }
}
