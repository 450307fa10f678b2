//! The initiator against a controller that breaks the rules: whatever it does, nothing panics, every I/O completes
//! exactly once, and the device says that it is gone.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aio::{BlockDevice as _, DeviceEvent, IoStatus, Opcode};
use nvme::{HostId, Nqn};
use nvmf::initiator::{NvmfDevice, Options, Unsettled};
use sim::client::{Client, Op};
use sim::fake::{FakeTarget, Trick};
use sim::{NetConfig, World};

const TARGET: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 8420);
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const LIMIT: Duration = Duration::from_secs(300);

fn options(digests: bool) -> Options {
    let nqn = Nqn::parse("nqn.2019-05.io.openebs:fake").unwrap();
    let mut o = Options::new(TARGET, nqn.clone());
    (o.hostid, o.hostnqn) = (HostId([1; 16]), nqn);
    (o.header_digest, o.data_digest) = (digests, digests);
    (o.queue_depth, o.unsettled) = (8, Unsettled::separate());
    o
}

struct Bed {
    world: World,
    host: aio::reactor::Core,
    target: std::rc::Rc<std::cell::RefCell<FakeTarget>>,
}

fn bed(trick: Trick, seed: u64) -> Bed {
    let mut world =
        World::new(seed, true, |rng| if seed == 0 { NetConfig::calm() } else { NetConfig::choppy(rng) });
    let core = world.add_core(TARGET.ip());
    let host = world.add_core(HOST);
    let target = FakeTarget::start(&core, TARGET, trick, seed).unwrap();
    Bed { world, host, target }
}

fn connect(bed: &mut Bed, digests: bool) -> Result<Arc<NvmfDevice>, nvmf::initiator::Error> {
    let host = bed.host.clone();
    bed.world.block_on(&host, LIMIT, "connect", NvmfDevice::connect(options(digests))).unwrap()
}

/// Does `ops` on a new channel; returns the statuses, and how often the device said that it faulted.
fn run(bed: &mut Bed, digests: bool, ops: Vec<Op>) -> (Vec<(Op, IoStatus)>, u32) {
    let device = connect(bed, digests).unwrap();
    let faults = Arc::new(AtomicU32::new(0));
    let counted = faults.clone();
    let _subscription = device.subscribe(Arc::new(move |event| {
        assert_eq!(event, DeviceEvent::Faulted);
        counted.fetch_add(1, Ordering::Relaxed);
    }));
    let (host, opened) = (bed.host.clone(), device.clone());
    let channel =
        bed.world.block_on(&host, LIMIT, "open", async move { opened.open_channel().await }).unwrap();
    let client = Client::start(&host, channel.unwrap());
    for op in ops {
        client.borrow_mut().submit(op);
    }
    bed.world.run_until(LIMIT, "I/O", |_| client.borrow().in_flight() == 0).unwrap();
    let mut finished = client.borrow_mut().take_finished();
    finished.sort_by_key(|f| f.id);
    client.borrow_mut().stop();
    bed.world.run_for(Duration::from_secs(1));
    drop((client, device));
    bed.world.run_for(Duration::from_secs(60));
    bed.world.outcome(1).unwrap();
    (finished.into_iter().map(|f| (f.op, f.status)).collect(), faults.load(Ordering::Relaxed))
}

fn mixed_ops() -> Vec<Op> {
    let mut ops = Vec::new();
    for i in 0..12 {
        ops.push(Op::read(i * 8, 8, 512));
        ops.push(Op::write(i * 8 + 4, 20, vec![i as u8; 20 * 512]));
        ops.push(Op::new(Opcode::Flush, 0, 0));
    }
    ops
}

#[test]
fn an_honest_controller_is_served_well() {
    for seed in 0..20 {
        for digests in [false, true] {
            let mut bed = bed(Trick::None, seed);
            let pattern: Vec<u8> = (0..40 * 512).map(|i| (i / 7) as u8).collect();
            let mut write = Op::write(10, 40, pattern.clone());
            write.cut = 1000;
            let (done, faults) = run(&mut bed, digests, vec![write]);
            assert_eq!((done[0].1, faults), (IoStatus::SUCCESS, 0));
            assert_eq!(bed.target.borrow().disk().borrow()[5120..5120 + 40 * 512], pattern[..]);
            let mut read = Op::read(0, 200, 512);
            read.cut = 777;
            let mut swap = Op::new(Opcode::CompareAndWrite, 50, 1);
            (swap.data, swap.second) = (vec![9; 512], vec![8; 512]);
            let ops = vec![read, swap.clone()];
            let (done, faults) = run(&mut bed, digests, ops);
            assert_eq!((done[0].1, faults), (IoStatus::SUCCESS, 0));
            assert_eq!(done[0].0.data[5120..5120 + 40 * 512], pattern[..], "seed {seed}");
            assert_eq!(done[1].1, IoStatus::COMPARE_FAILURE);
            let mut swap = Op { lba: 100, ..swap };
            swap.data.fill(0);
            let ops = vec![
                swap,
                Op::new(Opcode::WriteZeroes, 12, 3),
                Op::new(Opcode::Unmap, 20, 1),
                Op::new(Opcode::Flush, 0, 0),
                Op::new(Opcode::Verify, 0, 1),
                Op::read(250, 7, 512),
            ];
            let (done, faults) = run(&mut bed, digests, ops);
            let statuses: Vec<_> = done.iter().map(|d| d.1).collect();
            let expected = [
                IoStatus::SUCCESS,
                IoStatus::SUCCESS,
                IoStatus::SUCCESS,
                IoStatus::SUCCESS,
                IoStatus::INVALID_OPCODE,
                IoStatus::LBA_OUT_OF_RANGE,
            ];
            assert_eq!((&statuses[..], faults), (&expected[..], 0));
            let disk = bed.target.borrow().disk();
            assert_eq!(disk.borrow()[100 * 512..101 * 512], [8; 512]);
            assert_eq!(disk.borrow()[12 * 512..15 * 512], [0; 3 * 512]);
            assert_eq!(disk.borrow()[15 * 512..16 * 512], pattern[5 * 512..6 * 512]);
        }
    }
}

#[test]
fn tricks_while_connecting_are_errors() {
    for &trick in Trick::ON_CONNECT {
        for seed in 0..4 {
            let mut bed = bed(trick, seed);
            let result = connect(&mut bed, false);
            assert!(result.is_err(), "{trick:?}");
            bed.world.run_for(Duration::from_secs(10));
            bed.world.outcome(1).unwrap();
        }
    }
}

#[test]
fn garbage_identify_data_never_panics() {
    for seed in 0..40 {
        let mut bed = bed(Trick::GarbageIdentify, seed);
        // Random pages may even describe something usable.
        let device = connect(&mut bed, false);
        drop(device);
        bed.world.run_for(Duration::from_secs(10));
        bed.world.outcome(1).unwrap();
    }
}

#[test]
fn tricks_on_io_fail_it_and_the_device() {
    for &trick in Trick::ON_IO {
        for digests in [false, true] {
            for seed in 0..6 {
                // A read first and a write first: the trick is done on whatever comes first.
                for rotate in [0, 1] {
                    let mut bed = bed(trick, seed);
                    let mut ops = mixed_ops();
                    ops.rotate_left(rotate);
                    let count = ops.len();
                    let (done, faults) = run(&mut bed, digests, ops);
                    let label = format!("{trick:?}, digests {digests}, seed {seed}, rotate {rotate}");
                    assert_eq!(done.len(), count, "{label}");
                    if trick == Trick::BadDataDigest && digests && rotate == 0 {
                        assert_eq!(done[0].1, IoStatus::TRANSIENT_TRANSPORT_ERROR, "{label}");
                        assert_eq!(faults, 0, "{label}: a damaged payload is not a broken connection");
                        assert!(done[1..].iter().all(|d| d.1.is_success()), "{label}");
                        continue;
                    }
                    assert_eq!(faults, 1, "{label}");
                    // What the trick's command got is up to the trick (a duplicate answer answers once).
                    assert!(!done[0].1.is_success(), "{label}: {:?}", done[0].1);
                    let lost = done.iter().filter(|d| d.1.is(IoStatus::HOST_PATHING_ERROR)).count();
                    assert!(lost + 1 >= count, "{label}: {lost} of {count} lost");
                }
            }
        }
    }
}
