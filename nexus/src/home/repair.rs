//! Blocks of one child that cannot be read are written anew from another.

use core::time::Duration;
use std::rc::Rc;

use aio::{BlockRange, Descriptor};

use super::Home;
use crate::child::ChildState;
use crate::layout;
use crate::rebuild::{hold, segment_buf};

/// How long a range lock is tried for.
const PATIENCE: Duration = Duration::from_millis(20);

impl Home {
    /// Rewrites `range` of the child at `place`. Under the range lock, so that no host's write comes between reading and
    /// writing (hazard H12). What cannot be repaired stays as it is: its next read fails, is served by another child, and
    /// reported again.
    ///
    /// The range lock is only tried for a while: its holder may be a write that waits for a decision, which waits for
    /// this one.
    pub(super) async fn repair(self: &Rc<Self>, place: usize, range: BlockRange) {
        let _pass = self.gate.enter().await;
        let (bad, others) = {
            let state = self.state.borrow();
            let online = |c: &super::Child| c.state == ChildState::Online;
            let Some(bad) = state.children[place].as_ref().filter(|c| online(c)) else { return };
            let others = state.children.iter().enumerate().filter(|(p, _)| *p != place);
            let others = others.filter_map(|(_, c)| c.as_ref().filter(|c| online(c)));
            (bad.device.clone(), others.map(|c| c.device.clone()).collect::<Vec<_>>())
        };
        let block_bytes = u64::from(self.shared.geometry.block_bytes);
        let offset_bytes = layout::DATA_OFFSET_BYTES;
        let Ok(target) = Descriptor::open(bad).await else { return };
        let mut sources = Vec::new();
        for device in others {
            sources.extend(Descriptor::open(device).await.ok());
        }
        let held = self.core.timeout(PATIENCE, hold(&self.core, &self.shared, range)).await;
        let end = if held.is_ok() { range.start.0 + range.blocks.0 } else { range.start.0 };
        let mut at = range.start.0;
        while at < end {
            let Some(mut buf) = segment_buf(&self.core) else { break };
            let blocks = (end - at).min(u64::from(buf.len_bytes()) / block_bytes);
            let (from, len) = (offset_bytes + at * block_bytes, (blocks * block_bytes) as u32);
            let mut good = false;
            for source in &sources {
                let (read, back) = source.read_at(from, len, buf).await;
                buf = back;
                good = read.is_ok();
                if good {
                    break;
                }
            }
            if good && target.write_at(from, len, buf).await.0.is_ok() {
                self.shared.count_repaired(blocks);
            }
            at += blocks;
        }
        drop(held);
        target.close().await;
        for source in sources {
            source.close().await;
        }
    }
}
