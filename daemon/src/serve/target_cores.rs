//! The target's share of each core: sockets, connections and channels live there.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use aio::Core;
use aio::reactor::CoreHandle;
use anyhow::Context;
use nvmf::target::core::{ConnectionInfo, CoreConfig, TargetCore, TargetCoreStats};
use nvmf::target::{ListenerId, Target};

thread_local! {
    /// This core's share, for whoever asks it something.
    static SHARE: RefCell<Option<Rc<RefCell<TargetCore>>>> = const { RefCell::new(None) };
}

/// Starts the target on all cores and listens on `addr`, everywhere on the same port; [`open`] lets hosts in. Returns
/// where, with the port filled in. `port_flag` is for the message when the port is taken.
pub async fn start(
    target: &Target,
    cores: &[CoreHandle],
    addr: SocketAddr,
    port_flag: &str,
) -> anyhow::Result<SocketAddr> {
    let mut listener = target.add_listener(addr);
    let mut local = addr;
    for (i, core) in cores.iter().enumerate() {
        let (target_for_core, wake, wanted) = (target.clone(), core.clone(), local);
        let bound =
            core.call(move || async move { start_here(target_for_core, wake, listener, wanted, i > 0) });
        let bound = bound.await?.with_context(|| in_use(wanted, port_flag))?;
        if i == 0 && bound != addr {
            // Discovery has to name the port that was found. The number of the listener stays the same: the lowest
            // free one.
            target.remove_listener(listener)?;
            let renamed = target.add_listener(bound);
            anyhow::ensure!(renamed == listener, "invariant: nobody else adds listeners at the start");
            listener = renamed;
        }
        local = bound;
    }
    Ok(local)
}

/// Lets hosts in. Until then those that reconnect after a restart wait: told that their subsystem is not there, they
/// would give up.
pub async fn open(cores: &[CoreHandle]) {
    for core in cores {
        let opened = core.call(|| async {
            SHARE.with_borrow(|share| {
                if let Some(share) = share {
                    share.borrow_mut().set_accepting(true);
                }
            });
        });
        // A core that is gone has no hosts to let in.
        let _ = opened.await;
    }
}

fn in_use(addr: SocketAddr, flag: &str) -> String {
    format!("cannot serve NVMe/TCP on {addr}; is another keelson running there? {flag} chooses another port")
}

fn start_here(
    target: Target,
    wake: CoreHandle,
    listener: ListenerId,
    addr: SocketAddr,
    further: bool,
) -> anyhow::Result<SocketAddr> {
    let core = Core::current().expect("invariant: calls run on a core");
    let inbox = target.attach_core(move || wake.wake());
    let pools = core.pools()?;
    let config = CoreConfig::default();
    let mut share = TargetCore::new(target, inbox, core.network(), pools, core.memory(), config)?;
    let bound = if further { share.listen_shared(listener, addr)? } else { share.listen(listener, addr)? };
    share.set_accepting(false);
    let share = Rc::new(RefCell::new(share));
    core.add_poller(share.clone());
    SHARE.set(Some(share));
    Ok(bound)
}

/// Counters of the target on one core.
pub async fn stats(core: &CoreHandle) -> Option<TargetCoreStats> {
    core.call(|| async { SHARE.with_borrow(|s| s.as_ref().map(|s| s.borrow().stats())) }).await.ok().flatten()
}

/// The connections of hosts on one core.
pub async fn connections(core: &CoreHandle) -> Vec<ConnectionInfo> {
    let list =
        core.call(|| async { SHARE.with_borrow(|s| s.as_ref().map(|s| s.borrow().connection_list())) });
    list.await.ok().flatten().unwrap_or_default()
}

/// Closes all connections on one core, and waits until its devices have let go of their commands.
pub async fn stop(core: &CoreHandle) {
    let stopped = core.call(|| async {
        let Some(share) = SHARE.take() else { return };
        share.borrow_mut().stop();
        let core = Core::current().expect("invariant: calls run on a core");
        while !aio::Poller::finished(&*share.borrow()) {
            core.sleep(std::time::Duration::from_millis(1)).await;
        }
    });
    // A core that is gone has nothing left to close.
    let _ = stopped.await;
}
