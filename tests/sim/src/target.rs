//! The real target in a simulated world: its pollers on simulated cores, its namespaces on any devices.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use aio::BlockDevice;
use aio::reactor::Core;
use nvmf::target::core::{CoreConfig, TargetCore};
use nvmf::target::{ListenerId, NamespaceSpec, SubsystemSpec, Target, TargetConfig};

use crate::seeds::Violation;
use crate::world::World;

/// A target with one subsystem.
pub struct SimTarget {
    /// The control handle.
    pub target: Target,
    cores: Vec<Rc<RefCell<TargetCore>>>,
}

/// The outcome of a future that has nothing to wait for: before a target has cores, nobody has to be asked.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

impl SimTarget {
    /// Serves `device` as namespace 1 of subsystem `nqn` at `addr`, on these cores of the world.
    pub fn start(
        world: &World,
        cores: &[Core],
        addr: SocketAddr,
        nqn: &str,
        device: Arc<dyn BlockDevice>,
        config: TargetConfig,
        limits: &CoreConfig,
    ) -> Result<Self, Violation> {
        Self::start_as(world, cores, addr, SubsystemSpec::new(nqn), device, config, limits)
    }

    /// The same for a subsystem of one's own choice.
    pub fn start_as(
        world: &World,
        cores: &[Core],
        addr: SocketAddr,
        spec: SubsystemSpec,
        device: Arc<dyn BlockDevice>,
        config: TargetConfig,
        limits: &CoreConfig,
    ) -> Result<Self, Violation> {
        let nqn = spec.nqn.clone();
        let fail = |what: &str| Violation::new(format!("the target cannot be set up: {what}"));
        let target = Target::new(config);
        now(target.create_subsystem(spec))
            .ok_or_else(|| fail("it waits"))?
            .map_err(|e| fail(&e.to_string()))?;
        now(target.add_namespace(&nqn, NamespaceSpec::new(device)))
            .ok_or_else(|| fail("it waits"))?
            .map_err(|e| fail(&e.to_string()))?;
        let listener = target.add_listener(addr);
        let mut pollers = Vec::new();
        for (i, core) in cores.iter().enumerate() {
            let handle = core.handle();
            let inbox = target.attach_core(move || handle.wake());
            let pools = core.pools().map_err(|e| fail(&e.to_string()))?;
            let poller = world.enter(core, || {
                TargetCore::new(target.clone(), inbox, core.network(), pools, core.memory(), *limits)
            });
            let mut poller = poller.map_err(|e| fail(&e.to_string()))?;
            // One listening socket per address: the first core takes the connections, as one core of a daemon does
            // where the system offers no sharing.
            if i == 0 {
                poller.listen(listener, addr).map_err(|e| fail(&e.to_string()))?;
            }
            let poller = Rc::new(RefCell::new(poller));
            core.add_poller(poller.clone());
            pollers.push(poller);
        }
        Ok(Self { target, cores: pollers })
    }

    /// Listens on another address, with core number `at`.
    pub fn listen(&self, at: usize, addr: SocketAddr) -> Result<ListenerId, Violation> {
        let id = self.target.add_listener(addr);
        let listening = self.cores[at].borrow_mut().listen(id, addr);
        listening.map(|_| id).map_err(|e| Violation::new(format!("the target does not listen: {e}")))
    }

    /// Connections that it has.
    pub fn connections(&self) -> usize {
        self.cores.iter().map(|c| c.borrow().connections()).sum()
    }

    /// Closes everything.
    pub fn stop(&self) {
        self.cores.iter().for_each(|c| c.borrow_mut().stop());
    }
}
