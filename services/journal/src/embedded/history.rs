//! The present and the past of one kind, a few records at a time.

use std::{ops::Bound, sync::Arc};

use futures_util::stream;
use redb::{ReadTransaction, ReadableTableMetadata as _};

use super::{
    blocking,
    store::{Begun, Store},
    tables::{self, BATCH_BYTES, Changes, Names, Records, counter, present},
};
use crate::{History, Part, Position, ReadError};

/// Most parts that are read at once.
const BATCH: usize = 1024;

/// A history between two reads.
struct Reading {
    store: Arc<Store>,
    names: Arc<Names>,
    begun: Begun,
    at: At,
}

/// Where a read goes on.
#[derive(Clone, Debug)]
enum At {
    /// After this key; at the beginning.
    Records(Option<String>),
    /// Before this revision.
    Changes(u64),
}

pub(super) async fn read(store: Arc<Store>, names: Arc<Names>, epoch: u64) -> Result<History, ReadError> {
    let (head, records, changes, floor, reading) = blocking(move || {
        let begun = store.begin()?;
        let (head, records, changes, floor) = store.go_on(&begun, |transaction| {
            let records = present(transaction.open_table(Records::new(&names.records)))?;
            let changes = present(transaction.open_table(Changes::new(&names.changes)))?;
            Ok((
                counter(transaction, &names.head)?,
                records.map_or(Ok(0), |table| table.len())?,
                changes.map_or(Ok(0), |table| table.len())?,
                counter(transaction, &names.floor)?,
            ))
        })?;
        let reading = Reading { store, names, begun, at: At::Records(None) };
        Ok::<_, redb::Error>((head, records, changes, floor, reading))
    })
    .await?;
    let parts = stream::try_unfold(reading, |mut reading| {
        blocking(move || {
            let parts = reading.next()?;
            Ok((!parts.is_empty()).then_some((parts, reading)))
        })
    });
    Ok(History { position: Position::new(epoch, head), records, changes, floor, parts: Box::pin(parts) })
}

impl Reading {
    /// The next parts; none at the end.
    fn next(&mut self) -> Result<Vec<Part>, redb::Error> {
        let (names, at) = (&self.names, self.at.clone());
        let (mut parts, next) = self.store.go_on(&self.begun, |transaction| read_at(transaction, names, at))?;
        self.at = next;
        if parts.is_empty() && matches!(self.at, At::Changes(u64::MAX)) {
            let at = self.at.clone();
            (parts, self.at) = self.store.go_on(&self.begun, |transaction| read_at(transaction, names, at))?;
        }
        Ok(parts)
    }
}

fn read_at(transaction: &ReadTransaction, names: &Names, at: At) -> Result<(Vec<Part>, At), redb::Error> {
    match at {
        At::Records(after) => records(transaction, names, after),
        At::Changes(before) => changes(transaction, names, before),
    }
}

fn records(
    transaction: &ReadTransaction,
    names: &Names,
    after: Option<String>,
) -> Result<(Vec<Part>, At), redb::Error> {
    let mut parts = Vec::new();
    let mut last = None;
    if let Some(table) = present(transaction.open_table(Records::new(&names.records)))? {
        let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut bytes = 0;
        for found in table.range::<&str>((from, Bound::Unbounded))?.take(BATCH) {
            let (key, found) = found?;
            let record = tables::record(key.value(), found.value());
            bytes += record.key.len() + record.value.len();
            last = Some(record.key.clone());
            parts.push(Part::Record(record));
            if bytes > BATCH_BYTES {
                break;
            }
        }
    }
    Ok((parts, last.map_or(At::Changes(u64::MAX), |last| At::Records(Some(last)))))
}

fn changes(transaction: &ReadTransaction, names: &Names, before: u64) -> Result<(Vec<Part>, At), redb::Error> {
    let mut parts = Vec::new();
    let mut last = before;
    if let Some(table) = present(transaction.open_table(Changes::new(&names.changes)))? {
        let mut bytes = 0;
        for found in table.range(..before)?.rev().take(BATCH) {
            let (revision, found) = found?;
            let revision = revision.value();
            let damaged =
                || redb::Error::Corrupted(format!("revision {revision} of {} contradicts itself", names.changes));
            let change = tables::change(revision, found.value()).ok_or_else(damaged)?;
            bytes += change.entry.value.as_ref().map_or(0, bytes::Bytes::len);
            bytes += change.previous.as_ref().map_or(0, |previous| previous.value.len());
            last = revision;
            parts.push(Part::Change(change));
            if bytes > BATCH_BYTES {
                break;
            }
        }
    }
    Ok((parts, At::Changes(last)))
}

#[cfg(test)]
mod tests;
