//! A bounded cache of a map that is too large to hold (DESIGN §5, on-demand mode).
//!
//! One task owns it: it follows every parent's stream, which tells what changes, asks all parents at once for what is
//! missing, and is the only one who writes. Readers find what is held without a lock and without that task.
//!
//! What is held stays in use while all parents are dead. After changes were missed it is served on, and looked at again in
//! the background; only what was known to be nobody's is then forgotten.

mod asking;
mod coverage;
mod machine;
mod store;
mod stream;
mod warm;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use self::{
    asking::{Ask, Keeper},
    machine::Machine,
    store::Store,
};
use crate::{Parent, Position, Value};

/// Questions that may wait for the task that asks. When there are more, the answer is "not to be had".
const QUESTIONS: usize = 65_536;

/// How long an answer is waited for: what a parent is given to answer, and a moment in the queue before it.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What to keep a cache of, and from whom.
#[derive(Debug)]
pub struct FollowOnDemand<P = Channel> {
    /// The replicated kind, of `tenon_proto::kind`.
    pub kind: &'static str,
    /// Name of this process for operators: "media/us-east".
    pub instance: String,
    /// The parents, one or two. A channel should connect lazily and reconnect by itself.
    pub parents: Vec<P>,
    /// Where what is held is kept between runs; absent: nowhere.
    pub state_dir: Option<PathBuf>,
    /// The most that it may take of memory, in bytes.
    pub capacity: u64,
}

/// A name of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// Its key.
    Key(Box<str>),
    /// Another name of it, [`Value::aliases`].
    Alias(Box<str>),
}

impl Name {
    /// The name itself.
    #[must_use]
    pub const fn as_str(&self) -> &str {
        match self {
            Self::Key(name) | Self::Alias(name) => name,
        }
    }
}

/// What a cache says to a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<V> {
    /// This record.
    Found(Cached<V>),
    /// That there is no such record.
    Nobody,
    /// Nothing: it has to be asked for; or it was, and is not to be had.
    NotHeld,
}

/// A record that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached<V> {
    /// The record.
    pub value: V,
    /// Where changes were missed since, and it was not looked at again yet: when it was right. `None`: it is as new as
    /// [`OnDemand::position`].
    pub as_of: Option<Position>,
}

/// How a cache is doing, for admin pages and metrics.
#[derive(Clone, Debug, Default)]
pub struct CacheStatus {
    /// What the streams have reached; absent before the first.
    pub position: Option<Position>,
    /// Of each parent, in their order: whether it is heard on its present stream.
    pub connected: Vec<bool>,
    /// Time since any parent's last message; absent before the first.
    pub last_heartbeat_age: Option<Duration>,
    /// Why the last stream ended, or what was refused last; absent when all is well.
    pub last_error: Option<String>,
    /// Why what is held could not be written to disk, while that lasts.
    pub state_error: Option<String>,
    /// Records that readers find.
    pub records: usize,
    /// Names of which is held that nobody has them.
    pub absent: usize,
    /// What all of that takes of memory, as it is counted.
    pub bytes: u64,
    /// Look-ups that were answered from memory, "nobody" too.
    pub hits: u64,
    /// Look-ups that were not.
    pub misses: u64,
    /// Names that were asked for, by what came of it.
    pub fetched: Fetched,
    /// Records that had to go for others.
    pub evicted: u64,
    /// Times that changes were missed.
    pub gaps: u64,
    /// Records that changes were missed for, and that were not looked at again yet.
    pub outdated: usize,
    /// Refusals sent to a parent since the start.
    pub nacks: u64,
    /// Changes and answers that a guard refused.
    pub guard_refusals: u64,
}

/// Names that were asked for, by what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// There was a record.
    pub found: u64,
    /// There was none.
    pub nobody: u64,
    /// No parent gave a good answer.
    pub failed: u64,
}

/// A cache that fills itself. Cheap to clone; all clones are the same cache.
#[derive(Debug)]
pub struct OnDemand<V> {
    shared: Arc<Shared<V>>,
    asks: mpsc::Sender<Ask<V>>,
}

impl<V> Clone for OnDemand<V> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), asks: self.asks.clone() }
    }
}

impl<P: Parent> FollowOnDemand<P> {
    /// Loads what the last run left (before it returns), then follows until `shutdown`; the task ends when what is held
    /// is on disk.
    ///
    /// Must be called within a tokio runtime, which then runs the cache's task.
    pub fn start<V: Value>(self, shutdown: CancellationToken) -> (OnDemand<V>, JoinHandle<()>) {
        let mut machine = Machine::new(self.kind, self.parents.len(), self.capacity);
        let path = self.state_dir.as_ref().map(|dir| warm::path(dir, self.kind));
        if let Some(path) = &path {
            match warm::load(path, self.kind) {
                Ok(Some(state)) => machine.restore(state),
                Ok(None) => {}
                Err(error) => {
                    let path = path.display();
                    tracing::warn!(kind = self.kind, %path, %error, "what the cache held is ignored and fetched again");
                }
            }
        }
        let shared = Arc::new(Shared::new(Arc::clone(machine.store()), self.parents.len()));
        shared.announce(&machine);
        let (asks, questions) = mpsc::channel(QUESTIONS);
        let keeper = Keeper::new(self.kind, self.instance, self.parents, Arc::clone(&shared), machine, path);
        let task = tokio::spawn(keeper.run(questions, shutdown));
        (OnDemand { shared, asks }, task)
    }
}

impl<V: Value> OnDemand<V> {
    /// What is held of this key. Takes no lock and never waits.
    #[must_use]
    pub fn get(&self, key: &str) -> Answer<V> {
        self.shared.store.get(key)
    }

    /// What is held of this other name. Takes no lock and never waits.
    #[must_use]
    pub fn by_alias(&self, alias: &str) -> Answer<V> {
        self.shared.store.by_alias(alias)
    }

    /// What the streams have reached; absent before the first. Takes no lock.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.shared.position.load().as_deref().copied()
    }

    /// Asks the parents for names that are not held, all at once, and comes back with an answer to each in their order.
    /// Whoever asks for a name that is on its way waits for that. Bounded by a second and a half.
    ///
    /// An answer is never older than what the streams had reached. [`Answer::NotHeld`] means that no parent gave a good
    /// one, in the last second or now.
    pub async fn resolve(&self, names: Vec<Name>) -> Vec<Answer<V>> {
        let nothing = vec![Answer::NotHeld; names.len()];
        let (reply, answers) = oneshot::channel();
        if self.asks.try_send(Ask { names, reply }).is_err() {
            return nothing;
        }
        match tokio::time::timeout(PATIENCE, answers).await {
            Ok(Ok(answers)) => answers,
            // Many others wait for parents that do not answer.
            Err(_) | Ok(Err(_)) => nothing,
        }
    }

    /// Waits until the streams have reached `position`. Never ends if that never comes: bound it with a timeout.
    pub async fn wait_for(&self, position: Position) {
        let mut positions = self.shared.announced.subscribe();
        if positions.borrow().0 < Some(position) {
            self.shared.wanted.send_replace(());
        }
        // The sender lives in `self.shared`, so the channel cannot be closed here.
        let _ = positions.wait_for(|(reached, _)| *reached >= Some(position)).await;
    }

    /// Moves whenever something that readers see may have changed: by the stream, or because it was looked at again.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<(Option<Position>, u64)> {
        self.shared.announced.subscribe()
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> CacheStatus {
        let shared = &self.shared;
        let health = shared.health();
        let mut status = health.status.clone();
        status.last_heartbeat_age = health.heard.map(|heard| heard.elapsed());
        drop(health);
        status.position = self.position();
        status.records = shared.store.len();
        status.absent = shared.store.absent();
        status.bytes = shared.store.bytes.load(Relaxed);
        status.hits = shared.store.hits.load(Relaxed);
        status.misses = shared.store.misses.load(Relaxed);
        status
    }
}

/// What the cache's task writes and readers read.
#[derive(Debug)]
struct Shared<V> {
    store: Arc<Store<V>>,
    position: ArcSwapOption<Position>,
    /// The same, and a count of other changes, for those who wait.
    announced: watch::Sender<(Option<Position>, u64)>,
    /// Tells that somebody waits for a position which is not reached yet.
    wanted: watch::Sender<()>,
    changes: AtomicU64,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    status: CacheStatus,
    heard: Option<Instant>,
}

impl<V: Value> Shared<V> {
    fn new(store: Arc<Store<V>>, parents: usize) -> Self {
        let status = CacheStatus { connected: vec![false; parents], ..CacheStatus::default() };
        Self {
            store,
            position: ArcSwapOption::empty(),
            announced: watch::Sender::new((None, 0)),
            wanted: watch::Sender::new(()),
            changes: AtomicU64::new(0),
            health: Mutex::new(Health { status, heard: None }),
        }
    }

    /// Tells readers what can be read now.
    fn announce(&self, machine: &Machine<V>) {
        let reached = machine.reached();
        if self.position.load().as_deref().copied() != reached {
            self.position.store(reached.map(Arc::new));
        }
        let change = self.changes.fetch_add(1, Relaxed) + 1;
        self.announced.send_replace((reached, change));
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
