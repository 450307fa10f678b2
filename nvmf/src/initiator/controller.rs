//! An association with a controller: admin queue, identify data, keep alive, asynchronous events.
//!
//! Lives on its home core. Everything here is control work: futures on the core's executor.

use std::cell::RefCell;
use std::time::Duration;

use aio::reactor::{Core, JoinHandle};
use nvme::admin::Abort;
use nvme::aen::AsyncEvent;
use nvme::feature::{Fid, Oaes, QueueCounts, SetFeatures};
use nvme::identify::{
    Cns, IDENTIFY_LEN_BYTES, IdList, Identify, IdentifyController, IdentifyNamespace, NamespaceIds,
    NvmIdentifyController,
};
use nvme::log::GetLogPage;
use nvme::property::{Cap, Cc, Csts, PropertyOffset};
use nvme::vendor::EndAssociation;
use nvme::{AdminOpcode, Cid, Cntlid, Nqn, Nsid, NvmOpcode, Qid, Sqe, Status};

use super::calls::Calls;
use super::connect::{ADMIN_ENTRIES, connect_queue, enable, get_property, open_queue, run, set_property};
use super::error::{Error, PeerFault};
use super::options::Options;

/// Most bytes that one passthrough command may transfer.
pub const MAX_ADMIN_BYTES: usize = 1 << 20;

/// Pause between two questions whether the controller has shut down.
const SHUTDOWN_PAUSE: Duration = Duration::from_millis(5);

/// Least time between two keep alives.
const MIN_KEEP_ALIVE: Duration = Duration::from_millis(100);

/// An admin command as a whole: for tools, tests, and what has no function of its own here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdminRequest {
    /// Opcode. Its low two bits say which way the data goes.
    pub opcode: AdminOpcode,
    /// Namespace, 0 for none.
    pub nsid: Nsid,
    /// Command dwords 2 and 3, which only vendor specific commands use.
    pub cdw2_3: [u32; 2],
    /// Command dwords 10 to 15.
    pub cdw10_15: [u32; 6],
    /// Data to send, or as many zeroes as may be received; at most [`MAX_ADMIN_BYTES`].
    pub data: Vec<u8>,
}

impl AdminRequest {
    /// The command of an SQE, and its data.
    pub fn new(sqe: &Sqe, data: Vec<u8>) -> Self {
        Self {
            opcode: sqe.admin_opcode(),
            nsid: sqe.nsid(),
            cdw2_3: [sqe.cdw2.get(), sqe.cdw3.get()],
            cdw10_15: dwords(sqe),
            data,
        }
    }
}

fn dwords(sqe: &Sqe) -> [u32; 6] {
    [&sqe.cdw10, &sqe.cdw11, &sqe.cdw12, &sqe.cdw13, &sqe.cdw14, &sqe.cdw15].map(|d| d.get())
}

/// The answer to an [`AdminRequest`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdminReply {
    /// Dwords 0 and 1 of the completion.
    pub result: u64,
    /// What was received (or sent).
    pub data: Vec<u8>,
}

/// An I/O command as a whole: for what has no opcode in the block-device contract (reservations, for example). The
/// namespace is that of the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoRequest {
    /// Opcode. Its low two bits say which way the data goes.
    pub opcode: NvmOpcode,
    /// Command dwords 10 to 15.
    pub cdw10_15: [u32; 6],
    /// Data to send, or as many zeroes as may be received; at most [`MAX_ADMIN_BYTES`].
    pub data: Vec<u8>,
}

impl IoRequest {
    /// The command of an SQE, and its data.
    pub fn new(sqe: &Sqe, data: Vec<u8>) -> Self {
        Self { opcode: sqe.nvm_opcode(), cdw10_15: dwords(sqe), data }
    }

    /// Runs it on a connected I/O queue.
    pub(super) async fn run(self, calls: &Calls, options: &Options, nsid: Nsid) -> Result<AdminReply, Error> {
        let op = self.opcode.name().unwrap_or("an I/O command");
        let sqe = with_dwords(Sqe::nvm(self.opcode, nsid), self.cdw10_15);
        command(calls, options, op, sqe, self.data).await
    }
}

fn with_dwords(mut sqe: Sqe, dwords: [u32; 6]) -> Sqe {
    sqe.cdw10.set(dwords[0]);
    sqe.cdw11.set(dwords[1]);
    sqe.cdw12.set(dwords[2]);
    sqe.cdw13.set(dwords[3]);
    sqe.cdw14.set(dwords[4]);
    sqe.cdw15.set(dwords[5]);
    sqe
}

async fn command(
    calls: &Calls,
    options: &Options,
    op: &'static str,
    sqe: Sqe,
    data: Vec<u8>,
) -> Result<AdminReply, Error> {
    if data.len() > MAX_ADMIN_BYTES {
        return Err(Error::Refused { op, addr: options.addr, status: Status::INVALID_FIELD });
    }
    let addr = options.addr;
    let answer = calls.call(sqe, data, true).await;
    let (cqe, data) = answer.map_err(|fault| Error::Peer { op, addr, fault })?;
    let (status, result) = (cqe.status(), cqe.result());
    match i32::try_from(result as u32) {
        _ if status.is_success() => Ok(AdminReply { result, data }),
        Ok(errno @ 1..) if status.is(Status::INTERNAL_ERROR) => Err(Error::Device { op, addr, errno }),
        _ => Err(Error::Refused { op, addr, status }),
    }
}

/// A connected controller. Dropping it ends the association.
pub struct Controller {
    pub(super) calls: Calls,
    pub(super) options: Options,
    pub(super) cntlid: Cntlid,
    pub(super) cap: Cap,
    identify: Box<IdentifyController>,
    tasks: RefCell<Vec<JoinHandle<()>>>,
}

impl Controller {
    /// Connects the admin queue, enables the controller, and identifies it. Runs on the core that will be its home.
    ///
    /// Dropping the future closes the connection.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let core = Core::current().expect("invariant: tasks run inside their reactor");
        let calls = open_queue(&core, &options, ADMIN_ENTRIES).await?;
        // Closes the connection on every way out but success.
        let guard = CloseOnDrop(Some(calls.clone()));
        let connected =
            connect_queue(&calls, &options, nvme::Qid::ADMIN, ADMIN_ENTRIES, Cntlid::DYNAMIC).await?;
        let cap = enable(&core, &calls, &options).await?;
        let identify = Identify::new(Cns::CONTROLLER, Nsid::NONE).sqe();
        let (_, page) = run(&calls, &options, "Identify Controller", identify, page()).await?;
        let identify = IdentifyController::read(&page).expect("invariant: the page has its full length");
        let controller = Self {
            calls,
            cntlid: connected.cntlid(),
            cap,
            identify: Box::new(identify),
            options,
            tasks: RefCell::default(),
        };
        guard.keep();
        controller.start_keep_alive(&core);
        Ok(controller)
    }

    /// Identify Controller data, as read at the time of connecting.
    pub fn identify(&self) -> &IdentifyController {
        &self.identify
    }

    /// The controller's identifier.
    pub fn cntlid(&self) -> Cntlid {
        self.cntlid
    }

    /// The subsystem connected to.
    pub fn subnqn(&self) -> &Nqn {
        &self.options.subnqn
    }

    /// Any admin command. Internal Error with a number in dword 0 is [`Error::Device`].
    pub async fn admin(&self, request: AdminRequest) -> Result<AdminReply, Error> {
        let op = request.opcode.name().unwrap_or("an admin command");
        let mut sqe = with_dwords(Sqe::admin(request.opcode, request.nsid), request.cdw10_15);
        sqe.cdw2.set(request.cdw2_3[0]);
        sqe.cdw3.set(request.cdw2_3[1]);
        command(&self.calls, &self.options, op, sqe, request.data).await
    }

    /// A page of Identify data.
    pub async fn identify_page(&self, op: &'static str, what: Identify) -> Result<Vec<u8>, Error> {
        run(&self.calls, &self.options, op, what.sqe(), page()).await.map(|(_, page)| page)
    }

    /// Identify Namespace.
    pub async fn identify_namespace(&self, nsid: Nsid) -> Result<Box<IdentifyNamespace>, Error> {
        let page = self.identify_page("Identify Namespace", Identify::new(Cns::NAMESPACE, nsid)).await?;
        Ok(Box::new(IdentifyNamespace::read(&page).expect("invariant: the page has its full length")))
    }

    /// The namespace's identifiers. Controllers older than NVMe 1.3 may not have this list.
    pub async fn namespace_ids(&self, nsid: Nsid) -> Result<NamespaceIds, Error> {
        let what = Identify::new(Cns::NAMESPACE_DESCRIPTORS, nsid);
        let page = self.identify_page("Identify of namespace descriptors", what).await?;
        Ok(NamespaceIds::from_page(&page))
    }

    /// Active namespaces above `after`, at most 1,024.
    pub async fn active_namespaces(&self, after: Nsid) -> Result<Vec<Nsid>, Error> {
        let what = Identify::new(Cns::ACTIVE_NAMESPACES, after);
        let page = self.identify_page("Identify of active namespaces", what).await?;
        let list = IdList::view(&page).expect("invariant: the page has its full length");
        Ok(list.iter().filter(|nsid| nsid.is_one() && *nsid > after).collect())
    }

    /// The limits of the NVM command set; `None` where the controller does not report them.
    pub async fn nvm_limits(&self) -> Option<NvmIdentifyController> {
        let what = Identify::new(Cns::CS_CONTROLLER, Nsid::NONE);
        let page = self.identify_page("Identify of the NVM command set", what).await.ok()?;
        NvmIdentifyController::read(&page)
    }

    /// A log page of a fixed length: `request.len_bytes`, at most [`MAX_ADMIN_BYTES`].
    pub async fn log_page(&self, request: GetLogPage) -> Result<Vec<u8>, Error> {
        let op = request.lid.name().unwrap_or("a log page");
        let len = usize::try_from(request.len_bytes).unwrap_or(usize::MAX);
        if len == 0 || len > MAX_ADMIN_BYTES || !len.is_multiple_of(4) {
            return Err(Error::Refused { op, addr: self.options.addr, status: Status::INVALID_FIELD });
        }
        run(&self.calls, &self.options, op, request.sqe(), vec![0; len]).await.map(|(_, page)| page)
    }

    /// Asks for `wanted` I/O queues (1 or more); returns how many there may be.
    pub async fn set_queue_count(&self, wanted: u16) -> Result<u16, Error> {
        let asked = QueueCounts::new(wanted.max(1));
        let sqe = SetFeatures::new(Fid::NUMBER_OF_QUEUES, asked.0).sqe();
        let (cqe, _) =
            run(&self.calls, &self.options, "Set Features (number of queues)", sqe, Vec::new()).await?;
        let granted = QueueCounts(cqe.result() as u32).pairs();
        Ok(u16::try_from(granted).unwrap_or(u16::MAX).min(wanted))
    }

    /// Enables those notices of `wanted` that the controller has.
    pub async fn enable_events(&self, wanted: Oaes) -> Result<Oaes, Error> {
        let events = self.identify.oaes & wanted;
        let sqe = SetFeatures::new(Fid::ASYNC_EVENT_CONFIG, events.bits()).sqe();
        run(&self.calls, &self.options, "Set Features (asynchronous events)", sqe, Vec::new()).await?;
        Ok(events)
    }

    /// Waits for the next asynchronous event. One request is outstanding at a time.
    pub async fn next_event(&self) -> Result<AsyncEvent, Error> {
        let op = "Asynchronous Event Request";
        let addr = self.options.addr;
        let sqe = Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, Nsid::NONE);
        match self.calls.call(sqe, Vec::new(), false).await {
            Ok((cqe, _)) if cqe.status().is_success() => Ok(AsyncEvent::from_result(cqe.result())),
            Ok((cqe, _)) => Err(Error::Refused { op, addr, status: cqe.status() }),
            Err(fault) => Err(Error::Peer { op, addr, fault }),
        }
    }

    /// Resolves when the association ended, with the reason.
    pub async fn ended(&self) -> PeerFault {
        self.calls.ended().await
    }

    /// Asks for the end of a command of an I/O queue. What becomes of it shows in the command's own completion.
    pub(super) async fn abort(&self, sqid: Qid, cid: Cid) {
        let sqe = Abort { sqid, cid }.sqe();
        let _ = self.calls.call(sqe, Vec::new(), true).await;
    }

    /// Ends another association of ours with the same subsystem; see [`EndAssociation`] for the answer.
    pub(super) async fn end_association(&self, which: EndAssociation) -> Result<u64, Error> {
        let op = "the end of an earlier association";
        run(&self.calls, &self.options, op, which.sqe(), Vec::new()).await.map(|(cqe, _)| cqe.result())
    }

    /// Tells the controller to shut down, waits for its answer, and closes the connection.
    pub async fn shutdown(&self) {
        // Best effort: the connection ends in any case.
        let _ = self.begin_shutdown().await;
        self.close();
    }

    async fn begin_shutdown(&self) -> Result<(), Error> {
        let cc = Cc(0).with_en(true).with_iosqes(6).with_iocqes(4).with_shn(1);
        set_property(&self.calls, &self.options, PropertyOffset::CC, u64::from(cc.0)).await
    }

    /// As [`shutdown`](Self::shutdown), and waits until the controller has shut down: then it executes nothing any more.
    /// False when it does not say so in time.
    pub(super) async fn shut_down_wholly(&self) -> bool {
        let core = Core::current().expect("invariant: tasks run inside their reactor");
        let deadline = core.now() + self.options.admin_timeout;
        let mut over = false;
        let told = self.begin_shutdown().await;
        while told.is_ok() && !over && core.now() < deadline {
            let csts = get_property(&self.calls, &self.options, PropertyOffset::CSTS).await;
            let Ok(csts) = csts else { break };
            over = Csts(csts as u32).shst() == 2;
            if !over {
                core.sleep(SHUTDOWN_PAUSE).await;
            }
        }
        self.close();
        over
    }

    /// Closes the connection at once. What is in flight resolves with an error.
    pub fn close(&self) {
        self.calls.close(PeerFault::Closed);
    }

    /// Aborts `task` when the controller is dropped.
    fn keep_task(&self, task: JoinHandle<()>) {
        self.tasks.borrow_mut().push(task);
    }

    fn start_keep_alive(&self, core: &Core) {
        if self.options.kato_ms == 0 {
            return;
        }
        let interval = (Duration::from_millis(self.options.kato_ms.into()) / 2).max(MIN_KEEP_ALIVE);
        let (sleeper, calls) = (core.clone(), self.calls.clone());
        self.keep_task(core.spawn(async move {
            loop {
                sleeper.sleep(interval).await;
                let sqe = Sqe::admin(AdminOpcode::KEEP_ALIVE, Nsid::NONE);
                match calls.call(sqe, Vec::new(), true).await {
                    Ok(_) => {}
                    // The queue has ended and told everyone.
                    Err(_) => return,
                }
            }
        }));
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.close();
        for task in self.tasks.get_mut() {
            task.abort();
        }
    }
}

/// A page-sized buffer for Identify.
fn page() -> Vec<u8> {
    vec![0; IDENTIFY_LEN_BYTES]
}

struct CloseOnDrop(Option<Calls>);

impl CloseOnDrop {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(calls) = &self.0 {
            calls.close(PeerFault::Closed);
        }
    }
}
