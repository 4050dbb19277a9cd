//! A backup over the wire, and what comes of followers when it is restored.

use futures_util::TryStreamExt as _;
use journal::backup::{Moment, Replaced, Restore};
use tenon_proto::tcs::v1::operations_client::OperationsClient;
use tenon_proto::tcs::v1::{BackupRequest, BackupResponse};

use super::*;

#[tokio::test]
async fn a_backup_that_is_restored_is_what_followers_have_soon_after() {
    let mut mesh = Mesh::start().await;
    mesh.import(vec![acme()]).await.unwrap();
    let media = mesh.follow(&mesh.ca.identity("media"));
    seen(&media, "acme", |_| true).await;
    mesh.operator().suspend(SuspendRequest { tenant_id: "acme".to_owned() }).await.unwrap();
    let late = TenantContext { tenant_id: "late".to_owned(), hosts: Vec::new(), ..acme() };
    mesh.import(vec![late]).await.unwrap();
    seen(&media, "late", |_| true).await;

    let mut operations = OperationsClient::new(mesh.channel(&mesh.ca.operator_identity("ann")));
    let pieces: Vec<BackupResponse> =
        operations.backup(BackupRequest {}).await.unwrap().into_inner().try_collect().await.unwrap();
    assert!(pieces[0].records >= 4 && pieces[0].chunk.is_empty(), "two tenants and three changes are announced");
    let listener = mesh.stop_serving().await;

    let store = mesh.dir.path().join("tcs/store.redb");
    let replaced = Replaced::of(&journal::Embedded::open(&store).unwrap()).unwrap();
    let before = replica::Position::new(replaced.epoch, replaced.heads["tenant"]);
    let mut restore = Restore::begin(&store, kind::TENANT, Moment::Revision(1), replaced).unwrap();
    for piece in &pieces {
        restore.push(&piece.chunk).unwrap();
    }
    let restored = restore.finish().unwrap();
    mesh.serve(listener, Role::Leader { store: journal::Store::Embedded(store), past: PAST }, "tcs/state");

    let found = seen(&media, "acme", |tenant| tenant.status() == TenantStatus::Active).await;
    assert_eq!(found.revision, 1, "tenants keep their revisions");
    assert!(media.get("late").is_none());
    let position = media.position().unwrap();
    assert!(position > before && restored.iter().any(|restored| restored.position == position), "{position}");
    mesh.stop().await;
}
