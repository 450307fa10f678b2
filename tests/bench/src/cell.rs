//! What is measured: one cell of the table.

/// Which way data goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// One cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) device: &'static str,
    pub(crate) direction: Direction,
    pub(crate) io_bytes: usize,
    /// Over all connections.
    pub(crate) depth: usize,
    pub(crate) connections: usize,
    /// The least ratio to the bare loop that is good enough.
    pub(crate) gate: f64,
}

const KIB: usize = 1024;

impl Cell {
    const fn new(
        device: &'static str,
        direction: Direction,
        io_bytes: usize,
        depth: usize,
        connections: usize,
    ) -> Self {
        let gate = if io_bytes > 4 * KIB { 0.9 } else { 0.85 };
        Self { device, direction, io_bytes, depth, connections, gate }
    }

    /// As `keelson perf` calls the pattern.
    pub(crate) fn pattern(&self) -> &'static str {
        match (self.direction, self.io_bytes > 4 * KIB) {
            (Direction::Read, false) => "randread",
            (Direction::Write, false) => "randwrite",
            (Direction::Read, true) => "read",
            (Direction::Write, true) => "write",
        }
    }

    /// As the table calls it.
    pub(crate) fn name(&self) -> String {
        let Self { device, io_bytes, depth, connections, .. } = self;
        let over = if *connections > 1 { format!("/{connections}") } else { String::new() };
        format!("{device:6} {:9} {:3}K QD{depth}{over}", self.pattern(), io_bytes / KIB)
    }
}

/// The table, in the order in which it is printed.
pub(crate) fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for device in ["malloc", "null"] {
        for direction in [Direction::Read, Direction::Write] {
            for (depth, connections) in [(1, 1), (32, 1), (128, 1), (32, 4)] {
                cells.push(Cell::new(device, direction, 4 * KIB, depth, connections));
            }
            cells.push(Cell::new(device, direction, 128 * KIB, 32, 1));
        }
    }
    cells
}
