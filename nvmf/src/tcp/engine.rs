//! One connection: initialisation, framing, checks, termination.

use nvme::tcp::{
    C2hData, CapsuleCmd, CapsuleResp, DIGEST_LEN_BYTES, DigestFlags, Fes, H2cData, IcReq, IcResp, Layout,
    PduError, PduFlags, PduHeader, PduType, R2t, Role, RxRules, TermPdu, TermReq, crc32c, pda_bytes,
};
use nvme::{Cqe, Sqe};

use super::transfer::DataSpan;
use super::txq::{TxQueue, TxTag};

/// Longest piece of a PDU that has to be looked at as a whole: header and header digest.
const MAX_HEAD: usize = 132;

/// In-capsule data that a controller takes before it knows which queue this is: what the specification grants
/// to admin queues (NVMe/TCP Transport 1.0, section 3.3.1.2.1: capsules of 8,192 bytes of data).
pub const ADMIN_IN_CAPSULE_BYTES: u32 = 8192;

/// What this side wants or allows. Both roles use one type; fields that the role does not send are ignored.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// Who we are.
    pub role: Role,
    /// Header digests: asked for (host), allowed (controller).
    pub header_digest: bool,
    /// Data digests: asked for (host), allowed (controller).
    pub data_digest: bool,
    /// HPDA or CPDA: alignment in dwords, zero-based (0 to 31), of data that we receive.
    pub pda_z: u8,
    /// Host: R2Ts per command that the controller may have outstanding, one-based.
    pub max_r2t: u32,
    /// Controller: MAXH2CDATA in bytes. Host: most data in one C2HData.
    pub max_data_bytes: u32,
}

impl Local {
    /// A controller that allows digests and takes H2CData of up to `max_h2c_data_bytes`.
    pub const fn controller(max_h2c_data_bytes: u32) -> Self {
        Self {
            role: Role::Controller,
            header_digest: true,
            data_digest: true,
            pda_z: 0,
            max_r2t: 1,
            max_data_bytes: max_h2c_data_bytes,
        }
    }

    /// A host without digests and with one R2T per command.
    pub const fn host() -> Self {
        Self {
            role: Role::Host,
            header_digest: false,
            data_digest: false,
            pda_z: 0,
            max_r2t: 1,
            max_data_bytes: u32::MAX,
        }
    }

    fn digests(&self) -> DigestFlags {
        DigestFlags::NONE
            .with_if(DigestFlags::HEADER, self.header_digest)
            .with_if(DigestFlags::DATA, self.data_digest)
    }
}

/// What ICReq and ICResp settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// Every PDU has a header digest.
    pub header_digest: bool,
    /// Data has a data digest.
    pub data_digest: bool,
    /// Alignment in bytes (4 to 128) of data that we send.
    pub peer_align_bytes: u32,
    /// R2Ts per command that may be outstanding, one-based.
    pub max_r2t: u32,
    /// Most data in one H2CData PDU in bytes.
    pub max_h2c_data_bytes: u32,
}

/// Payload that an event brings or announces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Data<'a> {
    /// Length in bytes; 0 = none.
    pub len_bytes: u32,
    /// All of it, when it is complete. Otherwise [`Event::Piece`]s and [`Event::PayloadEnd`] follow.
    pub here: Option<&'a [u8]>,
    /// False: it is complete and its digest is wrong.
    pub intact: bool,
}

impl Data<'_> {
    const NONE: Self = Self { len_bytes: 0, here: None, intact: true };
}

/// A TermReq of the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terminated {
    /// Fatal Error Status.
    pub fes: Fes,
    /// Fatal Error Information.
    pub fei: u32,
}

/// What received bytes mean.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// ICReq or ICResp came and is acceptable. A controller's ICResp is in the transmit list.
    Initialized(Agreed),
    /// Controller: a command capsule.
    Command(Sqe, Data<'a>),
    /// Host: a response capsule.
    Response(Cqe),
    /// Controller: data of a write-like command, not yet checked against its R2T ([`Inbound`]).
    ///
    /// [`Inbound`]: super::Inbound
    H2cData {
        /// Command identifier.
        cccid: u16,
        /// Transfer tag, offset, length, LAST_PDU.
        span: DataSpan,
        /// The payload.
        data: Data<'a>,
    },
    /// Host: data of a read-like command, not yet checked against the command ([`C2hProgress`]).
    ///
    /// [`C2hProgress`]: super::C2hProgress
    C2hData {
        /// Command identifier.
        cccid: u16,
        /// Offset, length, LAST_PDU; no tag.
        span: DataSpan,
        /// The command is complete and succeeded, no response capsule follows.
        success: bool,
        /// The payload.
        data: Data<'a>,
    },
    /// Host: the controller asks for data, not yet checked against the command ([`Outbound`]).
    ///
    /// [`Outbound`]: super::Outbound
    R2t {
        /// Command identifier.
        cccid: u16,
        /// Transfer tag, offset, length.
        span: DataSpan,
    },
    /// The next bytes of the payload that the last event announced.
    Piece(&'a [u8]),
    /// The payload is complete. With data digests in use this is the one that came; who holds the payload
    /// compares.
    PayloadEnd {
        /// Expected CRC32C of the payload.
        digest: Option<u32>,
    },
    /// The peer gave up. Nothing may be sent any more.
    Terminated(Terminated),
}

/// The state of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// ICReq (controller) or ICResp (host) is the only thing that may come.
    Initializing,
    /// Commands, data, responses.
    Running,
    /// Our TermReq is queued: what still comes is dropped, nothing else is sent.
    Failed,
    /// The peer's TermReq came.
    Terminated,
}

/// What moves a connection from state to state.
#[derive(Clone, Copy)]
enum Change {
    Initialized,
    OurError,
    PeerError,
}

/// Where in the stream of PDUs the receiver is.
#[derive(Clone, Copy)]
enum At {
    /// At or in a header; `staged` bytes of it are kept.
    Head,
    /// In the padding before the payload.
    Pad { left: u32, payload: u32 },
    /// In the payload.
    Payload { left: u32 },
    /// In the data digest; `have` bytes of it came.
    Digest { have: u8, value: [u8; DIGEST_LEN_BYTES] },
    /// In the part of the erroneous PDU that a TermReq carries.
    Echo { left: u32, notice: Terminated },
}

/// See the module's documentation of [`tcp`](super).
pub struct Engine {
    local: Local,
    state: State,
    agreed: Agreed,
    rules: RxRules,
    at: At,
    /// The first `staged` bytes of the header that is incomplete, or the first `echo` bytes of a complete one
    /// that a TermReq may have to carry.
    stage: [u8; MAX_HEAD],
    staged: usize,
    echo: usize,
}

impl Engine {
    /// A connection that was just accepted or opened. A host calls [`Engine::start`] next.
    pub fn new(local: Local) -> Self {
        Self {
            local,
            state: State::Initializing,
            agreed: Agreed {
                header_digest: false,
                data_digest: false,
                peer_align_bytes: 4,
                max_r2t: 1,
                max_h2c_data_bytes: nvme::tcp::MIN_MAXH2CDATA_BYTES,
            },
            rules: RxRules::before_init(local.role),
            at: At::Head,
            stage: [0; MAX_HEAD],
            staged: 0,
            echo: 0,
        }
    }

    /// Host: queues the ICReq.
    pub fn start(&self, tx: &mut TxQueue) {
        debug_assert!(self.local.role == Role::Host);
        tx.header(IcReq::new(self.local.pda_z, self.local.digests(), self.local.max_r2t).wire());
        tx.finish(TxTag::NONE);
    }

    /// What was settled; meaningful after [`Event::Initialized`].
    #[inline]
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// True between [`Event::Initialized`] and the end.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// True when no PDU has begun that is not complete.
    pub fn is_between_pdus(&self) -> bool {
        matches!(self.at, At::Head) && self.staged == 0
    }

    /// True when a payload was announced whose end was not reported.
    #[inline]
    pub fn is_in_payload(&self) -> bool {
        matches!(self.at, At::Pad { .. } | At::Payload { .. } | At::Digest { .. })
    }

    /// Controller: the most in-capsule data from now on. After initialisation it is
    /// [`ADMIN_IN_CAPSULE_BYTES`], as admin queues have it.
    pub fn set_max_in_capsule_bytes(&mut self, max_bytes: u32) {
        self.rules.max_in_capsule_bytes = max_bytes;
    }

    /// Bytes of payload that are still to come and may be received in place; 0 when not in a payload.
    #[inline]
    pub fn payload_left(&self) -> u32 {
        if let At::Payload { left } = self.at { left } else { 0 }
    }

    /// Notes that the next `n` bytes of the payload were received in place. `n` is at most
    /// [`Self::payload_left`]. [`Self::next`] reports the end of the payload, also for empty input.
    pub fn received_in_place(&mut self, n: u32) {
        if let At::Payload { left } = &mut self.at {
            *left = left.saturating_sub(n);
        }
    }

    /// The one transition function.
    fn apply(&mut self, change: Change) {
        self.state = match (self.state, change) {
            (State::Initializing, Change::Initialized) => State::Running,
            (State::Initializing | State::Running, Change::OurError) => State::Failed,
            (State::Initializing | State::Running | State::Failed, Change::PeerError) => State::Terminated,
            // The first end counts.
            (state, _) => state,
        };
    }

    /// Ends the connection because of `error`: queues the TermReq, unless the peer terminated before. What
    /// comes from now on is dropped. The transmit list has to have room for one TermReq; what stands in it
    /// before is sent first.
    pub fn fail(&mut self, error: PduError, tx: &mut TxQueue) {
        let was = self.state;
        self.apply(Change::OurError);
        if matches!(was, State::Initializing | State::Running) {
            let head = &self.stage[..if self.staged > 0 { self.staged } else { self.echo }];
            tx.header(TermPdu::new(self.local.role, error, head).bytes());
            tx.finish(TxTag::NONE);
        }
    }

    /// The next event in `input` from `*at` on, which moves past what was used. `None`: all of it was used.
    ///
    /// A controller's ICResp goes to `tx`.
    ///
    /// # Errors
    /// A fatal transport error; pass it to [`Self::fail`].
    #[inline]
    pub fn next<'a>(
        &mut self,
        input: &'a [u8],
        at: &mut usize,
        tx: &mut TxQueue,
    ) -> Result<Option<Event<'a>>, PduError> {
        if let (State::Running, At::Head, 0) = (self.state, self.at, self.staged)
            && let Some(header) = PduHeader::view(&input[*at..])
        {
            let layout = match header.check(&self.rules) {
                Ok(layout) => layout,
                Err(e) => return Err(self.at_fault(e, &input[*at..])),
            };
            let head_len = layout.header_bytes();
            if let Some(head) = input.get(*at..*at + head_len) {
                *at += head_len;
                return self.head(&layout, head, input, at, tx).map_err(|e| self.at_fault(e, head));
            }
        }
        self.next_in_parts(input, at, tx)
    }

    /// [`Self::next`] where a header is cut, inside of payload, and before initialisation.
    fn next_in_parts<'a>(
        &mut self,
        input: &'a [u8],
        at: &mut usize,
        tx: &mut TxQueue,
    ) -> Result<Option<Event<'a>>, PduError> {
        if matches!(self.state, State::Failed | State::Terminated) {
            *at = input.len();
            return Ok(None);
        }
        loop {
            let rest = &input[*at..];
            match self.at {
                At::Head => {
                    let Some(layout) = self.stage_head(input, at)? else { return Ok(None) };
                    let head = self.stage;
                    let len = self.staged;
                    let event = self.head(&layout, &head[..len], input, at, tx)?;
                    self.staged = 0;
                    if event.is_some() {
                        return Ok(event);
                    }
                }
                At::Pad { left, payload } => {
                    let n = (left as usize).min(rest.len());
                    *at += n;
                    let left = left - n as u32;
                    if left > 0 {
                        self.at = At::Pad { left, payload };
                        return Ok(None);
                    }
                    self.at = At::Payload { left: payload };
                }
                At::Payload { left: 0 } => {
                    if !self.rules.data_digest {
                        self.at = At::Head;
                        return Ok(Some(Event::PayloadEnd { digest: None }));
                    }
                    self.at = At::Digest { have: 0, value: [0; DIGEST_LEN_BYTES] };
                }
                At::Payload { left } => {
                    if rest.is_empty() {
                        return Ok(None);
                    }
                    let n = (left as usize).min(rest.len());
                    *at += n;
                    self.at = At::Payload { left: left - n as u32 };
                    return Ok(Some(Event::Piece(&rest[..n])));
                }
                At::Digest { have, mut value } => {
                    let n = (DIGEST_LEN_BYTES - usize::from(have)).min(rest.len());
                    value[usize::from(have)..][..n].copy_from_slice(&rest[..n]);
                    *at += n;
                    let have = have + n as u8;
                    if usize::from(have) < DIGEST_LEN_BYTES {
                        self.at = At::Digest { have, value };
                        return Ok(None);
                    }
                    self.at = At::Head;
                    return Ok(Some(Event::PayloadEnd { digest: Some(u32::from_le_bytes(value)) }));
                }
                At::Echo { left, notice } => {
                    let n = (left as usize).min(rest.len());
                    *at += n;
                    let left = left - n as u32;
                    if left > 0 {
                        self.at = At::Echo { left, notice };
                        return Ok(None);
                    }
                    self.apply(Change::PeerError);
                    return Ok(Some(Event::Terminated(notice)));
                }
            }
        }
    }

    /// Collects a header in the stage; `None` = it is not complete yet.
    fn stage_head(&mut self, input: &[u8], at: &mut usize) -> Result<Option<Layout>, PduError> {
        if !self.fill_stage(PduHeader::LEN_BYTES, input, at) {
            return Ok(None);
        }
        let header = PduHeader::view(&self.stage).expect("invariant: the stage holds a header");
        let layout = header.check(&self.rules)?;
        Ok(self.fill_stage(layout.header_bytes(), input, at).then_some(layout))
    }

    /// Fills the stage up to `want` bytes; false when `input` ends before.
    fn fill_stage(&mut self, want: usize, input: &[u8], at: &mut usize) -> bool {
        let missing = want.saturating_sub(self.staged);
        let n = missing.min(input.len() - *at);
        self.stage[self.staged..self.staged + n].copy_from_slice(&input[*at..*at + n]);
        self.staged += n;
        *at += n;
        n == missing
    }

    /// Keeps the header of the PDU in error for the TermReq.
    #[cold]
    fn at_fault(&mut self, error: PduError, head: &[u8]) -> PduError {
        let hlen = head.get(2).map_or(0, |hlen| usize::from(*hlen)).max(PduHeader::LEN_BYTES);
        let n = head.len().min(hlen).min(MAX_HEAD);
        self.keep(&head[..n]);
        error
    }

    /// Keeps a header that only the caller can check in full.
    #[inline]
    fn keep(&mut self, head: &[u8]) {
        self.stage[..head.len()].copy_from_slice(head);
        self.echo = head.len();
    }

    /// Handles a complete header. `*at` stands behind it.
    #[inline]
    fn head<'a>(
        &mut self,
        layout: &Layout,
        head: &[u8],
        input: &'a [u8],
        at: &mut usize,
        tx: &mut TxQueue,
    ) -> Result<Option<Event<'a>>, PduError> {
        let header = &head[..layout.hlen_bytes];
        if layout.header_digest {
            let received = le_u32(&head[layout.hlen_bytes..]);
            if crc32c(header) != received {
                return Err(PduError::HeaderDigest { received });
            }
        }
        let running = self.state == State::Running;
        match layout.kind {
            PduType::CAPSULE_CMD if running => {
                let pdu = known(CapsuleCmd::view(header));
                let sqe = pdu.sqe;
                let data = self.payload(layout, input, at);
                Ok(Some(Event::Command(sqe, data)))
            }
            PduType::H2C_DATA if running => {
                let pdu = known(H2cData::view(header));
                let span = span_of(pdu.ttag.get(), pdu.datao.get(), pdu.datal.get(), pdu.header.flags);
                check_datal(layout, span.len_bytes)?;
                let cccid = pdu.cccid.get();
                self.keep(header);
                let data = self.payload(layout, input, at);
                Ok(Some(Event::H2cData { cccid, span, data }))
            }
            PduType::C2H_DATA if running => {
                let pdu = known(C2hData::view(header));
                let flags = pdu.header.flags;
                let span = span_of(0, pdu.datao.get(), pdu.datal.get(), flags);
                check_datal(layout, span.len_bytes)?;
                let cccid = pdu.cccid.get();
                self.keep(header);
                let data = self.payload(layout, input, at);
                let success = flags.contains(PduFlags::SUCCESS);
                Ok(Some(Event::C2hData { cccid, span, success, data }))
            }
            PduType::CAPSULE_RESP if running => {
                Ok(Some(Event::Response(known(CapsuleResp::view(header)).cqe)))
            }
            PduType::R2T if running => {
                let pdu = known(R2t::view(header));
                let span = span_of(pdu.ttag.get(), pdu.r2to.get(), pdu.r2tl.get(), PduFlags::LAST_PDU);
                let cccid = pdu.cccid.get();
                self.keep(header);
                Ok(Some(Event::R2t { cccid, span }))
            }
            PduType::IC_REQ if !running => self.ic_req(known(IcReq::view(header)), tx).map(Some),
            PduType::IC_RESP if !running => self.ic_resp(known(IcResp::view(header))).map(Some),
            PduType::H2C_TERM_REQ | PduType::C2H_TERM_REQ => {
                let pdu = known(TermReq::view(header));
                let notice = Terminated { fes: pdu.fes, fei: pdu.fei.get() };
                self.at = At::Echo { left: layout.data_bytes as u32, notice };
                self.staged = 0;
                self.next_in_parts(input, at, tx)
            }
            _ => Err(PduError::Sequence),
        }
    }

    /// The payload of the PDU whose header was just read: all of it when it is there, else announced.
    #[inline]
    fn payload<'a>(&mut self, layout: &Layout, input: &'a [u8], at: &mut usize) -> Data<'a> {
        let len = layout.data_bytes;
        if len == 0 {
            return Data::NONE;
        }
        let start = *at + layout.pad_bytes;
        let digest_len = if layout.data_digest { DIGEST_LEN_BYTES } else { 0 };
        let Some(body) = input.get(start..start + len + digest_len) else {
            self.at = At::Pad { left: layout.pad_bytes as u32, payload: len as u32 };
            return Data { len_bytes: len as u32, here: None, intact: true };
        };
        *at = start + body.len();
        let (bytes, digest) = body.split_at(len);
        let intact = !layout.data_digest || crc32c(bytes) == le_u32(digest);
        Data { len_bytes: len as u32, here: Some(bytes), intact }
    }

    fn ic_req(&mut self, req: &IcReq, tx: &mut TxQueue) -> Result<Event<'static>, PduError> {
        req.check()?;
        let dgst = req.dgst & self.local.digests();
        let max_data_bytes = (self.local.max_data_bytes & !3).max(nvme::tcp::MIN_MAXH2CDATA_BYTES);
        tx.header(IcResp::new(self.local.pda_z, dgst, max_data_bytes).wire());
        tx.finish(TxTag::NONE);
        Ok(self.initialized(dgst, req.hpda_z, req.max_r2t(), max_data_bytes))
    }

    fn ic_resp(&mut self, resp: &IcResp) -> Result<Event<'static>, PduError> {
        resp.check(self.local.digests())?;
        Ok(self.initialized(resp.dgst, resp.cpda_z, self.local.max_r2t, resp.max_h2c_data_bytes()))
    }

    fn initialized(
        &mut self,
        dgst: DigestFlags,
        peer_pda_z: u8,
        max_r2t: u32,
        max_h2c_data_bytes: u32,
    ) -> Event<'static> {
        self.apply(Change::Initialized);
        self.agreed = Agreed {
            header_digest: dgst.contains(DigestFlags::HEADER),
            data_digest: dgst.contains(DigestFlags::DATA),
            peer_align_bytes: pda_bytes(peer_pda_z).unwrap_or(4),
            max_r2t,
            max_h2c_data_bytes,
        };
        let controller = self.local.role == Role::Controller;
        self.rules = RxRules {
            role: self.local.role,
            header_digest: self.agreed.header_digest,
            data_digest: self.agreed.data_digest,
            data_align_bytes: pda_bytes(self.local.pda_z).unwrap_or(4),
            max_in_capsule_bytes: if controller { ADMIN_IN_CAPSULE_BYTES } else { 0 },
            max_data_bytes: if controller { max_h2c_data_bytes } else { self.local.max_data_bytes },
        };
        Event::Initialized(self.agreed)
    }
}

/// The header as its type. [`Layout`] has checked the length.
#[inline]
fn known<T>(view: Option<&T>) -> &T {
    view.expect("invariant: HLEN is that of the type")
}

#[inline]
fn span_of(ttag: u16, offset_bytes: u32, len_bytes: u32, flags: PduFlags) -> DataSpan {
    DataSpan { ttag, offset_bytes, len_bytes, last: flags.contains(PduFlags::LAST_PDU) }
}

/// DATAL has to agree with PLEN.
#[inline]
fn check_datal(layout: &Layout, datal: u32) -> Result<(), PduError> {
    if layout.data_bytes == datal as usize { Ok(()) } else { Err(PduError::DATAL) }
}

/// The first four bytes as a number; 0 where there are fewer.
#[inline]
fn le_u32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
}
