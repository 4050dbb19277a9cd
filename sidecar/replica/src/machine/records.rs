//! The records of a snapshot: taken in as they come, and put together in the end.

use std::{collections::HashMap, sync::Arc};

use ahash::RandomState;
use bytes::Bytes;

use super::ledger::{Accept, Refusals, Refused, decode};
use crate::{Digest, Table, Value, table::Builder};

/// Records as they came, from one place on.
pub(super) struct Records<V> {
    table: Builder<V>,
    /// Of all that came: a record that another one of its key replaces is taken out when all are put together.
    digest: Digest,
    refused: Refusals,
    /// What is held of the keys of refused records.
    kept: Vec<V>,
}

impl<V: Value> Records<V> {
    /// Those that are put together have the same `hasher`.
    pub(super) fn new(hasher: RandomState) -> Self {
        Self { table: Builder::new(hasher), digest: Digest::new(), refused: HashMap::new(), kept: Vec::new() }
    }

    /// Records that decoded so far.
    pub(super) const fn len(&self) -> usize {
        self.table.len()
    }

    /// Takes a record in. What `held` has unchanged is shared with it, and what does not decode stays as it is there.
    pub(super) fn take(&mut self, accept: &Accept<V>, key: String, revision: u64, raw: Bytes, held: Option<&Table<V>>) {
        self.digest.add(&key, revision, &raw);
        let old = held.and_then(|held| held.get(&key));
        let value = match old {
            Some(old) if old.revision() == revision && *old.raw() == raw => Ok(old),
            old => decode(accept, &key, revision, &raw).map_err(|error| (old, error)),
        };
        match value {
            Ok(value) => {
                self.forget(&key);
                self.table.push(value);
            }
            Err((old, error)) => {
                self.kept.extend(old);
                self.refuse(key, Refused { revision, raw: Bytes::copy_from_slice(&raw), error });
            }
        }
    }

    /// The table of what came in `pieces`, one behind the other, with the digest of what was sent and what of that does
    /// not decode. Of a key the last record counts; one that does not decode leaves the one before in the table.
    pub(super) fn finish(pieces: Vec<Self>, threads: usize) -> (Table<V>, Digest, Refusals) {
        let mut all = Self::new(RandomState::new());
        let mut tables = Vec::with_capacity(pieces.len());
        for piece in pieces {
            all.digest.merge(&piece.digest);
            let again: Vec<_> = all.refused.keys().filter(|key| piece.table.has(key)).cloned().collect();
            again.iter().for_each(|key| all.forget(key));
            piece.refused.into_iter().for_each(|(key, refused)| all.refuse(key, refused));
            all.kept.extend(piece.kept);
            tables.push(piece.table);
        }
        let (table, replaced) = Builder::finish(tables, threads);
        let Self { mut digest, refused, kept, .. } = all;
        for old in replaced.iter().chain(&refused.keys().filter_map(|key| table.get(key)).collect::<Vec<_>>()) {
            digest.remove(old.key(), old.revision(), old.raw());
        }
        for old in kept {
            if table.get(old.key()).is_none() {
                table.insert(old);
            }
        }
        (table, digest, refused)
    }

    fn refuse(&mut self, key: impl Into<Arc<str>>, refused: Refused) {
        let key = key.into();
        self.forget(&key);
        self.refused.insert(key, refused);
    }

    /// A record that did not decode no longer counts: a later one of its key came.
    fn forget(&mut self, key: &str) {
        if let Some(refused) = self.refused.remove(key) {
            self.digest.remove(key, refused.revision, &refused.raw);
        }
    }
}
