//! Followers and publishers over real gRPC connections on loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "loopback/never_reads.rs"]
mod never_reads;
#[path = "loopback/server.rs"]
mod server;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use journal::{Embedded, Everything, Journal, Position, Publisher, Settings, ViewName, Views, Write};
use mesh_identity::Peer;
use replica::{Decode, Decoded, Follow, Replica, Value as _};
use server::Server;
use tenon_proto::replication::v1::{
    FollowRequest, FollowerStatus, Mode, Start, StatusRequest, follow_request::Request as Following,
    follow_response::Response as Followed, replication_client::ReplicationClient,
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

const SOON: Duration = Duration::from_secs(20);

/// Refuses values that begin with "bad".
#[derive(Debug)]
struct NotBad;

type Text = Decoded<NotBad>;

impl Decode for NotBad {
    fn decode(_: &str, _: u64, raw: Bytes) -> Result<Self, String> {
        if raw.starts_with(b"bad") { Err("it is bad".to_owned()) } else { Ok(Self) }
    }
}

/// A server of two kinds on a port of its own.
struct Parent {
    server: Server,
    journal: Arc<dyn Journal>,
    other: Arc<dyn Journal>,
    publishers: [Publisher; 2],
}

impl Parent {
    async fn start(store: &Path, address: Option<SocketAddr>, settings: Settings, views: Arc<dyn Views>) -> Self {
        let store = Embedded::open(store).unwrap();
        let (journal, other) = (store.kind("tenant").unwrap(), store.kind("route").unwrap());
        let shutdown = CancellationToken::new();
        let publish = |kind, journal: &Arc<dyn Journal>| {
            Publisher::start_with(kind, Arc::clone(journal), Arc::clone(&views), settings, None, shutdown.clone())
        };
        let publishers = [publish("tenant", &journal), publish("route", &other)];
        let server = Server::start(publishers.to_vec(), address, shutdown).await;
        Self { server, journal, other, publishers }
    }

    fn channel(&self) -> Channel {
        self.server.channel()
    }

    async fn stop(self) -> SocketAddr {
        self.server.stop().await
    }

    async fn put(&self, key: &str, value: impl Into<Bytes>) -> Position {
        self.journal.append(vec![Write::put(key, value)]).await.unwrap()
    }

    async fn follower_when(&self, wanted: impl Fn(&FollowerStatus) -> bool) -> FollowerStatus {
        let found = async {
            loop {
                let status = self.publishers[0].status();
                if let Some(follower) = status.followers.into_iter().find(&wanted) {
                    return follower;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, found).await.unwrap()
    }
}

fn follow(
    kind: &'static str,
    channel: Channel,
    state: Option<&Path>,
) -> (Replica<Text>, JoinHandle<()>, CancellationToken) {
    let shutdown = CancellationToken::new();
    let follow = Follow {
        kind,
        instance: "media/test".to_owned(),
        parents: vec![channel],
        state_dir: state.map(Path::to_owned),
    };
    let (replica, task) = follow.start(|_| {}, shutdown.clone());
    (replica, task, shutdown)
}

async fn reaches(replica: &Replica<Text>, position: Position) {
    if timeout(SOON, replica.wait_for(position)).await.is_err() {
        panic!("{position} is not reached: {:?}", replica.status());
    }
}

fn held(replica: &Replica<Text>) -> BTreeMap<String, Bytes> {
    replica.entries().iter().map(|record| (record.key().to_owned(), Bytes::copy_from_slice(record.raw()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_kinds_are_followed_over_one_connection_and_operators_see_it() {
    let dir = tempfile::tempdir().unwrap();
    let parent = Parent::start(&dir.path().join("s"), None, Settings::default(), Arc::new(Everything)).await;
    parent.put("acme", "one").await;
    let route = parent.other.append(vec![Write::put("media", "route")]).await.unwrap();
    let channel = parent.channel();
    let (tenants, ..) = follow("tenant", channel.clone(), None);
    let (routes, ..) = follow("route", channel.clone(), None);
    let position = parent.put("acme", "two").await;
    reaches(&tenants, position).await;
    reaches(&routes, route).await;
    assert_eq!(
        (tenants.get("acme").unwrap().raw(), routes.get("media").unwrap().raw()),
        (b"two".as_slice(), b"route".as_slice())
    );
    assert!(tenants.get("media").is_none());

    let deleted = parent.journal.append(vec![Write::delete("acme")]).await.unwrap();
    reaches(&tenants, deleted).await;
    assert!(tenants.get("acme").is_none());

    parent.follower_when(|it| it.acknowledged == Some(deleted.into())).await;
    let mut client = ReplicationClient::new(channel);
    let status = client.status(StatusRequest { kind: "tenant".to_owned() }).await.unwrap().into_inner();
    let [kind] = &status.kinds[..] else { panic!("{status:?}") };
    assert_eq!((kind.head, kind.records, kind.followers.len()), (Some(deleted.into()), 0, 1));
    assert_eq!(kind.followers[0].spiffe_id, "spiffe://test.example/svc/media");
    assert_eq!(client.status(StatusRequest::default()).await.unwrap().into_inner().kinds.len(), 2);
    parent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_parent_is_resumed_from_and_sends_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("s");
    let parent = Parent::start(&store, None, Settings::default(), Arc::new(Everything)).await;
    let first = parent.put("acme", "one").await;
    let (replica, ..) = follow("tenant", parent.channel(), None);
    reaches(&replica, first).await;
    let address = parent.stop().await;
    assert_eq!(replica.get("acme").unwrap().raw(), b"one", "it serves while nobody is there");

    let parent = Parent::start(&store, Some(address), Settings::default(), Arc::new(Everything)).await;
    // Connected again, so that the view begins before the change.
    parent.follower_when(|_| true).await;
    let second = parent.put("acme", "two").await;
    reaches(&replica, second).await;
    assert_eq!((replica.get("acme").unwrap().raw(), replica.status().snapshots), (b"two".as_slice(), 1));
    parent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_starts_from_its_state_file_while_the_parent_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let parent = Parent::start(&dir.path().join("s"), None, Settings::default(), Arc::new(Everything)).await;
    let position = parent.put("acme", "one").await;
    let channel = parent.channel();
    let (replica, task, shutdown) = follow("tenant", channel.clone(), Some(dir.path()));
    reaches(&replica, position).await;
    shutdown.cancel();
    task.await.unwrap();
    parent.stop().await;

    let (replica, task, shutdown) = follow("tenant", channel, Some(dir.path()));
    assert_eq!(replica.position(), Some(position));
    assert_eq!(replica.get("acme").unwrap().raw(), b"one");
    shutdown.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_is_seen_by_operators_until_it_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let parent = Parent::start(&dir.path().join("s"), None, Settings::default(), Arc::new(Everything)).await;
    let good = parent.put("acme", "good").await;
    let (replica, ..) = follow("tenant", parent.channel(), None);
    reaches(&replica, good).await;
    let bad = parent.put("acme", "bad").await;
    let follower = parent.follower_when(|it| !it.nack.is_empty()).await;
    assert_eq!(follower.nack, format!("{bad}: record acme at revision {}: it is bad", bad.revision));
    assert_eq!(follower.acknowledged, Some(good.into()));
    assert_eq!(replica.get("acme").unwrap().raw(), b"good");
    let mended = parent.put("acme", "mended").await;
    parent.follower_when(|it| it.nack.is_empty() && it.acknowledged == Some(mended.into())).await;
    parent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_refused_and_went_is_shown_with_what_it_said_until_it_takes_something() {
    let dir = tempfile::tempdir().unwrap();
    let parent = Parent::start(&dir.path().join("s"), None, Settings::default(), Arc::new(Everything)).await;
    let good = parent.put("acme", "good").await;
    let (replica, task, shutdown) = follow("tenant", parent.channel(), Some(dir.path()));
    reaches(&replica, good).await;
    let bad = parent.put("acme", "bad").await;
    let refusing = parent.follower_when(|it| !it.nack.is_empty()).await;
    assert_ne!(refusing.connected_unix_seconds, 0);
    shutdown.cancel();
    task.await.unwrap();
    let gone = parent.follower_when(|it| it.connected_unix_seconds == 0).await;
    assert_eq!(gone, FollowerStatus { connected_unix_seconds: 0, ..refusing });
    assert!(parent.publishers[0].acknowledged().is_empty(), "nobody waits for who is gone");

    // Another of its name resumes where the refused record is part of what it holds: that is still outstanding.
    let mut streams = Vec::new();
    for resume in [good, bad] {
        let start =
            Start { resume: Some(resume.into()), instance: "media/test".to_owned(), ..start("tenant", Mode::Full) };
        streams.push(raw_start(&parent, start).await.unwrap());
        let again = parent.follower_when(|it| it.acknowledged == Some(resume.into())).await;
        assert_eq!((again.nack, again.connected_unix_seconds != 0), (gone.nack.clone(), true));
    }
    drop(streams);
    let mended = parent.put("acme", "mended").await;
    let (replica, ..) = follow("tenant", parent.channel(), Some(dir.path()));
    reaches(&replica, mended).await;
    parent.follower_when(|it| it.nack.is_empty() && it.acknowledged == Some(mended.into())).await;
    assert_eq!(parent.publishers[0].status().followers.iter().filter(|it| !it.nack.is_empty()).count(), 0);
    parent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_followers_get_a_large_snapshot_in_chunks_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { snapshots: 1, ..Settings::default() };
    let parent = Parent::start(&dir.path().join("s"), None, settings, Arc::new(Everything)).await;
    let writes = (0..600).map(|number| Write::put(format!("tenant-{number}"), vec![b'x'; 2048])).collect();
    let head = parent.journal.append(writes).await.unwrap();
    let channel = parent.channel();
    let followers: Vec<_> = (0..20).map(|_| follow("tenant", channel.clone(), None)).collect();
    for (replica, ..) in &followers {
        reaches(replica, head).await;
        assert_eq!(replica.status().records, 600);
    }
    parent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_reads_nothing_for_long_is_brought_up_by_a_snapshot_and_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { ring_changes: 50, ..Settings::default() };
    let parent = Parent::start(&dir.path().join("s"), None, settings, Arc::new(Everything)).await;
    parent.put("first", "x").await;
    let mut slow = raw_follow(&parent, "tenant", Mode::Full).await.unwrap();
    let Some(Followed::SnapshotStart(_)) = slow.next().await.unwrap().unwrap().response else { panic!("no snapshot") };

    let (quick, ..) = follow("tenant", parent.channel(), None);
    let mut head = Position::ZERO;
    for round in 0..40 {
        let writes = (0..40).map(|number| Write::put(format!("t-{number}"), vec![round; 4096])).collect();
        head = parent.journal.append(writes).await.unwrap();
        reaches(&quick, head).await;
    }
    let (mut bytes, mut snapshots) = (0, 0);
    loop {
        match timeout(SOON, slow.next()).await.unwrap().unwrap().unwrap().response {
            Some(Followed::SnapshotStart(_)) => snapshots += 1,
            Some(Followed::Delta(delta)) => {
                bytes += delta.changes.iter().filter_map(|change| change.value.as_ref()).map(Bytes::len).sum::<usize>();
                if delta.revision == head.revision {
                    break;
                }
            }
            Some(Followed::SnapshotChunk(chunk)) => {
                bytes += chunk.records.iter().map(|record| record.value.len()).sum::<usize>();
                if chunk.records.iter().any(|record| record.revision == head.revision) {
                    break;
                }
            }
            _ => {}
        }
    }
    assert!(snapshots >= 1, "it fell off the ring");
    assert!(bytes < 40 * 40 * 4096 / 2, "it was not sent every change of the past, yet {bytes} bytes came");
    parent.stop().await;
}

async fn raw_follow(
    parent: &Parent,
    kind: &str,
    mode: Mode,
) -> Result<tonic::Streaming<tenon_proto::replication::v1::FollowResponse>, Status> {
    raw_start(parent, start(kind, mode)).await
}

fn start(kind: &str, mode: Mode) -> Start {
    Start { kind: kind.to_owned(), mode: mode.into(), ..Start::default() }
}

async fn raw_start(
    parent: &Parent,
    start: Start,
) -> Result<tonic::Streaming<tenon_proto::replication::v1::FollowResponse>, Status> {
    let requests = tokio_stream::once(FollowRequest { request: Some(Following::Start(start)) });
    // The stream must stay open: its end would end the answers.
    let requests = requests.chain(tokio_stream::pending());
    let mut client = ReplicationClient::new(parent.channel());
    Ok(client.follow(requests).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let parent = Parent::start(&dir.path().join("s"), None, Settings::default(), Arc::new(Everything)).await;
    assert_eq!(raw_follow(&parent, "tenants", Mode::Full).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(raw_follow(&parent, "tenant", Mode::Unspecified).await.unwrap_err().code(), Code::InvalidArgument);
    let mut client = ReplicationClient::new(parent.channel());
    let ack = FollowRequest { request: Some(Following::Ack(Default::default())) };
    assert_eq!(client.follow(tokio_stream::once(ack)).await.unwrap_err().code(), Code::InvalidArgument);
    let mut request = tonic::Request::new(tokio_stream::pending());
    request.metadata_mut().insert("test-service", "nobody".parse().unwrap());
    assert_eq!(client.follow(request).await.unwrap_err().code(), Code::Unauthenticated);
    let unknown = client.status(StatusRequest { kind: "tenants".to_owned() }).await.unwrap_err();
    assert_eq!(
        (unknown.code(), unknown.message()),
        (Code::NotFound, "this server publishes tenant, route, not \"tenants\"")
    );
    parent.stop().await;
}

/// Shows nothing but keys that begin with a letter, and refuses everyone when there is none.
#[derive(Default)]
struct Letter(std::sync::Mutex<Option<char>>);

impl Views for Letter {
    fn view(&self, _: &Peer) -> Result<ViewName, Status> {
        let letter = self.0.lock().unwrap();
        letter.map(|letter| letter.to_string().into()).ok_or_else(|| Status::permission_denied("not for you"))
    }

    fn project(&self, view: &ViewName, key: &str, value: &Bytes) -> Option<Bytes> {
        key.starts_with(&**view).then(|| value.clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_view_replaces_the_map_and_a_lost_one_ends_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let views = Arc::new(Letter(Some('a').into()));
    let parent = Parent::start(&dir.path().join("s"), None, Settings::default(), Arc::clone(&views) as _).await;
    parent.put("abel", "1").await;
    let head = parent.put("berta", "1").await;
    let (replica, ..) = follow("tenant", parent.channel(), None);
    reaches(&replica, head).await;
    assert_eq!(held(&replica).into_keys().collect::<Vec<_>>(), ["abel"]);

    *views.0.lock().unwrap() = Some('b');
    parent.publishers[0].refresh_views();
    let mut positions = replica.subscribe();
    let changed = async {
        while !held(&replica).contains_key("berta") {
            positions.changed().await.unwrap();
        }
    };
    timeout(SOON, changed).await.unwrap();
    assert_eq!(held(&replica).into_keys().collect::<Vec<_>>(), ["berta"]);

    *views.0.lock().unwrap() = None;
    parent.publishers[0].refresh_views();
    let refused = async {
        while !replica.status().last_error.is_some_and(|error| error.contains("not for you")) {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, refused).await.unwrap();
    assert_eq!(held(&replica).len(), 1, "what is held stays in use");
    parent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_in_another_thread_never_sees_less_than_was_announced() {
    let dir = tempfile::tempdir().unwrap();
    let parent = Parent::start(&dir.path().join("s"), None, Settings::default(), Arc::new(Everything)).await;
    let count = |number: u64| Write::put("counter", number.to_be_bytes().to_vec());
    let head = parent.journal.append(vec![count(1)]).await.unwrap();
    let (replica, ..) = follow("tenant", parent.channel(), None);
    reaches(&replica, head).await;
    let (done, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let reader = {
        let (replica, done, looks) = (replica.clone(), Arc::clone(&done), Arc::clone(&looks));
        std::thread::spawn(move || {
            let mut last = 0;
            while !done.load(SeqCst) {
                let announced = replica.position().unwrap().revision;
                let value = replica.get("counter").unwrap();
                let seen = u64::from_be_bytes(value.raw().try_into().unwrap());
                assert!(seen >= announced && announced >= last, "{seen} at {announced} after {last}");
                last = announced;
                looks.fetch_add(1, SeqCst);
            }
        })
    };
    let mut head = head;
    for number in 2..200 {
        head = parent.journal.append(vec![count(number)]).await.unwrap();
    }
    reaches(&replica, head).await;
    done.store(true, SeqCst);
    reader.join().unwrap();
    assert!(looks.load(SeqCst) > 100);
    parent.stop().await;
}
