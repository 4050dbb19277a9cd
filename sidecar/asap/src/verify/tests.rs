//! One passing and one failing test a rule, named after it, and what holds for all tokens.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
    RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding,
};
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{Algorithm, KeyError, Kid, KidError, Lookup, MAX_TOKEN_BYTES, PublicKey, SigningKey, path_prefix_conflict};

const NOW: u64 = 1_700_000_000;
const KID: &str = "issues/k1";

static P256: LazyLock<EcdsaKeyPair> = LazyLock::new(|| ec(&ECDSA_P256_SHA256_FIXED_SIGNING));
static P384: LazyLock<EcdsaKeyPair> = LazyLock::new(|| ec(&ECDSA_P384_SHA384_FIXED_SIGNING));
static P521: LazyLock<EcdsaKeyPair> = LazyLock::new(|| ec(&ECDSA_P521_SHA512_FIXED_SIGNING));
static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());

fn ec(algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    EcdsaKeyPair::generate(algorithm).unwrap()
}

fn ec_spki(pair: &EcdsaKeyPair) -> Vec<u8> {
    pair.public_key().as_der().unwrap().as_ref().to_vec()
}

fn rsa_spki() -> Vec<u8> {
    RSA.public_key().as_der().unwrap().as_ref().to_vec()
}

fn spki(algorithm: Algorithm) -> Vec<u8> {
    match algorithm {
        Algorithm::Es256 => ec_spki(&P256),
        Algorithm::Es384 => ec_spki(&P384),
        Algorithm::Es512 => ec_spki(&P521),
        Algorithm::Rs256
        | Algorithm::Rs384
        | Algorithm::Rs512
        | Algorithm::Ps256
        | Algorithm::Ps384
        | Algorithm::Ps512 => rsa_spki(),
    }
}

fn sign(algorithm: Algorithm, message: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let ec = |pair: &EcdsaKeyPair| pair.sign(&random, message).unwrap().as_ref().to_vec();
    let rsa = |encoding: &'static dyn RsaEncoding| {
        let mut signature = vec![0; RSA.public_modulus_len()];
        RSA.sign(encoding, &random, message, &mut signature).unwrap();
        signature
    };
    match algorithm {
        Algorithm::Es256 => ec(&P256),
        Algorithm::Es384 => ec(&P384),
        Algorithm::Es512 => ec(&P521),
        Algorithm::Rs256 => rsa(&RSA_PKCS1_SHA256),
        Algorithm::Rs384 => rsa(&RSA_PKCS1_SHA384),
        Algorithm::Rs512 => rsa(&RSA_PKCS1_SHA512),
        Algorithm::Ps256 => rsa(&RSA_PSS_SHA256),
        Algorithm::Ps384 => rsa(&RSA_PSS_SHA384),
        Algorithm::Ps512 => rsa(&RSA_PSS_SHA512),
    }
}

/// Counts how often it is asked.
#[derive(Default)]
struct Store {
    keys: HashMap<String, Arc<PublicKey>>,
    asked: Cell<u32>,
    down: bool,
}

impl Store {
    fn with(kid: &str, spki: &[u8]) -> Self {
        let key = Arc::new(PublicKey::from_spki(spki).unwrap());
        Self { keys: HashMap::from([(kid.to_owned(), key)]), ..Self::default() }
    }
}

impl Keys for Store {
    fn get(&self, kid: &str) -> Lookup {
        self.asked.set(self.asked.get() + 1);
        match self.keys.get(kid) {
            _ if self.down => Lookup::Unavailable,
            Some(key) => Lookup::Found(Arc::clone(key)),
            None => Lookup::Unknown,
        }
    }
}

/// Header and claims as text, so that tests can write what no serializer would.
fn raw(header: &str, claims: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(Algorithm::Es256, message.as_bytes()));
    format!("{message}.{signature}")
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": KID})
}

fn claims() -> Value {
    json!({"iss": "issues", "aud": "media", "iat": NOW, "exp": NOW + 300, "jti": "0123456789abcdef"})
}

/// A good token but for these members; `null` takes one away.
fn token(header_changes: Value, claim_changes: Value) -> String {
    raw(&changed(header(), header_changes), &changed(claims(), claim_changes))
}

fn changed(mut object: Value, changes: Value) -> String {
    let Value::Object(changes) = changes else { panic!("changes are an object") };
    for (name, value) in changes {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(&name);
        } else {
            object[name] = value;
        }
    }
    object.to_string()
}

const EXPECT: Expect<'static> = Expect { audience: "media", issuer: Some("issues"), leeway_seconds: 5, grants: &[] };

fn check(token: &str) -> Result<Verified, VerifyError> {
    verify(token, &EXPECT, &Store::with(KID, &ec_spki(&P256)), NOW)
}

fn passes(token: &str) {
    assert_eq!(check(token).map(|verified| verified.issuer.into_string()), Ok("issues".to_owned()));
}

#[track_caller]
fn fails(token: &str, reason: &str) {
    assert_eq!(check(token).map_err(|error| error.reason()), Err(reason));
}

const M: &str = "ASAP_MALFORMED";

#[test]
fn a01_a_compact_jws_that_its_issuer_signed_passes() {
    passes(&token(json!({}), json!({})));
}

#[test]
fn a01_anything_but_three_signed_parts_is_refused() {
    let good = token(json!({}), json!({}));
    let (message, signature) = good.rsplit_once('.').unwrap();
    let padded = format!("{}.{}", URL_SAFE.encode(header().to_string() + " "), good.split_once('.').unwrap().1);
    for bad in [
        "",
        ".",
        "..",
        "...",
        "abc",
        message,
        &format!("{good}."),
        &format!("{good}.e30"),
        &format!(" {good}"),
        &format!("{good}\n"),
        &format!("{good}="),
        &format!("{message}.{}!", &signature[1..]),
        &padded,
        &"a".repeat(MAX_TOKEN_BYTES + 1),
    ] {
        fails(bad, M);
    }
    let other = if signature.starts_with('A') { "B" } else { "A" };
    fails(&format!("{message}.{other}{}", &signature[1..]), "ASAP_SIGNATURE");
    fails(&format!("{message}."), "ASAP_SIGNATURE");
    fails(&format!("{message}.AAAA"), "ASAP_SIGNATURE");
    fails(&format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 64])), "ASAP_SIGNATURE");
    let swapped = token(json!({}), json!({"aud": "wiki"}));
    fails(&format!("{message}.{}", swapped.rsplit_once('.').unwrap().1), "ASAP_SIGNATURE");
}

#[test]
fn a01_base64_with_bits_left_over_is_refused() {
    let good = token(json!({}), json!({}));
    // 64 bytes leave four unused bits in the last of 86 digits: 'A', 'Q', 'g' and 'w' alone have them clear.
    let last = good.chars().last().unwrap();
    assert!("AQgw".contains(last));
    let stray = char::from(u8::try_from(last).unwrap() + 1);
    fails(&format!("{}{stray}", &good[..good.len() - 1]), M);
}

#[test]
fn a02_each_of_the_nine_algorithms_passes_with_a_key_that_fits() {
    for algorithm in Algorithm::ALL {
        let header = json!({"alg": algorithm.name(), "kid": KID}).to_string();
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims().to_string()));
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(sign(algorithm, message.as_bytes())));
        let verified = verify(&token, &EXPECT, &Store::with(KID, &spki(algorithm)), NOW);
        assert!(verified.is_ok(), "{algorithm:?}: {verified:?}");
    }
}

#[test]
fn a02_every_other_algorithm_is_refused_without_a_look_up() {
    for name in
        ["none", "None", "NONE", "nOnE", "HS256", "HS384", "HS512", "EdDSA", "ES256K", "es256", "RS1", "", "ES256 "]
    {
        let store = Store::with(KID, &ec_spki(&P256));
        for token in [token(json!({"alg": name}), json!({})), {
            let token = token(json!({"alg": name}), json!({}));
            format!("{}.", token.rsplit_once('.').unwrap().0)
        }] {
            assert_eq!(verify(&token, &EXPECT, &store, NOW), Err(VerifyError::Algorithm), "{name}");
        }
        assert_eq!(store.asked.get(), 0);
    }
    fails(&token(json!({"alg": null}), json!({})), M);
    fails(&token(json!({"alg": 1}), json!({})), M);
}

#[test]
fn a02_an_algorithm_that_does_not_fit_the_key_is_refused() {
    for claimed in Algorithm::ALL {
        for held in [Algorithm::Es256, Algorithm::Es384, Algorithm::Es512, Algorithm::Rs256] {
            let key = PublicKey::from_spki(&spki(held)).unwrap();
            if key.algorithms().any(|fitting| fitting == claimed) {
                continue;
            }
            let token = token(json!({"alg": claimed.name()}), json!({}));
            let answer = verify(&token, &EXPECT, &Store::with(KID, &spki(held)), NOW);
            assert_eq!(answer, Err(VerifyError::Algorithm), "{claimed:?} with the key of {held:?}");
        }
    }
}

#[test]
fn a02_weak_and_foreign_keys_are_not_loaded() {
    let oid = |oid: &str| PublicKey::from_spki(&unhex(oid)).unwrap_err();
    assert_eq!(PublicKey::from_spki(&rsa_der(1024)).unwrap_err(), KeyError::RsaBits(1024));
    assert_eq!(PublicKey::from_spki(&rsa_der(2040)).unwrap_err(), KeyError::RsaBits(2040));
    assert!(PublicKey::from_spki(&rsa_der(2048)).is_ok());
    // Ed25519, RFC 8410 §10.1.
    let ed25519 = "302a300506032b657003210019bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";
    assert_eq!(oid(ed25519), KeyError::Type);
    assert_eq!(PublicKey::from_spki(b"").unwrap_err(), KeyError::Spki);
    assert_eq!(PublicKey::from_spki(&[ec_spki(&P256), vec![0]].concat()).unwrap_err(), KeyError::Spki);
    let mut off_curve = ec_spki(&P256);
    *off_curve.last_mut().unwrap() ^= 1;
    assert_eq!(PublicKey::from_spki(&off_curve).unwrap_err(), KeyError::Invalid);
    let pem = pem::encode(&pem::Pem::new("PUBLIC KEY", ec_spki(&P256)));
    assert!(PublicKey::from_pem(&pem).is_ok());
    assert_eq!(PublicKey::from_pem(&format!("{pem}{pem}")).unwrap_err(), KeyError::Pem);
    assert_eq!(PublicKey::from_pem(&pem.replace("PUBLIC", "PRIVATE")).unwrap_err(), KeyError::Pem);
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// An RSA SubjectPublicKeyInfo with an odd modulus of so many bits; nobody knows its factors.
fn rsa_der(bits: usize) -> Vec<u8> {
    let der = |tag: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        let mut out = vec![tag];
        match content.len() {
            0..=127 => out.push(length[1]),
            128..=255 => out.extend([0x81, length[1]]),
            _ => out.extend([0x82, length[0], length[1]]),
        }
        [out, content.to_vec()].concat()
    };
    let modulus = [vec![0], vec![0xc5; bits / 8]].concat();
    let key = der(0x30, &[der(2, &modulus), der(2, &[1, 0, 1])].concat());
    let algorithm = unhex("300d06092a864886f70d0101010500");
    der(0x30, &[algorithm, der(3, &[vec![0], key].concat())].concat())
}

#[test]
fn a03_a_kid_in_the_header_passes_beside_parameters_that_mean_nothing_to_us() {
    passes(&token(json!({"typ": "JWT", "cty": "x", "x5t": "abc"}), json!({})));
}

#[test]
fn a03_no_kid_or_key_material_in_the_token_is_refused() {
    for changes in [
        json!({"kid": null}),
        json!({"kid": 7}),
        json!({"kid": [KID]}),
        json!({"jwk": {"kty": "EC"}}),
        json!({"jku": "https://evil.example/"}),
        json!({"x5u": "https://evil.example/"}),
        json!({"x5c": []}),
        json!({"crit": ["exp"]}),
        json!({"typ": 1}),
    ] {
        fails(&token(changes, json!({})), M);
    }
    fails(&raw("[]", &claims().to_string()), M);
    fails(&raw("{\"alg\":\"ES256\",\"kid\":\"issues/k1\"}x", &claims().to_string()), M);
    fails(&raw("{\"alg\":\"ES256\",\"kid\":\"issues/k1\",\"kid\":\"issues/k1\"}", &claims().to_string()), M);
    fails(&raw("{\"alg\":\"none\",\"alg\":\"ES256\",\"kid\":\"issues/k1\"}", &claims().to_string()), M);
}

#[test]
fn a04_every_character_and_segment_of_the_grammar_passes() {
    for kid in [
        "issues/k1",
        "issues/a/b/c",
        "issues/A-Z_0.9+x",
        "issues/...",
        "issues/.a",
        &format!("issues/{}", "k".repeat(249)),
    ] {
        assert!(kid.parse::<Kid>().is_ok(), "{kid}");
        let token = token(json!({"kid": kid}), json!({}));
        assert!(verify(&token, &EXPECT, &Store::with(kid, &ec_spki(&P256)), NOW).is_ok(), "{kid}");
    }
}

#[test]
fn a04_a_kid_outside_of_the_grammar_is_refused_without_a_look_up() {
    use KidError::{Character, Segment, TooLong};
    let long = format!("issues/{}", "k".repeat(250));
    for (kid, why) in [
        ("", Segment),
        ("/", Segment),
        ("issues/", Segment),
        ("/issues", Segment),
        ("issues//k1", Segment),
        ("issues/./k1", Segment),
        ("issues/../media/k1", Segment),
        ("issues/..", Segment),
        ("issues/k 1", Character),
        ("issues/k%31", Character),
        ("issues/k?1", Character),
        ("issues/k#1", Character),
        ("issues\\k1", Character),
        ("issues/k\u{e9}", Character),
        ("issues/k\0", Character),
        ("issues/k1\n", Character),
        (long.as_str(), TooLong),
    ] {
        assert_eq!(kid.parse::<Kid>(), Err(why), "{kid:?}");
        let store = Store::with(KID, &ec_spki(&P256));
        let token = token(json!({"kid": kid}), json!({}));
        assert_eq!(verify(&token, &EXPECT, &store, NOW).unwrap_err().reason(), M, "{kid:?}");
        assert_eq!(store.asked.get(), 0);
    }
}

#[test]
fn a05_a_key_below_its_issuer_passes() {
    let expect = Expect { issuer: Some("micros/issues"), ..EXPECT };
    let token = token(json!({"kid": "micros/issues/k1"}), json!({"iss": "micros/issues"}));
    assert!(verify(&token, &expect, &Store::with("micros/issues/k1", &ec_spki(&P256)), NOW).is_ok());
    assert_eq!(path_prefix_conflict(&["issues", "media", "issues-2", "micros/a", "micros/b"]), None);
}

#[test]
fn a05_a_key_of_another_issuer_is_refused_without_a_look_up() {
    for (kid, issuer) in [
        ("issues/k1", "media"),
        ("issues/k1", "issue"),
        ("issues/k1", "issues/"),
        ("issues/k1", "issues/k1"),
        ("issues", "issues"),
        ("issues2/k1", "issues"),
        ("Issues/k1", "issues"),
    ] {
        let store = Store::with(kid, &ec_spki(&P256));
        let token = token(json!({"kid": kid}), json!({"iss": issuer}));
        let expect = Expect { issuer: None, ..EXPECT };
        assert_eq!(verify(&token, &expect, &store, NOW), Err(VerifyError::Issuer), "{kid} of {issuer}");
        assert_eq!(store.asked.get(), 0);
    }
    assert_eq!(path_prefix_conflict(&["media", "issues/x", "issues"]), Some(("issues/x", "issues")));
    assert_eq!(path_prefix_conflict(&["media", "media"]), Some(("media", "media")));
}

#[test]
fn a06_private_claims_of_any_type_pass() {
    passes(&token(json!({}), json!({"x": {"y": [1, {"z": false}]}, "w": 1.5, "v": -3})));
    passes(&token(json!({}), json!({"sub": "issues", "nbf": NOW})));
}

#[test]
fn a06_missing_mistyped_empty_and_repeated_claims_are_refused() {
    for name in ["iss", "exp", "iat", "aud", "jti"] {
        fails(&token(json!({}), json!({name: null})), M);
    }
    for (name, bad) in [
        ("iss", json!(1)),
        ("iss", json!("")),
        ("iss", json!(["issues"])),
        ("sub", json!("")),
        ("sub", json!(1)),
        ("jti", json!("")),
        ("jti", json!(7)),
        ("aud", json!("")),
        ("aud", json!({"media": true})),
        ("aud", json!(["media", 1])),
        ("aud", json!(["media", ""])),
        ("exp", json!("1700000300")),
        ("iat", json!(true)),
        ("nbf", json!([NOW])),
        ("exp", json!(-1)),
        ("exp", json!(1e300)),
        ("iat", json!(-5)),
    ] {
        fails(&token(json!({}), json!({name: bad})), M);
    }
    let good = claims().to_string();
    let body = good.trim_start_matches('{');
    for bad in [
        format!("{{\"iss\":\"issues\",{body}"),
        format!("{{\"is\\u0073\":\"issues\",{body}"),
        format!("{{\"x\":1,\"x\":1,{body}"),
        format!("{{\"x\":[{{\"y\":1,\"y\":1}}],{body}"),
        format!("{{\"sub\":null,{body}"),
        format!("{good}{good}"),
        format!("[{good}]"),
        "null".to_owned(),
        String::new(),
        "{".repeat(3000),
        "[".repeat(3000),
    ] {
        fails(&raw(&header().to_string(), &bad), M);
    }
}

#[test]
fn a07_our_name_as_a_string_or_in_an_array_passes() {
    passes(&token(json!({}), json!({"aud": "media"})));
    passes(&token(json!({}), json!({"aud": ["wiki", "media"]})));
}

#[test]
fn a07_another_audience_is_refused() {
    for audience in [
        json!("wiki"),
        json!("Media"),
        json!("media "),
        json!("med"),
        json!("media.eu-west"),
        json!([]),
        json!(["wiki"]),
    ] {
        fails(&token(json!({}), json!({"aud": audience})), "ASAP_AUDIENCE");
    }
}

#[test]
fn a08_a_life_of_exactly_an_hour_passes() {
    passes(&token(json!({}), json!({"exp": NOW + 3600})));
    passes(&token(json!({}), json!({"iat": NOW - 1800, "exp": NOW + 1800, "nbf": NOW - 2000})));
    passes(&token(json!({}), json!({"iat": NOW - 1, "exp": NOW + 1, "nbf": NOW + 1})));
}

#[test]
fn a08_a_life_that_is_longer_empty_or_reversed_is_refused() {
    for changes in [
        json!({"exp": NOW + 3601}),
        json!({"exp": NOW as f64 + 3600.5}),
        json!({"iat": NOW - 3, "exp": NOW + 3598}),
        json!({"exp": NOW}),
        json!({"exp": NOW - 1}),
        json!({"nbf": NOW + 301}),
        json!({"iat": NOW - 1, "exp": NOW + 1, "nbf": NOW + 2}),
    ] {
        fails(&token(json!({}), changes), "ASAP_LIFETIME");
    }
    let expect = Expect { leeway_seconds: 30, ..EXPECT };
    let token = token(json!({}), json!({"exp": NOW + 3601}));
    assert_eq!(verify(&token, &expect, &Store::with(KID, &ec_spki(&P256)), NOW), Err(VerifyError::Lifetime));
}

#[test]
fn a09_both_ends_pass_and_leeway_stretches_them() {
    let at = |now: u64, leeway_seconds: u64, changes: Value| {
        let expect = Expect { leeway_seconds, ..EXPECT };
        verify(&token(json!({}), changes), &expect, &Store::with(KID, &ec_spki(&P256)), now).is_ok()
    };
    assert!(at(NOW, 0, json!({})));
    assert!(at(NOW + 300, 0, json!({})));
    assert!(at(NOW + 10, 0, json!({"nbf": NOW + 10})));
    assert!(at(NOW - 5, 5, json!({})));
    assert!(at(NOW + 305, 5, json!({})));
    assert!(at(NOW + 330, 30, json!({})));
    assert!(at(NOW + 330, 4000, json!({})));
}

#[test]
fn a09_before_and_after_its_time_a_token_is_refused() {
    let at = |now: u64, leeway_seconds: u64, changes: Value| {
        let expect = Expect { leeway_seconds, ..EXPECT };
        verify(&token(json!({}), changes), &expect, &Store::with(KID, &ec_spki(&P256)), now).unwrap_err().reason()
    };
    assert_eq!(at(NOW + 301, 0, json!({})), "ASAP_EXPIRED");
    assert_eq!(at(NOW + 306, 5, json!({})), "ASAP_EXPIRED");
    assert_eq!(at(NOW + 331, 4000, json!({})), "ASAP_EXPIRED");
    assert_eq!(at(NOW - 1, 0, json!({})), "ASAP_NOT_YET_VALID");
    assert_eq!(at(NOW - 6, 5, json!({})), "ASAP_NOT_YET_VALID");
    assert_eq!(at(NOW - 31, 4000, json!({})), "ASAP_NOT_YET_VALID");
    assert_eq!(at(NOW, 0, json!({"nbf": NOW + 1})), "ASAP_NOT_YET_VALID");
    // An iat in the future is refused although nbf has passed.
    assert_eq!(at(NOW, 5, json!({"iat": NOW + 6, "nbf": NOW - 60})), "ASAP_NOT_YET_VALID");
}

#[test]
fn a10_a_jti_of_128_bytes_passes_and_ours_has_128_random_bits() {
    passes(&token(json!({}), json!({"jti": "j".repeat(128)})));
    let key = SigningKey::generate("issues").unwrap();
    let jti = || {
        let claims = crate::inspect(&key.mint("media", NOW, 300)).unwrap().claims;
        URL_SAFE_NO_PAD.decode(claims["jti"].as_str().unwrap()).unwrap()
    };
    let all: std::collections::HashSet<Vec<u8>> = (0..100).map(|_| jti()).collect();
    assert_eq!(all.len(), 100);
    assert!(all.iter().all(|jti| jti.len() == 16));
}

#[test]
fn a10_a_longer_jti_is_refused() {
    fails(&token(json!({}), json!({"jti": "j".repeat(129)})), M);
}

#[test]
fn a11_the_same_token_passes_again() {
    let token = token(json!({}), json!({}));
    passes(&token);
    passes(&token);
}

#[test]
fn a11_the_same_token_is_refused_once_it_has_expired() {
    let (token, store) = (token(json!({}), json!({})), Store::with(KID, &ec_spki(&P256)));
    assert!(verify(&token, &EXPECT, &store, NOW).is_ok());
    assert_eq!(verify(&token, &EXPECT, &store, NOW + 306), Err(VerifyError::Expired));
}

#[test]
fn a12_no_subject_means_the_issuer_and_a_granted_one_passes() {
    let verified = check(&token(json!({}), json!({}))).unwrap();
    assert_eq!(&*verified.subject, "issues");
    let grants = [Grant { issuer: "issues".to_owned(), subject: "ada".to_owned() }];
    let expect = Expect { grants: &grants, ..EXPECT };
    let token = token(json!({}), json!({"sub": "ada"}));
    let verified = verify(&token, &expect, &Store::with(KID, &ec_spki(&P256)), NOW).unwrap();
    assert_eq!(&*verified.subject, "ada");
}

#[test]
fn a12_another_subject_is_refused() {
    fails(&token(json!({}), json!({"sub": "ada"})), "ASAP_SUBJECT");
    let grants = [Grant { issuer: "wiki".to_owned(), subject: "ada".to_owned() }];
    let expect = Expect { grants: &grants, ..EXPECT };
    let token = token(json!({}), json!({"sub": "ada"}));
    assert_eq!(verify(&token, &expect, &Store::with(KID, &ec_spki(&P256)), NOW), Err(VerifyError::Subject));
}

#[test]
fn a17_a_private_key_survives_its_data_uri_and_is_never_printed() {
    let key = SigningKey::generate("issues").unwrap();
    let uri = key.to_data_uri();
    assert!(uri.starts_with("data:application/pkcs8;kid=issues%2F"), "{}", key.kid());
    let again = SigningKey::from_data_uri(&uri).unwrap();
    assert_eq!((again.kid(), again.public_spki()), (key.kid(), key.public_spki()));
    let printed = format!("{again:?}");
    assert!(printed.contains("issues/") && printed.len() < 120, "{printed}");
    for bad in [
        "",
        "data:application/pkcs8;kid=issues%2Fk;base64,",
        "data:application/pkcs8;kid=..;base64,AAAA",
        &uri[..uri.len() - 8],
    ] {
        assert!(SigningKey::from_data_uri(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_token_of_another_service_is_bound_to_its_channel() {
    let store = Store::with(KID, &ec_spki(&P256));
    let stolen = Expect { issuer: Some("wiki"), ..EXPECT };
    assert_eq!(verify(&token(json!({}), json!({})), &stolen, &store, NOW), Err(VerifyError::Issuer));
    let outside = Expect { issuer: None, ..EXPECT };
    assert!(verify(&token(json!({}), json!({})), &outside, &store, NOW).is_ok());
}

#[test]
fn what_we_mint_passes() {
    let key = SigningKey::generate("issues").unwrap();
    let store = Store::with(key.kid().as_str(), &key.public_spki());
    let verified = verify(&key.mint("media", NOW, 300), &EXPECT, &store, NOW).unwrap();
    assert_eq!((&*verified.kid, verified.expires_at), (key.kid().as_str(), NOW + 300));
    assert!(key.kid().belongs_to("issues"));
}

#[test]
fn a_key_that_nobody_knows_and_keys_that_nobody_can_ask_have_their_own_reasons() {
    let good = token(json!({}), json!({}));
    assert_eq!(verify(&good, &EXPECT, &Store::default(), NOW), Err(VerifyError::KeyUnknown));
    let down = Store { down: true, ..Store::default() };
    assert_eq!(verify(&good, &EXPECT, &down, NOW), Err(VerifyError::KeysUnavailable));
}

#[test]
fn a_key_is_looked_up_once_and_only_for_a_token_that_passed_everything_before() {
    let good = token(json!({}), json!({}));
    let store = Store::with(KID, &ec_spki(&P256));
    assert!(verify(&good, &EXPECT, &store, NOW).is_ok());
    assert_eq!(store.asked.get(), 1);
    for bad in [
        "a.b".to_owned(),
        raw("{}", &claims().to_string()),
        raw(&header().to_string(), "{}"),
        token(json!({"alg": "none"}), json!({})),
        token(json!({"kid": "issues/../k1"}), json!({})),
        token(json!({}), json!({"iss": "media"})),
        token(json!({}), json!({"jti": null})),
        format!("{good}="),
    ] {
        assert!(verify(&bad, &EXPECT, &store, NOW).is_err(), "{bad}");
    }
    assert_eq!(store.asked.get(), 1);
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics_and_always_has_a_reason(text in "\\PC*") {
        prop_assert!(check(&text).unwrap_err().reason().starts_with("ASAP_"));
    }

    #[test]
    fn arbitrary_parts_never_panic_and_always_have_a_reason(header: Vec<u8>, claims: Vec<u8>, signature: Vec<u8>) {
        let parts = [header, claims, signature].map(|part| URL_SAFE_NO_PAD.encode(part));
        prop_assert!(check(&parts.join(".")).unwrap_err().reason().starts_with("ASAP_"));
    }

    #[test]
    fn one_changed_byte_anywhere_is_refused(at: prop::sample::Index, with: u8) {
        let mut bytes = token(json!({}), json!({})).into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != with);
        bytes[at] = with;
        if let Ok(text) = String::from_utf8(bytes) {
            prop_assert!(check(&text).is_err());
        }
    }

    #[test]
    fn arbitrary_keys_never_panic(der: Vec<u8>) {
        prop_assert!(PublicKey::from_spki(&der).is_err());
    }
}
