//! Watching changes, and reading no older than what was written.

use tenon_proto::tcs::v1::{Revision, WatchRequest, WatchResponse};
use tonic::Streaming;

use super::*;

pub(super) async fn next(watch: &mut Streaming<WatchResponse>) -> WatchResponse {
    let message = tokio::time::timeout(DEADLINE, watch.message()).await.expect("nothing came");
    message.unwrap().expect("the watch ended")
}

pub(super) fn suspend(id: &str) -> SuspendRequest {
    SuspendRequest { tenant_id: id.to_owned() }
}

#[tokio::test]
async fn a_watch_tells_each_change_with_its_time_and_the_tenant_after_it() {
    let mesh = Mesh::start().await;
    let position = mesh.import(vec![acme()]).await.unwrap();
    let mut operator = mesh.operator();
    let mut watch = operator.watch(WatchRequest::default()).await.unwrap().into_inner();
    let begin = next(&mut watch).await;
    assert_eq!((begin.epoch, begin.revision, begin.tenant_id.as_str()), (position.epoch, 1, ""), "where it begins");

    operator.suspend(suspend("acme")).await.unwrap();
    operator.delete(DeleteRequest { tenant_id: "acme".to_owned() }).await.unwrap();
    let suspended = next(&mut watch).await;
    assert_eq!((suspended.revision, suspended.tenant_id.as_str()), (2, "acme"));
    assert!(suspended.at.unwrap().seconds > 1_700_000_000);
    let tenant = suspended.tenant.unwrap();
    assert_eq!((tenant.status(), tenant.revision), (TenantStatus::Suspended, 2));
    let deleted = next(&mut watch).await;
    assert_eq!((deleted.revision, deleted.tenant), (3, None));

    // From the beginning, and of one tenant only.
    mesh.import(vec![TenantContext { tenant_id: "globex".to_owned(), ..acme() }]).await.unwrap();
    let after = Some(Revision { epoch: position.epoch, revision: 0 });
    let request = WatchRequest { after, tenant_id: "globex".to_owned() };
    let mut watch = operator.watch(request).await.unwrap().into_inner();
    assert_eq!(next(&mut watch).await.revision, 0);
    let only = next(&mut watch).await;
    assert_eq!((only.revision, only.tenant_id.as_str()), (4, "globex"));

    mesh.shutdown.cancel();
    let end = tokio::time::timeout(DEADLINE, watch.message()).await.expect("it never ended");
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    mesh.stop().await;
}

#[tokio::test]
async fn a_watch_from_another_history_is_out_of_range() {
    let mesh = Mesh::start().await;
    let position = mesh.import(vec![acme()]).await.unwrap();
    for after in [Revision { epoch: 1, revision: 1 }, Revision { epoch: position.epoch, revision: 7 }] {
        let request = WatchRequest { after: Some(after), tenant_id: String::new() };
        let status = match mesh.operator().watch(request).await {
            Err(status) => status,
            Ok(watch) => {
                let mut watch = watch.into_inner();
                next(&mut watch).await;
                watch.message().await.unwrap_err()
            }
        };
        assert_eq!(status.code(), Code::OutOfRange, "{status}");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_reader_may_ask_for_what_was_written_and_waits_for_what_was_not() {
    let mesh = Mesh::start().await;
    let position = mesh.import(vec![acme()]).await.unwrap();
    let at_least = |epoch, revision| GetRequest { at_least: Some(Revision { epoch, revision }), ..by_id("acme") };
    let mut operator = mesh.operator();
    assert_eq!(operator.get(at_least(position.epoch, 1)).await.unwrap().into_inner().revision, 1);
    operator.get(at_least(position.epoch - 1, 99)).await.unwrap();
    let stale = operator.get(at_least(position.epoch, 9)).await.unwrap_err();
    assert_eq!(stale.code(), Code::Unavailable);
    assert!(stale.message().contains(&format!("{}.9", position.epoch)), "{stale}");

    let mut waiting = mesh.operator();
    let wanted = at_least(position.epoch, 2);
    let waiting = tokio::spawn(async move { waiting.get(wanted).await });
    operator.suspend(suspend("acme")).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().status(), TenantStatus::Suspended);
    mesh.stop().await;
}
