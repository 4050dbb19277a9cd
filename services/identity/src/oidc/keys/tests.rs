use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::time::advance;

use super::super::fetch::Document;
use super::super::testing::{FakeServer, TestKey};
use super::*;

const ISSUER: &str = "https://issuer.example";
const JWKS: &str = "https://issuer.example/keys";

fn key_set() -> KeySet {
    KeySet::new(ISSUER.to_owned(), JWKS.to_owned())
}

fn serve(server: &FakeServer, kids: &[&str]) {
    let keys: Vec<_> = kids.iter().map(|kid| TestKey::p256().jwk(kid)).collect();
    server.serve(JWKS, json!({ "keys": keys }));
}

async fn found(keys: &KeySet, kid: &str, server: &FakeServer) -> Result<usize, KeysError> {
    keys.candidates(Some(kid), server).await.map(|found| found.len())
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_once_for_all_who_wait_and_again_when_their_time_is_over() {
    let (keys, server) = (Arc::new(key_set()), Arc::new(FakeServer::default()));
    serve(&server, &["a"]);
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let (keys, server) = (Arc::clone(&keys), Arc::clone(&server));
            tokio::spawn(async move { found(&keys, "a", &server).await })
        })
        .collect();
    for one in waiting {
        assert_eq!(one.await.unwrap(), Ok(1));
    }
    assert_eq!(server.times_asked(), 1);
    advance(FRESH - Duration::from_secs(1)).await;
    assert_eq!(found(&keys, "a", &server).await, Ok(1));
    assert_eq!(server.times_asked(), 1);
    advance(Duration::from_secs(2)).await;
    assert_eq!(found(&keys, "a", &server).await, Ok(1));
    assert_eq!(server.times_asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_issuer_says_how_long_keys_are_fresh_within_bounds() {
    for (says, fresh) in [(300, 300), (0, 60), (1_000_000, 3600)] {
        let (keys, server) = (key_set(), FakeServer::default());
        serve(&server, &["a"]);
        server.max_age(says);
        found(&keys, "a", &server).await.unwrap();
        advance(Duration::from_secs(fresh - 1)).await;
        found(&keys, "a", &server).await.unwrap();
        assert_eq!(server.times_asked(), 1, "{says}");
        advance(Duration::from_secs(1)).await;
        found(&keys, "a", &server).await.unwrap();
        assert_eq!(server.times_asked(), 2, "{says}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_issuer_rotated_in_is_found_and_a_flood_of_unknown_ones_costs_a_bounded_number_of_fetches() {
    let (keys, server) = (key_set(), FakeServer::default());
    serve(&server, &["old"]);
    assert_eq!(found(&keys, "old", &server).await, Ok(1));
    advance(SHORTEST_PAUSE).await;
    serve(&server, &["old", "new"]);
    assert_eq!(found(&keys, "new", &server).await, Ok(1));
    assert_eq!(server.times_asked(), 2);
    // A hundred seconds of nonsense, a hundred times a second.
    for nonsense in 0..10_000 {
        assert_eq!(found(&keys, &format!("none-{nonsense}"), &server).await, Ok(0));
        advance(Duration::from_millis(10)).await;
    }
    assert!(server.times_asked() <= 13, "{}", server.times_asked());
    // And whoever has a good token is served meanwhile.
    assert_eq!(found(&keys, "new", &server).await, Ok(1));
    // A key that was taken out goes with the next fetch.
    serve(&server, &["new"]);
    advance(FRESH).await;
    assert_eq!(found(&keys, "old", &server).await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_down_fails_nobody_for_an_hour_and_then_everybody() {
    let (keys, server) = (key_set(), FakeServer::default());
    serve(&server, &["a"]);
    found(&keys, "a", &server).await.unwrap();
    server.goes_down();
    advance(FRESH + STALE - Duration::from_secs(30)).await;
    assert_eq!(found(&keys, "a", &server).await, Ok(1));
    let asked = server.times_asked();
    assert_eq!(found(&keys, "a", &server).await, Ok(1));
    assert_eq!(server.times_asked(), asked, "it is not asked again at once");
    advance(Duration::from_secs(31)).await;
    assert!(matches!(found(&keys, "a", &server).await, Err(KeysError::Fetch(_))));
    assert_eq!(found(&keys, "a", &server).await, Err(KeysError::Paused));
    serve(&server, &["a"]);
    advance(SHORTEST_PAUSE).await;
    assert_eq!(found(&keys, "a", &server).await, Ok(1));
}

/// An issuer that takes its time, and then says nothing of use.
struct Slow(AtomicUsize);

impl Fetch for Slow {
    async fn get(&self, url: &str) -> Result<Document, FetchError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(SHORTEST_PAUSE * 2).await;
        Err(FetchError::Slow { url: url.to_owned() })
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_slow_issuer_do_not_ask_it_one_after_the_other() {
    let (keys, issuer) = (Arc::new(key_set()), Arc::new(Slow(AtomicUsize::new(0))));
    let began = Instant::now();
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let (keys, issuer) = (Arc::clone(&keys), Arc::clone(&issuer));
            tokio::spawn(async move { keys.candidates(Some("a"), &*issuer).await.map(|found| found.len()) })
        })
        .collect();
    for one in waiting {
        one.await.unwrap().unwrap_err();
    }
    assert_eq!((issuer.0.load(Ordering::SeqCst), began.elapsed()), (1, SHORTEST_PAUSE * 2));
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_was_never_reached_gives_no_keys() {
    let (keys, server) = (key_set(), FakeServer::default());
    assert!(matches!(found(&keys, "a", &server).await, Err(KeysError::Fetch(_))));
    assert_eq!(found(&keys, "a", &server).await, Err(KeysError::Paused));
    assert_eq!(server.times_asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn keys_are_found_by_discovery_of_this_issuer_and_no_other() {
    let server = FakeServer::default();
    let discovery = "https://issuer.example/path/.well-known/openid-configuration";
    serve(&server, &["a"]);
    for issuer in ["https://issuer.example/path", "https://issuer.example/path/"] {
        server.serve(discovery, json!({ "issuer": issuer, "jwks_uri": JWKS }));
        let keys = KeySet::new(issuer.to_owned(), String::new());
        assert_eq!(found(&keys, "a", &server).await, Ok(1));
    }
    let keys = KeySet::new("https://issuer.example/path".to_owned(), String::new());
    assert!(matches!(found(&keys, "a", &server).await, Err(KeysError::OtherIssuer { .. })));
    for broken in [json!({ "issuer": "https://issuer.example/path" }), json!([]), json!({})] {
        server.serve(discovery, broken);
        let keys = KeySet::new("https://issuer.example/path".to_owned(), String::new());
        assert!(matches!(found(&keys, "a", &server).await, Err(KeysError::Discovery(_))));
    }
}

#[test]
fn only_keys_that_verify_signatures_of_our_algorithms_are_taken_from_a_set() {
    let p256 = TestKey::p256().jwk("a");
    let with = |name: &str, value: serde_json::Value| {
        let mut jwk = p256.clone();
        jwk[name] = value;
        jwk
    };
    for (what, jwk, algorithms) in [
        ("a P-256 key", p256.clone(), vec![Algorithm::ES256]),
        ("a P-384 key", TestKey::p384().jwk("a"), vec![Algorithm::ES384]),
        ("one that names its algorithm", with("alg", json!("ES256")), vec![Algorithm::ES256]),
        ("one for verifying", with("key_ops", json!(["verify"])), vec![Algorithm::ES256]),
        ("one that names another algorithm", with("alg", json!("RS256")), vec![]),
        ("one that names none that we know", with("alg", json!("ES256K")), vec![]),
        ("one for encrypting", with("use", json!("enc")), vec![]),
        ("one for signing alone", with("key_ops", json!(["sign"])), vec![]),
        ("an unknown curve", with("crv", json!("secp256k1")), vec![]),
        ("an unknown type", with("kty", json!("AKP")), vec![]),
        ("a shared secret", json!({ "kty": "oct", "kid": "a", "k": "c2VjcmV0" }), vec![]),
        ("Ed25519", json!({ "kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "c2VjcmV0" }), vec![]),
        ("no object", json!(7), vec![]),
    ] {
        let set = json!({ "keys": [jwk] }).to_string();
        let found = parse(set.as_bytes()).map_or(vec![], |keys| keys[0].algorithms.clone());
        assert_eq!(found, algorithms, "{what}");
    }
    let rsa = json!({ "keys": [json!(7), TestKey::rsa().jwk("a")] }).to_string();
    assert_eq!(parse(rsa.as_bytes()).unwrap()[0].algorithms.len(), 6);
    for nothing in ["", "[]", "{}", "{\"keys\":[]}", "{\"keys\":7}"] {
        assert!(parse(nothing.as_bytes()).is_none(), "{nothing}");
    }
}
