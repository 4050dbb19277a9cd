//! One history's map, as readers see it: by key, and by the other names of its records.

use std::fmt;

use crate::{BUCKETS, Digest, Value};

/// All records of a kind. A snapshot makes a new one; deltas change it in place. Readers take no lock.
pub struct Table<V> {
    records: papaya::HashMap<Box<str>, V, ahash::RandomState>,
    /// Who claims a name. There may be several for a while: which of them has it is seen when it is read.
    aliases: papaya::HashMap<Box<str>, Vec<V>, ahash::RandomState>,
}

impl<V: Value> Table<V> {
    pub(crate) fn new() -> Self {
        Self { records: papaya::HashMap::default(), aliases: papaya::HashMap::default() }
    }

    /// The record of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<V> {
        self.records.pin().get(key).cloned()
    }

    /// The record that has this other name. When several claim it, the one of the highest revision has it.
    #[must_use]
    pub fn by_alias(&self, alias: &str) -> Option<V> {
        self.aliases.pin().get(alias)?.iter().max_by_key(|value| value.revision()).cloned()
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All records, in no order, bucket by bucket. Records that change meanwhile appear before or after their change.
    pub fn iter(&self) -> impl Iterator<Item = V> {
        (0..BUCKETS).flat_map(|bucket| self.bucket(bucket))
    }

    /// The records of one bucket of the [`Digest`]. Costs the bucket's size, not the table's.
    #[must_use]
    pub fn bucket(&self, bucket: usize) -> Vec<V> {
        let records = self.records.pin();
        records.values().filter(|value| Digest::bucket_of(value.key()) == bucket).cloned().collect()
    }

    pub(crate) fn insert(&self, value: V) -> Option<V> {
        let old = self.records.pin().insert(value.key().into(), value.clone()).cloned();
        let aliases = self.aliases.pin();
        if let Some(old) = &old {
            self.forget(old);
        }
        for alias in value.aliases() {
            aliases.update_or_insert_with(
                alias.into(),
                |held| held.iter().chain([&value]).cloned().collect(),
                || vec![value.clone()],
            );
        }
        old
    }

    pub(crate) fn remove(&self, key: &str) -> Option<V> {
        let old = self.records.pin().remove(key).cloned();
        if let Some(old) = &old {
            self.forget(old);
        }
        old
    }

    fn forget(&self, old: &V) {
        let aliases = self.aliases.pin();
        for alias in old.aliases() {
            aliases.update(alias.into(), |held| held.iter().filter(|it| it.key() != old.key()).cloned().collect());
            let _ = aliases.remove_if(alias, |_, held| held.is_empty());
        }
    }
}

impl<V> fmt::Debug for Table<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}
