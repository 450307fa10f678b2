//! NVMe over Fabrics.
