//! What the process has used, from the kernel.

use std::fs;

use rpc::mayastor::v1::ResourceUsage;

/// Figures that `getrusage(RUSAGE_SELF)` would give, read from `/proc/self`: the same counters of the kernel
/// without a call that needs `unsafe`.
///
/// Fields that Linux never fills (swaps, messages, signals) are 0, as in `getrusage`.
pub fn resource_usage() -> ResourceUsage {
    let (soft_faults, hard_faults) = faults(&read("/proc/self/stat"));
    let (vol_csw, invol_csw) = all_threads_switches();
    let io = read("/proc/self/io");
    // getrusage counts blocks of 512 bytes.
    let blocks = |key| (field(&io, key) / 512) as i64;
    ResourceUsage {
        soft_faults,
        hard_faults,
        in_block_ops: blocks("read_bytes:"),
        out_block_ops: blocks("write_bytes:"),
        vol_csw,
        invol_csw,
        ..ResourceUsage::default()
    }
}

/// Resident memory of the process in bytes.
pub fn resident_bytes() -> u64 {
    field(&read("/proc/self/status"), "VmRSS:") * 1024
}

/// Context switches are counted per thread.
fn all_threads_switches() -> (i64, i64) {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.fold((0, 0), |(voluntary, involuntary), task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        (
            voluntary + field(&status, "voluntary_ctxt_switches:") as i64,
            involuntary + field(&status, "nonvoluntary_ctxt_switches:") as i64,
        )
    })
}

/// Minor and major faults: fields 10 and 12 of proc(5) `stat`. The name in parentheses may hold blanks.
fn faults(stat: &str) -> (i64, i64) {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = after_name.split_whitespace().skip(7);
    let mut number = |skip| fields.nth(skip).and_then(|f| f.parse().ok()).unwrap_or(0);
    (number(0), number(1))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number on the line that starts with `key`.
fn field(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_odd_names() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 123 5 7 9 0 0 0";
        assert_eq!(faults(stat), (123, 7));
        assert_eq!(faults(""), (0, 0));
        assert_eq!(field("x\nVmRSS:\t  88 kB\n", "VmRSS:"), 88);
    }

    #[test]
    fn this_process_has_used_something() {
        let usage = resource_usage();
        assert!(usage.soft_faults > 0);
        assert!(resident_bytes() > 1 << 20);
    }
}
