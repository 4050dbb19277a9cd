//! npm `jwt-authentication`, both ways, with every algorithm that it knows.

use integration::asap::{AUDIENCE, ISSUER, OurRepository, Outside, Peer, keys, private_pem};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn theirs_verifies_ours_through_our_key_repository() {
    let keys = keys().expect("keys");
    let ours = OurRepository::start(&keys).await.expect("our key repository");
    let mut peer = Peer::node(&ours.bundle).expect("the peer");
    let now = mesh_identity::clock::unix_seconds();
    let mut verify = |token: &str, audience: &str| {
        let question = json!({"do": "verify", "token": token, "issuer": ISSUER, "audience": audience, "url": ours.url});
        peer.ask(&question).expect("it answers")
    };
    for key in &keys {
        let token = key.mint(AUDIENCE, now, 300);
        let answer = verify(&token, AUDIENCE);
        assert_eq!(answer["claims"]["iss"], ISSUER, "{}: {answer}", key.algorithm().name());
        assert_eq!(verify(&token, "issues")["error"], "Unrecognised audience");
    }
    let unknown = mesh_asap::SigningKey::generate(ISSUER).expect("a key").mint(AUDIENCE, now, 300);
    let answer = verify(&unknown, AUDIENCE);
    assert!(answer["error"].as_str().is_some_and(|error| error.contains("public key")), "nobody's key: {answer}");
    ours.stop().await.expect("it ran until now");
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_verifies_theirs_through_an_outside_key_repository() {
    let keys = keys().expect("keys");
    let outside = Outside::start(&keys).await.expect("an outside key repository");
    let mut peer = Peer::node(outside.authority.path()).expect("the peer");
    for key in &keys {
        let name = key.algorithm().name();
        // Of data URIs it reads those with RSA keys alone.
        let uri = (!name.starts_with('E')).then(|| key.to_data_uri().to_string());
        for private in uri.into_iter().chain([private_pem(key)]) {
            let token = peer.mint(key, &private).expect(name);
            assert_eq!(outside.library(&token).await, "ok", "{name}");
            let (printed, code) = outside.command(&token).await.expect(name);
            assert_eq!((&printed["valid"], code), (&json!(true), Some(0)), "{name}: {printed}");
        }
    }
}
