//! A journal in one file, with redb: one process writes it, and what is acknowledged survives a crash.
//!
//! `tables` is what lies in the file, `write` how it changes, `store` the file itself, `upgrade` what earlier versions left.
//! A log that is written elsewhere and only materialised here goes through [`write::Writing`] as well.

mod history;
mod load;
mod replicated;
mod store;
mod tables;
mod upgrade;
mod write;

use std::{
    collections::HashMap,
    convert::Infallible,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::stream;
use redb::{ReadableDatabase as _, WriteTransaction};
use tokio::sync::watch;

use crate::{AppendError, Entry, History, Journal, Position, ReadError, Record, Snapshot, Tail, TailError, Write};
pub use load::LoadError;
pub(crate) use load::Loading;
#[cfg(test)]
pub(crate) use replicated::tests::begin_on_a_disk;
pub(crate) use replicated::{ApplyError, Replicated};
use store::Store;
use tables::{EPOCH, META, Names, present};

/// How much of its past an embedded journal keeps, of each kind: what is older, or more, goes, the oldest first. Who
/// follows and is further behind takes a snapshot; no backup goes further back.
///
/// Old changes go as new ones are written, never more than a small multiple of them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// For how long a change is kept.
    pub retention: Duration,
    /// How many changes are kept at most.
    pub retained_changes: u64,
    /// How many bytes the kept changes may take, roughly. A change takes its key, its value, what differs in the value
    /// before, and about 64 bytes.
    pub retained_bytes: u64,
}

impl Options {
    /// 30 days, at most 100,000 changes and 1 GiB: for kinds of few records.
    pub const DEFAULT: Self =
        Self { retention: Duration::from_secs(30 * 24 * 60 * 60), retained_changes: 100_000, retained_bytes: 1 << 30 };
}

impl Default for Options {
    fn default() -> Self {
        Self::DEFAULT
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
    /// Of a store that is elsewhere, of which nothing is held here yet.
    #[error("{store} cannot be used: {why}")]
    Unreachable { store: String, why: String },
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
        let epoch = epoch.and_then(|epoch| upgrade::upgrade(&store).map(|()| epoch));
        let epoch = epoch.map_err(|source| OpenError::Failed { path: path.to_owned(), source })?;
        Ok(Self { store: Arc::new(store), options, epoch, kinds: Arc::default() })
    }

    /// The epoch of this store: Unix milliseconds of its creation.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last revision of each kind that was ever written to.
    ///
    /// Blocks while it reads.
    ///
    /// # Errors
    /// [`OpenError::Failed`] when it cannot be read.
    pub fn heads(&self) -> Result<HashMap<String, u64>, OpenError> {
        let heads = self.store.read(tables::heads);
        heads.map_err(|source| OpenError::Failed { path: self.store.path().to_owned(), source })
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
        Ok(self.journal(kind)?)
    }

    fn journal(&self, kind: &'static str) -> Result<Arc<EmbeddedJournal>, OpenError> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(journal) = kinds.get(kind) {
            return Ok(Arc::clone(journal));
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
            options: self.options,
            head: watch::Sender::new(revision),
        });
        kinds.insert(kind, Arc::clone(&journal));
        Ok(journal)
    }
}

/// The journal of one kind.
#[derive(Debug)]
pub(crate) struct EmbeddedJournal {
    store: Arc<Store>,
    names: Arc<Names>,
    epoch: u64,
    options: Options,
    /// The last durable revision, for tails that wait.
    head: watch::Sender<u64>,
}

impl EmbeddedJournal {
    /// Only at `at`, if that is given.
    async fn write(&self, at: Option<Position>, writes: Vec<Write>) -> Result<Position, AppendError> {
        let (store, names, head, epoch, options) =
            (Arc::clone(&self.store), Arc::clone(&self.names), self.head.clone(), self.epoch, self.options);
        blocking(move || {
            // Here and not after the await: the write stands even when nobody waits for it any more.
            let announce = |revision| announce(&head, revision);
            let revision = store.append(&names, epoch, at, &writes, &options, announce)?;
            Ok(Position::new(epoch, revision))
        })
        .await
    }
}

#[tonic::async_trait]
impl Journal for EmbeddedJournal {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.write(None, writes).await
    }

    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.write(Some(head), writes).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        let (store, names, key) = (Arc::clone(&self.store), Arc::clone(&self.names), key.to_owned());
        blocking(move || Ok(store.read(|database| names.get(database, &key))?)).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let (store, names, epoch) = (Arc::clone(&self.store), Arc::clone(&self.names), self.epoch);
        blocking(move || Ok(store.read(|database| names.snapshot(database, epoch))?)).await
    }

    async fn records_after(&self, after: &str, most: usize) -> Result<Vec<Record>, ReadError> {
        let (store, names, after) = (Arc::clone(&self.store), Arc::clone(&self.names), after.to_owned());
        blocking(move || Ok(store.read(|database| names.records_after(database, &after, most))?)).await
    }

    async fn head(&self) -> Result<Position, ReadError> {
        Ok(Position::new(self.epoch, *self.head.borrow()))
    }

    async fn count(&self) -> Result<u64, ReadError> {
        let (store, names) = (Arc::clone(&self.store), Arc::clone(&self.names));
        blocking(move || Ok(store.read(|database| names.count(database))?)).await
    }

    async fn history(&self) -> Result<History, ReadError> {
        history::read(Arc::clone(&self.store), Arc::clone(&self.names), self.epoch).await
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
        if !self.same_history {
            return Err(TailError::Compacted);
        }
        let (store, names) = (Arc::clone(&self.store), Arc::clone(&self.names));
        // What was read may be ahead of what was announced: a write is there a moment before its writer says so.
        if self.revision > *self.heads.borrow()
            && self.revision
                > blocking(move || store.read(|database| names.head(database))).await.map_err(ReadError::from)?
        {
            return Err(TailError::Compacted);
        }
        let after = self.revision;
        if self.heads.wait_for(|head| *head > after).await.is_err() {
            // The store is gone, and with it everyone who could write: nothing ever comes.
            return std::future::pending().await;
        }
        let (store, names) = (Arc::clone(&self.store), Arc::clone(&self.names));
        let entries =
            blocking(move || Ok::<_, ReadError>(store.read(|database| names.changes_after(database, after))?)).await?;
        let entries = entries.ok_or(TailError::Compacted)?;
        if let Some(last) = entries.last() {
            self.revision = last.revision;
        }
        Ok(entries)
    }
}

impl Store {
    /// Returns the last revision. On an error nothing has changed, but for [`AppendError::Unconfirmed`]. Announces each
    /// head that it reads: what an earlier write could not confirm must not stay unheard of.
    fn append(
        &self,
        names: &Names,
        epoch: u64,
        at: Option<Position>,
        writes: &[Write],
        options: &Options,
        announce: impl Fn(u64),
    ) -> Result<u64, AppendError> {
        let _alone = self.alone();
        let before = self.read(|database| names.head(database)).map_err(failed)?;
        announce(before);
        let actual = Position::new(epoch, before);
        if at.is_some_and(|at| at != actual) {
            return Err(AppendError::Moved { actual });
        }
        if writes.is_empty() {
            return Ok(before);
        }
        let now = now_unix_ms();
        match self.write(|transaction| write::append(transaction, names, writes, options, now)) {
            Ok(result) => {
                let after = result?;
                announce(after);
                Ok(after)
            }
            // A commit that failed may have been made: the head tells.
            Err(error) => match self.read(|database| names.head(database)) {
                // There to be read, but the disk did not say that it has it.
                Ok(after) if after > before => {
                    announce(after);
                    Err(AppendError::Unconfirmed(error.into()))
                }
                Ok(_) => Err(failed(error)),
                Err(_) if store::may_have_been_made(&error) => Err(AppendError::Unconfirmed(error.into())),
                Err(_) => Err(failed(error)),
            },
        }
    }
}

/// Tells tails of a head, unless they know of a later one.
fn announce(to: &watch::Sender<u64>, revision: u64) {
    to.send_if_modified(|head| {
        let newer = revision > *head;
        *head = revision.max(*head);
        newer
    });
}

fn epoch(database: &redb::Database) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    let Some(meta) = present(transaction.open_table(META))? else { return Ok(None) };
    Ok(meta.get(EPOCH)?.map(|epoch| epoch.value()))
}

fn make_epoch(transaction: &WriteTransaction, at_least: u64) -> Result<Result<u64, Infallible>, redb::Error> {
    let epoch = now_unix_ms().max(at_least);
    transaction.open_table(META)?.insert(EPOCH, epoch)?;
    Ok(Ok(epoch))
}

pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn failed(error: redb::Error) -> AppendError {
    if is_full(&error) { AppendError::Full(error.into()) } else { AppendError::Failed(error.into()) }
}

fn is_full(error: &redb::Error) -> bool {
    let full = |error: &io::Error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    matches!(error, redb::Error::Io(cause) if full(cause))
}

/// Runs `work`, which waits for the disk, where waiting harms nobody.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
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
