//! Malformed tokens, made at random: never a panic, always a reason, no key looked up for what fails before. 10,000 of
//! them, or as many as `TENON_MALFORMED_TOKENS` says; `make test-long` says a million.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

use forge::{KID, NOW, Store, changed, claims, header, raw, token};
use mesh_asap::{
    Algorithm, Expect, Kid, MAX_TOKEN_BYTES, Memory, PublicKey, SigningKey, VerifyError, inspect, precheck, txn, verify,
};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng, SeedableRng as _};
use serde_json::{Value, json};

#[path = "forge/forge.rs"]
mod forge;

const OUTSIDE: Expect<'static> = Expect { audience: "media", issuer: None, leeway_seconds: 5, grants: &[] };
const DOMAIN: txn::Expect<'static> = txn::Expect { trust_domain: "media", leeway_seconds: 5 };

#[test]
fn malformed_tokens_are_refused_with_a_reason_and_cost_no_look_up() {
    let count: u32 = std::env::var("TENON_MALFORMED_TOKENS").map_or(10_000, |count| count.parse().unwrap());
    let mut random = StdRng::seed_from_u64(0x7e4_0a5a);
    let (good, store, mut memory) = (Samples::new(), Store::p256(KID), Memory::with_capacity(64));
    let mut reasons = std::collections::BTreeMap::<&str, u32>::new();
    for number in 0..count {
        let bad = good.malformed(&mut random);
        let asked = store.asked.get();
        let error = verify(&bad, &OUTSIDE, &store, NOW).expect_err(&bad);
        assert!(error.reason().starts_with("ASAP_") && !error.to_string().is_empty());
        *reasons.entry(error.reason()).or_default() += 1;
        let asked = store.asked.get() - asked;
        match (precheck(&bad), asked) {
            (Ok(checked), 1) => assert!(checked.kid.belongs_to(&checked.issuer)),
            (Err(same), 0) => assert_eq!(same, error, "number {number}: {bad}"),
            (answer, asked) => panic!("number {number}: {answer:?} with {asked} look-ups: {bad}"),
        }
        assert_eq!(memory.verify(&bad, &OUTSIDE, &store, NOW), Err(error));
        assert_eq!(txn::verify(&bad, &DOMAIN, &store, NOW).map_err(|error| error.reason()), Err("TXN_INVALID"));
        let _ = inspect(&bad);
    }
    assert!(memory.is_empty());
    println!("{count} malformed tokens: {reasons:?}");
    for reason in
        ["ASAP_MALFORMED", "ASAP_ALGORITHM", "ASAP_ISSUER", "ASAP_SIGNATURE", "ASAP_LIFETIME", "ASAP_AUDIENCE"]
    {
        assert!(reasons.contains_key(reason), "none came as far as {reason}: {reasons:?}");
    }
}

/// Valid tokens to spoil.
struct Samples(Vec<String>);

impl Samples {
    fn new() -> Self {
        Self(vec![
            token(json!({}), json!({})),
            token(json!({"typ": "JWT"}), json!({"sub": "issues", "nbf": NOW, "aud": ["wiki", "media"]})),
            token(json!({}), json!({"x": {"y": [1, 2.5, null, "\u{1F600}"]}})),
        ])
    }

    /// A token that is not valid, whatever the random choices were.
    fn malformed(&self, random: &mut StdRng) -> String {
        let good = self.0.choose(random).unwrap();
        let bad = match random.random_range(0..8_u8) {
            0 => spoiled(good.clone().into_bytes(), random),
            1 => parts(good, random),
            2 => json_spoiled(good, random),
            3 => signed_with_a_wrong_member(random),
            4 => signed_json(random),
            5 => random_parts(random),
            6 => random_text(random),
            _ => other_parts(good, self.0.choose(random).unwrap(), random),
        };
        // A spoiled one may by chance be what it was.
        if self.0.contains(&bad) { format!("{bad}.") } else { bad }
    }
}

/// Bytes changed, put in, taken out.
fn spoiled(mut bytes: Vec<u8>, random: &mut StdRng) -> String {
    for _ in 0..random.random_range(1..9) {
        if bytes.is_empty() {
            break;
        }
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..4_u8) {
            0 => bytes[at] = random.random_range(0..128),
            1 => bytes.insert(at, *b".=AZaz09-_+/ {}\"".choose(random).unwrap()),
            2 => drop(bytes.remove(at)),
            _ => bytes.truncate(at.max(1)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Parts swapped, dropped, repeated.
fn parts(good: &str, random: &mut StdRng) -> String {
    let parts: Vec<&str> = good.split('.').chain(["", "e30", "bnVsbA", "W10"]).collect();
    let count = random.random_range(0..6);
    (0..count).map(|_| *parts.choose(random).unwrap()).collect::<Vec<_>>().join(".")
}

/// Bytes changed below the base64 of one part, with the signature as it was.
fn json_spoiled(good: &str, random: &mut StdRng) -> String {
    let mut parts: Vec<String> = good.split('.').map(str::to_owned).collect();
    let at = random.random_range(0..3);
    let spoiled = spoiled(decoded(&parts[at]), random);
    parts[at] = encoded(spoiled.as_bytes());
    parts.join(".")
}

/// Header and claims of one token with the signature of another.
fn other_parts(good: &str, other: &str, random: &mut StdRng) -> String {
    let (message, _) = good.rsplit_once('.').unwrap();
    let (_, signature) = other.rsplit_once('.').unwrap();
    if good == other {
        return format!("{message}.{}", encoded(&random.random::<[u8; 32]>()));
    }
    format!("{message}.{signature}")
}

/// Well signed, and one member is wrong in itself.
fn signed_with_a_wrong_member(random: &mut StdRng) -> String {
    let number = random.random::<u64>();
    let wrong = [
        (json!({"alg": number.to_string()}), json!({})),
        (json!({"kid": format!("issues/{}/..", number)}), json!({})),
        (json!({"kid": number}), json!({})),
        (json!({"jwk": [value(random, 3)]}), json!({"x": 1})),
        (json!({"typ": number}), json!({})),
        (json!({}), json!({"iss": format!("i{number}")})),
        (json!({}), json!({"aud": format!("m{number}")})),
        (json!({}), json!({"exp": NOW + 3601 + number % 1_000_000})),
        (json!({}), json!({"exp": NOW - number % 1_000_000})),
        (json!({}), json!({"nbf": NOW + 301 + number % 1_000_000})),
        (json!({}), json!({"iat": -1.0 - (number % 1000) as f64})),
        (json!({}), json!({"jti": "j".repeat(129 + (number % 1000) as usize)})),
        (json!({}), json!({"sub": format!("s{number}")})),
        (json!({}), json!({"x": "x".repeat(MAX_TOKEN_BYTES)})),
    ];
    let (header_changes, claim_changes) = wrong.choose(random).unwrap().clone();
    token(header_changes, claim_changes)
}

/// Well signed, and header and claims are any JSON at all.
fn signed_json(random: &mut StdRng) -> String {
    let (mut one, mut other) = (header(), claims());
    for _ in 0..random.random_range(1..4) {
        let (object, name): (&mut Value, &str) = if random.random() {
            (&mut one, ["alg", "kid", "typ", "crit", "x5c"].choose(random).unwrap())
        } else {
            (&mut other, ["iss", "aud", "iat", "exp", "jti", "sub", "nbf"].choose(random).unwrap())
        };
        object[name] = value(random, 3);
    }
    // Whatever else it says, it has no jti or no key.
    let taken = *["jti", "iss", "exp", "iat", "aud"].choose(random).unwrap();
    raw(&changed(one, json!({})), &changed(other, json!({taken: null})))
}

fn random_parts(random: &mut StdRng) -> String {
    let part = |random: &mut StdRng| {
        let length = random.random_range(0..200);
        encoded(&(0..length).map(|_| random.random::<u8>()).collect::<Vec<_>>())
    };
    [part(random), part(random), part(random)].join(".")
}

fn random_text(random: &mut StdRng) -> String {
    let length = random.random_range(0..300);
    (0..length).map(|_| random.random::<char>()).collect()
}

/// Any JSON, of so many levels at most.
fn value(random: &mut StdRng, levels: u32) -> Value {
    match random.random_range(0..if levels == 0 { 6_u8 } else { 8 }) {
        0 => Value::Null,
        1 => json!(random.random::<bool>()),
        2 => json!(random.random::<i64>()),
        3 => json!(random.random::<f64>() * 1e12),
        4 => json!(random_text(random)),
        5 => json!(*["media", "issues", "issues/k1", "ES256", "none", "JWT", ""].choose(random).unwrap()),
        6 => (0..random.random_range(0..4)).map(|_| value(random, levels - 1)).collect(),
        _ => json!({"a": value(random, levels - 1), "b": value(random, levels - 1)}),
    }
}

fn encoded(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

fn decoded(part: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap()
}

proptest! {
    #[test]
    fn one_changed_byte_anywhere_is_refused(at: prop::sample::Index, with: u8) {
        let mut bytes = token(json!({}), json!({})).into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != with);
        bytes[at] = with;
        if let Ok(text) = String::from_utf8(bytes) {
            prop_assert!(verify(&text, &OUTSIDE, &Store::p256(KID), NOW).is_err());
        }
    }

    #[test]
    fn arbitrary_text_has_a_reason(text in "\\PC*") {
        let error = verify(&text, &OUTSIDE, &Store::p256(KID), NOW).unwrap_err();
        prop_assert!(matches!(error, VerifyError::Malformed(_)));
    }

    #[test]
    fn arbitrary_bytes_are_no_keys(der: Vec<u8>, text in "\\PC*") {
        let kid: Kid = KID.parse().unwrap();
        prop_assert!(PublicKey::from_spki(&der).is_err());
        prop_assert!(PublicKey::from_pem(&text).is_err());
        prop_assert!(SigningKey::from_pkcs8(kid.clone(), &der).is_err());
        prop_assert!(SigningKey::from_pkcs8_pem(kid, &text).is_err());
        prop_assert!(SigningKey::from_data_uri(&text).is_err());
    }

    #[test]
    fn a_spoiled_key_is_refused_or_is_another_key(at: prop::sample::Index, with: u8) {
        for algorithm in [Algorithm::Es256, Algorithm::Es384] {
            let good = forge::spki(algorithm);
            let mut bad = good.clone();
            let at = at.index(bad.len());
            prop_assume!(bad[at] != with);
            bad[at] = with;
            // Most points are not on the curve; one that is belongs to somebody else.
            if let Ok(key) = PublicKey::from_spki(&bad) {
                prop_assert_eq!(key.algorithms().collect::<Vec<_>>(), vec![algorithm]);
            }
        }
    }
}
