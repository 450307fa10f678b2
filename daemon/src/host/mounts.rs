//! The mount table, `/proc/self/mountinfo` (proc(5)).

use std::fs;
use std::path::Path;

/// One mount of a block device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// `major:minor`; of the file system, which for btrfs is not that of the disk.
    pub device: String,
    /// `/dev/...`.
    pub source: String,
    /// Where.
    pub point: String,
    /// Type of the file system.
    pub fstype: String,
}

/// All mounts; none when the table cannot be read.
pub(super) fn read(table: &Path) -> Vec<Mount> {
    fs::read(table).map(|bytes| parse(&String::from_utf8_lossy(&bytes))).unwrap_or_default()
}

/// The mounts of a table's text. Lines of another shape are passed over.
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /point options optional... - type source super-options`.
fn parse_line(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let device = front.next()?.to_owned();
    let point = unescape(front.nth(1)?);
    let mut back = back.split(' ');
    let fstype = back.next()?.to_owned();
    Some(Mount { device, point, fstype, source: unescape(back.next()?) })
}

/// The kernel writes blanks, line ends and backslashes as `\ooo`.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).filter(|d| d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match (bytes[i], octal) {
            (b'\\', Some(d)) => {
                let value = d.iter().fold(0_u32, |n, b| n * 8 + u32::from(b - b'0'));
                out.push(u8::try_from(value).unwrap_or(b'?'));
                i += 4;
            }
            (b, _) => {
                out.push(b);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_and_without_optional_fields() {
        let table = "36 35 8:1 / /mnt/a\\040b rw,noatime master:1 - ext3 /dev/sda1 rw\n\
                     37 35 0:20 / /proc rw - proc proc rw\n\
                     nonsense\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            mounts[0],
            Mount {
                device: "8:1".into(),
                source: "/dev/sda1".into(),
                point: "/mnt/a b".into(),
                fstype: "ext3".into(),
            }
        );
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape("a\\9b\\"), "a\\9b\\");
        assert_eq!(unescape("\\134"), "\\");
        assert_eq!(unescape("\\777"), "?");
    }
}
