//! A snapshot that is being received. Readers do not see it before it is complete and checked.

use std::{sync::Arc, time::Duration};

use ahash::RandomState;
use tenon_proto::replication::v1::SnapshotEnd;

use super::{ledger::Refusals, records::Records, stream::Asked};
use crate::{BUCKETS, Digest, Position, Table, Value};

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
    pub(super) records: Records<V>,
}

/// A snapshot that is complete.
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
            records: Records::new(RandomState::new()),
        }
    }

    /// A table that readers can use, not checked yet. At a million records this takes some tenths of a second, on this
    /// thread alone: readers are served meanwhile.
    pub(super) fn finish(self) -> Complete<V> {
        let Self { position, view, partial, elsewhere, records, .. } = self;
        let (table, digest, refused) = Records::finish(vec![records], 1);
        Complete { position, view, partial, elsewhere, table, digest, refused }
    }
}

impl<V: Value> Complete<V> {
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

    /// Whether there is a record of `key`, decoded or not.
    pub(super) fn has(&self, key: &str) -> bool {
        self.refused.contains_key(key) || self.table.get(key).is_some()
    }
}
