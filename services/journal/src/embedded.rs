//! A journal in one file, with redb: one process writes it, and what is acknowledged survives a crash.
//!
//! Tables per kind: `KIND/records` (key → revision, value) and `KIND/log` (revision → key, value), the latter bounded. `meta`
//! has the epoch and, per kind, the head and the last revision that the log no longer has.

mod store;

use std::{
    collections::HashMap,
    convert::Infallible,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::stream;
use redb::{
    ReadTransaction, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition,
    TableError, WriteTransaction,
};
use tokio::sync::watch;

use crate::{AppendError, Entry, Expected, Journal, Position, ReadError, Record, Snapshot, Tail, TailError, Write};
use store::Store;

type Meta = TableDefinition<'static, &'static str, u64>;
type Records<'a> = TableDefinition<'a, &'static str, (u64, &'static [u8])>;
type Log<'a> = TableDefinition<'a, u64, (&'static str, Option<&'static [u8]>)>;

const META: Meta = TableDefinition::new("meta");
const EPOCH: &str = "epoch";
/// Entries that a tail reads at once.
const TAIL_BATCH: usize = 1024;

/// How an embedded journal keeps its past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Changes that the log of each kind keeps. Who is further behind takes a snapshot.
    pub retained_changes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { retained_changes: 100_000 }
    }
}

/// Why a store cannot be opened. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by another process: stop that one, or name another file", .0.display())]
    Held(PathBuf),
    #[error("{} is not a store of this version: move it away or restore a backup", .0.display())]
    Foreign(PathBuf),
    #[error("{} cannot be opened: check the folder, its owner and the room on its disk", path.display())]
    Failed {
        path: PathBuf,
        #[source]
        source: redb::Error,
    },
}

/// One file with the journals of any number of kinds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Embedded {
    store: Arc<Store>,
    options: Options,
    epoch: u64,
    kinds: Arc<Mutex<HashMap<&'static str, Arc<EmbeddedJournal>>>>,
}

impl Embedded {
    /// Opens the store at `path`, or makes one, with an epoch that is later than that of any store made before.
    ///
    /// Blocks while it reads.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, Options::default())
    }

    /// As [`Embedded::open`], with other options.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open_with(path: &Path, options: Options) -> Result<Self, OpenError> {
        Self::on(Store::open(path)?, options, path)
    }

    fn on(store: Store, options: Options, path: &Path) -> Result<Self, OpenError> {
        let epoch = store.read(epoch).and_then(|epoch| match epoch {
            Some(epoch) => Ok(epoch),
            None => store.write(|transaction| make_epoch(transaction, 0)).map(|Ok(epoch)| epoch),
        });
        let epoch = epoch.map_err(|source| OpenError::Failed { path: path.to_owned(), source })?;
        Ok(Self { store: Arc::new(store), options, epoch, kinds: Arc::default() })
    }

    /// The epoch of this store: Unix milliseconds of its creation.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The same records as the beginning of another history: for a store that was put back from a backup, whose followers
    /// hold later revisions of this one, and would take nothing earlier. To be called before anything else is done with
    /// the store: journals that were opened before stay with the old epoch.
    ///
    /// Blocks while it writes.
    ///
    /// # Errors
    /// [`OpenError::Failed`] when the store cannot be written.
    pub fn renew_epoch(self) -> Result<Self, OpenError> {
        let later = self.epoch + 1;
        let written = self.store.write(|transaction| make_epoch(transaction, later));
        let epoch = match written {
            Ok(Ok(epoch)) => epoch,
            Err(source) => return Err(OpenError::Failed { path: self.store.path().to_owned(), source }),
        };
        Ok(Self { epoch, kinds: Arc::default(), ..self })
    }

    /// The journal of `kind`; all callers get the same one.
    ///
    /// # Errors
    /// [`OpenError::Failed`] when the store cannot be read.
    pub fn kind(&self, kind: &'static str) -> Result<Arc<dyn Journal>, OpenError> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(journal) = kinds.get(kind) {
            return Ok(Arc::clone(journal) as Arc<dyn Journal>);
        }
        let names = Arc::new(Names::of(kind));
        let revision = self
            .store
            .read(|database| names.head(database))
            .map_err(|source| OpenError::Failed { path: self.store.path().to_owned(), source })?;
        let journal = Arc::new(EmbeddedJournal {
            store: Arc::clone(&self.store),
            names,
            epoch: self.epoch,
            retained: self.options.retained_changes,
            head: watch::Sender::new(revision),
        });
        kinds.insert(kind, Arc::clone(&journal));
        Ok(journal)
    }
}

/// The journal of one kind.
#[derive(Debug)]
struct EmbeddedJournal {
    store: Arc<Store>,
    names: Arc<Names>,
    epoch: u64,
    retained: u64,
    /// The last durable revision, for tails that wait.
    head: watch::Sender<u64>,
}

#[tonic::async_trait]
impl Journal for EmbeddedJournal {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        let (store, names, head, epoch, retained) =
            (Arc::clone(&self.store), Arc::clone(&self.names), self.head.clone(), self.epoch, self.retained);
        blocking(move || {
            let revision = store.append(&names, &writes, retained)?;
            // Here and not after the await: the write stands even when nobody waits for it any more.
            head.send_if_modified(|head| {
                let newer = revision > *head;
                *head = revision.max(*head);
                newer
            });
            Ok(Position::new(epoch, revision))
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        let (store, names, key) = (Arc::clone(&self.store), Arc::clone(&self.names), key.to_owned());
        blocking(move || Ok(store.read(|database| names.get(database, &key))?)).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let (store, names, epoch) = (Arc::clone(&self.store), Arc::clone(&self.names), self.epoch);
        blocking(move || Ok(store.read(|database| names.snapshot(database, epoch))?)).await
    }

    async fn head(&self) -> Result<Position, ReadError> {
        Ok(Position::new(self.epoch, *self.head.borrow()))
    }

    async fn count(&self) -> Result<u64, ReadError> {
        let (store, names) = (Arc::clone(&self.store), Arc::clone(&self.names));
        blocking(move || Ok(store.read(|database| names.count(database))?)).await
    }

    fn tail(&self, from: Position) -> Tail {
        let state = Tailing {
            store: Arc::clone(&self.store),
            names: Arc::clone(&self.names),
            heads: self.head.subscribe(),
            same_history: from.epoch == self.epoch,
            revision: from.revision,
        };
        Box::pin(stream::try_unfold(state, |mut state| async move {
            let entries = state.next().await?;
            Ok(Some((entries, state)))
        }))
    }
}

/// A tail between two reads.
struct Tailing {
    store: Arc<Store>,
    names: Arc<Names>,
    heads: watch::Receiver<u64>,
    same_history: bool,
    revision: u64,
}

impl Tailing {
    async fn next(&mut self) -> Result<Vec<Entry>, TailError> {
        if !self.same_history || self.revision > *self.heads.borrow() {
            return Err(TailError::Compacted);
        }
        let after = self.revision;
        if self.heads.wait_for(|head| *head > after).await.is_err() {
            // The store is gone, and with it everyone who could write: nothing ever comes.
            return std::future::pending().await;
        }
        let (store, names) = (Arc::clone(&self.store), Arc::clone(&self.names));
        let entries =
            blocking(move || Ok::<_, ReadError>(store.read(|database| names.log_after(database, after))?)).await?;
        let entries = entries.ok_or(TailError::Compacted)?;
        if let Some(last) = entries.last() {
            self.revision = last.revision;
        }
        Ok(entries)
    }
}

/// The names of one kind's tables and counters.
#[derive(Debug)]
struct Names {
    records: String,
    log: String,
    head: String,
    floor: String,
}

impl Names {
    fn of(kind: &str) -> Self {
        let name = |part| format!("{kind}/{part}");
        Self { records: name("records"), log: name("log"), head: name("head"), floor: name("floor") }
    }

    fn head(&self, database: &redb::Database) -> Result<u64, redb::Error> {
        let transaction = database.begin_read()?;
        counter(&transaction, &self.head)
    }

    fn count(&self, database: &redb::Database) -> Result<u64, redb::Error> {
        let transaction = database.begin_read()?;
        let Some(table) = present(transaction.open_table(Records::new(&self.records)))? else { return Ok(0) };
        Ok(table.len()?)
    }

    fn get(&self, database: &redb::Database, key: &str) -> Result<Option<Record>, redb::Error> {
        let transaction = database.begin_read()?;
        let Some(table) = present(transaction.open_table(Records::new(&self.records)))? else { return Ok(None) };
        let found = table.get(key)?;
        Ok(found.map(|found| {
            let (revision, value) = found.value();
            Record { key: key.to_owned(), revision, value: value.to_vec().into() }
        }))
    }

    fn snapshot(&self, database: &redb::Database, epoch: u64) -> Result<Snapshot, redb::Error> {
        let transaction = database.begin_read()?;
        let position = Position::new(epoch, counter(&transaction, &self.head)?);
        let mut records = Vec::new();
        if let Some(table) = present(transaction.open_table(Records::new(&self.records)))? {
            for found in table.iter()? {
                let (key, found) = found?;
                let (revision, value) = found.value();
                records.push(Record { key: key.value().to_owned(), revision, value: value.to_vec().into() });
            }
        }
        Ok(Snapshot { position, records })
    }

    /// The next changes after a revision, or nothing when they are no longer all there.
    fn log_after(&self, database: &redb::Database, after: u64) -> Result<Option<Vec<Entry>>, redb::Error> {
        let transaction = database.begin_read()?;
        if counter(&transaction, &self.floor)? > after {
            return Ok(None);
        }
        let Some(table) = present(transaction.open_table(Log::new(&self.log)))? else { return Ok(None) };
        let mut entries = Vec::new();
        for found in table.range(after + 1..)?.take(TAIL_BATCH) {
            let (revision, found) = found?;
            let (key, value) = found.value();
            let value = value.map(|value| value.to_vec().into());
            entries.push(Entry { key: key.to_owned(), revision: revision.value(), value, at_unix_ms: 0 });
        }
        Ok((!entries.is_empty()).then_some(entries))
    }
}

impl Store {
    /// Returns the last revision. On an error nothing has changed.
    fn append(&self, names: &Names, writes: &[Write], retained: u64) -> Result<u64, AppendError> {
        let _alone = self.alone();
        let before = self.read(|database| names.head(database)).map_err(failed)?;
        if writes.is_empty() {
            return Ok(before);
        }
        match self.write(|transaction| append(transaction, names, writes, retained)) {
            Ok(result) => result,
            // A commit that failed may have been made: then the head tells.
            Err(error) => match self.read(|database| names.head(database)) {
                Ok(after) if after > before => Ok(after),
                Ok(_) | Err(_) => Err(failed(error)),
            },
        }
    }
}

fn append(
    transaction: &WriteTransaction,
    names: &Names,
    writes: &[Write],
    retained: u64,
) -> Result<Result<u64, AppendError>, redb::Error> {
    let mut meta = transaction.open_table(META)?;
    let mut records = transaction.open_table(Records::new(&names.records))?;
    let mut log = transaction.open_table(Log::new(&names.log))?;
    let mut revision = meta.get(names.head.as_str())?.map_or(0, |head| head.value());
    for Write { key, value, expected } in writes {
        let actual = records.get(key.as_str())?.map(|found| found.value().0);
        let met = match expected {
            Expected::Any => true,
            Expected::Absent => actual.is_none(),
            Expected::Revision(revision) => actual == Some(*revision),
        };
        if !met {
            return Ok(Err(AppendError::Conflict { key: key.clone(), expected: *expected, actual }));
        }
        revision += 1;
        match value {
            Some(value) => drop(records.insert(key.as_str(), (revision, &value[..]))?),
            None => drop(records.remove(key.as_str())?),
        }
        log.insert(revision, (key.as_str(), value.as_deref()))?;
    }
    meta.insert(names.head.as_str(), revision)?;
    let floor = revision.saturating_sub(retained);
    let kept_after = meta.get(names.floor.as_str())?.map_or(0, |floor| floor.value());
    if floor > kept_after {
        log.retain_in(kept_after..=floor, |_, _| false)?;
        meta.insert(names.floor.as_str(), floor)?;
    }
    Ok(Ok(revision))
}

fn epoch(database: &redb::Database) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    let Some(meta) = present(transaction.open_table(META))? else { return Ok(None) };
    Ok(meta.get(EPOCH)?.map(|epoch| epoch.value()))
}

fn make_epoch(transaction: &WriteTransaction, at_least: u64) -> Result<Result<u64, Infallible>, redb::Error> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(at_least);
    transaction.open_table(META)?.insert(EPOCH, epoch)?;
    Ok(Ok(epoch))
}

fn counter(transaction: &ReadTransaction, name: &str) -> Result<u64, redb::Error> {
    let Some(meta) = present(transaction.open_table(META))? else { return Ok(0) };
    Ok(meta.get(name)?.map_or(0, |value| value.value()))
}

/// A table that nobody has written to does not exist yet.
fn present<T>(opened: Result<T, TableError>) -> Result<Option<T>, redb::Error> {
    match opened {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn failed(error: redb::Error) -> AppendError {
    let full = |error: &io::Error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    if matches!(&error, redb::Error::Io(cause) if full(cause)) {
        AppendError::Full(error.into())
    } else {
        AppendError::Failed(error.into())
    }
}

/// Runs `work`, which waits for the disk, where waiting harms nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests;
