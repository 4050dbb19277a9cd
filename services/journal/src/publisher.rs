//! Turns a journal into views and serves each view to its followers.

mod follower;
mod followers;
mod view;

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use mesh_identity::Peer;
use tenon_proto::replication::v1::{FollowRequest, GuardRules, KindStatus, Start};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{Entry, Position, ReadError, Source, TailError};
use followers::Followers;
use view::View;

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
    /// Changes that a view keeps for followers that are behind. Who is further behind gets a snapshot.
    pub ring_changes: usize,
    /// Bytes of encoded changes that a view keeps at most; one change is always kept.
    pub ring_bytes: usize,
    /// Snapshots that are sent at the same time.
    pub snapshots: usize,
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
    /// Views with followers, and those that had some lately.
    active: Mutex<HashMap<ViewName, Active>>,
    /// Held while changes go into the views, so that none is missed by a view that is being added.
    feeding: tokio::sync::Mutex<()>,
    /// Up to where the views have been fed; absent before the journal was first asked.
    head: watch::Sender<Option<Position>>,
    /// Counts the times that the implementor of [`Views`] changed its mind.
    refreshed: watch::Sender<u64>,
    followers: Arc<Followers>,
    snapshots: Arc<Semaphore>,
    shutdown: CancellationToken,
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
        let inner = Arc::new(Inner {
            kind,
            source: Arc::new(source),
            views,
            settings,
            guard,
            active: Mutex::default(),
            feeding: tokio::sync::Mutex::default(),
            head: watch::Sender::new(None),
            refreshed: watch::Sender::new(0),
            followers: Arc::default(),
            snapshots: Arc::new(Semaphore::new(settings.snapshots)),
            shutdown,
        });
        tokio::spawn(Arc::clone(&inner).run());
        Self { inner }
    }

    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.inner.kind
    }

    /// Asks [`Views::view`] again for every follower; who has another view now, or none, loses its stream and reconnects.
    pub fn refresh_views(&self) {
        self.inner.refreshed.send_modify(|count| *count += 1);
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
        // Before the view is asked for, so that no change of it is missed.
        let refreshed = self.inner.refreshed.subscribe();
        let name = self.inner.views.view(&peer)?;
        let view = tokio::select! {
            view = self.inner.view(name) => view,
            () = self.inner.shutdown.cancelled() => return Err(shutting_down()),
        };
        let view = view.map_err(|error| {
            tracing::warn!(kind = self.inner.kind, %error, "a view cannot be made");
            Status::unavailable("the store cannot be read now: try again")
        })?;
        Ok(follower::serve(Arc::clone(&self.inner), view, peer, start, refreshed, Box::pin(requests)))
    }

    /// How far each connected instance has come: the position that it has acknowledged, by its SPIFFE ID and the name
    /// that it gave itself. Who is connected twice, as after a break that this side has not noticed, is as far as the
    /// better of the two. Who is not connected, or holds nothing yet, is not in it.
    #[must_use]
    pub fn acknowledged(&self) -> HashMap<(String, String), Position> {
        self.inner.followers.acknowledged()
    }

    /// Who follows and how far each has come.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn status(&self) -> Result<KindStatus, ReadError> {
        Ok(KindStatus {
            kind: self.inner.kind.to_owned(),
            head: self.inner.source.head().await?.map(Into::into),
            records: self.inner.source.snapshot().await?.records.len() as u64,
            followers: self.inner.followers.list(),
            alarms: Vec::new(),
            guard_rules: None,
        })
    }
}

impl Inner {
    /// The view of that name, made at its first follower.
    async fn view(&self, name: ViewName) -> Result<Arc<View>, TailError> {
        if let Some(view) = self.present(&name) {
            return Ok(view);
        }
        // What the feeder has passed before it first looked is in the snapshot.
        let _ = self.head.subscribe().wait_for(Option::is_some).await;
        let snapshot = self.source.snapshot().await?;
        let position = snapshot.position;
        let (views, settings, of) = (Arc::clone(&self.views), self.settings, Arc::clone(&name));
        let made = tokio::task::spawn_blocking(move || View::new(of, snapshot, &*views, settings)).await;
        let Ok(view) = made else { return Err(TailError::Compacted) };

        let _paused = self.feeding.lock().await;
        if let Some(view) = self.present(&name) {
            return Ok(view); // Another follower was faster.
        }
        let fed = self.head.borrow().unwrap_or(position);
        let mut tail = self.source.tail(position);
        while view.revision() < fed.revision {
            let batch = tail.next().await.unwrap_or(Err(TailError::Compacted))?;
            view.apply(&batch.entries, &*self.views);
        }
        let view = Arc::new(view);
        self.active().insert(name, Active { view: Arc::clone(&view), idle: None });
        Ok(view)
    }

    fn present(&self, name: &ViewName) -> Option<Arc<View>> {
        self.active().get_mut(name).map(|active| {
            active.idle = None;
            Arc::clone(&active.view)
        })
    }

    fn active(&self) -> MutexGuard<'_, HashMap<ViewName, Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Feeds the views until the shutdown, through whatever happens to the store.
    async fn run(self: Arc<Self>) {
        let shutdown = self.shutdown.clone();
        let feed = async {
            loop {
                let error = self.feed().await;
                if let TailError::Read(error) = &error {
                    tracing::warn!(kind = self.kind, error = %error.0, "the store cannot be read: followers keep what they have");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                } else {
                    // Another history, or further than the log goes back: all start again from a snapshot.
                    let _paused = self.feeding.lock().await;
                    for (_, active) in self.active().drain() {
                        active.view.close();
                    }
                    self.head.send_replace(None);
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = feed => {}
        }
        for (_, active) in self.active().drain() {
            active.view.close();
        }
    }

    async fn feed(&self) -> TailError {
        let known = *self.head.borrow();
        let from = match known {
            Some(position) => position,
            None => match self.source.head().await {
                Ok(position) => position.unwrap_or_default(),
                Err(error) => return error.into(),
            },
        };
        self.head.send_replace(Some(from));
        let mut tail = self.source.tail(from);
        let mut sweep = tokio::time::interval(self.settings.idle_view.max(Duration::from_millis(10)) / 4);
        loop {
            tokio::select! {
                batch = tail.next() => match batch.unwrap_or(Err(TailError::Compacted)) {
                    Ok(batch) => self.take(from.epoch, &batch.entries).await,
                    Err(error) => return error,
                },
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    async fn take(&self, epoch: u64, entries: &[Entry]) {
        let _alone = self.feeding.lock().await;
        let views: Vec<_> = self.active().values().map(|active| Arc::clone(&active.view)).collect();
        for view in views {
            view.apply(entries, &*self.views);
            tokio::task::yield_now().await;
        }
        if let Some(last) = entries.last() {
            self.head.send_replace(Some(Position::new(epoch, last.revision)));
        }
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
}

fn shutting_down() -> Status {
    Status::unavailable("this server is shutting down")
}
