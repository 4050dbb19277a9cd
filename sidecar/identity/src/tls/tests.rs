//! Real handshakes over loopback: each bad certificate beside a good one that differs in that alone.

use std::sync::Arc;

use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::testing::{self, Ca, Certificate, Leaf, service};
use crate::{Revoked, TrustBundle};

const ALPN: &[&[u8]] = &[b"h2"];

/// What each side of one handshake came to. The client's counts the byte that the server sends after it: in TLS 1.3 a
/// client learns only then that it was refused.
struct Outcome {
    server: Result<Option<Peer>, TlsError>,
    client: Result<Option<Peer>, String>,
}

impl Outcome {
    #[track_caller]
    fn assert_refused(&self, what: &str) {
        assert!(self.client.is_err(), "{what}: the client got through");
    }

    #[track_caller]
    fn assert_passed(&self, what: &str) {
        assert!(self.client.is_ok() && self.server.is_ok(), "{what}: {:?} {:?}", self.client, self.server);
    }
}

async fn handshake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = async {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut stream, peer) = accept(server, stream).await?;
        stream.write_all(b"!").await.map_err(TlsError::Io)?;
        let _ = stream.shutdown().await;
        Ok(peer)
    };
    let client = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = connect(client, stream).await.map_err(|error| error.to_string())?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map_err(|error| error.to_string())?;
        Ok(peer(stream.get_ref().1))
    };
    let (server, client) = tokio::join!(server, client);
    Outcome { server, client }
}

fn good() -> Leaf {
    Leaf::uri("spiffe://demo.example/svc/issues")
}

/// What is wrong, and the leaf that has it. The certificate of another CA is apart: it differs in nothing else.
fn bad_leaves() -> Vec<(&'static str, Leaf)> {
    let now = crate::clock::unix_seconds();
    let uris = |uris: &[&str]| Leaf { uris: uris.iter().map(|uri| (*uri).to_owned()).collect(), ..good() };
    vec![
        ("another trust domain", uris(&["spiffe://other.example/svc/issues"])),
        ("no URI name", Leaf { dns: vec!["issues".to_owned()], ..uris(&[]) }),
        ("no name at all", uris(&[])),
        ("two URI names", uris(&["spiffe://demo.example/svc/issues", "spiffe://demo.example/svc/media"])),
        ("the same URI name twice", uris(&["spiffe://demo.example/svc/issues", "spiffe://demo.example/svc/issues"])),
        ("a URI that is no SPIFFE id", uris(&["https://demo.example/svc/issues"])),
        ("a SPIFFE id of another form", uris(&["spiffe://demo.example/ns/default/sa/issues"])),
        ("expired", Leaf { not_before: now - 7200, not_after: now - 1, ..good() }),
        ("not valid yet", Leaf { not_before: now + 600, ..good() }),
        ("no extended key usage", Leaf { usages: vec![], ..good() }),
        ("an authority", Leaf { authority: true, ..good() }),
    ]
}

#[tokio::test]
async fn a_good_client_passes_and_is_known_by_its_id_and_serial() {
    let ca = Ca::new("demo.example");
    let client = ca.identity("issues");
    let outcome =
        handshake(&server_config(&ca.identity("media"), Clients::Required), &client_config(&client, &service("media")))
            .await;
    let peer = outcome.server.unwrap().unwrap();
    assert_eq!(peer.id.to_string(), "spiffe://demo.example/svc/issues");
    assert_eq!((peer.serial.as_str(), peer.not_after), (client.svid().serial(), client.svid().not_after()));
    assert_eq!(outcome.client.unwrap().unwrap().id.to_string(), "spiffe://demo.example/svc/media");
}

#[tokio::test]
async fn an_operator_passes_as_a_client() {
    let ca = Ca::new("demo.example");
    let client = client_config(&ca.operator_identity("ada"), &service("media"));
    let outcome = handshake(&server_config(&ca.identity("media"), Clients::Required), &client).await;
    assert_eq!(outcome.server.unwrap().unwrap().id.operator_name(), Some("ada"));
}

#[tokio::test]
async fn every_bad_client_certificate_is_refused_and_its_good_twin_passes() {
    let ca = Ca::new("demo.example");
    for clients in [Clients::Required, Clients::Optional] {
        let server = server_config(&ca.identity("media"), clients);
        let show = |certificate: Option<Certificate>| testing::client_config(certificate, ALPN);
        let mut bad = bad_leaves();
        bad.push(("for servers only", Leaf { usages: vec![ServerAuth], ..good() }));
        for (what, leaf) in bad {
            let outcome = handshake(&server, &show(Some(ca.certificate(&leaf)))).await;
            outcome.assert_refused(what);
            assert!(outcome.server.is_err(), "{what}");
        }
        let other = Ca::new("demo.example").certificate(&good());
        handshake(&server, &show(Some(other))).await.assert_refused("another CA");
        for leaf in
            [good(), Leaf { usages: vec![ClientAuth], ..good() }, Leaf { dns: vec!["issues".to_owned()], ..good() }]
        {
            handshake(&server, &show(Some(ca.certificate(&leaf)))).await.assert_passed("the good twin");
        }
    }
}

#[tokio::test]
async fn no_client_certificate_is_refused_where_one_is_required_and_passes_where_not() {
    let ca = Ca::new("demo.example");
    let (identity, client) = (ca.identity("media"), testing::client_config(None, ALPN));
    handshake(&server_config(&identity, Clients::Required), &client).await.assert_refused("no certificate");
    let outcome = handshake(&server_config(&identity, Clients::Optional), &client).await;
    outcome.assert_passed("optional");
    assert_eq!(outcome.server.unwrap(), None);
}

#[tokio::test]
async fn a_certificate_with_the_key_of_another_is_refused() {
    let ca = Ca::new("demo.example");
    let server = server_config(&ca.identity("media"), Clients::Required);
    let ((chain, key), (_, other)) = (ca.certificate(&good()), ca.certificate(&good()));
    handshake(&server, &testing::client_config(Some((chain.clone(), other)), ALPN))
        .await
        .assert_refused("stolen chain");
    handshake(&server, &testing::client_config(Some((chain, key)), ALPN)).await.assert_passed("the good twin");
}

#[tokio::test]
async fn every_bad_server_certificate_is_refused_and_its_good_twin_passes() {
    let ca = Ca::new("demo.example");
    let client = client_config(&ca.identity("wiki"), &service("issues"));
    let show = |certificate: Certificate| testing::server_config(certificate, ALPN);
    let mut bad = bad_leaves();
    bad.push(("for clients only", Leaf { usages: vec![ClientAuth], ..good() }));
    bad.push(("another service", Leaf::uri("spiffe://demo.example/svc/media")));
    bad.push(("an operator", Leaf::uri("spiffe://demo.example/operator/issues")));
    for (what, leaf) in bad {
        handshake(&show(ca.certificate(&leaf)), &client).await.assert_refused(what);
    }
    let other = Ca::new("demo.example").certificate(&good());
    handshake(&show(other), &client).await.assert_refused("another CA");
    for leaf in [good(), Leaf { usages: vec![ServerAuth], ..good() }] {
        handshake(&show(ca.certificate(&leaf)), &client).await.assert_passed("the good twin");
    }
}

#[tokio::test]
async fn whoever_does_not_offer_h2_is_refused() {
    let ca = Ca::new("demo.example");
    let server = server_config(&ca.identity("media"), Clients::Required);
    let certificate = ca.certificate(&good());
    let bad: [&[&[u8]]; 3] = [&[], &[b"http/1.1"], &[b"h2c", b"http/1.1"]];
    for alpn in bad {
        let outcome = handshake(&server, &testing::client_config(Some(certificate.clone()), alpn)).await;
        outcome.assert_refused("no h2");
        assert!(outcome.server.is_err(), "{alpn:?}");
    }
    let both: &[&[u8]] = &[b"http/1.1", b"h2"];
    handshake(&server, &testing::client_config(Some(certificate.clone()), both)).await.assert_passed("h2 among others");
    let client = client_config(&ca.identity("wiki"), &service("issues"));
    handshake(&testing::server_config(certificate, &[]), &client).await.assert_refused("a server without h2");
}

#[tokio::test]
async fn revoked_services_and_serials_are_refused_both_ways_from_the_next_handshake_on() {
    let ca = Ca::new("demo.example");
    let (media, issues) = (ca.identity("media"), ca.identity("issues"));
    let (server, client) = (server_config(&media, Clients::Required), client_config(&issues, &service("media")));
    let by_service = |name: &str| Revoked { services: [service(name)].into(), ..Revoked::default() };
    let by_serial = |of: &Identity| Revoked { serials: [of.svid().serial().to_owned()].into(), ..Revoked::default() };

    handshake(&server, &client).await.assert_passed("before");
    for revoked in [by_service("issues"), by_serial(&issues)] {
        media.set_revoked(revoked);
        handshake(&server, &client).await.assert_refused("a revoked client");
        media.set_revoked(by_service("wiki"));
        handshake(&server, &client).await.assert_passed("somebody else is revoked");
    }
    for revoked in [by_service("media"), by_serial(&media)] {
        issues.set_revoked(revoked);
        handshake(&server, &client).await.assert_refused("a revoked server");
        issues.set_revoked(Revoked::default());
        handshake(&server, &client).await.assert_passed("no longer revoked");
    }
}

#[tokio::test]
async fn svids_and_roots_rotate_under_configurations_that_stay() {
    let (old, new) = (Ca::new("demo.example"), Ca::new("demo.example"));
    let (media, issues) = (old.identity("media"), old.identity("issues"));
    let (server, client) = (server_config(&media, Clients::Required), client_config(&issues, &service("media")));
    let both = || TrustBundle::new(old.trust_domain().clone(), vec![old.root().clone(), new.root().clone()]).unwrap();

    let first = handshake(&server, &client).await.server.unwrap().unwrap();
    issues.set_svid(old.svid("issues")).unwrap();
    let second = handshake(&server, &client).await.server.unwrap().unwrap();
    assert_ne!(first.serial, second.serial);
    assert_eq!(second.serial, issues.svid().serial());

    // An SVID of a root that is not prepared is refused; prepare, activate, retire never fails a handshake.
    issues.set_svid(new.svid("issues")).unwrap();
    handshake(&server, &client).await.assert_refused("the new root is not trusted yet");
    issues.set_svid(old.svid("issues")).unwrap();
    for identity in [&media, &issues] {
        identity.set_bundle(both()).unwrap();
        handshake(&server, &client).await.assert_passed("prepared");
    }
    for (identity, name) in [(&media, "media"), (&issues, "issues")] {
        identity.set_svid(new.svid(name)).unwrap();
        handshake(&server, &client).await.assert_passed("activated");
    }
    for identity in [&media, &issues] {
        identity.set_bundle(new.bundle()).unwrap();
        handshake(&server, &client).await.assert_passed("retired");
    }
    issues.set_svid(old.svid("issues")).unwrap();
    handshake(&server, &client).await.assert_refused("the old root is retired");
}

#[tokio::test]
async fn an_identity_never_becomes_somebody_elses() {
    let (ca, other) = (Ca::new("demo.example"), Ca::new("other.example"));
    let identity = ca.identity("media");
    let serial = identity.svid().serial().to_owned();
    assert!(identity.set_svid(ca.svid("issues")).is_err());
    assert!(identity.set_svid(other.svid("media")).is_err());
    assert!(identity.set_bundle(other.bundle()).is_err());
    assert_eq!(identity.svid().serial(), serial);
    assert_eq!(*identity.bundle(), ca.bundle());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_given_up_at_the_deadline() {
    let ca = Ca::new("demo.example");
    let config = server_config(&ca.identity("media"), Clients::Required);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    assert!(matches!(accept(&config, stream).await, Err(TlsError::Deadline(_))));
}

#[tokio::test]
async fn a_client_that_speaks_plain_http_is_refused() {
    let ca = Ca::new("demo.example");
    let config = server_config(&ca.identity("media"), Clients::Required);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut plain = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    assert!(matches!(accept(&config, stream).await, Err(TlsError::Handshake(_))));
}

#[test]
fn only_tls_1_3_with_hybrid_key_exchange_preferred_is_configured() {
    let ca = Ca::new("demo.example");
    let server = server_config(&ca.identity("media"), Clients::Required);
    let provider = server.crypto_provider();
    assert_eq!(provider.kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(server.send_tls13_tickets, 0);
    assert!(!server.session_storage.can_cache());
}
