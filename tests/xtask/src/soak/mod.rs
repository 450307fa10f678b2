//! `cargo xtask soak`: many seeds of simulations and of attacks on pools, and long fuzzing, recorded in docs/soak.md and
//! resumed from it.
//!
//! - [`scope`]: what a scenario or target covers, and the tree that this is. - [`record`]: docs/soak.md.
//! - [`mod@work`]: the programs, and running a piece.
//!
//! The work is done in pieces of about two minutes, each recorded when it is done: a kill at any moment loses
//! no more than those that are running. Goals are totals for the tree at hand, however many runs they take.

mod record;
mod scope;
mod work;

use crate::process::exists;
use crate::report::{Report, Tally};
use anyhow::{Context, Result, ensure};
use record::{GOOD, Record, Row};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use work::{Piece, Program};

/// How long a piece should take.
const PIECE: Duration = Duration::from_secs(120);
/// Seeds of a scenario's first piece, before it is known how long they take.
const FIRST_SEEDS: u64 = 200;
/// The same of attacks on pools.
const FIRST_POOL_SEEDS: u64 = 50;

/// The one of them that kills daemons, which takes seconds for each, and its first piece.
const KILL: &str = "kill";
const FIRST_KILL_SEEDS: u64 = 5;

/// How long to soak, and what.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many seeds of each simulation scenario there should be.
    #[arg(long, default_value_t = 100_000)]
    seeds: u64,
    /// How many seeds of each attack on pools there should be (each is hundreds of crashes or operations).
    #[arg(long, default_value_t = 1_000)]
    pool_seeds: u64,
    /// How many seeds of killed daemons there should be (each is five kills under load, or more).
    #[arg(long, default_value_t = 100)]
    kill_seeds: u64,
    /// How many minutes of each fuzz target there should be.
    #[arg(long, default_value_t = 10)]
    fuzz_minutes: u64,
    /// Only this scenario or fuzz target (`nvmf`, or as recorded: `sim nvmf`); repeat for more.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How many pieces run at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    cores: u16,
    /// Begin nothing more after so many minutes.
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Only say what is missing.
    #[arg(long)]
    status: bool,
}

impl Args {
    /// Seeds, or seconds.
    fn goal(&self, kind: Kind, name: &str) -> u64 {
        match (kind, name) {
            (Kind::Sim, _) => self.seeds,
            (Kind::Pools, KILL) => self.kill_seeds,
            (Kind::Pools, _) => self.pool_seeds,
            (Kind::Fuzz, _) => self.fuzz_minutes * 60,
        }
    }
}

/// Kinds of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Sim,
    Pools,
    Fuzz,
}

impl Kind {
    /// Everything, in the order in which its programs are kept.
    const ALL: [Self; 3] = [Self::Sim, Self::Pools, Self::Fuzz];

    /// Before its name in the record.
    const fn word(self) -> &'static str {
        match self {
            Self::Sim => "sim",
            Self::Pools => "lvs",
            Self::Fuzz => "fuzz",
        }
    }

    /// Is it counted in seeds, and not in seconds?
    fn has_seeds(self) -> bool {
        self != Self::Fuzz
    }
}

/// What was built, by kind.
type Programs = [Option<Program>; 3];

/// One scenario or target.
struct Item {
    kind: Kind,
    /// As it is called in its program.
    name: String,
    /// As it is recorded.
    what: String,
    tree: String,
    /// Seeds, or seconds.
    goal: u64,
    done: u64,
    running: u64,
    /// Where the next piece begins.
    next: u64,
    /// Seeds of the next piece.
    pace: u64,
    failed: bool,
}

/// What the threads share.
struct Soak {
    record: Record,
    items: Vec<Item>,
    commit: String,
}

/// Soaks, and records each piece as it is done.
pub(crate) fn run(report: &mut Report, args: &Args) -> Result<()> {
    let wanted = |kind: Kind, name: &str| {
        let of_kind = args.goal(kind, name) > 0;
        let full = what(kind, name);
        of_kind && (args.only.is_empty() || args.only.iter().any(|only| only == name || *only == full))
    };
    let mut names: Vec<(Kind, String)> = scope::names();
    let programs = if args.status { Programs::default() } else { programs(report, &names, &wanted)? };
    for (kind, program) in Kind::ALL.into_iter().zip(&programs) {
        if let Some(program) = program {
            let heading = if kind.has_seeds() { "scenarios:" } else { "targets:" };
            names.retain(|(of, _)| *of != kind);
            names.extend(program.names(heading)?.into_iter().map(|name| (kind, name)));
        } else if !args.status {
            names.retain(|(of, _)| *of != kind);
        }
    }
    names.retain(|(kind, name)| wanted(*kind, name));
    let record = Record::read()?;
    let items = names.into_iter().map(|(kind, name)| Item::new(&record, args, kind, name));
    let items = items.collect::<Result<Vec<_>>>()?;
    ensure!(!items.is_empty() || report.total().skipped > 0, "nothing is called {:?}", args.only);
    let soak = Mutex::new(Soak { record, items, commit: scope::commit()? });
    let start = Instant::now();
    if !args.status {
        let end = args.minutes.map(|minutes| start + Duration::from_secs(minutes * 60));
        let worker = || work(&soak, &programs, end);
        std::thread::scope(|threads| {
            let workers: Vec<_> = (0..args.cores).map(|_| threads.spawn(worker)).collect();
            workers.into_iter().try_for_each(|thread| thread.join().expect("invariant: workers do not panic"))
        })?;
    }
    let soak = soak.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary(report, &soak.items, start.elapsed(), args.status);
    Ok(())
}

/// Builds what is wanted.
fn programs(
    report: &mut Report,
    names: &[(Kind, String)],
    wanted: &dyn Fn(Kind, &str) -> bool,
) -> Result<Programs> {
    let any = |kind| names.iter().any(|(of, name)| *of == kind && wanted(kind, name));
    let seeds = |kind, package, beside: &[&str]| match any(kind) {
        true => work::seeds(package, beside).map(Some),
        false => Ok(None),
    };
    let (sim, pools) = (seeds(Kind::Sim, "sim", &[])?, seeds(Kind::Pools, "pools", &["keelson"])?);
    let mut fuzz = None;
    if any(Kind::Fuzz) {
        if exists("c++") || exists("g++") {
            fuzz = Some(work::fuzzer()?);
        } else {
            report.skip("fuzz", "c++", "libFuzzer is C++ and there is no compiler for it (Debian: g++)");
        }
    }
    Ok([sim, pools, fuzz])
}

fn what(kind: Kind, name: &str) -> String {
    format!("{} {name}", kind.word())
}

/// Takes pieces until none is left. An error ends this thread; the others go on.
fn work(soak: &Mutex<Soak>, programs: &Programs, end: Option<Instant>) -> Result<()> {
    while end.is_none_or(|end| Instant::now() < end) {
        let mut shared = lock(soak);
        let Some((at, from, to)) = shared.claim() else { return Ok(()) };
        let (kind, name) = (shared.items[at].kind, shared.items[at].name.clone());
        // The others claim while this one works.
        drop(shared);
        let program =
            Kind::ALL.iter().zip(programs).find(|(of, _)| **of == kind).and_then(|(_, p)| p.as_ref());
        let program = program.expect("invariant: only what was built is an item");
        let piece = match kind {
            Kind::Sim | Kind::Pools => program.seeds(&what(kind, &name), &name, from, to),
            Kind::Fuzz => program.inputs(&name, to - from),
        };
        lock(soak).finish(at, from, to, piece)?;
    }
    Ok(())
}

fn lock(soak: &Mutex<Soak>) -> MutexGuard<'_, Soak> {
    soak.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Soak {
    /// The next piece of what is furthest from its goal: its place, and its range.
    fn claim(&mut self) -> Option<(usize, u64, u64)> {
        let open = self.items.iter().enumerate().filter(|(_, item)| item.missing() > 0);
        // One fuzzer a target: two would not share what they find.
        let free = open.filter(|(_, item)| item.kind.has_seeds() || item.running == 0);
        let at = free.min_by_key(|(_, item)| (item.done + item.running) * 1_000_000 / item.goal)?.0;
        let item = &mut self.items[at];
        let most = if item.kind.has_seeds() { item.pace } else { PIECE.as_secs() };
        let from = item.next;
        item.next += most.min(item.missing());
        item.running += item.next - from;
        Some((at, from, item.next))
    }

    fn finish(&mut self, at: usize, from: u64, to: u64, piece: Result<Piece>) -> Result<()> {
        let item = &mut self.items[at];
        item.running -= to - from;
        let piece = piece?;
        let to = match item.kind {
            Kind::Sim | Kind::Pools => to,
            // What was not run because of a pause is not recorded, and stays missing.
            Kind::Fuzz => from + piece.took.as_secs().min(to - from),
        };
        let seconds = piece.took.as_secs_f64().max(0.1);
        if piece.good {
            item.done += to - from;
            let pace = (to - from) as f64 * PIECE.as_secs_f64() / seconds;
            item.pace = (pace as u64).clamp(1, item.pace * 8);
        }
        item.failed |= !piece.good;
        let result = if piece.good { GOOD } else { "FAILED" };
        println!(
            "soak: {} {from}..{to}: {result}, {seconds:.0} s; {} of {}",
            item.what, item.done, item.goal
        );
        if !piece.good {
            let text = std::fs::read_to_string(&piece.log).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(40).collect();
            tail.iter().rev().for_each(|line| println!("    {line}"));
            println!("soak: all of it is in {}", piece.log.display());
        }
        let row = Row {
            what: item.what.clone(),
            tree: item.tree.clone(),
            commit: self.commit.clone(),
            from,
            to,
            result: result.into(),
        };
        self.record.add(row)
    }
}

impl Item {
    fn new(record: &Record, args: &Args, kind: Kind, name: String) -> Result<Self> {
        let what = what(kind, &name);
        let tree = scope::tree(&what).with_context(|| format!("what `{what}` covers"))?;
        let goal = args.goal(kind, &name);
        Ok(Self {
            done: record.done(&what, &tree),
            next: record.reached(&what),
            running: 0,
            pace: match (kind, &*name) {
                (Kind::Pools, KILL) => FIRST_KILL_SEEDS,
                (Kind::Pools, _) => FIRST_POOL_SEEDS,
                _ => FIRST_SEEDS,
            },
            failed: false,
            kind,
            name,
            what,
            tree,
            goal,
        })
    }

    /// What nobody does yet.
    fn missing(&self) -> u64 {
        if self.failed { 0 } else { self.goal.saturating_sub(self.done + self.running) }
    }
}

/// What there is, and what is missing for the goals.
fn summary(report: &mut Report, items: &[Item], took: Duration, status: bool) {
    println!("what                 tree        done of goal");
    for item in items {
        let unit = if item.kind.has_seeds() { "seeds" } else { "seconds" };
        let rest = match (item.failed, item.missing()) {
            (true, _) => "FAILED".to_owned(),
            (false, 0) => "reached".to_owned(),
            (false, missing) => format!("{missing} {unit} are missing"),
        };
        println!("{:<20} {} {} of {} {unit}: {rest}", item.what, item.tree, item.done, item.goal);
        let failed = u64::from(item.failed);
        let reached = u64::from(!item.failed && item.missing() == 0);
        if failed + reached > 0 {
            report.add(&item.what, Tally { passed: reached, failed, skipped: 0 }, took);
        } else if !status {
            report.skip(&item.what, "soak-time", &rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: Kind, name: &str, goal: u64) -> Item {
        Item {
            kind,
            name: name.into(),
            what: what(kind, name),
            tree: "t".into(),
            goal,
            done: 0,
            running: 0,
            next: 0,
            pace: FIRST_SEEDS,
            failed: false,
        }
    }

    #[test]
    fn pieces_are_disjoint_and_end_at_the_goal() {
        let items = vec![item(Kind::Sim, "a", 500), item(Kind::Fuzz, "b", 200)];
        let mut soak = Soak { record: Record::read().unwrap(), items, commit: "c".into() };
        assert_eq!(soak.claim(), Some((0, 0, 200)));
        assert_eq!(soak.claim(), Some((1, 0, 120)), "what is furthest from its goal");
        assert_eq!(soak.claim(), Some((0, 200, 400)), "one fuzzer a target");
        soak.items[1].running = 0;
        soak.items[1].done = 120;
        assert_eq!(soak.claim(), Some((1, 120, 200)));
        assert_eq!(soak.claim(), Some((0, 400, 500)));
        assert_eq!(soak.claim(), None);
        soak.items[0].failed = true;
        soak.items[0].running = 0;
        assert_eq!(soak.claim(), None, "what failed is not gone on with");
    }
}
