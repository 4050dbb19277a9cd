//! The writer's account of the table.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use tenon_proto::replication::v1::{Change, GuardRules};

use crate::{Digest, Position, Table, Value, reader::Shared, state::Saved};

/// The writer's account of the table.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Where the table is; absent before the first complete snapshot.
    pub(super) position: Option<Position>,
    /// The parent's name for what it shows to this follower. A position means something within one view only.
    pub(super) view: Arc<str>,
    /// Digest of what the parent sent, refused records included: it is compared with the parent's.
    pub(super) digest: Digest,
    /// The parent's records that do not decode here, by key. The table keeps what it had for those keys.
    pub(super) refused: Refusals,
    /// What the guards were told last, for the state file.
    pub(super) rules: GuardRules,
    /// Buckets whose records in the table are not those that parents sent.
    pub(super) damaged: BTreeSet<usize>,
    /// What changed since the state file's writer began to read; absent while it does not read.
    noted: Option<HashSet<Box<str>>>,
}

/// Whether this follower takes a record that decodes; the error is that of a record that does not.
pub(crate) type Accept<V> = Arc<dyn Fn(&V) -> Result<(), String> + Send + Sync>;

/// Records that do not decode, by key.
pub(super) type Refusals = HashMap<Arc<str>, Refused>;

#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) revision: u64,
    pub(super) raw: Bytes,
    pub(super) error: String,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            position: None,
            view: "".into(),
            digest: Digest::new(),
            refused: HashMap::new(),
            rules: GuardRules::default(),
            damaged: BTreeSet::new(),
            noted: None,
        }
    }
}

impl Ledger {
    /// What is held became this.
    pub(super) fn replace(&mut self, position: Position, view: Arc<str>, digest: Digest, refused: Refusals) {
        let rules = std::mem::take(&mut self.rules);
        *self = Self { position: Some(position), view, digest, refused, rules, ..Self::default() };
    }

    /// Tells the state file's writer that the record of `key` is about to change.
    pub(super) fn note(&mut self, key: &str) {
        if let Some(noted) = &mut self.noted {
            noted.insert(key.into());
        }
    }

    /// The digest of `values`, which the table has in `bucket`, and of what did not decode there.
    pub(super) fn redigest<V: Value>(&self, values: &[V], bucket: usize) -> Digest {
        let mut digest = Digest::new();
        for value in values.iter().filter(|value| !self.refused.contains_key(value.key())) {
            digest.add(value.key(), value.revision(), value.raw());
        }
        for (key, refused) in self.refused.iter().filter(|(key, _)| Digest::bucket_of(key) == bucket) {
            digest.add(key, refused.revision, &refused.raw);
        }
        digest
    }
}

/// What a change did to a table.
pub(super) struct Applied<V> {
    pub(super) old: Option<V>,
    /// Absent: the record is gone.
    pub(super) new: Option<V>,
}

/// Applies a change. Absent: readers see nothing of it.
pub(super) fn apply<V: Value>(
    accept: &Accept<V>,
    table: &Table<V>,
    digest: &mut Digest,
    refused: &mut Refusals,
    Change { key, revision, value, .. }: Change,
) -> Option<Applied<V>> {
    let old = table.get(&key);
    if let Some(refused) = refused.remove(key.as_str()) {
        digest.remove(&key, refused.revision, &refused.raw);
    } else if let Some(old) = &old {
        digest.remove(&key, old.revision(), old.raw());
    }
    let Some(raw) = value else {
        table.remove(&key)?;
        return Some(Applied { old, new: None });
    };
    digest.add(&key, revision, &raw);
    match decode(accept, &key, revision, &raw) {
        Ok(new) => {
            table.insert(new.clone());
            Some(Applied { old, new: Some(new) })
        }
        Err(error) => {
            refused.insert(key.into(), Refused { revision, raw: Bytes::copy_from_slice(&raw), error });
            None
        }
    }
}

pub(super) fn decode<V: Value>(accept: &Accept<V>, key: &str, revision: u64, raw: &Bytes) -> Result<V, String> {
    let value = V::decode(key, revision, raw.clone())?;
    debug_assert_eq!(value.raw(), &raw[..], "Value::raw must return what Value::decode was given: the digest needs it");
    accept(&value)?;
    Ok(value)
}

impl<V: Value> Shared<V> {
    /// The map exactly as it is at one position, for the state file. Absent when there is none, and when it is not what the
    /// parents sent: then it is not worth keeping, and will be mended.
    ///
    /// The map goes on changing while it is read.
    pub(crate) fn saved(&self) -> Option<Saved<V>> {
        loop {
            let table = {
                let mut ledger = self.ledger();
                ledger.noted = Some(HashSet::new());
                self.table.load_full()?
            };
            let mut held: Vec<V> = table.iter().collect();
            let mut ledger = self.ledger();
            // Without notes another map took the place of this one.
            let Some(noted) = ledger.noted.take() else { continue };
            let changed: Vec<V> = noted.iter().filter_map(|key| table.get(key)).collect();
            let refused = ledger.refused.iter();
            let refused = refused.map(|(key, it)| (Arc::clone(key), it.revision, it.raw.clone())).collect();
            let (position, view, rules) = (ledger.position?, Arc::clone(&ledger.view), ledger.rules.clone());
            let believed = ledger.digest.clone();
            drop(ledger);
            if !noted.is_empty() {
                held.retain(|value| !noted.contains(value.key()));
                held.extend(changed);
            }
            let saved = Saved { position, view, rules, held, refused, digest: believed };
            return self.is_sound(&saved).then_some(saved);
        }
    }

    /// Whether `saved` is what the parents sent. What is not is left to be fetched again.
    fn is_sound(&self, saved: &Saved<V>) -> bool {
        let mut digest = Digest::new();
        let refused: HashSet<&str> = saved.refused.iter().map(|(key, ..)| &**key).collect();
        for value in saved.held.iter().filter(|value| !refused.contains(value.key())) {
            digest.add(value.key(), value.revision(), value.raw());
        }
        for (key, revision, raw) in &saved.refused {
            digest.add(key, *revision, raw);
        }
        let differing = digest.differing(&saved.digest.to_wire()).unwrap_or_default();
        if differing.is_empty() {
            return true;
        }
        let mut ledger = self.ledger();
        if ledger.position == Some(saved.position) {
            let found = differing.iter().map(|bucket| *bucket as usize);
            let fresh = found.filter(|bucket| ledger.damaged.insert(*bucket)).count();
            self.health().status.scrub_differences += fresh as u64;
        }
        false
    }
}
