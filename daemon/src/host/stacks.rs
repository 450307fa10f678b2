//! What the threads of a process are doing, for `serve --diagnose-stack PID`: from `/proc` (proc(5)), and from
//! a debugger where there is one.
//!
//! The kernel tells of each thread its name, whether it runs or waits, in which call, and its processor time. The
//! functions of the program itself are known to debuggers only; `eu-stack` and `gdb` are asked if they are there.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Debuggers, and what makes them print all stacks.
const DEBUGGERS: [(&str, &[&str]); 2] =
    [("eu-stack", &["-p"]), ("gdb", &["-batch", "-nx", "-ex", "thread apply all backtrace", "-p"])];

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum StacksError {
    /// No such process, or none that may be looked at.
    #[error("-d: cannot look at process {pid}: {source}; give the pid of a running process of this user")]
    Process {
        /// Which.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The text could not be written.
    #[error("-d: cannot write: {0}")]
    Write(#[from] io::Error),
}

/// Writes what each thread of the process is doing.
pub fn write(out: &mut dyn Write, pid: u32) -> Result<(), StacksError> {
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let fail = |source| StacksError::Process { pid, source };
    let mut threads: Vec<u32> = fs::read_dir(&tasks)
        .map_err(fail)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    threads.sort_unstable();
    writeln!(out, "Process {pid}, {} threads", threads.len())?;
    for thread in threads {
        // It may end meanwhile: then its files are empty.
        describe(out, thread, &tasks.join(thread.to_string()))?;
    }
    match debugger(pid) {
        Some(text) => writeln!(out, "\n{}", text.trim_end())?,
        None => writeln!(
            out,
            "\nFor the stacks in the program install gdb or elfutils (eu-stack), and repeat this."
        )?,
    }
    Ok(())
}

fn describe(out: &mut dyn Write, thread: u32, dir: &Path) -> io::Result<()> {
    let stat = Stat::parse(&read(&dir.join("stat")));
    writeln!(
        out,
        "\nThread {thread} {:?}: {}, {} ticks of processor time",
        stat.name,
        stat.state(),
        stat.ticks
    )?;
    let place = read(&dir.join("wchan"));
    if !matches!(place.as_str(), "" | "0") {
        writeln!(out, "  waits in {place} of the kernel")?;
    }
    // Number, arguments, stack pointer and program counter of the system call; needs permission to trace.
    let call = read(&dir.join("syscall"));
    if let Some(number) = call.split(' ').next().filter(|number| number.parse::<u32>().is_ok()) {
        writeln!(out, "  in system call {number}")?;
    }
    // Needs CAP_SYS_ADMIN.
    read(&dir.join("stack")).lines().try_for_each(|line| writeln!(out, "  {line}"))
}

/// Of `/proc/PID/task/TID/stat`.
#[derive(PartialEq, Eq, Debug, Default)]
struct Stat {
    name: String,
    state: char,
    /// User and system time.
    ticks: u64,
}

impl Stat {
    /// The name stands in parentheses and may hold anything, parentheses too.
    fn parse(text: &str) -> Self {
        let Some((front, back)) = text.rsplit_once(')') else { return Self::default() };
        let name = front.split_once('(').map_or("", |(_, name)| name);
        let fields: Vec<&str> = back.split_whitespace().collect();
        let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        let state = fields.first().and_then(|f| f.chars().next()).unwrap_or(' ');
        Self { name: name.to_owned(), state, ticks: number(11).saturating_add(number(12)) }
    }

    fn state(&self) -> &'static str {
        match self.state {
            'R' => "running",
            'S' => "sleeping",
            'D' => "waiting for a disk, and cannot be interrupted",
            'T' | 't' => "stopped",
            'Z' | 'X' => "dead",
            'I' => "idle",
            _ => "gone",
        }
    }
}

/// What the first debugger that is there and may attach says.
fn debugger(pid: u32) -> Option<String> {
    DEBUGGERS.iter().find_map(|(program, arguments)| {
        let mut command = Command::new(program);
        command.args(*arguments).arg(pid.to_string()).stdin(Stdio::null()).stderr(Stdio::null());
        let output = command.output().ok().filter(|output| !output.stdout.is_empty())?;
        Some(format!("{program}:\n{}", String::from_utf8_lossy(&output.stdout)))
    })
}

fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A bug: `--diagnose-stack`, which runbooks of Mayastor name, was an unknown flag.
    #[test]
    fn threads_are_told_apart() {
        let (end, ended) = mpsc::sync_channel::<()>(0);
        let thread = std::thread::Builder::new().name("stuck (here".into()).spawn(move || ended.recv());
        let thread = thread.unwrap();
        let told = || {
            let mut out = Vec::new();
            write(&mut out, std::process::id()).unwrap();
            String::from_utf8(out).unwrap()
        };
        while !told().contains("\"stuck (here\": sleeping") {
            std::thread::yield_now();
        }
        drop(end);
        let _ = thread.join().unwrap();
        let text = told();
        assert!(text.starts_with(&format!("Process {}, ", std::process::id())), "{text}");
        assert!(!text.contains("stuck"), "it is gone: {text}");
    }

    #[test]
    fn no_process_is_an_error_that_names_it() {
        let error = write(&mut Vec::new(), u32::MAX).unwrap_err().to_string();
        assert!(error.contains("4294967295"), "{error}");
    }

    #[test]
    fn names_may_hold_anything() {
        let stat = Stat::parse("42 (a ) b) S 1 42 42 0 -1 4194560 123 5 7 9 30 12 0 0");
        assert_eq!(stat, Stat { name: "a ) b".into(), state: 'S', ticks: 42 });
        assert_eq!(Stat::parse("nonsense").state(), "gone");
    }
}
