//! A table while nobody reads it yet.

use std::{marker::PhantomData, mem, sync::Mutex};

use ahash::RandomState;

use super::{
    Table,
    index::{Aliases, CROWDED, Index, Names as _, Part, Place, leaf_of},
};
use crate::{BUCKETS, Value, parallel};

/// Takes records in, and becomes a [`Table`]. Which records have the same key, and how large each part of the table must
/// be, shows in the end: until then names are only put on the list of their part.
pub(crate) struct Builder<V> {
    keys: Vec<List<V>>,
    aliases: Vec<List<V>>,
    hasher: RandomState,
    len: usize,
}

/// Hashes of names, with the records that have them, in the order in which they came.
type List<V> = Vec<(u64, V)>;

impl<V: Value> Builder<V> {
    /// Those that are finished together have the same `hasher`.
    pub(crate) fn new(hasher: RandomState) -> Self {
        let lists = || (0..BUCKETS).map(|_| List::new()).collect();
        Self { keys: lists(), aliases: lists(), hasher, len: 0 }
    }

    /// Records taken in.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has a record of `key`. Slow: it looks through a part.
    pub(crate) fn has(&self, key: &str) -> bool {
        let place = Place::of(&self.hasher, key);
        self.keys[place.part].iter().any(|(hash, value)| *hash == place.hash && value.key() == key)
    }

    pub(crate) fn push(&mut self, value: V) {
        for alias in Aliases::of(&value) {
            let place = Place::of(&self.hasher, alias);
            self.aliases[place.part].push((place.hash, value.clone()));
        }
        let place = Place::of(&self.hasher, value.key());
        self.keys[place.part].push((place.hash, value));
        self.len += 1;
    }

    /// The table of what `pieces` took in, one behind the other, and what is not in it: of a key the last record counts.
    pub(crate) fn finish(pieces: Vec<Self>, threads: usize) -> (Table<V>, Vec<V>) {
        let hasher = pieces.first().map_or_else(RandomState::new, |piece| piece.hasher.clone());
        let (mut keys, mut aliases) = (vec![Vec::new(); BUCKETS], vec![Vec::new(); BUCKETS]);
        let mut len = 0;
        for piece in pieces {
            keys.iter_mut().zip(piece.keys).for_each(|(lists, list)| lists.push(list));
            aliases.iter_mut().zip(piece.aliases).for_each(|(lists, list)| lists.push(list));
            len += piece.len;
        }
        let mut replaced = Vec::new();
        let keys = parallel::each(threads, keys, |lists| part(lists, true)).into_iter().map(|(part, old)| {
            replaced.extend(old);
            part
        });
        let keys: Box<[_]> = keys.collect();
        let again = !replaced.is_empty();
        let aliases = parallel::each(threads, aliases, |lists| part(lists, again).0).into();
        let table = Table {
            keys: Index { parts: keys, hasher: hasher.clone(), names: PhantomData },
            aliases: Index { parts: aliases, hasher, names: PhantomData },
            len: (len - replaced.len()).into(),
            writer: Mutex::default(),
        };
        for old in &replaced {
            let new = table.get(old.key());
            table.forget(old, |alias| new.as_ref().is_some_and(|new| new.aliases().any(|it| it == alias)));
        }
        (table, replaced)
    }
}

/// A part of an index, and what is not in it where a record may stand `again` under the same name.
fn part<V: Value>(lists: Vec<List<V>>, again: bool) -> (Part<V>, Vec<V>) {
    let entries: usize = lists.iter().map(Vec::len).sum();
    let count = entries.div_ceil(CROWDED).next_power_of_two();
    let mut sizes = vec![0; count];
    for (hash, _) in lists.iter().flatten() {
        sizes[leaf_of(*hash, count)] += 1;
    }
    let mut leaves: Vec<List<V>> = sizes.into_iter().map(Vec::with_capacity).collect();
    let mut replaced = Vec::new();
    for (hash, value) in lists.into_iter().flatten() {
        let leaf = &mut leaves[leaf_of(hash, count)];
        let mut before = leaf.iter_mut().filter(|(of, old)| again && *of == hash && old.key() == value.key());
        match before.next() {
            Some((_, old)) => replaced.push(mem::replace(old, value)),
            None => leaf.push((hash, value)),
        }
    }
    (Part::new(leaves), replaced)
}
