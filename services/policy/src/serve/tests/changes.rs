//! What operators can do about changes: see them, expect a revision, go back, sign.

use aws_lc_rs::signature::Ed25519KeyPair;
use mesh_identity::policy_signature::{public_key, sign, signed_part};
use tenon_proto::policy::v1::{
    HistoryEntry, HistoryRequest, PolicyRevision, RecordSignature, RollbackRequest, history_entry::Action,
};

use super::*;

fn files(rule: &str) -> Vec<PolicyFile> {
    let file = |path: &str, text: String| PolicyFile { path: path.to_owned(), text };
    vec![file("a.yaml", MESH.to_owned()), file("b.yaml", super::rule(rule))]
}

async fn history(client: &mut PolicyClient<Channel>) -> Vec<HistoryEntry> {
    client.history(HistoryRequest::default()).await.unwrap().into_inner().entries
}

fn at(applied: &ApplyResponse) -> PolicyRevision {
    assert!(applied.problems.is_empty() && applied.conflict.is_none(), "{applied:?}");
    PolicyRevision { epoch: applied.epoch, revision: applied.revision }
}

#[tokio::test]
async fn a_bad_change_is_seen_in_the_history_and_taken_back() {
    let world = World::new();
    let running = world.start(None).await;
    let mut client = world.operator(&running);
    let mut change = async |request: ApplyRequest| client.apply(request).await.unwrap().into_inner();
    let good = at(&change(ApplyRequest { files: files("good"), ..ApplyRequest::default() }).await);
    let request = ApplyRequest {
        files: files("bad"),
        expected: Some(good),
        note: "ticket 7".to_owned(),
        ..ApplyRequest::default()
    };
    let bad = change(request.clone()).await;
    assert!(at(&bad).revision > good.revision);
    let late = change(request).await.conflict.expect("what was expected is no longer in force");
    assert_eq!((late.in_force, late.since.len(), late.since[0].note.as_str()), (Some(at(&bad)), 1, "ticket 7"));

    let mut client = world.operator(&running);
    let request = RollbackRequest { to: Some(good), expected: Some(at(&bad)), note: "it broke".to_owned() };
    let back = at(&client.rollback(request.clone()).await.unwrap().into_inner());
    let late = client.rollback(request).await.unwrap().into_inner();
    assert_eq!(late.conflict.unwrap().in_force, Some(back));
    let described = describe(&mut client).await;
    assert_eq!((rules(&described), described.revision), (vec!["good"], back.revision));
    let told: Vec<_> =
        history(&mut client).await.into_iter().map(|entry| (entry.revision, entry.action(), entry.note)).collect();
    assert_eq!(
        told,
        [
            (Some(back), Action::RolledBack, "it broke".to_owned()),
            (Some(at(&bad)), Action::Applied, "ticket 7".to_owned()),
            (Some(good), Action::Applied, String::new()),
        ]
    );
    running.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_says_why() {
    let world = World::new();
    let running = world.start(None).await;
    let mut client = world.operator(&running);
    assert_eq!(history(&mut client).await, []);
    let note = "x".repeat(1001);
    let refused = client.apply(ApplyRequest { files: files("a"), note, ..ApplyRequest::default() }).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "the note has 1001 characters, expected at most 1000")
    );
    let refused = client.rollback(RollbackRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let to = Some(PolicyRevision { epoch: 1, revision: 2 });
    let refused = client.rollback(RollbackRequest { to, ..RollbackRequest::default() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("no change of the policy has the revision 1.2"), "{refused}");
    running.stop().await;
}

/// Named after the record of the policy service itself, which no sidecar and no operator must take for a service's.
#[tokio::test]
async fn every_change_moves_the_revision_and_nobody_sees_what_moves_it() {
    let world = World::new();
    let running = world.start(None).await;
    let mut client = world.operator(&running);
    apply(&mut client, &[("a.yaml", MESH)]).await;
    let quarantine = "apiVersion: tenon.dev/v1\nkind: Quarantine\nmetadata: {name: q}\nspec: {services: [wiki]}\n";
    let cut_off = apply(&mut client, &[("a.yaml", MESH), ("q.yaml", quarantine)]).await;
    assert_eq!(cut_off.changes, 1);
    let described = describe(&mut client).await;
    assert_eq!((described.revision, described.positions), (cut_off.revision, cut_off.positions.clone()));
    let kinds: Vec<_> = cut_off.positions.iter().map(|position| position.kind.as_str()).collect();
    assert_eq!(kinds, ["allowlist", "route", "endpoint", "quarantine", "attestation"]);
    assert_eq!(described.services.iter().map(|it| it.service.as_str()).collect::<Vec<_>>(), ["media", "wiki"]);

    let revision = cut_off.revision;
    for identity in [world.ca.operator_identity("ann"), world.ca.identity("media")] {
        let follower = world.follow(&running, kind::ALLOWLIST, &identity);
        let mut positions = follower.subscribe();
        let there = positions.wait_for(|position| position.is_some_and(|position| position.revision == revision));
        tokio::time::timeout(LONG, there).await.expect("it comes to the revision").unwrap();
        assert!(keys(&follower).iter().all(|key| key != "tenon-policy"), "{:?}", keys(&follower));
    }
    let refused = refusal_to_follow(world.channel(&running, &world.ca.identity("tenon-policy")), kind::ALLOWLIST).await;
    assert_eq!(refused, Code::PermissionDenied);
    running.stop().await;
}

fn signatures(key: &[u8], files: &[PolicyFile]) -> Vec<RecordSignature> {
    let files: Vec<_> =
        files.iter().map(|file| mesh_config::SourceFile { path: file.path.clone(), text: file.text.clone() }).collect();
    let records = mesh_config::compile(&mesh_config::parse(&files).unwrap());
    let policies = records.allowlists.iter();
    policies.map(|(name, policy)| sign(key, kind::ALLOWLIST, name, 7, &signed_part(policy)).unwrap()).collect()
}

#[tokio::test]
async fn a_service_that_takes_signed_policies_only_takes_no_folder_that_is_not() {
    let world = World::new();
    world.write("mesh.yaml", MESH);
    let key = Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap();
    let running = world.start_accepting(Some(world.folder()), vec![public_key(key.as_ref()).unwrap()]).await;
    let mut client = world.operator(&running);
    let described = describe(&mut client).await;
    assert!(described.services.is_empty() && described.problems[0].message.contains("not signed"), "{described:?}");
    let unsigned = apply(&mut client, &[("a.yaml", MESH)]).await;
    assert!(unsigned.problems[0].message.contains("takes signed policies only"), "{unsigned:?}");

    let files = files("signed");
    let signatures = signatures(key.as_ref(), &files);
    let request = ApplyRequest { files, signatures: signatures.clone(), ..ApplyRequest::default() };
    at(&client.apply(request).await.unwrap().into_inner());
    let described = describe(&mut client).await;
    let signed: Vec<_> = described.services.into_iter().map(|service| service.signature.unwrap()).collect();
    assert_eq!((signed, described.problems.len()), (signatures, 1));
    running.stop().await;
}
