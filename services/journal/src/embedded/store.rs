//! The file below the journals, which must go on after an error of the disk.

use std::{
    fmt,
    fs::OpenOptions,
    io,
    ops::Bound,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use redb::{
    BackendError, Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase as _, StorageBackend,
    StorageError, WriteTransaction, backends::FileBackend,
};

use super::OpenError;

/// Opens the same database anew.
type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// A redb database that is opened again after an error: redb itself refuses everything after the first one.
///
/// All calls block.
pub(super) struct Store {
    path: PathBuf,
    opener: Opener,
    /// Absent when it could not be opened again; the next call tries.
    database: RwLock<Option<Database>>,
    /// How often it was opened again. What was begun before reads from a file that somebody else may write to by now.
    reopened: AtomicU64,
    /// Held from before a write's first look to after its last.
    writer: Mutex<()>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        if let Some(dir) = path.parent()
            && let Err(error) = std::fs::create_dir_all(dir)
        {
            return Err(OpenError::Failed { path: path.to_owned(), source: redb::Error::Io(error) });
        }
        let file = path.to_owned();
        Self::open_by(path, Box::new(move || create(&file)))
    }

    pub(super) fn open_by(path: &Path, opener: Opener) -> Result<Self, OpenError> {
        let path = path.to_owned();
        match opener() {
            Ok(database) => Ok(Self {
                path,
                opener,
                database: RwLock::new(Some(database)),
                reopened: AtomicU64::new(0),
                writer: Mutex::default(),
            }),
            Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch) => Err(OpenError::Held(path)),
            Err(DatabaseError::UpgradeRequired(_)) => Err(OpenError::Foreign(path)),
            Err(DatabaseError::Storage(StorageError::Corrupted(_))) => Err(OpenError::Foreign(path)),
            Err(DatabaseError::Storage(StorageError::Io(error))) if error.kind() == std::io::ErrorKind::InvalidData => {
                Err(OpenError::Foreign(path))
            }
            Err(error) => Err(OpenError::Failed { path, source: error.into() }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps other writers out, so that the head before a write and the head after it can be compared.
    pub(super) fn alone(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads; opens the database again first where an earlier error left it unusable.
    pub(super) fn read<T>(&self, work: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        match self.attempt(&work) {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) if !unusable(&error) => Err(error),
            Some(Err(_)) | None => {
                self.reopen()?;
                // Another call may have closed it again meanwhile, which is an error like any other.
                self.attempt(&work).unwrap_or(Err(redb::Error::DatabaseClosed))
            }
        }
    }

    /// Writes durably what `work` returns `Ok(Ok(_))` for, and nothing otherwise. After an error of the disk, what was
    /// written is either wholly there or not at all: look.
    pub(super) fn write<T, E>(
        &self,
        work: impl Fn(&WriteTransaction) -> Result<Result<T, E>, redb::Error>,
    ) -> Result<Result<T, E>, redb::Error> {
        self.write_with(Durability::Immediate, work)
    }

    /// As [`Store::write`]; without durability, a crash may undo what was written since the last durable write, and so may
    /// an error of the disk: `work` may find a store that is behind what was written before, and must look.
    pub(super) fn write_with<T, E>(
        &self,
        durability: Durability,
        work: impl Fn(&WriteTransaction) -> Result<Result<T, E>, redb::Error>,
    ) -> Result<Result<T, E>, redb::Error> {
        let result = self.read(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(durability).map_err(|error| redb::Error::Io(io::Error::other(error)))?;
            match work(&transaction)? {
                // A commit that failed may have been made: it is not tried again, as what `read` fails at may be.
                Ok(written) => Ok(transaction.commit().map(|()| Ok(written)).map_err(redb::Error::from)),
                Err(refused) => {
                    transaction.abort()?;
                    Ok(Ok(Err(refused)))
                }
            }
        });
        let result = result.and_then(|committed| committed);
        if result.is_err()
            && let Err(error) = self.reopen()
        {
            tracing::warn!(path = %self.path.display(), %error, "the store cannot be opened again after an error");
        }
        result
    }

    fn attempt<T>(&self, work: impl Fn(&Database) -> Result<T, redb::Error>) -> Option<Result<T, redb::Error>> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().map(work)
    }

    fn reopen(&self) -> Result<(), redb::Error> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Another caller may have been here first.
        if database.as_ref().is_some_and(|database| database.begin_write().is_ok_and(|probe| probe.abort().is_ok())) {
            return Ok(());
        }
        drop(database.take()); // Gives the lock of the file back.
        self.reopened.fetch_add(1, Ordering::Relaxed);
        *database = Some((self.opener)()?);
        Ok(())
    }

    /// Begins a read that goes on for longer than one call.
    pub(super) fn begin(&self) -> Result<Begun, redb::Error> {
        self.read(|database| {
            Ok(Begun { transaction: database.begin_read()?, reopened: self.reopened.load(Ordering::Relaxed) })
        })
    }

    /// Goes on with what was begun; an error when the database was opened again meanwhile.
    pub(super) fn go_on<T>(
        &self,
        begun: &Begun,
        work: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        // Held, so that it is not opened again meanwhile.
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() || self.reopened.load(Ordering::Relaxed) != begun.reopened {
            return Err(redb::Error::DatabaseClosed);
        }
        work(&begun.transaction)
    }
}

/// A read that goes on for longer than one call: of the file as it was when it was begun.
pub(super) struct Begun {
    transaction: ReadTransaction,
    reopened: u64,
}

/// Opens the database or makes one, which nobody but its owner can read: redb alone would leave that to the umask.
pub(super) fn create(path: &Path) -> Result<Database, DatabaseError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    // An empty file is a new database to redb, so one that was left so by a crash is too.
    let file = file.map_err(StorageError::Io)?;
    Database::builder().create_with_backend(Confirmed(FileBackend::new(file)?))
}

/// Whether redb refuses because of an earlier error.
fn unusable(error: &redb::Error) -> bool {
    matches!(error, redb::Error::PreviousIo | redb::Error::DatabaseClosed)
}

/// Whether a commit that failed so may have been made nevertheless. One whose pages were not all written was not: its
/// checksums tell when the file is opened.
pub(super) fn may_have_been_made(error: &redb::Error) -> bool {
    let redb::Error::Io(error) = error else { return unusable(error) };
    error.get_ref().is_some_and(|cause| cause.is::<Unsynced>())
}

/// The disk has taken a commit, and may not keep it.
#[derive(Debug, thiserror::Error)]
#[error("the disk did not confirm what was written")]
struct Unsynced(#[source] io::Error);

/// A file whose errors tell whether it was written or only not confirmed.
#[derive(Debug)]
pub(super) struct Confirmed<B>(pub(super) B);

impl<B: StorageBackend> StorageBackend for Confirmed<B> {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data().map_err(|error| io::Error::new(error.kind(), Unsynced(error)))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
