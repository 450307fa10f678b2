//! Pools that are verified while they are in use.

use lvs::info::{ScrubReport, ScrubState};
use tracing::{error, info, warn};

use super::PoolEntry;
use crate::engine::Engine;
use crate::error::{EngineError, PoolOp, chain};

impl Engine {
    /// Begins a scrub of a pool, given by its name or uuid. Its end is logged.
    pub async fn start_scrub(
        &self,
        pool: &str,
        rate_bytes_s: Option<u64>,
    ) -> Result<(String, ScrubReport), EngineError> {
        let entry = self.pool_of_disks(pool)?;
        let name = entry.pool.name().to_owned();
        let report = entry.pool.start_scrub(rate_bytes_s).await.map_err(PoolOp::Scrub.failed(&name))?;
        info!(pool = %name, rate_bytes_s = report.rate_bytes_s, "the pool is being scrubbed");
        tokio::spawn(log_end(entry));
        Ok((name, report))
    }

    /// Stops the scrub that runs, if one does, and waits for its end.
    pub async fn stop_scrub(&self, pool: &str) -> Result<(String, ScrubReport), EngineError> {
        let entry = self.pool_of_disks(pool)?;
        let name = entry.pool.name().to_owned();
        let report = entry.pool.stop_scrub().await.map_err(PoolOp::Scrub.failed(&name))?;
        Ok((name, report))
    }

    /// How far the scrub is that runs, or what the last one found.
    pub async fn scrub(&self, pool: &str) -> Result<(String, ScrubReport), EngineError> {
        let entry = self.pool_of_disks(pool)?;
        let name = entry.pool.name().to_owned();
        let report = entry.pool.scrub_report().await.map_err(PoolOp::List.failed(&name))?;
        Ok((name, report))
    }
}

/// Waits for the end of a scrub and says how it went.
async fn log_end(entry: PoolEntry) {
    let pool = entry.pool.name();
    let report = match entry.pool.scrub_ended().await {
        Ok(report) => report,
        Err(e) => return warn!(%pool, "the scrub ended with the pool: {}", chain(&e)),
    };
    let (checksums, unreadable) = (report.wrong_checksums, report.unreadable);
    let (repaired, bytes) = (report.repaired, report.data_bytes);
    match (report.state, report.unrepaired()) {
        (ScrubState::Failed, _) => {
            warn!(%pool, "the scrub failed: {}", report.failure.unwrap_or_default());
        }
        (_, 0) => info!(%pool, bytes, checksums, unreadable, repaired, "the scrub ended"),
        (_, _) => error!(
            %pool, bytes, checksums, unreadable, repaired,
            "the scrub ended, and not everything is sound; `keelson pool scrub {pool} --status` says what"
        ),
    }
}
