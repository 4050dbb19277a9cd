//! A relay: it serves what it follows, and takes no writes.

use tenon_proto::replication::v1::follow_request::Request;
use tenon_proto::replication::v1::follow_response::Response;
use tenon_proto::replication::v1::replication_client::ReplicationClient;
use tenon_proto::replication::v1::{FetchRequest, FollowRequest, Mode, Start, StatusRequest};
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

/// Publishes whatever bytes are written to the journal that comes with it, as a TCS of a version to come might.
async fn any_leader(mesh: &mut Mesh) -> (Arc<dyn Journal>, Publisher) {
    let journal = Embedded::open(&mesh.dir.path().join("any.redb")).unwrap().kind(kind::TENANT).unwrap();
    let shutdown = mesh.shutdown.clone();
    let publisher = Publisher::start(kind::TENANT, Arc::clone(&journal), Arc::new(Everything), shutdown.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    mesh.address = listener.local_addr().unwrap();
    let server = Server {
        listener,
        identity: mesh.ca.identity(control_plane::TCS),
        clients: Clients::Required,
        authorization: REPLICATION_AUTHORIZATION,
        routes: Routes::new(ReplicationService::new(vec![publisher.clone()]).into_server()),
        recorder: None,
    };
    mesh.tasks.push(tokio::spawn(async move { server.run(shutdown).await.unwrap() }));
    (journal, publisher)
}

/// The digest of everything that is published at `address`, at `revision` or later.
async fn digest_at(mesh: &Mesh, revision: u64) -> Bytes {
    let start = Start { kind: kind::TENANT.to_owned(), mode: Mode::Full.into(), ..Start::default() };
    let start = FollowRequest { request: Some(Request::Start(start)) };
    let requests = tokio_stream::StreamExt::chain(tokio_stream::once(start), tokio_stream::pending());
    let channel = mesh.channel(&mesh.ca.operator_identity("ada"));
    let mut stream = ReplicationClient::new(channel).follow(requests).await.unwrap().into_inner();
    let told = async {
        loop {
            if let Some(Response::Heartbeat(beat)) = stream.message().await.unwrap().unwrap().response
                && beat.head.is_some_and(|at| at.revision >= revision)
            {
                return beat.digest;
            }
        }
    };
    tokio::time::timeout(DEADLINE, told).await.expect("it never came so far")
}

#[tokio::test]
async fn a_record_that_does_not_decode_passes_through_a_relay_and_the_last_follower_refuses_it() {
    let mut mesh = Mesh::start().await;
    let (journal, leader) = any_leader(&mut mesh).await;
    journal.append(vec![Write::put("acme", acme().encode_to_vec())]).await.unwrap();
    let leads = mesh.address;
    mesh.relay().await;
    let media = mesh.follow(&mesh.ca.identity("media"));
    seen(&media, "acme", |_| true).await;
    journal.append(vec![Write::put("acme", vec![0x0a])]).await.unwrap();
    let globex = TenantContext { tenant_id: "globex".to_owned(), hosts: vec![], ..acme() };
    let last = journal.append(vec![Write::put("globex", globex.encode_to_vec())]).await.unwrap();

    // Later changes pass, and what was refused stays as it was.
    seen(&media, "globex", |_| true).await;
    assert_eq!((media.get("acme").unwrap().0.clone(), media.status().refused_records), (shown(), 1));
    let relays = std::mem::replace(&mut mesh.address, leads);
    let at_the_leader = digest_at(&mesh, last.revision).await;
    mesh.address = relays;
    assert_eq!(digest_at(&mesh, last.revision).await, at_the_leader);
    let damaged = mesh.operator().get(by_id("acme")).await.unwrap_err();
    assert_eq!(damaged.code(), Code::DataLoss, "{damaged}");

    // Only the last follower refuses: the relay has taken all of it.
    let followers = leader.status().followers;
    assert!(followers.iter().all(|follower| follower.nack.is_empty()), "{followers:?}");
    let mut status = ReplicationClient::new(mesh.channel(&mesh.ca.operator_identity("ada")));
    let refused = async {
        loop {
            let kinds = status.status(StatusRequest::default()).await.unwrap().into_inner().kinds;
            if let Some(nack) = kinds[0].followers.iter().map(|it| &it.nack).find(|nack| !nack.is_empty()) {
                return nack.clone();
            }
        }
    };
    let nack = tokio::time::timeout(DEADLINE, refused).await.expect("nobody refused it");
    assert!(nack.contains("record acme at revision 2"), "{nack}");
    mesh.stop().await;
}

/// What media sees of acme.
fn shown() -> TenantContext {
    let mut shown = acme();
    shown.products.retain(|product, _| product == "media");
    shown
}

#[tokio::test]
async fn a_relay_shows_the_guard_of_its_parent() {
    let mut mesh = Mesh::start().await;
    mesh.import(vec![acme()]).await.unwrap();
    let mut leader = OperationsClient::new(mesh.channel(&mesh.ca.operator_identity("ada")));
    let guard = Guard { largest_shrink_percent: 10, canaries: vec!["acme".to_owned()], ..Guard::default() };
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
