//! `-P FILE`: Mayastor's pool file, in YAML: pools that are imported, or made, at the start.
//!
//! ```yaml
//! pools:
//!   - name: tpool
//!     disks: [/dev/sdb]
//! ```

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::desired;

/// Larger files are none.
const MAX_BYTES: u64 = 1 << 20;

/// A pool file that cannot be used. The daemon starts without it.
#[derive(Debug, thiserror::Error)]
pub enum PoolFileError {
    /// It cannot be read.
    #[error("cannot read the pool file {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is too large to be one.
    #[error("the pool file {} has {len_bytes} bytes: that is no pool file", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its length.
        len_bytes: u64,
    },
    /// It is not YAML, or does not say what it has to.
    #[error("the pool file {} is wrong: {source}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    /// A pool that is not ours.
    #[error("pool {name:?} of the pool file {} has the backend {backend:?}: only Lvs is supported", path.display())]
    Backend {
        /// Which file.
        path: PathBuf,
        /// Which pool.
        name: String,
        /// As written.
        backend: String,
    },
}

/// Unknown keys are ignored, as Mayastor ignores some.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    pools: Vec<Pool>,
}

#[derive(Deserialize)]
struct Pool {
    name: String,
    disks: Vec<String>,
    backend: Option<String>,
}

/// The pools of a file, and what of it cannot be used.
pub fn read(path: &Path) -> (Vec<desired::Pool>, Vec<PoolFileError>) {
    match read_text(path).and_then(|text| parse(path, &text)) {
        Ok(file) => usable(path, file),
        Err(e) => (Vec::new(), vec![e]),
    }
}

fn read_text(path: &Path) -> Result<String, PoolFileError> {
    let failed = |source| PoolFileError::Read { path: path.to_owned(), source };
    let len_bytes = std::fs::metadata(path).map_err(failed)?.len();
    if len_bytes > MAX_BYTES {
        return Err(PoolFileError::TooLarge { path: path.to_owned(), len_bytes });
    }
    std::fs::read_to_string(path).map_err(failed)
}

fn parse(path: &Path, text: &str) -> Result<File, PoolFileError> {
    let failed = |e| PoolFileError::Parse { path: path.to_owned(), source: Box::new(e) };
    serde_saphyr::from_str(text).map_err(failed)
}

fn usable(path: &Path, file: File) -> (Vec<desired::Pool>, Vec<PoolFileError>) {
    let (mut pools, mut failures) = (Vec::new(), Vec::new());
    for Pool { name, disks, backend } in file.pools {
        match backend {
            Some(backend) if !backend.eq_ignore_ascii_case("lvs") => {
                failures.push(PoolFileError::Backend { path: path.to_owned(), name, backend });
            }
            _ => pools.push(desired::Pool { name, disks, replicas: Vec::new() }),
        }
    }
    (pools, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Vec<desired::Pool>, Vec<String>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let (pools, failures) = read(file.path());
        (pools, failures.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_style_of_list() {
        let text = "# ours\npools:\n  - name: a\n    disks:\n      - /dev/sdb\n    replicas: []\n  \
                    - { name: \"b\", disks: [\"aio:///dev/sdc\"], backend: Lvs }\n";
        let (pools, failures) = parsed(text);
        assert!(failures.is_empty(), "{failures:?}");
        let names: Vec<_> = pools.iter().map(|p| (p.name.as_str(), p.disks[0].as_str())).collect();
        assert_eq!(names, [("a", "/dev/sdb"), ("b", "aio:///dev/sdc")]);
    }

    #[test]
    fn what_is_wrong_is_told_and_the_rest_used() {
        let (pools, failures) =
            parsed("pools: [{name: l, disks: [/a], backend: Lvm}, {name: b, disks: [/b]}]\n");
        assert_eq!(pools.len(), 1);
        assert!(failures[0].contains("\"l\"") && failures[0].contains("Lvm"), "{failures:?}");
        for text in ["pools: [", "pools:\n  - name: a\n", "pools: 5\n", "\u{0}"] {
            let (pools, failures) = parsed(text);
            assert!(pools.is_empty() && failures[0].contains("is wrong"), "{text}: {failures:?}");
        }
        assert!(parsed("{}").1.is_empty());
        let (pools, failures) = read(Path::new("/nonexistent.yaml"));
        assert!(pools.is_empty() && failures[0].to_string().contains("/nonexistent.yaml"));
    }
}
