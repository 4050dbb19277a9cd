//! The storage of all tenants, one embedded database a shard, reached only with a [`Tenancy`].
//!
//! A shard is the file `DATA/<cluster>/<database>.redb`, its tables are named `<schema>/<table>`, and the key of every row
//! begins with its tenant. [`Shards::store`] turns a tenancy into a [`Store`]; neither the store nor what it hands to its
//! callers takes a tenant as an argument, so code outside of this module cannot even name another tenant's row.
//!
//! Everything that touches the disk runs on tokio's blocking threads.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use redb::ReadableDatabase as _;

use crate::tenancy::{Name, Tenancy};

mod error;
mod folders;
mod rows;
#[cfg(test)]
mod tests;

pub use error::{OpenError, StoreError};
pub use folders::Folder;
pub use rows::{Changes, Rows, Table};

/// Databases kept open while nobody uses them.
const IDLE_DATABASES: usize = 64;
/// Memory that one database may use to keep pages, in bytes.
const CACHE_BYTES: usize = 16 << 20;

/// All shards below one data folder. Cheap to clone; the folder belongs to one process at a time.
#[derive(Clone)]
pub struct Shards(Arc<Inner>);

struct Inner {
    /// The data folder.
    data: PathBuf,
    /// Databases opened so far, by cluster and database. The lock is held while one is opened, by blocking threads only.
    open: Mutex<HashMap<(Name, Name), Arc<Database>>>,
    /// Holds the folder for this process; the system lets it go however the process ends.
    _lock: fs::File,
}

struct Database {
    redb: redb::Database,
    /// Lets writers wait here, as tasks, and not inside redb, as threads.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// `DATA/<cluster>/<database>.files`
    files: PathBuf,
}

impl Shards {
    /// Takes the data folder, which is made if it does not exist. Blocks.
    ///
    /// # Errors
    /// When the folder cannot be made or written, or another process has it.
    pub fn open(data: &Path) -> Result<Self, OpenError> {
        let unwritable = |source| OpenError::NotWritable { folder: data.to_owned(), source };
        folders::create(data).map_err(unwritable)?;
        let mut lock = fs::File::create(data.join("lock")).map_err(unwritable)?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => OpenError::InUse { folder: data.to_owned() },
            fs::TryLockError::Error(source) => unwritable(source),
        })?;
        writeln!(lock, "{}", std::process::id()).map_err(unwritable)?;
        Ok(Self(Arc::new(Inner { data: data.to_owned(), open: Mutex::default(), _lock: lock })))
    }

    /// The rows of one tenant.
    ///
    /// # Errors
    /// When the shard's database cannot be opened or made.
    pub async fn store(&self, tenancy: Tenancy) -> Result<Store, StoreError> {
        let shards = self.0.clone();
        blocking(move || {
            let database = shards.database(&tenancy)?;
            Ok(Store { tenancy, database, shards })
        })
        .await
    }
}

impl Inner {
    fn database(&self, tenancy: &Tenancy) -> Result<Arc<Database>, StoreError> {
        let shard = &tenancy.shard;
        // Nothing panics under this lock; were it to, the map would still be whole.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (shard.cluster.clone(), shard.database.clone());
        if let Some(database) = open.get(&key) {
            return Ok(database.clone());
        }
        if open.len() >= IDLE_DATABASES {
            open.retain(|_, database| Arc::strong_count(database) > 1);
        }
        let cluster = self.data.join(shard.cluster.as_str());
        folders::create(&cluster)?;
        let redb = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create(cluster.join(format!("{}.redb", shard.database)))
            .map_err(StoreError::of)?;
        folders::sync(&cluster)?;
        let files = cluster.join(format!("{}.files", shard.database));
        folders::clear_announced(&redb, &files)?;
        let database = Arc::new(Database { redb, writing: Arc::default(), files });
        open.insert(key, database.clone());
        Ok(database)
    }

    /// Drops a database that has failed: redb refuses all work after an I/O error until it is opened again.
    fn forget(&self, failed: &Arc<Database>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, database| !Arc::ptr_eq(database, failed));
    }
}

/// The rows and files of one tenant in its shard.
#[derive(Clone)]
pub struct Store {
    tenancy: Tenancy,
    database: Arc<Database>,
    shards: Arc<Inner>,
}

impl Store {
    /// Reads in one transaction, which sees none of the changes made meanwhile.
    ///
    /// # Errors
    /// What `work` returns, and failures of the storage.
    pub async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Rows<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let store = self.clone();
        blocking(move || {
            let begun = store.database.redb.begin_read().map_err(|error| store.failed(StoreError::of(error)))?;
            work(&Rows::new(&store.tenancy, begun))
        })
        .await
    }

    /// Changes rows in one transaction: all of it is durable on return, or nothing has changed.
    ///
    /// # Errors
    /// What `work` returns, and failures of the storage.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut Changes<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let turn = self.database.writing.clone().lock_owned().await;
        let store = self.clone();
        blocking(move || {
            let _turn = turn;
            let begun = store.database.redb.begin_write().map_err(|error| store.failed(StoreError::of(error)))?;
            let mut changes = Changes::new(&store.tenancy, begun);
            let done = work(&mut changes);
            let failed = changes.failed();
            match done {
                Ok(value) => changes.commit().map_err(|error| store.failed(error)).map(|()| value).map_err(E::from),
                Err(error) => {
                    if failed {
                        store.shards.forget(&store.database);
                    }
                    Err(error)
                }
            }
        })
        .await
    }

    /// Makes the database be opened again if this failure has made it unusable.
    fn failed(&self, error: StoreError) -> StoreError {
        if error.is_of_disk() {
            self.shards.forget(&self.database);
        }
        error
    }
}

/// Runs on a blocking thread. The work goes on to its end even if the caller is dropped.
pub(crate) async fn blocking<T, E, F>(work: F) -> Result<T, E>
where
    F: FnOnce() -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(StoreError::Interrupted.into()),
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        Self::of(redb::Error::Io(error))
    }
}
