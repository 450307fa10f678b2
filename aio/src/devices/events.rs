//! Who wants to hear of a device's events.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::device::{DeviceEvent, EventSink, Subscription};

/// The subscribers of one device. Control side: a lock is fine.
#[derive(Default)]
pub struct EventHub {
    sinks: Arc<Mutex<Sinks>>,
}

#[derive(Default)]
struct Sinks {
    next_id: u64,
    list: Vec<(u64, EventSink)>,
}

/// Ends a subscription when dropped.
struct Guard {
    id: u64,
    sinks: Weak<Mutex<Sinks>>,
}

impl EventHub {
    /// Adds a subscriber.
    pub fn subscribe(&self, sink: EventSink) -> Subscription {
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        let id = sinks.next_id;
        sinks.next_id += 1;
        sinks.list.push((id, sink));
        Subscription::new(Guard { id, sinks: Arc::downgrade(&self.sinks) })
    }

    /// Tells everyone. The lock is not held meanwhile, so a sink may subscribe or unsubscribe.
    pub fn send(&self, event: DeviceEvent) {
        let sinks: Vec<EventSink> = {
            let sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
            sinks.list.iter().map(|(_, sink)| sink.clone()).collect()
        };
        for sink in sinks {
            sink(event);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(sinks) = self.sinks.upgrade() {
            sinks.lock().unwrap_or_else(PoisonError::into_inner).list.retain(|(id, _)| *id != self.id);
        }
    }
}
