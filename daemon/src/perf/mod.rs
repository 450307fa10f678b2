//! `keelson perf`: a load generator on our own devices and initiator.
//!
//! - [`args`]: the command line. - [`run`](mod@run): spreads a job over devices, queues and cores.
//! - `worker`: one queue of one device, on a reactor. - [`plan`]: which I/O comes next.
//! - [`stamp`]: what `--verify` writes and checks. - [`histogram`]: latencies. - [`report`]: the result.

pub mod args;
pub mod histogram;
pub mod plan;
pub mod report;
pub mod run;
pub mod stamp;
mod worker;

pub use plan::Pattern;
pub use report::Summary;
pub use run::{Job, PerfError, Report, Watch};
pub use worker::Outcome;
