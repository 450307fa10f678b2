//! The daemon and its commands: the one place that knows every concrete type.
//!
//! # Map
//! - [`cli`]: the command line. - [`serve`]: the daemon: flags, cores, addresses, start and stop.
//! - [`engine`]: every change to devices and exports, one at a time. - [`registry`]: block devices by name, made
//!   from URIs. - [`pools`]: pools, replicas, snapshots. - [`nexuses`]: mirrors. - [`exports`]: subsystems. - [`node`]: who this engine is.
//! - [`desired`]: what was asked for, as plain data; [`config`] reads it from TOML, [`state`] keeps it over
//!   restarts. - [`ptpl`] keeps reservations.
//! - [`services`]: gRPC. - `metrics`: Prometheus. - [`log`]: log lines.
//! - [`host`]: disks of the host and what the process uses.
//! - [`perf`]: the load generator. - [`check`]: the offline checker. - [`demo`]: everything in one go.
//! - [`error`]: what a control request can fail with.
//!
//! # Threads
//! The control side is one tokio thread, plus a few for calls that block. Data moves on the reactors' threads
//! only; the two sides talk through the mailboxes of the cores.
#![deny(unsafe_code)]

pub mod check;
pub mod cli;
pub mod config;
pub mod demo;
pub mod desired;
pub mod engine;
pub mod error;
pub mod exports;
pub mod host;
pub mod log;
mod metrics;
pub mod nexuses;
pub mod node;
pub mod perf;
pub mod pools;
pub mod ptpl;
pub mod registry;
pub mod serve;
pub mod services;
pub mod state;
