//! What befalls a cluster, and what its journals do about it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use futures_util::{FutureExt as _, StreamExt as _, future::join_all};
use journal::{AppendError, Expected, Journal, Nats, Options, Store, Write};

use crate::{
    backend::{Backend as _, InCluster, MESH, cluster, insist, mesh, reach, single, within},
    everything_on,
};

/// Longer than any election of a NATS 2.9 cluster.
const SOON: Duration = Duration::from_secs(25);
/// What a write that cannot be made may take, and a little.
const BOUND: Duration = Duration::from_millis(10_500);

fn put(key: &str, value: impl ToString) -> Write {
    Write::put(key, value.to_string())
}

/// Waits until `done` says so.
async fn until(what: &str, limit: Duration, mut done: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done().await {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn alarmed(journal: &dyn Journal, by: &str) {
    until(by, SOON, async || journal.alarm().is_some_and(|alarm| alarm.contains(by))).await;
}

async fn value(journal: &dyn Journal, key: &str) -> Option<String> {
    let record = journal.get(key).await.unwrap()?;
    Some(String::from_utf8(record.value.to_vec()).unwrap())
}

/// Tries to write twenty batches while nobody can. Returns those of which it was said that nothing has changed.
async fn fail_in_time(journals: [Arc<dyn Journal>; 2]) -> Vec<usize> {
    let began = Instant::now();
    let attempts = (0..20).map(|number| {
        let journal = Arc::clone(&journals[number % 2]);
        tokio::spawn(async move {
            let batch = PARTS.map(|part| put(&format!("{number}/{part}"), number));
            (number, journal.append(batch.to_vec()).await, began.elapsed())
        })
    });
    let mut failed = Vec::new();
    for attempt in join_all(attempts).await {
        let (number, result, took) = attempt.unwrap();
        assert!(took < BOUND, "{took:?} for {result:?}");
        match result.unwrap_err() {
            AppendError::Failed(_) => failed.push(number),
            AppendError::Unconfirmed(_) => {}
            other @ (AppendError::Conflict { .. } | AppendError::Full(_) | AppendError::Moved { .. }) => {
                panic!("{other}")
            }
        }
    }
    failed
}

/// Of the batches of [`fail_in_time`], those that failed are not there, and the others wholly or not at all.
async fn none_half_done(journal: &dyn Journal, failed: &[usize]) {
    for number in 0..20 {
        let mut there = 0;
        for part in PARTS {
            there += usize::from(journal.get(&format!("{number}/{part}")).await.unwrap().is_some());
        }
        assert!(there == 0 || there == PARTS.len(), "half of a batch");
        assert!(there == 0 || !failed.contains(&number), "what was said to have failed was made");
    }
}

const PARTS: [&str; 3] = ["x", "y", "z"];

const LED: &str = "TENON_demo=example_COUNTERS_THAT_TWO_REPLICAS_INCREMENT_BY_COMPARING_LOSE_NOTHING";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_suite_holds_while_the_leader_of_a_stream_is_killed_and_comes_back() {
    let cluster = Arc::new(cluster().await);
    let disturbed = async {
        let leader = cluster.leader(LED).await.unwrap();
        cluster.kill(leader).unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        cluster.launch(leader).unwrap();
    };
    tokio::join!(everything_on(&cluster), disturbed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_suite_holds_while_the_leader_of_a_stream_is_stopped_and_goes_on() {
    let cluster = Arc::new(cluster().await);
    let disturbed = async {
        let leader = cluster.leader(LED).await.unwrap();
        cluster.stop(leader).unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        cluster.go_on(leader).unwrap();
    };
    tokio::join!(everything_on(&cluster), disturbed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_writes_fail_in_time_none_half_done_and_everything_goes_on_when_it_is_back() {
    let cluster = cluster().await;
    let backend = InCluster::new(&cluster.store(), "tenant");
    let (first, second) = (backend.open(0).await, backend.open(1).await);
    insist(&*first.journal, vec![put("a", 1)]).await.unwrap();
    let head = first.journal.head().await.unwrap();
    reach(&*second.journal, head).await;
    let mut tail = second.journal.tail(head);
    let leader = cluster.leader("TENON_demo=example_TENANT").await.unwrap();
    for node in [leader, (leader + 1) % 3] {
        cluster.kill(node).unwrap();
    }

    let failed = fail_in_time([&first, &second].map(|replica| Arc::clone(&replica.journal))).await;
    let stands = within(BOUND, "an answer", first.journal.append_at(head, Vec::new())).await;
    let unknown = matches!(stands, Err(AppendError::Failed(_) | AppendError::Unconfirmed(_)));
    assert!(unknown, "who is cut off cannot know that the head still is one: {stands:?}");
    for replica in [&first, &second] {
        assert_eq!(value(&*replica.journal, "a").await.as_deref(), Some("1"), "reads go on");
        assert_eq!(replica.journal.head().await.unwrap(), head);
        assert_eq!(replica.journal.alarm(), None, "nothing is wrong with the log");
    }
    assert!(tail.next().now_or_never().is_none(), "the tail waits");

    // Who starts now serves what was held.
    drop(first);
    let again = within(Duration::from_secs(5), "a start without a majority", backend.open(0)).await;
    assert_eq!(value(&*again.journal, "a").await.as_deref(), Some("1"));

    for node in [leader, (leader + 1) % 3] {
        cluster.launch(node).unwrap();
    }
    within(SOON, "a write after the majority is back", insist(&*second.journal, vec![put("b", 2)])).await.unwrap();
    within(SOON, "a write of the other", insist(&*again.journal, vec![put("c", 3)])).await.unwrap();
    let head = again.journal.head().await.unwrap();
    reach(&*second.journal, head).await;
    none_half_done(&*again.journal, &failed).await;
    let mut revision = second.journal.snapshot().await.unwrap().position.revision;
    assert_eq!(revision, head.revision);
    revision = 0;
    while revision < head.revision {
        revision = within(SOON, "the tail", tail.next()).await.unwrap().unwrap().last().unwrap().revision;
    }
    assert_eq!(again.journal.snapshot().await.unwrap(), second.journal.snapshot().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_disk_comes_back_and_nothing_is_lost() {
    let cluster = cluster().await;
    let backend = InCluster::new(&cluster.store(), "tenant");
    let replica = backend.open(0).await;
    insist(&*replica.journal, vec![put("a", 1)]).await.unwrap();
    let leader = cluster.leader("TENON_demo=example_TENANT").await.unwrap();
    let follower = (leader + 1) % 3;
    cluster.kill(follower).unwrap();
    cluster.wipe(follower).unwrap();
    cluster.launch(follower).unwrap();
    for number in 0..20 {
        insist(&*replica.journal, vec![put(&format!("k{number}"), number)]).await.unwrap();
    }
    let fresh = backend.open(1).await;
    reach(&*fresh.journal, replica.journal.head().await.unwrap()).await;
    assert_eq!(fresh.journal.snapshot().await.unwrap(), replica.journal.snapshot().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_gone_or_made_anew_or_shorter_is_refused_and_what_was_held_is_served() {
    let cluster = cluster().await;
    let backend = InCluster::new(&cluster.store(), "tenant");
    let replica = backend.open(0).await;
    for number in 0..5 {
        insist(&*replica.journal, vec![put("a", number)]).await.unwrap();
    }
    let head = replica.journal.head().await.unwrap();
    let context = jetstream::new(cluster.client().await.unwrap());
    context.delete_stream("TENON_demo=example_TENANT").await.unwrap();
    alarmed(&*replica.journal, "stream TENON_demo=example_TENANT is gone").await;
    let error = replica.journal.append(vec![put("a", 9)]).await.unwrap_err();
    let AppendError::Failed(cause) = &error else { panic!("{error}") };
    assert!(cause.to_string().contains("restore a backup"), "{cause}");
    assert_eq!(value(&*replica.journal, "a").await.as_deref(), Some("4"), "it is served on");
    assert_eq!(replica.journal.head().await.unwrap(), head);

    // Somebody who holds nothing makes a new one, which is shorter at first.
    let other = backend.open(1).await;
    insist(&*other.journal, vec![put("a", "other")]).await.unwrap();
    alarmed(&*replica.journal, "it was cut short or lost data").await;
    for number in 0..10 {
        insist(&*other.journal, vec![put("b", number)]).await.unwrap();
    }
    alarmed(&*replica.journal, "it was made anew").await;
    assert_eq!(value(&*replica.journal, "a").await.as_deref(), Some("4"));
    assert!(matches!(replica.journal.append(vec![put("a", 9)]).await, Err(AppendError::Failed(_))));
    assert_eq!(value(&*other.journal, "a").await.as_deref(), Some("other"), "nothing of the old one got in");

    // As the alarm says: without its local store, it takes what the cluster has.
    drop(replica);
    until("the local store is let go of", SOON, async || std::fs::remove_dir_all(backend.local(0)).is_ok()).await;
    let replica = backend.open(0).await;
    reach(&*replica.journal, other.journal.head().await.unwrap()).await;
    assert_eq!(value(&*replica.journal, "a").await.as_deref(), Some("other"));
    assert_eq!(replica.journal.alarm(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_trimmed_to_its_retention_and_replicas_begin_with_a_checkpoint() {
    let single = single().await;
    let store: Store = single.store().parse().unwrap();
    let Store::Nats(servers) = &store else { panic!("{store}") };
    let dir = tempfile::tempdir().unwrap();
    let options = Options { retained_bytes: 64 << 10, ..Options::default() };
    let open = async |name: &str| {
        let nats = Nats::connect(servers, &mesh(MESH), &dir.path().join(name), options).await.unwrap();
        nats.with_checkpoints_every(32 << 10).kind("tenant").await.unwrap()
    };
    let writing = open("writing").await;
    let behind = open("behind").await;
    insist(&*writing, vec![put("first", 1)]).await.unwrap();
    reach(&*behind, writing.head().await.unwrap()).await;
    drop(behind);
    let context = jetstream::new(single.client().await.unwrap());
    let first_kept =
        async || context.get_stream("TENON_demo=example_TENANT").await.unwrap().cached_info().state.first_sequence;
    let mut number = 0;
    until("the log is trimmed", SOON, async || {
        for _ in 0..10 {
            number += 1;
            let writes = vec![Write::put(format!("k{}", number % 50), vec![1; 1000]), Write::delete("k7")];
            insist(&*writing, writes).await.unwrap();
        }
        first_kept().await > 20
    })
    .await;
    for name in ["fresh", "behind"] {
        let replica = open(name).await;
        let head = writing.head().await.unwrap();
        until("it catches up", SOON, async || replica.head().await.unwrap() == head).await;
        assert_eq!(replica.snapshot().await.unwrap(), writing.snapshot().await.unwrap(), "{name}");
        let last = replica.get("first").await.unwrap().unwrap();
        insist(&*replica, vec![put("first", 2).expecting(Expected::Revision(last.revision))]).await.unwrap();
        insist(&*writing, vec![put("first", 1)]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_ends_before_its_commit_leaves_the_log_its_checkpoints() {
    let single = single().await;
    let store: Store = single.store().parse().unwrap();
    let Store::Nats(servers) = &store else { panic!("{store}") };
    let dir = tempfile::tempdir().unwrap();
    let options = Options { retained_bytes: 64 << 10, ..Options::default() };
    let connect = async |name: &str| {
        let nats = Nats::connect(servers, &mesh(MESH), &dir.path().join(name), options).await.unwrap();
        nats.with_checkpoints_every(32 << 10)
    };
    let writing = connect("writing").await.kind("tenant").await.unwrap();
    let context = jetstream::new(single.client().await.unwrap());
    let stream = async || context.get_stream("TENON_demo=example_TENANT").await.unwrap().cached_info().clone();
    until("the log is trimmed", SOON, async || {
        for number in 0..10 {
            insist(&*writing, vec![Write::put(format!("k{number}"), vec![1; 1000])]).await.unwrap();
        }
        stream().await.state.first_sequence > 20
    })
    .await;
    let held = writing.snapshot().await.unwrap();
    drop(writing);

    // The log takes nothing more, so that there is no commit behind the manifest.
    let info = stream().await;
    let (config, messages) = (info.config, i64::try_from(info.state.messages).unwrap());
    let full = jetstream::stream::Config {
        max_messages: messages,
        discard: jetstream::stream::DiscardPolicy::New,
        ..config.clone()
    };
    context.update_stream(full).await.unwrap();
    let restored = journal::Embedded::open(&dir.path().join("restored.redb")).unwrap().kind("tenant").unwrap();
    restored.append(vec![put("k", "restored")]).await.unwrap();
    connect("restoring").await.replace("tenant", &*restored).await.unwrap_err();
    context.update_stream(config).await.unwrap();

    let fresh = connect("fresh").await.kind("tenant").await.unwrap();
    until("it has what is there", SOON, async || fresh.head().await.unwrap() == held.position).await;
    assert_eq!(fresh.snapshot().await.unwrap(), held);
    assert_eq!(fresh.alarm(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_are_replaced_begin_another_epoch_for_all_even_for_those_who_refused_the_log() {
    let single = single().await;
    let backend = InCluster::new(&single.store(), "tenant");
    let replicas = [backend.open(0).await, backend.open(1).await];
    insist(&*replicas[0].journal, vec![put("a", 1), put("b", 1)]).await.unwrap();
    let before = replicas[0].journal.head().await.unwrap();
    reach(&*replicas[1].journal, before).await;
    let mut tail = replicas[1].journal.tail(before);

    let dir = tempfile::tempdir().unwrap();
    let restored = journal::Embedded::open(&dir.path().join("restored.redb")).unwrap().kind("tenant").unwrap();
    restored.append((0..2000).map(|key| put(&format!("k{key}"), "x".repeat(500))).collect()).await.unwrap();
    let expected = restored.snapshot().await.unwrap().records;
    let store: Store = single.store().parse().unwrap();
    let Store::Nats(servers) = &store else { panic!("{store}") };
    let nats = Nats::connect(servers, &mesh(MESH), &dir.path().join("unused"), Options::default()).await.unwrap();
    assert_eq!(nats.written("tenant").await.unwrap(), Some(before));
    let position = nats.replace("tenant", &*restored).await.unwrap();
    assert!(position.epoch > before.epoch);
    for replica in &replicas {
        until("it has what was restored", SOON, async || replica.journal.head().await.unwrap() == position).await;
        assert_eq!(replica.journal.snapshot().await.unwrap().records, expected);
    }
    assert!(tail.next().await.unwrap().is_err(), "who followed the old history takes a snapshot");
    insist(&*replicas[1].journal, vec![put("k0", "new")]).await.unwrap();
    reach(&*replicas[0].journal, replicas[1].journal.head().await.unwrap()).await;
    assert_eq!(value(&*replicas[0].journal, "k0").await.as_deref(), Some("new"));

    // The whole stream is lost, and a backup put in its place.
    let context = jetstream::new(single.client().await.unwrap());
    context.delete_stream("TENON_demo=example_TENANT").await.unwrap();
    alarmed(&*replicas[0].journal, "stream TENON_demo=example_TENANT is gone").await;
    assert_eq!(nats.written("tenant").await.unwrap(), None);
    let again = nats.replace("tenant", &*restored).await.unwrap();
    let fresh = backend.open(2).await;
    for replica in replicas.iter().chain([&fresh]) {
        until("it has what was restored", SOON, async || replica.journal.head().await.unwrap() == again).await;
        until("nothing is wrong any more", SOON, async || replica.journal.alarm().is_none()).await;
        assert_eq!(replica.journal.snapshot().await.unwrap().records, expected);
    }
    for replica in replicas.iter().chain([&fresh]) {
        insist(&*replica.journal, vec![put("after", 1)]).await.unwrap();
    }
}
