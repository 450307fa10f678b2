//! `nexus`: volumes that are mirrored over children.

use clap::{Args, Subcommand, ValueEnum};

use super::Printer;
use super::replica::is_uuid;
use crate::mayastor::v1::{
    AddChildNexusRequest, ChildOperationRequest, ChildState, ChildStateReason, CreateNexusRequest,
    DestroyNexusRequest, FaultNexusChildRequest, GetNvmeAnaStateRequest, ListNexusOptions, ListNexusResponse,
    Nexus, NexusState, NvmeAnaState, NvmeReservation, PublishNexusRequest, RemoveChildNexusRequest,
    ResizeNexusRequest, SetNvmeAnaStateRequest, ShareProtocol, ShutdownNexusRequest, UnpublishNexusRequest,
};
use crate::output::{Table, parse_size};
use crate::{Client, ClientError};

/// Commands of `nexus`. Where they take a uuid they take the nexus's name as well.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Make a nexus of children that all hold the same data
    #[command(after_help = "Example:\n  \
        keelson nexus create '' 10GiB 'bdev:///r1?uuid=...' 'nvmf+tcp://node2:8420/nqn.2019-05.io.openebs:r2?uuid=...'")]
    Create(Create),
    /// Disconnect its hosts, and let its children go
    Destroy {
        /// Uuid or name
        uuid: String,
    },
    /// End its I/O in order; it stays listed until it is destroyed
    Shutdown {
        /// Uuid or name
        uuid: String,
    },
    /// Serve it to hosts over NVMe/TCP
    Publish {
        /// Uuid or name
        uuid: String,
        /// Without effect; 16 bytes
        #[arg(default_value = "")]
        key: String,
        /// How
        #[arg(short, long, value_enum, default_value_t, value_name = "PROTOCOL")]
        protocol: Protocol,
        /// NQN of a host that may connect; none = any; repeatable
        #[arg(long = "allowed-host", value_name = "NQN")]
        allowed_hosts: Vec<String>,
    },
    /// Serve it no longer
    Unpublish {
        /// Uuid or name
        uuid: String,
    },
    /// Show or set the ANA state that its hosts see
    #[command(name = "ana_state", alias = "ana-state")]
    AnaState {
        /// Uuid or name
        uuid: String,
        /// The state to set
        state: Option<Ana>,
    },
    /// Add a child, and rebuild it
    Add {
        /// Uuid or name
        uuid: String,
        /// URI of the child
        uri: String,
        /// Leave the rebuild to `rebuild start`
        #[arg(default_value_t = false, action = clap::ArgAction::Set)]
        norebuild: bool,
    },
    /// Take a child out for good
    Remove {
        /// Uuid or name
        uuid: String,
        /// URI of the child
        uri: String,
    },
    /// Make it larger
    Resize {
        /// Uuid or name
        uuid: String,
        /// New size
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// List nexuses
    List {
        /// With their children
        #[arg(short = 'c', long)]
        show_children: bool,
    },
    /// List the children of a nexus
    Children {
        /// Uuid or name
        uuid: String,
    },
    /// Take a child out of use, or back
    #[command(subcommand)]
    Child(Child),
}

/// What a new nexus is to be.
#[derive(Args, Clone, Debug)]
pub struct Create {
    /// Its uuid; an empty one is made up
    uuid: String,
    /// Its size
    #[arg(value_parser = parse_size)]
    size: u64,
    /// URIs of its children
    #[arg(required = true)]
    children: Vec<String>,
    /// Its name, which hosts find it by [default: its uuid]
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// First controller id of its hosts
    #[arg(long, default_value_t = 1)]
    min_cntlid: u32,
    /// Last one
    #[arg(long, default_value_t = 65519)]
    max_cntlid: u32,
    /// Key of its reservation of its children; 0 = none
    #[arg(long, default_value_t = 0)]
    resv_key: u64,
    /// Key of whom it takes the place of; 0 = nobody
    #[arg(long, default_value_t = 0)]
    preempt_key: u64,
    /// Type of the reservation, such as WriteExclusiveAllRegs
    #[arg(long, default_value = "", hide_default_value = true)]
    resv_type: String,
    /// Key of the record of its members in the persistent store [default: its uuid]
    #[arg(long, default_value = "", hide_default_value = true)]
    nexus_info_key: String,
}

/// Commands of `nexus child`.
#[derive(Subcommand, Clone, Debug)]
pub enum Child {
    /// Take it out of use for good
    Fault(ChildArgs),
    /// Take it out of use for a while
    Offline(ChildArgs),
    /// Take it back, and rebuild what it missed
    Online(ChildArgs),
    /// Take it out of use as after an error
    Retire(ChildArgs),
}

/// A child.
#[derive(Args, Clone, Debug)]
pub struct ChildArgs {
    /// Uuid or name of the nexus
    uuid: String,
    /// URI of the child
    uri: String,
}

/// What `-p` takes.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    /// NVMe over Fabrics
    #[default]
    Nvmf,
}

/// ANA states that can be set.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
#[value(rename_all = "snake_case")]
pub enum Ana {
    /// The best path
    Optimized,
    /// A path for when there is no better one
    NonOptimized,
    /// No path
    Inaccessible,
}

impl From<Ana> for NvmeAnaState {
    fn from(state: Ana) -> Self {
        match state {
            Ana::Optimized => Self::NvmeAnaOptimizedState,
            Ana::NonOptimized => Self::NvmeAnaNonOptimizedState,
            Ana::Inaccessible => Self::NvmeAnaInaccessibleState,
        }
    }
}

pub(super) async fn run(
    client: &Client,
    command: &Command,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let mut nexus = client.nexus();
    match command {
        Command::Create(wish) => create(client, wish, printer).await,
        Command::Destroy { uuid: text } => {
            let uuid = resolve(client, text).await?;
            let answer = nexus.destroy_nexus(DestroyNexusRequest { uuid: uuid.clone() }).await;
            answer.map_err(ClientError::call(format!("destroy nexus \"{text}\"")))?;
            printer.line(&super::Empty {}, &uuid)
        }
        Command::Shutdown { uuid: text } => {
            let uuid = resolve(client, text).await?;
            let answer = nexus.shutdown_nexus(ShutdownNexusRequest { uuid: uuid.clone() }).await;
            let answer = answer.map_err(ClientError::call(format!("shut down nexus \"{text}\"")))?;
            printer.line(&answer.into_inner(), &uuid)
        }
        Command::Publish { uuid: text, key, protocol: Protocol::Nvmf, allowed_hosts } => {
            let what = format!("publish nexus \"{text}\"");
            let request = PublishNexusRequest {
                uuid: resolve(client, text).await?,
                key: key.clone(),
                share: ShareProtocol::Nvmf.into(),
                allowed_hosts: allowed_hosts.clone(),
            };
            let answer = nexus.publish_nexus(request).await.map_err(ClientError::call(&what))?.into_inner();
            let Some(published) = &answer.nexus else {
                return Err(ClientError::Incomplete { what, part: "the nexus" });
            };
            let text = format!("Nexus published over: {}", published.device_uri);
            printer.line(&answer, &text)
        }
        Command::Unpublish { uuid: text } => {
            let uuid = resolve(client, text).await?;
            let answer = nexus.unpublish_nexus(UnpublishNexusRequest { uuid: uuid.clone() }).await;
            let answer = answer.map_err(ClientError::call(format!("unpublish nexus \"{text}\"")))?;
            printer.line(&answer.into_inner(), &uuid)
        }
        Command::AnaState { uuid, state } => ana_state(client, uuid, *state, printer).await,
        Command::Add { uuid: text, uri, norebuild } => {
            let uuid = resolve(client, text).await?;
            let request =
                AddChildNexusRequest { uuid: uuid.clone(), uri: uri.clone(), norebuild: *norebuild };
            let what = format!("add child \"{uri}\" to nexus \"{text}\"");
            let answer = nexus.add_child_nexus(request).await.map_err(ClientError::call(what))?;
            printer.line(&answer.into_inner(), &uuid)
        }
        Command::Remove { uuid: text, uri } => {
            let request = RemoveChildNexusRequest { uuid: resolve(client, text).await?, uri: uri.clone() };
            let what = format!("remove child \"{uri}\" from nexus \"{text}\"");
            let answer = nexus.remove_child_nexus(request).await.map_err(ClientError::call(what))?;
            printer.line(&answer.into_inner(), &format!("Removed {uri} from specified nexus"))
        }
        Command::Resize { uuid: text, size } => {
            let uuid = resolve(client, text).await?;
            let request = ResizeNexusRequest { uuid: uuid.clone(), requested_size: *size };
            let what = format!("resize nexus \"{text}\" to {size} bytes");
            let answer = nexus.resize_nexus(request).await.map_err(ClientError::call(what))?;
            printer.line(&answer.into_inner(), &format!("Resized nexus {uuid} to {size}"))
        }
        Command::List { show_children } => {
            let answer = fetch(client).await?;
            let table = table(&answer.nexus_list, *show_children, printer);
            printer.list(&answer, &table, "No nexus found")
        }
        Command::Children { uuid: text } => {
            let found = find(client, text).await?;
            let table = children_table(&found);
            printer.list(&found.children, &table, "No children found")
        }
        Command::Child(command) => child(client, command, printer).await,
    }
}

async fn create(client: &Client, wish: &Create, printer: &mut Printer<'_>) -> Result<(), ClientError> {
    let uuid = if wish.uuid.is_empty() { random_uuid() } else { wish.uuid.clone() };
    let name = if wish.name.is_empty() { uuid.clone() } else { wish.name.clone() };
    let what = format!("create nexus \"{name}\" of {} bytes", wish.size);
    let request = CreateNexusRequest {
        name,
        uuid: uuid.clone(),
        size: wish.size,
        min_cntl_id: wish.min_cntlid,
        max_cntl_id: wish.max_cntlid,
        resv_key: wish.resv_key,
        preempt_key: wish.preempt_key,
        children: wish.children.clone(),
        nexus_info_key: wish.nexus_info_key.clone(),
        resv_type: reservation(&wish.resv_type).map(Into::into),
        preempt_policy: 0,
    };
    let answer = client.nexus().create_nexus(request).await.map_err(ClientError::call(what))?;
    printer.line(&answer.into_inner(), &uuid)
}

/// As clients know it: other words leave the type to the daemon.
fn reservation(word: &str) -> Option<NvmeReservation> {
    let known = [
        NvmeReservation::Reserved,
        NvmeReservation::WriteExclusive,
        NvmeReservation::WriteExclusiveRegsOnly,
        NvmeReservation::ExclusiveAccessRegsOnly,
        NvmeReservation::ExclusiveAccessAllRegs,
        NvmeReservation::WriteExclusiveAllRegs,
    ];
    known.into_iter().find(|r| r.as_str_name() == word)
}

/// A random uuid (RFC 9562, version 4), of the hasher's randomness: unique, and no secret.
fn random_uuid() -> String {
    use std::hash::{BuildHasher, RandomState};
    let half = || RandomState::new().hash_one(std::process::id());
    let (high, low) = (half() & !0xf000 | 0x4000, half() >> 2 | 1 << 63);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

async fn ana_state(
    client: &Client,
    text: &str,
    state: Option<Ana>,
    printer: &mut Printer<'_>,
) -> Result<(), ClientError> {
    let uuid = resolve(client, text).await?;
    let shown = match state {
        None => {
            let answer = client.nexus().get_nvme_ana_state(GetNvmeAnaStateRequest { uuid }).await;
            let what = format!("read the ANA state of nexus \"{text}\"");
            ana_word(answer.map_err(ClientError::call(what))?.into_inner().ana_state).to_owned()
        }
        Some(state) => {
            let ana_state = NvmeAnaState::from(state).into();
            let request = SetNvmeAnaStateRequest { uuid: uuid.clone(), ana_state };
            let what = format!("set the ANA state of nexus \"{text}\"");
            client.nexus().set_nvme_ana_state(request).await.map_err(ClientError::call(what))?;
            uuid
        }
    };
    if printer.quiet { Ok(()) } else { printer.text(&shown) }
}

async fn child(client: &Client, command: &Child, printer: &mut Printer<'_>) -> Result<(), ClientError> {
    let (args, action, verb) = match command {
        Child::Fault(args) => (args, None, "fault"),
        Child::Offline(args) => (args, Some(0), "take offline"),
        Child::Online(args) => (args, Some(1), "take online"),
        Child::Retire(args) => (args, Some(2), "retire"),
    };
    let (uuid, uri) = (resolve(client, &args.uuid).await?, args.uri.clone());
    let failed = ClientError::call(format!("{verb} child \"{uri}\" of nexus \"{}\"", args.uuid));
    match action {
        None => {
            let answer = client.nexus().fault_nexus_child(FaultNexusChildRequest { uuid, uri }).await;
            printer.line(&answer.map_err(failed)?.into_inner(), &args.uri)
        }
        Some(action) => {
            let request = ChildOperationRequest { nexus_uuid: uuid, uri, action };
            let answer = client.nexus().child_operation(request).await;
            printer.line(&answer.map_err(failed)?.into_inner(), &args.uri)
        }
    }
}

async fn fetch(client: &Client) -> Result<ListNexusResponse, ClientError> {
    let answer = client.nexus().list_nexus(ListNexusOptions::default()).await;
    Ok(answer.map_err(ClientError::call("list nexuses"))?.into_inner())
}

/// The nexus that has this uuid or name.
async fn find(client: &Client, text: &str) -> Result<Nexus, ClientError> {
    let mut all = fetch(client).await?.nexus_list;
    let at = all.iter().position(|n| n.uuid == text).or_else(|| all.iter().position(|n| n.name == text));
    let missing = || ClientError::NotFound { kind: "Nexus", name: text.to_owned(), list: "nexus list" };
    at.map(|at| all.swap_remove(at)).ok_or_else(missing)
}

/// The API knows nexuses by uuid, people by name. A uuid is passed on, unless it is but a name.
pub(super) async fn resolve(client: &Client, text: &str) -> Result<String, ClientError> {
    match find(client, text).await {
        Ok(nexus) => Ok(nexus.uuid),
        // For the daemon to say that it is not there, with its code.
        Err(ClientError::NotFound { .. }) if is_uuid(text) => Ok(text.to_owned()),
        Err(e) => Err(e),
    }
}

fn state_word(state: i32) -> &'static str {
    match NexusState::try_from(state) {
        Ok(NexusState::NexusOnline) => "online",
        Ok(NexusState::NexusDegraded) => "degraded",
        Ok(NexusState::NexusFaulted) => "faulted",
        Ok(NexusState::NexusShuttingDown) => "shutting_down",
        Ok(NexusState::NexusShutdown) => "shutdown",
        Ok(NexusState::NexusUnknown) | Err(_) => "unknown",
    }
}

fn child_word(state: i32) -> &'static str {
    match ChildState::try_from(state) {
        Ok(ChildState::Online) => "online",
        Ok(ChildState::Degraded) => "degraded",
        Ok(ChildState::Faulted) => "faulted",
        Ok(ChildState::Unknown) | Err(_) => "unknown",
    }
}

fn reason_word(reason: i32) -> &'static str {
    match ChildStateReason::try_from(reason) {
        Ok(ChildStateReason::None) | Err(_) => "-",
        Ok(ChildStateReason::Init) => "init",
        Ok(ChildStateReason::Closed) => "closed",
        Ok(ChildStateReason::CannotOpen) => "cannot open",
        Ok(ChildStateReason::ConfigInvalid) => "config invalid",
        Ok(ChildStateReason::RebuildFailed) => "rebuild failed",
        Ok(ChildStateReason::IoFailure) => "I/O failure",
        Ok(ChildStateReason::ByClient) => "by client",
        Ok(ChildStateReason::OutOfSync) => "out of sync",
        Ok(ChildStateReason::NoSpace) => "no space",
        Ok(ChildStateReason::TimedOut) => "timed out",
        Ok(ChildStateReason::AdminFailed) => "admin failed",
    }
}

fn ana_word(state: i32) -> &'static str {
    match NvmeAnaState::try_from(state) {
        Ok(NvmeAnaState::NvmeAnaOptimizedState) => "optimized",
        Ok(NvmeAnaState::NvmeAnaNonOptimizedState) => "non_optimized",
        Ok(NvmeAnaState::NvmeAnaInaccessibleState) => "inaccessible",
        Ok(NvmeAnaState::NvmeAnaPersistentLossState) => "persistent_loss",
        Ok(NvmeAnaState::NvmeAnaChangeState) => "change",
        Ok(NvmeAnaState::NvmeAnaInvalidState) | Err(_) => "invalid",
    }
}

fn table(list: &[Nexus], show_children: bool, printer: &Printer<'_>) -> Table {
    let mut headers = vec!["NAME", "UUID", ">SIZE", "STATE", ">REBUILDS", "PATH"];
    headers.extend(show_children.then_some("CHILDREN"));
    let mut table = Table::new(&headers);
    for n in list {
        let mut row = vec![
            n.name.clone(),
            n.uuid.clone(),
            printer.size(n.size),
            state_word(n.state).to_owned(),
            n.rebuilds.to_string(),
            n.device_uri.clone(),
        ];
        let uris = n.children.iter().map(|c| c.uri.as_str()).collect::<Vec<_>>().join(",");
        row.extend(show_children.then_some(uris));
        table.row(row);
    }
    table
}

fn children_table(nexus: &Nexus) -> Table {
    let mut table = Table::new(&["NAME", "STATE", "REASON", "LAST_FAULTED_AT"]);
    for c in &nexus.children {
        table.row(vec![
            c.uri.clone(),
            child_word(c.state).to_owned(),
            reason_word(c.state_reason).to_owned(),
            c.fault_timestamp.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::testing::golden;
    use super::*;
    use crate::mayastor::v1::Child as ChildMessage;
    use crate::output::{Format, Units};

    const UUID: &str = "7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c009";

    fn sample() -> ListNexusResponse {
        let child = |n: u32, state: i32, state_reason: i32| ChildMessage {
            uri: format!("nvmf+tcp://10.0.0.{n}:8420/nqn.2019-05.io.openebs:r{n}"),
            state,
            state_reason,
            rebuild_progress: if state == 2 { 40 } else { -1 },
            device_name: (state < 3).then(|| format!("r{n}n1")),
            fault_timestamp: (state == 3)
                .then_some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            has_io_log: state == 3,
        };
        let nexus = Nexus {
            name: "vol1".into(),
            uuid: UUID.into(),
            size: 10 << 30,
            state: 2,
            children: vec![child(1, 1, 0), child(2, 2, 8), child(3, 3, 6)],
            device_uri: "nvmf+tcp://10.0.0.1:8420/nqn.2019-05.io.openebs:vol1".into(),
            rebuilds: 1,
            ana_state: 1,
            allowed_hosts: vec!["nqn.h".into()],
        };
        ListNexusResponse { nexus_list: vec![nexus] }
    }

    #[test]
    fn list_as_table_and_json() {
        let answer = sample();
        let show = |children: bool| {
            let answer = &answer;
            move |p: &mut Printer<'_>| {
                let table = table(&answer.nexus_list, children, p);
                p.list(answer, &table, "No nexus found").unwrap();
            }
        };
        golden("nexus_list", Format::Default, Some(Units::Binary), false, show(false));
        golden("nexus_list_children", Format::Default, None, false, show(true));
        golden("nexus_list_json", Format::Json, None, false, show(false));
        golden("nexus_children", Format::Default, None, false, |p| {
            let nexus = &answer.nexus_list[0];
            p.list(&nexus.children, &children_table(nexus), "").unwrap();
        });
    }

    #[test]
    fn made_up_uuids_are_uuids() {
        let (a, b) = (random_uuid(), random_uuid());
        assert!(is_uuid(&a) && a != b, "{a} {b}");
        assert_eq!(&a[14..15], "4", "{a}");
        assert!("89ab".contains(&a[19..20]), "{a}");
    }

    #[test]
    fn words_of_reservations() {
        assert_eq!(reservation("WriteExclusiveAllRegs"), Some(NvmeReservation::WriteExclusiveAllRegs));
        assert_eq!(reservation("ExclusiveAccess"), None, "as clients know it");
        assert_eq!(reservation(""), None);
    }
}
