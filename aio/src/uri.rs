//! Device URIs, in Mayastor's forms: `malloc:///name?size_mb=64`, `aio:///dev/sdb`, `nvmf://host/nqn`, ...
//!
//! [`DeviceUri`] is only the parsed text. Who makes a device of it depends on the scheme: `aio::devices` for
//! `aio`, `uring`, `malloc` and `null`, other crates for the rest.
//!
//! Percent escapes in paths and values are decoded. Unknown query parameters are refused, except for `nvmf`
//! and `pcie`, where existing control planes rely on them being ignored.

use core::fmt;
use core::str::FromStr;

use uuid::Uuid;

/// Port of an `nvmf` URI that names none.
pub const DEFAULT_NVMF_PORT: u16 = 8420;

/// Bytes of one `size_mb` unit: Mayastor's "MB" is a mebibyte.
const MIB: u64 = 1 << 20;

/// Where a device comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceUri {
    /// A file or block device. Same engine as [`Self::Uring`].
    Aio(FileUri),
    /// A file or block device. Same engine as [`Self::Aio`].
    Uring(FileUri),
    /// A RAM disk.
    Malloc(MemoryUri),
    /// A device that stores nothing.
    Null(MemoryUri),
    /// A device that exists on this node already.
    Bdev(LocalUri),
    /// The same under its other name.
    Loopback(LocalUri),
    /// A namespace of an NVMe-oF target, over TCP.
    Nvmf(NvmfUri),
    /// A local NVMe disk by PCI address.
    Pcie(PcieUri),
}

/// `aio:///path` and `uring:///path`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileUri {
    /// Absolute path; also the device's name.
    pub path: String,
    /// `blk_size`: logical block size in bytes; `None` = 512 for files, asked of a block device.
    pub block_bytes: Option<u32>,
    /// `uuid`: identity to report.
    pub uuid: Option<Uuid>,
    /// `rescan`: creating the device again looks at its size again (`aio` only).
    pub rescan: bool,
}

/// `malloc:///name` and `null:///name`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryUri {
    /// Name of the device.
    pub name: String,
    /// Size in blocks, from `size_mb` or `num_blocks`.
    pub blocks: u64,
    /// `blk_size`: 512 (default) or 4096.
    pub block_bytes: u32,
    /// `uuid`: identity to report.
    pub uuid: Option<Uuid>,
    /// `resize`: creating the device again changes its size (`malloc` only).
    pub resize: bool,
}

/// `bdev:///name` and `loopback:///name`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalUri {
    /// Name of the device; may contain `/`.
    pub name: String,
    /// `uuid`: has to be the identity of the device.
    pub uuid: Option<Uuid>,
}

/// `nvmf://host[:port]/nqn`, also as `nvmf+tcp` and `nvmf+rdma+tcp`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NvmfUri {
    /// Host name or address, without the brackets of an IPv6 address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// NQN of the subsystem.
    pub nqn: String,
    /// `uuid`: identity for the records of the layers above; not compared with the namespace.
    pub uuid: Option<Uuid>,
    /// `hostnqn`: NQN to introduce ourselves with.
    pub hostnqn: Option<String>,
    /// The other parameters, decoded: the initiator reads those that it knows and ignores the rest.
    pub others: Vec<(String, String)>,
    /// Text from host to path, as given.
    authority_and_path: String,
}

impl NvmfUri {
    /// The name that the device gets on this node: the text from host to path, and the first namespace.
    pub fn device_name(&self) -> String {
        format!("{}n1", self.authority_and_path)
    }
}

/// `pcie:///0000:01:00.0`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PcieUri {
    /// PCI address: domain, bus, device, function.
    pub address: String,
}

/// Why a device URI was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UriError {
    /// There is no `scheme:` in front.
    #[error(
        "device URI {uri:?} has no scheme: write for example aio:///dev/sdb or malloc:///disk0?size_mb=64"
    )]
    NoScheme {
        /// The text.
        uri: String,
    },
    /// The scheme is not one of ours.
    #[error(
        "scheme {scheme:?} of a device URI is not known: use aio, uring, malloc, null, bdev, loopback, pcie, \
         nvmf, nvmf+tcp or nvmf+rdma+tcp"
    )]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
    /// `malloc://name` instead of `malloc:///name`.
    #[error("device URI {uri:?} names a host, which {scheme} does not have: write {scheme}:///{host}...")]
    UnexpectedHost {
        /// The text.
        uri: String,
        /// Its scheme.
        scheme: &'static str,
        /// What stands in the place of the host.
        host: String,
    },
    /// Nothing after the slashes.
    #[error("device URI {uri:?} has no {what}: write {form}")]
    Missing {
        /// The text.
        uri: String,
        /// What is missing.
        what: &'static str,
        /// An example.
        form: &'static str,
    },
    /// More path segments than the one that is expected.
    #[error("device URI {uri:?} has a {what} with a '/' in it: give one path segment, as in {form}")]
    TooManySegments {
        /// The text.
        uri: String,
        /// What the path means.
        what: &'static str,
        /// An example.
        form: &'static str,
    },
    /// A query parameter that this scheme does not have.
    #[error("device URI {uri:?} has an unknown parameter {name:?}: {scheme} takes {known}")]
    UnknownParameter {
        /// The text.
        uri: String,
        /// Its scheme.
        scheme: &'static str,
        /// The parameter.
        name: String,
        /// What would be known.
        known: &'static str,
    },
    /// A parameter twice.
    #[error("device URI {uri:?} gives parameter {name:?} more than once: give it once")]
    Repeated {
        /// The text.
        uri: String,
        /// The parameter.
        name: String,
    },
    /// A value that cannot be understood.
    #[error("parameter {name} of device URI {uri:?} has the value {value:?}: it must be {expected}")]
    BadValue {
        /// The text.
        uri: String,
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Both `size_mb` and `num_blocks`.
    #[error("device URI {uri:?} gives both size_mb and num_blocks: give one of them")]
    SizeTwice {
        /// The text.
        uri: String,
    },
    /// No size, or a size of nothing.
    #[error("device URI {uri:?} gives no size: add size_mb=<MiB> or num_blocks=<blocks>, at least 1")]
    NoSize {
        /// The text.
        uri: String,
    },
    /// `%` without two hexadecimal digits, or bytes that are not UTF-8.
    #[error("device URI {uri:?} has a bad percent escape: write a plain '%' as %25")]
    BadEscape {
        /// The text.
        uri: String,
    },
}

impl DeviceUri {
    /// The name that the device gets on this node.
    pub fn name(&self) -> String {
        match self {
            Self::Aio(f) | Self::Uring(f) => f.path.clone(),
            Self::Malloc(m) | Self::Null(m) => m.name.clone(),
            Self::Bdev(l) | Self::Loopback(l) => l.name.clone(),
            Self::Nvmf(n) => n.device_name(),
            Self::Pcie(p) => format!("{}n1", p.address),
        }
    }

    /// The `uuid` parameter.
    pub fn uuid(&self) -> Option<Uuid> {
        match self {
            Self::Aio(f) | Self::Uring(f) => f.uuid,
            Self::Malloc(m) | Self::Null(m) => m.uuid,
            Self::Bdev(l) | Self::Loopback(l) => l.uuid,
            Self::Nvmf(n) => n.uuid,
            Self::Pcie(_) => None,
        }
    }

    /// The scheme, with the transports of `nvmf` left out.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Aio(_) => "aio",
            Self::Uring(_) => "uring",
            Self::Malloc(_) => "malloc",
            Self::Null(_) => "null",
            Self::Bdev(_) => "bdev",
            Self::Loopback(_) => "loopback",
            Self::Nvmf(_) => "nvmf",
            Self::Pcie(_) => "pcie",
        }
    }
}

impl FromStr for DeviceUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let parts = Parts::split(text)?;
        match parts.scheme {
            "aio" => parts.file("aio", "blk_size, uuid and rescan").map(Self::Aio),
            "uring" => parts.file("uring", "blk_size and uuid").map(Self::Uring),
            "malloc" => {
                parts.memory("malloc", "size_mb, num_blocks, blk_size, uuid and resize").map(Self::Malloc)
            }
            "null" => parts.memory("null", "size_mb, num_blocks, blk_size and uuid").map(Self::Null),
            "bdev" => parts.local("bdev").map(Self::Bdev),
            "loopback" => parts.local("loopback").map(Self::Loopback),
            "nvmf" | "nvmf+tcp" | "nvmf+rdma+tcp" => parts.nvmf().map(Self::Nvmf),
            "pcie" => parts.pcie().map(Self::Pcie),
            other => Err(UriError::UnknownScheme { scheme: other.to_owned() }),
        }
    }
}

impl fmt::Display for DeviceUri {
    /// Scheme and name, for messages; parameters are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aio(_) | Self::Uring(_) => write!(f, "{}://{}", self.scheme(), self.name()),
            Self::Nvmf(n) => write!(f, "nvmf://{}", n.authority_and_path),
            Self::Pcie(p) => write!(f, "pcie:///{}", p.address),
            _ => write!(f, "{}:///{}", self.scheme(), self.name()),
        }
    }
}

/// The pieces of a URI, still escaped.
struct Parts<'a> {
    text: &'a str,
    scheme: &'a str,
    host: &'a str,
    /// From the `/` on; empty when there is none.
    path: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn split(text: &'a str) -> Result<Self, UriError> {
        let no_scheme = || UriError::NoScheme { uri: text.to_owned() };
        let (scheme, rest) = text.split_once(':').ok_or_else(no_scheme)?;
        let rest = rest.strip_prefix("//").ok_or_else(no_scheme)?;
        if scheme.is_empty() || scheme.contains('/') {
            return Err(no_scheme());
        }
        let (rest, _fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let slash = rest.find('/').unwrap_or(rest.len());
        Ok(Self { text, scheme, host: &rest[..slash], path: &rest[slash..], query })
    }

    fn file(&self, scheme: &'static str, known: &'static str) -> Result<FileUri, UriError> {
        self.no_host(scheme)?;
        let path = self.decode(self.path)?;
        if path.len() < 2 || path.ends_with('/') {
            return Err(self.missing("path of a file or block device", "aio:///dev/sdb"));
        }
        let mut q = Query::parse(self)?;
        let expected = "a power of two from 512 to 65536";
        let block_bytes = q.number("blk_size", expected)?;
        let block_bytes = block_bytes
            .map(|n| match u32::try_from(n) {
                Ok(b) if b.is_power_of_two() && (512..=65536).contains(&b) => Ok(b),
                _ => Err(q.bad("blk_size", &n.to_string(), expected)),
            })
            .transpose()?;
        let uuid = q.uuid()?;
        let rescan = scheme == "aio" && q.flag("rescan")?;
        q.finish(scheme, known)?;
        Ok(FileUri { path, block_bytes, uuid, rescan })
    }

    fn memory(&self, scheme: &'static str, known: &'static str) -> Result<MemoryUri, UriError> {
        self.no_host(scheme)?;
        let name = self.one_segment("name", "malloc:///disk0?size_mb=64")?;
        let mut q = Query::parse(self)?;
        let block_bytes = match q.number("blk_size", "512 or 4096")? {
            None | Some(512) => 512u32,
            Some(4096) => 4096,
            Some(other) => return Err(q.bad("blk_size", &other.to_string(), "512 or 4096")),
        };
        let blocks =
            match (q.number("size_mb", "a number of MiB")?, q.number("num_blocks", "a number of blocks")?) {
                (Some(_), Some(_)) => return Err(UriError::SizeTwice { uri: self.text.to_owned() }),
                (Some(mib), None) => mib.checked_mul(MIB / u64::from(block_bytes)),
                (None, blocks) => Some(blocks.unwrap_or(0)),
            };
        // Addresses and lengths in bytes have to fit everywhere, also as signed 64-bit numbers.
        let blocks = blocks
            .filter(|b| {
                b.checked_mul(u64::from(block_bytes)).is_some_and(|bytes| i64::try_from(bytes).is_ok())
            })
            .ok_or_else(|| q.bad("size_mb", self.query, "a size below 8 EiB"))?;
        let uuid = q.uuid()?;
        let resize = scheme == "malloc" && q.flag("resize")?;
        // First: a misspelt size is the better explanation of a missing one.
        q.finish(scheme, known)?;
        if blocks == 0 && scheme == "malloc" {
            return Err(UriError::NoSize { uri: self.text.to_owned() });
        }
        Ok(MemoryUri { name, blocks, block_bytes, uuid, resize })
    }

    fn local(&self, scheme: &'static str) -> Result<LocalUri, UriError> {
        self.no_host(scheme)?;
        let name = self.decode(self.path.strip_prefix('/').unwrap_or(self.path))?;
        if name.is_empty() {
            return Err(self.missing("name", "bdev:///name"));
        }
        let mut q = Query::parse(self)?;
        let uuid = q.uuid()?;
        q.finish(scheme, "uuid")?;
        Ok(LocalUri { name, uuid })
    }

    fn nvmf(&self) -> Result<NvmfUri, UriError> {
        const FORM: &str = "nvmf://192.0.2.1:8420/nqn.2019-05.io.openebs:name";
        let nqn = self.one_segment("subsystem NQN", FORM)?;
        let bad_host = || self.missing("usable host[:port]", FORM);
        let (host, port) = match self.host.strip_prefix('[') {
            Some(v6) => {
                let (host, rest) = v6.split_once(']').ok_or_else(bad_host)?;
                (host, rest.strip_prefix(':').or(if rest.is_empty() { None } else { Some("bad") }))
            }
            None => match self.host.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (self.host, None),
            },
        };
        if host.is_empty() {
            return Err(bad_host());
        }
        let port = match port {
            Some(text) => text.parse().map_err(|_| bad_host())?,
            None => DEFAULT_NVMF_PORT,
        };
        let mut q = Query::parse(self)?;
        Ok(NvmfUri {
            host: self.decode(host)?,
            port,
            nqn,
            uuid: q.uuid()?,
            hostnqn: q.take("hostnqn"),
            others: q.left,
            authority_and_path: format!("{}{}", self.host, self.path),
        })
    }

    fn pcie(&self) -> Result<PcieUri, UriError> {
        const FORM: &str = "pcie:///0000:01:00.0";
        self.no_host("pcie")?;
        let address = self.one_segment("PCI address", FORM)?;
        let hex = |s: &str, len: usize| s.len() == len && s.bytes().all(|b| b.is_ascii_hexdigit());
        let valid = address.split_once(':').is_some_and(|(domain, rest)| {
            hex(domain, 4)
                && rest.split_once(':').is_some_and(|(bus, rest)| {
                    hex(bus, 2)
                        && rest.split_once('.').is_some_and(|(slot, function)| {
                            hex(slot, 2) && hex(function, 1) && function.as_bytes()[0] < b'8'
                        })
                })
        });
        if valid { Ok(PcieUri { address }) } else { Err(self.missing("full PCI address", FORM)) }
    }

    fn no_host(&self, scheme: &'static str) -> Result<(), UriError> {
        if self.host.is_empty() {
            return Ok(());
        }
        Err(UriError::UnexpectedHost { uri: self.text.to_owned(), scheme, host: self.host.to_owned() })
    }

    fn one_segment(&self, what: &'static str, form: &'static str) -> Result<String, UriError> {
        let segment = self.path.strip_prefix('/').unwrap_or(self.path);
        if segment.is_empty() {
            return Err(self.missing(what, form));
        }
        if segment.contains('/') {
            return Err(UriError::TooManySegments { uri: self.text.to_owned(), what, form });
        }
        self.decode(segment)
    }

    fn missing(&self, what: &'static str, form: &'static str) -> UriError {
        UriError::Missing { uri: self.text.to_owned(), what, form }
    }

    fn decode(&self, escaped: &str) -> Result<String, UriError> {
        let bad = || UriError::BadEscape { uri: self.text.to_owned() };
        let mut bytes = Vec::with_capacity(escaped.len());
        let mut rest = escaped.bytes();
        while let Some(b) = rest.next() {
            if b != b'%' {
                bytes.push(b);
                continue;
            }
            let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16));
            let (high, low) = (digit().ok_or_else(bad)?, digit().ok_or_else(bad)?);
            bytes.push((high << 4 | low) as u8);
        }
        let text = String::from_utf8(bytes).map_err(|_| bad())?;
        // A NUL can name no file and no device, and C strings would end there.
        if text.contains('\0') { Err(bad()) } else { Ok(text) }
    }
}

/// Query parameters that nobody asked for yet.
struct Query<'a> {
    text: &'a str,
    left: Vec<(String, String)>,
}

impl<'a> Query<'a> {
    fn parse(parts: &Parts<'a>) -> Result<Self, UriError> {
        let mut left: Vec<(String, String)> = Vec::new();
        for pair in parts.query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (parts.decode(name)?, parts.decode(value)?);
            if left.iter().any(|(n, _)| *n == name) {
                return Err(UriError::Repeated { uri: parts.text.to_owned(), name });
            }
            left.push((name, value));
        }
        Ok(Self { text: parts.text, left })
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.left.iter().position(|(n, _)| n == name)?;
        Some(self.left.swap_remove(at).1)
    }

    fn number(&mut self, name: &'static str, expected: &'static str) -> Result<Option<u64>, UriError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| self.bad(name, &value, expected))
    }

    fn uuid(&mut self) -> Result<Option<Uuid>, UriError> {
        let Some(value) = self.take("uuid") else { return Ok(None) };
        let expected = "a UUID, as in 4ec4c1b2-4e2d-4fb7-9d5c-3a1a5d9e9a51";
        Uuid::parse_str(&value).map(Some).map_err(|_| self.bad("uuid", &value, expected))
    }

    fn flag(&mut self, name: &'static str) -> Result<bool, UriError> {
        let Some(value) = self.take(name) else { return Ok(false) };
        match value.as_str() {
            "" | "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(self.bad(name, &value, "true or false (or nothing: true)")),
        }
    }

    fn bad(&self, name: &'static str, value: &str, expected: &'static str) -> UriError {
        UriError::BadValue { uri: self.text.to_owned(), name, value: value.to_owned(), expected }
    }

    fn finish(mut self, scheme: &'static str, known: &'static str) -> Result<(), UriError> {
        match self.left.pop() {
            None => Ok(()),
            Some((name, _)) => {
                Err(UriError::UnknownParameter { uri: self.text.to_owned(), scheme, name, known })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DeviceUri, UriError> {
        text.parse()
    }

    fn memory(text: &str) -> MemoryUri {
        match parse(text) {
            Ok(DeviceUri::Malloc(m) | DeviceUri::Null(m)) => m,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn malloc_sizes() {
        assert_eq!(memory("malloc:///d?size_mb=64").blocks, 131_072);
        assert_eq!(memory("malloc:///d?size_mb=64&blk_size=4096").blocks, 16_384);
        assert_eq!(memory("malloc:///d?num_blocks=7&blk_size=4096").blocks, 7);
        assert_eq!(memory("null:///n").blocks, 0);
        assert!(memory("malloc:///d?size_mb=1&resize").resize);
        assert!(!memory("malloc:///d?size_mb=1&resize=false").resize);
        assert!(matches!(parse("malloc:///d"), Err(UriError::NoSize { .. })));
        assert!(matches!(parse("malloc:///d?size_mb=0"), Err(UriError::NoSize { .. })));
        assert!(matches!(parse("malloc:///d?size_mb=1&num_blocks=1"), Err(UriError::SizeTwice { .. })));
        assert!(matches!(parse("null:///d?size_mb=1&num_blocks=1"), Err(UriError::SizeTwice { .. })));
        for bad in
            ["size_mb=x", "size_mb=-1", "size_mb=", "size_mb=1&blk_size=1024", "size_mb=99999999999999999"]
        {
            let text = format!("malloc:///d?{bad}");
            assert!(matches!(parse(&text), Err(UriError::BadValue { .. })), "{text}");
        }
        assert!(matches!(
            parse("malloc:///d?num_blocks=18446744073709551615"),
            Err(UriError::BadValue { .. })
        ));
    }

    #[test]
    fn files() {
        let DeviceUri::Aio(f) = parse("aio:///var/a%20b.img?blk_size=4096&rescan").unwrap() else { panic!() };
        assert_eq!((f.path.as_str(), f.block_bytes, f.rescan), ("/var/a b.img", Some(4096), true));
        assert_eq!(parse("uring:///dev/sdb").unwrap().name(), "/dev/sdb");
        assert!(matches!(parse("uring:///dev/sdb?rescan"), Err(UriError::UnknownParameter { .. })));
        assert!(matches!(parse("aio://dev/sdb"), Err(UriError::UnexpectedHost { .. })));
        assert!(matches!(parse("aio:///"), Err(UriError::Missing { .. })));
        assert!(matches!(parse("aio:///f?blk_size=1000"), Err(UriError::BadValue { .. })));
        assert!(matches!(parse("aio:///f%zz"), Err(UriError::BadEscape { .. })));
        assert!(matches!(parse("aio:///f%"), Err(UriError::BadEscape { .. })));
        assert!(matches!(parse("aio:///f%00"), Err(UriError::BadEscape { .. })));
        assert!(matches!(parse("aio:///f%ff"), Err(UriError::BadEscape { .. })));
    }

    #[test]
    fn strangers() {
        assert!(matches!(parse("/dev/sdb"), Err(UriError::NoScheme { .. })));
        assert!(matches!(parse(""), Err(UriError::NoScheme { .. })));
        assert!(matches!(parse("malloc:disk"), Err(UriError::NoScheme { .. })));
        assert!(matches!(parse("ftp:///x"), Err(UriError::UnknownScheme { .. })));
        assert!(matches!(parse("malloc:///a/b?size_mb=1"), Err(UriError::TooManySegments { .. })));
        assert!(matches!(parse("malloc:///?size_mb=1"), Err(UriError::Missing { .. })));
        assert!(matches!(parse("malloc:///a?sizemb=1"), Err(UriError::UnknownParameter { .. })));
        assert!(matches!(parse("malloc:///a?size_mb=1&foo=2"), Err(UriError::UnknownParameter { .. })));
        assert!(matches!(parse("malloc:///a?size_mb=1&size_mb=2"), Err(UriError::Repeated { .. })));
        assert!(matches!(parse("malloc:///a?size_mb=1&uuid=zz"), Err(UriError::BadValue { .. })));
    }

    #[test]
    fn local_devices() {
        let uri = parse("bdev:///a/b?uuid=4ec4c1b2-4e2d-4fb7-9d5c-3a1a5d9e9a51").unwrap();
        assert_eq!(uri.name(), "a/b");
        assert!(uri.uuid().is_some());
        assert_eq!(parse("loopback:///x").unwrap().name(), "x");
        assert!(matches!(parse("bdev:///x?size=1"), Err(UriError::UnknownParameter { .. })));
    }

    #[test]
    fn remote_devices() {
        let text =
            "nvmf://10.0.0.1/nqn.2019-05.io.openebs:v?uuid=4ec4c1b2-4e2d-4fb7-9d5c-3a1a5d9e9a51&other=1";
        let DeviceUri::Nvmf(n) = parse(text).unwrap() else { panic!() };
        assert_eq!((n.host.as_str(), n.port, n.nqn.as_str()), ("10.0.0.1", 8420, "nqn.2019-05.io.openebs:v"));
        assert_eq!(parse(text).unwrap().name(), "10.0.0.1/nqn.2019-05.io.openebs:vn1");
        assert_eq!(n.others, [("other".to_owned(), "1".to_owned())]);
        let DeviceUri::Nvmf(n) = parse("nvmf+tcp://[::1]:4420/nqn?hostnqn=h").unwrap() else { panic!() };
        assert_eq!((n.host.as_str(), n.port, n.hostnqn.as_deref()), ("::1", 4420, Some("h")));
        for bad in ["nvmf:///nqn", "nvmf://h:99999/nqn", "nvmf://[::1/nqn", "nvmf://[::1]x/nqn", "nvmf://h/"]
        {
            assert!(matches!(parse(bad), Err(UriError::Missing { .. })), "{bad}");
        }
        assert!(matches!(parse("nvmf://h/a/b"), Err(UriError::TooManySegments { .. })));
    }

    #[test]
    fn pci_addresses() {
        assert_eq!(parse("pcie:///0000:01:00.0?x=y").unwrap().name(), "0000:01:00.0n1");
        for bad in ["pcie:///01:00.0", "pcie:///0000:01:00.9", "pcie:///0000:zz:00.0", "pcie:///0000:01:00"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
