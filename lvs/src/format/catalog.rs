//! The catalogue: the pool, its volumes and its snapshots, with all that they carry for others.
//!
//! Objects are JSON: they are few and cold, they get new fields more often than anything else here, and they can be
//! read in a hex dump. A field that this version does not know is kept and written again with the object; an object
//! of an unknown kind is refused, for what it needs to stay true is not known either.

use super::bytes::{Reader, at_most};
use super::label::is_name;
use super::page::MAX_BLOCKS;
use super::record::MAX_CATALOGUE_BYTES;
use super::{FormatError, What};
use crate::types::{BLOCK_BYTES, LineId, MAX_VOLUME_BYTES, Seq};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most bytes of one encoded change: what a Catalogue record can hold.
pub const MAX_CHANGE_BYTES: usize = MAX_CATALOGUE_BYTES;
/// Most bytes of the whole catalogue, some 100,000 objects: it is held in memory.
pub const MAX_CATALOGUE_BLOB_BYTES: usize = 64 << 20;
/// Most objects of a pool.
pub const MAX_OBJECTS: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"KScatalg";
const VERSION: u16 = 1;

/// Fields that this version does not know.
pub type Unknown = BTreeMap<String, serde_json::Value>;

/// What the catalogue is made of.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Object {
    /// The pool itself: there is one.
    Pool(PoolObject),
    /// A volume: a replica or a clone.
    Volume(VolumeObject),
    /// A snapshot.
    Snapshot(SnapshotObject),
}

/// The pool itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PoolObject {
    /// Identity of the pool.
    pub uuid: Uuid,
    /// 1 to 255 bytes.
    pub name: String,
    /// For others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// What else stood there.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A volume.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VolumeObject {
    /// Its identity.
    pub uuid: Uuid,
    /// 1 to 255 bytes.
    pub name: String,
    /// The line whose head it is.
    #[serde(with = "line_number")]
    pub line: LineId,
    /// Its size, whole blocks of the store.
    pub size_bytes: u64,
    /// Its block size: 512 or 4096.
    pub block_bytes: u32,
    /// Without reservation.
    pub thin: bool,
    /// When it was made, in nanoseconds since 1970.
    pub created_unix_ns: u64,
    /// Protocol over which it is shared, and is again after an import: `nvmf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<String>,
    /// Host NQNs that may connect; empty = all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_hosts: Vec<String>,
    /// The owner's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity_id: Option<String>,
    /// What it was cloned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<CloneOf>,
    /// For others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// What else stood there.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What a clone was made from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CloneOf {
    /// The snapshot.
    pub snapshot: Uuid,
    /// When the clone was made as its maker says, in nanoseconds since 1970.
    pub created_unix_ns: u64,
}

/// A snapshot.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SnapshotObject {
    /// Its identity.
    pub uuid: Uuid,
    /// 1 to 255 bytes.
    pub name: String,
    /// The line that it belongs to.
    #[serde(with = "line_number")]
    pub line: LineId,
    /// It sees what was born before this number.
    #[serde(with = "seq_number")]
    pub epoch: Seq,
    /// Size of the volume at that time.
    pub size_bytes: u64,
    /// The volume that it was taken of, which may be gone.
    pub source: Uuid,
    /// That volume's name at that time.
    pub source_name: String,
    /// The transaction that it belongs to.
    pub txn_id: String,
    /// The owner's name for it.
    pub entity_id: String,
    /// What its maker gave as its parent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent_id: String,
    /// When, as its maker says, in nanoseconds since 1970.
    pub created_unix_ns: u64,
    /// Deleted, but clones still need it.
    #[serde(default)]
    pub discarded: bool,
    /// For others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// What else stood there.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Object {
    /// Its identity, unique in the pool.
    pub fn uuid(&self) -> Uuid {
        match self {
            Self::Pool(pool) => pool.uuid,
            Self::Volume(volume) => volume.uuid,
            Self::Snapshot(snapshot) => snapshot.uuid,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Pool(pool) => &pool.name,
            Self::Volume(volume) => &volume.name,
            Self::Snapshot(snapshot) => &snapshot.name,
        }
    }

    /// The first field that cannot be.
    fn check(&self) -> Result<(), &'static str> {
        if !is_name(self.name()) {
            return Err("name");
        }
        let is_size = |size_bytes: u64| {
            size_bytes > 0
                && size_bytes <= MAX_VOLUME_BYTES.min(MAX_BLOCKS * u64::from(BLOCK_BYTES))
                && size_bytes.is_multiple_of(BLOCK_BYTES.into())
        };
        match self {
            Self::Pool(_) => Ok(()),
            Self::Volume(volume) if !is_size(volume.size_bytes) => Err("size"),
            Self::Volume(volume) if ![512, 4096].contains(&volume.block_bytes) => Err("block size"),
            Self::Volume(_) => Ok(()),
            Self::Snapshot(snapshot) if !is_size(snapshot.size_bytes) => Err("size"),
            Self::Snapshot(_) => Ok(()),
        }
    }
}

/// A change of the catalogue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The object is new, or is now this.
    Put(Box<Object>),
    /// The object of this uuid is gone.
    Remove(Uuid),
}

impl Change {
    /// As it stands in a Catalogue record: its length and its JSON.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        if let Self::Put(object) = self {
            object.check().map_err(|field| bad(field, 4))?;
        }
        let mut bytes = Vec::new();
        append_frame(&mut bytes, self)?;
        at_most(What::Catalogue, "bytes of a change", bytes.len(), MAX_CHANGE_BYTES)?;
        Ok(bytes)
    }

    /// All changes of a Catalogue record, in order. `count` is the number that its header states.
    pub fn decode_all(bytes: &[u8], count: u32) -> Result<Vec<Self>, FormatError> {
        let mut reader = Reader::new(What::Catalogue, bytes);
        let mut changes = Vec::new();
        while !reader.is_at_end() {
            let at_bytes = reader.at_bytes() + 4;
            let change: Self = take_frame(&mut reader)?;
            if let Self::Put(object) = &change {
                object.check().map_err(|field| bad(field, at_bytes))?;
            }
            changes.push(change);
        }
        if changes.len() != count as usize {
            return Err(bad("number of changes", 0));
        }
        Ok(changes)
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U16,
    reserved: [u8; 2],
    count: U32,
}

const _: () = assert!(size_of::<Head>() == 16);

/// The whole catalogue as a blob, object by object.
pub struct Encoder {
    bytes: Vec<u8>,
    count: usize,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { bytes: vec![0; size_of::<Head>()], count: 0 }
    }
}

impl Encoder {
    /// Adds an object.
    pub fn push(&mut self, object: &Object) -> Result<(), FormatError> {
        object.check().map_err(|field| bad(field, self.bytes.len()))?;
        append_frame(&mut self.bytes, object)?;
        self.count += 1;
        at_most(What::Catalogue, "objects", self.count, MAX_OBJECTS)?;
        at_most(What::Catalogue, "bytes", self.bytes.len(), MAX_CATALOGUE_BLOB_BYTES)
    }

    /// The blob.
    pub fn finish(mut self) -> Vec<u8> {
        let (version, count) = (VERSION.into(), (self.count as u32).into());
        let head = Head { magic: MAGIC, version, reserved: [0; 2], count };
        self.bytes[..size_of::<Head>()].copy_from_slice(head.as_bytes());
        self.bytes
    }
}

/// The whole catalogue as a blob.
#[cfg(test)]
pub(crate) fn encode<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Result<Vec<u8>, FormatError> {
    let mut encoder = Encoder::default();
    objects.into_iter().try_for_each(|object| encoder.push(object))?;
    Ok(encoder.finish())
}

/// The whole catalogue from a blob. No uuid stands in it twice, and at most one pool.
pub fn decode(bytes: &[u8]) -> Result<Vec<Object>, FormatError> {
    let what = What::Catalogue;
    at_most(what, "bytes", bytes.len(), MAX_CATALOGUE_BLOB_BYTES)?;
    let mut reader = Reader::new(what, bytes);
    let head: Head = reader.take()?;
    if head.magic != MAGIC {
        return Err(FormatError::Magic(what));
    }
    if head.version.get() != VERSION {
        return Err(FormatError::Version { what, found: head.version.get() });
    }
    if head.reserved != [0; 2] {
        return Err(bad("reserved part", 10));
    }
    at_most(what, "objects", head.count.get() as usize, MAX_OBJECTS)?;
    let mut objects = Vec::new();
    let (mut uuids, mut pools) = (BTreeSet::new(), 0);
    for _ in 0..head.count.get() {
        let at_bytes = reader.at_bytes() + 4;
        let object: Object = take_frame(&mut reader)?;
        object.check().map_err(|field| bad(field, at_bytes))?;
        pools += usize::from(matches!(object, Object::Pool(_)));
        if !uuids.insert(object.uuid()) || pools > 1 {
            return Err(bad("uuid", at_bytes));
        }
        objects.push(object);
    }
    if !reader.is_at_end() {
        return Err(reader.bad("end", 0));
    }
    Ok(objects)
}

fn bad(field: &'static str, at_bytes: usize) -> FormatError {
    FormatError::Value { what: What::Catalogue, field, at_bytes }
}

/// Appends the length and the JSON of `value`.
fn append_frame(bytes: &mut Vec<u8>, value: &impl Serialize) -> Result<(), FormatError> {
    let at = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    // Maps with keys other than strings are all that JSON cannot hold, and there are none.
    serde_json::to_writer(&mut *bytes, value).map_err(|_| bad("object", at))?;
    let len_bytes = bytes.len() - at - 4;
    at_most(What::Catalogue, "bytes of an object", len_bytes, MAX_CHANGE_BYTES)?;
    bytes[at..at + 4].copy_from_slice(&(len_bytes as u32).to_le_bytes());
    Ok(())
}

/// Takes a length and as much JSON. The parser has its own limit of depth, and its memory is bounded by the bytes.
fn take_frame<T: for<'de> Deserialize<'de>>(reader: &mut Reader<'_>) -> Result<T, FormatError> {
    let len_bytes = reader.take::<U32>()?.get() as usize;
    at_most(What::Catalogue, "bytes of an object", len_bytes, MAX_CHANGE_BYTES)?;
    let at_bytes = reader.at_bytes();
    let json = reader.take_bytes(len_bytes)?;
    serde_json::from_slice(json).map_err(|error| bad("object", at_bytes + error.column().saturating_sub(1)))
}

mod line_number {
    use super::LineId;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(line: &LineId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(line.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<LineId, D::Error> {
        u32::deserialize(from).map(LineId)
    }
}

mod seq_number {
    use super::Seq;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(seq: &Seq, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(seq.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Seq, D::Error> {
        u64::deserialize(from).map(Seq)
    }
}

#[cfg(test)]
mod tests;
