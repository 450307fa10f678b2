//! The target role: subsystems, controllers and namespaces, and every command that is not hot.
//!
//! # Map
//! - [`Target`] (`handle`, `control`): the control handle, shared by the daemon and all cores. Creates and changes
//!   subsystems and namespaces, and lists them ([`snapshot`]).
//! - [`connect`]: the Fabrics Connect command; ends in a [`QueueGrant`] or a [`Rejection`].
//! - [`controller`]: one association: properties, Keep Alive, the life of its queues.
//! - [`admin`]: identify, log pages, features, asynchronous events, Abort.
//! - [`nvm`]: decoding and validation of I/O commands; pure, hot, used by the cores.
//! - [`core`]: what runs on each core: connections, command slots, devices, the hot path.
//! - `reserve`: reservations: who may write, and how a change of that reaches every core.
//! - [`board`]: orders from the control side to the cores, and their acknowledgements.
//! - [`config`], [`ns`], [`ana`], [`counters`], [`error`]: plain data.
//!
//! # Who locks what
//! One mutex holds the model (subsystems, namespaces, listeners, list of controllers), one more each
//! controller's state. Order: model, then controller. Devices are never called under either, because they may
//! call the target's event sink with their own lock held. Nothing here is locked per I/O: cores keep their own
//! copies of [`NsInfo`] and [`AnaTable`] and read two atomics a connection and turn.
//!
//! # Life of an association
//! A Connect on queue 0 makes a controller, one on queue N adds a queue; each ends in a [`QueueGrant`], which
//! the connection holds *until nothing of the queue is in flight any more, down to the device*, and then drops.
//! When the admin queue is dropped, the Keep Alive Timer runs out, the host loses its permission or the
//! subsystem is deleted, the controller dies: every queue reads [`QueueGrant::closing`], and the identifier is
//! free again when the last grant was dropped. Only then does a new association of the same host begin
//! (`HAZARDS` H3): until then its Connect is told to wait.
//!
//! A new admin Connect does *not* end a living association of the same host, although a host that was rebooted comes
//! back that way. NVMe lets one host (same HOSTNQN and HOSTID) have several associations with a subsystem at one time,
//! and hosts do: one for each path, and more with duplicate connections allowed. Nothing in Connect tells the two
//! apart. The Linux target does the same: every Connect makes another controller. What the host left behind ends by
//! its Keep Alive Timer; where the host switched that off (KATO 0), by TCP, which probes idle connections and gives
//! up a peer that did not acknowledge anything for a minute (`aio`, options of streams). A rebooted host that is
//! reachable again answers the first such probe with a reset.

pub mod admin;
pub mod ana;
pub mod board;
pub mod config;
pub mod connect;
mod control;
pub mod controller;
pub mod core;
pub mod counters;
pub mod error;
mod handle;
mod model;
pub mod ns;
pub mod nvm;
mod promise;
mod reserve;
pub mod snapshot;
#[cfg(test)]
mod tests;

pub use admin::{AdminOutcome, FailedCommand};
pub use ana::{AnaState, AnaTable, ListenerId};
pub use board::{AbortRequest, Ack, Attach, CoreFailure, CoreInbox, CoreIndex, CoreMsg, SubsystemId};
pub use config::{AllowedHosts, Listeners, NamespaceSpec, SubsystemSpec, TargetConfig};
pub use connect::{ConnectOutcome, ConnectRequest, Rejection};
pub use controller::{AdminCompletion, Controller, ControllerKind, QueueGrant, Tick};
pub use counters::{IoCounters, IoTotals};
pub use error::TargetError;
pub use handle::Target;
pub use ns::{NsIds, NsInfo};
pub use reserve::{PersistentReservations, ReservationStore, SaveDone, SavedReservations};
