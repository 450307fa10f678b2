//! Devices that need nothing but this crate.
//!
//! # Map
//! - [`mod@file`]: files and block devices. - [`malloc`]: a RAM disk. - [`null`]: stores nothing. - [`sim`]: fails on
//!   purpose, for tests.
//! - Parts: [`memory_device`] (what `malloc` and `null` have in common), [`events`] (subscribers), `instant_queue` (completions of work done at submission), `token_map`,
//!   `exclusion` (Compare and Write against other cores), `ram` (a mapping), `zeroes` (another), [`prng`] (seeded numbers).
//!
//! [`create`] makes a device of a URI.

pub mod events;
mod exclusion;
pub mod file;
mod instant_queue;
pub mod malloc;
pub mod memory_device;
pub mod null;
pub mod prng;
mod ram;
pub mod sim;
mod token_map;
mod zeroes;

use std::sync::Arc;

use crate::device::{BlockDevice, DeviceError};
use crate::uri::DeviceUri;

pub use file::FileDevice;
pub use malloc::Malloc;
pub use null::Null;

/// Makes the device that `uri` describes. The schemes of other crates are refused as unsupported.
pub fn create(uri: &DeviceUri) -> Result<Arc<dyn BlockDevice>, DeviceError> {
    match uri {
        DeviceUri::Aio(f) => Ok(Arc::new(FileDevice::open(f, "aio")?)),
        DeviceUri::Uring(f) => Ok(Arc::new(FileDevice::open(f, "uring")?)),
        DeviceUri::Malloc(m) => Ok(Arc::new(Malloc::new(m)?)),
        DeviceUri::Null(m) => Ok(Arc::new(Null::new(m)?)),
        other => Err(DeviceError::Unsupported {
            op: "creating a device of this scheme",
            device: other.to_string(),
        }),
    }
}
