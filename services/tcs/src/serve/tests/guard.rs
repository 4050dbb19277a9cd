//! The guard over the wire: how an operator gets out of what it refuses.

use std::path::PathBuf;

use tenon_proto::tcs::v1::operations_client::OperationsClient;
use tenon_proto::tcs::v1::{GetGuardRequest, Guard, GuardOverride};

use super::*;

impl Mesh {
    fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(self.channel(&self.ca.operator_identity("ada")))
    }

    async fn guard(&self) -> Guard {
        self.operations().get_guard(GetGuardRequest {}).await.unwrap().into_inner()
    }

    /// As `tenon tcs guard` does it: what is not changed is sent along as it was shown.
    async fn set(&self, change: impl FnOnce(&mut Guard)) -> Result<Guard, Status> {
        let mut guard = self.guard().await;
        change(&mut guard);
        Ok(self.operations().set_guard(guard).await?.into_inner())
    }

    async fn delete(&self, id: &str) -> Result<(), Status> {
        self.operator().delete(DeleteRequest { tenant_id: id.to_owned() }).await.map(drop)
    }

    /// The TCS that was started last, once more, from `store`.
    async fn restart(&mut self, store: &str) {
        let listener = self.stop_serving().await;
        let store = journal::Store::Embedded(self.dir.path().join(store));
        self.serve(listener, Role::Leader { store, past: PAST }, "tcs/state");
    }

    /// A replica that keeps a state file, until it is cancelled.
    fn media(&self, state_dir: PathBuf, shutdown: &CancellationToken) -> (Replica<Decoded<Seen>>, JoinHandle<()>) {
        let follow = Follow {
            kind: kind::TENANT,
            instance: "test".to_owned(),
            parents: vec![self.channel(&self.ca.identity("media"))],
            state_dir: Some(state_dir),
        };
        follow.start(|_| {}, shutdown.clone())
    }
}

fn named(id: &str) -> TenantContext {
    TenantContext { tenant_id: id.to_owned(), hosts: Vec::new(), ..acme() }
}

fn allowed() -> Option<GuardOverride> {
    let seconds = i64::try_from(mesh_identity::clock::unix_seconds()).unwrap() + 3600;
    let until = Some(pbjson_types::Timestamp { seconds, nanos: 0 });
    Some(GuardOverride { smallest_records: 0, until, reason: "ada: clean up".to_owned() })
}

/// Until `replica` holds no such tenant any more.
async fn unseen(replica: &Replica<Decoded<Seen>>, id: &str) {
    let mut positions = replica.subscribe();
    let wait = async {
        loop {
            positions.borrow_and_update();
            if replica.get(id).is_none() {
                return;
            }
            positions.changed().await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("the tenant never went");
}

/// The guard was only set where all of its canaries existed, also the override that lets them go.
#[tokio::test]
async fn a_canary_that_is_gone_is_named_and_keeps_no_operator_from_setting_the_guard() {
    let mut mesh = Mesh::start().await;
    mesh.import(["acme", "globex", "initech"].map(named).into()).await.unwrap();
    mesh.set(|guard| guard.canaries = vec!["acme".to_owned(), "globex".to_owned()]).await.unwrap();
    mesh.set(|guard| guard.r#override = allowed()).await.unwrap();
    mesh.delete("acme").await.unwrap();
    mesh.set(|guard| guard.r#override = None).await.unwrap();
    assert_eq!(mesh.guard().await.missing_canaries, ["acme"]);

    // A restarted TCS has nothing that it published before, and believes no map without the canary.
    mesh.restart("tcs/store.redb").await;
    let media = mesh.follow(&mesh.ca.identity("media"));
    let shrink = mesh.set(|guard| guard.largest_shrink_percent = 10).await.unwrap();
    assert_eq!((shrink.largest_shrink_percent, &shrink.missing_canaries[..]), (10, &["acme".to_owned()][..]));
    assert!(media.position().is_none());
    let new = mesh.set(|guard| guard.canaries.push("nobody".to_owned())).await.unwrap_err();
    assert_eq!(new.code(), Code::FailedPrecondition);
    assert!(new.message().contains("there is no tenant nobody"), "{new}");

    let answer = mesh.set(|guard| guard.r#override = allowed()).await.unwrap();
    assert_eq!(answer.missing_canaries, ["acme"]);
    seen(&media, "initech", |_| true).await;
    assert!(media.get("acme").is_none());

    let answer = mesh.set(|guard| guard.canaries = vec!["globex".to_owned()]).await.unwrap();
    assert_eq!(answer.missing_canaries, Vec::<String>::new());
    mesh.set(|guard| guard.r#override = None).await.unwrap();
    mesh.restart("tcs/store.redb").await;
    let late = mesh.follow(&mesh.ca.identity("media"));
    seen(&late, "initech", |_| true).await;
    mesh.stop().await;
}

/// An emptied list was taken, and believed by nobody: the next deletion of an old canary stopped all changes.
#[tokio::test]
async fn the_last_canary_is_taken_off_under_an_override_and_goes_after_it_also_for_who_was_away() {
    let mut mesh = Mesh::start().await;
    mesh.import(["acme", "globex"].map(named).into()).await.unwrap();
    mesh.set(|guard| guard.canaries = vec!["acme".to_owned()]).await.unwrap();
    let away = mesh.dir.path().join("away");
    let leaves = mesh.shutdown.child_token();
    let (media, ends) = mesh.media(away.clone(), &leaves);
    seen(&media, "acme", |_| true).await;
    media.guard_rules().wait_for(|rules| rules.canaries == ["acme"]).await.unwrap();
    let stays = mesh.follow(&mesh.ca.identity("media"));
    seen(&stays, "acme", |_| true).await;
    leaves.cancel();
    ends.await.unwrap();

    let refused = mesh.set(|guard| guard.canaries.clear()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("tenon tcs guard allow-shrink"), "{refused}");
    assert_eq!(mesh.delete("acme").await.unwrap_err().code(), Code::FailedPrecondition);

    mesh.set(|guard| guard.r#override = allowed()).await.unwrap();
    assert!(mesh.set(|guard| guard.canaries.clear()).await.unwrap().no_canaries);
    mesh.set(|guard| guard.r#override = None).await.unwrap();
    mesh.restart("tcs/store.redb").await;
    mesh.delete("acme").await.unwrap();
    unseen(&stays, "acme").await;

    let leader = mesh.address;
    let (back, _) = mesh.media(away, &mesh.shutdown);
    assert!(back.position().is_some(), "it begins with its state file");
    unseen(&back, "acme").await;
    mesh.import(vec![named("initech")]).await.unwrap();
    mesh.relay().await;
    let below = mesh.follow(&mesh.ca.identity("media"));
    for replica in [&stays, &back, &below] {
        seen(replica, "initech", |_| true).await;
        assert!(replica.get("acme").is_none());
    }
    assert_ne!(mesh.address, leader);
    mesh.stop().await;
}
