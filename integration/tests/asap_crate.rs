//! The crate `asap`, both ways, with RS256, which is all that it knows.

use integration::asap::{AUDIENCE, ISSUER, OurRepository, Outside, Peer, keys, private_pem};
use mesh_asap::{Algorithm, SigningKey};
use serde_json::json;

fn rs256() -> Vec<SigningKey> {
    keys().expect("keys").into_iter().filter(|key| key.algorithm() == Algorithm::Rs256).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn theirs_verifies_ours_through_our_key_repository() {
    let keys = rs256();
    let ours = OurRepository::start(&keys).await.expect("our key repository");
    let mut peer = Peer::asap_crate(&ours.bundle).expect("the peer");
    let now = mesh_identity::clock::unix_seconds();
    let mut verify = |token: &str, audience: &str| {
        let question = json!({"do": "verify", "token": token, "issuer": ISSUER, "audience": audience, "url": ours.url});
        peer.ask(&question).expect("it answers")
    };
    let token = keys[0].mint(AUDIENCE, now, 300);
    let answer = verify(&token, AUDIENCE);
    assert_eq!(answer["claims"]["iss"], ISSUER, "{answer}");
    let answer = verify(&token, "issues");
    assert!(answer["error"].as_str().is_some_and(|error| error.contains("udience")), "another audience: {answer}");
    let answer = verify(&SigningKey::generate(ISSUER).expect("a key").mint(AUDIENCE, now, 300), AUDIENCE);
    assert!(answer["error"].is_string(), "a key that nobody has: {answer}");
    ours.stop().await.expect("it ran until now");
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_verifies_theirs_through_an_outside_key_repository() {
    let keys = rs256();
    let outside = Outside::start(&keys).await.expect("an outside key repository");
    let mut peer = Peer::asap_crate(outside.authority.path()).expect("the peer");
    let token = peer.mint(&keys[0], &private_pem(&keys[0])).expect("a token");
    assert_eq!(outside.library(&token).await, "ok");
    let (printed, code) = outside.command(&token).await.expect("an answer");
    assert_eq!((&printed["valid"], &printed["issuer"], code), (&json!(true), &json!(ISSUER), Some(0)), "{printed}");
}
