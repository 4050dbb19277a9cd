//! A backup is read, piece by piece, and believed only as far as it agrees with itself.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message as _;

use super::format::{Begin, Body, Change, Frame, MAGIC, MAX_FRAME, VERSION};
use crate::{Part, Position, history::Difference};

/// Why bytes are not a backup, or not one that can be used.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("this is not a backup of a store")]
    Foreign,
    #[error("the backup is of version {0}, which this program does not know: use a later one")]
    Version(u32),
    #[error("the backup ends too early: the rest of it is missing")]
    Truncated,
    /// Whole frames that say what cannot be; or bytes that are no frames.
    #[error("the backup is damaged: {0}")]
    Damaged(String),
}

/// One kind within a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    pub kind: String,
    /// What its records are of.
    pub position: Position,
    /// The oldest revision whose state can be told.
    pub floor: u64,
    pub records: u64,
    pub changes: u64,
}

/// What comes next in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// When it was begun: Unix milliseconds. Always the first.
    Begin { at_unix_ms: u64 },
    /// A kind begins: then come its records in the order of their keys, then its changes, the newest first.
    Section(Section),
    /// A record or a change of that kind.
    Part(Part),
    /// It was whole.
    End,
}

/// Reads a backup from pieces of any size, and checks it: order, numbers, checksum.
pub struct Reader {
    bytes: BytesMut,
    sha256: Context,
    at: At,
    section: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Magic,
    Begin,
    Sections,
    End,
}

/// What is expected of the present section.
#[derive(Debug, Default)]
struct Progress {
    records: u64,
    changes: u64,
    head: u64,
    floor: u64,
    /// The key before.
    key: Option<String>,
    /// The revision before; the head at first.
    revision: Option<u64>,
}

impl Default for Reader {
    fn default() -> Self {
        let (bytes, section) = (BytesMut::new(), Progress::default());
        Self { bytes, sha256: Context::new(&SHA256), at: At::Magic, section }
    }
}

impl Reader {
    /// The next bytes of the backup.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What can be read of what was pushed; nothing when more is needed.
    ///
    /// # Errors
    /// [`FormatError`]; nothing can be read any more.
    pub fn item(&mut self) -> Result<Option<Item>, FormatError> {
        if self.at == At::Magic {
            let known = self.bytes.len().min(MAGIC.len());
            if self.bytes[..known] != MAGIC[..known] {
                return Err(FormatError::Foreign);
            }
            if known < MAGIC.len() {
                return Ok(None);
            }
            let magic = self.bytes.split_to(known);
            self.sha256.update(&magic);
            self.at = At::Begin;
        }
        let Some((frame, whole)) = self.frame()? else { return Ok(None) };
        let body = Frame::decode(frame).map_err(|error| damaged(error.to_string()))?.body;
        let item = self.check(body.ok_or_else(|| damaged("an empty frame"))?)?;
        self.sha256.update(&whole);
        Ok(Some(item))
    }

    /// Says that no more bytes come.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] when it was not whole.
    pub fn finish(self) -> Result<(), FormatError> {
        match self.at {
            At::End if self.bytes.is_empty() => Ok(()),
            At::End => Err(damaged("something comes after its end")),
            At::Magic if self.bytes.is_empty() => Err(FormatError::Foreign),
            At::Magic | At::Begin | At::Sections => Err(FormatError::Truncated),
        }
    }

    /// The next frame, and the same with its length before it.
    fn frame(&mut self) -> Result<Option<(Bytes, Bytes)>, FormatError> {
        let mut rest = &self.bytes[..];
        let Ok(length) = prost::decode_length_delimiter(&mut rest) else {
            return if self.bytes.len() < 10 { Ok(None) } else { Err(damaged("a frame without a length")) };
        };
        if length as u64 > MAX_FRAME {
            return Err(damaged("a frame that is too long"));
        }
        let before = self.bytes.len() - rest.len();
        if rest.len() < length {
            return Ok(None);
        }
        let whole = self.bytes.split_to(before + length).freeze();
        let mut frame = whole.clone();
        frame.advance(before);
        Ok(Some((frame, whole)))
    }

    fn check(&mut self, body: Body) -> Result<Item, FormatError> {
        match (self.at, body) {
            (At::Begin, Body::Begin(Begin { version: VERSION, at_unix_ms })) => {
                self.at = At::Sections;
                Ok(Item::Begin { at_unix_ms })
            }
            (At::Begin, Body::Begin(begin)) => Err(FormatError::Version(begin.version)),
            (At::Sections, Body::Section(section)) => {
                self.section.ended()?;
                let (head, floor) = (section.head, section.floor);
                self.section =
                    Progress { records: section.records, changes: section.changes, head, floor, ..Progress::default() };
                let position = Position::new(section.epoch, head);
                let (kind, records, changes) = (section.kind, section.records, section.changes);
                Ok(Item::Section(Section { kind, position, floor, records, changes }))
            }
            (At::Sections, Body::Record(record)) => {
                let record = crate::Record { key: record.key, revision: record.revision, value: record.value };
                self.section.record(&record)?;
                Ok(Item::Part(Part::Record(record)))
            }
            (At::Sections, Body::Change(change)) => {
                let change = whole(change)?;
                self.section.change(change.entry.revision)?;
                Ok(Item::Part(Part::Change(change)))
            }
            (At::Sections, Body::End(end)) => {
                self.section.ended()?;
                if self.sha256.clone().finish().as_ref() != &end.sha256[..] {
                    return Err(damaged("its checksum is that of other bytes"));
                }
                self.at = At::End;
                Ok(Item::End)
            }
            _ => Err(damaged("a frame where it cannot be")),
        }
    }
}

impl Progress {
    fn record(&mut self, record: &crate::Record) -> Result<(), FormatError> {
        let in_order = self.key.as_deref().is_none_or(|before| before < record.key.as_str());
        if self.records == 0 || self.revision.is_some() || !in_order || !(1..=self.head).contains(&record.revision) {
            return Err(damaged(format!("the record of {} where it cannot be", record.key)));
        }
        self.records -= 1;
        self.key = Some(record.key.clone());
        Ok(())
    }

    fn change(&mut self, revision: u64) -> Result<(), FormatError> {
        let later = self.revision.unwrap_or(self.head.saturating_add(1));
        if self.records > 0 || self.changes == 0 || revision >= later || revision <= self.floor {
            return Err(damaged(format!("the change of revision {revision} where it cannot be")));
        }
        self.changes -= 1;
        self.revision = Some(revision);
        Ok(())
    }

    fn ended(&self) -> Result<(), FormatError> {
        match (self.records, self.changes) {
            (0, 0) => Ok(()),
            (records, changes) => Err(damaged(format!("{records} records and {changes} changes are missing"))),
        }
    }
}

fn whole(change: Change) -> Result<crate::Change, FormatError> {
    let Change { key, revision, at_unix_ms, value, previous } = change;
    let previous = match previous {
        None => None,
        Some(previous) => {
            let difference = Difference { prefix: previous.prefix, suffix: previous.suffix, middle: &previous.middle };
            let old = difference.old(value.as_deref().unwrap_or_default());
            let old = old.ok_or_else(|| damaged(format!("the change of revision {revision} contradicts itself")))?;
            Some(crate::Record { key: key.clone(), revision: previous.revision, value: old })
        }
    };
    Ok(crate::Change { entry: crate::Entry { key, revision, value, at_unix_ms }, previous })
}

fn damaged(what: impl Into<String>) -> FormatError {
    FormatError::Damaged(what.into())
}
