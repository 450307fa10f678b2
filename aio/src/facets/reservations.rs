//! Reservations of a device that other hosts reach too (NVMe Base 2.0, section 8.19).
//!
//! A facet speaks for one host, the one that the device's channels belong to: what it registers and acquires holds for
//! their I/O, and when another host preempts it, that I/O is refused with
//! [`RESERVATION_CONFLICT`](nvme::Status::RESERVATION_CONFLICT). The words are those of the specification, and so are the
//! rules; they are in [`nvme::reservation`].

use nvme::HostId;
use nvme::reservation::{Acquire, Register, Release, Report};

use super::FacetFuture;

/// Registers, acquires and gives up on behalf of one host.
///
/// Each call is one command. It resolves when the change holds on every path to the device: whatever it shuts out is
/// refused from then on, and what was let in before has completed. Errors that the device answers are
/// [`FacetError::Refused`](super::FacetError::Refused).
pub trait Reservations {
    /// The host on whose behalf this is.
    fn host(&self) -> HostId;

    /// Registers a key, replaces it, or unregisters.
    fn register(&self, command: Register) -> FacetFuture<'_, ()>;

    /// Acquires a reservation, or preempts others.
    fn acquire(&self, command: Acquire) -> FacetFuture<'_, ()>;

    /// Gives a reservation up, or clears everything.
    fn release(&self, command: Release) -> FacetFuture<'_, ()>;

    /// Who is registered, and who holds what.
    fn report(&self) -> FacetFuture<'_, Report>;
}
