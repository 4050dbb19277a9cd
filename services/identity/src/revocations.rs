//! Whom the mesh trusts no longer: services, operators, ASAP keys, certificates. Never reads the clock.

mod rpc;
mod selector;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use journal::{AppendError, Journal, Position, ReadError, Write};
use mesh_asap::Kid;
use mesh_config::names::ServiceName;
use mesh_identity::Revoked;
use prost::Message as _;
use tenon_proto::identity::v1::Revocation;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::service::with_source;

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

impl RevocationStoreError {
    /// Whether the write may have been made all the same.
    pub(crate) fn is_unconfirmed(&self) -> bool {
        matches!(self, Self::Write(AppendError::Unconfirmed(_)))
    }
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
    /// A write was not confirmed and could not be read back yet: the journal may hold other records than the memory.
    behind: AtomicBool,
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
        let revocations = Self {
            records: Mutex::new(read(&*journal).await?),
            journal,
            apply: Box::new(apply),
            gate: RwLock::new(()),
            behind: AtomicBool::new(false),
        };
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
    /// It could not be written; then nothing has changed. But for [`AppendError::Unconfirmed`]: then what the journal
    /// holds is in force here too, and when that cannot be read, the revocation is until it can.
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
        let appended = self.journal.append(vec![write]).await;
        let counts = match &appended {
            Ok(_) => true,
            // Where that is not known, what may be revoked is not trusted.
            Err(AppendError::Unconfirmed(_)) => !self.read_back().await,
            Err(_) => false,
        };
        if counts {
            self.records().insert(selector.clone(), record);
            self.announce();
        }
        Ok(appended?)
    }

    /// Takes a revocation back; none when there is none.
    ///
    /// # Errors
    /// As [`Self::revoke`]; what may have been lifted stays revoked here until the journal says that it was.
    pub(crate) async fn lift(&self, selector: &Selector) -> Result<Option<Position>, RevocationStoreError> {
        let _alone = self.gate.write().await;
        if !self.names(selector) {
            return Ok(None);
        }
        let appended = self.journal.append(vec![Write::delete(selector.to_string())]).await;
        match &appended {
            Ok(_) => {
                self.records().remove(selector);
                self.announce();
            }
            Err(AppendError::Unconfirmed(_)) => drop(self.read_back().await),
            Err(_) => {}
        }
        Ok(Some(appended?))
    }

    /// Has the memory say what the journal does, where a write that was not confirmed may have left the two apart. To be
    /// called from time to time, and before something is said of what is not revoked.
    ///
    /// # Errors
    /// The journal cannot be read; the next call tries again.
    pub(crate) async fn catch_up(&self) -> Result<(), RevocationStoreError> {
        if !self.behind.load(Ordering::Acquire) {
            return Ok(());
        }
        let _alone = self.gate.write().await;
        self.read_again().await
    }

    /// After a write that was not confirmed, with the gate held: whether it is known what became of it.
    async fn read_back(&self) -> bool {
        self.behind.store(true, Ordering::Release);
        let read = self.read_again().await.inspect_err(|error| {
            tracing::error!(error = with_source(error), "whether something is revoked is not known: trying again");
        });
        read.is_ok()
    }

    async fn read_again(&self) -> Result<(), RevocationStoreError> {
        // Writes nothing. But followers hear of a head that could not be read when it was written.
        self.journal.append(Vec::new()).await?;
        *self.records() = read(&*self.journal).await?;
        self.announce();
        self.behind.store(false, Ordering::Release);
        Ok(())
    }

    /// The revision that wrote the record of `selector`, if there is one.
    pub(crate) async fn revision(&self, selector: &Selector) -> Result<Option<u64>, ReadError> {
        Ok(self.journal.get(&selector.to_string()).await?.map(|record| record.revision))
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

/// All that the journal holds.
async fn read(journal: &dyn Journal) -> Result<BTreeMap<Selector, Revocation>, RevocationStoreError> {
    let mut records = BTreeMap::new();
    for found in journal.snapshot().await?.records {
        let record = Revocation::decode(found.value).ok();
        let selector = record.as_ref().and_then(|record| Selector::of(record.what.clone()).ok());
        let (Some(record), Some(selector)) = (record, selector) else {
            return Err(RevocationStoreError::Damaged(found.key));
        };
        records.insert(selector, record);
    }
    Ok(records)
}

#[cfg(test)]
mod tests;
