//! The home core's end: a poller that owns a channel of the volume and does there what the other core asks for.
//!
//! Needs `unsafe` to pass the submitter's promise on.

use core::sync::atomic::Ordering;
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use aio::device::Sleep;
use aio::time::Instant;
use aio::{Completion, Core, IoChannel, Poller, Token};

use super::Link;
use super::cell::{Cell, Lists};
use super::ring::{Reader, Writer};
use crate::volume::channel::VolumeChannel;

/// I/Os taken over, and completions given back, in one turn.
const BUDGET: usize = 256;

thread_local! {
    /// The agents on this thread's cores.
    static AGENTS: RefCell<Vec<Weak<RefCell<Agent>>>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
pub(super) struct Agent {
    /// `None` when it has ended. Declared, and so dropped, before `ended`: it waits for what is in flight.
    channel: Option<VolumeChannel>,
    lists: Lists,
    requests: Reader<Cell>,
    answers: Writer<Completion>,
    out: Vec<Completion>,
    /// Submitted to the channel and not answered.
    in_flight: usize,
    /// The channel had no room for the next request.
    busy: bool,
    /// Submitted since the last kick.
    submitted: bool,
    /// Answered since the last kick.
    answered: bool,
    link: Arc<Link>,
    /// Tells the proxy, however the agent ends: in its own way, with its reactor, or by a panic.
    _ended: Ended,
}

/// Says that the agent is no more when it is dropped.
struct Ended(Arc<Link>);

impl Drop for Ended {
    fn drop(&mut self) {
        // Release: whatever was answered is to be seen before.
        self.0.ended.store(true, Ordering::Release);
        self.0.to_proxy.ring_always();
    }
}

impl Agent {
    /// Starts on `core`, which is the home core and the one at work.
    pub(super) fn start(
        core: &Core,
        channel: VolumeChannel,
        link: Arc<Link>,
        requests: Reader<Cell>,
        answers: Writer<Completion>,
        max_sg: u16,
    ) {
        let agent = Rc::new(RefCell::new(Self {
            channel: Some(channel),
            lists: Lists::new(max_sg),
            requests,
            answers,
            out: Vec::with_capacity(BUDGET),
            in_flight: 0,
            busy: false,
            submitted: false,
            answered: false,
            _ended: Ended(link.clone()),
            link,
        }));
        AGENTS.with_borrow_mut(|agents| {
            agents.retain(|a| a.strong_count() > 0);
            agents.push(Rc::downgrade(&agent));
        });
        core.add_poller(agent);
    }

    /// Takes requests over.
    fn pull(&mut self) -> usize {
        let Some(channel) = &mut self.channel else { return 0 };
        if self.busy && !channel.take_ready() {
            return 0;
        }
        self.busy = false;
        let mut pulled = 0;
        while pulled < BUDGET {
            let mark = self.requests.mark();
            let Some((io, slot)) = self.lists.read(&mut self.requests) else { break };
            // SAFETY: the proxy's caller keeps the memory valid until the completion was polled from the proxy or the proxy
            // was dropped. The former comes after this channel's completion; the latter waits for this channel's end.
            if unsafe { channel.submit(&io, Token::new(slot, 0)) }.is_err() {
                self.requests.rewind(mark);
                self.busy = true;
                break;
            }
            pulled += 1;
        }
        self.requests.give_back();
        self.in_flight += pulled;
        self.submitted |= pulled > 0;
        pulled
    }

    /// Gives completions back.
    fn answer(&mut self) -> usize {
        let Some(channel) = self.channel.as_mut().filter(|_| self.in_flight > 0) else { return 0 };
        let done = channel.poll(&mut self.out, BUDGET);
        for completion in self.out.drain(..) {
            let room = self.answers.push(completion);
            debug_assert!(room, "there is a place for every slot of the proxy");
        }
        self.in_flight -= done;
        self.answered |= self.answers.publish();
        done
    }

    /// The proxy is gone: so goes the channel, which waits for what is in flight.
    fn end(&mut self) {
        self.channel = None;
        // The proxy may have waited for this.
        self.link.ended.store(true, Ordering::Release);
    }

    fn is_abandoned(&self) -> bool {
        self.link.proxy_gone.load(Ordering::Acquire)
    }
}

impl Poller for Agent {
    fn poll(&mut self, _now: Instant) -> usize {
        self.link.to_home.disarm();
        if self.is_abandoned() {
            self.end();
            return 1;
        }
        self.pull() + self.answer()
    }

    fn kick(&mut self) {
        if core::mem::take(&mut self.submitted)
            && let Some(channel) = &mut self.channel
        {
            channel.kick();
        }
        if core::mem::take(&mut self.answered) {
            self.link.to_proxy.ring();
        }
    }

    fn prepare_sleep(&mut self, _now: Instant) -> Sleep {
        let Some(channel) = &mut self.channel else { return Sleep::KeepPolling };
        self.link.to_home.arm();
        let asked = !self.busy && !self.requests.is_empty();
        if asked || self.link.proxy_gone.load(Ordering::Acquire) {
            return Sleep::KeepPolling;
        }
        channel.prepare_sleep()
    }

    fn finished(&self) -> bool {
        self.channel.is_none()
    }
}

/// Ends the agents of this thread whose proxies are gone. For a core that waits for another one: that may be waiting for
/// this one in the same way.
pub(super) fn end_abandoned() {
    // Out of the cell, because an end runs foreign code. There are none while the thread ends.
    let agents = AGENTS.try_with(|list| list.borrow().iter().filter_map(Weak::upgrade).collect::<Vec<_>>());
    let agents = agents.unwrap_or_default();
    for agent in agents {
        // One that is at work further up on this stack has to wait.
        let Ok(mut agent) = agent.try_borrow_mut() else { continue };
        if agent.is_abandoned() && agent.channel.as_ref().is_some_and(VolumeChannel::can_end) {
            agent.end();
        }
    }
}
