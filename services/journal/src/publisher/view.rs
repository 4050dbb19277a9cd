//! One view: how far it has come, its digest, and the messages that its followers share. It holds no record.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use replica::Digest;
use tokio::sync::watch;

use super::{
    ViewName, Views,
    base::{Before, Change, FrozenBase},
    bells::Bells,
    frozen::Frozen,
    message::{self, DeltaMessage},
    ring::Ring,
};
use crate::Position;

/// So many deltas are kept for followers that are behind.
const CATCHING_UP: usize = 4;

/// A view, shared by all who follow it.
pub(super) struct View {
    name: ViewName,
    epoch: u64,
    ring: Arc<Mutex<Ring>>,
    state: Mutex<State>,
    /// The revision up to which the state has come.
    head: AtomicU64,
    /// Whether it can be followed: its digest is known.
    ready: watch::Sender<bool>,
    /// Whether it is of a past history.
    closed: AtomicBool,
    /// Those who wait for it to change.
    pub(super) bells: Bells,
}

enum State {
    /// Its digest is being made; these changes came meanwhile.
    Building(Vec<Batch>),
    Live(Live),
}

/// Changes that the base has made, and how far it came with them.
#[derive(Clone)]
pub(super) struct Batch {
    pub(super) changes: Arc<[Arc<Change>]>,
    pub(super) revision: u64,
    /// They are what differs between two tables, and lack what came and went in between: no delta leads there.
    pub(super) compared: bool,
}

struct Live {
    revision: u64,
    digest: Digest,
    /// The delta to the head. Nearly all followers want the same one.
    last_delta: Option<Delta>,
    /// Deltas that followers who were further behind wanted lately: those of a cut connection are behind alike.
    catching_up: VecDeque<Delta>,
    /// The heartbeat of this revision, once someone wanted it.
    heartbeat: Option<Bytes>,
    /// The last snapshot, for as long as someone is being sent it.
    frozen: Weak<Frozen>,
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
    /// It is at the head, or further.
    Nothing,
    /// The ring does not go back that far.
    Snapshot,
}

/// How a view is at one moment.
pub(super) struct Now {
    pub(super) position: Position,
    /// The buckets that differ from those of the follower; absent when nothing is known of those.
    pub(super) differing: Option<Vec<u32>>,
    pub(super) records: u64,
    pub(super) digest: [u8; 16],
}

/// What one change is to one view.
struct Projected {
    change: Arc<Change>,
    old: Option<(u64, Bytes)>,
    new: Option<Bytes>,
}

impl View {
    /// A view of a base that is at `position` now: [`View::build`] makes it usable.
    pub(super) fn new(name: ViewName, position: Position, ring: Arc<Mutex<Ring>>) -> Self {
        Self {
            name,
            epoch: position.epoch,
            ring,
            state: Mutex::new(State::Building(Vec::new())),
            head: AtomicU64::new(position.revision),
            ready: watch::Sender::new(false),
            closed: AtomicBool::new(false),
            bells: Bells::default(),
        }
    }

    /// Takes long for a large base: not for a thread of the runtime.
    pub(super) fn build(&self, base: &FrozenBase, views: &dyn Views) {
        let mut digest = Digest::new();
        for (key, held) in base.buckets.iter().flat_map(|bucket| bucket.iter()) {
            if let Some(value) = views.project(&self.name, key, &held.value) {
                digest.add(key, held.revision, &value);
            }
        }
        let mut live = Live::new(base.position.revision, digest);
        loop {
            let mut state = self.state();
            let State::Building(missed) = &mut *state else { return };
            let missed = std::mem::take(missed);
            if missed.is_empty() {
                self.head.store(live.revision, Ordering::Release);
                *state = State::Live(live);
                drop(state);
                self.ready.send_replace(true);
                return;
            }
            drop(state);
            for batch in missed {
                let projected = self.project(&batch.changes, views);
                live.apply(self.epoch, projected, &batch);
            }
        }
    }

    /// Waits until it can be followed.
    pub(super) async fn ready(&self) {
        // The sender is in `self`, so the channel cannot be closed here.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) const fn name(&self) -> &ViewName {
        &self.name
    }

    pub(super) fn revision(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Its followers have to start again.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes changes in, which are in the ring already.
    pub(super) fn apply(&self, batch: &Batch, views: &dyn Views) {
        if let State::Building(missed) = &mut *self.state() {
            missed.push(batch.clone());
            return;
        }
        // Not under the lock: followers ask for the delta before meanwhile.
        let projected = self.project(&batch.changes, views);
        self.with(|live| {
            live.apply(self.epoch, projected, batch);
            self.head.store(live.revision, Ordering::Release);
        });
    }

    fn project(&self, changes: &[Arc<Change>], views: &dyn Views) -> Vec<Projected> {
        let project = |change: &Arc<Change>| {
            let old = match &change.before {
                Before::Held(held) => {
                    views.project(&self.name, &change.key, &held.value).map(|value| (held.revision, value))
                }
                Before::Absent | Before::Unknown => None,
            };
            let new = change.new.as_ref().and_then(|value| views.project(&self.name, &change.key, value));
            Projected { change: Arc::clone(change), old, new }
        };
        changes.iter().map(project).collect()
    }

    /// What a follower that holds everything up to `cursor` needs next.
    pub(super) fn next(&self, cursor: u64, views: &dyn Views) -> Next {
        // Under the lock, so that one makes the delta that many want.
        self.with(|live| {
            if cursor >= live.revision {
                return Next::Nothing;
            }
            if let Some(made) = live.last_delta.iter().chain(&live.catching_up).find(|made| made.previous == cursor) {
                return Next::Delta(made.clone());
            }
            let Some(delta) = self.delta(cursor, live.revision, views) else { return Next::Snapshot };
            live.catching_up.truncate(CATCHING_UP - 1);
            live.catching_up.push_front(delta.clone());
            Next::Delta(delta)
        })
        .unwrap_or(Next::Nothing)
    }

    fn delta(&self, cursor: u64, head: u64, views: &dyn Views) -> Option<Delta> {
        let stretch = self.ring.lock().unwrap_or_else(PoisonError::into_inner).after(cursor, head)?;
        let mut message = DeltaMessage::default();
        for (first, last) in stretch.changes {
            let new = last.new.as_ref().and_then(|value| views.project(&self.name, &last.key, value));
            let was_shown = || match &first.before {
                Before::Absent => false,
                Before::Held(held) => views.project(&self.name, &first.key, &held.value).is_some(),
                Before::Unknown => true,
            };
            // Another parent may have shown what came and went in between.
            let several = !Arc::ptr_eq(&first, &last) || last.several;
            if new.is_some() || several || was_shown() {
                message.push(&last.key, last.revision, new.as_deref(), several);
            }
        }
        let message = message.finish(self.epoch, cursor, stretch.revision);
        Some(Delta { previous: cursor, revision: stretch.revision, message })
    }

    /// Whether the ring leads from `revision` to the head, or will once the head is there.
    pub(super) fn reaches_back_to(&self, revision: u64) -> bool {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).floor() <= revision
    }

    /// Head, digest and number of records, encoded.
    pub(super) fn heartbeat(&self) -> Bytes {
        let beat = self.with(|live| {
            let Live { revision, digest, heartbeat, .. } = live;
            let encode = || message::heartbeat(Position::new(self.epoch, *revision), digest.records(), digest.fold());
            heartbeat.get_or_insert_with(encode).clone()
        });
        beat.unwrap_or_else(message::sign_of_life)
    }

    /// How it is now, against what a follower says it holds.
    pub(super) fn now(&self, bucket_digests: &[u8]) -> Option<Now> {
        self.with(|live| Now {
            position: Position::new(self.epoch, live.revision),
            differing: live.digest.differing(bucket_digests),
            records: live.digest.records(),
            digest: live.digest.fold(),
        })
    }

    /// A snapshot at `at_least` or later that is being sent already and that the ring leads on from.
    pub(super) fn frozen(&self, at_least: u64) -> Option<Arc<Frozen>> {
        let usable = |frozen: &Arc<Frozen>| {
            frozen.position().revision >= at_least && self.reaches_back_to(frozen.position().revision)
        };
        self.with(|live| live.frozen.upgrade().filter(usable)).flatten()
    }

    /// A snapshot of `base`, which must be where the view is.
    pub(super) fn freeze(&self, base: FrozenBase) -> Option<Arc<Frozen>> {
        self.with(|live| {
            let frozen = Arc::new(Frozen::new(base, Arc::clone(&self.name), live.digest.clone()));
            live.frozen = Arc::downgrade(&frozen);
            frozen
        })
    }

    /// None before it is ready.
    fn with<T>(&self, what: impl FnOnce(&mut Live) -> T) -> Option<T> {
        match &mut *self.state() {
            State::Live(live) => Some(what(live)),
            State::Building(_) => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn new(revision: u64, digest: Digest) -> Self {
        let catching_up = VecDeque::new();
        Self { revision, digest, last_delta: None, catching_up, heartbeat: None, frozen: Weak::new() }
    }

    fn apply(&mut self, epoch: u64, projected: Vec<Projected>, batch: &Batch) {
        let mut message = DeltaMessage::default();
        // The last of each key would do: then the ring makes it, if anyone wants it.
        let (mut keys, mut twice) = (HashSet::new(), false);
        for Projected { change, old, new } in projected {
            if let Some((revision, value)) = &old {
                self.digest.remove(&change.key, *revision, value);
            }
            if let Some(value) = &new {
                self.digest.add(&change.key, change.revision, value);
            }
            if old.is_some() || new.is_some() || change.several {
                message.push(&change.key, change.revision, new.as_deref(), change.several);
            }
            twice |= !keys.insert(Arc::clone(&change.key));
        }
        let revision = batch.revision;
        let previous = std::mem::replace(&mut self.revision, revision);
        self.heartbeat = None;
        self.last_delta = None;
        if message.fits() && !twice && previous != revision && !batch.compared {
            self.last_delta = Some(Delta { previous, revision, message: message.finish(epoch, previous, revision) });
        }
    }
}

#[cfg(test)]
mod tests;
