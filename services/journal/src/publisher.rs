//! Turns a journal into views and serves each view to its followers.

mod base;
mod bells;
mod feed;
mod fetch;
mod follower;
mod followers;
mod frozen;
mod gauges;
mod message;
mod parked;
mod ring;
mod rules;
mod view;

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use mesh_identity::Peer;
use tenon_proto::replication::v1::{FollowRequest, GuardRules, KindStatus, Mode, Start};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{Position, Source};
use base::Base;
use followers::Followers;
use frozen::Frozen;
use rules::Rules;
use view::View;

pub(crate) use message::FRAME;

/// How long a follower waits for the source to be read for the first time.
const PATIENCE: Duration = Duration::from_secs(2);
/// A view of so few records is made where it is wanted.
const FEW_RECORDS: usize = 256;

/// Encoded `FollowResponse` messages, as long as the follower is served.
pub type FollowStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Names what a follower may see: followers of one view share everything. What it shows of a record must not change under
/// one name.
pub type ViewName = Arc<str>;

/// Decides who sees what of one kind.
pub trait Views: Send + Sync + 'static {
    /// The view of `peer`.
    ///
    /// # Errors
    /// The status that ends the stream: this peer may not follow this kind.
    fn view(&self, peer: &Peer) -> Result<ViewName, Status>;

    /// What `view` shows of a record; absent: nothing, as if there were none.
    fn project(&self, view: &ViewName, key: &str, value: &Bytes) -> Option<Bytes>;

    /// Whether a key is the store's own: no view shows it, and it is not counted.
    fn hides(&self, _key: &str) -> bool {
        false
    }

    /// Other names of a record, by which it can be fetched. The same for all views.
    fn aliases<'v>(&self, _value: &'v [u8]) -> Vec<&'v str> {
        Vec::new()
    }
}

/// One view of all records for everyone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Everything;

impl Views for Everything {
    fn view(&self, _: &Peer) -> Result<ViewName, Status> {
        Ok("".into())
    }

    fn project(&self, _: &ViewName, _: &str, value: &Bytes) -> Option<Bytes> {
        Some(value.clone())
    }
}

/// Bounds of a publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Changes that are kept for followers that are behind. Who is further behind gets a snapshot.
    pub ring_changes: usize,
    /// Bytes that those changes keep at most; one change is always kept.
    pub ring_bytes: usize,
    /// Snapshots that are sent at the same time.
    pub snapshots: usize,
    /// How long a follower may read nothing of its snapshot: then it loses its turn, and its stream.
    pub stalled: Duration,
    /// Time between two heartbeats. Followers take 3.5 s of silence for death.
    pub heartbeat: Duration,
    /// How long a view outlives its last follower.
    pub idle_view: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ring_changes: 65_536,
            ring_bytes: 64 << 20,
            snapshots: 4,
            stalled: Duration::from_secs(10),
            heartbeat: Duration::from_secs(1),
            idle_view: Duration::from_secs(60),
        }
    }
}

/// The publishing side of one kind. Cheap to clone; all clones are the same publisher.
#[derive(Clone)]
pub struct Publisher {
    inner: Arc<Inner>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("kind", &self.inner.kind).finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    kind: &'static str,
    source: Arc<dyn Source>,
    views: Arc<dyn Views>,
    settings: Settings,
    /// What the operator allows; absent: anything.
    guard: Option<watch::Receiver<GuardRules>>,
    /// The records; absent before the source was first read.
    base: Mutex<Option<Base>>,
    /// Views with followers, and those that had some lately.
    active: Mutex<HashMap<ViewName, Active>>,
    /// Held while changes go into the base and the views: who holds it sees them at one position.
    feeding: tokio::sync::Mutex<()>,
    /// Held while other names are indexed.
    indexing: tokio::sync::Mutex<()>,
    /// Up to where base and views have been fed; absent before the source was first read.
    head: watch::Sender<Option<Position>>,
    /// Counts the times that the implementor of [`Views`] changed its mind.
    refreshed: AtomicU64,
    /// The guard's rules for followers.
    rules: Rules,
    /// What an operator should look at, while it lasts.
    alarm: Mutex<Option<String>>,
    followers: Arc<Followers>,
    snapshots: Arc<Semaphore>,
    /// Counts the turns at them.
    snapshots_begun: AtomicU64,
    shutdown: CancellationToken,
    /// Whether all streams end now.
    ended: AtomicBool,
}

struct Active {
    view: Arc<View>,
    /// Since when nobody follows it.
    idle: Option<Instant>,
}

impl Publisher {
    /// Publishes `source` (an `Arc<dyn Journal>`, or a [`crate::RelaySource`]) as `kind` until `shutdown`, with the usual
    /// bounds and without a guard. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(kind: &'static str, source: impl Source, views: Arc<dyn Views>, shutdown: CancellationToken) -> Self {
        Self::start_with(kind, source, views, Settings::default(), None, shutdown)
    }

    /// As [`Publisher::start`], refusing what breaks `guard`. Followers are told the rules, and each change of them.
    #[must_use]
    pub fn start_guarded(
        kind: &'static str,
        source: impl Source,
        views: Arc<dyn Views>,
        guard: watch::Receiver<GuardRules>,
        shutdown: CancellationToken,
    ) -> Self {
        Self::start_with(kind, source, views, Settings::default(), Some(guard), shutdown)
    }

    /// As [`Publisher::start`] or [`Publisher::start_guarded`], with other bounds.
    #[must_use]
    pub fn start_with(
        kind: &'static str,
        source: impl Source,
        views: Arc<dyn Views>,
        settings: Settings,
        guard: Option<watch::Receiver<GuardRules>>,
        shutdown: CancellationToken,
    ) -> Self {
        let rules = Rules::default();
        if let Some(guard) = &guard {
            rules.set(guard.borrow().clone());
        }
        let inner = Arc::new(Inner {
            kind,
            source: Arc::new(source),
            views,
            settings,
            guard,
            base: Mutex::default(),
            active: Mutex::default(),
            feeding: tokio::sync::Mutex::default(),
            indexing: tokio::sync::Mutex::default(),
            head: watch::Sender::new(None),
            refreshed: AtomicU64::new(0),
            rules,
            alarm: Mutex::default(),
            followers: Arc::default(),
            snapshots: Arc::new(Semaphore::new(settings.snapshots)),
            snapshots_begun: AtomicU64::new(0),
            shutdown,
            ended: AtomicBool::new(false),
        });
        tokio::spawn(feed::run(Arc::clone(&inner)));
        Self { inner }
    }

    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.inner.kind
    }

    /// Asks [`Views::view`] again for every follower; who has another view now, or none, loses its stream and reconnects.
    pub fn refresh_views(&self) {
        self.inner.refreshed.fetch_add(1, Ordering::AcqRel);
        self.inner.ring_all();
    }

    /// Serves one follower. `requests` are what it sends after `start`.
    ///
    /// # Errors
    /// The status to end the stream with: the peer may not follow this kind, or its view cannot be made.
    pub async fn follow(
        &self,
        peer: Peer,
        start: Start,
        requests: impl Stream<Item = Result<FollowRequest, Status>> + Send + 'static,
    ) -> Result<FollowStream, Status> {
        let framed = self.follow_framed(peer, start, requests).await?;
        Ok(Box::pin(framed.map(|message| message.map(|message| message.slice(FRAME..)))))
    }

    /// As [`Publisher::follow`], each message with what gRPC puts before it.
    pub(crate) async fn follow_framed(
        &self,
        peer: Peer,
        start: Start,
        requests: impl Stream<Item = Result<FollowRequest, Status>> + Send + 'static,
    ) -> Result<FollowStream, Status> {
        if start.mode() == Mode::Unspecified {
            return Err(Status::invalid_argument("a follower says whether it holds the full map or asks on demand"));
        }
        // Before the view is asked for, so that no change of it is missed.
        let refreshed = self.inner.refreshed.load(Ordering::Acquire);
        let name = self.inner.views.view(&peer)?;
        let view = tokio::select! {
            view = self.inner.view(name) => view?,
            () = self.inner.shutdown.cancelled() => return Err(shutting_down()),
        };
        Ok(follower::serve(Arc::clone(&self.inner), view, peer, start, refreshed, Box::pin(requests)))
    }

    /// Whether something is wrong that an operator should look at: a revision that the guard refuses, a source that cannot
    /// be read. The last good state is served on meanwhile.
    #[must_use]
    pub fn alarm(&self) -> Option<String> {
        self.inner.alarm.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Comes back when followers are about to be told of everything up to `position`.
    pub async fn published(&self, position: Position) {
        let mut head = self.inner.head.subscribe();
        // The sender lives as long as this does.
        let _always = head.wait_for(|head| head.is_some_and(|head| head >= position)).await;
    }

    /// How far each connected instance has come: the position that it has acknowledged, by its SPIFFE ID and the name
    /// that it gave itself. Who is connected twice, as after a break that this side has not noticed, is as far as the
    /// better of the two. Who is not connected, or holds nothing yet, is not in it.
    #[must_use]
    pub fn acknowledged(&self) -> HashMap<(String, String), Position> {
        self.inner.followers.acknowledged()
    }

    /// Who follows and how far each has come; also who refused something lately and is gone.
    #[must_use]
    pub fn status(&self) -> KindStatus {
        let of_base = self.inner.base().as_ref().map(|base| (base.position(), base.records()));
        KindStatus {
            kind: self.inner.kind.to_owned(),
            head: of_base.map(|(position, _)| position.into()),
            records: of_base.map_or(0, |(_, records)| records),
            followers: self.inner.followers.list(),
            alarms: self.alarm().into_iter().chain(self.inner.source.alarms()).collect(),
            guard_rules: self.inner.rules.get(),
        }
    }
}

impl Inner {
    /// The view of that name, made at its first follower.
    async fn view(self: &Arc<Self>, name: ViewName) -> Result<Arc<View>, Status> {
        let mut head = self.head.subscribe();
        if timeout(PATIENCE, head.wait_for(Option::is_some)).await.is_err() {
            return Err(Status::unavailable("nothing can be served here yet: try again"));
        }
        loop {
            if let Some(view) = self.present(&name) {
                view.ready().await;
                return Ok(view);
            }
            let _paused = self.feeding.lock().await;
            if self.present(&name).is_some() {
                continue; // Another follower was faster.
            }
            let (frozen, ring) = match self.base().as_ref() {
                Some(base) => (base.freeze(), Arc::clone(base.ring())),
                None => return Err(Status::unavailable("nothing can be served here yet: try again")),
            };
            let view = Arc::new(View::new(Arc::clone(&name), frozen.position, ring));
            self.active().insert(Arc::clone(&name), Active { view: Arc::clone(&view), idle: None });
            let views = Arc::clone(&self.views);
            if frozen.records() <= FEW_RECORDS {
                view.build(&frozen, &*views);
            } else {
                // It is made also when this follower goes away: others may want it.
                drop(tokio::task::spawn_blocking(move || view.build(&frozen, &*views)));
            }
        }
    }

    fn present(&self, name: &ViewName) -> Option<Arc<View>> {
        self.active().get_mut(name).map(|active| {
            active.idle = None;
            Arc::clone(&active.view)
        })
    }

    /// A snapshot of `view` at its head. None when there is nothing to be had any more.
    async fn freeze(&self, view: &View) -> Option<Arc<Frozen>> {
        let _paused = self.feeding.lock().await;
        if view.is_closed() {
            return None;
        }
        let base = self.base().as_ref().map(Base::freeze)?;
        view.freeze(base)
    }

    /// Drops views that nobody has followed for a while.
    fn sweep(&self) {
        let now = Instant::now();
        self.active().retain(|_, active| {
            // The map's own reference is the only one, and new ones are made under its lock.
            if Arc::strong_count(&active.view) > 1 {
                active.idle = None;
                return true;
            }
            now.duration_since(*active.idle.get_or_insert(now)) < self.settings.idle_view
        });
    }

    fn ring_all(&self) {
        self.active().values().for_each(|active| active.view.bells.ring_now());
    }

    fn close_views(&self) {
        for (_, active) in self.active().drain() {
            active.view.close();
            active.view.bells.ring_now();
        }
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.close_views();
    }

    fn base(&self) -> MutexGuard<'_, Option<Base>> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self) -> MutexGuard<'_, HashMap<ViewName, Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shutting_down() -> Status {
    Status::unavailable("this server is shutting down")
}
