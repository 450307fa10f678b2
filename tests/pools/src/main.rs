//! `cargo run -p pools -- [SCENARIO...] [--seeds A..B]`: attacks on the volume store by seeds, for soaking and for replays.
//! What attacks it is that of the store's own tests, and of the daemon's.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../../../lvs/tests/harness/mod.rs"]
mod harness;
#[path = "../../../daemon/tests/killing/mod.rs"]
mod killing;
#[allow(dead_code, reason = "another test's, too")]
#[path = "../../../lvs/tests/rig/mod.rs"]
mod rig;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use harness::crash::Budget;
use harness::faults::{fail_once, rot};
use harness::scenes::{SCENES, cut};
use harness::walk::{Walk, walk};
use killing::{Story, tell};

const USAGE: &str = "usage: pools [SCENARIO...] [--seeds A..B]\n\
    Runs the scenarios (default: all) over the seeds (default: 0..100) and stops at the first failure.\n\
    `kill` starts the `keelson` beside this program: `cargo build -p keelson` makes it.\n\
    KEELSON_LVS_TRACE=1 prints what is done to the pool.";

/// Something that is run by seeds. Returns how much was checked.
struct Scenario {
    name: &'static str,
    about: &'static str,
    run: fn(u64) -> u64,
}

const ALL: [Scenario; 4] = [
    Scenario {
        name: "model",
        about: "generated operations, crashes, exports and imports beside a model of the pool",
        run: |seed| {
            walk(seed, Walk { rounds: 6, steps: 90 });
            1
        },
    },
    Scenario {
        name: "crash",
        about: "power cuts at moments of a recorded scenario, with subsets of what was not durable",
        run: |seed| {
            let scene = SCENES[seed as usize % SCENES.len()];
            let budget =
                Budget { all_subsets_of: 4, per_cut: 12, moments: 60, deep: 12, nested: 40, check: 3 };
            cut(scene, seed / SCENES.len() as u64, budget).unwrap().imports
        },
    },
    Scenario {
        name: "faults",
        about: "writes, flushes and reads that fail, are lost or go elsewhere; blocks that go bad",
        run: |seed| {
            let struck = (0..8).filter(|i| fail_once(seed * 8 + i).unwrap()).count() as u64;
            struck + rot(seed, 24).unwrap()
        },
    },
    Scenario {
        name: "kill",
        about: "a daemon that is killed, again and again, under verified load over NVMe/TCP",
        run: |seed| kill(seed).unwrap(),
    },
];

/// How often a daemon is killed under load with one seed.
const KILLS: u64 = 5;

/// Beside this program: there is direct I/O, and the daemon. A failure leaves the disks there.
fn kill(seed: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let beside = program.parent().ok_or("this program is in no folder")?;
    let folder = beside.join(format!("keelson-kill-{}-{seed}", std::process::id()));
    std::fs::create_dir(&folder).map_err(|e| format!("creating {}: {e}", folder.display()))?;
    let story = Story { keelson: beside.join("keelson"), folder: folder.clone(), seed, rounds: KILLS };
    let told = tell(&story)
        .map_err(|e| format!("{e}\nits disks, and what it logged, are in {}", folder.display()))?;
    std::fs::remove_dir_all(&folder).map_err(|e| format!("removing {}: {e}", folder.display()))?;
    Ok(told.kills)
}

fn main() -> ExitCode {
    let mut names = Vec::new();
    let mut range = 0..100;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seeds" => match args.next().as_deref().and_then(parse) {
                Some(seeds) => range = seeds,
                None => return usage("--seeds takes A..B or one number"),
            },
            "-h" | "--help" => return usage(""),
            name if ALL.iter().any(|s| s.name == name) => names.push(arg),
            other => return usage(&format!("no scenario or option is called {other}")),
        }
    }
    for scenario in ALL.iter().filter(|s| names.is_empty() || names.iter().any(|n| n == s.name)) {
        let mut checked = 0;
        for seed in range.clone() {
            // The panic itself has printed what is wrong.
            let Ok(done) = catch_unwind(AssertUnwindSafe(|| (scenario.run)(seed))) else {
                let name = scenario.name;
                eprintln!("scenario `{name}` failed with seed {seed}");
                eprintln!("replay: cargo run -p pools -- {name} --seeds {seed}");
                return ExitCode::FAILURE;
            };
            checked += done;
        }
        println!("{}: {} seeds, {checked} checks", scenario.name, range.end.saturating_sub(range.start));
    }
    ExitCode::SUCCESS
}

/// `A..B`, or one seed.
fn parse(text: &str) -> Option<Range<u64>> {
    match text.split_once("..") {
        Some((from, to)) => Some(from.parse().ok()?..to.parse().ok()?),
        None => text.parse().ok().map(|seed: u64| seed..seed + 1),
    }
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("{problem}\n{USAGE}\nscenarios:");
    for scenario in &ALL {
        eprintln!("  {:<12} {}", scenario.name, scenario.about);
    }
    if problem.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) }
}
