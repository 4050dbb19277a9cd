use mesh_asap::SigningKey;
use mesh_identity::{
    Peer as MeshPeer,
    testing::{Ca, service},
};

use super::*;

fn caller(ca: &Ca, name: &str, serial: &str) -> (Caller, CancellationToken) {
    let connection = CancellationToken::new();
    let peer = MeshPeer { id: ca.id(name), serial: serial.to_owned(), not_after: 0, role: None };
    (Caller::new(Client::Mesh(peer), connection.clone()), connection)
}

#[test]
fn a_caller_is_expelled_once_its_service_or_serial_is_revoked_and_others_stay() {
    let ca = Ca::new("demo.example");
    let identity = ca.identity("media");
    let outsiders = Outsiders::default();
    let (issues, of_issues) = caller(&ca, "issues", "01");
    let (wiki, of_wiki) = caller(&ca, "wiki", "02");
    let look = || [&issues, &wiki].map(|caller| caller.look_again(&identity, &outsiders));

    look();
    assert!(issues.check().is_ok() && wiki.check().is_ok());
    identity.set_revoked(Revoked { services: [service("issues")].into(), ..Revoked::default() });
    look();
    assert_eq!(issues.check().unwrap_err().reason, Reason::AsapIssuer);
    assert!(of_issues.is_cancelled() && !of_wiki.is_cancelled() && wiki.check().is_ok());

    identity.set_revoked(Revoked { serials: ["02".to_owned()].into(), ..Revoked::default() });
    look();
    assert!(of_wiki.is_cancelled() && wiki.is_expelled());
    identity.set_revoked(Revoked::default());
    look();
    assert!(issues.is_expelled(), "a connection that closes does not open again");
}

#[test]
fn an_open_call_is_known_by_the_key_of_its_token_in_either_header() {
    let key = SigningKey::generate("issues").expect("a key");
    let token = key.mint("media", 1_700_000_000, 300);
    let (bare, bearer) = (HeaderValue::from_str(&token), HeaderValue::from_str(&format!("Bearer {token}")));
    let revoked = |kid: &str| Revoked { kids: [kid.to_owned()].into(), ..Revoked::default() };
    for value in [bare.expect("ASCII"), bearer.expect("ASCII")] {
        let refusal = check_key(Some(&value), &revoked(key.kid().as_str())).unwrap_err();
        assert_eq!(refusal.reason, Reason::AsapKeyUnknown);
        assert!(check_key(Some(&value), &revoked("issues/two")).is_ok());
        assert!(check_key(Some(&value), &Revoked::default()).is_ok());
    }
    assert!(check_key(None, &revoked(key.kid().as_str())).is_ok());
    assert!(check_key(Some(&HeaderValue::from_static("no token")), &revoked(key.kid().as_str())).is_ok());
}
