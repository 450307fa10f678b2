//! Where decisions about a nexus are made: on its home core, one at a time.
//!
//! - `Home` (this file): the state, and the ways to it from channels on any core.
//! - `retire`: what happens when children fail: the order that keeps acknowledged writes.
//! - `open`: who is in sync when a nexus begins.
//! - `account`: regions that are being written, on children that have no marks.
//! - `marks`: places in the children's histories to ask from. - `resync`: what a child lacks.
//! - `children`: children come, go, and come back. - `repair`: bad blocks are written anew from another child.
//!
//! A decision reaches a core's channel as a call that runs there between two turns ([`crate::channel`]); it is in force
//! when every channel has answered.

mod account;
mod children;
mod marks;
mod open;
mod repair;
mod resync;
mod retire;

pub(crate) use account::want;
pub(crate) use children::NewChild;
pub(crate) use open::{Notes, in_sync};

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use aio::device::Subscription;
use aio::gate::Gate as OneAtATime;
use aio::{BlockDevice, BlockRange, Core, CoreHandle, DeviceError, DeviceEvent, IoStatus, check};
use uuid::Uuid;

use self::account::Account;
use self::marks::Rounds;
use crate::channel::{self, Gate, OpenFailed, PeerId, Table, Verdict, is_conflict};
use crate::child::{ChildInfo, ChildState, MAX_CHILDREN, Mask, NexusState};
use crate::dirty::{DirtyMap, Logs};
use crate::error::NexusError;
use crate::membership::{MembershipStore, Record};
use crate::rebuild::{History, Job};
use crate::shared::Shared;

thread_local! {
    /// The nexuses whose home is this thread's core.
    static HOMES: RefCell<HashMap<Uuid, Rc<Home>>> = RefCell::default();
}

/// A channel, and where it is.
#[derive(Clone)]
struct Peer {
    id: PeerId,
    core: CoreHandle,
}

/// A child.
pub(crate) struct Child {
    pub(crate) uri: String,
    pub(crate) device: Arc<dyn BlockDevice>,
    /// Its identity in the record.
    pub(crate) uuid: Uuid,
    pub(crate) state: ChildState,
    /// When it was taken out of use, if it was.
    fault_time: Option<SystemTime>,
    /// What it has missed since it left, and of which incarnation it was then.
    log: Option<(Arc<DirtyMap>, u128)>,
    /// Of a member that is not in sync: what hosts changed since it became one.
    written: Option<Arc<DirtyMap>>,
    pub(crate) job: Option<Rc<Job>>,
    /// A channel still waits for its answers: its place is not free.
    leaving: Cell<u32>,
    /// Tells of its device's end.
    events: Option<Subscription>,
}

impl Child {
    fn is_member(&self) -> bool {
        matches!(self.state, ChildState::Online | ChildState::OutOfSync)
    }
}

/// How far its life is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Open,
    /// No child can be reached.
    Lost,
    ShuttingDown,
    Shutdown,
}

struct State {
    life: Life,
    /// By place.
    children: [Option<Child>; MAX_CHILDREN],
    /// The order in which they were given.
    order: Vec<usize>,
    record: Record,
    peers: Vec<Peer>,
    /// What was asked for.
    requested_bytes: u64,
    history: History,
}

/// See the module.
pub(crate) struct Home {
    pub(crate) shared: Arc<Shared>,
    pub(crate) core: Core,
    store: Arc<dyn MembershipStore>,
    gate: OneAtATime,
    state: RefCell<State>,
    /// Failures that channels told, by place, and nobody has looked at.
    failures: RefCell<BTreeMap<usize, IoStatus>>,
    bad_ranges: RefCell<Vec<(usize, BlockRange)>>,
    /// A task looks at them.
    looking: Cell<bool>,
    rounds: RefCell<Rounds>,
    /// How often a member has left.
    leavings: Cell<u64>,
    notes: RefCell<Notes>,
    account: RefCell<Account>,
}

/// The home of a nexus whose home is the core at work.
pub(crate) fn find(nexus: Uuid) -> Option<Rc<Home>> {
    HOMES.with_borrow(|h| h.get(&nexus).cloned())
}

/// The first failure of a child says how it failed; but that this nexus was shut out says more than that.
fn note(failures: &mut BTreeMap<usize, IoStatus>, place: usize, status: IoStatus) {
    let noted = failures.entry(place).or_insert(status);
    if is_conflict(status) {
        *noted = status;
    }
}

/// Tells the home core of failures and of blocks that cannot be read. False when its mailbox is full.
pub(crate) fn report(
    shared: &Arc<Shared>,
    failures: Vec<(usize, IoStatus)>,
    bad_ranges: Vec<(usize, BlockRange)>,
) -> bool {
    let nexus = shared.uuid;
    let told = shared.home.post(move || {
        let Some(home) = find(nexus) else { return };
        for (place, status) in failures {
            note(&mut home.failures.borrow_mut(), place, status);
        }
        home.bad_ranges.borrow_mut().extend(bad_ranges);
        home.look();
    });
    told.is_ok()
}

/// Makes a channel of `core` one of the nexus's: resolves when it works.
pub(crate) async fn attach(shared: &Arc<Shared>, id: PeerId, core: CoreHandle) -> Result<(), DeviceError> {
    let nexus = shared.uuid;
    let gone = || DeviceError::Gone(shared.name.clone());
    let attached = shared.home.call(move || async move {
        let home = find(nexus)?;
        Some(home.attach(Peer { id, core }).await)
    });
    attached.await.ok().flatten().ok_or_else(gone)?
}

/// A channel goes.
pub(crate) fn detach(shared: &Arc<Shared>, id: PeerId) -> impl Future<Output = ()> + 'static {
    let nexus = shared.uuid;
    let home = shared.home.clone();
    let here = Core::current().map(|c| c.id());
    async move {
        let detached = home.call(move || async move {
            if let Some(home) = find(nexus) {
                // After its attachment, which may still be under way.
                let _pass = home.gate.enter().await;
                home.state.borrow_mut().peers.retain(|p| p.id != id || Some(p.core.id()) != here);
            }
        });
        // Without its home core there is nothing to be detached from.
        let _ = detached.await;
    }
}

impl Home {
    /// Makes a nexus known on `core`, the one at work. All its children are members, and in sync as the record says, which was
    /// saved; the others are rebuilt.
    pub(crate) fn start(
        core: Core,
        shared: Arc<Shared>,
        store: Arc<dyn MembershipStore>,
        children: Vec<NewChild>,
        record: Record,
        notes: Notes,
        requested_bytes: u64,
    ) -> Rc<Self> {
        let mut places = [const { None }; MAX_CHILDREN];
        let order = (0..children.len()).collect();
        let map = Arc::new(DirtyMap::clean(shared.size(), shared.geometry.block_bytes));
        for (place, child) in children.into_iter().enumerate() {
            places[place] = Some(Child {
                uri: child.uri,
                device: child.device,
                uuid: child.uuid,
                state: if record.is_healthy(child.uuid) { ChildState::Online } else { ChildState::OutOfSync },
                fault_time: None,
                log: None,
                written: (!record.is_healthy(child.uuid)).then(|| map.clone()),
                job: None,
                leaving: Cell::new(0),
                events: None,
            });
        }
        let state = State {
            life: Life::Open,
            children: places,
            order,
            record,
            peers: Vec::new(),
            requested_bytes,
            history: History::default(),
        };
        let home = Rc::new(Self {
            shared,
            core,
            store,
            gate: OneAtATime::default(),
            state: RefCell::new(state),
            failures: RefCell::default(),
            bad_ranges: RefCell::default(),
            looking: Cell::new(false),
            rounds: RefCell::default(),
            leavings: Cell::new(0),
            notes: RefCell::new(notes),
            account: RefCell::default(),
        });
        HOMES.with_borrow_mut(|h| h.insert(home.shared.uuid, home.clone()));
        (0..MAX_CHILDREN).for_each(|place| home.watch(place));
        home
    }

    /// Begins what it does by itself.
    pub(crate) fn begin(self: &Rc<Self>) {
        self.start_marking();
        self.bring_into_sync();
    }

    /// Asks to be told when the device of the child at `place` goes.
    fn watch(&self, place: usize) {
        let mut state = self.state.borrow_mut();
        let Some(child) = &mut state.children[place] else { return };
        let (nexus, device) = (self.shared.uuid, child.device.uuid());
        let core = self.shared.home.clone();
        let sink = move |event| {
            if matches!(event, DeviceEvent::Resized(_)) {
                return;
            }
            // A full mailbox: the next I/O finds out.
            let _ = core.post(move || {
                if let Some(home) = find(nexus).filter(|h| h.is_device_at(place, device)) {
                    home.failures.borrow_mut().entry(place).or_insert(check::REMOVED);
                    home.look();
                }
            });
        };
        child.events = Some(child.device.subscribe(Arc::new(sink)));
    }

    fn is_device_at(&self, place: usize, device: Uuid) -> bool {
        self.state.borrow().children[place].as_ref().is_some_and(|c| c.device.uuid() == device)
    }

    /// The nexus is no more.
    pub(crate) fn forget(&self) {
        HOMES.with_borrow_mut(|h| h.remove(&self.shared.uuid));
    }

    pub(crate) fn name(&self) -> String {
        self.shared.name.clone()
    }

    /// Brings a new channel into line with the others.
    async fn attach(self: &Rc<Self>, peer: Peer) -> Result<(), DeviceError> {
        let _pass = self.gate.enter().await;
        loop {
            let table = self.table(Verdict::Settle);
            match self.apply_to(&peer, table).await {
                Ok(()) => break,
                Err(failed) => {
                    let last = self.is_last_synced(failed.place);
                    if last {
                        return Err(failed.source);
                    }
                    self.retire_unopened(failed.place).await;
                }
            }
        }
        self.state.borrow_mut().peers.push(peer);
        Ok(())
    }

    /// Looks at what was reported, unless a task does so already.
    fn look(self: &Rc<Self>) {
        if self.looking.replace(true) {
            return;
        }
        let home = self.clone();
        // Detached: it ends when there is nothing left.
        drop(self.core.spawn(async move {
            loop {
                let failures = core::mem::take(&mut *home.failures.borrow_mut());
                let bad_ranges = core::mem::take(&mut *home.bad_ranges.borrow_mut());
                if failures.is_empty() && bad_ranges.is_empty() {
                    break;
                }
                if !failures.is_empty() {
                    home.retire(failures).await;
                }
                for (place, range) in bad_ranges {
                    home.repair(place, range).await;
                }
            }
            home.looking.set(false);
        }));
    }

    /// How channels are to be, by the state.
    fn table(&self, verdict: Verdict) -> Table {
        let state = self.state.borrow();
        let mut table = Table {
            devices: Vec::new(),
            synced: 0,
            kept: 0,
            logs: Logs::default(),
            gate: match state.life {
                Life::Open => Gate::Open,
                Life::Lost | Life::ShuttingDown => Gate::Frozen,
                Life::Shutdown => Gate::Failed(crate::SHUT_DOWN),
            },
            verdict,
        };
        for (place, child) in state.children.iter().enumerate() {
            let Some(child) = child else { continue };
            if child.is_member() && matches!(state.life, Life::Open | Life::ShuttingDown) {
                table.devices.push((place, child.device.clone()));
                if let Some(written) = &child.written {
                    table.logs.add(place, written.clone());
                }
                if child.state == ChildState::Online {
                    table.synced |= 1 << place;
                }
            } else if let Some((log, _)) = &child.log {
                table.logs.add(place, log.clone());
            }
        }
        // With another member, even one that lacks much, a failed write of this one concerns the home core.
        if table.devices.len() == 1 {
            table.kept = table.synced;
        }
        table
    }

    fn peers(&self) -> Vec<Peer> {
        self.state.borrow().peers.clone()
    }

    /// Makes one channel as `table` says. A channel that is gone is fine.
    async fn apply_to(&self, peer: &Peer, table: Table) -> Result<(), OpenFailed> {
        let id = peer.id;
        let applied = peer.core.call(move || channel::apply(id, table));
        applied.await.unwrap_or(Ok(()))
    }

    /// Makes every channel as `table` says.
    async fn apply(&self, table: &Table) -> Result<(), OpenFailed> {
        for peer in self.peers() {
            self.apply_to(&peer, table.clone()).await?;
        }
        Ok(())
    }

    /// Stops admission everywhere. Answers which children have failed I/Os that wait.
    async fn freeze(&self) -> BTreeMap<usize, IoStatus> {
        let mut failures = BTreeMap::new();
        for peer in self.peers() {
            let id = peer.id;
            let frozen = peer.core.call(move || async move { channel::freeze(id) });
            for (place, status) in frozen.await.unwrap_or_default() {
                note(&mut failures, place, status);
            }
        }
        failures
    }

    /// Waits until nothing is on its way on any core. For a frozen nexus.
    async fn quiet(&self) {
        for peer in self.peers() {
            let id = peer.id;
            // A core that is gone has nothing on its way.
            let _ = peer.core.call(move || channel::quiet(id)).await;
        }
    }

    fn synced(&self) -> Mask {
        let state = self.state.borrow();
        let online = |c: &Option<Child>| c.as_ref().is_some_and(|c| c.state == ChildState::Online);
        (0..MAX_CHILDREN).filter(|&p| online(&state.children[p])).fold(0, |mask, p| mask | 1 << p)
    }

    fn is_last_synced(&self, place: usize) -> bool {
        self.synced() == 1 << place
    }

    /// How it fares.
    pub(crate) fn nexus_state(&self) -> NexusState {
        let state = self.state.borrow();
        match state.life {
            Life::ShuttingDown => return NexusState::ShuttingDown,
            Life::Shutdown => return NexusState::Shutdown,
            Life::Lost => return NexusState::Faulted,
            Life::Open => {}
        }
        let mut children = state.children.iter().flatten().peekable();
        if children.clone().all(|c| c.state == ChildState::Online) {
            NexusState::Online
        } else if children.any(|c| c.state == ChildState::Online) {
            NexusState::Degraded
        } else {
            NexusState::Faulted
        }
    }

    /// The children, in the order in which they came.
    pub(crate) fn child_infos(&self) -> Vec<ChildInfo> {
        let state = self.state.borrow();
        let children = state.order.iter().filter_map(|&p| state.children[p].as_ref());
        let is_open = state.life != Life::Shutdown;
        let info = |c: &Child| ChildInfo {
            uri: c.uri.clone(),
            state: if c.is_member() && !is_open { ChildState::Closed } else { c.state },
            rebuild_progress: c.job.as_ref().map(|j| j.progress_percent()),
            device: c.device.name().to_owned(),
            fault_time: c.fault_time,
            has_log: c.log.is_some(),
            is_closing: c.leaving.get() > 0,
        };
        children.map(info).collect()
    }

    pub(crate) fn requested_bytes(&self) -> u64 {
        self.state.borrow().requested_bytes
    }

    /// Refuses `op` when the nexus is shut down.
    fn check_open(&self, op: &'static str) -> Result<(), NexusError> {
        match self.state.borrow().life {
            Life::Open | Life::Lost => Ok(()),
            Life::ShuttingDown | Life::Shutdown => Err(NexusError::ShutDown { op, nexus: self.name() }),
        }
    }
}
