use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use journal::Embedded;
use mesh_asap::SigningKey;
use mesh_identity::{Identity, clock};
use serde_json::json;
use tenon_proto::identity::v1::{self as proto, AsapKey};
use tower::ServiceExt as _;

use super::*;
use crate::audit::{self, Audit};
use crate::ca::{Ca, SVID_LIFETIME};
use crate::keys::ServiceKey;

const SELF_SIGNED: &str = "urn:ietf:params:oauth:token-type:self_signed";

/// An authority with keys that sign; `media` may ask for tokens.
struct Fixture {
    authority: Arc<Authority>,
    dir: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let fixture = Self::without_policy().await;
        fixture.authority.transactions.follow(|service| Some(service.as_str() == "media"));
        fixture
    }

    async fn without_policy() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join(audit::FILE);
        Self::auditing(dir, &log).await
    }

    async fn auditing(dir: tempfile::TempDir, log: &std::path::Path) -> Self {
        let now = clock::unix_seconds();
        let ca = Ca::create(&dir.path().join("ca"), &"demo.example".parse().unwrap(), None, now).unwrap();
        let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
        let own = ca.issue_service(&"tenon-identity".parse().unwrap(), SVID_LIFETIME, now).unwrap();
        let identity = Identity::new(own, ca.bundle().clone());
        let audit = Audit::open(log).unwrap();
        let journal = |kind| store.kind(kind);
        let authority = Authority::open(Arc::new(ca), identity, audit, Vec::new(), journal).await.unwrap();
        let authority = Arc::new(authority);
        let keys = dir.path().join("transaction-keys");
        start(&authority, keys, None, tokio_util::sync::CancellationToken::new()).await.unwrap();
        Self { authority, dir }
    }

    /// What the audit log says, the last line last.
    fn audited(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join(audit::FILE)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn post(&self, id: Option<&str>, form: &[(&str, &str)]) -> (StatusCode, Value) {
        let text = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let form = "application/x-www-form-urlencoded";
        self.send(id, Request::post("/token").header("content-type", form).body(text.into()).unwrap()).await
    }

    async fn send(&self, id: Option<&str>, mut request: Request<Body>) -> (StatusCode, Value) {
        if let Some(id) = id {
            request.extensions_mut().insert(peer(id));
        }
        let response = route(Arc::clone(&self.authority)).oneshot(request).await.unwrap();
        let (status, cache) = (response.status(), response.headers().get("cache-control").cloned());
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        if status != StatusCode::METHOD_NOT_ALLOWED {
            assert_eq!(cache.unwrap(), "no-store");
        }
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Verifies as a sidecar does, with what is published.
    async fn verify(&self, token: &str) -> Result<txn::Verified, txn::Error> {
        let keys = self.authority.keys.list().await.unwrap();
        let lookup = |kid: &str| {
            let key = keys.iter().find(|key| key.kid == kid && key.r#use() == KeyUse::Transaction);
            key.map_or(Lookup::Unknown, |key| Lookup::Found(Arc::new(PublicKey::from_spki(&key.spki).unwrap())))
        };
        let expect = txn::Expect { trust_domain: "demo.example", leeway_seconds: 5 };
        txn::verify(token, &expect, &lookup, clock::unix_seconds())
    }

    /// An ASAP key of a service, published.
    async fn asap_key(&self, service: &str) -> SigningKey {
        let key = SigningKey::generate(service).unwrap();
        let sent = AsapKey { kid: key.kid().to_string(), spki: Bytes::from(key.public_spki()) };
        let parsed = ServiceKey::parse(Some(sent), &service.parse().unwrap()).unwrap();
        self.authority.keys.confirm(&parsed, clock::unix_seconds()).await.unwrap();
        key
    }
}

fn peer(id: &str) -> Peer {
    Peer { id: id.parse().unwrap(), serial: "1".to_owned(), not_after: u64::MAX, role: None }
}

const MEDIA: &str = "spiffe://demo.example/svc/media";

const GOOD: &[(&str, &str)] = &[
    ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
    ("requested_token_type", "urn:ietf:params:oauth:token-type:txn_token"),
    ("audience", "demo.example"),
    ("scope", "media.read"),
    ("subject_token_type", "urn:ietf:params:oauth:token-type:unsigned_json"),
    ("subject_token", r#"{"sub":"user-7"}"#),
    ("request_details", r#"{"tenant":"acme","action":"VIEW"}"#),
    ("request_context", r#"{"req_ip":"69.151.72.123"}"#),
];

fn changed<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let kept = GOOD.iter().filter(|(name, _)| changes.iter().all(|(other, _)| other != name));
    kept.chain(changes).copied().collect()
}

#[tokio::test]
async fn a_requester_gets_a_token_that_says_what_it_asked_for_and_who_it_is() {
    let fixture = Fixture::new().await;
    let (status, body) = fixture.post(Some(MEDIA), GOOD).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["token_type"], "N_A");
    assert_eq!(body["issued_token_type"], "urn:ietf:params:oauth:token-type:txn_token");
    assert_eq!((&body["expires_in"], body.get("refresh_token")), (&json!(300), None));
    let token = body["access_token"].as_str().unwrap();
    let verified = fixture.verify(token).await.unwrap();
    assert_eq!((verified.tenant.as_deref(), &*verified.subject), (Some("acme"), "user-7"));

    let inspected = mesh_asap::inspect(token).unwrap();
    assert_eq!((&inspected.header["typ"], &inspected.header["alg"]), (&json!("txntoken+jwt"), &json!("ES256")));
    let claims = Value::Object(inspected.claims);
    assert_eq!(claims["aud"], "demo.example");
    assert_eq!(claims["req_wl"], MEDIA);
    assert_eq!(claims["scope"], "media.read");
    assert_eq!(claims["tctx"], json!({ "tenant": "acme", "action": "VIEW" }));
    assert_eq!(claims["rctx"], json!({ "req_ip": "69.151.72.123" }));
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 300);
    let txn: Uuid = claims["txn"].as_str().unwrap().parse().unwrap();
    assert_eq!(txn.get_version_num(), 7);

    let line = fixture.audited().pop().unwrap();
    assert_eq!((&line["event"], &line["by"]), (&json!("txn-token"), &json!(MEDIA)));
    assert_eq!((&line["txn"], &line["tenant"]), (&claims["txn"], &json!("acme")));
    let (_, again) = fixture.post(Some(MEDIA), GOOD).await;
    let again = fixture.verify(again["access_token"].as_str().unwrap()).await.unwrap();
    assert_ne!(again.txn, verified.txn, "each is a transaction of its own");
}

#[tokio::test]
async fn whoever_may_not_ask_gets_none_and_it_is_written_down() {
    let fixture = Fixture::new().await;
    for (id, status, code) in [
        (Some("spiffe://demo.example/svc/wiki"), StatusCode::FORBIDDEN, "unauthorized_client"),
        (Some("spiffe://demo.example/operator/ann"), StatusCode::UNAUTHORIZED, "invalid_client"),
        (None, StatusCode::UNAUTHORIZED, "invalid_client"),
    ] {
        let (got, body) = fixture.post(id, GOOD).await;
        assert_eq!((got, &body["error"]), (status, &json!(code)), "{id:?}");
        assert!(body.get("access_token").is_none());
    }
    let refused: Vec<_> = fixture.audited().into_iter().filter(|line| line["event"] == "refuse").collect();
    assert_eq!(refused[0]["by"], "spiffe://demo.example/svc/wiki");

    let nobody = Fixture::without_policy().await;
    assert_eq!(nobody.post(Some(MEDIA), GOOD).await.1["error"], "unauthorized_client");
    nobody.authority.transactions.follow(|_| None);
    let (status, body) = nobody.post(Some(MEDIA), GOOD).await;
    assert_eq!((status, &body["error"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("temporarily_unavailable")));
}

#[tokio::test]
async fn a_service_that_asks_without_end_is_slowed_down_and_nobody_else_is() {
    let fixture = Fixture::without_policy().await;
    fixture.authority.transactions.follow(|_| Some(true));
    let mut last = StatusCode::OK;
    // A refused request counts as well.
    for _ in 0..20 * LIMITS.service.burst {
        last = fixture.post(Some(MEDIA), &[]).await.0;
        if last != StatusCode::BAD_REQUEST {
            break;
        }
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(fixture.post(Some("spiffe://demo.example/svc/issues"), GOOD).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_request_that_is_not_good_is_answered_as_oauth_has_it() {
    let fixture = Fixture::new().await;
    let long = json!({ "tenant": "acme", "text": "x".repeat(8000) }).to_string();
    for (changes, code) in [
        (&[("audience", "other.example")][..], "invalid_target"),
        (&[("subject_token", "{}")], "invalid_request"),
        (&[("subject_token", r#"{"sub":7}"#)], "invalid_request"),
        (&[("subject_token", r#"{"sub":"a\nb"}"#)], "invalid_request"),
        (&[("subject_token", r#"{"sub":"a","scope":"media.list"}"#)], "invalid_scope"),
        (&[("subject_token", r#"{"sub":"a","scope":["media.read"]}"#)], "invalid_request"),
        (&[("request_details", &long)], "invalid_request"),
    ] {
        let (status, body) = fixture.post(Some(MEDIA), &changed(changes)).await;
        assert_eq!((status, &body["error"]), (StatusCode::BAD_REQUEST, &json!(code)), "{changes:?}");
    }
    let within = changed(&[("subject_token", r#"{"sub":"a","scope":"media.list media.read"}"#)]);
    assert_eq!(fixture.post(Some(MEDIA), &within).await.0, StatusCode::OK);

    let json = Request::post("/token").header("content-type", "application/json").body("{}".into()).unwrap();
    assert_eq!(fixture.send(Some(MEDIA), json).await.1["error"], "invalid_request");
    let endless = Request::post("/token")
        .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
        .body(Body::from("x".repeat(100_000)))
        .unwrap();
    assert_eq!(fixture.send(Some(MEDIA), endless).await.1["error"], "invalid_request");
    let get = Request::builder().method(Method::GET).uri("/token").body(Body::empty()).unwrap();
    assert_eq!(fixture.send(Some(MEDIA), get).await.0, StatusCode::METHOD_NOT_ALLOWED);
}

/// An ASAP token with claims of one's own.
fn sign(key: &SigningKey, claims: &Value) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({ "alg": "ES256", "kid": key.kid().as_str(), "typ": "JWT" });
    let message = format!("{}.{}", encode(&header), encode(claims));
    let pair = aws_lc_rs::signature::EcdsaKeyPair::from_pkcs8(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        &key.pkcs8(),
    );
    let signature = pair.unwrap().sign(&aws_lc_rs::rand::SystemRandom::new(), message.as_bytes()).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

#[tokio::test]
async fn a_self_signed_subject_token_must_be_the_requesters_own_for_this_service_and_current() {
    let fixture = Fixture::new().await;
    let (own, others) = (fixture.asap_key("media").await, fixture.asap_key("wiki").await);
    let unpublished = SigningKey::generate("media").unwrap();
    let now = clock::unix_seconds();
    let claims = json!({
        "iss": "media", "sub": "user-7", "aud": "tenon-identity", "jti": "1", "iat": now, "exp": now + 60,
        "scope": "media.read media.write",
    });
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    for (what, token, status) in [
        ("as it should be", sign(&own, &claims), StatusCode::OK),
        ("for somebody else", sign(&own, &with("aud", json!("issues"))), StatusCode::BAD_REQUEST),
        ("ended", sign(&own, &with("exp", json!(now - 30))), StatusCode::BAD_REQUEST),
        ("from the future", sign(&own, &with("iat", json!(now + 60))), StatusCode::BAD_REQUEST),
        ("of too long a life", sign(&own, &with("exp", json!(now + 4000))), StatusCode::BAD_REQUEST),
        ("without a subject", sign(&own, &with("sub", Value::Null)), StatusCode::BAD_REQUEST),
        ("of less scope", sign(&own, &with("scope", json!("media.write"))), StatusCode::BAD_REQUEST),
        ("of another service", sign(&others, &with("iss", json!("wiki"))), StatusCode::BAD_REQUEST),
        ("with another service's key", sign(&others, &claims), StatusCode::BAD_REQUEST),
        ("with a key that nobody knows", sign(&unpublished, &claims), StatusCode::BAD_REQUEST),
        ("changed", sign(&own, &claims).replace('.', ".A"), StatusCode::BAD_REQUEST),
        ("garbage", "a.b.c".to_owned(), StatusCode::BAD_REQUEST),
    ] {
        let form = changed(&[("subject_token_type", SELF_SIGNED), ("subject_token", &token)]);
        let (got, body) = fixture.post(Some(MEDIA), &form).await;
        assert_eq!(got, status, "{what}: {body}");
        assert!(!body["error_description"].as_str().unwrap_or_default().contains(&token), "{what}");
        if got == StatusCode::OK {
            let verified = fixture.verify(body["access_token"].as_str().unwrap()).await.unwrap();
            assert_eq!(&*verified.subject, "user-7");
        }
    }
    // A transaction token is no subject token, and its key verifies none.
    let (_, body) = fixture.post(Some(MEDIA), GOOD).await;
    let token = body["access_token"].as_str().unwrap();
    let form = changed(&[("subject_token_type", SELF_SIGNED), ("subject_token", token)]);
    assert_eq!(fixture.post(Some(MEDIA), &form).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_operator_gets_a_token_for_debugging_and_it_is_written_down() {
    let fixture = Fixture::new().await;
    let operator = peer("spiffe://demo.example/operator/ann");
    let request = |tenant: &str, subject: &str, scope: &str| IssueTransactionTokenRequest {
        tenant: tenant.to_owned(),
        subject: subject.to_owned(),
        scope: scope.to_owned(),
    };
    let now = clock::unix_seconds();
    let issued = issue(&fixture.authority, &operator, request("acme", "ann", "debug"), now).await.unwrap();
    assert_eq!(issued.expires_unix_seconds, now + 300);
    let verified = fixture.verify(&issued.token).await.unwrap();
    assert_eq!((verified.tenant.as_deref(), &*verified.subject, &*verified.scope), (Some("acme"), "ann", "debug"));
    assert_eq!(fixture.audited().pop().unwrap()["by"], "spiffe://demo.example/operator/ann");
    for bad in
        [request("ACME", "ann", "x"), request("", "ann", "x"), request("acme", "", "x"), request("acme", "a", "")]
    {
        let status = issue(&fixture.authority, &operator, bad, now).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }
}

#[tokio::test]
async fn nothing_is_given_that_cannot_be_written_down() {
    // Every write to it ends with ENOSPC.
    let fixture = Fixture::auditing(tempfile::tempdir().unwrap(), std::path::Path::new("/dev/full")).await;
    fixture.authority.transactions.follow(|_| Some(true));
    let (status, body) = fixture.post(Some(MEDIA), GOOD).await;
    assert_eq!((status, body.get("access_token")), (StatusCode::SERVICE_UNAVAILABLE, None));
}

#[tokio::test]
async fn nothing_is_signed_with_a_revoked_key() {
    let fixture = Fixture::new().await;
    let (_, body) = fixture.post(Some(MEDIA), GOOD).await;
    let kid = fixture.verify(body["access_token"].as_str().unwrap()).await.unwrap().kid;
    let what = Some(proto::revoke_request::What::Kid(kid.to_string()));
    let request = proto::RevokeRequest { what, reason: "lost".to_owned() };
    let selector = crate::revocations::Selector::to_revoke(&request).unwrap();
    fixture.authority.revocations.revoke(&selector, "ann", "lost", clock::unix_seconds()).await.unwrap();
    // The task that keeps the keys hears of it.
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let (status, body) = fixture.post(Some(MEDIA), GOOD).await;
        let token = body["access_token"].as_str().unwrap_or_default();
        if status == StatusCode::OK && fixture.verify(token).await.is_ok_and(|verified| verified.kid != kid) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the revoked key still signs: {status}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_new_key_does_not_wait_for_a_service_that_is_revoked() {
    let fixture = Fixture::new().await;
    let (authority, now) = (&fixture.authority, clock::unix_seconds());
    let given = crate::registry::Holding { svid_not_after: now + 3600, ..Default::default() };
    authority.registry.attested(&"wiki".parse().unwrap(), "wiki-1", given, "wiki/1", now).await;
    let kid = authority.transactions.signing.load_full().unwrap().kid().clone();
    let revoke = async |selector| authority.revocations.revoke(&selector, "ann", "", now).await.unwrap();
    revoke(crate::revocations::Selector::Service("wiki".parse().unwrap())).await;
    revoke(crate::revocations::Selector::Kid(kid.clone())).await;
    let another = async {
        while authority.transactions.signing.load_full().is_none_or(|key| *key.kid() == kid) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), another).await.expect("another key signs");
}
