//! Records by one sort of name, in small leaves that are replaced as a whole.

use std::{
    iter,
    marker::PhantomData,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use ahash::RandomState;
use arc_swap::ArcSwapAny;
use triomphe::ThinArc;

use crate::{Digest, Value};

/// Names of a leaf on average, at most: then its part gets twice as many leaves.
pub(super) const CROWDED: usize = 16;
/// Entries of a leaf that have a tag. Those behind them, which hardly ever are, are all compared.
const TAGGED: usize = 32;

/// Which names of a record an index knows.
pub(super) trait Names {
    fn of<V: Value>(value: &V) -> impl Iterator<Item = &str>;
}

pub(super) struct Keys;

pub(super) struct Aliases;

impl Names for Keys {
    fn of<V: Value>(value: &V) -> impl Iterator<Item = &str> {
        iter::once(value.key())
    }
}

impl Names for Aliases {
    fn of<V: Value>(value: &V) -> impl Iterator<Item = &str> {
        // One that is named twice is one.
        value
            .aliases()
            .enumerate()
            .filter(|(at, alias)| !value.aliases().take(*at).any(|it| it == *alias))
            .map(|it| it.1)
    }
}

/// One part a bucket of the digest, so that a bucket can be had without the others, and growth never stops a writer for long.
pub(super) struct Index<V, N> {
    pub(super) parts: Box<[Part<V>]>,
    /// Keyed, so that nobody can choose names that meet in one leaf.
    pub(super) hasher: RandomState,
    pub(super) names: PhantomData<fn() -> N>,
}

pub(super) struct Part<V> {
    directory: ArcSwapAny<Directory<V>>,
    /// For the writer alone.
    entries: AtomicUsize,
}

/// Leaves, as many as a power of two.
type Directory<V> = ThinArc<(), Slot<V>>;
type Slot<V> = ArcSwapAny<Option<Leaf<V>>>;
/// Records, and a few bits of the hash of the name that each stands there for: most others need not be looked at. A record
/// stands once for each of its names.
type Leaf<V> = ThinArc<[u8; TAGGED], V>;

/// Where a name belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) part: usize,
    pub(super) hash: u64,
}

impl Place {
    pub(super) fn of(hasher: &RandomState, name: &str) -> Self {
        Self { part: Digest::bucket_of(name), hash: hasher.hash_one(name) }
    }
}

/// The leaf of a hash among `leaves`.
pub(super) fn leaf_of(hash: u64, leaves: usize) -> usize {
    // The lower half; the tag is of the upper one. A directory is far from 2^32 leaves.
    (hash as u32) as usize & (leaves - 1)
}

/// Zero stands for "not known: compare".
fn tag_of(hash: u64) -> u8 {
    ((hash >> 56) as u8).max(1)
}

/// Whether both are the same record as it was received at one time.
pub(super) fn same<V: Value>(one: &V, other: &V) -> bool {
    std::ptr::eq(one.raw(), other.raw()) && one.revision() == other.revision() && one.key() == other.key()
}

impl<V: Value, N: Names> Index<V, N> {
    /// Of several records that have the name, the one of the highest revision; of equal ones that of the last key.
    pub(super) fn find(&self, name: &str) -> Option<V> {
        let place = Place::of(&self.hasher, name);
        let directory = self.parts[place.part].directory.load();
        let leaf = directory.slice[leaf_of(place.hash, directory.slice.len())].load();
        let leaf = leaf.as_ref()?;
        let mut found: Option<&V> = None;
        for (at, value) in leaf.slice.iter().enumerate() {
            let tag = leaf.header.header.get(at).copied().unwrap_or(0);
            if (tag == 0 || tag == tag_of(place.hash))
                && N::of(value).any(|it| it == name)
                && found.is_none_or(|best| (best.revision(), best.key()) < (value.revision(), value.key()))
            {
                found = Some(value);
            }
        }
        found.cloned()
    }

    pub(super) fn visit(&self, part: usize, mut visitor: impl FnMut(&V)) {
        let directory = self.parts[part].directory.load_full();
        for slot in &directory.slice {
            if let Some(leaf) = &*slot.load() {
                leaf.slice.iter().for_each(&mut visitor);
            }
        }
    }

    /// Puts `new` in the place of `old` under one of their names. The caller sees to it that nobody else writes.
    pub(super) fn replace(&self, name: &str, old: Option<&V>, new: Option<&V>) {
        let place = Place::of(&self.hasher, name);
        let part = &self.parts[place.part];
        let directory = part.directory.load();
        let slot = &directory.slice[leaf_of(place.hash, directory.slice.len())];
        let mut entries = slot.load().as_ref().map_or_else(Vec::new, entries);
        let before = entries.len();
        if let Some(old) = old
            && let Some(at) = entries.iter().position(|(_, value)| same(value, old))
        {
            entries.swap_remove(at);
        }
        entries.extend(new.map(|new| (tag_of(place.hash), new.clone())));
        let after = entries.len();
        slot.store(leaf(entries));
        part.entries.store((part.entries.load(Relaxed) + after).saturating_sub(before), Relaxed);
    }

    /// Gives the part of `name` more leaves if it needs them. Only when every record in it stands under all of its names
    /// and no other one: the entries themselves do not say which name they are for.
    pub(super) fn make_room(&self, name: &str) {
        let part = Place::of(&self.hasher, name).part;
        let directory = self.parts[part].directory.load();
        if self.parts[part].entries.load(Relaxed) > directory.slice.len() * CROWDED {
            self.grow(part, &directory);
        }
    }

    fn grow(&self, part: usize, directory: &Directory<V>) {
        let now = directory.slice.len();
        let mut leaves: Vec<Vec<(u8, V)>> = (0..now * 2).map(|_| Vec::new()).collect();
        for (number, slot) in directory.slice.iter().enumerate() {
            let Some(leaf) = slot.load_full() else { continue };
            for (at, value) in leaf.slice.iter().enumerate() {
                if leaf.slice[..at].iter().any(|before| same(before, value)) {
                    continue; // It stands here for several names, which were all moved with the first.
                }
                for place in N::of(value).map(|name| Place::of(&self.hasher, name)) {
                    if place.part == part && leaf_of(place.hash, now) == number {
                        leaves[leaf_of(place.hash, now * 2)].push((tag_of(place.hash), value.clone()));
                    }
                }
            }
        }
        let slots = leaves.into_iter().map(|entries| Slot::new(leaf(entries)));
        self.parts[part].directory.store(ThinArc::from_header_and_iter((), slots));
    }
}

impl<V> Part<V> {
    /// `leaves` are as many as a power of two; each entry stands in the leaf of its hash.
    pub(super) fn new(leaves: Vec<Vec<(u64, V)>>) -> Self {
        let count = leaves.iter().map(Vec::len).sum();
        let slots = leaves
            .into_iter()
            .map(|entries| Slot::new(leaf(entries.into_iter().map(|(hash, value)| (tag_of(hash), value)).collect())));
        Self { directory: ArcSwapAny::new(ThinArc::from_header_and_iter((), slots)), entries: AtomicUsize::new(count) }
    }
}

fn entries<V: Clone>(leaf: &Leaf<V>) -> Vec<(u8, V)> {
    let tags = leaf.header.header.iter().copied().chain(iter::repeat(0));
    let mut entries = Vec::with_capacity(leaf.slice.len() + 1);
    entries.extend(tags.zip(leaf.slice.iter().cloned()));
    entries
}

fn leaf<V>(entries: Vec<(u8, V)>) -> Option<Leaf<V>> {
    let mut tags = [0; TAGGED];
    for (tag, (of, _)) in tags.iter_mut().zip(&entries) {
        *tag = *of;
    }
    (!entries.is_empty()).then(|| ThinArc::from_header_and_iter(tags, entries.into_iter().map(|(_, value)| value)))
}
