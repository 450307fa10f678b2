//! Abort (NVMe Base 2.0, section 5.1).

use std::sync::Arc;

use nvme::admin::Abort;
use nvme::{Cid, Sqe, Status};

use super::AdminOutcome;
use crate::target::board::{AbortReply, AbortRequest, CoreMsg};
use crate::target::controller::{AdminCompletion, Controller};

/// Abort commands that one controller executes at a time (ACL + 1).
pub(super) const MAX_ABORTS: u8 = 4;

impl Controller {
    pub(super) fn abort(self: &Arc<Self>, sqe: &Sqe) -> Result<AdminOutcome, Status> {
        let Abort { sqid, cid: victim } = Abort::decode(sqe);
        let mut state = self.lock();
        if state.admin.aborts_in_flight >= MAX_ABORTS {
            return Err(Status::ABORT_LIMIT_EXCEEDED);
        }
        if sqid.is_admin() {
            let admin = &mut state.admin;
            // Of the admin commands only event requests wait for something. Their completion comes first.
            let found = admin.events.cancel(victim, &mut admin.completions);
            let result = if found { Abort::ABORTED } else { Abort::NOT_ABORTED };
            admin.completions.push(AdminCompletion::new(sqe.cid(), Status::SUCCESS, result));
            self.announce_completions(&state);
            return Ok(AdminOutcome::Later);
        }
        let Some(inbox) = Self::queue_inbox(&state, sqid) else {
            return Ok(AdminOutcome::success(Abort::NOT_ABORTED));
        };
        state.admin.aborts_in_flight += 1;
        drop(state);
        let reply = AbortReply { admin: self.clone(), abort_cid: sqe.cid(), aborted: false };
        inbox.post(CoreMsg::Abort(AbortRequest { controller: self.clone(), sqid, cid: victim, reply }));
        Ok(AdminOutcome::Later)
    }

    /// A core answered an Abort.
    pub(in crate::target) fn abort_answered(&self, abort_cid: Cid, aborted: bool) {
        let mut state = self.lock();
        state.admin.aborts_in_flight -= 1;
        let result = if aborted { Abort::ABORTED } else { Abort::NOT_ABORTED };
        state.admin.completions.push(AdminCompletion::new(abort_cid, Status::SUCCESS, result));
        self.announce_completions(&state);
    }
}
