//! A volume's channel on a core other than its pool's.
//!
//! ```text
//!   the core that opened it                             the pool's home core
//!   ProxyChannel  --- I/Os: ring of cells, 1,024 --->   Agent (a poller) -> VolumeChannel -> store
//!                 <-- completions: ring of 1,024 ---
//! ```
//! - [`ProxyChannel`] (this file): the contract's side. - `agent`: the home core's.
//! - `ring`: a bounded queue of one writer and one reader. - `cell`: an I/O in it. - `bell`: wakes the other core when it sleeps.
//!
//! One store to memory that both share for a batch each way, no lock, and no syscall unless the other core sleeps.
//!
//! # The end
//! Completions that the home core does not give any more, because its reactor stopped or a bug ended the agent, come from the
//! proxy as errors. A proxy that is dropped waits until the home core has let go of its I/Os: that has to find
//! out, which takes a turn, and then to wait for its disks as any channel of a volume does. There is no limit
//! beside that one, as none would be sound: the caller may free the memory as soon as the channel is gone. So
//! whoever has a choice closes the channel, polls until it is drained, and drops it then, which waits for nobody.
//!
//! Needs `unsafe` for the signature of [`IoChannel::submit`], and below it where the modules say.

mod agent;
mod bell;
mod cell;
mod ring;

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::collections::VecDeque;
use std::sync::Arc;

use aio::device::{Cancel, Sleep};
use aio::{Busy, Completion, Core, DeviceError, Io, IoChannel, IoStatus, Lent, Token, check};

use self::agent::Agent;
use self::bell::Bell;
use self::cell::Cell;
use self::ring::{Reader, Writer, ring};
use super::channel::{CHANNEL_DEPTH, VolumeChannel};
use super::{Shared, open_stores};

/// Slots of a proxy.
const DEPTH: usize = CHANNEL_DEPTH as usize;
/// Status of I/Os whose home core is gone: whether they were done is not known.
const LOST: IoStatus = IoStatus::INTERNAL_ERROR;
/// Looks that a drop takes before it lets others have the processor, and before it sleeps between them.
const SPINS: (u32, u32) = (1_000, 1_100);
/// How long it sleeps then.
const NAP: Duration = Duration::from_micros(50);

/// What both ends share beside the rings.
struct Link {
    /// The proxy was dropped.
    proxy_gone: AtomicBool,
    /// The home core has let go of all I/Os, and answers no more.
    ended: AtomicBool,
    to_home: Bell,
    to_proxy: Bell,
}

/// See the module.
pub(super) struct ProxyChannel {
    volume: Arc<Shared>,
    link: Arc<Link>,
    requests: Writer<Cell>,
    answers: Reader<Completion>,
    /// The tokens of I/Os in flight.
    slots: Box<[Option<Token>]>,
    free: Vec<u32>,
    /// Completions that did not need the home core.
    done: VecDeque<Completion>,
    /// Cells of the largest I/O.
    most_cells: usize,
    refused: bool,
    closed: bool,
    /// The home core was asked to wake this one.
    armed: bool,
}

impl ProxyChannel {
    /// Opens a channel from `here`, the core at work. Dropping the future opens nothing: what it had begun on the home
    /// core ends by itself.
    pub(super) async fn open(here: Core, volume: Arc<Shared>) -> Result<Self, DeviceError> {
        let max_sg = volume.geometry.max_sg;
        let most_cells = cell::most_cells(max_sg);
        let (requests, requests_read) = ring(DEPTH.max(most_cells.next_power_of_two()));
        let (answers_written, answers) = ring(DEPTH);
        let link = Arc::new(Link {
            proxy_gone: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            to_home: Bell::new(volume.home.clone()),
            to_proxy: Bell::new(here.handle()),
        });
        let proxy = Self {
            volume: volume.clone(),
            link: link.clone(),
            requests,
            answers,
            slots: vec![None; DEPTH].into_boxed_slice(),
            free: (0..CHANNEL_DEPTH).rev().collect(),
            done: VecDeque::new(),
            most_cells,
            refused: false,
            closed: false,
            armed: false,
        };
        let home = volume.home.clone();
        let (pool, name) = (volume.pool, volume.name.clone());
        let opened = home.call(move || async move {
            let core = Core::current().expect("invariant: calls run on a core");
            let store = open_stores::get(pool)?;
            let channel = VolumeChannel::open(store, volume);
            Agent::start(&core, channel, link, requests_read, answers_written, max_sg);
            Some(())
        });
        match opened.await {
            Ok(Some(())) => Ok(proxy),
            Ok(None) | Err(_) => Err(DeviceError::Gone(name)),
        }
    }

    /// Accepted, and not polled.
    fn taken(&self) -> usize {
        self.in_flight() + self.done.len()
    }

    /// At the home core.
    fn in_flight(&self) -> usize {
        DEPTH - self.free.len()
    }

    fn busy(&mut self) -> Result<(), Busy> {
        self.refused = true;
        Err(Busy)
    }

    /// Whether there is room for the largest I/O after one was refused.
    fn has_room(&mut self) -> bool {
        self.taken() < DEPTH && self.requests.has_room(self.most_cells)
    }

    /// The token of a slot, which is free from now on.
    #[inline]
    fn retire(&mut self, slot: u32) -> Option<Token> {
        let token = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        Some(token)
    }

    /// The home core is gone, and answers no more.
    fn fail_all(&mut self) {
        for slot in 0..CHANNEL_DEPTH {
            if let Some(token) = self.retire(slot) {
                self.done.push_back(Completion::new(token, LOST));
            }
        }
    }

    fn poll_done(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        let count = self.done.len().min(budget);
        out.extend(self.done.drain(..count));
        count
    }

    fn poll_answers(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        let mut count = 0;
        while count < budget {
            let Some(answer) = self.answers.next() else { break };
            if let Some(token) = self.retire(answer.token.index()) {
                out.push(Completion { token, ..answer });
                count += 1;
            }
        }
        self.answers.give_back();
        count
    }
}

impl IoChannel for ProxyChannel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        if self.taken() >= DEPTH {
            return self.busy();
        }
        let volume = &*self.volume;
        let verdict = if self.closed {
            Err(check::CLOSED)
        } else if !volume.is_alive() {
            Err(check::REMOVED)
        } else {
            // The home core checks again: the size may be another one when it gets there.
            check::validate(io, &volume.geometry, volume.capabilities, volume.size())
        };
        if let Err(status) = verdict {
            self.done.push_back(Completion::new(token, status));
            return Ok(());
        }
        let Some(&slot) = self.free.last() else { return self.busy() };
        if !cell::write(&mut self.requests, io, slot) {
            return self.busy();
        }
        self.free.pop();
        self.slots[slot as usize] = Some(token);
        Ok(())
    }

    fn kick(&mut self) {
        if self.requests.publish() {
            self.link.to_home.ring();
        }
    }

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        if core::mem::take(&mut self.armed) {
            self.link.to_proxy.disarm();
        }
        let mut count = self.poll_done(out, budget);
        count += self.poll_answers(out, budget - count);
        if count == 0 && budget > 0 && self.in_flight() > 0 && self.link.ended.load(Ordering::Acquire) {
            // What was answered before the end is there by now.
            count = self.poll_answers(out, budget);
            if count == 0 {
                self.fail_all();
                count = self.poll_done(out, budget);
            }
        }
        count
    }

    fn take_ready(&mut self) -> bool {
        if !self.refused || !self.has_room() {
            return false;
        }
        self.refused = false;
        true
    }

    fn prepare_sleep(&mut self) -> Sleep {
        if self.in_flight() > 0 {
            self.armed = true;
            self.link.to_proxy.arm();
        }
        let work = !self.done.is_empty()
            || !self.answers.is_empty()
            || (self.refused && self.has_room())
            || (self.in_flight() > 0 && self.link.ended.load(Ordering::Acquire));
        // What is refused waits for I/Os in flight, whose completions wake this core.
        if work { Sleep::KeepPolling } else { Sleep::Armed }
    }

    fn cancel(&mut self, _token: Token) -> Cancel {
        Cancel::Unsupported
    }

    fn lent(&self, _token: Token) -> Lent<'_> {
        Lent { sg: &[], stable: true }
    }

    fn release(&mut self, _token: Token) {}

    fn close(&mut self) {
        self.closed = true;
    }

    fn drained(&self) -> bool {
        self.taken() == 0
    }
}

impl Drop for ProxyChannel {
    /// See the module.
    fn drop(&mut self) {
        // Release: the home core looks at it with acquire, and takes nothing over after that.
        self.link.proxy_gone.store(true, Ordering::Release);
        self.link.to_home.ring_always();
        let mut looks = 0u32;
        while self.in_flight() > 0 && !self.link.ended.load(Ordering::Acquire) {
            looks = looks.saturating_add(1);
            match looks {
                n if n < SPINS.0 => core::hint::spin_loop(),
                n if n < SPINS.1 => std::thread::yield_now(),
                _ => {
                    agent::end_abandoned();
                    std::thread::sleep(NAP);
                }
            }
        }
    }
}
