//! The tenants themselves: a journal, and an index of it that says which host is whose.
//!
//! One write at a time: each decides from the index, appends under the revisions that it decided from, and brings the
//! index up to date before the next. Reads take no part in that.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use journal::{AppendError, Expected, Journal, Position, ReadError, Record, Write};
use prost::Message as _;
use tenon_proto::tcs::v1::TenantContext;
use tenon_proto::tcs::v1::tenant_context::Status;
use tokio::sync::Mutex;

use crate::staged::{Fingerprint, Import, Problems, StagedTenant};

/// Another writer of the same journal may come between so often before a write is given up.
const ATTEMPTS: usize = 4;

/// Why nothing was written, or nothing could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("there is no tenant {0}")]
    Unknown(String),
    #[error("{0}")]
    HostsTaken(Problems),
    #[error("the stored tenant {id} does not decode")]
    Damaged { id: String, source: prost::DecodeError },
    #[error("the store of tenants cannot be read")]
    Read(#[from] ReadError),
    #[error("the tenants cannot be written")]
    Write(#[from] AppendError),
}

/// All tenants. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub(crate) struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    journal: Arc<dyn Journal>,
    /// Held from decision to index.
    writing: Mutex<()>,
    index: RwLock<Index>,
}

/// What writes decide from, without reading a record.
#[derive(Debug, Default)]
struct Index {
    tenants: HashMap<Arc<str>, Known>,
    /// Whose each host is.
    hosts: HashMap<Arc<str>, Arc<str>>,
}

#[derive(Debug)]
struct Known {
    revision: u64,
    fingerprint: Fingerprint,
    hosts: Box<[Arc<str>]>,
}

impl Store {
    /// Reads the journal once.
    pub(crate) async fn open(journal: Arc<dyn Journal>) -> Result<Self, StoreError> {
        let index = RwLock::new(Index::read(&*journal).await?);
        Ok(Self { shared: Arc::new(Shared { journal, writing: Mutex::default(), index }) })
    }

    pub(crate) async fn get(&self, id: &str) -> Result<TenantContext, StoreError> {
        let found = self.shared.journal.get(id).await?;
        decode(found.ok_or_else(|| StoreError::Unknown(id.to_owned()))?)
    }

    /// The tenant whose site this host is.
    pub(crate) async fn by_host(&self, host: &str) -> Result<TenantContext, StoreError> {
        let unknown = || StoreError::Unknown(format!("with host {host}"));
        let id = self.shared.read().hosts.get(host).cloned().ok_or_else(unknown)?;
        let tenant = self.get(&id).await?;
        // It may have lost the host just now.
        if tenant.hosts.iter().any(|own| own == host) { Ok(tenant) } else { Err(unknown()) }
    }

    /// All tenants, as they were at one moment.
    pub(crate) async fn list(
        &self,
    ) -> Result<impl Iterator<Item = Result<TenantContext, StoreError>> + use<>, StoreError> {
        Ok(self.shared.journal.snapshot().await?.records.into_iter().map(decode))
    }

    /// Writes every record that differs from what is there, all or none. Returns the position of the last write, of the
    /// head when nothing differed.
    pub(crate) async fn import(&self, import: Import) -> Result<Position, StoreError> {
        self.write(move |shared| Box::pin(async move { shared.import(&import).await })).await
    }

    /// Returns the position at which the tenant has this status, which may be an old one.
    pub(crate) async fn set_status(&self, id: String, status: Status) -> Result<Position, StoreError> {
        self.write(move |shared| Box::pin(async move { shared.set_status(&id, status).await })).await
    }

    pub(crate) async fn delete(&self, id: String) -> Result<Position, StoreError> {
        self.write(move |shared| Box::pin(async move { shared.delete(&id).await })).await
    }

    /// Runs a write to its end even when the caller goes away: else the index would not know what was written.
    async fn write<F>(&self, work: F) -> Result<Position, StoreError>
    where
        F: FnOnce(Arc<Shared>) -> futures_util::future::BoxFuture<'static, Result<Position, StoreError>>,
    {
        match tokio::spawn(work(Arc::clone(&self.shared))).await {
            Ok(outcome) => outcome,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

impl Shared {
    async fn import(&self, import: &Import) -> Result<Position, StoreError> {
        let _alone = self.writing.lock().await;
        let mut attempt = 1;
        loop {
            let head = self.journal.head().await?;
            let (writes, changed) = self.read().plan(import, head)?;
            match self.journal.append(writes).await {
                Ok(position) => return self.landed(&changed, head, position).await,
                Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
            self.reload().await?;
        }
    }

    async fn set_status(&self, id: &str, status: Status) -> Result<Position, StoreError> {
        let _alone = self.writing.lock().await;
        let mut attempt = 1;
        loop {
            let head = self.journal.head().await?;
            let found = self.journal.get(id).await?.ok_or_else(|| StoreError::Unknown(id.to_owned()))?;
            let revision = found.revision;
            let mut tenant = decode(found)?;
            if tenant.status() == status {
                return Ok(Position::new(head.epoch, revision));
            }
            tenant.set_status(status);
            let staged = StagedTenant::new(tenant);
            let write = staged.write(head.revision + 1).expecting(Expected::Revision(revision));
            match self.journal.append(vec![write]).await {
                Ok(position) => return self.landed(&[&staged], head, position).await,
                Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
            self.reload().await?;
        }
    }

    async fn delete(&self, id: &str) -> Result<Position, StoreError> {
        let _alone = self.writing.lock().await;
        let mut attempt = 1;
        loop {
            let found = self.journal.get(id).await?.ok_or_else(|| StoreError::Unknown(id.to_owned()))?;
            let write = Write::delete(id).expecting(Expected::Revision(found.revision));
            match self.journal.append(vec![write]).await {
                Ok(position) => {
                    self.change().remove(id);
                    return Ok(position);
                }
                Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
            self.reload().await?;
        }
    }

    /// Brings the index up to what was written after `head`, the last write at `position`.
    async fn landed(
        &self,
        changed: &[&StagedTenant],
        head: Position,
        position: Position,
    ) -> Result<Position, StoreError> {
        if position.revision == head.revision + changed.len() as u64 {
            self.change().replace(changed, head);
        } else {
            // Another writer came between, elsewhere in the journal.
            self.reload().await?;
        }
        Ok(position)
    }

    /// After another writer was faster.
    async fn reload(&self) -> Result<(), StoreError> {
        let index = Index::read(&*self.journal).await?;
        *self.change() = index;
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StagedTenant {
    /// The record as it stands in the journal: it carries the revision that writes it.
    fn write(&self, revision: u64) -> Write {
        let mut tenant = TenantContext::decode(&*self.value).expect("what was encoded here decodes");
        tenant.revision = revision;
        Write::put(&*self.id, tenant.encode_to_vec())
    }
}

impl Index {
    async fn read(journal: &dyn Journal) -> Result<Self, StoreError> {
        let mut index = Self::default();
        for record in journal.snapshot().await?.records {
            let revision = record.revision;
            index.insert(&StagedTenant::new(decode(record)?), revision);
        }
        Ok(index)
    }

    /// The writes of an import and the tenants that they change, in the same order; the first will have the revision
    /// after `head`, since nobody else writes meanwhile.
    fn plan<'a>(&self, import: &'a Import, head: Position) -> Result<(Vec<Write>, Vec<&'a StagedTenant>), StoreError> {
        let mut problems = Problems::default();
        for (position, tenant) in import.tenants().iter().enumerate() {
            for host in &tenant.hosts {
                match self.hosts.get(host) {
                    // A tenant that the import replaces as well has the hosts that stand there and no others.
                    Some(owner) if !import.replaces(owner) => problems
                        .push(position, format_args!("tenant {}: host {host} is that of tenant {owner}", tenant.id)),
                    _ => {}
                }
            }
        }
        if !problems.is_empty() {
            return Err(StoreError::HostsTaken(problems));
        }
        let differs = |tenant: &&StagedTenant| {
            self.tenants.get(&tenant.id).is_none_or(|known| known.fingerprint != tenant.fingerprint)
        };
        let changed: Vec<_> = import.tenants().iter().filter(differs).collect();
        let writes = changed.iter().zip(head.revision + 1..).map(|(tenant, revision)| {
            let known = self.tenants.get(&tenant.id);
            tenant.write(revision).expecting(known.map_or(Expected::Absent, |known| Expected::Revision(known.revision)))
        });
        Ok((writes.collect(), changed))
    }

    /// Takes over what was written, from the revision after `head` on.
    fn replace(&mut self, changed: &[&StagedTenant], head: Position) {
        // All old hosts go first: one of them may be a new host of another of these tenants.
        for tenant in changed {
            self.remove(&tenant.id);
        }
        for (tenant, revision) in changed.iter().zip(head.revision + 1..) {
            self.insert(tenant, revision);
        }
    }

    fn insert(&mut self, tenant: &StagedTenant, revision: u64) {
        let StagedTenant { id, hosts, fingerprint, .. } = tenant;
        for host in hosts {
            self.hosts.insert(Arc::clone(host), Arc::clone(id));
        }
        self.tenants.insert(Arc::clone(id), Known { revision, fingerprint: *fingerprint, hosts: hosts.clone() });
    }

    fn remove(&mut self, id: &str) {
        for host in self.tenants.remove(id).iter().flat_map(|known| &known.hosts) {
            self.hosts.remove(host);
        }
    }
}

fn decode(record: Record) -> Result<TenantContext, StoreError> {
    let value: Bytes = record.value;
    let tenant = TenantContext::decode(value).map_err(|source| StoreError::Damaged { id: record.key, source })?;
    Ok(TenantContext { revision: record.revision, ..tenant })
}

#[cfg(test)]
mod tests;
