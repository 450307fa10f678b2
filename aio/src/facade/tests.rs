//! The facade over a RAM disk, and over a device that completes when it is told to.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::slots::{Inner, Request};
use super::*;
use crate::device::{Busy, Cancel, IoChannel, Sleep};
use crate::io::{Completion, Io, Lent, Token};
use crate::memory::{DmaPool, Memory, MemoryConfig};
use crate::net::NoNetwork;
use crate::reactor::{CoreId, EngineChoice, JoinHandle, ManualClock, Reactor, ReactorConfig};

fn reactor() -> Reactor {
    let cfg = ReactorConfig { pin: false, engine: EngineChoice::None, ..ReactorConfig::new(CoreId(0)) };
    Reactor::with_parts(cfg, Rc::new(ManualClock::default()), Rc::new(NoNetwork)).unwrap()
}

/// Runs `future` as a task to its end.
fn run<T: 'static>(r: &mut Reactor, future: impl Future<Output = T> + 'static) -> T {
    let task = r.core().spawn(future);
    for _ in 0..10_000 {
        r.turn();
        if task.is_finished() {
            break;
        }
    }
    match pin!(task).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result.unwrap(),
        Poll::Pending => panic!("not finished after many turns"),
    }
}

fn turns(r: &mut Reactor, n: usize) {
    for _ in 0..n {
        r.turn();
    }
}

fn ram_disk() -> Arc<dyn BlockDevice> {
    let uri = "malloc:///facade?size_mb=1&blk_size=512".parse().unwrap();
    crate::devices::create(&uri).unwrap()
}

#[test]
fn what_was_written_is_read() {
    let mut r = reactor();
    run(&mut r, async {
        let pools = Core::current().unwrap().pools().unwrap();
        let d = Descriptor::open(ram_disk()).await.unwrap();
        assert_eq!(d.len_bytes(), 1 << 20);
        let mut buf = pools.alloc(4096).unwrap();
        buf.fill(0xa5);
        let (result, buf) = d.write_at(8192, 1024, buf).await;
        assert_eq!(result, Ok(()));
        let (result, mut buf) = d.compare_at(8192, 1024, buf).await;
        assert_eq!(result, Ok(()));
        buf[1023] = 0;
        let (result, buf) = d.compare_at(8192, 1024, buf).await;
        assert_eq!(result, Err(IoError::Status(IoStatus::COMPARE_FAILURE)));
        let (result, buf) = d.write_at_durable(512 * 20, 512, buf).await;
        assert_eq!(result, Ok(()));
        assert_eq!(d.flush().await, Ok(()));
        assert_eq!(d.write_zeroes(ByteRange { offset_bytes: 8192, len_bytes: 512 }, true).await, Ok(()));
        assert_eq!(d.unmap(&[ByteRange { offset_bytes: 0, len_bytes: 512 }]).await, Ok(()));
        let (result, buf) = d.read_at(8192, 2048 + 512, buf).await;
        assert_eq!(result, Ok(()));
        assert!(buf[..512].iter().all(|&b| b == 0));
        assert!(buf[512..1024].iter().all(|&b| b == 0xa5));
        assert!(buf[1024..2048].iter().all(|&b| b == 0));
        assert!(buf[2048..2560].iter().all(|&b| b == 0xa5));
        d.close().await;
        drop(buf);
        let pools = Core::current().unwrap().pools().unwrap();
        assert!(pools.classes().iter().all(|p| p.available() == p.capacity()));
    });
}

#[test]
fn bad_requests_are_errors_with_the_buffer() {
    let mut r = reactor();
    run(&mut r, async {
        let pools = Core::current().unwrap().pools().unwrap();
        let d = Descriptor::open(ram_disk()).await.unwrap();
        let buf = pools.alloc(4096).unwrap();
        let (result, buf) = d.read_at(100, 512, buf).await;
        let unaligned = IoError::Unaligned { offset_bytes: 100, len_bytes: 512, block_bytes: 512 };
        assert_eq!(result, Err(unaligned));
        let (result, buf) = d.write_at(0, 100, buf).await;
        assert!(matches!(result, Err(IoError::Unaligned { .. })));
        let (result, buf) = d.write_at(0, 8192, buf).await;
        assert_eq!(result, Err(IoError::BufferLength { len_bytes: 8192, buffer_bytes: 4096 }));
        let (result, buf) = d.read_at(1 << 20, 512, buf).await;
        assert_eq!(result, Err(IoError::Status(IoStatus::LBA_OUT_OF_RANGE)));
        let (result, buf) = d.read_at(u64::MAX - 511, 512, buf).await;
        assert_eq!(result, Err(IoError::Status(IoStatus::LBA_OUT_OF_RANGE)));
        let (result, _buf) = d.read_at(0, 0, buf).await;
        assert_eq!(result, Ok(()), "nothing to do");
        let many = vec![ByteRange { offset_bytes: 0, len_bytes: 512 }; MAX_RANGES + 1];
        assert_eq!(d.unmap(&many).await, Err(IoError::TooManyRanges { ranges: MAX_RANGES + 1 }));
        let clone = d.clone();
        d.close().await;
        assert_eq!(clone.flush().await, Err(IoError::Closed));
    });
}

#[test]
fn many_tasks_share_a_descriptor() {
    let mut r = reactor();
    run(&mut r, async {
        let core = Core::current().unwrap();
        let d = Descriptor::open(ram_disk()).await.unwrap();
        let tasks: Vec<_> = (0..200u64)
            .map(|i| {
                let (d, core2) = (d.clone(), core.clone());
                core.spawn(async move {
                    for round in 0..5u8 {
                        let mut buf = core2.pools().unwrap().alloc(512).unwrap();
                        buf[..512].fill(i as u8 ^ round);
                        let (result, mut buf) = d.write_at(i * 512, 512, buf).await;
                        result.unwrap();
                        buf.fill(0);
                        let (result, buf) = d.read_at(i * 512, 512, buf).await;
                        result.unwrap();
                        assert!(buf[..512].iter().all(|&b| b == i as u8 ^ round));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// A channel of two places that completes when the test says so.
#[derive(Default)]
struct Gate {
    held: RefCell<Vec<Token>>,
    open: Cell<usize>,
    refuse: Cell<bool>,
    refused: Cell<bool>,
    closed: Cell<bool>,
    panic: Cell<bool>,
}

struct GateChannel(Rc<Gate>);

impl IoChannel for GateChannel {
    unsafe fn submit(&mut self, _io: &Io<'_>, token: Token) -> Result<(), Busy> {
        if self.0.refuse.get() || self.0.held.borrow().len() == 2 {
            self.0.refused.set(true);
            return Err(Busy);
        }
        self.0.held.borrow_mut().push(token);
        Ok(())
    }
    fn kick(&mut self) {}
    fn poll(&mut self, out: &mut Vec<Completion>, budget: usize) -> usize {
        assert!(!self.0.panic.get(), "as asked");
        let n = self.0.open.get().min(budget).min(self.0.held.borrow().len());
        self.0.open.set(self.0.open.get() - n);
        out.extend(self.0.held.borrow_mut().drain(..n).map(|t| Completion::new(t, IoStatus::SUCCESS)));
        n
    }
    fn take_ready(&mut self) -> bool {
        !self.0.refuse.get() && self.0.held.borrow().len() < 2 && self.0.refused.replace(false)
    }
    fn prepare_sleep(&mut self) -> Sleep {
        let can_retry = self.0.refused.get() && !self.0.refuse.get() && self.0.held.borrow().len() < 2;
        if can_retry { Sleep::KeepPolling } else { Sleep::Armed }
    }
    fn cancel(&mut self, _token: Token) -> Cancel {
        Cancel::Unsupported
    }
    fn lent(&self, _token: Token) -> Lent<'_> {
        Lent { sg: &[], stable: true }
    }
    fn release(&mut self, _token: Token) {}
    fn close(&mut self) {
        self.0.closed.set(true);
    }
    fn drained(&self) -> bool {
        self.0.held.borrow().is_empty()
    }
}

fn gate(r: &Reactor) -> (Rc<Gate>, Rc<Inner>, DmaPool) {
    let gate = Rc::new(Gate::default());
    let inner = Inner::start(&r.core(), Box::new(GateChannel(gate.clone())), 16);
    let memory = Memory::new(MemoryConfig { huge_pages: false });
    (gate, inner, DmaPool::new(&memory, 4096, 8).unwrap())
}

fn read() -> Request {
    Request { blocks: BlockCount(1), ..Request::new(Opcode::Read) }
}

#[test]
fn a_dropped_future_leaves_its_buffer_with_the_slot() {
    let mut r = reactor();
    let (gate, inner, pool) = gate(&r);
    let i = inner.clone();
    let buf = pool.alloc().unwrap();
    let task = r.core().spawn(async move { i.run(read(), Some((buf, 512))).await.0 });
    r.turn();
    assert_eq!(gate.held.borrow().len(), 1);
    task.abort();
    r.turn();
    assert_eq!(pool.available(), 7, "the device may still write to it");
    gate.open.set(1);
    r.turn();
    assert_eq!(pool.available(), 8);
    // The slot is good for the next one.
    let i = inner.clone();
    let buf = pool.alloc().unwrap();
    gate.open.set(1);
    assert_eq!(run(&mut r, async move { i.run(read(), Some((buf, 512))).await.0 }), Ok(()));
    assert_eq!(pool.available(), 8);
}

#[test]
fn busy_waits_and_nobody_is_forgotten() {
    let mut r = reactor();
    let (gate, inner, pool) = gate(&r);
    let done = Rc::new(Cell::new(0));
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let (i, done, buf) = (inner.clone(), done.clone(), pool.alloc());
            r.core().spawn(async move {
                i.run(read(), buf.map(|b| (b, 512))).await.0.unwrap();
                done.set(done.get() + 1);
            })
        })
        .collect();
    r.turn();
    assert_eq!(gate.held.borrow().len(), 2);
    // One that waits goes away.
    tasks[2].abort();
    gate.open.set(1);
    turns(&mut r, 4);
    assert_eq!((done.get(), gate.held.borrow().len()), (1, 2));
    gate.open.set(10);
    turns(&mut r, 10);
    assert_eq!(done.get(), 5);
    assert_eq!(pool.available(), 8);
}

#[test]
fn busy_with_nothing_in_flight_ends_too() {
    let mut r = reactor();
    let (gate, inner, _pool) = gate(&r);
    gate.refuse.set(true);
    let i = inner.clone();
    let task = r.core().spawn(async move { i.run(Request::new(Opcode::Flush), None).await.0 });
    turns(&mut r, 3);
    assert!(!task.is_finished());
    gate.refuse.set(false);
    gate.open.set(1);
    assert_eq!(run(&mut r, async move { task.await.unwrap() }), Ok(()));
}

#[test]
fn close_drains_first_and_refuses_who_waits() {
    let mut r = reactor();
    let (gate, inner, pool) = gate(&r);
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let (i, buf) = (inner.clone(), pool.alloc());
            r.core().spawn(async move { i.run(read(), buf.map(|b| (b, 512))).await.0 })
        })
        .collect();
    r.turn();
    inner.begin_close();
    assert!(gate.closed.get());
    let i = inner.clone();
    let closed = r.core().spawn(async move { i.closed().await });
    turns(&mut r, 3);
    assert!(!closed.is_finished());
    assert!(tasks[2].is_finished());
    gate.open.set(2);
    turns(&mut r, 4);
    assert!(closed.is_finished());
    assert_eq!(Rc::strong_count(&gate), 1, "the channel is gone");
    assert_eq!(pool.available(), 8);
    let mut results = Vec::new();
    for task in tasks {
        results.push(run(&mut r, async move { task.await.unwrap() }));
    }
    assert_eq!(results, [Ok(()), Ok(()), Err(IoError::Closed)]);
}

/// Bug: nobody asked the channel whether it was ready again when the future that it had refused was gone. The channel
/// went on reporting the news that nobody fetched, and its core never slept again.
#[test]
fn a_core_sleeps_after_the_future_that_was_refused_is_gone() {
    let mut r = reactor();
    let (gate, inner, _pool) = gate(&r);
    let core = r.core();
    let flush = || {
        let i = inner.clone();
        core.spawn(async move { i.run(Request::new(Opcode::Flush), None).await.0 })
    };
    let (first, second) = (flush(), flush());
    r.turn();
    let refused = flush();
    gate.refuse.set(true);
    r.turn();
    refused.abort();
    // Everybody is told of the room, and nobody is there.
    gate.open.set(2);
    turns(&mut r, 3);
    assert!(first.is_finished() && second.is_finished());
    gate.refuse.set(false);
    for _ in 0..5 {
        r.turn();
        r.sleep(Some(Duration::from_millis(1)));
    }
    assert!(r.core().stats().sleeps >= 3, "{:?}", r.core().stats());
}

/// Bug: each poll of a future that waited for room added its waker once more, without bound while the device stood
/// still.
#[test]
fn a_waiting_future_that_is_polled_again_waits_once() {
    let mut r = reactor();
    let (gate, inner, _pool) = gate(&r);
    gate.refuse.set(true);
    let i = inner.clone();
    let tasks: Vec<_> = (0..2)
        .map(|_| {
            let (i, core) = (i.clone(), r.core());
            r.core().spawn(async move {
                let mut flush = pin!(i.run(Request::new(Opcode::Flush), None));
                // Wakes its task in every turn, as a neighbour in a `select` might.
                std::future::poll_fn(|cx| {
                    let flushed = flush.as_mut().poll(cx);
                    if core.stats().turns < 100 {
                        cx.waker().wake_by_ref();
                    }
                    flushed.map(|(result, _)| result)
                })
                .await
            })
        })
        .collect();
    turns(&mut r, 200);
    assert_eq!(inner.waiting(), 2);
    gate.refuse.set(false);
    gate.open.set(2);
    for task in tasks {
        assert_eq!(run(&mut r, async move { task.await.unwrap() }), Ok(()));
    }
}

/// Bug: when the reactor had dropped the descriptor's poller, because the device had panicked in it, everything in
/// flight and everything new waited for ever.
#[test]
fn a_device_that_panics_closes_its_descriptor() {
    let mut r = reactor();
    let (gate, inner, pool) = gate(&r);
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let (i, buf) = (inner.clone(), pool.alloc());
            r.core().spawn(async move { i.run(read(), buf.map(|b| (b, 512))).await.0 })
        })
        .collect();
    let gone = inner.clone();
    let abandoned = r.core().spawn(async move { gone.run(Request::new(Opcode::Flush), None).await.0 });
    r.turn();
    assert_eq!(gate.held.borrow().len(), 2);
    abandoned.abort();
    gate.panic.set(true);
    turns(&mut r, 4);
    assert_eq!(r.core().stats().panics, 1);
    assert!(tasks.iter().all(JoinHandle::is_finished));
    for task in tasks {
        assert_eq!(run(&mut r, async move { task.await.unwrap() }), Err(IoError::Closed));
    }
    assert_eq!(Rc::strong_count(&gate), 1, "the channel is gone");
    assert_eq!(pool.available(), 8, "and the buffers are back");
    let i = inner.clone();
    assert_eq!(
        run(&mut r, async move { i.run(Request::new(Opcode::Flush), None).await.0 }),
        Err(IoError::Closed)
    );
    run(&mut r, async move { inner.closed().await });
}
