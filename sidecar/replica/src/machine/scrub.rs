//! Whether the table still is what the parents sent: a bit that flips in memory is found and mended.

use std::sync::Arc;

use super::Machine;
use crate::{Digest, Event, Table, Value};

/// One bucket that is being compared with the writer's account. It is read without a lock, a part at a time.
pub(crate) struct Scrubbing<V> {
    bucket: usize,
    table: Arc<Table<V>>,
    /// What the table has in it and the parents sent.
    values: Vec<V>,
    /// How many of those were read.
    next: usize,
    digest: Digest,
    believed: u128,
}

/// What a comparison showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scrubbed {
    Same,
    /// The bucket was changed while it was read: nothing is known.
    Meanwhile,
    Differs,
}

impl<V: Value> Scrubbing<V> {
    /// Reads `records` more of the bucket; false when it was read.
    pub(crate) fn advance(&mut self, records: usize) -> bool {
        let end = self.values.len().min(self.next + records);
        for value in &self.values[self.next..end] {
            self.digest.add(value.key(), value.revision(), value.raw());
        }
        self.next = end;
        end < self.values.len()
    }
}

impl<V: Value, O: FnMut(Event<'_, V>)> Machine<V, O> {
    /// Begins to compare `bucket`; absent when there is nothing to compare.
    pub(crate) fn scrub(&self, bucket: usize) -> Option<Scrubbing<V>> {
        let ledger = self.shared.ledger();
        let table = self.shared.table.load_full().filter(|_| !ledger.damaged.contains(&bucket))?;
        let mut values = table.bucket(bucket);
        values.retain(|value| !ledger.refused.contains_key(value.key()));
        let digest = ledger.redigest::<V>(&[], bucket);
        let believed = ledger.digest.buckets()[bucket];
        Some(Scrubbing { bucket, table, values, next: 0, digest, believed })
    }

    /// Ends a comparison. A bucket that differs is asked for with the next message of a parent.
    pub(crate) fn scrubbed(&mut self, scrubbing: &Scrubbing<V>) -> Scrubbed {
        let Scrubbing { bucket, table, digest, believed, .. } = scrubbing;
        let same_table = self.shared.table.load().as_ref().is_some_and(|held| Arc::ptr_eq(held, table));
        let mut ledger = self.shared.ledger();
        if !same_table || ledger.digest.buckets()[*bucket] != *believed {
            return Scrubbed::Meanwhile;
        }
        if digest.buckets()[*bucket] == *believed {
            return Scrubbed::Same;
        }
        ledger.damaged.insert(*bucket);
        drop(ledger);
        self.shared.health().status.scrub_differences += 1;
        Scrubbed::Differs
    }
}
