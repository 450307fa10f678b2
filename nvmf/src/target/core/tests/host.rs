//! A host for tests: speaks the protocol through the engine, keeps everything that it is told.
#![allow(unsafe_code)]

use std::collections::HashMap;

use aio::ByteStream;
use nvme::fabrics::{ConnectAttributes, ConnectData, ConnectSqe, PropertySqe};
use nvme::property::{Cc, PropertyOffset};
use nvme::sgl::SglDescriptor;
use nvme::tcp::crc32c;
use nvme::{Cid, Cntlid, Cqe, HostId, Nqn, Nsid, NvmOpcode, Qid, Sqe, Status};

use super::pipe::PipeEnd;
use crate::tcp::{Engine, Event, Local, Outbound, Terminated, TxQueue, TxTag, emit};

/// How a command ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Done {
    pub(super) status: Status,
    pub(super) result: u64,
    pub(super) data: Vec<u8>,
    pub(super) sqhd: u16,
}

struct Pending {
    outbound: Outbound,
    to_send: Vec<u8>,
    data: Vec<u8>,
}

pub(super) struct Host {
    pub(super) stream: PipeEnd,
    pub(super) engine: Engine,
    tx: TxQueue,
    pending: HashMap<u16, Pending>,
    pub(super) done: HashMap<u16, Done>,
    pub(super) order: Vec<u16>,
    pub(super) terminated: Option<Terminated>,
    pub(super) closed: bool,
    /// R2Ts are noted but not answered.
    pub(super) stall_data: bool,
    pub(super) r2ts: u32,
    /// Nothing is received.
    pub(super) deaf: bool,
    filling: u16,
    success: bool,
    max_r2t: u32,
}

impl Host {
    pub(super) fn new(stream: PipeEnd, local: Local) -> Self {
        let mut host = Self {
            stream,
            engine: Engine::new(local),
            tx: TxQueue::new(1 << 16, 64, 64),
            pending: HashMap::new(),
            done: HashMap::new(),
            order: Vec::new(),
            terminated: None,
            closed: false,
            stall_data: false,
            r2ts: 0,
            deaf: false,
            filling: 0,
            success: false,
            max_r2t: local.max_r2t,
        };
        host.engine.start(&mut host.tx);
        host.push();
        host
    }

    /// Sends raw bytes.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        let entry = aio::SgEntry {
            ptr: core::ptr::NonNull::from(bytes).cast(),
            len_bytes: bytes.len() as u32,
            region: aio::RegionId::NONE,
        };
        // SAFETY: `bytes` outlives the call.
        let sent = unsafe { self.stream.send(&[entry]) };
        assert_eq!(sent.unwrap_or(Some(bytes.len())), Some(bytes.len()), "the pipe is full");
    }

    fn push(&mut self) {
        while !self.tx.is_empty() {
            // SAFETY: what is in the list outlives it.
            let Ok(Some(n)) = (unsafe { self.stream.send(self.tx.gather()) }) else { return };
            self.tx.advance(n);
            while self.tx.pop_sent().is_some() {}
        }
    }

    /// Sends a command with `data` in the capsule, or upon R2Ts.
    pub(super) fn send(&mut self, mut sqe: Sqe, data: &[u8], in_capsule: bool, reads: u32) {
        let cid = sqe.cid.get();
        let inside = in_capsule && !data.is_empty();
        sqe.set_sgl1(if inside {
            SglDescriptor::in_capsule(0, data.len() as u32)
        } else {
            SglDescriptor::transport((data.len() as u32).max(reads))
        });
        let agreed = *self.engine.agreed();
        let pending = Pending {
            outbound: Outbound::new(if inside { 0 } else { data.len() as u32 }),
            to_send: data.to_vec(),
            data: vec![0; reads as usize],
        };
        self.pending.insert(cid, pending);
        emit::command(&mut self.tx, &agreed, &sqe, if inside { data.len() as u32 } else { 0 });
        if inside {
            // Where it stays until the command completes: a part may go later.
            self.tx.data(entry(&self.pending[&cid].to_send));
            if agreed.data_digest {
                emit::data_digest(&mut self.tx, crc32c(data));
            }
        }
        self.tx.finish(TxTag::NONE);
        self.push();
    }

    /// Sends a command with `data` in the capsule, of which its descriptor says that it is `stated` bytes.
    pub(super) fn send_as(&mut self, mut sqe: Sqe, data: &[u8], stated: u32) {
        let pending = Pending { outbound: Outbound::new(0), to_send: Vec::new(), data: Vec::new() };
        self.pending.insert(sqe.cid.get(), pending);
        sqe.set_sgl1(SglDescriptor::in_capsule(0, stated));
        emit::command(&mut self.tx, self.engine.agreed(), &sqe, data.len() as u32);
        self.tx.data(entry(data));
        self.tx.finish(TxTag::NONE);
        self.push();
        assert!(self.tx.is_empty(), "the pipe is full");
    }

    /// Handles everything that arrived.
    pub(super) fn turn(&mut self) {
        if self.deaf {
            return;
        }
        self.push();
        let mut buf = vec![0u8; 1 << 16];
        loop {
            let into = aio::SgEntry {
                ptr: core::ptr::NonNull::from(&mut buf[..]).cast(),
                len_bytes: buf.len() as u32,
                region: aio::RegionId::NONE,
            };
            // SAFETY: `buf` is ours.
            let got = unsafe { self.stream.recv(&[into]) };
            let Ok(Some(n)) = got else { return };
            if n == 0 {
                self.closed = true;
                return;
            }
            let bytes = std::mem::take(&mut buf);
            self.feed(&bytes[..n]);
            buf = bytes;
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        let mut at = 0;
        loop {
            let event =
                self.engine.next(bytes, &mut at, &mut self.tx).expect("the target keeps the protocol");
            match event {
                None => break,
                Some(event) => self.event(event),
            }
        }
        self.push();
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Response(cqe) => self.complete(&cqe),
            Event::C2hData { cccid, span, success, data } => {
                assert_eq!(span.offset_bytes, 0, "one data PDU a command");
                self.filling = cccid;
                self.success = success;
                let p = self.pending.get_mut(&cccid).expect("data of a command in flight");
                assert_eq!(p.data.len(), data.len_bytes as usize);
                assert!(data.intact);
                p.data.clear();
                if let Some(bytes) = data.here {
                    p.data.extend_from_slice(bytes);
                    self.payload_end();
                }
            }
            Event::Piece(bytes) => self.filled().extend_from_slice(bytes),
            Event::PayloadEnd { digest } => {
                let crc = crc32c(self.filled());
                assert!(digest.is_none_or(|d| d == crc));
                self.payload_end();
            }
            Event::R2t { cccid, span } => {
                self.r2ts += 1;
                let max = self.max_r2t;
                let p = self.pending.get_mut(&cccid).expect("R2T of a command in flight");
                p.outbound.grant(span, max).expect("legal R2T");
                if !self.stall_data {
                    self.send_data(cccid);
                }
            }
            Event::Terminated(t) => self.terminated = Some(t),
            Event::Initialized(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Answers the R2Ts of a command.
    pub(super) fn send_data(&mut self, cid: u16) {
        let agreed = *self.engine.agreed();
        let p = self.pending.get_mut(&cid).expect("in flight");
        while let Some(span) = p.outbound.next_pdu(agreed.max_h2c_data_bytes.min(10_000)) {
            let bytes = &p.to_send[span.offset_bytes as usize..][..span.len_bytes as usize];
            emit::h2c_data(&mut self.tx, &agreed, cid, span);
            self.tx.data(entry(bytes));
            if agreed.data_digest {
                emit::data_digest(&mut self.tx, crc32c(bytes));
            }
            self.tx.finish(TxTag::NONE);
        }
        self.push();
    }

    fn filled(&mut self) -> &mut Vec<u8> {
        &mut self.pending.get_mut(&self.filling).expect("in flight").data
    }

    fn payload_end(&mut self) {
        if self.success {
            self.complete(&Cqe::new(Cid(self.filling), Status::SUCCESS, 0));
        }
    }

    fn complete(&mut self, cqe: &Cqe) {
        let cid = cqe.cid.get();
        let p = self.pending.remove(&cid).expect("completion of a command in flight");
        let done = Done { status: cqe.status(), result: cqe.result(), data: p.data, sqhd: cqe.sqhd.get() };
        assert!(self.done.insert(cid, done).is_none(), "completed twice");
        self.order.push(cid);
    }

    pub(super) fn in_flight(&self) -> usize {
        self.pending.len()
    }
}

fn entry(bytes: &[u8]) -> aio::SgEntry {
    aio::SgEntry {
        ptr: core::ptr::NonNull::from(bytes).cast(),
        len_bytes: bytes.len() as u32,
        region: aio::RegionId::NONE,
    }
}

// Commands.

pub(super) fn rw(opcode: NvmOpcode, cid: u16, nsid: u32, slba: u64, blocks: u32) -> Sqe {
    let mut sqe = nvme::nvm::Rw::new(slba, blocks).sqe(opcode, Nsid(nsid));
    sqe.set_cid(Cid(cid));
    sqe
}

pub(super) fn connect(cid: u16, qid: u16, entries: u32, flow_control: bool) -> Sqe {
    let mut connect = ConnectSqe::new(Qid(qid), entries, 0);
    if !flow_control {
        connect.cattr = connect.cattr.with(ConnectAttributes::DISABLE_SQ_FLOW_CONTROL);
    }
    let mut sqe = connect.to_sqe();
    sqe.set_cid(Cid(cid));
    sqe
}

pub(super) fn connect_data(cntlid: u16, subnqn: &str, host: u8) -> Vec<u8> {
    let hostnqn = format!("nqn.2014-08.org.nvmexpress:uuid:host-{host}");
    let nqn = |s: &str| Nqn::parse(s).expect("a good NQN");
    ConnectData::new(HostId([host; 16]), Cntlid(cntlid), &nqn(subnqn), &nqn(&hostnqn)).wire().to_vec()
}

pub(super) fn enable(cid: u16) -> Sqe {
    let cc = Cc(0).with_en(true).with_iosqes(6).with_iocqes(4);
    let mut sqe = PropertySqe::set(PropertyOffset::CC, u64::from(cc.0)).to_sqe();
    sqe.set_cid(Cid(cid));
    sqe
}
