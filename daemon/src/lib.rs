//! The daemon and its commands: the one place that knows every concrete type.
//!
//! # Map
//! - [`cli`]: the command line. - [`serve`]: flags of the daemon, its cores and addresses.
//! - [`registry`]: block devices by name, made from URIs. - [`node`]: who this engine is.
//! - [`desired`]: what was asked for, as plain data; [`config`] reads it from TOML, [`state`] keeps it over
//!   restarts.
//! - [`host`]: disks of the host and what the process uses. - [`log`]: log lines.
//! - [`perf`]: the load generator.
//! - [`error`]: what a control request can fail with.
#![deny(unsafe_code)]

pub mod cli;
pub mod config;
pub mod desired;
pub mod error;
pub mod host;
pub mod log;
pub mod node;
pub mod perf;
pub mod registry;
pub mod serve;
pub mod state;
