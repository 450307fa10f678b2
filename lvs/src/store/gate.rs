//! One at a time: an asynchronous lock for tasks of one core.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// See the module. Whoever waits longest is next.
#[derive(Default)]
pub(super) struct Gate {
    taken: Cell<bool>,
    waiting: RefCell<VecDeque<Waker>>,
}

/// Opens the gate when dropped.
pub(super) struct Pass<'a>(&'a Gate);

impl Gate {
    /// Enters when nobody is inside.
    pub(super) fn try_enter(&self) -> Option<Pass<'_>> {
        (!self.taken.replace(true)).then(|| Pass(self))
    }

    /// Is somebody inside?
    pub(super) fn is_taken(&self) -> bool {
        self.taken.get()
    }

    /// Resolves when nobody else is inside. Dropping the future gives up the place.
    pub(super) async fn enter(&self) -> Pass<'_> {
        poll_fn(|cx| {
            if !self.taken.replace(true) {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push_back(cx.waker().clone());
            Poll::Pending
        })
        .await;
        Pass(self)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.taken.set(false);
        // All: one that was dropped meanwhile must not take the news with it.
        self.0.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }
}
