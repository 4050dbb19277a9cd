//! Whom the mesh trusts no longer: services, operators, ASAP keys, certificates. Never reads the clock.

mod rpc;
mod selector;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use journal::{AppendError, Journal, Position, ReadError, Write};
use mesh_asap::Kid;
use mesh_config::names::ServiceName;
use mesh_identity::Revoked;
use prost::Message as _;
use tenon_proto::identity::v1::Revocation;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(crate) use rpc::{lift, list, revoke};
pub(crate) use selector::{Selector, SelectorError};

/// Why revocations could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RevocationStoreError {
    /// A revoked peer must not come back because its record is damaged.
    #[error("the record {0} of the store of revocations does not decode: restore a backup of the store")]
    Damaged(String),
    /// The journal.
    #[error("the store of revocations cannot be read")]
    Read(#[from] ReadError),
    /// The journal.
    #[error("the store of revocations cannot be written")]
    Write(#[from] AppendError),
}

/// The revocations: durable in their journal, from which every follower has them, and in memory for this service's own
/// decisions. The only writer of that journal.
pub(crate) struct Revocations {
    journal: Arc<dyn Journal>,
    records: Mutex<BTreeMap<Selector, Revocation>>,
    /// Told after each change: this process's own TLS.
    apply: Box<dyn Fn(Revoked) + Send + Sync>,
    /// Held for reading while a key is added, for writing while something is revoked: so no key gets in behind the back
    /// of a revocation that deletes it.
    gate: RwLock<()>,
}

impl Revocations {
    /// Reads the journal. `apply` is called now and after each change, before the change is answered.
    ///
    /// # Errors
    /// The journal cannot be read, or holds a record that is none.
    pub(crate) async fn open(
        journal: Arc<dyn Journal>,
        apply: impl Fn(Revoked) + Send + Sync + 'static,
    ) -> Result<Self, RevocationStoreError> {
        let mut records = BTreeMap::new();
        for found in journal.snapshot().await?.records {
            let record = Revocation::decode(found.value).ok();
            let selector = record.as_ref().and_then(|record| Selector::of(record.what.clone()).ok());
            let (Some(record), Some(selector)) = (record, selector) else {
                return Err(RevocationStoreError::Damaged(found.key));
            };
            records.insert(selector, record);
        }
        let revocations = Self { journal, records: Mutex::new(records), apply: Box::new(apply), gate: RwLock::new(()) };
        revocations.announce();
        Ok(revocations)
    }

    pub(crate) fn names_service(&self, service: &ServiceName) -> bool {
        self.names(&Selector::Service(service.clone()))
    }

    pub(crate) fn names_operator(&self, name: &str) -> bool {
        self.names(&Selector::Operator(name.to_owned()))
    }

    pub(crate) fn names_kid(&self, kid: &Kid) -> bool {
        self.names(&Selector::Kid(kid.clone()))
    }

    pub(crate) fn names(&self, selector: &Selector) -> bool {
        self.records().contains_key(selector)
    }

    /// Nothing is revoked while this is held.
    pub(crate) async fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().await
    }

    /// No key is added while this is held.
    pub(crate) async fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().await
    }

    /// Ends the trust in `selector`; a reason that was there is replaced. Durable, and on its way to every follower, when
    /// this returns its position.
    ///
    /// # Errors
    /// It could not be written; then nothing has changed.
    pub(crate) async fn revoke(
        &self,
        selector: &Selector,
        by: &str,
        reason: &str,
        now: u64,
    ) -> Result<Position, RevocationStoreError> {
        let _alone = self.gate.write().await;
        let record = Revocation {
            what: Some(selector.to_proto()),
            revoked_unix_seconds: now,
            reason: reason.to_owned(),
            by: by.to_owned(),
        };
        let write = Write::put(selector.to_string(), record.encode_to_vec());
        let position = self.journal.append(vec![write]).await?;
        self.records().insert(selector.clone(), record);
        self.announce();
        Ok(position)
    }

    /// Takes a revocation back; none when there is none.
    ///
    /// # Errors
    /// As [`Self::revoke`].
    pub(crate) async fn lift(&self, selector: &Selector) -> Result<Option<Position>, RevocationStoreError> {
        let _alone = self.gate.write().await;
        if !self.names(selector) {
            return Ok(None);
        }
        let position = self.journal.append(vec![Write::delete(selector.to_string())]).await?;
        self.records().remove(selector);
        self.announce();
        Ok(Some(position))
    }

    /// All of them: services, operators, kids, serials, each in their order.
    pub(crate) fn all(&self) -> Vec<Revocation> {
        self.records().values().cloned().collect()
    }

    fn announce(&self) {
        let mut revoked = Revoked::default();
        for selector in self.records().keys() {
            match selector {
                Selector::Service(service) => drop(revoked.services.insert(service.clone())),
                Selector::Operator(name) => drop(revoked.operators.insert(name.clone())),
                Selector::Kid(kid) => drop(revoked.kids.insert(kid.to_string())),
                Selector::Serial(serial) => drop(revoked.serials.insert(serial.clone())),
            }
        }
        (self.apply)(revoked);
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<Selector, Revocation>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
