//! `subsystem`: NVMe-oF subsystems of the daemon.
//!
//! Where an NQN is asked for, a bare name works too: `disk0` is `nqn.2019-05.io.openebs:disk0`.

use clap::{Args, Subcommand, ValueEnum};

use super::{Empty, Printer};
use crate::keelson::v1::{
    AddNamespaceRequest, AllowHostsRequest, AnaState, Connection, Controller, CreateSubsystemRequest,
    DenyHostsRequest, DestroySubsystemRequest, ListConnectionsRequest, ListControllersRequest,
    ListSubsystemsRequest, NamespaceSpec, RemoveNamespaceRequest, ResizeNamespaceRequest, SetAnaStateRequest,
    Subsystem,
};
use crate::output::{Table, parse_size};
use crate::{Client, ClientError, nqn_from_name};

/// Commands of `subsystem`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Make a subsystem, with its first namespaces
    #[command(after_help = "Example: two RAM disks in one subsystem, for one host\n  \
        keelson bdev create 'malloc:///ram0?size_mb=64'\n  \
        keelson bdev create 'malloc:///ram1?size_mb=64'\n  \
        keelson subsystem create twins --namespace ram0 --namespace ram1 \\\n    \
        --allowed-host \"$(cat /etc/nvme/hostnqn)\"")]
    Create(CreateArgs),
    /// Disconnect all hosts and remove a subsystem; its devices stay
    Destroy {
        /// NQN or bare name
        nqn: String,
    },
    /// List subsystems
    List {
        /// Only this one
        nqn: Option<String>,
    },
    /// Add, remove, resize and list namespaces; connected hosts are told
    #[command(subcommand)]
    Namespace(NamespaceCommand),
    /// Say which hosts may connect
    #[command(subcommand)]
    Host(HostCommand),
    /// Set the access state of an ANA group; connected hosts are told
    AnaState {
        /// NQN or bare name
        nqn: String,
        /// New state
        #[arg(value_enum)]
        state: AnaWord,
        /// Only this group; all without it
        #[arg(long)]
        group: Option<u32>,
    },
    /// List the controllers that hosts have made
    Controllers {
        /// Only of this subsystem
        nqn: Option<String>,
    },
    /// List the connections of hosts, one a queue
    Connections {
        /// Only of this subsystem
        nqn: Option<String>,
    },
}

/// Arguments of `subsystem create`.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// NQN or bare name
    nqn: String,
    /// Block device to export; repeat for more, numbered from 1
    #[arg(long = "namespace", value_name = "DEVICE")]
    namespaces: Vec<String>,
    /// NQN of a host that may connect; repeat for more. None = any host
    #[arg(long = "allowed-host", value_name = "NQN")]
    hosts: Vec<String>,
    /// Up to 20 ASCII characters; derived when left out
    #[arg(long)]
    serial: Option<String>,
    /// Up to 40 ASCII characters
    #[arg(long)]
    model: Option<String>,
    /// Lowest controller id of this node
    #[arg(long, value_name = "ID")]
    min_cntlid: Option<u32>,
    /// Highest controller id of this node
    #[arg(long, value_name = "ID")]
    max_cntlid: Option<u32>,
    /// ANA groups, numbered from 1; 0 = do not report ANA to hosts
    #[arg(long, value_name = "N", default_value_t = 1)]
    ana_groups: u32,
}

/// Commands of `subsystem namespace`.
#[derive(Subcommand, Clone, Debug)]
pub enum NamespaceCommand {
    /// Export one more device
    Add {
        /// NQN or bare name
        nqn: String,
        /// Block device
        device: String,
        /// Number; the lowest free one without it
        #[arg(long)]
        nsid: Option<u32>,
        /// Identity that hosts see; the device's without it
        #[arg(long)]
        uuid: Option<String>,
        /// ANA group
        #[arg(long)]
        ana_group: Option<u32>,
    },
    /// Stop exporting a device
    Remove {
        /// NQN or bare name
        nqn: String,
        /// Number of the namespace
        nsid: u32,
    },
    /// Change the size of the device, or take the size that it has by now
    Resize {
        /// NQN or bare name
        nqn: String,
        /// Number of the namespace
        nsid: u32,
        /// New size such as 10GiB; without it the device is looked at again
        #[arg(value_parser = parse_size)]
        size: Option<u64>,
    },
    /// List namespaces
    List {
        /// Only of this subsystem
        nqn: Option<String>,
    },
}

/// Commands of `subsystem host`.
#[derive(Subcommand, Clone, Debug)]
pub enum HostCommand {
    /// Let hosts in
    Allow(HostArgs),
    /// Take the permission back, and disconnect
    Deny(HostArgs),
}

/// Arguments of `subsystem host`.
#[derive(Args, Clone, Debug)]
pub struct HostArgs {
    /// NQN or bare name
    nqn: String,
    /// NQNs of hosts
    #[arg(required_unless_present = "any")]
    hosts: Vec<String>,
    /// Any host (allow), or only listed hosts from now on (deny)
    #[arg(long)]
    any: bool,
}

/// ANA states that can be set.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
#[value(rename_all = "snake_case")]
pub enum AnaWord {
    /// Best path
    Optimized,
    /// Works, others are better
    NonOptimized,
    /// No I/O here now
    Inaccessible,
    /// No I/O here ever again
    PersistentLoss,
    /// On the way to another state
    Change,
}

impl AnaWord {
    fn to_wire(self) -> AnaState {
        match self {
            Self::Optimized => AnaState::Optimized,
            Self::NonOptimized => AnaState::NonOptimized,
            Self::Inaccessible => AnaState::Inaccessible,
            Self::PersistentLoss => AnaState::PersistentLoss,
            Self::Change => AnaState::Change,
        }
    }
}

fn ana_word(state: i32) -> &'static str {
    match AnaState::try_from(state) {
        Ok(AnaState::Optimized) => "optimized",
        Ok(AnaState::NonOptimized) => "non_optimized",
        Ok(AnaState::Inaccessible) => "inaccessible",
        Ok(AnaState::PersistentLoss) => "persistent_loss",
        Ok(AnaState::Change) => "change",
        Ok(AnaState::Unspecified) | Err(_) => "invalid",
    }
}

pub(super) async fn run(
    client: &Client,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    match command {
        Command::Create(args) => create(client, args, printer).await,
        Command::Destroy { nqn } => destroy(client, nqn, printer).await,
        Command::List { nqn } => {
            let answer = list(client, nqn.as_deref()).await?;
            printer.list(&answer, &table(&answer.subsystems), "No subsystems found")
        }
        Command::Namespace(c) => namespace(client, c, printer).await,
        Command::Host(c) => host(client, c, printer).await,
        Command::AnaState { nqn, state, group } => {
            let nqn = nqn_from_name(nqn);
            let what = format!("set the ANA state of \"{nqn}\"");
            let request =
                SetAnaStateRequest { nqn: nqn.clone(), ana_group: *group, state: state.to_wire().into() };
            let answer = client.subsystem().set_ana_state(request).await;
            printer.line(&answer.map_err(ClientError::call(what))?.into_inner(), &nqn)
        }
        Command::Controllers { nqn } => {
            let request = ListControllersRequest { nqn: nqn.as_deref().map(nqn_from_name) };
            let answer = client.subsystem().list_controllers(request).await;
            let answer = answer.map_err(ClientError::call("list controllers"))?.into_inner();
            printer.list(&answer, &controller_table(&answer.controllers), "No controllers found")
        }
        Command::Connections { nqn } => {
            let request = ListConnectionsRequest { nqn: nqn.as_deref().map(nqn_from_name) };
            let answer = client.subsystem().list_connections(request).await;
            let answer = answer.map_err(ClientError::call("list connections"))?.into_inner();
            printer.list(&answer, &connection_table(&answer.connections), "No connections found")
        }
    }
}

async fn list(
    client: &Client,
    nqn: Option<&str>,
) -> Result<crate::keelson::v1::ListSubsystemsResponse, ClientError> {
    let request = ListSubsystemsRequest { nqn: nqn.map(nqn_from_name) };
    let answer = client.subsystem().list_subsystems(request).await;
    Ok(answer.map_err(ClientError::call("list subsystems"))?.into_inner())
}

async fn create(client: &Client, args: &CreateArgs, printer: &mut Printer<'_>) -> Result<(), ClientError> {
    let nqn = nqn_from_name(&args.nqn);
    let what = format!("create subsystem \"{nqn}\"");
    let spec = |device: &String| NamespaceSpec { device: device.clone(), ..NamespaceSpec::default() };
    let request = CreateSubsystemRequest {
        nqn: nqn.clone(),
        namespaces: args.namespaces.iter().map(spec).collect(),
        hosts: args.hosts.clone(),
        serial: args.serial.clone(),
        model: args.model.clone(),
        min_cntlid: args.min_cntlid,
        max_cntlid: args.max_cntlid,
        ana_groups: Some(args.ana_groups),
    };
    let answer = client.subsystem().create_subsystem(request).await;
    let answer = answer.map_err(ClientError::call(what))?.into_inner();
    let text = if answer.uris.is_empty() { nqn } else { answer.uris.join("\n") };
    printer.line(&answer, &text)
}

async fn destroy(client: &Client, nqn: &str, printer: &mut Printer<'_>) -> Result<(), ClientError> {
    let nqn = nqn_from_name(nqn);
    let what = format!("destroy subsystem \"{nqn}\"");
    let request = DestroySubsystemRequest { nqn: nqn.clone() };
    client.subsystem().destroy_subsystem(request).await.map_err(ClientError::call(what))?;
    printer.line(&Empty {}, &nqn)
}

async fn namespace(
    client: &Client,
    command: &NamespaceCommand,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let mut calls = client.subsystem();
    match command {
        NamespaceCommand::Add { nqn, device, nsid, uuid, ana_group } => {
            let nqn = nqn_from_name(nqn);
            let what = format!("add device \"{device}\" to subsystem \"{nqn}\"");
            let (device, uuid) = (device.clone(), uuid.clone());
            let spec = NamespaceSpec { device, nsid: *nsid, uuid, ana_group: *ana_group };
            let request = AddNamespaceRequest { nqn, namespace: Some(spec) };
            let answer = calls.add_namespace(request).await.map_err(ClientError::call(what))?.into_inner();
            printer.line(&answer, &answer.nsid.to_string())
        }
        NamespaceCommand::Remove { nqn, nsid } => {
            let nqn = nqn_from_name(nqn);
            let what = format!("remove namespace {nsid} from subsystem \"{nqn}\"");
            let request = RemoveNamespaceRequest { nqn, nsid: *nsid };
            calls.remove_namespace(request).await.map_err(ClientError::call(what))?;
            printer.line(&Empty {}, &nsid.to_string())
        }
        NamespaceCommand::Resize { nqn, nsid, size } => {
            let nqn = nqn_from_name(nqn);
            let what = format!("resize namespace {nsid} of subsystem \"{nqn}\"");
            let request = ResizeNamespaceRequest { nqn, nsid: *nsid, size_bytes: *size };
            let answer =
                calls.resize_namespace(request).await.map_err(ClientError::call(&what))?.into_inner();
            let Some(namespace) = &answer.namespace else {
                return Err(ClientError::Incomplete { what, part: "the namespace" });
            };
            let (before, after) = (answer.previous_size_bytes, namespace.size_bytes);
            let text = if before == after {
                format!("Namespace size did not change: {after} bytes")
            } else {
                format!("Namespace size was {before}, now {after} bytes")
            };
            printer.line(&answer, &text)
        }
        NamespaceCommand::List { nqn } => {
            let answer = list(client, nqn.as_deref()).await?;
            let table = namespace_table(&answer.subsystems, printer);
            printer.list(&answer, &table, "No namespaces found")
        }
    }
}

async fn host(client: &Client, command: &HostCommand, printer: &mut Printer<'_>) -> Result<(), ClientError> {
    let mut calls = client.subsystem();
    let (args, answer) = match command {
        HostCommand::Allow(args) => {
            let (nqn, hosts) = (nqn_from_name(&args.nqn), args.hosts.clone());
            (args, calls.allow_hosts(AllowHostsRequest { nqn, hosts, any: args.any }).await)
        }
        HostCommand::Deny(args) => {
            let (nqn, hosts) = (nqn_from_name(&args.nqn), args.hosts.clone());
            (args, calls.deny_hosts(DenyHostsRequest { nqn, hosts, any: args.any }).await)
        }
    };
    let what = format!("change the allowed hosts of \"{}\"", nqn_from_name(&args.nqn));
    let answer = answer.map_err(ClientError::call(what))?.into_inner();
    printer.line(&answer, &hosts_text(&answer))
}

fn hosts_text(subsystem: &Subsystem) -> String {
    if subsystem.allow_any_host {
        "any".to_owned()
    } else if subsystem.hosts.is_empty() {
        "none".to_owned()
    } else {
        subsystem.hosts.join(",")
    }
}

fn table(subsystems: &[Subsystem]) -> Table {
    let mut table = Table::new(&["NQN", "SERIAL", ">NAMESPACES", ">CONTROLLERS", "ANA", "HOSTS", "URI"]);
    for s in subsystems {
        let ana: Vec<String> =
            s.ana_groups.iter().map(|g| format!("{}:{}", g.id, ana_word(g.state))).collect();
        table.row(vec![
            s.nqn.clone(),
            s.serial.clone(),
            s.namespaces.len().to_string(),
            s.num_controllers.to_string(),
            if s.ana_reporting { ana.join(",") } else { "-".to_owned() },
            hosts_text(s),
            s.uris.join(" "),
        ]);
    }
    table
}

fn namespace_table(subsystems: &[Subsystem], printer: &Printer<'_>) -> Table {
    let mut table = Table::new(&["NQN", ">NSID", "DEVICE", ">SIZE", ">BLK_SIZE", ">ANA_GROUP", "UUID"]);
    for s in subsystems {
        for n in &s.namespaces {
            table.row(vec![
                s.nqn.clone(),
                n.nsid.to_string(),
                n.device.clone(),
                printer.size(n.size_bytes),
                n.block_bytes.to_string(),
                n.ana_group.to_string(),
                n.uuid.clone(),
            ]);
        }
    }
    table
}

fn controller_table(controllers: &[Controller]) -> Table {
    let mut table = Table::new(&["NQN", ">CNTLID", ">IO_QUEUES", ">KATO_MS", "PEER", "HOST_NQN", "HOST_ID"]);
    for c in controllers {
        table.row(vec![
            c.nqn.clone(),
            c.cntlid.to_string(),
            c.io_queues.to_string(),
            c.kato_ms.to_string(),
            c.peer.clone(),
            c.host_nqn.clone(),
            c.host_id.clone(),
        ]);
    }
    table
}

fn connection_table(connections: &[Connection]) -> Table {
    let mut table = Table::new(&[
        "NQN",
        ">CNTLID",
        ">QID",
        ">SIZE",
        ">IN_FLIGHT",
        ">CORE",
        "DIGESTS",
        "PEER",
        "HOST_NQN",
    ]);
    for c in connections {
        let digests = match (c.header_digest, c.data_digest) {
            (false, false) => "-",
            (true, false) => "header",
            (false, true) => "data",
            (true, true) => "header,data",
        };
        table.row(vec![
            c.nqn.clone(),
            c.cntlid.to_string(),
            c.qid.to_string(),
            c.queue_size.to_string(),
            c.in_flight.to_string(),
            c.core.to_string(),
            digests.to_owned(),
            c.peer.clone(),
            c.host_nqn.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::keelson::v1::{AnaGroup, ListSubsystemsResponse, Namespace};
    use crate::output::Format;

    fn sample() -> ListSubsystemsResponse {
        let namespace = Namespace {
            nsid: 1,
            device: "ram0".into(),
            uuid: "5f9a3a4e-0c1b-4b7e-9d57-0b1c52f7a001".into(),
            size_bytes: 64 << 20,
            block_bytes: 512,
            ana_group: 1,
        };
        let open = Subsystem {
            nqn: "nqn.2019-05.io.openebs:twins".into(),
            serial: "DCS0123456789ABCDEF0".into(),
            model: "Mayastor NVMe controller".into(),
            allow_any_host: true,
            namespaces: vec![namespace.clone(), Namespace { nsid: 12, device: "ram1".into(), ..namespace }],
            ana_reporting: true,
            ana_groups: vec![AnaGroup { id: 1, state: AnaState::NonOptimized.into() }],
            min_cntlid: 1,
            max_cntlid: 65519,
            num_controllers: 3,
            uris: vec!["nvmf+tcp://127.0.0.1:8420/nqn.2019-05.io.openebs:twins".into()],
            ..Subsystem::default()
        };
        let closed = Subsystem {
            nqn: "nqn.2019-05.io.openebs:b".into(),
            allow_any_host: false,
            hosts: vec!["nqn.2014-08.org.nvmexpress:uuid:1".into()],
            namespaces: vec![],
            ana_reporting: false,
            ..open.clone()
        };
        ListSubsystemsResponse { subsystems: vec![open, closed] }
    }

    #[test]
    fn lists_as_tables_and_json() {
        let answer = sample();
        golden("subsystem_list", Format::Default, None, false, |p| {
            p.list(&answer, &table(&answer.subsystems), "").unwrap();
        });
        golden("subsystem_list_json", Format::Json, None, false, |p| {
            p.list(&answer, &table(&answer.subsystems), "").unwrap();
        });
        golden("subsystem_namespaces", Format::Default, None, false, |p| {
            let table = namespace_table(&answer.subsystems, p);
            p.list(&answer, &table, "").unwrap();
        });
    }

    #[test]
    fn who_is_connected() {
        let controller = Controller {
            nqn: "nqn.2019-05.io.openebs:twins".into(),
            cntlid: 1,
            host_nqn: "nqn.2014-08.org.nvmexpress:uuid:1".into(),
            host_id: "00000000-0000-0000-0000-000000000001".into(),
            peer: "127.0.0.1:50000".into(),
            io_queues: 4,
            kato_ms: 10_000,
        };
        let connection = Connection {
            nqn: controller.nqn.clone(),
            cntlid: 1,
            qid: 4,
            host_nqn: controller.host_nqn.clone(),
            peer: "127.0.0.1:50004".into(),
            core: 0,
            queue_size: 128,
            header_digest: true,
            data_digest: true,
            in_flight: 17,
        };
        golden("subsystem_controllers", Format::Default, None, false, |p| {
            let rows = [controller];
            p.list(&rows, &controller_table(&rows), "").unwrap();
        });
        golden("subsystem_connections", Format::Default, None, false, |p| {
            let rows = [connection];
            p.list(&rows, &connection_table(&rows), "").unwrap();
        });
    }

    #[test]
    fn ana_words_cover_the_wire() {
        for word in AnaWord::value_variants() {
            let text = word.to_possible_value().unwrap().get_name().to_owned();
            assert_eq!(ana_word(word.to_wire().into()), text);
        }
    }
}
