use tempfile::TempDir;

use super::*;
use crate::tenancy::Shard;

const NOTES: Table<String> = Table::new("notes");

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn tenancy(tenant: &str, database: &str, schema: &str) -> Tenancy {
    let shard = Shard { cluster: name("c1"), database: name(database), schema: name(schema) };
    Tenancy { tenant: name(tenant), shard }
}

async fn put(store: &Store, row: &'static str, value: &str) {
    let value = value.to_owned();
    store.write(move |changes| changes.put(NOTES, row, &value)).await.map_err(|error: StoreError| error).unwrap();
}

async fn all(store: &Store) -> Vec<(String, String)> {
    let listed = store.read(|rows| rows.list(NOTES, "", None, usize::MAX)).await;
    listed.map_err(|error: StoreError| error).unwrap()
}

#[tokio::test]
async fn tenants_of_one_shard_do_not_see_each_others_rows_of_the_same_name() {
    let folder = TempDir::new().unwrap();
    let shards = Shards::open(folder.path()).unwrap();
    // Neighbours in the order of keys, on both sides, and the same tenant in another schema and another database.
    let others = [("acme0", "d", "s"), ("acm", "d", "s"), ("acme-", "d", "s"), ("acme", "d", "t"), ("acme", "e", "s")];
    for (tenant, database, schema) in others {
        let store = shards.store(tenancy(tenant, database, schema)).await.unwrap();
        put(&store, "1", &format!("{tenant} {database} {schema}")).await;
    }
    let acme = shards.store(tenancy("acme", "d", "s")).await.unwrap();
    assert_eq!(all(&acme).await, []);
    put(&acme, "1", "mine").await;
    put(&acme, "2", "mine too").await;
    assert_eq!(all(&acme).await, [("1".into(), "mine".into()), ("2".into(), "mine too".into())]);
    let removed = acme.write(|changes| changes.remove(NOTES, "1")).await.map_err(|error: StoreError| error).unwrap();
    assert_eq!(removed.as_deref(), Some("mine"));
    for (tenant, database, schema) in others {
        let store = shards.store(tenancy(tenant, database, schema)).await.unwrap();
        assert_eq!(all(&store).await, [("1".into(), format!("{tenant} {database} {schema}"))]);
    }
    assert!(folder.path().join("c1/d.redb").is_file() && folder.path().join("c1/e.redb").is_file());
}

#[tokio::test]
async fn pages_continue_where_the_last_one_ended() {
    let folder = TempDir::new().unwrap();
    let store = Shards::open(folder.path()).unwrap().store(tenancy("acme", "d", "s")).await.unwrap();
    for row in ["a-1", "a-2", "a-3", "b-1"] {
        put(&store, row, row).await;
    }
    let page = |prefix: &'static str, after: Option<&'static str>| {
        let store = store.clone();
        async move {
            let read = store.read(move |rows| rows.list(NOTES, prefix, after, 2)).await;
            read.map_err(|error: StoreError| error).unwrap().into_iter().map(|(row, _)| row).collect::<Vec<_>>()
        }
    };
    assert_eq!(page("a-", None).await, ["a-1", "a-2"]);
    assert_eq!(page("a-", Some("a-2")).await, ["a-3"]);
    assert_eq!(page("", Some("a-2")).await, ["a-3", "b-1"]);
    assert_eq!(page("a-", Some("a-3")).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_change_that_fails_half_way_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let store = Shards::open(folder.path()).unwrap().store(tenancy("acme", "d", "s")).await.unwrap();
    let failed: Result<(), StoreError> = store
        .write(|changes| {
            changes.put(NOTES, "1", &"half".to_owned())?;
            Err(StoreError::Interrupted)
        })
        .await;
    assert!(failed.is_err());
    assert_eq!(all(&store).await, []);
}

#[tokio::test]
async fn what_was_announced_and_not_settled_is_gone_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let (kept, left, moved) = (name("kept"), name("left"), name("moved"));
    let files = folder.path().join("c1/d.files/s/acme");
    {
        let store = Shards::open(folder.path()).unwrap().store(tenancy("acme", "d", "s")).await.unwrap();
        for folder in [&kept, &left, &moved] {
            let announced = store.announce(folder).await.unwrap();
            fs::write(announced.incoming("original"), "bytes").unwrap();
            if folder != &left {
                announced.complete().unwrap();
            }
        }
        let settled = kept.clone();
        store.write(move |changes| changes.settle(&settled)).await.map_err(|error: StoreError| error).unwrap();
        assert!(files.join("left.incoming/original").is_file() && files.join("moved/original").is_file());
    }
    let store = Shards::open(folder.path()).unwrap().store(tenancy("acme", "d", "s")).await.unwrap();
    assert_eq!(fs::read_dir(&files).unwrap().count(), 1);
    assert!(store.folder(&kept).file("original").is_file());
}

#[test]
fn a_data_folder_belongs_to_one_process() {
    let folder = TempDir::new().unwrap();
    let first = Shards::open(folder.path()).unwrap();
    assert!(matches!(Shards::open(folder.path()), Err(OpenError::InUse { .. })));
    drop(first);
    assert!(Shards::open(folder.path()).is_ok());
}

#[test]
fn a_full_disk_is_told_apart_from_a_broken_one() {
    let code = |kind: io::ErrorKind| tonic::Status::from(StoreError::from(io::Error::from(kind))).code();
    assert_eq!(code(io::ErrorKind::StorageFull), tonic::Code::ResourceExhausted);
    assert_eq!(code(io::ErrorKind::QuotaExceeded), tonic::Code::ResourceExhausted);
    assert_eq!(code(io::ErrorKind::PermissionDenied), tonic::Code::Internal);
}
