//! What one path does on the home core: connects, follows its controller's events, winds an ended association down,
//! and connects again.
//!
//! # Winding down (`HAZARDS` H3)
//! 1. The board says that the path has no access: channels close their queues, at once and for good, and hold what was in
//!    flight there.
//! 2. When the last queue is closed, nothing more of the association leaves this host.
//! 3. If changes were in flight, the association is unsettled: it is until the target confirms that it has drained, asked
//!    over any path, or until its Keep Alive Timer must have run out.
//! 4. Then the board says that it is settled, and channels send what they held again. A new association of the path goes
//!    live only after that.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aio::Instant;
use nvme::aen::AsyncEvent;
use nvme::feature::Oaes;
use nvme::identify::controller::Ctratt;
use nvme::log::{GetLogPage, Lid};
use nvme::vendor::EndAssociation;
use nvme::{Cntlid, Nsid, Status};

use super::board::{Access, Association};
use super::connect::open_io_queue;
use super::controller::{AdminReply, Controller, IoRequest};
use super::device::{PathInfo, PathState};
use super::error::{Error, PeerFault};
use super::establish::{Established, establish, is_for_good, look, read_namespace, recognize};
use super::home::Home;
use super::options::Options;
use super::recovery::{Event, Recovery, State};
use super::unsettled::{Ended, Unsettled};

/// How long a controller may take to give up what it executes, once its association has ended (Command Quiesce Time).
/// NVMe 2.0 controllers do not say; this is what targets allow their devices.
const QUIESCE: Duration = Duration::from_secs(10);

/// The same as a Keep Alive Timeout, for controllers without: TCP gives up a peer that acknowledges nothing for a minute.
const SILENCE: Duration = Duration::from_secs(60);

/// Pauses between two questions whether an association has drained, and between two looks at an ANA state that is about
/// to change.
const ASK_AGAIN: Duration = Duration::from_millis(20);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Longest time that an ANA state is about to change when the controller does not say.
const TRANSITION: Duration = Duration::from_secs(10);

/// The path's state on the home core.
pub(super) struct Path {
    options: Options,
    recovery: RefCell<Recovery>,
    controller: RefCell<Option<Rc<Controller>>>,
    /// Of the association that there is, or was.
    generation: Cell<u32>,
    cntlid: Cell<Cntlid>,
    /// Why the last association ended, or was not made.
    fault: Cell<Option<PeerFault>>,
    /// The namespace is not there any more.
    namespace_gone: Cell<bool>,
    access: Cell<Access>,
    /// A task watches an ANA state that is about to change.
    watching: Cell<bool>,
    association: RefCell<Option<Arc<Association>>>,
    instance: Cell<Option<u64>>,
    /// In the list of the unsettled while the association is being wound down.
    entry: Cell<Option<u64>>,
}

impl Path {
    pub(super) fn new(options: Options, now: Instant) -> Self {
        Self {
            recovery: RefCell::new(Recovery::new(&options, now)),
            options,
            controller: RefCell::default(),
            generation: Cell::new(0),
            cntlid: Cell::new(Cntlid::DYNAMIC),
            fault: Cell::default(),
            namespace_gone: Cell::default(),
            access: Cell::default(),
            watching: Cell::default(),
            association: RefCell::default(),
            instance: Cell::default(),
            entry: Cell::default(),
        }
    }

    /// No queue of the association is open.
    fn is_closed(&self) -> bool {
        self.association.borrow().as_ref().is_none_or(|a| a.queues() == 0)
    }

    /// Takes the association that is being wound down out of the list of the unsettled.
    fn forget(&self) {
        if let Some(id) = self.entry.take() {
            self.options.unsettled.settle(id);
        }
    }

    pub(super) fn state(&self) -> State {
        self.recovery.borrow().state()
    }

    pub(super) fn controller(&self) -> Option<Rc<Controller>> {
        self.controller.borrow().clone()
    }

    /// The controller, if it still is that of this association.
    pub(super) fn controller_of(&self, generation: u32) -> Option<Rc<Controller>> {
        self.controller().filter(|_| self.generation.get() == generation)
    }

    pub(super) fn fault(&self) -> Option<PeerFault> {
        self.fault.get()
    }

    pub(super) fn namespace_gone(&self) -> bool {
        self.namespace_gone.get()
    }

    /// Ends an association that is no good.
    pub(super) fn end(&self, generation: u32, fault: PeerFault) {
        if let Some(controller) = self.controller_of(generation) {
            // The first fault is the reason.
            self.fault.set(self.fault.get().or(Some(fault)));
            controller.close();
        }
    }

    /// For lists.
    pub(super) fn info(&self) -> PathInfo {
        let recovery = self.recovery.borrow();
        PathInfo {
            addr: self.options.addr,
            cntlid: self.cntlid.get(),
            state: match recovery.state() {
                State::Live => match self.access.get() {
                    Access::Optimized => PathState::Optimized,
                    Access::NonOptimized => PathState::NonOptimized,
                    Access::None => PathState::Inaccessible,
                },
                State::Connecting | State::Waiting(_) => PathState::Connecting,
                State::GivenUp => PathState::GivenUp,
            },
            losses: recovery.reconnects(),
            fault: self.fault.get(),
        }
    }

    fn apply(&self, event: Event, now: Instant) -> State {
        self.recovery.borrow_mut().apply(event, now)
    }

    /// The device is no more: ends the association politely. Its queues are closed.
    pub(super) async fn shut_down(&self, home: &Home) {
        let unsure = self.association.borrow().as_ref().is_some_and(|a| a.is_unsure());
        let Some(controller) = self.controller.take() else {
            // It was being wound down.
            if !unsure && self.is_closed() {
                self.forget();
            }
            return;
        };
        if !unsure {
            return controller.shutdown().await;
        }
        let id = self.remember(home, &controller);
        if controller.shut_down_wholly().await {
            self.options.unsettled.settle(id);
        }
    }

    /// Puts an association that has ended into the list of the unsettled.
    fn remember(&self, home: &Home, controller: &Controller) -> u64 {
        let options = &self.options;
        let kato = Duration::from_millis(options.kato_ms.into());
        // A controller that counts traffic looks at it once a timeout, so it may take two to notice (NVMe Base 2.0,
        // section 3.9.4.2).
        let traffic = controller.identify().ctratt.contains(Ctratt::TRAFFIC_KEEP_ALIVE);
        let silence = if kato.is_zero() { SILENCE } else { kato * if traffic { 2 } else { 1 } };
        let now = home.core.now();
        let ended = Ended {
            subnqn: options.subnqn.clone(),
            hostnqn: options.hostnqn.clone(),
            hostid: options.hostid,
            cntlid: controller.cntlid(),
            instance: self.instance.get(),
            over_at: now + silence + QUIESCE,
        };
        options.unsettled.add(ended, now)
    }
}

/// Takes in the outcomes of the first attempts. Channels can be opened when this returns, also while the home core does
/// something else.
pub(super) fn begin(home: &Rc<Home>, first: Vec<Result<Established, Error>>) -> Vec<Option<Established>> {
    for (index, established) in first.iter().enumerate() {
        if let Ok(established) = established {
            go_live(home, index, established);
        }
    }
    let outcomes = first.into_iter().enumerate();
    outcomes.map(|(index, first)| first.inspect_err(|error| failed(home, index, error)).ok()).collect()
}

/// The life of a path, until it is given up. `live` is the association that it begins with, if it has one.
pub(super) async fn run(home: Rc<Home>, index: usize, mut live: Option<Established>) {
    loop {
        let established = match live.take() {
            Some(established) => established,
            None => {
                let Some(established) = reconnect(&home, index).await else { return home.review() };
                if !go_live(&home, index, &established) {
                    return;
                }
                established
            }
        };
        let notices = established.notices != Oaes::NONE;
        let events = notices.then(|| home.core.spawn(follow_events(home.clone(), index)));
        if established.look.in_transition {
            let home = home.clone();
            home.clone().spawn(async move { look_again(&home, index).await });
        }
        let fault = established.controller.ended().await;
        if let Some(events) = events {
            events.abort();
        }
        wind_down(&home, index, &established.controller, fault).await;
    }
}

/// Tries until there is an association; `None` when the path is given up.
async fn reconnect(home: &Rc<Home>, index: usize) -> Option<Established> {
    let path = &home.paths[index];
    loop {
        match path.state() {
            State::GivenUp => return None,
            State::Waiting(at) => {
                home.core.sleep_until(at).await;
                path.apply(Event::Due, home.core.now());
            }
            State::Connecting | State::Live => match attempt(home, index).await {
                Ok(established) => return Some(established),
                Err(error) => failed(home, index, &error),
            },
        }
    }
}

fn failed(home: &Rc<Home>, index: usize, error: &Error) {
    let path = &home.paths[index];
    let fault = match error {
        Error::Peer { fault, .. } => *fault,
        Error::Refused { status, .. } => PeerFault::Refused(*status),
        Error::Format { why, .. } => PeerFault::Changed(why),
        Error::NoNamespace { .. } => PeerFault::Changed("it is not there"),
        _ => PeerFault::Closed,
    };
    path.fault.set(Some(fault));
    path.apply(Event::Failed { for_good: is_for_good(error) }, home.core.now());
    home.review();
}

/// One attempt: an association that leads to the same namespace, when all that were before it are settled.
async fn attempt(home: &Rc<Home>, index: usize) -> Result<Established, Error> {
    let path = &home.paths[index];
    let established = establish(path.options.clone()).await?;
    let device = home.device().ok_or_else(|| home.gone())?;
    let others = (0..home.paths.len()).any(|i| i != index && home.paths[i].controller().is_some());
    let was = (&device.namespace, &device.identity, device.size().0);
    recognize(was, &established, others, path.options.recovery.trust_cache).map_err(|fault| Error::Peer {
        op: "reconnecting",
        addr: path.options.addr,
        fault,
    })?;
    drop(device);
    settle_all(&path.options, &established).await?;
    Ok(established)
}

/// Waits until every association that ended before executes nothing any more. Asks `by`, where it can be asked.
pub(super) async fn settle_all(options: &Options, by: &Established) -> Result<(), Error> {
    let core = aio::reactor::Core::current().expect("invariant: tasks run inside their reactor");
    loop {
        let left = options.unsettled.of(&options.subnqn, core.now());
        if left.is_empty() {
            return Ok(());
        }
        for (id, ended) in left {
            if by.instance.is_some() {
                ask(options, &by.controller, id, &ended).await?;
            }
        }
        core.sleep(ASK_AGAIN).await;
    }
}

/// Asks a controller whether an association of ours has drained, and has it end; settles it when it has.
async fn ask(options: &Options, controller: &Controller, id: u64, ended: &Ended) -> Result<(), Error> {
    let (Some(instance), true) =
        (ended.instance, ended.hostnqn == options.hostnqn && ended.hostid == options.hostid)
    else {
        return Ok(());
    };
    match controller.end_association(EndAssociation { cntlid: ended.cntlid, instance }).await {
        Ok(EndAssociation::GONE) => {
            options.unsettled.settle(id);
            Ok(())
        }
        // Time settles it.
        Ok(_) | Err(Error::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Publishes an association. False when the device is no more.
fn go_live(home: &Rc<Home>, index: usize, established: &Established) -> bool {
    let path = &home.paths[index];
    let Some(device) = home.device() else { return false };
    let generation = path.generation.get() + 1;
    path.generation.set(generation);
    path.cntlid.set(established.controller.cntlid());
    path.instance.set(established.instance);
    path.namespace_gone.set(false);
    path.fault.set(None);
    let association = Association::new(
        (index, generation),
        (established.controller.cntlid(), established.granted),
        (established.entries, established.in_capsule_bytes),
        home.inbox.clone(),
    );
    *path.association.borrow_mut() = Some(association.clone());
    *path.controller.borrow_mut() = Some(established.controller.clone());
    path.access.set(established.look.access);
    path.apply(Event::Up, home.core.now());
    // Those before it are settled: `attempt` waited for that.
    device.board.set_settled(index, generation - 1);
    device.board.set_association(index, Some(association));
    device.board.set_access(index, established.look.access);
    device.resized(established.namespace.size);
    home.review();
    true
}

/// See the module.
async fn wind_down(home: &Rc<Home>, index: usize, controller: &Rc<Controller>, fault: PeerFault) {
    let path = &home.paths[index];
    let generation = path.generation.get();
    path.fault.set(path.fault.get().or(Some(fault)));
    *path.controller.borrow_mut() = None;
    path.access.set(Access::None);
    let for_good = matches!(path.fault.get(), Some(PeerFault::Changed(_) | PeerFault::Restarted));
    path.apply(Event::Lost, home.core.now());
    if for_good {
        path.recovery.borrow_mut().give_up();
    }
    // Before anybody can hear of the loss: whoever connects next finds it in the list.
    path.entry.set(Some(path.remember(home, controller)));
    if let Some(device) = home.device() {
        device.board.set_access(index, Access::None);
        device.board.set_association(index, None);
    }
    home.review();
    controller.close();
    home.signal.until(|| path.is_closed().then_some(())).await;
    // The time counts from when nothing more left this host.
    path.forget();
    let unsure = path.association.take().is_some_and(|a| a.is_unsure());
    if unsure {
        let id = path.remember(home, controller);
        home.spawn(settle(home.clone(), index, generation, id));
    } else if let Some(device) = home.device() {
        device.board.set_settled(index, generation);
    }
}

/// Has an association settled while its path is away, over any other.
async fn settle(home: Rc<Home>, index: usize, generation: u32, id: u64) {
    let options = &home.paths[index].options;
    let unsettled: &Unsettled = &options.unsettled;
    let mut pause = ASK_AGAIN;
    loop {
        let left = unsettled.of(&options.subnqn, home.core.now());
        let Some((_, ended)) = left.into_iter().find(|(other, _)| *other == id) else { break };
        if let Some(controller) = home.controller() {
            // The controller's end is its path's business.
            let _ = ask(options, &controller, id, &ended).await;
        }
        home.core.sleep(pause).await;
        pause = (pause * 2).min(LOOK_AGAIN);
    }
    if let Some(device) = home.device() {
        device.board.set_settled(index, generation);
    }
}

/// Acts on asynchronous events until the queue ends.
async fn follow_events(home: Rc<Home>, index: usize) {
    let Some(controller) = home.paths[index].controller() else { return };
    while let Ok(event) = controller.next_event().await {
        if event == AsyncEvent::NAMESPACE_CHANGED {
            // Which namespaces does not matter: looking at ours is cheap. Reading the page rearms the notice.
            let page = GetLogPage::new(Lid::CHANGED_NAMESPACES, nvme::identify::IDENTIFY_LEN_BYTES as u64);
            let _ = controller.log_page(page).await;
            refresh(&home, index).await;
            // It may have another ANA group.
            look_again(&home, index).await;
        } else if event == AsyncEvent::ANA_CHANGED {
            look_again(&home, index).await;
        }
    }
}

/// Looks at the namespace again.
pub(super) async fn refresh(home: &Rc<Home>, index: usize) {
    let path = &home.paths[index];
    let generation = path.generation.get();
    let (Some(controller), Some(device)) = (path.controller(), home.device()) else { return };
    let (limits, depth) = (device.limits(), device.depth());
    drop(device);
    let now = read_namespace(&controller, limits.nsid, depth).await;
    let Some(device) = home.device().filter(|_| path.controller_of(generation).is_some()) else { return };
    match now {
        // An inactive namespace is all zeroes, which is no format, or refused.
        Err(Error::Refused { status, .. }) if status.is(Status::INVALID_NAMESPACE) => {
            path.namespace_gone.set(true)
        }
        Err(Error::Format { .. }) => path.namespace_gone.set(true),
        // The queue has ended, which others notice, or the controller cannot answer now.
        Err(_) => return,
        Ok(now) if now.geometry.block_bytes != device.geometry().block_bytes => {
            return path.end(generation, PeerFault::Changed("its blocks have another size"));
        }
        Ok(now) => {
            path.namespace_gone.set(false);
            device.resized(now.size);
        }
    }
    if path.namespace_gone.get() {
        path.access.set(Access::None);
        device.board.set_access(index, Access::None);
        home.review();
    }
}

/// Asks for the path's ANA state, and goes on asking while it is about to change.
pub(super) async fn look_again(home: &Rc<Home>, index: usize) {
    let path = &home.paths[index];
    let (generation, began) = (path.generation.get(), home.core.now());
    loop {
        let (Some(controller), Some(nsid)) = (path.controller_of(generation), nsid(home)) else { return };
        let looked = look(&controller, nsid).await;
        let Some(device) = home.device().filter(|_| path.controller_of(generation).is_some()) else { return };
        let Ok(seen) = looked else {
            // Refused: what is known stays, and who waits for the look goes on.
            device.board.set_access(index, path.access.get());
            return;
        };
        let access = if path.namespace_gone.get() { Access::None } else { seen.access };
        path.access.set(access);
        device.board.set_access(index, access);
        drop(device);
        home.review();
        if !seen.in_transition || path.watching.get() {
            return;
        }
        let limit = match controller.identify().anatt {
            0 => TRANSITION,
            s => Duration::from_secs(s.into()),
        };
        if home.core.now().since(began) > limit {
            return path
                .end(generation, PeerFault::Nonsense("its ANA state is about to change for too long"));
        }
        let _watching = Watching::begin(&path.watching);
        home.core.sleep(LOOK_AGAIN).await;
    }
}

/// One task at a time watches a state that is about to change.
struct Watching<'a>(&'a Cell<bool>);

impl<'a> Watching<'a> {
    fn begin(flag: &'a Cell<bool>) -> Self {
        flag.set(true);
        Self(flag)
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

fn nsid(home: &Home) -> Option<Nsid> {
    home.device().map(|d| d.limits().nsid)
}

/// Runs one command on an I/O queue of the best path, which is connected for it.
pub(super) async fn io_command(home: &Rc<Home>, request: IoRequest) -> Result<AdminReply, Error> {
    let device = home.device().ok_or_else(|| home.gone())?;
    let nsid = device.limits().nsid;
    let best = (0..home.paths.len())
        .filter(|i| device.board.access(*i) != Access::None)
        .max_by_key(|i| (device.board.access(*i), std::cmp::Reverse(*i)))
        .ok_or_else(|| home.gone())?;
    let association = device.board.association(best).ok_or_else(|| home.gone())?;
    let lease = association.lease().ok_or_else(|| Error::NoQueue(device.name().to_owned()))?;
    drop(device);
    let options = &home.paths[best].options;
    let calls = open_io_queue(&home.core, options, &lease).await?;
    let answer = request.run(&calls, options, nsid).await;
    if answer.as_ref().is_err_and(|e| matches!(e, Error::Peer { .. })) {
        association.set_unsure();
    }
    calls.close(PeerFault::Closed);
    answer
}
