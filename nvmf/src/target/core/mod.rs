//! What runs on each core: the hot path from socket to device and back.
//!
//! # Map
//! - [`TargetCore`] (here): the poller. Owns the core's listeners, connections and `CoreState`, and runs a turn.
//! - `conn`: one connection and its life; `receive`: bytes to events; `command`: a command until its data is there;
//!   `reserve`: reservation commands, and changes of rights; `io`: submission, the line of waiting commands, completion; `transmit`: answers and the gathered send.
//! - `slots`: the commands of a queue; `cids`: their identifiers; `buffer`: where their data is; `chunks`: where
//!   received bytes land; `shares`: who has how much memory; `spaces`: namespaces and their channels on this core.
//! - [`CoreConfig`], [`Timeouts`], [`TargetCoreStats`], [`ConnectionInfo`]: plain data.
//!
//! # A turn
//! `poll`: orders of the control side; new connections; then each connection receives once and submits what it
//! received. `kick`: devices are kicked and their completions become answers; each connection sends once, gathered,
//! straight from the devices' memory. A device that answers at once is thus read, sent and forgotten in one turn,
//! out of warm caches.
//!
//! # What bounds memory
//! Receive chunks and data buffers come from capped pools. A command takes all its buffers at once and never waits
//! for more, so those that have them always finish. Those that find none wait in their connection's line, which the
//! queue's depth bounds; connections take turns. One that holds a lot gets more only while as much is free, and so
//! does a subsystem beside others (`shares`). Data is not asked for while its namespace is paused. What
//! cannot wait, because the data of others stands behind it in the stream (in-capsule data of which a part came),
//! goes to the heap, and its connection is not read from before that is over. Fused commands, whose halves hold
//! memory while they wait for each other, are small and never wait for it. Peers that stall are dropped by
//! [`Timeouts`].
//!
//! # What bounds an association's end
//! A connection that ends cancels what devices have and waits for it before it drops its grant, and only then a new
//! association of that host begins (`HAZARDS` H3).

mod buffer;
mod chunks;
mod cids;
mod command;
mod config;
mod conn;
mod info;
mod io;
mod receive;
mod reserve;
mod shares;
mod slots;
mod spaces;
mod stats;
#[cfg(test)]
mod tests;
mod transmit;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use aio::memory::{DmaPool, DmaPools, Memory, MemoryError};
use aio::{
    BlockCount, BlockRange, Completion, Instant, Listener, MAX_RANGES, Network, Poller, SgEntry, Sleep,
};

pub use config::{CoreConfig, Timeouts};
pub use info::ConnectionInfo;
pub use stats::TargetCoreStats;

use super::ana::ListenerId;
use super::board::{AbortRequest, CoreInbox, CoreMsg};
use super::handle::Target;
use buffer::Buffer;
use chunks::RxChunks;
use conn::{Conn, Phase};
use shares::Shares;
use spaces::Spaces;

/// Completions that are taken from a device at a time.
const COMPLETION_BATCH: usize = 64;

/// Connections that one turn accepts at most.
const ACCEPT_BATCH: usize = 16;

/// Smallest room in a chunk that a receive is made into.
const MIN_WINDOW_BYTES: u32 = 64 << 10;

/// A receive when all chunks are held. Bounds what one connection can put on the heap then.
const LIFELINE_BYTES: u32 = 8 << 10;

/// What all connections of a core share.
struct CoreState {
    /// First, so that channels are dropped, and with that let go of memory, before chunks and buffers are: also when
    /// a core ends with I/O in flight.
    spaces: Spaces,
    config: CoreConfig,
    target: Target,
    inbox: Arc<CoreInbox>,
    pools: DmaPools,
    chunks: RxChunks,
    shares: Shares,
    /// The turn's clock reading.
    now: Instant,
    /// A buffer for the rest of an answer that the socket took in part.
    spill: Option<Buffer>,
    /// Connections with something to send.
    dirty: Vec<u16>,
    /// Connections whose oldest waiting command needs a buffer, in the order in which they are served.
    starved: VecDeque<u16>,
    /// Lists that are built for one submission.
    sg: Vec<SgEntry>,
    second: Vec<SgEntry>,
    ranges: Vec<BlockRange>,
    range_blocks: BlockCount,
    stats: TargetCoreStats,
}

impl CoreState {
    /// Bytes in the pools that nobody has.
    fn free_bytes(&self) -> u64 {
        let free = |p: &DmaPool| u64::from(p.available()) * u64::from(p.chunk_bytes());
        self.pools.classes().iter().map(free).sum()
    }

    /// The same of those that `len_bytes` can be in.
    fn free_bytes_for(&self, len_bytes: u32) -> u64 {
        let smallest = len_bytes.min(self.pools.max_bytes());
        let free = |p: &DmaPool| u64::from(p.available()) * u64::from(p.chunk_bytes());
        self.pools.classes().iter().filter(|p| p.chunk_bytes() >= smallest).map(free).sum()
    }
}

/// One core's share of a target. Lives on its core; the control side reaches it through its [`CoreInbox`].
pub struct TargetCore {
    /// Before the connections, whose buffers its channels may use.
    state: CoreState,
    network: Rc<dyn Network>,
    listeners: Vec<(ListenerId, Box<dyn Listener>)>,
    conns: Vec<Option<Box<Conn>>>,
    /// Free places in `conns`.
    free: Vec<u16>,
    completions: Vec<Completion>,
    messages: Vec<CoreMsg>,
    next_tick: Instant,
    accepting: bool,
    stopping: bool,
}

impl TargetCore {
    /// The share of the core that runs this. `inbox` is what [`Target::attach_core`] answered; `pools` and `memory`
    /// are the core's.
    ///
    /// # Errors
    /// No memory for the receive chunks.
    pub fn new(
        target: Target,
        inbox: Arc<CoreInbox>,
        network: Rc<dyn Network>,
        pools: DmaPools,
        memory: &Arc<Memory>,
        config: CoreConfig,
    ) -> Result<Self, MemoryError> {
        let chunks = DmaPool::new(memory, config.rx_chunk_bytes, config.rx_chunks)?;
        let lifeline = DmaPool::new(memory, LIFELINE_BYTES, 1)?.alloc();
        let lifeline = lifeline.expect("invariant: a new pool has its buffer");
        let state = CoreState {
            config,
            target,
            inbox,
            pools,
            chunks: RxChunks::new(chunks, lifeline, MIN_WINDOW_BYTES),
            shares: Shares::default(),
            spaces: Spaces::default(),
            now: Instant::default(),
            spill: None,
            dirty: Vec::new(),
            starved: VecDeque::new(),
            sg: Vec::with_capacity(64),
            second: Vec::with_capacity(64),
            ranges: Vec::with_capacity(MAX_RANGES),
            range_blocks: BlockCount(0),
            stats: TargetCoreStats::default(),
        };
        Ok(Self {
            state,
            network,
            listeners: Vec::new(),
            conns: Vec::new(),
            free: Vec::new(),
            completions: Vec::with_capacity(COMPLETION_BATCH),
            messages: Vec::new(),
            next_tick: Instant::default(),
            accepting: true,
            stopping: false,
        })
    }

    /// Listens on `addr`; connections that come are those of `listener`. Returns where it listens (with the port
    /// filled in when 0 was asked for).
    ///
    /// # Errors
    /// The address is in use, is not ours, or needs privileges.
    pub fn listen(&mut self, listener: ListenerId, addr: SocketAddr) -> std::io::Result<SocketAddr> {
        let socket = self.network.listen(addr)?;
        Ok(self.add_listener(listener, socket))
    }

    /// As [`listen`](Self::listen), for the further cores of a port: each connection comes to one of them.
    ///
    /// # Errors
    /// As `listen`; and the network has only one core.
    pub fn listen_shared(&mut self, listener: ListenerId, addr: SocketAddr) -> std::io::Result<SocketAddr> {
        let socket = self.network.listen_shared(addr)?;
        Ok(self.add_listener(listener, socket))
    }

    fn add_listener(&mut self, listener: ListenerId, socket: Box<dyn Listener>) -> SocketAddr {
        let local = socket.local_addr();
        self.listeners.push((listener, socket));
        local
    }

    /// Whether connections are accepted. While they are not, hosts that knock wait instead of being told that a
    /// subsystem is not there, which a host takes for final.
    pub fn set_accepting(&mut self, accepting: bool) {
        self.accepting = accepting;
    }

    /// Stops listening; connections stay.
    pub fn unlisten(&mut self, listener: ListenerId) {
        self.listeners.retain(|(id, _)| *id != listener);
    }

    /// Closes everything. The poller is finished when the devices have let go of the last command.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.listeners.clear();
        for conn in self.conns.iter_mut().flatten() {
            conn.drop_link(&mut self.state);
        }
    }

    /// Connections there are, also those that are ending.
    pub fn connections(&self) -> usize {
        self.conns.len() - self.free.len()
    }

    /// This core's counters.
    pub fn stats(&self) -> TargetCoreStats {
        TargetCoreStats { connections: self.connections() as u64, ..self.state.stats }
    }

    fn accept(&mut self) -> usize {
        if !self.accepting {
            return 0;
        }
        let mut accepted = 0;
        for i in 0..self.listeners.len() {
            while accepted < ACCEPT_BATCH {
                let (id, listener) = &mut self.listeners[i];
                // What went wrong with one knock is nothing to the next.
                let Ok(Some(stream)) = listener.accept() else { break };
                accepted += 1;
                let id = *id;
                self.state.stats.accepted += 1;
                if self.connections() >= self.state.config.max_connections.min(usize::from(u16::MAX)) {
                    self.state.stats.refused += 1;
                    continue;
                }
                self.adopt(id, stream);
            }
        }
        accepted
    }

    /// Serves a stream that was accepted elsewhere.
    pub fn adopt(&mut self, listener: ListenerId, stream: Box<dyn aio::ByteStream>) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            (self.conns.len() - 1) as u16
        });
        let conn = Conn::new(index, stream, listener, &self.state);
        self.conns[usize::from(index)] = Some(Box::new(conn));
        // Its timeouts want to be looked at.
        self.next_tick = self.state.now;
    }

    /// Carries out what the control side ordered.
    #[cold]
    fn orders(&mut self) -> usize {
        let mut messages = std::mem::take(&mut self.messages);
        self.state.inbox.take(&mut messages);
        let count = messages.len();
        for message in messages.drain(..) {
            let spaces = &mut self.state.spaces;
            match message {
                CoreMsg::Attach(attach, ack) => spaces.attach(attach, ack),
                CoreMsg::Detach { subsystem, nsid, ack } => spaces.detach(subsystem, nsid, ack),
                CoreMsg::Update { subsystem, info, ack } => spaces.update(subsystem, info, ack),
                CoreMsg::SetAna { subsystem, table, ack } => spaces.set_ana(subsystem, table, ack),
                CoreMsg::Pause { subsystem, number, ack } => {
                    let until = self.state.now + self.state.target.config().pause_limit;
                    spaces.pause(subsystem, number, until, ack);
                }
                CoreMsg::Resume { subsystem, ack } => spaces.resume(subsystem, ack),
                CoreMsg::Forget { subsystem, ack } => spaces.forget(subsystem, ack),
                CoreMsg::Reserve { subsystem, nsid, access, abort, ack } => {
                    self.set_rights(subsystem, nsid, access, &abort, ack);
                }
                CoreMsg::Complete(late) => self.complete_late(&late),
                CoreMsg::Abort(request) => self.abort(request),
                CoreMsg::Attend => self.attend(),
                CoreMsg::RetryConnects => {
                    self.conns
                        .iter_mut()
                        .flatten()
                        .filter(|c| c.connecting.is_some())
                        .for_each(|c| c.retry = true);
                }
            }
        }
        self.messages = messages;
        count
    }

    fn abort(&mut self, request: AbortRequest) {
        let ours = |c: &&mut Box<Conn>| {
            c.phase == Phase::Serving
                && c.grant.as_ref().is_some_and(|g| {
                    Arc::ptr_eq(g.controller(), &request.controller) && g.qid() == request.sqid
                })
        };
        let aborted = match self.conns.iter_mut().flatten().find(ours) {
            Some(conn) => conn.abort(request.cid.0, &mut self.state),
            None => false,
        };
        request.answer(aborted);
    }

    fn attend(&mut self) {
        for conn in self.conns.iter_mut().flatten().filter(|c| c.phase == Phase::Serving) {
            conn.late_completions(&mut self.state);
        }
        // Timers may have changed.
        self.next_tick = self.state.now;
    }

    /// Looks at all timeouts.
    #[cold]
    fn tick(&mut self) {
        for conn in self.conns.iter_mut().flatten() {
            conn.check_timeouts(&mut self.state);
        }
        self.end_pauses();
        self.next_tick = self.state.now + self.state.config.tick;
    }

    /// When the next timeout is due, for a core that goes to sleep.
    fn next_deadline(&mut self) -> Option<Instant> {
        self.end_pauses();
        let state = &mut self.state;
        let next = self.conns.iter_mut().flatten().filter_map(|c| c.check_timeouts(state)).min();
        next.into_iter().chain(state.spaces.pause_deadline()).min()
    }

    /// Reports pauses that lasted too long; the order to let commands go on comes back.
    fn end_pauses(&mut self) {
        while let Some((subsystem, number)) = self.state.spaces.expired_pause(self.state.now) {
            self.state.target.pause_expired(subsystem, number);
        }
    }

    /// Serves connections that wait for buffers, one command each in turn, as far as buffers go.
    fn feed_starved(&mut self) -> usize {
        let mut done = 0;
        for _ in 0..self.state.starved.len() {
            let Some(index) = self.state.starved.pop_front() else { break };
            let Some(conn) = &mut self.conns[usize::from(index)] else { continue };
            conn.starved = false;
            if conn.phase != Phase::Serving {
                continue;
            }
            let went_on = conn.pump(&mut self.state);
            done += went_on;
            // One that has buffers already, or whose subsystem has, gets more when some were given back, or when there
            // are plenty; others go on.
            if went_on == 0 && conn.starved && conn.held_bytes == 0 && !conn.over_share {
                // Still first in line.
                self.state.starved.pop_back();
                self.state.starved.push_front(index);
                break;
            }
        }
        done
    }

    /// Turns completions of all devices into answers.
    fn complete(&mut self) -> usize {
        let mut done = 0;
        let mut nth = 0;
        while nth < self.state.spaces.active_count() {
            loop {
                self.completions.clear();
                let n = self.state.spaces.poll(nth, &mut self.completions, COMPLETION_BATCH);
                for i in 0..n {
                    let c = self.completions[i];
                    let conn = self.conns[(c.token.index() >> 16) as usize].as_mut();
                    let conn = conn.expect("invariant: a connection stays until its last I/O completed");
                    conn.completed(c, &mut self.state);
                }
                done += n;
                if n < COMPLETION_BATCH {
                    break;
                }
            }
            nth += 1;
        }
        done
    }

    /// Removes connections that have come to their end.
    fn bury(&mut self, index: usize) {
        if let Some(conn) = self.conns[index].take_if(|c| c.phase == Phase::Gone) {
            if conn.has_io_queue() {
                self.state.shares.leave(conn.subsystem);
            }
            self.free.push(index as u16);
            self.state.starved.retain(|i| usize::from(*i) != index);
            self.state.dirty.retain(|i| usize::from(*i) != index);
        }
    }
}

impl Poller for TargetCore {
    fn poll(&mut self, now: Instant) -> usize {
        self.state.now = now;
        let mut work = 0;
        if self.state.inbox.has_messages() {
            work += self.orders();
        }
        work += self.state.spaces.advance();
        if !self.state.spaces.fences.is_empty() {
            work += self.advance_fences();
        }
        if now >= self.next_tick {
            self.tick();
        }
        if !self.listeners.is_empty() {
            work += self.accept();
        }
        if !self.state.starved.is_empty() {
            work += self.feed_starved();
        }
        for index in 0..self.conns.len() {
            let Some(conn) = &mut self.conns[index] else { continue };
            work += conn.turn(&mut self.state);
            if conn.phase == Phase::Gone {
                self.bury(index);
                work += 1;
            }
        }
        self.state.spaces.retry = false;
        work
    }

    fn kick(&mut self) {
        self.state.spaces.kick();
        self.complete();
        self.state.spaces.settle(self.state.now);
        let mut dirty = std::mem::take(&mut self.state.dirty);
        for index in dirty.drain(..) {
            if let Some(conn) = &mut self.conns[usize::from(index)] {
                conn.flush(&mut self.state);
            }
        }
        // Sends do not make others dirty; what came meanwhile was pushed into the new list.
        dirty.append(&mut self.state.dirty);
        self.state.dirty = dirty;
    }

    fn prepare_sleep(&mut self, now: Instant) -> Sleep {
        self.state.now = now;
        if self.state.inbox.has_messages() || !self.state.dirty.is_empty() {
            return Sleep::KeepPolling;
        }
        let mut sleep = self.state.spaces.prepare_sleep();
        // Looks a last time, and arms the listeners.
        if sleep == Sleep::KeepPolling || self.accept() > 0 || self.feed_starved() > 0 {
            return Sleep::KeepPolling;
        }
        // Before the connections are looked at: a timeout may end one.
        if let Some(deadline) = self.next_deadline() {
            sleep = match sleep {
                Sleep::Until(other) => Sleep::Until(other.min(deadline)),
                _ => Sleep::Until(deadline),
            };
        }
        let busy = |c: &mut Box<Conn>| c.prepare_sleep() == Sleep::KeepPolling;
        if self.conns.iter_mut().flatten().any(busy) { Sleep::KeepPolling } else { sleep }
    }

    fn finished(&self) -> bool {
        self.stopping && self.connections() == 0
    }
}
