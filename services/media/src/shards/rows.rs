//! Rows of one tenant: what a transaction lets its work see and change.

use std::{cell::Cell, marker::PhantomData};

use redb::{ReadTransaction, ReadableTable, TableDefinition, TableError, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

use super::{StoreError, folders};
use crate::tenancy::{Name, Tenancy};

/// Tenant and row. The tenant is always the one of the [`Tenancy`].
type Key = (&'static str, &'static str);
/// JSON, so that a row can be looked at.
type Value = &'static [u8];

/// A kind of rows. In the database each schema has a table of its own.
#[derive(Debug)]
pub struct Table<V> {
    name: &'static str,
    rows: PhantomData<fn() -> V>,
}

impl<V> Table<V> {
    /// A table whose name is unique within its service.
    pub const fn new(name: &'static str) -> Self {
        Self { name, rows: PhantomData }
    }

    fn in_schema(&self, tenancy: &Tenancy) -> String {
        format!("{}/{}", tenancy.shard.schema, self.name)
    }
}

impl<V> Clone for Table<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Table<V> {}

/// The rows of one tenant as they were when the transaction began.
pub struct Rows<'s> {
    tenancy: &'s Tenancy,
    transaction: ReadTransaction,
}

impl<'s> Rows<'s> {
    pub(super) fn new(tenancy: &'s Tenancy, transaction: ReadTransaction) -> Self {
        Self { tenancy, transaction }
    }

    /// One row.
    ///
    /// # Errors
    /// Failures of the storage.
    pub fn get<V: DeserializeOwned>(&self, table: Table<V>, row: &str) -> Result<Option<V>, StoreError> {
        match self.open(&table.in_schema(self.tenancy))? {
            Some(rows) => get(&rows, self.tenancy, table, row),
            None => Ok(None),
        }
    }

    /// At most `limit` rows whose name begins with `prefix`, in the order of their names, only those after `after`.
    ///
    /// # Errors
    /// Failures of the storage.
    pub fn list<V: DeserializeOwned>(
        &self,
        table: Table<V>,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, V)>, StoreError> {
        let Some(rows) = self.open(&table.in_schema(self.tenancy))? else { return Ok(Vec::new()) };
        let tenant = self.tenancy.tenant();
        let from = after.map_or(prefix, |after| after.max(prefix));
        let mut found = Vec::new();
        for entry in rows.range((tenant, from)..).map_err(StoreError::of)? {
            let (key, value) = entry.map_err(StoreError::of)?;
            let (owner, row) = key.value();
            if owner != tenant || !row.starts_with(prefix) || found.len() == limit {
                break;
            }
            if after != Some(row) {
                found.push((row.to_owned(), decode(table, value.value())?));
            }
        }
        Ok(found)
    }

    /// None before the first row of the schema was written.
    fn open(&self, name: &str) -> Result<Option<redb::ReadOnlyTable<Key, Value>>, StoreError> {
        match self.transaction.open_table(TableDefinition::new(name)) {
            Ok(table) => Ok(Some(table)),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(StoreError::of(error)),
        }
    }
}

/// The rows of one tenant within a transaction that changes them.
pub struct Changes<'s> {
    tenancy: &'s Tenancy,
    transaction: WriteTransaction,
    /// Set when the disk has failed, so that the database is opened again.
    failed: Cell<bool>,
}

impl<'s> Changes<'s> {
    pub(super) fn new(tenancy: &'s Tenancy, transaction: WriteTransaction) -> Self {
        Self { tenancy, transaction, failed: Cell::new(false) }
    }

    /// One row, as this transaction has left it so far.
    ///
    /// # Errors
    /// Failures of the storage.
    pub fn get<V: DeserializeOwned>(&self, table: Table<V>, row: &str) -> Result<Option<V>, StoreError> {
        self.with(table, |rows| get(rows, self.tenancy, table, row))
    }

    /// Makes or replaces a row.
    ///
    /// # Errors
    /// Failures of the storage.
    pub fn put<V: Serialize>(&mut self, table: Table<V>, row: &str, value: &V) -> Result<(), StoreError> {
        let value = serde_json::to_vec(value).map_err(|source| StoreError::Row { table: table.name, source })?;
        self.with(table, |rows| {
            rows.insert((self.tenancy.tenant(), row), value.as_slice()).map(drop).map_err(StoreError::of)
        })
    }

    /// Removes a row and returns it.
    ///
    /// # Errors
    /// Failures of the storage.
    pub fn remove<V: DeserializeOwned>(&mut self, table: Table<V>, row: &str) -> Result<Option<V>, StoreError> {
        self.with(table, |rows| {
            let old = rows.remove((self.tenancy.tenant(), row)).map_err(StoreError::of)?;
            old.map(|old| decode(table, old.value())).transpose()
        })
    }

    /// From this transaction on the folder stands for nothing until [`Changes::settle`]: see [`super::Folder`].
    ///
    /// # Errors
    /// Failures of the storage.
    pub fn announce(&mut self, folder: &Name) -> Result<(), StoreError> {
        self.noted(folders::note(&self.transaction, self.tenancy, folder))
    }

    /// With this transaction the folder is settled: it stays, or it is gone, as the rows say.
    ///
    /// # Errors
    /// Failures of the storage.
    pub fn settle(&mut self, folder: &Name) -> Result<(), StoreError> {
        self.noted(folders::strike(&self.transaction, self.tenancy, folder))
    }

    pub(super) fn commit(self) -> Result<(), StoreError> {
        self.transaction.commit().map_err(StoreError::of)
    }

    pub(super) fn failed(&self) -> bool {
        self.failed.get()
    }

    fn with<V, T>(
        &self,
        table: Table<V>,
        work: impl FnOnce(&mut redb::Table<'_, Key, Value>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let name = table.in_schema(self.tenancy);
        let opened = self.transaction.open_table(TableDefinition::<Key, Value>::new(&name)).map_err(StoreError::of);
        self.noted(opened.and_then(|mut rows| work(&mut rows)))
    }

    fn noted<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if done.as_ref().is_err_and(StoreError::is_of_disk) {
            self.failed.set(true);
        }
        done
    }
}

fn get<V: DeserializeOwned>(
    rows: &impl ReadableTable<Key, Value>,
    tenancy: &Tenancy,
    table: Table<V>,
    row: &str,
) -> Result<Option<V>, StoreError> {
    let value = rows.get((tenancy.tenant(), row)).map_err(StoreError::of)?;
    value.map(|value| decode(table, value.value())).transpose()
}

fn decode<V: DeserializeOwned>(table: Table<V>, value: &[u8]) -> Result<V, StoreError> {
    serde_json::from_slice(value).map_err(|source| StoreError::Row { table: table.name, source })
}
