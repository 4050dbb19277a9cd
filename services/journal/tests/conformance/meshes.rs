//! Several meshes on one cluster.

use std::time::Duration;

use async_nats::jetstream::{self, stream::Config};
use futures_util::{FutureExt as _, StreamExt as _};
use journal::{Expected, Journal, Nats, OpenError, Options, Store, Write};

use crate::backend::{Backend as _, InCluster, cluster, insist, mesh, reach, single, within};

const SOON: Duration = Duration::from_secs(25);

fn put(key: &str, value: &str) -> Write {
    Write::put(key, value.to_owned())
}

async fn records(journal: &dyn Journal) -> Vec<(String, String)> {
    let records = journal.snapshot().await.unwrap().records.into_iter();
    let records = records.filter(|record| !record.key.starts_with("mark/"));
    records.map(|record| (record.key, String::from_utf8(record.value.to_vec()).unwrap())).collect()
}

fn record(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_meshes_on_one_cluster_share_nothing() {
    let cluster = cluster().await;
    // Names that a careless replacement of the dots would make one.
    let backends = ["a.example", "a-example", "a_example"].map(|name| InCluster::of(&cluster.store(), name, "tenant"));
    let mut replicas = Vec::new();
    for backend in &backends {
        replicas.push([backend.open(0).await, backend.open(1).await]);
    }
    let heads = [&replicas[1], &replicas[2]].map(|replicas| replicas[0].journal.head());
    let heads = futures_util::future::join_all(heads).await;
    let mut tail = replicas[1][0].journal.tail(*heads[0].as_ref().unwrap());
    for number in 0..20 {
        insist(&*replicas[0][number % 2].journal, vec![put("acme", &number.to_string())]).await.unwrap();
    }
    reach(&*replicas[0][1].journal, replicas[0][0].journal.head().await.unwrap()).await;
    reach(&*replicas[0][0].journal, replicas[0][1].journal.head().await.unwrap()).await;
    assert!(tail.next().now_or_never().is_none(), "nothing came to the other mesh");
    for (replicas, before) in replicas[1..].iter().zip(heads) {
        assert_eq!(replicas[0].journal.head().await.unwrap(), before.unwrap());
    }
    // The same keys, each mesh with its own: a condition sees nothing of the others.
    for (replicas, value) in replicas[1..].iter().zip(["b", "c"]) {
        insist(&*replicas[0].journal, vec![put("acme", value).expecting(Expected::Absent)]).await.unwrap();
        reach(&*replicas[1].journal, replicas[0].journal.head().await.unwrap()).await;
    }
    for (replicas, value) in replicas.iter().zip(["19", "b", "c"]) {
        for replica in replicas {
            assert_eq!(records(&*replica.journal).await, [record("acme", value)]);
        }
    }
    // Who starts now with nothing takes its own mesh's.
    for ((backend, replicas), value) in backends.iter().zip(&replicas).zip(["19", "b", "c"]) {
        let fresh = backend.open(2).await;
        reach(&*fresh.journal, replicas[0].journal.head().await.unwrap()).await;
        assert_eq!(records(&*fresh.journal).await, [record("acme", value)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_held_another_mesh_gives_nothing_of_it() {
    let single = single().await;
    let store: Store = single.store().parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open = async |name: &str| {
        let journals = journal::open(&store, &mesh(name), dir.path(), Options::default()).await.unwrap();
        journals.kind("tenant").await.unwrap()
    };
    let first = open("a.example").await;
    insist(&*first, vec![put("acme", "a")]).await.unwrap();
    assert_eq!(records(&*open("b.example").await).await, []);
    assert_eq!(records(&*first).await, [record("acme", "a")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_another_mesh_is_refused_under_whatever_name_it_comes() {
    let single = single().await;
    let theirs = InCluster::of(&single.store(), "theirs.example", "tenant");
    let replica = theirs.open(0).await;
    insist(&*replica.journal, vec![put("acme", "theirs")]).await.unwrap();

    // As somebody does who copies streams about.
    let context = jetstream::new(single.client().await.unwrap());
    let from = context.get_stream("TENON_theirs=example_TENANT").await.unwrap();
    let subject = "tenon.ours=example.tenant.log";
    let config = Config {
        name: "TENON_ours=example_TENANT".to_owned(),
        subjects: vec![subject.to_owned()],
        allow_direct: true,
        ..Config::default()
    };
    context.create_stream(config).await.unwrap();
    for sequence in 1..=from.cached_info().state.last_sequence {
        let message = from.get_raw_message(sequence).await.unwrap();
        context.publish(subject, message.payload).await.unwrap().await.unwrap();
    }

    let ours = mesh("ours.example");
    let store: Store = single.store().parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let journals = journal::open(&store, &ours, &dir.path().join("ours"), Options::default()).await.unwrap();
    let refused = within(SOON, "the answer", journals.kind("tenant")).await;
    let Err(OpenError::Unreachable { why, .. }) = refused.map(drop) else { panic!("it was taken") };
    for says in ["TENON_ours=example_TENANT", "is the log of the mesh \"theirs.example\"", "this is ours.example"] {
        assert!(why.contains(says), "{why}");
    }

    // Nor is it replaced.
    let Store::Nats(servers) = &store else { panic!("{store}") };
    let nats = Nats::connect(servers, &ours, &dir.path().join("restoring"), Options::default()).await.unwrap();
    let restored = journal::Embedded::open(&dir.path().join("restored.redb")).unwrap().kind("tenant").unwrap();
    restored.append(vec![put("acme", "ours")]).await.unwrap();
    assert!(nats.written("tenant").await.is_err());
    let error = nats.replace("tenant", &*restored).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("is of the mesh \"theirs.example\", and this is ours.example"), "{source}");

    assert_eq!(records(&*replica.journal).await, [record("acme", "theirs")]);
    insist(&*replica.journal, vec![put("beta", "theirs")]).await.unwrap();
}
