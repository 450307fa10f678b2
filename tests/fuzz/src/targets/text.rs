//! What people and programs write: URIs, sizes and settings, the configuration, the state file, the kernel's
//! tables.

use crate::{Shape, Target};
use aio::uri::DeviceUri;
use keelson::host::{mounts, udev};
use keelson::serve::{args, cores, iface};
use keelson::{config, state};
use nvmf::initiator::Options;
use std::net::SocketAddr;
use std::path::Path;

/// Device URIs.
pub(super) const URI: Target = Target {
    name: "uri",
    about: "device URIs: what is accepted has a name, what is refused says why in one sentence",
    run: uri,
    seeds: || {
        texts(&[
            "malloc:///m0?size_mb=64&blk_size=4096&uuid=3f6f2a0e-6a3b-4b2b-8a57-9b3cf7a00f11",
            "null:///n0?num_blocks=1000",
            "aio:///dev/sdb?blk_size=512&rescan",
            "uring:///var/lib/disk%20one.img",
            "nvmf+tcp://127.0.0.1:8420/nqn.2019-05.io.openebs:disk?hostnqn=nqn.2014-08.org.nvmexpress:a",
            "nvmf://10.0.0.1/nqn.2019-05.io.openebs:d?hdgst=on&ddgst=off&queue_depth=32&queues=2&kato_ms=0&nsid=1",
            "nvmf://[::1]:8420/nqn.2019-05.io.openebs:disk?timeout_ms=10&hostid=3f6f2a0e-6a3b-4b2b-8a57-9b3cf7a00f11",
            "bdev:///a/b?uuid=3f6f2a0e-6a3b-4b2b-8a57-9b3cf7a00f11",
            "pcie:///0000:01:00.0",
        ])
    },
};

/// Sizes and the values of flags.
pub(super) const SETTING: Target = Target {
    name: "setting",
    about: "sizes, core lists and masks, retry delays, subnets: bounded answers, and refusals that say something",
    run: setting,
    seeds: || {
        texts(&["64MiB", "10 GB", "18446744073709551615", "0-1,4", "[1,2]", "0x3f", "1,2,3", "10.0.0.0/8"])
    },
};

/// `--config`.
pub(super) const CONFIG: Target = Target {
    name: "config",
    about: "the configuration's TOML: what it declares survives the state file, what is wrong is named",
    run: config,
    seeds: || {
        texts(&[
            "",
            r#"
[hosts]
db1 = "nqn.2014-08.org.nvmexpress:uuid:6f0c1b6e-5c0e-4d8e-9a55-6b9be5a3d001"
[[device]]
uri = "aio:///dev/sdb"
[[device]]
uri = "malloc:///ram0?size_mb=64"
share = true
hosts = ["db1"]
[[subsystem]]
nqn = "twins"
serial = "S1"
model = "M"
cntlids = [1, 99]
ana_groups = 2
hosts = ["db1", "nqn.2014-08.org.example:other"]
[[subsystem.namespace]]
device = "/dev/sdb"
nsid = 3
uuid = "3f6f2a0e-6a3b-4b2b-8a57-9b3cf7a00f11"
ana_group = 2
[[subsystem.namespace]]
device = "other"
"#,
            "[[subsystem]]\nnqn=\"a\"\nnamespace=[{device=\"x\",nsid=1},{device=\"y\",nsid=1}]\n",
        ])
    },
};

/// The state file.
pub(super) const STATE: Target = Target {
    name: "state",
    about: "the state file: what is accepted comes back the same, what is damaged is refused",
    run: state,
    seeds: || {
        let desired = config::parse(Path::new("k"), &String::from_utf8_lossy(&(CONFIG.seeds)()[1]));
        let desired = desired.expect("the example is a good one");
        vec![
            state::encode(&desired).expect("plain data has a text"),
            state::encode(&Default::default()).expect("plain data has a text"),
            br#"{"version":1,"subsystems":[{"nqn":"n","ana_states":[{"group":1,"state":2}]}]}"#.to_vec(),
        ]
    },
};

/// Tables of the kernel and of udev.
pub(super) const HOST: Target = Target {
    name: "tables",
    about: "the mount table, udev's database, routes and addresses: lines of any shape are read or passed over",
    run: tables,
    seeds: || {
        texts(&[
            "36 35 8:1 / /mnt/a\\040b rw,noatime master:1 - ext3 /dev/sda1 rw\n37 35 0:20 / /proc rw - proc proc rw\n",
            "S:disk/by-id/b\nI:123\nE:ID_MODEL=X=Y\nE:ID_PART_ENTRY_SCHEME=gpt\nG:systemd\n",
            "eth0 0002000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n",
            "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.2.15\n        /32 host LOCAL\n",
        ])
    },
};

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn uri(bytes: &[u8]) -> Shape {
    let Ok(text) = std::str::from_utf8(bytes) else { return Shape::of("no text") };
    match text.parse::<DeviceUri>() {
        Ok(uri) => {
            assert!(!uri.name().is_empty(), "an accepted URI names its device");
            assert_eq!(text.parse::<DeviceUri>().as_ref(), Ok(&uri), "the same text means the same");
            let options = match &uri {
                DeviceUri::Nvmf(remote) => {
                    let options = Options::from_uri(remote, SocketAddr::from(([127, 0, 0, 1], 8420)));
                    Some(options.map_err(|error| assert!(!error.to_string().is_empty())).is_ok())
                }
                _ => None,
            };
            Shape::of((uri.scheme(), uri.uuid().is_some(), options))
        }
        Err(error) => {
            let sentence = error.to_string();
            assert!(!sentence.is_empty());
            Shape::of(std::mem::discriminant(&error))
        }
    }
}

fn setting(bytes: &[u8]) -> Shape {
    let Ok(text) = std::str::from_utf8(bytes) else { return Shape::of("no text") };
    let size = rpc::output::parse_size(text);
    let cores = [cores::parse_list(text), cores::parse_mask(text)];
    for cores in cores.iter().flatten() {
        assert!(!cores.is_empty() && cores.len() <= 1024, "a set of cores of a size that machines have");
        assert!(cores.is_sorted_by(|a, b| a.0 < b.0), "each once, ascending");
    }
    let refusals = [size.as_ref().err(), cores[0].as_ref().err(), cores[1].as_ref().err()];
    assert!(refusals.iter().flatten().all(|why| !why.is_empty()));
    let counts = cores.map(|cores| cores.map(|cores| cores.len().min(3)).ok());
    let delays = args::parse_crdt(text).is_ok();
    let subnet = iface::parse_subnet(text).map(|(network, mask)| {
        assert_eq!(network & !mask, 0, "a network has no bits of a host");
        mask
    });
    Shape::of((size.ok().map(u64::leading_zeros), counts, delays, subnet))
}

fn config(bytes: &[u8]) -> Shape {
    let Ok(text) = std::str::from_utf8(bytes) else { return Shape::of("no text") };
    let path = Path::new("k.toml");
    match config::parse(path, text) {
        Ok(desired) => {
            let saved = state::encode(&desired).expect("plain data has a text");
            let back = state::decode(path, &saved).expect("our own file is a good one");
            assert_eq!(back, desired, "what was declared survives the state file");
            let namespaces: usize = desired.subsystems.iter().map(|s| s.namespaces.len()).sum();
            Shape::of((desired.devices.len().min(4), desired.subsystems.len().min(4), namespaces.min(4)))
        }
        Err(error) => {
            let sentence = error.to_string();
            assert!(sentence.contains("k.toml"), "the file is named: {sentence}");
            // Where it went wrong differs with each input; what went wrong does not.
            let kind: String = sentence.lines().last().unwrap_or_default().chars().take(24).collect();
            Shape::of((std::mem::discriminant(&error), kind))
        }
    }
}

fn state(bytes: &[u8]) -> Shape {
    let path = Path::new("state.json");
    match state::decode(path, bytes) {
        Ok(desired) => {
            let saved = state::encode(&desired).expect("plain data has a text");
            assert_eq!(state::decode(path, &saved).ok().as_ref(), Some(&desired), "it comes back the same");
            let states: usize = desired.subsystems.iter().map(|s| s.ana_states.len()).sum();
            Shape::of((desired.devices.len().min(4), desired.subsystems.len().min(4), states.min(4)))
        }
        Err(error) => {
            assert!(error.to_string().contains("state.json"), "the file is named: {error}");
            let why = match &error {
                state::StateError::Corrupt { source, .. } => source.to_string().chars().take(20).collect(),
                _ => String::new(),
            };
            Shape::of((std::mem::discriminant(&error), why))
        }
    }
}

fn tables(bytes: &[u8]) -> Shape {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().count();
    let mounts = mounts::parse(&text);
    assert!(mounts.len() <= lines);
    // An escape is four bytes and becomes one character, at most three bytes of UTF-8.
    assert!(mounts.iter().all(|mount| mount.point.len() <= text.len() * 3));
    let entry = udev::Entry::parse(&text);
    assert!(entry.links.len() <= lines && entry.links.iter().all(|link| link.starts_with("/dev/")));
    let routes = text.lines().filter_map(|line| iface::direct_route(line, "eth0")).count();
    let addresses = iface::addresses_in(&text);
    assert!(addresses.iter().all(|address| !address.is_loopback()));
    let model = entry.get("ID_MODEL").is_empty();
    Shape::of((mounts.len().min(4), entry.links.len().min(4), routes.min(4), addresses.len().min(4), model))
}
