//! Restores into a NATS cluster, with peers that go on running.

// The harness of the integration tests, which this crate cannot import.
#[expect(dead_code, reason = "what befalls nodes is tested elsewhere")]
#[path = "../../../../../integration/src/nats.rs"]
mod nats;
#[path = "../../../../../integration/src/ports.rs"]
mod ports;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use journal::{
    AppendError, Expected, Journal, Options, Position, Store, Write,
    backup::{Item, Reader},
};
use mesh_config::names::TrustDomain;
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use tempfile::TempDir;
use tenon_proto::kind;

use super::super::{key::Key, sealed::Sealer};
use crate::{
    cli::{Format, OutputArgs, Restore},
    failure::{Answer, Failure},
};

const SOON: Duration = Duration::from_secs(25);

type State = BTreeMap<String, (u64, Bytes)>;
/// The state after each revision.
type States = BTreeMap<u64, State>;
/// A key, and its value or none.
type Batch = Vec<(u8, Option<u8>)>;

async fn cluster() -> nats::Cluster {
    let program = std::env::current_exe().unwrap();
    nats::Cluster::start(program.ancestors().nth(3).unwrap()).await.unwrap()
}

/// A mesh on a cluster, with a backup and its key.
struct Mesh {
    store: Store,
    trust_domain: TrustDomain,
    dir: TempDir,
}

/// One that writes, with what it holds.
struct Peer {
    tenants: Arc<dyn Journal>,
    guard: Arc<dyn Journal>,
}

impl Mesh {
    fn new(cluster: &nats::Cluster, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), [7; 32]).unwrap();
        Self { store: cluster.store().parse().unwrap(), trust_domain: TrustDomain::try_from(name).unwrap(), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn peer(&self, name: &str) -> Peer {
        let journals = journal::open(&self.store, &self.trust_domain, &self.path(name), Options::default()).await;
        let journals = journals.unwrap();
        let (tenants, guard) = (journals.kind(kind::TENANT).await, journals.kind(kind::TENANT_GUARD).await);
        Peer { tenants: tenants.unwrap(), guard: guard.unwrap() }
    }

    /// Returns the position of the tenants in the backup.
    async fn back_up(&self, peer: &Peer) -> Position {
        let kinds = [(kind::TENANT_GUARD, &*peer.guard), (kind::TENANT, &*peer.tenants)];
        let mut backup = journal::backup::stream(&kinds).await.unwrap();
        let mut sealer = Sealer::begin(Vec::new(), &Key::new([7; 32])).unwrap();
        let (mut reader, mut position) = (Reader::default(), None);
        while let Some(piece) = backup.bytes.try_next().await.unwrap() {
            sealer.write(&piece).unwrap();
            reader.push(&piece);
            while let Some(item) = reader.item().unwrap() {
                if let Item::Section(section) = item
                    && section.kind == kind::TENANT
                {
                    position = Some(section.position);
                }
            }
        }
        fs::write(self.path("backup"), sealer.finish().unwrap()).unwrap();
        position.unwrap()
    }

    async fn restore(&self, into: Option<&TrustDomain>, to: Option<u64>, replace: bool) -> Result<Answer, Failure> {
        super::super::restore(Restore {
            file: self.path("backup"),
            key_file: self.path("key"),
            store: self.store.clone(),
            trust_domain: into.cloned(),
            to: to.map(|to| to.to_string().parse().unwrap()),
            replace,
            output: OutputArgs { output: Format::Json },
        })
        .await
    }
}

async fn state(journal: &dyn Journal) -> State {
    let records = journal.snapshot().await.unwrap().records;
    records.into_iter().map(|record| (record.key, (record.revision, record.value))).collect()
}

/// Makes writes that nobody else does meanwhile. Returns the position after them.
async fn write(journal: &dyn Journal, writes: &[Write]) -> Position {
    let head = journal.head().await.unwrap();
    let until = Instant::now() + SOON;
    loop {
        match journal.append_at(head, writes.to_vec()).await {
            Ok(position) => return position,
            // Made the time before, which nobody confirmed.
            Err(AppendError::Moved { actual }) if actual.revision == head.revision + writes.len() as u64 => {
                return actual;
            }
            Err(AppendError::Failed(_) | AppendError::Unconfirmed(_)) if Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn reach(journal: &dyn Journal, position: Position) {
    let until = Instant::now() + SOON;
    while journal.head().await.unwrap() < position {
        assert!(Instant::now() < until, "{position} is not reached");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes a batch, and remembers the state after each of its writes.
async fn make(journal: &dyn Journal, batch: &Batch, states: &mut States) {
    let writes: Vec<_> = batch
        .iter()
        .map(|(key, value)| match value {
            Some(value) => Write::put(format!("t{key}"), vec![*value; 1 + usize::from(*value)]),
            None => Write::delete(format!("t{key}")),
        })
        .collect();
    write(journal, &writes).await;
    for Write { key, value, .. } in writes {
        let (revision, mut state) = states.last_key_value().map(|(at, state)| (at + 1, state.clone())).unwrap();
        match value {
            Some(value) => drop(state.insert(key, (revision, value))),
            None => drop(state.remove(&key)),
        }
        states.insert(revision, state);
    }
}

/// Batches, and where between the first and the last revision of the backup a restore is to go, in percent.
fn cases(number: usize) -> Vec<(Vec<Batch>, u64)> {
    let write = (0..6_u8, proptest::option::weighted(0.7, any::<u8>()));
    let batches = proptest::collection::vec(proptest::collection::vec(write, 1..5), 20..40);
    let mut runner = TestRunner::default();
    (0..number).map(|_| (batches.clone(), 1..99_u64).new_tree(&mut runner).unwrap().current()).collect()
}

async fn check(cluster: &nats::Cluster, name: &str, (batches, percent): (Vec<Batch>, u64)) {
    let mesh = Mesh::new(cluster, name);
    let (writer, other) = (mesh.peer("writer").await, mesh.peer("other").await);
    write(&*writer.guard, &[Write::put("guard", "canaries")]).await;
    let mut states = States::from([(0, State::new())]);
    let half = batches.len() / 2;
    for batch in &batches[..half] {
        make(&*writer.tenants, batch, &mut states).await;
    }
    let before = writer.tenants.head().await.unwrap();
    reach(&*other.tenants, before).await;
    reach(&*other.guard, writer.guard.head().await.unwrap()).await;

    // While it is taken, somebody writes.
    let taken = AtomicBool::new(false);
    let backing_up = async {
        let position = mesh.back_up(&other).await;
        taken.store(true, Ordering::Relaxed);
        position
    };
    let writing = async {
        for batch in batches[half..].iter().cycle() {
            make(&*writer.tenants, batch, &mut states).await;
            if taken.load(Ordering::Relaxed) {
                break;
            }
        }
    };
    let (backup, ()) = tokio::join!(backing_up, writing);
    let last = writer.tenants.head().await.unwrap();
    assert!(backup >= before && last > backup, "{before} {backup} {last}");
    let to = 1 + backup.revision * percent / 100;
    let expected = &states[&to];

    let refused = mesh.restore(Some(&mesh.trust_domain), Some(to), false).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("holds tenants of {name} at revision {last}")), "{refused}");
    assert_eq!(writer.tenants.head().await.unwrap(), last, "nothing has changed");

    reach(&*other.tenants, last).await;
    let mut tail = other.tenants.tail(last);
    mesh.restore(Some(&mesh.trust_domain), Some(to), true).await.unwrap();
    let ended = tokio::time::timeout(SOON, tail.next()).await.unwrap().unwrap();
    assert!(ended.is_err(), "who followed the old history takes a snapshot");
    let fresh = mesh.peer("fresh").await;
    let restored = fresh.tenants.head().await.unwrap();
    assert!(restored.epoch > last.epoch && restored.revision > last.revision, "{restored} {last}");
    for peer in [&writer, &other, &fresh] {
        reach(&*peer.tenants, restored).await;
        assert_eq!(&state(&*peer.tenants).await, expected, "at {to} of {backup}");
        assert_eq!(state(&*peer.guard).await["guard"].1, "canaries");
        assert_eq!(peer.tenants.alarm(), None);
    }

    // Everybody goes on writing, and no revision comes again.
    for (number, peer) in [&other, &fresh, &writer].into_iter().enumerate() {
        let after = write(&*peer.tenants, &[Write::put(format!("new{number}"), "x").expecting(Expected::Absent)]).await;
        assert_eq!(after, Position::new(restored.epoch, restored.revision + number as u64 + 1));
        for peer in [&writer, &other, &fresh] {
            reach(&*peer.tenants, after).await;
        }
    }
    assert_eq!(state(&*writer.tenants).await, state(&*fresh.tenants).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_restored_to_any_revision_of_a_backup_while_its_peers_run() {
    let cluster = cluster().await;
    for (number, case) in cases(4).into_iter().enumerate() {
        let (name, told) = (format!("m{number}.example"), format!("{case:?}"));
        let checked = tokio::time::timeout(Duration::from_secs(60), check(&cluster, &name, case));
        checked.await.unwrap_or_else(|_| panic!("not done within a minute: {told}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_names_its_mesh_and_touches_no_other() {
    let cluster = cluster().await;
    let (ours, theirs) = (Mesh::new(&cluster, "ours.example"), Mesh::new(&cluster, "theirs.example"));
    let (our, their) = (ours.peer("peer").await, theirs.peer("peer").await);
    write(&*our.tenants, &[Write::put("acme", "ours")]).await;
    let untouched = write(&*their.tenants, &[Write::put("acme", "theirs")]).await;
    ours.back_up(&our).await;
    let refused = ours.restore(None, None, true).await.unwrap_err().to_string();
    assert!(refused.contains("--trust-domain is not given"), "{refused}");

    let before = write(&*our.tenants, &[Write::delete("acme")]).await;
    ours.restore(Some(&ours.trust_domain), None, true).await.unwrap();
    reach(&*our.tenants, Position::new(before.epoch + 1, 0)).await;
    assert_eq!(state(&*our.tenants).await["acme"].1, "ours");
    assert_eq!(their.tenants.head().await.unwrap(), untouched);
    assert_eq!(state(&*their.tenants).await["acme"].1, "theirs");

    // Into a mesh that the cluster knows nothing of, it needs no leave to replace anything.
    let third = TrustDomain::try_from("third.example").unwrap();
    ours.restore(Some(&third), None, false).await.unwrap();
    let third = Mesh::new(&cluster, "third.example");
    let third = third.peer("peer").await;
    assert_eq!(state(&*third.tenants).await["acme"].1, "ours");
}
