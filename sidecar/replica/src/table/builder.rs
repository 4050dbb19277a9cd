//! A table while nobody reads it yet.

use std::{marker::PhantomData, sync::Mutex};

use ahash::RandomState;

use super::{
    Table,
    index::{Aliases, CROWDED, Index, Names as _, Part, Place, leaf_of, same},
};
use crate::{BUCKETS, Value};

/// Takes records one by one, much faster than a table that is read meanwhile, and becomes a [`Table`].
pub(crate) struct Builder<V> {
    keys: Draft<V>,
    aliases: Draft<V>,
    len: usize,
}

/// An [`Index`] whose leaves can grow.
struct Draft<V> {
    parts: Box<[Leaves<V>]>,
    hasher: RandomState,
}

#[derive(Clone)]
struct Leaves<V> {
    leaves: Vec<Vec<(u64, V)>>,
    entries: usize,
}

impl<V: Value> Default for Builder<V> {
    fn default() -> Self {
        Self { keys: Draft::default(), aliases: Draft::default(), len: 0 }
    }
}

impl<V: Value> Builder<V> {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        let place = Place::of(&self.keys.hasher, key);
        let leaf = self.keys.parts[place.part].leaf(place.hash);
        leaf.iter().find(|(hash, value)| *hash == place.hash && value.key() == key).map(|(_, value)| value)
    }

    /// Takes a record in; the last one of a key counts.
    pub(crate) fn insert(&mut self, value: V) {
        if let Some(old) = self.get(value.key()).cloned() {
            self.keys.remove(old.key(), &old);
            for alias in Aliases::of(&old) {
                self.aliases.remove(alias, &old);
            }
            self.len -= 1;
        }
        self.keys.add(value.key(), &value);
        for alias in Aliases::of(&value) {
            self.aliases.add(alias, &value);
        }
        self.len += 1;
    }

    /// At a million records this takes some tens of milliseconds.
    pub(crate) fn finish(self) -> Table<V> {
        Table {
            keys: self.keys.finish(),
            aliases: self.aliases.finish(),
            len: self.len.into(),
            writer: Mutex::default(),
        }
    }
}

impl<V: Value> Default for Draft<V> {
    fn default() -> Self {
        let part = Leaves { leaves: vec![Vec::new()], entries: 0 };
        Self { parts: vec![part; BUCKETS].into(), hasher: RandomState::new() }
    }
}

impl<V: Value> Draft<V> {
    fn add(&mut self, name: &str, value: &V) {
        let place = Place::of(&self.hasher, name);
        let part = &mut self.parts[place.part];
        if part.entries >= part.leaves.len() * CROWDED {
            part.grow();
        }
        let at = leaf_of(place.hash, part.leaves.len());
        part.leaves[at].push((place.hash, value.clone()));
        part.entries += 1;
    }

    fn remove(&mut self, name: &str, value: &V) {
        let place = Place::of(&self.hasher, name);
        let part = &mut self.parts[place.part];
        let at = leaf_of(place.hash, part.leaves.len());
        let leaf = &mut part.leaves[at];
        if let Some(at) = leaf.iter().position(|(hash, held)| *hash == place.hash && same(held, value)) {
            leaf.swap_remove(at);
            part.entries -= 1;
        }
    }

    fn finish<N>(self) -> Index<V, N> {
        let parts = self.parts.into_iter().map(|part| Part::new(part.leaves)).collect();
        Index { parts, hasher: self.hasher, names: PhantomData }
    }
}

impl<V> Leaves<V> {
    fn leaf(&self, hash: u64) -> &[(u64, V)] {
        &self.leaves[leaf_of(hash, self.leaves.len())]
    }

    fn grow(&mut self) {
        let now = self.leaves.len();
        let mut grown: Vec<Vec<_>> = (0..now * 2).map(|_| Vec::with_capacity(CROWDED)).collect();
        for (hash, value) in self.leaves.drain(..).flatten() {
            grown[leaf_of(hash, now * 2)].push((hash, value));
        }
        self.leaves = grown;
    }
}
