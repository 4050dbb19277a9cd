use std::sync::atomic::{AtomicUsize, Ordering};

use journal::{AppendError, Embedded, Journal, ReadError, Record, Snapshot, Tail, Write};
use mesh_asap::SigningKey;
use rcgen::{CertificateParams, KeyPair, SanType};
use tenon_proto::identity::v1::{LiftRevocationRequest, RevokeRequest, lift_revocation_request, revoke_request};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::testing::Unsure;
use crate::{revocations, tokens};

const NOW: u64 = 1_800_000_000;

struct Fixture {
    authority: Arc<Authority>,
    /// Fails appends of the store of tokens, of the store of keys.
    disks: [Arc<Disk>; 2],
    /// The journals of keys and of revocations below them.
    unsure: [Arc<Unsure>; 2],
    _dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::create(&dir.path().join("ca"), &"demo.example".parse().unwrap(), None, NOW).unwrap();
    let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
    let unsure = [kind::KEY, kind::REVOCATION].map(|kind| Unsure::new(store.kind(kind).unwrap()));
    let disks = [store.kind(tokens::KIND).unwrap(), Arc::clone(&unsure[0]) as Arc<dyn Journal>]
        .map(|journal| Arc::new(Disk { journal, good: AtomicUsize::new(usize::MAX) }));
    let own = ca.issue_service(&"tenon-identity".parse().unwrap(), SVID_LIFETIME, NOW).unwrap();
    let identity = Identity::new(own, ca.bundle().clone());
    let audit = Audit::open(&dir.path().join("audit.jsonl")).unwrap();
    let authority = Authority::open(Arc::new(ca), identity, audit, Vec::new(), |kind| {
        Ok(match kind {
            tokens::KIND => Arc::clone(&disks[0]) as Arc<dyn Journal>,
            kind::KEY => Arc::clone(&disks[1]) as Arc<dyn Journal>,
            kind::REVOCATION => Arc::clone(&unsure[1]) as Arc<dyn Journal>,
            other => store.kind(other)?,
        })
    })
    .await
    .unwrap();
    Fixture { authority: Arc::new(authority), disks, unsure, _dir: dir }
}

/// A journal whose disk fills up after some writes.
struct Disk {
    journal: Arc<dyn Journal>,
    good: AtomicUsize,
}

impl Disk {
    fn full_after(&self, writes: usize) {
        self.good.store(writes, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl Journal for Disk {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        let spend = self.good.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |good| good.checked_sub(1));
        if spend.is_err() {
            return Err(AppendError::Full(std::io::Error::from(std::io::ErrorKind::StorageFull).into()));
        }
        self.journal.append(writes).await
    }

    async fn append_at(&self, _: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.append(writes).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        self.journal.get(key).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.journal.snapshot().await
    }

    async fn head(&self) -> Result<Position, ReadError> {
        self.journal.head().await
    }

    async fn count(&self) -> Result<u64, ReadError> {
        self.journal.count().await
    }

    async fn history(&self) -> Result<journal::History, ReadError> {
        self.journal.history().await
    }

    fn tail(&self, from: Position) -> Tail {
        self.journal.tail(from)
    }
}

impl Fixture {
    async fn token(&self, service: &str) -> String {
        let (token, _) = self.authority.create_join_token("ann", &service.parse().unwrap(), 0, NOW).await.unwrap();
        token.to_string()
    }

    async fn kids(&self) -> Vec<String> {
        self.authority.list_keys().await.unwrap().into_iter().map(|key| key.kid).collect()
    }
}

fn csr(uri: Option<&str>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = uri.map(|uri| SanType::URI(uri.try_into().unwrap())).into_iter().collect();
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn key(service: &str) -> Option<AsapKey> {
    let key = SigningKey::generate(service).unwrap();
    Some(AsapKey { kid: key.kid().to_string(), spki: key.public_spki().into() })
}

fn asked(csr: &[u8], asap_key: Option<AsapKey>) -> Asked {
    Asked { csr: Bytes::copy_from_slice(csr), asap_key, instance: String::new() }
}

fn peer() -> Peer {
    let id = "spiffe://demo.example/svc/media".parse().unwrap();
    Peer { id, serial: "01".to_owned(), not_after: NOW + 3600, role: None }
}

#[tokio::test]
async fn a_token_gives_one_certificate_and_the_key_is_recorded_before_the_answer() {
    let fixture = fixture().await;
    let token = fixture.token("media").await;
    let asap = key("media");
    let admitted =
        fixture.authority.attest(Proof::JoinToken(&token), asked(&csr(None), asap.clone()), NOW).await.unwrap();
    let (_, leaf) = X509Certificate::from_der(&admitted.issued.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    assert_eq!(names[0], x509_parser::extensions::GeneralName::URI("spiffe://demo.example/svc/media"));
    assert_eq!(fixture.kids().await, [asap.unwrap().kid]);
    assert_eq!(admitted.key, fixture.disks[1].head().await.unwrap());

    let again = fixture.authority.attest(Proof::JoinToken(&token), asked(&csr(None), key("media")), NOW).await;
    assert!(matches!(again, Err(AdmitError::Token(TokenError::Used))));
    assert_eq!(fixture.kids().await.len(), 1);
}

#[tokio::test]
async fn who_never_got_the_answer_asks_again_with_the_same_keys_and_nobody_else_can() {
    let fixture = fixture().await;
    let (token, mine, asap) = (fixture.token("media").await, csr(None), key("media"));
    let attest =
        async |csr: &[u8]| fixture.authority.attest(Proof::JoinToken(&token), asked(csr, asap.clone()), NOW).await;
    let lost = attest(&mine).await.unwrap();
    let again = attest(&mine).await.unwrap();
    assert_ne!(lost.issued.serial, again.issued.serial);
    assert_eq!(fixture.kids().await.len(), 1);
    assert!(matches!(attest(&csr(None)).await, Err(AdmitError::Token(TokenError::Used))));
    assert!(attest(&mine).await.is_ok(), "a stranger's attempt takes nothing away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_attempts_at_once_one_is_granted_and_only_its_key_is_recorded() {
    let fixture = fixture().await;
    let token = fixture.token("media").await;
    let mut attempts = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (authority, token) = (Arc::clone(&fixture.authority), token.clone());
        attempts.spawn(async move {
            authority.attest(Proof::JoinToken(&token), asked(&csr(None), key("media")), NOW).await.is_ok()
        });
    }
    assert_eq!(attempts.join_all().await.into_iter().filter(|granted| *granted).count(), 1);
    assert_eq!(fixture.kids().await.len(), 1);
}

#[tokio::test]
async fn what_cannot_be_granted_spends_no_token() {
    let fixture = fixture().await;
    let token = fixture.token("media").await;
    let attest = |csr: Vec<u8>, key| {
        let (authority, token) = (Arc::clone(&fixture.authority), token.clone());
        async move { authority.attest(Proof::JoinToken(&token), asked(&csr, key), NOW).await.unwrap_err() }
    };
    let other = csr(Some("spiffe://demo.example/svc/issues"));
    assert!(matches!(attest(other, key("media")).await, AdmitError::Issue(IssueError::Csr(CsrError::Name { .. }))));
    assert!(matches!(attest(b"nonsense".to_vec(), key("media")).await, AdmitError::Csr(CsrError::Encoding)));
    assert!(matches!(attest(csr(None), key("issues")).await, AdmitError::UnfitKey(UnfitKey::Issuer(_))));
    assert!(matches!(attest(csr(None), None).await, AdmitError::UnfitKey(UnfitKey::Missing)));
    let own = csr(Some("spiffe://demo.example/svc/media"));
    assert!(fixture.authority.attest(Proof::JoinToken(&token), asked(&own, key("media")), NOW).await.is_ok());
}

#[tokio::test]
async fn a_key_id_is_never_given_to_another_key() {
    let fixture = fixture().await;
    let first = key("media").unwrap();
    let token = fixture.token("media").await;
    fixture.authority.attest(Proof::JoinToken(&token), asked(&csr(None), Some(first.clone())), NOW).await.unwrap();

    let stolen = AsapKey { kid: first.kid.clone(), spki: key("media").unwrap().spki };
    let token = fixture.token("media").await;
    let refused =
        fixture.authority.attest(Proof::JoinToken(&token), asked(&csr(None), Some(stolen.clone())), NOW).await;
    assert!(matches!(refused, Err(AdmitError::Keys(KeyStoreError::Taken(_)))));
    let refused =
        fixture.authority.renew(&"media".parse().unwrap(), &peer(), asked(&csr(None), Some(stolen)), NOW).await;
    assert!(matches!(refused, Err(AdmitError::Keys(KeyStoreError::Taken(_)))));
    // The token was not spent, and the same key may come again.
    fixture.authority.attest(Proof::JoinToken(&token), asked(&csr(None), Some(first.clone())), NOW + 1).await.unwrap();
    assert_eq!(fixture.kids().await, [first.kid]);
}

#[tokio::test]
async fn a_renewal_is_for_the_same_service_with_a_key_of_its_own() {
    let fixture = fixture().await;
    let service: ServiceName = "media".parse().unwrap();
    let asap = key("media");
    fixture.authority.renew(&service, &peer(), asked(&csr(None), asap.clone()), NOW).await.unwrap();
    fixture.authority.renew(&service, &peer(), asked(&csr(None), asap), NOW + 1800).await.unwrap();
    let [listed] = &fixture.authority.list_keys().await.unwrap()[..] else { panic!("one key") };
    assert_eq!((listed.created_unix_seconds, listed.confirmed_unix_seconds), (NOW, NOW + 1800));

    let other = fixture
        .authority
        .renew(&service, &peer(), asked(&csr(Some("spiffe://demo.example/svc/issues")), key("media")), NOW)
        .await;
    assert!(matches!(other, Err(AdmitError::Issue(IssueError::Csr(CsrError::Name { .. })))));
    let other = fixture.authority.renew(&service, &peer(), asked(&csr(None), key("issues")), NOW).await;
    assert!(matches!(other, Err(AdmitError::UnfitKey(UnfitKey::Issuer(_)))));
}

#[tokio::test]
async fn a_revoked_operator_is_issued_nothing_until_that_is_lifted() {
    let Fixture { authority, _dir, .. } = fixture().await;
    let operator = |name: &str| Peer {
        id: format!("spiffe://demo.example/operator/{name}").parse().unwrap(),
        serial: "03".to_owned(),
        not_after: NOW,
        role: Some(OperatorRole::Viewer),
    };
    let (ada, ann) = (operator("ada"), operator("ann"));
    let csr = csr(None);
    authority.renew_operator(&ada, &csr, NOW).await.unwrap();
    let selector = Selector::Operator("ada".to_owned());
    authority.revocations.revoke(&selector, "ann", "", NOW).await.unwrap();
    let refused = authority.renew_operator(&ada, &csr, NOW).await.unwrap_err();
    assert!(matches!(&refused, AdmitError::Revoked(revoked) if *revoked == selector), "{refused}");
    assert_eq!(Status::from(refused).code(), tonic::Code::PermissionDenied);
    authority.renew_operator(&ann, &csr, NOW).await.unwrap();
    authority.revocations.lift(&selector).await.unwrap();
    authority.renew_operator(&ada, &csr, NOW).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_spends_no_token_and_leaves_no_key() {
    let fixture = fixture().await;
    let token = fixture.token("media").await;
    let [of_tokens, of_keys] = &fixture.disks;

    of_tokens.full_after(0);
    of_keys.full_after(0);
    let refused =
        fixture.authority.attest(Proof::JoinToken(&token), asked(&csr(None), key("media")), NOW).await.unwrap_err();
    assert!(matches!(refused, AdmitError::Token(TokenError::Write(AppendError::Full(_)))));

    // The disk fills up between the two writes: the token is given back.
    of_tokens.full_after(usize::MAX);
    let refused =
        fixture.authority.attest(Proof::JoinToken(&token), asked(&csr(None), key("media")), NOW).await.unwrap_err();
    assert!(matches!(refused, AdmitError::Keys(KeyStoreError::Write(AppendError::Full(_)))));
    assert!(fixture.kids().await.is_empty());

    of_keys.full_after(usize::MAX);
    fixture.authority.attest(Proof::JoinToken(&token), asked(&csr(None), key("media")), NOW).await.unwrap();
    assert_eq!(fixture.kids().await.len(), 1);
}

/// Named after a token that was given back though a key had come in with it: a second holder would have got another one.
#[tokio::test]
async fn a_key_that_may_be_recorded_keeps_its_token_for_the_same_holder() {
    let Fixture { authority, unsure: [of_keys, _], .. } = &fixture().await;
    let (token, _) = authority.create_join_token("ann", &"media".parse().unwrap(), 0, NOW).await.unwrap();
    let (csr, asap) = (csr(None), key("media"));
    of_keys.unconfirmed.store(true, Ordering::SeqCst);
    let unsure = authority.attest(Proof::JoinToken(&token), asked(&csr, asap.clone()), NOW).await.unwrap_err();
    assert!(matches!(unsure, AdmitError::Keys(KeyStoreError::Write(AppendError::Unconfirmed(_)))), "{unsure}");
    of_keys.unconfirmed.store(false, Ordering::SeqCst);

    let other = authority.attest(Proof::JoinToken(&token), asked(&self::csr(None), key("media")), NOW).await;
    assert!(matches!(other, Err(AdmitError::Token(TokenError::Used))));
    authority.attest(Proof::JoinToken(&token), asked(&csr, asap), NOW).await.unwrap();
    assert_eq!(authority.list_keys().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_revocation_that_the_disk_did_not_confirm_takes_the_keys_and_is_listed_and_lifted() {
    let fixture = fixture().await;
    let Fixture { authority, unsure: [_, of_revocations], .. } = &fixture;
    let token = fixture.token("media").await;
    authority.attest(Proof::JoinToken(&token), asked(&csr(None), key("media")), NOW).await.unwrap();
    let ann = Peer {
        id: "spiffe://demo.example/operator/ann".parse().unwrap(),
        serial: "02".to_owned(),
        not_after: NOW,
        role: None,
    };
    let what = Some(revoke_request::What::Service("media".to_owned()));

    of_revocations.unconfirmed.store(true, Ordering::SeqCst);
    let request = RevokeRequest { what, reason: "stolen".to_owned() };
    let unsure = revocations::revoke(authority, &ann, request, NOW).await.unwrap_err();
    assert_eq!(unsure.code(), tonic::Code::Unavailable);
    assert!(unsure.message().contains("may have been made"), "{unsure}");
    assert!(fixture.kids().await.is_empty());
    assert_eq!(revocations::list(authority).await.unwrap().revocations[0].reason, "stolen");
    let log = std::fs::read_to_string(fixture._dir.path().join("audit.jsonl")).unwrap();
    assert!(log.contains("\"what\":\"service/media\",\"reason\":\"stolen\",\"revision\":1"), "{log}");

    of_revocations.unconfirmed.store(false, Ordering::SeqCst);
    let what = Some(lift_revocation_request::What::Service("media".to_owned()));
    revocations::lift(authority, &ann, LiftRevocationRequest { what }, NOW).await.unwrap();
    assert!(revocations::list(authority).await.unwrap().revocations.is_empty());
}

#[tokio::test]
async fn the_control_plane_attests_with_tokens_made_for_it_like_anybody() {
    let fixture = fixture().await;
    let token = fixture.token("tenon-tcs").await;
    fixture.authority.attest(Proof::JoinToken(&token), asked(&csr(None), key("tenon-tcs")), NOW).await.unwrap();
    let token = fixture.token("media").await;
    let refused = fixture.authority.attest(Proof::JoinToken(&token), asked(&csr(None), key("tenon-tcs")), NOW).await;
    assert!(matches!(refused, Err(AdmitError::UnfitKey(UnfitKey::Issuer(_)))));
}

#[tokio::test]
async fn nobody_joins_as_the_identity_service() {
    let fixture = fixture().await;
    let made = fixture.authority.create_join_token("ann", &"tenon-identity".parse().unwrap(), 0, NOW).await;
    assert!(matches!(made, Err(CreateTokenError::Own(_))));
}

#[tokio::test]
async fn a_token_lives_ten_minutes_unless_told_otherwise_and_a_day_at_most() {
    let fixture = fixture().await;
    let service: ServiceName = "media".parse().unwrap();
    for (ttl, life) in [(0, Some(600)), (1, Some(1)), (86_400, Some(86_400)), (86_401, None), (u32::MAX, None)] {
        let made = fixture.authority.create_join_token("ann", &service, ttl, NOW).await;
        assert_eq!(made.ok().map(|(_, expires)| expires - NOW), life, "{ttl}");
    }
}

/// What was logged, as text.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn every_certificate_leaves_a_line_that_names_it_and_tells_no_secret() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);

    let fixture = fixture().await;
    let (token, asap) = (fixture.token("media").await, key("media").unwrap());
    let first =
        fixture.authority.attest(Proof::JoinToken(&token), asked(&csr(None), Some(asap.clone())), NOW).await.unwrap();
    let second = fixture
        .authority
        .renew(&"media".parse().unwrap(), &peer(), asked(&csr(None), Some(asap.clone())), NOW)
        .await
        .unwrap();
    fixture.authority.attest(Proof::JoinToken(&token), asked(&csr(None), Some(asap)), NOW).await.unwrap_err();

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for (method, admitted) in [("attest", first), ("renew", second)] {
        let lines: Vec<_> = text.lines().filter(|line| line.contains(&admitted.issued.serial)).collect();
        let [line] = lines[..] else { panic!("one line for each certificate: {text}") };
        assert!(line.contains(&format!("method=\"{method}\"")) && line.contains("service=\"media\""), "{line}");
    }
    assert!(!text.contains(&token), "{text}");
}
