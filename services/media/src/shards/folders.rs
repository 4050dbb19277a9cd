//! Files that belong to a row: they appear and disappear with it, whatever stops the process in between.
//!
//! A database and a file system have no common transaction. So a folder is first announced in the database, then written,
//! and settled in the transaction that makes its row. Removal goes the other way round: the transaction that removes the
//! row announces the folder. What is announced and not settled when the database is opened next is removed.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError, WriteTransaction};

use super::{Store, StoreError, blocking};
use crate::tenancy::{Name, Tenancy};

/// Schema, tenant, folder. No table of a schema can have this name: theirs contain a slash.
const ANNOUNCED: TableDefinition<'_, (&str, &str, &str), ()> = TableDefinition::new("announced");

/// A folder of files that belongs to one row of one tenant.
#[derive(Clone, Debug)]
pub struct Folder {
    name: Name,
    /// Where the files are while they are written.
    incoming: PathBuf,
    /// Where they are when they are complete.
    complete: PathBuf,
}

impl Store {
    /// The folder of this name of this tenant; it need not exist.
    pub fn folder(&self, name: &Name) -> Folder {
        Folder::at(&self.database.files, self.tenancy.shard.schema.as_str(), self.tenancy.tenant(), name)
    }

    /// Announces a new folder and makes it, empty, ready for files.
    ///
    /// # Errors
    /// Failures of the storage; then there is no folder.
    pub async fn announce(&self, name: &Name) -> Result<Folder, StoreError> {
        let (folder, note) = (self.folder(name), name.clone());
        self.write(move |changes| changes.announce(&note)).await?;
        let made = folder.clone();
        let done = blocking(move || Ok::<_, StoreError>(create(&made.incoming)?)).await;
        if done.is_err() {
            self.discard(&folder).await;
        }
        done.map(|()| folder)
    }

    /// Removes an announced folder. A failure is logged and leaves the rest for when the database is opened next.
    pub async fn discard(&self, folder: &Folder) {
        let (gone, note) = (folder.clone(), folder.name.clone());
        let done = match blocking(move || Ok::<_, StoreError>(gone.remove()?)).await {
            Ok(()) => self.write(move |changes| changes.settle(&note)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(folder = %folder.name, error = %error, "files are left until the storage is opened again");
        }
    }
}

impl Folder {
    fn at(files: &Path, schema: &str, tenant: &str, name: &Name) -> Self {
        let parent = files.join(schema).join(tenant);
        Self {
            name: name.clone(),
            // A name contains no dot, so this cannot be another folder's place.
            incoming: parent.join(format!("{name}.incoming")),
            complete: parent.join(name.as_str()),
        }
    }

    /// Where to write a file before [`Folder::complete`].
    pub fn incoming(&self, file: &str) -> PathBuf {
        self.incoming.join(file)
    }

    /// Where to read a file of a complete folder.
    pub fn file(&self, file: &str) -> PathBuf {
        self.complete.join(file)
    }

    /// Moves the folder to its place, durably and at once. Its files must have been synchronised. Blocks.
    ///
    /// # Errors
    /// What the file system says.
    pub fn complete(&self) -> io::Result<()> {
        sync(&self.incoming)?;
        fs::rename(&self.incoming, &self.complete)?;
        self.complete.parent().map_or(Ok(()), sync)
    }

    fn remove(&self) -> io::Result<()> {
        for place in [&self.incoming, &self.complete] {
            match fs::remove_dir_all(place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

pub(super) fn note(transaction: &WriteTransaction, tenancy: &Tenancy, folder: &Name) -> Result<(), StoreError> {
    let mut table = transaction.open_table(ANNOUNCED).map_err(StoreError::of)?;
    let key = (tenancy.shard.schema.as_str(), tenancy.tenant(), folder.as_str());
    table.insert(key, ()).map(drop).map_err(StoreError::of)
}

pub(super) fn strike(transaction: &WriteTransaction, tenancy: &Tenancy, folder: &Name) -> Result<(), StoreError> {
    let mut table = transaction.open_table(ANNOUNCED).map_err(StoreError::of)?;
    let key = (tenancy.shard.schema.as_str(), tenancy.tenant(), folder.as_str());
    table.remove(key).map(drop).map_err(StoreError::of)
}

/// Removes what was announced and never settled. Called before anyone else can use the database.
pub(super) fn clear_announced(redb: &redb::Database, files: &Path) -> Result<(), StoreError> {
    let mut left = Vec::new();
    match redb.begin_read().map_err(StoreError::of)?.open_table(ANNOUNCED) {
        Ok(table) => {
            for entry in table.iter().map_err(StoreError::of)? {
                let (key, ()) = entry.map(|(key, _)| (key, ())).map_err(StoreError::of)?;
                let (schema, tenant, folder) = key.value();
                left.push((schema.to_owned(), tenant.to_owned(), folder.to_owned()));
            }
        }
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(StoreError::of(error)),
    }
    if left.is_empty() {
        return Ok(());
    }
    tracing::info!(folders = left.len(), "removing what an earlier process left unfinished");
    for (schema, tenant, folder) in &left {
        // Only names were ever written here; anything else is not ours to remove.
        if let Some(name) = Name::parse(folder) {
            Folder::at(files, schema, tenant, &name).remove()?;
        }
    }
    let transaction = redb.begin_write().map_err(StoreError::of)?;
    {
        let mut table = transaction.open_table(ANNOUNCED).map_err(StoreError::of)?;
        for (schema, tenant, folder) in &left {
            table.remove((schema.as_str(), tenant.as_str(), folder.as_str())).map_err(StoreError::of)?;
        }
    }
    transaction.commit().map_err(StoreError::of)
}

/// Makes a folder and those above it, readable for this user alone, and makes their names durable.
pub(super) fn create(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        // Another thread was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        done => done,
    }?;
    sync(parent.unwrap_or(Path::new(".")))
}

/// Makes the names in a folder durable.
pub(super) fn sync(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}
