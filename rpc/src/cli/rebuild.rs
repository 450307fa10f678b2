//! `rebuild`: copies of what children lack.

use clap::{Args, Subcommand};

use super::Printer;
use super::nexus::resolve;
use crate::mayastor::v1::{
    PauseRebuildRequest, RebuildHistoryRecord, RebuildHistoryRequest, RebuildJobState, RebuildStateRequest,
    RebuildStatsRequest, RebuildStatsResponse, ResumeRebuildRequest, StartRebuildRequest, StopRebuildRequest,
};
use crate::output::Table;
use crate::{Client, ClientError};

/// Commands of `rebuild`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Begin to copy to a child what it lacks
    Start(Target),
    /// Stop; the child stays out of sync
    Stop(Target),
    /// Pause
    Pause(Target),
    /// Go on after a pause
    Resume(Target),
    /// Show what it is doing
    State(Target),
    /// Show how far it is
    Progress(Target),
    /// Show its figures
    Stats(Target),
    /// List the rebuilds of a nexus that ended, the oldest first
    History {
        /// Uuid or name of the nexus
        uuid: String,
    },
}

/// A child.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Uuid or name of the nexus
    uuid: String,
    /// URI of the child
    uri: String,
}

pub(super) async fn run(
    client: &Client,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let mut nexus = client.nexus();
    /// One call that answers with the nexus: prints the child's URI.
    macro_rules! simple {
        ($target:expr, $verb:literal, $call:ident, $request:ident) => {{
            let Target { uuid, uri } = $target;
            let failed = ClientError::call(format!("{} the rebuild of \"{uri}\" in nexus \"{uuid}\"", $verb));
            let request = $request { nexus_uuid: resolve(client, uuid).await?, uri: uri.clone() };
            let answer = nexus.$call(request).await.map_err(failed)?.into_inner();
            printer.line(&answer, uri)
        }};
    }
    match command {
        Command::Start(t) => simple!(t, "start", start_rebuild, StartRebuildRequest),
        Command::Stop(t) => simple!(t, "stop", stop_rebuild, StopRebuildRequest),
        Command::Pause(t) => simple!(t, "pause", pause_rebuild, PauseRebuildRequest),
        Command::Resume(t) => simple!(t, "resume", resume_rebuild, ResumeRebuildRequest),
        Command::State(Target { uuid, uri }) => {
            let what = format!("read the state of the rebuild of \"{uri}\" in nexus \"{uuid}\"");
            let request = RebuildStateRequest { nexus_uuid: resolve(client, uuid).await?, uri: uri.clone() };
            let answer =
                nexus.get_rebuild_state(request).await.map_err(ClientError::call(what))?.into_inner();
            let table = one("state", answer.state.clone());
            printer.list(&answer, &table, "")
        }
        Command::Progress(t) => {
            let answer = stats(client, t).await?;
            let table = one("progress (%)", answer.progress.to_string());
            printer.list(&answer, &table, "")
        }
        Command::Stats(t) => {
            let answer = stats(client, t).await?;
            let table = stats_table(&answer);
            printer.list(&answer, &table, "")
        }
        Command::History { uuid } => {
            let what = format!("read the rebuilds of nexus \"{uuid}\"");
            let request = RebuildHistoryRequest { uuid: resolve(client, uuid).await? };
            let answer =
                nexus.get_rebuild_history(request).await.map_err(ClientError::call(what))?.into_inner();
            let table = history_table(&answer.records);
            printer.list(&answer, &table, "No rebuilds found")
        }
    }
}

async fn stats(client: &Client, target: &Target) -> Result<RebuildStatsResponse, ClientError> {
    let Target { uuid, uri } = target;
    let what = format!("read the figures of the rebuild of \"{uri}\" in nexus \"{uuid}\"");
    let request = RebuildStatsRequest { nexus_uuid: resolve(client, uuid).await?, uri: uri.clone() };
    let answer = client.nexus().get_rebuild_stats(request).await;
    Ok(answer.map_err(ClientError::call(what))?.into_inner())
}

fn one(header: &'static str, cell: String) -> Table {
    let mut table = Table::new(&[header]);
    table.row(vec![cell]);
    table
}

fn stats_table(s: &RebuildStatsResponse) -> Table {
    let mut table = Table::new(&[
        ">TOTAL",
        ">RECOVERED",
        ">TRANSFERRED",
        ">REMAINING",
        ">PROGRESS (%)",
        ">BLK_PER_TASK",
        ">BLK_SIZE",
        ">PARTIAL",
        ">TASKS_TOTAL",
        ">TASKS_ACTIVE",
    ]);
    table.row(vec![
        s.blocks_total.to_string(),
        s.blocks_recovered.to_string(),
        s.blocks_transferred.to_string(),
        s.blocks_remaining.to_string(),
        s.progress.to_string(),
        s.blocks_per_task.to_string(),
        s.block_size.to_string(),
        s.is_partial.to_string(),
        s.tasks_total.to_string(),
        s.tasks_active.to_string(),
    ]);
    table
}

fn state_word(state: i32) -> &'static str {
    match RebuildJobState::try_from(state) {
        Ok(RebuildJobState::Init) => "init",
        Ok(RebuildJobState::Rebuilding) => "rebuilding",
        Ok(RebuildJobState::Stopped) => "stopped",
        Ok(RebuildJobState::Paused) => "paused",
        Ok(RebuildJobState::Failed) => "failed",
        Ok(RebuildJobState::Completed) => "completed",
        Err(_) => "unknown",
    }
}

fn history_table(records: &[RebuildHistoryRecord]) -> Table {
    let mut table = Table::new(&[
        "CHILD",
        "SOURCE",
        ">TOTAL",
        ">TRANSFERRED",
        ">STATE",
        ">BLK_PER_TASK",
        ">BLK_SIZE",
        ">PARTIAL",
        "START",
        "END",
    ]);
    let time =
        |t: &Option<prost_types::Timestamp>| t.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    for r in records {
        table.row(vec![
            r.child_uri.clone(),
            r.src_uri.clone(),
            r.blocks_total.to_string(),
            r.blocks_transferred.to_string(),
            state_word(r.state).to_owned(),
            r.blocks_per_task.to_string(),
            r.block_size.to_string(),
            r.is_partial.to_string(),
            time(&r.start_time),
            time(&r.end_time),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::mayastor::v1::RebuildHistoryResponse;
    use crate::output::Format;

    #[test]
    fn figures_and_history() {
        let stats = RebuildStatsResponse {
            blocks_total: 2048,
            blocks_recovered: 1024,
            progress: 50,
            blocks_per_task: 128,
            block_size: 512,
            tasks_total: 16,
            tasks_active: 8,
            blocks_transferred: 1024,
            blocks_remaining: 1024,
            is_partial: true,
            start_time: None,
        };
        golden("rebuild_stats", Format::Default, None, false, |p| {
            p.list(&stats, &stats_table(&stats), "").unwrap();
        });
        let record = RebuildHistoryRecord {
            child_uri: "bdev:///b".into(),
            src_uri: "bdev:///a".into(),
            state: 5,
            blocks_total: 2048,
            blocks_transferred: 1024,
            blocks_per_task: 128,
            block_size: 512,
            start_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            end_time: Some(prost_types::Timestamp { seconds: 1_700_000_060, nanos: 0 }),
            ..Default::default()
        };
        let history = RebuildHistoryResponse { records: vec![record], ..Default::default() };
        golden("rebuild_history", Format::Default, None, false, |p| {
            p.list(&history, &history_table(&history.records), "").unwrap();
        });
        golden("rebuild_history_json", Format::Json, None, false, |p| {
            p.list(&history, &history_table(&history.records), "").unwrap();
        });
    }
}
