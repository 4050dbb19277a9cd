use journal::Embedded;

use mesh_identity::Revoked;
use tenon_proto::identity::v1 as proto;

use super::*;
use crate::testing::Unsure;

const NOW: u64 = 1_800_000_000;

struct Fixture {
    store: Embedded,
    applied: Arc<Mutex<Revoked>>,
    revocations: Revocations,
    _dir: tempfile::TempDir,
}

async fn open(store: &Embedded) -> (Revocations, Arc<Mutex<Revoked>>) {
    let applied = Arc::new(Mutex::new(Revoked::default()));
    let apply = Arc::clone(&applied);
    let journal = store.kind("revocation").unwrap();
    let revocations = Revocations::open(journal, move |revoked| *apply.lock().unwrap() = revoked).await.unwrap();
    (revocations, applied)
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
    let (revocations, applied) = open(&store).await;
    Fixture { store, applied, revocations, _dir: dir }
}

fn revoke(what: proto::revoke_request::What) -> Result<Selector, SelectorError> {
    Selector::to_revoke(&proto::RevokeRequest { what: Some(what), reason: String::new() })
}

fn service(name: &str) -> Result<Selector, SelectorError> {
    revoke(proto::revoke_request::What::Service(name.to_owned()))
}

fn kid(kid: &str) -> Result<Selector, SelectorError> {
    revoke(proto::revoke_request::What::Kid(kid.to_owned()))
}

fn operator(name: &str) -> Result<Selector, SelectorError> {
    revoke(proto::revoke_request::What::Operator(name.to_owned()))
}

fn serial(text: &str) -> Result<Selector, SelectorError> {
    revoke(proto::revoke_request::What::Serial(text.to_owned()))
}

#[test]
fn a_serial_is_the_same_however_a_tool_prints_it() {
    for text in ["0ab1", "0AB1", "ab1", "0a:b1", "00:0A:B1", "serial=0AB1", "0x0ab1", " 0ab1\n", "0000000ab1"] {
        assert_eq!(serial(text).unwrap().to_string(), "serial/0ab1", "{text:?}");
    }
    for text in ["", "0", "00:00", "xyz", "12 34", "-1", &"1".repeat(41)] {
        assert!(matches!(serial(text), Err(SelectorError::Serial)), "{text:?}");
    }
}

#[test]
fn names_that_break_their_grammar_and_those_of_the_control_plane_are_refused() {
    assert_eq!(service("media").unwrap().to_string(), "service/media");
    assert_eq!(kid("media/1").unwrap().to_string(), "kid/media/1");
    assert!(matches!(service("Media"), Err(SelectorError::Service(_))));
    assert!(matches!(kid("media/../1"), Err(SelectorError::Kid(_))));
    // As docs/transaction-tokens.md says: a stolen key must not go on making tokens for any tenant.
    assert_eq!(kid("tenon-identity/txn-1").unwrap().to_string(), "kid/tenon-identity/txn-1");
    for refused in [service("tenon-identity"), service("tenon-tcs"), kid("tenon-identity/1"), kid("tenon-tcs/txn-1")] {
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("belongs to the control plane"), "{text}");
    }
    // Of an operator the name says nothing about the control plane.
    assert_eq!(operator("tenon-ada").unwrap().to_string(), "operator/tenon-ada");
    for text in ["", "Ada", "a/b", "operator/ada"] {
        let refused = operator(text).unwrap_err();
        assert!(matches!(refused, SelectorError::Operator(_)), "{text:?}: {refused}");
    }
    let nothing = proto::RevokeRequest { what: None, reason: String::new() };
    assert!(matches!(Selector::to_revoke(&nothing), Err(SelectorError::Nothing)));
    // A name that cannot be revoked any more may still be lifted.
    let what = proto::lift_revocation_request::What::Service("tenon-tcs".to_owned());
    assert!(Selector::to_lift(&proto::LiftRevocationRequest { what: Some(what) }).is_ok());
}

#[tokio::test]
async fn what_is_revoked_is_known_at_once_and_after_a_restart_until_it_is_lifted() {
    let Fixture { store, applied, revocations, _dir } = fixture().await;
    let (media, key, certificate) = (service("media").unwrap(), kid("issues/1").unwrap(), serial("AB").unwrap());
    let first = revocations.revoke(&media, "ann", "stolen", NOW).await.unwrap();
    revocations.revoke(&key, "ann", "", NOW).await.unwrap();
    let last = revocations.revoke(&certificate, "ann", "", NOW).await.unwrap();
    assert!(last > first);
    assert!(revocations.names_service(&"media".parse().unwrap()));
    assert!(!revocations.names_service(&"issues".parse().unwrap()));
    assert!(revocations.names_kid(&"issues/1".parse().unwrap()));
    {
        let applied = applied.lock().unwrap();
        assert!(applied.services.contains("media") && applied.serials.contains("ab"));
    }
    let listed = revocations.all();
    assert_eq!(listed.len(), 3);
    assert_eq!(
        (listed[0].reason.as_str(), listed[0].by.as_str(), listed[0].revoked_unix_seconds),
        ("stolen", "ann", NOW)
    );
    drop(revocations);

    let (revocations, applied) = open(&store).await;
    assert_eq!(revocations.all(), listed);
    assert!(applied.lock().unwrap().services.contains("media"));
    assert!(revocations.lift(&media).await.unwrap().is_some());
    assert!(revocations.lift(&media).await.unwrap().is_none(), "there is none any more");
    assert!(applied.lock().unwrap().services.is_empty());
    assert!(!revocations.names_service(&"media".parse().unwrap()));
}

#[tokio::test]
async fn an_operator_is_revoked_by_name_and_no_service_of_that_name_is_until_that_is_lifted() {
    let Fixture { store, applied, revocations, _dir } = fixture().await;
    let ada = operator("ada").unwrap();
    revocations.revoke(&ada, "ann", "stolen", NOW).await.unwrap();
    assert!(revocations.names_operator("ada") && !revocations.names_operator("ann"));
    assert!(!revocations.names_service(&"ada".parse().unwrap()));
    let expected = Revoked { operators: ["ada".to_owned()].into(), ..Revoked::default() };
    assert_eq!(*applied.lock().unwrap(), expected);
    drop(revocations);

    let (revocations, applied) = open(&store).await;
    assert_eq!(*applied.lock().unwrap(), expected, "after a restart too");
    let listed = revocations.all();
    assert_eq!(listed[0].what, Some(proto::revocation::What::Operator("ada".to_owned())));
    assert_eq!(store.kind("revocation").unwrap().snapshot().await.unwrap().records[0].key, "operator/ada");
    let what = Some(proto::lift_revocation_request::What::Operator("ada".to_owned()));
    let lifted = Selector::to_lift(&proto::LiftRevocationRequest { what }).unwrap();
    assert!(revocations.lift(&lifted).await.unwrap().is_some());
    assert_eq!(*applied.lock().unwrap(), Revoked::default());
}

#[tokio::test]
async fn a_record_that_is_none_stops_the_service_rather_than_bringing_somebody_back() {
    let Fixture { store, revocations, _dir, .. } = fixture().await;
    drop(revocations);
    let journal = store.kind("revocation").unwrap();
    journal.append(vec![Write::put("service/media", vec![0xff])]).await.unwrap();
    assert!(matches!(Revocations::open(journal, |_| {}).await, Err(RevocationStoreError::Damaged(_))));
}

#[tokio::test]
async fn nothing_is_revoked_while_a_key_is_being_added() {
    let Fixture { revocations, _dir, .. } = fixture().await;
    let key = kid("issues/1").unwrap();
    let held = revocations.hold().await;
    let revoking = revocations.revoke(&key, "ann", "", NOW);
    tokio::pin!(revoking);
    assert!(futures_util::poll!(&mut revoking).is_pending());
    assert!(!revocations.names_kid(&"issues/1".parse().unwrap()));
    drop(held);
    revoking.await.unwrap();
    assert!(revocations.names_kid(&"issues/1".parse().unwrap()));
}

/// What is in force here, which the journal must say as well.
async fn in_force(revocations: &Revocations, applied: &Mutex<Revoked>, journal: &dyn Journal) -> bool {
    let revoked = revocations.names_service(&"media".parse().unwrap());
    assert_eq!(applied.lock().unwrap().services.contains("media"), revoked, "this process's own TLS");
    assert_eq!(revocations.all().len(), usize::from(revoked), "what is listed");
    assert_eq!(journal.count().await.unwrap() == 1, revoked, "what followers have");
    revoked
}

/// Named after a service that sidecars refused, and the identity service went on trusting, with nothing to be lifted.
#[tokio::test]
async fn what_the_disk_did_not_confirm_is_in_force_here_as_it_is_for_followers() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
    let journal = Unsure::new(store.kind("revocation").unwrap());
    let applied = Arc::new(Mutex::new(Revoked::default()));
    let apply = Arc::clone(&applied);
    let open = Revocations::open(Arc::clone(&journal) as _, move |revoked| *apply.lock().unwrap() = revoked);
    let (revocations, media) = (open.await.unwrap(), service("media").unwrap());

    journal.unconfirmed.store(true, Ordering::SeqCst);
    for lost in [true, false] {
        journal.lost.store(lost, Ordering::SeqCst);
        let unsure = revocations.revoke(&media, "ann", "stolen", NOW).await.unwrap_err();
        assert!(unsure.is_unconfirmed(), "{unsure}");
        assert_eq!(in_force(&revocations, &applied, &*journal).await, !lost);
    }
    for lost in [true, false] {
        journal.lost.store(lost, Ordering::SeqCst);
        let unsure = revocations.lift(&media).await.unwrap_err();
        assert!(unsure.is_unconfirmed(), "{unsure}");
        assert_eq!(in_force(&revocations, &applied, &*journal).await, lost);
    }
}

#[tokio::test]
async fn what_may_be_revoked_is_not_trusted_until_the_journal_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
    let journal = Unsure::new(store.kind("revocation").unwrap());
    let applied = Arc::new(Mutex::new(Revoked::default()));
    let apply = Arc::clone(&applied);
    let open = Revocations::open(Arc::clone(&journal) as _, move |revoked| *apply.lock().unwrap() = revoked);
    let (revocations, media) = (open.await.unwrap(), service("media").unwrap());
    let unreadable = |unreadable| journal.unreadable.store(unreadable, Ordering::SeqCst);

    journal.lost.store(true, Ordering::SeqCst);
    unreadable(true);
    assert!(revocations.revoke(&media, "ann", "", NOW).await.unwrap_err().is_unconfirmed());
    assert!(revocations.names(&media) && applied.lock().unwrap().services.contains("media"));
    assert!(revocations.catch_up().await.is_err());
    assert!(revocations.names(&media), "still not known");
    unreadable(false);
    revocations.catch_up().await.unwrap();
    assert!(!in_force(&revocations, &applied, &*journal).await);

    journal.lost.store(false, Ordering::SeqCst);
    revocations.revoke(&media, "ann", "", NOW).await.unwrap();
    journal.unconfirmed.store(true, Ordering::SeqCst);
    unreadable(true);
    assert!(revocations.lift(&media).await.unwrap_err().is_unconfirmed());
    assert!(revocations.names(&media), "it may be revoked still");
    unreadable(false);
    revocations.catch_up().await.unwrap();
    assert!(!in_force(&revocations, &applied, &*journal).await);
}
