//! One entry of the udev database, `/run/udev/data/b<major>:<minor>`: what udev's rules found out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// An entry; empty where udev does not run (containers) or knows nothing.
#[derive(Clone, Default, Debug)]
pub struct Entry {
    properties: BTreeMap<String, String>,
    /// Full paths below `/dev`.
    pub links: Vec<String>,
}

impl Entry {
    /// The entry of a block device.
    pub(super) fn read(database: &Path, major: u32, minor: u32) -> Self {
        let path = database.join(format!("b{major}:{minor}"));
        fs::read(path).map(|bytes| Self::parse(&String::from_utf8_lossy(&bytes))).unwrap_or_default()
    }

    /// An entry's text. Lines of another shape are passed over.
    pub fn parse(text: &str) -> Self {
        let mut entry = Self::default();
        for line in text.lines() {
            if let Some(link) = line.strip_prefix("S:") {
                entry.links.push(format!("/dev/{link}"));
            } else if let Some((key, value)) = line.strip_prefix("E:").and_then(|l| l.split_once('=')) {
                entry.properties.insert(key.to_owned(), value.to_owned());
            }
        }
        entry.links.sort();
        entry
    }

    /// A property; empty when it is not set.
    pub fn get(&self, key: &str) -> String {
        self.properties.get(key).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_properties() {
        let e = Entry::parse("S:disk/by-id/b\nS:disk/by-id/a\nI:123\nE:ID_MODEL=X=Y\nE:bad\nG:systemd\n");
        assert_eq!(e.links, ["/dev/disk/by-id/a", "/dev/disk/by-id/b"]);
        assert_eq!(e.get("ID_MODEL"), "X=Y");
        assert_eq!(e.get("NONE"), "");
    }
}
