use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mesh_config::names::control_plane;

use super::state::AsapKey;
use super::*;
use crate::fake::{Fake, JOIN_TOKEN, OIDC_TOKEN, Running, SINGLE_USE, TABLE};
use crate::testing::{Ca, service};
use crate::{Rotation, SpiffeId, TrustBundle, Workload};

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
            attestation: Attestation { join_token: join_token.map(str::to_owned), ..Attestation::default() },
            service: service("media"),
            state_dir: self.dir.path().join("state"),
        }
    }

    fn attested(&self) -> u32 {
        self.running.counts.attested.load(Ordering::Relaxed)
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// As `config`, with these files for tokens.
    fn with_files(&self, join_token_file: Option<PathBuf>, oidc_token_file: Option<PathBuf>) -> Config {
        let attestation = Attestation { join_token: None, join_token_file, oidc_token_file };
        Config { attestation, ..self.config(None) }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
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
    assert_eq!(files.len(), 5, "{files:?}");
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
        let asap_key = AsapKey::generate(&service("media"), 7).unwrap();
        state::store_all(&dir, &config().pin, svid, &fixture.ca.bundle(), &asap_key).unwrap();
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
        ("of another mesh", &|| {
            damage("bundle.pin");
            std::fs::write(dir.join("bundle.pem"), Ca::new("demo.example").bundle().to_pem()).unwrap();
        }),
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
    assert_eq!(renew::until_half_life(&old, 0), renew::LEAST);
    assert!(matches!(SpiffeId::workload(svid.id()), Workload::Service(_)));
}

#[tokio::test]
async fn the_instance_has_a_name_that_outlives_its_identity_but_not_its_state_folder() {
    let fixture = Fixture::new().await;
    let first = join(fixture.config(Some(JOIN_TOKEN))).await.unwrap();
    let id = first.instance.strip_prefix("media-").unwrap();
    assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(join(fixture.config(None)).await.unwrap().instance, first.instance);
    std::fs::remove_file(fixture.state().join("svid.pem")).unwrap();
    assert_eq!(join(fixture.config(Some(JOIN_TOKEN))).await.unwrap().instance, first.instance);
    assert_eq!(fixture.running.behave().instances, [&*first.instance, &*first.instance]);

    std::fs::write(fixture.state().join("instance.id"), "issues-0123456789abcdef").unwrap();
    assert_ne!(join(fixture.config(None)).await.unwrap().instance, first.instance, "not with another's name");
    std::fs::remove_dir_all(fixture.state()).unwrap();
    assert_ne!(join(fixture.config(Some(JOIN_TOKEN))).await.unwrap().instance, first.instance);
}

#[tokio::test]
async fn a_mesh_whose_roots_were_rotated_is_known_by_each_pin_that_it_ever_had() {
    let fixture = Fixture::new().await;
    let first = join(fixture.config(Some(JOIN_TOKEN))).await.unwrap();
    let (old, new) = (fixture.ca.root().clone(), Ca::new("demo.example"));
    let bundle = |roots: &[&rustls_pki_types::CertificateDer<'static>]| {
        TrustBundle::new(fixture.ca.trust_domain().clone(), roots.iter().map(|root| (*root).clone()).collect()).unwrap()
    };
    let (both, last) = (bundle(&[&old, new.root()]), bundle(&[new.root()]));
    let with_pin = |pin: String| join(Config { pin, ..fixture.config(None) });

    state::store_svid(&fixture.state(), &first.identity.svid(), &both).unwrap();
    for pin in [fixture.config(None).pin, both.pin(), last.pin()] {
        assert_eq!(*with_pin(pin).await.unwrap().identity.bundle(), both, "all of the bundle, or one of its roots");
    }
    state::store_svid(&fixture.state(), &new.svid("media"), &last).unwrap();
    for pin in [fixture.config(None).pin, both.pin(), last.pin()] {
        assert_eq!(*with_pin(pin).await.unwrap().identity.bundle(), last);
    }
    let error = with_pin(Ca::new("demo.example").bundle().pin()).await.unwrap_err().to_string();
    assert!(error.contains("of another mesh"), "{error}");
}

#[tokio::test]
async fn the_first_pin_and_the_latest_are_kept_however_often_roots_are_rotated() {
    let fixture = Fixture::new().await;
    let joined = join(fixture.config(Some(JOIN_TOKEN))).await.unwrap();
    let bundles: Vec<_> = (0..20).map(|_| Ca::new("demo.example").bundle()).collect();
    for bundle in &bundles {
        state::store_svid(&fixture.state(), &joined.identity.svid(), bundle).unwrap();
    }
    let pins = std::fs::read_to_string(fixture.state().join("bundle.pin")).unwrap();
    let kept: Vec<_> = pins.lines().map(str::to_owned).collect();
    let expected: Vec<_> =
        [fixture.config(None).pin].into_iter().chain(bundles[4..].iter().map(TrustBundle::pin)).collect();
    assert_eq!(kept, expected);
}

#[tokio::test]
async fn a_pin_of_one_root_covers_this_root_alone_until_its_holder_has_answered() {
    let (ca, other) = (Arc::new(Ca::new("demo.example")), Ca::new("demo.example"));
    let both = vec![ca.root().clone(), other.root().clone()];
    let both = TrustBundle::new(ca.trust_domain().clone(), both).unwrap();
    let fixture = Fixture::with(|_| Fake { bundle: both.clone(), ..Fake::new(&ca) }).await;
    let config = |pin| Config { pin, ..fixture.config(Some(JOIN_TOKEN)) };
    // The identity service shows a certificate of the first root.
    assert!(matches!(join(config(other.bundle().pin())).await, Err(JoinError::Call { call: "Attest", .. })));
    assert_eq!(fixture.attested(), 0);
    assert!(join(config(ca.bundle().pin())).await.is_ok());
    std::fs::remove_dir_all(fixture.state()).unwrap();
    assert!(join(config(both.pin())).await.is_ok());
}

#[tokio::test]
async fn who_was_away_until_its_svid_ended_and_the_roots_were_rotated_gets_in_with_its_old_pin() {
    let fixture = Fixture::new().await;
    let first_pin = fixture.config(None).pin;
    join(fixture.config(Some(JOIN_TOKEN))).await.unwrap();
    let new = Arc::new(Ca::new("demo.example"));
    let now = clock::unix_seconds();
    let leaf = crate::testing::Leaf::uri(&fixture.ca.id("media").to_string());
    let ended = new.svid_of(&crate::testing::Leaf { not_before: now - 7200, not_after: now - 3600, ..leaf });
    state::store_svid(&fixture.state(), &ended, &new.bundle()).unwrap();

    let running = Fake::new(&new).start().await;
    let config = Config { identity_address: running.address, ..fixture.config(Some(JOIN_TOKEN)) };
    assert_eq!(config.pin, first_pin);
    let joined = join(config.clone()).await.unwrap();
    assert_eq!(*joined.identity.bundle(), new.bundle());
    // Somebody who was never there does not.
    let stranger = Config { state_dir: fixture.dir.path().join("stranger"), ..config };
    assert!(matches!(join(stranger).await, Err(JoinError::PinMismatch { .. })));
}

#[tokio::test]
async fn whoever_has_the_key_of_a_retired_root_gets_no_token_by_the_pin_of_that_root() {
    let fixture = Fixture::new().await;
    join(fixture.config(Some(JOIN_TOKEN))).await.unwrap();
    let new = Arc::new(Ca::new("demo.example"));
    let now = clock::unix_seconds();
    let leaf = crate::testing::Leaf::uri(&fixture.ca.id("media").to_string());
    let ended = new.svid_of(&crate::testing::Leaf { not_before: now - 7200, not_after: now - 3600, ..leaf });
    state::store_svid(&fixture.state(), &ended, &new.bundle()).unwrap();

    // Who answers now is of the root that the pin is of, and that the mesh has retired.
    let error = join(fixture.config(Some(JOIN_TOKEN))).await.unwrap_err();
    assert!(matches!(error, JoinError::Call { call: "Attest", .. }), "{error}");
    assert_eq!(fixture.attested(), 1);
}

#[tokio::test]
async fn how_far_rotations_are_is_known_after_a_restart() {
    let fixture = Fixture::new().await;
    let rotation = Rotation { sequence: 9, issuing_authority: Some([0xab; 32]), rekey_created_before: 1_800_000_000 };
    fixture.running.behave().rotation = rotation.clone();
    join(fixture.config(Some(JOIN_TOKEN))).await.unwrap();
    assert_eq!(*join(fixture.config(None)).await.unwrap().identity.bundle().rotation(), rotation);
    // What an earlier version wrote says nothing of it.
    std::fs::write(fixture.state().join("bundle.pem"), fixture.ca.bundle().to_pem()).unwrap();
    assert_eq!(*join(fixture.config(None)).await.unwrap().identity.bundle().rotation(), Rotation::default());
}

#[tokio::test]
async fn a_token_of_the_platform_attests_where_there_is_no_join_token() {
    let fixture = Fixture::new().await;
    let oidc = fixture.file("platform-token", &format!("{OIDC_TOKEN}\n"));
    for join_token in [None, Some(fixture.dir.path().join("absent")), Some(fixture.file("empty", " \n"))] {
        let config = fixture.with_files(join_token, Some(oidc.clone()));
        assert!(join(config).await.is_ok());
        std::fs::remove_dir_all(fixture.state()).unwrap();
    }
    // A join token that was used up is in nobody's way.
    let used = fixture.file("used", "used");
    assert!(join(fixture.with_files(Some(used), Some(oidc))).await.is_ok());
    std::fs::remove_dir_all(fixture.state()).unwrap();
    let good = fixture.file("good", JOIN_TOKEN);
    assert!(join(fixture.with_files(Some(good), Some(fixture.dir.path().join("absent")))).await.is_ok());
}

#[tokio::test]
async fn tokens_are_read_anew_for_each_attempt() {
    let fixture = Fixture::new().await;
    let path = fixture.file("platform-token", "not yet");
    let config = fixture.with_files(None, Some(path));
    let error = join(config.clone()).await.unwrap_err();
    assert!(matches!(error, JoinError::RefusedPlatform { .. }), "{error}");
    assert!(error.to_string().contains("platform-token: no such join token; an Attestor document"), "{error}");
    fixture.file("platform-token", OIDC_TOKEN);
    assert!(join(config).await.is_ok());
}

#[tokio::test]
async fn a_token_that_cannot_be_read_names_its_file_and_a_platform_token_of_another_service_is_refused() {
    let fixture = Fixture::new().await;
    let absent = fixture.dir.path().join("absent");
    let error = join(fixture.with_files(None, Some(absent))).await.unwrap_err();
    assert!(matches!(error, JoinError::TokenFile { .. }) && !error.is_final(), "{error}");
    assert!(error.to_string().contains("absent: there is no token"), "{error}");
    let folder = fixture.dir.path().to_owned();
    assert!(matches!(join(fixture.with_files(Some(folder), None)).await, Err(JoinError::TokenFile { .. })));
    let oidc = fixture.file("platform-token", OIDC_TOKEN);
    let config = Config { service: service("issues"), ..fixture.with_files(None, Some(oidc)) };
    assert!(matches!(join(config).await, Err(JoinError::RefusedPlatform { .. })));
}

#[tokio::test]
async fn of_two_processes_with_one_token_at_once_exactly_one_gets_in() {
    let fixture = Fixture::new().await;
    let config = |name: &str| Config { state_dir: fixture.dir.path().join(name), ..fixture.config(Some(SINGLE_USE)) };
    let (one, other) = tokio::join!(join(config("one")), join(config("other")));
    assert!(one.is_ok() != other.is_ok());
    let refused = one.err().or(other.err()).unwrap();
    assert!(matches!(refused, JoinError::Refused(..)), "{refused}");

    let with_own = |name: &str| Config { attestation: Attestation::join_token(JOIN_TOKEN), ..config(name) };
    let (one, other) = tokio::join!(join(with_own("third")), join(with_own("fourth")));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_ne!(one.instance, other.instance);
    assert_ne!(one.asap_key.kid(), other.asap_key.kid());
    assert_ne!(one.identity.svid().serial(), other.identity.svid().serial());
}

#[tokio::test]
async fn a_join_token_whose_answer_was_lost_is_shown_again_with_the_same_keys() {
    let fixture = Fixture::with(|fake| Fake { dies: 2.into(), ..fake }).await;
    for _ in 0..2 {
        assert!(matches!(join(fixture.config(Some(SINGLE_USE))).await, Err(JoinError::Call { call: "Attest", .. })));
    }
    let other = Config { state_dir: fixture.dir.path().join("other"), ..fixture.config(Some(SINGLE_USE)) };
    assert!(matches!(join(other).await, Err(JoinError::Refused(..))), "nobody else can");
    let joined = join(fixture.config(Some(SINGLE_USE))).await.unwrap();
    assert_eq!(join(fixture.config(None)).await.unwrap().asap_key.kid(), joined.asap_key.kid());
    assert!(!fixture.state().join("attempt.key").exists());
    // Keys of an attempt are not used for another.
    std::fs::remove_file(fixture.state().join("svid.pem")).unwrap();
    assert!(matches!(join(fixture.config(Some(SINGLE_USE))).await, Err(JoinError::Refused(..))));
}

#[tokio::test]
async fn an_identity_service_that_dies_between_attesting_and_answering_leaves_nothing_half_done() {
    let fixture = Fixture::with(|fake| Fake { dies: 1.into(), ..fake }).await;
    let oidc = fixture.file("platform-token", OIDC_TOKEN);
    let error = join(fixture.with_files(None, Some(oidc.clone()))).await.unwrap_err();
    assert!(matches!(error, JoinError::Call { call: "Attest", .. }) && !error.is_final(), "{error}");
    assert!(matches!(join(fixture.config(None)).await, Err(JoinError::NoToken { .. })), "nothing was stored");
    assert!(join(fixture.with_files(None, Some(oidc))).await.is_ok(), "and the next attempt works");
}

#[tokio::test]
async fn a_folder_without_room_ends_the_join_before_the_token_is_shown() {
    let fixture = Fixture::new().await;
    // Somebody else's file where the first one is to be written: whoever runs the tests, it cannot be replaced.
    std::fs::create_dir_all(fixture.state().join("attempt.key")).unwrap();
    let error = join(fixture.config(Some(SINGLE_USE))).await.unwrap_err();
    assert!(matches!(error, JoinError::State { .. }), "{error}");
    assert_eq!(fixture.attested(), 0);
    std::fs::remove_dir(fixture.state().join("attempt.key")).unwrap();
    assert!(join(fixture.config(Some(SINGLE_USE))).await.is_ok());
}

#[tokio::test]
async fn a_clock_that_is_behind_is_named_and_the_attempt_may_be_repeated() {
    let fixture = Fixture::new().await;
    join(fixture.config(Some(JOIN_TOKEN))).await.unwrap();
    let now = clock::unix_seconds();
    let leaf = crate::testing::Leaf::uri(&fixture.ca.id("media").to_string());
    let early = fixture.ca.svid_of(&crate::testing::Leaf { not_before: now + 600, not_after: now + 4200, ..leaf });
    state::store_svid(&fixture.state(), &early, &fixture.ca.bundle()).unwrap();
    let error = join(fixture.config(None)).await.unwrap_err();
    assert!(matches!(error, JoinError::NotYetValid { .. }) && !error.is_final(), "{error}");
    let text = error.to_string();
    assert!(text.contains("is not valid yet") && text.contains(&format!("begins at {}", now + 600)), "{text}");
    assert!(text.contains("timedatectl"), "{text}");
}

#[tokio::test]
async fn who_has_an_identity_from_elsewhere_keeps_key_and_name_in_its_state_folder() {
    let (ca, dir) = (Ca::new("demo.example"), tempfile::tempdir().unwrap());
    let state_dir = dir.path().join("state");
    let first = with_identity(ca.identity("media"), &state_dir).unwrap();
    assert_eq!(first.asap_key.issuer(), "media");
    let second = with_identity(ca.identity("media"), &state_dir).unwrap();
    assert_eq!((first.asap_key.kid(), &first.instance), (second.asap_key.kid(), &second.instance));
    assert_eq!(first.asap_key_created, second.asap_key_created);
    assert!(with_identity(ca.operator_identity("alice"), &state_dir).is_err());
}
