//! What the NVMe specifications define, as types and pure logic. No I/O, no `unsafe`, no allocation outside of
//! the builders of log pages and of text, and of the state of reservations.
//!
//! Written after NVMe Base 2.0, NVM Command Set 1.0 and NVMe/TCP Transport 1.0; section and figure numbers in
//! the documentation are of those revisions.
//!
//! | module | holds |
//! |---|---|
//! | [`command`] | [`Sqe`], [`Cqe`], opcodes, identifiers ([`Cid`], [`Qid`], [`Nsid`], [`Cntlid`]) |
//! | [`status`] | [`Status`]: type, code, More, Do Not Retry; every code as a constant and as text |
//! | [`sgl`] | SGL descriptors: in-capsule, transport, keyed, ... |
//! | [`nvm`] | arguments and payloads of the NVM command set: Read, Write, Dataset Management, Copy, ... |
//! | [`admin`] | arguments of Abort |
//! | [`identify`] | Identify: controller, namespace, lists, descriptors |
//! | [`log`] | Get Log Page: error, SMART, ANA, discovery, effects, ... |
//! | [`feature`] | Get and Set Features and the values of the features |
//! | [`aen`] | asynchronous events |
//! | [`property`] | CAP, VS, CC, CSTS, CRTO |
//! | [`fabrics`] | Connect, Property Get and Set, Disconnect, Authentication |
//! | [`nqn`] | [`Nqn`] and [`HostId`] |
//! | [`tcp`] | NVMe/TCP PDUs and the checks of their headers |
//! | [`digest`] | CRC32C |
//! | [`prp`] | Physical Region Page entries and lists |
//! | [`reservation`] | reservations: commands, report, the state of a namespace, who may do what |
//! | [`ring`] | index and phase arithmetic of the queues |
//! | [`text`] | ASCII fields |
//! | [`vendor`] | what controllers of this project have on top |
//!
//! # How the types are made
//! - A **wire structure** is `#[repr(C)]`, has alignment 1 and no padding, and asserts its size at compile time.
//!   `T::view(bytes)` looks at bytes in place, `T::read(bytes)` copies, `value.wire()` gives the bytes back. All
//!   fields are public and little-endian by their type.
//! - A **code** that later revisions or vendors extend ([`AdminOpcode`], [`log::Lid`], ...) is an open newtype with
//!   constants, a **bit set** keeps bits that it does not know: what comes in goes out unchanged.
//! - **Arguments** of a command ([`nvm::Rw`], [`log::GetLogPage`], ...) are plain host-side structs that `decode` from
//!   an [`Sqe`] and write one. Zero-based fields end in `_z` and exist on the wire only; arguments are one-based.
//!
//! # Panic guarantee
//! No function that takes bytes, an [`Sqe`], a [`Cqe`] or any other wire structure panics, whatever the bytes are;
//! none allocates more than a small multiple of what it is given. Where a value can be wrong the function returns
//! `Option` or `Result`, and the error is what goes back to the peer ([`Status`], [`tcp::PduError`],
//! [`fabrics::ConnectError`]). `tests/garbage.rs` holds this up with seeded random input.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[macro_use]
mod macros;

pub mod admin;
pub mod aen;
pub mod command;
pub mod digest;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod log;
pub mod nqn;
pub mod nvm;
pub mod property;
pub mod prp;
pub mod reservation;
pub mod ring;
pub mod sgl;
pub mod status;
pub mod tcp;
pub mod text;
pub mod vendor;

pub use command::{AdminOpcode, Cid, Cntlid, Cqe, Nsid, NvmOpcode, Qid, Sqe};
pub use nqn::{HostId, Nqn};
pub use status::Status;
