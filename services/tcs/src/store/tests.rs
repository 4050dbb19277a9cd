use std::sync::atomic::{AtomicUsize, Ordering};

use journal::{Embedded, History, Snapshot, Tail, Write};
use tenon_proto::tcs::v1::{CreateTenant, DestroyTenant, Guard, GuardOverride, SuspendTenant, lifecycle_event};

use super::*;
use crate::staged::Staged;

struct Fixture {
    store: Store,
    journal: Arc<dyn Journal>,
    guards: Guards,
    _dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
    let (journal, guard) = (store.kind("tenant").unwrap(), store.kind("tenant_guard").unwrap());
    let guards = Guards::open(guard, CancellationToken::new()).await.unwrap();
    let store = open(&journal, &guards).await;
    Fixture { store, journal, guards, _dir: dir }
}

async fn open(journal: &Arc<dyn Journal>, guards: &Guards) -> Store {
    Store::open(Arc::clone(journal), guards.clone(), CancellationToken::new()).await.unwrap()
}

fn tenant(id: &str, hosts: &[&str]) -> TenantContext {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    TenantContext {
        tenant_id: id.to_owned(),
        status: 1,
        hosts,
        region: "us-east".to_owned(),
        ..TenantContext::default()
    }
}

fn import(tenants: impl IntoIterator<Item = TenantContext>) -> Import {
    let mut staged = Staged::default();
    tenants.into_iter().for_each(|tenant| staged.push(tenant));
    staged.finish().unwrap()
}

#[tokio::test]
async fn a_record_carries_the_revision_that_wrote_it() {
    let Fixture { store, journal, _dir, .. } = fixture().await;
    let position = store.import(import([tenant("a", &[]), tenant("b", &[])])).await.unwrap();
    assert_eq!(position.revision, 2);
    store.set_status("a".to_owned(), Status::Suspended).await.unwrap();
    for (id, revision) in [("a", 3), ("b", 2)] {
        let record = journal.get(id).await.unwrap().unwrap();
        assert_eq!(record.revision, revision);
        assert_eq!(TenantContext::decode(record.value).unwrap().revision, revision, "{id}");
        assert_eq!(store.get(id).await.unwrap().revision, revision, "{id}");
    }
}

#[tokio::test]
async fn an_import_that_is_repeated_changes_nothing() {
    let Fixture { store, journal, _dir, .. } = fixture().await;
    let tenants = || [tenant("a", &["a.example"]), tenant("b", &["b.example"])];
    let first = store.import(import(tenants())).await.unwrap();
    assert_eq!(store.import(import(tenants())).await.unwrap(), first);
    // Also when they come as they were read, with a revision.
    let read = [store.get("a").await.unwrap(), store.get("b").await.unwrap()];
    assert_eq!(store.import(import(read)).await.unwrap(), first);
    // Only the one that differs is written.
    let [a, b] = tenants();
    let next = store.import(import([a, TenantContext { region: "eu-west".to_owned(), ..b }])).await.unwrap();
    assert_eq!(next.revision, first.revision + 1);
    assert_eq!(journal.get("a").await.unwrap().unwrap().revision, 1);
    assert_eq!(journal.get("b").await.unwrap().unwrap().revision, 3);
}

#[tokio::test]
async fn a_host_of_a_tenant_that_is_not_replaced_is_refused_and_nothing_is_written() {
    let Fixture { store, journal, _dir, .. } = fixture().await;
    let before = store.import(import([tenant("acme", &["acme.example"])])).await.unwrap();
    let refused =
        store.import(import([tenant("new", &[]), tenant("globex", &["globex.example", "acme.example"])])).await;
    let message = refused.unwrap_err().to_string();
    assert_eq!(message, "record 2: tenant globex: host acme.example is that of tenant acme");
    assert_eq!(journal.head().await.unwrap(), before);
    assert!(matches!(store.get("new").await, Err(StoreError::Unknown(_))));
    assert!(matches!(store.by_host("globex.example").await, Err(StoreError::Unknown(_))));
}

#[tokio::test]
async fn hosts_move_between_tenants_of_one_import_whatever_their_order() {
    let Fixture { store, .. } = fixture().await;
    store.import(import([tenant("a", &["one.example"]), tenant("b", &["two.example"])])).await.unwrap();
    store.import(import([tenant("b", &["one.example"]), tenant("a", &["two.example"])])).await.unwrap();
    assert_eq!(store.by_host("one.example").await.unwrap().tenant_id, "b");
    assert_eq!(store.by_host("two.example").await.unwrap().tenant_id, "a");

    store.import(import([tenant("a", &[]), tenant("b", &["two.example"])])).await.unwrap();
    assert_eq!(store.by_host("two.example").await.unwrap().tenant_id, "b");
    assert!(matches!(store.by_host("one.example").await, Err(StoreError::Unknown(_))));
    store.import(import([tenant("c", &["one.example"])])).await.unwrap();
}

#[tokio::test]
async fn a_deleted_tenant_is_gone_with_its_hosts() {
    let Fixture { store, .. } = fixture().await;
    store.import(import([tenant("acme", &["acme.example"])])).await.unwrap();
    assert_eq!(store.delete("acme".to_owned()).await.unwrap().revision, 2);
    assert!(matches!(store.get("acme").await, Err(StoreError::Unknown(_))));
    assert!(matches!(store.delete("acme".to_owned()).await, Err(StoreError::Unknown(_))));
    assert!(matches!(store.set_status("acme".to_owned(), Status::Suspended).await, Err(StoreError::Unknown(_))));
    store.import(import([tenant("other", &["acme.example"])])).await.unwrap();
    // The same record as before is new again.
    assert_eq!(store.import(import([tenant("acme", &[])])).await.unwrap().revision, 4);
}

#[tokio::test]
async fn suspending_twice_is_one_write() {
    let Fixture { store, .. } = fixture().await;
    store.import(import([tenant("a", &[]), tenant("b", &[])])).await.unwrap();
    let first = store.set_status("a".to_owned(), Status::Suspended).await.unwrap();
    store.set_status("b".to_owned(), Status::Suspended).await.unwrap();
    assert_eq!(store.set_status("a".to_owned(), Status::Suspended).await.unwrap(), first);
    assert_eq!(store.get("a").await.unwrap().status(), Status::Suspended);
}

#[tokio::test]
async fn a_store_that_is_opened_again_knows_every_host_and_every_record() {
    let Fixture { store, journal, guards, _dir } = fixture().await;
    let position = store.import(import([tenant("a", &["a.example"])])).await.unwrap();
    drop(store);
    let store = open(&journal, &guards).await;
    assert_eq!(store.by_host("a.example").await.unwrap().tenant_id, "a");
    assert_eq!(store.import(import([tenant("a", &["a.example"])])).await.unwrap(), position);
    assert!(store.import(import([tenant("b", &["a.example"])])).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_at_once_lose_none() {
    let Fixture { store, .. } = fixture().await;
    store.import(import((0..20).map(|n| tenant(&format!("t{n}"), &[])))).await.unwrap();
    let mut writes = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (suspending, importing) = (store.clone(), store.clone());
        writes.spawn(async move { suspending.set_status(format!("t{n}"), Status::Suspended).await });
        writes.spawn(async move {
            let host = format!("u{n}.example");
            importing.import(import([tenant(&format!("u{n}"), &[&host])])).await
        });
    }
    let mut revisions: Vec<u64> = writes.join_all().await.into_iter().map(|write| write.unwrap().revision).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (21..=60).collect::<Vec<_>>());
    for n in 0..20 {
        assert_eq!(store.get(&format!("t{n}")).await.unwrap().status(), Status::Suspended);
        assert_eq!(store.by_host(&format!("u{n}.example")).await.unwrap().tenant_id, format!("u{n}"));
    }
}

/// Somebody else writes to the journal before each of the first `left` appends.
struct Contended {
    journal: Arc<dyn Journal>,
    left: AtomicUsize,
}

#[tonic::async_trait]
impl Journal for Contended {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.journal.append(writes).await
    }

    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        let left = self.left.load(Ordering::Relaxed);
        if left > 0 {
            self.left.store(left - 1, Ordering::Relaxed);
            let other = TenantContext { realm: format!("r{left}"), ..tenant("a", &["a.example"]) };
            let revision = self.journal.head().await.unwrap().revision + 1;
            let other = StagedTenant::new(other);
            self.journal.append(vec![Write::put(&*other.id, other.encoded(revision))]).await?;
        }
        self.journal.append_at(head, writes).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        self.journal.get(key).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.journal.snapshot().await
    }

    async fn head(&self) -> Result<Position, ReadError> {
        self.journal.head().await
    }

    async fn count(&self) -> Result<u64, ReadError> {
        self.journal.count().await
    }

    async fn history(&self) -> Result<History, ReadError> {
        self.journal.history().await
    }

    fn tail(&self, from: Position) -> Tail {
        self.journal.tail(from)
    }
}

#[tokio::test]
async fn a_write_that_another_writer_outran_is_decided_anew() {
    let Fixture { journal, guards, _dir, .. } = fixture().await;
    let contended = Arc::new(Contended { journal, left: AtomicUsize::new(2) });
    let store = open(&(Arc::clone(&contended) as Arc<dyn Journal>), &guards).await;
    let position = store.import(import([tenant("a", &[])])).await.unwrap();
    assert_eq!(position.revision, 3);

    contended.left.store(1, Ordering::Relaxed);
    store.set_status("a".to_owned(), Status::Suspended).await.unwrap();
    let found = store.get("a").await.unwrap();
    assert_eq!(
        (found.status(), found.realm.as_str(), found.revision),
        (Status::Suspended, "r1", 5),
        "the other's write is kept"
    );

    // The other one's host is known after the conflict.
    contended.left.store(1, Ordering::Relaxed);
    let refused = store.import(import([tenant("b", &["a.example"])])).await.unwrap_err();
    assert_eq!(refused.to_string(), "record 1: tenant b: host a.example is that of tenant a");

    contended.left.store(ATTEMPTS, Ordering::Relaxed);
    assert!(matches!(store.delete("a".to_owned()).await, Err(StoreError::Contended)));
}

#[tokio::test]
async fn what_stands_already_is_written_when_another_writer_has_changed_it_meanwhile() {
    let Fixture { journal, guards, _dir, .. } = fixture().await;
    let contended = Arc::new(Contended { journal, left: AtomicUsize::new(0) });
    let store = open(&(Arc::clone(&contended) as Arc<dyn Journal>), &guards).await;
    store.import(import([tenant("a", &[])])).await.unwrap();
    contended.left.store(1, Ordering::Relaxed);
    assert_eq!(store.import(import([tenant("a", &[])])).await.unwrap().revision, 3);
    assert_eq!(store.get("a").await.unwrap().realm, "");

    // The other one activates it while it is suspended once more.
    store.set_status("a".to_owned(), Status::Suspended).await.unwrap();
    contended.left.store(1, Ordering::Relaxed);
    assert_eq!(store.set_status("a".to_owned(), Status::Suspended).await.unwrap().revision, 6);
    assert_eq!(store.get("a").await.unwrap().status(), Status::Suspended);
}

/// Two stores over one journal, as two processes have it with a store over the network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_at_once_lose_nothing_and_give_no_host_to_two_tenants() {
    let Fixture { store, journal, guards, _dir } = fixture().await;
    let other = open(&journal, &guards).await;
    let mut writes = tokio::task::JoinSet::new();
    for n in 0..40 {
        for (name, store) in [("l", store.clone()), ("r", other.clone())] {
            writes.spawn(async move {
                let shared = format!("shared{n}.example");
                let own = format!("{name}{n}.example");
                store.import(import([tenant(&format!("{name}{n}"), &[&own])])).await.unwrap();
                // Only one of the two gets it.
                store.import(import([tenant(&format!("{name}{n}"), &[&own, &shared])])).await.is_ok()
            });
        }
    }
    let won = writes.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(won, 40);
    let head = journal.head().await.unwrap();
    assert_eq!(head.revision, 120, "80 tenants, 40 of them written twice");
    for store in [&store, &other] {
        let mut positions = store.positions();
        positions.wait_for(|position| *position == head).await.unwrap();
        for n in 0..40 {
            let owner = store.by_host(&format!("shared{n}.example")).await.unwrap();
            assert_eq!(owner.tenant_id[1..], n.to_string());
        }
        assert_eq!(store.list().await.unwrap().count(), 80);
    }
    for record in journal.snapshot().await.unwrap().records {
        assert_eq!(TenantContext::decode(record.value).unwrap().revision, record.revision, "{}", record.key);
    }
}

#[tokio::test]
async fn what_another_writer_wrote_is_known_without_a_write_of_ones_own() {
    let Fixture { store, journal, guards, _dir } = fixture().await;
    let other = open(&journal, &guards).await;
    let position = other.import(import([tenant("a", &["a.example"])])).await.unwrap();
    store.positions().wait_for(|known| *known >= position).await.unwrap();
    assert_eq!(store.by_host("a.example").await.unwrap().tenant_id, "a");
    other.delete("a".to_owned()).await.unwrap();
    store.positions().wait_for(|known| known.revision == 2).await.unwrap();
    assert!(store.by_host("a.example").await.is_err());
    store.import(import([tenant("b", &["a.example"])])).await.unwrap();
}

fn event(id: &str, change: lifecycle_event::Change) -> LifecycleEvent {
    LifecycleEvent { event_id: id.to_owned(), tenant_id: "acme".to_owned(), expected_revision: 0, change: Some(change) }
}

fn create() -> lifecycle_event::Change {
    let hosts = vec!["acme.example".to_owned()];
    lifecycle_event::Change::CreateTenant(CreateTenant {
        hosts,
        region: "us-east".to_owned(),
        ..CreateTenant::default()
    })
}

fn now() -> Timestamp {
    Timestamp { seconds: 1_000, nanos: 0 }
}

#[tokio::test]
async fn an_event_is_applied_once_however_often_it_comes() {
    let Fixture { store, journal, guards, _dir } = fixture().await;
    let first = store.apply(event("e1", create()), now()).await.unwrap();
    assert_eq!((first.revision, first.repeated_event), (1, false));
    let suspend = lifecycle_event::Change::SuspendTenant(SuspendTenant {});
    let second = store.apply(event("e2", suspend.clone()), now()).await.unwrap();
    assert_eq!(second.revision, 3, "the memory of the first event was written between");
    let head = journal.head().await.unwrap();

    // Also when it would be illegal by now, and by another process.
    for store in [&store, &open(&journal, &guards).await] {
        let again = store.apply(event("e1", create()), now()).await.unwrap();
        assert_eq!((again.epoch, again.revision, again.repeated_event), (first.epoch, 1, true));
        let other = store.apply(event("e1", suspend.clone()), now()).await.unwrap_err();
        assert!(matches!(other, StoreError::EventIdUsed(id) if id == "e1"));
    }
    assert_eq!(journal.head().await.unwrap(), head, "nothing was written");
    assert_eq!(store.list().await.unwrap().count(), 1, "events are no tenants");
    assert!(matches!(store.get("event/e1").await, Err(StoreError::Unknown(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_event_sent_to_two_writers_at_once_is_applied_once() {
    let Fixture { store, journal, guards, _dir } = fixture().await;
    let other = open(&journal, &guards).await;
    let sending = [&store, &other, &store, &other].map(|store| store.apply(event("e", create()), now()));
    let answers = futures_util::future::join_all(sending).await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|answer| !answer.repeated_event).count(), 1);
    assert!(answers.iter().all(|answer| answer.revision == 1));
}

#[tokio::test]
async fn an_event_that_was_decided_from_an_older_tenant_is_refused_with_the_revision() {
    let Fixture { store, .. } = fixture().await;
    store.apply(event("e1", create()), now()).await.unwrap();
    let suspend = lifecycle_event::Change::SuspendTenant(SuspendTenant {});
    let stale = LifecycleEvent { expected_revision: 7, ..event("e2", suspend.clone()) };
    let refused = store.apply(stale, now()).await.unwrap_err();
    assert_eq!(refused.to_string(), "tenant acme is at revision 1, not at revision 7");
    let fresh = LifecycleEvent { expected_revision: 1, ..event("e2", suspend) };
    store.apply(fresh, now()).await.unwrap();
    let none = LifecycleEvent { expected_revision: 7, tenant_id: "globex".to_owned(), ..event("e3", create()) };
    let refused = store.apply(none, now()).await.unwrap_err();
    assert!(matches!(refused, StoreError::OtherRevision { actual: None, .. }), "{refused}");
}

#[tokio::test]
async fn a_host_of_another_tenant_is_refused_to_a_new_one() {
    let Fixture { store, journal, _dir, .. } = fixture().await;
    store.import(import([tenant("globex", &["acme.example"])])).await.unwrap();
    let refused = store.apply(event("e", create()), now()).await.unwrap_err();
    assert_eq!(refused.to_string(), "host acme.example is that of tenant globex");
    assert_eq!(journal.head().await.unwrap().revision, 1);
    // What was refused is not remembered: the same event may be sent again.
    store.delete("globex".to_owned()).await.unwrap();
    assert!(!store.apply(event("e", create()), now()).await.unwrap().repeated_event);
    let destroy = lifecycle_event::Change::DestroyTenant(DestroyTenant {});
    store.apply(event("e2", destroy), now()).await.unwrap();
    assert!(matches!(store.by_host("acme.example").await, Err(StoreError::Unknown(_))));
}

#[tokio::test]
async fn old_events_are_forgotten_a_few_at_a_time() {
    let Fixture { store, journal, guards, _dir } = fixture().await;
    for n in 0..300 {
        let change = if n % 2 == 0 { create() } else { lifecycle_event::Change::DestroyTenant(DestroyTenant {}) };
        let at = Timestamp { seconds: n, nanos: 0 };
        store.apply(event(&format!("e{n}"), change), at).await.unwrap();
    }
    // As another process finds it.
    let store = open(&journal, &guards).await;
    assert_eq!(store.forget_events_before(299).await.unwrap(), FORGOTTEN_AT_ONCE);
    assert_eq!(store.forget_events_before(299).await.unwrap(), 299 - FORGOTTEN_AT_ONCE);
    assert_eq!(store.forget_events_before(299).await.unwrap(), 0);
    assert_eq!(journal.count().await.unwrap(), 1, "the last event; the tenant was destroyed");
    let last = lifecycle_event::Change::DestroyTenant(DestroyTenant {});
    assert!(store.apply(event("e299", last), now()).await.unwrap().repeated_event);
    assert!(!store.apply(event("e0", create()), now()).await.unwrap().repeated_event);
}

#[tokio::test]
async fn the_guard_keeps_canaries_and_most_of_a_large_map_but_not_single_tenants() {
    let Fixture { store, guards, .. } = fixture().await;
    store.import(import((0..30).map(|n| tenant(&format!("t{n}"), &[])))).await.unwrap();
    let rules = Guard { largest_shrink_percent: 10, canaries: vec!["t0".to_owned()], ..Guard::default() };
    guards.set(rules.clone()).await.unwrap();
    assert!(matches!(store.delete("t0".to_owned()).await, Err(StoreError::Shrink(Shrink::Canary(_)))));
    for n in 1..=3 {
        store.delete(format!("t{n}")).await.unwrap();
    }
    let too_far = store.delete("t4".to_owned()).await.unwrap_err();
    assert!(matches!(too_far, StoreError::Shrink(Shrink::TooFar { percent: 10, most: 30, left: 26 })), "{too_far}");
    let until = Some(Timestamp { seconds: i64::MAX, nanos: 0 });
    let allowed = GuardOverride { smallest_records: 25, until, reason: "ada".to_owned() };
    guards.set(Guard { r#override: Some(allowed), ..rules }).await.unwrap();
    store.delete("t0".to_owned()).await.unwrap();
    store.delete("t4".to_owned()).await.unwrap();
    assert!(store.delete("t5".to_owned()).await.is_err());
}

#[tokio::test]
async fn a_record_that_does_not_decode_stops_nobody_and_is_replaced_by_an_import() {
    let Fixture { journal, guards, _dir, .. } = fixture().await;
    journal.append(vec![Write::put("bad", vec![0x0a])]).await.unwrap();
    let store = open(&journal, &guards).await;
    assert!(matches!(store.get("bad").await, Err(StoreError::Damaged { .. })));
    store.import(import([tenant("bad", &["bad.example"])])).await.unwrap();
    assert_eq!(store.by_host("bad.example").await.unwrap().tenant_id, "bad");
}

#[tokio::test]
async fn a_hundred_thousand_tenants_are_one_import() {
    let Fixture { store, journal, _dir, .. } = fixture().await;
    let tenants = || (0..100_000).map(|n| tenant(&format!("t{n}"), &[&format!("t{n}.example")]));
    let position = store.import(import(tenants())).await.unwrap();
    assert_eq!(position.revision, 100_000);
    assert_eq!(journal.count().await.unwrap(), 100_000);
    assert_eq!(store.import(import(tenants())).await.unwrap(), position);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_waits_for_others_ends_in_time_and_writes_nothing_once_nobody_waits_for_it() {
    let Fixture { store, journal, _dir, .. } = fixture().await;
    let alone = store.shared.writing.lock().await;
    let outcome = store.import(import([tenant("a", &[])])).await;
    assert!(matches!(outcome, Err(StoreError::Busy)), "{outcome:?}");
    let left = tokio::time::timeout(Duration::from_secs(1), store.import(import([tenant("a", &[])])));
    assert!(left.await.is_err(), "its caller went away");
    drop(alone);
    store.import(import([tenant("b", &[])])).await.unwrap();
    assert!(journal.get("a").await.unwrap().is_none());
}
