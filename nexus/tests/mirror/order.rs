//! Writes that overlap reach all children in one order.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use aio::facade::IoError;

use crate::rig::Rng;
use crate::world::World;

type Writing<'a> = Pin<Box<dyn Future<Output = Result<(), IoError>> + 'a>>;

/// Many writes of few blocks at once, on disks whose latencies differ at each I/O. Without the range locks, disks differ
/// afterwards at nearly every seed.
#[test]
fn overlapping_writes_leave_equal_children() {
    for seed in 0..20 {
        let world = World::new(3, 0, 1000 + seed);
        let mut rng = Rng::new(seed);
        let mut flying: Vec<Writing<'_>> = Vec::new();
        let mut left = 300u32;
        let everything = poll_fn(|cx| {
            while flying.len() < 32 && left > 0 {
                left -= 1;
                flying.push(Box::pin(world.write_async(rng.below(3), 1 + rng.below(250) as u8)));
            }
            flying.retain_mut(|f| match f.as_mut().poll(cx) {
                Poll::Ready(result) => {
                    result.unwrap();
                    false
                }
                Poll::Pending => true,
            });
            if flying.is_empty() && left == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        world.rig.run(everything);
        assert!(world.equal(0, 1) && world.equal(1, 2), "seed {seed}");
    }
}
