use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use journal::Embedded;
use mesh_asap::{Lookup, PublicKey};
use tenon_proto::identity::v1::{Key, KeyUse};
use tenon_proto::kind;

use super::*;
use crate::revocations::Revocations;

const NOW: u64 = 1_800_000_000;
const HOUR: u64 = 3600;

struct World {
    acknowledged: AtomicBool,
    revoked: Mutex<HashSet<Kid>>,
    replace_older_than: AtomicU64,
}

impl Default for World {
    fn default() -> Self {
        Self { acknowledged: AtomicBool::new(true), revoked: Mutex::default(), replace_older_than: AtomicU64::new(0) }
    }
}

impl Surroundings for World {
    fn everyone_has(&self, _: Position, _: u64) -> bool {
        self.acknowledged.load(Ordering::SeqCst)
    }

    fn is_revoked(&self, kid: &Kid) -> bool {
        self.revoked.lock().unwrap().contains(kid)
    }

    fn replace_older_than(&self) -> u64 {
        self.replace_older_than.load(Ordering::SeqCst)
    }
}

struct Fixture {
    world: World,
    keys: Keys,
    dir: tempfile::TempDir,
    ring: KeyRing,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
        let revocations = Revocations::open(store.kind(kind::REVOCATION).unwrap(), |_| {}).await.unwrap();
        let keys = Keys::new(store.kind(kind::KEY).unwrap(), Arc::new(revocations));
        let ring = KeyRing::open(dir.path().join("keys"), None, keys.clone(), NOW).unwrap();
        Self { world: World::default(), keys, dir, ring }
    }

    fn restart(&mut self, now: u64) {
        self.ring = KeyRing::open(self.dir.path().join("keys"), None, self.keys.clone(), now).unwrap();
    }

    async fn settle(&mut self, now: u64) -> Option<Kid> {
        self.ring.settle(&self.world, now).await.unwrap();
        self.ring.signing(&self.world).map(|key| key.kid().clone())
    }

    async fn published(&self) -> Vec<Key> {
        self.keys.list().await.unwrap()
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("keys")).unwrap().count()
    }
}

#[tokio::test]
async fn the_first_key_signs_at_once_and_the_next_is_published_beside_it() {
    let mut fixture = Fixture::new().await;
    let signing = fixture.settle(NOW).await.unwrap();
    assert!(signing.as_str().starts_with("tenon-identity/txn-"), "{signing}");
    let published = fixture.published().await;
    assert_eq!(published.len(), 2);
    for key in &published {
        assert_eq!((key.r#use(), key.issuer.as_str()), (KeyUse::Transaction, "tenon-identity"));
    }
    assert_eq!(fixture.files(), 2);
    // Whoever has the published half verifies what is signed.
    let key = published.iter().find(|key| key.kid == signing.as_str()).unwrap();
    let public = Arc::new(PublicKey::from_spki(&key.spki).unwrap());
    let nothing = serde_json::Map::new();
    let new = txn::NewToken {
        trust_domain: "demo.example",
        txn: None,
        subject: "user-7",
        scope: "read",
        tenant: Some("acme"),
        transaction_context: &nothing,
        requester_context: &nothing,
        requester: "spiffe://demo.example/svc/media",
        lifetime_seconds: 300,
    };
    let token = fixture.ring.signing(&fixture.world).unwrap().mint_transaction(&new, NOW);
    let expect = txn::Expect { trust_domain: "demo.example", leeway_seconds: 5 };
    let lookup = |_: &str| Lookup::Found(Arc::clone(&public));
    assert_eq!(txn::verify(&token, &expect, &lookup, NOW).unwrap().tenant.as_deref(), Some("acme"));
    // Nothing more is due.
    assert_eq!(fixture.settle(NOW + HOUR).await.unwrap(), signing);
    assert_eq!(fixture.published().await, published);
}

#[tokio::test]
async fn no_key_signs_before_everybody_has_it_or_could_have_it() {
    let mut fixture = Fixture::new().await;
    fixture.world.acknowledged.store(false, Ordering::SeqCst);
    assert_eq!(fixture.settle(NOW).await, None);
    assert_eq!(fixture.published().await.len(), 1);
    assert_eq!(fixture.settle(NOW + HOUR - 1).await, None);
    // Whoever has not answered for an hour has no certificate any more.
    let signing = fixture.settle(NOW + HOUR).await.unwrap();
    assert_eq!(fixture.settle(NOW + HOUR + 1).await.unwrap(), signing);
}

#[tokio::test]
async fn a_day_later_the_next_key_signs_and_the_old_one_is_published_until_its_tokens_have_ended() {
    let mut fixture = Fixture::new().await;
    let first = fixture.settle(NOW).await.unwrap();
    let known: HashSet<_> = fixture.published().await.into_iter().map(|key| key.kid).collect();
    assert_eq!(fixture.settle(NOW + SIGNING - 1).await.unwrap(), first);

    // The prepared key is a day old, so even a silent instance has it.
    fixture.world.acknowledged.store(false, Ordering::SeqCst);
    let second = fixture.settle(NOW + SIGNING).await.unwrap();
    assert_ne!(second, first);
    assert!(known.contains(second.as_str()), "it was published all the time");
    let kids: Vec<_> = fixture.published().await.into_iter().map(|key| key.kid).collect();
    assert_eq!(kids.len(), 3);
    assert!(kids.contains(&first.to_string()));

    assert_eq!(fixture.settle(NOW + SIGNING + KEPT - 1).await.unwrap(), second);
    assert_eq!(fixture.published().await.len(), 3);
    assert_eq!(fixture.settle(NOW + SIGNING + KEPT).await.unwrap(), second);
    let kids: Vec<_> = fixture.published().await.into_iter().map(|key| key.kid).collect();
    assert_eq!((kids.len(), kids.contains(&first.to_string())), (2, false));
    assert_eq!(fixture.files(), 2);
}

#[tokio::test]
async fn keys_survive_a_restart_even_while_nobody_has_acknowledged_anything_yet() {
    let mut fixture = Fixture::new().await;
    let first = fixture.settle(NOW).await.unwrap();
    let published = fixture.published().await;
    fixture.world.acknowledged.store(false, Ordering::SeqCst);
    fixture.restart(NOW + 60);
    assert_eq!(fixture.settle(NOW + 60).await.unwrap(), first);
    assert_eq!(fixture.published().await, published);
    // In the middle of a rotation.
    let second = fixture.settle(NOW + SIGNING).await.unwrap();
    fixture.restart(NOW + SIGNING + 1);
    assert_eq!(fixture.settle(NOW + SIGNING + 1).await.unwrap(), second);
    assert_eq!(fixture.published().await.len(), 3);
    fixture.settle(NOW + SIGNING + 1 + KEPT).await;
    assert_eq!(fixture.published().await.len(), 2);
}

#[tokio::test]
async fn a_revoked_key_signs_no_more_and_goes_and_one_that_is_too_old_is_replaced() {
    let mut fixture = Fixture::new().await;
    let first = fixture.settle(NOW).await.unwrap();
    fixture.world.revoked.lock().unwrap().insert(first.clone());
    assert!(fixture.ring.signing(&fixture.world).is_none(), "at once, before anything was written");
    let second = fixture.settle(NOW + 1).await.unwrap();
    assert_ne!(second, first);
    assert!(fixture.published().await.iter().all(|key| key.kid != first.as_str()));
    // `tenon identity rotate keys`.
    fixture.world.replace_older_than.store(NOW + 100, Ordering::SeqCst);
    let third = fixture.settle(NOW + 100).await.unwrap();
    assert_ne!(third, second);
    assert!(fixture.published().await.iter().any(|key| key.kid == second.as_str()), "its tokens live on");
    assert_eq!(fixture.settle(NOW + 101).await.unwrap(), third);
}

#[tokio::test]
async fn keys_are_published_again_when_the_store_was_lost_and_records_without_a_key_go() {
    let mut fixture = Fixture::new().await;
    let signing = fixture.settle(NOW).await.unwrap();
    fixture.keys.delete(|_| true).await.unwrap();
    fixture.restart(NOW + 1);
    assert_eq!(fixture.settle(NOW + 1).await.unwrap(), signing);
    assert_eq!(fixture.published().await.len(), 2);

    std::fs::remove_dir_all(fixture.dir.path().join("keys")).unwrap();
    fixture.restart(NOW + 2);
    let other = fixture.settle(NOW + 2).await.unwrap();
    assert_ne!(other, signing);
    assert_eq!(fixture.published().await.len(), 4, "tokens of the lost keys still verify");
    fixture.settle(NOW + 2 + KEPT).await.unwrap();
    let left = fixture.published().await;
    assert!(left.len() == 2 && left.iter().all(|key| key.kid != signing.as_str()), "{left:?}");
}

#[test]
fn a_key_is_encrypted_under_the_passphrase_and_nobody_else_reads_the_file() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let (key, passphrase) = (file::generate(), Passphrase::new("correct horse".to_owned()));
    KeyFile::seal(&key, passphrase.as_ref(), NOW).unwrap().write(dir.path()).unwrap();
    let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&path).unwrap().contains("BEGIN ENCRYPTED PRIVATE KEY"));

    let [read] = &file::read_all(dir.path()).unwrap()[..] else { panic!("one file") };
    assert_eq!(read.open(passphrase.as_ref()).unwrap().public_spki(), key.public_spki());
    for wrong in [None, Passphrase::new("another".to_owned())] {
        assert!(matches!(read.open(wrong.as_ref()), Err(KeyFileError::Passphrase(_) | KeyFileError::Content(_))));
    }
    let signing = read.clone().signing_since(NOW + 7);
    signing.write(dir.path()).unwrap();
    let [read] = &file::read_all(dir.path()).unwrap()[..] else { panic!("one file") };
    assert_eq!((read.created, read.stage), (NOW, Stage::Signing { since: NOW + 7 }));
    assert_eq!(read.open(passphrase.as_ref()).unwrap().kid(), key.kid());
    for broken in ["", "kid: media/1\ncreated: 7\n-----BEGIN PRIVATE KEY-----\n", "nonsense"] {
        std::fs::write(&path, broken).unwrap();
        assert!(matches!(file::read_all(dir.path()), Err(KeyFileError::Content(_))), "{broken}");
    }
}
