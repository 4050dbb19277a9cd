//! Bits that flip in memory.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use super::*;
use crate::{BUCKETS, Digest, Raw, machine::Scrubbed};

/// A record whose bytes can be flipped under way.
#[derive(Clone, Debug)]
struct Fragile {
    good: Raw,
    bad: Raw,
    flipped: Arc<AtomicBool>,
}

impl Fragile {
    fn now(&self) -> &Raw {
        if self.flipped.load(Relaxed) { &self.bad } else { &self.good }
    }
}

impl Value for Fragile {
    fn decode(key: &str, revision: u64, raw: Bytes) -> Result<Self, String> {
        let mut bad = raw.to_vec();
        bad[0] ^= 4;
        let (good, bad) = (Raw::new(key, revision, raw)?, Raw::new(key, revision, bad.into())?);
        Ok(Self { good, bad, flipped: Arc::default() })
    }

    fn key(&self) -> &str {
        self.now().key()
    }

    fn revision(&self) -> u64 {
        self.now().revision()
    }

    fn raw(&self) -> &[u8] {
        self.now().raw()
    }
}

struct Memory {
    machine: Machine<Fragile, fn(Event<'_, Fragile>)>,
    shared: Arc<Shared<Fragile>>,
    replica: Replica<Fragile>,
}

impl Memory {
    fn new() -> Self {
        let shared = Arc::new(Shared::new());
        let observer: fn(Event<'_, Fragile>) = |_| {};
        let machine = Machine::new(Arc::clone(&shared), Guard::default(), 1, observer);
        let mut it = Self { machine, replica: Replica::of(Arc::clone(&shared)), shared };
        it.begin();
        for message in [start(at(3)), chunk(THREE), end(THREE)] {
            it.receive(message).unwrap();
        }
        it
    }

    fn begin(&mut self) -> Start {
        let request = self.machine.begin(0, "tenant", "test", Now::default()).unwrap().request;
        let Some(Request::Start(start)) = request else { panic!("not a start") };
        start
    }

    fn receive(&mut self, response: Response) -> Result<Option<FollowRequest>, Break> {
        self.machine.receive(0, FollowResponse { response: Some(response) }, Now::default())
    }

    fn pass(&mut self) -> Vec<usize> {
        (0..BUCKETS).filter(|bucket| self.scrub(*bucket) == Some(Scrubbed::Differs)).collect()
    }

    fn scrub(&mut self, bucket: usize) -> Option<Scrubbed> {
        let mut scrubbing = self.machine.scrub(bucket)?;
        while scrubbing.advance(1) {}
        Some(self.machine.scrubbed(&scrubbing))
    }

    fn flip(&self, key: &str) {
        self.replica.get(key).unwrap().flipped.store(true, Relaxed);
    }

    /// What a good parent sends to who began with this.
    fn mend(&mut self, begun: &Start) {
        let mut theirs = Digest::new();
        THREE.iter().for_each(|(key, revision, value)| theirs.add(key, *revision, value.as_bytes()));
        let buckets = theirs.differing(&begun.bucket_digests).unwrap();
        let listed = |key: &str| buckets.contains(&u32::try_from(Digest::bucket_of(key)).unwrap());
        let wanted: Vec<_> = THREE.iter().filter(|(key, ..)| listed(key)).copied().collect();
        let partial = SnapshotStart { position: Some(at(3).into()), view: "all".to_owned(), partial: true, buckets };
        self.receive(Response::SnapshotStart(partial)).unwrap();
        self.receive(chunk(&wanted)).unwrap();
        self.receive(end(THREE)).unwrap();
    }
}

fn heartbeat() -> Response {
    let digest = of(THREE).to_vec().into();
    Response::Heartbeat(Heartbeat { head: Some(at(3).into()), digest, records: 3 })
}

#[test]
fn a_flipped_bit_is_found_mended_by_the_parent_and_not_saved() {
    let mut it = Memory::new();
    assert_eq!(it.pass(), [0; 0]);
    assert!(it.shared.saved().is_some());
    it.flip("b");
    assert_eq!(it.receive(heartbeat()), Ok(None), "the account alone does not show it");
    assert_eq!(it.pass(), [Digest::bucket_of("b")]);
    assert_eq!(it.scrub(Digest::bucket_of("b")), None, "it is known");
    assert!(it.shared.saved().is_none());
    assert_eq!(it.receive(heartbeat()), Err(Break::Damaged));
    let begun = it.begin();
    assert_eq!(begun.resume, None);
    it.mend(&begun);
    assert_eq!(it.replica.get("b").unwrap().raw(), b"two");
    assert_eq!(it.receive(heartbeat()), Ok(None));
    assert_eq!(it.pass(), [0; 0]);
    assert!(it.shared.saved().is_some());
    let status = it.replica.status();
    assert_eq!((status.scrub_differences, status.repaired_buckets, status.divergences), (1, 1, 0));
}

#[test]
fn what_flipped_is_found_when_it_is_about_to_be_saved() {
    let mut it = Memory::new();
    it.flip("c");
    assert!(it.shared.saved().is_none());
    assert_eq!(it.replica.status().scrub_differences, 1);
    assert_eq!(it.receive(heartbeat()), Err(Break::Damaged));
    let begun = it.begin();
    it.mend(&begun);
    assert!(it.shared.saved().is_some());
}

#[test]
fn a_flipped_record_that_is_replaced_shows_in_the_next_heartbeat() {
    let mut it = Memory::new();
    it.flip("b");
    let change = Change { key: "b".to_owned(), revision: 4, value: Some("four".into()), several: false };
    let delta = Delta { epoch: 1, previous_revision: 3, revision: 4, changes: vec![change] };
    it.receive(Response::Delta(delta)).unwrap();
    let now: Records<'_> = &[("a", 1, "one"), ("b", 4, "four"), ("c", 3, "three")];
    let digest = of(now).to_vec().into();
    let told = Response::Heartbeat(Heartbeat { head: Some(at(4).into()), digest, records: 3 });
    assert_eq!(it.receive(told), Err(Break::Diverged(at(4))));
}

#[test]
fn a_bucket_that_changes_while_it_is_read_is_not_taken_for_damaged() {
    let mut it = Memory::new();
    let mut scrubbing = it.machine.scrub(Digest::bucket_of("b")).unwrap();
    let change = Change { key: "b".to_owned(), revision: 4, value: Some("four".into()), several: false };
    let delta = Delta { epoch: 1, previous_revision: 3, revision: 4, changes: vec![change] };
    it.receive(Response::Delta(delta)).unwrap();
    while scrubbing.advance(1) {}
    assert_eq!(it.machine.scrubbed(&scrubbing), Scrubbed::Meanwhile);
    assert_eq!(it.pass(), [0; 0]);
}
