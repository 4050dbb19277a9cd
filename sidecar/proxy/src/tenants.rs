//! Tenant contexts as replicated into this sidecar, by id and by host.

use std::{ops::Deref, sync::Arc};

use bytes::Bytes;
use papaya::HashMap;
use replica::{Event, Replica};
use sidecar_core::{Position, Tenants, tenancy::Tenant};

/// A replicated tenant context: what the decisions look at, with the bytes that the app is handed.
#[derive(Debug)]
pub struct Record(Tenant);

impl replica::Value for Record {
    fn decode(key: &str, revision: u64, raw: Bytes) -> Result<Self, String> {
        Tenant::decode_record(key, revision, raw).map(Self)
    }

    fn raw(&self) -> Bytes {
        self.0.context().clone()
    }
}

/// A tenant that stays as it is while a call looks at it, whatever is replicated meanwhile.
#[derive(Debug, Clone)]
pub struct TenantRef(Arc<Record>);

impl Deref for TenantRef {
    type Target = Tenant;

    fn deref(&self) -> &Tenant {
        &self.0.0
    }
}

/// Which tenant has which host. Readers never wait for a writer.
#[derive(Debug, Clone, Default)]
pub struct Hosts(Arc<HashMap<Box<str>, Box<str>, ahash::RandomState>>);

impl Hosts {
    /// Follows the replica: hand this to `Follow::start`.
    pub fn observe(&self, event: &Event<'_, Record>) {
        let hosts = self.0.pin();
        match event {
            Event::Replaced(records) => {
                hosts.clear();
                for (_, record) in *records {
                    Self::add(&hosts, record);
                }
            }
            Event::Changed { old, new, .. } => {
                if let Some(old) = old {
                    let id = old.0.id();
                    for host in old.0.hosts() {
                        // A host may have moved to another tenant in the same batch: only one's own entry goes.
                        if hosts.get(host.as_str()).is_some_and(|owner| &**owner == id) {
                            hosts.remove(host.as_str());
                        }
                    }
                }
                if let Some(new) = new {
                    Self::add(&hosts, new);
                }
            }
        }
    }

    fn add(
        hosts: &papaya::HashMapRef<'_, Box<str>, Box<str>, ahash::RandomState, impl papaya::Guard>,
        record: &Record,
    ) {
        for host in record.0.hosts() {
            hosts.insert(host.into(), record.0.id().into());
        }
    }
}

/// What the decisions ask about tenants.
#[derive(Clone)]
pub struct TenantMap {
    replica: Replica<Record>,
    hosts: Hosts,
}

impl TenantMap {
    /// `hosts` must observe `replica`.
    #[must_use]
    pub fn new(replica: Replica<Record>, hosts: Hosts) -> Self {
        Self { replica, hosts }
    }

    /// The replica itself, to wait for revisions and to show its state.
    #[must_use]
    pub fn replica(&self) -> &Replica<Record> {
        &self.replica
    }
}

impl Tenants for TenantMap {
    type Ref = TenantRef;

    fn position(&self) -> Option<Position> {
        self.replica.position().map(position)
    }

    fn get(&self, id: &str) -> Option<TenantRef> {
        self.replica.get(id).map(TenantRef)
    }

    fn by_host(&self, host: &str) -> Option<TenantRef> {
        self.hosts.0.pin().get(host).and_then(|id| self.get(id))
    }
}

/// The same pair in the decisions' own type.
#[must_use]
pub fn position(position: replica::Position) -> Position {
    Position { epoch: position.epoch, revision: position.revision }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use replica::Value as _;
    use tenon_proto::tcs::v1::TenantContext;

    use super::*;

    fn record(id: &str, hosts: &[&str]) -> Arc<Record> {
        let context = TenantContext {
            tenant_id: id.into(),
            status: 1,
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            ..TenantContext::default()
        };
        Arc::new(Record::decode(id, 1, context.encode_to_vec().into()).expect("valid"))
    }

    fn owner(hosts: &Hosts, host: &str) -> Option<String> {
        hosts.0.pin().get(host).map(ToString::to_string)
    }

    #[test]
    fn hosts_follow_changes_whatever_their_order_within_a_batch() {
        let hosts = Hosts::default();
        let (acme, globex) = (record("acme", &["a.example", "b.example"]), record("globex", &["c.example"]));
        hosts.observe(&Event::Replaced(&[("acme".into(), Arc::clone(&acme)), ("globex".into(), Arc::clone(&globex))]));
        assert_eq!(owner(&hosts, "a.example").as_deref(), Some("acme"));

        // b.example moves; the new owner's change comes first.
        let (acme2, globex2) = (record("acme", &["a.example"]), record("globex", &["b.example"]));
        hosts.observe(&Event::Changed { key: "globex", old: Some(&globex), new: Some(&globex2) });
        hosts.observe(&Event::Changed { key: "acme", old: Some(&acme), new: Some(&acme2) });
        assert_eq!(owner(&hosts, "b.example").as_deref(), Some("globex"));
        assert_eq!(owner(&hosts, "c.example"), None);

        hosts.observe(&Event::Changed { key: "acme", old: Some(&acme2), new: None });
        assert_eq!(owner(&hosts, "a.example"), None);
        hosts.observe(&Event::Replaced(&[]));
        assert_eq!(owner(&hosts, "b.example"), None);
    }
}
