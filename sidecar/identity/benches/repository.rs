//! Whether a key repository that hangs slows those whose keys are known: the same work with and without.

use divan::{Bencher, black_box};
use mesh_asap::{Expect, Kid, SigningKey, verify};
use mesh_identity::clock;
use mesh_identity::repository::testing::{KeyServer, Reply, WebCa};
use mesh_identity::repository::{Repositories, Settings};
use std::time::Duration;
use tokio::runtime::Runtime;

/// Nearly as many as one client may cause at once.
const HANGING: usize = 25;

fn main() {
    divan::main();
}

struct Fixture {
    /// Where the fetching runs, on threads of its own.
    runtime: Runtime,
    server: KeyServer,
    repositories: Repositories,
    kid: Kid,
    token: String,
}

fn fixture() -> Fixture {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let ca = WebCa::new();
    let key = SigningKey::generate("partner").expect("a name");
    let server = runtime.block_on(KeyServer::start(&ca));
    let pem = pem::encode(&pem::Pem::new("PUBLIC KEY", key.public_spki()));
    server.tell(key.kid().as_str(), Reply::key(&pem));
    let settings = Settings::new([server.url()]).with_roots(vec![ca.root()]);
    let settings = Settings { fetch_deadline: Duration::from_secs(3600), ..settings };
    let repositories = Repositories::new(settings, runtime.handle()).expect("good settings");
    runtime.block_on(repositories.ensure(key.kid()));
    let token = key.mint("media", clock::unix_seconds(), 3600);
    Fixture { runtime, server, repositories, kid: key.kid().clone(), token }
}

impl Fixture {
    /// That many fetches that wait for an answer.
    fn hang(&self) {
        for n in 0..HANGING {
            let kid: Kid = format!("partner/{n}").parse().expect("a key id");
            self.server.tell(kid.as_str(), Reply::Silence);
            let repositories = self.repositories.clone();
            self.runtime.spawn(async move { repositories.ensure(&kid).await });
        }
        self.runtime.block_on(self.server.asked_times(1 + HANGING));
    }

    fn verify(&self) -> bool {
        let now = clock::unix_seconds();
        let keys = |kid: &str| self.repositories.cached(kid, now);
        verify(black_box(&self.token), &Expect::new("media", None), &keys, now).is_ok()
    }
}

#[divan::bench]
fn verify_by_a_known_key(bencher: Bencher) {
    let fixture = fixture();
    assert!(fixture.verify(), "the key is known");
    bencher.bench_local(|| fixture.verify());
}

#[divan::bench]
fn verify_by_a_known_key_while_25_fetches_hang(bencher: Bencher) {
    let fixture = fixture();
    fixture.hang();
    assert!(fixture.verify(), "the key is known");
    bencher.bench_local(|| fixture.verify());
}

#[divan::bench]
fn look_up_a_known_key(bencher: Bencher) {
    let fixture = fixture();
    let now = clock::unix_seconds();
    bencher.bench_local(|| fixture.repositories.cached(black_box(fixture.kid.as_str()), now));
}

#[divan::bench]
fn look_up_a_known_key_while_25_fetches_hang(bencher: Bencher) {
    let fixture = fixture();
    fixture.hang();
    let now = clock::unix_seconds();
    bencher.bench_local(|| fixture.repositories.cached(black_box(fixture.kid.as_str()), now));
}
