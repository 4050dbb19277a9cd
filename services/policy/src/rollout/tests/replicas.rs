//! Several policy services on one store: one drives, the others help, and take over when it is gone.

use journal::{Embedded, Journal, Publisher};
use mesh_identity::{Peer, SpiffeId};
use tenon_proto::replication::v1::{Ack, FollowRequest, Mode, Start, follow_request::Request};

use super::*;
use crate::{
    engine::{Journals, Origin},
    views::Allowlists,
};

/// One of them, without its server.
struct Service {
    rollouts: Arc<Rollouts>,
    driving: JoinHandle<()>,
    _recording: crate::flows::Recording,
}

async fn service_of(journals: &Journals, dir: &Path) -> Service {
    std::fs::create_dir(dir).unwrap();
    let (domain, shutdown) = ("test.example".parse().unwrap(), CancellationToken::new());
    let store = Store::Embedded(dir.join("store.redb"));
    let (fleet, recording) = crate::fleet::Fleet::open(&store, &domain, dir, &shutdown).await.unwrap();
    let engine = Arc::new(Engine::open(domain, Vec::new(), journals.clone()).await.unwrap());
    let allowlists = Arc::clone(&journals.allowlists);
    let followers = Publisher::start(kind::ALLOWLIST, allowlists, Arc::new(Allowlists), shutdown.clone());
    let rollouts = Arc::new(Rollouts::new(engine, fleet, followers, false));
    let driving = tokio::spawn(run(Arc::clone(&rollouts), shutdown));
    Service { rollouts, driving, _recording: recording }
}

/// A sidecar of media that acknowledges what it is told to; it goes when dropped.
async fn follow(service: &Service, instance: &str) -> mpsc::Sender<Result<FollowRequest, Status>> {
    let id = SpiffeId::service("test.example".parse().unwrap(), "media".parse().unwrap());
    let peer = Peer { id, serial: "1".to_owned(), not_after: u64::MAX, role: None };
    let start = Start {
        kind: kind::ALLOWLIST.to_owned(),
        mode: Mode::Full.into(),
        instance: instance.to_owned(),
        ..Start::default()
    };
    let (says, said) = mpsc::channel(4);
    let mut stream = service.rollouts.followers.follow(peer, start, ReceiverStream::new(said)).await.unwrap();
    tokio::spawn(async move { while let Some(Ok(_)) = stream.next().await {} });
    says
}

async fn record(service: &Service, what: &str, is: impl Fn(&Record) -> bool) -> Record {
    for _ in 0..6_000 {
        if let Some((record, _)) = service.rollouts.kept().await.unwrap()
            && is(&record)
        {
            return record;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it did not come true that {what}")
}

#[tokio::test(start_paused = true)]
async fn the_owner_believes_the_others_and_one_of_them_takes_over_when_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
    let kind = |kind| -> Arc<dyn Journal> { store.kind(kind).unwrap() };
    let journals = Journals {
        allowlists: kind("allowlist"),
        routes: kind("route"),
        endpoints: kind("endpoint"),
        quarantines: kind("quarantine"),
        attestors: kind("attestation"),
        sources: kind("source"),
    };
    let a = service_of(&journals, &dir.path().join("a")).await;
    let b = service_of(&journals, &dir.path().join("b")).await;
    let source = |methods: &[&str]| -> Vec<SourceFile> {
        files(methods).into_iter().map(|file| SourceFile { path: file.path, text: file.text }).collect()
    };
    let ann = || "spiffe://test.example/operator/ann".to_owned();
    let (none, origin) = (Vec::new(), Origin::Operator(ann()));
    a.rollouts.engine.apply(source(&["Get"]), none, origin, String::new(), None).await.unwrap();

    // It is known to both at first, and then to the other one alone.
    let at_first = follow(&a, "media-1").await;
    let says = follow(&b, "media-1").await;
    let proposed = Proposed {
        files: source(&["Get", "Put"]),
        signatures: Vec::new(),
        plan: plan(60),
        operator: ann(),
        note: String::new(),
        expected: None,
    };
    let Begun::Staged(staged) = a.rollouts.begin(proposed).await.unwrap() else { panic!("media changes") };
    drop(at_first);
    let begun = record(&a, "it is driven", |it| it.revision.is_some()).await;
    assert_eq!((begun.owner, begun.canaries[0].acknowledged), (a.rollouts.me, false));
    let ack = Ack { position: Some(staged.position.into()) };
    says.send(Ok(FollowRequest { request: Some(Request::Ack(ack)) })).await.unwrap();
    let held = record(&a, "it is held", |it| it.held_ms >= 20_000).await;
    assert_eq!((held.owner, held.canaries[0].acknowledged), (a.rollouts.me, true));

    a.driving.abort();
    let _ = a.driving.await;
    let (last, stopped) = (record(&b, "it is kept", |_| true).await, Instant::now());
    let taken = record(&b, "it is taken over", |it| it.owner == b.rollouts.me).await;
    let waited = stopped.elapsed();
    assert!(waited >= Duration::from_secs(10) && waited < Duration::from_secs(20), "{waited:?}");
    assert!(taken.held_ms == last.held_ms && taken.is_running(), "{last:?} {taken:?}");
    let reports = record(&b, "the hold is over", |it| it.phase() == super::super::record::Phase::Reports).await;
    assert!(stopped.elapsed() >= waited + Duration::from_millis(60_000 - last.held_ms), "{reports:?}");
    // Nobody has a stream on which it could have said what it refused.
    let over = record(&b, "it is over", |it| !it.is_running()).await;
    assert_eq!(over.reason, "nobody knows what was refused by media-1, which reports no calls");
    assert_eq!(over.state(), State::Halted);
}
