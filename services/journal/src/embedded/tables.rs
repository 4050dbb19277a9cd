//! What lies in the file, and how it is read.
//!
//! | table | key → value |
//! | --- | --- |
//! | `meta` | name → number: the epoch and, per kind, the counters of [`Names`] |
//! | `KIND/records` | key → revision, value |
//! | `KIND/changes` | revision → when, key, value, what was there before |
//!
//! What was there before is kept as its difference from the new value, so that a change of one field of a record costs
//! the past a few bytes more than the record.

use std::{collections::HashMap, ops::Bound};

use bytes::Bytes;
use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable, ReadableTableMetadata as _, TableDefinition,
    TableError,
};

use crate::{Change, Entry, Position, Record, Snapshot, history::Difference};

pub(super) type Meta = TableDefinition<'static, &'static str, u64>;
pub(super) type Records<'a> = TableDefinition<'a, &'static str, (u64, &'static [u8])>;
pub(super) type Changes<'a> = TableDefinition<'a, u64, RawChange<'static>>;

/// When (Unix milliseconds), key, value (absent: the record went), and of the record before: its revision (0: there was
/// none), how many bytes at the beginning and at the end of its value are those of the new value, and those in between.
pub(super) type RawChange<'a> = (u64, &'a str, Option<&'a [u8]>, u64, u32, u32, &'a [u8]);

pub(super) const META: Meta = TableDefinition::new("meta");
pub(super) const EPOCH: &str = "epoch";

/// Entries that a tail reads at once.
const TAIL_BATCH: usize = 1024;
/// Bytes of values after which a read stops and goes on later.
pub(super) const BATCH_BYTES: usize = 1 << 20;

/// The names of one kind's tables and counters.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) records: String,
    pub(super) changes: String,
    /// The last revision.
    pub(super) head: String,
    /// The last revision that the log no longer has.
    pub(super) floor: String,
    /// The revision at which this epoch began. What the log has of before is for undoing, not for who follows.
    pub(super) base: String,
    /// What the log's entries take, roughly: [`size`].
    pub(super) bytes: String,
}

impl Names {
    pub(super) fn of(kind: &str) -> Self {
        let name = |part| format!("{kind}/{part}");
        Self {
            records: name("records"),
            changes: name("changes"),
            head: name("head"),
            floor: name("floor"),
            base: name("base"),
            bytes: name("bytes"),
        }
    }

    pub(super) fn head(&self, database: &Database) -> Result<u64, redb::Error> {
        let transaction = database.begin_read()?;
        counter(&transaction, &self.head)
    }

    pub(super) fn count(&self, database: &Database) -> Result<u64, redb::Error> {
        let transaction = database.begin_read()?;
        let Some(table) = present(transaction.open_table(Records::new(&self.records)))? else { return Ok(0) };
        Ok(table.len()?)
    }

    pub(super) fn get(&self, database: &Database, key: &str) -> Result<Option<Record>, redb::Error> {
        let transaction = database.begin_read()?;
        let Some(table) = present(transaction.open_table(Records::new(&self.records)))? else { return Ok(None) };
        let found = table.get(key)?;
        Ok(found.map(|found| record(key, found.value())))
    }

    pub(super) fn snapshot(&self, database: &Database, epoch: u64) -> Result<Snapshot, redb::Error> {
        let transaction = database.begin_read()?;
        let position = Position::new(epoch, counter(&transaction, &self.head)?);
        let mut records = Vec::new();
        if let Some(table) = present(transaction.open_table(Records::new(&self.records)))? {
            for found in table.iter()? {
                let (key, found) = found?;
                records.push(record(key.value(), found.value()));
            }
        }
        Ok(Snapshot { position, records })
    }

    pub(super) fn records_after(
        &self,
        database: &Database,
        after: &str,
        most: usize,
    ) -> Result<Vec<Record>, redb::Error> {
        let transaction = database.begin_read()?;
        let Some(table) = present(transaction.open_table(Records::new(&self.records)))? else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        for found in table.range::<&str>((Bound::Excluded(after), Bound::Unbounded))?.take(most) {
            let (key, found) = found?;
            records.push(record(key.value(), found.value()));
        }
        Ok(records)
    }

    /// The next changes after a revision, or nothing when they are no longer all there.
    pub(super) fn changes_after(&self, database: &Database, after: u64) -> Result<Option<Vec<Entry>>, redb::Error> {
        let transaction = database.begin_read()?;
        let from = counter(&transaction, &self.floor)?.max(counter(&transaction, &self.base)?);
        if from > after {
            return Ok(None);
        }
        let Some(table) = present(transaction.open_table(Changes::new(&self.changes)))? else { return Ok(None) };
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for found in table.range(after + 1..)?.take(TAIL_BATCH) {
            let (revision, found) = found?;
            let (at_unix_ms, key, value, ..) = found.value();
            bytes += value.map_or(0, <[u8]>::len);
            let value = value.map(Bytes::copy_from_slice);
            entries.push(Entry { key: key.to_owned(), revision: revision.value(), value, at_unix_ms });
            if bytes > BATCH_BYTES {
                break;
            }
        }
        Ok((!entries.is_empty()).then_some(entries))
    }
}

/// A row of a table of records.
pub(super) fn record(key: &str, (revision, value): (u64, &[u8])) -> Record {
    Record { key: key.to_owned(), revision, value: Bytes::copy_from_slice(value) }
}

/// A row of a table of changes. Nothing where it contradicts itself: somebody else wrote it.
pub(super) fn change(revision: u64, raw: RawChange<'_>) -> Option<Change> {
    let (at_unix_ms, key, value, before, prefix, suffix, middle) = raw;
    let previous = match before {
        0 => None,
        revision => {
            let value = Difference { prefix, suffix, middle }.old(value.unwrap_or_default())?;
            Some(Record { key: key.to_owned(), revision, value })
        }
    };
    let value = value.map(Bytes::copy_from_slice);
    Some(Change { entry: Entry { key: key.to_owned(), revision, value, at_unix_ms }, previous })
}

/// The row for a change at which `previous` (revision, value) was there.
pub(super) fn raw<'a>(
    at: u64,
    key: &'a str,
    value: Option<&'a [u8]>,
    previous: Option<(u64, &'a [u8])>,
) -> RawChange<'a> {
    let Some((revision, old)) = previous else { return (at, key, value, 0, 0, 0, &[]) };
    let Difference { prefix, suffix, middle } = Difference::between(old, value.unwrap_or_default());
    (at, key, value, revision, prefix, suffix, middle)
}

/// What a change takes in the file, roughly: its bytes and those of the table around it.
pub(super) fn size(raw: &RawChange<'_>) -> u64 {
    let (_, key, value, _, _, _, middle) = raw;
    (key.len() + value.map_or(0, <[u8]>::len) + middle.len() + 64) as u64
}

pub(super) fn counter(transaction: &ReadTransaction, name: &str) -> Result<u64, redb::Error> {
    let Some(meta) = present(transaction.open_table(META))? else { return Ok(0) };
    number(&meta, name)
}

/// What the table of counters says under that name.
pub(super) fn number(meta: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, redb::Error> {
    Ok(meta.get(name)?.map_or(0, |value| value.value()))
}

/// The last revision of each kind that was ever written to.
pub(super) fn heads(database: &Database) -> Result<HashMap<String, u64>, redb::Error> {
    let mut heads = HashMap::new();
    if let Some(meta) = present(database.begin_read()?.open_table(META))? {
        for found in meta.iter()? {
            let (name, head) = found?;
            if let Some(kind) = name.value().strip_suffix("/head") {
                heads.insert(kind.to_owned(), head.value());
            }
        }
    }
    Ok(heads)
}

/// A table that nobody has written to does not exist yet.
pub(super) fn present<T>(opened: Result<T, TableError>) -> Result<Option<T>, redb::Error> {
    match opened {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
