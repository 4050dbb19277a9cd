//! What a cache holds. Readers take no lock; one writer keeps it within its bytes.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use super::{Answer, Cached, Name};
use crate::{Position, Value};

/// What an entry takes beside its texts and its raw bytes: the cells of both maps, the queue's, and the decoded value's.
const ENTRY_BYTES: usize = 320;
/// The same of another name of a record, or of a name that nobody has.
const NAME_BYTES: usize = 96;
/// Share of the bytes that names may take which nobody has: no flood of them pushes out those who are there.
const ABSENT_SHARE: u64 = 16;

type Map<K, T> = papaya::HashMap<K, T, ahash::RandomState>;

/// What readers look into.
#[derive(Debug)]
pub(crate) struct Store<V> {
    records: Map<Arc<str>, Entry<V>>,
    /// Other names of what `records` holds, and the keys.
    aliases: Map<Box<str>, Arc<str>>,
    /// Names that nobody has, and as of when that is known.
    absent_keys: Map<Box<str>, Position>,
    absent_aliases: Map<Box<str>, Position>,
    /// Entries of this run are as new as what was reached. A gap begins another one.
    run: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    /// When it was right for certain.
    as_of: Position,
    run: AtomicU64,
    /// Somebody has read it since the eviction came by.
    touched: AtomicBool,
    /// Its place in the queue.
    place: u64,
    bytes: u64,
}

impl<V: Value> Store<V> {
    fn new() -> Self {
        Self {
            records: Map::default(),
            aliases: Map::default(),
            absent_keys: Map::default(),
            absent_aliases: Map::default(),
            run: AtomicU64::new(1),
            bytes: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Answer<V> {
        self.count(self.find(key).unwrap_or_else(|| absent(&self.absent_keys, key)))
    }

    pub(crate) fn by_alias(&self, alias: &str) -> Answer<V> {
        let found = self.aliases.pin().get(alias).and_then(|key| self.find(key));
        self.count(found.unwrap_or_else(|| absent(&self.absent_aliases, alias)))
    }

    /// As readers see it, without being counted.
    pub(crate) fn peek(&self, name: &Name) -> Answer<V> {
        match name {
            Name::Key(key) => self.find(key).unwrap_or_else(|| absent(&self.absent_keys, key)),
            Name::Alias(alias) => {
                let found = self.aliases.pin().get(&**alias).and_then(|key| self.find(key));
                found.unwrap_or_else(|| absent(&self.absent_aliases, alias))
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn absent(&self) -> usize {
        self.absent_keys.len() + self.absent_aliases.len()
    }

    fn find(&self, key: &str) -> Option<Answer<V>> {
        let records = self.records.pin();
        let entry = records.get(key)?;
        // Written only where it changes: a hot entry's cache line stays shared.
        if !entry.touched.load(Relaxed) {
            entry.touched.store(true, Relaxed);
        }
        let outdated = entry.run.load(Relaxed) != self.run.load(Relaxed);
        Some(Answer::Found(Cached { value: entry.value.clone(), as_of: outdated.then_some(entry.as_of) }))
    }

    fn count(&self, answer: Answer<V>) -> Answer<V> {
        let counter = if matches!(answer, Answer::NotHeld) { &self.misses } else { &self.hits };
        counter.fetch_add(1, Relaxed);
        answer
    }
}

fn absent<V>(names: &Map<Box<str>, Position>, name: &str) -> Answer<V> {
    if names.pin().contains_key(name) { Answer::Nobody } else { Answer::NotHeld }
}

/// The only one who writes into a [`Store`].
#[derive(Debug)]
pub(crate) struct Writer<V> {
    store: Arc<Store<V>>,
    capacity: u64,
    /// In the order in which the eviction comes by: what was read since the last time is spared once ("second chance").
    /// A place that is not its entry's any more stands for nothing.
    queue: VecDeque<(Arc<str>, u64)>,
    next_place: u64,
    /// Names that nobody has, the oldest first; some may have gone since.
    absent: VecDeque<Name>,
    absent_bytes: u64,
    /// Entries that had to go for others.
    pub(crate) evicted: u64,
}

impl<V: Value> Writer<V> {
    /// `capacity` in bytes.
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            store: Arc::new(Store::new()),
            capacity,
            queue: VecDeque::new(),
            next_place: 0,
            absent: VecDeque::new(),
            absent_bytes: 0,
            evicted: 0,
        }
    }

    pub(crate) const fn store(&self) -> &Arc<Store<V>> {
        &self.store
    }

    /// What is held of `key`, and as of when.
    pub(crate) fn held(&self, key: &str) -> Option<(V, Position)> {
        self.store.records.pin().get(key).map(|entry| (entry.value.clone(), entry.as_of))
    }

    /// Holds `value`, which was right at `as_of`; `current`: and is right at what was reached.
    pub(crate) fn put(&mut self, value: V, as_of: Position, current: bool) {
        let bytes = weight(&value);
        let run = if current { self.store.run.load(Relaxed) } else { 0 };
        let records = self.store.records.pin();
        let old = records.get(value.key()).map(|old| (old.value.clone(), old.place, old.bytes));
        let touched =
            AtomicBool::new(old.is_some() && records.get(value.key()).is_some_and(|old| old.touched.load(Relaxed)));
        let key: Arc<str> = value.key().into();
        let place = old.as_ref().map_or(self.next_place, |(_, place, _)| *place);
        let entry = Entry { value: value.clone(), as_of, run: AtomicU64::new(run), touched, place, bytes };
        records.insert(Arc::clone(&key), entry);
        drop(records);
        let aliases = self.store.aliases.pin();
        for alias in value.aliases() {
            aliases.insert(alias.into(), Arc::clone(&key));
        }
        drop(aliases);
        let freed = match &old {
            Some((old, _, bytes)) => {
                self.forget_aliases(old, |alias| value.aliases().any(|kept| kept == alias));
                *bytes
            }
            None => {
                self.queue.push_back((Arc::clone(&key), place));
                self.next_place += 1;
                0
            }
        };
        self.account(bytes, freed);
        self.present(&Name::Key(value.key().into()));
        for alias in value.aliases() {
            self.present(&Name::Alias(alias.into()));
        }
        self.evict();
    }

    /// Holds `key` no longer. Whether it did.
    pub(crate) fn remove(&mut self, key: &str) -> bool {
        let records = self.store.records.pin();
        let Some(old) = records.remove(key) else { return false };
        let (value, bytes) = (old.value.clone(), old.bytes);
        drop(records);
        self.forget_aliases(&value, |_| false);
        self.account(0, bytes);
        true
    }

    /// Holds that nobody had this name at `as_of`, and nobody has it at what was reached.
    pub(crate) fn put_absent(&mut self, name: Name, as_of: Position) {
        let fresh = match &name {
            Name::Key(key) => self.store.absent_keys.pin().insert(key.clone(), as_of).is_none(),
            Name::Alias(alias) => self.store.absent_aliases.pin().insert(alias.clone(), as_of).is_none(),
        };
        if !fresh {
            return;
        }
        self.absent_bytes += absent_weight(&name);
        self.account(absent_weight(&name), 0);
        self.absent.push_back(name);
        while self.absent_bytes > self.capacity / ABSENT_SHARE && self.absent.len() > 1 {
            let Some(oldest) = self.absent.pop_front() else { break };
            self.absent_bytes -= absent_weight(&oldest);
            self.account(0, absent_weight(&oldest));
            self.present(&oldest);
        }
        self.evict();
    }

    /// Whether any name is held that nobody has.
    pub(crate) fn has_absent_aliases(&self) -> bool {
        !self.store.absent_aliases.is_empty()
    }

    /// Somebody may have this name now. Comes back with the position as of which it was held that nobody has it.
    pub(crate) fn present(&mut self, name: &Name) -> Option<Position> {
        // Its place in the queue goes when its turn comes.
        match name {
            Name::Key(key) => self.store.absent_keys.pin().remove(&**key).copied(),
            Name::Alias(alias) => self.store.absent_aliases.pin().remove(&**alias).copied(),
        }
    }

    /// Changes were missed. Comes back with the keys of what may be outdated: it is served until it was looked at again,
    /// but for names that nobody had.
    pub(crate) fn gap(&mut self) -> VecDeque<Arc<str>> {
        self.store.run.fetch_add(1, Relaxed);
        self.store.absent_keys.pin().clear();
        self.store.absent_aliases.pin().clear();
        self.account(0, self.absent_bytes);
        self.absent.clear();
        self.absent_bytes = 0;
        self.queue.iter().map(|(key, _)| Arc::clone(key)).collect()
    }

    /// Holds nothing any more.
    pub(crate) fn clear(&mut self) {
        for (key, _) in std::mem::take(&mut self.queue) {
            self.remove(&key);
        }
        self.gap();
    }

    /// Whether what is held of `key` may be outdated. What was right at `since` or later is not.
    pub(crate) fn is_outdated(&self, key: &str, since: Position) -> bool {
        let records = self.store.records.pin();
        let Some(entry) = records.get(key) else { return false };
        let run = self.store.run.load(Relaxed);
        if entry.as_of >= since {
            entry.run.store(run, Relaxed);
        }
        entry.run.load(Relaxed) != run
    }

    /// Everything that is held, the hottest last.
    pub(crate) fn values(&self) -> Vec<V> {
        let records = self.store.records.pin();
        self.queue
            .iter()
            .filter_map(|(key, place)| Some((records.get(key)?, place)))
            .filter(|(entry, place)| entry.place == **place)
            .map(|(entry, _)| entry.value.clone())
            .collect()
    }

    fn evict(&mut self) {
        while self.store.bytes.load(Relaxed) > self.capacity && self.queue.len() > 1 {
            let Some((key, place)) = self.queue.pop_front() else { return };
            let records = self.store.records.pin();
            let Some(entry) = records.get(&key).filter(|entry| entry.place == place) else { continue };
            if entry.touched.swap(false, Relaxed) {
                drop(records);
                self.queue.push_back((key, place));
                continue;
            }
            drop(records);
            self.evicted += 1;
            self.remove(&key);
        }
        // Deleted records leave places behind.
        if self.queue.len() > 2 * self.store.len() + 1024 {
            let records = self.store.records.pin();
            self.queue.retain(|(key, place)| records.get(key).is_some_and(|entry| entry.place == *place));
        }
    }

    /// Another record may have got the name meanwhile: then it stays.
    fn forget_aliases(&self, old: &V, kept: impl Fn(&str) -> bool) {
        let aliases = self.store.aliases.pin();
        for alias in old.aliases().filter(|alias| !kept(alias)) {
            let _ = aliases.remove_if(alias, |_, key| **key == *old.key());
        }
    }

    fn account(&self, added: u64, freed: u64) {
        let bytes = self.store.bytes.load(Relaxed) + added;
        self.store.bytes.store(bytes.saturating_sub(freed), Relaxed);
    }
}

fn weight<V: Value>(value: &V) -> u64 {
    let aliases: usize = value.aliases().map(|alias| alias.len() + NAME_BYTES).sum();
    (value.raw().len() + 2 * value.key().len() + aliases + ENTRY_BYTES) as u64
}

fn absent_weight(name: &Name) -> u64 {
    (2 * name.as_str().len() + NAME_BYTES) as u64
}

#[cfg(test)]
mod tests;
