//! What a process shows of its publishers and stores. `docs/telemetry.md` lists it, and a test compares.

mod observed;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_telemetry::{Observed, Page};
use replica::Status;

use crate::{Journal, Publisher};
pub use observed::Failure;
use observed::{ObservedJournal, Writes};

/// The publishers of a process.
#[derive(Clone, Debug)]
pub struct Publishers(pub Vec<Publisher>);

/// How a publisher stands, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Absent before the source was first read.
    pub revision: Option<u64>,
    pub records: u64,
    /// Connected ones.
    pub followers: u64,
    /// Those of them whose last word was a refusal.
    pub refusing: u64,
    /// Refusals since the start.
    pub nacks: u64,
    /// Revisions that the follower which is furthest behind lacks, of those that have acknowledged anything.
    pub lag: u64,
    /// Whole or partial maps that were begun to be sent, since the start.
    pub snapshots: u64,
    /// Changes that are kept for followers that are behind, and their bytes.
    pub ring: (u64, u64),
    pub views: u64,
    /// Things that an operator should look at.
    pub alarms: u64,
}

impl Observed for Publishers {
    fn show(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(|publisher| ([("kind", publisher.kind())], publisher.gauges())).collect();
        let each = |of: fn(&Gauges) -> u64| all.iter().map(move |(kind, gauges)| (*kind, of(gauges)));
        let revisions = all.iter().filter_map(|(kind, gauges)| Some((*kind, gauges.revision?)));
        page.gauge("tenon_publisher_revision", "Revision up to which followers are told", revisions)?;
        page.gauge("tenon_publisher_records", "Records that are published", each(|gauges| gauges.records))?;
        page.gauge("tenon_publisher_followers", "Connected followers", each(|gauges| gauges.followers))?;
        let refusing = each(|gauges| gauges.refusing);
        page.gauge(
            "tenon_publisher_followers_refusing",
            "Connected followers whose last word was a refusal",
            refusing,
        )?;
        page.counter("tenon_publisher_nacks", "Updates that followers refused", each(|gauges| gauges.nacks))?;
        let lag = each(|gauges| gauges.lag);
        page.gauge("tenon_publisher_lag_revisions", "Revisions that the slowest connected follower lacks", lag)?;
        let snapshots = each(|gauges| gauges.snapshots);
        page.counter("tenon_publisher_snapshots", "Snapshots that were begun to be sent", snapshots)?;
        let changes = each(|gauges| gauges.ring.0);
        page.gauge("tenon_publisher_ring_changes", "Changes that are kept for followers that are behind", changes)?;
        let bytes = each(|gauges| gauges.ring.1);
        page.gauge("tenon_publisher_ring_bytes", "Bytes of the changes that are kept", bytes)?;
        page.gauge("tenon_publisher_views", "Views that are held", each(|gauges| gauges.views))?;
        let alarms = each(|gauges| gauges.alarms);
        page.gauge("tenon_publisher_alarms", "Things that an operator should look at", alarms)
    }

    fn missing(&self) -> Vec<String> {
        let unread = self.0.iter().filter(|publisher| publisher.gauges().revision.is_none());
        unread.map(|publisher| format!("nothing is known yet of the kind {}", publisher.kind())).collect()
    }
}

/// The stores of a process: what is written to them is timed, and their files are measured. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Stores(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// By kind, in the order in which they were opened.
    writes: Vec<(&'static str, Arc<Writes>)>,
    /// Each with a name for people.
    files: Vec<(&'static str, PathBuf)>,
}

impl Stores {
    /// The same journal, its writes timed as those of `kind`.
    #[must_use]
    pub fn timed(&self, kind: &'static str, journal: Arc<dyn Journal>) -> Arc<dyn Journal> {
        let mut kept = self.kept();
        let known = kept.writes.iter().find(|(name, _)| *name == kind).map(|(_, writes)| Arc::clone(writes));
        let writes = known.unwrap_or_else(|| {
            let writes = Arc::new(Writes::default());
            kept.writes.push((kind, Arc::clone(&writes)));
            writes
        });
        Arc::new(ObservedJournal { journal, writes })
    }

    /// A file of which the length is shown, as `store`.
    pub fn file(&self, store: &'static str, file: impl Into<PathBuf>) {
        self.kept().files.push((store, file.into()));
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observed for Stores {
    fn show(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let (writes, files) = {
            let kept = self.kept();
            (kept.writes.clone(), kept.files.clone())
        };
        let took = writes.iter().map(|(kind, writes)| ([("kind", *kind)], writes.took.counts()));
        page.histogram("tenon_store_write_duration_seconds", "Time until a write was durable", took)?;
        let failed = writes.iter().flat_map(|(kind, writes)| {
            Failure::ALL.map(|failure| ([("kind", *kind), ("why", failure.as_str())], writes.failed(failure)))
        });
        page.counter("tenon_store_write_failures", "Writes that were not made, or not confirmed, by why", failed)?;
        let sizes = files.iter().filter_map(|(store, file)| Some(([("store", *store)], file.metadata().ok()?.len())));
        page.gauge("tenon_store_size_bytes", "Length of the file of an embedded store", sizes)
    }
}

/// What a process holds of others' state: each kind, and how it stands now.
pub struct Replicas(pub Vec<(&'static str, ReplicaStatus)>);

/// Asked at each scrape.
pub type ReplicaStatus = Box<dyn Fn() -> Status + Send + Sync>;

impl Observed for Replicas {
    /// The names are those of the sidecar's replicas.
    fn show(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(|(kind, status)| ([("kind", *kind)], status())).collect();
        let revision = |status: &Status| status.position.map_or(0, |position| position.revision);
        let revisions = all.iter().map(|(kind, status)| (*kind, revision(status)));
        page.gauge("tenon_replica_revision", "Revision reached", revisions)?;
        let connected = all.iter().map(|(kind, status)| (*kind, u64::from(status.connected)));
        page.gauge("tenon_replica_connected", "1 while a source is connected", connected)?;
        let ages = all.iter().filter_map(|(kind, status)| Some((*kind, status.last_heartbeat_age?.as_secs_f64())));
        page.gauge("tenon_replica_age_seconds", "Seconds since a source was last heard", ages)?;
        let nacks = all.iter().map(|(kind, status)| (*kind, status.nacks));
        page.counter("tenon_replica_nacks", "Updates refused", nacks)
    }
}

#[cfg(test)]
mod tests;
