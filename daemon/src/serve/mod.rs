//! `keelson serve`: the daemon.
pub mod args;
pub mod cores;
pub mod iface;
