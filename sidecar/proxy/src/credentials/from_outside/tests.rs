use mesh_asap::{Kid, SigningKey};
use mesh_identity::{
    Revoked, clock,
    repository::testing::{KeyServer, Reply, WebCa},
    testing::Ca,
};
use tenon_proto::policy::v1::ExternalClient;
use tokio::runtime::Handle;

use super::*;

/// Of the repositories' own clock.
fn now() -> u64 {
    clock::unix_seconds()
}

/// A client `billing` with one published key, and the sidecar of media that it calls.
struct World {
    server: KeyServer,
    record: ExternalClient,
    clients: Clients,
    identity: Arc<Identity>,
    key: SigningKey,
    memory: FromOutside,
}

impl World {
    async fn new() -> Self {
        let web = WebCa::new();
        let server = KeyServer::start(&web).await;
        let (ca, key) = (Ca::new("partner.example"), SigningKey::generate("partner/billing").expect("a key"));
        let record = ExternalClient {
            name: "billing".to_owned(),
            issuer: "partner/billing".to_owned(),
            ca: vec![ca.root().to_vec().into()],
            certificate_names: vec!["dns:billing.partner.example".to_owned()],
            key_repositories: vec![server.url()],
            key_repository_ca: vec![web.root().to_vec().into()],
            subjects: vec![],
        };
        let clients = Clients::new(Handle::current());
        clients.set(std::slice::from_ref(&record));
        let identity = Ca::new("demo.example").identity("media");
        let world = Self { server, record, clients, identity, key, memory: FromOutside::default() };
        world.publish(&world.key);
        world
    }

    fn publish(&self, key: &SigningKey) {
        let spki = key.public_spki();
        self.server.tell(key.kid().as_str(), Reply::key(&pem(&spki)));
    }

    /// As a call does it: wait for the key unless the token is remembered, then verify. Whether it was remembered, too.
    async fn call(&mut self, token: &str) -> (bool, Result<(), VerifyError>) {
        let client = self.clients.get("billing").expect("the policy has it");
        let remembered = self.memory.remembers(&client, "media", token.as_bytes(), now());
        if !remembered {
            client.wait_for_key(&self.identity, token, now()).await;
        }
        (remembered, self.memory.verify(&client, &self.identity, "media", token.as_bytes(), now()))
    }
}

fn pem(spki: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(spki))
}

#[tokio::test]
async fn a_token_is_fetched_for_once_and_remembered_while_its_client_is_the_same() {
    let mut world = World::new().await;
    let token = world.key.mint("media", now(), 300);
    assert_eq!(world.call(&token).await, (false, Ok(())));
    assert_eq!(world.call(&token).await, (true, Ok(())));
    assert_eq!(world.server.asked().len(), 1);

    // Other subjects: the tokens are verified anew, with the keys that are known.
    let other = ExternalClient { subjects: vec!["nightly".to_owned()], ..world.record.clone() };
    world.clients.set(&[other]);
    assert_eq!(world.call(&token).await, (false, Ok(())));
    assert_eq!(world.server.asked().len(), 1);

    // Another issuer: not his any more, and nobody is asked for a key of it.
    let other = ExternalClient { issuer: "partner/wages".to_owned(), ..world.record.clone() };
    world.clients.set(&[other]);
    assert_eq!(world.call(&token).await, (false, Err(VerifyError::Issuer)));
    assert_eq!(world.server.asked().len(), 1);
}

#[tokio::test]
async fn nothing_is_fetched_for_a_token_that_cannot_pass() {
    let mut world = World::new().await;
    let stranger = SigningKey::generate("media").expect("a key").mint("media", now(), 300);
    assert_eq!(world.call(&stranger).await.1, Err(VerifyError::Issuer));
    assert!(matches!(world.call("nonsense").await.1, Err(VerifyError::Malformed(_))));
    let revoked = Revoked { kids: [world.key.kid().to_string()].into(), ..Revoked::default() };
    world.identity.set_revoked(revoked);
    let token = world.key.mint("media", now(), 300);
    assert_eq!(world.call(&token).await.1, Err(VerifyError::KeyUnknown));
    assert!(world.server.asked().is_empty());
}

#[tokio::test]
async fn what_is_revoked_or_removed_is_forgotten() {
    let mut world = World::new().await;
    let token = world.key.mint("media", now(), 300);
    for keep in [|name: &str, _: &str| name != "billing", |_: &str, kid: &str| kid.parse::<Kid>().is_err()] {
        world.call(&token).await.1.expect("good");
        assert!(world.call(&token).await.0);
        world.memory.retain(&world.clients, keep);
        assert!(!world.call(&token).await.0, "forgotten");
    }
    world.memory.retain(&world.clients, |_, _| true);
    assert!(world.call(&token).await.0, "nothing is forgotten without a reason");
    world.clients.set(&[]);
    world.memory.retain(&world.clients, |_, _| true);
    assert!(world.memory.0.is_empty(), "nor is a client kept that is gone");
}
