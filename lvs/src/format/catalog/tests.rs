use super::*;
use crate::format::testing::Rng;

fn volume(n: u128) -> VolumeObject {
    VolumeObject {
        uuid: Uuid::from_u128(n),
        name: format!("replica {n} \"ä\""),
        line: LineId(u32::MAX),
        size_bytes: 1 << 40,
        block_bytes: 512,
        thin: true,
        created_unix_ns: u64::MAX,
        shared: Some("nvmf".to_owned()),
        allowed_hosts: vec!["nqn.2014-08.org.nvmexpress:uuid:1".to_owned(), String::new()],
        entity_id: Some("owner".to_owned()),
        clone_of: Some(CloneOf { snapshot: Uuid::from_u128(77), created_unix_ns: 5 }),
        properties: [("a".to_owned(), "b\n".to_owned())].into(),
        unknown: Unknown::new(),
    }
}

fn plain_volume(n: u128) -> VolumeObject {
    VolumeObject {
        shared: None,
        allowed_hosts: vec![],
        entity_id: None,
        clone_of: None,
        properties: BTreeMap::new(),
        ..volume(n)
    }
}

fn snapshot(n: u128) -> SnapshotObject {
    SnapshotObject {
        uuid: Uuid::from_u128(n),
        name: "snap".to_owned(),
        line: LineId(3),
        epoch: Seq(u64::MAX - 1),
        size_bytes: 4096,
        source: Uuid::from_u128(2),
        source_name: "replica".to_owned(),
        txn_id: "t".to_owned(),
        entity_id: String::new(),
        parent_id: "p".to_owned(),
        created_unix_ns: 1,
        discarded: true,
        properties: BTreeMap::new(),
        unknown: Unknown::new(),
    }
}

fn pool() -> PoolObject {
    PoolObject {
        uuid: Uuid::from_u128(1),
        name: "tpool".to_owned(),
        properties: BTreeMap::new(),
        unknown: Unknown::new(),
    }
}

fn objects() -> Vec<Object> {
    vec![
        Object::Pool(pool()),
        Object::Volume(volume(2)),
        Object::Volume(plain_volume(3)),
        Object::Snapshot(snapshot(4)),
    ]
}

fn changes() -> Vec<Change> {
    let mut changes: Vec<Change> = objects().into_iter().map(|o| Change::Put(Box::new(o))).collect();
    changes.insert(2, Change::Remove(Uuid::from_u128(9)));
    changes
}

fn encoded_changes() -> Vec<u8> {
    changes().iter().flat_map(|change| change.encode().unwrap()).collect()
}

#[test]
fn objects_and_changes_come_back() {
    let bytes = encode(&objects()).unwrap();
    assert_eq!(decode(&bytes), Ok(objects()));
    assert_eq!(decode(&encode(&[]).unwrap()), Ok(vec![]));
    assert_eq!(Change::decode_all(&encoded_changes(), 5), Ok(changes()));
    assert_eq!(Change::decode_all(&[], 0), Ok(vec![]));
    let wrong = bad("number of changes", 0);
    assert_eq!(Change::decode_all(&encoded_changes(), 4), Err(wrong));
    assert_eq!(Change::decode_all(&[], u32::MAX), Err(wrong));
}

#[test]
fn every_cut_is_found() {
    let bytes = encode(&objects()).unwrap();
    for len in 0..bytes.len() {
        assert!(matches!(decode(&bytes[..len]), Err(FormatError::Short { .. })), "{len}");
    }
    assert!(decode(&[&bytes[..], &[0]].concat()).is_err());
    let bytes = encoded_changes();
    for len in 0..bytes.len() {
        assert!(Change::decode_all(&bytes[..len], 5).is_err(), "{len}");
    }
}

fn framed(json: &str) -> Vec<u8> {
    [&(json.len() as u32).to_le_bytes(), json.as_bytes()].concat()
}

const A_POOL: &str = r#"{"kind":"pool","uuid":"00000000-0000-0000-0000-000000000001","name":"p""#;

#[test]
fn unknown_fields_are_kept_and_unknown_kinds_refused() {
    let json = format!(r#"{{"put":{A_POOL},"zebra":{{"n":[18446744073709551615,-1,null,"x"]}},"tier":2}}}}"#);
    let changes = Change::decode_all(&framed(&json), 1).unwrap();
    let Change::Put(object) = &changes[0] else { panic!("{changes:?}") };
    let Object::Pool(kept) = &**object else { panic!("{object:?}") };
    assert_eq!(kept.unknown.keys().collect::<Vec<_>>(), ["tier", "zebra"]);
    assert!(!kept.unknown.contains_key("kind"));
    assert_eq!(Change::decode_all(&changes[0].encode().unwrap(), 1).unwrap(), changes);
    let blob = encode([&**object]).unwrap();
    assert_eq!(decode(&blob).unwrap()[0], **object);
    assert!(String::from_utf8_lossy(&blob).contains("18446744073709551615"));

    let json = r#"{"put":{"kind":"tape","uuid":"00000000-0000-0000-0000-000000000001","name":"p"}}"#;
    assert!(matches!(
        Change::decode_all(&framed(json), 1),
        Err(FormatError::Value { what: What::Catalogue, field: "object", .. })
    ));
}

#[test]
fn what_cannot_be_is_refused() {
    let deep = "[".repeat(100_000);
    let cases = [
        String::new(),
        "{}".to_owned(),
        "null".to_owned(),
        r#"{"drop":"00000000-0000-0000-0000-000000000001"}"#.to_owned(),
        r#"{"remove":"not a uuid"}"#.to_owned(),
        r#"{"remove":"00000000-0000-0000-0000-000000000001"} "x""#.to_owned(),
        format!(r#"{{"put":{A_POOL}}}"#),
        format!(r#"{{"put":{A_POOL},"name":"q"}}}}"#),
        format!(r#"{{"put":{A_POOL},"properties":{{"a":1}}}}}}"#),
        format!(r#"{{"put":{A_POOL},"x":{deep}"#),
        format!(r#"{{"put":{}}}}}"#, A_POOL.replace("\"p\"", "\"\"")),
        format!(r#"{{"put":{}}}}}"#, A_POOL.replace("\"p\"", "\"a\\u0000b\"")),
        format!(r#"{{"put":{}}}}}"#, A_POOL.replace("\"p\"", &format!("\"{}\"", "x".repeat(256)))),
    ];
    for json in &cases {
        let error = Change::decode_all(&framed(json), 1).unwrap_err();
        assert!(matches!(error, FormatError::Value { .. }), "{error}: {:.80}", json);
    }
    let good = format!(r#"{{"put":{A_POOL}}}}}"#);
    assert_eq!(Change::decode_all(&framed(&good), 1), Ok(vec![Change::Put(Box::new(Object::Pool(pool2())))]));
    let long = u32::try_from(MAX_CHANGE_BYTES + 1).unwrap().to_le_bytes();
    assert!(matches!(Change::decode_all(&long, 1), Err(FormatError::TooMany { .. })));

    for bad_volume in [
        VolumeObject { size_bytes: 0, ..volume(1) },
        VolumeObject { size_bytes: 4097, ..volume(1) },
        VolumeObject { size_bytes: MAX_VOLUME_BYTES + 4096, ..volume(1) },
        VolumeObject { block_bytes: 1024, ..volume(1) },
        VolumeObject { name: String::new(), ..volume(1) },
    ] {
        let object = Object::Volume(bad_volume);
        assert!(encode([&object]).is_err() && Change::Put(Box::new(object)).encode().is_err());
    }
    let hosts = vec!["n".repeat(200); 2000];
    let large = Change::Put(Box::new(Object::Volume(VolumeObject { allowed_hosts: hosts, ..volume(1) })));
    assert!(matches!(large.encode(), Err(FormatError::TooMany { .. })));
}

fn pool2() -> PoolObject {
    PoolObject { name: "p".to_owned(), ..pool() }
}

#[test]
fn a_catalogue_with_an_object_twice_is_refused() {
    let twice = encode(&[Object::Volume(volume(5)), Object::Snapshot(snapshot(5))]).unwrap();
    assert!(matches!(decode(&twice), Err(FormatError::Value { field: "uuid", .. })));
    let other_pool = PoolObject { uuid: Uuid::from_u128(8), ..pool() };
    let twice = encode(&[Object::Pool(pool()), Object::Pool(other_pool)]).unwrap();
    assert!(matches!(decode(&twice), Err(FormatError::Value { field: "uuid", .. })));
    let mut bytes = encode(&objects()).unwrap();
    for (at, byte) in [(0, 0), (8, 2), (10, 1), (12, 3), (12, 5), (15, 1)] {
        let kept = std::mem::replace(&mut bytes[at], byte);
        assert!(decode(&bytes).is_err(), "byte {at}");
        bytes[at] = kept;
    }
}

#[test]
fn changed_bytes_do_not_panic() {
    let mut rng = Rng(12);
    let (blob, changes) = (encode(&objects()).unwrap(), encoded_changes());
    for _ in 0..5000 {
        let mut bytes = if rng.below(2) == 0 { blob.clone() } else { changes.clone() };
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] = rng.next() as u8;
        }
        if let Ok(objects) = decode(&bytes) {
            assert_eq!(decode(&encode(&objects).unwrap()), Ok(objects));
        }
        let _ = Change::decode_all(&bytes, 5);
    }
}

/// A change of these bytes is a change of the format: new fields need a default, and these must stay readable.
#[test]
fn golden_bytes() {
    let json = concat!(
        r#"{"put":{"kind":"volume","uuid":"00000000-0000-0000-0000-000000000003","name":"replica 3 \"ä\"","#,
        r#""line":4294967295,"size_bytes":1099511627776,"block_bytes":512,"thin":true,"#,
        r#""created_unix_ns":18446744073709551615}}"#,
    );
    let change = Change::Put(Box::new(Object::Volume(plain_volume(3))));
    assert_eq!(String::from_utf8_lossy(&change.encode().unwrap()[4..]), json);
    assert_eq!(change.encode().unwrap(), framed(json));
    let json = concat!(
        r#"{"put":{"kind":"volume","uuid":"00000000-0000-0000-0000-000000000002","name":"replica 2 \"ä\"","#,
        r#""line":4294967295,"size_bytes":1099511627776,"block_bytes":512,"thin":true,"#,
        r#""created_unix_ns":18446744073709551615,"shared":"nvmf","#,
        r#""allowed_hosts":["nqn.2014-08.org.nvmexpress:uuid:1",""],"entity_id":"owner","#,
        r#""clone_of":{"snapshot":"00000000-0000-0000-0000-00000000004d","created_unix_ns":5},"#,
        r#""properties":{"a":"b\n"}}}"#,
    );
    let change = Change::Put(Box::new(Object::Volume(volume(2))));
    assert_eq!(String::from_utf8_lossy(&change.encode().unwrap()[4..]), json);
    let json = concat!(
        r#"{"put":{"kind":"snapshot","uuid":"00000000-0000-0000-0000-000000000004","name":"snap","line":3,"#,
        r#""epoch":18446744073709551614,"size_bytes":4096,"source":"00000000-0000-0000-0000-000000000002","#,
        r#""source_name":"replica","txn_id":"t","entity_id":"","parent_id":"p","created_unix_ns":1,"#,
        r#""discarded":true}}"#,
    );
    let change = Change::Put(Box::new(Object::Snapshot(snapshot(4))));
    assert_eq!(String::from_utf8_lossy(&change.encode().unwrap()[4..]), json);
    let change = Change::Remove(Uuid::from_u128(9));
    let json = r#"{"remove":"00000000-0000-0000-0000-000000000009"}"#;
    assert_eq!(change.encode().unwrap(), framed(json));

    let blob = encode([&Object::Pool(pool2())]).unwrap();
    let head = [b'K', b'S', b'c', b'a', b't', b'a', b'l', b'g', 1, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(blob, [&head[..], &framed(&format!("{A_POOL}}}"))].concat());
}
