//! What can go wrong while connecting or administrating. I/O errors are `nvme::Status` instead.

use std::io;
use std::net::SocketAddr;

use nvme::tcp::PduError;
use nvme::{Nqn, Status};

/// What is wrong with a URI.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UriProblem {
    /// The path is no NQN.
    #[error("the path has to be the subsystem's NQN, of the form nqn.yyyy-mm.reverse.domain[:name]")]
    Nqn,
    /// A parameter with an impossible value.
    #[error("the parameter `{0}` has an impossible value")]
    Parameter(&'static str),
}

/// How a peer broke the rules, or a connection its promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerFault {
    /// Bytes that the transport specification does not allow.
    #[error("it broke the transport's rules: {0}")]
    Protocol(PduError),
    /// A command got no answer in time.
    #[error("it did not answer in time")]
    Timeout,
    /// It closed the connection.
    #[error("it closed the connection")]
    Closed,
    /// It ended the connection with a C2HTermReq.
    #[error("it terminated the connection (fatal error status {0})")]
    Terminated(u16),
    /// The controller reports CSTS.CFS.
    #[error("its controller reports a fatal status")]
    ControllerFatal,
    /// It refused the connection.
    #[error("it refused: {0:?}")]
    Refused(Status),
    /// It has another namespace than the one that the device is.
    #[error("it has another namespace than before: {0}")]
    Changed(&'static str),
    /// It may have lost writes that it had acknowledged.
    #[error(
        "it restarted, or may have, and has a volatile cache: writes that it had acknowledged may be lost; check the \
         data (or resync it) and connect anew"
    )]
    Restarted,
    /// An answer that contradicts the specification or an earlier answer.
    #[error("it answered with nonsense ({0})")]
    Nonsense(&'static str),
}

/// A failed connect, discovery or admin command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A URI that cannot be used.
    #[error("{uri} is not usable: {problem}")]
    Uri {
        /// As given.
        uri: String,
        /// Why.
        problem: UriProblem,
    },
    /// The host name is unknown.
    #[error("the address of {host} could not be found: check the name or use an IP address")]
    Resolve {
        /// As given.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The network refused.
    #[error("{op} to {addr} failed")]
    Io {
        /// What was attempted.
        op: &'static str,
        /// With whom.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The controller refused a command.
    #[error("{op} was refused by {addr}: {}", reason(op, *status))]
    Refused {
        /// Which command.
        op: &'static str,
        /// Whose answer.
        addr: SocketAddr,
        /// The answer.
        status: Status,
    },
    /// The device behind the controller failed.
    #[error("{op} failed at {addr}: the device answered with error number {errno}")]
    Device {
        /// Which command.
        op: &'static str,
        /// Whose answer.
        addr: SocketAddr,
        /// The number, as Linux counts errors.
        errno: i32,
    },
    /// The peer misbehaved.
    #[error("{op} with {addr} failed: {fault}")]
    Peer {
        /// What was attempted.
        op: &'static str,
        /// With whom.
        addr: SocketAddr,
        /// What the peer did.
        fault: PeerFault,
    },
    /// The namespace asked for does not exist, or none does.
    #[error("{} at {addr} has no active namespace{}", subnqn.as_str(), nsid.map(|n| format!(" {n}")).unwrap_or_default())]
    NoNamespace {
        /// Which subsystem.
        subnqn: Nqn,
        /// Where.
        addr: SocketAddr,
        /// Which one was asked for.
        nsid: Option<u32>,
    },
    /// The namespace has a format that this initiator cannot use.
    #[error("namespace {nsid} of {} cannot be used: {why}", subnqn.as_str())]
    Format {
        /// Which subsystem.
        subnqn: Nqn,
        /// Which namespace.
        nsid: u32,
        /// What about it.
        why: &'static str,
    },
    /// The controller is gone or being closed.
    #[error("the controller of {0} is gone")]
    Gone(String),
    /// All I/O queues that the controller grants are in use.
    #[error("{0} grants no further I/O queue: close a channel, or raise the target's queue limit")]
    NoQueue(String),
}

/// What a status means as the answer to `op`, and what helps where that is known.
fn reason(op: &str, status: Status) -> String {
    // Fabrics commands share their numbers with others that mean something else.
    let fabrics = op.starts_with("Connect") || op.starts_with("Property");
    let name = if fabrics { status.fabrics_name() } else { status.name() };
    let advice = match status {
        s if fabrics && s.is(Status::CONNECT_INVALID_HOST) => "; allow this host's NQN on the subsystem",
        s if fabrics && s.is(Status::CONNECT_INVALID_PARAMETERS) => {
            "; is the subsystem's NQN right, and does the target take queues of this size?"
        }
        s if fabrics && s.is(Status::CONNECT_CONTROLLER_BUSY) => "; try again later",
        s if s.is(Status::AUTHENTICATION_REQUIRED) => ", which this initiator does not have",
        _ => "",
    };
    format!("{name} (status {:#06x}){advice}", status.bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_named_for_their_command() {
        let status = Status::CONNECT_INVALID_HOST;
        let error = |op| Error::Refused { op, addr: ([10, 0, 0, 1], 8420).into(), status }.to_string();
        assert!(error("Connect").contains("Connect Invalid Host"), "{}", error("Connect"));
        assert!(error("Connect").contains("allow this host"), "{}", error("Connect"));
        assert!(!error("Identify").contains("allow this host"), "{}", error("Identify"));
    }
}
