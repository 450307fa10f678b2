//! The NVMe/TCP protocol engine, for both roles (NVMe/TCP Transport 1.0). Sans-I/O: received bytes in, events and
//! transmit lists out; it owns no socket, no buffer and no clock.
//!
//! # Map
//! - [`engine`]: one connection: [`Engine`] negotiates, checks, and turns bytes into [`Event`]s. Its state is one
//!   enum with one transition function.
//! - [`emit`]: building PDUs in a transmit list.
//! - [`txq`]: [`TxQueue`], the transmit list: headers copied, payload named.
//! - [`transfer`]: what R2T, H2CData and C2HData of one command have transferred and may transfer next.
//!
//! # How bytes become events
//! The caller receives into memory of its own and calls [`Engine::next`] until it returns `None`. Payload that
//! is complete in the received bytes comes with its event, as a slice ([`Data::here`]). Otherwise the event
//! announces it, [`Event::Piece`]s follow with what is there, and the caller may receive the rest straight into
//! place ([`Engine::payload_left`], [`Engine::received_in_place`]) before it goes on with `next`;
//! [`Event::PayloadEnd`] closes it. Headers may be cut anywhere: the engine keeps the part that came.
//!
//! # Errors
//! A [`PduError`](nvme::tcp::PduError) from anything here is fatal for the connection: the caller passes it to
//! [`Engine::fail`], which queues the TermReq, sends, and closes. A wrong *data* digest is no such error: the
//! event says so, and the command completes with Transient Transport Error.

pub mod emit;
pub mod engine;
pub mod transfer;
pub mod txq;

#[cfg(test)]
mod tests;

pub use engine::{Agreed, Data, Engine, Event, Local, Terminated};
pub use transfer::{C2hProgress, DataSpan, Inbound, MAX_OUTSTANDING_R2T, Outbound};
pub use txq::{MAX_GATHER, TxQueue, TxTag};
