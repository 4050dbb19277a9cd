//! A15 and A16: key repositories outside of the mesh, against real HTTPS servers on loopback, with a clock that the test
//! moves.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mesh_asap::{Kid, Lookup, SigningKey};
use mesh_identity::repository::testing::{KeyServer, Reply, WebCa};
use mesh_identity::repository::{Repositories, Settings, SettingsError};
use tokio::runtime::Handle;
use tokio::sync::watch;

const NOW: u64 = 1_700_000_000;

/// A client's repositories below one authority, with the time in the test's hand.
struct Mesh {
    ca: WebCa,
    clock: Arc<AtomicU64>,
    key: SigningKey,
}

impl Mesh {
    fn new() -> Self {
        let key = SigningKey::generate("partner").unwrap();
        Self { ca: WebCa::new(), clock: Arc::new(AtomicU64::new(NOW)), key }
    }

    fn of(&self, bases: impl IntoIterator<Item = String>) -> Repositories {
        let settings = Settings::new(bases).with_roots(vec![self.ca.root()]);
        // Long enough for a busy machine: only tests of silence wait for it, and those set their own.
        self.with(Settings { fetch_deadline: Duration::from_secs(20), ..settings })
    }

    fn with(&self, settings: Settings) -> Repositories {
        let clock = Arc::clone(&self.clock);
        let tell = Box::new(move || clock.load(Ordering::SeqCst));
        Repositories::with_clock(settings, &Handle::current(), tell).unwrap()
    }

    fn kid(&self) -> Kid {
        self.key.kid().clone()
    }

    fn reply(&self) -> Reply {
        Reply::key(&pem_of(&self.key))
    }

    fn at(&self, now: u64) -> u64 {
        self.clock.store(now, Ordering::SeqCst);
        now
    }
}

fn pem_of(key: &SigningKey) -> String {
    pem::encode(&pem::Pem::new("PUBLIC KEY", key.public_spki()))
}

fn say(lookup: &Lookup) -> &'static str {
    match lookup {
        Lookup::Found(_) => "found",
        Lookup::Unknown => "unknown",
        Lookup::Unavailable => "unavailable",
    }
}

/// Waits for what the background does; what it must come to is in the caller's condition.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits for the generation to move.
async fn moved(changes: &mut watch::Receiver<u64>) {
    tokio::time::timeout(Duration::from_secs(20), changes.changed()).await.expect("the generation moves").unwrap();
}

async fn asked(repositories: &Repositories, kid: &Kid) -> &'static str {
    repositories.ensure(kid).await;
    say(&repositories.cached(kid.as_str(), NOW))
}

#[tokio::test]
async fn a15_a_key_is_asked_for_below_the_base_and_its_tokens_verify() {
    let mesh = Mesh::new();
    let server = KeyServer::start(&mesh.ca).await;
    let kid = mesh.kid();
    server.tell(&format!("some/keys/{kid}"), mesh.reply());
    let repositories = mesh.of([format!("{}some/keys/", server.url())]);
    assert_eq!(say(&repositories.cached(kid.as_str(), NOW)), "unavailable", "nobody has asked yet");
    assert_eq!(asked(&repositories, &kid).await, "found");
    assert_eq!(server.asked(), [format!("some/keys/{kid}")]);
    assert_eq!(server.accepted(), ["application/x-pem-file"]);

    let token = mesh.key.mint("media", NOW, 300);
    let keys = |kid: &str| repositories.cached(kid, NOW);
    let expect = mesh_asap::Expect::new("media", None);
    assert_eq!(&*mesh_asap::verify(&token, &expect, &keys, NOW).unwrap().issuer, "partner");
    assert_eq!(server.asked().len(), 1, "verifying asks nobody");
}

#[tokio::test]
async fn a15_whatever_else_a_repository_says_the_next_one_is_asked() {
    let mesh = Mesh::new();
    let (kid, good) = (mesh.kid(), mesh.reply());
    let other = KeyServer::start(&mesh.ca).await;
    other.tell("elsewhere", good.clone());
    let weak = Reply::key("-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n");
    let too_long = format!("{}{}", "\n".repeat(16 * 1024), pem_of(&mesh.key));
    for (what, bad, alone) in [
        ("404", Reply::status(404), "unknown"),
        ("403", Reply::status(403), "unknown"),
        ("500", Reply::status(500), "unavailable"),
        ("503", Reply::status(503), "unavailable"),
        ("429", Reply::status(429), "unavailable"),
        ("401", Reply::status(401), "unavailable"),
        ("204", Reply::status(204), "unavailable"),
        ("410", Reply::status(410), "unavailable"),
        ("closed", Reply::Close, "unavailable"),
        (
            "a redirect off the host",
            Reply::status(302).with("location", &format!("{}elsewhere", other.url())),
            "unavailable",
        ),
        (
            "a redirect off the host without a scheme",
            Reply::status(301).with("location", "//localhost/x"),
            "unavailable",
        ),
        ("a redirect to plain text", Reply::status(307).with("location", "http://127.0.0.1/x"), "unavailable"),
        ("a redirect to nowhere", Reply::status(302), "unavailable"),
        ("another media type", good.clone().with("content-type", "text/plain"), "unavailable"),
        ("a media type that begins alike", good.clone().with("content-type", "application/x-pem-file2"), "unavailable"),
        ("no body", Reply::key(""), "unavailable"),
        ("no key", weak, "unavailable"),
        ("two keys", Reply::key(&pem_of(&mesh.key).repeat(2)), "unavailable"),
        ("an oversized body", Reply::key(&too_long), "unavailable"),
    ] {
        let first = KeyServer::start(&mesh.ca).await;
        first.tell(kid.as_str(), bad.clone());
        assert_eq!(asked(&mesh.of([first.url()]), &kid).await, alone, "{what}, alone");

        let second = KeyServer::start(&mesh.ca).await;
        second.tell(kid.as_str(), good.clone());
        assert_eq!(asked(&mesh.of([first.url(), second.url()]), &kid).await, "found", "{what}, and then a good one");
        assert_eq!((first.asked().len(), second.asked().len()), (2, 1), "{what}: asked in order");
    }
    assert!(other.asked().is_empty(), "no redirect to another host was followed");
}

#[tokio::test]
async fn a15_what_is_just_right_is_taken_without_asking_the_next_one() {
    let mesh = Mesh::new();
    let (kid, good) = (mesh.kid(), mesh.reply());
    let pem = pem_of(&mesh.key);
    let long = format!("{}{pem}", "\n".repeat(16 * 1024 - pem.len()));
    for (what, reply) in [
        ("as it should be", good.clone()),
        (
            "a media type with a parameter, in capitals",
            good.clone().with("content-type", "Application/X-PEM-File; a=b"),
        ),
        ("a body of 16 KiB", Reply::key(&long)),
    ] {
        let (first, second) = (KeyServer::start(&mesh.ca).await, KeyServer::start(&mesh.ca).await);
        first.tell(kid.as_str(), reply);
        assert_eq!(asked(&mesh.of([first.url(), second.url()]), &kid).await, "found", "{what}");
        assert!(second.asked().is_empty(), "{what}");
    }
}

#[tokio::test]
async fn a15_three_redirects_on_the_same_host_are_followed_and_a_fourth_is_not() {
    let mesh = Mesh::new();
    let kid = mesh.kid();
    let server = KeyServer::start(&mesh.ca).await;
    let to = |location: String| Reply::status(302).with("location", &location);
    server.tell(kid.as_str(), to("/one".into()));
    server.tell("one", to(format!("{}two", server.url())));
    server.tell("two", to("/three".into()));
    server.tell("three", mesh.reply());
    assert_eq!(asked(&mesh.of([server.url()]), &kid).await, "found");
    server.tell("three", to("/four".into()));
    server.tell("four", mesh.reply());
    assert_eq!(asked(&mesh.of([server.url()]), &kid).await, "unavailable");
    assert!(!server.asked().contains(&"four".to_owned()));
}

#[tokio::test]
async fn a15_unknown_only_when_all_of_them_say_so_and_then_for_twenty_seconds() {
    let mesh = Mesh::new();
    let kid = mesh.kid();
    let (first, second) = (KeyServer::start(&mesh.ca).await, KeyServer::start(&mesh.ca).await);
    first.tell(kid.as_str(), Reply::status(403));
    let repositories = mesh.of([first.url(), second.url()]);
    assert_eq!(asked(&repositories, &kid).await, "unknown");
    second.tell(kid.as_str(), mesh.reply());
    mesh.at(NOW + 19);
    assert_eq!(asked(&repositories, &kid).await, "unknown");
    assert_eq!(second.asked().len(), 1, "remembered");
    mesh.at(NOW + 20);
    assert_eq!(asked(&repositories, &kid).await, "found");

    second.tell(kid.as_str(), Reply::status(500));
    assert_eq!(asked(&mesh.of([first.url(), second.url()]), &kid).await, "unavailable", "one of two could not say");
}

#[tokio::test]
async fn a15_a_silent_repository_is_given_up_after_the_deadline_and_the_next_one_asked() {
    let mesh = Mesh::new();
    let kid = mesh.kid();
    let (silent, good) = (KeyServer::start(&mesh.ca).await, KeyServer::start(&mesh.ca).await);
    silent.tell(kid.as_str(), Reply::Silence);
    good.tell(kid.as_str(), mesh.reply());
    let settings = |bases: &[&KeyServer]| Settings {
        fetch_deadline: Duration::from_millis(2500),
        ..Settings::new(bases.iter().map(|server| server.url())).with_roots(vec![mesh.ca.root()])
    };
    let began = Instant::now();
    assert_eq!(asked(&mesh.with(settings(&[&silent, &good])), &kid).await, "found");
    assert!(began.elapsed() >= Duration::from_millis(2500), "{:?}", began.elapsed());
    assert_eq!(asked(&mesh.with(settings(&[&silent])), &kid).await, "unavailable");
    // Nobody listens there any more.
    let gone = KeyServer::start(&mesh.ca).await.url();
    assert_eq!(asked(&mesh.of([gone, good.url()]), &kid).await, "found");
}

#[tokio::test]
async fn a15_a_server_whose_certificate_is_not_of_a_trusted_authority_is_not_believed() {
    let mesh = Mesh::new();
    let kid = mesh.kid();
    let stranger = KeyServer::start(&WebCa::new()).await;
    stranger.tell(kid.as_str(), mesh.reply());
    assert_eq!(asked(&mesh.of([stranger.url()]), &kid).await, "unavailable");
    assert!(stranger.asked().is_empty());
    let settings = Settings::new(["http://127.0.0.1/"]).with_roots(vec![mesh.ca.root()]);
    assert!(matches!(Repositories::new(settings, &Handle::current()), Err(SettingsError::Base(_))));
    let settings = Settings::new([] as [&str; 0]);
    assert!(matches!(Repositories::new(settings, &Handle::current()), Err(SettingsError::NoBase)));
}

#[tokio::test]
async fn a16_one_fetch_for_each_key_however_many_wait_on_however_many_runtimes() {
    let mesh = Mesh::new();
    let kid = mesh.kid();
    let server = KeyServer::start(&mesh.ca).await;
    server.tell(kid.as_str(), Reply::Silence);
    let repositories = mesh.of([server.url()]);
    let waiting = |_| {
        let (repositories, kid) = (repositories.clone(), kid.clone());
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let all = (0..25).map(|_| repositories.ensure(&kid));
                futures_util::future::join_all(all).await;
                say(&repositories.cached(kid.as_str(), NOW))
            })
        })
    };
    let threads: Vec<_> = (0..4).map(waiting).collect();
    server.asked_times(1).await;
    server.tell(kid.as_str(), mesh.reply());
    for thread in threads {
        assert_eq!(thread.await.unwrap(), "found");
    }
    assert_eq!(server.asked().len(), 1);

    let other: Kid = "partner/other".parse().unwrap();
    assert_eq!(asked(&repositories, &other).await, "unknown");
    assert_eq!(server.asked().len(), 2, "another key is another fetch");
}

#[tokio::test]
async fn a16_a_stale_key_is_used_while_it_is_fetched_again_and_a_fresh_one_asks_nobody() {
    let mesh = Mesh::new();
    let kid = mesh.kid();
    let server = KeyServer::start(&mesh.ca).await;
    let lives = Reply::with(mesh.reply(), "cache-control", "max-age=60, stale-while-revalidate=30");
    server.tell(kid.as_str(), lives.clone());
    let repositories = mesh.of([server.url()]);
    assert_eq!(asked(&repositories, &kid).await, "found");

    let now = mesh.at(NOW + 47);
    repositories.poke();
    assert_eq!(say(&repositories.cached(kid.as_str(), now)), "found");
    assert_eq!(server.asked().len(), 1, "fresh");

    server.tell(kid.as_str(), Reply::Silence);
    let now = mesh.at(NOW + 60);
    assert_eq!(say(&repositories.cached(kid.as_str(), now)), "found", "at once, although the repository is silent");
    server.asked_times(2).await;
    repositories.ensure(&kid).await;
    assert_eq!(say(&repositories.cached(kid.as_str(), now)), "found", "nobody waits for a refresh");
    assert_eq!(server.asked().len(), 2, "and one is under way");

    server.tell(kid.as_str(), lives);
    let fresh = || say(&repositories.cached(kid.as_str(), NOW + 60 + 89)) == "found";
    until("the refresh has landed", fresh).await;
    assert_eq!(repositories.generation(), 0, "the same key: remembered verifications stay");
}

#[tokio::test]
async fn a16_a_dead_repository_leaves_a_key_for_its_stale_time_and_then_all_that_hung_on_it_goes() {
    let mesh = Mesh::new();
    let kid = mesh.kid();
    let server = KeyServer::start(&mesh.ca).await;
    server.tell(kid.as_str(), mesh.reply());
    let repositories = mesh.of([server.url()]);
    assert_eq!(asked(&repositories, &kid).await, "found");
    server.tell(kid.as_str(), Reply::status(503));

    // Neither header: 10 min fresh and 20 min stale.
    let now = mesh.at(NOW + 1799);
    assert_eq!(say(&repositories.cached(kid.as_str(), now)), "found");
    server.asked_times(2).await;
    let mut changes = repositories.changes();
    let now = mesh.at(NOW + 1800);
    repositories.poke();
    moved(&mut changes).await;
    assert_eq!(say(&repositories.cached(kid.as_str(), now)), "unavailable");
    assert_eq!(repositories.generation(), 1);
}

#[tokio::test]
async fn a16_a_404_on_refresh_removes_the_key_and_moves_the_generation_without_being_asked() {
    let mesh = Mesh::new();
    let kid = mesh.kid();
    let server = KeyServer::start(&mesh.ca).await;
    server.tell(kid.as_str(), mesh.reply().with("cache-control", "max-age=100"));
    let repositories = mesh.of([server.url()]);
    assert_eq!(asked(&repositories, &kid).await, "found");
    let mut changes = repositories.changes();
    server.tell(kid.as_str(), Reply::status(404));

    let now = mesh.at(NOW + 79);
    repositories.poke();
    assert_eq!(say(&repositories.cached(kid.as_str(), now)), "found");
    // From here on nobody looks: all calls are of remembered tokens.
    let now = mesh.at(NOW + 80);
    repositories.poke();
    moved(&mut changes).await;
    assert_eq!((repositories.generation(), server.asked().len()), (1, 2));
    assert_eq!(say(&repositories.cached(kid.as_str(), now)), "unknown");
}

#[tokio::test]
async fn a16_a_flood_of_unknown_keys_of_one_client_costs_a_bounded_number_of_fetches() {
    let mesh = Mesh::new();
    let server = KeyServer::start(&mesh.ca).await;
    let repositories = mesh.of([server.url()]);
    for n in 0..200 {
        let kid: Kid = format!("partner/{n}").parse().unwrap();
        let expected = if n < 30 { "unknown" } else { "unavailable" };
        assert_eq!(asked(&repositories, &kid).await, expected, "{n}");
    }
    assert_eq!(server.asked().len(), 30);
    let neighbour = mesh.of([server.url()]);
    assert_eq!(asked(&neighbour, &"partner/x".parse().unwrap()).await, "unknown", "another client is not held up");
    mesh.at(NOW + 1);
    assert_eq!(asked(&repositories, &"partner/y".parse().unwrap()).await, "unknown", "one more each second");
}

#[tokio::test]
async fn a16_a_repository_that_hangs_does_not_hold_up_keys_that_are_known() {
    let mesh = Mesh::new();
    let kid = mesh.kid();
    let server = KeyServer::start(&mesh.ca).await;
    server.tell(kid.as_str(), mesh.reply());
    let repositories = mesh.of([server.url()]);
    assert_eq!(asked(&repositories, &kid).await, "found");
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (repositories, kid): (_, Kid) = (repositories.clone(), format!("partner/{n}").parse().unwrap());
        server.tell(kid.as_str(), Reply::Silence);
        waiting.spawn(async move { repositories.ensure(&kid).await });
    }
    server.asked_times(21).await;
    repositories.ensure(&kid).await;
    assert_eq!(say(&repositories.cached(kid.as_str(), NOW)), "found");
    assert!(waiting.try_join_next().is_none(), "the others still wait");
}

#[tokio::test]
async fn the_last_clone_dropped_ends_the_refreshing() {
    let mesh = Mesh::new();
    let server = KeyServer::start(&mesh.ca).await;
    let repositories = mesh.of([server.url()]);
    let mut changes = repositories.changes();
    drop(repositories);
    assert!(changes.changed().await.is_err(), "nothing holds it any more");
}
