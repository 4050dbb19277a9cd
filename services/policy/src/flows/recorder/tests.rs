//! What a sidecar that says it is many can make grow.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use journal::{Embedded, History, Position, Record, Snapshot, Tail};

use super::*;
use crate::flows::{intake::Done, passed::Passed};

const NOW: u64 = 1_800_000_000;

/// Counts how often a mark is read.
struct Counting {
    inner: Arc<dyn Journal>,
    reads: AtomicUsize,
    full: AtomicBool,
}

#[tonic::async_trait]
impl Journal for Counting {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        if self.full.load(Ordering::Relaxed) {
            return Err(AppendError::Full("the test says so".into()));
        }
        self.inner.append(writes).await
    }

    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        if self.full.load(Ordering::Relaxed) {
            return Err(AppendError::Full("the test says so".into()));
        }
        self.inner.append_at(head, writes).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        if MarkKey::parse(key).is_some() {
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.get(key).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.inner.snapshot().await
    }

    async fn head(&self) -> Result<Position, ReadError> {
        self.inner.head().await
    }

    async fn count(&self) -> Result<u64, ReadError> {
        self.inner.count().await
    }

    async fn history(&self) -> Result<History, ReadError> {
        self.inner.history().await
    }

    fn tail(&self, from: Position) -> Tail {
        self.inner.tail(from)
    }
}

struct Fixture {
    recorder: Recorder,
    journal: Arc<Counting>,
    intake: Arc<Intake>,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inner = Embedded::open(&dir.path().join("store.redb")).unwrap().kind("flow").unwrap();
        let journal = Arc::new(Counting { inner, reads: AtomicUsize::new(0), full: AtomicBool::new(false) });
        let (intake, arriving) = Intake::new(Passed::default());
        let recorder = Recorder::new(Arc::clone(&journal) as _, "a".into(), Arc::clone(&intake), arriving);
        Self { recorder, journal, intake, _dir: dir }
    }

    fn report(&self, service: &str, instance: &str, sequence: u64) -> Done {
        let flow = Flow {
            caller: "wiki".to_owned(),
            service: service.to_owned(),
            path: "/a.B/C".to_owned(),
            decision: Decision::Allowed.into(),
            reason: String::new(),
            count: 1,
        };
        self.intake.take((&service.into(), &instance.into()), (1, sequence), NOW, vec![flow]).unwrap()
    }

    /// One round over what has come.
    async fn round(&mut self) {
        while let Ok(batch) = self.recorder.arriving.try_recv() {
            self.recorder.pending.push(batch);
        }
        self.recorder.write_all(NOW).await;
    }

    fn reads(&self) -> usize {
        self.journal.reads.swap(0, Ordering::Relaxed)
    }
}

fn taken(done: &mut [Done]) -> usize {
    done.iter_mut().filter_map(|done| done.try_recv().ok()).filter(Result::is_ok).count()
}

/// Named after a sidecar that made up names: each was kept in memory until the hour ended, and cost a read that everybody waited for.
#[tokio::test]
async fn instances_that_somebody_makes_up_are_neither_kept_nor_each_looked_for() {
    let mut fixture = Fixture::new();
    let made_up = |fixture: &Fixture, round: u64| -> Vec<Done> {
        (0..300).map(|number| fixture.report("media", &format!("made-up-{round}-{number}"), 1)).collect()
    };
    let mut first = made_up(&fixture, 0);
    fixture.round().await;
    assert_eq!(taken(&mut first), NEWCOMERS, "also where all come at once");
    assert_eq!(fixture.reads(), NEWCOMERS + SOUGHT);
    for round in 1..4 {
        let mut more = made_up(&fixture, round);
        let mut other = [fixture.report("issues", "issues-1", round)];
        fixture.round().await;
        assert_eq!((taken(&mut more), taken(&mut other)), (0, 1));
        assert!(fixture.reads() <= SOUGHT + 1);
    }
    assert_eq!(fixture.recorder.held.marks.len(), NEWCOMERS + 1);
    assert!(fixture.recorder.pending.is_empty());
}

#[tokio::test]
async fn a_sidecar_that_another_policy_service_knows_is_taken_however_many_new_ones_there_are() {
    let mut fixture = Fixture::new();
    let mut new: Vec<_> = (0..NEWCOMERS).map(|number| fixture.report("media", &format!("new-{number}"), 1)).collect();
    fixture.round().await;
    assert_eq!(taken(&mut new), NEWCOMERS);
    let mut late = [fixture.report("media", "media-1", 1)];
    fixture.round().await;
    assert_eq!(taken(&mut late), 0);
    let mark = Mark { boot: 1, sequence: 1, at_unix_seconds: NOW, writer: "b".to_owned(), refused: Vec::new() };
    let key = MarkKey { service: "media".into(), instance: "media-1".into() };
    fixture.journal.append(vec![Write::put(key.text(), mark.encode_to_vec())]).await.unwrap();
    let mut known = [fixture.report("media", "media-1", 1), fixture.report("media", "media-1", 2)];
    fixture.round().await;
    assert_eq!(taken(&mut known), 2);
}

#[tokio::test]
async fn new_sidecars_are_counted_once_while_the_store_does_not_take_them() {
    let mut fixture = Fixture::new();
    let mut new: Vec<_> = (0..NEWCOMERS).map(|number| fixture.report("media", &format!("new-{number}"), 1)).collect();
    for _ in 0..3 {
        while let Ok(batch) = fixture.recorder.arriving.try_recv() {
            fixture.recorder.pending.push(batch);
        }
        let group = mem::take(&mut fixture.recorder.pending);
        assert!(fixture.recorder.look_up(&group).await.unwrap().is_empty());
        fixture.recorder.forget(&group);
        fixture.recorder.pending = group;
    }
    fixture.round().await;
    assert_eq!(taken(&mut new), NEWCOMERS);
}

/// Named after batches without flows: they waited by the million while the store failed, and none of them was counted.
#[tokio::test]
async fn a_batch_takes_room_also_where_it_says_nothing() {
    let fixture = Fixture::new();
    let from = (&"media".into(), &"x".repeat(256).as_str().into());
    let mut waiting = Vec::new();
    let refused = loop {
        match fixture.intake.take(from, (1, waiting.len() as u64 + 1), NOW, Vec::new()) {
            Ok(done) => waiting.push(done),
            Err(status) => break status,
        }
        assert!(waiting.len() < 100_000, "they do not end");
    };
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert!(waiting.len() > 5000, "a batch of each of many sidecars has room: {}", waiting.len());
}

/// Named after a rollout that was promoted while nothing that its canaries refused was heard of.
#[tokio::test]
async fn it_is_known_that_flows_are_not_recorded_from_the_first_that_was_not_until_all_are() {
    let mut fixture = Fixture::new();
    let _first = fixture.report("media", "a", 1);
    fixture.round().await;
    assert!(fixture.intake.is_recording());
    fixture.journal.full.store(true, Ordering::Relaxed);
    let mut second = [fixture.report("media", "a", 2)];
    fixture.round().await;
    assert!(!fixture.intake.is_recording());
    fixture.round().await;
    assert!(!fixture.intake.is_recording());
    fixture.journal.full.store(false, Ordering::Relaxed);
    fixture.round().await;
    assert!(fixture.intake.is_recording());
    assert_eq!(taken(&mut second), 1);
}
