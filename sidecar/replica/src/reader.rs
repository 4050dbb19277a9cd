//! The map as its readers see it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tenon_proto::replication::v1::GuardRules;
use tokio::{sync::watch, time::Instant};

use crate::{Position, Table, Value, machine::Ledger, persist::Unsaved};

/// What a follower holds of one kind. Cheap to clone; all clones are the same map.
#[derive(Debug)]
pub struct Replica<V> {
    shared: Arc<Shared<V>>,
}

impl<V> Clone for Replica<V> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// How a follower is doing, for admin pages and metrics.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// What is held; absent before the first complete snapshot.
    pub position: Option<Position>,
    /// Whether a parent has been heard on the present stream.
    pub connected: bool,
    /// Time since the last message of any parent; absent before the first.
    pub last_heartbeat_age: Option<Duration>,
    /// Refusals sent to the parent since the start.
    pub nacks: u64,
    /// Why the last stream ended or the last record was refused; absent when all is well.
    pub last_error: Option<String>,
    /// Why the state file could not be written, while that lasts.
    pub state_error: Option<String>,
    /// Records that readers find.
    pub records: usize,
    /// Records of the parent that do not decode here; readers find what was held before.
    pub refused_records: usize,
    /// Snapshots taken over since the start.
    pub snapshots: u64,
    /// Snapshots of the buckets that differed, taken over since the start.
    pub partial_snapshots: u64,
    /// Times that the digest showed a difference from a parent.
    pub divergences: u64,
    /// Buckets that were fetched again because they had come to differ.
    pub repaired_buckets: u64,
    /// Snapshots and deltas that the guards refused since the start.
    pub guard_refusals: u64,
    /// What the guards refuse now; empty when all is well. What is held stays in use.
    pub alarms: Vec<String>,
    /// Times that the whole map was compared with what the parents had sent.
    pub scrub_passes: u64,
    /// Buckets that had changed in memory when they were compared.
    pub scrub_differences: u64,
    /// Those who are followed, in the order of [`crate::Follow::parents`].
    pub parents: Vec<ParentStatus>,
}

/// How one parent of a follower is doing.
#[derive(Clone, Debug, Default)]
pub struct ParentStatus {
    /// [`crate::Parent::name`].
    pub name: String,
    /// Whether it has been heard on the present stream.
    pub connected: bool,
    /// How far it said that it is; absent before it said so.
    pub position: Option<Position>,
    /// Why its last stream ended, or what is wrong with the present one; absent when all is well.
    pub last_error: Option<String>,
}

impl<V: Value> Replica<V> {
    /// The record of `key`. Takes no lock; before the first complete snapshot nothing is found.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<V> {
        self.shared.table.load().as_ref()?.get(key)
    }

    /// The record that has this other name ([`Value::aliases`]); of several that claim it, the one of the highest
    /// revision. Takes no lock; a name is never missing while a snapshot takes the place of the map.
    #[must_use]
    pub fn by_alias(&self, alias: &str) -> Option<V> {
        self.shared.table.load().as_ref()?.by_alias(alias)
    }

    /// The map as it is now, absent before the first complete snapshot. A snapshot makes another one; whoever keeps this
    /// one keeps its memory.
    #[must_use]
    pub fn table(&self) -> Option<Arc<Table<V>>> {
        self.shared.table.load_full()
    }

    /// Everything up to this position can be read; absent before the first complete snapshot. Takes no lock.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.shared.position.load().as_deref().copied()
    }

    /// All records, in no order. Records that change meanwhile appear before or after their change.
    ///
    /// For kinds of few records: of a large one, [`Table::bucket`] shows a part at a time.
    #[must_use]
    pub fn entries(&self) -> Vec<V> {
        self.shared.table.load().as_ref().map_or_else(Vec::new, |table| table.iter().collect())
    }

    /// Announces each position once it can be read.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Position>> {
        self.shared.announced.subscribe()
    }

    /// Waits until everything up to `position` can be read. A parent that was away is asked again at once: whoever knows of
    /// this position has it from one that is there. Never ends if that never comes: bound it with a timeout.
    pub async fn wait_for(&self, position: Position) {
        let mut positions = self.subscribe();
        if *positions.borrow() < Some(position) {
            self.shared.wanted.send_replace(());
        }
        // The sender lives in `self.shared`, so the channel cannot be closed here.
        let _ = positions.wait_for(|held| *held >= Some(position)).await;
    }

    /// The rules of the guard in force here, as parents told them last: for who passes the map on.
    #[must_use]
    pub fn guard_rules(&self) -> watch::Receiver<GuardRules> {
        self.shared.rules.subscribe()
    }

    #[must_use]
    pub fn status(&self) -> Status {
        let health = self.shared.health();
        let mut status = health.status.clone();
        status.last_heartbeat_age = health.heard.map(|heard| heard.elapsed());
        drop(health);
        status.position = self.position();
        status.records = self.shared.table.load().as_ref().map_or(0, |table| table.len());
        status
    }
}

impl<V> Replica<V> {
    pub(crate) const fn of(shared: Arc<Shared<V>>) -> Self {
        Self { shared }
    }
}

/// What the follower writes and the readers read.
#[derive(Debug)]
pub(crate) struct Shared<V> {
    /// Absent before the first complete snapshot, so that an empty map and an unknown one differ.
    pub(crate) table: ArcSwapOption<Table<V>>,
    /// What readers may rely on: behind the table for a moment, never ahead of it.
    position: ArcSwapOption<Position>,
    /// The same for those who wait.
    announced: watch::Sender<Option<Position>>,
    /// Tells that somebody waits for a position which is not held yet.
    pub(crate) wanted: watch::Sender<()>,
    /// The rules of the guard that were told last.
    rules: watch::Sender<GuardRules>,
    /// The writer's account of the table. Whoever holds it sees the table between two messages. Readers never take it.
    ledger: Mutex<Ledger>,
    /// What the state file does not have yet. Whoever holds the ledger as well took that first.
    unsaved: Mutex<Unsaved>,
    health: Mutex<Health>,
}

/// The part of the status that the follower itself keeps.
#[derive(Debug, Default)]
pub(crate) struct Health {
    pub(crate) status: Status,
    pub(crate) heard: Option<Instant>,
}

impl<V> Shared<V> {
    pub(crate) fn new() -> Self {
        Self {
            table: ArcSwapOption::empty(),
            position: ArcSwapOption::empty(),
            announced: watch::Sender::new(None),
            wanted: watch::Sender::new(()),
            rules: watch::Sender::new(GuardRules::default()),
            ledger: Mutex::default(),
            unsaved: Mutex::default(),
            health: Mutex::default(),
        }
    }

    /// Tells readers that everything up to `position` is in the table.
    pub(crate) fn announce(&self, position: Position) {
        self.position.store(Some(Arc::new(position)));
        self.announced.send_replace(Some(position));
    }

    pub(crate) fn told(&self, rules: &GuardRules) {
        self.rules.send_if_modified(|told| {
            let other = told != rules;
            told.clone_from(rules);
            other
        });
    }

    pub(crate) fn announcements(&self) -> watch::Receiver<Option<Position>> {
        self.announced.subscribe()
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn unsaved(&self) -> MutexGuard<'_, Unsaved> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
