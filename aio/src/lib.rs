//! The asynchronous I/O floor: what every layer above speaks, and the reactor that drives it.
//!
//! # Map
//! - [`device`]: the contract. A [`BlockDevice`] is the control side, an [`IoChannel`] the per-core data side.
//! - [`devices`]: malloc, null, files and block devices, and the simulated one.
//! - [`facets`]: what a device can tell and do beyond I/O, for those who ask on a core's executor.
//! - [`io`]: what crosses the contract: [`Io`], [`Token`], [`Completion`].
//! - [`check`]: is this I/O valid on that device? Used by every device before it takes one.
//! - [`sg`]: scatter-gather entries and the regions that they name.
//! - [`sgmem`]: copies between such entries and memory.
//! - [`poller`]: what the reactor drives.
//! - [`stream`]: byte streams and listeners, as the reactor's sockets and the simulator provide them.
//! - [`uri`]: device URIs, in Mayastor's forms.
//! - [`reactor`]: the per-core event loop: turn, sleep, tasks, timers, mailbox; io_uring or epoll beneath.
//! - [`memory`]: the registry of regions, and per-core pools of I/O buffers.
//! - [`net`]: TCP sockets as byte streams.
//! - `ring` (inside): the core's io_uring, which files, sockets and wake-ups share.
//! - [`facade`]: the contract as `async` functions on buffers.
//! - [`gate`]: an asynchronous lock for tasks of one core.
//! - [`time`]: the clock that everything below takes as an argument.
#![warn(missing_docs)]

pub mod check;
pub mod device;
pub mod devices;
pub mod facade;
pub mod facets;
pub mod gate;
pub mod io;
pub mod memory;
pub mod net;
pub mod poller;
pub mod reactor;
mod ring;
pub mod sg;
pub mod sgmem;
pub mod stream;
pub mod time;
pub mod uri;

pub use device::{
    BlockDevice, Busy, Cancel, Capabilities, DeviceError, DeviceEvent, Geometry, IoChannel, LocalBoxFuture,
    Sleep,
};
pub use facade::Descriptor;
pub use facets::{FacetError, FacetFuture, Marks, Ranges, Snapshots};
pub use io::{BlockCount, BlockRange, Completion, Io, IoFlags, Lba, Lent, MAX_RANGES, Opcode, Token};
pub use memory::{DmaBuf, DmaPool, DmaPools, Memory};
pub use nvme::Status as IoStatus;
pub use poller::Poller;
pub use reactor::{Core, CoreHandle, CoreId, Reactor, ReactorConfig};
pub use sg::{RegionId, SgEntry};
pub use stream::{ByteStream, Detached, Listener, Network, Ready};
pub use time::{Clock, Instant};
pub use uri::{DeviceUri, UriError};
