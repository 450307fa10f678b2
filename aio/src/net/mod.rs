//! Sockets as [`ByteStream`]s.
//!
//! # Map
//! - [`SocketNetwork`]: listens and connects; TCP over IPv4 and IPv6.
//! - `socket`: options and the gathered receive and send.
//! - [`NoNetwork`]: what a reactor without an engine has.
//!
//! A receive or send is one system call on a non-blocking socket. Readiness comes from the core's engine and only when
//! armed, so a hot stream is simply tried once a turn and an idle one costs nothing.

mod socket;
mod tcp;

use std::io;
use std::net::SocketAddr;

use crate::stream::{ByteStream, Listener, Network};

pub use tcp::SocketNetwork;

/// The network of a reactor that has none: every attempt is an error.
pub struct NoNetwork;

fn no_network() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this reactor has no network: it was made without an engine")
}

impl Network for NoNetwork {
    fn listen(&self, _addr: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Err(no_network())
    }

    fn connect(&self, _addr: SocketAddr) -> io::Result<Box<dyn ByteStream>> {
        Err(no_network())
    }
}

#[cfg(test)]
mod tests;
