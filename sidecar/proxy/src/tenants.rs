//! Tenant contexts as replicated into this sidecar, by id and by host.

use std::{ops::Deref, sync::Arc};

use bytes::Bytes;
use replica::Replica;
use sidecar_core::{Position, Tenants, tenancy::Tenant};

/// A replicated tenant context: what the decisions look at, with the bytes that the app is handed. It stays as it is
/// while a call looks at it, whatever is replicated meanwhile.
#[derive(Debug, Clone)]
pub struct Record(Arc<Tenant>);

impl replica::Value for Record {
    fn decode(key: &str, revision: u64, raw: Bytes) -> Result<Self, String> {
        Tenant::decode_record(key, revision, Bytes::copy_from_slice(&raw)).map(Arc::new).map(Self)
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
}

impl Tenants for TenantMap {
    type Ref = Record;

    fn position(&self) -> Option<Position> {
        self.replica.position().map(position)
    }

    fn get(&self, id: &str) -> Option<Record> {
        self.replica.get(id)
    }

    fn by_host(&self, host: &str) -> Option<Record> {
        self.replica.by_alias(host)
    }
}

/// The same pair in the decisions' own type.
#[must_use]
pub fn position(position: replica::Position) -> Position {
    Position { epoch: position.epoch, revision: position.revision }
}
