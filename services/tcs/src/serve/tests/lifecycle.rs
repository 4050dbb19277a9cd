//! Lifecycle events, the guard and imports, through the front door.

use pbjson_types::Timestamp;
use tenon_proto::tcs::v1::lifecycle_client::LifecycleClient;
use tenon_proto::tcs::v1::operations_client::OperationsClient;
use tenon_proto::tcs::v1::{
    GetGuardRequest, Guard, GuardOverride, LifecycleEvent, LifecycleResponse, Shard, lifecycle_event::Change,
};
use tonic_types::StatusExt as _;

use super::*;

/// An event in the JSON that people write.
fn event(json: &str) -> LifecycleEvent {
    serde_json::from_str(json).unwrap()
}

fn lifecycle(mesh: &Mesh, identity: &Arc<Identity>) -> LifecycleClient<Channel> {
    LifecycleClient::new(mesh.channel(identity))
}

async fn apply(client: &mut LifecycleClient<Channel>, json: &str) -> Result<LifecycleResponse, Status> {
    client.apply(event(json)).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_tenant_lives_from_its_first_event_to_its_last() {
    let mesh = Mesh::start().await;
    let mut client = lifecycle(&mesh, &mesh.ca.operator_identity("ada"));
    let media = mesh.follow(&mesh.ca.identity("media"));
    let events = [
        r#"{"eventId":"1","tenantId":"acme","createTenant":{"region":"us-east","hosts":["acme.example"]}}"#,
        r#"{"eventId":"2","tenantId":"acme","createProduct":{"product":"media","seats":5,"shard":{"cluster":"a"}}}"#,
        r#"{"eventId":"3","tenantId":"acme","activateProduct":{"product":"media"}}"#,
        r#"{"eventId":"4","tenantId":"acme","beginMove":{"toRegion":"eu-west"}}"#,
    ];
    let mut last = LifecycleResponse::default();
    for json in events {
        last = apply(&mut client, json).await.unwrap();
        assert!(!last.repeated_event);
    }
    let moving = seen(&media, "acme", |tenant| tenant.r#move.is_some()).await;
    assert_eq!((moving.region.as_str(), moving.revision), ("us-east", last.revision));

    let finish = r#"{"eventId":"5","tenantId":"acme","finishMove":{"shards":{"media":{"cluster":"b"}}}}"#;
    apply(&mut client, finish).await.unwrap();
    let moved = seen(&media, "acme", |tenant| tenant.r#move.is_none()).await;
    assert_eq!(moved.region, "eu-west");
    assert_eq!(moved.products["media"].shard, Some(Shard { cluster: "b".to_owned(), ..Shard::default() }));

    apply(&mut client, r#"{"eventId":"6","tenantId":"acme","destroyTenant":{}}"#).await.unwrap();
    assert_eq!(mesh.operator().get(by_id("acme")).await.unwrap_err().code(), Code::NotFound);
    let again = apply(&mut client, events[3]).await.unwrap();
    assert_eq!((again.revision, again.repeated_event), (last.revision, true), "long after");
    mesh.stop().await;
}

#[tokio::test]
async fn a_refused_event_says_why_to_people_and_to_programs() {
    let mesh = Mesh::start().await;
    mesh.import(vec![acme()]).await.unwrap();
    let mut client = lifecycle(&mesh, &mesh.ca.operator_identity("ada"));
    for (json, code, reason, says) in [
        (
            r#"{"eventId":"1","tenantId":"acme","unsuspendTenant":{}}"#,
            Code::FailedPrecondition,
            "ILLEGAL_TRANSITION",
            "UnsuspendTenant is illegal: the tenant is ACTIVE; legal would be DestroyTenant, SuspendTenant, BeginMove",
        ),
        (
            r#"{"eventId":"1","tenantId":"acme","expectedRevision":"9","suspendTenant":{}}"#,
            Code::Aborted,
            "REVISION_MISMATCH",
            "tenant acme is at revision 1, not at revision 9",
        ),
        (
            r#"{"eventId":"1","tenantId":"globex","createTenant":{"hosts":["acme.example"]}}"#,
            Code::FailedPrecondition,
            "HOST_TAKEN",
            "host acme.example is that of tenant acme",
        ),
        (
            r#"{"eventId":"1","tenantId":"acme","beginMove":{"toRegion":"us-east"}}"#,
            Code::FailedPrecondition,
            "DOES_NOT_FIT",
            "tenant acme is at home in us-east",
        ),
    ] {
        let status = apply(&mut client, json).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, says));
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.domain.as_str(), info.reason.as_str()), ("tenon.dev", reason));
        if reason == "ILLEGAL_TRANSITION" {
            assert_eq!(info.metadata["state"], "ACTIVE");
            assert_eq!(info.metadata["event"], "UnsuspendTenant");
            assert_eq!(info.metadata["legal"], "DestroyTenant,SuspendTenant,BeginMove");
        }
    }
    apply(&mut client, r#"{"eventId":"1","tenantId":"acme","suspendTenant":{}}"#).await.unwrap();
    let used = apply(&mut client, r#"{"eventId":"1","tenantId":"acme","unsuspendTenant":{}}"#).await.unwrap_err();
    assert_eq!(used.code(), Code::AlreadyExists);
    let nothing = client.apply(LifecycleEvent::default()).await.unwrap_err();
    assert_eq!((nothing.code(), nothing.message().lines().count()), (Code::InvalidArgument, 3), "{nothing}");
    let change = Some(Change::SuspendTenant(tenon_proto::tcs::v1::SuspendTenant {}));
    let long = LifecycleEvent { event_id: "x".repeat(129), tenant_id: "acme".to_owned(), change, ..Default::default() };
    assert_eq!(client.apply(long).await.unwrap_err().code(), Code::InvalidArgument);
    mesh.stop().await;
}

#[tokio::test]
async fn only_services_that_manage_tenants_by_the_policy_may_send_events() {
    let mesh = Mesh::start().await;
    let mut provisioning = lifecycle(&mesh, &mesh.ca.identity("provisioning"));
    let create = r#"{"eventId":"1","tenantId":"acme","createTenant":{"region":"us-east"}}"#;
    let refused = apply(&mut provisioning, create).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("managesTenants: true"), "{refused}");
    let route = Route { service: "provisioning".to_owned(), residency: 1, manages_tenants: true, ..Route::default() };
    mesh.publish(route).await;
    let applied = async {
        loop {
            match apply(&mut provisioning, create).await {
                Err(status) if status.code() == Code::PermissionDenied => tokio::task::yield_now().await,
                outcome => return outcome,
            }
        }
    };
    let applied = tokio::time::timeout(DEADLINE, applied).await.expect("it was never let in").unwrap();
    assert_eq!(applied.revision, 1);
    assert_eq!(
        apply(&mut lifecycle(&mesh, &mesh.ca.identity("media")), create).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    mesh.stop().await;
}

#[tokio::test]
async fn the_guard_is_set_by_operators_and_keeps_canaries() {
    let mesh = Mesh::start().await;
    mesh.import(vec![acme()]).await.unwrap();
    let mut operations = OperationsClient::new(mesh.channel(&mesh.ca.operator_identity("ada")));
    assert_eq!(operations.get_guard(GetGuardRequest {}).await.unwrap().into_inner(), Guard::default());
    let canary = |id: &str| Guard { canaries: vec![id.to_owned()], ..Guard::default() };
    let unknown = operations.set_guard(canary("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::FailedPrecondition, "{unknown}");
    let endless = GuardOverride { smallest_records: 0, until: None, reason: String::new() };
    let wrong = operations.set_guard(Guard { r#override: Some(endless), ..canary("acme") }).await.unwrap_err();
    assert_eq!((wrong.code(), wrong.message().lines().count()), (Code::InvalidArgument, 2), "{wrong}");

    operations.set_guard(canary("acme")).await.unwrap();
    assert_eq!(operations.get_guard(GetGuardRequest {}).await.unwrap().into_inner(), canary("acme"));
    let refused = mesh.operator().delete(DeleteRequest { tenant_id: "acme".to_owned() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.get_details_error_info().unwrap().reason, "GUARDED");
    assert!(refused.message().contains("tenon tcs guard allow-shrink"), "{refused}");
    // Followers are told.
    let media = mesh.follow(&mesh.ca.identity("media"));
    let mut rules = media.guard_rules();
    let told = rules.wait_for(|rules| rules.canaries == ["acme"]);
    tokio::time::timeout(DEADLINE, told).await.expect("the rules never came").unwrap();

    let until = Some(Timestamp { seconds: i64::MAX, nanos: 0 });
    let allowed = GuardOverride { smallest_records: 0, until, reason: "ada".to_owned() };
    operations.set_guard(Guard { r#override: Some(allowed), ..canary("acme") }).await.unwrap();
    mesh.operator().delete(DeleteRequest { tenant_id: "acme".to_owned() }).await.unwrap();
    mesh.stop().await;
}

#[tokio::test]
async fn an_import_that_ends_in_the_middle_changes_nothing() {
    let mesh = Mesh::start().await;
    mesh.import(vec![acme()]).await.unwrap();
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    let (address, identity) = (mesh.address, mesh.ca.operator_identity("ada"));
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    process.spawn(async move {
        let channel = grpc::channel(address, &identity, &testing::service(control_plane::TCS));
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        TenantsClient::new(channel).import(requests).await.map(drop)
    });
    for n in 0..50 {
        let tenant = TenantContext { tenant_id: format!("t{n}"), hosts: vec![], ..acme() };
        sender.send(ImportRequest { tenants: vec![tenant] }).await.unwrap();
    }
    // The process of the sender is killed: its connection breaks, the stream never comes to its end.
    process.shutdown_background();
    sender.closed().await;
    // What comes after it finds nothing of it, and the store as free as before.
    let next =
        mesh.import(vec![TenantContext { tenant_id: "next".to_owned(), hosts: vec![], ..acme() }]).await.unwrap();
    assert_eq!(next.revision, 2);
    assert_eq!(mesh.operator().get(by_id("t0")).await.unwrap_err().code(), Code::NotFound);
    mesh.stop().await;
}
