//! The records of one publisher, shared by all of its views.

mod aliases;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use replica::{BUCKETS, Digest};

use super::{Views, ring::Ring};
use crate::{Entry, Position, Snapshot};
use aliases::Aliases;

/// The records of one bucket of the [`Digest`].
pub(super) type Bucket = HashMap<Arc<str>, Held>;

/// A record without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) revision: u64,
    pub(super) value: Bytes,
}

/// What was done to one record.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) key: Arc<str>,
    pub(super) revision: u64,
    pub(super) before: Before,
    /// Absent: the record went.
    pub(super) new: Option<Bytes>,
    /// It is the last of several that are told as one.
    pub(super) several: bool,
}

/// What a record was before its change.
#[derive(Debug)]
pub(super) enum Before {
    Absent,
    Held(Held),
    /// The change is older than this process.
    Unknown,
}

/// All records at one position. A bucket is copied when it changes while someone holds it as it was.
pub(super) struct Base {
    position: Position,
    buckets: Vec<Arc<Bucket>>,
    records: u64,
    aliases: Index,
    /// The latest changes, for the views.
    ring: Arc<Mutex<Ring>>,
}

/// Other names of records, kept once somebody asked by them.
enum Index {
    Unwanted,
    /// These changes came meanwhile.
    Building(Vec<Arc<Change>>),
    Ready(Aliases),
}

/// The base as it was at one position: 256 references.
#[derive(Clone)]
pub(super) struct FrozenBase {
    pub(super) position: Position,
    pub(super) buckets: Arc<[Arc<Bucket>]>,
}

impl FrozenBase {
    pub(super) fn records(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.len()).sum()
    }
}

impl Base {
    /// Takes long for a large snapshot: not for a thread of the runtime.
    pub(super) fn new(snapshot: Snapshot, views: &dyn Views) -> Self {
        let mut buckets: Vec<Bucket> = vec![Bucket::new(); BUCKETS];
        let mut records = 0;
        for record in snapshot.records {
            if !views.hides(&record.key) {
                let held = Held { revision: record.revision, value: record.value };
                let bucket = &mut buckets[Digest::bucket_of(&record.key)];
                records += u64::from(bucket.insert(record.key.into(), held).is_none());
            }
        }
        let buckets = buckets.into_iter().map(Arc::new).collect();
        let ring = Arc::new(Mutex::new(Ring::new(snapshot.position.revision)));
        Self { position: snapshot.position, buckets, records, aliases: Index::Unwanted, ring }
    }

    /// Begins with what led to this position, so that followers from before can be served by it.
    pub(super) fn with_past(mut self, past: Ring) -> Self {
        self.ring = Arc::new(Mutex::new(past));
        self
    }

    pub(super) const fn ring(&self) -> &Arc<Mutex<Ring>> {
        &self.ring
    }

    pub(super) const fn position(&self) -> Position {
        self.position
    }

    pub(super) const fn records(&self) -> u64 {
        self.records
    }

    pub(super) fn get(&self, key: &str) -> Option<&Held> {
        self.buckets[Digest::bucket_of(key)].get(key)
    }

    pub(super) fn freeze(&self) -> FrozenBase {
        FrozenBase { position: self.position, buckets: self.buckets.as_slice().into() }
    }

    /// Makes one change. None when it changes nothing: a record that was not there has gone. Of the last of `several` changes
    /// that is passed on: another parent may have shown the record that came and went in between.
    pub(super) fn apply(&mut self, entry: Entry, several: bool, views: &dyn Views) -> Option<Arc<Change>> {
        let Entry { key, revision, value, .. } = entry;
        let bucket = Arc::make_mut(&mut self.buckets[Digest::bucket_of(&key)]);
        let (key, old): (Arc<str>, _) = match bucket.remove_entry(key.as_str()) {
            Some((key, old)) => (key, Some(old)),
            None => (key.into(), None),
        };
        if let Some(value) = &value {
            bucket.insert(Arc::clone(&key), Held { revision, value: value.clone() });
        }
        match (old.is_some(), value.is_some()) {
            (false, true) => self.records += 1,
            (true, false) => self.records -= 1,
            (false, false) if !several => return None,
            (false, false) | (true, true) => {}
        }
        let before = old.map_or(Before::Absent, Before::Held);
        let change = Arc::new(Change { key, revision, before, new: value, several });
        match &mut self.aliases {
            Index::Unwanted => {}
            Index::Building(missed) => missed.push(Arc::clone(&change)),
            Index::Ready(aliases) => aliases.apply(&change, views),
        }
        Some(change)
    }

    /// All changes up to `revision` are made.
    pub(super) const fn reached(&mut self, revision: u64) {
        self.position.revision = revision;
    }

    /// How many records there would be after `entries`, and which of them would go.
    pub(super) fn after<'e>(&self, entries: &[&'e Entry]) -> (u64, HashSet<&'e str>) {
        let mut last: HashMap<&str, bool> = HashMap::new();
        for entry in entries {
            last.insert(&entry.key, entry.value.is_some());
        }
        let (mut records, mut gone) = (self.records, HashSet::new());
        for (key, stays) in last {
            match (self.get(key).is_some(), stays) {
                (true, false) => {
                    records -= 1;
                    gone.insert(key);
                }
                (false, true) => records += 1,
                (true, true) | (false, false) => {}
            }
        }
        (records, gone)
    }

    /// The changes that lead to `later`, of the same history, in order; none when no delta leads there, since something
    /// differs that did not change since this position.
    pub(super) fn leads_to(frozen: &FrozenBase, later: &Self) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        for (before, after) in frozen.buckets.iter().zip(&later.buckets) {
            for (key, held) in after.iter().filter(|(key, held)| before.get(*key) != Some(held)) {
                if held.revision <= frozen.position.revision {
                    return None;
                }
                let (key, value) = (key.as_ref().to_owned(), Some(held.value.clone()));
                entries.push(Entry { key, revision: held.revision, value, at_unix_ms: 0 });
            }
            for key in before.keys().filter(|key| !after.contains_key(*key)) {
                if later.position.revision <= frozen.position.revision {
                    return None;
                }
                let key = key.as_ref().to_owned();
                entries.push(Entry { key, revision: later.position.revision, value: None, at_unix_ms: 0 });
            }
        }
        entries.sort_unstable_by_key(|entry| entry.revision);
        Some(entries)
    }

    /// Whether [`Base::by_alias`] answers.
    pub(super) const fn knows_aliases(&self) -> bool {
        matches!(self.aliases, Index::Ready(_))
    }

    /// The record with this other name. Nothing before the index is ready.
    pub(super) fn by_alias(&self, alias: &str, views: &dyn Views) -> Option<(Arc<str>, &Held)> {
        let Index::Ready(aliases) = &self.aliases else { return None };
        let found = aliases.candidates(alias).filter_map(|key| Some((Arc::clone(key), self.get(key)?)));
        // Several may claim it for a moment: the latest has it.
        found.filter(|(_, held)| views.aliases(&held.value).contains(&alias)).max_by_key(|(_, held)| held.revision)
    }

    /// Begins to index: what is returned goes to [`build_index`], and the result to [`Base::indexed`].
    pub(super) fn begin_index(&mut self) -> FrozenBase {
        self.aliases = Index::Building(Vec::new());
        self.freeze()
    }

    pub(super) fn indexed(&mut self, mut built: Aliases, views: &dyn Views) {
        if let Index::Building(missed) = std::mem::replace(&mut self.aliases, Index::Unwanted) {
            missed.iter().for_each(|change| built.apply(change, views));
            self.aliases = Index::Ready(built);
        }
    }
}

/// Takes long for a large base: not for a thread of the runtime.
pub(super) fn build_index(frozen: &FrozenBase, views: &dyn Views) -> Aliases {
    let mut aliases = Aliases::default();
    for (key, held) in frozen.buckets.iter().flat_map(|bucket| bucket.iter()) {
        aliases.add(key, &held.value, views);
    }
    aliases
}

#[cfg(test)]
mod tests;
