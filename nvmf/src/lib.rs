//! NVMe over Fabrics.

pub mod target;
pub mod tcp;
