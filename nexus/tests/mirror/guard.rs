//! A target with reservations in front of a disk: one state for all hosts, as `nvmf::target` has it, and a facet and
//! channels for one of them. What the target promises can be switched off, to see that the tests need it.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aio::device::{Cancel, EventSink, Subscription};
use aio::facets::{FacetError, FacetFuture, Reservations as Facet};
use aio::{
    BlockCount, BlockDevice, Busy, Capabilities, Completion, Core, DeviceError, Geometry, Io, IoChannel,
    IoStatus, Lent, LocalBoxFuture, Opcode, Sleep, Token,
};
use nvme::HostId;
use nvme::reservation::{
    Access, Acquire, AcquireAction, Command, Register, Release, Report, Reservations, Rights,
};

/// What the target does not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Broken {
    #[default]
    Nothing,
    /// A preemption completes at once, whatever the disk still has.
    Drain,
    /// Nobody is refused.
    Check,
}

#[derive(Default)]
struct State {
    reservations: Reservations,
    access: Option<Access>,
    /// What the disk has: who, what for, and which.
    flying: Vec<(HostId, Rights, u64)>,
    next: u64,
    broken: Broken,
}

impl State {
    fn allows(&self, host: HostId, needed: Rights) -> bool {
        self.broken == Broken::Check || self.access.as_ref().is_none_or(|a| a.allows(host, needed))
    }
}

/// The reservations of one disk.
#[derive(Clone, Default)]
pub(crate) struct Target(Arc<Mutex<State>>);

impl Target {
    pub(crate) fn new(broken: Broken) -> Self {
        let state = State { reservations: Reservations::new(true), broken, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }

    pub(crate) fn report(&self) -> Report {
        self.with(|s| Report::of(&s.reservations))
    }

    pub(crate) fn apply(&self, host: HostId, command: &Command) -> Result<(), IoStatus> {
        self.with(|s| {
            s.reservations.apply(host, command)?;
            s.access = s.reservations.access();
            Ok(())
        })
    }

    /// The disk as `host` sees it.
    pub(crate) fn seen_by(&self, host: HostId, disk: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
        Arc::new(Guarded { target: self.clone(), host, disk })
    }
}

struct Guarded {
    target: Target,
    host: HostId,
    disk: Arc<dyn BlockDevice>,
}

impl Guarded {
    async fn run(&self, what: &'static str, command: Command) -> Result<(), FacetError> {
        let device = self.disk.name().to_owned();
        let applied = self.target.apply(self.host, &command);
        applied.map_err(|status| FacetError::Refused { what, device, status })?;
        let core = Core::current().unwrap();
        let waits = || {
            self.target.with(|s| {
                let forbidden = s.flying.iter().any(|(host, needed, _)| !s.allows(*host, *needed));
                forbidden && s.broken != Broken::Drain
            })
        };
        while waits() {
            core.sleep(Duration::from_micros(10)).await;
        }
        Ok(())
    }
}

impl Facet for Guarded {
    fn host(&self) -> HostId {
        self.host
    }

    fn register(&self, command: Register) -> FacetFuture<'_, ()> {
        Box::pin(self.run("register at", Command::Register(command)))
    }

    fn acquire(&self, command: Acquire) -> FacetFuture<'_, ()> {
        assert_ne!(command.action, AcquireAction::PREEMPT_AND_ABORT);
        Box::pin(self.run("reserve", Command::Acquire(command)))
    }

    fn release(&self, command: Release) -> FacetFuture<'_, ()> {
        Box::pin(self.run("release", Command::Release(command)))
    }

    fn report(&self) -> FacetFuture<'_, Report> {
        Box::pin(async { Ok(self.target.report()) })
    }
}

impl BlockDevice for Guarded {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn uuid(&self) -> uuid::Uuid {
        self.disk.uuid()
    }

    /// Not a local one.
    fn driver(&self) -> &'static str {
        "nvmf"
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn size(&self) -> BlockCount {
        self.disk.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.disk.capabilities()
    }

    fn incarnation(&self) -> Option<u128> {
        self.disk.incarnation()
    }

    fn subscribe(&self, sink: EventSink) -> Subscription {
        self.disk.subscribe(sink)
    }

    fn remove(&self) {
        self.disk.remove();
    }

    fn reservations(&self) -> Option<&dyn Facet> {
        Some(self)
    }

    fn open_channel(&self) -> LocalBoxFuture<'_, Result<Box<dyn IoChannel>, DeviceError>> {
        Box::pin(async {
            let channel = self.disk.open_channel().await?;
            let (target, host) = (self.target.clone(), self.host);
            Ok(Box::new(Channel { target, host, channel, ours: Vec::new(), refused: VecDeque::new() }) as _)
        })
    }
}

struct Channel {
    target: Target,
    host: HostId,
    channel: Box<dyn IoChannel>,
    /// What the disk has of this channel, and under which number the target knows it.
    ours: Vec<(Token, u64)>,
    refused: VecDeque<Token>,
}

fn needed(opcode: Opcode) -> Rights {
    match opcode {
        Opcode::Read | Opcode::Compare | Opcode::Verify => Rights::READ,
        _ => Rights::WRITE,
    }
}

impl IoChannel for Channel {
    unsafe fn submit(&mut self, io: &Io<'_>, token: Token) -> Result<(), Busy> {
        let needed = needed(io.opcode);
        if !self.target.with(|s| s.allows(self.host, needed)) {
            self.refused.push_back(token);
            return Ok(());
        }
        // SAFETY: as the caller promises.
        unsafe { self.channel.submit(io, token)? };
        let number = self.target.with(|s| {
            s.next += 1;
            s.flying.push((self.host, needed, s.next));
            s.next
        });
        self.ours.push((token, number));
        Ok(())
    }

    fn kick(&mut self) {
        self.channel.kick();
    }

    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        let before = out.len();
        self.channel.poll(out, budget);
        for done in &out[before..] {
            let at = self.ours.iter().position(|(token, _)| *token == done.token).unwrap();
            let (_, number) = self.ours.swap_remove(at);
            self.target.with(|s| s.flying.retain(|(_, _, n)| *n != number));
        }
        while out.len() - before < budget
            && let Some(token) = self.refused.pop_front()
        {
            out.push(Completion::new(token, IoStatus::RESERVATION_CONFLICT));
        }
        out.len() - before
    }

    fn take_ready(&mut self) -> bool {
        self.channel.take_ready()
    }

    fn prepare_sleep(&mut self) -> Sleep {
        if self.refused.is_empty() { self.channel.prepare_sleep() } else { Sleep::KeepPolling }
    }

    fn cancel(&mut self, token: Token) -> Cancel {
        self.channel.cancel(token)
    }

    fn lent(&self, token: Token) -> Lent<'_> {
        self.channel.lent(token)
    }

    fn release(&mut self, token: Token) {
        self.channel.release(token);
    }

    fn close(&mut self) {
        self.channel.close();
    }

    fn drained(&self) -> bool {
        self.channel.drained() && self.refused.is_empty()
    }
}
