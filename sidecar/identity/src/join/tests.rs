use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mesh_config::names::control_plane;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::fake::{Fake, JOIN_TOKEN, Running, TABLE};
use crate::testing::{Ca, service};
use crate::{SpiffeId, Workload};

struct Fixture {
    ca: Arc<Ca>,
    running: Running,
    dir: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(|fake| fake).await
    }

    async fn with(change: impl FnOnce(Fake) -> Fake) -> Self {
        let ca = Arc::new(Ca::new("demo.example"));
        let running = change(Fake::new(&ca)).start().await;
        Self { ca, running, dir: tempfile::tempdir().unwrap() }
    }

    fn config(&self, join_token: Option<&str>) -> Config {
        Config {
            identity_address: self.running.address,
            pin: self.ca.bundle().pin(),
            join_token: join_token.map(str::to_owned),
            service: service("media"),
            state_dir: self.dir.path().join("state"),
        }
    }

    fn attested(&self) -> u32 {
        self.running.counts.attested.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_join_token_gives_an_svid_and_announces_an_asap_key() {
    let fixture = Fixture::new().await;
    let joined = join(fixture.config(Some(JOIN_TOKEN))).await.unwrap();
    assert_eq!(*joined.identity.id(), fixture.ca.id("media"));
    assert_eq!(*joined.identity.bundle(), fixture.ca.bundle());
    assert_eq!(joined.key_position, Some((7, 11)));
    assert_eq!(joined.asap_key.issuer(), "media");
    let (prefix, id) = joined.asap_key.kid().as_str().split_once('/').unwrap();
    assert!(prefix == "media" && id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
}

#[tokio::test]
async fn a_second_start_needs_neither_token_nor_network() {
    let fixture = Fixture::new().await;
    let first = join(fixture.config(Some(JOIN_TOKEN))).await.unwrap();
    let config = fixture.config(None);
    fixture.running.stop().await;
    let second = join(config).await.unwrap();
    assert_eq!(first.identity.svid().serial(), second.identity.svid().serial());
    assert_eq!(first.asap_key.kid(), second.asap_key.kid());
    assert_eq!(first.asap_key.public_spki(), second.asap_key.public_spki());
    assert_eq!(*first.identity.bundle(), *second.identity.bundle());
    assert_eq!(second.key_position, None);
}

#[tokio::test]
async fn state_is_for_its_owner_alone() {
    let fixture = Fixture::new().await;
    join(fixture.config(Some(JOIN_TOKEN))).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let state = fixture.dir.path().join("state");
    assert_eq!(mode(&state), 0o700);
    let files: Vec<_> = std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 4, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn a_bundle_that_is_not_the_pinned_one_ends_the_join_before_the_token_is_shown() {
    let fixture = Fixture::new().await;
    let pin = Ca::new("demo.example").bundle().pin();
    let error = join(Config { pin, ..fixture.config(Some(JOIN_TOKEN)) }).await.unwrap_err();
    assert!(matches!(error, JoinError::PinMismatch { .. }), "{error}");
    assert!(error.to_string().contains("is not the pinned one; if the mesh's CA was replaced, give its new SHA-256"));
    assert_eq!(fixture.attested(), 0);
    assert!(join(fixture.config(Some(JOIN_TOKEN))).await.is_ok());
}

#[tokio::test]
async fn whoever_relays_the_pinned_bundle_without_its_key_gets_no_token() {
    let (ca, impostor) = (Arc::new(Ca::new("demo.example")), Ca::new("demo.example"));
    for identity in [impostor.identity(control_plane::IDENTITY), ca.identity("issues")] {
        let running = Fake::new(&ca).start_as(Some(identity), TABLE).await;
        let fixture = Fixture { ca: Arc::clone(&ca), running, dir: tempfile::tempdir().unwrap() };
        let error = join(fixture.config(Some(JOIN_TOKEN))).await.unwrap_err();
        assert!(matches!(error, JoinError::Call { call: "Attest", .. }), "{error}");
        assert!(error.to_string().contains("invalid peer certificate"), "{error}");
        assert_eq!(fixture.attested(), 0);
    }
}

#[tokio::test]
async fn a_pin_that_is_none_says_so() {
    let fixture = Fixture::new().await;
    for pin in ["", "abc", &"g".repeat(64)] {
        let config = Config { pin: pin.to_owned(), ..fixture.config(Some(JOIN_TOKEN)) };
        assert!(matches!(join(config).await, Err(JoinError::Pin(_))), "{pin}");
    }
    let pin = fixture.ca.bundle().pin().to_ascii_uppercase();
    assert!(join(Config { pin, ..fixture.config(Some(JOIN_TOKEN)) }).await.is_ok());
}

#[tokio::test]
async fn a_refused_token_says_how_to_get_another() {
    let fixture = Fixture::new().await;
    let error = join(fixture.config(Some("used"))).await.unwrap_err();
    assert!(error.to_string().contains("tenon identity join-token --service media"), "{error}");
}

#[tokio::test]
async fn a_certificate_that_is_of_no_use_is_not_taken() {
    let other = Some(Arc::new(Ca::new("demo.example")));
    let fixtures = [
        (Fixture::with(|fake| Fake { names: Some("issues"), ..fake }).await, "a certificate of spiffe://"),
        (Fixture::with(|fake| Fake { signer: other, ..fake }).await, "BadSignature"),
    ];
    for (fixture, what) in fixtures {
        let error = join(fixture.config(Some(JOIN_TOKEN))).await.unwrap_err();
        assert!(matches!(error, JoinError::Answer(_)) && error.to_string().contains(what), "{error}");
        assert!(join(fixture.config(None)).await.is_err());
    }
}

#[tokio::test]
async fn without_state_and_token_the_error_says_what_to_do() {
    let fixture = Fixture::new().await;
    let error = join(fixture.config(None)).await.unwrap_err();
    assert!(error.to_string().contains("there is no stored identity"), "{error}");
    assert!(error.to_string().contains("tenon identity join-token --service media"), "{error}");
}

#[tokio::test]
async fn state_that_is_expired_damaged_or_somebody_elses_is_not_used_but_a_token_replaces_it() {
    let fixture = Fixture::new().await;
    let config = || fixture.config(None);
    let joined = join(fixture.config(Some(JOIN_TOKEN))).await.unwrap();
    let (good, dir) = (joined.identity.svid(), fixture.dir.path().join("state"));
    let store = |svid: &crate::Svid| {
        state::store_all(&dir, &config().pin, svid, &fixture.ca.bundle(), &joined.asap_key).unwrap();
    };
    let now = clock::unix_seconds();
    let leaf = crate::testing::Leaf::uri(&fixture.ca.id("media").to_string());
    let old = crate::testing::Leaf { not_before: now - 7200, not_after: now - 3600, ..leaf.clone() };
    let early = crate::testing::Leaf { not_before: now + 600, ..leaf };
    let damage = |file: &str| std::fs::write(dir.join(file), "damaged").unwrap();
    let cases: [(&str, &dyn Fn()); 7] = [
        ("has expired", &|| store(&fixture.ca.svid_of(&old))),
        ("not valid yet", &|| store(&fixture.ca.svid_of(&early))),
        ("is of spiffe://demo.example/svc/issues", &|| store(&fixture.ca.svid("issues"))),
        ("is damaged", &|| damage("svid.pem")),
        ("is damaged", &|| damage("asap.key")),
        ("is damaged", &|| damage("bundle.pem")),
        ("of another mesh", &|| damage("bundle.pin")),
    ];
    for (what, spoil) in cases {
        store(&good);
        assert!(join(config()).await.is_ok(), "{what}");
        spoil();
        let error = join(config()).await.unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
        assert!(join(fixture.config(Some(JOIN_TOKEN))).await.is_ok(), "{what}");
        assert!(join(config()).await.is_ok(), "{what}");
    }
}

#[tokio::test]
async fn state_that_cannot_be_written_names_the_folder() {
    let fixture = Fixture::new().await;
    let file = fixture.dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let config = Config { state_dir: file.join("state"), ..fixture.config(Some(JOIN_TOKEN)) };
    let error = join(config).await.unwrap_err();
    assert!(matches!(error, JoinError::State { .. }), "{error}");
    assert!(error.to_string().contains("file/state"), "{error}");
}

#[tokio::test]
async fn renewing_swaps_the_svid_in_place_and_on_disk_and_keeps_the_asap_key() {
    let fixture = Fixture::new().await;
    let config = fixture.config(Some(JOIN_TOKEN));
    let joined = join(config.clone()).await.unwrap();
    let (identity, before) = (Arc::clone(&joined.identity), joined.identity.svid());
    let channel = crate::grpc::channel(config.identity_address, &identity, &attest::identity_service());
    renew::renew(&joined, &config, channel).await.unwrap();
    let after = identity.svid();
    assert_ne!(before.serial(), after.serial());
    let stored = join(fixture.config(None)).await.unwrap();
    assert_eq!(stored.identity.svid().serial(), after.serial());
    assert_eq!(stored.asap_key.kid(), joined.asap_key.kid());
}

/// Until the SVID is another one than `serial`.
async fn renewed(identity: &Identity, serial: &str) {
    let changed = async {
        while identity.svid().serial() == serial {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), changed).await.unwrap();
}

#[tokio::test]
async fn an_svid_past_half_of_its_life_is_renewed_until_told_to_stop() {
    let fixture = Fixture::with(|fake| Fake { backdate: 6000, ..fake }).await;
    let config = fixture.config(Some(JOIN_TOKEN));
    let joined = join(config.clone()).await.unwrap();
    let (before, shutdown) = (joined.identity.svid(), CancellationToken::new());
    let task = keep_renewed(&joined, config, shutdown.clone());
    renewed(&joined.identity, before.serial()).await;
    shutdown.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_dead_identity_service_is_asked_again_until_it_is_back() {
    let fixture = Fixture::with(|fake| Fake { backdate: 6000, ..fake }).await;
    let config = fixture.config(Some(JOIN_TOKEN));
    let joined = join(config.clone()).await.unwrap();
    let before = joined.identity.svid();
    let (ca, address) = (Arc::clone(&fixture.ca), fixture.running.address);
    fixture.running.stop().await;
    let dead = tokio::net::TcpListener::bind(address).await.unwrap();
    let shutdown = CancellationToken::new();
    let task = keep_renewed(&joined, config, shutdown.clone());
    for _ in 0..3 {
        drop(dead.accept().await.unwrap());
    }
    assert_eq!(joined.identity.svid().serial(), before.serial());
    drop(dead);
    let back = Fake::new(&ca).start_at(address).await;
    renewed(&joined.identity, before.serial()).await;
    shutdown.cancel();
    task.await.unwrap();
    back.stop().await;
}

#[test]
fn renewal_is_due_between_half_and_six_tenths_of_the_life() {
    let ca = Ca::new("demo.example");
    let now = clock::unix_seconds();
    let leaf = crate::testing::Leaf {
        not_before: now,
        not_after: now + 1000,
        ..crate::testing::Leaf::uri("spiffe://demo.example/svc/media")
    };
    let svid = ca.svid_of(&leaf);
    let due = |random: u16| renew::until_half_life(&svid, random).as_secs();
    assert!((495..=500).contains(&due(0)), "{}", due(0));
    assert!((595..=600).contains(&due(u16::MAX)), "{}", due(u16::MAX));
    let old = ca.svid_of(&crate::testing::Leaf { not_before: now - 900, not_after: now + 100, ..leaf });
    assert_eq!(renew::until_half_life(&old, 0), renew::FIRST_PAUSE);
    assert!(matches!(SpiffeId::workload(svid.id()), Workload::Service(_)));
}
