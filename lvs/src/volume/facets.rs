//! The facets of volumes and snapshots. They work on every core: questions go to the pool's home core.

use core::future::Future;
use std::rc::Rc;

use aio::facets::{
    CreateSnapshot, Extent, FacetError, FacetFuture, MOST_RANGES, Mark, Marks, Page, Piece, Position, Ranges,
    Since, Snapshots, errno,
};
use aio::{BlockCount, BlockDevice, BlockRange, Lba};
use uuid::Uuid;

use super::Volume;
use crate::LvsError;
use crate::index::Spans;
use crate::store::{Asked, Past, Store, open_stores};
use crate::types::{BLOCK_BYTES, Seq};

impl Volume {
    /// Blocks of the device in a block of the store.
    fn per_block(&self) -> u64 {
        u64::from(BLOCK_BYTES / self.0.geometry.block_bytes)
    }

    fn gone(&self) -> FacetError {
        FacetError::Gone { device: self.0.name.clone() }
    }

    fn unknown(&self, why: &'static str) -> FacetError {
        FacetError::Unknown { device: self.0.name.clone(), why }
    }

    /// Runs `f` on the home core.
    async fn ask<F, Fut, T>(&self, what: &'static str, f: F) -> Result<T, FacetError>
    where
        F: FnOnce(Rc<Store>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, LvsError>>,
        T: Send + 'static,
    {
        if !self.0.is_alive() {
            return Err(self.gone());
        }
        let pool = self.0.pool;
        let asked = self.0.home.call(move || async move {
            match open_stores::get(pool) {
                Some(store) => f(store).await,
                None => Err(LvsError::Closed { pool: pool.to_string() }),
            }
        });
        match asked.await {
            Ok(Ok(answer)) => Ok(answer),
            Err(_) | Ok(Err(LvsError::Closed { .. })) => Err(self.gone()),
            Ok(Err(source)) => {
                let (device, errno) = (self.0.name.clone(), errno_of(&source));
                Err(FacetError::Failed { what, device, errno, source: Box::new(source) })
            }
        }
    }

    /// A piece in blocks of the store; `None`: nothing of it is within the volume.
    fn asked(&self, piece: &Piece) -> Option<Asked> {
        let per = self.per_block();
        let end = piece.range.start.0.saturating_add(piece.range.blocks.0).min(self.0.size().0);
        let (from, end) = (piece.range.start.0 / per, end.div_ceil(per));
        let most = piece.most.clamp(1, MOST_RANGES);
        let (line, view) = (self.0.target.line, self.0.target.view);
        (piece.range.start.0 < end.saturating_mul(per)).then_some(Asked { line, view, from, end, most })
    }

    /// An answer in blocks of the device, within the piece.
    fn page(&self, piece: &Piece, spans: Spans) -> Page {
        let per = self.per_block();
        let start = piece.range.start.0;
        let end = start.saturating_add(piece.range.blocks.0).min(self.0.size().0);
        let extent = |span: &crate::index::Span| {
            let first = (span.first.0 * per).max(start);
            let blocks = ((span.first.0 + span.count) * per).min(end).saturating_sub(first);
            let range = BlockRange { start: Lba(first), blocks: BlockCount(blocks) };
            (blocks > 0).then_some(Extent { range, data: span.data })
        };
        let next = spans.next.map(|block| Lba(block.0 * per)).filter(|next| next.0 < end);
        Page { extents: spans.spans.iter().filter_map(extent).collect(), next }
    }

    /// From which record on.
    async fn resolve(&self, since: Since) -> Result<Seq, FacetError> {
        if let Since::Position(at) = since {
            return self.number(at);
        }
        let (uuid, target) = (self.0.uuid, self.0.target);
        let from = match since {
            Since::Position(_) => unreachable!("invariant: answered above"),
            Since::Mark(id) => Past::Mark(id),
            Since::Snapshot(snapshot) => Past::Snapshot(snapshot),
        };
        let found = self.ask("ask for marks of", move |store| async move {
            Ok(store.inner().resolve(uuid, &target, from))
        });
        let why = match since {
            Since::Mark(_) => "it has no such mark",
            _ => "it has no such snapshot that is older",
        };
        found.await?.ok_or_else(|| self.unknown(why))
    }

    /// The record that a position of this incarnation is before.
    fn number(&self, at: Position) -> Result<Seq, FacetError> {
        if self.is_snapshot() {
            return Err(self.unknown("it is a snapshot: ask since an older one"));
        }
        if Some(at.incarnation) != self.incarnation() {
            return Err(self.unknown("the position is of another incarnation of it"));
        }
        Ok(Seq(at.number))
    }
}

/// The number by which Linux calls it.
fn errno_of(error: &LvsError) -> i32 {
    match error {
        LvsError::NoSpace { .. } => errno::ENOSPC,
        LvsError::Exists { .. } => errno::EEXIST,
        LvsError::NotFound { .. } => errno::ENOENT,
        LvsError::BadName { .. } => errno::EINVAL,
        _ => errno::EIO,
    }
}

impl Ranges for Volume {
    fn granularity(&self) -> BlockCount {
        BlockCount(self.per_block())
    }

    fn allocated(&self, piece: Piece) -> FacetFuture<'_, Page> {
        Box::pin(async move {
            let Some(asked) = self.asked(&piece) else { return Ok(Page::default()) };
            let found =
                self.ask("find what is allocated in", move |s| async move { s.allocated(asked).await });
            Ok(self.page(&piece, found.await?))
        })
    }

    fn changed(&self, since: Since, piece: Piece) -> FacetFuture<'_, Page> {
        Box::pin(async move {
            let since = self.resolve(since).await?;
            let Some(asked) = self.asked(&piece) else { return Ok(Page::default()) };
            let found =
                self.ask("find what changed in", move |s| async move { s.changed(asked, since).await });
            Ok(self.page(&piece, found.await?))
        })
    }
}

impl Marks for Volume {
    fn position(&self) -> FacetFuture<'_, Position> {
        Box::pin(async move {
            let incarnation = self.0.incarnation;
            let number =
                self.ask("read the position of", |store| async move { Ok(store.inner().position().0) });
            Ok(Position { incarnation, number: number.await? })
        })
    }

    fn put_mark(&self, id: u128, at: Position) -> FacetFuture<'_, ()> {
        Box::pin(async move {
            let (uuid, number): (Uuid, Seq) = (self.0.uuid, self.number(at)?);
            let put = self.ask("put a mark on", move |s| async move { s.put_mark(uuid, id, number).await });
            match put.await? {
                true => Ok(()),
                false => Err(self.unknown("the position is one that it did not reach yet")),
            }
        })
    }

    fn remove_mark(&self, id: u128) -> FacetFuture<'_, ()> {
        let uuid = self.0.uuid;
        Box::pin(
            self.ask("remove a mark from", move |store| async move { store.remove_mark(uuid, id).await }),
        )
    }

    fn marks(&self) -> FacetFuture<'_, Vec<Mark>> {
        let uuid = self.0.uuid;
        Box::pin(self.ask("ask for marks of", move |store| async move { store.inner().marks_of(uuid) }))
    }
}

impl Snapshots for Volume {
    fn create_snapshot(&self, spec: CreateSnapshot) -> FacetFuture<'_, ()> {
        let uuid = self.0.uuid;
        Box::pin(self.ask("make a snapshot of", move |store| async move {
            store.create_snapshot(uuid, spec).await.map(drop)
        }))
    }
}
