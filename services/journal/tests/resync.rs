//! What followers are sent that hold something already, or hold nothing on purpose; relays; and what a publisher refuses to
//! publish. Over real gRPC connections on loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "loopback/server.rs"]
mod server;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use journal::{Embedded, Everything, Journal, Position, Publisher, RelaySource, Settings, ViewName, Views, Write};
use mesh_identity::Peer;
use replica::{Digest, Follow, Guard, Raw, Replica, Value as _};
use server::Server;
use tenon_proto::replication::v1::{
    FetchRequest, FollowRequest, FollowResponse, GuardRules, Mode, Start, follow_request::Request,
    follow_response::Response, guard_rules::Override, replication_client::ReplicationClient,
};
use tokio::{sync::watch, time::timeout};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming, transport::Channel};

const SOON: Duration = Duration::from_secs(20);
const KIND: &str = "tenant";

/// Everyone sees the first three bytes of each record; its aliases are its words; keys with a slash are nobody's.
struct Short;

impl Views for Short {
    fn view(&self, _: &Peer) -> Result<ViewName, Status> {
        Ok("short".into())
    }

    fn project(&self, _: &ViewName, key: &str, value: &Bytes) -> Option<Bytes> {
        (!self.hides(key)).then(|| value.slice(..value.len().min(3)))
    }

    fn hides(&self, key: &str) -> bool {
        key.contains('/')
    }

    fn aliases<'v>(&self, value: &'v [u8]) -> Vec<&'v str> {
        std::str::from_utf8(value).unwrap().split_whitespace().collect()
    }
}

fn open(store: &Path) -> Arc<dyn Journal> {
    Embedded::open(store).unwrap().kind(KIND).unwrap()
}

async fn publish(journal: &Arc<dyn Journal>, views: impl Views, settings: Settings) -> Server {
    let shutdown = CancellationToken::new();
    let publisher = Publisher::start_with(KIND, Arc::clone(journal), Arc::new(views), settings, None, shutdown.clone());
    Server::start(vec![publisher], None, shutdown).await
}

fn follow(channel: Channel) -> Replica<Raw> {
    let follow = Follow { kind: KIND, instance: "media/test".to_owned(), parents: vec![channel], state_dir: None };
    follow.start(|_| {}, CancellationToken::new()).0
}

/// A relay of what listens at `channel`, with the rules that it was told.
async fn relay(channel: Channel, views: impl Views) -> (Server, Publisher, Replica<Raw>) {
    let shutdown = CancellationToken::new();
    let follow = Follow { kind: KIND, instance: "relay".to_owned(), parents: vec![channel], state_dir: None };
    let (source, _) = RelaySource::<Raw>::follow(follow, |_| {}, shutdown.clone());
    let (replica, rules) = (source.replica().clone(), source.replica().guard_rules());
    let publisher = Publisher::start_guarded(KIND, source, Arc::new(views), rules, shutdown.clone());
    (Server::start(vec![publisher.clone()], None, shutdown).await, publisher, replica)
}

async fn reaches(replica: &Replica<Raw>, position: Position) {
    if timeout(SOON, replica.wait_for(position)).await.is_err() {
        panic!("{position} is not reached: {:?}", replica.status());
    }
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let waiting = async {
        while !is() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

fn held(replica: &Replica<Raw>) -> BTreeMap<String, (u64, Vec<u8>)> {
    let entries = replica.entries();
    entries.iter().map(|value| (value.key().to_owned(), (value.revision(), value.raw().to_vec()))).collect()
}

fn many(count: usize) -> Vec<Write> {
    (0..count).map(|number| Write::put(format!("tenant-{number}"), format!("value {number}"))).collect()
}

/// A stream of which each message is looked at.
struct Stream(Streaming<FollowResponse>);

impl Stream {
    async fn open(channel: Channel, start: Start) -> Self {
        let start = Start { kind: KIND.to_owned(), ..start };
        let requests = tokio_stream::once(FollowRequest { request: Some(Request::Start(start)) });
        // The stream must stay open: its end would end the answers.
        let requests = requests.chain(tokio_stream::pending());
        Self(ReplicationClient::new(channel).follow(requests).await.unwrap().into_inner())
    }

    /// The next message that is no heartbeat.
    async fn next(&mut self) -> Response {
        loop {
            let message = timeout(SOON, self.0.next()).await.unwrap().unwrap().unwrap();
            let response = message.response.unwrap();
            if !matches!(response, Response::Heartbeat(_)) {
                return response;
            }
        }
    }

    /// Buckets and keys of the snapshot that comes first, and whether it is partial.
    async fn snapshot(&mut self) -> (bool, Vec<u32>, Vec<String>) {
        let Response::SnapshotStart(start) = self.next().await else { panic!("no snapshot") };
        let mut keys = Vec::new();
        loop {
            let next = self.next().await;
            if let Response::SnapshotChunk(chunk) = next {
                keys.extend(chunk.records.into_iter().map(|record| record.key));
            } else {
                assert!(matches!(next, Response::SnapshotEnd(_)), "{next:?} within a snapshot");
                return (start.partial, start.buckets, keys);
            }
        }
    }
}

fn full() -> Start {
    Start { mode: Mode::Full.into(), ..Start::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_an_earlier_state_is_sent_the_buckets_that_differ_and_who_holds_the_same_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir.path().join("s"));
    let head = journal.append(many(3000)).await.unwrap();
    // No snapshot can be sent but an empty one.
    let server = publish(&journal, Everything, Settings { snapshots: 0, ..Settings::default() }).await;
    let mut digest = Digest::new();
    for number in 0..3000u64 {
        digest.add(&format!("tenant-{number}"), number + 1, format!("value {number}").as_bytes());
    }
    let mut stream = Stream::open(server.channel(), Start { bucket_digests: digest.to_wire(), ..full() }).await;
    assert_eq!(stream.snapshot().await, (true, Vec::new(), Vec::new()));
    let next = journal.append(vec![Write::put("tenant-7", "other")]).await.unwrap();
    let Response::Delta(delta) = stream.next().await else { panic!("no delta") };
    assert_eq!((delta.previous_revision, delta.revision), (head.revision, next.revision));
    server.stop().await;

    let server = publish(&journal, Everything, Settings::default()).await;
    let mut stream = Stream::open(server.channel(), Start { bucket_digests: digest.to_wire(), ..full() }).await;
    let bucket = Digest::bucket_of("tenant-7");
    let (partial, buckets, keys) = stream.snapshot().await;
    assert_eq!((partial, buckets), (true, vec![u32::try_from(bucket).unwrap()]));
    let whole = (0..3000).filter(|number| Digest::bucket_of(&format!("tenant-{number}")) == bucket).count();
    assert_eq!(keys.len(), whole);
    assert!(keys.iter().all(|key| Digest::bucket_of(key) == bucket), "{keys:?}");

    // Of another view, or of nothing: everything.
    for start in [full(), Start { view: "other".to_owned(), bucket_digests: digest.to_wire(), ..full() }] {
        let (partial, _, keys) = Stream::open(server.channel(), start).await.snapshot().await;
        assert_eq!((partial, keys.len()), (false, 3000));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_followers_of_a_restarted_server_are_served_from_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir.path().join("s"));
    let before = journal.append(many(500)).await.unwrap();
    journal.append(vec![Write::put("tenant-3", "later"), Write::delete("tenant-4")]).await.unwrap();
    let server = publish(&journal, Everything, Settings::default()).await;
    let mut stream = Stream::open(server.channel(), Start { resume: Some(before.into()), ..full() }).await;
    let Response::Delta(delta) = stream.next().await else { panic!("no delta") };
    let changes: Vec<_> = delta.changes.iter().map(|it| (it.key.as_str(), it.value.is_some())).collect();
    assert_eq!(changes, [("tenant-3", true), ("tenant-4", false)]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_under_a_new_epoch_followers_take_over_only_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("s");
    let journal = open(&store);
    let head = journal.append(many(2000)).await.unwrap();
    let server = publish(&journal, Short, Settings::default()).await;
    let replica = follow(server.channel());
    reaches(&replica, head).await;
    let (address, bytes) = (server.stop().await, held(&replica));
    drop(journal);

    let reopened = async {
        loop {
            // Streams of the last publisher are still ending.
            match Embedded::open(&store) {
                Ok(store) => return store.renew_epoch().unwrap(),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let journal = timeout(SOON, reopened).await.unwrap().kind(KIND).unwrap();
    let head = journal.append(vec![Write::put("tenant-8", "restored")]).await.unwrap();
    let shutdown = CancellationToken::new();
    let publisher = Publisher::start(KIND, Arc::clone(&journal), Arc::new(Short), shutdown.clone());
    let server = Server::start(vec![publisher], Some(address), shutdown).await;
    reaches(&replica, head).await;
    let mut wanted = bytes;
    wanted.insert("tenant-8".to_owned(), (head.revision, b"res".to_vec()));
    assert_eq!(held(&replica), wanted);
    // It is counted after it can be read.
    until("the partial snapshot is counted", || replica.status().partial_snapshots == 1).await;
    assert_eq!(replica.status().snapshots, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_on_demand_follower_is_told_changes_and_asks_for_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir.path().join("s"));
    let mut writes = many(700);
    writes.push(Write::put("event/7", "nobody's"));
    let head = journal.append(writes).await.unwrap();
    let server = publish(&journal, Short, Settings { snapshots: 0, ..Settings::default() }).await;
    let start = Start { mode: Mode::OnDemand.into(), ..Start::default() };
    let mut stream = Stream::open(server.channel(), start).await;
    let Response::SnapshotStart(start) = stream.next().await else { panic!("no start") };
    assert_eq!((start.partial, start.buckets.len(), start.position), (true, 0, Some(head.into())));
    let Response::SnapshotEnd(end) = stream.next().await else { panic!("no end") };
    assert_eq!(end.records, 700, "of the whole view, and without what no view shows");

    let later = journal.append(vec![Write::put("tenant-5", "five now")]).await.unwrap();
    let Response::Delta(delta) = stream.next().await else { panic!("no delta") };
    assert_eq!(delta.changes[0].value.as_deref(), Some(b"fiv".as_slice()));

    let mut client = ReplicationClient::new(server.channel());
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let request = FetchRequest {
        kind: KIND.to_owned(),
        keys: names(&["tenant-5", "tenant-9", "nobody", "event/7"]),
        aliases: names(&["five", "6", "nobody", "nobody's"]),
        at_least: Some(later.into()),
    };
    let answer = client.fetch(request.clone()).await.unwrap().into_inner();
    assert_eq!((answer.position, answer.view.as_str()), (Some(later.into()), "short"));
    let records: Vec<_> = answer.records.iter().map(|it| (it.key.as_str(), &it.value[..])).collect();
    assert_eq!(records, [("tenant-5", b"fiv".as_slice()), ("tenant-9", b"val"), ("tenant-6", b"val")]);
    let aliases: BTreeMap<_, _> = answer.aliases.into_iter().collect();
    assert_eq!(aliases, [("five", "tenant-5"), ("6", "tenant-6")].map(|(a, b)| (a.to_owned(), b.to_owned())).into());

    journal.append(vec![Write::delete("tenant-6")]).await.unwrap();
    let after = journal.append(vec![Write::put("tenant-6a", "six 6")]).await.unwrap();
    let request = FetchRequest { keys: Vec::new(), aliases: names(&["6"]), at_least: Some(after.into()), ..request };
    let answer = client.fetch(request.clone()).await.unwrap().into_inner();
    assert_eq!(answer.aliases["6"], "tenant-6a", "the index follows the changes");

    let ahead = Position::new(after.epoch, after.revision + 1);
    let refused = client.fetch(FetchRequest { at_least: Some(ahead.into()), ..request.clone() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let keys = (0..1001).map(|number| number.to_string()).collect();
    let refused = client.fetch(FetchRequest { keys, ..request }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_in_a_row_show_the_leaders_positions_and_records() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("s");
    let journal = open(&store);
    journal.append(many(1500)).await.unwrap();
    let (told, rules) = watch::channel(GuardRules { largest_shrink_percent: 30, ..GuardRules::default() });
    let shutdown = CancellationToken::new();
    let leader = Publisher::start_guarded(KIND, Arc::clone(&journal), Arc::new(Everything), rules, shutdown.clone());
    let leader = Server::start(vec![leader], None, shutdown).await;
    let (near, _, near_replica) = relay(leader.channel(), Everything).await;
    let (far, far_publisher, far_replica) = relay(near.channel(), Short).await;
    let replica = follow(far.channel());

    for round in 0..30 {
        let writes = vec![Write::put(format!("tenant-{round}"), format!("{round} again")), Write::delete("tenant-40")];
        journal.append(writes).await.unwrap();
    }
    // Nothing of it is shown, and yet everyone comes to know that there is nothing.
    let head = journal.append(vec![Write::put("event/1", "hidden")]).await.unwrap();
    for replica in [&near_replica, &far_replica, &replica] {
        reaches(replica, head).await;
    }
    let records = journal.snapshot().await.unwrap().records;
    let shown = records
        .iter()
        .filter(|record| !record.key.contains('/'))
        .map(|record| (record.key.clone(), (record.revision, record.value[..record.value.len().min(3)].to_vec())));
    assert_eq!(held(&replica), shown.collect());
    assert_eq!(far_publisher.status().head, Some(head.into()));

    let canaries = vec!["tenant-1".to_owned()];
    let wanted = GuardRules { largest_shrink_percent: 40, canaries, ..GuardRules::default() };
    told.send_replace(wanted.clone());
    until("the rules have come through", || *replica.guard_rules().borrow() == wanted).await;
    assert_eq!(far_publisher.status().guard_rules, Some(wanted));
    for server in [far, near, leader] {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_passes_a_new_history_on_and_its_followers_take_over_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (open(&dir.path().join("old")), open(&dir.path().join("new")));
    let head = old.append(many(1200)).await.unwrap();
    let leader = publish(&old, Everything, Settings::default()).await;
    let (near, ..) = relay(leader.channel(), Everything).await;
    let replica = follow(near.channel());
    reaches(&replica, head).await;
    let address = leader.stop().await;
    let mut writes = many(1200);
    writes[5] = Write::put("tenant-5", "of the new history");
    let head = new.append(writes).await.unwrap();
    let shutdown = CancellationToken::new();
    let publisher = Publisher::start(KIND, Arc::clone(&new), Arc::new(Everything), shutdown.clone());
    let leader = Server::start(vec![publisher], Some(address), shutdown).await;
    reaches(&replica, head).await;
    assert_eq!(replica.get("tenant-5").unwrap().raw(), b"of the new history");
    // It is counted after it can be read.
    until("the partial snapshot is counted", || replica.status().partial_snapshots == 1).await;
    assert_eq!(replica.status().snapshots, 1);
    near.stop().await;
    leader.stop().await;
}

/// An accident of others: an emptied table upstream emptied every cache below it.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_table_upstream_poisons_no_cache() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir.path().join("s"));
    let head = journal.append(many(1000)).await.unwrap();
    let (told, rules) = watch::channel(GuardRules::default());
    let shutdown = CancellationToken::new();
    let publisher = Publisher::start_guarded(KIND, Arc::clone(&journal), Arc::new(Everything), rules, shutdown.clone());
    let leader = Server::start(vec![publisher.clone()], None, shutdown).await;
    let (near, near_publisher, near_replica) = relay(leader.channel(), Everything).await;
    // One that has no guard of its own.
    let follow_unguarded = |channel| {
        let follow = Follow { kind: KIND, instance: "bare".to_owned(), parents: vec![channel], state_dir: None };
        follow.start_guarded::<Raw>(Guard::OFF, |_| {}, CancellationToken::new()).0
    };
    let bare = follow_unguarded(leader.channel());
    let below = follow_unguarded(near.channel());
    for replica in [&bare, &below, &near_replica] {
        reaches(replica, head).await;
    }

    let emptied = journal.append((0..1000).map(|n| Write::delete(format!("tenant-{n}"))).collect()).await.unwrap();
    until("an alarm is raised", || publisher.alarm().is_some()).await;
    assert!(publisher.status().alarms[0].contains("refused as poisoned"), "{:?}", publisher.status().alarms);
    // Whoever comes now is served the last good state as well.
    let late = follow_unguarded(leader.channel());
    until("a late follower is served", || late.position().is_some()).await;
    for replica in [&bare, &below, &near_replica, &late] {
        assert_eq!(held(replica).len(), 1000);
        assert!(replica.position().unwrap() < emptied);
    }
    assert!(near_publisher.alarm().is_none(), "nothing bad has come this far");

    // Until an operator says that it is meant.
    let until_unix_seconds = i64::MAX;
    told.send_replace(GuardRules {
        r#override: Some(Override { smallest_records: 0, until_unix_seconds }),
        ..GuardRules::default()
    });
    for replica in [&bare, &below, &near_replica, &late] {
        reaches(replica, emptied).await;
        assert!(held(replica).is_empty());
    }
    until("the alarm ends", || publisher.alarm().is_none()).await;
    near.stop().await;
    leader.stop().await;
}

/// One that has no guard of its own, as a leader whose store was lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_refuses_its_parent_raises_an_alarm_and_the_parent_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir.path().join("s"));
    let head = journal.append(many(1000)).await.unwrap();
    let shutdown = CancellationToken::new();
    let publisher = Publisher::start(KIND, Arc::clone(&journal), Arc::new(Everything), shutdown.clone());
    let leader = Server::start(vec![publisher.clone()], None, shutdown).await;
    let (near, near_publisher, near_replica) = relay(leader.channel(), Everything).await;
    reaches(&near_replica, head).await;
    assert_eq!(near_publisher.status().alarms, Vec::<String>::new());

    journal.append((0..1000).map(|n| Write::delete(format!("tenant-{n}"))).collect()).await.unwrap();
    let poisoned = |text: &str| text.contains("refused as poisoned");
    until("the relay raises an alarm", || near_publisher.status().alarms.iter().any(|alarm| poisoned(alarm))).await;
    // Between its streams as well.
    until("the relay reconnects", || publisher.status().followers.iter().any(|it| it.connected_unix_seconds == 0))
        .await;
    assert!(publisher.status().followers.iter().all(|it| poisoned(&it.nack)), "{:?}", publisher.status().followers);
    assert_eq!(held(&near_replica).len(), 1000);

    let back = journal.append(many(1000)).await.unwrap();
    reaches(&near_replica, back).await;
    until("the alarm ends", || near_publisher.status().alarms.is_empty()).await;
    until("nothing is refused", || publisher.status().followers.iter().all(|it| it.nack.is_empty())).await;
    near.stop().await;
    leader.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_canary_is_not_published_and_what_comes_right_again_is() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir.path().join("s"));
    let head = journal.append(many(100)).await.unwrap();
    let canaries = vec!["tenant-7".to_owned()];
    let (_told, rules) = watch::channel(GuardRules { canaries, ..GuardRules::default() });
    let shutdown = CancellationToken::new();
    let publisher = Publisher::start_guarded(KIND, Arc::clone(&journal), Arc::new(Everything), rules, shutdown.clone());
    let leader = Server::start(vec![publisher.clone()], None, shutdown).await;
    let mut stream = Stream::open(leader.channel(), full()).await;
    let Response::GuardRules(first) = stream.next().await else { panic!("the rules come first") };
    assert_eq!(first.canaries, ["tenant-7"]);
    let replica = follow(leader.channel());
    reaches(&replica, head).await;

    journal.append(vec![Write::put("tenant-1", "late"), Write::delete("tenant-7")]).await.unwrap();
    until("an alarm is raised", || publisher.alarm().is_some_and(|alarm| alarm.contains("tenant-7"))).await;
    assert_eq!(replica.get("tenant-1").unwrap().raw(), b"value 1", "nothing of a refused batch is published");
    let mended = journal.append(vec![Write::put("tenant-7", "back")]).await.unwrap();
    reaches(&replica, mended).await;
    assert_eq!(replica.get("tenant-7").unwrap().raw(), b"back");
    assert_eq!(replica.get("tenant-1").unwrap().raw(), b"late");
    until("the alarm ends", || publisher.alarm().is_none()).await;
    leader.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_sent_while_much_changes_leads_to_what_the_view_shows() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir.path().join("s"));
    let head = journal.append(many(20_000)).await.unwrap();
    let server = publish(&journal, Short, Settings::default()).await;
    let replica = follow(server.channel());
    // Changes come while the view is made and its snapshot is sent.
    let mut last = head;
    for round in 0..200 {
        last = journal.append(vec![Write::put(format!("tenant-{}", round * 97), format!("r{round}"))]).await.unwrap();
    }
    reaches(&replica, last).await;
    let records = journal.snapshot().await.unwrap().records;
    let shown = records.iter().map(|it| (it.key.clone(), (it.revision, it.value[..it.value.len().min(3)].to_vec())));
    assert_eq!(held(&replica), shown.collect());
    assert_eq!(replica.status().divergences, 0);
    server.stop().await;
}
