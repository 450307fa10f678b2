//! `controller`: NVMe controllers that the daemon is connected to.

use clap::Subcommand;

use super::Printer;
use crate::mayastor::v1::{
    NvmeController, NvmeControllerIoStats, NvmeControllerState, StatNvmeControllerRequest,
};
use crate::output::Table;
use crate::{Client, ClientError};

/// Commands of `controller`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List the controllers
    List,
    /// Operations and bytes of one controller
    Stats {
        /// As `controller list` shows it
        name: String,
    },
}

pub(super) async fn run(
    client: &Client,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    match command {
        Command::List => {
            let answer = client.host().list_nvme_controllers(()).await;
            let answer = answer.map_err(ClientError::call("list NVMe controllers"))?.into_inner();
            let table = list_table(&answer.controllers, printer);
            printer.list(&answer, &table, "No NVMe controllers found")
        }
        Command::Stats { name } => {
            let what = format!("read the counters of NVMe controller \"{name}\"");
            let request = StatNvmeControllerRequest { name: name.clone() };
            let answer = client.host().stat_nvme_controller(request).await;
            let answer = answer.map_err(ClientError::call(&what))?.into_inner();
            let Some(stats) = answer.stats else {
                return Err(ClientError::Incomplete { what, part: "the counters" });
            };
            let table = stats_table(name, &stats, printer);
            printer.list(&answer, &table, "")
        }
    }
}

fn list_table(controllers: &[NvmeController], printer: &Printer<'_>) -> Table {
    let mut table = Table::new(&["NAMEs", "SIZE", "STATE", "BLKSIZE"]);
    for c in controllers {
        table.row(vec![
            c.name.clone(),
            printer.size(c.size),
            state_word(c.state).to_owned(),
            c.blk_size.to_string(),
        ]);
    }
    table
}

fn state_word(state: i32) -> &'static str {
    match NvmeControllerState::try_from(state) {
        Ok(NvmeControllerState::New) => "new",
        Ok(NvmeControllerState::Initializing) => "init",
        Ok(NvmeControllerState::Running) => "running",
        Ok(NvmeControllerState::Faulted) => "faulted",
        Ok(NvmeControllerState::Unconfiguring) => "unconfiguring",
        Ok(NvmeControllerState::Unconfigured) => "unconfigured",
        Err(_) => "unknown",
    }
}

fn stats_table(name: &str, stats: &NvmeControllerIoStats, printer: &Printer<'_>) -> Table {
    let mut table =
        Table::new(&["NAME", "READS", "WRITES", "READ/B", "WRITTEN/B", "NUM_UNMAPS", "BYTES_UNMAPPED"]);
    table.row(vec![
        name.to_owned(),
        stats.num_read_ops.to_string(),
        stats.num_write_ops.to_string(),
        printer.size(stats.bytes_read),
        printer.size(stats.bytes_written),
        stats.num_unmap_ops.to_string(),
        printer.size(stats.bytes_unmapped),
    ]);
    table
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::mayastor::v1::ListNvmeControllersResponse;
    use crate::output::Format;

    #[test]
    fn list_and_stats() {
        let controller = |name: &str, state: NvmeControllerState| NvmeController {
            name: name.into(),
            state: state.into(),
            size: 1 << 30,
            blk_size: 4096,
        };
        let name = "10.0.0.2:8420/nqn.2019-05.io.openebs:disk0n1";
        let answer = ListNvmeControllersResponse {
            controllers: vec![
                controller(name, NvmeControllerState::Running),
                controller("other", NvmeControllerState::Faulted),
            ],
        };
        golden("controller_list", Format::Default, None, false, |p| {
            let table = list_table(&answer.controllers, p);
            p.list(&answer, &table, "").unwrap();
        });
        let stats = NvmeControllerIoStats {
            num_read_ops: 10,
            num_write_ops: 2,
            bytes_read: 40_960,
            bytes_written: 8_192,
            num_unmap_ops: 1,
            bytes_unmapped: 512,
        };
        golden("controller_stats", Format::Default, None, false, |p| {
            let table = stats_table(name, &stats, p);
            p.list(&stats, &table, "").unwrap();
        });
    }

    #[test]
    fn a_state_from_the_future_has_a_word() {
        assert_eq!(state_word(99), "unknown");
    }
}
