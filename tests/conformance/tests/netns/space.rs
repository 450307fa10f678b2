//! Network namespaces and the link between them. The kernel removes both when the test's process ends, however it ends:
//! nothing has a name that outlives it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A network namespace that nothing else is in.
pub(crate) struct Space(File);

impl Space {
    /// An empty one with its loopback up.
    pub(crate) fn new() -> Result<Self, String> {
        let made = thread::spawn(|| {
            // SAFETY: only this thread gets another network, and it owns no sockets. No file descriptor or memory
            // is unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|e| format!("no permission to make a network namespace ({e})"))?;
            File::open("/proc/thread-self/ns/net")
                .map_err(|e| format!("no network namespaces in /proc ({e})"))
        });
        let space = Self(made.join().expect("the thread does not panic")?);
        space.ip("link set lo up")?;
        Ok(space)
    }

    /// Runs `f` on a thread inside. Threads and processes that it starts stay inside.
    pub(crate) fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("who made the namespace may enter it");
                f()
            });
            inside.join().expect("the thread does not panic")
        })
    }

    /// Runs `ip` inside.
    pub(crate) fn ip(&self, arguments: &str) -> Result<(), String> {
        let output = self.enter(|| Command::new("ip").args(arguments.split(' ')).output());
        let output = output.map_err(|e| format!("`ip` of iproute2 does not start ({e})"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("`ip {arguments}`: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Where another process finds the namespace while this lives.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Two namespaces with a cable between them: 10.99.0.1 and 10.99.0.2, each on its interface `cable`.
pub(crate) fn two() -> Result<(Space, Space), String> {
    let (one, two) = (Space::new()?, Space::new()?);
    one.ip(&format!("link add cable type veth peer name cable netns {}", two.path()))?;
    for (space, address) in [(&one, "10.99.0.1/24"), (&two, "10.99.0.2/24")] {
        space.ip(&format!("address add {address} dev cable"))?;
        space.ip("link set cable up")?;
    }
    Ok((one, two))
}
