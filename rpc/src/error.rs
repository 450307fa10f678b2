//! What can go wrong on the client's side, in sentences.

use crate::client::Endpoint;

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The text after `-b` is no address.
    #[error("\"{text}\" is not an address: {reason}. Write HOST, HOST:PORT or http://HOST:PORT")]
    BadEndpoint {
        /// As given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nobody answers there.
    #[error(
        "cannot reach a Keelson daemon at {endpoint}: {}. Is `keelson serve` running there? \
         `-b HOST[:PORT]` chooses another address",
        root_cause(source)
    )]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The daemon refused or failed.
    #[error("cannot {what}: {}", status_text(status))]
    Call {
        /// What was attempted, on what.
        what: String,
        /// The daemon's answer.
        status: Box<tonic::Status>,
    },
    /// What the daemon began did not succeed.
    #[error("cannot {what}: {why}")]
    Failed {
        /// What was attempted, on what.
        what: String,
        /// Why not.
        why: String,
    },
    /// A scrub found what cannot be repaired.
    #[error("pool \"{pool}\" is not sound: {wrong} blocks or copies are wrong and were not repaired")]
    Unsound {
        /// Which pool.
        pool: String,
        /// How many.
        wrong: u64,
    },
    /// The answer lacks a part that the API promises.
    #[error("cannot {what}: the daemon's answer lacks {part}; are both of one version?")]
    Incomplete {
        /// What was attempted, on what.
        what: String,
        /// Which part.
        part: &'static str,
    },
    /// A name that the daemon does not know.
    #[error("{kind} \"{name}\" is not there; `keelson {list}` shows what is")]
    NotFound {
        /// What it would be.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The command that lists them.
        list: &'static str,
    },
    /// A name that several things have.
    #[error("there are several {kind} called \"{name}\": give the uuid of one")]
    Ambiguous {
        /// What they are.
        kind: &'static str,
        /// Their name.
        name: String,
    },
    /// The text after `--size` is no size.
    #[error("\"{text}\" is not a size: {reason}")]
    BadSize {
        /// As given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `API_VERSION` asks for an API that is not spoken.
    #[error("API_VERSION={0} is not spoken here: only v1 is. Unset it")]
    ApiVersion(String),
    /// The result could not be written.
    #[error("cannot write the result: {0}")]
    Output(#[from] std::io::Error),
    /// The result could not be put into JSON.
    #[error("cannot put the result into JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl ClientError {
    /// For `map_err` on calls.
    pub(crate) fn call(what: impl Into<String>) -> impl FnOnce(tonic::Status) -> Self {
        let what = what.into();
        move |status| Self::Call { what, status: Box::new(status) }
    }

    /// True when whoever read our output has closed it (`keelson bdev list | head -1`): no failure of ours.
    pub fn is_closed_pipe(&self) -> bool {
        match self {
            Self::Output(e) => e.kind() == std::io::ErrorKind::BrokenPipe,
            Self::Json(e) => e.io_error_kind() == Some(std::io::ErrorKind::BrokenPipe),
            _ => false,
        }
    }
}

/// The innermost reason; the outer ones only say "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn status_text(status: &tonic::Status) -> String {
    let name = code_name(status.code());
    match status.message() {
        "" => format!("the daemon answered {name}"),
        message => format!("{message} ({name})"),
    }
}

/// The code's name as the gRPC documentation writes it.
pub(crate) fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_sentence() {
        let e = ClientError::call("create a device from malloc:///a")(tonic::Status::invalid_argument(
            "size_mb is missing",
        ));
        assert_eq!(
            e.to_string(),
            "cannot create a device from malloc:///a: size_mb is missing (INVALID_ARGUMENT)"
        );
        let e = ClientError::call("list devices")(tonic::Status::unimplemented(""));
        assert_eq!(e.to_string(), "cannot list devices: the daemon answered UNIMPLEMENTED");
    }

    #[test]
    fn a_closed_pipe_is_recognised() {
        let e = ClientError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(e.is_closed_pipe());
        assert!(!ClientError::ApiVersion("v0".into()).is_closed_pipe());
    }
}
