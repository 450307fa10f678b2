//! What this node is made of: its disks and what the process uses.
//!
//! - [`disks`]: the list of disks and partitions, from sysfs, the udev database and the mount table.
//! - [`udev`]: one entry of the udev database.
//! - [`mounts`]: the mount table.
//! - [`stacks`]: what the threads of a process are doing.
//! - [`usage`]: page faults, context switches, resident memory.

pub mod disks;
pub mod mounts;
pub mod stacks;
pub mod udev;
pub mod usage;
