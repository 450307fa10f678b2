//! The host role: subsystems of other hosts as block devices.
//!
//! # Map
//! - [`NvmfDevice`] (`device`): the block device over all its paths; `channel` its data side, with a `link` a path.
//! - `board`: what all cores see of the paths. - `home`, `path`: what runs on the device's home core.
//! - `recovery`: the life of one path, as decisions. - `establish`: making an association, and whether it leads to the
//!   same namespace. - `unsettled`: associations that ended and may still execute commands.
//! - [`Controller`]: one association: admin queue, identify data, keep alive, asynchronous events.
//! - [`discover`]: what a discovery controller offers.
//! - [`Options`]: where and how to connect, from a URI.
//! - `request`: what an I/O becomes on the wire. - `queue`, `slot`: one queue pair over TCP.
//! - `namespace`: a namespace's shape and limits. - `facets`: what it can do beyond I/O, where its target tells.
//! - `reservations`: of a namespace, for the host that the device is connected for.
//! - `calls`, `connect`: commands as futures, for everything but I/O. - `memory`: pieces of the caller's memory.
//!
//! # Data path
//! `submit` turns an I/O into a command in a slot and a capsule in the transmit list; `kick` sends all capsules of
//! the turn at once; `poll` makes one receive, whose payload goes straight to the caller's memory as far as the
//! headers before it are known, and hands out completions. Nothing on the way allocates once the lists have grown. One
//! I/O queue a core and path: the queue's lists are that core's alone, one receive and one send serve a whole turn, and a
//! second queue would only divide the batches.
//!
//! # Who owns what
//! | what | owner |
//! |---|---|
//! | controllers (admin queues), timers, the state of each path | the home core, where the device was connected |
//! | I/O queues, requests, what waits and what is held | the core of the channel; no other core ever touches them |
//! | access, associations, what is settled, the life of the device | the board: the home core writes, channels read |
//! | requests to the home core (lost, look, abort, commands) | its inbox, which any thread writes |
//!
//! A channel compares the board's version when it takes an I/O and when it polls. Whoever changes the board wakes the
//! cores of all channels.
//!
//! # States
//! A **path** is connecting, live, waiting (for its next attempt) or given up (`recovery`); while it is live its **access**
//! is optimized, non-optimized or none, after the ANA log page, which is read at connect, upon its notice, and when a
//! command says that the access is another one. An **association** of it is live, then *ended* (no queue is opened any
//! more, every channel closes its own), then *closed* (nothing of it leaves this host any more), then *settled* (the target
//! executes nothing of it any more). A **device** with its namespace is live, faulted (its last path was given up) or
//! removed; while it is live and no path has access it is *waiting*, and after `fast_io_fail_tmo` *impatient*: then I/O fails
//! with a path-related status at once, until a path works.
//!
//! An I/O takes a path with the best access that any has: each in turn, or the fastest lately. Without one it waits; a channel
//! holds no more than its queue depth and answers Busy beyond that.
//!
//! # What is retried (`HAZARDS` H3)
//! When a connection ends, nobody knows what became of the commands in flight: executed, never received, or, the dangerous
//! case, still on their way through the target. Linux sends them again at once, over another path or a new association
//! (multipath requeues whatever failed with a path error); an old copy that the target executes late can then overwrite a
//! newer write that was acknowledged meanwhile. Here:
//!
//! - Reads, compares and flushes are sent again at once, wherever there is a path: a late copy changes nothing.
//! - Writes, zeroes and deallocations are **held** until the association is settled, and then sent again. What the caller
//!   submits later is not ordered after them, because they have not completed; what was acknowledged before them is
//!   overwritten by either copy alike. The range can have changed in between only by a host that wrote to it while this
//!   write was in flight, which hosts that share a namespace must not do to each other on any fabric.
//! - Compare and Write is never sent again: the second copy would find what the first one wrote. It fails, once the
//!   association is settled, with a path-related status, which means that its outcome is unknown.
//! - What a controller *answers* with a path-related status it has not executed, and it is over: it goes another way at once.
//!
//! An association is settled when a controller of ours says so, over any path ([`nvme::vendor::EndAssociation`]: it ends
//! the other association and drains it, down to the device; one that it does not know is over, because whoever serves a
//! volume has fenced off who served it before); or when the Keep Alive Timeout has passed, twice where the controller counts
//! traffic, and ten seconds for what it executes (other controllers cannot be asked). So that nothing follows later, queues
//! are closed by a reset: what the kernel has taken and not sent is never sent. An association with nothing but reads in
//! flight is settled as soon as it is closed.
//!
//! No association goes live before all earlier ones of this process with the subsystem are settled, also those of devices
//! that are gone: a mirror that opens a child anew waits for what the old one left behind. So a write that failed because no
//! path came back in time (`fast_io_fail_tmo`), or because the device faulted, is over before the next one can be made.
//! What remains: a caller that reaches the same namespace by other means than this process.
//!
//! # What comes back
//! An association leads to the same device only when the namespace has the same identifiers, block size and commands, and
//! is no smaller and no more limited; else its path is given up. And (`HAZARDS` H1) only when nothing acknowledged was lost:
//! the namespace's incarnation, which controllers of ours report, has to be the one that it was. Where it is not known, a
//! controller with a volatile cache is not taken back unless another path has worked all the time (or `trust_cache` says so).
//!
//! # Faults
//! A peer that breaks the rules, goes silent or goes away ends its association. A command without an answer within the time
//! limit is aborted first; when that does not bring an answer either, the association is ended. By default a device with one
//! path faults with its first loss, so that a mirror above decides at once; with `ctrl-loss-tmo`, or several paths, it
//! reconnects. A device that faults announces [`DeviceEvent::Faulted`](aio::DeviceEvent::Faulted), everything
//! in flight completes with [`Status::HOST_PATHING_ERROR`](nvme::Status::HOST_PATHING_ERROR), exactly once, and so does
//! all later I/O.

mod board;
mod calls;
mod channel;
mod connect;
mod controller;
mod device;
mod discovery;
mod error;
mod establish;
mod facets;
mod home;
mod link;
mod memory;
mod namespace;
mod options;
mod path;
mod queue;
mod recovery;
mod request;
mod reservations;
mod signal;
mod slot;
mod stats;
mod unsettled;

pub use controller::{AdminReply, AdminRequest, Controller, IoRequest, MAX_ADMIN_BYTES};
pub use device::{NvmfDevice, PathInfo, PathState};
pub use discovery::{DiscoveryEntry, discover, discover_with};
pub use error::{Error, PeerFault, UriProblem};
pub use options::{
    DEFAULT_CTRL_LOSS, DEFAULT_QUEUE_DEPTH, DEFAULT_RECONNECT_DELAY, FIRST_RECONNECT, MAX_PATHS, Options,
    PathPolicy, Recovery, resolve,
};
pub use stats::DeviceStats;
pub use unsettled::Unsettled;
