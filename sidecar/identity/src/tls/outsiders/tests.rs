//! Real handshakes: each certificate that must not pass beside one that does and differs in that alone.

use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::testing::{self, Ca, Certificate, Leaf, service};
use crate::tls::{Client, Clients, TlsError, accept_client, connect, inbound_config, server_config};
use crate::{Identity, clock};

const ALPN: &[&[u8]] = &[b"h2"];

struct Inbound {
    mesh: Ca,
    identity: Arc<Identity>,
    outsiders: Arc<Outsiders>,
}

impl Inbound {
    fn new(clients: Vec<Outsider>) -> Self {
        let mesh = Ca::new("demo.example");
        let outsiders = Arc::new(Outsiders::default());
        outsiders.set(clients);
        Self { identity: mesh.identity("media"), mesh, outsiders }
    }

    /// What the server makes of whoever shows this, and whether the client got its byte.
    async fn meet(&self, shown: Option<Certificate>) -> (Result<Client, TlsError>, bool) {
        self.meet_with(&testing::client_config(shown, ALPN)).await
    }

    async fn meet_with(&self, client: &Arc<rustls::ClientConfig>) -> (Result<Client, TlsError>, bool) {
        let config = inbound_config(&self.identity, Arc::clone(&self.outsiders));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut stream, client) = accept_client(&config, &self.identity, &self.outsiders, stream).await?;
            stream.write_all(b"!").await.map_err(TlsError::Io)?;
            let _ = stream.shutdown().await;
            Ok(client)
        };
        let client = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let Ok(mut stream) = connect(client, stream).await else { return false };
            stream.read_exact(&mut [0]).await.is_ok()
        };
        tokio::join!(server, client)
    }

    async fn refuses(&self, shown: Option<Certificate>, what: &str) {
        let (server, client) = self.meet(shown).await;
        assert!(server.is_err() && !client, "{what}: {server:?}");
    }
}

fn outsider(name: &str, ca: &Ca, names: &[&str]) -> Outsider {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    Outsider::new(name, vec![ca.root().clone()], &names).unwrap()
}

/// A certificate of the client `billing`.
fn good() -> Leaf {
    let leaf = Leaf::uri("https://partner.example/billing");
    Leaf { dns: vec!["Billing.partner.example".to_owned()], usages: vec![ClientAuth], ..leaf }
}

#[tokio::test]
async fn a_client_outside_is_known_by_its_ca_and_one_of_its_names() {
    let partner = Ca::new("partner.example");
    for name in ["dns:billing.PARTNER.example", "uri:https://partner.example/billing"] {
        let inbound = Inbound::new(vec![outsider("billing", &partner, &["dns:nobody.example", name])]);
        let (server, client) = inbound.meet(Some(partner.certificate(&good()))).await;
        let Client::Outside(peer) = server.unwrap() else { panic!("taken for a service") };
        assert_eq!((&*peer.name, client), ("billing", true));
        assert!(peer.serial.starts_with("01") && peer.not_after > clock::unix_seconds());
    }
}

#[tokio::test]
async fn every_bad_certificate_of_an_outside_client_is_refused() {
    let partner = Ca::new("partner.example");
    let inbound = Inbound::new(vec![outsider("billing", &partner, &["dns:billing.partner.example"])]);
    let now = clock::unix_seconds();
    let dns = |name: &str| Leaf { dns: vec![name.to_owned()], ..good() };
    for (what, leaf) in [
        ("another name", dns("wages.partner.example")),
        ("a wildcard over the name", dns("*.partner.example")),
        ("no DNS name", Leaf { dns: vec![], ..good() }),
        ("expired", Leaf { not_before: now - 7200, not_after: now - 1, ..good() }),
        ("not valid yet", Leaf { not_before: now + 600, ..good() }),
        ("for servers only", Leaf { usages: vec![ServerAuth], ..good() }),
        ("no extended key usage", Leaf { usages: vec![], ..good() }),
        ("an authority", Leaf { authority: true, ..good() }),
    ] {
        inbound.refuses(Some(partner.certificate(&leaf)), what).await;
    }
    inbound.refuses(Some(Ca::new("partner.example").certificate(&good())), "another CA of the same name").await;
    inbound.refuses(Some(inbound.mesh.certificate(&good())), "the CA of the mesh").await;
    inbound.refuses(None, "no certificate").await;
    let (server, _) = inbound.meet_with(&testing::client_config(Some(partner.certificate(&good())), &[])).await;
    assert!(server.is_err(), "without h2 by ALPN");
    inbound.meet(Some(partner.certificate(&good()))).await.0.expect("the good one passes");
}

#[tokio::test]
async fn an_id_of_the_mesh_is_never_an_outside_clients() {
    let partner = Ca::new("partner.example");
    let names = ["dns:billing.partner.example", "uri:spiffe://demo.example/svc/issues"];
    let inbound = Inbound::new(vec![outsider("billing", &partner, &names)]);
    for uri in [
        "spiffe://demo.example/svc/issues",
        "spiffe://demo.example",
        "spiffe://demo.example/any/path",
        "SPIFFE://Demo.Example/svc/issues",
    ] {
        let leaf = Leaf { uris: vec![uri.to_owned()], ..good() };
        inbound.refuses(Some(partner.certificate(&leaf)), uri).await;
        let leaf = Leaf { uris: vec!["https://partner.example".to_owned(), uri.to_owned()], ..good() };
        inbound.refuses(Some(partner.certificate(&leaf)), uri).await;
    }
    let foreign = Leaf { uris: vec!["spiffe://partner.example/svc/issues".to_owned()], ..good() };
    let (server, _) = inbound.meet(Some(partner.certificate(&foreign))).await;
    assert!(matches!(server.unwrap(), Client::Outside(_)), "another trust domain's id is a name like any other");
    let (server, _) =
        inbound.meet(Some(inbound.mesh.certificate(&Leaf::uri("spiffe://demo.example/svc/issues")))).await;
    assert!(matches!(server.unwrap(), Client::Mesh(peer) if peer.id == inbound.mesh.id("issues")));
}

#[tokio::test]
async fn two_clients_with_one_certificate_are_one_too_many() {
    let partner = Ca::new("partner.example");
    let (billing, wages) = (["dns:billing.partner.example"], ["uri:https://partner.example/billing"]);
    let inbound = Inbound::new(vec![outsider("billing", &partner, &billing), outsider("wages", &partner, &wages)]);
    inbound.refuses(Some(partner.certificate(&good())), "both names in one certificate").await;
    let leaf = Leaf { uris: vec![], ..good() };
    inbound.meet(Some(partner.certificate(&leaf))).await.0.expect("only one of them has this name");
}

#[tokio::test]
async fn an_outside_client_is_revoked_by_name_or_serial_and_refused_by_who_knows_none() {
    let partner = Ca::new("partner.example");
    let inbound = Inbound::new(vec![outsider("billing", &partner, &["dns:billing.partner.example"])]);
    let certificate = partner.certificate(&good());
    let Client::Outside(peer) = inbound.meet(Some(certificate.clone())).await.0.unwrap() else { panic!("a service") };
    for revoked in [
        Revoked { serials: [peer.serial.clone()].into(), ..Revoked::default() },
        Revoked { services: [service("billing")].into(), ..Revoked::default() },
    ] {
        inbound.identity.set_revoked(revoked);
        assert!(Client::Outside(peer.clone()).is_revoked(&inbound.identity));
        inbound.refuses(Some(certificate.clone()), "revoked").await;
    }
    inbound.identity.set_revoked(Revoked::default());
    inbound.meet(Some(certificate.clone())).await.0.expect("lifted");

    // The control plane's configuration takes services and operators alone.
    let config = server_config(&inbound.identity, Clients::Required);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = async {
        let stream = TcpStream::connect(address).await.unwrap();
        connect(&testing::client_config(Some(certificate), ALPN), stream).await
    };
    let server = async { crate::tls::accept(&config, listener.accept().await.unwrap().0).await };
    let (server, _client) = tokio::join!(server, client);
    assert!(server.is_err());
}

#[tokio::test]
async fn a_connection_is_known_until_its_client_is_removed_or_described_otherwise() {
    let (partner, other) = (Ca::new("partner.example"), Ca::new("partner.example"));
    let names = ["dns:billing.partner.example"];
    let inbound = Inbound::new(vec![outsider("billing", &partner, &names)]);
    let Client::Outside(peer) = inbound.meet(Some(partner.certificate(&good()))).await.0.unwrap() else {
        panic!("a service")
    };
    let still = |clients: Vec<Outsider>| {
        inbound.outsiders.set(clients);
        inbound.outsiders.still_knows(&peer)
    };
    let both = Outsider::new("billing", vec![other.root().clone(), partner.root().clone()], &["dns:x".to_owned()]);
    assert!(still(vec![outsider("billing", &partner, &["dns:x", "dns:billing.partner.example"])]));
    assert!(!still(vec![outsider("billing", &other, &names)]), "another CA");
    assert!(!still(vec![both.unwrap()]), "another name");
    assert!(!still(vec![outsider("wages", &partner, &names)]), "another client");
    assert!(!still(vec![]), "nobody");
}

#[test]
fn a_record_that_would_let_in_everybody_or_nobody_is_refused() {
    let ca = Ca::new("partner.example");
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let new = |ca, texts: &[&str]| Outsider::new("billing", ca, &names(texts)).map(|_| ());
    let root = || vec![ca.root().clone()];
    assert_eq!(new(vec![], &["dns:a"]), Err(OutsiderError::NoCa("billing".into())));
    assert_eq!(new(root(), &[]), Err(OutsiderError::NoNames("billing".into())));
    for name in ["", "a.example", "dns:", "uri:", "ip:10.0.0.1"] {
        let expected = OutsiderError::Name { client: "billing".into(), name: name.to_owned() };
        assert_eq!(new(root(), &["dns:a", name]), Err(expected));
    }
    let broken = vec![ca.root().clone(), CertificateDer::from(vec![0x30, 0x00])];
    assert!(matches!(new(broken, &["dns:a"]), Err(OutsiderError::Ca { index: 1, .. })));
}
