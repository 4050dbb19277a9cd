//! A log that is written elsewhere, materialised here: revisions and times are given, and a crash may lose the last of it,
//! since it is read again from where the [`Cursor`] stands.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{Durability, ReadableTable};

use super::{
    EPOCH, Embedded, EmbeddedJournal, META, Names, OpenError, Options, announce, now_unix_ms,
    store::Store,
    tables::{Records, counter, number, present},
    write::Writing,
};
use crate::{Entry, Position, Record, nats::Cursor};

/// The store of one kind of a log that is written elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Replicated {
    journal: Arc<EmbeddedJournal>,
    marks: Arc<Marks>,
}

/// Why nothing was made here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("the local store was opened again after an error, and has lost what came last")]
    Elsewhere,
    #[error("the local store cannot be written")]
    Store(#[from] redb::Error),
}

/// Names of the counters that are the cursor.
#[derive(Debug)]
struct Marks {
    log: String,
    sequence: String,
    id: String,
}

impl Replicated {
    /// Opens what was materialised before, if anything was.
    ///
    /// Blocks while it reads.
    pub(crate) fn open(path: &Path, kind: &'static str, options: Options) -> Result<Option<(Self, Cursor)>, OpenError> {
        if !path.exists() {
            return Ok(None);
        }
        let embedded = Embedded::open_with(path, options)?;
        let this = Self { journal: embedded.journal(kind)?, marks: Arc::new(Marks::of(kind)) };
        let cursor = this.cursor().map_err(|source| failed(path, source))?;
        Ok((cursor.log != 0).then_some((this, cursor)))
    }

    /// Begins at `cursor` with no records yet, in a file of that name that does not exist or counts for nothing.
    ///
    /// Blocks while it writes.
    pub(crate) fn create(path: &Path, kind: &'static str, options: Options, cursor: Cursor) -> Result<Self, OpenError> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(path, error.into())),
            Ok(()) | Err(_) => {}
        }
        Self::begin(Store::open(path)?, path, kind, options, cursor)
    }

    fn begin(
        store: Store,
        path: &Path,
        kind: &'static str,
        options: Options,
        cursor: Cursor,
    ) -> Result<Self, OpenError> {
        let (names, marks) = (Names::of(kind), Marks::of(kind));
        let begun = store.write(|transaction| {
            let mut meta = transaction.open_table(META)?;
            meta.insert(EPOCH, cursor.epoch)?;
            for counter in [&names.head, &names.floor, &names.base] {
                meta.insert(counter.as_str(), cursor.head)?;
            }
            marks.set(&mut meta, cursor)?;
            Ok(Ok::<_, std::convert::Infallible>(()))
        });
        begun.map_err(|source| failed(path, source))?.unwrap_or_else(|never| match never {});
        let embedded = Embedded::on(store, options, path)?;
        Ok(Self { journal: embedded.journal(kind)?, marks: Arc::new(marks) })
    }

    pub(crate) fn journal(&self) -> Arc<EmbeddedJournal> {
        Arc::clone(&self.journal)
    }

    /// Puts records of a checkpoint in, which make no changes that anybody could follow.
    ///
    /// Blocks while it writes.
    pub(crate) fn load(&self, records: &[Record]) -> Result<(), ApplyError> {
        let name = &self.journal.names.records;
        let loaded = self.journal.store.write_with(Durability::None, |transaction| {
            let mut table = transaction.open_table(Records::new(name))?;
            for Record { key, revision, value } in records {
                table.insert(key.as_str(), (*revision, &value[..]))?;
            }
            Ok(Ok::<_, std::convert::Infallible>(()))
        });
        Ok(loaded.map(|Ok(())| ())?)
    }

    /// Ends a checkpoint of so many records, durably. An error where not all of them are there.
    ///
    /// Blocks while it writes.
    pub(crate) fn loaded(&self, records: u64, cursor: Cursor) -> Result<(), ApplyError> {
        self.apply(&[], cursor, cursor, true)?;
        let EmbeddedJournal { store, names, .. } = &*self.journal;
        let there = store.read(|database| names.count(database))?;
        if there == records { Ok(()) } else { Err(ApplyError::Elsewhere) }
    }

    /// Makes changes that lead from `from` to `to`, all or none, and none where the store is elsewhere. Those that were
    /// made before `durably` was last set survive a crash or an error of the disk, the others may.
    ///
    /// Blocks while it writes.
    pub(crate) fn apply(&self, entries: &[Entry], from: Cursor, to: Cursor, durably: bool) -> Result<(), ApplyError> {
        let EmbeddedJournal { store, names, options, head, .. } = &*self.journal;
        let durability = if durably { Durability::Immediate } else { Durability::None };
        let _alone = store.alone();
        let applied = store.write_with(durability, |transaction| {
            if !self.marks.are(&transaction.open_table(META)?, from)? {
                return Ok(Err(ApplyError::Elsewhere));
            }
            if !entries.is_empty() {
                let mut writing = Writing::open(transaction, names)?;
                for Entry { key, revision, value, at_unix_ms } in entries {
                    writing.put(*revision, *at_unix_ms, key, value.as_deref())?;
                }
                writing.finish(options, now_unix_ms())?;
            }
            self.marks.set(&mut transaction.open_table(META)?, to)?;
            Ok(Ok(()))
        });
        applied??;
        announce(head, to.head);
        Ok(())
    }

    /// Up to where the log was read.
    ///
    /// Blocks while it reads.
    pub(crate) fn cursor(&self) -> Result<Cursor, redb::Error> {
        use redb::ReadableDatabase as _;
        let Marks { log, sequence, id } = &*self.marks;
        self.journal.store.read(|database| {
            let transaction = database.begin_read()?;
            Ok(Cursor {
                log: counter(&transaction, log)?,
                epoch: self.journal.epoch,
                sequence: counter(&transaction, sequence)?,
                id: counter(&transaction, id)?,
                head: counter(&transaction, &self.journal.names.head)?,
            })
        })
    }

    /// The revisions of the records of `keys`, those that are there, at `at`. An error where the store is elsewhere.
    ///
    /// Blocks while it reads.
    pub(crate) fn revisions<'k>(
        &self,
        at: Cursor,
        keys: impl IntoIterator<Item = &'k str> + Clone,
    ) -> Result<HashMap<String, u64>, ApplyError> {
        use redb::ReadableDatabase as _;
        let name = &self.journal.names.records;
        let found = self.journal.store.read(|database| {
            let transaction = database.begin_read()?;
            let meta = present(transaction.open_table(META))?;
            if !meta.map_or(Ok(false), |meta| self.marks.are(&meta, at))? {
                return Ok(None);
            }
            let mut revisions = HashMap::new();
            let Some(table) = present(transaction.open_table(Records::new(name)))? else { return Ok(Some(revisions)) };
            for key in keys.clone() {
                if let Some(found) = table.get(key)? {
                    revisions.insert(key.to_owned(), found.value().0);
                }
            }
            Ok(Some(revisions))
        });
        found?.ok_or(ApplyError::Elsewhere)
    }

    pub(crate) fn position(&self) -> Position {
        Position::new(self.journal.epoch, *self.journal.head.borrow())
    }
}

impl Marks {
    fn of(kind: &str) -> Self {
        let name = |part| format!("{kind}/log-{part}");
        Self { log: name("identity"), sequence: name("sequence"), id: name("id") }
    }

    fn are(&self, meta: &impl ReadableTable<&'static str, u64>, cursor: Cursor) -> Result<bool, redb::Error> {
        let Self { log, sequence, id } = self;
        let there = (number(meta, log)?, number(meta, sequence)?, number(meta, id)?);
        Ok(there == (cursor.log, cursor.sequence, cursor.id))
    }

    fn set(&self, meta: &mut redb::Table<'_, &'static str, u64>, cursor: Cursor) -> Result<(), redb::Error> {
        for (name, value) in [(&self.log, cursor.log), (&self.sequence, cursor.sequence), (&self.id, cursor.id)] {
            meta.insert(name.as_str(), value)?;
        }
        Ok(())
    }
}

fn failed(path: &Path, source: redb::Error) -> OpenError {
    OpenError::Failed { path: PathBuf::from(path), source }
}

#[cfg(test)]
pub(super) mod tests;
