//! Which records go by which other names.

use std::{collections::HashMap, sync::Arc};

use replica::{BUCKETS, Digest};

use super::{Before, Change};
use crate::Views;

/// Keys by other names. Names themselves are not kept, only where they hash to: the records have them.
pub(in crate::publisher) struct Aliases {
    /// In parts, so that none takes long to grow.
    parts: Vec<HashMap<u64, Keys>>,
}

/// Nearly always one. There may be several while a name goes from one record to another, or when two names hash alike.
enum Keys {
    One(Arc<str>),
    #[expect(clippy::box_collection, reason = "one word, so that the usual case takes two")]
    Several(Box<Vec<Arc<str>>>),
}

impl Default for Aliases {
    fn default() -> Self {
        Self { parts: (0..BUCKETS).map(|_| HashMap::new()).collect() }
    }
}

impl Aliases {
    /// Keys of records that may have this other name.
    pub(super) fn candidates(&self, alias: &str) -> impl Iterator<Item = &Arc<str>> {
        let keys = self.parts[Digest::bucket_of(alias)].get(&hash(alias));
        keys.map(Keys::as_slice).unwrap_or_default().iter()
    }

    pub(super) fn apply(&mut self, change: &Change, views: &dyn Views) {
        // First in, then out: a name that stays is never missing.
        if let Some(new) = &change.new {
            self.add(&change.key, new, views);
        }
        let Before::Held(old) = &change.before else { return };
        let kept = change.new.as_ref().map(|new| views.aliases(new)).unwrap_or_default();
        for alias in views.aliases(&old.value).into_iter().filter(|alias| !kept.contains(alias)) {
            let part = &mut self.parts[Digest::bucket_of(alias)];
            let hash = hash(alias);
            if part.get_mut(&hash).is_some_and(|keys| keys.remove(&change.key)) {
                part.remove(&hash);
            }
        }
    }

    pub(super) fn add(&mut self, key: &Arc<str>, value: &[u8], views: &dyn Views) {
        for alias in views.aliases(value) {
            let part = &mut self.parts[Digest::bucket_of(alias)];
            part.entry(hash(alias)).and_modify(|keys| keys.add(key)).or_insert_with(|| Keys::One(Arc::clone(key)));
        }
    }
}

impl Keys {
    fn as_slice(&self) -> &[Arc<str>] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Several(keys) => keys,
        }
    }

    fn add(&mut self, key: &Arc<str>) {
        if !self.as_slice().contains(key) {
            let keys = self.as_slice().iter().chain([key]).map(Arc::clone).collect();
            *self = Self::Several(Box::new(keys));
        }
    }

    /// Whether none is left.
    fn remove(&mut self, key: &Arc<str>) -> bool {
        match self {
            Self::One(one) => one == key,
            Self::Several(keys) => {
                keys.retain(|it| it != key);
                keys.is_empty()
            }
        }
    }
}

fn hash(alias: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(alias.as_bytes())
}
