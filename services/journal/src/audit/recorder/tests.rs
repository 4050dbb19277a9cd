use std::sync::atomic::{AtomicBool, Ordering};

use mesh_identity::OperatorRole;
use tonic::Code;

use super::*;
use crate::{
    AppendError, Embedded, History, Journal, Position, ReadError, Snapshot, Tail, Write,
    audit::{Cursor, Event, GRANTED_WITHIN, Service},
};

#[test]
fn an_action_is_the_service_and_the_method() {
    assert_eq!(action("/tenon.tcs.v1.Tenants/Suspend"), "Tenants/Suspend");
    assert_eq!(action("/Tenants/Suspend"), "Tenants/Suspend");
    assert_eq!(action("odd"), "odd");
}

/// A journal on a disk that is full while it is told so, and answers no write while somebody holds it.
struct Disk {
    inner: Arc<dyn Journal>,
    full: Arc<AtomicBool>,
    held: Arc<tokio::sync::Mutex<()>>,
}

#[tonic::async_trait]
impl Journal for Disk {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.append_at(self.inner.head().await.unwrap(), writes).await
    }

    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        let _held = self.held.lock().await;
        match self.full.load(Ordering::Relaxed) {
            true => Err(AppendError::Full("the disk".into())),
            false => self.inner.append_at(head, writes).await,
        }
    }

    async fn get(&self, key: &str) -> Result<Option<crate::Record>, ReadError> {
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

fn peer(id: &str) -> Arc<Peer> {
    let role = id.contains("/operator/").then_some(OperatorRole::Admin);
    Arc::new(Peer {
        id: format!("spiffe://demo.example/{id}").parse().unwrap(),
        serial: "1f".into(),
        not_after: 0,
        role,
    })
}

struct World {
    _dir: tempfile::TempDir,
    full: Arc<AtomicBool>,
    held: Arc<tokio::sync::Mutex<()>>,
    audit: Audit,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inner = Embedded::open(&dir.path().join("audit")).unwrap().kind("audit_tcs").unwrap();
        let full = Arc::new(AtomicBool::new(false));
        let held = Arc::default();
        let disk = Disk { inner, full: Arc::clone(&full), held: Arc::clone(&held) };
        Self { _dir: dir, full, held, audit: Audit::on(Service::Tcs, Arc::new(disk)) }
    }

    /// Makes a call that comes to `outcome`; `None`: it is none that is recorded.
    async fn call(&self, who: &str, path: &str, outcome: Result<(), Status>) -> Option<Result<(), Status>> {
        let subject = Subject::default();
        let begun = Recorder::begin(&self.audit, &peer(who), path, subject.clone())?;
        let recorded = match begun.await {
            Ok(recorded) => recorded,
            Err(status) => return Some(Err(status)),
        };
        subject.is("acme");
        recorded.ended(match &outcome {
            Ok(()) => Ok(()),
            Err(status) => Err(status),
        });
        Some(outcome)
    }

    /// Ends the writing: action, what and outcome of all records.
    async fn records(self) -> Vec<(String, String, String)> {
        self.audit.clone().end().await;
        let found = self.audit.after(&mut Cursor::default()).await.unwrap();
        found.into_iter().map(|it| (it.action, it.what, it.outcome)).collect()
    }
}

fn record(action: &str, what: &str, outcome: &str) -> (String, String, String) {
    (action.to_owned(), what.to_owned(), outcome.to_owned())
}

#[tokio::test]
async fn an_operators_call_is_recorded_before_and_after_and_a_read_of_nothing_secret_is_not() {
    let world = World::new();
    let (ann, wiki) = ("operator/ann", "svc/wiki");
    assert!(world.call(ann, "/tenon.tcs.v1.Tenants/Suspend", Ok(())).await.unwrap().is_ok());
    let refused = Err(Status::not_found("no such tenant"));
    assert!(world.call(ann, "/tenon.tcs.v1.Tenants/Get", refused).await.unwrap().is_err());
    for path in
        ["/tenon.policy.v1.Policy/Describe", "/grpc.health.v1.Health/Check", "/tenon.replication.v1.Replication/Status"]
    {
        assert!(world.call(ann, path, Ok(())).await.is_none(), "{path}");
    }
    assert!(world.call(wiki, "/tenon.tcs.v1.Tenants/Get", Ok(())).await.is_none(), "services' calls are in the logs");
    assert!(world.call(wiki, "/tenon.tcs.v1.Lifecycle/Apply", Ok(())).await.unwrap().is_ok());
    // What no table of this file names is recorded.
    assert!(world.call(ann, "/tenon.new.v1.Thing/Do", Ok(())).await.unwrap().is_ok());
    let subject = Subject::default();
    let list = Recorder::begin(&world.audit, &peer(ann), "/tenon.tcs.v1.Tenants/List", subject.clone());
    subject.is("us-east");
    drop(list.unwrap().await.unwrap_or_else(|status| panic!("{status}")));
    world.audit.refused(&peer(ann), "/tenon.tcs.v1.Tenants/Delete", &Status::permission_denied("no"));
    world.audit.refused(&peer(wiki), "/tenon.tcs.v1.Tenants/Delete", &Status::permission_denied("no"));
    assert_eq!(
        world.records().await,
        [
            record("Tenants/Suspend", "", "begun"),
            record("Tenants/Suspend", "acme", "done"),
            record("Tenants/Get", "", "begun"),
            record("Tenants/Get", "acme", "refused"),
            record("Lifecycle/Apply", "acme", "done"),
            record("Thing/Do", "", "begun"),
            record("Thing/Do", "acme", "done"),
            record("Tenants/List", "", "begun"),
            record("Tenants/List", "us-east", "unknown"),
            record("Tenants/Delete", "", "refused"),
        ]
    );
}

#[tokio::test]
async fn on_a_full_disk_what_grants_or_tells_is_refused_and_what_takes_away_is_done_and_recorded_later() {
    let world = World::new();
    let ann = "operator/ann";
    world.full.store(true, Ordering::Relaxed);
    for path in
        ["/tenon.tcs.v1.Tenants/Get", "/tenon.identity.v1.Identity/IssueOperator", "/tenon.tcs.v1.Tenants/Unsuspend"]
    {
        let status = world.call(ann, path, Ok(())).await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{path}");
        assert!(status.message().contains("audit record"), "{status}");
    }
    for path in ["/tenon.identity.v1.Identity/Revoke", "/tenon.tcs.v1.Tenants/Suspend", "/tenon.policy.v1.Policy/Apply"]
    {
        assert!(world.call(ann, path, Ok(())).await.unwrap().is_ok(), "{path}");
    }
    world.full.store(false, Ordering::Relaxed);
    let done = ["Identity/Revoke", "Tenants/Suspend", "Policy/Apply"].map(|action| record(action, "acme", "done"));
    assert_eq!(world.records().await, done);
}

#[tokio::test(start_paused = true)]
async fn behind_a_store_that_does_not_answer_nobody_waits_longer_than_ten_seconds_and_a_late_record_is_of_unknown_outcome()
 {
    let world = World::new();
    let ann = "operator/ann";
    let held = Arc::clone(&world.held).lock_owned().await;
    let began = tokio::time::Instant::now();
    let (get, undelete, suspend) = tokio::join!(
        world.call(ann, "/tenon.tcs.v1.Tenants/Get", Ok(())),
        world.call(ann, "/tenon.tcs.v1.Tenants/Undelete", Ok(())),
        world.call(ann, "/tenon.tcs.v1.Tenants/Suspend", Ok(())),
    );
    assert!(began.elapsed() <= GRANTED_WITHIN + std::time::Duration::from_millis(100), "{:?}", began.elapsed());
    for refused in [get, undelete] {
        let status = refused.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("nothing has changed"), "{status}");
    }
    assert!(suspend.unwrap().is_ok(), "what takes away waits a second");
    drop(held);
    // What was begun is there, and what it came to as far as anybody knows.
    let mut open = vec!["Tenants/Get", "Tenants/Undelete", "Tenants/Suspend"];
    for _ in 0..10 {
        world.audit.record(Event::new("self", "after", "")).await.unwrap();
        let found = world.audit.after(&mut Cursor::default()).await.unwrap();
        open.retain(|action| {
            let begun = found.iter().find(|it| it.action == *action && it.outcome == "begun").unwrap();
            !found.iter().any(|it| it.of == begun.sequence && it.outcome == "unknown")
        });
    }
    assert!(open.is_empty(), "{open:?}");
    let records = world.records().await;
    assert!(records.contains(&record("Tenants/Suspend", "acme", "done")), "{records:?}");
}

#[tokio::test]
async fn a_service_that_is_refused_again_and_again_does_not_fill_the_disk() {
    let world = World::new();
    for _ in 0..1_500 {
        let refused = Err(Status::permission_denied("it manages no tenants"));
        assert!(world.call("svc/wiki", "/tenon.tcs.v1.Lifecycle/Apply", refused).await.unwrap().is_err());
    }
    world.audit.clone().end().await;
    let head = world.audit.head().await.unwrap().sequence;
    assert!((1_000..1_400).contains(&head), "{head} records");
}
