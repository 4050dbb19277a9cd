//! Tenant contexts as replicated into this sidecar, by id and by host.

use std::ops::Deref;

use bytes::Bytes;
use replica::{Answer, Cached, Name, OnDemand, Replica};
use sidecar_core::{Lookup, Position, Tenants, Wanted, tenancy::Tenant};

/// A replicated tenant context: what the decisions look at, with the bytes that the app is handed. It stays as it is
/// while a call looks at it, whatever is replicated meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record(Tenant);

impl replica::Value for Record {
    fn decode(key: &str, revision: u64, raw: Bytes) -> Result<Self, String> {
        Tenant::decode_record(key, revision, raw).map(Self)
    }

    fn key(&self) -> &str {
        self.0.id()
    }

    fn revision(&self) -> u64 {
        self.0.revision()
    }

    fn raw(&self) -> &[u8] {
        self.0.context()
    }

    /// Its hosts.
    fn aliases(&self) -> impl Iterator<Item = &str> {
        self.0.hosts()
    }
}

impl Deref for Record {
    type Target = Tenant;

    fn deref(&self) -> &Tenant {
        &self.0
    }
}

/// A tenant that a call looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRef {
    record: Record,
    /// Where the record may have changed since: [`Tenants::as_of`].
    as_of: Option<Position>,
}

impl Deref for TenantRef {
    type Target = Tenant;

    fn deref(&self) -> &Tenant {
        &self.record
    }
}

impl TenantRef {
    /// As new as what was reached.
    const fn current(record: Record) -> Self {
        Self { record, as_of: None }
    }
}

/// What the decisions ask about tenants: all of them, or a cache of them.
#[derive(Clone)]
pub enum TenantMap {
    /// The whole map. What it lacks is nobody's.
    Full(Replica<Record>),
    /// Those that were asked for.
    OnDemand(OnDemand<Record>),
}

impl TenantMap {
    /// Waits until everything up to `position` can be read. Never ends if that never comes: bound it with a timeout.
    pub async fn wait_for(&self, position: Position) {
        let position = replica::Position { epoch: position.epoch, revision: position.revision };
        match self {
            Self::Full(replica) => replica.wait_for(position).await,
            Self::OnDemand(cache) => cache.wait_for(position).await,
        }
    }

    /// Asks for a tenant that is not held, for a second and a half at most.
    pub async fn resolve(&self, wanted: &Wanted) -> Lookup<TenantRef> {
        self.resolve_all(std::slice::from_ref(wanted)).await.pop().unwrap_or(Lookup::NotHeld)
    }

    /// The same of several at once, answered in their order. A whole map has nobody to ask: what it does not hold comes by
    /// itself.
    pub async fn resolve_all(&self, wanted: &[Wanted]) -> Vec<Lookup<TenantRef>> {
        match self {
            Self::Full(_) => wanted.iter().map(|wanted| self.look_up(wanted)).collect(),
            Self::OnDemand(cache) => {
                let answers = cache.resolve(wanted.iter().map(name).collect()).await;
                answers.into_iter().map(told).collect()
            }
        }
    }

    /// What is held of it.
    #[must_use]
    pub fn look_up(&self, wanted: &Wanted) -> Lookup<TenantRef> {
        match wanted {
            Wanted::Id(id) => self.get(id.as_str()),
            Wanted::Host(host) => self.by_host(host),
        }
    }

    /// Comes back whenever something that decisions see may have changed, until `changed` has nobody to tell any more.
    pub async fn each_change(&self, mut changed: impl FnMut()) {
        match self {
            Self::Full(replica) => {
                let mut changes = replica.subscribe();
                while changes.changed().await.is_ok() {
                    changed();
                }
            }
            Self::OnDemand(cache) => {
                let mut changes = cache.subscribe();
                while changes.changed().await.is_ok() {
                    changed();
                }
            }
        }
    }
}

/// A record that is not in a whole map is nobody's once the map is there.
fn looked_up(replica: &Replica<Record>, look: impl Fn() -> Option<Record>) -> Lookup<TenantRef> {
    match look() {
        Some(record) => Lookup::Found(TenantRef::current(record)),
        None if replica.position().is_none() => Lookup::NotHeld,
        // The first map may have come between the two.
        None => look().map_or(Lookup::Nobody, |record| Lookup::Found(TenantRef::current(record))),
    }
}

fn told(answer: Answer<Record>) -> Lookup<TenantRef> {
    match answer {
        Answer::Found(Cached { value, as_of }) => {
            Lookup::Found(TenantRef { record: value, as_of: as_of.map(position) })
        }
        Answer::Nobody => Lookup::Nobody,
        Answer::NotHeld => Lookup::NotHeld,
    }
}

fn name(wanted: &Wanted) -> Name {
    match wanted {
        Wanted::Id(id) => Name::Key(id.as_str().into()),
        Wanted::Host(host) => Name::Alias(host.clone()),
    }
}

impl Tenants for TenantMap {
    type Ref = TenantRef;

    fn position(&self) -> Option<Position> {
        match self {
            Self::Full(replica) => replica.position(),
            Self::OnDemand(cache) => cache.position(),
        }
        .map(position)
    }

    fn get(&self, id: &str) -> Lookup<TenantRef> {
        match self {
            Self::Full(replica) => looked_up(replica, || replica.get(id)),
            Self::OnDemand(cache) => told(cache.get(id)),
        }
    }

    fn by_host(&self, host: &str) -> Lookup<TenantRef> {
        match self {
            Self::Full(replica) => looked_up(replica, || replica.by_alias(host)),
            Self::OnDemand(cache) => told(cache.by_alias(host)),
        }
    }

    fn as_of(&self, tenant: &TenantRef) -> Option<Position> {
        tenant.as_of
    }
}

/// The tenants as they are held, but for the one that was just asked for: a cache may have had to let that go again.
pub struct Answered<'a> {
    /// What is held.
    pub tenants: &'a TenantMap,
    /// What [`TenantMap::resolve`] said of the only tenant that the decision looks at.
    pub answer: Option<&'a Lookup<TenantRef>>,
}

impl Tenants for Answered<'_> {
    type Ref = TenantRef;

    fn position(&self) -> Option<Position> {
        self.tenants.position()
    }

    fn get(&self, id: &str) -> Lookup<TenantRef> {
        self.answer.map_or_else(|| self.tenants.get(id), Lookup::clone)
    }

    fn by_host(&self, host: &str) -> Lookup<TenantRef> {
        self.answer.map_or_else(|| self.tenants.by_host(host), Lookup::clone)
    }

    fn as_of(&self, tenant: &TenantRef) -> Option<Position> {
        tenant.as_of
    }
}

/// The same pair in the decisions' own type.
#[must_use]
pub fn position(position: replica::Position) -> Position {
    Position { epoch: position.epoch, revision: position.revision }
}
