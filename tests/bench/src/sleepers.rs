//! Bare sleepers on the target's core: what a wake-up, and an exchange over TCP, cost without Keelson.
//!
//! They are a process of their own, as the daemon is: its memory and its address space go cold while it sleeps, and the
//! host keeps none of it warm.

use crate::bare::{COMMAND, RESPONSE};
use crate::pin::pin;
use anyhow::{Context, Result, ensure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// How whoever waits for an answer does that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// It looks all the time.
    Polling,
    /// It sleeps, and has to be woken as well.
    Asleep,
}

/// The argument that makes this program the sleeping process.
pub(crate) const ARGUMENT: &str = "--sleeper";

/// The sleeping process, from the host's side.
pub(crate) struct Sleepers {
    process: Child,
    wake: OwnedFd,
    back: OwnedFd,
    /// `None` once the process was told to end.
    stream: Option<TcpStream>,
    answer: Vec<u8>,
    wait: Wait,
}

impl Sleepers {
    /// Starts one on `core` that answers reads of `io_bytes`; `wait` is how its answers are waited for.
    pub(crate) fn start(core: usize, io_bytes: usize, wait: Wait) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
        let address = listener.local_addr().context("asking for our own address")?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC).context("making an eventfd")?;
        let back = eventfd(0, EventfdFlags::CLOEXEC).context("making an eventfd")?;
        let shared = |fd: &OwnedFd| fd.try_clone().context("sharing an eventfd");
        let program = std::env::current_exe().context("looking for this program")?;
        let process = Command::new(&program)
            .args([ARGUMENT, &core.to_string(), &io_bytes.to_string(), &address.to_string()])
            .stdin(Stdio::from(shared(&wake)?))
            .stdout(Stdio::from(shared(&back)?))
            .spawn()
            .with_context(|| format!("starting {} again", program.display()))?;
        // Ended by the drop of this when nobody comes.
        let mut sleepers = Self { process, wake, back, stream: None, answer: answer(io_bytes), wait };
        let (stream, _) = listener.accept().context("accepting on loopback")?;
        stream.set_nodelay(true).context("setting TCP_NODELAY")?;
        sleepers.stream = Some(stream);
        Ok(sleepers)
    }

    /// Microseconds from the write to an eventfd, on which a thread sleeps, until its own write to another was seen.
    pub(crate) fn wake_us(&mut self) -> Result<f64> {
        let start = Instant::now();
        signal(&self.wake)?;
        let mut polled = [PollFd::new(&self.back, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        while self.wait == Wait::Polling
            && poll(&mut polled, Some(&at_once)).context("polling an eventfd")? == 0
        {}
        rustix::io::read(&self.back, &mut [0; 8]).context("reading an eventfd")?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    }

    /// Microseconds from the send to a thread that sleeps in its receive until its whole answer was received.
    pub(crate) fn exchange_us(&mut self) -> Result<f64> {
        let stream = self.stream.as_mut().context("the sleeping process was told to end")?;
        let flags = match self.wait {
            Wait::Polling => RecvFlags::DONTWAIT,
            Wait::Asleep => RecvFlags::empty(),
        };
        let start = Instant::now();
        stream.write_all(&[0; COMMAND]).context("sending on loopback")?;
        let mut got = 0;
        while got < self.answer.len() {
            match recv(&*stream, &mut self.answer[got..], flags) {
                Ok((_, 0)) => ensure!(false, "the sleeping process hung up"),
                Ok((_, n)) => got += n,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error).context("receiving on loopback"),
            }
        }
        Ok(start.elapsed().as_secs_f64() * 1e6)
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        // The end of its stream ends it; it is killed if it never had one. Nothing is lost with it.
        if self.stream.take().is_none() {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

fn signal(event: impl AsFd) -> Result<()> {
    rustix::io::write(event, &1_u64.to_ne_bytes()).context("writing an eventfd")?;
    Ok(())
}

/// Data behind its header, and the response capsule.
fn answer(io_bytes: usize) -> Vec<u8> {
    vec![0; 2 * RESPONSE + io_bytes]
}

/// The sleeping process: its arguments are those of [`Sleepers::start`], its input is the eventfd on which it sleeps,
/// and its output the one that it writes to then. It ends with its stream.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut next = || arguments.next().context("a sleeper's argument is missing");
    let core = next()?.parse().context("the core of a sleeper")?;
    let answer = answer(next()?.parse().context("the length of a sleeper's answers")?);
    let address: SocketAddr = next()?.parse().context("the address of whom a sleeper answers")?;
    pin(core);
    let mut stream = TcpStream::connect(address).context("connecting on loopback")?;
    stream.set_nodelay(true).context("setting TCP_NODELAY")?;
    // Threads inherit the core. This one ends with the process.
    std::thread::spawn(|| {
        while rustix::io::read(std::io::stdin(), &mut [0; 8]).is_ok() && signal(std::io::stdout()).is_ok() {}
    });
    let mut command = [0; COMMAND];
    while stream.read_exact(&mut command).is_ok() && stream.write_all(&answer).is_ok() {}
    Ok(())
}
