//! `cargo run -p sim -- [SCENARIO...] [--seeds A..B]`: sweeps seeds, for soaking and for replays.

use std::process::ExitCode;

use sim::{scenarios, seeds};

const USAGE: &str = "usage: sim [SCENARIO...] [--seeds A..B]\n\
    Runs the scenarios (default: all) over the seeds (default: 0..1000) and stops at the first failure.\n\
    A range of one seed prints the last events before a failure.";

fn main() -> ExitCode {
    let mut names = Vec::new();
    let mut range = 0..1000;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seeds" => match args.next().as_deref().and_then(seeds::parse_range) {
                Some(r) => range = r,
                None => return usage("--seeds takes A..B or one number"),
            },
            "-h" | "--help" => return usage(""),
            name if scenarios::ALL.iter().any(|s| s.name == name) => names.push(arg),
            other => return usage(&format!("no scenario or option is called {other}")),
        }
    }
    for scenario in scenarios::ALL.iter().filter(|s| names.is_empty() || names.iter().any(|n| n == s.name)) {
        match seeds::sweep(scenario, range.clone()) {
            Ok(sums) => println!(
                "{}: {} seeds, {} replayed with equal traces, {} checks",
                scenario.name, sums.seeds, sums.replayed, sums.checked
            ),
            Err(failure) => {
                eprintln!("{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("{problem}\n{USAGE}\nscenarios:");
    for s in scenarios::ALL {
        eprintln!("  {:<12} {}", s.name, s.about);
    }
    if problem.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) }
}
