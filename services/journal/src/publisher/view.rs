//! One view: its records, its recent changes in their encoded form, and the messages made of them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use bytes::{Bytes, BytesMut};
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len, message, uint64},
};
use replica::Digest;
use tenon_proto::replication::v1::{
    Change, FollowResponse, Heartbeat, Record, SnapshotChunk, SnapshotEnd, SnapshotStart, follow_response::Response,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Settings, ViewName, Views};
use crate::{Entry, Position, Snapshot};

/// Changes in one delta at most.
const DELTA_CHANGES: usize = 1024;
/// Bytes of changes in one delta, unless a single change is larger.
const DELTA_BYTES: usize = 1 << 20;
/// Bytes of records in one chunk of a snapshot, unless a single record is larger.
const CHUNK_BYTES: usize = 256 << 10;

/// Field numbers of replication.proto, for the one message that is put together from parts.
mod field {
    pub(super) const RESPONSE_DELTA: u32 = 4;
    pub(super) const DELTA_EPOCH: u32 = 1;
    pub(super) const DELTA_PREVIOUS_REVISION: u32 = 2;
    pub(super) const DELTA_REVISION: u32 = 3;
    pub(super) const DELTA_CHANGES: u32 = 4;
}

/// A view, shared by all who follow it.
pub(super) struct View {
    name: ViewName,
    epoch: u64,
    settings: Settings,
    state: Mutex<State>,
    /// The revision up to which the state has come, for followers that wait.
    head: watch::Sender<u64>,
    /// Cancelled when the view is of a past history.
    closed: CancellationToken,
}

struct State {
    revision: u64,
    records: HashMap<Arc<str>, Held>,
    digest: Digest,
    /// Every change of the view after `floor`, in order of revision.
    ring: VecDeque<Slot>,
    ring_bytes: usize,
    /// Who holds less than this revision cannot be served from the ring.
    floor: u64,
    /// The last delta that reached the head. Nearly all followers want the same one.
    last_delta: Option<Delta>,
    /// The heartbeat of this revision, once someone wanted it.
    heartbeat: Option<Bytes>,
    /// The last snapshot, for as long as someone is being sent it.
    frozen: Weak<Frozen>,
}

struct Held {
    revision: u64,
    value: Bytes,
}

struct Slot {
    revision: u64,
    key: Arc<str>,
    /// The change as it stands in a delta, with its field key and length.
    encoded: Bytes,
}

/// An encoded delta, and what it leads from and to.
#[derive(Clone)]
pub(super) struct Delta {
    previous: u64,
    pub(super) revision: u64,
    pub(super) message: Bytes,
}

/// What a follower at some revision needs next.
pub(super) enum Next {
    Delta(Delta),
    /// It is at the head.
    Nothing,
    /// The ring does not go back that far.
    Snapshot,
}

/// All records of a view at one position.
pub(super) struct Frozen {
    pub(super) position: Position,
    view: ViewName,
    records: Vec<(Arc<str>, u64, Bytes)>,
    digest: [u8; 16],
}

impl View {
    pub(super) fn new(name: ViewName, snapshot: Snapshot, views: &dyn Views, settings: Settings) -> Self {
        let Snapshot { position, records } = snapshot;
        let mut digest = Digest::new();
        let mut held = HashMap::new();
        for record in records {
            if let Some(value) = views.project(&name, &record.key, &record.value) {
                digest.add(&record.key, record.revision, &value);
                held.insert(record.key.into(), Held { revision: record.revision, value });
            }
        }
        let state = State {
            revision: position.revision,
            records: held,
            digest,
            ring: VecDeque::new(),
            ring_bytes: 0,
            floor: position.revision,
            last_delta: None,
            heartbeat: None,
            frozen: Weak::new(),
        };
        Self {
            name,
            epoch: position.epoch,
            settings,
            state: Mutex::new(state),
            head: watch::Sender::new(position.revision),
            closed: CancellationToken::new(),
        }
    }

    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) const fn name(&self) -> &ViewName {
        &self.name
    }

    pub(super) fn revision(&self) -> u64 {
        *self.head.borrow()
    }

    pub(super) fn heads(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// Ends the streams of all followers: what they hold is of a past history.
    pub(super) fn close(&self) {
        self.closed.cancel();
    }

    pub(super) const fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Takes changes in. Those that it has already are passed over.
    pub(super) fn apply(&self, entries: &[Entry], views: &dyn Views) {
        let mut state = self.state();
        for entry in entries {
            if entry.revision > state.revision {
                let value = entry.value.as_ref().and_then(|value| views.project(&self.name, &entry.key, value));
                state.apply(&entry.key, entry.revision, value);
            }
        }
        state.trim(self.settings);
        // Under the lock: a follower never holds more than the head says.
        self.head.send_replace(state.revision);
    }

    /// What a follower that holds everything up to `cursor` needs next.
    pub(super) fn next(&self, cursor: u64) -> Next {
        let mut state = self.state();
        if cursor == state.revision {
            return Next::Nothing;
        }
        if cursor < state.floor || cursor > state.revision {
            return Next::Snapshot;
        }
        if let Some(last) = state.last_delta.as_ref().filter(|last| last.previous == cursor) {
            return Next::Delta(last.clone());
        }
        let delta = state.delta(self.epoch, cursor);
        if delta.revision == state.revision {
            state.last_delta = Some(delta.clone());
        }
        Next::Delta(delta)
    }

    /// Head, digest and number of records, encoded.
    pub(super) fn heartbeat(&self) -> Bytes {
        let mut state = self.state();
        let (revision, epoch) = (state.revision, self.epoch);
        let State { heartbeat, digest, .. } = &mut *state;
        let message = heartbeat.get_or_insert_with(|| {
            encode(Response::Heartbeat(Heartbeat {
                head: Some(Position::new(epoch, revision).into()),
                digest: digest.fold().to_vec().into(),
                records: digest.records(),
            }))
        });
        message.clone()
    }

    /// All records, at `at_least` or later. Followers that are served at the same time share it.
    pub(super) fn freeze(&self, at_least: u64) -> Arc<Frozen> {
        let mut state = self.state();
        let usable = |frozen: &Arc<Frozen>| frozen.position.revision >= at_least.max(state.floor);
        if let Some(frozen) = state.frozen.upgrade().filter(usable) {
            return frozen;
        }
        let records =
            state.records.iter().map(|(key, held)| (Arc::clone(key), held.revision, held.value.clone())).collect();
        let position = Position::new(self.epoch, state.revision);
        let frozen = Arc::new(Frozen { position, view: Arc::clone(&self.name), records, digest: state.digest.fold() });
        state.frozen = Arc::downgrade(&frozen);
        frozen
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, key: &str, revision: u64, value: Option<Bytes>) {
        self.revision = revision;
        self.heartbeat = None;
        let (key, old): (Arc<str>, _) = match self.records.remove_entry(key) {
            Some((key, old)) => (key, Some(old)),
            None => (key.into(), None),
        };
        if let Some(old) = &old {
            self.digest.remove(&key, old.revision, &old.value);
        } else if value.is_none() {
            return; // Nothing of it was or is in this view.
        }
        let change = Change { key: key.as_ref().to_owned(), revision, value: value.clone() };
        let mut encoded = BytesMut::with_capacity(message::encoded_len(field::DELTA_CHANGES, &change));
        message::encode(field::DELTA_CHANGES, &change, &mut encoded);
        self.ring_bytes += encoded.len();
        self.ring.push_back(Slot { revision, key: Arc::clone(&key), encoded: encoded.freeze() });
        if let Some(value) = value {
            self.digest.add(&key, revision, &value);
            self.records.insert(key, Held { revision, value });
        }
    }

    fn trim(&mut self, settings: Settings) {
        while self.ring.len() > settings.ring_changes || (self.ring_bytes > settings.ring_bytes && self.ring.len() > 1)
        {
            let Some(oldest) = self.ring.pop_front() else { return };
            self.ring_bytes -= oldest.encoded.len();
            self.floor = oldest.revision;
        }
    }

    /// The next message after `cursor`, which the ring reaches back to: the latest change of each key, within bounds.
    fn delta(&self, epoch: u64, cursor: u64) -> Delta {
        let first = self.ring.partition_point(|slot| slot.revision <= cursor);
        let mut latest: HashMap<&str, &Slot> = HashMap::new();
        let mut bytes = 0;
        let mut revision = cursor;
        let mut whole = true;
        for slot in self.ring.range(first..) {
            if latest.len() >= DELTA_CHANGES || (bytes + slot.encoded.len() > DELTA_BYTES && !latest.is_empty()) {
                whole = false;
                break;
            }
            revision = slot.revision;
            bytes += slot.encoded.len();
            if let Some(superseded) = latest.insert(&slot.key, slot) {
                bytes -= superseded.encoded.len();
            }
        }
        if whole {
            // What came after the last change did not concern this view.
            revision = self.revision;
        }
        let mut changes: Vec<_> = latest.into_values().collect();
        changes.sort_unstable_by_key(|slot| slot.revision);
        Delta { previous: cursor, revision, message: assemble(epoch, cursor, revision, &changes, bytes) }
    }
}

/// `FollowResponse { delta }` of changes that are encoded already.
fn assemble(epoch: u64, previous: u64, revision: u64, changes: &[&Slot], bytes: usize) -> Bytes {
    let numbers =
        [(field::DELTA_EPOCH, epoch), (field::DELTA_PREVIOUS_REVISION, previous), (field::DELTA_REVISION, revision)];
    let present = || numbers.iter().filter(|(_, number)| *number != 0);
    let length = present().map(|(tag, number)| uint64::encoded_len(*tag, number)).sum::<usize>() + bytes;
    let frame = key_len(field::RESPONSE_DELTA) + encoded_len_varint(length as u64) + length;
    let mut out = BytesMut::with_capacity(frame);
    encode_key(field::RESPONSE_DELTA, WireType::LengthDelimited, &mut out);
    encode_varint(length as u64, &mut out);
    for (tag, number) in present() {
        uint64::encode(*tag, number, &mut out);
    }
    for slot in changes {
        out.extend_from_slice(&slot.encoded);
    }
    out.freeze()
}

impl Frozen {
    pub(super) fn start(&self) -> Bytes {
        let (position, view) = (Some(self.position.into()), self.view.as_ref().to_owned());
        encode(Response::SnapshotStart(SnapshotStart { position, view, ..SnapshotStart::default() }))
    }

    /// The chunk that begins with record `from`, and where the next one begins; nothing after the last.
    pub(super) fn chunk(&self, from: usize) -> Option<(Bytes, usize)> {
        let mut records = Vec::new();
        let mut bytes = 0;
        for (key, revision, value) in self.records.get(from..)? {
            if bytes + key.len() + value.len() > CHUNK_BYTES && !records.is_empty() {
                break;
            }
            bytes += key.len() + value.len();
            records.push(Record { key: key.as_ref().to_owned(), revision: *revision, value: value.clone() });
        }
        let next = from + records.len();
        (!records.is_empty()).then(|| (encode(Response::SnapshotChunk(SnapshotChunk { records })), next))
    }

    pub(super) fn end(&self) -> Bytes {
        let (records, digest) = (self.records.len() as u64, self.digest.to_vec().into());
        encode(Response::SnapshotEnd(SnapshotEnd { records, digest }))
    }
}

/// A heartbeat that says no more than that this side lives, for who waits for a snapshot.
pub(super) fn sign_of_life() -> Bytes {
    encode(Response::Heartbeat(Heartbeat::default()))
}

fn encode(response: Response) -> Bytes {
    FollowResponse { response: Some(response) }.encode_to_vec().into()
}

#[cfg(test)]
mod tests;
