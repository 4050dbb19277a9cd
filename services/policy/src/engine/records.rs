//! How the records of all kinds become what the files say.
//!
//! Each kind is a journal of its own, so there are moments between them. In none of them may a call pass that neither the old
//! policy nor the new one lets in. So what takes away is written first, then all allowlists in one batch, then what gives:
//!
//! 1. Quarantines that are new or changed: what cuts off must not wait. Attestors that are gone: nobody becomes a service by
//!    them any more. Routes that are gone, and of the others the rights that the service loses (transaction tokens, tenants):
//!    an allowlist that counts on nobody having them is not in force before they are gone.
//! 2. Allowlists, and with them the reserved record that makes each change of the policy move this kind's revision.
//! 3. Routes with the rights that they give, endpoints, attestors. A route or an endpoint before its allowlist would lead
//!    callers to a service that refuses them all. An attestor that is changed waits until here: who became a service by the old
//!    one stays it for as long as a certificate lives in any case.
//! 4. Quarantines that are lifted: whoever was cut off comes back to the new allowlists, never to the old ones.
//!
//! Several policy services may write at once. All kinds are read first; then the journal of sources must still be where the
//! files were read from; then each kind is written only if nobody has written it since it was read. So whoever works from
//! files that are no longer in force is told so, and never puts an old record over a new one.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use journal::{AppendError, Expected, Journal, Position, ReadError, Record, Snapshot, TailError, Write};
use mesh_config::{Records, names::control_plane};
use prost::{
    Message,
    encoding::{DecodeContext, decode_key, skip_field},
};
use tenon_proto::{
    kind,
    policy::v1::{Route, ServicePolicy},
};

use super::{Journals, StoreError};
use crate::leases::is_leased;

/// Key of the record in the kind `allowlist` that no view shows: it changes with every change of the policy, so that the
/// revision of this kind is that of the whole policy. No service of the mesh can have this name.
pub(crate) const RESERVED: &str = control_plane::POLICY;

/// The kinds in the order in which everything here lists them.
pub(crate) const KINDS: [&str; 5] = [kind::ALLOWLIST, kind::ROUTE, kind::ENDPOINT, kind::QUARANTINE, kind::ATTESTATION];
const ALLOWLIST: usize = 0;
const ROUTE: usize = 1;
const ENDPOINT: usize = 2;
const QUARANTINE: usize = 3;
const ATTESTATION: usize = 4;

/// Number of `ServicePolicy.canary`.
const CANARY: u32 = 8;

/// A position of each kind.
pub(crate) type Positions = [Position; 5];

impl Journals {
    /// In the order of [`KINDS`].
    pub fn kinds(&self) -> [&dyn Journal; 5] {
        let Self { allowlists, routes, endpoints, quarantines, attestors, sources: _ } = self;
        [&**allowlists, &**routes, &**endpoints, &**quarantines, &**attestors]
    }

    pub async fn heads(&self) -> Result<Positions, ReadError> {
        let [a, b, c, d, e] = self.kinds();
        Ok([a.head().await?, b.head().await?, c.head().await?, d.head().await?, e.head().await?])
    }
}

/// What the journals hold.
pub(crate) struct Held([Snapshot; 5]);

/// What they are to hold, encoded.
pub(crate) struct Wanted([BTreeMap<String, Vec<u8>>; 5]);

impl Held {
    pub async fn read(journals: &Journals) -> Result<Self, ReadError> {
        let [a, b, c, d, e] = journals.kinds();
        let [a, b] = [a.snapshot().await?, b.snapshot().await?];
        let mut c = c.snapshot().await?;
        c.records.retain(|record| !is_leased(&record.key));
        Ok(Self([a, b, c, d.snapshot().await?, e.snapshot().await?]))
    }

    /// Whether the records, which were found as they should be at `found`, are those that somebody else found at `known`. That
    /// of endpoints moves with each registration.
    pub fn are_still_at(&self, known: &Positions, found: &Positions) -> bool {
        let same = |kind: usize| known[kind] == found[kind];
        let unwritten = self.0[ENDPOINT].position == found[ENDPOINT];
        [ALLOWLIST, ROUTE, QUARANTINE, ATTESTATION].into_iter().all(same) && (same(ENDPOINT) || unwritten)
    }

    /// Of the whole policy.
    pub fn position(&self) -> Position {
        self.0[ALLOWLIST].position
    }

    /// Decoded, as far as this version can, and without canaries.
    pub fn records(&self) -> Records {
        let [allowlists, routes, endpoints, quarantines, attestors] = &self.0;
        let mut allowlists = decoded::<ServicePolicy>(allowlists);
        allowlists.values_mut().for_each(|policy| policy.canary = None);
        Records {
            allowlists,
            routes: decoded(routes),
            endpoints: decoded(endpoints),
            quarantines: decoded(quarantines),
            attestors: decoded(attestors),
        }
    }

    /// The same without canaries; `None` when there are none. Read as bytes: another version may have written more than this
    /// one knows, and none of it may be lost.
    pub fn without_canaries(&self, mark: Vec<u8>) -> Option<Wanted> {
        let mut found = false;
        let mut wanted = self.0.each_ref().map(|held| {
            let records = held.records.iter();
            records.map(|record| (record.key.clone(), record.value.to_vec())).collect::<BTreeMap<_, _>>()
        });
        for (_, record) in wanted[ALLOWLIST].iter_mut().filter(|(key, _)| *key != RESERVED) {
            if let Some(rest) = without_canary(record) {
                (*record, found) = (rest, true);
            }
        }
        wanted[ALLOWLIST].insert(RESERVED.to_owned(), mark);
        found.then_some(Wanted(wanted))
    }

    /// How many records differ from what is wanted, the reserved one aside.
    pub fn differences(&self, wanted: &Wanted) -> u64 {
        let all = self.0.iter().zip(&wanted.0).flat_map(|(held, wanted)| difference(held, wanted));
        all.filter(|write| write.key != RESERVED).count() as u64
    }
}

impl Wanted {
    /// `mark` is what the reserved record says.
    pub fn new(records: &Records, mark: Vec<u8>) -> Self {
        let mut allowlists = encoded(&records.allowlists);
        allowlists.insert(RESERVED.to_owned(), mark);
        Self([
            allowlists,
            encoded(&records.routes),
            encoded(&records.endpoints),
            encoded(&records.quarantines),
            encoded(&records.attestors),
        ])
    }
}

/// Why records were not all written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// Somebody else has changed the policy or its records meanwhile: read both again.
    #[error("another policy service has written meanwhile")]
    Overtaken,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes the journals hold exactly what is wanted, as long as the journal of sources is at `sources_at`. Returns where that
/// was done.
pub(crate) async fn write(
    journals: &Journals,
    held: &Held,
    wanted: &Wanted,
    sources_at: Position,
) -> Result<Positions, WriteError> {
    let mut positions = held.0.each_ref().map(|snapshot| snapshot.position);
    let steps = steps(held, wanted);
    if steps.iter().any(|(_, writes)| !writes.is_empty()) {
        append_at(&*journals.sources, sources_at, Vec::new()).await?;
    }
    let kinds = journals.kinds();
    for (kind, writes) in steps.into_iter().filter(|(_, writes)| !writes.is_empty()) {
        positions[kind] = match kind {
            // Sidecars register at any time, so it is the records of the files that must be as they were read.
            ENDPOINT => overtaken(kinds[kind].append(as_read(&held.0[kind], writes)).await)?,
            _ => append_at(kinds[kind], positions[kind], writes).await?,
        };
    }
    Ok(positions)
}

fn as_read(held: &Snapshot, writes: Vec<Write>) -> Vec<Write> {
    let revisions: BTreeMap<&str, u64> = held.records.iter().map(|it| (it.key.as_str(), it.revision)).collect();
    let expected = |key: &str| revisions.get(key).map_or(Expected::Absent, |revision| Expected::Revision(*revision));
    let write = |write: Write| {
        let expected = expected(&write.key);
        write.expecting(expected)
    };
    writes.into_iter().map(write).collect()
}

/// Whether nothing but registered endpoints was written between two looks at the heads.
pub(crate) async fn only_leases_since(
    journals: &Journals,
    before: &Positions,
    now: &Positions,
) -> Result<bool, ReadError> {
    let (mut at, head) = (before[ENDPOINT], now[ENDPOINT]);
    let others = [ALLOWLIST, ROUTE, QUARANTINE, ATTESTATION].into_iter().all(|kind| before[kind] == now[kind]);
    if !others || at.epoch != head.epoch || at.revision >= head.revision {
        return Ok(false);
    }
    let mut tail = journals.endpoints.tail(at);
    while at.revision < head.revision {
        match tail.next().await {
            Some(Ok(entries)) if entries.iter().all(|entry| is_leased(&entry.key)) => {
                at.revision = entries.last().map_or(at.revision, |entry| entry.revision);
            }
            Some(Err(TailError::Read(error))) => return Err(error),
            Some(Ok(_) | Err(TailError::Compacted)) | None => return Ok(false),
        }
    }
    Ok(true)
}

async fn append_at(journal: &dyn Journal, at: Position, writes: Vec<Write>) -> Result<Position, WriteError> {
    overtaken(journal.append_at(at, writes).await)
}

fn overtaken(appended: Result<Position, AppendError>) -> Result<Position, WriteError> {
    appended.map_err(|error| match error {
        AppendError::Moved { .. } | AppendError::Conflict { .. } => WriteError::Overtaken,
        AppendError::Full(_) | AppendError::Failed(_) | AppendError::Unconfirmed(_) => {
            WriteError::Store(StoreError::Append(error))
        }
    })
}

/// One batch after the other, each of one kind: see the head of this module.
fn steps(held: &Held, wanted: &Wanted) -> Vec<(usize, Vec<Write>)> {
    let differences = |kind: usize| difference(&held.0[kind], &wanted.0[kind]);
    let (cut_off, lifted) = differences(QUARANTINE).into_iter().partition(is_put);
    let (attest, gone) = differences(ATTESTATION).into_iter().partition(is_put);
    let (routes, mut less): (Vec<_>, Vec<_>) = differences(ROUTE).into_iter().partition(is_put);
    less.extend(routes.iter().filter_map(|write| taken_away(&held.0[ROUTE], write)));
    vec![
        (QUARANTINE, cut_off),
        (ATTESTATION, gone),
        (ROUTE, less),
        (ALLOWLIST, differences(ALLOWLIST)),
        (ROUTE, routes),
        (ENDPOINT, differences(ENDPOINT)),
        (ATTESTATION, attest),
        (QUARANTINE, lifted),
    ]
}

fn is_put(write: &Write) -> bool {
    write.value.is_some()
}

/// The held route without the rights that the wanted one has not; nothing when it loses none.
fn taken_away(held: &Snapshot, write: &Write) -> Option<Write> {
    let record = held.records.iter().find(|record| record.key == write.key)?;
    let (old, new) = (Route::decode(record.value.clone()).ok()?, Route::decode(write.value.clone()?).ok()?);
    let less = Route {
        requests_transaction_tokens: old.requests_transaction_tokens && new.requests_transaction_tokens,
        manages_tenants: old.manages_tenants && new.manages_tenants,
        ..old.clone()
    };
    (less != old && less != new).then(|| Write::put(write.key.clone(), less.encode_to_vec()))
}

fn difference(held: &Snapshot, wanted: &BTreeMap<String, Vec<u8>>) -> Vec<Write> {
    let mut absent: BTreeMap<&str, &[u8]> = wanted.iter().map(|(key, value)| (key.as_str(), &value[..])).collect();
    let mut writes = Vec::new();
    for record in &held.records {
        match absent.remove(record.key.as_str()) {
            None => writes.push(Write::delete(record.key.clone())),
            Some(value) if *record.value == *value => {}
            Some(value) => writes.push(Write::put(record.key.clone(), value.to_vec())),
        }
    }
    writes.extend(absent.into_iter().map(|(key, value)| Write::put(key, value.to_vec())));
    writes
}

fn encoded<M: Message>(records: &BTreeMap<String, M>) -> BTreeMap<String, Vec<u8>> {
    records.iter().map(|(key, record)| (key.clone(), record.encode_to_vec())).collect()
}

/// An encoded [`ServicePolicy`] without its canary; `None` when it has none, or is none.
fn without_canary(record: &[u8]) -> Option<Vec<u8>> {
    let (mut left, mut kept) = (record, Vec::new());
    while !left.is_empty() {
        let field = left;
        let (tag, wire_type) = decode_key(&mut left).ok()?;
        skip_field(wire_type, tag, &mut left, DecodeContext::default()).ok()?;
        if tag != CANARY {
            kept.extend_from_slice(&field[..field.len() - left.len()]);
        }
    }
    (kept.len() < record.len()).then_some(kept)
}

/// What another version wrote and this one cannot read is left out: this is for people.
fn decoded<M: Message + Default>(held: &Snapshot) -> BTreeMap<String, M> {
    let record = |record: &Record| Some((record.key.clone(), M::decode(record.value.clone()).ok()?));
    held.records.iter().filter(|record| record.key != RESERVED).filter_map(record).collect()
}

#[cfg(test)]
mod tests;
