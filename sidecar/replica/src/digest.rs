//! The digest by which two sides notice that their maps differ.

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128, xxh3_128_with_seed};

/// Number of parts of the key space, each with a sum of its own, so that a difference can be narrowed to one of them.
pub const BUCKETS: usize = 256;

/// The digest of a map, kept current change by change.
///
/// It does not depend on the order of changes: each bucket is the sum (modulo 2^128) of its records' hashes. It finds
/// accidents, not attackers: xxh3 is not a cryptographic hash, and the stream is authenticated by mTLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    buckets: Box<[u128; BUCKETS]>,
    /// Records of each bucket, so that one bucket can take the place of another.
    counts: Box<[u64; BUCKETS]>,
    /// Records held, since two maps of different size never agree.
    records: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), counts: Box::new([0; BUCKETS]), records: 0 }
    }
}

impl Digest {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a record in that was not held.
    pub fn add(&mut self, key: &str, revision: u64, value: &[u8]) {
        let bucket = Self::bucket_of(key);
        self.buckets[bucket] = self.buckets[bucket].wrapping_add(record(key, revision, value));
        self.counts[bucket] = self.counts[bucket].wrapping_add(1);
        self.records = self.records.wrapping_add(1);
    }

    /// Takes a record out that was held, exactly as it was added.
    pub fn remove(&mut self, key: &str, revision: u64, value: &[u8]) {
        let bucket = Self::bucket_of(key);
        self.buckets[bucket] = self.buckets[bucket].wrapping_sub(record(key, revision, value));
        self.counts[bucket] = self.counts[bucket].wrapping_sub(1);
        self.records = self.records.wrapping_sub(1);
    }

    /// Adds each record of `other`. What both hold then counts twice, until it is removed once.
    pub fn merge(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets.iter()).for_each(|(mine, theirs)| *mine = mine.wrapping_add(*theirs));
        self.counts.iter_mut().zip(other.counts.iter()).for_each(|(mine, theirs)| *mine = mine.wrapping_add(*theirs));
        self.records = self.records.wrapping_add(other.records);
    }

    /// Number of records held.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// The bucket, below [`BUCKETS`], that `key` falls into.
    #[must_use]
    pub fn bucket_of(key: &str) -> usize {
        usize::from(xxh3_64(key.as_bytes()).to_be_bytes()[0])
    }

    /// The sums of all buckets, in order.
    #[must_use]
    pub const fn buckets(&self) -> &[u128; BUCKETS] {
        &self.buckets
    }

    /// Takes the sum and the number of records of `bucket` from `other`.
    pub fn replace(&mut self, bucket: usize, other: &Self) {
        self.records = self.records.wrapping_sub(self.counts[bucket]).wrapping_add(other.counts[bucket]);
        self.buckets[bucket] = other.buckets[bucket];
        self.counts[bucket] = other.counts[bucket];
    }

    /// The sums of all buckets as `Start.bucket_digests` carries them: in order, 16 bytes each, little-endian.
    #[must_use]
    pub fn to_wire(&self) -> Bytes {
        self.buckets.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<_>>().into()
    }

    /// The buckets whose sums differ from those of `wire`, in order; absent when `wire` is no `Start.bucket_digests`.
    #[must_use]
    pub fn differing(&self, wire: &[u8]) -> Option<Vec<u32>> {
        if wire.len() != BUCKETS * 16 {
            return None;
        }
        let pairs = (0..).zip(self.buckets.iter().zip(wire.chunks_exact(16)));
        Some(pairs.filter(|(_, (sum, theirs))| sum.to_le_bytes() != **theirs).map(|(bucket, _)| bucket).collect())
    }

    /// All buckets and the number of records in 16 bytes, as heartbeats and snapshots carry them.
    #[must_use]
    pub fn fold(&self) -> [u8; 16] {
        let mut bytes = [0; BUCKETS * 16 + 8];
        for (slot, bucket) in bytes.chunks_exact_mut(16).zip(self.buckets.iter()) {
            slot.copy_from_slice(&bucket.to_le_bytes());
        }
        bytes[BUCKETS * 16..].copy_from_slice(&self.records.to_le_bytes());
        xxh3_128(&bytes).to_be_bytes()
    }
}

/// The folded digest of `(key, revision, value)` records, each key once, in any order.
pub fn digest<'a>(records: impl IntoIterator<Item = (&'a str, u64, &'a [u8])>) -> [u8; 16] {
    let mut digest = Digest::new();
    for (key, revision, value) in records {
        digest.add(key, revision, value);
    }
    digest.fold()
}

/// Key and revision seed the hash of the value, so that nothing can move between them unnoticed.
fn record(key: &str, revision: u64, value: &[u8]) -> u128 {
    xxh3_128_with_seed(value, xxh3_64_with_seed(key.as_bytes(), revision))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn of(map: &BTreeMap<String, (u64, Vec<u8>)>) -> [u8; 16] {
        digest(map.iter().map(|(key, (revision, value))| (key.as_str(), *revision, value.as_slice())))
    }

    proptest! {
        #[test]
        fn it_does_not_depend_on_order(
            map in prop::collection::btree_map("[a-z]{1,6}", (any::<u64>(), prop::collection::vec(any::<u8>(), 0..40)), 0..60)
        ) {
            let backwards = map.iter().rev().map(|(key, (revision, value))| (key.as_str(), *revision, value.as_slice()));
            prop_assert_eq!(digest(backwards), of(&map));
        }

        #[test]
        fn kept_change_by_change_it_equals_the_recomputed_one(
            changes in prop::collection::vec(("[a-f]{1,2}", prop::option::of(prop::collection::vec(any::<u8>(), 0..300))), 0..200)
        ) {
            let mut map: BTreeMap<String, (u64, Vec<u8>)> = BTreeMap::new();
            let mut digest = Digest::new();
            for (revision, (key, value)) in (1..).zip(changes) {
                if let Some((old_revision, old)) = map.remove(&key) {
                    digest.remove(&key, old_revision, &old);
                }
                if let Some(value) = value {
                    digest.add(&key, revision, &value);
                    map.insert(key, (revision, value));
                }
            }
            prop_assert_eq!(digest.fold(), of(&map));
            prop_assert_eq!(digest.records(), map.len() as u64);
        }

        #[test]
        fn buckets_that_differ_are_found_and_can_be_replaced(
            common in prop::collection::btree_map("[a-z]{1,3}", 1_u64..3, 0..300),
            other in prop::collection::btree_map("[a-z]{1,3}", 1_u64..3, 0..20)
        ) {
            let digest_of = |map: &BTreeMap<String, u64>| {
                let mut digest = Digest::new();
                map.iter().for_each(|(key, revision)| digest.add(key, *revision, b"v"));
                digest
            };
            let mut mine = digest_of(&common);
            let both = common.into_iter().chain(other.clone()).collect();
            let theirs = digest_of(&both);
            let differing = theirs.differing(&mine.to_wire()).unwrap();
            for bucket in &differing {
                let bucket = *bucket as usize;
                prop_assert!(other.keys().any(|key| Digest::bucket_of(key) == bucket));
                mine.replace(bucket, &theirs);
            }
            prop_assert_eq!(&mine, &theirs);
            prop_assert_eq!(mine.fold(), theirs.fold());
            prop_assert_eq!(theirs.differing(&mine.to_wire()), Some(vec![]));
            prop_assert_eq!(theirs.differing(b"short"), None);
        }

        #[test]
        fn a_changed_key_revision_or_value_changes_it(
            key in "[a-z]{1,9}", revision in any::<u64>(), value in prop::collection::vec(any::<u8>(), 1..300), at in any::<prop::sample::Index>()
        ) {
            let before = digest([(key.as_str(), revision, value.as_slice())]);
            let mut flipped = value.clone();
            flipped[at.index(value.len())] ^= 1;
            prop_assert_ne!(digest([(key.as_str(), revision, flipped.as_slice())]), before);
            prop_assert_ne!(digest([(key.as_str(), revision ^ 1, value.as_slice())]), before);
            let longer = format!("{key}x");
            prop_assert_ne!(digest([(longer.as_str(), revision, value.as_slice())]), before);
            prop_assert_ne!(digest([]), before);
        }
    }

    #[test]
    fn its_value_is_part_of_the_protocol() {
        assert_eq!(digest([]), Digest::new().fold());
        let known = digest([("acme", 7, b"active".as_slice()), ("zeta", 9, b"".as_slice())]);
        assert_eq!(known.map(|byte| format!("{byte:02x}")).concat(), "67d0c83d0bad9240224a8ae5bb6109b7");
    }
}
