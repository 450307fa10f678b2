//! One value from one thread to a future on another, with a standard waker on the receiving side.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

struct State<T> {
    value: Option<T>,
    receiver: Option<Waker>,
    sender_gone: bool,
}

struct Channel<T>(Mutex<State<T>>);

impl<T> Channel<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing under the lock leaves the state half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the value; dropping it without sending tells the receiver.
pub struct Sender<T>(Arc<Channel<T>>);

/// Awaits the value; `None` when the sender was dropped.
#[must_use = "a receiver does nothing unless awaited"]
pub struct Receiver<T>(Arc<Channel<T>>);

/// A new pair.
pub fn oneshot<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { value: None, receiver: None, sender_gone: false };
    let channel = Arc::new(Channel(Mutex::new(state)));
    (Sender(channel.clone()), Receiver(channel))
}

impl<T> Sender<T> {
    /// Hands the value over. Nobody waiting any more is no error: the value is dropped with the receiver.
    pub fn send(self, value: T) {
        self.0.lock().value = Some(value);
        // The drop wakes the receiver.
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.sender_gone = true;
        let receiver = state.receiver.take();
        drop(state);
        if let Some(w) = receiver {
            w.wake();
        }
    }
}

impl<T> Future for Receiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.lock();
        if let Some(value) = state.value.take() {
            return Poll::Ready(Some(value));
        }
        if state.sender_gone {
            return Poll::Ready(None);
        }
        match &mut state.receiver {
            Some(w) => w.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_or_news_of_the_end() {
        let mut cx = Context::from_waker(Waker::noop());
        let (tx, mut rx) = oneshot();
        assert_eq!(Pin::new(&mut rx).poll(&mut cx), Poll::Pending);
        tx.send(5);
        assert_eq!(Pin::new(&mut rx).poll(&mut cx), Poll::Ready(Some(5)));
        let (tx, mut rx) = oneshot::<u8>();
        drop(tx);
        assert_eq!(Pin::new(&mut rx).poll(&mut cx), Poll::Ready(None));
    }
}
