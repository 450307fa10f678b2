//! A simulated network behind `aio`'s [`Network`], [`Listener`] and [`ByteStream`].
//!
//! # Map
//! - [`NetConfig`]: delays, splits, buffer sizes and fault rates.
//! - `fabric`: the state of every connection; deliveries are decided when sent and looked at lazily.
//! - `stream`: the trait objects that reactors hold; the only place with `unsafe`.
//!
//! What it models of TCP: bounded send window, bytes in order, arbitrary segmentation on both sides, half-close,
//! reset (also by closing with unread data), refused connects, a full backlog, stalls and partitions (bytes
//! wait, nothing is lost). What it adds: corruption of single bits past a protected prefix, for digests.
//! Nothing moves by itself: time comes from the [`SimClock`], and
//! [`SimNet::next_event`] says when something becomes visible next.

mod config;
mod fabric;
mod stream;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use aio::{ByteStream, Clock as _, Instant, Listener, Network};

use crate::clock::SimClock;
use crate::rng::Rng;
use crate::trace::Trace;
pub use config::NetConfig;
use fabric::Fabric;
use stream::{SimListener, SimStream};

/// The whole network of a world. Clones share it.
#[derive(Clone)]
pub struct SimNet {
    fabric: Rc<RefCell<Fabric>>,
    clock: Rc<SimClock>,
}

impl SimNet {
    /// An empty network.
    pub fn new(config: NetConfig, clock: Rc<SimClock>, rng: Rng, trace: Rc<Trace>) -> Self {
        let fabric = Rc::new(RefCell::new(Fabric::new(config, clock.clone(), rng, trace)));
        Self { fabric, clock }
    }

    /// The network as the host with address `ip` sees it.
    pub fn host(&self, ip: IpAddr) -> Rc<dyn Network> {
        Rc::new(Host { fabric: self.fabric.clone(), ip })
    }

    /// When something that is on its way becomes visible next; `None` when nothing is under way.
    pub fn next_event(&self) -> Option<Instant> {
        self.fabric.borrow().next_event()
    }

    /// Holds back everything between the two hosts for `time`; nothing is lost.
    pub fn partition(&self, a: IpAddr, b: IpAddr, time: Duration) {
        let until = self.clock.now() + time;
        self.fabric.borrow_mut().hold(a, b, until);
    }

    /// Ends a partition now.
    pub fn heal(&self, a: IpAddr, b: IpAddr) {
        let now = self.clock.now();
        self.fabric.borrow_mut().hold(a, b, now);
    }

    /// What closed ends have sent and a partition holds back is lost, and so are their farewells: the other ends hear
    /// nothing of the end before they send something.
    pub fn lose_farewells(&self, a: IpAddr, b: IpAddr) {
        self.fabric.borrow_mut().lose_farewells(a, b);
    }

    /// Resets one open connection, chosen by the network's own generator; false when there is none.
    pub fn reset_one(&self) -> bool {
        self.fabric.borrow_mut().reset_one()
    }

    /// Resets every open connection.
    pub fn reset_all(&self) {
        self.fabric.borrow_mut().reset_all();
    }

    /// Exchanges delays and fault rates from now on; established connections keep their buffer sizes.
    pub fn set_config(&self, config: NetConfig) {
        self.fabric.borrow_mut().set_config(config);
    }

    /// Changes single settings from now on.
    pub fn adjust(&self, change: impl FnOnce(&mut NetConfig)) {
        change(self.fabric.borrow_mut().config_mut());
    }

    /// Connections of which at least one end is open.
    pub fn open_connections(&self) -> usize {
        self.fabric.borrow().open_connections()
    }
}

struct Host {
    fabric: Rc<RefCell<Fabric>>,
    ip: IpAddr,
}

impl Host {
    /// Loopback and wildcard addresses mean the host itself.
    fn own(&self, addr: SocketAddr) -> SocketAddr {
        let ip = addr.ip();
        if ip.is_unspecified() || ip.is_loopback() { SocketAddr::new(self.ip, addr.port()) } else { addr }
    }
}

impl Network for Host {
    fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let addr = self.fabric.borrow_mut().listen(self.own(addr))?;
        Ok(Box::new(SimListener::new(self.fabric.clone(), addr)))
    }

    fn connect(&self, addr: SocketAddr) -> io::Result<Box<dyn ByteStream>> {
        let conn = self.fabric.borrow_mut().connect(self.ip, self.own(addr));
        Ok(Box::new(SimStream::client(self.fabric.clone(), conn)))
    }
}
