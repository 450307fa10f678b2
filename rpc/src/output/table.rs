//! Plain text tables.

use std::io::{self, Write};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Align {
    Left,
    Right,
}

/// Rows under headers.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A header that starts with `>` makes a right aligned column.
    pub fn new(headers: &[&'static str]) -> Self {
        let columns = headers
            .iter()
            .map(|h| h.strip_prefix('>').map_or((*h, Align::Left), |name| (name, Align::Right)))
            .collect();
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row; it has a cell for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "invariant: one cell per column");
        self.rows.push(cells);
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes headers and padded rows, or when `quiet` the bare cells.
    pub fn write(&self, out: &mut dyn Write, quiet: bool) -> io::Result<()> {
        if quiet {
            for row in &self.rows {
                writeln!(out, "{}", row.join(" "))?;
            }
            return Ok(());
        }
        let widths: Vec<usize> = (0..self.columns.len()).map(|i| self.width(i)).collect();
        self.write_line(out, &widths, self.columns.iter().map(|c| c.0))?;
        for row in &self.rows {
            self.write_line(out, &widths, row.iter().map(String::as_str))?;
        }
        Ok(())
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|r| r[column].chars().count());
        cells.chain([self.columns[column].0.chars().count()]).max().unwrap_or(0)
    }

    fn write_line<'a>(
        &self,
        out: &mut dyn Write,
        widths: &[usize],
        cells: impl Iterator<Item = &'a str>,
    ) -> io::Result<()> {
        for (i, cell) in cells.enumerate() {
            let (space, width) = (if i == 0 { "" } else { " " }, widths[i]);
            match self.columns[i].1 {
                Align::Left => write!(out, "{space}{cell:<width$}")?,
                Align::Right => write!(out, "{space}{cell:>width$}")?,
            }
        }
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(quiet: bool) -> String {
        let mut table = Table::new(&["NAME", ">SIZE", "STATE"]);
        table.row(vec!["a".into(), "10".into(), "online".into()]);
        table.row(vec!["longer".into(), "123456".into(), "é".into()]);
        let mut out = Vec::new();
        table.write(&mut out, quiet).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn padded_and_aligned() {
        assert_eq!(shown(false), "NAME     SIZE STATE \na          10 online\nlonger 123456 é     \n");
    }

    #[test]
    fn quiet_is_bare() {
        assert_eq!(shown(true), "a 10 online\nlonger 123456 é\n");
    }
}
