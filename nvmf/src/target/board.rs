//! What the control side tells the cores, and how they answer.
//!
//! Each core owns one [`CoreInbox`]. The control side posts [`CoreMsg`]s, always under the model's lock, so
//! every core sees them in the same order; the core takes them between two turns, changes its own tables, and
//! acknowledges once the change is in effect. Nothing here is touched per I/O: an idle inbox costs one relaxed
//! load a turn.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aio::{BlockDevice, DeviceError};
use nvme::reservation::Access;
use nvme::{Cid, HostId, Nsid, Qid, Status};

use super::ana::AnaTable;
use super::controller::Controller;
use super::counters::IoCounters;
use super::ns::NsInfo;

/// Index of a subsystem in every core's table: dense, small, reused after all cores forgot the old one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SubsystemId(pub u32);

/// Index of a core of this target, in the order of [`Target::attach_core`](super::Target::attach_core).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CoreIndex(pub u16);

/// A namespace to be opened by one core.
pub struct Attach {
    /// The subsystem's place in the core's table.
    pub subsystem: SubsystemId,
    /// What command decoding needs to know.
    pub info: NsInfo,
    /// Opened by each core for itself.
    pub device: Arc<dyn BlockDevice>,
    /// Written by this core only; summed by the control side when somebody asks.
    pub counters: Arc<IoCounters>,
    /// Who may do what, while there is a reservation.
    pub access: Option<Arc<Access>>,
}

/// One order to one core.
pub enum CoreMsg {
    /// Open a channel on the device and answer commands for this namespace; acknowledge when it is open, or
    /// with the error of the open.
    Attach(Attach, Ack),
    /// Refuse new commands for the namespace, let those in flight complete, close the channel, acknowledge.
    /// A namespace that is not there is acknowledged at once.
    Detach {
        /// The subsystem's place in the core's table.
        subsystem: SubsystemId,
        /// Which namespace.
        nsid: Nsid,
        /// Sent when nothing of it is left on this core.
        ack: Ack,
    },
    /// Use the new description (size, ANA group, write protection) from the next command on.
    Update {
        /// The subsystem's place in the core's table.
        subsystem: SubsystemId,
        /// Replaces the old one of the same nsid.
        info: NsInfo,
        /// Sent when in effect.
        ack: Ack,
    },
    /// Use the new ANA states from the next command on.
    SetAna {
        /// The subsystem's place in the core's table.
        subsystem: SubsystemId,
        /// Replaces the whole table.
        table: AnaTable,
        /// Sent when in effect.
        ack: Ack,
    },
    /// Stop admitting I/O commands of the subsystem's namespaces (they wait in their queues), let those in
    /// flight complete, acknowledge. Admin commands, Keep Alive and Abort go on. When this lasts for longer than
    /// [`TargetConfig::pause_limit`](super::TargetConfig::pause_limit), say so with
    /// [`Target::pause_expired`](super::Target::pause_expired).
    Pause {
        /// The subsystem's place in the core's table.
        subsystem: SubsystemId,
        /// Which pause it is.
        number: u64,
        /// Sent when nothing is in flight on this core.
        ack: Ack,
    },
    /// Admit I/O commands again. Pauses do not nest.
    Resume {
        /// The subsystem's place in the core's table.
        subsystem: SubsystemId,
        /// Sent when in effect.
        ack: Ack,
    },
    /// Obey these rights from the next command on, abort what there is of some hosts, and acknowledge when no command that
    /// was aborted or that the rights forbid is in the device any more.
    Reserve {
        /// The subsystem's place in the core's table.
        subsystem: SubsystemId,
        /// Which namespace.
        nsid: Nsid,
        /// Replaces the rights; `None` = everybody may do everything.
        access: Option<Arc<Access>>,
        /// Whose commands to abort.
        abort: Arc<[HostId]>,
        /// See above.
        ack: Ack,
    },
    /// Complete a command of an I/O queue that waits for the control side.
    Complete(LateCompletion),
    /// Forget the subsystem: its connections are closing, its namespaces were detached.
    Forget {
        /// The subsystem's place in the core's table.
        subsystem: SubsystemId,
        /// Sent when the table entry is free.
        ack: Ack,
    },
    /// Try to abort one command of one I/O queue that lives on this core.
    Abort(AbortRequest),
    /// Something changed for controllers with queues on this core: look at
    /// [`QueueGrant::closing`](super::QueueGrant::closing) of every connection and at
    /// [`Controller::has_completions`] of every admin connection.
    Attend,
    /// An association is gone for good: offer the Connects again that were told to wait.
    RetryConnects,
}

/// The end of a command on an I/O queue that the control side executed.
pub struct LateCompletion {
    /// Whose queue.
    pub controller: Arc<Controller>,
    /// The queue; never the admin queue.
    pub qid: Qid,
    /// The command.
    pub cid: Cid,
    /// How it ended.
    pub status: Status,
}

/// An Abort command on its way to the core that owns the queue.
pub struct AbortRequest {
    /// Whose queue.
    pub controller: Arc<Controller>,
    /// The queue; never the admin queue.
    pub sqid: Qid,
    /// The command.
    pub cid: Cid,
    pub(super) reply: AbortReply,
}

impl AbortRequest {
    /// Completes the Abort command. `aborted` = the command was stopped, had no effect, and will be (or was)
    /// completed with Command Abort Requested. Dropping the request instead answers "not aborted".
    pub fn answer(mut self, aborted: bool) {
        self.reply.aborted = aborted;
    }
}

/// Answers the host when dropped, so that no path can forget to.
pub(super) struct AbortReply {
    pub(super) admin: Arc<Controller>,
    pub(super) abort_cid: Cid,
    pub(super) aborted: bool,
}

impl Drop for AbortReply {
    fn drop(&mut self) {
        self.admin.abort_answered(self.abort_cid, self.aborted);
    }
}

/// Why a core did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum CoreFailure {
    /// The core stopped before it answered.
    #[error("a core stopped before it answered")]
    Gone,
    /// The device could not be opened on that core.
    #[error("the device could not be opened on a core")]
    Device(#[from] DeviceError),
}

/// Where one core finds its orders. Shared between the core and the control side.
pub struct CoreInbox {
    index: CoreIndex,
    pending: AtomicBool,
    queue: Mutex<Queue>,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Queue {
    messages: VecDeque<CoreMsg>,
    open: bool,
}

impl CoreInbox {
    /// `wake` makes the core's reactor turn soon; called from any thread, must not block.
    pub(super) fn new(index: CoreIndex, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        let queue = Mutex::new(Queue { messages: VecDeque::new(), open: true });
        Self { index, pending: AtomicBool::new(false), queue, wake }
    }

    /// Which core this is.
    pub fn index(&self) -> CoreIndex {
        self.index
    }

    /// True when [`take`](Self::take) would return something. One load; call it every turn.
    pub fn has_messages(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Moves everything that waits into `out`, oldest first.
    pub fn take(&self, out: &mut Vec<CoreMsg>) {
        let mut queue = self.lock();
        self.pending.store(false, Ordering::Relaxed);
        out.extend(queue.messages.drain(..));
    }

    /// Ends the inbox: what waits and what comes later is dropped, which answers it with
    /// [`CoreFailure::Gone`]. Called by the core when it stops.
    pub fn close(&self) {
        let dropped = {
            let mut queue = self.lock();
            queue.open = false;
            std::mem::take(&mut queue.messages)
        };
        drop(dropped);
    }

    /// Queues one order. Bounded by the control operations in flight, each of which waits for its
    /// acknowledgement; notices that carry no acknowledgement are merged.
    pub(super) fn post(&self, msg: CoreMsg) {
        {
            let mut queue = self.lock();
            if !queue.open {
                drop(queue);
                drop(msg);
                return;
            }
            let merged = matches!(
                (&msg, queue.messages.back()),
                (CoreMsg::Attend, Some(CoreMsg::Attend))
                    | (CoreMsg::RetryConnects, Some(CoreMsg::RetryConnects))
            );
            if !merged {
                queue.messages.push_back(msg);
            }
            self.pending.store(true, Ordering::Release);
        }
        (self.wake)();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One core's share of an acknowledgement. Dropping it unanswered counts as [`CoreFailure::Gone`].
pub struct Ack(Option<Arc<Mutex<Tally>>>);

impl Ack {
    /// The order is in effect.
    pub fn done(self) {
        self.answer(Ok(()));
    }

    /// The order could not be carried out; the core's tables are as before.
    pub fn fail(self, why: DeviceError) {
        self.answer(Err(CoreFailure::Device(why)));
    }

    fn answer(mut self, result: Result<(), CoreFailure>) {
        if let Some(tally) = self.0.take() {
            Tally::count(&tally, result);
        }
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if let Some(tally) = self.0.take() {
            Tally::count(&tally, Err(CoreFailure::Gone));
        }
    }
}

struct Tally {
    /// Answers that are missing, and one for as long as orders are still being posted.
    missing: usize,
    failure: Option<CoreFailure>,
    then: Option<Continuation>,
}

type Continuation = Box<dyn FnOnce(Result<(), CoreFailure>) + Send>;

impl Tally {
    fn count(this: &Mutex<Self>, result: Result<(), CoreFailure>) {
        let mut tally = this.lock().unwrap_or_else(PoisonError::into_inner);
        tally.missing -= 1;
        if let Err(e) = result {
            tally.failure.get_or_insert(e);
        }
        if tally.missing > 0 {
            return;
        }
        let (then, outcome) = (tally.then.take(), tally.failure.take().map_or(Ok(()), Err));
        drop(tally);
        if let Some(then) = then {
            then(outcome);
        }
    }
}

/// Collects the acknowledgements of one or more orders to all cores.
pub(super) struct Acks(Arc<Mutex<Tally>>);

impl Acks {
    /// For orders that are posted next, with an [`Ack`] of [`ack`](Self::ack) each.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Tally { missing: 1, failure: None, then: None })))
    }

    /// One more acknowledgement to wait for.
    pub(super) fn ack(&self) -> Ack {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).missing += 1;
        Ack(Some(self.0.clone()))
    }

    /// Posts `make(ack)` to every core.
    pub(super) fn broadcast(cores: &[Arc<CoreInbox>], make: impl Fn(Ack) -> CoreMsg) -> Self {
        let acks = Self::new();
        for core in cores {
            core.post(make(acks.ack()));
        }
        acks
    }

    /// Calls `done` when every core answered: at once, or on the thread of the last one. The first failure wins.
    /// Not to be called under the model's lock, which `done` may want.
    pub(super) fn then(self, done: impl FnOnce(Result<(), CoreFailure>) + Send + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).then = Some(Box::new(done));
        Tally::count(&self.0, Ok(()));
    }
}
