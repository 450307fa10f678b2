//! The target's share of each core: sockets, connections and channels live there.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use aio::reactor::CoreHandle;
use aio::{Core, CoreId, Instant, Poller, Sleep};
use anyhow::Context;
use nvmf::target::core::{ConnectionInfo, CoreConfig, TargetCore, TargetCoreStats};
use nvmf::target::{ListenerId, Target};
use tokio::sync::mpsc::Sender;

thread_local! {
    /// This core's share, for whoever asks it something.
    static SHARE: RefCell<Option<Rc<RefCell<TargetCore>>>> = const { RefCell::new(None) };
}

/// Starts the target on all cores and listens on `addr`, everywhere on the same port; [`open`] lets hosts in. Returns
/// where, with the port filled in. `port_flag` is for the message when the port is taken. `lost` hears of cores that
/// stopped serving because of a bug of ours.
pub async fn start(
    target: &Target,
    cores: &[CoreHandle],
    addr: SocketAddr,
    port_flag: &str,
    lost: &Sender<CoreId>,
) -> anyhow::Result<SocketAddr> {
    let mut listener = target.add_listener(addr);
    let mut local = addr;
    for (i, core) in cores.iter().enumerate() {
        let (target_for_core, wake, wanted, lost) = (target.clone(), core.clone(), local, lost.clone());
        let bound = core
            .call(move || async move { start_here(target_for_core, wake, listener, wanted, i > 0, lost) });
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
    lost: Sender<CoreId>,
) -> anyhow::Result<SocketAddr> {
    let core = Core::current().expect("invariant: calls run on a core");
    let inbox = target.attach_core(move || wake.wake());
    let pools = core.pools()?;
    let config = CoreConfig::default();
    let mut share = TargetCore::new(target, inbox, core.network(), pools, core.memory(), config)?;
    let bound = if further { share.listen_shared(listener, addr)? } else { share.listen(listener, addr)? };
    share.set_accepting(false);
    let share = Rc::new(RefCell::new(share));
    let watched = Watched { poller: share.clone(), core: core.id(), lost };
    core.add_poller(Rc::new(RefCell::new(watched)));
    SHARE.set(Some(share));
    Ok(bound)
}

/// A poller whose end is told. The reactor drops one that panicked, and its hosts would wait for answers until their
/// Keep Alive: better that the process ends, says why, and is started again.
struct Watched<P: Poller> {
    poller: Rc<RefCell<P>>,
    core: CoreId,
    lost: Sender<CoreId>,
}

impl<P: Poller> Poller for Watched<P> {
    fn poll(&mut self, now: Instant) -> usize {
        self.poller.borrow_mut().poll(now)
    }

    fn kick(&mut self) {
        self.poller.borrow_mut().kick();
    }

    fn prepare_sleep(&mut self, now: Instant) -> Sleep {
        self.poller.borrow_mut().prepare_sleep(now)
    }

    fn finished(&self) -> bool {
        self.poller.borrow().finished()
    }
}

impl<P: Poller> Drop for Watched<P> {
    fn drop(&mut self) {
        if !self.finished() {
            // Nobody listens when the daemon is ending anyway, and the first core that is lost is enough.
            let _ = self.lost.try_send(self.core);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use aio::reactor::{EngineChoice, Reactor, ReactorConfig};
    use tokio::sync::mpsc::channel;

    struct Probe {
        panics: bool,
        finished: bool,
    }

    impl Poller for Probe {
        fn poll(&mut self, _now: Instant) -> usize {
            assert!(!self.panics, "as asked");
            0
        }

        fn kick(&mut self) {}

        fn prepare_sleep(&mut self, _now: Instant) -> Sleep {
            Sleep::Armed
        }

        fn finished(&self) -> bool {
            self.finished
        }
    }

    /// A panic in the target's share of a core left its connections open and unserved.
    #[test]
    fn a_core_that_stops_serving_is_told_and_one_that_is_done_is_not() {
        let config =
            ReactorConfig { engine: EngineChoice::None, pin: false, ..ReactorConfig::new(CoreId(0)) };
        let mut reactor = Reactor::new(config).unwrap();
        let (lost, mut told) = channel(1);
        let poller = Rc::new(RefCell::new(Probe { panics: false, finished: false }));
        let watch = |poller: &Rc<RefCell<Probe>>| Watched {
            poller: poller.clone(),
            core: CoreId(7),
            lost: lost.clone(),
        };
        reactor.core().add_poller(Rc::new(RefCell::new(watch(&poller))));
        reactor.turn();
        poller.borrow_mut().finished = true;
        reactor.turn();
        reactor.turn();
        assert_eq!(Rc::strong_count(&poller), 1);
        assert!(told.try_recv().is_err());

        *poller.borrow_mut() = Probe { panics: true, finished: false };
        reactor.core().add_poller(Rc::new(RefCell::new(watch(&poller))));
        reactor.turn();
        reactor.turn();
        assert_eq!(told.try_recv(), Ok(CoreId(7)));
    }
}
