//! PyPI `atlassian-jwt-auth`, both ways, with all nine algorithms.

use integration::asap::{AUDIENCE, ISSUER, OurRepository, Outside, Peer, keys, private_pem, verified_by_command};
use serde_json::{Value, json};

fn verify(peer: &mut Peer, token: &str, audience: &str, ours: &OurRepository) -> Value {
    let question = json!({"do": "verify", "token": token, "audience": audience, "url": ours.url, "ca": ours.bundle});
    peer.ask(&question).expect("it answers")
}

#[tokio::test(flavor = "multi_thread")]
async fn theirs_verifies_ours_through_our_key_repository() {
    let keys = keys().expect("keys");
    let ours = OurRepository::start(&keys).await.expect("our key repository");
    let mut peer = Peer::python().expect("the peer");
    let now = mesh_identity::clock::unix_seconds();
    for key in &keys {
        let token = key.mint(AUDIENCE, now, 300);
        let answer = verify(&mut peer, &token, AUDIENCE, &ours);
        assert_eq!(answer["claims"]["iss"], ISSUER, "{}: {answer}", key.algorithm().name());
        let answer = verify(&mut peer, &token, "issues", &ours);
        assert!(answer["error"].as_str().is_some_and(|error| error.contains("udience")), "another audience: {answer}");
        let (printed, code) = verified_by_command(&token, &ours.url, &ours.bundle).await.expect("it answers");
        assert_eq!((&printed["valid"], code), (&json!(true), Some(0)), "ours is one more library: {printed}");
    }
    let unknown = mesh_asap::SigningKey::generate(ISSUER).expect("a key").mint(AUDIENCE, now, 300);
    let answer = verify(&mut peer, &unknown, AUDIENCE, &ours);
    assert!(answer["error"].as_str().is_some_and(|error| error.contains("404")), "a key that nobody has: {answer}");
    ours.stop().await.expect("it ran until now");
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_verifies_theirs_through_an_outside_key_repository() {
    let keys = keys().expect("keys");
    let outside = Outside::start(&keys).await.expect("an outside key repository");
    let mut peer = Peer::python().expect("the peer");
    for key in &keys {
        let name = key.algorithm().name();
        let token = peer.mint(key, &private_pem(key)).expect(name);
        assert_eq!(outside.library(&token).await, "ok", "{name}");
        let (printed, code) = outside.command(&token).await.expect(name);
        assert_eq!((&printed["valid"], &printed["issuer"], code), (&json!(true), &json!(ISSUER), Some(0)), "{printed}");
    }
    // Signed with another key than the repository has under this id.
    let other = integration::asap::keys().expect("keys");
    let token = peer.mint(&keys[0], &private_pem(&other[0])).expect("a token");
    assert_eq!(outside.library(&token).await, "ASAP_SIGNATURE");
    let (printed, code) = outside.command(&token).await.expect("an answer");
    assert_eq!((&printed["valid"], &printed["reason"], code), (&json!(false), &json!("ASAP_SIGNATURE"), Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn theirs_signs_with_our_data_uri() {
    let keys = keys().expect("keys");
    let outside = Outside::start(&keys).await.expect("an outside key repository");
    let mut peer = Peer::python().expect("the peer");
    for key in &keys {
        let name = key.algorithm().name();
        let answer = peer.ask(&json!({
            "do": "mint", "issuer": ISSUER, "uri": key.to_data_uri().as_str(), "algorithm": name, "audience": AUDIENCE,
        }));
        let answer = answer.expect("it answers");
        let token = answer["token"].as_str().unwrap_or_else(|| panic!("{name}: {answer}"));
        assert_eq!(outside.library(token).await, "ok", "{name}");
    }
}
