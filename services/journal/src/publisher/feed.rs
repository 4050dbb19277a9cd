//! Brings what the source says into the base and the views, unless the guard refuses it.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use replica::{Guard, Guarding, Now};
use tenon_proto::replication::v1::GuardRules;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    Inner,
    base::{Base, Before, Change},
    bells::GROUPS,
    ring::Ring,
    view,
};
use crate::{Batch, Position, ReadError, TailError};

/// Changes from before the start that are kept for followers: those of a restarted process need no snapshot.
const PAST_CHANGES: u64 = 4096;
/// How long the past may take to be read.
const PAST: Duration = Duration::from_secs(5);
/// Changes that are made without letting others run. Each may copy a bucket.
const SLICE: usize = 32;
/// The first wait before a source that failed, or that was refused, is looked at again.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// The longest: each look reads everything.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Why the source is not followed on.
enum Stop {
    Failed(ReadError),
    /// It does not lead on from what is held: read it anew.
    Replaced,
    /// The guard does not take what it offers.
    Refused(String),
}

impl From<TailError> for Stop {
    fn from(error: TailError) -> Self {
        match error {
            TailError::Compacted => Self::Replaced,
            TailError::Read(error) => Self::Failed(error),
        }
    }
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Self {
        Self::Failed(error)
    }
}

/// Feeds a publisher until it is shut down; then ends all of its streams.
pub(super) async fn run(inner: Arc<Inner>) {
    let shutdown = inner.shutdown.clone();
    let feeder = Feeder {
        guarding: inner.guard.as_ref().map(|_| Guarding::new(Guard::of(inner.kind))),
        rules: inner.guard.clone(),
        inner: Arc::clone(&inner),
        known: None,
        begun: Instant::now(),
        wait: SHORTEST_WAIT,
        anew: true,
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = feeder.run() => {}
        () = beats(&inner) => {}
        () = rules(&inner) => {}
    }
    inner.end();
}

struct Feeder {
    inner: Arc<Inner>,
    /// Absent: anything is taken.
    guarding: Option<Guarding>,
    rules: Option<watch::Receiver<GuardRules>>,
    /// The rules that were looked at last.
    known: Option<GuardRules>,
    begun: Instant,
    wait: Duration,
    /// The source is to be read anew, and not followed from what is held.
    anew: bool,
}

impl Feeder {
    async fn run(mut self) {
        loop {
            match self.follow().await {
                Stop::Replaced => self.anew = true,
                Stop::Failed(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    self.alarm(format!("{error}: {cause}"));
                    tokio::time::sleep(SHORTEST_WAIT).await;
                }
                Stop::Refused(reason) => {
                    self.alarm(reason);
                    self.anew = true;
                    self.wait_for_a_change().await;
                }
            }
        }
    }

    /// Takes in what the source says, until that cannot go on.
    async fn follow(&mut self) -> Stop {
        if self.anew
            && let Err(stop) = self.read_anew().await
        {
            return stop;
        }
        self.anew = false;
        let Some(from) = *self.inner.head.borrow() else { return Stop::Replaced };
        let mut tail = self.inner.source.tail(from);
        while let Some(batch) = tail.next().await {
            match batch {
                Ok(batch) => {
                    if let Err(refused) = self.check(&batch) {
                        return Stop::Refused(refused);
                    }
                    self.all_well();
                    self.inner.take(batch, false).await;
                }
                Err(error) => return error.into(),
            }
        }
        Stop::Replaced
    }

    /// Takes over all that the source has, as the next changes where they lead there.
    async fn read_anew(&mut self) -> Result<(), Stop> {
        let snapshot = self.inner.source.snapshot().await?;
        let views = Arc::clone(&self.inner.views);
        let fresh = blocking(move || Base::new(snapshot, &*views)).await?;
        let held = self.inner.base().as_ref().map(|base| (base.freeze(), base.records()));
        self.told();
        let now = self.now();
        let records = held.as_ref().map_or(0, |(_, records)| *records);
        if let Some(guarding) = &mut self.guarding {
            let has = |key: &str| fresh.get(key).is_some();
            guarding.snapshot(records, fresh.records(), now, has).map_err(Stop::Refused)?;
        }
        match held {
            Some((held, _)) if fresh.position() < held.position => {
                let (offered, held) = (fresh.position(), held.position);
                return Err(Stop::Refused(format!(
                    "the source is at {offered} now, behind {held}, which was published: that is served on"
                )));
            }
            Some((held, _)) if fresh.position().epoch == held.position.epoch => {
                let (fresh, changes) = blocking(move || {
                    let changes = Base::leads_to(&held, &fresh);
                    (fresh, changes)
                })
                .await?;
                match changes {
                    Some(entries) => {
                        let revision = fresh.position().revision;
                        self.inner.take(Batch { entries, coalesced: true, revision, ..Batch::default() }, true).await;
                    }
                    None => self.inner.replace(fresh).await,
                }
            }
            Some(_) => self.inner.replace(fresh).await,
            None => {
                let past = self.past(fresh.position()).await;
                let fresh = match past {
                    Some(past) => fresh.with_past(past),
                    None => fresh,
                };
                self.inner.replace(fresh).await;
            }
        }
        if let Some(guarding) = &mut self.guarding {
            guarding.replaced();
        }
        self.all_well();
        Ok(())
    }

    /// The last changes that led to `position`, where the source still has them.
    async fn past(&self, position: Position) -> Option<Ring> {
        let from = position.revision.saturating_sub(PAST_CHANGES);
        let mut ring = Ring::new(from);
        let mut reached = from;
        let read = async {
            let mut tail = self.inner.source.tail(Position::new(position.epoch, from));
            while reached < position.revision {
                let batch = tail.next().await?.ok()?;
                for entry in batch.entries.into_iter().filter(|entry| entry.revision <= position.revision) {
                    if !self.inner.views.hides(&entry.key) {
                        let (revision, until) =
                            (entry.revision, if batch.coalesced { batch.revision } else { entry.revision });
                        let several = batch.several.contains(&entry.key);
                        let (key, new) = (entry.key.into(), entry.value);
                        let change = Change { key, revision, before: Before::Unknown, new, several };
                        ring.push(Arc::new(change), until);
                    }
                }
                reached = batch.revision;
            }
            Some(())
        };
        timeout(PAST, read).await.ok()??;
        ring.trim(self.inner.settings);
        Some(ring)
    }

    /// Whether the guard takes a batch.
    fn check(&mut self, batch: &Batch) -> Result<(), String> {
        self.told();
        let now = self.now();
        let Some(guarding) = &mut self.guarding else { return Ok(()) };
        let base = self.inner.base();
        let Some(base) = base.as_ref() else { return Ok(()) };
        if batch.entries.iter().all(|entry| entry.value.is_some()) {
            guarding.held(base.records(), now);
            return Ok(());
        }
        let shown: Vec<_> = batch.entries.iter().filter(|entry| !self.inner.views.hides(&entry.key)).collect();
        let (records, gone) = base.after(&shown);
        guarding.delta(base.records(), records, now, gone.into_iter())
    }

    /// Takes over the latest rules.
    fn told(&mut self) {
        let now = self.now();
        let (Some(guarding), Some(rules)) = (&mut self.guarding, &mut self.rules) else { return };
        let rules = rules.borrow_and_update();
        if self.known.as_ref() != Some(&*rules) {
            self.known = Some(rules.clone());
            guarding.told(rules.clone(), now);
        }
    }

    fn now(&self) -> Now {
        let unix_seconds = i64::try_from(mesh_identity::clock::unix_seconds()).unwrap_or(i64::MAX);
        Now { elapsed: self.begun.elapsed(), unix_seconds }
    }

    fn alarm(&self, alarm: String) {
        let mut alarms = self.inner.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        if alarms.as_ref() != Some(&alarm) {
            tracing::error!(kind = self.inner.kind, %alarm, "the last good state is served on");
        }
        *alarms = Some(alarm);
    }

    fn all_well(&mut self) {
        self.wait = SHORTEST_WAIT;
        let before = self.inner.alarm.lock().unwrap_or_else(PoisonError::into_inner).take();
        if before.is_some() {
            tracing::info!(kind = self.inner.kind, "what the source says is published again");
        }
    }

    /// Waits until the rules or the source are not what they were. The source is not looked at often: it is read whole.
    async fn wait_for_a_change(&mut self) {
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST_WAIT);
        let seen = self.inner.source.head().await.ok();
        let (inner, rules) = (&self.inner, &mut self.rules);
        let changed = async {
            // Since they were looked at.
            let changed = match rules {
                Some(rules) => rules.changed().await.is_ok(),
                None => false,
            };
            if !changed {
                std::future::pending::<()>().await;
            }
        };
        let moved = async {
            loop {
                tokio::time::sleep(wait).await;
                if inner.source.head().await.ok() != seen {
                    return;
                }
            }
        };
        tokio::select! {
            () = changed => {}
            () = moved => {}
        }
    }
}

impl Inner {
    /// Makes the changes of a batch, in the base first and then in each view. Of what was `compared` it is not known what came
    /// and went: followers say what they hold and are sent what differs.
    async fn take(&self, batch: Batch, compared: bool) {
        let _alone = self.feeding.lock().await;
        let Some(Position { epoch, revision: held }) = *self.head.borrow() else { return };
        let mut changes = Vec::with_capacity(batch.entries.len());
        let (coalesced, several) = (batch.coalesced, batch.several);
        let mut entries =
            batch.entries.into_iter().filter(|entry| entry.revision > held && !self.views.hides(&entry.key)).peekable();
        while entries.peek().is_some() {
            if let Some(base) = self.base().as_mut() {
                let applied = entries.by_ref().take(SLICE).filter_map(|entry| {
                    let several = several.contains(&entry.key);
                    base.apply(entry, several, &*self.views)
                });
                changes.extend(applied);
            }
            tokio::task::yield_now().await;
        }
        if let Some(base) = self.base().as_mut() {
            let mut ring = base.ring().lock().unwrap_or_else(PoisonError::into_inner);
            if compared {
                *ring = Ring::new(batch.revision);
            } else {
                for change in &changes {
                    ring.push(Arc::clone(change), if coalesced { batch.revision } else { change.revision });
                }
                ring.trim(self.settings);
            }
            drop(ring);
            base.reached(batch.revision);
        }
        let made = view::Batch { changes: changes.into(), revision: batch.revision, compared };
        let views: Vec<_> = self.active().values().map(|active| Arc::clone(&active.view)).collect();
        for view in views {
            view.apply(&made, &*self.views);
            view.bells.ring().await;
            tokio::task::yield_now().await;
        }
        self.head.send_replace(Some(Position::new(epoch, batch.revision)));
    }

    /// Begins another history: all followers start again, and are sent what differs.
    async fn replace(&self, fresh: Base) {
        let _alone = self.feeding.lock().await;
        let position = fresh.position();
        let old = self.base().replace(fresh);
        // A million records take a while to drop.
        drop(tokio::task::spawn_blocking(move || drop(old)));
        self.close_views();
        self.head.send_replace(Some(position));
    }
}

/// Makes heartbeats due, and drops views that nobody follows any more.
async fn beats(inner: &Inner) {
    let groups = u32::try_from(GROUPS).unwrap_or(1);
    let mut ticks = tokio::time::interval((inner.settings.heartbeat / groups).max(Duration::from_millis(1)));
    let mut sweep = tokio::time::interval(inner.settings.idle_view.max(Duration::from_millis(10)) / 4);
    let mut group = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let views: Vec<_> = inner.active().values().map(|active| Arc::clone(&active.view)).collect();
                views.iter().for_each(|view| view.bells.beat(group));
                group = (group + 1) % GROUPS;
            }
            _ = sweep.tick() => inner.sweep(),
        }
    }
}

/// Tells followers the guard's rules, and each change of them.
async fn rules(inner: &Inner) {
    let Some(mut guard): Option<watch::Receiver<GuardRules>> = inner.guard.clone() else {
        return std::future::pending().await;
    };
    loop {
        if guard.changed().await.is_err() {
            return std::future::pending().await;
        }
        let rules = guard.borrow_and_update().clone();
        if inner.rules.set(rules) {
            inner.ring_all();
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ReadError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ReadError(error.into()))
}
