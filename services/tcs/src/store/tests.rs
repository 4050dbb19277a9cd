use std::sync::atomic::{AtomicUsize, Ordering};

use journal::{Embedded, Snapshot, Tail};

use super::*;
use crate::staged::Staged;

struct Fixture {
    store: Store,
    journal: Arc<dyn Journal>,
    _dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let journal = Embedded::open(&dir.path().join("store.redb")).unwrap().kind("tenant").unwrap();
    Fixture { store: Store::open(Arc::clone(&journal)).await.unwrap(), journal, _dir: dir }
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
    let Fixture { store, journal, _dir } = fixture().await;
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
    let Fixture { store, journal, _dir } = fixture().await;
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
    let Fixture { store, journal, _dir } = fixture().await;
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
    let Fixture { store, journal, _dir } = fixture().await;
    let position = store.import(import([tenant("a", &["a.example"])])).await.unwrap();
    drop(store);
    let store = Store::open(journal).await.unwrap();
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
        let left = self.left.load(Ordering::Relaxed);
        if left > 0 {
            self.left.store(left - 1, Ordering::Relaxed);
            let other = TenantContext { realm: format!("r{left}"), ..tenant("a", &["a.example"]) };
            self.journal.append(vec![StagedTenant::new(other).write(0)]).await?;
        }
        self.journal.append(writes).await
    }

    async fn append_at(&self, _: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.append(writes).await
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

    async fn history(&self) -> Result<journal::History, ReadError> {
        self.journal.history().await
    }

    fn tail(&self, from: Position) -> Tail {
        self.journal.tail(from)
    }
}

#[tokio::test]
async fn a_write_that_another_writer_outran_is_decided_anew() {
    let Fixture { journal, _dir, .. } = fixture().await;
    let contended = Arc::new(Contended { journal, left: AtomicUsize::new(2) });
    let store = Store::open(Arc::clone(&contended) as Arc<dyn Journal>).await.unwrap();
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
    store.import(import([tenant("a", &[]), tenant("b", &["a.example"])])).await.unwrap();

    contended.left.store(ATTEMPTS, Ordering::Relaxed);
    assert!(matches!(store.delete("a".to_owned()).await, Err(StoreError::Write(AppendError::Conflict { .. }))));
}

#[tokio::test]
async fn a_hundred_thousand_tenants_are_one_import() {
    let Fixture { store, journal, _dir } = fixture().await;
    let tenants = || (0..100_000).map(|n| tenant(&format!("t{n}"), &[&format!("t{n}.example")]));
    let position = store.import(import(tenants())).await.unwrap();
    assert_eq!(position.revision, 100_000);
    assert_eq!(journal.count().await.unwrap(), 100_000);
    assert_eq!(store.import(import(tenants())).await.unwrap(), position);
}
