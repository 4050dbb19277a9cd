//! Which instances are gone: those that left, those that fell silent for a while, and never too many of these at once.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::mirror::{Held, Mirror};

/// How long an instance may be silent whose stream was open here. It may come back, also to another policy service.
pub(super) const GRACE: Duration = Duration::from_secs(3);
/// How long sidecars have to come back after this policy service has started, and after its store could not be used.
pub(super) const RETURN: Duration = Duration::from_secs(15);
/// Those who were removed within this time count as well: they fall silent one after the other when a network breaks.
const WINDOW: Duration = Duration::from_secs(60);

/// Who has a stream open here, and since when others have not.
pub(super) struct Silence {
    holder: Box<str>,
    began: Instant,
    /// Until then nobody is removed: the store could not be used, and whoever was told so registers again.
    spared: Instant,
    /// The stream that speaks for a key: the last one that registered it.
    owners: HashMap<String, Owner>,
    /// The same the other way round: a stream speaks for one key.
    streams: HashMap<u64, String>,
    /// Since when nobody has spoken for a key; in the future where somebody has time until then.
    since: HashMap<String, Instant>,
    /// Keys that were removed because they were silent, by this policy service or another one.
    removed: VecDeque<(Instant, String)>,
    /// What was registered at the last look; but what has left since.
    seen: HashSet<String>,
    /// Services whose instances are kept although they are silent.
    kept: HashSet<Box<str>>,
}

/// Who speaks for a key, and what was registered.
struct Owner {
    stream: u64,
    value: Bytes,
}

/// What there is of a service, or of all.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    registered: usize,
    silent: usize,
    /// Lately, for silence.
    removed: usize,
}

impl Tally {
    /// One may always go; else no more than half.
    fn is_plausible(self) -> bool {
        self.silent + self.removed <= ((self.registered + self.removed) / 2).max(1)
    }
}

impl Silence {
    pub fn new(holder: &str) -> Self {
        Self {
            holder: holder.into(),
            began: Instant::now(),
            spared: Instant::now(),
            owners: HashMap::new(),
            streams: HashMap::new(),
            since: HashMap::new(),
            removed: VecDeque::new(),
            seen: HashSet::new(),
            kept: HashSet::new(),
        }
    }

    /// The stream speaks for this key from now on, and for no other.
    pub fn registered(&mut self, stream: u64, key: String, value: Bytes) {
        self.ended(stream);
        self.since.remove(&key);
        self.removed.retain(|(_, removed)| *removed != key);
        self.owners.insert(key.clone(), Owner { stream, value });
        self.streams.insert(stream, key);
    }

    /// These keys are gone, because their instance said so.
    pub fn left<'k>(&mut self, keys: impl IntoIterator<Item = &'k String>) {
        for key in keys {
            if let Some(owner) = self.owners.remove(key) {
                self.streams.remove(&owner.stream);
            }
            self.since.remove(key);
            self.seen.remove(key);
        }
    }

    /// The stream speaks for nobody any more.
    pub fn ended(&mut self, stream: u64) {
        let Some(key) = self.streams.remove(&stream) else { return };
        if self.owners.get(&key).is_some_and(|owner| owner.stream == stream) {
            self.owners.remove(&key);
            self.since.insert(key, Instant::now());
        }
    }

    /// What open streams have registered and is there no more: another policy service took this one for gone while it could not
    /// use the store. What another one has become the holder of is its own to keep.
    pub fn lost(&mut self, mirror: &Mirror) -> Vec<(String, Bytes)> {
        let Self { owners, streams, holder, .. } = self;
        owners.retain(|key, owner| {
            let stays = mirror.records.get(key).is_none_or(|held| *held.lease.holder == **holder);
            if !stays {
                streams.remove(&owner.stream);
            }
            stays
        });
        let lost = owners.iter().filter(|(key, _)| !mirror.records.contains_key(*key));
        lost.map(|(key, owner)| (key.clone(), owner.value.clone())).collect()
    }

    /// The store could not be used, or not in time: who has registered again meanwhile may have been told to come later.
    pub fn store_failed(&mut self) {
        self.spared = Instant::now() + RETURN;
    }

    /// The keys whose time was over `now`, of those for which this policy service may decide: its own, and those of holders that do
    /// not live any more.
    pub fn due(&mut self, mirror: &Mirror, now: Instant, mut lives: impl FnMut(&str) -> bool) -> Vec<String> {
        self.since.retain(|key, _| mirror.records.contains_key(key));
        self.removed_by_others(mirror, now);
        // A service some of whose instances are still silent has not got over it.
        let silent: HashSet<&str> = self.since.keys().map(|key| service_of(key)).collect();
        self.removed.retain(|(at, key)| now - *at <= WINDOW || silent.contains(service_of(key)));
        let mut services: HashMap<&str, Tally> = HashMap::new();
        let mut all = Tally::default();
        for (_, key) in &self.removed {
            services.entry(service_of(key)).or_default().removed += 1;
        }
        let mut due = Vec::new();
        for (key, held) in &mirror.records {
            let tally = services.entry(&held.service).or_default();
            tally.registered += 1;
            let Some(since) = silent_since((&self.holder, self.began, &self.owners), key, held, &mut lives) else {
                self.since.remove(key);
                continue;
            };
            let since = *self.since.entry(key.clone()).or_insert_with(|| since.max(now));
            tally.silent += 1;
            if now >= self.spared && now.saturating_duration_since(since) >= GRACE {
                due.push((key, &*held.service));
            }
        }
        // Those that are kept by themselves say nothing about the others: nobody's ghosts keep the dead of all.
        for tally in services.values().filter(|tally| tally.is_plausible()) {
            all.registered += tally.registered;
            all.silent += tally.silent;
            all.removed += tally.removed;
        }
        let plausible = |service: &str| all.is_plausible() && services.get(service).is_none_or(|it| it.is_plausible());
        let (gone, kept): (Vec<_>, Vec<_>) = due.into_iter().partition(|(_, service)| plausible(service));
        let kept: HashSet<Box<str>> = kept.into_iter().map(|(_, service)| service.into()).collect();
        for service in kept.difference(&self.kept) {
            let Tally { registered, silent, removed } = services.get(&**service).copied().unwrap_or_default();
            tracing::warn!(
                %service, registered, silent, removed,
                "more than half of the registered instances are silent: kept, since it may be the network to this policy service"
            );
        }
        self.kept = kept;
        gone.into_iter().map(|(key, _)| key.clone()).collect()
    }

    /// What went without having left here: another policy service removed it, for silence or since it left there. The second
    /// counts as the first, which only errs towards keeping.
    fn removed_by_others(&mut self, mirror: &Mirror, now: Instant) {
        let gone: Vec<String> = self.seen.iter().filter(|key| !mirror.records.contains_key(*key)).cloned().collect();
        for key in gone {
            self.seen.remove(&key);
            self.removed.push_back((now, key));
        }
        for key in mirror.records.keys().filter(|key| !self.seen.contains(*key)).cloned().collect::<Vec<_>>() {
            self.removed.retain(|(_, removed)| *removed != key);
            self.seen.insert(key);
        }
    }

    /// These were removed because they were silent.
    pub fn were_removed(&mut self, keys: Vec<String>) {
        for key in keys {
            self.since.remove(&key);
            self.seen.remove(&key);
            self.removed.push_back((Instant::now(), key));
        }
    }
}

/// The service whose endpoint is registered under this key.
fn service_of(key: &str) -> &str {
    key.split('/').next().unwrap_or_default()
}

/// From when on the silence of an endpoint counts that was not known to be silent; `None`: somebody speaks for it.
fn silent_since(
    (holder, began, owners): (&str, Instant, &HashMap<String, Owner>),
    key: &str,
    held: &Held,
    lives: &mut impl FnMut(&str) -> bool,
) -> Option<Instant> {
    if held.lease.holder != holder {
        return (!lives(&held.lease.holder)).then_some(began);
    }
    // Never heard of since this policy service started.
    (!owners.contains_key(key)).then(|| began + (RETURN - GRACE))
}
