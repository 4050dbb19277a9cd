//! The rules of `docs/asap.md`, each in both directions and named after it: a token (a key, a header, an environment)
//! just inside and one just outside. A14 stands with the proxy's refusals, A15 and A16 with the key repositories.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use forge::{EXPECT, KID, NOW, Store, changed, claims, header, pkcs8, raw, raw_signed, sign, spki, token};
use mesh_asap::env::{EnvError, Environment};
use mesh_asap::{
    Algorithm, BearerError, Expect, Grant, KeyError, Kid, KidError, Lookup, MAX_TOKEN_BYTES, Memory, Minted, PublicKey,
    SigningKey, Verified, VerifyError, bearer, inspect, precheck, verify,
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

#[path = "forge/forge.rs"]
mod forge;

const MALFORMED: &str = "ASAP_MALFORMED";

fn check(token: &str) -> Result<Verified, VerifyError> {
    verify(token, &EXPECT, &Store::p256(KID), NOW)
}

#[track_caller]
fn passes(token: &str) {
    assert_eq!(check(token).map(|verified| verified.issuer.into_string()), Ok("issues".to_owned()));
    precheck(token).unwrap();
}

#[track_caller]
fn fails(token: &str, reason: &str) {
    assert_eq!(check(token).map_err(|error| error.reason()), Err(reason));
}

/// Refused by what is looked at before any key.
#[track_caller]
fn fails_without_a_look_up(token: &str, reason: &str) {
    let store = Store::p256(KID);
    assert_eq!(verify(token, &EXPECT, &store, NOW).map_err(|error| error.reason()), Err(reason));
    assert_eq!(precheck(token).map_err(|error| error.reason()), Err(reason));
    assert_eq!(store.asked.get(), 0, "a key was looked up");
}

// A1: JWS compact, signed by the client itself.

#[test]
fn a01_a_compact_jws_that_its_issuer_signed_passes() {
    passes(&token(json!({}), json!({})));
}

#[test]
fn a01_anything_but_three_parts_is_refused() {
    let good = token(json!({}), json!({}));
    let (message, signature) = good.rsplit_once('.').unwrap();
    let padded = format!("{}.{}", URL_SAFE.encode(header().to_string() + " "), good.split_once('.').unwrap().1);
    assert!(padded.contains('='));
    for bad in [
        "",
        ".",
        "..",
        "...",
        "abc",
        message,
        &format!("{good}."),
        &format!(".{good}"),
        &format!("{good}.e30"),
        &format!(" {good}"),
        &format!("{good} "),
        &format!("{good}\n"),
        &format!("{good}="),
        &format!("{message}.{}!", &signature[1..]),
        &format!("{message}.+{}", &signature[1..]),
        &padded,
        // The other serialisation of RFC 7515.
        &json!({"payload": "e30", "protected": "e30", "signature": signature}).to_string(),
    ] {
        fails_without_a_look_up(bad, MALFORMED);
    }
}

#[test]
fn a01_base64_with_no_bit_left_over_passes() {
    // 64 bytes leave four unused bits in the last of 86 digits: 'A', 'Q', 'g' and 'w' alone have them clear.
    let good = token(json!({}), json!({}));
    assert!("AQgw".contains(good.chars().last().unwrap()));
    passes(&good);
}

#[test]
fn a01_base64_with_bits_left_over_is_refused() {
    let good = token(json!({}), json!({}));
    let stray = char::from(u8::try_from(good.chars().last().unwrap()).unwrap() + 1);
    fails_without_a_look_up(&format!("{}{stray}", &good[..good.len() - 1]), MALFORMED);
}

#[test]
fn a01_a_signature_of_something_or_someone_else_is_refused() {
    let good = token(json!({}), json!({}));
    let (message, signature) = good.rsplit_once('.').unwrap();
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let swapped = token(json!({}), json!({"aud": "wiki"}));
    for bad in [
        format!("{message}."),
        format!("{message}.AAAA"),
        format!("{message}.{other}{}", &signature[1..]),
        format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 64])),
        format!("{message}.{}", URL_SAFE_NO_PAD.encode([0xff; 64])),
        format!("{message}.{signature}{}", URL_SAFE_NO_PAD.encode([0; 3])),
        format!("{message}.{}", swapped.rsplit_once('.').unwrap().1),
    ] {
        fails(&bad, "ASAP_SIGNATURE");
    }
    let stranger = SigningKey::generate("issues").unwrap();
    let answer = verify(&good, &EXPECT, &Store::with(KID, &stranger.public_spki()), NOW);
    assert_eq!(answer, Err(VerifyError::Signature));
}

// A2: nine algorithms, bound to the key's type and curve.

#[test]
fn a02_each_of_the_nine_algorithms_passes_with_a_key_that_fits() {
    for algorithm in Algorithm::ALL {
        let header = json!({"alg": algorithm.name(), "kid": KID}).to_string();
        let token = raw_signed(algorithm, &header, &claims().to_string());
        let verified = verify(&token, &EXPECT, &Store::with(KID, &spki(algorithm)), NOW);
        assert!(verified.is_ok(), "{algorithm:?}: {verified:?}");
    }
}

#[test]
fn a02_every_other_algorithm_is_refused() {
    for name in [
        "none",
        "None",
        "NONE",
        "nOnE",
        "HS256",
        "HS384",
        "HS512",
        "EdDSA",
        "Ed25519",
        "ES256K",
        "es256",
        "rs256",
        "RS1",
        "RS224",
        "PS1",
        "RSA-OAEP",
        "dir",
        "",
        "ES256 ",
        " ES256",
        "ES256\u{0}",
    ] {
        let signed = token(json!({"alg": name}), json!({}));
        let unsigned = format!("{}.", signed.rsplit_once('.').unwrap().0);
        fails_without_a_look_up(&signed, "ASAP_ALGORITHM");
        fails_without_a_look_up(&unsigned, "ASAP_ALGORITHM");
    }
}

#[test]
fn a02_an_algorithm_that_is_missing_or_no_string_is_refused() {
    fails_without_a_look_up(&token(json!({"alg": null}), json!({})), MALFORMED);
    fails_without_a_look_up(&token(json!({"alg": 1}), json!({})), MALFORMED);
    fails_without_a_look_up(&token(json!({"alg": ["ES256"]}), json!({})), MALFORMED);
    fails_without_a_look_up(&raw(r#"{"alg":null,"kid":"issues/k1"}"#, &claims().to_string()), MALFORMED);
}

#[test]
fn a02_an_algorithm_that_does_not_fit_the_key_is_refused() {
    for claimed in Algorithm::ALL {
        for held in [Algorithm::Es256, Algorithm::Es384, Algorithm::Es512, Algorithm::Rs256] {
            let key = PublicKey::from_spki(&spki(held)).unwrap();
            if key.algorithms().any(|fitting| fitting == claimed) {
                continue;
            }
            // Signed with what the header says, and with the key that the repository has.
            for signed in [claimed, held] {
                let header = json!({"alg": claimed.name(), "kid": KID}).to_string();
                let token = raw_signed(signed, &header, &claims().to_string());
                let answer = verify(&token, &EXPECT, &Store::with(KID, &spki(held)), NOW);
                assert_eq!(answer, Err(VerifyError::Algorithm), "{claimed:?} with the key of {held:?}");
            }
        }
    }
}

#[test]
fn a02_one_rsa_algorithm_does_not_pass_as_another() {
    let rsa = Algorithm::ALL.into_iter().filter(|algorithm| !algorithm.name().starts_with('E'));
    for (claimed, signed) in rsa.clone().flat_map(|one| rsa.clone().map(move |other| (one, other))) {
        let header = json!({"alg": claimed.name(), "kid": KID}).to_string();
        let token = raw_signed(signed, &header, &claims().to_string());
        let answer = verify(&token, &EXPECT, &Store::with(KID, &spki(signed)), NOW);
        let expected = if claimed == signed { Ok(()) } else { Err(VerifyError::Signature) };
        assert_eq!(answer.map(|_| ()), expected, "{claimed:?} signed with {signed:?}");
    }
}

#[test]
fn a02_rsa_keys_of_2048_and_of_8192_bits_are_loaded() {
    for bits in [2048, 2049, 3072, 4096, 8192] {
        assert_eq!(PublicKey::from_spki(&rsa_spki(bits)).unwrap().algorithms().count(), 6, "{bits}");
    }
}

#[test]
fn a02_rsa_keys_of_2047_and_of_8193_bits_are_not_loaded() {
    for bits in [512, 1024, 2040, 2047, 8193, 16384] {
        assert_eq!(PublicKey::from_spki(&rsa_spki(bits)).unwrap_err(), KeyError::RsaBits(bits));
    }
    let private = SigningKey::from_pkcs8(KID.parse().unwrap(), &STANDARD.decode(RSA_1024).unwrap());
    assert_eq!(private.unwrap_err(), KeyError::PrivateRsaBits);
}

#[test]
fn a02_keys_on_the_three_curves_are_loaded_each_for_its_own_algorithm() {
    for algorithm in [Algorithm::Es256, Algorithm::Es384, Algorithm::Es512] {
        let key = PublicKey::from_spki(&spki(algorithm)).unwrap();
        assert_eq!(key.algorithms().collect::<Vec<_>>(), [algorithm]);
    }
}

#[test]
fn a02_keys_of_other_types_and_on_other_curves_are_not_loaded() {
    // Ed25519 (RFC 8410 §10.1); X25519 of the same bytes; secp256k1; RSASSA-PSS without parameters.
    let ed25519 = "302a300506032b657003210019bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";
    let secp256k1 = "MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEaocULe33LEsV2sk8TbJb3KniEkxh80iotu+Tf25dPPwotvWIgjKlg5QsZuhECXGz/YfP\
                     PyIY9Rqw8dLtiTQSUQ==";
    let plain = unhex("300d06092a864886f70d0101010500");
    let pss = [unhex("300d06092a864886f70d01010a0500"), rsa_spki(2048)[plain.len() + 4..].to_vec()].concat();
    for foreign in [
        unhex(ed25519),
        unhex(&ed25519.replace("2b6570", "2b656e")),
        STANDARD.decode(secp256k1).unwrap(),
        der(0x30, &pss),
    ] {
        assert_eq!(PublicKey::from_spki(&foreign).unwrap_err(), KeyError::Type);
    }
    for body in [
        "MC4CAQAwBQYDK2VwBCIEIO5QayyYUpMZ2SshoH8CjcPWTO3tLNlvmONY66hMtEm2",
        "MIGEAgEAMBAGByqGSM49AgEGBSuBBAAKBG0wawIBAQQgJ7T0RQs+cu3b6tNr5xL8Gx/jdiY/T1h+Vk5fqYG2KVGhRANCAASstdfUWLqrgMcx\
         ZZdCnaxooZ/I90dZxqn8cDwFwno6My8OwT81J84K+afP0egelNvj32TfzhgwE3q7oN7WaXSQ",
    ] {
        let private = SigningKey::from_pkcs8(KID.parse().unwrap(), &STANDARD.decode(body).unwrap());
        assert_eq!(private.unwrap_err(), KeyError::Private);
    }
}

#[test]
fn a02_damaged_keys_are_not_loaded() {
    let p256 = spki(Algorithm::Es256);
    assert_eq!(PublicKey::from_spki(b"").unwrap_err(), KeyError::Spki);
    assert_eq!(PublicKey::from_spki(&[p256.clone(), vec![0]].concat()).unwrap_err(), KeyError::Spki);
    let mut off_curve = p256.clone();
    *off_curve.last_mut().unwrap() ^= 1;
    assert_eq!(PublicKey::from_spki(&off_curve).unwrap_err(), KeyError::Invalid);
    let pem = pem::encode(&pem::Pem::new("PUBLIC KEY", p256));
    assert!(PublicKey::from_pem(&pem).is_ok());
    assert_eq!(PublicKey::from_pem(&format!("{pem}{pem}")).unwrap_err(), KeyError::Pem);
    assert_eq!(PublicKey::from_pem(&pem.replace("PUBLIC", "PRIVATE")).unwrap_err(), KeyError::Pem);
    assert_eq!(PublicKey::from_pem("").unwrap_err(), KeyError::Pem);
}

#[test]
fn a02_a_private_key_signs_with_every_algorithm_that_fits() {
    for algorithm in Algorithm::ALL {
        let key = SigningKey::from_pkcs8(KID.parse().unwrap(), &pkcs8(algorithm)).unwrap();
        let key = key.with_algorithm(algorithm).unwrap();
        assert_eq!(key.algorithm(), algorithm);
        let token = key.mint("media", NOW, 300);
        assert_eq!(inspect(&token).unwrap().header["alg"], algorithm.name());
        assert!(verify(&token, &EXPECT, &Store::with(KID, &key.public_spki()), NOW).is_ok(), "{algorithm:?}");
    }
}

#[test]
fn a02_a_private_key_signs_with_no_algorithm_that_does_not_fit() {
    for held in [Algorithm::Es256, Algorithm::Es384, Algorithm::Es512, Algorithm::Rs256] {
        let fitting = PublicKey::from_spki(&spki(held)).unwrap();
        let der = pkcs8(held);
        for other in Algorithm::ALL {
            if fitting.algorithms().all(|fits| fits != other) {
                let key = SigningKey::from_pkcs8(KID.parse().unwrap(), &der).unwrap();
                assert_eq!(key.with_algorithm(other).unwrap_err(), KeyError::Algorithm(other));
            }
        }
    }
}

/// 1024 bits, PKCS#8: of use to nobody.
const RSA_1024: &str = "MIICdwIBADANBgkqhkiG9w0BAQEFAASCAmEwggJdAgEAAoGBAM+ipN1AgGfve0K056DZc0jC+iLdKH8WYGKp/wZo6WbEeZZA5f4p\
    YbW/T3jRKdcDzVQIHgDTiXzmL1bIcp3olfQZ2IAJcTkhovDXpx/dPkf48l/fo//PAUIMFCKICcWovVNnrj7nEVwvAe37X1QAuPothoq2LtBvpH0bYz\
    79ONF1AgMBAAECgYA40zprkwuRZmlFiF0cGGcEstfiUsSSg309g2jYSD4Ycg0Uog5P0ON86i7F0fixb8jyBoavkzU9iYHLLnCv5sei2EhgM6J+eQJk2b\
    qnQt5pguXtHgSgarqvdsVkWhyHXOgNIdpJ1C06Rk8a9PO7cajuqHo2JhapGv28p1FO1AosAQJBAPQw9F30h9Ui5RZH1+rDNmNoH8DiJ2UwQu6u7i2sJW\
    zUMjPVvi5zxnwEQlL2NIonSXiHAYO5eUhX7pucG8muzAUCQQDZrSI4lGmn1bbbpDvhCzhjTqV1gxEOxITq21cSatml4a28TbeNIAE1tixmM+hZgQPQDB\
    2huAkHOtz8RGxuVFqxAkEA669MTFq1t5tEbOrOlUHw/qUC8NHWoC2ijGi+bcqXHKD6C1mjg4Yu7ofV0+jZ8PXWTcRQS+j6DD8Ch6J2l4RkWQJAL2nR0W\
    cqWF9ptA/i5xLtllv0GFOTLJdLqGhcX+ucOtCcai63c2rsOInUw/I8gvpiHTf2YFpYxRViOySgRavkEQJBAJGKywyZCBLUN5inZUn+qNcQBDpWtGXmVx\
    ORL1hOK5quqmwo4ZfcJ75kJYEY2Ptmxmc2kFd5yfoDrzNM+J/xepo=";

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let mut out = vec![tag];
    match content.len() {
        0..=127 => out.push(length[1]),
        128..=255 => out.extend([0x81, length[1]]),
        _ => out.extend([0x82, length[0], length[1]]),
    }
    [out, content.to_vec()].concat()
}

/// An RSA SubjectPublicKeyInfo with an odd modulus of so many bits; nobody knows its factors.
fn rsa_spki(bits: usize) -> Vec<u8> {
    let mut modulus = vec![0xc5; bits.div_ceil(8)];
    let spare = modulus.len() * 8 - bits;
    modulus[0] = 0xff_u8 >> spare;
    let modulus = [vec![0], modulus].concat();
    // DER has the leading zero only where the sign needs it.
    let modulus = if modulus[1] < 0x80 { &modulus[1..] } else { &modulus[..] };
    let key = der(0x30, &[der(2, modulus), der(2, &[1, 0, 1])].concat());
    let algorithm = unhex("300d06092a864886f70d0101010500");
    der(0x30, &[algorithm, der(3, &[vec![0], key].concat())].concat())
}

// A3: kid is mandatory, key material is refused.

#[test]
fn a03_a_kid_in_the_header_passes_beside_parameters_that_mean_nothing_to_us() {
    passes(&token(json!({}), json!({})));
    passes(&token(json!({"typ": "JWT"}), json!({})));
    passes(&token(
        json!({"typ": "jwt", "cty": "x", "x5t": "abc", "x5t#S256": "abc", "jwks": [], "JWK": {}}),
        json!({}),
    ));
}

#[test]
fn a03_no_kid_or_one_that_is_no_string_is_refused() {
    for changes in [json!({"kid": null}), json!({"kid": 7}), json!({"kid": [KID]}), json!({"kid": {"kid": KID}})] {
        fails_without_a_look_up(&token(changes, json!({})), MALFORMED);
    }
    fails_without_a_look_up(&raw(r#"{"alg":"ES256","kid":null}"#, &claims().to_string()), MALFORMED);
    // In the claims it is no header parameter.
    fails_without_a_look_up(&token(json!({"kid": null}), json!({"kid": KID})), MALFORMED);
}

#[test]
fn a03_key_material_in_the_header_is_refused() {
    for name in ["jwk", "jku", "x5u", "x5c"] {
        for value in ["null", "\"\"", "\"https://evil.example/\"", "{}", "[]", "{\"kty\":\"EC\"}"] {
            let header = format!(r#"{{"alg":"ES256","kid":"issues/k1","{name}":{value}}}"#);
            fails_without_a_look_up(&raw(&header, &claims().to_string()), MALFORMED);
        }
    }
}

#[test]
fn a03_a_header_that_is_not_one_object_with_each_member_once_is_refused() {
    for header in [
        "",
        "[]",
        "null",
        "\"x\"",
        "{}{}",
        r#"{"alg":"ES256","kid":"issues/k1"}x"#,
        r#"{"alg":"ES256","kid":"issues/k1","kid":"issues/k1"}"#,
        r#"{"alg":"none","alg":"ES256","kid":"issues/k1"}"#,
        r#"{"alg":"ES256","kid":"issues/k1","x":1,"x":1}"#,
        r#"{"alg":"ES256","kid":"issues/k1","x":{"y":1,"\u0079":1}}"#,
        r#"{"alg":"ES256","kid":"issues/k1","typ":1}"#,
        r#"{"alg":"ES256","kid":"issues/k1","crit":["exp"]}"#,
        r#"{"alg":"ES256","kid":"issues/k1",}"#,
    ] {
        fails_without_a_look_up(&raw(header, &claims().to_string()), MALFORMED);
    }
}

#[test]
fn a03_types_other_than_that_of_transaction_tokens_pass() {
    for typ in ["JWT", "jwt", "application/jwt", "txntoken", "txntoken+jwts", "xapplication/txntoken+jwt", ""] {
        passes(&token(json!({"typ": typ}), json!({})));
    }
}

#[test]
fn a03_a_transaction_token_is_refused() {
    for typ in ["txntoken+jwt", "TxnToken+JWT", "application/txntoken+jwt", "APPLICATION/TXNTOKEN+JWT"] {
        fails_without_a_look_up(&token(json!({"typ": typ}), json!({})), MALFORMED);
    }
}

// A4: the grammar of kid.

#[track_caller]
fn kid_passes(kid: &str) {
    assert!(kid.parse::<Kid>().is_ok(), "{kid}");
    let token = token(json!({"kid": kid}), json!({}));
    assert!(verify(&token, &EXPECT, &Store::p256(kid), NOW).is_ok(), "{kid}");
    assert_eq!(precheck(&token).unwrap().kid.as_str(), kid);
}

#[track_caller]
fn kid_fails(kid: &str, why: KidError) {
    assert_eq!(kid.parse::<Kid>(), Err(why), "{kid:?}");
    fails_without_a_look_up(&token(json!({"kid": kid}), json!({})), MALFORMED);
}

fn ascii() -> impl Iterator<Item = char> {
    (0..128_u8).map(char::from)
}

fn is_allowed(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "_.-+/".contains(letter)
}

#[test]
fn a04_every_character_of_the_grammar_passes() {
    for letter in ascii().filter(|letter| is_allowed(*letter)) {
        kid_passes(&format!("issues/a{letter}b"));
    }
}

#[test]
fn a04_every_other_character_is_refused() {
    for letter in ascii().filter(|letter| !is_allowed(*letter)) {
        kid_fails(&format!("issues/a{letter}b"), KidError::Character);
    }
    for kid in ["issues/k\u{e9}", "issues/k\u{ff0f}", "issues/%2e%2e", "issues/k%31", "issues/k?1", "issues/k#1"] {
        kid_fails(kid, KidError::Character);
    }
}

#[test]
fn a04_segments_that_are_not_empty_and_no_dots_alone_pass() {
    for kid in
        ["issues/k1", "issues/a/b/c", "issues/...", "issues/.a", "issues/a.", "issues/a..b", "issues/-", "issues/+"]
    {
        kid_passes(kid);
    }
    assert!("one".parse::<Kid>().is_ok());
}

#[test]
fn a04_empty_segments_and_dots_alone_are_refused() {
    for kid in [
        "",
        "/",
        "//",
        ".",
        "..",
        "issues/",
        "/issues",
        "/issues/k1",
        "issues//k1",
        "issues/./k1",
        "issues/.",
        "issues/..",
        "../issues/k1",
        "./issues/k1",
        "issues/../media/k1",
    ] {
        kid_fails(kid, KidError::Segment);
    }
}

#[test]
fn a04_a_kid_of_256_bytes_passes() {
    kid_passes(&format!("issues/{}", "k".repeat(249)));
}

#[test]
fn a04_a_kid_of_257_bytes_is_refused() {
    kid_fails(&format!("issues/{}", "k".repeat(250)), KidError::TooLong);
}

// A5: the key is the issuer's.

#[test]
fn a05_a_key_below_its_issuer_passes() {
    for issuer in ["issues", "micros/issues", "micros/issues/eu"] {
        let (kid, expect) = (format!("{issuer}/k1"), Expect { issuer: Some(issuer), ..EXPECT });
        let token = token(json!({"kid": kid}), json!({"iss": issuer}));
        assert!(verify(&token, &expect, &Store::p256(&kid), NOW).is_ok());
        assert_eq!(&*precheck(&token).unwrap().issuer, issuer);
        let key = SigningKey::generate("micros/issues/eu").unwrap();
        assert_eq!(key.with_issuer(issuer).is_ok(), issuer.starts_with("micros/"));
    }
}

#[test]
fn a05_a_key_of_another_issuer_is_refused() {
    for (kid, issuer) in [
        ("issues/k1", "media"),
        ("issues/k1", "issue"),
        ("issues/k1", "issues/"),
        ("issues/k1", "issues/k1"),
        ("issues", "issues"),
        ("issues2/k1", "issues"),
        ("issues-eu/k1", "issues"),
        ("Issues/k1", "issues"),
        ("x/issues/k1", "issues"),
    ] {
        let token = token(json!({"kid": kid}), json!({"iss": issuer}));
        fails_without_a_look_up(&token, "ASAP_ISSUER");
    }
    let key = SigningKey::generate("issues").unwrap();
    assert_eq!(key.with_issuer("issue").unwrap_err(), KeyError::Issuer);
    assert_eq!(
        SigningKey::from_pkcs8("issues".parse().unwrap(), &pkcs8(Algorithm::Es256)).unwrap_err(),
        KeyError::Issuer
    );
}

// A6: the claims and their types.

#[test]
fn a06_required_claims_alone_pass() {
    assert_eq!(claims().as_object().unwrap().len(), 5);
    passes(&token(json!({}), json!({})));
}

#[test]
fn a06_a_missing_claim_is_refused() {
    for name in ["iss", "exp", "iat", "aud", "jti"] {
        fails_without_a_look_up(&token(json!({}), json!({name: null})), MALFORMED);
    }
}

#[test]
fn a06_optional_and_private_claims_of_any_type_pass() {
    passes(&token(json!({}), json!({"sub": "issues", "nbf": NOW})));
    passes(&token(json!({}), json!({"x": {"y": [1, {"z": false}]}, "w": 1.5, "v": -3, "u": "", "ISS": 1})));
    passes(&token(json!({}), json!({"iat": NOW as f64 - 0.5, "exp": NOW as f64 + 0.5, "nbf": NOW as f64 - 0.25})));
    passes(&raw(&header().to_string(), &claims().to_string().replace('}', r#","x":null}"#)));
    // Escaped, it is the same name and the same text.
    passes(&raw(
        &header().to_string(),
        &claims().to_string().replace(r#""iss":"issues""#, r#""\u0069ss":"i\u0073sues""#),
    ));
}

#[test]
fn a06_a_claim_of_another_type_is_refused() {
    let wrong: [(&str, &[Value]); 7] = [
        ("iss", &[json!(1), json!(true), json!(["issues"]), json!({"issues": 1})]),
        ("sub", &[json!(1), json!(false), json!(["issues"]), json!({})]),
        ("jti", &[json!(7), json!(["x"]), json!({})]),
        ("aud", &[json!(1), json!(true), json!({"media": true}), json!(["media", 1]), json!([["media"]])]),
        ("exp", &[json!("1700000300"), json!(true), json!([NOW]), json!(-1), json!(1e300), json!(1e16), json!({})]),
        ("iat", &[json!("1700000000"), json!(true), json!([NOW]), json!(-5), json!({})]),
        ("nbf", &[json!("1700000000"), json!(false), json!([NOW]), json!(-1), json!({})]),
    ];
    for (name, values) in wrong {
        for value in values {
            fails_without_a_look_up(&token(json!({}), json!({name: value})), MALFORMED);
        }
        let body = changed(claims(), json!({name: null}));
        let body = body.trim_start_matches('{');
        fails_without_a_look_up(&raw(&header().to_string(), &format!("{{\"{name}\":null,{body}")), MALFORMED);
    }
}

#[test]
fn a06_a_name_of_one_byte_passes() {
    let expect = Expect { audience: "m", issuer: Some("i"), ..EXPECT };
    let token = token(json!({"kid": "i/k"}), json!({"iss": "i", "sub": "i", "aud": ["m", "x"], "jti": "j"}));
    assert!(verify(&token, &expect, &Store::p256("i/k"), NOW).is_ok());
}

#[test]
fn a06_an_empty_name_is_refused() {
    for changes in
        [json!({"iss": ""}), json!({"sub": ""}), json!({"jti": ""}), json!({"aud": ""}), json!({"aud": ["media", ""]})]
    {
        fails_without_a_look_up(&token(json!({}), changes), MALFORMED);
    }
}

#[test]
fn a06_a_member_that_stands_twice_is_refused() {
    let good = claims().to_string();
    let body = good.trim_start_matches('{');
    for bad in [
        format!("{{\"iss\":\"issues\",{body}"),
        format!("{{\"is\\u0073\":\"issues\",{body}"),
        format!("{{\"x\":1,\"x\":1,{body}"),
        format!("{{\"x\":1,\"\\u0078\":1,{body}"),
        format!("{{\"x\":[{{\"y\":1,\"y\":1}}],{body}"),
        format!("{{\"nbf\":{NOW},\"nbf\":{NOW},{body}"),
    ] {
        fails_without_a_look_up(&raw(&header().to_string(), &bad), MALFORMED);
    }
    // The same name in different objects is another member.
    passes(&raw(&header().to_string(), &format!("{{\"x\":[{{\"y\":1}},{{\"y\":1,\"x\":2,\"iss\":3}}],{body}")));
}

#[test]
fn a06_claims_that_are_not_one_json_object_are_refused() {
    let good = claims().to_string();
    for bad in [
        format!("{good}{good}"),
        format!("[{good}]"),
        format!("{good},"),
        good.replace(':', "="),
        good.replace("\"media\"", "\"me\u{1}dia\""),
        "null".to_owned(),
        String::new(),
        "{".repeat(3000),
        "[".repeat(3000),
        format!("{{\"x\":{}", "[".repeat(3000)),
    ] {
        fails_without_a_look_up(&raw(&header().to_string(), &bad), MALFORMED);
    }
    let not_utf8 = [good.trim_end_matches('}').as_bytes(), b",\"x\":\"\xff\"}"].concat();
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header().to_string()), URL_SAFE_NO_PAD.encode(not_utf8));
    let signature = URL_SAFE_NO_PAD.encode(sign(Algorithm::Es256, message.as_bytes()));
    fails_without_a_look_up(&format!("{message}.{signature}"), MALFORMED);
}

// A7: aud.

#[test]
fn a07_our_name_as_a_string_or_in_an_array_passes() {
    for audience in [json!("media"), json!(["media"]), json!(["wiki", "media"]), json!(["media", "media"])] {
        passes(&token(json!({}), json!({"aud": audience})));
    }
}

#[test]
fn a07_another_audience_is_refused() {
    for audience in [
        json!("wiki"),
        json!("Media"),
        json!("media "),
        json!("med"),
        json!("media/"),
        json!("media.eu-west"),
        json!("wiki,media"),
        json!([]),
        json!(["wiki"]),
        json!(["wiki", "medi", "mediaa"]),
    ] {
        fails(&token(json!({}), json!({"aud": audience})), "ASAP_AUDIENCE");
    }
}

// A8: a life of at most an hour.

#[test]
fn a08_a_life_of_3600_s_passes() {
    passes(&token(json!({}), json!({"exp": NOW + 3600})));
    passes(&token(json!({}), json!({"iat": NOW - 1800, "exp": NOW + 1800, "nbf": NOW - 2000})));
}

#[test]
fn a08_a_life_of_3601_s_is_refused() {
    fails(&token(json!({}), json!({"exp": NOW + 3601})), "ASAP_LIFETIME");
    fails(&token(json!({}), json!({"exp": NOW as f64 + 3600.5})), "ASAP_LIFETIME");
    fails(&token(json!({}), json!({"iat": NOW - 3, "exp": NOW + 3598})), "ASAP_LIFETIME");
}

#[test]
fn a08_leeway_does_not_stretch_a_life() {
    let expect = Expect { leeway_seconds: 30, ..EXPECT };
    let inside = token(json!({}), json!({"exp": NOW + 3600}));
    assert!(verify(&inside, &expect, &Store::p256(KID), NOW).is_ok());
    let outside = token(json!({}), json!({"exp": NOW + 3601}));
    assert_eq!(verify(&outside, &expect, &Store::p256(KID), NOW), Err(VerifyError::Lifetime));
}

#[test]
fn a08_a_life_of_1_s_passes() {
    passes(&token(json!({}), json!({"exp": NOW + 1})));
}

#[test]
fn a08_an_empty_or_reversed_life_is_refused() {
    fails(&token(json!({}), json!({"exp": NOW})), "ASAP_LIFETIME");
    fails(&token(json!({}), json!({"exp": NOW - 1})), "ASAP_LIFETIME");
    fails(&token(json!({}), json!({"exp": 0, "iat": 0, "nbf": 0})), "ASAP_LIFETIME");
}

#[test]
fn a08_an_nbf_that_is_exp_passes() {
    passes(&token(json!({}), json!({"iat": NOW - 1, "exp": NOW + 1, "nbf": NOW + 1})));
}

#[test]
fn a08_an_nbf_after_exp_is_refused() {
    fails(&token(json!({}), json!({"iat": NOW - 1, "exp": NOW + 1, "nbf": NOW + 2})), "ASAP_LIFETIME");
    fails(&token(json!({}), json!({"nbf": NOW + 301})), "ASAP_LIFETIME");
}

#[test]
fn a08_a_missing_nbf_counts_as_iat() {
    assert_eq!(at(NOW + 10, 0, json!({"iat": NOW + 10})), Ok(()));
    assert_eq!(at(NOW + 10, 0, json!({"iat": NOW + 10, "nbf": NOW + 10})), Ok(()));
}

#[test]
fn a08_a_missing_nbf_is_not_before_iat() {
    assert_eq!(at(NOW + 9, 0, json!({"iat": NOW + 10})), EARLY);
    assert_eq!(at(NOW + 9, 0, json!({"iat": NOW + 10, "nbf": NOW + 10})), EARLY);
}

// A9: now lies in [nbf, exp], with leeway.

#[track_caller]
fn at(now: u64, leeway_seconds: u64, changes: Value) -> Result<(), &'static str> {
    let expect = Expect { leeway_seconds, ..EXPECT };
    verify(&token(json!({}), changes), &expect, &Store::p256(KID), now).map(|_| ()).map_err(|error| error.reason())
}

const EARLY: Result<(), &str> = Err("ASAP_NOT_YET_VALID");
const LATE: Result<(), &str> = Err("ASAP_EXPIRED");

#[test]
fn a09_both_ends_of_the_life_pass() {
    assert_eq!(at(NOW, 0, json!({})), Ok(()));
    assert_eq!(at(NOW + 300, 0, json!({})), Ok(()));
    assert_eq!(at(NOW + 10, 0, json!({"nbf": NOW + 10})), Ok(()));
}

#[test]
fn a09_one_second_before_and_after_the_life_is_refused() {
    assert_eq!(at(NOW - 1, 0, json!({})), EARLY);
    assert_eq!(at(NOW + 301, 0, json!({})), LATE);
    assert_eq!(at(NOW + 9, 0, json!({"nbf": NOW + 10})), EARLY);
}

#[test]
fn a09_an_iat_that_is_now_passes() {
    assert_eq!(at(NOW, 0, json!({"nbf": NOW - 60})), Ok(()));
}

#[test]
fn a09_an_iat_in_the_future_is_refused_although_nbf_has_passed() {
    assert_eq!(at(NOW - 1, 0, json!({"nbf": NOW - 60})), EARLY);
    assert_eq!(at(NOW, 5, json!({"iat": NOW + 6, "nbf": NOW - 60})), EARLY);
}

#[test]
fn a09_clocks_5_s_apart_pass_with_the_usual_leeway() {
    assert_eq!(Expect::new("media", None).leeway_seconds, 5);
    assert_eq!(at(NOW - 5, 5, json!({})), Ok(()));
    assert_eq!(at(NOW + 305, 5, json!({})), Ok(()));
    assert_eq!(at(NOW, 5, json!({"nbf": NOW + 5})), Ok(()));
}

#[test]
fn a09_clocks_6_s_apart_are_refused_with_the_usual_leeway() {
    assert_eq!(at(NOW - 6, 5, json!({})), EARLY);
    assert_eq!(at(NOW + 306, 5, json!({})), LATE);
    assert_eq!(at(NOW, 5, json!({"nbf": NOW + 6})), EARLY);
}

#[test]
fn a09_a_leeway_of_30_s_passes() {
    assert_eq!(at(NOW - 30, 30, json!({})), Ok(()));
    assert_eq!(at(NOW + 330, 30, json!({})), Ok(()));
}

#[test]
fn a09_a_leeway_of_31_s_counts_as_30() {
    assert_eq!(at(NOW + 330, 31, json!({})), Ok(()));
    for leeway in [31, 4000, u64::MAX] {
        assert_eq!(at(NOW - 31, leeway, json!({})), EARLY);
        assert_eq!(at(NOW + 331, leeway, json!({})), LATE);
    }
}

// A10: jti.

#[test]
fn a10_a_jti_of_128_bytes_passes() {
    passes(&token(json!({}), json!({"jti": "j".repeat(128)})));
}

#[test]
fn a10_a_jti_of_129_bytes_is_refused() {
    fails_without_a_look_up(&token(json!({}), json!({"jti": "j".repeat(129)})), MALFORMED);
    fails_without_a_look_up(&token(json!({}), json!({"jti": "\u{e9}".repeat(65)})), MALFORMED);
}

fn jtis() -> Vec<u128> {
    let key = SigningKey::generate("issues").unwrap();
    let jti = |_| {
        let claims = inspect(&key.mint("media", NOW, 300)).unwrap().claims;
        let bytes = URL_SAFE_NO_PAD.decode(claims["jti"].as_str().unwrap()).unwrap();
        u128::from_be_bytes(bytes.try_into().unwrap())
    };
    (0..200).map(jti).collect()
}

#[test]
fn a10_ours_has_128_bits_of_which_each_is_random() {
    // Each bit was 0 once and 1 once: that one is not, by chance, has a probability of 2^-192.
    let all = jtis();
    assert_eq!(all.iter().fold(0, |ones, jti| ones | jti), u128::MAX);
    assert_eq!(all.iter().fold(u128::MAX, |ones, jti| ones & jti), 0);
}

#[test]
fn a10_ours_is_never_the_same_twice() {
    assert_eq!(jtis().into_iter().collect::<HashSet<u128>>().len(), 200);
}

// A11: reuse is legal until the token expires.

#[test]
fn a11_the_same_token_passes_again() {
    let (token, store, mut memory) = (token(json!({}), json!({})), Store::p256(KID), Memory::default());
    for now in [NOW, NOW, NOW + 300] {
        assert!(verify(&token, &EXPECT, &store, now).is_ok());
        assert!(memory.verify(&token, &EXPECT, &store, now).is_ok());
    }
}

#[test]
fn a11_the_same_token_is_refused_once_it_has_expired() {
    let (token, store, mut memory) = (token(json!({}), json!({})), Store::p256(KID), Memory::default());
    assert!(memory.verify(&token, &EXPECT, &store, NOW).is_ok());
    assert_eq!(memory.verify(&token, &EXPECT, &store, NOW + 306), Err(VerifyError::Expired));
    assert_eq!(verify(&token, &EXPECT, &store, NOW + 306), Err(VerifyError::Expired));
}

// A12: sub.

#[test]
fn a12_no_subject_means_the_issuer() {
    assert_eq!(&*check(&token(json!({}), json!({}))).unwrap().subject, "issues");
    assert_eq!(&*check(&token(json!({}), json!({"sub": "issues"}))).unwrap().subject, "issues");
}

#[test]
fn a12_another_subject_is_refused() {
    for subject in ["ada", "Issues", "issues ", "issues/k1"] {
        fails(&token(json!({}), json!({"sub": subject})), "ASAP_SUBJECT");
    }
}

fn with_grant(issuer: &str, subject: &str) -> Result<Box<str>, VerifyError> {
    let grants = [Grant { issuer: issuer.to_owned(), subject: subject.to_owned() }];
    let expect = Expect { grants: &grants, ..EXPECT };
    verify(&token(json!({}), json!({"sub": "ada"})), &expect, &Store::p256(KID), NOW).map(|verified| verified.subject)
}

#[test]
fn a12_a_granted_subject_passes() {
    assert_eq!(with_grant("issues", "ada").as_deref(), Ok("ada"));
}

#[test]
fn a12_a_subject_granted_to_another_issuer_or_another_subject_is_refused() {
    assert_eq!(with_grant("wiki", "ada"), Err(VerifyError::Subject));
    assert_eq!(with_grant("issues", "bob"), Err(VerifyError::Subject));
    assert_eq!(with_grant("issues", "*"), Err(VerifyError::Subject));
}

// A13: one bearer token, at most 8 KiB.

fn bearers<'a>(values: &[&'a str]) -> Result<&'a str, BearerError> {
    bearer(values.iter().map(|value| value.as_bytes()))
}

#[test]
fn a13_one_bearer_token_passes_with_the_scheme_in_any_case() {
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
        assert_eq!(bearers(&[&format!("{scheme} a.b.c")]), Ok("a.b.c"));
    }
}

#[test]
fn a13_two_values_or_white_space_around_the_token_are_refused() {
    for values in [
        &["Bearer a.b.c", "Bearer a.b.c"][..],
        &["Bearer a.b.c", "Basic x"],
        &["Basic x", "Bearer a.b.c"],
        &["Bearer  a.b.c"],
        &["Bearer a.b.c "],
        &["Bearer\ta.b.c"],
        &["Bearer a.b.c\t"],
        &["Bearer a.b.c, a.b.c"],
        &["Bearer a. b.c"],
        &["Bearer "],
        &["Bearer"],
        &["Bearer \u{e9}"],
    ] {
        assert_eq!(bearers(values), Err(BearerError::Malformed), "{values:?}");
    }
}

#[test]
fn a13_no_header_or_one_of_another_scheme_is_no_token() {
    for values in [&[][..], &[""], &["Basic YTpi"], &["Bearerx a.b.c"], &["Digest a"], &["a.b.c"], &[" Bearer a.b.c"]] {
        assert_eq!(bearers(values), Err(BearerError::Missing), "{values:?}");
    }
}

/// A token with a good signature of exactly so many bytes.
fn token_of(bytes: usize) -> String {
    let with = |filler: usize| token(json!({}), json!({"x": "x".repeat(filler)}));
    let guess = (bytes - with(0).len()) * 3 / 4;
    // Base64 of three more bytes is four longer: spaces in the header give the lengths between.
    (0..4)
        .flat_map(|spaces| (guess - 8..guess + 4).map(move |filler| (spaces, filler)))
        .map(|(spaces, filler)| {
            let claims = changed(claims(), json!({"x": "x".repeat(filler)}));
            raw(&format!("{}{}", header(), " ".repeat(spaces)), &claims)
        })
        .find(|token| token.len() == bytes)
        .unwrap()
}

#[test]
fn a13_a_token_of_8_kib_passes() {
    let token = token_of(MAX_TOKEN_BYTES);
    assert_eq!(token.len(), 8192);
    passes(&token);
    assert_eq!(bearers(&[&format!("Bearer {token}")]), Ok(token.as_str()));
}

#[test]
fn a13_a_token_of_one_byte_more_is_refused_before_anything_is_decoded() {
    let token = token_of(MAX_TOKEN_BYTES + 1);
    fails_without_a_look_up(&token, MALFORMED);
    assert_eq!(check(&token), check(&"!".repeat(MAX_TOKEN_BYTES + 1)), "nothing of it was looked at");
    assert_eq!(bearers(&[&format!("Bearer {token}")]), Err(BearerError::Malformed));
}

// A17: private keys and the environment.

fn variables(pairs: &[(&'static str, &str)]) -> Result<Environment, Vec<EnvError>> {
    Environment::parse(pairs.iter().map(|(name, value)| (*name, (*value).to_owned())))
}

fn armoured(label: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(label, der))
}

#[test]
fn a17_a_data_uri_with_a_percent_encoded_kid_passes() {
    for algorithm in [Algorithm::Es256, Algorithm::Es384, Algorithm::Es512, Algorithm::Rs256] {
        let der = STANDARD.encode(pkcs8(algorithm));
        for kid in ["issues%2Fk%2B1", "issues/k+1", "issues%2fk%2b1", "%69ssues/k%2B1"] {
            let key = SigningKey::from_data_uri(&format!("data:application/pkcs8;kid={kid};base64,{der}")).unwrap();
            assert_eq!((key.kid().as_str(), key.issuer(), key.algorithm()), ("issues/k+1", "issues", algorithm));
            assert_eq!(key.public_spki(), spki(algorithm));
            assert_eq!(*key.to_data_uri(), format!("data:application/pkcs8;kid=issues%2Fk%2B1;base64,{der}"));
        }
    }
}

#[test]
fn a17_another_uri_is_refused() {
    let der = STANDARD.encode(pkcs8(Algorithm::Es256));
    for (bad, why) in [
        (String::new(), KeyError::DataUri),
        (der.clone(), KeyError::DataUri),
        (format!("data:application/pkcs8;base64,{der}"), KeyError::DataUri),
        (format!("data:application/pkcs8;kid=issues%2Fk,{der}"), KeyError::DataUri),
        (format!("data:text/plain;kid=issues%2Fk;base64,{der}"), KeyError::DataUri),
        (format!("data:application/pkcs8;kid=issues%2Fk;base64,{der}!"), KeyError::DataUri),
        (format!("data:application/pkcs8;kid=%ff;base64,{der}"), KeyError::DataUri),
        (format!("data:application/pkcs8;kid=..;base64,{der}"), KeyError::Kid(KidError::Segment)),
        (format!("data:application/pkcs8;kid=issues%2F..%2Fk;base64,{der}"), KeyError::Kid(KidError::Segment)),
        (format!("data:application/pkcs8;kid=issues%252Fk;base64,{der}"), KeyError::Kid(KidError::Character)),
        (format!("data:application/pkcs8;kid=issues;base64,{der}"), KeyError::Issuer),
        ("data:application/pkcs8;kid=issues%2Fk;base64,AAAA".to_owned(), KeyError::Private),
        ("data:application/pkcs8;kid=issues%2Fk;base64,".to_owned(), KeyError::Private),
    ] {
        assert_eq!(SigningKey::from_data_uri(&bad).unwrap_err(), why, "{bad}");
    }
}

#[test]
fn a17_the_six_variables_pass_with_a_data_uri_and_with_pem() {
    let der = pkcs8(Algorithm::Es256);
    let uri = format!("data:application/pkcs8;kid=micros%2Fissues%2Fk1;base64,{}", STANDARD.encode(&der));
    for private in [uri, armoured("PRIVATE KEY", &der), format!("\n{}\r\n", armoured("PRIVATE KEY", &der))] {
        let environment = variables(&[
            ("PATH", "/bin"),
            ("ASAP_PRIVATE_KEY", &private),
            ("ASAP_KEY_ID", "micros/issues/k1"),
            ("ASAP_ISSUER", "micros"),
            ("ASAP_AUDIENCE", "media"),
            ("ASAP_PUBLIC_KEY_FALLBACK_REPOSITORY_URL", "https://b.example/keys"),
            ("ASAP_PUBLIC_KEY_REPOSITORY_URL", "http://127.0.0.1:8080/"),
            ("ASAP_SOMETHING_ELSE", "x"),
        ])
        .unwrap();
        assert_eq!(environment.audience.as_deref(), Some("media"));
        assert_eq!(environment.repositories, ["http://127.0.0.1:8080/".into(), "https://b.example/keys".into()]);
        let key = environment.signing_key().unwrap().unwrap();
        assert_eq!((key.issuer(), key.kid().as_str()), ("micros", "micros/issues/k1"));
        let expect = Expect { issuer: Some("micros"), ..EXPECT };
        assert!(verify(&key.mint("media", NOW, 60), &expect, &Store::p256("micros/issues/k1"), NOW).is_ok());
    }
}

#[test]
fn a17_an_environment_that_says_nothing_has_no_key() {
    let empty =
        variables(&[("ASAP_PRIVATE_KEY", ""), ("ASAP_KEY_ID", ""), ("ASAP_ISSUER", ""), ("HOME", "/")]).unwrap();
    assert!(empty.signing_key().unwrap().is_none());
    assert!(empty.issuer.is_none() && empty.audience.is_none() && empty.key_id.is_none());
    assert!(empty.repositories.is_empty());
}

#[test]
fn a17_an_environment_that_contradicts_itself_is_refused_with_all_problems_at_once() {
    let problems = variables(&[
        ("ASAP_KEY_ID", "a//b"),
        ("ASAP_PUBLIC_KEY_REPOSITORY_URL", "ftp://a.example/"),
        ("ASAP_PUBLIC_KEY_FALLBACK_REPOSITORY_URL", "https://a.example/?kid="),
    ]);
    let expected = vec![
        EnvError::KeyId(KidError::Segment),
        EnvError::Repository("ASAP_PUBLIC_KEY_REPOSITORY_URL"),
        EnvError::Repository("ASAP_PUBLIC_KEY_FALLBACK_REPOSITORY_URL"),
    ];
    assert_eq!(problems.unwrap_err(), expected);
    for url in
        ["a.example/", "https://", "https:///keys/", "https://a.example/#x", "https://a.example/ x", "file:///keys/"]
    {
        assert!(variables(&[("ASAP_PUBLIC_KEY_REPOSITORY_URL", url)]).is_err(), "{url}");
    }
    let der = pkcs8(Algorithm::Es256);
    let (pem, uri) = (
        armoured("PRIVATE KEY", &der),
        format!("data:application/pkcs8;kid=issues%2Fk1;base64,{}", STANDARD.encode(&der)),
    );
    let key = |pairs: &[(&'static str, &str)]| variables(pairs).unwrap().signing_key().unwrap_err();
    assert_eq!(key(&[("ASAP_PRIVATE_KEY", &pem)]), EnvError::NoKeyId);
    assert_eq!(key(&[("ASAP_PRIVATE_KEY", &uri), ("ASAP_KEY_ID", "issues/k2")]), EnvError::OtherKeyId);
    let other = [("ASAP_PRIVATE_KEY", uri.as_str()), ("ASAP_ISSUER", "media")];
    assert_eq!(key(&other), EnvError::PrivateKey(KeyError::Issuer));
}

#[test]
fn a17_one_pem_block_with_pkcs8_passes() {
    for algorithm in [Algorithm::Es256, Algorithm::Es384, Algorithm::Es512, Algorithm::Rs256] {
        let pem = armoured("PRIVATE KEY", &pkcs8(algorithm));
        let key = SigningKey::from_pkcs8_pem(KID.parse().unwrap(), &pem).unwrap();
        assert_eq!((key.algorithm(), key.public_spki()), (algorithm, spki(algorithm)));
    }
}

#[test]
fn a17_another_pem_is_refused() {
    let der = pkcs8(Algorithm::Es256);
    let good = armoured("PRIVATE KEY", &der);
    for bad in [
        String::new(),
        "-----BEGIN PRIVATE KEY-----".to_owned(),
        "-----BEGIN PRIVATE KEY----------END PRIVATE KEY-----x".to_owned(),
        armoured("EC PRIVATE KEY", &der),
        armoured("ENCRYPTED PRIVATE KEY", &der),
        armoured("PUBLIC KEY", &der),
        format!("{good}{good}"),
        good.replace("A", "!"),
    ] {
        assert_eq!(SigningKey::from_pkcs8_pem(KID.parse().unwrap(), &bad).unwrap_err(), KeyError::PrivatePem, "{bad}");
    }
}

#[test]
fn a17_a_private_key_is_handed_out_only_in_what_wipes_itself() {
    let key = SigningKey::generate("issues").unwrap();
    let _: Zeroizing<Vec<u8>> = key.pkcs8();
    let _: Zeroizing<String> = key.to_data_uri();
    let environment = variables(&[("ASAP_PRIVATE_KEY", &key.to_data_uri())]).unwrap();
    let _: Option<Zeroizing<String>> = environment.private_key;
}

#[test]
fn a17_a_private_key_is_never_printed() {
    let key = SigningKey::generate("issues").unwrap();
    let (uri, der) = (key.to_data_uri(), key.pkcs8());
    let environment = variables(&[("ASAP_PRIVATE_KEY", &uri), ("ASAP_ISSUER", "issues")]).unwrap();
    let mut printed = format!("{key:?} {environment:#?}");
    let damaged = SigningKey::from_data_uri(&uri[..uri.len() - 8]).unwrap_err();
    printed += &format!("{damaged:?} {damaged}");
    let minted: Minted = Minted::new(Arc::new(key), 300, Into::into);
    printed += &format!("{minted:?}");
    assert!(printed.contains("issues/"), "{printed}");
    // Every four bytes of the key, however they might be written.
    let base64 = uri.rsplit_once(',').unwrap().1;
    let lists = der.windows(4).map(|bytes| format!("{bytes:?}").trim_matches(['[', ']']).to_owned());
    let hexadecimal = der.windows(4).map(|bytes| format!("{:08x}", u32::from_be_bytes(bytes.try_into().unwrap())));
    let base64 = base64.as_bytes().windows(8).map(|text| String::from_utf8(text.to_vec()).unwrap());
    for leak in lists.chain(hexadecimal).chain(base64) {
        assert!(!printed.contains(&leak), "{leak} stands in {printed}");
    }
}

// What goes beyond single rules.

#[test]
fn the_document_names_every_test_of_a_rule_and_no_other() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/asap.md")).unwrap();
    let is_of_a_rule = |name: &&str| name.len() > 4 && name.starts_with('a') && name[1..3].parse::<u8>().is_ok();
    let named: BTreeSet<&str> = document.split('`').skip(1).step_by(2).filter(is_of_a_rule).collect();
    let tests = include_str!("rules.rs").lines().filter_map(|line| line.strip_prefix("fn ")?.split('(').next());
    let tests: BTreeSet<&str> = tests.filter(is_of_a_rule).collect();
    let of = |names: &BTreeSet<&str>, rule: u8| names.iter().filter(|name| name[1..3].parse() == Ok(rule)).count();
    for rule in (1..=13).chain([17]) {
        assert!(of(&tests, rule) >= 2, "A{rule} has not both its tests");
    }
    assert_eq!(named, tests);
}

#[test]
fn a_token_of_another_service_is_bound_to_its_channel() {
    let stolen = Expect { issuer: Some("wiki"), ..EXPECT };
    assert_eq!(verify(&token(json!({}), json!({})), &stolen, &Store::p256(KID), NOW), Err(VerifyError::Issuer));
    let outside = Expect { issuer: None, ..EXPECT };
    assert!(verify(&token(json!({}), json!({})), &outside, &Store::p256(KID), NOW).is_ok());
}

#[test]
fn a_key_that_nobody_knows_and_keys_that_nobody_can_ask_have_their_own_reasons() {
    let good = token(json!({}), json!({}));
    assert_eq!(verify(&good, &EXPECT, &Store::default(), NOW), Err(VerifyError::KeyUnknown));
    let down = Store { down: true, ..Store::default() };
    assert_eq!(verify(&good, &EXPECT, &down, NOW), Err(VerifyError::KeysUnavailable));
    assert_eq!(verify(&good, &EXPECT, &|_: &str| Lookup::Unknown, NOW), Err(VerifyError::KeyUnknown));
}

/// Each step of the order of work before the key, by its cheapest failure.
#[test]
fn garbage_costs_no_look_up_whichever_step_it_fails() {
    let good = token(json!({}), json!({}));
    let store = Store::p256(KID);
    let steps = [
        ("size", "x".repeat(MAX_TOKEN_BYTES + 1), MALFORMED),
        ("split", good.replace('.', ""), MALFORMED),
        ("base64 of the header", format!("!{good}"), MALFORMED),
        ("header", raw("{}", &claims().to_string()), MALFORMED),
        ("type", token(json!({"typ": "txntoken+jwt"}), json!({})), MALFORMED),
        ("algorithm", token(json!({"alg": "none"}), json!({})), "ASAP_ALGORITHM"),
        ("kid missing", token(json!({"kid": null}), json!({})), MALFORMED),
        ("key material", token(json!({"jwk": {}}), json!({})), MALFORMED),
        ("kid grammar", token(json!({"kid": "issues/../k1"}), json!({})), MALFORMED),
        ("base64 of the claims", good.replacen('.', ".!", 1), MALFORMED),
        ("base64 of the signature", format!("{good}="), MALFORMED),
        ("claims", raw(&header().to_string(), "{}"), MALFORMED),
        ("type of a claim", token(json!({}), json!({"exp": "1"})), MALFORMED),
        ("jti", token(json!({}), json!({"jti": null})), MALFORMED),
        ("kid prefix", token(json!({}), json!({"iss": "media"})), "ASAP_ISSUER"),
    ];
    let mut memory = Memory::default();
    for (step, bad, reason) in &steps {
        assert_eq!(verify(bad, &EXPECT, &store, NOW).map_err(|error| error.reason()), Err(*reason), "{step}");
        assert_eq!(precheck(bad).map_err(|error| error.reason()), Err(*reason), "{step}");
        assert!(memory.verify(bad, &EXPECT, &store, NOW).is_err(), "{step}");
    }
    assert_eq!(store.asked.get(), 0);
    assert!(memory.is_empty());
    // One step further it is one look-up, and a second time as well.
    assert!(verify(&good, &EXPECT, &store, NOW).is_ok());
    assert_eq!(store.asked.get(), 1);
    // One signature of 256 ends like this by itself.
    let end = if good.ends_with("AA") { "EA" } else { "AA" };
    assert!(verify(&format!("{}{end}", &good[..good.len() - 2]), &EXPECT, &store, NOW).is_err());
    assert_eq!(store.asked.get(), 2);
}
