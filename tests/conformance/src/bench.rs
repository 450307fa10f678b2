//! Drives one channel and keeps the accounts: every accepted token gets exactly one completion.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use aio::{
    BlockCount, BlockDevice, BlockRange, Busy, Cancel, Completion, DeviceError, Geometry, Io, IoChannel,
    IoFlags, IoStatus, Lba, Opcode, SgEntry, Token,
};

use crate::buf::Buf;
use crate::{DriverRef, Fixture, Options, PATIENCE, Spec, block_on};

/// Blocks of a device unless a case asks for another size.
pub const BLOCKS: u64 = 4096;

/// What a case works with.
pub struct World<'f> {
    /// Makes devices.
    pub fixture: &'f dyn Fixture,
    /// The thread's driver.
    pub driver: DriverRef,
    /// Block size of this run.
    pub block_bytes: u32,
    /// What to expect of the device.
    pub options: Options,
}

impl<'f> World<'f> {
    /// The world of the thread whose driver this is.
    pub fn new(fixture: &'f dyn Fixture, driver: DriverRef, block_bytes: u32) -> Self {
        Self { fixture, driver, block_bytes, options: fixture.options() }
    }

    /// A fresh device of the usual size.
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        let spec = Spec { block_bytes: self.block_bytes, blocks: BLOCKS };
        let device = self.fixture.create(spec, &self.driver);
        assert_eq!(device.geometry().block_bytes, self.block_bytes, "the fixture's block size");
        assert_eq!(device.size(), BlockCount(BLOCKS), "the fixture's size");
        device
    }

    /// A channel of a fresh device.
    pub fn bench(&self) -> Bench {
        self.open(&self.device())
    }

    /// One more channel of a device, on this thread.
    pub fn open(&self, device: &Arc<dyn BlockDevice>) -> Bench {
        self.try_open(device).expect("open_channel")
    }

    /// The same, where it may fail.
    pub fn try_open(&self, device: &Arc<dyn BlockDevice>) -> Result<Bench, DeviceError> {
        let channel = block_on(&self.driver, device.open_channel())?;
        Ok(Bench {
            device: device.clone(),
            geometry: device.geometry(),
            channel: Some(channel),
            driver: self.driver.clone(),
            next_token: 0,
            pending: HashMap::new(),
            done: HashMap::new(),
            out: Vec::with_capacity(64),
            keep_loans: false,
        })
    }
}

/// One I/O with the memory it uses.
pub struct Request {
    opcode: Opcode,
    flags: IoFlags,
    lba: u64,
    blocks: u64,
    data: Buf,
    list: Vec<SgEntry>,
    second: Buf,
    second_list: Vec<SgEntry>,
    ranges: Vec<BlockRange>,
}

impl Request {
    /// An I/O without data.
    pub fn new(opcode: Opcode, lba: u64, blocks: u64) -> Self {
        Self {
            opcode,
            flags: IoFlags::empty(),
            lba,
            blocks,
            data: Buf::new(0),
            list: Vec::new(),
            second: Buf::new(0),
            second_list: Vec::new(),
            ranges: Vec::new(),
        }
    }

    /// With payload `data`, cut into entries of these lengths (one entry when empty).
    pub fn data(mut self, data: Buf, cuts: &[u32]) -> Self {
        self.list = data.list(cuts);
        self.data = data;
        self
    }

    /// With exactly this list, of pieces of its data.
    pub fn list(mut self, make: impl FnOnce(&Buf) -> Vec<SgEntry>) -> Self {
        self.list = make(&self.data);
        self
    }

    /// With a second payload.
    pub fn second(mut self, second: Buf) -> Self {
        self.second_list = second.list(&[]);
        self.second = second;
        self
    }

    /// With ranges.
    pub fn ranges(mut self, ranges: &[(u64, u64)]) -> Self {
        let range = |&(start, blocks)| BlockRange { start: Lba(start), blocks: BlockCount(blocks) };
        self.ranges = ranges.iter().map(range).collect();
        self
    }

    /// With flags.
    pub fn flags(mut self, flags: IoFlags) -> Self {
        self.flags = flags;
        self
    }
}

/// What came of a request.
pub struct Done {
    /// Outcome.
    pub status: IoStatus,
    /// The completion said that it lends.
    pub lent: bool,
    /// The payload: what was lent, else the buffer.
    pub data: Vec<u8>,
}

impl Done {
    /// Panics unless it succeeded; gives the payload.
    #[track_caller]
    pub fn ok(self) -> Vec<u8> {
        assert!(self.status.is_success(), "failed with {:?}", self.status);
        self.data
    }

    /// Panics unless it failed with the code of `status`.
    #[track_caller]
    pub fn fails(self, status: IoStatus) {
        assert_eq!(self.status.code(), status.code());
    }
}

/// One channel under test.
pub struct Bench {
    /// Its device.
    pub device: Arc<dyn BlockDevice>,
    /// The device's shape.
    pub geometry: Geometry,
    channel: Option<Box<dyn IoChannel>>,
    driver: DriverRef,
    next_token: u64,
    pending: HashMap<Token, Request>,
    done: HashMap<Token, Done>,
    out: Vec<Completion>,
    /// Leave loans open until [`Bench::release`].
    pub keep_loans: bool,
}

impl Bench {
    /// Offers a request; gives it back when the channel is busy.
    pub fn start(&mut self, request: Request) -> Result<Token, Request> {
        // Spread over index and generation as users do, so that devices must not read meaning into it.
        self.next_token += 1;
        let token = Token::new(self.next_token as u32 % 97, self.next_token as u32);
        let io = Io {
            opcode: request.opcode,
            flags: request.flags,
            lba: Lba(request.lba),
            blocks: BlockCount(request.blocks),
            sg: &request.list,
            second: &request.second_list,
            ranges: &request.ranges,
        };
        // SAFETY: the request, and with it every byte that its lists name, goes to `pending` until the
        // completion; `Drop` drops the channel before the requests.
        let accepted = unsafe { self.channel().submit(&io, token) };
        match accepted {
            Ok(()) => {
                self.pending.insert(token, request);
                Ok(token)
            }
            Err(Busy) => Err(request),
        }
    }

    /// Offers a request until it is accepted.
    pub fn start_soon(&mut self, mut request: Request) -> Token {
        let started = Instant::now();
        loop {
            match self.start(request) {
                Ok(token) => return token,
                Err(back) => request = back,
            }
            while !self.take_ready() {
                assert!(started.elapsed() < PATIENCE, "Busy for ever, {} in flight", self.pending.len());
                self.turn();
            }
        }
    }

    /// Starts a request and waits for it.
    pub fn run(&mut self, request: Request) -> Done {
        let token = self.start_soon(request);
        self.wait(token)
    }

    /// Waits for one request.
    pub fn wait(&mut self, token: Token) -> Done {
        let started = Instant::now();
        loop {
            if let Some(done) = self.done.remove(&token) {
                return done;
            }
            assert!(started.elapsed() < PATIENCE, "no completion for {token:?}");
            self.turn();
        }
    }

    /// Waits until nothing is in flight; what was not waited for is forgotten.
    pub fn settle(&mut self) {
        let started = Instant::now();
        while !self.pending.is_empty() {
            assert!(started.elapsed() < PATIENCE, "{} I/Os never complete", self.pending.len());
            self.turn();
        }
        self.done.clear();
    }

    /// One round: publish, drive, poll.
    pub fn turn(&mut self) {
        self.channel().kick();
        self.driver.borrow_mut().turn();
        self.poll(64);
    }

    /// Polls once with a budget and checks what comes.
    pub fn poll(&mut self, budget: usize) -> usize {
        self.out.reserve(budget);
        let capacity = self.out.capacity();
        let mut out = core::mem::take(&mut self.out);
        let n = self.channel().poll(&mut out, budget);
        assert!(n <= budget, "poll gave {n} completions for a budget of {budget}");
        assert_eq!(n, out.len(), "poll returns what it appended");
        assert_eq!(capacity, out.capacity(), "poll stays within the reserved capacity");
        for completion in out.drain(..) {
            self.account(completion);
        }
        self.out = out;
        n
    }

    fn account(&mut self, completion: Completion) {
        let Completion { token, status, lent, .. } = completion;
        let Some(request) = self.pending.remove(&token) else {
            panic!("a completion for {token:?}, which is not in flight: unknown, or a second one");
        };
        let data = if lent {
            assert!(status.is_success() && request.opcode == Opcode::Read, "only good reads lend");
            assert!(request.flags.contains(IoFlags::MAY_LEND), "lent without being allowed to");
            let data = self.lent(token);
            let asked = request.blocks * u64::from(self.geometry.block_bytes);
            assert_eq!(data.len() as u64, asked, "a loan has exactly the length of the read");
            if !self.keep_loans {
                self.release(token);
            }
            data
        } else {
            request.data.bytes().to_vec()
        };
        let twice = self.done.insert(token, Done { status, lent, data });
        assert!(twice.is_none());
    }

    /// A copy of the memory lent for `token`.
    pub fn lent(&mut self, token: Token) -> Vec<u8> {
        let mut data = Vec::new();
        for entry in self.channel().lent(token).sg {
            // SAFETY: lent memory is valid until its release; it is only copied, byte by byte order aside.
            let piece = unsafe { core::slice::from_raw_parts(entry.ptr.as_ptr(), entry.len_bytes as usize) };
            data.extend_from_slice(piece);
        }
        data
    }

    /// Gives a loan back.
    pub fn release(&mut self, token: Token) {
        self.channel().release(token);
    }

    /// The channel's ready bit.
    pub fn take_ready(&mut self) -> bool {
        self.channel().take_ready()
    }

    /// Tries to cancel.
    pub fn cancel(&mut self, token: Token) -> Cancel {
        self.channel().cancel(token)
    }

    /// One round of the driver, without a poll.
    pub fn turn_only(&mut self) {
        self.channel().kick();
        self.driver.borrow_mut().turn();
    }

    /// How many are in flight.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// The channel itself.
    pub fn channel(&mut self) -> &mut dyn IoChannel {
        self.channel.as_mut().expect("the channel was dropped by the test").as_mut()
    }

    /// Drops the channel with whatever is in flight; gives back the memory of what was.
    pub fn drop_channel(&mut self) -> Vec<Buf> {
        self.channel = None;
        self.pending.drain().flat_map(|(_, r)| [r.data, r.second]).collect()
    }

    /// Bytes of this many blocks.
    pub fn bytes(&self, blocks: u64) -> usize {
        (blocks * u64::from(self.geometry.block_bytes)) as usize
    }

    /// Writes whole blocks and expects success.
    #[track_caller]
    pub fn write(&mut self, lba: u64, bytes: &[u8]) {
        let blocks = bytes.len() as u64 / u64::from(self.geometry.block_bytes);
        self.run(Request::new(Opcode::Write, lba, blocks).data(Buf::of(bytes), &[])).ok();
    }

    /// Reads blocks and expects success.
    #[track_caller]
    pub fn read(&mut self, lba: u64, blocks: u64) -> Vec<u8> {
        let buf = Buf::filled(self.bytes(blocks), 0x5a);
        self.run(Request::new(Opcode::Read, lba, blocks).data(buf, &[])).ok()
    }
}

impl Drop for Bench {
    /// The channel goes first: until then its device may use the memory of what is in flight.
    fn drop(&mut self) {
        self.channel = None;
    }
}
