//! A snapshot that is being received. Readers do not see it before it is complete and checked.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tenon_proto::replication::v1::SnapshotEnd;

use super::{
    ledger::{Refusals, Refused, decode},
    stream::Asked,
};
use crate::{BUCKETS, Digest, Position, Table, Value, table::Builder};

pub(super) struct Incoming<V> {
    /// Who sends it.
    pub(super) parent: usize,
    /// When something of it came last.
    pub(super) heard: Duration,
    pub(super) position: Position,
    pub(super) view: Arc<str>,
    /// The buckets that come, when not all do.
    pub(super) partial: Option<Buckets>,
    /// It belongs to another history or view than what is held: nothing of that may change meanwhile.
    pub(super) elsewhere: bool,
    pub(super) table: Builder<V>,
    pub(super) digest: Digest,
    pub(super) refused: Refusals,
}

/// A snapshot that is complete and checked.
pub(super) struct Complete<V> {
    pub(super) position: Position,
    pub(super) view: Arc<str>,
    pub(super) partial: Option<Buckets>,
    pub(super) elsewhere: bool,
    pub(super) table: Table<V>,
    pub(super) digest: Digest,
    pub(super) refused: Refusals,
}

/// A set of buckets.
#[derive(Clone, Debug)]
pub(super) struct Buckets(Box<[bool; BUCKETS]>);

impl Buckets {
    /// Absent when there is no such bucket.
    pub(super) fn of(buckets: &[u32]) -> Option<Self> {
        let mut listed = Box::new([false; BUCKETS]);
        for bucket in buckets {
            *listed.get_mut(usize::try_from(*bucket).ok()?)? = true;
        }
        Some(Self(listed))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0[Digest::bucket_of(key)]
    }

    pub(super) fn holds(&self, bucket: usize) -> bool {
        self.0[bucket]
    }

    pub(super) fn listed(&self) -> impl Iterator<Item = usize> {
        (0..BUCKETS).filter(|bucket| self.0[*bucket])
    }
}

impl<V: Value> Incoming<V> {
    pub(super) fn new(parent: usize, position: Position, view: Arc<str>) -> Self {
        Self {
            parent,
            heard: Duration::ZERO,
            position,
            view,
            partial: None,
            elsewhere: false,
            table: Builder::default(),
            digest: Digest::new(),
            refused: HashMap::new(),
        }
    }

    /// Takes a record in. What `held` has unchanged is shared with it, and what does not decode stays as it is there.
    pub(super) fn take(&mut self, key: String, revision: u64, raw: Bytes, held: Option<&Table<V>>) {
        if let Some(refused) = self.refused.remove(key.as_str()) {
            self.digest.remove(&key, refused.revision, &refused.raw);
        } else if let Some(twice) = self.table.get(&key) {
            self.digest.remove(&key, twice.revision(), twice.raw());
        }
        self.digest.add(&key, revision, &raw);
        let old = held.and_then(|held| held.get(&key));
        let value = match old {
            Some(old) if old.revision() == revision && *old.raw() == raw => old,
            old => match decode::<V>(&key, revision, &raw) {
                Ok(value) => value,
                Err(error) => {
                    old.into_iter().for_each(|old| self.table.insert(old));
                    let raw = Bytes::copy_from_slice(&raw);
                    self.refused.insert(key.into(), Refused { revision, raw, error });
                    return;
                }
            },
        };
        self.table.insert(value);
    }

    /// Whether it is what the parent sent, whole: by number and digest of the whole view.
    pub(super) fn check(&self, end: &SnapshotEnd, asked: Option<&Asked>) -> Result<(), String> {
        let put_together;
        let digest = match (&self.partial, asked) {
            (Some(buckets), Some(asked)) => {
                let mut whole = asked.sent.clone();
                buckets.listed().for_each(|bucket| whole.replace(bucket, &self.digest));
                put_together = whole;
                &put_together
            }
            _ => &self.digest,
        };
        if digest.records() == end.records && digest.fold()[..] == end.digest[..] {
            return Ok(());
        }
        let (position, received) = (self.position, digest.records());
        Err(format!("the snapshot of {} records at {position} arrived damaged, with {received}", end.records))
    }

    /// A table that readers can use. At a million records this takes some tens of milliseconds.
    pub(super) fn finish(self) -> Complete<V> {
        let Self { position, view, partial, elsewhere, table, digest, refused, .. } = self;
        Complete { position, view, partial, elsewhere, table: table.finish(), digest, refused }
    }

    /// Whether there is a record of `key`, decoded or not.
    pub(super) fn has(&self, key: &str) -> bool {
        self.refused.contains_key(key) || self.table.get(key).is_some()
    }
}
