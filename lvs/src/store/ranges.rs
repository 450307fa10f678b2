//! Which blocks of a line hold something, and which changed: questions of the facets, in pieces.
//!
//! A piece looks at a bounded number of leaves, over a tree and the layers above that belong together: when a merge changed
//! them meanwhile it is asked again. Its pages stay where they are until then (H4).

use std::rc::Rc;

use super::clean::Hold;
use super::pages::PageReader;
use super::{Inner, Store};
use crate::LvsError;
use crate::index::{Delta, Layers, Query, Span, Spans, Tree, query};
use crate::types::{BlockNo, LineId, Seq};

/// Leaves that one piece looks at.
const MOST_LEAVES: usize = 64;
/// How often a piece is asked again beside merges; then they wait for it.
const TRIES: u32 = 4;
/// Pieces that one answer about a clone takes of what it reads from.
const MOST_PIECES: usize = 256;

/// Blocks of a line, as seen at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) line: LineId,
    pub(crate) view: Seq,
    /// First block, and the one behind the last.
    pub(crate) from: u64,
    pub(crate) end: u64,
    /// Spans in the answer at most.
    pub(crate) most: usize,
}

/// What lies over the tree of a line.
struct Over<'a>(&'a Store);

impl Layers for Over<'_> {
    fn each(&self, visit: &mut dyn FnMut(&Delta)) {
        let inner = self.0.inner();
        let layers = [Some(&inner.active), inner.frozen.as_deref(), inner.aside.as_ref()];
        layers.into_iter().flatten().for_each(visit);
    }
}

impl Store {
    /// What a line wrote or unmapped since `since`.
    pub(crate) async fn changed(self: &Rc<Self>, asked: Asked, since: Seq) -> Result<Spans, LvsError> {
        self.piece(&asked, since).await
    }

    /// Blocks that hold data; those of a clone that are its origin's, too.
    pub(crate) async fn allocated(self: &Rc<Self>, asked: Asked) -> Result<Spans, LvsError> {
        let mut found: Vec<Span> = Vec::new();
        // What no line so far has a version of, and how far everything was looked at.
        let mut gaps = vec![(asked.from, asked.end)];
        let (mut limit, mut pieces) = (asked.end, 0);
        let mut level = Some((asked.line, asked.view));
        while let Some((line, view)) = level {
            let mut deeper = Vec::new();
            for (from, end) in gaps.into_iter().map(|(from, end)| (from, end.min(limit))) {
                // The first one always, so that each answer goes further than the last.
                let enough = pieces >= MOST_PIECES || found.len() >= 2 * asked.most;
                if from >= end || (enough && from > asked.from) {
                    limit = limit.min(from);
                    break;
                }
                pieces += 1;
                let spans = self.piece(&Asked { line, view, from, end, ..asked }, Seq::ZERO).await?;
                let covered = spans.next.map_or(end, |next| next.0);
                deeper.extend(between(&spans.spans, from, covered));
                found.extend(spans.spans.iter().filter(|span| span.data));
                if covered < end {
                    limit = limit.min(covered);
                    break;
                }
            }
            gaps = deeper;
            found.retain(|span| span.first.0 < limit);
            level = self.inner().lines.get(line).and_then(|line| line.parent);
            if gaps.is_empty() {
                break;
            }
        }
        Ok(joined(found, limit, &asked))
    }

    /// One piece of one line.
    async fn piece(self: &Rc<Self>, asked: &Asked, since: Seq) -> Result<Spans, LvsError> {
        let question = Query {
            from: BlockNo(asked.from),
            end: BlockNo(asked.end),
            before: asked.view,
            since,
            most_spans: asked.most,
            most_leaves: MOST_LEAVES,
        };
        let mut tries = 0;
        loop {
            let _no_merge = match tries {
                TRIES.. => Some(self.checkpoints.enter().await),
                _ => None,
            };
            tries += 1;
            let hold = Hold::new(self);
            let (tree, merges) = {
                let inner = self.inner();
                let Some(line) = inner.lines.get(asked.line) else {
                    let (name, pool) = (format!("line {}", asked.line.0), inner.name.clone());
                    return Err(LvsError::NotFound { what: "volume", name, pool });
                };
                (Tree { line: line.id, root: line.root }, inner.merges)
            };
            let answer = query(&PageReader(self.clone()), &tree, &Over(self), &question).await;
            drop(hold);
            if self.inner().merges == merges {
                return answer;
            }
        }
    }
}

/// Where no span is, between `from` and `end`.
fn between(spans: &[Span], from: u64, end: u64) -> Vec<(u64, u64)> {
    let mut gaps = Vec::new();
    let mut at = from;
    for span in spans {
        gaps.push((at, span.first.0.min(end)));
        at = span.first.0 + span.count;
    }
    gaps.push((at, end));
    gaps.retain(|(from, end)| from < end);
    gaps
}

/// What was found of several lines, as one answer up to `limit`.
fn joined(mut found: Vec<Span>, limit: u64, asked: &Asked) -> Spans {
    found.retain(|span| span.first.0 < limit);
    found.sort_unstable_by_key(|span| span.first);
    let mut spans: Vec<Span> = Vec::new();
    let mut next = (limit < asked.end).then_some(BlockNo(limit));
    for span in found {
        let count = span.count.min(limit - span.first.0);
        if let Some(last) = spans.last_mut()
            && last.first.0 + last.count == span.first.0
        {
            last.count += count;
        } else if spans.len() < asked.most {
            spans.push(Span { count, ..span });
        } else {
            next = Some(span.first);
            break;
        }
    }
    Spans { spans, next }
}

impl Inner {
    /// The number that the next record gets at least.
    pub(crate) fn position(&self) -> Seq {
        self.log.last().next()
    }
}
