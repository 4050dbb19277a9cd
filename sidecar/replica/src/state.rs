//! The state file: what a follower holds, so that it can start while its parent is dead.
//!
//! Layout, numbers little-endian: magic (8 bytes), kind and view (u32 length, text), the guards' rules (u32 length, a
//! `GuardRules` message), epoch, revision, number of records (u64 each); per record the length of its key and of its value (u32 each), its revision (u64), key, value; at the end the xxh3
//! checksum (16 bytes) of all that came before. A key may stand twice: the record that does not decode here comes last,
//! after the one that is served instead.

use std::{
    fs,
    io::{self, BufWriter, Write},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Buf as _, Bytes};
use prost::Message as _;
use tenon_proto::replication::v1::GuardRules;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::{Position, Value};

const MAGIC: &[u8; 8] = b"TENONST2";
/// Of files that were written before there were rules.
const MAGIC_WITHOUT_RULES: &[u8; 8] = b"TENONST1";
const CHECKSUM_BYTES: usize = 16;

/// What a state file says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) position: Position,
    pub(crate) view: String,
    /// What the guards were told.
    pub(crate) rules: GuardRules,
    pub(crate) records: Vec<Stored>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) key: String,
    pub(crate) revision: u64,
    pub(crate) value: Bytes,
}

/// What is to be written to a state file.
pub(crate) struct Saved<V> {
    pub(crate) position: Position,
    pub(crate) view: Arc<str>,
    pub(crate) rules: GuardRules,
    pub(crate) held: Vec<V>,
    pub(crate) refused: Vec<(Arc<str>, u64, Bytes)>,
}

/// Why a state file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot be read")]
    Read(#[source] io::Error),
    #[error("is damaged: its checksum is wrong")]
    Checksum,
    #[error("is not a state file of this kind and version")]
    Foreign,
}

/// Where the state of `kind` stands below `dir`.
pub(crate) fn path(dir: &Path, kind: &str) -> PathBuf {
    dir.join(format!("{kind}.state"))
}

/// Reads the state of `kind`. A file that is not there is no error.
pub(crate) fn load(path: &Path, kind: &str) -> Result<Option<State>, LoadError> {
    match fs::read(path) {
        Ok(bytes) => decode(Bytes::from(bytes), kind).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LoadError::Read(error)),
    }
}

/// Replaces the file as a whole: after a crash at any point it has the old content or the new one.
pub(crate) fn save<V: Value>(path: &Path, kind: &str, saved: &Saved<V>) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let fresh = path.with_extension("state.new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).and_then(|file| {
        let mut out = BufWriter::with_capacity(1 << 18, file);
        encode(&mut out, kind, saved)?;
        out.into_inner()?.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&fresh, path)) {
        let _ = fs::remove_file(&fresh); // Gives a full disk its room back.
        return Err(error);
    }
    fs::File::open(dir)?.sync_all()
}

fn encode<V: Value>(out: impl Write, kind: &str, saved: &Saved<V>) -> io::Result<()> {
    let mut out = Hashing { out, hash: Xxh3::new() };
    out.write_all(MAGIC)?;
    for text in [kind.as_bytes(), saved.view.as_bytes(), &saved.rules.encode_to_vec()] {
        out.write_all(&length(text.len())?)?;
        out.write_all(text)?;
    }
    for number in [saved.position.epoch, saved.position.revision, (saved.held.len() + saved.refused.len()) as u64] {
        out.write_all(&number.to_le_bytes())?;
    }
    for value in &saved.held {
        record(&mut out, value.key(), value.revision(), value.raw())?;
    }
    for (key, revision, raw) in &saved.refused {
        record(&mut out, key, *revision, raw)?;
    }
    let checksum = out.hash.digest128();
    out.out.write_all(&checksum.to_le_bytes())
}

fn record(out: &mut impl Write, key: &str, revision: u64, value: &[u8]) -> io::Result<()> {
    out.write_all(&length(key.len())?)?;
    out.write_all(&length(value.len())?)?;
    out.write_all(&revision.to_le_bytes())?;
    out.write_all(key.as_bytes())?;
    out.write_all(value)
}

fn length(length: usize) -> io::Result<[u8; 4]> {
    u32::try_from(length).map(u32::to_le_bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn decode(mut bytes: Bytes, kind: &str) -> Result<State, LoadError> {
    let Some(end) = bytes.len().checked_sub(CHECKSUM_BYTES) else { return Err(LoadError::Checksum) };
    let checksum = bytes.split_off(end).get_u128_le();
    if xxh3_128(&bytes) != checksum {
        return Err(LoadError::Checksum);
    }
    parse(bytes, kind).ok_or(LoadError::Foreign)
}

fn parse(mut bytes: Bytes, kind: &str) -> Option<State> {
    let magic = take(&mut bytes, MAGIC.len())?;
    if ![MAGIC, MAGIC_WITHOUT_RULES].iter().any(|known| magic == known[..]) {
        return None;
    }
    if text(&mut bytes)? != kind {
        return None;
    }
    let view = text(&mut bytes)?;
    let mut rules = GuardRules::default();
    if magic == MAGIC[..] {
        let length = bytes.try_get_u32_le().ok()?;
        rules = GuardRules::decode(take(&mut bytes, length as usize)?).ok()?;
    }
    let position = Position::new(bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
    let count = bytes.try_get_u64_le().ok()?;
    let mut records = Vec::new();
    for _ in 0..count {
        let key = bytes.try_get_u32_le().ok()?;
        let value = bytes.try_get_u32_le().ok()?;
        let revision = bytes.try_get_u64_le().ok()?;
        let key = String::from_utf8(take(&mut bytes, key as usize)?.into()).ok()?;
        records.push(Stored { key, revision, value: take(&mut bytes, value as usize)? });
    }
    bytes.is_empty().then_some(State { position, view, rules, records })
}

fn text(bytes: &mut Bytes) -> Option<String> {
    let length = bytes.try_get_u32_le().ok()?;
    String::from_utf8(take(bytes, length as usize)?.into()).ok()
}

fn take(bytes: &mut Bytes, length: usize) -> Option<Bytes> {
    (bytes.len() >= length).then(|| bytes.split_to(length))
}

/// Hashes what it passes on, so that a large state is not held twice.
struct Hashing<W> {
    out: W,
    hash: Xxh3,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests;
