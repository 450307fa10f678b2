//! What runs on a device's home core: it holds the controller, and does what channels and other threads ask for.
//!
//! The tasks end with their reactor, with the device, or with the association, and the controller with them.

use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};

use aio::reactor::{Core, Sender, oneshot};
use nvme::Status;
use nvme::aen::AsyncEvent;
use nvme::log::{GetLogPage, Lid};

use super::controller::{AdminReply, AdminRequest, Controller};
use super::device::{Shared, read_namespace};
use super::error::{Error, PeerFault};

type AdminAnswer = Result<AdminReply, Error>;

/// Something to do on the home core.
enum Request {
    /// Run a command.
    Admin(AdminRequest, Sender<AdminAnswer>),
    /// Look at the namespace again.
    Refresh,
}

#[derive(Default)]
struct Post {
    /// As many as there are callers that wait.
    requests: Vec<Request>,
    /// End the association.
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

    /// Runs a command on the home core; `None` when that is no more.
    pub(super) async fn admin(&self, request: AdminRequest) -> Option<AdminAnswer> {
        let (tx, rx) = oneshot();
        if !self.leave(|post| post.requests.push(Request::Admin(request, tx))) {
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

    /// Ends the association.
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
            if !post.requests.is_empty() {
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

/// Starts the home tasks of a device.
pub(super) fn start(
    core: &Core,
    controller: Rc<Controller>,
    device: &Arc<Shared>,
    inbox: Arc<Inbox>,
    notices: bool,
) {
    let (watched, faulted) = (controller.clone(), Arc::downgrade(device));
    let watch = core.spawn(async move {
        let fault = watched.ended().await;
        if let Some(device) = faulted.upgrade() {
            device.fail(fault);
        }
    });
    let events = notices.then(|| core.spawn(follow_events(controller.clone(), Arc::downgrade(device))));
    let (spawner, device) = (core.clone(), Arc::downgrade(device));
    core.spawn(async move {
        let _closing = Closing(inbox.clone());
        while let Some(requests) = inbox.next().await {
            for request in requests {
                serve(&spawner, &controller, &device, request);
            }
        }
        // Politely, within the time limit of admin commands; after a fault this ends at once.
        watch.abort();
        controller.shutdown().await;
        if let Some(events) = events {
            events.abort();
        }
    });
}

fn serve(core: &Core, controller: &Rc<Controller>, device: &Weak<Shared>, request: Request) {
    let controller = controller.clone();
    match request {
        Request::Admin(request, answer) => {
            core.spawn(async move { answer.send(controller.admin(request).await) });
        }
        Request::Refresh => {
            let device = device.clone();
            core.spawn(async move { refresh(&controller, &device).await });
        }
    }
}

/// Acts on asynchronous events until the queue ends.
async fn follow_events(controller: Rc<Controller>, device: Weak<Shared>) {
    while let Ok(event) = controller.next_event().await {
        if event == AsyncEvent::NAMESPACE_CHANGED {
            // Which namespaces does not matter: looking at ours is cheap. Reading the page rearms the notice.
            let page = GetLogPage::new(Lid::CHANGED_NAMESPACES, nvme::identify::IDENTIFY_LEN_BYTES as u64);
            let _ = controller.log_page(page).await;
            refresh(&controller, &device).await;
        }
    }
}

/// Looks at the namespace again.
async fn refresh(controller: &Controller, device: &Weak<Shared>) {
    let Some(shared) = device.upgrade() else { return };
    let now = read_namespace(controller, shared.limits().nsid, shared.depth()).await;
    match now {
        // An inactive namespace is all zeroes, which is no format, or refused.
        Err(Error::Refused { status, .. }) if status.is(Status::INVALID_NAMESPACE) => shared.removed(),
        Err(Error::Format { .. }) => shared.removed(),
        // The queue has ended, which others notice, or the controller cannot answer now.
        Err(_) => {}
        Ok(now) if now.geometry.block_bytes != shared.geometry().block_bytes => {
            shared.fail(PeerFault::Nonsense("the namespace changed its block size"));
        }
        Ok(now) => shared.resized(now.size),
    }
}
