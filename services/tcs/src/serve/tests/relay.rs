//! A relay: it serves what it follows, and takes no writes.

use tenon_proto::replication::v1::FetchRequest;
use tenon_proto::replication::v1::replication_client::ReplicationClient;
use tenon_proto::tcs::v1::lifecycle_client::LifecycleClient;
use tenon_proto::tcs::v1::operations_client::OperationsClient;
use tenon_proto::tcs::v1::{GetGuardRequest, Guard, LifecycleEvent, Revision, WatchRequest, lifecycle_event::Change};

use super::watching::{next, suspend};
use super::*;

/// As new as that, once the relay is.
async fn arrived(mesh: &Mesh, position: replica::Position) -> TenantContext {
    let at_least = Some(Revision { epoch: position.epoch, revision: position.revision });
    let mut operator = mesh.operator();
    let read = async {
        loop {
            match operator.get(GetRequest { at_least, ..by_id("acme") }).await {
                Ok(found) => return found.into_inner(),
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "never a wrong no: {status}"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("the relay never had it")
}

#[tokio::test]
async fn a_relay_serves_reads_and_followers_and_refuses_writes_naming_its_parent() {
    let mut mesh = Mesh::start().await;
    let position = mesh.import(vec![acme()]).await.unwrap();
    let (leader, mut writer) = (mesh.address, mesh.operator());
    mesh.relay().await;
    assert_eq!(arrived(&mesh, position).await, TenantContext { revision: 1, ..acme() });
    let mut relay = mesh.operator();
    let by_host = GetRequest { by: Some(By::Host("ACME.example".to_owned())), at_least: None };
    assert_eq!(relay.get(by_host).await.unwrap().into_inner().tenant_id, "acme");
    assert_eq!(relay.get(by_id("nobody")).await.unwrap_err().code(), Code::NotFound);
    let mut listed = relay.list(ListRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.message().await.unwrap().unwrap().tenant_id, "acme");

    let media = mesh.follow(&mesh.ca.identity("media"));
    assert_eq!(products(&seen(&media, "acme", |_| true).await), ["media"], "filtered as the leader does");
    let mut fetching = ReplicationClient::new(mesh.channel(&mesh.ca.identity("issues")));
    let fetch =
        FetchRequest { kind: kind::TENANT.to_owned(), keys: vec!["acme".to_owned()], ..FetchRequest::default() };
    let fetched = fetching.fetch(fetch).await.unwrap().into_inner();
    assert_eq!(products(&TenantContext::decode(&*fetched.records[0].value).unwrap()), ["issues"]);

    let mut watch = relay.watch(WatchRequest::default()).await.unwrap().into_inner();
    assert_eq!(next(&mut watch).await.revision, 1);
    writer.suspend(suspend("acme")).await.unwrap();
    let told = next(&mut watch).await;
    assert_eq!((told.revision, told.tenant.unwrap().status()), (2, TenantStatus::Suspended));
    seen(&media, "acme", |tenant| tenant.status() == TenantStatus::Suspended).await;

    let change = Some(Change::SuspendTenant(tenon_proto::tcs::v1::SuspendTenant {}));
    let event = LifecycleEvent { event_id: "1".to_owned(), tenant_id: "acme".to_owned(), change, ..Default::default() };
    let channel = mesh.channel(&mesh.ca.operator_identity("ada"));
    for refused in [
        mesh.import(vec![acme()]).await.unwrap_err(),
        relay.suspend(suspend("acme")).await.unwrap_err(),
        relay.unsuspend(UnsuspendRequest { tenant_id: "acme".to_owned() }).await.unwrap_err(),
        relay.delete(DeleteRequest { tenant_id: "acme".to_owned() }).await.unwrap_err(),
        LifecycleClient::new(channel.clone()).apply(event).await.unwrap_err(),
        OperationsClient::new(channel).set_guard(Guard::default()).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(&leader.to_string()), "{refused}");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_relay_shows_the_guard_of_its_parent() {
    let mut mesh = Mesh::start().await;
    mesh.import(vec![acme()]).await.unwrap();
    let mut leader = OperationsClient::new(mesh.channel(&mesh.ca.operator_identity("ada")));
    let guard = Guard { largest_shrink_percent: 10, canaries: vec!["acme".to_owned()], r#override: None };
    leader.set_guard(guard.clone()).await.unwrap();
    mesh.relay().await;
    let mut relay = OperationsClient::new(mesh.channel(&mesh.ca.operator_identity("ada")));
    let shown = async {
        while relay.get_guard(GetGuardRequest {}).await.unwrap().into_inner() != guard {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, shown).await.expect("the relay was never told");
    mesh.stop().await;
}
