//! NVMe over Fabrics.

pub mod initiator;
pub mod target;
pub mod tcp;
