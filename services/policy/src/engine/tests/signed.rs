//! Policies that are signed, and services that take no others.

use aws_lc_rs::signature::Ed25519KeyPair;
use mesh_identity::policy_signature::{public_key, sign, signed_part, verify_policy};
use tenon_proto::{kind, policy::v1::RecordSignature};

use super::*;

fn key() -> Vec<u8> {
    Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap().as_ref().to_vec()
}

/// What a bundle has: one for each service, in the byte order of their names.
fn signatures(key: &[u8], files: &[SourceFile]) -> Vec<RecordSignature> {
    let records = mesh_config::compile(&mesh_config::parse(files).unwrap());
    let policies = records.allowlists.iter();
    policies.map(|(name, policy)| sign(key, kind::ALLOWLIST, name, 7, &signed_part(policy)).unwrap()).collect()
}

async fn world(accept: &[&[u8]]) -> (Engine, Journals, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let journals = journals(&Embedded::open(&dir.path().join("store.redb")).unwrap());
    (accepting(&journals, accept).await, journals, dir)
}

async fn accepting(journals: &Journals, accept: &[&[u8]]) -> Engine {
    let accept = accept.iter().map(|key| public_key(key).unwrap()).collect();
    Engine::open("test.example".parse().unwrap(), accept, journals.clone()).await.unwrap()
}

async fn apply(engine: &Engine, files: &[SourceFile], signed: Vec<RecordSignature>) -> Result<Applied, String> {
    let applied = engine.apply(files.to_vec(), signed, ann(), String::new(), None).await;
    applied.map_err(|error| error.to_string())
}

fn policy() -> Vec<SourceFile> {
    files(&[("media", &["read"]), ("wiki", &["edit"])])
}

#[tokio::test]
async fn where_signatures_are_required_nothing_else_becomes_the_policy() {
    let (key, other) = (key(), key());
    let (engine, _, _dir) = world(&[&key, &other]).await;
    let refused = apply(&engine, &policy(), Vec::new()).await.unwrap_err();
    assert!(refused.contains("mesh.yaml:1:1: not signed"), "{refused}");
    let origin = Origin::Folder { dir: "/policies".to_owned(), digest: [1; 32] };
    let folder = engine.apply(policy(), Vec::new(), origin, String::new(), None).await;
    assert!(matches!(folder, Err(ApplyError::Problems(_))));

    let strange = apply(&engine, &policy(), signatures(&self::key(), &policy())).await.unwrap_err();
    assert!(strange.contains("the signature for service media: made with a key that is not accepted"), "{strange}");
    let mut half = signatures(&key, &policy());
    let changed = files(&[("media", &["read"]), ("wiki", &["erase"])]);
    let wrong = apply(&engine, &changed, half.clone()).await.unwrap_err();
    assert!(wrong.contains("for service wiki: does not fit") && !wrong.contains("media:"), "{wrong}");
    half.pop();
    let short = apply(&engine, &policy(), half).await.unwrap_err();
    assert!(short.contains("1 signatures for 2 services"), "{short}");
    assert_eq!(rules(&engine).await, Vec::<String>::new());

    apply(&engine, &policy(), signatures(&key, &policy())).await.unwrap();
    let (_, services) = records_of::<proto::ServicePolicy>(&*engine.journals().allowlists).await.unwrap();
    assert_eq!(services.len(), 2);
    assert!(services.iter().all(|one| verify_policy(&[public_key(&key).unwrap()], one).is_ok()));
}

#[tokio::test]
async fn going_back_to_files_that_were_not_signed_is_refused_where_signatures_are_required() {
    let key = key();
    let (unbound, journals, _dir) = world(&[]).await;
    let first = apply(&unbound, &files(&[("media", &["read"])]), Vec::new()).await.unwrap();
    let second = apply(&unbound, &policy(), signatures(&key, &policy())).await.unwrap();
    let engine = accepting(&journals, &[&key]).await;
    assert_eq!(rules(&engine).await, ["media/read", "wiki/edit"]);
    let refused = engine.rollback(first.position, &Author::default()).await.unwrap_err();
    assert!(refused.to_string().contains("not signed"), "{refused}");
    apply(&engine, &changed(), signatures(&key, &changed())).await.unwrap();
    engine.rollback(second.position, &Author::default()).await.unwrap();
    assert_eq!(rules(&engine).await, ["media/read", "wiki/edit"]);
}

fn changed() -> Vec<SourceFile> {
    files(&[("media", &["write"])])
}

#[tokio::test]
async fn where_no_key_is_known_signatures_are_handed_on_if_they_have_the_form_of_one() {
    let (engine, _, _dir) = world(&[]).await;
    let mut signed = signatures(&key(), &policy());
    apply(&engine, &policy(), signed.clone()).await.unwrap();
    let (_, services) = records_of::<proto::ServicePolicy>(&*engine.journals().allowlists).await.unwrap();
    assert_eq!(services[1].signature.as_ref(), Some(&signed[1]));
    let unsigned = apply(&engine, &policy(), Vec::new()).await.unwrap();
    assert_eq!(unsigned.changes, 2);
    assert_eq!(
        engine.history(1).await.unwrap()[0].changes,
        ["service media: no longer signed", "service wiki: no longer signed"]
    );
    signed[1].signature = signed[1].signature.slice(..63);
    let wrong = apply(&engine, &policy(), signed).await.unwrap_err();
    assert!(wrong.contains("for service wiki: malformed"), "{wrong}");
}

/// Named after canaries of services whose rules had not changed.
#[tokio::test]
async fn another_bundle_of_the_same_key_touches_nobody_and_one_of_another_key_all() {
    let (key, other) = (key(), self::key());
    let (engine, _, _dir) = world(&[]).await;
    apply(&engine, &policy(), signatures(&key, &policy())).await.unwrap();
    let next = files(&[("media", &["read"]), ("wiki", &["erase"])]);
    let later = |key: &[u8]| {
        let records = mesh_config::compile(&mesh_config::parse(&next).unwrap()).allowlists;
        let signed = |(name, policy): (&String, _)| sign(key, kind::ALLOWLIST, name, 8, &signed_part(policy)).unwrap();
        records.iter().map(signed).collect::<Vec<_>>()
    };
    assert_eq!(engine.plan(next.clone(), later(&key)).await.unwrap().touched(), ["wiki"]);
    assert_eq!(engine.plan(next.clone(), later(&other)).await.unwrap().touched(), ["media", "wiki"], "who accepts it?");
    assert_eq!(engine.plan(next.clone(), Vec::new()).await.unwrap().touched(), ["media", "wiki"], "signed no longer");
}
