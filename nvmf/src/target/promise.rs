//! A value that arrives later, under any executor. Whoever drops the receiving end misses the value and nothing
//! else: control operations go on without an audience.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

struct Slot<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

/// The sending end.
pub(super) struct Resolver<T>(Arc<Mutex<Slot<T>>>);

/// The receiving end.
pub(super) struct Promise<T>(Arc<Mutex<Slot<T>>>);

/// Both ends.
pub(super) fn promise<T>() -> (Resolver<T>, Promise<T>) {
    let slot = Arc::new(Mutex::new(Slot { value: None, waker: None }));
    (Resolver(slot.clone()), Promise(slot))
}

impl<T> Resolver<T> {
    pub(super) fn resolve(self, value: T) {
        let waker = {
            let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            slot.value = Some(value);
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Promise<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
