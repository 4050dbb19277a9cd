//! The protocol of a follower: what each message of each parent does to the map, and what is answered.
//!
//! It has no socket, no clock and no disk, so that tests can put any sequence of messages to it.
//!
//! All parents' streams lead into one map. A delta that leads on from what is held is applied, whoever sends it first;
//! what comes a second time is dropped. Only one stream at a time brings a snapshot; deltas that others send meanwhile are
//! applied, and put on top of it when it is older. A parent that is behind is waited for.

mod compare;
mod incoming;
mod ledger;
mod records;
mod restore;
mod scrub;
mod snapshot;
mod stream;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tenon_proto::replication::v1::{
    Ack, Delta, FollowRequest, FollowResponse, GuardRules, Mode, Nack, Start, follow_request::Request,
    follow_response::Response,
};

use crate::{
    BUCKETS, Event, Guard, Position, Table, Value,
    guard::{Guarding, Now},
    reader::Shared,
};
use incoming::Incoming;
use ledger::apply;
pub(crate) use ledger::{Accept, Ledger};
pub(crate) use scrub::Scrubbed;
use stream::{Asked, History, Phase, Stream, Tail};

/// A snapshot of which nothing came for this long may be taken from another parent: there is a heartbeat each second.
const STALLED: Duration = Duration::from_millis(1500);

/// Why a stream cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Break {
    /// Messages are missing: resume from what is held.
    #[error("{0}: resuming")]
    Gap(String),
    /// The map differs from the parent's although both are at the same position: ask for the buckets that differ.
    #[error("the map differs from the parent's at {0}: asking for the buckets that differ")]
    Diverged(Position),
    /// The map differs from the parent's and equals another one's.
    #[error("the parent's map at {0} is another one than that of the other parent, which is followed")]
    Odd(Position),
    /// The parent offers what must not be taken: tell it, keep what is held, come back later.
    #[error("{error}")]
    Refused { position: Position, error: String },
    /// The parent has less than is held, and another one is good: come back later.
    #[error("the parent is at {position}, behind {held}, which is held")]
    Behind { position: Position, held: Position },
    /// The parent shows something else to this follower than another one, which is good: come back later.
    #[error("the parent shows the view {offered:?}, the other one {held:?}, which is held")]
    OtherView { offered: Arc<str>, held: Arc<str> },
    /// What was asked for is no longer wanted, since another parent brings it: ask again.
    #[error("another parent was faster: asking again")]
    Outrun,
    /// Something changed in memory: ask for the buckets that differ.
    #[error("records changed in memory: asking for the buckets that differ")]
    Damaged,
}

/// One follower's side of the protocol.
pub(crate) struct Machine<V, O> {
    shared: Arc<Shared<V>>,
    observer: O,
    /// Which records it takes of those that decode.
    accept: Accept<V>,
    guarding: Guarding,
    /// By the parents' numbers.
    streams: Vec<Stream>,
    /// The snapshot that is being received.
    incoming: Option<Incoming<V>>,
    /// What came while one may be on its way.
    tail: Option<Tail>,
    history: History,
    /// Replaced tables that a reader may still hold. Dropping a large one takes long: never on a reader's thread.
    retired: Vec<Arc<Table<V>>>,
}

impl<V: Value, O: FnMut(Event<'_, V>)> Machine<V, O> {
    /// For the streams of so many `parents`.
    pub(crate) fn new(shared: Arc<Shared<V>>, guard: Guard, parents: usize, observer: O) -> Self {
        shared.health().status.parents.resize_with(parents, Default::default);
        Self {
            shared,
            observer,
            accept: Arc::new(|_| Ok(())),
            guarding: Guarding::new(guard),
            streams: std::iter::repeat_with(Stream::default).take(parents).collect(),
            incoming: None,
            tail: None,
            history: History::default(),
            retired: Vec::new(),
        }
    }

    /// Takes only what `accept` takes, from before the first record on.
    pub(crate) fn accepting(self, accept: Accept<V>) -> Self {
        Self { accept, ..self }
    }

    /// Begins a stream of `parent`: forgets what its last one left half done, and says what to ask for. Absent while
    /// another parent sends what would be asked for.
    pub(crate) fn begin(&mut self, parent: usize, kind: &str, instance: &str, now: Now) -> Option<FollowRequest> {
        self.end(parent);
        if self.receives_from_another(parent, now) {
            return None;
        }
        let shared = Arc::clone(&self.shared);
        let ledger = shared.ledger();
        let repairing = self.repair_is_under_way(now);
        let stream = &mut self.streams[parent];
        let repair = (stream.repair || !ledger.damaged.is_empty()) && !repairing;
        stream.phase = Phase::Opening;
        stream.asked = ledger.position.map(|position| Asked {
            position,
            at: now.elapsed,
            resume: !repair,
            view: Arc::clone(&ledger.view),
            believed: ledger.digest.clone(),
            sent: ledger.digest.clone(),
        });
        if let (Some(asked), Some(table)) = (&mut stream.asked, self.shared.table.load_full()) {
            for bucket in &ledger.damaged {
                asked.sent.replace(*bucket, &ledger.redigest(&table.bucket(*bucket), *bucket));
            }
        }
        if let Some(position) = ledger.position {
            self.tail.get_or_insert_with(|| Tail::after(position));
        }
        let asked = stream.asked.as_ref();
        Some(request(Request::Start(Start {
            kind: kind.to_owned(),
            mode: Mode::Full.into(),
            resume: asked.filter(|asked| asked.resume).map(|asked| asked.position.into()),
            instance: instance.to_owned(),
            view: ledger.view.as_ref().to_owned(),
            bucket_digests: asked.filter(|_| !stream.whole).map_or_else(Bytes::new, |asked| asked.sent.to_wire()),
        })))
    }

    /// The stream of `parent` has ended.
    pub(crate) fn end(&mut self, parent: usize) {
        if self.incoming.as_ref().is_some_and(|incoming| incoming.parent == parent) {
            self.incoming = None;
        }
        self.streams[parent].close();
        self.settle();
    }

    /// Takes one message of `parent` in and returns what to answer, if anything.
    pub(crate) fn receive(
        &mut self,
        parent: usize,
        response: FollowResponse,
        now: Now,
    ) -> Result<Option<FollowRequest>, Break> {
        // One that stopped in the middle keeps nothing from the others.
        self.incoming.take_if(|it| it.parent != parent && now.elapsed.saturating_sub(it.heard) >= STALLED);
        let answer = match response.response {
            Some(Response::SnapshotStart(start)) => self.snapshot_start(parent, &start, now),
            Some(Response::SnapshotChunk(chunk)) => self.snapshot_chunk(parent, chunk, now),
            Some(Response::SnapshotEnd(end)) => self.snapshot_end(parent, &end, now),
            Some(Response::Delta(delta)) => self.delta(parent, delta, now),
            Some(Response::Heartbeat(heartbeat)) => self.heartbeat(parent, heartbeat, now),
            Some(Response::GuardRules(rules)) => {
                self.told_rules(rules, now);
                Ok(None)
            }
            // Of a newer protocol: what it would have changed shows in the digest.
            None => Ok(None),
        };
        self.settle();
        let answer = answer?;
        let live = self.streams[parent].phase == Phase::Live;
        let damaged = || !self.shared.ledger().damaged.is_empty();
        if live && damaged() && !self.repair_is_under_way(now) {
            return Err(Break::Damaged);
        }
        Ok(answer)
    }

    /// How many records have to be touched to take `response` in, about.
    pub(crate) fn weight(&self, response: &FollowResponse) -> usize {
        match &response.response {
            Some(Response::SnapshotChunk(chunk)) => chunk.records.len(),
            Some(Response::SnapshotEnd(_)) => self.incoming.as_ref().map_or(0, |incoming| {
                let replaced = incoming.partial.as_ref().map_or(0, |buckets| buckets.listed().count());
                let held = self.shared.table.load().as_ref().map_or(0, |table| table.len());
                incoming.records.len().max(held / BUCKETS * replaced)
            }),
            Some(Response::Delta(delta)) => delta.changes.len(),
            Some(Response::SnapshotStart(_) | Response::Heartbeat(_) | Response::GuardRules(_)) | None => 0,
        }
    }

    /// What to tell `parent` of everything that was applied, from it or from others. Absent where that would mean nothing.
    pub(crate) fn acknowledgement(&self, parent: usize) -> Option<FollowRequest> {
        let stream = &self.streams[parent];
        let ledger = self.shared.ledger();
        let position = ledger.position.filter(|_| stream.phase == Phase::Live && stream.view == ledger.view)?;
        drop(ledger);
        Some(self.answer(position))
    }

    /// Tables that nobody reads any more, to be dropped where that may take long.
    pub(crate) fn drain_retired(&mut self) -> Vec<Arc<Table<V>>> {
        self.retired.extract_if(.., |table| Arc::strong_count(table) == 1).collect()
    }

    fn delta(&mut self, parent: usize, delta: Delta, now: Now) -> Result<Option<FollowRequest>, Break> {
        let shared = Arc::clone(&self.shared);
        let ledger = shared.ledger();
        let table = shared.table.load_full();
        let stream = &mut self.streams[parent];
        stream.ahead = false;
        stream.resumed();
        let (Some(held), Some(table), Phase::Live) = (ledger.position, table, stream.phase) else {
            return Err(Break::Gap("a delta where a snapshot should be".into()));
        };
        stream.shows(&ledger.view)?;
        let position = Position::new(delta.epoch, delta.revision);
        if delta.epoch < held.epoch || self.incoming.as_ref().is_some_and(|incoming| incoming.elsewhere) {
            return Ok(None); // What is held has left that history, or is about to.
        }
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
        let checked = guard_delta(&mut self.guarding, &ledger, &table, &delta, held, now);
        drop(ledger);
        self.guarded(parent, position, checked)?;
        self.apply(&table, delta, held);
        self.shared.announce(position);
        self.compare_told(parent, now)?;
        Ok(Some(self.answer(position)))
    }

    fn apply(&mut self, table: &Table<V>, delta: Delta, held: Position) {
        let shared = Arc::clone(&self.shared);
        let mut ledger = shared.ledger();
        let ledger = &mut *ledger;
        let position = Position::new(delta.epoch, delta.revision);
        shared.unsaved().push(|| Response::Delta(delta.clone()));
        for change in delta.changes {
            // What an overlapping delta repeats is held already.
            if change.revision <= held.revision {
                continue;
            }
            if let Some(tail) = &mut self.tail {
                tail.push(&change, position);
            }
            ledger.note(&change.key);
            let (key, revision, several, gone) =
                (change.key.clone(), change.revision, change.several, change.value.is_none());
            let applied = apply(&self.accept, table, &mut ledger.digest, &mut ledger.refused, change);
            if applied.is_some() || (gone && several) {
                let (old, new) = applied.as_ref().map_or((None, None), |it| (it.old.as_ref(), it.new.as_ref()));
                (self.observer)(Event::Changed { key: &key, revision, old, new, several });
            }
        }
        ledger.position = Some(position);
        self.history.push(position, &ledger.digest);
    }

    fn told_rules(&mut self, rules: GuardRules, now: Now) {
        self.guarding.told(rules, now);
        let rules = self.guarding.rules();
        let mut ledger = self.shared.ledger();
        if ledger.rules != *rules {
            ledger.rules = rules.clone();
            self.shared.unsaved().push(|| Response::GuardRules(rules.clone()));
        }
        self.shared.told(self.guarding.rules());
    }

    /// Raises the alarm where the guards refuse what leads to `position`, and ends it where they do not.
    fn guarded(&mut self, parent: usize, position: Position, checked: Result<(), String>) -> Result<(), Break> {
        self.streams[parent].alarm = checked.as_ref().err().cloned();
        let mut health = self.shared.health();
        health.status.alarms = self.streams.iter().filter_map(|stream| stream.alarm.clone()).collect();
        if checked.is_ok() {
            health.status.parents[parent].last_error = None;
        }
        let Err(error) = checked else { return Ok(()) };
        health.status.guard_refusals += 1;
        Err(Break::Refused { position, error })
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

    /// Whether another parent than `parent` is sending a snapshot, and has not stopped in the middle.
    fn receives_from_another(&self, parent: usize, now: Now) -> bool {
        self.incoming.as_ref().is_some_and(|it| it.parent != parent && now.elapsed.saturating_sub(it.heard) < STALLED)
    }

    /// Whether what differs is being fetched already, or asked for.
    fn repair_is_under_way(&self, now: Now) -> bool {
        self.incoming.is_some() || self.streams.iter().any(|stream| stream.repairs(now))
    }

    /// Whether deltas of what is held come from another parent than `parent`.
    fn another_is_good(&self, parent: usize) -> bool {
        let ledger = self.shared.ledger();
        let good = |stream: &Stream| stream.phase == Phase::Live && stream.view == ledger.view;
        self.streams.iter().enumerate().any(|(other, stream)| other != parent && good(stream))
    }

    /// Drops the tail once nobody can need it.
    fn settle(&mut self) {
        if self.streams.iter().all(|stream| matches!(stream.phase, Phase::Closed | Phase::Live)) {
            self.tail = None;
        }
    }
}

/// Counts what a delta does and has the guards judge it.
fn guard_delta<V: Value>(
    guarding: &mut Guarding,
    ledger: &Ledger,
    table: &Table<V>,
    delta: &Delta,
    held: Position,
    now: Now,
) -> Result<(), String> {
    let records = ledger.digest.records();
    let has = |key: &str| ledger.refused.contains_key(key) || table.get(key).is_some();
    let news = || delta.changes.iter().filter(|change| change.revision > held.revision);
    let deleted = || news().filter(|change| change.value.is_none() && has(&change.key));
    let lost = deleted().count() as u64;
    let gained =
        if lost == 0 { 0 } else { news().filter(|change| change.value.is_some() && !has(&change.key)).count() as u64 };
    let deleted = deleted().map(|change| change.key.as_str());
    guarding.delta(records, (records + gained).saturating_sub(lost), now, deleted)
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
