//! docs/soak.md: prose, then a table of what was soaked.

use crate::process::root;
use anyhow::{Context, Result};
use std::fs::File;
use std::path::PathBuf;

const HEADING: &str = "| what | tree | commit | from | to | result |\n|---|---|---|--:|--:|---|\n";

/// A result that counts.
pub(super) const GOOD: &str = "no failure";

/// The file, read and written as a whole.
pub(super) struct Record {
    path: PathBuf,
    prose: String,
    rows: Vec<Row>,
}

/// One line: seeds `from` to `to` (exclusive), or seconds of fuzzing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) what: String,
    /// Of what it covers.
    pub(super) tree: String,
    /// The last one on which it ran.
    pub(super) commit: String,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) result: String,
}

impl Record {
    pub(super) fn read() -> Result<Self> {
        Self::read_from(root().join("docs/soak.md"))
    }

    fn read_from(path: PathBuf) -> Result<Self> {
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let (prose, table) = text.split_once(HEADING).context("docs/soak.md has lost its table")?;
        Ok(Self { path, prose: prose.into(), rows: rows(table)? })
    }

    /// What stands for this tree: seeds, or seconds.
    pub(super) fn done(&self, what: &str, tree: &str) -> u64 {
        let good = self.rows.iter().filter(|row| row.what == what && row.tree == tree && row.result == GOOD);
        good.map(|row| row.to - row.from).sum()
    }

    /// Where the next piece of `what` begins: behind everything that was recorded, whatever the tree.
    pub(super) fn reached(&self, what: &str) -> u64 {
        self.rows.iter().filter(|row| row.what == what).map(|row| row.to).max().unwrap_or(0)
    }

    /// Adds a piece to what the file says now, for another soak may have added to it, and writes the file: beside it
    /// first, so that a kill at any moment leaves a whole one.
    pub(super) fn add(&mut self, row: Row) -> Result<()> {
        let lock = std::env::temp_dir().join("keelson-soak.lock");
        let lock = File::create(&lock).with_context(|| format!("creating {}", lock.display()))?;
        lock.lock().context("waiting for another soak to write its record")?;
        *self = Self::read_from(self.path.clone())?;
        add(&mut self.rows, row);
        let table: String = self.rows.iter().map(Row::line).collect();
        let beside = self.path.with_extension("md.new");
        std::fs::write(&beside, format!("{}{HEADING}{table}", self.prose))
            .and_then(|()| std::fs::rename(&beside, &self.path))
            .with_context(|| format!("writing {}", self.path.display()))
    }
}

impl Row {
    fn line(&self) -> String {
        let Self { what, tree, commit, from, to, result } = self;
        format!("| {what} | {tree} | {commit} | {from} | {to} | {result} |\n")
    }

    /// The rows may be one, if their ranges meet.
    fn is_like(&self, other: &Self) -> bool {
        self.what == other.what && self.tree == other.tree && self.result == other.result
    }
}

/// Pieces that meet a row of the same tree make that row longer, from either side.
fn add(rows: &mut Vec<Row>, mut row: Row) {
    let mut place = rows.len();
    while let Some(at) =
        rows.iter().position(|old| old.is_like(&row) && (old.to == row.from || old.from == row.to))
    {
        let old = rows.remove(at);
        (row.from, row.to) = (row.from.min(old.from), row.to.max(old.to));
        place = at;
    }
    rows.insert(place.min(rows.len()), row);
}

fn rows(table: &str) -> Result<Vec<Row>> {
    let lines = table.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| row(line).with_context(|| format!("docs/soak.md: not a row of the table: {line}")))
        .collect()
}

fn row(line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
    let [what, tree, commit, from, to, result] = cells.as_slice() else { return None };
    let [what, tree, commit, result] = [what, tree, commit, result].map(|cell| (*cell).to_owned());
    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
    (from <= to).then_some(Row { what, tree, commit, from, to, result })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(tree: &str, from: u64, to: u64) -> Row {
        let [what, tree, commit, result] = ["sim net", tree, "c", GOOD].map(str::to_owned);
        Row { what, tree, commit, from, to, result }
    }

    #[test]
    fn rows_survive_a_round_trip_and_grow() {
        let table = "| sim net | abc | c | 0 | 5000 | no failure |\n";
        let mut read = rows(table).unwrap();
        assert_eq!(read[0].line(), table);
        // Two cores, of which the second is done first.
        add(&mut read, piece("abc", 6000, 9000));
        assert_eq!(read.len(), 2);
        add(&mut read, piece("abc", 5000, 6000));
        assert_eq!((read.len(), read[0].from, read[0].to), (1, 0, 9000));
        add(&mut read, piece("def", 9000, 9500));
        assert_eq!(read.len(), 2);
        assert!(rows("| too | few |\n").is_err());
        assert!(rows("| sim net | abc | c | 9 | 5 | no failure |\n").is_err());
    }

    #[test]
    fn another_tree_and_failures_do_not_count() {
        let mut record = Record { path: PathBuf::new(), prose: String::new(), rows: Vec::new() };
        add(&mut record.rows, piece("old", 0, 70));
        add(&mut record.rows, piece("new", 70, 90));
        add(&mut record.rows, Row { result: "FAILED".into(), ..piece("new", 90, 95) });
        assert_eq!(record.done("sim net", "new"), 20);
        assert_eq!(record.done("sim other", "new"), 0);
        assert_eq!(record.reached("sim net"), 95, "new seeds, not those again");
    }

    /// A bug: the second of two soaks wrote over what the first had added.
    #[test]
    fn two_soaks_add_to_one_file() {
        let path = std::env::temp_dir().join(format!("keelson-soak-test-{}.md", std::process::id()));
        std::fs::write(&path, format!("Prose.\n{HEADING}")).unwrap();
        let [mut first, mut second] = [0, 1].map(|_| Record::read_from(path.clone()).unwrap());
        first.add(piece("t", 0, 10)).unwrap();
        second.add(Row { what: "fuzz a".into(), ..piece("t", 0, 120) }).unwrap();
        first.add(piece("t", 10, 30)).unwrap();
        let read = Record::read_from(path.clone()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((read.done("sim net", "t"), read.done("fuzz a", "t")), (30, 120));
        assert_eq!(read.prose, "Prose.\n");
    }

    #[test]
    fn the_record_of_the_tree_is_readable() {
        Record::read().unwrap();
    }
}
