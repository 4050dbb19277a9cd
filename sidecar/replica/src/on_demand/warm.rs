//! What a cache holds, on disk, so that a restart serves the hot records although every parent is dead.
//!
//! Layout: magic (8 bytes); a `FetchResponse` with position, view and records, and the guard's rules, each with its length
//! before it; at the end the xxh3 checksum (16 bytes, little-endian) of all that came before.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message as _;
use tenon_proto::replication::v1::{FetchResponse, GuardRules, Record};
use xxhash_rust::xxh3::xxh3_128;

use crate::{Position, Value};

const MAGIC: &[u8; 8] = b"TENONOD1";
const CHECKSUM_BYTES: usize = 16;

/// What the file says.
#[derive(Debug)]
pub(super) struct Warm {
    pub(super) position: Position,
    pub(super) view: String,
    pub(super) guard_rules: GuardRules,
    /// The hottest last.
    pub(super) records: Vec<Record>,
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("cannot be read")]
    Read(#[source] io::Error),
    #[error("is damaged, or of another version")]
    Damaged,
}

/// Where a cache of `kind` is kept below `dir`.
pub(super) fn path(dir: &Path, kind: &str) -> PathBuf {
    dir.join(format!("{kind}.cache"))
}

/// Reads what the last run left. A file that is not there is no error.
pub(super) fn load(path: &Path, kind: &str) -> Result<Option<Warm>, LoadError> {
    match fs::read(path) {
        Ok(bytes) => decode(Bytes::from(bytes), kind).map(Some).ok_or(LoadError::Damaged),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LoadError::Read(error)),
    }
}

/// What is written by [`save`].
pub(super) fn encode<V: Value>(
    kind: &str,
    position: Position,
    view: String,
    rules: &GuardRules,
    values: &[V],
) -> Bytes {
    let record = |value: &V| Record {
        key: value.key().to_owned(),
        revision: value.revision(),
        value: Bytes::copy_from_slice(value.raw()),
    };
    let held = FetchResponse {
        position: Some(position.into()),
        view,
        records: values.iter().map(record).collect(),
        aliases: [(kind.to_owned(), String::new())].into(),
    };
    let mut bytes = BytesMut::with_capacity(held.encoded_len() + 1024);
    bytes.extend_from_slice(MAGIC);
    held.encode_length_delimited(&mut bytes).expect("a BytesMut grows");
    rules.encode_length_delimited(&mut bytes).expect("a BytesMut grows");
    let checksum = xxh3_128(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.freeze()
}

/// Replaces the file as a whole: after a crash at any point it has the old content or the new one.
pub(super) fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let fresh = path.with_extension("cache.new");
    let mut file = crate::state::begin(&fresh)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&fresh, path)) {
        let _ = fs::remove_file(&fresh); // Gives a full disk its room back.
        return Err(error);
    }
    fs::File::open(dir)?.sync_all()
}

fn decode(mut bytes: Bytes, kind: &str) -> Option<Warm> {
    let end = bytes.len().checked_sub(CHECKSUM_BYTES)?;
    let checksum = bytes.split_off(end).get_u128_le();
    if xxh3_128(&bytes) != checksum || bytes.try_get_u64().ok()? != u64::from_be_bytes(*MAGIC) {
        return None;
    }
    let held = FetchResponse::decode_length_delimited(&mut bytes).ok()?;
    let guard_rules = GuardRules::decode_length_delimited(&mut bytes).ok()?;
    // Another kind's file under this name is nobody's.
    held.aliases.contains_key(kind).then_some(())?;
    let position = held.position.map(Position::from)?;
    Some(Warm { position, view: held.view, guard_rules, records: held.records })
}
