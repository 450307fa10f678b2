//! A driver that turns a reactor of its own, for devices that need the core's ring, sockets or timers.

use std::cell::RefCell;
use std::rc::Rc;

use aio::reactor::{EngineChoice, Turn};
use aio::{CoreId, Reactor, ReactorConfig};

use crate::{Driver, DriverRef};

/// One thread's reactor.
pub struct ReactorDriver(Reactor);

impl ReactorDriver {
    /// A reactor on this engine, not pinned.
    pub fn new(engine: EngineChoice) -> std::io::Result<Self> {
        let config = ReactorConfig { pin: false, engine, ..ReactorConfig::new(CoreId(0)) };
        Reactor::new(config).map(Self)
    }

    /// The same, as fixtures need it.
    pub fn shared(engine: EngineChoice) -> std::io::Result<DriverRef> {
        Ok(Rc::new(RefCell::new(Self::new(engine)?)))
    }

    /// The reactor.
    pub fn reactor(&mut self) -> &mut Reactor {
        &mut self.0
    }
}

impl Driver for ReactorDriver {
    fn turn(&mut self) {
        if self.0.turn() == Turn::Idle {
            // Test machines have few cores, and others may have what we wait for.
            std::thread::yield_now();
        }
    }

    fn enter(&mut self, work: &mut dyn FnMut()) {
        self.0.enter(work);
    }
}
