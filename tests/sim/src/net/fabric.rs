//! The state of every simulated connection.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use aio::{Clock as _, Instant};

use super::NetConfig;
use crate::clock::SimClock;
use crate::rng::Rng;
use crate::trace::Trace;

/// Which end of a connection: the one that connected, or the one that accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Client,
    Server,
}

impl End {
    const fn index(self) -> usize {
        self as usize
    }

    const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// Index of a connection; never used twice within a world.
pub(super) type ConnId = usize;

struct Segment {
    visible_at: Instant,
    bytes: VecDeque<u8>,
}

/// One direction of a connection, indexed by its writing end.
struct Pipe {
    segments: VecDeque<Segment>,
    queued_bytes: usize,
    window_bytes: usize,
    sent_bytes: u64,
    /// Bytes stay in order: nothing becomes visible before what was sent earlier.
    last_visible_at: Instant,
    /// End of stream, after the segments.
    fin_at: Option<Instant>,
    /// A send found no room (or was told so): not writable before this.
    writable_at: Instant,
}

impl Pipe {
    fn new(window_bytes: usize, now: Instant) -> Self {
        Self {
            segments: VecDeque::new(),
            queued_bytes: 0,
            window_bytes,
            sent_bytes: 0,
            last_visible_at: now,
            fin_at: None,
            writable_at: now,
        }
    }

    fn free_bytes(&self) -> usize {
        self.window_bytes.saturating_sub(self.queued_bytes)
    }
}

struct Conn {
    addrs: [SocketAddr; 2],
    pipes: [Pipe; 2],
    open: [bool; 2],
    /// When the client learns the outcome of its connect.
    settled_at: Instant,
    refused: bool,
    /// Each end sees a reset from its time on.
    reset_at: [Option<Instant>; 2],
    stalled_until: Instant,
    /// Ends that went while nothing got through: no end of stream or reset of theirs arrives by itself.
    silent: [bool; 2],
}

impl Conn {
    fn dead(&self) -> bool {
        !self.open[0] && !self.open[1]
    }
}

#[derive(Default)]
struct Backlog {
    waiting: VecDeque<(Instant, ConnId)>,
}

/// See the [module](super).
pub(super) struct Fabric {
    config: NetConfig,
    clock: Rc<SimClock>,
    rng: Rng,
    trace: Rc<Trace>,
    conns: Vec<Conn>,
    /// Connections with an open end, in the order of their making.
    live: Vec<ConnId>,
    listeners: BTreeMap<SocketAddr, Backlog>,
    /// Host pairs (ordered) and until when everything between them is held back.
    holds: BTreeMap<(IpAddr, IpAddr), Instant>,
    next_port: u16,
}

fn pair(a: IpAddr, b: IpAddr) -> (IpAddr, IpAddr) {
    if a.cmp(&b) == Ordering::Greater { (b, a) } else { (a, b) }
}

impl Fabric {
    pub(super) fn new(config: NetConfig, clock: Rc<SimClock>, rng: Rng, trace: Rc<Trace>) -> Self {
        Self {
            config,
            clock,
            rng,
            trace,
            conns: Vec::new(),
            live: Vec::new(),
            listeners: BTreeMap::new(),
            holds: BTreeMap::new(),
            next_port: 32_768,
        }
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn delay(&mut self) -> std::time::Duration {
        let ns = self.rng.between(*self.config.delay_ns.start(), *self.config.delay_ns.end());
        std::time::Duration::from_nanos(ns.max(1))
    }

    // ---- listening and connecting ----

    pub(super) fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        let port = if addr.port() == 0 { self.fresh_port(addr.ip()) } else { addr.port() };
        let addr = SocketAddr::new(addr.ip(), port);
        if self.listeners.contains_key(&addr) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.listeners.insert(addr, Backlog::default());
        self.trace.event("listen", &[u64::from(port)]);
        Ok(addr)
    }

    fn fresh_port(&mut self, ip: IpAddr) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = self.next_port.checked_add(1).unwrap_or(32_768);
            if !self.listeners.contains_key(&SocketAddr::new(ip, port)) {
                return port;
            }
        }
    }

    pub(super) fn unlisten(&mut self, addr: SocketAddr) {
        if let Some(backlog) = self.listeners.remove(&addr) {
            self.trace.event("unlisten", &[u64::from(addr.port())]);
            for (_, conn) in backlog.waiting {
                self.reset(conn);
                self.conns[conn].open[End::Server.index()] = false;
                self.reap(conn);
            }
        }
    }

    pub(super) fn connect(&mut self, from: IpAddr, to: SocketAddr) -> ConnId {
        let now = self.now();
        let arrival = now + self.delay();
        let settled_at = arrival + self.delay();
        let id = self.conns.len();
        let backlog = self.config.backlog;
        let accepted = match self.listeners.get_mut(&to) {
            Some(l) if l.waiting.len() < backlog => {
                l.waiting.push_back((arrival, id));
                true
            }
            _ => false,
        };
        let mut window =
            || self.rng.between(*self.config.window_bytes.start(), *self.config.window_bytes.end()) as usize;
        let pipes = [Pipe::new(window(), now), Pipe::new(window(), now)];
        let client = SocketAddr::new(from, self.fresh_port(from));
        self.conns.push(Conn {
            addrs: [client, to],
            pipes,
            open: [true, accepted],
            settled_at,
            refused: !accepted,
            reset_at: [None, None],
            stalled_until: now,
            silent: [false; 2],
        });
        self.live.push(id);
        self.trace.event("connect", &[id as u64, u64::from(to.port()), u64::from(accepted), now.as_ns()]);
        id
    }

    pub(super) fn accept(&mut self, addr: SocketAddr) -> Option<ConnId> {
        let now = self.now();
        let &(arrival, conn) = self.listeners.get(&addr)?.waiting.front()?;
        if self.visible(conn, arrival) > now {
            return None;
        }
        self.listeners.get_mut(&addr)?.waiting.pop_front();
        self.trace.event("accept", &[conn as u64, now.as_ns()]);
        Some(conn)
    }

    // ---- bytes ----

    /// Takes up to `offered` bytes from `fill`, which is told how many and appends exactly these.
    pub(super) fn send(
        &mut self,
        conn: ConnId,
        end: End,
        offered: usize,
        fill: impl FnOnce(usize, &mut VecDeque<u8>),
    ) -> io::Result<Option<usize>> {
        let now = self.now();
        self.check_alive(conn, end, now)?;
        if end == End::Client {
            if self.visible(conn, self.conns[conn].settled_at) > now {
                return Ok(None);
            }
            if self.conns[conn].refused {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
        }
        if self.conns[conn].pipes[end.index()].fin_at.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.rng.chance_ppm(self.config.reset_ppm) {
            self.reset(conn);
            return self.check_alive(conn, end, now).map(|()| None);
        }
        if self.rng.chance_ppm(self.config.stall_ppm) {
            let ns = self.rng.between(*self.config.stall_ns.start(), *self.config.stall_ns.end());
            self.conns[conn].stalled_until = now + std::time::Duration::from_nanos(ns);
            self.trace.event("stall", &[conn as u64, ns]);
        }
        let free = self.conns[conn].pipes[end.index()].free_bytes();
        let mut len = offered.min(free);
        if len > 1 && self.rng.chance_ppm(self.config.split_ppm) {
            len = self.rng.between(1, len as u64) as usize;
        }
        if len > 0 && self.rng.chance_ppm(self.config.would_block_ppm) {
            let pause = self.delay() + std::time::Duration::from_nanos(1);
            self.conns[conn].pipes[end.index()].writable_at = now + pause;
            return Ok(None);
        }
        if len == 0 {
            return Ok(None);
        }
        self.append(conn, end, len, now, fill);
        Ok(Some(len))
    }

    fn append(
        &mut self,
        conn: ConnId,
        end: End,
        len: usize,
        now: Instant,
        fill: impl FnOnce(usize, &mut VecDeque<u8>),
    ) {
        let mut bytes = VecDeque::with_capacity(len);
        fill(len, &mut bytes);
        debug_assert_eq!(bytes.len(), len);
        self.trace.event("send", &[conn as u64, end as u64, len as u64, now.as_ns()]);
        self.trace.bytes(bytes.make_contiguous());
        let visible_at = now + self.delay();
        let corrupt = self.rng.chance_ppm(self.config.corrupt_ppm);
        let spare = self.config.corrupt_after_bytes;
        if corrupt && self.conns[conn].pipes[end.index()].sent_bytes >= spare {
            let bit = self.rng.below(len as u64 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
            self.trace.event("corrupt", &[conn as u64, bit as u64]);
        }
        let answer_at = visible_at + self.delay();
        let c = &mut self.conns[conn];
        if !c.open[end.other().index()] {
            // Nobody is there to read: a reset comes back.
            c.reset_at[end.index()].get_or_insert(answer_at);
            return;
        }
        let pipe = &mut c.pipes[end.index()];
        pipe.last_visible_at = pipe.last_visible_at.max(visible_at);
        pipe.sent_bytes += len as u64;
        pipe.queued_bytes += len;
        pipe.segments.push_back(Segment { visible_at: pipe.last_visible_at, bytes });
    }

    /// Gives up to `room` received bytes to `take`, in contiguous pieces.
    pub(super) fn recv(
        &mut self,
        conn: ConnId,
        end: End,
        room: usize,
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<Option<usize>> {
        let now = self.now();
        let from = end.other().index();
        let available = self.available(conn, end, now);
        if available == 0 {
            self.check_alive(conn, end, now)?;
            let fin = self.conns[conn].pipes[from].fin_at;
            let eof = fin.is_some_and(|at| self.visible(conn, at) <= now)
                && self.conns[conn].pipes[from].segments.is_empty();
            return Ok(eof.then_some(0));
        }
        let mut len = available.min(room);
        if len > 1 && self.rng.chance_ppm(self.config.split_ppm) {
            len = self.rng.between(1, len as u64) as usize;
        }
        if len == 0 {
            return Ok(None);
        }
        let pipe = &mut self.conns[conn].pipes[from];
        let mut left = len;
        while left > 0 {
            let segment = pipe.segments.front_mut().expect("invariant: available bytes are in segments");
            let n = segment.bytes.len().min(left);
            let (a, b) = segment.bytes.as_slices();
            take(&a[..a.len().min(n)]);
            take(&b[..n - a.len().min(n)]);
            segment.bytes.drain(..n);
            left -= n;
            if segment.bytes.is_empty() {
                pipe.segments.pop_front();
            }
        }
        pipe.queued_bytes -= len;
        self.trace.event("recv", &[conn as u64, end as u64, len as u64, now.as_ns()]);
        Ok(Some(len))
    }

    fn available(&self, conn: ConnId, end: End, now: Instant) -> usize {
        let pipe = &self.conns[conn].pipes[end.other().index()];
        pipe.segments
            .iter()
            .take_while(|s| self.visible(conn, s.visible_at) <= now)
            .map(|s| s.bytes.len())
            .sum()
    }

    // ---- readiness ----

    pub(super) fn readable(&self, conn: ConnId, end: End) -> bool {
        let now = self.now();
        let c = &self.conns[conn];
        let pipe = &c.pipes[end.other().index()];
        c.reset_at[end.index()].is_some_and(|at| at <= now)
            || pipe.segments.front().is_some_and(|s| self.visible(conn, s.visible_at) <= now)
            || (pipe.segments.is_empty() && pipe.fin_at.is_some_and(|at| self.visible(conn, at) <= now))
            || (end == End::Client && c.refused && self.visible(conn, c.settled_at) <= now)
    }

    pub(super) fn writable(&self, conn: ConnId, end: End) -> bool {
        let now = self.now();
        let c = &self.conns[conn];
        if c.reset_at[end.index()].is_some_and(|at| at <= now) {
            return true;
        }
        if end == End::Client && self.visible(conn, c.settled_at) > now {
            return false;
        }
        let pipe = &c.pipes[end.index()];
        c.refused || (pipe.free_bytes() > 0 && pipe.writable_at <= now)
    }

    pub(super) fn addr(&self, conn: ConnId, end: End) -> SocketAddr {
        self.conns[conn].addrs[end.index()]
    }

    pub(super) fn peer(&self, conn: ConnId, end: End) -> SocketAddr {
        self.conns[conn].addrs[end.other().index()]
    }

    // ---- ends of connections ----

    pub(super) fn shutdown(&mut self, conn: ConnId, end: End) {
        if self.conns[conn].silent[end.index()] {
            return;
        }
        let at = self.now() + self.delay();
        let pipe = &mut self.conns[conn].pipes[end.index()];
        if pipe.fin_at.is_none() {
            pipe.fin_at = Some(at.max(pipe.last_visible_at));
            self.trace.event("shutdown", &[conn as u64, end as u64]);
        }
    }

    /// The end was dropped: end of stream for the other end, or a reset when bytes were left unread.
    pub(super) fn close(&mut self, conn: ConnId, end: End) {
        self.shutdown(conn, end);
        let at = self.now() + self.delay();
        let c = &mut self.conns[conn];
        c.open[end.index()] = false;
        let unread = std::mem::take(&mut c.pipes[end.other().index()].queued_bytes) > 0;
        c.pipes[end.other().index()].segments.clear();
        if unread && !c.silent[end.index()] {
            // The reset overtakes nothing that is under way.
            let at = at.max(c.pipes[end.index()].last_visible_at);
            c.reset_at[end.other().index()].get_or_insert(at);
        }
        self.trace.event("close", &[conn as u64, end as u64, u64::from(unread)]);
        self.reap(conn);
    }

    /// What a partition holds back is not sent any more, and then nor is the reset; what is on its way arrives first.
    pub(super) fn abort(&mut self, conn: ConnId, end: End) {
        let now = self.now();
        let at = now + self.delay();
        self.trace.event("abort", &[conn as u64, end as u64, now.as_ns()]);
        let held = self.visible(conn, now) > now;
        let c = &mut self.conns[conn];
        let pipe = &mut c.pipes[end.index()];
        if held {
            pipe.segments.clear();
            pipe.queued_bytes = 0;
            // The other end hears of it when it sends something.
            c.silent[end.index()] = true;
        } else {
            c.reset_at[end.other().index()].get_or_insert(at.max(pipe.last_visible_at));
        }
        c.reset_at[end.index()].get_or_insert(now);
    }

    pub(super) fn lose_farewells(&mut self, a: IpAddr, b: IpAddr) {
        for &id in &self.live {
            let c = &mut self.conns[id];
            if pair(c.addrs[0].ip(), c.addrs[1].ip()) != pair(a, b) {
                continue;
            }
            for end in [End::Client, End::Server] {
                if !c.open[end.index()] {
                    c.silent[end.index()] = true;
                    c.reset_at[end.other().index()] = None;
                    let pipe = &mut c.pipes[end.index()];
                    pipe.segments.clear();
                    (pipe.queued_bytes, pipe.fin_at) = (0, None);
                }
            }
        }
    }

    fn reap(&mut self, conn: ConnId) {
        if self.conns[conn].dead() {
            self.live.retain(|&c| c != conn);
            for pipe in &mut self.conns[conn].pipes {
                pipe.segments = VecDeque::new();
                pipe.queued_bytes = 0;
            }
        }
    }

    fn reset(&mut self, conn: ConnId) {
        let now = self.now();
        self.trace.event("reset", &[conn as u64, now.as_ns()]);
        let c = &mut self.conns[conn];
        c.reset_at = [Some(now); 2];
        for pipe in &mut c.pipes {
            pipe.segments.clear();
            pipe.queued_bytes = 0;
        }
    }

    pub(super) fn reset_one(&mut self) -> bool {
        if self.live.is_empty() {
            return false;
        }
        let conn = *self.rng.pick(&self.live);
        self.reset(conn);
        true
    }

    pub(super) fn reset_all(&mut self) {
        for conn in self.live.clone() {
            self.reset(conn);
        }
    }

    fn check_alive(&self, conn: ConnId, end: End, now: Instant) -> io::Result<()> {
        let c = &self.conns[conn];
        if c.reset_at[end.index()].is_some_and(|at| at <= now) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if end == End::Client && c.refused && self.visible(conn, c.settled_at) <= now {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(())
    }

    // ---- time ----

    /// When something that would be there at `at` really is, with stalls and partitions.
    fn visible(&self, conn: ConnId, at: Instant) -> Instant {
        let c = &self.conns[conn];
        let held = self.holds.get(&pair(c.addrs[0].ip(), c.addrs[1].ip())).copied().unwrap_or_default();
        at.max(c.stalled_until).max(held)
    }

    pub(super) fn hold(&mut self, a: IpAddr, b: IpAddr, until: Instant) {
        self.trace.event("hold", &[until.as_ns()]);
        self.holds.insert(pair(a, b), until);
    }

    pub(super) fn next_event(&self) -> Option<Instant> {
        let now = self.now();
        let mut next: Option<Instant> = None;
        let mut consider = |at: Instant| {
            if at > now && next.is_none_or(|n| at < n) {
                next = Some(at);
            }
        };
        for &id in &self.live {
            let c = &self.conns[id];
            consider(self.visible(id, c.settled_at));
            c.reset_at.iter().flatten().for_each(|&at| consider(at));
            for pipe in &c.pipes {
                if let Some(s) = pipe.segments.front() {
                    consider(self.visible(id, s.visible_at));
                }
                if let Some(s) = pipe.segments.iter().find(|s| s.visible_at > now) {
                    consider(self.visible(id, s.visible_at));
                }
                if let Some(at) = pipe.fin_at {
                    consider(self.visible(id, at));
                }
                consider(pipe.writable_at);
            }
        }
        for backlog in self.listeners.values() {
            if let Some(&(at, conn)) = backlog.waiting.front() {
                consider(self.visible(conn, at));
            }
        }
        next
    }

    pub(super) fn set_config(&mut self, config: NetConfig) {
        self.config = config;
    }

    pub(super) fn config_mut(&mut self) -> &mut NetConfig {
        &mut self.config
    }

    pub(super) fn open_connections(&self) -> usize {
        self.live.len()
    }
}
