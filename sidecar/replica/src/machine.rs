//! The protocol of a follower: what each message does to the map, and what is answered.
//!
//! It has no socket, no clock and no disk, so that tests can put any sequence of messages to it.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use tenon_proto::replication::v1::{
    Ack, Change, Delta, FollowRequest, FollowResponse, Heartbeat, Mode, Nack, Record, SnapshotChunk, SnapshotEnd,
    SnapshotStart, Start, follow_request::Request, follow_response::Response,
};

use crate::{
    Digest, Event, Guard, Position, Table, Value,
    reader::Shared,
    state::{Saved, State},
};

/// The writer's account of the table.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Where the table is; absent before the first complete snapshot.
    position: Option<Position>,
    /// The parent's name for what it shows to this follower. A position means something within one view only.
    view: Arc<str>,
    /// Digest of what the parent sent, refused records included: it is compared with the parent's.
    digest: Digest,
    /// The parent's records that do not decode here, by key. The table keeps what it had for those keys.
    refused: HashMap<Arc<str>, Refused>,
}

#[derive(Clone, Debug)]
struct Refused {
    revision: u64,
    raw: Bytes,
    error: String,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { position: None, view: "".into(), digest: Digest::new(), refused: HashMap::new() }
    }
}

/// Why a stream cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Break {
    /// Messages are missing: resume from what is held.
    #[error("{0}: resuming")]
    Gap(String),
    /// The map differs from the parent's although both are at the same position: ask for a snapshot.
    #[error("the map differs from the parent's at {0}: asking for a snapshot")]
    Diverged(Position),
    /// The parent offers what must not be taken: tell it, keep what is held, come back later.
    #[error("{error}")]
    Refused { position: Position, error: String },
}

/// A snapshot that is being received. Readers do not see it before it is complete and checked.
struct Incoming<V> {
    position: Position,
    view: Arc<str>,
    table: Table<V>,
    digest: Digest,
    refused: HashMap<Arc<str>, Refused>,
}

/// One follower's side of the protocol.
pub(crate) struct Machine<V, O> {
    shared: Arc<Shared<V>>,
    observer: O,
    guard: Guard,
    incoming: Option<Incoming<V>>,
    /// What is held is known to differ from the parent's: the next stream starts from nothing.
    wants_snapshot: bool,
    /// The last heartbeat was ahead of the map and nothing came since: another one means that deltas were lost.
    behind: bool,
    /// Replaced tables that a reader may still hold. Dropping a large one takes long: never on a reader's thread.
    retired: Vec<Arc<Table<V>>>,
}

impl<V: Value, O: FnMut(Event<'_, V>)> Machine<V, O> {
    pub(crate) fn new(shared: Arc<Shared<V>>, guard: Guard, observer: O) -> Self {
        Self { shared, observer, guard, incoming: None, wants_snapshot: false, behind: false, retired: Vec::new() }
    }

    /// Starts from what the state file held, before any stream.
    pub(crate) fn restore(&mut self, state: State) {
        let mut incoming = Incoming::new(state.position, state.view.into());
        for record in state.records {
            incoming.take(record.key, record.revision, record.value, None);
        }
        self.install(incoming);
    }

    /// Begins a stream: forgets what the last one left half done, and says what to ask for.
    pub(crate) fn begin(&mut self, kind: &str, instance: &str) -> FollowRequest {
        self.incoming = None;
        self.behind = false;
        let ledger = self.shared.ledger();
        let resume = ledger.position.filter(|_| !self.wants_snapshot);
        request(Request::Start(Start {
            kind: kind.to_owned(),
            mode: Mode::Full.into(),
            resume: resume.map(Into::into),
            instance: instance.to_owned(),
            view: ledger.view.as_ref().to_owned(),
            bucket_digests: Bytes::new(),
        }))
    }

    /// Takes one message in and returns what to answer, if anything.
    pub(crate) fn receive(&mut self, response: FollowResponse) -> Result<Option<FollowRequest>, Break> {
        match response.response {
            Some(Response::SnapshotStart(start)) => self.snapshot_start(&start),
            Some(Response::SnapshotChunk(chunk)) => self.snapshot_chunk(chunk),
            Some(Response::SnapshotEnd(end)) => self.snapshot_end(&end),
            Some(Response::Delta(delta)) => self.delta(delta),
            Some(Response::Heartbeat(heartbeat)) => self.heartbeat(&heartbeat),
            // Not understood yet, or of a newer protocol: what it would have changed shows in the digest.
            Some(Response::GuardRules(_)) | None => Ok(None),
        }
    }

    /// Tables that nobody reads any more, to be dropped where that may take long.
    pub(crate) fn drain_retired(&mut self) -> Vec<Arc<Table<V>>> {
        self.retired.extract_if(.., |table| Arc::strong_count(table) == 1).collect()
    }

    fn snapshot_start(&mut self, start: &SnapshotStart) -> Result<Option<FollowRequest>, Break> {
        let position = Position::from(start.position.unwrap_or_default());
        let held = self.shared.ledger().position;
        if let Some(held) = held.filter(|held| *held > position) {
            let error = format!("the parent offers {position}, older than {held}, which is held");
            return Err(Break::Refused { position, error });
        }
        self.incoming = Some(Incoming::new(position, start.view.as_str().into()));
        Ok(None)
    }

    fn snapshot_chunk(&mut self, chunk: SnapshotChunk) -> Result<Option<FollowRequest>, Break> {
        let Some(incoming) = &mut self.incoming else { return Err(Break::Gap("a snapshot without its start".into())) };
        let held = self.shared.table.load_full();
        for Record { key, revision, value } in chunk.records {
            incoming.take(key, revision, value, held.as_deref());
        }
        Ok(None)
    }

    fn snapshot_end(&mut self, end: &SnapshotEnd) -> Result<Option<FollowRequest>, Break> {
        let Some(incoming) = self.incoming.take() else {
            return Err(Break::Gap("a snapshot without its start".into()));
        };
        let position = incoming.position;
        let received = incoming.digest.records();
        if received != end.records || incoming.digest.fold()[..] != end.digest[..] {
            let error =
                format!("the snapshot of {} records at {position} arrived damaged, with {received}", end.records);
            return Err(Break::Refused { position, error });
        }
        let held = self.shared.table.load().as_ref().map_or(0, |table| table.len() as u64);
        self.guard.check(held, received).map_err(|error| Break::Refused { position, error })?;

        self.wants_snapshot = false;
        self.install(incoming);
        self.shared.health().status.snapshots += 1;
        Ok(Some(self.answer(position)))
    }

    /// Puts a complete map in the place of the old one. From here on it may be read; then it is announced.
    fn install(&mut self, incoming: Incoming<V>) {
        let Incoming { position, view, table, digest, refused } = incoming;
        let table = Arc::new(table);
        let mut ledger = self.shared.ledger();
        self.retired.extend(self.shared.table.swap(Some(Arc::clone(&table))));
        *ledger = Ledger { position: Some(position), view, digest, refused };
        drop(ledger);
        self.behind = false;
        (self.observer)(Event::Replaced(&table));
        self.shared.announce(position);
    }

    fn delta(&mut self, delta: Delta) -> Result<Option<FollowRequest>, Break> {
        let shared = Arc::clone(&self.shared);
        let mut ledger = shared.ledger();
        let table = shared.table.load_full();
        let (Some(held), Some(table), None, false) = (ledger.position, table, &self.incoming, self.wants_snapshot)
        else {
            return Err(Break::Gap("a delta where a snapshot should be".into()));
        };
        let position = Position::new(delta.epoch, delta.revision);
        if delta.epoch != held.epoch || delta.previous_revision > held.revision {
            let previous = Position::new(delta.epoch, delta.previous_revision);
            return Err(Break::Gap(format!("a delta from {previous} while {held} is held")));
        }
        if position <= held {
            return Ok(None); // A duplicate.
        }
        if !delta.changes.iter().all(|change| (delta.previous_revision + 1..=delta.revision).contains(&change.revision))
        {
            let error = format!("the delta to {position} has changes of other revisions");
            return Err(Break::Refused { position, error });
        }
        for change in delta.changes {
            // What an overlapping delta repeats is held already.
            if change.revision > held.revision {
                self.apply(&mut ledger, &table, change);
            }
        }
        ledger.position = Some(position);
        drop(ledger);
        self.behind = false;
        shared.announce(position);
        Ok(Some(self.answer(position)))
    }

    fn apply(&mut self, ledger: &mut Ledger, table: &Table<V>, change: Change) {
        let Change { key, revision, value } = change;
        let old = table.get(&key);
        if let Some(refused) = ledger.refused.remove(key.as_str()) {
            ledger.digest.remove(&key, refused.revision, &refused.raw);
        } else if let Some(old) = &old {
            ledger.digest.remove(&key, old.revision(), old.raw());
        }
        let old = old.as_ref();
        let Some(raw) = value else {
            if table.remove(&key).is_some() {
                (self.observer)(Event::Changed { key: &key, revision, old, new: None });
            }
            return;
        };
        ledger.digest.add(&key, revision, &raw);
        match decode::<V>(&key, revision, &raw) {
            Ok(new) => {
                table.insert(new.clone());
                (self.observer)(Event::Changed { key: &key, revision, old, new: Some(&new) });
            }
            Err(error) => {
                ledger.refused.insert(key.into(), Refused { revision, raw: Bytes::copy_from_slice(&raw), error });
            }
        }
    }

    fn heartbeat(&mut self, heartbeat: &Heartbeat) -> Result<Option<FollowRequest>, Break> {
        let ledger = self.shared.ledger();
        let head = heartbeat.head.map(Position::from);
        let (Some(held), Some(head), None, false) = (ledger.position, head, &self.incoming, self.wants_snapshot) else {
            return Ok(None); // Nothing to compare yet: a sign of life.
        };
        if head > held {
            if self.behind {
                return Err(Break::Gap(format!("the parent is at {head}, nothing came after {held}")));
            }
            self.behind = true;
        } else if head == held
            && (heartbeat.records != ledger.digest.records() || heartbeat.digest[..] != ledger.digest.fold()[..])
        {
            drop(ledger);
            self.wants_snapshot = true;
            self.shared.health().status.divergences += 1;
            return Err(Break::Diverged(held));
        } else if head == held && ledger.refused.is_empty() {
            drop(ledger);
            self.shared.health().status.last_error = None; // All is well, and proved.
        }
        Ok(None)
    }

    /// Acknowledges `position`, or says what of it is refused.
    fn answer(&self, position: Position) -> FollowRequest {
        let ledger = self.shared.ledger();
        let refused = ledger.refused.iter().max_by_key(|(_, refused)| refused.revision);
        let error =
            refused.map(|(key, refused)| format!("record {key} at revision {}: {}", refused.revision, refused.error));
        let mut health = self.shared.health();
        health.status.refused_records = ledger.refused.len();
        match error {
            None => {
                health.status.last_error = None;
                request(Request::Ack(Ack { position: Some(position.into()) }))
            }
            Some(error) => {
                health.status.nacks += 1;
                health.status.last_error = Some(error.clone());
                nack(position, error)
            }
        }
    }
}

impl<V: Value> Incoming<V> {
    fn new(position: Position, view: Arc<str>) -> Self {
        Self { position, view, table: Table::new(), digest: Digest::new(), refused: HashMap::new() }
    }

    /// Takes a record in. What `held` has unchanged is shared with it, and what does not decode stays as it is there.
    fn take(&mut self, key: String, revision: u64, raw: Bytes, held: Option<&Table<V>>) {
        if let Some(refused) = self.refused.remove(key.as_str()) {
            self.digest.remove(&key, refused.revision, &refused.raw);
        } else if let Some(twice) = self.table.get(&key) {
            self.digest.remove(&key, twice.revision(), twice.raw());
        }
        self.digest.add(&key, revision, &raw);
        let old = held.and_then(|held| held.get(&key));
        let value = match old {
            Some(old) if old.revision() == revision && *old.raw() == raw => old,
            old => match decode::<V>(&key, revision, &raw) {
                Ok(value) => value,
                Err(error) => {
                    if let Some(old) = old {
                        self.table.insert(old);
                    }
                    let raw = Bytes::copy_from_slice(&raw);
                    self.refused.insert(key.into(), Refused { revision, raw, error });
                    return;
                }
            },
        };
        self.table.insert(value);
    }
}

impl<V: Value> Shared<V> {
    /// The map exactly as it is at one position, for the state file.
    pub(crate) fn saved(&self) -> Option<Saved<V>> {
        let ledger = self.ledger();
        let table = self.table.load_full()?;
        let held = table.iter().collect();
        let refused = ledger
            .refused
            .iter()
            .map(|(key, refused)| (Arc::clone(key), refused.revision, refused.raw.clone()))
            .collect();
        Some(Saved { position: ledger.position?, view: Arc::clone(&ledger.view), held, refused })
    }
}

fn decode<V: Value>(key: &str, revision: u64, raw: &Bytes) -> Result<V, String> {
    let value = V::decode(key, revision, raw.clone())?;
    debug_assert_eq!(value.raw(), raw, "Value::raw must return what Value::decode was given: the digest depends on it");
    Ok(value)
}

/// The refusal of what led to `position`.
pub(crate) fn nack(position: Position, error: String) -> FollowRequest {
    request(Request::Nack(Nack { position: Some(position.into()), error }))
}

const fn request(request: Request) -> FollowRequest {
    FollowRequest { request: Some(request) }
}

#[cfg(test)]
mod tests;
