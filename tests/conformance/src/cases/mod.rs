//! The cases. Each returns false when it does not apply to the device.
//!
//! - [`bounds`]: ranges, lengths, overflow. - [`shapes`]: scatter-gather lists, good and bad.
//! - [`data`]: what was written is read. - [`semantics`]: what each opcode means.
//! - [`queueing`]: Busy, budgets, many in flight. - [`lifecycle`]: cancel, resize, removal, drop, close.
//! - [`cores`]: several channels, several threads.

mod bounds;
mod cores;
mod data;
mod lifecycle;
mod queueing;
mod semantics;
mod shapes;

use aio::Capabilities;

use crate::bench::World;

type Case = fn(&World<'_>) -> bool;

/// Every case, by name.
pub(crate) const ALL: &[(&str, Case)] = &[
    ("describes itself", bounds::describes_itself),
    ("ranges", bounds::ranges),
    ("zero length", bounds::zero_length),
    ("too large", bounds::too_large),
    ("missing capabilities", bounds::missing_capabilities),
    ("list shapes", shapes::good_lists),
    ("wrong lists", shapes::wrong_lists),
    ("random operations", data::random_operations),
    ("many writes, then reads", data::stamps),
    ("overlapping writes", data::overlapping_writes),
    ("flush and FUA", semantics::flush_and_fua),
    ("write zeroes", semantics::write_zeroes),
    ("unmap", semantics::unmap),
    ("compare", semantics::compare),
    ("compare and write", semantics::compare_and_write),
    ("verify", semantics::verify),
    ("copy", semantics::copy),
    ("lending", semantics::lending),
    ("loans held", semantics::loans_held),
    ("busy and recovery", queueing::busy_and_recovery),
    ("thousands in flight", queueing::thousands),
    ("poll budget", queueing::budget),
    ("sleep", queueing::sleep),
    ("cancel", lifecycle::cancel),
    ("resize", lifecycle::resize),
    ("removal in flight", lifecycle::removal),
    ("drop in flight", lifecycle::drop_in_flight),
    ("close and drain", lifecycle::close_and_drain),
    ("subscriptions", lifecycle::subscriptions),
    ("two channels, one core", cores::two_channels),
    ("threads on their own blocks", cores::own_blocks),
    ("handing over between threads", cores::hand_over),
    ("compare and write counts", cores::counters),
    ("compare and write against writes", cores::against_writes),
];

/// True when the device has all of `caps`.
fn has(world: &World<'_>, caps: Capabilities) -> bool {
    world.device().capabilities().contains(caps)
}
