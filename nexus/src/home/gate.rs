//! One decision at a time: an asynchronous lock for tasks of the home core.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// See the module.
#[derive(Default)]
pub(super) struct Gate {
    taken: Cell<bool>,
    waiting: RefCell<VecDeque<Waker>>,
}

/// Lets the next one in when dropped.
pub(super) struct Pass<'a>(&'a Gate);

impl Gate {
    /// Resolves when nobody else is inside. Dropping the future gives the place up.
    pub(super) async fn enter(&self) -> Pass<'_> {
        poll_fn(|cx| {
            if self.taken.replace(true) {
                self.waiting.borrow_mut().push_back(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        Pass(self)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.taken.set(false);
        // All of them: a waiter that was dropped must not take the wake-up with it.
        for waker in self.0.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}
