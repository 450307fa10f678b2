//! What runs on a device's home core: it holds the controllers, and does what channels and other threads ask for.
//!
//! The tasks end with their reactor, with the device, or when its last path is given up, and the controllers with them.
//! `path` is what each path does; here is what they have in common.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};

use aio::Instant;
use aio::reactor::{Core, JoinHandle, Sender, oneshot};
use nvme::{Cid, Qid};

use super::board::Access;
use super::controller::{AdminReply, AdminRequest, Controller, IoRequest};
use super::device::Shared;
use super::error::{Error, PeerFault};
use super::establish::Established;
use super::path::{self, Path};
use super::recovery::State;
use super::signal::Signal;

type Answer = Result<AdminReply, Error>;

/// Something to do on the home core.
pub(super) enum Request {
    /// Run a command.
    Admin(AdminRequest, Sender<Answer>),
    /// Run a command on an I/O queue.
    Io(IoRequest, Sender<Answer>),
    /// Look at the namespace again.
    Refresh,
    /// A command of a path said that the namespace is not accessible there.
    Look { path: usize },
    /// A command has had no answer for too long.
    Abort { path: usize, generation: u32, qid: Qid, cid: Cid },
    /// A connection of an association ended.
    Lost { path: usize, generation: u32, fault: PeerFault },
}

#[derive(Default)]
struct Post {
    /// At most one for each caller that waits, for each command in flight, and for each connection.
    requests: Vec<Request>,
    /// Somebody who is waited for is done.
    nudged: bool,
    /// End the associations.
    end: bool,
    /// The home task is no more.
    closed: bool,
    waker: Option<Waker>,
}

/// Where the rest of the process leaves requests for the home core. Control side: a lock is fine.
#[derive(Default)]
pub(super) struct Inbox(Mutex<Post>);

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Post> {
        // Nothing under the lock leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves something for the home task and wakes it; false when that is no more.
    fn leave(&self, change: impl FnOnce(&mut Post)) -> bool {
        let mut post = self.lock();
        if post.closed {
            return false;
        }
        change(&mut post);
        let waker = post.waker.take();
        drop(post);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Leaves a request; false when nobody will look at it.
    pub(super) fn ask(&self, request: Request) -> bool {
        if let Request::Lost { .. } = &request {}
        self.leave(|post| post.requests.push(request))
    }

    /// Runs a command on the home core; `None` when that is no more.
    pub(super) async fn command(&self, make: impl FnOnce(Sender<Answer>) -> Request) -> Option<Answer> {
        let (tx, rx) = oneshot();
        if !self.ask(make(tx)) {
            return None;
        }
        rx.await
    }

    /// Has the home core look at the namespace again; false when that is no more.
    pub(super) fn refresh(&self) -> bool {
        self.leave(|post| {
            if !post.requests.iter().any(|r| matches!(r, Request::Refresh)) {
                post.requests.push(Request::Refresh);
            }
        })
    }

    /// Somebody who may be waited for is done.
    pub(super) fn nudge(&self) {
        self.leave(|post| post.nudged = true);
    }

    /// Ends the associations.
    pub(super) fn end(&self) {
        self.leave(|post| post.end = true);
    }

    /// The next batch of requests; `None` at the end.
    async fn next(&self) -> Option<Vec<Request>> {
        std::future::poll_fn(|cx| {
            let mut post = self.lock();
            if post.end {
                return Poll::Ready(None);
            }
            if !post.requests.is_empty() || std::mem::take(&mut post.nudged) {
                return Poll::Ready(Some(std::mem::take(&mut post.requests)));
            }
            post.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Turns requests away once the home task is no more, for whatever reason.
struct Closing(Arc<Inbox>);

impl Drop for Closing {
    fn drop(&mut self) {
        let mut post = self.0.lock();
        post.closed = true;
        let requests = std::mem::take(&mut post.requests);
        drop(post);
        // Outside the lock: whoever waits is woken.
        drop(requests);
    }
}

/// What the tasks of a device have in common.
pub(super) struct Home {
    pub(super) core: Core,
    pub(super) device: Weak<Shared>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) paths: Box<[Path]>,
    /// Raised whenever a path, or something that one waits for, changes.
    pub(super) signal: Signal,
    /// Since when no path has worked.
    idle_since: Cell<Option<Instant>>,
    /// Fails what waits when that has lasted too long.
    patience: RefCell<Option<JoinHandle<()>>>,
    tasks: RefCell<Vec<JoinHandle<()>>>,
}

impl Home {
    /// The device, while there is one.
    pub(super) fn device(&self) -> Option<Arc<Shared>> {
        self.device.upgrade()
    }

    /// Runs something beside the paths until the device ends.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        tasks.retain(|t| !t.is_finished());
        tasks.push(self.core.spawn(task));
    }

    /// A controller that answers: of the best path there is.
    pub(super) fn controller(&self) -> Option<Rc<Controller>> {
        let device = self.device()?;
        let live = (0..self.paths.len()).filter(|i| self.paths[*i].controller().is_some());
        let best = live.max_by_key(|i| (device.board.access(*i), std::cmp::Reverse(*i)))?;
        self.paths[best].controller()
    }

    /// Draws the conclusions from what became of the paths.
    pub(super) fn review(self: &Rc<Self>) {
        let Some(device) = self.device() else { return };
        self.signal.raise();
        device.publish(self.paths.iter().map(Path::info).collect());
        if self.paths.iter().all(|p| p.state() == State::GivenUp) {
            let fault = self.paths.iter().find_map(Path::fault).unwrap_or(PeerFault::Closed);
            return device.fail(fault);
        }
        let live: Vec<_> = self.paths.iter().filter(|p| p.controller().is_some()).collect();
        if !live.is_empty() && live.iter().all(|p| p.namespace_gone()) {
            return device.removed();
        }
        let works = (0..self.paths.len()).any(|i| device.board.access(i) != Access::None);
        match (works, self.idle_since.get()) {
            (true, _) => {
                self.idle_since.set(None);
                if let Some(timer) = self.patience.take() {
                    timer.abort();
                }
                device.board.set_impatient(false);
            }
            (false, None) => self.begin_to_wait(&device),
            (false, Some(_)) => {}
        }
    }

    /// No path works any more: I/O waits for so long.
    fn begin_to_wait(&self, device: &Shared) {
        self.idle_since.set(Some(self.core.now()));
        let Some(patience) = device.options.recovery.fast_io_fail else { return };
        if patience.is_zero() {
            return device.board.set_impatient(true);
        }
        let (sleeper, device) = (self.core.clone(), self.device.clone());
        *self.patience.borrow_mut() = Some(self.core.spawn(async move {
            sleeper.sleep(patience).await;
            if let Some(device) = device.upgrade() {
                device.board.set_impatient(true);
            }
        }));
    }

    fn serve(self: &Rc<Self>, request: Request) {
        match request {
            Request::Admin(request, answer) => {
                let Some(controller) = self.controller() else { return answer.send(Err(self.gone())) };
                self.core.spawn(async move { answer.send(controller.admin(request).await) });
            }
            Request::Io(request, answer) => {
                let home = self.clone();
                self.core.spawn(async move { answer.send(path::io_command(&home, request).await) });
            }
            Request::Refresh => {
                for index in 0..self.paths.len() {
                    let home = self.clone();
                    self.spawn(async move { path::refresh(&home, index).await });
                }
            }
            Request::Look { path } => {
                let home = self.clone();
                self.spawn(async move { path::look_again(&home, path).await });
            }
            Request::Abort { path, generation, qid, cid } => {
                let Some(controller) = self.paths[path].controller_of(generation) else { return };
                // Whatever comes of it shows in the command's own answer.
                self.spawn(async move { controller.abort(qid, cid).await });
            }
            Request::Lost { path, generation, fault } => self.paths[path].end(generation, fault),
        }
    }

    pub(super) fn gone(&self) -> Error {
        Error::Gone(self.device().map(|d| d.name().to_owned()).unwrap_or_default())
    }
}

/// Starts the home tasks of a device. `first` is what was connected already, by path.
pub(super) fn start(core: &Core, device: &Arc<Shared>, first: Vec<Result<Established, Error>>) {
    let now = core.now();
    let home = Rc::new(Home {
        core: core.clone(),
        device: Arc::downgrade(device),
        inbox: device.home.clone(),
        paths: (0..first.len()).map(|i| Path::new(device.options.of_path(i), now)).collect(),
        signal: Signal::default(),
        idle_since: Cell::default(),
        patience: RefCell::default(),
        tasks: RefCell::default(),
    });
    let live = path::begin(&home, first);
    let runners: Vec<_> =
        (0..).zip(live).map(|(index, live)| core.spawn(path::run(home.clone(), index, live))).collect();
    core.spawn(async move {
        let _closing = Closing(home.inbox.clone());
        while let Some(requests) = home.inbox.next().await {
            home.signal.raise();
            for request in requests {
                home.serve(request);
            }
        }
        runners.iter().chain(home.tasks.borrow().iter()).for_each(JoinHandle::abort);
        home.patience.take().inspect(JoinHandle::abort);
        // Politely, within the time limit of admin commands; after a fault this ends at once.
        for path in &home.paths {
            path.shut_down(&home).await;
        }
    });
}
