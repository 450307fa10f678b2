//! `stats`: counters of pools, nexuses and replicas.

use clap::Subcommand;

use super::{Empty, Printer};
use crate::mayastor::v1::{IoStats, ListStatsOption};
use crate::output::Table;
use crate::{Client, ClientError};

/// Commands of `stats`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Of pools
    Pool {
        /// Only this one
        name: Option<String>,
    },
    /// Of nexuses
    Nexus {
        /// Only this one
        name: Option<String>,
    },
    /// Of replicas
    Replica {
        /// Only this one
        name: Option<String>,
    },
    /// Set all counters to zero
    Reset,
}

pub(super) async fn run(
    client: &Client,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let mut stats = client.stats();
    let option = |name: &Option<String>| ListStatsOption { name: name.clone() };
    match command {
        Command::Pool { name } => {
            let answer = stats.get_pool_io_stats(option(name)).await;
            let answer = answer.map_err(ClientError::call("read the counters of pools"))?.into_inner();
            let table = table(&answer.stats, printer);
            printer.list(&answer, &table, "No pools found")
        }
        Command::Nexus { name } => {
            let answer = stats.get_nexus_io_stats(option(name)).await;
            let answer = answer.map_err(ClientError::call("read the counters of nexuses"))?.into_inner();
            let table = table(&answer.stats, printer);
            printer.list(&answer, &table, "No nexus found")
        }
        Command::Replica { name } => {
            let answer = stats.get_replica_io_stats(option(name)).await;
            let answer = answer.map_err(ClientError::call("read the counters of replicas"))?.into_inner();
            let rows: Vec<IoStats> = answer.stats.iter().filter_map(|s| s.stats.clone()).collect();
            let table = table(&rows, printer);
            printer.list(&answer, &table, "No replicas found")
        }
        Command::Reset => {
            stats.reset_io_stats(()).await.map_err(ClientError::call("reset the counters"))?;
            printer.line(&Empty {}, "Stats Reset Completed")
        }
    }
}

fn table(stats: &[IoStats], printer: &Printer<'_>) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "NUM_RD_OPS",
        "TOTAL_RD",
        "NUM_WR_OPS",
        "TOTAL_WR",
        "NUM_UNMAP_OPS",
        "TOTAL_UNMAPPED",
        "RD_LAT",
        "WR_LAT",
        "UNMAP_LATENCY",
        "MAX_RD_LAT",
        "MIN_RD_LAT",
        "MAX_WR_LAT",
        "MIN_WR_LAT",
    ]);
    for s in stats {
        let us = |ticks: u64| microseconds(ticks, s.tick_rate);
        table.row(vec![
            s.name.clone(),
            s.num_read_ops.to_string(),
            printer.size(s.bytes_read),
            s.num_write_ops.to_string(),
            printer.size(s.bytes_written),
            s.num_unmap_ops.to_string(),
            printer.size(s.bytes_unmapped),
            us(s.read_latency_ticks),
            us(s.write_latency_ticks),
            us(s.unmap_latency_ticks),
            us(s.max_read_latency_ticks),
            us(s.min_read_latency_ticks),
            us(s.max_write_latency_ticks),
            us(s.min_write_latency_ticks),
        ]);
    }
    table
}

/// Ticks in microseconds. A daemon that tells no rate counts none.
fn microseconds(ticks: u64, tick_rate: u64) -> String {
    match tick_rate {
        0 => "-".to_owned(),
        rate => (u128::from(ticks) * 1_000_000 / u128::from(rate)).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::mayastor::v1::PoolIoStatsResponse;
    use crate::output::{Format, Units};

    #[test]
    fn counters_as_table_and_json() {
        let stats = IoStats {
            name: "tpool".into(),
            uuid: "0f1c6c3a-5c2f-4a55-9f36-1d6c8a70e001".into(),
            num_read_ops: 10,
            bytes_read: 40_960,
            read_latency_ticks: 5000,
            tick_rate: 1_000_000_000,
            ..Default::default()
        };
        let answer = PoolIoStatsResponse { stats: vec![stats] };
        let show = |p: &mut Printer<'_>| {
            let table = table(&answer.stats, p);
            p.list(&answer, &table, "No pools found").unwrap();
        };
        golden("stats_pool", Format::Default, Some(Units::Binary), false, show);
        golden("stats_pool_json", Format::Json, None, false, show);
    }

    #[test]
    fn a_rate_of_zero_is_no_division() {
        assert_eq!(microseconds(5, 0), "-");
        assert_eq!(microseconds(u64::MAX, 1_000_000), u64::MAX.to_string());
    }
}
