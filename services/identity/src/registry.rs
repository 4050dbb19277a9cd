//! Which instances of the mesh live, and what each of them holds. Never reads the clock.
//!
//! An instance is a process with an SVID. It is known from the moment it is attested, by the name that it gave itself
//! below its service's, and lives until its last SVID ends. What it holds is believed from what it confirms, since an
//! answer that was sent may never have arrived; and from what it acknowledges as a follower.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use journal::{AppendError, Journal, Position, Publisher, ReadError, Write};
use mesh_config::names::{ServiceName, TrustDomain};
use mesh_identity::SpiffeId;
use prost::Message;
use tenon_proto::identity::v1 as proto;
use tenon_proto::kind;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::ca::SVID_LIFETIME;

mod rpc;

pub(crate) use rpc::confirm;

/// Kind of the journal that keeps them. Never replicated.
pub(crate) const KIND: &str = "instance";

/// That an instance was seen is written down to this many seconds. What it holds is written down at once.
const SEEN_KEPT: u64 = 600;
/// What is to be written down within this time is written together.
const GATHERING: Duration = Duration::from_millis(50);
/// Between two attempts to write.
const RETRY: Duration = Duration::from_secs(10);
/// Longer names are no names.
const MAX_NAME_BYTES: usize = 128;
/// What the names of the control plane's services begin with.
const CONTROL_PLANE: &str = "tenon-";

/// What an instance was answered with, or has.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Holding {
    /// SHA-256 of the certificate that issued its SVID; empty: unknown.
    #[prost(bytes = "bytes", tag = "1")]
    pub issuing_authority: Bytes,
    /// Last second of the SVID, Unix time.
    #[prost(uint64, tag = "2")]
    pub svid_not_after: u64,
    /// Sequence of the trust bundle that came with it; 0: unknown.
    #[prost(uint64, tag = "3")]
    pub sequence: u64,
}

/// One instance. The record's key is `<service>/<instance>`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Instance {
    #[prost(string, tag = "1")]
    pub service: String,
    #[prost(string, tag = "2")]
    pub name: String,
    /// What it says that it has.
    #[prost(message, required, tag = "3")]
    pub holds: Holding,
    /// What it was last given.
    #[prost(message, required, tag = "4")]
    pub given: Holding,
    /// Unix seconds.
    #[prost(uint64, tag = "5")]
    pub seen: u64,
    /// The ASAP key that it signs with.
    #[prost(string, tag = "6")]
    pub kid: String,
}

impl Instance {
    fn ends(&self) -> u64 {
        self.holds.svid_not_after.max(self.given.svid_not_after)
    }

    /// Whether it is one of a service of the mesh, and not of the control plane.
    pub(crate) fn is_of_the_mesh(&self) -> bool {
        !self.service.starts_with(CONTROL_PLANE)
    }

    /// As answers tell it.
    pub(crate) fn to_proto(&self, lacks: Vec<String>) -> proto::Instance {
        proto::Instance {
            service: self.service.clone(),
            instance: self.name.clone(),
            svid_not_after_unix_seconds: self.ends(),
            seen_unix_seconds: self.seen,
            lacks,
        }
    }
}

/// The name of an instance is not one.
#[derive(Debug, thiserror::Error)]
#[error("the name of an instance is 1 to {MAX_NAME_BYTES} of A-Z, a-z, 0-9, \".\", \"_\" and \"-\"")]
pub(crate) struct BadName;

/// The instances that are known.
pub(crate) struct Registry {
    journal: Arc<dyn Journal>,
    known: Mutex<BTreeMap<String, Known>>,
    /// Something is to be written down.
    dirty: Notify,
    /// Held while something is written: records change in the order of what is known.
    writing: tokio::sync::Mutex<()>,
    /// Who follows what, and how far.
    publishers: Vec<Publisher>,
    /// How far the instances of the mesh have come with the keys: thousands ask that, each for its own key.
    come: Mutex<Come>,
}

/// The positions of the kind "key" that the live instances of the mesh have acknowledged, as of some second.
#[derive(Default)]
struct Come {
    at: u64,
    /// Of how many instances; a new one makes this outdated.
    known: usize,
    /// In order.
    positions: Vec<Position>,
}

struct Known {
    instance: Instance,
    /// As it was last written down.
    written: Option<Instance>,
    /// Whether it is to be written down.
    dirty: bool,
}

impl Registry {
    /// What the journal has. `publishers` tell what instances have acknowledged.
    pub(crate) async fn open(journal: Arc<dyn Journal>, publishers: Vec<Publisher>) -> Result<Self, ReadError> {
        let mut known = BTreeMap::new();
        for record in journal.snapshot().await?.records {
            // What does not decode is forgotten: the instance will be heard of again.
            if let Ok(instance) = Instance::decode(record.value) {
                known.insert(record.key, Known { written: Some(instance.clone()), instance, dirty: false });
            }
        }
        Ok(Self {
            journal,
            known: Mutex::new(known),
            dirty: Notify::new(),
            writing: tokio::sync::Mutex::default(),
            publishers,
            come: Mutex::default(),
        })
    }

    /// The name that an instance gives itself; none when it gives none.
    pub(crate) fn name(given: String) -> Result<Option<String>, BadName> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        match given.len() {
            0 => Ok(None),
            1..=MAX_NAME_BYTES if given.bytes().all(good) => Ok(Some(given)),
            _ => Err(BadName),
        }
    }

    /// What an instance goes by that has no name of its own: its certificate.
    pub(crate) fn unnamed(serial: &str) -> String {
        format!("serial-{serial}")
    }

    /// An instance was given a first SVID, and its key was recorded: it can have no other. Written down when this returns.
    pub(crate) async fn attested(&self, service: &ServiceName, name: &str, given: Holding, kid: &str, now: u64) {
        self.update(service, name, now, |instance| {
            instance.holds = given.clone();
            instance.given = given;
            kid.clone_into(&mut instance.kid);
        });
        self.write_down().await;
    }

    /// An instance was given another SVID. It holds it once it says so; one that cannot say so, for it has no name of its
    /// own, is taken to hold it, and what it went by until now (`before`) is gone.
    pub(crate) async fn renewed(
        &self,
        service: &ServiceName,
        name: &str,
        before: Option<&str>,
        given: Holding,
        kid: &str,
        now: u64,
    ) {
        self.update(service, name, now, |instance| {
            if before.is_some() {
                instance.holds = given.clone();
            }
            instance.given = given;
            kid.clone_into(&mut instance.kid);
        });
        if let Some(before) = before {
            self.forget(vec![format!("{service}/{before}")]).await;
        }
    }

    /// An instance says what it has. The key is one that it may not sign with yet: see [`Self::signs_with`].
    pub(crate) fn confirmed(
        &self,
        service: &ServiceName,
        name: &str,
        issuing_authority: Bytes,
        svid_not_after: u64,
        kid: &str,
        now: u64,
    ) {
        // It has nothing that lives longer than what is given to services.
        let svid_not_after = svid_not_after.min(now + SVID_LIFETIME.as_secs());
        self.update(service, name, now, |instance| {
            let given = &instance.given;
            // The very SVID that it was given: then it has the bundle that came with it too.
            let took_it = (&given.issuing_authority, given.svid_not_after) == (&issuing_authority, svid_not_after);
            let sequence = if took_it { given.sequence } else { instance.holds.sequence };
            instance.holds = Holding { issuing_authority, svid_not_after, sequence };
            if instance.kid.is_empty() {
                kid.clone_into(&mut instance.kid);
            }
        });
    }

    /// An instance was told that everybody has its key: from now on it signs with it.
    pub(crate) fn signs_with(&self, service: &ServiceName, name: &str, kid: &str, now: u64) {
        self.update(service, name, now, |instance| kid.clone_into(&mut instance.kid));
    }

    /// Those whose SVID has not ended, in the order of their names.
    pub(crate) fn live(&self, now: u64) -> Vec<Instance> {
        let known = self.known();
        known.values().map(|known| &known.instance).filter(|instance| now <= instance.ends()).cloned().collect()
    }

    /// Those of `instances` that are not known to hold `position` of `kind`: they do not follow it, or not that far.
    pub(crate) fn behind<'a>(
        &self,
        instances: &'a [Instance],
        domain: &TrustDomain,
        kind: &str,
        position: Position,
    ) -> Vec<&'a Instance> {
        let acknowledged = self.acknowledged(kind);
        let holds = |instance: &Instance| {
            follower(instance, domain).is_some_and(|id| acknowledged.get(&id).is_some_and(|held| *held >= position))
        };
        instances.iter().filter(|instance| !holds(instance)).collect()
    }

    /// How many of the live instances of the mesh are not known to hold this position of the kind "key", as of this second.
    /// Asked in each confirmation, so nothing is counted twice in a second. The services of the control plane verify no
    /// ASAP tokens, and revoked ones are asked nothing: those that `counts` says no to are left out.
    pub(crate) fn behind_with_keys(
        &self,
        domain: &TrustDomain,
        position: Position,
        now: u64,
        counts: impl Fn(&Instance) -> bool,
    ) -> usize {
        let known = self.known().len();
        let mut come = self.come.lock().unwrap_or_else(PoisonError::into_inner);
        if (come.at, come.known) != (now, known) {
            let mut live = self.live(now);
            live.retain(|instance| instance.is_of_the_mesh() && counts(instance));
            let acknowledged = self.acknowledged(kind::KEY);
            let position =
                |instance: &Instance| follower(instance, domain).and_then(|id| acknowledged.get(&id).copied());
            let mut positions: Vec<_> =
                live.iter().map(|instance| position(instance).unwrap_or(Position::ZERO)).collect();
            positions.sort_unstable();
            *come = Come { at: now, known, positions };
        }
        come.positions.partition_point(|held| *held < position)
    }

    fn acknowledged(&self, kind: &str) -> HashMap<(String, String), Position> {
        let publisher = self.publishers.iter().find(|publisher| publisher.kind() == kind);
        publisher.map(Publisher::acknowledged).unwrap_or_default()
    }

    /// An instance has ended as it should. One that starts again confirms what it holds, and is known again.
    pub(crate) async fn left(&self, service: &ServiceName, name: &str) {
        self.forget(vec![format!("{service}/{name}")]).await;
    }

    /// Forgets those whose SVIDs have ended. Says how many.
    pub(crate) async fn prune(&self, now: u64) -> usize {
        let ended: Vec<_> = {
            let known = self.known();
            known.iter().filter(|(_, known)| now > known.instance.ends()).map(|(key, _)| key.clone()).collect()
        };
        let count = ended.len();
        self.forget(ended).await;
        count
    }

    /// Changes what is known of an instance, and marks it to be written down when it matters: when it comes up again,
    /// this process must not take an instance for gone.
    fn update(&self, service: &ServiceName, name: &str, now: u64, change: impl FnOnce(&mut Instance)) {
        let dirty = {
            let mut known = self.known();
            let known = known.entry(format!("{service}/{name}")).or_insert_with(|| Known {
                instance: Instance { service: service.to_string(), name: name.to_owned(), ..Instance::default() },
                written: None,
                dirty: false,
            });
            change(&mut known.instance);
            known.instance.seen = now;
            let written = known.written.as_ref();
            let recent = written.is_some_and(|written| now < written.seen + SEEN_KEPT);
            let same = written.is_some_and(|written| Instance { seen: now, ..written.clone() } == known.instance);
            known.dirty = !(same && recent);
            known.dirty
        };
        if dirty {
            self.dirty.notify_one();
        }
    }

    /// Writes down all that is marked, in one go. What cannot be written stays marked; whether all is written.
    pub(crate) async fn write_down(&self) -> bool {
        let _in_order = self.writing.lock().await;
        let marked: Vec<_> = {
            let mut known = self.known();
            let marked = known.iter_mut().filter(|(_, known)| known.dirty);
            marked
                .map(|(key, known)| {
                    known.dirty = false;
                    (key.clone(), known.instance.clone())
                })
                .collect()
        };
        if marked.is_empty() {
            return true;
        }
        let writes = marked.iter().map(|(key, instance)| Write::put(key.clone(), instance.encode_to_vec())).collect();
        let outcome = self.journal.append(writes).await;
        let mut known = self.known();
        for (key, instance) in marked {
            let Some(known) = known.get_mut(&key) else { continue };
            match &outcome {
                Ok(_) => known.written = Some(instance),
                Err(_) => known.dirty = true,
            }
        }
        drop(known);
        outcome.inspect_err(unwritten).is_ok()
    }

    /// Writes down what is marked, soon after it was, and a last time at the shutdown. Thousands that renew or confirm at
    /// the same time cost a few writes.
    pub(crate) async fn keep_written(&self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.dirty.notified() => {}
            }
            let mut pause = GATHERING;
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(pause) => {}
                }
                if self.write_down().await {
                    break;
                }
                pause = RETRY;
            }
        }
        self.write_down().await;
    }

    async fn forget(&self, keys: Vec<String>) {
        let _in_order = self.writing.lock().await;
        let writes: Vec<_> = {
            let mut known = self.known();
            // What is still to be written may be there: a write that failed may have been made.
            let there = |gone: Known| gone.written.is_some() || gone.dirty;
            let gone = keys.into_iter().filter(|key| known.remove(key).is_some_and(there));
            gone.map(Write::delete).collect()
        };
        if writes.is_empty() {
            return;
        }
        if let Err(error) = self.journal.append(writes).await {
            unwritten(&error);
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an instance is as a follower: its SPIFFE ID and its name.
fn follower(instance: &Instance, domain: &TrustDomain) -> Option<(String, String)> {
    let service = ServiceName::try_from(instance.service.as_str()).ok()?;
    Some((SpiffeId::service(domain.clone(), service).to_string(), instance.name.clone()))
}

fn unwritten(error: &AppendError) {
    tracing::warn!(%error, "which instances live is known, but not written down");
}

#[cfg(test)]
mod tests;
