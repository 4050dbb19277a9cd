use journal::Embedded;
use mesh_asap::SigningKey;

use super::*;

const NOW: u64 = 1_800_000_000;

fn key(service: &str) -> AsapKey {
    let key = SigningKey::generate(service).unwrap();
    AsapKey { kid: key.kid().to_string(), spki: key.public_spki().into() }
}

fn media() -> ServiceName {
    "media".parse().unwrap()
}

#[test]
fn a_key_id_must_be_of_its_service_and_well_formed() {
    let good = key("media");
    assert!(ServiceKey::parse(Some(good.clone()), &media()).is_ok());
    assert!(matches!(ServiceKey::parse(None, &media()), Err(UnfitKey::Missing)));
    for kid in ["issues/1", "media", "mediax/1", "Media/1"] {
        let key = AsapKey { kid: kid.to_owned(), ..good.clone() };
        assert!(matches!(ServiceKey::parse(Some(key), &media()), Err(UnfitKey::Issuer(_))), "{kid}");
    }
    for kid in ["", "media/", "media//1", "media/../issues/1", "media/./1", "media/1 ", "/media/1", "media/é"] {
        let key = AsapKey { kid: kid.to_owned(), ..good.clone() };
        assert!(matches!(ServiceKey::parse(Some(key), &media()), Err(UnfitKey::Kid(_))), "{kid}");
    }
}

#[test]
fn a_key_of_no_fit_type_is_refused() {
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    for spki in [Bytes::new(), "nonsense".into(), rcgen::PublicKeyData::subject_public_key_info(&ed25519).into()] {
        let key = AsapKey { kid: "media/1".to_owned(), spki };
        assert!(matches!(ServiceKey::parse(Some(key), &media()), Err(UnfitKey::Key(_))));
    }
}

struct Fixture {
    keys: Keys,
    journal: Arc<dyn Journal>,
    revocations: Arc<Revocations>,
    _dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
    let revocations = Arc::new(Revocations::open(store.kind("revocation").unwrap(), |_| {}).await.unwrap());
    let journal = store.kind("key").unwrap();
    Fixture { keys: Keys::new(Arc::clone(&journal), Arc::clone(&revocations)), journal, revocations, _dir: dir }
}

#[tokio::test]
async fn a_key_is_added_once_then_confirmed_and_its_id_is_never_given_to_another() {
    let Fixture { keys, _dir, .. } = fixture().await;
    let sent = key("media");
    let own = ServiceKey::parse(Some(sent.clone()), &media()).unwrap();
    keys.check(&own).await.unwrap();
    let first = keys.confirm(&own, NOW).await.unwrap();
    let second = keys.confirm(&own, NOW + 1800).await.unwrap();
    assert!(second > first);
    let [listed] = &keys.list().await.unwrap()[..] else { panic!("one key") };
    assert_eq!((listed.created_unix_seconds, listed.confirmed_unix_seconds), (NOW, NOW + 1800));
    assert_eq!((listed.kid.as_str(), listed.issuer.as_str()), (sent.kid.as_str(), "media"));

    let other = AsapKey { kid: sent.kid, spki: key("media").spki };
    let other = ServiceKey::parse(Some(other), &media()).unwrap();
    assert!(matches!(keys.check(&other).await, Err(KeyStoreError::Taken(_))));
    assert!(matches!(keys.confirm(&other, NOW).await, Err(KeyStoreError::Taken(_))));
}

#[tokio::test]
async fn a_confirmation_is_written_again_only_after_ten_minutes_and_the_position_stays() {
    let Fixture { keys, journal, _dir, .. } = fixture().await;
    let own = ServiceKey::parse(Some(key("media")), &media()).unwrap();
    let first = keys.confirm(&own, NOW).await.unwrap();
    keys.confirm(&ServiceKey::parse(Some(key("media")), &media()).unwrap(), NOW).await.unwrap();
    let head = journal.head().await.unwrap();
    assert_eq!(keys.confirm(&own, NOW + CONFIRMATION_KEPT - 1).await.unwrap(), first);
    assert_eq!(journal.head().await.unwrap(), head);
    assert!(keys.confirm(&own, NOW + CONFIRMATION_KEPT).await.unwrap() > head);
    // A clock that went back writes nothing either.
    assert_eq!(keys.confirm(&own, NOW - 600).await.unwrap(), journal.head().await.unwrap());
}

#[tokio::test]
async fn a_key_goes_two_hours_after_its_last_confirmation_and_not_before_all_could_confirm() {
    let Fixture { keys, journal, _dir, .. } = fixture().await;
    let (kept, lost) = (key("media"), key("media"));
    for key in [&kept, &lost] {
        keys.confirm(&ServiceKey::parse(Some(key.clone()), &media()).unwrap(), NOW).await.unwrap();
    }
    let transaction = Key {
        kid: "tenon-identity/1".to_owned(),
        r#use: KeyUse::Transaction.into(),
        confirmed_unix_seconds: NOW,
        ..Key::default()
    };
    journal.append(vec![Write::put("tenon-identity/1", transaction.encode_to_vec())]).await.unwrap();
    keys.confirm(&ServiceKey::parse(Some(kept.clone()), &media()).unwrap(), NOW + 3600).await.unwrap();

    let end = NOW + UNCONFIRMED_LIFETIME;
    assert!(keys.prune(NOW, end - 1).await.unwrap().is_empty());
    assert!(keys.prune(NOW + 1, end).await.unwrap().is_empty(), "the service has just come up");
    let [gone] = &keys.prune(NOW, end).await.unwrap()[..] else { panic!("one key") };
    assert_eq!(gone.kid, lost.kid);
    let left: Vec<String> = keys.list().await.unwrap().into_iter().map(|key| key.kid).collect();
    assert_eq!(left, [kept.kid, "tenon-identity/1".to_owned()]);
}

#[tokio::test]
async fn a_revoked_key_or_the_key_of_a_revoked_service_is_not_added_until_that_is_lifted() {
    let Fixture { keys, revocations, _dir, .. } = fixture().await;
    let own = ServiceKey::parse(Some(key("media")), &media()).unwrap();
    keys.confirm(&own, NOW).await.unwrap();
    for selector in [Selector::Kid(own.kid().clone()), Selector::Service(media())] {
        revocations.revoke(&selector, "ann", "", NOW).await.unwrap();
        for refused in [keys.check(&own).await.err(), keys.confirm(&own, NOW + 3600).await.err()] {
            let text = refused.unwrap().to_string();
            assert!(text.contains(&selector.to_string()) && text.contains("--lift"), "{text}");
        }
        assert_eq!(keys.prune(NOW, NOW).await.unwrap().len(), 1, "what the revocation has not deleted");
        revocations.lift(&selector).await.unwrap();
        keys.confirm(&own, NOW).await.unwrap();
    }
}

#[tokio::test]
async fn one_service_cannot_fill_the_memory_of_every_sidecar_with_keys() {
    let Fixture { mut keys, _dir, .. } = fixture().await;
    let rate = Rate { burst: 3, per_second: 1 };
    keys.limits = Arc::new(Limits::new(Settings { service: rate, all: Rate { burst: 100, per_second: 100 } }));
    let fresh = |service: &str| ServiceKey::parse(Some(key(service)), &service.parse().unwrap()).unwrap();
    let first = fresh("media");
    keys.confirm(&first, NOW).await.unwrap();
    for _ in 0..2 {
        keys.confirm(&fresh("media"), NOW).await.unwrap();
    }
    assert!(matches!(keys.confirm(&fresh("media"), NOW).await, Err(KeyStoreError::TooMany(_))));
    // Keys that are there are confirmed as ever, and others are not held up.
    keys.confirm(&first, NOW + CONFIRMATION_KEPT).await.unwrap();
    keys.confirm(&fresh("issues"), NOW).await.unwrap();
}
