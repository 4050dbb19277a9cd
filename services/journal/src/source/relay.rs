//! A relay's source: what it follows.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::stream;
use replica::{BUCKETS, Event, Follow, Parent, Replica, Value};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{Batch, Batches, Source};
use crate::{Entry, Position, ReadError, Record, Snapshot, TailError};

/// What a relay follows, for one [`crate::Publisher`] to publish further. Positions, revisions and records are its
/// parents'. Cheap to clone; all clones are the same source.
///
/// It must follow the view that shows every record whole. Raw records are shared with the replica, not copied.
///
/// `V` must take any bytes: a record that its [`Value::decode`] refuses is published as it was before, and then the digest
/// differs from the parents' without end. What does not decode is passed on as it came; the last follower, who uses it,
/// refuses it.
pub struct RelaySource<V> {
    replica: Replica<V>,
    pending: Arc<Mutex<Pending<V>>>,
    announced: watch::Receiver<Option<Position>>,
}

impl<V> Clone for RelaySource<V> {
    fn clone(&self) -> Self {
        let Self { replica, pending, announced } = self;
        Self { replica: replica.clone(), pending: Arc::clone(pending), announced: announced.clone() }
    }
}

impl<V> fmt::Debug for RelaySource<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelaySource").finish_non_exhaustive()
    }
}

/// What was observed and not yet handed on.
struct Pending<V> {
    /// Up to here changes were handed on; absent when only a snapshot leads on.
    handed: Option<Position>,
    /// The last change of each key: no more than there are keys, however slow the publisher is.
    changes: HashMap<String, (u64, Option<V>)>,
    /// Of these keys it stands for several.
    several: HashSet<String>,
}

impl<V: Value> RelaySource<V> {
    /// Starts `follow` until `shutdown`. The observer is told what it would be told by [`Follow::start`]; so is the end of
    /// the task. Must be called within a tokio runtime.
    pub fn follow<P: Parent>(
        follow: Follow<P>,
        mut observer: impl FnMut(Event<'_, V>) + Send + 'static,
        shutdown: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let pending = Arc::new(Mutex::new(Pending { handed: None, changes: HashMap::new(), several: HashSet::new() }));
        let observed = Arc::clone(&pending);
        let (replica, task) = follow.start(
            move |event: Event<'_, V>| {
                lock(&observed).observe(&event);
                observer(event);
            },
            shutdown,
        );
        let announced = replica.subscribe();
        (Self { replica, pending, announced }, task)
    }

    /// What is followed, for those who read here.
    #[must_use]
    pub const fn replica(&self) -> &Replica<V> {
        &self.replica
    }

    /// One attempt at a snapshot; none when the map was replaced meanwhile.
    async fn attempt(&self) -> Result<Option<Snapshot>, ReadError> {
        let mut announced = self.announced.clone();
        let begun = {
            // From here on everything that changes is noted, whatever the table shows of it.
            let mut pending = lock(&self.pending);
            pending.changes.clear();
            pending.several.clear();
            pending.handed = *announced.borrow_and_update();
            pending.handed
        };
        let (Some(begun), Some(table)) = (begun, self.replica.table()) else {
            announced.changed().await.map_err(|_| stopped())?;
            return Ok(None);
        };
        let read = move || -> HashMap<String, (u64, V)> {
            let values = (0..BUCKETS).flat_map(|bucket| table.bucket(bucket));
            values.map(|value| (value.key().to_owned(), (value.revision(), value))).collect()
        };
        let mut records = tokio::task::spawn_blocking(read).await.map_err(|error| ReadError(error.into()))?;
        // What the table shows before its position is announced is waited for.
        let newest = records.values().map(|(revision, _)| *revision).max().unwrap_or(0);
        let position = loop {
            match *announced.borrow_and_update() {
                Some(now) if now.epoch != begun.epoch => return Ok(None),
                Some(now) if now.revision >= newest => break now,
                Some(_) | None => {}
            }
            announced.changed().await.map_err(|_| stopped())?;
        };
        let mut pending = lock(&self.pending);
        if pending.handed != Some(begun) {
            return Ok(None);
        }
        for (key, (revision, value)) in pending.take(position) {
            match value {
                Some(value) => drop(records.insert(key, (revision, value))),
                None => drop(records.remove(&key)),
            }
        }
        drop(pending);
        let records =
            records.into_iter().map(|(key, (revision, value))| Record { key, revision, value: shared(value) });
        Ok(Some(Snapshot { position, records: records.collect() }))
    }
}

impl<V: Value> Pending<V> {
    fn observe(&mut self, event: &Event<'_, V>) {
        match event {
            Event::Changed { key, revision, new, several, .. } => match self.handed {
                // A repair of what was handed on long ago leads on by no delta.
                Some(handed) if *revision <= handed.revision => self.handed = None,
                Some(_) => {
                    let before = self.changes.insert((*key).to_owned(), (*revision, new.cloned()));
                    if *several || before.is_some() {
                        self.several.insert((*key).to_owned());
                    }
                }
                None => {}
            },
            Event::Replaced(..) | Event::Compared => self.handed = None,
        }
        if self.handed.is_none() {
            (self.changes, self.several) = Default::default();
        }
    }

    /// The changes up to `position`, which have been handed on with that.
    fn take(&mut self, position: Position) -> Vec<(String, (u64, Option<V>))> {
        self.handed = Some(position);
        self.changes.extract_if(|_, (revision, _)| *revision <= position.revision).collect()
    }

    /// What leads from `from` to `position`.
    fn batch(&mut self, from: Position, position: Position) -> Result<Batch, TailError> {
        if self.handed != Some(from) || from.epoch != position.epoch {
            return Err(TailError::Compacted);
        }
        let mut entries: Vec<_> = self.take(position).into_iter().map(entry).collect();
        entries.sort_unstable_by_key(|entry| entry.revision);
        let several = entries.iter().filter_map(|entry| self.several.take(&entry.key)).collect();
        Ok(Batch { entries, coalesced: true, several, revision: position.revision })
    }
}

#[tonic::async_trait]
impl<V: Value> Source for RelaySource<V> {
    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        loop {
            if let Some(snapshot) = self.attempt().await? {
                return Ok(snapshot);
            }
        }
    }

    async fn head(&self) -> Result<Option<Position>, ReadError> {
        Ok(*self.announced.borrow())
    }

    /// What is refused of the parents.
    fn alarms(&self) -> Vec<String> {
        self.replica.status().alarms
    }

    fn tail(&self, from: Position) -> Batches {
        let (announced, pending) = (self.announced.clone(), Arc::clone(&self.pending));
        Box::pin(stream::unfold((from, announced, pending), |(from, mut announced, pending)| async move {
            loop {
                let position = *announced.borrow_and_update();
                if let Some(position) = position.filter(|position| *position != from) {
                    let batch = lock(&pending).batch(from, position);
                    return Some((batch, (position, announced, pending)));
                }
                // The same position may be announced again when something of it was repaired.
                if lock(&pending).handed != Some(from) {
                    return Some((Err(TailError::Compacted), (from, announced, pending)));
                }
                if announced.changed().await.is_err() {
                    return Some((Err(stopped().into()), (from, announced, pending)));
                }
            }
        }))
    }
}

fn entry<V: Value>((key, (revision, value)): (String, (u64, Option<V>))) -> Entry {
    Entry { key, revision, value: value.map(shared), at_unix_ms: 0 }
}

/// The raw record, without a copy: it lives as long as the value.
fn shared<V: Value>(value: V) -> Bytes {
    struct Raw<V>(V);
    impl<V: Value> AsRef<[u8]> for Raw<V> {
        fn as_ref(&self) -> &[u8] {
            self.0.raw()
        }
    }
    Bytes::from_owner(Raw(value))
}

fn stopped() -> ReadError {
    ReadError("the relay follows nobody any more".into())
}

fn lock<V>(pending: &Mutex<Pending<V>>) -> MutexGuard<'_, Pending<V>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}
