//! One connection of the fake controller.

#![allow(unsafe_code, reason = "streams take raw scatter-gather entries")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::rc::Rc;

use aio::{ByteStream, RegionId, SgEntry};
use nvme::command::Direction;
use nvme::fabrics::{ConnectResult, FabricsSqe};
use nvme::feature::QueueCounts;
use nvme::identify::controller::{Fuses, Oncs, Sgls, Vwc};
use nvme::identify::namespace::LbaFormat;
use nvme::identify::{Cns, IdList, Identify, IdentifyController, IdentifyNamespace, NamespaceIds};
use nvme::nvm::{DsmRange, Rw};
use nvme::property::{Cap, Csts, PropertyOffset};
use nvme::sgl::Sgl;
use nvme::tcp::{DigestFlags, IcResp, PduFlags, PduType, TermPdu};
use nvme::{AdminOpcode, Cntlid, Cqe, Nsid, NvmOpcode, Sqe, Status};
use nvmf::tcp::{Engine, Event, Local, TxQueue};

use super::pdu::{self, Digests};
use super::{BLOCKS, Trick};
use crate::rng::Rng;

/// Blocks that the controller asks for with one R2T, in bytes.
const R2T_BYTES: u32 = 8192;

/// A write-like command whose data is coming in.
struct Pending {
    sqe: Sqe,
    data: Vec<u8>,
    received: usize,
    asked: u32,
}

pub(super) struct Conn {
    stream: Option<Box<dyn ByteStream>>,
    engine: Engine,
    /// Only takes what the engine answers by itself.
    tx: TxQueue,
    out: VecDeque<u8>,
    disk: Rc<RefCell<Vec<u8>>>,
    trick: Trick,
    rng: Rng,
    digests: Digests,
    qid: u16,
    enabled: bool,
    pending: Vec<Pending>,
    /// Command and data whose rest is still coming in.
    partial: Option<(Partial, Vec<u8>)>,
    /// The first half of a fused pair failed.
    fused: Option<Status>,
    tricked: bool,
    /// After the trick nothing else is answered.
    deaf: bool,
    closing: bool,
    new_association: bool,
    forgiving: bool,
}

#[derive(Clone, Copy)]
enum Partial {
    Capsule(Sqe),
    H2c { cid: u16 },
}

fn entry(bytes: &mut [u8]) -> [SgEntry; 1] {
    let ptr = NonNull::from(&mut bytes[0]);
    [SgEntry { ptr, len_bytes: bytes.len() as u32, region: RegionId::NONE }]
}

impl Conn {
    pub(super) fn new(
        stream: Box<dyn ByteStream>,
        trick: Trick,
        disk: Rc<RefCell<Vec<u8>>>,
        seed: u64,
        forgiving: bool,
    ) -> Self {
        Self {
            stream: Some(stream),
            engine: Engine::new(Local::controller(16384)),
            tx: TxQueue::new(4096, 8, 8),
            out: VecDeque::new(),
            disk,
            trick,
            rng: Rng::new(seed),
            digests: Digests::default(),
            qid: u16::MAX,
            enabled: false,
            pending: Vec::new(),
            partial: None,
            fused: None,
            tricked: false,
            deaf: false,
            closing: false,
            new_association: false,
            forgiving,
        }
    }

    /// True once after the Connect of an admin queue.
    pub(super) fn take_new_association(&mut self) -> bool {
        std::mem::take(&mut self.new_association)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.stream.is_none()
    }

    pub(super) fn poll(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let mut chunk = vec![0; 20_000];
        // SAFETY: the entry names `chunk`.
        let received = unsafe { stream.recv(&entry(&mut chunk)) };
        match received {
            Ok(None) => false,
            Ok(Some(0)) | Err(_) => {
                self.stream = None;
                true
            }
            Ok(Some(n)) => {
                self.take_in(&chunk[..n]);
                true
            }
        }
    }

    pub(super) fn send(&mut self) {
        while let Some(stream) = &mut self.stream {
            if self.out.is_empty() {
                if self.closing {
                    self.stream = None;
                }
                return;
            }
            let bytes = self.out.make_contiguous();
            // SAFETY: the entry names `out`, which stays as it is during the call.
            match unsafe { stream.send(&entry(bytes)) } {
                Ok(Some(n)) => drop(self.out.drain(..n)),
                Ok(None) => return,
                Err(_) => self.stream = None,
            }
        }
    }

    fn take_in(&mut self, input: &[u8]) {
        let mut at = 0;
        loop {
            let event = match self.engine.next(input, &mut at, &mut self.tx) {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(error) => return self.complain(&format!("the initiator sent a malformed PDU: {error}")),
            };
            match event {
                Event::Initialized(agreed) => {
                    self.digests = Digests { header: agreed.header_digest, data: agreed.data_digest };
                    self.initialize();
                }
                Event::Command(sqe, data) => match data.here {
                    Some(_) if !data.intact => {
                        return self.complain("the initiator sent a wrong data digest");
                    }
                    Some(bytes) => self.command(sqe, bytes.to_vec()),
                    None if data.len_bytes > 0 => self.partial = Some((Partial::Capsule(sqe), Vec::new())),
                    None => self.command(sqe, Vec::new()),
                },
                // What a trick asked for.
                Event::H2cData { .. } if self.deaf => self.closing = true,
                Event::Piece(_) | Event::PayloadEnd { .. } if self.deaf && self.partial.is_none() => {}
                Event::H2cData { cccid, span, data } => {
                    let p = self.pending.iter_mut().find(|p| p.sqe.cid().0 == cccid);
                    let p = p.expect("H2CData names a command that waits for data");
                    assert_eq!(p.received, span.offset_bytes as usize, "H2CData comes in order");
                    match data.here {
                        Some(_) if !data.intact => {
                            return self.complain("the initiator sent a wrong data digest");
                        }
                        Some(bytes) => {
                            let bytes = bytes.to_vec();
                            self.data(cccid, &bytes);
                        }
                        None => self.partial = Some((Partial::H2c { cid: cccid }, Vec::new())),
                    }
                }
                Event::Piece(bytes) => {
                    self.partial.as_mut().expect("a piece belongs to something").1.extend(bytes);
                }
                Event::PayloadEnd { digest } => {
                    let (what, bytes) = self.partial.take().expect("an end belongs to something");
                    if digest.is_some_and(|d| d != nvme::tcp::crc32c(&bytes)) {
                        return self.complain("the initiator sent a wrong data digest");
                    }
                    match what {
                        Partial::Capsule(sqe) => self.command(sqe, bytes),
                        Partial::H2c { cid } => self.data(cid, &bytes),
                    }
                }
                Event::Terminated(_) => self.stream = None,
                other => panic!("the engine gave a host's event: {other:?}"),
            }
        }
    }

    /// The initiator broke a rule, or the network did where it may: then that is the end of the connection.
    fn complain(&mut self, what: &str) {
        assert!(self.forgiving, "{what}");
        self.stream = None;
    }

    fn initialize(&mut self) {
        let flags = DigestFlags::NONE
            .with_if(DigestFlags::HEADER, self.digests.header)
            .with_if(DigestFlags::DATA, self.digests.data);
        let good = IcResp::new(0, flags, 16384);
        match self.trick {
            Trick::SilentInit => {}
            Trick::GarbageInit => self.garbage(),
            Trick::DoubleInit => {
                self.out.extend(good.wire());
                self.out.extend(good.wire());
            }
            Trick::UnaskedDigests => {
                self.out.extend(IcResp::new(0, DigestFlags::HEADER | DigestFlags::DATA, 16384).wire());
            }
            Trick::TinyMaxH2c => self.out.extend(IcResp::new(0, flags, 64).wire()),
            _ => self.out.extend(good.wire()),
        }
    }

    fn garbage(&mut self) {
        let len = self.rng.between(8, 400);
        self.out.extend((0..len).map(|_| self.rng.next_u64() as u8).collect::<Vec<_>>());
        self.closing = self.rng.chance_ppm(500_000);
    }

    // ---- commands ----

    fn command(&mut self, sqe: Sqe, data: Vec<u8>) {
        let wanted = match sqe.sgl1().parse() {
            Ok(Sgl::InCapsule { len_bytes, offset_bytes: 0 }) => {
                assert_eq!(len_bytes as usize, data.len(), "the SGL tells the length of in-capsule data");
                len_bytes
            }
            Ok(Sgl::Transport { len_bytes }) => len_bytes,
            other => panic!("the initiator sent a strange SGL: {other:?}"),
        };
        let is_io = self.qid != 0 && !sqe.is_fabrics();
        if self.deaf {
            return;
        }
        if is_io && !self.tricked && Trick::ON_IO.contains(&self.trick) {
            self.tricked = true;
            self.deaf = true;
            return self.do_trick(sqe, wanted);
        }
        let out = sqe.direction() == Direction::HostToController && wanted > 0;
        if out && data.is_empty() {
            let cid = sqe.cid().0;
            self.pending.push(Pending { sqe, data: vec![0; wanted as usize], received: 0, asked: 0 });
            return self.ask(cid);
        }
        self.execute(sqe, data, wanted);
    }

    fn ask(&mut self, cid: u16) {
        let p = self.pending.iter_mut().find(|p| p.sqe.cid().0 == cid).expect("it was just there");
        let len = (p.data.len() as u32 - p.asked).min(R2T_BYTES);
        let pdu = pdu::r2t(self.digests, cid, p.asked as u16, p.asked, len);
        p.asked += len;
        self.out.extend(pdu);
    }

    fn data(&mut self, cid: u16, bytes: &[u8]) {
        let at = self.pending.iter().position(|p| p.sqe.cid().0 == cid).expect("checked before");
        let p = &mut self.pending[at];
        p.data[p.received..p.received + bytes.len()].copy_from_slice(bytes);
        p.received += bytes.len();
        if p.received == p.data.len() {
            let p = self.pending.swap_remove(at);
            let wanted = p.data.len() as u32;
            self.execute(p.sqe, p.data, wanted);
        } else if p.received == p.asked as usize {
            self.ask(cid);
        }
    }

    fn execute(&mut self, sqe: Sqe, data: Vec<u8>, wanted: u32) {
        let result = match FabricsSqe::of(&sqe) {
            Some(fabrics) => self.fabrics(fabrics),
            None if self.qid == 0 => match self.admin(&sqe) {
                Some(answer) => answer,
                // An Asynchronous Event Request waits for ever.
                None => return,
            },
            None => self.io(&sqe, &data, wanted),
        };
        let (status, result, page) = match result {
            Ok((result, page)) => (Status::SUCCESS, result, page),
            Err(status) => (status, 0, Vec::new()),
        };
        let cid = sqe.cid();
        if !page.is_empty() {
            let page = &page[..page.len().min(wanted as usize)];
            // Some reads end with SUCCESS, some with a response; large data comes in several PDUs.
            let success = self.rng.chance_ppm(500_000);
            let cut = self.rng.below(page.len() as u64) as usize & !3;
            if cut > 0 {
                self.out.extend(pdu::c2h(self.digests, cid.0, 0, &page[..cut], PduFlags::NONE));
            }
            let flags = PduFlags::LAST_PDU.with_if(PduFlags::SUCCESS, success);
            self.out.extend(pdu::c2h(self.digests, cid.0, cut as u32, &page[cut..], flags));
            if success {
                return;
            }
        }
        self.out.extend(pdu::response(self.digests, Cqe::new(cid, status, result)));
    }

    fn fabrics(&mut self, command: FabricsSqe<'_>) -> Result<(u64, Vec<u8>), Status> {
        match command {
            FabricsSqe::Connect(c) => {
                self.qid = c.qid().0;
                self.new_association = self.qid == 0;
                Ok((u64::from(ConnectResult::new(Cntlid(1)).0), Vec::new()))
            }
            FabricsSqe::PropertyGet(p) => {
                let value = match p.property() {
                    PropertyOffset::CAP => Cap(0).with_mqes_z(63).with_to(4).0,
                    PropertyOffset::CSTS if self.trick == Trick::Fatal => u64::from(Csts(0).with_cfs(true).0),
                    PropertyOffset::CSTS => {
                        let ready = self.enabled && self.trick != Trick::NeverReady;
                        u64::from(Csts(0).with_rdy(ready).0)
                    }
                    _ => 0,
                };
                Ok((value, Vec::new()))
            }
            FabricsSqe::PropertySet(_) => {
                self.enabled = true;
                Ok((0, Vec::new()))
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn admin(&mut self, sqe: &Sqe) -> Option<Result<(u64, Vec<u8>), Status>> {
        Some(match sqe.admin_opcode() {
            AdminOpcode::ASYNC_EVENT_REQUEST => return None,
            AdminOpcode::KEEP_ALIVE => Ok((0, Vec::new())),
            AdminOpcode::SET_FEATURES => Ok((u64::from(QueueCounts::new(4).0), Vec::new())),
            AdminOpcode::IDENTIFY if self.trick == Trick::GarbageIdentify => {
                Ok((0, (0..4096).map(|_| self.rng.next_u64() as u8).collect()))
            }
            AdminOpcode::IDENTIFY => self.identify(sqe).map(|page| (0, page)),
            _ => Err(Status::INVALID_OPCODE),
        })
    }

    fn identify(&self, sqe: &Sqe) -> Result<Vec<u8>, Status> {
        let none = self.trick == Trick::NoNamespace;
        match Identify::decode(sqe).cns {
            Cns::CONTROLLER => {
                let mut id = IdentifyController::zeroed();
                id.cntlid = 1.into();
                id.mdts = 5;
                id.ioccsz = (4 + 256).into();
                id.iorcsz = 1.into();
                id.sqes = 0x66;
                id.cqes = 0x44;
                id.nn = 1.into();
                id.kas = 10.into();
                id.sgls = Sgls::SUPPORTED | Sgls::OFFSET | Sgls::TRANSPORT;
                id.oncs = Oncs::COMPARE | Oncs::DATASET_MANAGEMENT | Oncs::WRITE_ZEROES;
                id.fuses = Fuses::COMPARE_AND_WRITE;
                id.vwc = Vwc::PRESENT;
                Ok(id.wire().to_vec())
            }
            Cns::ACTIVE_NAMESPACES => {
                let nsids = (!none).then_some(Nsid(1));
                Ok(IdList::build(sqe.nsid(), nsids).wire().to_vec())
            }
            Cns::NAMESPACE => {
                let mut ns = IdentifyNamespace::zeroed();
                ns.nsze = BLOCKS.into();
                ns.ncap = BLOCKS.into();
                ns.lbaf[0] = LbaFormat::new(512);
                Ok(ns.wire().to_vec())
            }
            Cns::NAMESPACE_DESCRIPTORS => {
                Ok(NamespaceIds { uuid: [7; 16], ..NamespaceIds::default() }.to_page().to_vec())
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn io(&mut self, sqe: &Sqe, data: &[u8], wanted: u32) -> Result<(u64, Vec<u8>), Status> {
        let disk = self.disk.clone();
        let mut disk = disk.borrow_mut();
        let range = |lba: u64, blocks: u64| {
            lba.checked_add(blocks).filter(|end| *end <= BLOCKS).ok_or(Status::LBA_OUT_OF_RANGE)?;
            Ok::<_, Status>(lba as usize * 512..(lba + blocks) as usize * 512)
        };
        let rw = Rw::decode(sqe);
        let of_rw = || range(rw.slba, rw.len_blocks.into());
        let second = sqe.fuse() == nvme::command::Fuse::SECOND;
        if second && let Some(status) = self.fused.take() {
            return Err(status);
        }
        match sqe.nvm_opcode() {
            NvmOpcode::FLUSH => {}
            NvmOpcode::READ => {
                let bytes = disk[of_rw()?].to_vec();
                assert_eq!(bytes.len(), wanted as usize, "the SGL tells the length of a read");
                return Ok((0, bytes));
            }
            NvmOpcode::WRITE => disk[of_rw()?].copy_from_slice(data),
            NvmOpcode::COMPARE => {
                if disk[of_rw()?] != *data {
                    if sqe.fuse() == nvme::command::Fuse::FIRST {
                        self.fused = Some(Status::ABORTED_FAILED_FUSED);
                    }
                    return Err(Status::COMPARE_FAILURE);
                }
            }
            NvmOpcode::WRITE_ZEROES => disk[of_rw()?].fill(0),
            NvmOpcode::DATASET_MANAGEMENT => {
                for r in DsmRange::list(data, 256) {
                    disk[range(r.slba.get(), r.len_blocks.get().into())?].fill(0);
                }
            }
            _ => return Err(Status::INVALID_OPCODE),
        }
        Ok((0, Vec::new()))
    }

    // ---- tricks ----

    fn do_trick(&mut self, sqe: Sqe, wanted: u32) {
        let (d, cid) = (self.digests, sqe.cid().0);
        let good = pdu::response(d, Cqe::new(sqe.cid(), Status::SUCCESS, 0));
        let data = vec![0x5a; wanted as usize];
        let last = PduFlags::LAST_PDU;
        match self.trick {
            Trick::WrongCid => {
                let cqe = Cqe::new(nvme::Cid(cid ^ 0x40), Status::SUCCESS, 0);
                self.out.extend(pdu::response(d, cqe));
            }
            Trick::DuplicateCid => {
                let failed = pdu::response(d, Cqe::new(sqe.cid(), Status::WRITE_FAULT, 0));
                self.out.extend(&failed);
                self.out.extend(&failed);
            }
            Trick::Overrun => {
                let data = vec![0x5a; wanted as usize + 512];
                self.out.extend(pdu::c2h(d, cid, 0, &data, last));
            }
            Trick::BadOffset => self.out.extend(pdu::c2h(d, cid, 4, &data[..data.len().min(64)], last)),
            Trick::DataForNobody => self.out.extend(pdu::c2h(d, cid ^ 0x40, 0, &[0; 512], last)),
            Trick::NoData => self.out.extend(good),
            Trick::HalfSuccess => {
                let half = &data[..(data.len() / 2).max(4).min(data.len())];
                self.out.extend(pdu::c2h(d, cid, 0, half, last | PduFlags::SUCCESS));
            }
            Trick::R2tOutOfRange => self.out.extend(pdu::r2t(d, cid, 0, 0, wanted.saturating_add(4))),
            Trick::R2tEmpty => self.out.extend(pdu::r2t(d, cid, 0, 0, 0)),
            Trick::R2tRepeated => (0..8).for_each(|_| self.out.extend(pdu::r2t(d, cid, 0, 0, wanted.max(4)))),
            Trick::R2tForRead => self.out.extend(pdu::r2t(d, cid, 0, 0, 512)),
            Trick::UnknownPdu => self.out.extend([0x2a, 0, 24, 0, 24, 0, 0, 0]),
            Trick::HostPdu => self.out.extend([PduType::CAPSULE_CMD.get(), 0, 72, 0, 72, 0, 0, 0]),
            Trick::ShortPdu => {
                self.out.extend([PduType::CAPSULE_RESP.get(), u8::from(d.header), 24, 0, 7, 0, 0, 0])
            }
            Trick::HugePdu => {
                let flags = u8::from(d.header) | u8::from(d.data) << 1;
                self.out.extend([PduType::C2H_DATA.get(), flags, 24, 28, 0xff, 0xff, 0xff, 0xff]);
                self.out.extend([0; 40]);
            }
            Trick::Garbage => self.garbage(),
            Trick::BadHeaderDigest if d.header => {
                let mut bytes = good;
                bytes[24] ^= 1;
                self.out.extend(bytes);
            }
            Trick::BadDataDigest if d.data && sqe.direction() == Direction::ControllerToHost => {
                let mut bytes = pdu::c2h(d, cid, 0, &data, last | PduFlags::SUCCESS);
                *bytes.last_mut().expect("it has a digest") ^= 1;
                self.deaf = false;
                self.out.extend(bytes);
            }
            Trick::Terminate => {
                let term = TermPdu::new(nvme::tcp::Role::Controller, nvme::tcp::PduError::Sequence, &[]);
                self.out.extend(term.bytes());
            }
            Trick::CloseInPdu => {
                self.out.extend(&good[..13]);
                self.closing = true;
            }
            Trick::Close | Trick::BadHeaderDigest | Trick::BadDataDigest => self.closing = true,
            _ => {}
        }
    }
}
