//! What writes decide from without reading a record: who exists, what each record says, and which host is whose.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use journal::{Entry, Position, Snapshot};
use prost::Message as _;
use tenon_proto::tcs::v1::{AppliedEvent, TenantContext};

use crate::events;
use crate::staged::{Fingerprint, StagedTenant};

/// The index of a journal at one position.
#[derive(Debug)]
pub(super) struct Index {
    position: Position,
    tenants: HashMap<Arc<str>, Known, ahash::RandomState>,
    /// Whose each host is.
    hosts: HashMap<Arc<str>, Arc<str>, ahash::RandomState>,
    /// Lifecycle events that are remembered, the oldest first.
    events: VecDeque<Remembered>,
}

#[derive(Debug)]
pub(super) struct Known {
    pub revision: u64,
    pub fingerprint: Fingerprint,
    hosts: Box<[Arc<str>]>,
}

/// A lifecycle event that was applied.
#[derive(Debug)]
pub(super) struct Remembered {
    /// Its record's key.
    pub key: Box<str>,
    pub at_unix_seconds: i64,
}

/// One change, as far as the index cares.
#[derive(Debug)]
pub(super) enum Change<'a> {
    Tenant(&'a StagedTenant),
    Gone(&'a str),
    Event { key: &'a str, at_unix_seconds: i64 },
    Forgotten(&'a str),
}

impl Index {
    /// Reads a snapshot; a million tenants take a second or two.
    pub(super) fn new(snapshot: Snapshot) -> Self {
        let Snapshot { position, records } = snapshot;
        let hasher = ahash::RandomState::default;
        let mut index = Self {
            position,
            tenants: HashMap::with_capacity_and_hasher(records.len(), hasher()),
            hosts: HashMap::with_capacity_and_hasher(records.len(), hasher()),
            events: VecDeque::new(),
        };
        for record in records {
            index.take_record(&record.key, record.revision, Some(record.value));
        }
        // The snapshot is in the order of the keys.
        index.events.make_contiguous().sort_by_key(|event| event.at_unix_seconds);
        index
    }

    pub(super) const fn position(&self) -> Position {
        self.position
    }

    /// How many tenants there are.
    pub(super) fn tenants(&self) -> u64 {
        self.tenants.len() as u64
    }

    pub(super) fn tenant(&self, id: &str) -> Option<&Known> {
        self.tenants.get(id)
    }

    pub(super) fn owner(&self, host: &str) -> Option<&Arc<str>> {
        self.hosts.get(host)
    }

    /// Events that were applied before a moment, the oldest first.
    pub(super) fn events_before(&self, unix_seconds: i64) -> impl Iterator<Item = &str> {
        self.events.iter().take_while(move |event| event.at_unix_seconds < unix_seconds).map(|event| &*event.key)
    }

    /// Takes over what a tail read; what is known already is passed over.
    pub(super) fn follow(&mut self, entries: Vec<Entry>) {
        for Entry { key, revision, value, .. } in entries {
            if revision > self.position.revision {
                self.take_record(&key, revision, value);
                self.position.revision = revision;
            }
        }
    }

    /// Takes over what was written here from the revision after `head` on.
    pub(super) fn written<'a>(&mut self, head: Position, changes: impl IntoIterator<Item = Change<'a>>) {
        if head.epoch != self.position.epoch {
            return;
        }
        for (change, revision) in changes.into_iter().zip(head.revision + 1..) {
            // The tail may have been faster.
            if revision > self.position.revision {
                self.take(change, revision);
                self.position.revision = revision;
            }
        }
    }

    fn take_record(&mut self, key: &str, revision: u64, value: Option<Bytes>) {
        match (events::is_event(key), value) {
            (true, None) => self.take(Change::Forgotten(key), revision),
            (true, Some(value)) => {
                let at = AppliedEvent::decode(value).ok().and_then(|event| event.at);
                let at_unix_seconds = at.map_or(0, |at| at.seconds);
                self.take(Change::Event { key, at_unix_seconds }, revision);
            }
            (false, None) => self.take(Change::Gone(key), revision),
            (false, Some(value)) => match TenantContext::decode(value) {
                Ok(tenant) => self.take(Change::Tenant(&StagedTenant::new(tenant)), revision),
                Err(error) => {
                    tracing::error!(tenant = key, revision, %error, "a stored tenant does not decode: import it again");
                    self.take(Change::Tenant(&StagedTenant::damaged(key)), revision);
                }
            },
        }
    }

    fn take(&mut self, change: Change<'_>, revision: u64) {
        match change {
            Change::Tenant(tenant) => self.insert(tenant, revision),
            Change::Gone(id) => self.remove(id),
            Change::Event { key, at_unix_seconds } => {
                self.events.push_back(Remembered { key: key.into(), at_unix_seconds })
            }
            Change::Forgotten(key) => {
                // They go the oldest first, so that one stands near the beginning.
                if let Some(place) = self.events.iter().position(|event| *event.key == *key) {
                    self.events.remove(place);
                }
            }
        }
    }

    fn insert(&mut self, tenant: &StagedTenant, revision: u64) {
        let StagedTenant { id, hosts, fingerprint, .. } = tenant;
        self.remove(id);
        for host in hosts {
            self.hosts.insert(Arc::clone(host), Arc::clone(id));
        }
        self.tenants.insert(Arc::clone(id), Known { revision, fingerprint: *fingerprint, hosts: hosts.clone() });
    }

    fn remove(&mut self, id: &str) {
        for host in self.tenants.remove(id).iter().flat_map(|known| &known.hosts) {
            // Within one import a host may have gone to another tenant before this one let go of it.
            if self.hosts.get(host).is_some_and(|owner| **owner == *id) {
                self.hosts.remove(host);
            }
        }
    }
}
