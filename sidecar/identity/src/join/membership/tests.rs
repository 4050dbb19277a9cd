use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::fake::{Fake, JOIN_TOKEN, OIDC_TOKEN, Running};
use crate::join::{Attestation, join};
use crate::testing::{Ca, Leaf, service};
use crate::{Revoked, Rotation, Svid};

/// Nothing waits long, and nothing is done again by itself that a test did not ask for.
const BRISK: Timing = Timing {
    soon: Duration::from_millis(20),
    confirm: Duration::from_secs(3600),
    first_pause: Duration::from_millis(20),
    longest_pause: Duration::from_millis(100),
    poll: Duration::from_millis(10),
    key_life: Duration::from_secs(24 * 3600),
    longest_wait: Duration::from_secs(3600),
};

struct Fixture {
    ca: Arc<Ca>,
    running: Option<Running>,
    address: SocketAddr,
    dir: tempfile::TempDir,
    config: Config,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(|fake| fake).await
    }

    async fn with(change: impl FnOnce(Fake) -> Fake) -> Self {
        let ca = Arc::new(Ca::new("demo.example"));
        let running = change(Fake::new(&ca)).start().await;
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            identity_address: running.address,
            pin: ca.bundle().pin(),
            attestation: Attestation::join_token(JOIN_TOKEN),
            service: service("media"),
            state_dir: dir.path().join("state"),
        };
        let address = running.address;
        let (shutdown, tasks) = (CancellationToken::new(), Vec::new());
        Self { ca, running: Some(running), address, dir, config, shutdown, tasks }
    }

    fn fake(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    async fn join(&self) -> Joined {
        join(self.config.clone()).await.unwrap()
    }

    /// In the mesh, until [`Self::stop`].
    async fn member(&mut self) -> Arc<Membership> {
        self.member_timed(BRISK).await
    }

    async fn member_timed(&mut self, timing: Timing) -> Arc<Membership> {
        let joined = self.join().await;
        self.start(&joined, timing)
    }

    fn start(&mut self, joined: &Joined, timing: Timing) -> Arc<Membership> {
        let (member, tasks) = Membership::start_timed(joined, self.config.clone(), timing, &self.shutdown);
        self.tasks.extend(tasks);
        member
    }

    /// Ends the process.
    async fn stop(&mut self) {
        self.shutdown.cancel();
        for task in self.tasks.drain(..) {
            task.await.unwrap();
        }
        self.shutdown = CancellationToken::new();
    }

    /// What a restart would begin with.
    async fn stored(&self) -> Joined {
        join(Config { attestation: Attestation::default(), ..self.config.clone() }).await.unwrap()
    }

    fn state(&self, name: &str) -> PathBuf {
        self.config.state_dir.join(name)
    }

    /// The identity service dies; its address stays taken, so that nobody else gets it.
    async fn kill(&mut self) -> tokio::net::TcpListener {
        self.running.take().unwrap().stop().await;
        tokio::net::TcpListener::bind(self.address).await.unwrap()
    }

    async fn revive(&mut self, address: tokio::net::TcpListener, change: impl FnOnce(Fake) -> Fake) {
        drop(address);
        self.running = Some(change(Fake::new(&self.ca)).start_at(self.address).await);
    }

    fn rotate(&self, member: &Membership, rotation: Rotation) {
        self.fake().behave().rotation = rotation.clone();
        member.identity.set_bundle(self.ca.bundle().with_rotation(rotation)).unwrap();
    }

    fn count(&self, which: impl Fn(&crate::fake::Counts) -> &AtomicU32) -> u32 {
        which(&self.fake().counts).load(Ordering::Relaxed)
    }
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let holds = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), holds).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn kid(member: &Membership) -> String {
    member.asap_key().borrow().kid().to_string()
}

fn confirmed(fixture: &Fixture) -> Vec<(String, String, Vec<u8>)> {
    fixture.fake().behave().confirmations.clone()
}

fn revoked_kid(kid: &str) -> Revoked {
    Revoked { kids: [kid.to_owned()].into(), ..Revoked::default() }
}

#[tokio::test]
async fn an_svid_past_half_of_its_life_is_renewed_in_place_and_on_disk_with_the_same_asap_key() {
    let mut fixture = Fixture::with(|fake| Fake { backdate: 6000, ..fake }).await;
    let joined = fixture.join().await;
    let (before, opened) = (joined.identity.svid(), joined.identity.id().clone());
    let member = fixture.start(&joined, BRISK);
    until("renewed", || member.identity.svid().serial() != before.serial()).await;
    fixture.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(stored.identity.svid().serial(), member.identity.svid().serial());
    assert_eq!((stored.asap_key.kid(), stored.identity.id()), (joined.asap_key.kid(), &opened));
    let names = fixture.fake().behave().instances.clone();
    assert!(names.len() >= 2 && names.iter().all(|name| *name == *joined.instance), "{names:?}");
}

#[tokio::test]
async fn a_dead_identity_service_is_asked_again_until_it_is_back_and_that_can_be_seen_long_before_the_end() {
    let mut fixture = Fixture::with(|fake| Fake { backdate: 6000, ..fake }).await;
    let joined = fixture.join().await;
    let before = joined.identity.svid();
    let dead = fixture.kill().await;
    let member = fixture.start(&joined, BRISK);
    until("three failures", || member.standing().renewals.failed >= 3).await;
    let standing = member.standing();
    assert_eq!(member.identity.svid().serial(), before.serial());
    assert_eq!((standing.svid_not_after, standing.renewals.done), (before.not_after(), 0));
    assert!((3500..=3600).contains(&standing.svid_seconds_left), "{}", standing.svid_seconds_left);
    assert!(standing.confirmations.failed > 0 && standing.confirmations.age.is_none());
    let error = standing.renewals.error.unwrap();
    assert!(error.contains("did not answer Renew") && error.contains("check that it runs"), "{error}");

    fixture.revive(dead, |fake| fake).await;
    until("renewed", || member.identity.svid().serial() != before.serial()).await;
    until("confirmed", || member.standing().confirmations.done > 0).await;
    let standing = member.standing();
    assert!(standing.renewals.error.is_none() && standing.confirmations.error.is_none());
    assert!(standing.renewals.age.is_some() && standing.confirmations.age.is_some());
    fixture.stop().await;
}

#[tokio::test]
async fn an_identity_service_that_is_heard_again_is_not_kept_waiting() {
    let mut fixture = Fixture::with(|fake| Fake { backdate: 6000, ..fake }).await;
    let joined = fixture.join().await;
    let dead = fixture.kill().await;
    let hour = Duration::from_secs(3600);
    let member = fixture.start(&joined, Timing { first_pause: hour, longest_pause: hour, ..BRISK });
    until("both failed", || member.standing().renewals.failed == 1 && member.standing().confirmations.failed == 1)
        .await;
    fixture.revive(dead, |fake| fake).await;
    // Once may be too early for a task that has only just failed.
    until("renewed and confirmed", || {
        member.identity_service_heard();
        member.standing().renewals.done > 0 && member.standing().confirmations.done > 0
    })
    .await;
    fixture.stop().await;
}

#[tokio::test]
async fn another_issuing_authority_is_followed_soon_and_an_svid_of_another_one_is_not_asked_for_without_end() {
    let mut fixture = Fixture::new().await;
    let member = fixture.member().await;
    let issuing = Arc::new(fixture.ca.issuing());
    fixture.fake().behave().ca = Some(Arc::clone(&issuing));
    let rotation = |sequence, authority| Rotation { sequence, issuing_authority: authority, ..Rotation::default() };
    fixture.rotate(&member, rotation(1, issuing.authority()));
    until("tried", || member.standing().renewals.failed + member.standing().renewals.done > 0).await;
    assert_eq!(member.standing().renewals.error, None);
    until("followed", || member.identity.svid().issuing_authority() == issuing.authority()).await;
    let authority = issuing.authority().unwrap().to_vec();
    until("confirmed", || confirmed(&fixture).iter().any(|(_, _, of)| *of == authority)).await;
    assert_eq!(fixture.count(|counts| &counts.renewed), 1);

    // It announces one and signs with another.
    fixture.rotate(&member, rotation(2, Some([7; 32])));
    until("tried", || fixture.count(|counts| &counts.renewed) == 2).await;
    let first = member.identity.svid();
    let mut changes = member.identity.changes();
    fixture.rotate(&member, rotation(3, Some([7; 32])));
    changes.changed().await.unwrap();
    fixture.rotate(&member, rotation(4, Some([8; 32])));
    until("tried for the next one", || fixture.count(|counts| &counts.renewed) == 3).await;
    assert_ne!(first.serial(), "");
    fixture.stop().await;
}

#[tokio::test]
async fn who_lost_its_svid_while_the_identity_service_was_down_gets_in_again_without_a_restart() {
    let mut fixture = Fixture::new().await;
    fixture.fake().behave().life = 1;
    let joined = fixture.join().await;
    let dead = fixture.kill().await;
    let oidc = fixture.dir.path().join("platform-token");
    fixture.config.attestation = Attestation { oidc_token_file: Some(oidc.clone()), ..Attestation::default() };
    let member = fixture.start(&joined, BRISK);
    until("it has ended", || member.standing().svid_seconds_left < 0).await;
    until("it says what it needs", || {
        member.standing().renewals.error.is_some_and(|error| error.contains("platform-token: there is no token"))
    })
    .await;
    std::fs::write(&oidc, OIDC_TOKEN).unwrap();
    fixture.revive(dead, |fake| fake).await;
    until("it is in", || member.standing().svid_seconds_left > 0).await;
    assert_eq!(kid(&member), joined.asap_key.kid().as_str(), "peers know its key");
    until("confirmed", || member.standing().confirmations.done > 0).await;
    assert_eq!(fixture.fake().behave().instances, [&*joined.instance]);
    fixture.stop().await;
    assert_eq!(fixture.stored().await.identity.svid().serial(), member.identity.svid().serial());
}

#[tokio::test]
async fn who_has_nothing_to_attest_itself_with_says_so_and_takes_a_join_token_once_there_is_one() {
    let mut fixture = Fixture::new().await;
    fixture.fake().behave().life = 1;
    let joined = fixture.join().await;
    let file = fixture.dir.path().join("join-token");
    fixture.config.attestation = Attestation { join_token_file: Some(file.clone()), ..Attestation::default() };
    until("it has ended", || clock::unix_seconds() > joined.identity.svid().not_after()).await;
    fixture.fake().behave().life = 3600;
    let member = fixture.start(&joined, BRISK);
    until("it says what it needs", || {
        member.standing().renewals.error.is_some_and(|error| error.contains("identity join-token --service media"))
    })
    .await;
    std::fs::write(&file, JOIN_TOKEN).unwrap();
    until("it is in", || member.standing().svid_seconds_left > 0).await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_revoked_certificate_is_replaced_by_attesting_again() {
    let mut fixture = Fixture::new().await;
    let member = fixture.member().await;
    let before = member.identity.svid();
    member.identity.set_revoked(Revoked { serials: [before.serial().to_owned()].into(), ..Revoked::default() });
    until("another one", || member.identity.svid().serial() != before.serial()).await;
    assert_eq!(fixture.count(|counts| &counts.attested), 2);
    assert_eq!(fixture.count(|counts| &counts.renewed), 0);
    fixture.stop().await;
}

#[tokio::test]
async fn roots_that_replication_brings_are_on_disk_before_the_process_ends() {
    let mut fixture = Fixture::new().await;
    let member = fixture.member().await;
    let roots = vec![fixture.ca.root().clone(), Ca::new("demo.example").root().clone()];
    let both = crate::TrustBundle::new(fixture.ca.trust_domain().clone(), roots).unwrap();
    member.identity.set_bundle(both.clone()).unwrap();
    let path = fixture.state("bundle.pem");
    until("written", || std::fs::read_to_string(&path).unwrap().matches("BEGIN CERTIFICATE").count() == 2).await;
    fixture.stop().await;
    assert_eq!(*fixture.stored().await.identity.bundle(), both);
}

#[tokio::test]
async fn a_state_folder_without_room_takes_no_certificate_away_and_is_an_alarm() {
    let mut fixture = Fixture::with(|fake| Fake { backdate: 6000, ..fake }).await;
    let joined = fixture.join().await;
    let (before, bundle) = (joined.identity.svid(), fixture.state("bundle.pem"));
    std::fs::remove_file(&bundle).unwrap();
    std::fs::create_dir(&bundle).unwrap();
    let member = fixture.start(&joined, BRISK);
    until("renewed", || member.identity.svid().serial() != before.serial()).await;
    until("told", || member.standing().state_error.is_some_and(|error| error.contains("bundle.pem"))).await;
    std::fs::remove_dir(&bundle).unwrap();
    fixture.stop().await;
    assert!(member.standing().state_error.is_none());
    assert_eq!(fixture.stored().await.identity.svid().serial(), member.identity.svid().serial());
}

#[tokio::test]
async fn an_instance_is_confirmed_at_its_start_every_minute_and_when_somebody_asks() {
    let mut fixture = Fixture::new().await;
    let timing = Timing { confirm: Duration::from_millis(30), ..BRISK };
    let member = fixture.member_timed(timing).await;
    until("again and again", || fixture.count(|counts| &counts.confirmed) > 3).await;
    let all = confirmed(&fixture);
    assert!(all.iter().all(|(name, of, _)| *name == *member.instance && *of == kid(&member)), "{all:?}");
    fixture.stop().await;

    let member = fixture.member().await;
    until("at the start", || member.standing().confirmations.done == 1).await;
    member.identity_service_heard();
    until("on request", || member.standing().confirmations.done == 2).await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_new_asap_key_signs_only_when_everybody_has_it() {
    let mut fixture = Fixture::new().await;
    let member = fixture.member().await;
    let (old, mut keys) = (kid(&member), member.asap_key());
    keys.mark_unchanged();
    fixture.fake().behave().behind = 2;
    let before = clock::unix_seconds() + 100;
    fixture.rotate(&member, Rotation { sequence: 1, rekey_created_before: before, ..Rotation::default() });
    until("the next one is published", || confirmed(&fixture).iter().filter(|(_, of, _)| *of != old).count() > 3).await;
    assert_eq!((kid(&member), keys.has_changed().unwrap()), (old.clone(), false), "two instances are behind");
    assert_eq!(fixture.stored().await.asap_key.kid().as_str(), old);

    fixture.fake().behave().behind = 0;
    until("it signs", || kid(&member) != old).await;
    until("counted", || member.standing().rekeyings.done == 1).await;
    let new = kid(&member);
    let published: std::collections::BTreeSet<_> = confirmed(&fixture).into_iter().map(|(_, of, _)| of).collect();
    assert_eq!(published, [old, new.clone()].into(), "one new key, and no more");
    assert_eq!(member.standing().asap_key_created, before, "never older than was asked for");
    fixture.stop().await;
    let stored = fixture.stored().await;
    assert_eq!((stored.asap_key.kid().as_str(), stored.asap_key_created), (new.as_str(), before));
    assert!(!fixture.state("asap.next.key").exists());
}

#[tokio::test]
async fn a_key_that_is_a_day_old_is_replaced_and_one_that_is_not_stays() {
    let mut fixture = Fixture::new().await;
    let fresh = fixture.join().await;
    let day = 24 * 3600;
    let aged = Joined { asap_key_created: clock::unix_seconds() - day - day / 10, ..fresh.clone() };
    let member = fixture.start(&aged, BRISK);
    until("replaced", || kid(&member) != aged.asap_key.kid().as_str()).await;
    fixture.stop().await;

    let young = Joined { asap_key_created: clock::unix_seconds() - day + 60, ..fresh };
    let member = fixture.start(&young, BRISK);
    until("confirmed", || member.standing().confirmations.done > 0).await;
    assert!(
        tokio::time::timeout(
            Duration::from_millis(200),
            member.asap_key().wait_for(|key| key.kid() != young.asap_key.kid())
        )
        .await
        .is_err()
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_restart_in_the_middle_goes_on_with_the_key_that_was_published() {
    let mut fixture = Fixture::new().await;
    let member = fixture.member().await;
    let old = kid(&member);
    fixture.fake().behave().behind = 1;
    let before = clock::unix_seconds() + 1;
    fixture.rotate(&member, Rotation { sequence: 1, rekey_created_before: before, ..Rotation::default() });
    until("published", || confirmed(&fixture).iter().any(|(_, of, _)| *of != old)).await;
    let (_, next, _) = confirmed(&fixture).into_iter().find(|(_, of, _)| *of != old).unwrap();
    fixture.stop().await;

    let stored = fixture.stored().await;
    assert_eq!(stored.asap_key.kid().as_str(), old, "it signs until everybody has the next one");
    fixture.fake().behave().behind = 0;
    let member = fixture.start(&stored, BRISK);
    until("it signs", || kid(&member) == next).await;
    fixture.stop().await;
}

#[tokio::test]
async fn without_room_for_the_next_key_the_present_one_goes_on_and_that_is_told_until_it_works() {
    let mut fixture = Fixture::new().await;
    let member = fixture.member().await;
    let (old, blocked) = (kid(&member), fixture.state("asap.next.key"));
    std::fs::create_dir(&blocked).unwrap();
    fixture.rotate(&member, Rotation { sequence: 1, rekey_created_before: u64::MAX / 2, ..Rotation::default() });
    until("failed twice", || member.standing().rekeyings.failed >= 2).await;
    assert_eq!(kid(&member), old);
    assert!(confirmed(&fixture).iter().all(|(_, of, _)| *of == old), "a key that is not on disk is not published");
    let error = member.standing().rekeyings.error.unwrap();
    assert!(error.contains("asap.next.key") && error.contains("disk is not full"), "{error}");
    std::fs::remove_dir(&blocked).unwrap();
    until("it signs", || kid(&member) != old).await;
    assert!(member.standing().rekeyings.error.is_none());
    fixture.stop().await;
}

#[tokio::test]
async fn a_revoked_key_is_replaced_at_once_whoever_is_behind_and_however_full_the_disk_is() {
    let mut fixture = Fixture::new().await;
    let member = fixture.member().await;
    fixture.fake().behave().behind = 5;
    let first = kid(&member);
    member.identity.set_revoked(revoked_kid(&first));
    until("replaced", || kid(&member) != first).await;
    assert_eq!(fixture.stored().await.asap_key.kid().as_str(), kid(&member));

    for blocked in ["asap.next.key", "asap.key"] {
        let _ = std::fs::remove_file(fixture.state(blocked));
        std::fs::create_dir(fixture.state(blocked)).unwrap();
    }
    let second = kid(&member);
    member.identity.set_revoked(revoked_kid(&second));
    until("replaced", || kid(&member) != second).await;
    until("published", || confirmed(&fixture).iter().any(|(_, of, _)| *of == kid(&member))).await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_revocation_ends_the_wait_for_those_who_are_behind() {
    let mut fixture = Fixture::new().await;
    let member = fixture.member().await;
    let old = kid(&member);
    fixture.fake().behave().behind = 1;
    fixture.rotate(&member, Rotation { sequence: 1, rekey_created_before: u64::MAX / 2, ..Rotation::default() });
    until("published", || confirmed(&fixture).iter().any(|(_, of, _)| *of != old)).await;
    assert_eq!(kid(&member), old);
    member.identity.set_revoked(revoked_kid(&old));
    until("it signs", || kid(&member) != old).await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_next_key_that_is_revoked_or_too_old_before_its_first_use_never_signs() {
    let mut fixture = Fixture::new().await;
    let member = fixture.member().await;
    let old = kid(&member);
    fixture.fake().behave().behind = 1;
    let rotation = |sequence, before| Rotation { sequence, rekey_created_before: before, ..Rotation::default() };
    let now = clock::unix_seconds();
    let latest = |fixture: &Fixture, but: &[&String]| {
        confirmed(fixture).into_iter().map(|(_, of, _)| of).rfind(|of| !but.contains(&of))
    };
    fixture.rotate(&member, rotation(1, now + 100));
    until("published", || latest(&fixture, &[&old]).is_some()).await;
    let second = latest(&fixture, &[&old]).unwrap();
    member.identity.set_revoked(revoked_kid(&second));
    until("another one", || latest(&fixture, &[&old, &second]).is_some()).await;
    let third = latest(&fixture, &[&old, &second]).unwrap();
    fixture.rotate(&member, rotation(2, now + 200));
    until("yet another one", || latest(&fixture, &[&old, &second, &third]).is_some()).await;
    assert_eq!(kid(&member), old);
    fixture.fake().behave().behind = 0;
    until("it signs", || kid(&member) != old).await;
    assert!(![second, third].contains(&kid(&member)));
    fixture.stop().await;
}

#[tokio::test]
async fn who_never_follows_holds_up_nobody_for_ever_but_a_dead_identity_service_does() {
    let mut fixture = Fixture::new().await;
    let timing = Timing { longest_wait: Duration::from_millis(50), ..BRISK };
    let joined = fixture.join().await;
    let old = joined.asap_key.kid().to_string();
    let dead = fixture.kill().await;
    let member = fixture.start(&joined, timing);
    let rotation = Rotation { sequence: 1, rekey_created_before: u64::MAX / 2, ..Rotation::default() };
    member.identity.set_bundle(fixture.ca.bundle().with_rotation(rotation.clone())).unwrap();
    until("many failures", || member.standing().rekeyings.failed > 5).await;
    assert_eq!(kid(&member), old, "nobody has the next one");
    fixture.revive(dead, |fake| fake).await;
    *fixture.fake().behave() = crate::fake::Behaviour { behind: 1, rotation, ..Default::default() };
    until("it signs", || kid(&member) != old).await;
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_left_of_an_svid_is_negative_once_it_has_ended() {
    let mut fixture = Fixture::new().await;
    let joined = fixture.join().await;
    let now = clock::unix_seconds();
    let leaf = Leaf { not_before: now - 7200, not_after: now - 60, ..Leaf::uri(&fixture.ca.id("media").to_string()) };
    let ended: Svid = fixture.ca.svid_of(&leaf);
    joined.identity.set_svid(ended).unwrap();
    fixture.config.attestation = Attestation::default();
    let member = fixture.start(&joined, BRISK);
    assert!((-70..=-60).contains(&member.standing().svid_seconds_left));
    fixture.stop().await;
}
