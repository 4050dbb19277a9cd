//! The tenants themselves: a journal, and an index of it that says which host is whose.
//!
//! One write at a time in this process: each decides from the index, appends only if the journal still is where the index
//! is, and brings the index up to date before the next. Where other processes write the same journal, the index follows
//! them by the journal's tail, and a write that was decided from an older state is decided anew. Reads take no part in
//! that.

mod index;
mod plan;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture};
use journal::{AppendError, Journal, Position, ReadError, Record, TailError};
use pbjson_types::Timestamp;
use prost::Message as _;
use tenon_proto::tcs::v1::tenant_context::Status;
use tenon_proto::tcs::v1::{AppliedEvent, LifecycleEvent, LifecycleResponse, TenantContext};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use crate::events;
use crate::guard::{Guards, Shrink};
use crate::lifecycle::machine::{self, Refused};
use crate::staged::{Import, Problems, StagedTenant};
use index::Index;
use plan::{Decision, Plan};

/// Other writers of the same journal may come between so often before a write is given up.
const ATTEMPTS: usize = 16;
/// How long a write waits for what others wrote before it.
const CATCHING_UP: Duration = Duration::from_secs(5);
/// How long a write waits for those before it: the largest import takes about as long.
const QUEUED: Duration = Duration::from_secs(30);
/// Events that are forgotten in one write.
const FORGOTTEN_AT_ONCE: usize = 256;

/// Why nothing was written, or nothing could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("there is no tenant {0}")]
    Unknown(String),
    #[error("{0}")]
    HostsTaken(Problems),
    #[error("host {host} is that of tenant {owner}")]
    HostTaken { host: String, owner: String },
    #[error("{0}")]
    Refused(Refused),
    #[error("tenant {id} is at {}, not at revision {expected}", at(*actual))]
    OtherRevision { id: String, expected: u64, actual: Option<u64> },
    #[error("event {0} was applied before, as another event: event ids are used once")]
    EventIdUsed(String),
    #[error(transparent)]
    Shrink(#[from] Shrink),
    #[error("no tenants have arrived here yet: this relay waits for those that it follows")]
    Nothing,
    #[error("the stored tenant {id} does not decode")]
    Damaged { id: String, source: prost::DecodeError },
    #[error("the store of tenants cannot be read")]
    Read(#[from] ReadError),
    #[error("the tenants cannot be written")]
    Write(#[from] AppendError),
    #[error("other writers were faster again and again: try again; nothing has changed")]
    Contended,
    #[error("what other writers wrote does not arrive here: try again; nothing has changed")]
    Behind,
    #[error("other writes take long: try again; nothing has changed")]
    Busy,
}

fn at(revision: Option<u64>) -> String {
    revision.map_or_else(|| "no revision, there is none".to_owned(), |revision| format!("revision {revision}"))
}

/// All tenants. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub(crate) struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    journal: Arc<dyn Journal>,
    guards: Guards,
    /// Held from decision to index.
    writing: Arc<Mutex<()>>,
    index: RwLock<Index>,
    /// Where the index is.
    position: watch::Sender<Position>,
}

impl Store {
    /// Reads the journal once, and follows it until `shutdown`. Must be called within a tokio runtime.
    pub(crate) async fn open(
        journal: Arc<dyn Journal>,
        guards: Guards,
        shutdown: CancellationToken,
    ) -> Result<Self, StoreError> {
        let snapshot = journal.snapshot().await?;
        let index = blocking(move || Index::new(snapshot)).await;
        let position = watch::Sender::new(index.position());
        let index = RwLock::new(index);
        let shared = Arc::new(Shared { journal, guards, writing: Arc::default(), index, position });
        tokio::spawn(shutdown.run_until_cancelled_owned(follow(Arc::clone(&shared))));
        Ok(Self { shared })
    }

    /// How far this process has come; never behind what it has answered.
    pub(crate) fn positions(&self) -> watch::Receiver<Position> {
        self.shared.position.subscribe()
    }

    pub(crate) fn journal(&self) -> &Arc<dyn Journal> {
        &self.shared.journal
    }

    pub(crate) async fn get(&self, id: &str) -> Result<TenantContext, StoreError> {
        if events::is_event(id) {
            return Err(StoreError::Unknown(id.to_owned()));
        }
        let found = self.shared.journal.get(id).await?;
        decode(found.ok_or_else(|| StoreError::Unknown(id.to_owned()))?)
    }

    /// The tenant whose site this host is.
    pub(crate) async fn by_host(&self, host: &str) -> Result<TenantContext, StoreError> {
        let unknown = || StoreError::Unknown(format!("with host {host}"));
        let id = self.shared.read().owner(host).cloned().ok_or_else(unknown)?;
        let tenant = self.get(&id).await?;
        // It may have lost the host just now.
        if tenant.hosts.iter().any(|own| own == host) { Ok(tenant) } else { Err(unknown()) }
    }

    /// All tenants, as they were at one moment.
    pub(crate) async fn list(
        &self,
    ) -> Result<impl Iterator<Item = Result<TenantContext, StoreError>> + use<>, StoreError> {
        let records = self.shared.journal.snapshot().await?.records.into_iter();
        Ok(records.filter(|record| !events::is_event(&record.key)).map(decode))
    }

    /// Writes every record that differs from what is there, all or none. Returns the position of the last write, of the
    /// head when nothing differed.
    pub(crate) async fn import(&self, import: Import) -> Result<Position, StoreError> {
        let import = Arc::new(import);
        self.write(move |shared, head| {
            let import = Arc::clone(&import);
            Box::pin(async move { blocking(move || shared.plan(import, head)).await })
        })
        .await
    }

    /// Returns the position at which the tenant has this status, which may be an old one.
    pub(crate) async fn set_status(&self, id: String, status: Status) -> Result<Position, StoreError> {
        self.write(move |shared, head| {
            let id = id.clone();
            Box::pin(async move { shared.plan_status(&id, status, head).await })
        })
        .await
    }

    pub(crate) async fn delete(&self, id: String) -> Result<Position, StoreError> {
        self.write(move |shared, head| {
            let id = id.clone();
            Box::pin(async move {
                let found = shared.record(&id).await?.ok_or_else(|| StoreError::Unknown(id.clone()))?;
                shared.may_go(&id)?;
                Ok(Decision::Write(Plan::Gone(id, found.revision, None), Position::new(head.epoch, head.revision + 1)))
            })
        })
        .await
    }

    /// Applies a lifecycle event, unless it was applied before. The event must have passed its check.
    pub(crate) async fn apply(&self, event: LifecycleEvent, now: Timestamp) -> Result<LifecycleResponse, StoreError> {
        let event = Arc::new(event);
        self.write(move |shared, head| {
            let event = Arc::clone(&event);
            Box::pin(async move { shared.plan_event(&event, now, head).await })
        })
        .await
    }

    /// Forgets some of the lifecycle events that were applied before a moment; returns how many.
    pub(crate) async fn forget_events_before(&self, unix_seconds: i64) -> Result<usize, StoreError> {
        self.write(move |shared, _| {
            let keys: Vec<String> =
                shared.read().events_before(unix_seconds).take(FORGOTTEN_AT_ONCE).map(str::to_owned).collect();
            let count = keys.len();
            let decision =
                if keys.is_empty() { Decision::Stands(0) } else { Decision::Write(Plan::Forget(keys), count) };
            Box::pin(std::future::ready(Ok(decision)))
        })
        .await
    }

    /// Runs a write to its end even when the caller goes away: else the index would not know what was written.
    async fn write<T, F>(&self, decide: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(Arc<Shared>, Position) -> BoxFuture<'static, Result<Decision<T>, StoreError>> + Send + Sync + 'static,
    {
        let shared = Arc::clone(&self.shared);
        // Whoever goes away while it waits writes nothing.
        let alone = tokio::time::timeout(QUEUED, Arc::clone(&shared.writing).lock_owned());
        let alone = alone.await.map_err(|_| StoreError::Busy)?;
        match tokio::spawn(async move { shared.write(decide, alone).await }).await {
            Ok(outcome) => outcome,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

impl Shared {
    /// Decides, writes what was decided, and decides anew when somebody else has written meanwhile.
    async fn write<T, F>(self: Arc<Self>, decide: F, _alone: OwnedMutexGuard<()>) -> Result<T, StoreError>
    where
        F: Fn(Arc<Self>, Position) -> BoxFuture<'static, Result<Decision<T>, StoreError>>,
    {
        for _ in 0..ATTEMPTS {
            let head = self.read().position();
            let (plan, outcome) = match decide(Arc::clone(&self), head).await? {
                Decision::Stands(outcome) => {
                    // It may stand no longer, by what others have written: that would be a write that is lost.
                    match self.journal.append_at(head, Vec::new()).await {
                        Ok(_) => return Ok(outcome),
                        Err(AppendError::Moved { actual }) => self.catch_up(head, actual).await?,
                        Err(error) => return Err(error.into()),
                    }
                    continue;
                }
                Decision::Write(plan, outcome) => (Arc::new(plan), outcome),
            };
            let writes = if plan.is_large() {
                let plan = Arc::clone(&plan);
                blocking(move || plan.writes(head)).await
            } else {
                plan.writes(head)
            };
            match self.journal.append_at(head, writes).await {
                Ok(_) if plan.is_large() => {
                    let shared = Arc::clone(&self);
                    blocking(move || shared.written(head, &plan)).await;
                    return Ok(outcome);
                }
                Ok(_) => {
                    self.written(head, &plan);
                    return Ok(outcome);
                }
                Err(AppendError::Moved { actual }) => self.catch_up(head, actual).await?,
                Err(AppendError::Conflict { .. }) => self.reload().await?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Contended)
    }

    /// The writes of an import: of what differs, in the order of the ids, which stores like best.
    fn plan(&self, import: Arc<Import>, head: Position) -> Result<Decision<Position>, StoreError> {
        let index = self.read();
        let mut problems = Problems::default();
        for (position, tenant) in import.tenants().iter().enumerate() {
            for host in &tenant.hosts {
                match index.owner(host) {
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
        let mut changed: Vec<(usize, Option<u64>)> = Vec::new();
        for (position, tenant) in import.tenants().iter().enumerate() {
            let known = index.tenant(&tenant.id);
            if known.is_none_or(|known| known.fingerprint != tenant.fingerprint) {
                changed.push((position, known.map(|known| known.revision)));
            }
        }
        drop(index);
        if changed.is_empty() {
            return Ok(Decision::Stands(head));
        }
        changed.sort_unstable_by(|(one, _), (other, _)| import.tenants()[*one].id.cmp(&import.tenants()[*other].id));
        let last = Position::new(head.epoch, head.revision + changed.len() as u64);
        Ok(Decision::Write(Plan::Import(import, changed), last))
    }

    async fn plan_status(&self, id: &str, status: Status, head: Position) -> Result<Decision<Position>, StoreError> {
        let found = self.record(id).await?.ok_or_else(|| StoreError::Unknown(id.to_owned()))?;
        let revision = found.revision;
        let mut tenant = decode(found)?;
        if tenant.status() == status {
            return Ok(Decision::Stands(Position::new(head.epoch, revision)));
        }
        tenant.set_status(status);
        let plan = Plan::Tenant(StagedTenant::new(tenant), Some(revision), None);
        Ok(Decision::Write(plan, Position::new(head.epoch, head.revision + 1)))
    }

    async fn plan_event(
        &self,
        event: &LifecycleEvent,
        now: Timestamp,
        head: Position,
    ) -> Result<Decision<LifecycleResponse>, StoreError> {
        let LifecycleEvent { event_id, tenant_id, expected_revision, change } = event;
        let key = events::key(event_id);
        // Before the event is looked for: one that another writer applies between the two would be refused by what it did.
        let found = self.record(tenant_id).await?;
        if let Some(record) = self.journal.get(&key).await? {
            let known = AppliedEvent::decode(record.value).map_err(|source| StoreError::Damaged { id: key, source })?;
            if known.digest[..] != events::digest(event) {
                return Err(StoreError::EventIdUsed(event_id.clone()));
            }
            let before = LifecycleResponse { epoch: head.epoch, revision: known.revision, repeated_event: true };
            return Ok(Decision::Stands(before));
        }
        let revision = found.as_ref().map(|record| record.revision);
        if *expected_revision != 0 && revision != Some(*expected_revision) {
            let (id, expected) = (tenant_id.clone(), *expected_revision);
            return Err(StoreError::OtherRevision { id, expected, actual: revision });
        }
        let Some(change) = change else {
            return Err(StoreError::Refused(Refused::Invalid(vec!["no change is given".to_owned()])));
        };
        let next = found.map(decode).transpose()?;
        let next = machine::apply(tenant_id, next, change, now).map_err(StoreError::Refused)?;
        let written = head.revision + 1;
        let memory = Some((key, events::remember(event, written, now)));
        let plan = match (next, revision) {
            (Some(next), revision) => {
                self.hosts_are_free(&next)?;
                Plan::Tenant(StagedTenant::new(next), revision, memory)
            }
            (None, revision) => {
                self.may_go(tenant_id)?;
                Plan::Gone(tenant_id.clone(), revision.unwrap_or_default(), memory)
            }
        };
        Ok(Decision::Write(plan, LifecycleResponse { epoch: head.epoch, revision: written, repeated_event: false }))
    }

    fn hosts_are_free(&self, tenant: &TenantContext) -> Result<(), StoreError> {
        let index = self.read();
        let taken = tenant.hosts.iter().find_map(|host| Some((host, index.owner(host)?)));
        match taken.filter(|(_, owner)| ***owner != *tenant.tenant_id) {
            None => Ok(()),
            Some((host, owner)) => Err(StoreError::HostTaken { host: host.clone(), owner: owner.to_string() }),
        }
    }

    /// Whether the guard lets this tenant go.
    fn may_go(&self, id: &str) -> Result<(), StoreError> {
        let tenants = self.read().tenants();
        Ok(self.guards.check(tenants, tenants.saturating_sub(1), id)?)
    }

    async fn record(&self, id: &str) -> Result<Option<Record>, StoreError> {
        if events::is_event(id) {
            return Ok(None);
        }
        Ok(self.journal.get(id).await?)
    }

    /// Brings the index up to what was written here after `head`.
    fn written(&self, head: Position, plan: &Plan) {
        self.change(|index| index.written(head, plan.changes()));
    }

    /// Brings the index up to what others wrote.
    async fn catch_up(&self, head: Position, actual: Position) -> Result<(), StoreError> {
        if actual.epoch != head.epoch {
            return self.reload().await;
        }
        let reading = async {
            let mut tail = self.journal.tail(head);
            while self.read().position() < actual {
                match tail.next().await {
                    Some(Ok(entries)) => self.change(|index| index.follow(entries)),
                    Some(Err(TailError::Read(error))) => return Err(error.into()),
                    Some(Err(TailError::Compacted)) | None => return self.reload().await,
                }
            }
            Ok(())
        };
        tokio::time::timeout(CATCHING_UP, reading).await.unwrap_or(Err(StoreError::Behind))
    }

    /// Reads everything anew.
    async fn reload(&self) -> Result<(), StoreError> {
        let snapshot = self.journal.snapshot().await?;
        let new = blocking(move || Index::new(snapshot)).await;
        self.change(|index| {
            // The tail may have been faster.
            if new.position() > index.position() {
                *index = new;
            }
        });
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, work: impl FnOnce(&mut Index)) {
        let mut index: RwLockWriteGuard<'_, Index> = self.index.write().unwrap_or_else(PoisonError::into_inner);
        work(&mut index);
        self.guards.held(index.tenants());
        let position = index.position();
        drop(index);
        self.position.send_if_modified(|known| {
            let moved = *known != position;
            *known = position.max(*known);
            moved
        });
    }
}

/// Keeps the index at the journal's head when others write.
async fn follow(shared: Arc<Shared>) {
    let mut positions = shared.position.subscribe();
    loop {
        let from = *positions.borrow_and_update();
        match follow_from(&shared, from, &mut positions).await {
            Ok(()) => {}
            Err(TailError::Read(error)) => {
                tracing::warn!(%error, source = %error.0, "what others write cannot be read");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(TailError::Compacted) => {
                if let Err(error) = shared.reload().await {
                    tracing::warn!(%error, "the tenants cannot be read anew");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// Until the index is ahead of the tail, which is when this process writes: what it wrote it need not read.
async fn follow_from(
    shared: &Shared,
    mut from: Position,
    positions: &mut watch::Receiver<Position>,
) -> Result<(), TailError> {
    let mut tail = shared.journal.tail(from);
    loop {
        tokio::select! {
            // The sender lives in what is followed for.
            _ = positions.wait_for(|position| *position > from) => return Ok(()),
            entries = tail.next() => {
                let entries = entries.unwrap_or(Err(TailError::Compacted))?;
                from.revision = entries.last().map_or(from.revision, |last| last.revision);
                shared.change(|index| index.follow(entries));
            }
        }
    }
}

pub(crate) fn decode(record: Record) -> Result<TenantContext, StoreError> {
    let value: Bytes = record.value;
    let tenant = TenantContext::decode(value).map_err(|source| StoreError::Damaged { id: record.key, source })?;
    Ok(TenantContext { revision: record.revision, ..tenant })
}

/// Runs what takes long where it holds up nobody.
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
