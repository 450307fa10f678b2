//! The life of one path, as decisions: no I/O, no clock of its own.
//!
//! ```text
//!             Up                     Lost, Failed: back-off, then again
//! Connecting ----> Live    Live ----------------> Waiting <------+
//!     ^                                              | Due       | Failed
//!     +----------------------------------------------+-----------+
//!                                                    | tried for ctrl-loss-tmo, or refused for good
//!                                                    v
//!                                                 GivenUp
//! ```

use std::time::Duration;

use aio::Instant;

use super::options::{DEFAULT_RECONNECT_DELAY, FIRST_RECONNECT, Options};

/// How a path fares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// An association is being made.
    Connecting,
    /// There is one.
    Live,
    /// There is none; the next attempt is at this time.
    Waiting(Instant),
    /// There will be none any more.
    GivenUp,
}

/// What happened to a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// An association was made.
    Up,
    /// The association ended.
    Lost,
    /// An attempt failed. `for_good` = the controller asked not to be tried again, or is another one.
    Failed { for_good: bool },
    /// The time of the next attempt has come.
    Due,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Recovery {
    state: State,
    /// Since when there is no association.
    down_since: Instant,
    pause: Duration,
    longest_pause: Duration,
    ctrl_loss: Duration,
    reconnects: u64,
}

impl Recovery {
    /// A path that is being connected for the first time.
    pub(super) fn new(options: &Options, now: Instant) -> Self {
        let longest_pause = options.recovery.reconnect_delay.unwrap_or(DEFAULT_RECONNECT_DELAY);
        Self {
            state: State::Connecting,
            down_since: now,
            pause: FIRST_RECONNECT.min(longest_pause),
            longest_pause,
            ctrl_loss: options.ctrl_loss(),
            reconnects: 0,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Associations after the first.
    pub(super) fn reconnects(&self) -> u64 {
        self.reconnects
    }

    /// Whatever is there is no good.
    pub(super) fn give_up(&mut self) {
        self.state = State::GivenUp;
    }

    /// The one transition function.
    pub(super) fn apply(&mut self, event: Event, now: Instant) -> State {
        self.state = match (self.state, event) {
            (State::GivenUp, _) => State::GivenUp,
            (_, Event::Up) => {
                self.pause = FIRST_RECONNECT.min(self.longest_pause);
                State::Live
            }
            (State::Live, Event::Lost) => {
                self.down_since = now;
                self.reconnects += 1;
                self.wait(now)
            }
            (State::Connecting, Event::Failed { for_good: true }) => State::GivenUp,
            (State::Connecting, Event::Failed { for_good: false } | Event::Lost) => self.wait(now),
            (State::Waiting(at), Event::Due) if now >= at => State::Connecting,
            (state, _) => state,
        };
        self.state
    }

    /// The next attempt, if there is to be one.
    fn wait(&mut self, now: Instant) -> State {
        let left = self.ctrl_loss.saturating_sub(now.since(self.down_since));
        if left.is_zero() {
            return State::GivenUp;
        }
        // The last attempt is at the very end of the time.
        let at = now + self.pause.min(left);
        self.pause = (self.pause * 2).min(self.longest_pause);
        State::Waiting(at)
    }
}

#[cfg(test)]
mod tests {
    use nvme::Nqn;

    use super::super::options;
    use super::*;

    fn recovery(ctrl_loss: Duration) -> Recovery {
        let nqn = Nqn::parse("nqn.2019-05.io.x").unwrap();
        let mut options = Options::new(([10, 0, 0, 1], 8420).into(), nqn);
        options.recovery = options::Recovery {
            ctrl_loss: Some(ctrl_loss),
            reconnect_delay: Some(Duration::from_secs(1)),
            ..options::Recovery::default()
        };
        Recovery::new(&options, at(0))
    }

    fn at(ms: u64) -> Instant {
        Instant::from_ns(1_000_000_000 + ms * 1_000_000)
    }

    const FAILED: Event = Event::Failed { for_good: false };

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let mut r = recovery(Duration::from_secs(3600));
        assert_eq!(r.apply(Event::Up, at(0)), State::Live);
        let mut now = 0;
        let mut lost = Event::Lost;
        for pause in [100, 200, 400, 800, 1000, 1000] {
            assert_eq!(r.apply(lost, at(now)), State::Waiting(at(now + pause)));
            assert_eq!(r.apply(Event::Due, at(now + pause - 1)), State::Waiting(at(now + pause)), "not yet");
            now += pause;
            assert_eq!(r.apply(Event::Due, at(now)), State::Connecting);
            lost = FAILED;
        }
        r.apply(Event::Up, at(now));
        assert_eq!(r.apply(Event::Lost, at(now)), State::Waiting(at(now + 100)));
        assert_eq!(r.reconnects(), 2);
    }

    #[test]
    fn the_time_counts_from_the_loss_and_the_last_attempt_is_at_its_end() {
        let mut r = recovery(Duration::from_millis(250));
        r.apply(Event::Up, at(0));
        assert_eq!(r.apply(Event::Lost, at(1000)), State::Waiting(at(1100)));
        r.apply(Event::Due, at(1100));
        assert_eq!(r.apply(FAILED, at(1101)), State::Waiting(at(1250)));
        assert_eq!(r.apply(Event::Due, at(1250)), State::Connecting);
        assert_eq!(r.apply(FAILED, at(1251)), State::GivenUp);
        assert_eq!(r.apply(Event::Up, at(1252)), State::GivenUp, "for ever");
    }

    #[test]
    fn without_time_or_when_refused_there_is_no_second_attempt() {
        let mut r = recovery(Duration::ZERO);
        r.apply(Event::Up, at(0));
        assert_eq!(r.apply(Event::Lost, at(5)), State::GivenUp);
        let mut r = recovery(Duration::from_secs(5));
        assert_eq!(r.apply(Event::Failed { for_good: true }, at(0)), State::GivenUp);
    }
}
