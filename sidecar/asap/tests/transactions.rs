//! Transaction tokens: what passes, what does not, and that neither kind of token passes as the other.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

use std::cell::Cell;
use std::sync::Arc;

use forge::{NOW, Store, changed, raw, raw_signed, spki};
use mesh_asap::txn::{self, Error, Expect, Memory, NewToken, Verified};
use mesh_asap::{Algorithm, Lookup, MAX_TOKEN_BYTES, PublicKey, SigningKey, VerifyError, inspect, precheck};
use serde_json::{Map, Value, json};

#[path = "forge/forge.rs"]
mod forge;

const KID: &str = "tenon-identity/t1";
const EXPECT: Expect<'static> = Expect { trust_domain: "demo.example", leeway_seconds: 5 };

fn header() -> Value {
    json!({"alg": "ES256", "typ": "txntoken+jwt", "kid": KID})
}

fn claims() -> Value {
    json!({
        "iat": NOW, "exp": NOW + 300, "aud": "demo.example", "txn": "0198", "sub": "ada", "scope": "issue.create",
        "tctx": {"tenant": "acme", "action": "create"}, "rctx": {"req_ip": "192.0.2.1"}, "req_wl": "edge",
    })
}

fn token(header_changes: Value, claim_changes: Value) -> String {
    raw(&changed(header(), header_changes), &changed(claims(), claim_changes))
}

fn check(token: &str) -> Result<Verified, Error> {
    txn::verify(token, &EXPECT, &Store::p256(KID), NOW)
}

#[track_caller]
fn passes(token: &str) {
    check(token).unwrap();
}

#[track_caller]
fn fails(token: &str, reason: &str) {
    assert_eq!(check(token).map_err(|error| error.reason()), Err(reason));
}

#[track_caller]
fn fails_without_a_look_up(token: &str) {
    let store = Store::p256(KID);
    assert_eq!(txn::verify(token, &EXPECT, &store, NOW).map_err(|error| error.reason()), Err(INVALID));
    assert_eq!(store.asked.get(), 0);
}

const INVALID: &str = "TXN_INVALID";
const EXPIRED: &str = "TXN_EXPIRED";

fn map(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[test]
fn what_the_identity_service_mints_says_what_it_was_told_and_passes() {
    let key = SigningKey::generate(txn::ISSUER).unwrap();
    let (tctx, rctx) = (map(json!({"action": "create", "tenant": "evil"})), map(json!({"req_ip": "192.0.2.1"})));
    let new = NewToken {
        trust_domain: "demo.example",
        txn: None,
        subject: "ada",
        scope: "issue.create issue.read",
        tenant: Some("acme"),
        transaction_context: &tctx,
        requester_context: &rctx,
        requester: "edge",
        lifetime_seconds: txn::LIFETIME_SECONDS,
    };
    let token = key.mint_transaction(&new, NOW);
    let inspected = inspect(&token).unwrap();
    assert_eq!(inspected.header, map(json!({"alg": "ES256", "typ": "txntoken+jwt", "kid": key.kid().as_str()})));
    let txn = inspected.claims["txn"].as_str().unwrap();
    let expected = json!({
        "iat": NOW, "exp": NOW + 300, "aud": "demo.example", "txn": txn, "sub": "ada",
        "scope": "issue.create issue.read", "tctx": {"action": "create", "tenant": "acme"},
        "rctx": {"req_ip": "192.0.2.1"}, "req_wl": "edge",
    });
    assert_eq!(Value::Object(inspected.claims.clone()), expected);
    let store = Store::with(key.kid().as_str(), &key.public_spki());
    let verified = txn::verify(&token, &EXPECT, &store, NOW).unwrap();
    let expected = Verified {
        tenant: Some("acme".into()),
        subject: "ada".into(),
        scope: "issue.create issue.read".into(),
        expires_at: NOW + 300,
        kid: key.kid().as_str().into(),
        txn: txn.into(),
        trust_domain: "demo.example".into(),
    };
    assert_eq!(verified, expected);
    assert_eq!(txn.len(), 22, "128 bits");

    // A token that replaces another one of the same transaction; and none of a tenant, whatever the context says.
    let claims = txn::claims(&token, &EXPECT, &store, NOW).unwrap();
    assert_eq!((claims.tenant(), &claims.tctx["action"]), (Some("acme"), &json!("create")));
    let replacement = NewToken { txn: Some(&claims.txn), tenant: None, ..new };
    let verified = txn::verify(&key.mint_transaction(&replacement, NOW), &EXPECT, &store, NOW).unwrap();
    assert_eq!((&*verified.txn, verified.tenant), (txn, None));
    assert_ne!(key.mint_transaction(&new, NOW), token, "each has a txn of its own");
}

#[test]
fn a_token_without_contexts_and_with_an_nbf_or_iss_of_ours_passes() {
    passes(&token(json!({}), json!({"tctx": null, "rctx": null})));
    passes(&token(json!({}), json!({"tctx": {}, "nbf": NOW, "iss": "tenon-identity", "private": [1, {"x": 1.5}]})));
    assert_eq!(check(&token(json!({}), json!({"tctx": {"a": 1}}))).unwrap().tenant, None);
}

#[test]
fn the_type_passes_in_any_case_with_or_without_application() {
    for typ in ["txntoken+jwt", "TxnToken+JWT", "application/txntoken+jwt", "Application/TXNTOKEN+JWT"] {
        passes(&token(json!({"typ": typ}), json!({})));
    }
}

#[test]
fn another_type_or_none_is_refused() {
    for typ in
        [json!(null), json!("JWT"), json!("txntoken"), json!("x/txntoken+jwt"), json!("at+jwt"), json!(""), json!(1)]
    {
        fails_without_a_look_up(&token(json!({"typ": typ}), json!({})));
    }
}

#[test]
fn only_es256_passes() {
    for algorithm in Algorithm::ALL.into_iter().filter(|algorithm| *algorithm != Algorithm::Es256) {
        let header = changed(header(), json!({"alg": algorithm.name()}));
        let token = raw_signed(algorithm, &header, &claims().to_string());
        let store = Store::with(KID, &spki(algorithm));
        assert_eq!(txn::verify(&token, &EXPECT, &store, NOW), Err(Error::Algorithm));
        assert_eq!(store.asked.get(), 0);
    }
    for name in ["none", "HS256", "es256"] {
        fails_without_a_look_up(&token(json!({"alg": name}), json!({})));
    }
    // The right name on a key of another curve.
    let answer = txn::verify(&token(json!({}), json!({})), &EXPECT, &Store::with(KID, &spki(Algorithm::Es384)), NOW);
    assert_eq!(answer, Err(Error::Algorithm));
}

#[test]
fn a_key_of_the_identity_service_alone_passes() {
    for kid in ["tenon-identity/t1", "tenon-identity/a/b"] {
        let token = token(json!({"kid": kid}), json!({}));
        assert!(txn::verify(&token, &EXPECT, &Store::p256(kid), NOW).is_ok());
    }
    for kid in
        ["issues/k1", "tenon-identity", "tenon-identity2/k", "Tenon-identity/k", "x/tenon-identity/k", "../k", ""]
    {
        fails_without_a_look_up(&token(json!({"kid": kid}), json!({})));
    }
    fails_without_a_look_up(&token(json!({"kid": null}), json!({})));
    fails_without_a_look_up(&token(json!({}), json!({"iss": "issues"})));
}

#[test]
fn key_material_critical_extensions_and_duplicates_are_refused() {
    for changes in [
        json!({"jwk": {}}),
        json!({"jku": "https://evil.example/"}),
        json!({"x5u": "https://evil.example/"}),
        json!({"x5c": []}),
        json!({"crit": ["x"]}),
    ] {
        fails_without_a_look_up(&token(changes, json!({})));
    }
    let (header, claims) = (header().to_string(), claims().to_string());
    for twice in [r#""sub":"ada""#, r#""s\u0075b":"bob""#, r#""x":{"y":1,"y":1}"#, r#""x":1,"x":2"#] {
        fails_without_a_look_up(&raw(&header, &claims.replacen('{', &format!("{{{twice},"), 1)));
    }
    // The tenant twice, within the context.
    let tenants = claims.replace(r#""tenant":"acme""#, r#""tenant":"acme","tenant":"evil""#);
    assert_ne!(tenants, claims);
    fails_without_a_look_up(&raw(&header, &tenants));
    fails_without_a_look_up(&raw(&header.replacen('{', r#"{"typ":"txntoken+jwt","#, 1), &claims));
}

#[test]
fn missing_mistyped_and_empty_claims_are_refused() {
    for name in ["iat", "exp", "aud", "txn", "sub", "scope", "req_wl"] {
        for bad in [json!(null), json!(true), json!([]), json!({"x": 1}), json!(["demo.example"]), json!(-1), json!("")]
        {
            fails_without_a_look_up(&token(json!({}), json!({name: bad})));
        }
    }
    for (name, bad) in [
        ("tctx", json!("acme")),
        ("tctx", json!([])),
        ("tctx", json!({"tenant": 1})),
        ("tctx", json!({"tenant": ""})),
        ("tctx", json!({"tenant": ["acme"]})),
        ("rctx", json!(1)),
        ("nbf", json!("1")),
        ("nbf", json!(-1)),
        ("iat", json!(1.5)),
        ("iss", json!(1)),
        ("txn", json!("x".repeat(129))),
    ] {
        fails_without_a_look_up(&token(json!({}), json!({name: bad})));
    }
    passes(&token(json!({}), json!({"txn": "x".repeat(128)})));
}

#[test]
fn another_trust_domain_is_refused() {
    for domain in ["other.example", "Demo.example", "demo.example ", "demo"] {
        fails(&token(json!({}), json!({"aud": domain})), INVALID);
    }
}

#[test]
fn a_life_of_five_minutes_passes_and_a_longer_or_empty_one_is_refused() {
    passes(&token(json!({}), json!({"exp": NOW + 300})));
    passes(&token(json!({}), json!({"exp": NOW + 1})));
    for changes in [json!({"exp": NOW + 301}), json!({"exp": NOW}), json!({"exp": NOW - 1}), json!({"iat": NOW - 1})] {
        assert_eq!(check(&token(json!({}), changes)), Err(Error::Lifetime));
    }
    for changes in [json!({"exp": u64::MAX}), json!({"exp": u64::MAX, "iat": u64::MAX}), json!({"exp": 0, "iat": 0})] {
        fails(&token(json!({}), changes), INVALID);
    }
}

#[test]
fn before_and_after_its_time_a_token_is_refused_and_leeway_stretches_both_ends() {
    let at = |now: u64, leeway_seconds: u64, changes: Value| {
        let expect = Expect { leeway_seconds, ..EXPECT };
        txn::verify(&token(json!({}), changes), &expect, &Store::p256(KID), now).map(|_| ()).map_err(|e| e.reason())
    };
    for (leeway, stretch) in [(0, 0), (5, 5), (30, 30), (31, 30), (u64::MAX, 30)] {
        assert_eq!(at(NOW - stretch, leeway, json!({})), Ok(()));
        assert_eq!(at(NOW - stretch - 1, leeway, json!({})), Err(INVALID));
        assert_eq!(at(NOW + 300 + stretch, leeway, json!({})), Ok(()));
        assert_eq!(at(NOW + 301 + stretch, leeway, json!({})), Err(EXPIRED));
        assert_eq!(at(NOW, leeway, json!({"nbf": NOW + stretch})), Ok(()));
        assert_eq!(at(NOW, leeway, json!({"nbf": NOW + stretch + 1})), Err(INVALID));
    }
}

#[test]
fn a_wrong_signature_and_a_key_that_is_not_there_are_refused() {
    let good = token(json!({}), json!({}));
    let (message, signature) = good.rsplit_once('.').unwrap();
    fails(&format!("{message}."), INVALID);
    fails(&format!("{message}.{}{}", if signature.starts_with('A') { 'B' } else { 'A' }, &signature[1..]), INVALID);
    let stranger = SigningKey::generate(txn::ISSUER).unwrap();
    let answer = txn::verify(&good, &EXPECT, &Store::with(KID, &stranger.public_spki()), NOW);
    assert_eq!(answer, Err(Error::Signature));
    assert_eq!(txn::verify(&good, &EXPECT, &Store::default(), NOW), Err(Error::Key));
    let down = Store { down: true, ..Store::default() };
    assert_eq!(txn::verify(&good, &EXPECT, &down, NOW), Err(Error::Key));
}

#[test]
fn what_is_no_token_or_too_long_is_refused() {
    for bad in ["", "a.b.c", "..", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
        fails_without_a_look_up(bad);
    }
    let filled = |bytes: usize| token(json!({}), json!({"rctx": {"x": "x".repeat(bytes)}}));
    passes(&filled(5600));
    let long = filled(6000);
    assert!(long.len() > MAX_TOKEN_BYTES);
    fails_without_a_look_up(&long);
}

#[test]
fn neither_kind_of_token_passes_as_the_other() {
    // Even where one service had one key for both.
    let key = SigningKey::generate(txn::ISSUER).unwrap();
    let store = Store::with(key.kid().as_str(), &key.public_spki());
    let asap = key.mint("demo.example", NOW, 300);
    assert_eq!(txn::verify(&asap, &EXPECT, &store, NOW).map_err(|error| error.reason()), Err(INVALID));
    let both = changed(claims(), json!({"iss": "tenon-identity", "sub": "tenon-identity", "jti": "x"}));
    let token = raw(&header().to_string(), &both);
    let expect = mesh_asap::Expect::new("demo.example", None);
    let answer = mesh_asap::verify(&token, &expect, &Store::p256(KID), NOW);
    assert!(matches!(answer, Err(VerifyError::Malformed(_))), "{answer:?}");
    assert!(precheck(&token).is_err());
    passes(&token);
    let as_asap = raw(&changed(header(), json!({"typ": "JWT"})), &both);
    assert!(mesh_asap::verify(&as_asap, &expect, &Store::p256(KID), NOW).is_ok());
    fails_without_a_look_up(&as_asap);
}

#[test]
fn a_remembered_token_needs_no_key_until_it_expires_and_stays_in_its_trust_domain() {
    let (good, asked) = (token(json!({}), json!({})), Cell::new(0));
    let public = Arc::new(PublicKey::from_spki(&spki(Algorithm::Es256)).unwrap());
    let keys = |_: &str| {
        asked.set(asked.get() + 1);
        Lookup::Found(Arc::clone(&public))
    };
    let mut memory = Memory::default();
    for now in [NOW, NOW, NOW + 300] {
        assert_eq!(memory.verify(&good, &EXPECT, &keys, now).unwrap().tenant.as_deref(), Some("acme"));
    }
    assert_eq!((asked.get(), memory.len()), (1, 1));
    let elsewhere = Expect { trust_domain: "other.example", ..EXPECT };
    assert_eq!(memory.verify(&good, &elsewhere, &keys, NOW), Err(Error::TrustDomain));
    assert_eq!(memory.verify(&good, &EXPECT, &keys, NOW + 306), Err(Error::Expired));
    memory.verify(&good, &EXPECT, &keys, NOW).unwrap();
    memory.retain(|verified| &*verified.kid != KID);
    assert!(memory.is_empty());
    assert_eq!(memory.verify(&good, &EXPECT, &|_: &str| Lookup::Unknown, NOW), Err(Error::Key));
}

#[test]
fn memory_is_bounded() {
    let (store, mut memory) = (Store::p256(KID), Memory::with_capacity(4));
    for number in 0..20 {
        let token = token(json!({}), json!({"txn": number.to_string()}));
        assert_eq!(&*memory.verify(&token, &EXPECT, &store, NOW).unwrap().txn, number.to_string());
        assert!(memory.len() <= 8);
    }
    memory.forget_all();
    assert!(memory.is_empty());
}
