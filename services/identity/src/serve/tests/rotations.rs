//! Rotations through the front door, with members of the mesh that follow and confirm as real ones do.

use mesh_identity::TrustBundle;
use mesh_identity::join::Membership;
use replica::{FollowTrust, Trust};
use tenon_proto::identity::v1::rotate_request::Step;
use tenon_proto::identity::v1::{RotateRequest, RotateResponse};
use tenon_proto::replication::v1::replication_client::ReplicationClient;
use tenon_proto::replication::v1::{FollowRequest, Mode, Start, follow_request};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::*;
use crate::Phase;

/// A process of the mesh: follows trust and keys, renews, confirms, replaces its key.
struct Member {
    joined: Joined,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Member {
    async fn start(service: &Service, name: &str) -> Self {
        let joined = service.join(name).await;
        let shutdown = service.shutdown.child_token();
        let dir = service.dir.path().join("sidecars").join(name);
        let from = FollowTrust::new(service.address, &joined.identity, &joined.instance, dir);
        let (_, following) = Trust::follow(from, &joined.identity, &shutdown);
        let channel = service.channel(&joined.identity);
        let keys =
            Follow { kind: kind::KEY, instance: joined.instance.to_string(), parents: vec![channel], state_dir: None };
        let (_, following_keys) = keys.start::<Raw>(|_| {}, shutdown.clone());
        let (_, mut tasks) = Membership::start(&joined, service.joining(name, None), &shutdown);
        tasks.extend(following);
        tasks.push(following_keys);
        Self { joined, shutdown, tasks }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }

    fn authority(&self) -> Option<[u8; 32]> {
        self.joined.identity.svid().issuing_authority()
    }
}

impl Service {
    async fn rotate(&self, step: Step) -> Result<RotateResponse, Status> {
        self.ca.reload().unwrap();
        let mut client = IdentityClient::new(self.channel(&self.operator()));
        let answer = client.rotate(RotateRequest { step: step.into() }).await.map(tonic::Response::into_inner);
        self.ca.reload().unwrap();
        answer
    }

    /// Until `what` is lacked by nobody.
    async fn settled(&self, what: &str) -> RotateResponse {
        let until = tokio::time::Instant::now() + DEADLINE;
        loop {
            let answer = self.rotate(Step::Unspecified).await.unwrap();
            if !answer.waiting.iter().any(|instance| instance.lacks.iter().any(|lack| lack == what)) {
                return answer;
            }
            assert!(tokio::time::Instant::now() < until, "{what} is lacked by {:?}", answer.waiting);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn bundle(answer: &RotateResponse) -> TrustBundle {
    TrustBundle::from_proto(answer.trust_bundle.as_ref().unwrap()).unwrap()
}

fn names(answer: &RotateResponse) -> Vec<&str> {
    answer.waiting.iter().map(|instance| instance.instance.as_str()).collect()
}

#[tokio::test]
async fn a_root_is_rotated_while_members_follow_and_each_ends_with_a_certificate_below_the_new_one() {
    let service = Service::start().await;
    let members = [Member::start(&service, "media").await, Member::start(&service, "issues").await];
    let old = service.ca.bundle().roots()[0].clone();
    assert!(service.settled("svid").await.waiting.is_empty());

    assert!(service.rotate(Step::RootPrepare).await.unwrap().done);
    let prepared = service.settled("trust-bundle").await;
    assert_eq!((prepared.root_rotation.as_str(), bundle(&prepared).roots().len()), ("prepared", 2));
    for member in &members {
        assert_eq!(*member.joined.identity.bundle(), bundle(&prepared));
    }

    let activated = service.rotate(Step::RootActivate).await.unwrap();
    assert!(activated.done, "{activated:?}");
    // Not before everybody has a certificate below the new root.
    let early = service.rotate(Step::RootRetire).await.unwrap();
    assert!(!early.done && early.waiting.iter().all(|instance| instance.lacks.contains(&"root".to_owned())));
    assert_eq!(early.message, "2 live instances do not have a certificate below the new root yet");
    let activated = service.settled("root").await;
    for member in &members {
        assert_eq!(member.authority(), bundle(&activated).rotation().issuing_authority);
    }

    let retired = service.rotate(Step::RootRetire).await.unwrap();
    assert!(retired.done, "{retired:?}");
    let retired = service.settled("trust-bundle").await;
    assert_eq!((retired.root_rotation.as_str(), retired.waiting.len()), ("none", 0));
    assert!(!bundle(&retired).roots().contains(&old));
    for member in members {
        assert_eq!(*member.joined.identity.bundle(), bundle(&retired));
        member.stop().await;
    }
    // The service itself shows a certificate below the new root, and took nobody's away.
    Member::start(&service, "wiki").await.stop().await;
    service.stop().await;
}

#[tokio::test]
async fn an_instance_that_does_not_follow_holds_up_the_activation_and_is_named() {
    let service = Service::start().await;
    let media = Member::start(&service, "media").await;
    let silent = service.join("issues").await;
    assert!(service.rotate(Step::RootPrepare).await.unwrap().done);
    let mut refused = service.rotate(Step::RootActivate).await.unwrap();
    while refused.waiting.len() > 1 {
        refused = service.rotate(Step::RootActivate).await.unwrap();
    }
    assert!(!refused.done);
    assert_eq!(names(&refused), [&*silent.instance]);
    assert_eq!(refused.message, "1 live instance does not trust the new root yet");
    assert_eq!(service.ca.phase(), Phase::Prepared);
    // One that does not follow, but was given the bundle with a certificate and says that it took it, holds up nothing.
    let mut client = IdentityClient::new(service.channel(&silent.identity));
    let asap_key = AsapKey { kid: silent.asap_key.kid().to_string(), spki: silent.asap_key.public_spki().into() };
    let instance = silent.instance.to_string();
    let csr = testing::csr().into();
    let renew = RenewRequest { csr, asap_key: Some(asap_key.clone()), instance: instance.clone() };
    let answer = client.renew(renew).await.unwrap().into_inner();
    assert_eq!(names(&service.rotate(Step::RootActivate).await.unwrap()), [&*silent.instance], "it may not have it");
    let issuing_authority = answer.trust_bundle.unwrap().issuing_authority;
    let (_, leaf) = X509Certificate::from_der(&answer.chain[0]).unwrap();
    let svid_not_after_unix_seconds = leaf.validity().not_after.timestamp().try_into().unwrap();
    let asap_key = Some(asap_key);
    let confirm = ConfirmRequest { asap_key, instance, issuing_authority, svid_not_after_unix_seconds, leaving: false };
    client.confirm(confirm).await.unwrap();
    assert!(service.rotate(Step::RootActivate).await.unwrap().done);
    media.stop().await;
    service.stop().await;
}

#[tokio::test]
async fn nobody_waits_for_an_instance_that_has_ended_as_it_should() {
    let service = Service::start().await;
    let wiki = Member::start(&service, "wiki").await;
    wiki.stop().await;
    assert!(service.rotate(Step::RootPrepare).await.unwrap().done);
    let activated = service.rotate(Step::RootActivate).await.unwrap();
    assert!(activated.done, "{activated:?}");
    service.stop().await;
}

#[tokio::test]
async fn nobody_waits_for_whom_nobody_lets_in() {
    let service = Service::start().await;
    let silent = service.join("wiki").await;
    assert!(service.rotate(Step::RootPrepare).await.unwrap().done);
    assert_eq!(names(&service.rotate(Step::RootActivate).await.unwrap()), [&*silent.instance]);
    let what = Some(revoke_request::What::Service("wiki".to_owned()));
    let mut operator = IdentityClient::new(service.channel(&service.operator()));
    operator.revoke(RevokeRequest { what, reason: String::new() }).await.unwrap();
    assert!(service.rotate(Step::RootActivate).await.unwrap().done);
    service.stop().await;
}

#[tokio::test]
async fn steps_out_of_turn_are_refused_and_say_what_comes_first() {
    let service = Service::start().await;
    for (step, says) in [
        (Step::RootActivate, "prepare one first"),
        (Step::RootRetire, "prepare a new one first"),
        (Step::RootAbandon, "no new root is prepared"),
    ] {
        let answer = service.rotate(step).await.unwrap();
        assert!(!answer.done && answer.message.contains(says), "{answer:?}");
    }
    assert!(service.rotate(Step::RootPrepare).await.unwrap().done);
    assert!(!service.rotate(Step::RootPrepare).await.unwrap().done);
    assert!(service.rotate(Step::RootAbandon).await.unwrap().done);
    assert_eq!((service.ca.phase(), service.ca.bundle().rotation().sequence), (Phase::None, 3));
    service.stop().await;
}

#[tokio::test]
async fn of_two_steps_at_once_one_is_done_and_the_other_is_told_why_not() {
    let service = Service::start().await;
    let (one, two) = tokio::join!(service.rotate(Step::RootPrepare), service.rotate(Step::RootPrepare));
    let done = |answer: &Result<RotateResponse, Status>| answer.as_ref().is_ok_and(|answer| answer.done);
    assert_eq!([done(&one), done(&two)].iter().filter(|done| **done).count(), 1, "{one:?}, {two:?}");
    let other = if done(&one) { two } else { one };
    match other {
        Ok(answer) => assert!(answer.message.contains("prepared already"), "{answer:?}"),
        Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
    }
    assert_eq!(service.ca.bundle().roots().len(), 2);
    service.stop().await;
}

#[tokio::test]
async fn a_new_issuing_ca_has_everybody_renew_and_a_rotation_of_keys_gives_everybody_a_new_one() {
    let service = Service::start().await;
    let members = [Member::start(&service, "media").await, Member::start(&service, "issues").await];
    let before = members[0].authority();
    assert!(service.rotate(Step::Issuing).await.unwrap().done);
    let now = bundle(&service.settled("svid").await).rotation().issuing_authority;
    assert_ne!(now, before);
    for member in &members {
        assert_eq!(member.authority(), now);
    }
    for step in 0..2 {
        // Keys that were made in this very second are as old as the rotation: they stay.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(service.rotate(Step::AsapKeys).await.unwrap().done);
        let answer = service.rotate(Step::Unspecified).await.unwrap();
        assert_eq!(answer.waiting.len(), 2, "{step}: {answer:?}");
        service.settled("asap-key").await;
    }
    let mut operator = IdentityClient::new(service.channel(&service.operator()));
    assert_eq!(asap_keys(&mut operator).await.len(), 6, "old ones stay until their last token has ended");
    for member in members {
        member.stop().await;
    }
    service.stop().await;
}

#[tokio::test]
async fn who_lives_and_how_far_a_rotation_is_outlives_a_restart() {
    let service = Service::start().await;
    let silent = service.join("media").await;
    assert!(service.rotate(Step::RootPrepare).await.unwrap().done);
    let service = Service::start_in(service.stop().await).await;
    let refused = service.rotate(Step::RootActivate).await.unwrap();
    assert_eq!((refused.done, names(&refused)), (false, vec![&*silent.instance]));
    assert_eq!(refused.root_rotation, "prepared");
    service.stop().await;
}

#[tokio::test]
async fn a_lost_store_is_filled_again_before_anybody_sees_its_keys() {
    let service = Service::start().await;
    let media = service.join("media").await;
    let dir = service.stop().await;
    fs::remove_dir_all(dir.path().join("identity")).unwrap();

    let service = Service::start_in(dir).await;
    let mut client = IdentityClient::new(service.channel(&media.identity));
    let mut follower = ReplicationClient::new(service.channel(&service.service("issues")));
    let start = Start { kind: kind::KEY.to_owned(), mode: Mode::Full.into(), ..Start::default() };
    let start = FollowRequest { request: Some(follow_request::Request::Start(start)) };
    let refused = follower.follow(unending(start)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let waiting = service.rotate(Step::RootPrepare).await.unwrap();
    assert!(!waiting.done && waiting.message.contains("the store is new or put back"), "{waiting:?}");

    let keys = service.follow(kind::KEY, &service.service("issues"));
    let asap_key = AsapKey { kid: media.asap_key.kid().to_string(), spki: media.asap_key.public_spki().into() };
    let confirm = ConfirmRequest {
        asap_key: Some(asap_key),
        instance: media.instance.to_string(),
        issuing_authority: media.identity.svid().issuing_authority().unwrap().to_vec().into(),
        svid_not_after_unix_seconds: media.identity.svid().not_after(),
        leaving: false,
    };
    client.confirm(confirm).await.unwrap();
    let mut positions = keys.subscribe();
    tokio::time::timeout(DEADLINE, positions.wait_for(Option::is_some)).await.unwrap().unwrap();
    assert!(keys.get(media.asap_key.kid().as_str()).is_some(), "the first that a follower sees is the whole set");
    assert!(service.rotate(Step::RootPrepare).await.unwrap().done);
    // The next start is an ordinary one.
    let service = Service::start_in(service.stop().await).await;
    assert!(service.rotate(Step::RootAbandon).await.unwrap().done);
    service.stop().await;
}

#[tokio::test]
async fn a_store_that_was_put_back_from_a_backup_is_another_history_and_filled_up_before_anybody_sees_its_keys() {
    let service = Service::start().await;
    let media = service.join("media").await;
    let dir = service.stop().await;
    let (store, backup) = (dir.path().join("identity/store.redb"), dir.path().join("backup"));
    fs::copy(&store, &backup).unwrap();
    let service = Service::start_in(dir).await;
    let issues = service.join("issues").await;
    let (epoch, _) = issues.key_position.unwrap();
    assert_eq!(epoch, media.key_position.unwrap().0, "a restart is not another history");
    let dir = service.stop().await;
    fs::copy(&backup, &store).unwrap();

    let service = Service::start_in(dir).await;
    let mut operator = IdentityClient::new(service.channel(&service.operator()));
    assert_eq!(asap_keys(&mut operator).await, [media.asap_key.kid().as_str()]);
    let keys = service.follow(kind::KEY, &service.service("wiki"));
    let mut client = IdentityClient::new(service.channel(&issues.identity));
    let asap_key = AsapKey { kid: issues.asap_key.kid().to_string(), spki: issues.asap_key.public_spki().into() };
    let instance = issues.instance.to_string();
    let confirm = ConfirmRequest { asap_key: Some(asap_key), instance, ..ConfirmRequest::default() };
    let position = client.confirm(confirm).await.unwrap().into_inner();
    assert!(position.key_epoch > epoch, "followers of before take it");
    let mut positions = keys.subscribe();
    tokio::time::timeout(DEADLINE, positions.wait_for(Option::is_some)).await.unwrap().unwrap();
    for member in [&media, &issues] {
        assert!(keys.get(member.asap_key.kid().as_str()).is_some(), "the first that a follower sees is the whole set");
    }
    service.stop().await;
}

#[tokio::test]
async fn a_join_token_that_was_used_since_the_backup_is_not_good_again() {
    let service = Service::start().await;
    let token = service.token("media").await;
    let dir = service.stop().await;
    let (store, backup) = (dir.path().join("identity/store.redb"), dir.path().join("backup"));
    fs::copy(&store, &backup).unwrap();
    let service = Service::start_in(dir).await;
    join::join(service.joining("media", Some(token.clone()))).await.unwrap();
    let dir = service.stop().await;
    fs::copy(&backup, &store).unwrap();

    let service = Service::start_in(dir).await;
    let mut config = service.joining("media", Some(token));
    config.state_dir = service.dir.path().join("elsewhere");
    let error = join::join(config).await.unwrap_err().to_string();
    assert!(error.contains("is not known"), "{error}");
    service.join("issues").await;
    service.stop().await;
}

#[tokio::test]
async fn an_operator_renews_and_stays_who_it_is() {
    let service = Service::start().await;
    let mut client = IdentityClient::new(service.channel(&service.operator()));
    let renew = RenewRequest { csr: testing::csr().into(), ..RenewRequest::default() };
    let answer = client.renew(renew).await.unwrap().into_inner();
    let (_, leaf) = X509Certificate::from_der(&answer.chain[0]).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::URI("spiffe://demo.example/operator/ada")]);
    assert_eq!((answer.chain.len(), answer.key_revision), (2, 0));
    service.stop().await;
}

#[tokio::test]
async fn what_this_version_made_of_a_ca_of_before_keeps_its_members() {
    let service = Service::start().await;
    let pin = service.ca.bundle().pin();
    let dir = service.stop().await;
    // As an older version left it: a root alone, and a store whose bundle has no sequence.
    for file in ["ca.json", "issuing-1.pem", "issuing-1.key"] {
        fs::remove_file(dir.path().join("ca").join(file)).unwrap();
    }
    let service = Service::start_in(dir).await;
    assert_eq!(service.ca.bundle().pin(), pin);
    assert!(service.ca.bundle().rotation().sequence > 1, "what followers have seen is passed");
    service.stop().await;
}

/// A stream of one message that does not end.
fn unending<T: Send + 'static>(first: T) -> impl futures_util::Stream<Item = T> + Send + 'static {
    use futures_util::StreamExt as _;
    futures_util::stream::iter([first]).chain(futures_util::stream::pending())
}
