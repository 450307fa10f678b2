//! `mayastor.v1.NexusRpc`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nexus::Fault;
use nvmf::target::AnaState;
use rpc::mayastor::v1::nexus_rpc_server::NexusRpc;
use rpc::mayastor::v1::{
    AddChildNexusRequest, AddChildNexusResponse, ChildAction, ChildOperationRequest, ChildOperationResponse,
    CreateNexusRequest, CreateNexusResponse, DestroyNexusRequest, FaultNexusChildRequest,
    FaultNexusChildResponse, GetNvmeAnaStateRequest, GetNvmeAnaStateResponse, ListNexusOptions,
    ListNexusResponse, ListRebuildHistoryRequest, ListRebuildHistoryResponse, Nexus, NexusNvmePreemption,
    NvmeAnaState, NvmeReservation, PauseRebuildRequest, PauseRebuildResponse, PublishNexusRequest,
    PublishNexusResponse, RebuildHistoryRequest, RebuildHistoryResponse, RebuildStateRequest,
    RebuildStateResponse, RebuildStatsRequest, RebuildStatsResponse, RemoveChildNexusRequest,
    RemoveChildNexusResponse, ResizeNexusRequest, ResizeNexusResponse, ResumeRebuildRequest,
    ResumeRebuildResponse, SetNvmeAnaStateRequest, SetNvmeAnaStateResponse, ShareProtocol,
    ShutdownNexusRequest, ShutdownNexusResponse, StartRebuildRequest, StartRebuildResponse,
    StopRebuildRequest, StopRebuildResponse, UnpublishNexusRequest, UnpublishNexusResponse,
};
use tonic::{Request, Response, Status};

use super::describe_nexus as describe;
use crate::desired::{self, Reservation};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::exports::ana_state;
use crate::nexuses::NexusEntry;
use crate::nexuses::error::NexusError;
use crate::nexuses::lifecycle::check_cntlids;
use crate::pools::parse_uuid;

/// How long a request waits for others about the same nexus, unless the client says how long it waits itself.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// Length of a key of `PublishNexus`, when there is one.
const PUBLISH_KEY_BYTES: usize = 16;

/// The service.
pub struct NexusService(pub Arc<Engine>);

/// How long a client waits, by its header (gRPC over HTTP/2, `Timeout`). A little less, so that it gets our answer.
fn patience<T>(request: &Request<T>) -> Duration {
    let said = request.metadata().get("grpc-timeout").and_then(|v| v.to_str().ok()).and_then(parse_timeout);
    said.map_or(DEFAULT_TIMEOUT, |t| t - t / 16)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

/// What a request asks for, checked as far as that needs nobody.
fn parse_wish(request: CreateNexusRequest) -> Result<desired::Nexus, EngineError> {
    let reservation = parse_reservation(&request)?;
    let cntlids = check_cntlids(request.min_cntl_id, request.max_cntl_id)?;
    let uuid = parse_uuid("uuid", &request.uuid)?;
    if request.name.is_empty() || request.name.chars().any(char::is_control) {
        let expected = "a nexus has a name, without control characters";
        return Err(EngineError::BadValue { what: "name", value: request.name, expected });
    }
    Ok(desired::Nexus {
        name: request.name,
        uuid,
        size_bytes: request.size,
        children: request.children,
        cntlids,
        info_key: request.nexus_info_key,
        reservation,
        shut_down: false,
    })
}

fn parse_reservation(request: &CreateNexusRequest) -> Result<Option<Reservation>, EngineError> {
    let bad = |text| EngineError::from(NexusError::Reservation(text));
    let rtype = match request.resv_type.map(NvmeReservation::try_from) {
        None => NvmeReservation::WriteExclusiveAllRegs,
        Some(Ok(rtype)) => rtype,
        Some(Err(_)) => {
            return Err(bad("the type is a number from 0 (Reserved) to 6 (ExclusiveAccessAllRegs)"));
        }
    };
    let policy = NexusNvmePreemption::try_from(request.preempt_policy)
        .map_err(|_| bad("the policy is 0 (ArgKey) or 1 (Holder)"))?;
    let holder = policy == NexusNvmePreemption::Holder;
    let preempt_key = (request.preempt_key != 0).then_some(request.preempt_key);
    if request.resv_key == 0 && preempt_key.is_none() && !holder {
        return Ok(None);
    }
    if request.resv_key == 0 {
        return Err(bad("a reservation needs a key other than 0"));
    }
    if holder && preempt_key.is_some() {
        return Err(bad("policy Holder preempts whoever holds the children: leave the key to preempt out"));
    }
    Ok(Some(Reservation { key: request.resv_key, preempt_key, rtype: rtype as u8, preempt_holder: holder }))
}

impl NexusService {
    async fn shown(&self, entry: &NexusEntry) -> Result<Option<Nexus>, EngineError> {
        let info = self.0.nexus_info(entry).await?;
        Ok(Some(describe::nexus(&self.0, entry, info)))
    }

    /// The same, as it is after a change.
    async fn changed(&self, entry: &NexusEntry) -> Result<Option<Nexus>, EngineError> {
        self.shown(&self.0.nexuses().find(entry.wish.uuid)?).await
    }
}

#[tonic::async_trait]
impl NexusRpc for NexusService {
    async fn create_nexus(
        &self,
        request: Request<CreateNexusRequest>,
    ) -> Result<Response<CreateNexusResponse>, Status> {
        let patience = patience(&request);
        let wish = parse_wish(request.into_inner())?;
        let entry = self.0.clone().create_nexus(wish, patience).await?;
        Ok(Response::new(CreateNexusResponse { nexus: self.shown(&entry).await? }))
    }

    async fn destroy_nexus(&self, request: Request<DestroyNexusRequest>) -> Result<Response<()>, Status> {
        let patience = patience(&request);
        let uuid = parse_uuid("uuid", &request.into_inner().uuid)?;
        self.0.clone().destroy_nexus(uuid, patience).await?;
        Ok(Response::new(()))
    }

    async fn resize_nexus(
        &self,
        request: Request<ResizeNexusRequest>,
    ) -> Result<Response<ResizeNexusResponse>, Status> {
        let patience = patience(&request);
        let ResizeNexusRequest { uuid, requested_size } = request.into_inner();
        let uuid = parse_uuid("uuid", &uuid)?;
        let entry = self.0.clone().resize_nexus(uuid, requested_size, patience).await?;
        Ok(Response::new(ResizeNexusResponse { nexus: self.shown(&entry).await? }))
    }

    async fn list_nexus(
        &self,
        request: Request<ListNexusOptions>,
    ) -> Result<Response<ListNexusResponse>, Status> {
        let ListNexusOptions { name, uuid } = request.into_inner();
        let entries = match (name, uuid) {
            (Some(name), _) => self.0.nexuses().list().into_iter().filter(|e| e.wish.name == name).collect(),
            (None, Some(uuid)) => vec![self.0.nexuses().find(parse_uuid("uuid", &uuid)?)?],
            (None, None) => self.0.nexuses().list(),
        };
        let mut nexus_list = Vec::new();
        for entry in entries {
            match self.shown(&entry).await {
                Ok(nexus) => nexus_list.extend(nexus),
                // It was destroyed meanwhile.
                Err(_) if self.0.nexuses().find(entry.wish.uuid).is_err() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Response::new(ListNexusResponse { nexus_list }))
    }

    async fn add_child_nexus(
        &self,
        request: Request<AddChildNexusRequest>,
    ) -> Result<Response<AddChildNexusResponse>, Status> {
        let patience = patience(&request);
        let AddChildNexusRequest { uuid, uri, norebuild } = request.into_inner();
        let uuid = parse_uuid("uuid", &uuid)?;
        let entry = self.0.clone().add_nexus_child(uuid, uri, !norebuild, patience).await?;
        Ok(Response::new(AddChildNexusResponse { nexus: self.shown(&entry).await? }))
    }

    async fn remove_child_nexus(
        &self,
        request: Request<RemoveChildNexusRequest>,
    ) -> Result<Response<RemoveChildNexusResponse>, Status> {
        let patience = patience(&request);
        let RemoveChildNexusRequest { uuid, uri } = request.into_inner();
        let uuid = parse_uuid("uuid", &uuid)?;
        let entry = self.0.clone().remove_nexus_child(uuid, uri, patience).await?;
        Ok(Response::new(RemoveChildNexusResponse { nexus: self.shown(&entry).await? }))
    }

    async fn fault_nexus_child(
        &self,
        request: Request<FaultNexusChildRequest>,
    ) -> Result<Response<FaultNexusChildResponse>, Status> {
        let patience = patience(&request);
        let FaultNexusChildRequest { uuid, uri } = request.into_inner();
        let uuid = parse_uuid("uuid", &uuid)?;
        let entry = self.0.clone().fault_nexus_child(uuid, uri, Fault::OfflinePermanent, patience).await?;
        Ok(Response::new(FaultNexusChildResponse { nexus: self.shown(&entry).await? }))
    }

    async fn shutdown_nexus(
        &self,
        request: Request<ShutdownNexusRequest>,
    ) -> Result<Response<ShutdownNexusResponse>, Status> {
        let patience = patience(&request);
        let uuid = parse_uuid("uuid", &request.into_inner().uuid)?;
        let entry = self.0.clone().shut_down_nexus(uuid, patience).await?;
        Ok(Response::new(ShutdownNexusResponse { nexus: self.shown(&entry).await? }))
    }

    async fn publish_nexus(
        &self,
        request: Request<PublishNexusRequest>,
    ) -> Result<Response<PublishNexusResponse>, Status> {
        let patience = patience(&request);
        let PublishNexusRequest { uuid, key, share, allowed_hosts } = request.into_inner();
        let uuid = parse_uuid("uuid", &uuid)?;
        if !key.is_empty() && key.len() != PUBLISH_KEY_BYTES {
            // What it is stays between those who share it.
            let value = format!("of {} bytes", key.len());
            return Err(EngineError::BadValue {
                what: "key",
                value,
                expected: "leave it out, or give 16 bytes",
            }
            .into());
        }
        if share != ShareProtocol::Nvmf as i32 {
            return Err(EngineError::ShareProtocol(share).into());
        }
        let entry = self.0.clone().publish_nexus(uuid, allowed_hosts, patience).await?;
        Ok(Response::new(PublishNexusResponse { nexus: self.shown(&entry).await? }))
    }

    async fn unpublish_nexus(
        &self,
        request: Request<UnpublishNexusRequest>,
    ) -> Result<Response<UnpublishNexusResponse>, Status> {
        let patience = patience(&request);
        let uuid = parse_uuid("uuid", &request.into_inner().uuid)?;
        let entry = self.0.clone().unpublish_nexus(uuid, patience).await?;
        Ok(Response::new(UnpublishNexusResponse { nexus: self.shown(&entry).await? }))
    }

    async fn get_nvme_ana_state(
        &self,
        request: Request<GetNvmeAnaStateRequest>,
    ) -> Result<Response<GetNvmeAnaStateResponse>, Status> {
        let uuid = parse_uuid("uuid", &request.into_inner().uuid)?;
        let ana_state = self.0.nexus_ana(uuid)? as i32;
        Ok(Response::new(GetNvmeAnaStateResponse { ana_state }))
    }

    async fn set_nvme_ana_state(
        &self,
        request: Request<SetNvmeAnaStateRequest>,
    ) -> Result<Response<SetNvmeAnaStateResponse>, Status> {
        let patience = patience(&request);
        let SetNvmeAnaStateRequest { uuid, ana_state } = request.into_inner();
        let uuid = parse_uuid("uuid", &uuid)?;
        let state = parse_ana(ana_state)?;
        let entry = self.0.clone().set_nexus_ana(uuid, state, patience).await?;
        Ok(Response::new(SetNvmeAnaStateResponse { nexus: self.shown(&entry).await? }))
    }

    async fn child_operation(
        &self,
        request: Request<ChildOperationRequest>,
    ) -> Result<Response<ChildOperationResponse>, Status> {
        let patience = patience(&request);
        let ChildOperationRequest { nexus_uuid, uri, action } = request.into_inner();
        let uuid = parse_uuid("nexus_uuid", &nexus_uuid)?;
        let action = ChildAction::try_from(action).map_err(|_| EngineError::BadValue {
            what: "action",
            value: action.to_string(),
            expected: "write 0 (Offline), 1 (Online), 2 (FaultIOError) or 3 (OfflinePermanent)",
        })?;
        let engine = self.0.clone();
        let entry = match action {
            ChildAction::Online => engine.online_nexus_child(uuid, uri, patience).await?,
            ChildAction::Offline => engine.fault_nexus_child(uuid, uri, Fault::Offline, patience).await?,
            ChildAction::FaultIoError => {
                engine.fault_nexus_child(uuid, uri, Fault::IoError, patience).await?
            }
            ChildAction::OfflinePermanent => {
                engine.fault_nexus_child(uuid, uri, Fault::OfflinePermanent, patience).await?
            }
        };
        Ok(Response::new(ChildOperationResponse { nexus: self.changed(&entry).await? }))
    }

    async fn start_rebuild(
        &self,
        request: Request<StartRebuildRequest>,
    ) -> Result<Response<StartRebuildResponse>, Status> {
        let patience = patience(&request);
        let StartRebuildRequest { nexus_uuid, uri } = request.into_inner();
        let uuid = parse_uuid("nexus_uuid", &nexus_uuid)?;
        let entry = self.0.clone().start_rebuild(uuid, uri, patience).await?;
        Ok(Response::new(StartRebuildResponse { nexus: self.shown(&entry).await? }))
    }

    async fn stop_rebuild(
        &self,
        request: Request<StopRebuildRequest>,
    ) -> Result<Response<StopRebuildResponse>, Status> {
        let patience = patience(&request);
        let StopRebuildRequest { nexus_uuid, uri } = request.into_inner();
        let uuid = parse_uuid("nexus_uuid", &nexus_uuid)?;
        let entry = self.0.clone().stop_rebuild(uuid, uri, patience).await?;
        Ok(Response::new(StopRebuildResponse { nexus: self.shown(&entry).await? }))
    }

    async fn pause_rebuild(
        &self,
        request: Request<PauseRebuildRequest>,
    ) -> Result<Response<PauseRebuildResponse>, Status> {
        let patience = patience(&request);
        let PauseRebuildRequest { nexus_uuid, uri } = request.into_inner();
        let uuid = parse_uuid("nexus_uuid", &nexus_uuid)?;
        let entry = self.0.clone().pause_rebuild(uuid, uri, true, patience).await?;
        Ok(Response::new(PauseRebuildResponse { nexus: self.shown(&entry).await? }))
    }

    async fn resume_rebuild(
        &self,
        request: Request<ResumeRebuildRequest>,
    ) -> Result<Response<ResumeRebuildResponse>, Status> {
        let patience = patience(&request);
        let ResumeRebuildRequest { nexus_uuid, uri } = request.into_inner();
        let uuid = parse_uuid("nexus_uuid", &nexus_uuid)?;
        let entry = self.0.clone().pause_rebuild(uuid, uri, false, patience).await?;
        Ok(Response::new(ResumeRebuildResponse { nexus: self.shown(&entry).await? }))
    }

    async fn get_rebuild_state(
        &self,
        request: Request<RebuildStateRequest>,
    ) -> Result<Response<RebuildStateResponse>, Status> {
        let RebuildStateRequest { nexus_uuid, uri } = request.into_inner();
        let stats = self.0.rebuild_stats(parse_uuid("nexus_uuid", &nexus_uuid)?, &uri).await?;
        Ok(Response::new(RebuildStateResponse { state: stats.state.as_str().to_owned() }))
    }

    async fn get_rebuild_stats(
        &self,
        request: Request<RebuildStatsRequest>,
    ) -> Result<Response<RebuildStatsResponse>, Status> {
        let RebuildStatsRequest { nexus_uuid, uri } = request.into_inner();
        let stats = self.0.rebuild_stats(parse_uuid("nexus_uuid", &nexus_uuid)?, &uri).await?;
        Ok(Response::new(describe::rebuild_stats(&stats)))
    }

    async fn get_rebuild_history(
        &self,
        request: Request<RebuildHistoryRequest>,
    ) -> Result<Response<RebuildHistoryResponse>, Status> {
        let entry = self.0.nexuses().find(parse_uuid("uuid", &request.into_inner().uuid)?)?;
        let records = self.0.rebuild_history(&entry).await?;
        Ok(Response::new(describe::history(&entry, records.iter())))
    }

    async fn list_rebuild_history(
        &self,
        request: Request<ListRebuildHistoryRequest>,
    ) -> Result<Response<ListRebuildHistoryResponse>, Status> {
        let ListRebuildHistoryRequest { count, since_end_time } = request.into_inner();
        let since = match since_end_time.map(SystemTime::try_from) {
            None => None,
            Some(Ok(since)) => Some(since),
            Some(Err(_)) => {
                let (what, expected) = ("since_end_time", "it is no point in time");
                return Err(EngineError::BadValue { what, value: String::new(), expected }.into());
            }
        };
        let most = count.map_or(usize::MAX, |n| n as usize);
        let (mut histories, mut newest) = (HashMap::new(), None);
        for entry in self.0.nexuses().list() {
            let records = self.0.rebuild_history(&entry).await.unwrap_or_default();
            let later = records.iter().rev().filter(|r| since.is_none_or(|since| r.end_time > since));
            let chosen: Vec<_> = later.take(most).collect();
            newest = newest.max(chosen.iter().map(|r| r.end_time).max());
            histories.insert(entry.wish.uuid.to_string(), describe::history(&entry, chosen.into_iter()));
        }
        let end_time = Some(newest.unwrap_or_else(SystemTime::now).into());
        Ok(Response::new(ListRebuildHistoryResponse { histories, end_time }))
    }
}

/// The states that a host may be told on request.
fn parse_ana(number: i32) -> Result<AnaState, EngineError> {
    let settable = [AnaState::Optimized, AnaState::NonOptimized, AnaState::Inaccessible];
    let wanted = NvmeAnaState::try_from(number).ok().and_then(|s| ana_state(s as i32 as u8));
    wanted.filter(|s| settable.contains(s)).ok_or_else(|| EngineError::BadValue {
        what: "ana_state",
        value: number.to_string(),
        expected: "write 1 (optimized), 2 (non-optimized) or 3 (inaccessible)",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_clients_wait() {
        let s = Duration::from_secs;
        assert_eq!(parse_timeout("2H"), Some(s(7200)));
        assert_eq!(parse_timeout("3M"), Some(s(180)));
        assert_eq!(parse_timeout("4S"), Some(s(4)));
        assert_eq!(parse_timeout("5m"), Some(Duration::from_millis(5)));
        assert_eq!(parse_timeout("6u"), Some(Duration::from_micros(6)));
        assert_eq!(parse_timeout("7n"), Some(Duration::from_nanos(7)));
        for bad in ["", "S", "5", "5x", "-5S", "123456789S", "5é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
        assert_eq!(patience(&Request::new(())), DEFAULT_TIMEOUT);
    }

    fn request() -> CreateNexusRequest {
        CreateNexusRequest {
            name: "n".into(),
            uuid: uuid::Uuid::from_u128(1).to_string(),
            min_cntl_id: 1,
            max_cntl_id: 2,
            ..Default::default()
        }
    }

    #[test]
    fn reservations_of_requests() {
        let parse = |change: &dyn Fn(&mut CreateNexusRequest)| {
            let mut request = request();
            change(&mut request);
            parse_wish(request).map(|w| w.reservation)
        };
        assert_eq!(parse(&|_| ()).unwrap(), None);
        let plain = parse(&|r| r.resv_key = 5).unwrap().unwrap();
        assert_eq!((plain.key, plain.rtype, plain.preempt_key, plain.preempt_holder), (5, 5, None, false));
        let holder =
            parse(&|r| (r.resv_key, r.resv_type, r.preempt_policy) = (5, Some(2), 1)).unwrap().unwrap();
        assert_eq!((holder.rtype, holder.preempt_holder), (2, true));
        // As the control plane asks for none.
        assert_eq!(parse(&|r| r.resv_type = Some(0)).unwrap(), None);
        assert!(parse(&|r| r.resv_type = Some(7)).is_err());
        assert!(parse(&|r| r.preempt_policy = 2).is_err());
        assert!(parse(&|r| r.preempt_policy = 1).is_err(), "a holder without a key");
        assert!(parse(&|r| r.preempt_key = 1).is_err(), "nothing to reserve with");
        assert!(parse(&|r| (r.resv_key, r.preempt_key, r.preempt_policy) = (1, 2, 1)).is_err());
    }

    #[test]
    fn ana_states_that_may_be_set() {
        assert_eq!(parse_ana(3).unwrap(), AnaState::Inaccessible);
        for bad in [0, 4, 15, 5, -1, 257] {
            assert!(parse_ana(bad).is_err(), "{bad}");
        }
    }
}
