//! Timers on the turn's clock.
//!
//! A sorted map rather than a heap: a dropped [`SleepUntil`] is removed at once, so time-outs that never fire leave
//! nothing behind. A turn without a due timer costs one comparison.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::Core;
use crate::time::Instant;

/// Names a timer: equal deadlines fire in the order in which they were set.
type TimerKey = (Instant, u64);

/// Later than every deadline that matters.
const NEVER: Instant = Instant::from_ns(u64::MAX);

pub(super) struct Timers {
    wakers: RefCell<BTreeMap<TimerKey, Waker>>,
    next: Cell<Instant>,
    serial: Cell<u64>,
}

impl Timers {
    pub(super) fn new() -> Self {
        Self { wakers: RefCell::default(), next: Cell::new(NEVER), serial: Cell::new(0) }
    }

    fn set(&self, deadline: Instant, waker: Waker) -> TimerKey {
        let key = (deadline, self.serial.get());
        self.serial.set(key.1 + 1);
        self.wakers.borrow_mut().insert(key, waker);
        self.next.set(self.next.get().min(deadline));
        key
    }

    fn refresh(&self, key: TimerKey, waker: &Waker) {
        if let Some(w) = self.wakers.borrow_mut().get_mut(&key) {
            w.clone_from(waker);
        }
    }

    fn cancel(&self, key: TimerKey) {
        let waker = self.wakers.borrow_mut().remove(&key);
        if waker.is_some() && key.0 == self.next.get() {
            self.note_next();
        }
    }

    fn note_next(&self) {
        self.next.set(self.wakers.borrow().first_key_value().map_or(NEVER, |(k, _)| k.0));
    }

    /// The nearest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        Some(self.next.get()).filter(|&t| t < NEVER)
    }

    /// Wakes what is due; returns how many.
    pub(super) fn fire(&self, now: Instant) -> usize {
        if now < self.next.get() {
            return 0;
        }
        let mut fired = 0;
        loop {
            // Popped one by one, because a waker may be anything and run anything.
            let due = {
                let mut wakers = self.wakers.borrow_mut();
                match wakers.first_entry() {
                    Some(e) if e.key().0 <= now => e.remove(),
                    _ => break,
                }
            };
            due.wake();
            fired += 1;
        }
        self.note_next();
        fired
    }

    /// Forgets all timers. Their wakers are dropped outside any borrow.
    pub(super) fn clear(&self) {
        let old = self.wakers.take();
        self.next.set(NEVER);
        drop(old);
    }
}

/// Resolves when the turn's clock reaches its deadline. Dropping it removes the timer.
#[must_use = "a timer does nothing unless awaited"]
pub struct SleepUntil {
    core: Core,
    deadline: Instant,
    key: Option<TimerKey>,
}

impl SleepUntil {
    pub(super) fn new(core: Core, deadline: Instant) -> Self {
        Self { core, deadline, key: None }
    }

    /// When it resolves.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Future for SleepUntil {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.core.now() >= self.deadline {
            return Poll::Ready(());
        }
        match self.key {
            Some(key) => self.core.timers().refresh(key, cx.waker()),
            None => self.key = Some(self.core.timers().set(self.deadline, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for SleepUntil {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.core.timers().cancel(key);
        }
    }
}

/// The time was over before the future was ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("timed out")]
pub struct TimedOut;

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn order_and_exact_cancel() {
        let timers = Timers::new();
        let noop = || Waker::noop().clone();
        assert_eq!(timers.next(), None);
        let a = timers.set(Instant::from_ns(30), noop());
        let _b = timers.set(Instant::from_ns(10), noop());
        let c = timers.set(Instant::from_ns(10), noop());
        assert_ne!(a, c);
        assert_eq!(timers.next(), Some(Instant::from_ns(10)));
        assert_eq!(timers.fire(Instant::from_ns(9)), 0);
        assert_eq!(timers.fire(Instant::from_ns(10)), 2);
        assert_eq!(timers.next(), Some(Instant::from_ns(30)));
        timers.cancel(a);
        assert_eq!(timers.next(), None);
        assert_eq!(timers.fire(Instant::from_ns(100)), 0);
        assert_eq!(timers.wakers.borrow().len(), 0);
    }

    #[test]
    fn equal_deadlines_fire_in_the_order_of_setting() {
        use std::sync::{Arc, Mutex};
        struct Note(u32, Arc<Mutex<Vec<u32>>>);
        impl std::task::Wake for Note {
            fn wake(self: Arc<Self>) {
                self.1.lock().unwrap().push(self.0);
            }
        }
        let log = Arc::new(Mutex::new(Vec::new()));
        let timers = Rc::new(Timers::new());
        for (name, at) in [(3, 20), (1, 10), (4, 20), (2, 10)] {
            timers.set(Instant::from_ns(at), Waker::from(Arc::new(Note(name, log.clone()))));
        }
        timers.fire(Instant::from_ns(25));
        assert_eq!(*log.lock().unwrap(), [1, 2, 3, 4]);
    }
}
