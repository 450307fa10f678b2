//! One at a time: an asynchronous lock for tasks of one core.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Lets one in at a time.
#[derive(Default)]
pub struct Gate {
    taken: Cell<bool>,
    waiting: RefCell<VecDeque<Waker>>,
}

/// Lets the next one in when dropped.
pub struct Pass<'a>(&'a Gate);

impl Gate {
    /// Enters when nobody is inside.
    pub fn try_enter(&self) -> Option<Pass<'_>> {
        (!self.taken.replace(true)).then(|| Pass(self))
    }

    /// Is somebody inside?
    pub fn is_taken(&self) -> bool {
        self.taken.get()
    }

    /// Resolves when nobody else is inside. Dropping the future gives up the place.
    pub async fn enter(&self) -> Pass<'_> {
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

#[cfg(test)]
mod tests {
    use core::future::Future;
    use core::pin::pin;
    use core::task::Context;

    use super::*;

    #[test]
    fn one_is_inside_and_a_waiter_that_gave_up_does_not_keep_the_others_out() {
        let gate = Gate::default();
        let mut cx = Context::from_waker(Waker::noop());
        let pass = gate.try_enter().unwrap();
        assert!(gate.is_taken() && gate.try_enter().is_none());
        {
            let mut gives_up = pin!(gate.enter());
            assert!(gives_up.as_mut().poll(&mut cx).is_pending());
        }
        let mut waits = pin!(gate.enter());
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        drop(pass);
        let Poll::Ready(second) = waits.as_mut().poll(&mut cx) else { panic!("nobody is inside") };
        assert!(gate.is_taken());
        drop(second);
        assert!(!gate.is_taken());
    }
}
