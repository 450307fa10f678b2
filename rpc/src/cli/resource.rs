//! `perf resource`: what the daemon's process has used.

use clap::Subcommand;

use super::Printer;
use crate::mayastor::v1::ResourceUsage;
use crate::output::Table;
use crate::{Client, ClientError};

/// Commands of `perf` that ask a running daemon.
#[derive(Subcommand, Clone, Debug)]
pub enum PerfCommand {
    /// Page faults and context switches of a running daemon
    Resource,
}

pub(super) async fn run(
    client: &Client,
    command: &PerfCommand,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let PerfCommand::Resource = command;
    let what = "read the daemon's resource usage";
    let answer = client.host().get_mayastor_resource_usage(()).await;
    let answer = answer.map_err(ClientError::call(what))?.into_inner();
    let Some(usage) = answer.usage else {
        return Err(ClientError::Incomplete { what: what.to_owned(), part: "the figures" });
    };
    printer.list(&answer, &table(&usage), "")
}

fn table(usage: &ResourceUsage) -> Table {
    let mut table = Table::new(&[">SOFT_FAULTS", ">HARD_FAULTS", ">VOLUNTARY_CSW", ">INVOLUNTARY_CSW"]);
    let figures = [usage.soft_faults, usage.hard_faults, usage.vol_csw, usage.invol_csw];
    table.row(figures.iter().map(i64::to_string).collect());
    table
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::output::Format;

    #[test]
    fn figures_are_right_aligned() {
        let usage = ResourceUsage { soft_faults: 1234, vol_csw: 5, ..ResourceUsage::default() };
        golden("perf_resource", Format::Default, None, false, |p| {
            p.list(&usage, &table(&usage), "").unwrap();
        });
    }
}
