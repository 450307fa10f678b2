//! `-T`: which address of this host the target listens on.
//!
//! The addresses come from the kernel's tables below `/proc/net` and `/sys/class/net`: plain text, no ioctls.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// A `-T` that leads nowhere.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IfaceError {
    /// The text makes no sense.
    #[error(
        "-T {text:?}: {why}; write eth0, name:eth0, mac:02:00:00:00:00:01, ip:10.0.0.1 or subnet:10.0.0.0/8"
    )]
    Syntax {
        /// As given.
        text: String,
        /// What about it.
        why: &'static str,
    },
    /// No interface like that.
    #[error("-T {text:?}: this host has no such network interface (it has: {known})")]
    NoInterface {
        /// As given.
        text: String,
        /// Those that there are.
        known: String,
    },
    /// It is there, without an address.
    #[error("-T {text:?}: no IPv4 address of this host is there (it has: {known})")]
    NoAddress {
        /// As given.
        text: String,
        /// Those that there are.
        known: String,
    },
}

/// The kernel's tables.
#[derive(Clone, Debug)]
pub struct Tables {
    /// `/proc/net`.
    pub proc_net: PathBuf,
    /// `/sys/class/net`.
    pub sys_net: PathBuf,
}

impl Default for Tables {
    fn default() -> Self {
        Self { proc_net: "/proc/net".into(), sys_net: "/sys/class/net".into() }
    }
}

/// The address that `-T` means; without it `pod_ip` (`$MY_POD_IP`), else loopback.
pub fn target_ip(tables: &Tables, iface: Option<&str>, pod_ip: Option<&str>) -> Result<IpAddr, IfaceError> {
    let Some(text) = iface else {
        let pod = pod_ip.and_then(|ip| ip.trim().parse().ok());
        return Ok(pod.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    };
    let syntax = |why| IfaceError::Syntax { text: text.to_owned(), why };
    let (kind, value) = text.split_once(':').unwrap_or(("name", text));
    if value.is_empty() {
        return Err(syntax("nothing follows the colon"));
    }
    match kind {
        "name" => address_of(tables, text, value),
        "mac" => address_of(tables, text, &interface_with_mac(tables, text, value)?),
        "ip" => {
            let ip: IpAddr = value.parse().map_err(|_| syntax("that is no IP address"))?;
            let local = match ip {
                IpAddr::V4(v4) => v4.is_loopback() || local_addresses(tables).contains(&v4),
                IpAddr::V6(v6) => v6.is_loopback() || local_v6(tables).contains(&ip),
            };
            if local { Ok(ip) } else { Err(no_address(tables, text)) }
        }
        "subnet" => {
            let (network, mask) = parse_subnet(value).ok_or_else(|| syntax("that is no IPv4 subnet"))?;
            let inside = |ip: &Ipv4Addr| u32::from(*ip) & mask == network;
            let found = local_addresses(tables).into_iter().find(inside);
            found.map(IpAddr::V4).ok_or_else(|| no_address(tables, text))
        }
        _ => Err(syntax("what stands before the colon is not known")),
    }
}

fn no_address(tables: &Tables, text: &str) -> IfaceError {
    let known: Vec<String> = local_addresses(tables).iter().map(Ipv4Addr::to_string).collect();
    IfaceError::NoAddress { text: text.to_owned(), known: known.join(", ") }
}

fn interfaces(tables: &Tables) -> Vec<String> {
    let entries = fs::read_dir(&tables.sys_net).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn interface_with_mac(tables: &Tables, text: &str, mac: &str) -> Result<String, IfaceError> {
    let is = |name: &String| {
        let address = fs::read_to_string(tables.sys_net.join(name).join("address")).unwrap_or_default();
        address.trim().eq_ignore_ascii_case(mac)
    };
    let names = interfaces(tables);
    names
        .iter()
        .find(|n| is(n))
        .cloned()
        .ok_or_else(|| IfaceError::NoInterface { text: text.to_owned(), known: names.join(", ") })
}

/// The host's own address within a network that is directly connected through `name`.
fn address_of(tables: &Tables, text: &str, name: &str) -> Result<IpAddr, IfaceError> {
    let names = interfaces(tables);
    if !names.iter().any(|n| n == name) {
        return Err(IfaceError::NoInterface { text: text.to_owned(), known: names.join(", ") });
    }
    if name == "lo" {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let routes = fs::read_to_string(tables.proc_net.join("route")).unwrap_or_default();
    let networks: Vec<(u32, u32)> = routes.lines().filter_map(|l| direct_route(l, name)).collect();
    let inside = |ip: &Ipv4Addr| networks.iter().any(|(net, mask)| u32::from(*ip) & mask == *net);
    let found = local_addresses(tables).into_iter().find(inside);
    found.map(IpAddr::V4).ok_or_else(|| no_address(tables, text))
}

/// Network and mask of a line of `/proc/net/route` that needs no gateway. Numbers are hexadecimal, in network
/// order as a little-endian machine prints it.
pub fn direct_route(line: &str, interface: &str) -> Option<(u32, u32)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    // The kernel prints the four bytes of an address as one native number.
    let number =
        |i: usize| u32::from_str_radix(fields.get(i)?, 16).ok().map(|n| u32::from_be_bytes(n.to_ne_bytes()));
    let (network, gateway, mask) = (number(1)?, number(2)?, number(7)?);
    (fields.first() == Some(&interface) && gateway == 0 && mask != 0).then_some((network, mask))
}

/// Every IPv4 address of this host but loopback, from `/proc/net/fib_trie`: a leaf line `|-- ADDRESS` followed
/// by `/32 host LOCAL`.
fn local_addresses(tables: &Tables) -> Vec<Ipv4Addr> {
    addresses_in(&fs::read_to_string(tables.proc_net.join("fib_trie")).unwrap_or_default())
}

/// The addresses of such a table's text. Lines of another shape are passed over.
pub fn addresses_in(trie: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut leaf = None;
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.trim().parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(leaf.filter(|ip| !ip.is_loopback()));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// From `/proc/net/if_inet6`: 32 hexadecimal digits come first.
fn local_v6(tables: &Tables) -> Vec<IpAddr> {
    let text = fs::read_to_string(tables.proc_net.join("if_inet6")).unwrap_or_default();
    let address = |line: &str| u128::from_str_radix(line.split_whitespace().next()?, 16).ok();
    text.lines().filter_map(address).map(|n| IpAddr::V6(n.into())).collect()
}

/// Network and mask of `ADDRESS/BITS`.
pub fn parse_subnet(text: &str) -> Option<(u32, u32)> {
    let (ip, bits) = text.split_once('/')?;
    let (ip, bits) = (ip.parse::<Ipv4Addr>().ok()?, bits.parse::<u32>().ok().filter(|b| *b <= 32)?);
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    Some((u32::from(ip) & mask, mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: &str = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                         eth0 00000000 0102000A 0003 0 0 0 00000000 0 0 0\n\
                         eth0 0002000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n\
                         eth1 0003000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
    const TRIE: &str = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.2.0\n        /24 link UNICAST\n     \
                        |-- 10.0.2.15\n        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n     \
                        |-- 10.0.3.7\n        /32 host LOCAL\n";

    fn host() -> (tempfile::TempDir, Tables) {
        let dir = tempfile::tempdir().unwrap();
        let tables = Tables { proc_net: dir.path().join("proc"), sys_net: dir.path().join("sys") };
        fs::create_dir(&tables.proc_net).unwrap();
        fs::write(tables.proc_net.join("route"), ROUTE).unwrap();
        fs::write(tables.proc_net.join("fib_trie"), TRIE).unwrap();
        fs::write(tables.proc_net.join("if_inet6"), "fe800000000000000000000000000001 02 40 20 80 eth0\n")
            .unwrap();
        for (name, mac) in
            [("eth0", "02:00:00:00:00:0a"), ("eth1", "02:00:00:00:00:0b"), ("eth2", ""), ("lo", "")]
        {
            fs::create_dir_all(tables.sys_net.join(name)).unwrap();
            fs::write(tables.sys_net.join(name).join("address"), format!("{mac}\n")).unwrap();
        }
        (dir, tables)
    }

    #[test]
    fn every_form_finds_its_address() {
        let (_dir, tables) = host();
        for (text, want) in [
            ("eth0", "10.0.2.15"),
            ("name:eth1", "10.0.3.7"),
            ("mac:02:00:00:00:00:0B", "10.0.3.7"),
            ("ip:10.0.2.15", "10.0.2.15"),
            ("ip:127.0.0.1", "127.0.0.1"),
            ("ip:fe80::1", "fe80::1"),
            ("subnet:10.0.3.0/24", "10.0.3.7"),
            ("lo", "127.0.0.1"),
        ] {
            let ip = target_ip(&tables, Some(text), None).unwrap();
            assert_eq!(ip.to_string(), want, "{text}");
        }
    }

    #[test]
    fn without_it_the_pod_or_loopback() {
        let (_dir, tables) = host();
        let ip = |pod| target_ip(&tables, None, pod).unwrap().to_string();
        assert_eq!(ip(Some("10.9.9.9")), "10.9.9.9");
        assert_eq!(ip(None), "127.0.0.1");
        assert_eq!(ip(Some("")), "127.0.0.1");
    }

    #[test]
    fn mistakes_say_what_there_is() {
        let (_dir, tables) = host();
        let error = |text| target_ip(&tables, Some(text), None).unwrap_err().to_string();
        assert!(error("eth9").contains("eth0, eth1"), "{}", error("eth9"));
        assert!(error("eth2").contains("10.0.2.15"), "{}", error("eth2"));
        assert!(error("ip:10.0.0.9").contains("10.0.3.7"));
        assert!(error("subnet:192.168.0.0/16").contains("10.0.3.7"));
        for text in ["ip:x", "subnet:10.0.0.0", "subnet:10.0.0.0/33", "name:", "usb:1"] {
            assert!(error(text).contains("write eth0"), "{text}");
        }
    }
}
