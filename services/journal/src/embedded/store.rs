//! The file below the journals, which must go on after an error of the disk.

use std::{
    fmt,
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use redb::{
    Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase as _, StorageError, WriteTransaction,
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

    /// As [`Store::write`]; without durability, a crash may undo what was written since the last durable write.
    pub(super) fn write_with<T, E>(
        &self,
        durability: Durability,
        work: impl Fn(&WriteTransaction) -> Result<Result<T, E>, redb::Error>,
    ) -> Result<Result<T, E>, redb::Error> {
        let result = self.read(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(durability).map_err(|error| redb::Error::Io(io::Error::other(error)))?;
            match work(&transaction)? {
                Ok(written) => {
                    transaction.commit()?;
                    Ok(Ok(written))
                }
                Err(refused) => {
                    transaction.abort()?;
                    Ok(Err(refused))
                }
            }
        });
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
    drop(file.map_err(StorageError::Io)?);
    Database::create(path)
}

/// Whether redb refuses because of an earlier error.
fn unusable(error: &redb::Error) -> bool {
    matches!(error, redb::Error::PreviousIo | redb::Error::DatabaseClosed)
}
