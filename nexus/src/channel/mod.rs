//! The data side of a nexus on one core: a channel of each child, and I/Os fanned out to them.
//!
//! - [`NexusChannel`] (this file): the contract's side. - `inner`: what it is made of; submission and completion.
//! - `fan`: one I/O's way to the children and back. - `slot`: an I/O in it.
//! - `apply`: how the home core's decisions reach it. - `link`: a child's channel.
//!
//! # A write
//! ```text
//!   submit -> slot -> range lock -> every member -> last answer -> all well: completion
//!                        | taken: waits                    | a member failed: parked, and reported to the home core,
//!                                                          |   which records its retirement, takes it out on every core,
//!                                                          |   and then lets parked I/Os go (`crate::home`)
//! ```
//! A read goes to one child, and to the next when that one fails.
//!
//! Needs `unsafe` for the signature of [`IoChannel::submit`], and in `fan` to pass a submitter's promise on.

mod apply;
mod fan;
mod inner;
mod link;
mod slot;

pub(crate) use apply::{OpenFailed, PeerId, Table, Verdict, apply, freeze, gone, passed, quiet};
pub(crate) use fan::{is_conflict, is_gone};
pub(crate) use inner::Gate;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use aio::device::{Cancel, Sleep};
use aio::{Busy, Completion, Core, DeviceError, Io, IoChannel, Lent, Token};

use self::inner::Inner;
use crate::home;
use crate::shared::Shared;

/// See the module.
pub(crate) struct NexusChannel {
    inner: Rc<RefCell<Inner>>,
    peer: PeerId,
    shared: Arc<Shared>,
    core: Core,
}

impl NexusChannel {
    /// Opens a channel on `core`, the one at work. Dropping the future leaves nothing behind.
    pub(crate) async fn open(core: Core, shared: Arc<Shared>) -> Result<Self, DeviceError> {
        let inner = Rc::new(RefCell::new(Inner::new(core.clone(), shared.clone())));
        let peer = apply::register(&inner);
        let channel = Self { inner, peer, shared, core };
        home::attach(&channel.shared, peer, channel.core.handle()).await?;
        Ok(channel)
    }
}

impl IoChannel for NexusChannel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        // SAFETY: as the caller promises.
        unsafe { self.inner.borrow_mut().submit(io, token) }
    }

    fn kick(&mut self) {
        self.inner.borrow_mut().kick();
    }

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        self.inner.borrow_mut().poll(out, budget)
    }

    fn take_ready(&mut self) -> bool {
        self.inner.borrow_mut().take_ready()
    }

    fn prepare_sleep(&mut self) -> Sleep {
        self.inner.borrow_mut().prepare_sleep()
    }

    fn cancel(&mut self, _token: Token) -> Cancel {
        Cancel::Unsupported
    }

    fn lent(&self, _token: Token) -> Lent<'_> {
        Lent { sg: &[], stable: true }
    }

    fn release(&mut self, _token: Token) {}

    fn close(&mut self) {
        self.inner.borrow_mut().close();
    }

    fn drained(&self) -> bool {
        self.inner.borrow().is_drained()
    }
}

impl Drop for NexusChannel {
    /// Waits for the children's channels as they do when they are dropped: whoever drops this one may free the memory of its
    /// I/Os.
    fn drop(&mut self) {
        apply::unregister(self.peer);
        self.inner.borrow_mut().end();
        let detach = home::detach(&self.shared, self.peer);
        // Outside of its core's turn, when the reactor ends, there is nobody left to tell.
        drop(self.core.spawn(detach));
    }
}
