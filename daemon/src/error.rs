//! What a control request can fail with. Mapping to gRPC codes: `services::status`.

use aio::uri::UriError;

use crate::state::StateError;

/// A failed control request. The texts are read by people, who know what they asked for.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The URI cannot be understood.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// A scheme whose driver is not in this build.
    #[error("devices of scheme {0} are not supported by this version")]
    Scheme(&'static str),
    /// The device could not be made.
    #[error("cannot create device \"{name}\": {}", chain(source))]
    CreateDevice {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: aio::DeviceError,
    },
    /// The remote end could not be reached or refused.
    #[error("cannot connect to \"{name}\": {}", chain(source))]
    Connect {
        /// The device's name.
        name: String,
        /// Why.
        #[source]
        source: Box<nvmf::initiator::Error>,
    },
    /// The name is taken.
    #[error("a device \"{0}\" exists already; destroy it first, or give the new one another name")]
    DeviceExists(String),
    /// No device of that name.
    #[error("there is no device \"{0}\"")]
    NoDevice(String),
    /// The URI's `uuid` is not the device's.
    #[error("device \"{name}\" has uuid {actual}, not {asked}")]
    UuidMismatch {
        /// Which device.
        name: String,
        /// Its own.
        actual: uuid::Uuid,
        /// As asked for.
        asked: uuid::Uuid,
    },
    /// A namespace is made of it.
    #[error("device \"{name}\" is exported by {nqn}; unshare it, or remove that namespace, first")]
    DeviceInUse {
        /// Which device.
        name: String,
        /// By which subsystem.
        nqn: String,
    },
    /// The size could not be changed.
    #[error("cannot resize device \"{name}\": {}", chain(source))]
    ResizeDevice {
        /// Which device.
        name: String,
        /// Why.
        #[source]
        source: aio::DeviceError,
    },
    /// A size that is no whole number of blocks.
    #[error("{size_bytes} bytes are not a multiple of the {block_bytes}-byte blocks of device \"{name}\"")]
    UnalignedSize {
        /// Which device.
        name: String,
        /// As asked for.
        size_bytes: u64,
        /// Its block size.
        block_bytes: u32,
    },
    /// `Share` of what is shared.
    #[error("device \"{0}\" is shared already; unshare it first")]
    AlreadyShared(String),
    /// `Share` over something else than NVMe-oF.
    #[error("share protocol {0} is not supported: only NVMF (1) is")]
    ShareProtocol(i32),
    /// A request without a part that it has to have.
    #[error("the request lacks {0}")]
    Missing(&'static str),
    /// A value that cannot be.
    #[error("{what} {value:?} cannot be used: {expected}")]
    BadValue {
        /// Of what.
        what: &'static str,
        /// As given.
        value: String,
        /// What it has to be.
        expected: &'static str,
    },
    /// The target refused.
    #[error("{}", chain(.0))]
    Target(#[from] nvmf::target::TargetError),
    /// No NVMe controller of that name.
    #[error("there is no NVMe controller \"{0}\"")]
    NoController(String),
    /// Done, but a restart would not know.
    #[error("done, but it could not be recorded, and is gone after a restart: {0}")]
    NotRecorded(#[source] StateError),
    /// A reactor stopped.
    #[error(transparent)]
    Core(#[from] aio::reactor::CoreGone),
    /// The daemon ends.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

/// An error with everything that led to it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut missing = Vec::new();
    let mut cause = error.source();
    while let Some(e) = cause {
        let inner = e.to_string();
        // Some errors have their source's text in their own: then what lies between is told as well.
        if text.contains(&inner) {
            missing.clear();
        } else if !missing.contains(&inner) {
            missing.push(inner);
        }
        cause = e.source();
    }
    for inner in missing {
        text = format!("{text}: {inner}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        #[source]
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let source = (texts.len() > 1).then(|| Box::new(layers(&texts[1..])));
        Layer { text: texts[0], source }
    }

    #[test]
    fn causes_are_told_once() {
        assert_eq!(chain(&layers(&["a", "b", "c"])), "a: b: c");
        assert_eq!(chain(&layers(&["a: refused", "transport", "tcp", "refused"])), "a: refused");
        assert_eq!(chain(&layers(&["a", "same", "same"])), "a: same");
    }
}
