//! The simulated network on its own: what arrives is a prefix of what was sent, all of it when nothing broke.

#![allow(unsafe_code, reason = "streams take raw scatter-gather entries")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use aio::{ByteStream, Clock as _, RegionId, SgEntry};

use crate::clock::SimClock;
use crate::net::{NetConfig, SimNet};
use crate::rng::Rng;
use crate::seeds::{Outcome, Scenario, Violation};
use crate::trace::Trace;

/// Random bytes both ways over a few connections, with half-closes, resets, stalls and partitions.
pub const SCENARIO: Scenario =
    Scenario { name: "bytes", about: "simulated sockets: order, completeness, half-close, resets", run };

const TARGET: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// Byte `at` of the stream that direction `salt` carries.
fn pattern(salt: u64, at: u64) -> u8 {
    (at.wrapping_mul(0x9E37_79B9).wrapping_add(salt) >> 7) as u8
}

/// One end, with what it still has to send and what it has seen.
struct Peer {
    stream: Option<Box<dyn ByteStream>>,
    salt: [u64; 2],
    to_send: u64,
    sent: u64,
    received: u64,
    finished: bool,
    broken: bool,
}

impl Peer {
    fn new(stream: Box<dyn ByteStream>, to_send: u64, salt: [u64; 2]) -> Self {
        Self { stream: Some(stream), salt, to_send, sent: 0, received: 0, finished: false, broken: false }
    }

    fn done(&self) -> bool {
        self.broken || (self.finished && self.sent > self.to_send)
    }

    /// A send and a receive of random sizes; true when something moved.
    fn step(&mut self, rng: &mut Rng) -> Result<bool, Violation> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        let mut moved = false;
        if self.sent < self.to_send && stream.ready().writable {
            let len = rng.between(1, (self.to_send - self.sent).min(3_000));
            let mut bytes: Vec<u8> = (self.sent..self.sent + len).map(|i| pattern(self.salt[0], i)).collect();
            let cut = rng.below(len) as usize;
            // SAFETY: the entries name `bytes`, which lives until the end of the block.
            match unsafe { stream.send(&pieces(&mut bytes, cut)) } {
                Ok(Some(n)) => {
                    self.sent += n as u64;
                    moved = true;
                }
                Ok(None) => {}
                Err(_) => self.broken = true,
            }
        } else if self.sent == self.to_send {
            stream.shutdown();
            self.sent += 1;
            moved = true;
        }
        if !self.finished && !self.broken {
            let mut bytes = vec![0; rng.between(1, 4_000) as usize];
            let cut = rng.below(bytes.len() as u64) as usize;
            // SAFETY: as above.
            match unsafe { stream.recv(&pieces(&mut bytes, cut)) } {
                Ok(Some(0)) => self.finished = true,
                Ok(Some(n)) => {
                    for byte in &bytes[..n] {
                        if *byte != pattern(self.salt[1], self.received) {
                            return Err(Violation::new(format!("byte {} arrived changed", self.received)));
                        }
                        self.received += 1;
                    }
                    moved = true;
                }
                Ok(None) => {}
                Err(_) => self.broken = true,
            }
        }
        Ok(moved)
    }
}

fn pieces(bytes: &mut [u8], cut: usize) -> Vec<SgEntry> {
    let (a, b) = bytes.split_at_mut(cut);
    [a, b]
        .into_iter()
        .filter(|s| !s.is_empty())
        .map(|s| SgEntry { ptr: NonNull::from(&mut s[0]), len_bytes: s.len() as u32, region: RegionId::NONE })
        .collect()
}

fn run(seed: u64, verbose: bool) -> Result<Outcome, Violation> {
    let mut rng = Rng::new(seed);
    let clock = Rc::new(SimClock::new());
    let trace = Rc::new(if verbose { Trace::with_tail() } else { Trace::new() });
    let lossless = rng.chance_ppm(500_000);
    let config = if lossless { NetConfig::choppy(&mut rng) } else { NetConfig::hostile(&mut rng) };
    let net = SimNet::new(config, clock.clone(), rng.fork(1), trace.clone());
    converse(&mut rng, &clock, &net, lossless)
        .map(|checked| Outcome { hash: trace.hash(), checked })
        .map_err(|v| Violation { trail: trace.tail(), ..v })
}

fn converse(rng: &mut Rng, clock: &SimClock, net: &SimNet, lossless: bool) -> Result<u64, Violation> {
    let io = |e: std::io::Error| Violation::new(format!("unexpected {e}"));
    let target = net.host(TARGET);
    let host = net.host(HOST);
    let mut listener = target.listen(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8420)).map_err(io)?;
    let mut refused = host.connect(SocketAddr::new(TARGET, 1)).map_err(io)?;
    let mut peers = Vec::new();
    let (mut connected, mut accepted) = (0, 0);
    let wanted = rng.between(1, 4);
    for _ in 0..20_000 {
        if connected < wanted {
            connected += 1;
            let stream = host.connect(listener.local_addr()).map_err(io)?;
            peers.push(Peer::new(stream, rng.below(20_000), [1, 2]));
        }
        if let Some(stream) = listener.accept().map_err(io)? {
            accepted += 1;
            peers.push(Peer::new(stream, rng.below(20_000), [2, 1]));
        }
        let mut moved = false;
        for peer in &mut peers {
            moved |= peer.step(rng)?;
            if peer.done() {
                peer.stream = None;
            }
        }
        if rng.chance_ppm(1_000) {
            net.partition(TARGET, HOST, Duration::from_micros(rng.below(2_000)));
        }
        if accepted == wanted && peers.iter().all(Peer::done) {
            break;
        }
        if !moved {
            match net.next_event() {
                Some(at) => clock.advance_to(at),
                None if lossless => return Err(Violation::new("nothing moves and nothing is under way")),
                None => break,
            }
        }
    }
    let mut byte = [0];
    clock.advance(Duration::from_secs(1));
    // SAFETY: the entries name `byte`.
    if !matches!(unsafe { refused.send(&pieces(&mut byte, 0)) }, Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused)
    {
        return Err(Violation::new("a connect to a closed port was not refused"));
    }
    if lossless {
        let sent: u64 = peers.iter().map(|p| p.to_send).sum();
        let received: u64 = peers.iter().map(|p| p.received).sum();
        if peers.iter().any(|p| p.broken || !p.done()) || sent != received {
            let now = clock.now().as_ns();
            return Err(Violation::new(format!("{sent} bytes sent, {received} arrived by {now} ns")));
        }
    }
    drop((peers, refused, listener));
    match net.open_connections() {
        0 => Ok(1 + connected),
        n => Err(Violation::new(format!("{n} connections left open"))),
    }
}
