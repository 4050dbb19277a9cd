use std::path::Path;
use std::sync::Arc;

use journal::Embedded;
use mesh_identity::Identity;
use prost::Message as _;

use super::*;
use crate::Ca;
use crate::audit::Audit;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

/// The parts of a service, at `now`, on what lies in `dir`.
async fn authority(dir: &Path, now: u64) -> Authority {
    let domain = "demo.example".parse().unwrap();
    let ca_dir = dir.join("ca");
    let ca = if Ca::exists(&ca_dir) { Ca::open } else { Ca::create }(&ca_dir, &domain, None, now).unwrap();
    let audit = Audit::open(&dir.join("audit.jsonl")).unwrap();
    let identity = Identity::new(own_svid(&ca, &audit, now).unwrap(), ca.bundle());
    let store = Embedded::open(&dir.join("store.redb")).unwrap();
    Authority::open(Arc::new(ca), identity, audit, Vec::new(), |kind| store.kind(kind)).await.unwrap()
}

async fn published(authority: &Authority) -> mesh_identity::TrustBundle {
    let record = authority.bundles.get("demo.example").await.unwrap().unwrap();
    let record = tenon_proto::identity::v1::TrustBundle::decode(record.value).unwrap();
    mesh_identity::TrustBundle::from_proto(&record).unwrap()
}

#[tokio::test]
async fn the_own_certificate_is_renewed_at_half_of_its_life_and_follows_a_new_issuing_ca_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path(), NOW).await;
    let serial = || authority.identity.svid().serial().to_owned();
    let first = serial();
    // From 300 s before NOW to 3600 s after it.
    maintain(&authority, NOW + 1649).await;
    assert_eq!(serial(), first);
    maintain(&authority, NOW + 1650).await;
    let second = serial();
    assert_ne!(second, first);
    assert!(authority.rotate(authority.identity.id(), Step::Issuing, NOW + 1650).await.unwrap().done);
    assert_ne!(serial(), second);
    assert_eq!(authority.identity.svid().issuing_authority(), published(&authority).await.rotation().issuing_authority);
}

#[tokio::test]
async fn the_issuing_ca_is_renewed_by_itself_after_fifteen_days() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path(), NOW).await;
    maintain(&authority, NOW + 15 * DAY - 1).await;
    assert_eq!(published(&authority).await.rotation().sequence, 1);
    maintain(&authority, NOW + 15 * DAY).await;
    let bundle = published(&authority).await;
    assert_eq!((bundle.rotation().sequence, &bundle), (2, &*authority.identity.bundle()));
    maintain(&authority, NOW + 15 * DAY + 60).await;
    assert_eq!(published(&authority).await.rotation().sequence, 2);
    let audit = std::fs::read_to_string(dir.path().join("audit.jsonl")).unwrap();
    assert!(audit.lines().any(|line| line.contains(r#""step":"issuing""#)), "{audit}");
}

#[tokio::test]
async fn a_step_that_was_written_and_not_followed_is_followed_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let first = authority(dir.path(), NOW).await;
    settle(&first, NOW).await.unwrap();
    // Killed right after the CA's files were written.
    first.ca.prepare_root(NOW).unwrap();
    drop(first);
    let second = authority(dir.path(), NOW).await;
    assert_eq!(published(&second).await.roots().len(), 1);
    settle(&second, NOW).await.unwrap();
    assert_eq!((published(&second).await, second.identity.bundle().roots().len()), (second.ca.bundle(), 2));
}

#[tokio::test]
async fn a_ca_that_was_put_back_from_an_older_copy_passes_what_followers_have_seen() {
    let dir = tempfile::tempdir().unwrap();
    let first = authority(dir.path(), NOW).await;
    let copy = std::fs::read(dir.path().join("ca/ca.json")).unwrap();
    for _ in 0..3 {
        first.ca.rekey(NOW).unwrap();
    }
    settle(&first, NOW).await.unwrap();
    drop(first);
    std::fs::write(dir.path().join("ca/ca.json"), copy).unwrap();
    let second = authority(dir.path(), NOW).await;
    settle(&second, NOW).await.unwrap();
    let bundle = published(&second).await;
    assert_eq!((bundle.rotation().sequence, bundle.rotation().rekey_created_before), (5, 0));
    assert_eq!(bundle, second.ca.bundle());
}

#[tokio::test]
async fn a_disk_without_room_for_the_ca_is_an_error_that_says_so_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path(), NOW).await;
    settle(&authority, NOW).await.unwrap();
    std::fs::create_dir_all(dir.path().join("ca/root-2.key.new/full")).unwrap();
    let error = authority.rotate(authority.identity.id(), Step::RootPrepare, NOW).await.unwrap_err();
    let status = tonic::Status::from(error);
    assert!(status.message().starts_with("the CA was not changed: cannot write"), "{status}");
    assert_eq!((authority.ca.phase(), published(&authority).await.roots().len()), (Phase::None, 1));
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let full = crate::CaError::File { action: "write", path: "root-2.key".into(), source: full };
    let status = tonic::Status::from(StepError::Rotate(full.into()));
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert!(status.message().starts_with("no room left on the disk of the CA; nothing has changed"), "{status}");
}

#[tokio::test]
async fn a_bundle_that_could_not_be_published_is_not_taken_for_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path(), NOW).await;
    settle(&authority, NOW).await.unwrap();
    let before = authority.bundle_position().await.unwrap();
    assert!(before.is_some());
    // A new root is in the CA's files, and the store had no room for the bundle with it.
    authority.ca.prepare_root(NOW).unwrap();
    assert_eq!(authority.bundle_position().await.unwrap(), None);
    settle(&authority, NOW).await.unwrap();
    assert!(authority.bundle_position().await.unwrap() > before);
}
