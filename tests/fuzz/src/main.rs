//! `cargo run -p fuzz -- TARGET [FILE...]`: repeats finds. Without files: the corpus and a minute of mutations.

use fuzz::driver::{Bound, corpus, run};
use fuzz::targets::{ALL, list};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let Some(target) = ALL.iter().find(|target| target.name == name) else {
        eprintln!("usage: fuzz TARGET [FILE...]\n{}", list());
        return ExitCode::from(2);
    };
    let files: Vec<String> = arguments.collect();
    let given = if files.is_empty() { corpus(target) } else { files.iter().map(std::fs::read).collect() };
    let mut given = match given {
        Ok(given) => given,
        Err(error) => {
            eprintln!("fuzz: cannot read the inputs of {name}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let bound = if files.is_empty() {
        given.extend((target.seeds)());
        Bound::Time(Duration::from_secs(60))
    } else {
        Bound::Inputs(0)
    };
    let seed = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    match run(target, &given, seed, bound) {
        Ok(summary) => {
            println!("{name}: {summary:?}");
            ExitCode::SUCCESS
        }
        Err(find) => {
            eprintln!("{name}: {} on {:02x?}", find.message, find.input);
            ExitCode::FAILURE
        }
    }
}
