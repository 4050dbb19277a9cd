//! Tenant contexts as replicated into this sidecar, by id and by host.

use std::ops::Deref;

use bytes::Bytes;
use replica::Replica;
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

/// What the decisions ask about tenants.
#[derive(Clone)]
pub struct TenantMap {
    replica: Replica<Record>,
}

impl TenantMap {
    /// Asks `replica`.
    #[must_use]
    pub fn new(replica: Replica<Record>) -> Self {
        Self { replica }
    }

    /// The replica itself, to wait for revisions and to show its state.
    #[must_use]
    pub fn replica(&self) -> &Replica<Record> {
        &self.replica
    }

    /// Waits until everything up to `position` can be read. Never ends if that never comes: bound it with a timeout.
    pub async fn wait_for(&self, position: Position) {
        self.replica.wait_for(replica::Position { epoch: position.epoch, revision: position.revision }).await;
    }

    /// Asks for a tenant that is not held. A whole map has nobody to ask: what it does not hold comes by itself.
    pub async fn resolve(&self, wanted: &Wanted) -> Lookup<TenantRef> {
        match wanted {
            Wanted::Id(id) => self.get(id.as_str()),
            Wanted::Host(host) => self.by_host(host),
        }
    }

    /// A record that is not there is nobody's once the map is.
    fn looked_up(&self, look: impl Fn() -> Option<Record>) -> Lookup<TenantRef> {
        match look() {
            Some(record) => Lookup::Found(TenantRef::current(record)),
            None if self.replica.position().is_none() => Lookup::NotHeld,
            // The first map may have come between the two.
            None => look().map_or(Lookup::Nobody, |record| Lookup::Found(TenantRef::current(record))),
        }
    }
}

impl Tenants for TenantMap {
    type Ref = TenantRef;

    fn position(&self) -> Option<Position> {
        self.replica.position().map(position)
    }

    fn get(&self, id: &str) -> Lookup<TenantRef> {
        self.looked_up(|| self.replica.get(id))
    }

    fn by_host(&self, host: &str) -> Lookup<TenantRef> {
        self.looked_up(|| self.replica.by_alias(host))
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
