//! Waiting for conditions on one core.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Wakes whoever waits for something that may have changed.
#[derive(Default)]
pub(super) struct Signal(RefCell<Vec<Waker>>);

impl Signal {
    /// Something changed.
    pub(super) fn raise(&self) {
        let waiting = std::mem::take(&mut *self.0.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Waits until `look` finds something; it is asked now and after every change.
    pub(super) async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| {
            if let Some(found) = look() {
                return Poll::Ready(found);
            }
            self.0.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}
