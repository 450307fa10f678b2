//! One path of a channel: its queue, how that is opened, and what it left behind.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use aio::reactor::Core;

use super::board::{Access, Association, Lease, Life};
use super::connect::open_io_queue;
use super::device::Shared;
use super::error::Error;
use super::home::Request;
use super::queue::Queue;

/// Pause after a refused queue: the controller may grant one later.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// A connected queue. The connection goes before the queue identifier is free again.
pub(super) struct Open {
    pub(super) queue: Queue,
    pub(super) lease: Lease,
}

type Incoming = RefCell<Option<Open>>;

/// See the module.
#[derive(Default)]
pub(super) struct Link {
    pub(super) open: Option<Open>,
    /// The path's access, as the board said last.
    pub(super) access: Access,
    /// A command found no access here: not used before somebody has looked. Holds the number of looks until then.
    pub(super) shunned: Option<u32>,
    /// Requests that were in flight when a queue ended, and may still be executed.
    pub(super) held: Vec<u32>,
    /// The last association of which that is so.
    pub(super) held_generation: u32,
    /// A queue of this association is being opened.
    opening: Option<u32>,
    incoming: Rc<Incoming>,
}

impl Link {
    /// Commands that can be issued now.
    #[inline]
    pub(super) fn room(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.queue.room())
    }

    /// The association of the open queue.
    pub(super) fn generation(&self) -> Option<u32> {
        self.open.as_ref().map(|open| open.lease.association.generation)
    }

    /// Has a queue opened, unless that is being done.
    pub(super) fn begin_to_open(&mut self, core: &Core, device: &Arc<Shared>, association: Arc<Association>) {
        let generation = association.generation;
        if self.opening == Some(generation) {
            return;
        }
        self.opening = Some(generation);
        self.incoming = Rc::default();
        let incoming = Rc::downgrade(&self.incoming);
        // Detached: it ends with the channel, the association, or its work.
        drop(core.spawn(open_later(core.clone(), device.clone(), association, incoming)));
    }

    /// True when a queue was opened since the last call.
    #[inline]
    pub(super) fn take_incoming(&mut self) -> bool {
        if self.opening.is_none() || self.open.is_some() {
            return false;
        }
        self.open = self.incoming.borrow_mut().take();
        let arrived = self.open.is_some();
        if arrived {
            self.opening = None;
        }
        arrived
    }

    /// A queue was opened that nobody has taken yet.
    pub(super) fn has_incoming(&self) -> bool {
        self.opening.is_some() && self.incoming.borrow().is_some()
    }
}

/// Connects one I/O queue on the core that runs this.
pub(super) async fn open(
    core: &Core,
    device: &Shared,
    association: &Arc<Association>,
) -> Result<Open, Error> {
    let options = device.options.of_path(association.path);
    let lease = association.lease().ok_or_else(|| Error::NoQueue(device.name().to_owned()))?;
    let calls = open_io_queue(core, &options, &lease).await?;
    let mut queue = calls.into_queue().ok_or_else(|| Error::Gone(device.name().to_owned()))?;
    queue.set_timeout(options.io_timeout, options.abort_timeout);
    queue.set_in_capsule_bytes(association.in_capsule_bytes);
    Ok(Open { queue, lease })
}

async fn open_later(
    core: Core,
    device: Arc<Shared>,
    association: Arc<Association>,
    incoming: Weak<Incoming>,
) {
    let (path, generation) = (association.path, association.generation);
    let wanted = || {
        let current = device.board.association(path).is_some_and(|a| a.generation == generation);
        current && device.board.life() == Life::Live && incoming.strong_count() > 0
    };
    while wanted() {
        match open(&core, &device, &association).await {
            Ok(open) => {
                if let Some(place) = incoming.upgrade() {
                    *place.borrow_mut() = Some(open);
                    core.handle().wake();
                }
                return;
            }
            Err(Error::Peer { fault, .. }) => {
                device.home.ask(Request::Lost { path, generation, fault });
                return;
            }
            Err(_) => core.sleep(REFUSED_PAUSE).await,
        }
    }
}
