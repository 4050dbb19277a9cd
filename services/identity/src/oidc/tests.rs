use prost::Message as _;
use serde_json::{Value, json};
use tenon_proto::policy::v1 as proto;
use tonic::Code;

use super::testing::{FakeServer, TestKey, encode};
use super::*;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://cluster.example";
const JWKS: &str = "https://cluster.example/keys";

/// An Attestor as for Kubernetes: two service accounts of the namespace shop.
fn record(name: &str, issuer: &str) -> proto::Attestor {
    let rule = |account: &str, service: &str| proto::AttestorRule {
        claims: [("/kubernetes.io/namespace", "shop"), ("/kubernetes.io/serviceaccount/name", account)]
            .map(|(claim, value)| (claim.to_owned(), value.to_owned()))
            .into(),
        service: service.to_owned(),
    };
    proto::Attestor {
        name: name.to_owned(),
        issuer: issuer.to_owned(),
        audience: "tenon".to_owned(),
        jwks_uri: format!("{issuer}/keys"),
        ca: vec![],
        rules: vec![rule("media", "media"), rule("issues", "issues")],
    }
}

fn attestor(record: &proto::Attestor) -> Decoded<Attestor> {
    Decoded::new(&record.name, 1, record.encode_to_vec().into()).unwrap()
}

/// Claims as a Kubernetes projected service-account token has them.
fn claims() -> Value {
    json!({
        "iss": ISSUER,
        "aud": ["tenon", "other"],
        "iat": NOW - 60,
        "nbf": NOW - 60,
        "exp": NOW + 600,
        "jti": "0a1b2c3d",
        "sub": "system:serviceaccount:shop:media",
        "kubernetes.io": {
            "namespace": "shop",
            "pod": { "name": "media-0", "uid": "1" },
            "serviceaccount": { "name": "media", "uid": "2" },
        },
    })
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = claims();
    change(&mut claims);
    claims
}

/// One issuer with one key `k`, and the Attestor for it.
struct Fixture {
    key: TestKey,
    server: FakeServer,
    attestors: Vec<Decoded<Attestor>>,
}

impl Fixture {
    fn new(key: TestKey) -> Self {
        let server = FakeServer::default();
        server.serve(JWKS, json!({ "keys": [key.jwk("k")] }));
        Self { key, server, attestors: vec![attestor(&record("cluster", ISSUER))] }
    }

    async fn attest(&self, token: &str, asked: &str) -> Result<Attested, AttestError> {
        attest(&self.attestors, |_| &self.server, token, asked, NOW).await
    }

    async fn code(&self, token: &str) -> Result<String, (Code, String)> {
        match self.attest(token, "media").await {
            Ok(attested) => Ok(attested.service.to_string()),
            Err(error) => {
                let status = Status::from(error);
                Err((status.code(), status.message().to_owned()))
            }
        }
    }
}

fn header(algorithm: &str) -> Value {
    json!({ "alg": algorithm, "kid": "k", "typ": "JWT" })
}

#[tokio::test(start_paused = true)]
async fn tokens_of_every_accepted_algorithm_attest() {
    let keys = [
        (TestKey::p256(), &["ES256"][..]),
        (TestKey::p384(), &["ES384"]),
        (TestKey::rsa(), &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
    ];
    for (key, algorithms) in keys {
        let fixture = Fixture::new(key);
        for algorithm in algorithms {
            let token = fixture.key.sign(&header(algorithm), &claims());
            let attested = fixture.attest(&token, "media").await.unwrap();
            assert_eq!((attested.service.as_str(), attested.attestor.as_str()), ("media", "cluster"), "{algorithm}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_attests_at_the_edge_of_every_rule_and_not_beyond() {
    let fixture = Fixture::new(TestKey::p256());
    let table: Vec<(&str, Value, Result<(), &str>)> = vec![
        ("as it should be", claims(), Ok(())),
        ("one audience as text", with(|c| c["aud"] = json!("tenon")), Ok(())),
        ("another audience", with(|c| c["aud"] = json!("https://kubernetes.default.svc")), Err("this audience")),
        ("an audience that only begins so", with(|c| c["aud"] = json!(["tenon-x", "Tenon"])), Err("this audience")),
        ("no audience", with(|c| c["aud"] = Value::Null), Err("can be read")),
        ("an audience of another type", with(|c| c["aud"] = json!(["tenon", 7])), Err("can be read")),
        ("ended within the leeway", with(|c| c["exp"] = json!(NOW - 29)), Ok(())),
        ("ended before it", with(|c| c["exp"] = json!(NOW - 30)), Err("has expired")),
        ("an end that is a fraction", with(|c| c["exp"] = json!(NOW as f64 - 29.5)), Ok(())),
        ("no end", with(|c| c["exp"] = Value::Null), Err("can be read")),
        ("an end that is text", with(|c| c["exp"] = json!("2100")), Err("can be read")),
        ("begins within the leeway", with(|c| c["nbf"] = json!(NOW + 30)), Ok(())),
        ("begins after it", with(|c| c["nbf"] = json!(NOW + 31)), Err("not valid yet")),
        ("issued within the leeway", with(|c| c["iat"] = json!(NOW + 30)), Ok(())),
        ("issued after it", with(|c| c["iat"] = json!(NOW + 31)), Err("not valid yet")),
        ("another issuer", with(|c| c["iss"] = json!("https://other.example")), Err("of this issuer")),
        ("its issuer with a slash more", with(|c| c["iss"] = json!("https://cluster.example/")), Err("of this issuer")),
        ("its issuer in capitals", with(|c| c["iss"] = json!("https://CLUSTER.example")), Err("of this issuer")),
        ("its issuer in an array", with(|c| c["iss"] = json!([ISSUER])), Err("can be read")),
        ("no issuer", with(|c| c["iss"] = Value::Null), Err("can be read")),
        ("another namespace", with(|c| c["kubernetes.io"]["namespace"] = json!("bank")), Err("no rule")),
        ("another account", with(|c| c["kubernetes.io"]["serviceaccount"]["name"] = json!("wiki")), Err("no rule")),
        (
            "the account of another service",
            with(|c| c["kubernetes.io"]["serviceaccount"]["name"] = json!("issues")),
            Err("attests issues, and not media"),
        ),
        ("no claims of Kubernetes", with(|c| c["kubernetes.io"] = Value::Null), Err("no rule")),
    ];
    for (what, claims, expected) in table {
        let token = fixture.key.sign(&header("ES256"), &claims);
        match (fixture.code(&token).await, expected) {
            (Ok(service), Ok(())) => assert_eq!(service, "media", "{what}"),
            (Err((code, message)), Err(part)) => {
                assert!(message.contains(part), "{what}: {message}");
                let forbidden = part.contains("rule") || part.contains("attests");
                assert_eq!(code, if forbidden { Code::PermissionDenied } else { Code::Unauthenticated }, "{what}");
                assert!(!message.contains(&token), "{what}");
            }
            (got, expected) => panic!("{what}: expected {expected:?}, got {got:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_token_chooses_the_algorithm_or_the_key_that_it_is_verified_with() {
    let (rsa, p256) = (Fixture::new(TestKey::rsa()), Fixture::new(TestKey::p256()));
    let unsigned = |header: &Value| format!("{}.{}.", encode(header.to_string()), encode(claims().to_string()));
    for (what, token) in [
        ("none", unsigned(&json!({ "alg": "none", "kid": "k" }))),
        ("None", unsigned(&json!({ "alg": "None", "kid": "k" }))),
        ("an algorithm that there is not", unsigned(&json!({ "alg": "ES256K", "kid": "k" }))),
        ("no algorithm", unsigned(&json!({ "kid": "k" }))),
    ] {
        assert_eq!(rsa.code(&token).await.unwrap_err().0, Code::Unauthenticated, "{what}");
    }
    // The public key as the secret of HMAC: what the signature is does not even matter.
    for algorithm in ["HS256", "HS384", "HS512", "EdDSA", "ES256", "ES384"] {
        let token = rsa.key.sign(&header(algorithm), &claims());
        assert!(rsa.code(&token).await.unwrap_err().1.contains("algorithm"), "{algorithm}");
    }
    for algorithm in ["ES384", "RS256", "PS256", "HS256"] {
        let token = p256.key.sign(&header(algorithm), &claims());
        assert!(p256.code(&token).await.unwrap_err().1.contains("algorithm"), "{algorithm}");
    }
    // A key that the token brings along.
    let own = TestKey::p256();
    let mut bringing = header("ES256");
    bringing["jwk"] = own.jwk("k");
    let token = own.sign(&bringing, &claims());
    assert!(p256.code(&token).await.unwrap_err().1.contains("signature"));
    let mut critical = header("ES256");
    critical["crit"] = json!(["b64"]);
    let token = p256.key.sign(&critical, &claims());
    assert!(p256.code(&token).await.unwrap_err().1.contains("can be read"));
    // One byte of the claims changed.
    let token = p256.key.sign(&header("ES256"), &claims());
    let parts: Vec<_> = token.split('.').collect();
    let other = with(|c| c["exp"] = json!(NOW + 601)).to_string();
    let changed = format!("{}.{}.{}", parts[0], encode(other), parts[2]);
    assert!(p256.code(&changed).await.unwrap_err().1.contains("signature"));
    for garbage in
        ["", ".", "..", "a.b.c", "a.b", &token[..token.len() - 4], &format!("{token}.x"), &"x".repeat(20_000)]
    {
        assert_eq!(p256.code(garbage).await.unwrap_err().0, Code::Unauthenticated, "{garbage:.40}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_byte_of_a_token_can_be_changed_left_out_or_added() {
    let fixture = Fixture::new(TestKey::p256());
    let good = fixture.key.sign(&header("ES256"), &claims());
    assert!(fixture.attest(&good, "media").await.is_ok());
    for at in 0..good.len() {
        let (before, rest) = good.split_at(at);
        let (byte, after) = rest.split_at(1);
        let other = if byte == "A" { "B" } else { "A" };
        for changed in [[before, other, after].concat(), [before, after].concat(), [before, other, rest].concat()] {
            let refused = fixture.attest(&changed, "media").await.unwrap_err();
            let status = Status::from(refused);
            assert_eq!(status.code(), Code::Unauthenticated, "byte {at}: {}", status.message());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_key_id_at_another_issuer_is_another_key() {
    let mut fixture = Fixture::new(TestKey::p256());
    let (other, other_issuer) = (TestKey::p256(), "https://other.example");
    fixture.server.serve("https://other.example/keys", json!({ "keys": [other.jwk("k")] }));
    let mut elsewhere = record("other", other_issuer);
    elsewhere.rules.truncate(1);
    elsewhere.rules[0].service = "wiki".to_owned();
    fixture.attestors.push(attestor(&elsewhere));

    let forged = other.sign(&header("ES256"), &claims());
    assert!(fixture.code(&forged).await.unwrap_err().1.contains("signature"));
    let own = other.sign(&header("ES256"), &with(|c| c["iss"] = json!(other_issuer)));
    assert_eq!(fixture.attest(&own, "wiki").await.unwrap().service.as_str(), "wiki");
    let stolen = fixture.attest(&own, "media").await.unwrap_err();
    assert!(matches!(stolen, AttestError::Other { .. }), "{stolen}");
}

#[tokio::test(start_paused = true)]
async fn two_attestors_of_one_issuer_are_told_apart_by_audience_and_then_by_name() {
    let mut fixture = Fixture::new(TestKey::p256());
    let mut staging = record("staging", ISSUER);
    staging.audience = "other".to_owned();
    staging.rules[0].service = "media-staging".to_owned();
    fixture.attestors.push(attestor(&staging));
    let token = |audience: Value| fixture.key.sign(&header("ES256"), &with(|c| c["aud"] = audience));
    let attested = fixture.attest(&token(json!("other")), "").await.unwrap();
    assert_eq!((attested.service.as_str(), attested.attestor.as_str()), ("media-staging", "staging"));
    // For both audiences: whom it asks for decides, and the first where it asks for nobody.
    let both = token(json!(["tenon", "other"]));
    assert_eq!(fixture.attest(&both, "").await.unwrap().attestor, "cluster");
    assert_eq!(fixture.attest(&both, "media-staging").await.unwrap().attestor, "staging");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_at_the_issuer_is_followed_and_an_issuer_that_is_down_is_unavailable_to_who_comes_first() {
    let fixture = Fixture::new(TestKey::p256());
    let token = fixture.key.sign(&header("ES256"), &claims());
    assert_eq!(fixture.code(&token).await.unwrap(), "media");
    let next = TestKey::p256();
    fixture.server.serve(JWKS, json!({ "keys": [fixture.key.jwk("k"), next.jwk("next")] }));
    tokio::time::advance(std::time::Duration::from_secs(10)).await;
    let rotated = next.sign(&json!({ "alg": "ES256", "kid": "next" }), &claims());
    assert_eq!(fixture.code(&rotated).await.unwrap(), "media");

    let fixture = Fixture::new(TestKey::p256());
    fixture.server.goes_down();
    let token = fixture.key.sign(&header("ES256"), &claims());
    let (code, message) = fixture.code(&token).await.unwrap_err();
    assert_eq!(code, Code::Unavailable);
    assert!(!message.contains("https://"), "what is reachable from here is nobody's business: {message}");
}

#[tokio::test]
async fn without_a_policy_every_token_is_refused() {
    let attestors = Attestors::default();
    let token = TestKey::p256().sign(&header("ES256"), &claims());
    let refused = attestors.attest(&token, "media", NOW).await.unwrap_err();
    assert!(matches!(refused, AttestError::Issuer), "{refused}");
}
