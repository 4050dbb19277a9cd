//! One history's map, as readers see it: by key, and by the other names of its records.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use crate::{BUCKETS, Value};

mod builder;
mod index;

pub(crate) use builder::Builder;
use index::{Aliases, Index, Keys, Names as _};

/// All records of a kind. A snapshot makes a new one; deltas change it in place.
///
/// Readers take no lock and allocate nothing: a look-up goes through a directory to a leaf of about a dozen handles, and a
/// change puts another leaf in its place. Beside the records themselves that takes about 12 bytes for each name.
pub struct Table<V> {
    keys: Index<V, Keys>,
    /// Every other name, with whoever claims it. There may be several for a while, as when a name moves: which of them
    /// has it is decided when it is read, so that the order of changes does not matter.
    aliases: Index<V, Aliases>,
    len: AtomicUsize,
    /// One writer at a time: a leaf is read, copied and replaced. Readers never take it.
    writer: Mutex<()>,
}

impl<V: Value> Table<V> {
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        Builder::finish(Vec::new(), 1).0
    }

    /// The record of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<V> {
        self.keys.find(key)
    }

    /// The record that has this other name. When several claim it, the one of the highest revision has it.
    #[must_use]
    pub fn by_alias(&self, alias: &str) -> Option<V> {
        self.aliases.find(alias)
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Relaxed)
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

    /// The records of one bucket of the [`Digest`](crate::Digest). Costs the bucket's size, not the table's: at a million
    /// records well below a millisecond.
    #[must_use]
    pub fn bucket(&self, bucket: usize) -> Vec<V> {
        let mut values = Vec::with_capacity(self.len() / BUCKETS * 5 / 4);
        self.visit(bucket, |value| values.push(value.clone()));
        values
    }

    /// As [`Table::bucket`], without holding the records: cheaper where they are only looked at.
    pub fn visit(&self, bucket: usize, visitor: impl FnMut(&V)) {
        self.keys.visit(bucket, visitor);
    }

    /// Entries for aliases in one part of the index.
    #[cfg(test)]
    fn aliases_in(&self, part: usize) -> usize {
        let mut entries = 0;
        self.aliases.visit(part, |_| entries += 1);
        entries
    }

    pub(crate) fn insert(&self, value: V) -> Option<V> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.get(value.key());
        self.keys.replace(value.key(), old.as_ref(), Some(&value));
        for alias in Aliases::of(&value) {
            let had = old.as_ref().filter(|old| old.aliases().any(|it| it == alias));
            self.aliases.replace(alias, had, Some(&value));
        }
        match &old {
            Some(old) => self.forget(old, |alias| value.aliases().any(|it| it == alias)),
            None => _ = self.len.fetch_add(1, Relaxed),
        }
        self.keys.make_room(value.key());
        Aliases::of(&value).for_each(|alias| self.aliases.make_room(alias));
        old
    }

    pub(crate) fn remove(&self, key: &str) -> Option<V> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.get(key)?;
        self.keys.replace(key, Some(&old), None);
        self.forget(&old, |_| false);
        self.len.fetch_sub(1, Relaxed);
        Some(old)
    }

    /// Takes away the names of `old` but those to be kept.
    fn forget(&self, old: &V, kept: impl Fn(&str) -> bool) {
        for alias in Aliases::of(old).filter(|alias| !kept(alias)) {
            self.aliases.replace(alias, Some(old), None);
        }
    }
}

impl<V> fmt::Debug for Table<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
