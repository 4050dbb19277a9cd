//! How the file is written: whole batches, each in one transaction, and the log's old end let go of bit by bit.

use std::time::Duration;

use redb::{ReadableTable as _, ReadableTableMetadata as _, Table, WriteTransaction};

use super::{
    Options,
    tables::{Changes, META, Names, RawChange, Records, raw, size},
};
use crate::{AppendError, Expected, Write};

/// Old changes that one write lets go of, beside twice as many as it makes: what a write waits for is bounded by the write.
const TRIM: u64 = 256;

/// The tables of one kind, within a transaction.
pub(super) struct Writing<'t> {
    meta: Table<'t, &'static str, u64>,
    records: Table<'t, &'static str, (u64, &'static [u8])>,
    changes: Table<'t, u64, RawChange<'static>>,
    names: &'t Names,
    /// The last revision.
    head: u64,
    bytes: u64,
    written: u64,
}

impl<'t> Writing<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction, names: &'t Names) -> Result<Self, redb::Error> {
        let meta = transaction.open_table(META)?;
        let records = transaction.open_table(Records::new(&names.records))?;
        let changes = transaction.open_table(Changes::new(&names.changes))?;
        let counter = |name: &String| Ok::<_, redb::Error>(meta.get(name.as_str())?.map_or(0, |value| value.value()));
        let (head, bytes) = (counter(&names.head)?, counter(&names.bytes)?);
        Ok(Self { meta, records, changes, names, head, bytes, written: 0 })
    }

    /// The last revision.
    pub(super) const fn head(&self) -> u64 {
        self.head
    }

    /// The revision of the record of `key`.
    pub(super) fn revision(&self, key: &str) -> Result<Option<u64>, redb::Error> {
        Ok(self.records.get(key)?.map(|found| found.value().0))
    }

    /// Makes one change. `revision` is later than the head.
    pub(super) fn put(
        &mut self,
        revision: u64,
        at_unix_ms: u64,
        key: &str,
        value: Option<&[u8]>,
    ) -> Result<(), redb::Error> {
        let previous = match value {
            Some(value) => self.records.insert(key, (revision, value))?,
            None => self.records.remove(key)?,
        };
        let change = raw(at_unix_ms, key, value, previous.as_ref().map(|found| found.value()));
        self.changes.insert(revision, change)?;
        self.bytes += size(&change);
        self.head = revision;
        self.written += 1;
        Ok(())
    }

    /// Ends the batch: lets go of some of what is too old, or too much, and writes the counters. Returns the head.
    pub(super) fn finish(mut self, options: &Options, now_unix_ms: u64) -> Result<u64, redb::Error> {
        let kept_since = now_unix_ms.saturating_sub(millis(options.retention));
        let mut entries = self.changes.len()?;
        let mut floor = None;
        for _ in 0..TRIM + 2 * self.written {
            let fits = entries <= options.retained_changes && self.bytes <= options.retained_bytes;
            let Some((revision, change)) = self.changes.first()? else { break };
            if fits && change.value().0 >= kept_since {
                break;
            }
            floor = Some(revision.value());
            self.bytes = self.bytes.saturating_sub(size(&change.value()));
            entries -= 1;
            drop((revision, change));
            self.changes.pop_first()?;
        }
        if let Some(floor) = floor {
            self.meta.insert(self.names.floor.as_str(), floor)?;
        }
        self.meta.insert(self.names.head.as_str(), self.head)?;
        self.meta.insert(self.names.bytes.as_str(), self.bytes)?;
        Ok(self.head)
    }
}

/// Makes all of `writes`, or says which condition is not met.
pub(super) fn append(
    transaction: &WriteTransaction,
    names: &Names,
    writes: &[Write],
    options: &Options,
    now_unix_ms: u64,
) -> Result<Result<u64, AppendError>, redb::Error> {
    let mut writing = Writing::open(transaction, names)?;
    for Write { key, value, expected } in writes {
        let met = match expected {
            Expected::Any => Ok(()),
            Expected::Absent => writing.revision(key)?.map_or(Ok(()), |actual| Err(Some(actual))),
            Expected::Revision(revision) => {
                let actual = writing.revision(key)?;
                if actual == Some(*revision) { Ok(()) } else { Err(actual) }
            }
        };
        if let Err(actual) = met {
            return Ok(Err(AppendError::Conflict { key: key.clone(), expected: *expected, actual }));
        }
        writing.put(writing.head() + 1, now_unix_ms, key, value.as_deref())?;
    }
    writing.finish(options, now_unix_ms).map(Ok)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, path::Path};

    use super::*;
    use crate::embedded::{store::Store, tables::counter};

    const DAY: u64 = 24 * 60 * 60 * 1000;

    /// Writes a change at each of these times, then keeps house at the last of them; returns the floor.
    fn floor_after(path: &Path, times: &[u64], options: Options) -> u64 {
        let (store, names) = (Store::open(path).unwrap(), Names::of("tenant"));
        let Ok(_) = store
            .write(|transaction| {
                let mut writing = Writing::open(transaction, &names)?;
                for at in times {
                    writing.put(writing.head() + 1, *at, "key", Some(b"value"))?;
                }
                writing.finish(&options, times.last().copied().unwrap_or_default()).map(Ok::<_, Infallible>)
            })
            .unwrap();
        store.read(|database| counter(&redb::ReadableDatabase::begin_read(database)?, &names.floor)).unwrap()
    }

    #[test]
    fn changes_are_kept_for_the_retention_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let times = [0, 9 * DAY, 10 * DAY, 11 * DAY, 40 * DAY];
        assert_eq!(floor_after(&dir.path().join("s"), &times, Options::DEFAULT), 2);
    }

    #[test]
    fn changes_take_no_more_than_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        // 3 of the key, 5 of the value, 64 beside.
        let options = Options { retained_bytes: 72 * 4 + 71, ..Options::DEFAULT };
        assert_eq!(floor_after(&dir.path().join("s"), &[DAY; 10], options), 6);
    }

    #[test]
    fn a_write_lets_go_of_a_bounded_number_of_old_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        assert_eq!(floor_after(&path, &[0; 2000], Options::DEFAULT), 0);
        let options = Options { retained_changes: 10, ..Options::DEFAULT };
        assert_eq!(floor_after(&path, &[0], options), TRIM + 2);
        for _ in 0..10 {
            floor_after(&path, &[0], options);
        }
        assert_eq!(floor_after(&path, &[0], options), 2012 - 10, "but in the end of all of them");
    }
}
