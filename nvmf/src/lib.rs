//! NVMe over Fabrics.
//!
//! - [`tcp`]: the NVMe/TCP protocol engine, sans-I/O, for both roles.
//! - [`target`]: subsystems, controllers, namespaces, and what serves them on each core.
//! - [`initiator`]: another host's namespace as a block device.
#![deny(unsafe_code)]

pub mod initiator;
pub mod target;
pub mod tcp;
