//! NVMe over Fabrics.

pub mod tcp;
