//! Several policy services over one store, a store that fails, and what goes with time.

use std::sync::Mutex;

use bytes::Bytes;
use journal::{AppendError, Embedded, History, Position, Record, Snapshot, Tail, Write};
use mesh_identity::{grpc::Server, tls::Clients};
use tonic::service::Routes;

use super::*;

/// A fleet by itself behind a server, over a journal that may have other writers.
struct Alone {
    address: String,
    fleet: Arc<Fleet>,
    recording: Recording,
    shutdown: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

impl Alone {
    async fn start(world: &World, journal: &Arc<dyn Journal>, writer: &str) -> Self {
        let shutdown = CancellationToken::new();
        let (fleet, recording) = Fleet::over(Arc::clone(journal), writer.into(), true, &shutdown).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Server {
            listener,
            identity: world.ca.identity("tenon-policy"),
            clients: Clients::Required,
            authorization: FLEET_AUTHORIZATION,
            routes: Routes::new(FleetService::new(&fleet, None).into_server()),
            recorder: None,
        };
        let task = tokio::spawn(server.run(shutdown.clone()));
        Self { address, fleet, recording, shutdown, task }
    }

    async fn recorded(&self) -> Vec<Flow> {
        flows(&self.fleet.flows(FlowsRequest::default()).await.unwrap())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        self.recording.end().await;
    }
}

fn journal(world: &World) -> Arc<dyn Journal> {
    Embedded::open(&world.dir.path().join("store.redb.flows")).unwrap().kind("flow").unwrap()
}

#[tokio::test]
async fn two_policy_services_over_one_store_count_each_batch_once_and_know_of_each_other() {
    let world = World::new();
    let journal = journal(&world);
    let (a, b) = (Alone::start(&world, &journal, "a").await, Alone::start(&world, &journal, "b").await);
    let mut reports = b.fleet.reports();
    let mut to_a = world.sidecar(&a.address, "media", "media-1", 1).await;
    let refused = flow("wiki", "media", "/media.v1.Media/Erase", Decision::Refused, 3);
    to_a.report(1, &[get(5), refused.clone()]).await;
    assert_eq!(to_a.taken().await, 1);
    let told = tokio::time::timeout(LONG, reports.recv()).await.expect("it is told").unwrap();
    assert_eq!((&*told.instance, &*told.service, &*told.flows), ("media-1", "media", [refused.clone()].as_slice()));

    // The answer was lost, and the sidecar goes on with the other one; then back again.
    let mut to_b = world.sidecar(&b.address, "media", "media-1", 1).await;
    to_b.report(1, &[get(5), refused.clone()]).await;
    to_b.report(2, &[get(10)]).await;
    assert_eq!((to_b.taken().await, to_b.taken().await), (1, 2));
    to_a.report(2, &[get(10)]).await;
    to_a.report(3, &[get(100)]).await;
    assert_eq!((to_a.taken().await, to_a.taken().await), (2, 3));
    let told = tokio::time::timeout(LONG, reports.recv()).await.expect("it is told").unwrap();
    assert_eq!(&*told.flows, [get(10)], "its own batch, and the first one not again");
    for fleet in [&a, &b] {
        assert_eq!(fleet.recorded().await, [refused.clone(), get(115)]);
    }
    let keys: Vec<_> = journal.snapshot().await.unwrap().records.into_iter().map(|record| record.key).collect();
    let ends = |end: &str| keys.iter().any(|key| key.ends_with(end));
    let (marks, hours): (Vec<_>, Vec<_>) = keys.iter().partition(|key| key.starts_with("batch/"));
    assert_eq!(marks, ["batch/media/media-1"]);
    assert!(hours.len() >= 2 && ends("/media/a") && ends("/media/b"), "each writes its own: {hours:?}");

    // What passed at one of them is known to the other, and after a restart.
    let now = clock::unix_seconds() + 10;
    let mut to_a = world.sidecar(&a.address, "issues", "issues-1", 1).await;
    to_a.report(1, &[flow("wiki", "issues", "/issues.v1.Issues/List", Decision::Audited, 1)]).await;
    assert_eq!(to_a.taken().await, 1);
    let known = |fleet: &Fleet| fleet.passed_before("wiki", "issues", "/issues.v1.Issues/List", now);
    let heard = async {
        while !known(&b.fleet) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, heard).await.expect("it is heard of");
    assert!(!a.fleet.passed_before("wiki", "issues", "/issues.v1.Issues/List", now - 3600));
    assert!(!a.fleet.passed_before("wiki", "media", "/media.v1.Media/Erase", now));
    a.stop().await;
    b.stop().await;
    let anew = Alone::start(&world, &journal, "a").await;
    assert!(known(&anew.fleet) && anew.fleet.passed_before("wiki", "media", "/media.v1.Media/Get", now));
    anew.stop().await;
}

#[tokio::test]
async fn who_is_connected_is_known_and_each_batch_is_told_of_once() {
    let world = World::new();
    let journal = journal(&world);
    let alone = Alone::start(&world, &journal, "a").await;
    let mut reports = alone.fleet.reports();
    let mut wiki = world.sidecar(&alone.address, "wiki", "wiki-1", 1).await;
    let mut media = world.sidecar(&alone.address, "media", "media-1", 1).await;
    let _again = world.sidecar(&alone.address, "media", "media-1", 1).await;
    let name = |instance: &str, service: &str| (Arc::from(instance), Arc::from(service));
    assert_eq!(alone.fleet.connected(), [name("media-1", "media"), name("wiki-1", "wiki")]);
    media.report(1, &[get(1)]).await;
    assert_eq!(media.taken().await, 1);
    media.report(1, &[get(1)]).await;
    assert_eq!(media.taken().await, 1);
    wiki.report(1, &[flow("media", "wiki", "/wiki.v1.Wiki/Get", Decision::Allowed, 1)]).await;
    assert_eq!(wiki.taken().await, 1);
    let mut told = Vec::new();
    while let Ok(report) = reports.try_recv() {
        told.push((report.instance.to_string(), report.flows.len()));
    }
    assert_eq!(told, [("media-1".to_owned(), 1), ("wiki-1".to_owned(), 1)]);
    drop((wiki, media));
    let gone = async {
        while alone.fleet.connected().len() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, gone).await.expect("streams end");
    assert_eq!(alone.fleet.connected(), [name("media-1", "media")]);
    alone.stop().await;
}

/// A journal whose writes come to something else.
struct Faulty {
    inner: Arc<dyn Journal>,
    fault: Mutex<Option<Fault>>,
}

#[derive(Clone, Copy)]
enum Fault {
    Full,
    /// Made, but not confirmed; and well again.
    Unconfirmed,
}

#[tonic::async_trait]
impl Journal for Faulty {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        let fault = *self.fault.lock().unwrap();
        match fault {
            None => self.inner.append(writes).await,
            Some(Fault::Full) => Err(AppendError::Full("no room".into())),
            Some(Fault::Unconfirmed) => {
                *self.fault.lock().unwrap() = None;
                self.inner.append(writes).await?;
                Err(AppendError::Unconfirmed("no answer".into()))
            }
        }
    }

    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.inner.append_at(head, writes).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        self.inner.get(key).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.inner.snapshot().await
    }

    async fn head(&self) -> Result<Position, ReadError> {
        self.inner.head().await
    }

    async fn count(&self) -> Result<u64, ReadError> {
        self.inner.count().await
    }

    async fn history(&self) -> Result<History, ReadError> {
        self.inner.history().await
    }

    fn tail(&self, from: Position) -> Tail {
        self.inner.tail(from)
    }
}

#[tokio::test]
async fn while_the_disk_is_full_nothing_is_taken_and_nothing_is_lost() {
    let world = World::new();
    let faulty = Arc::new(Faulty { inner: journal(&world), fault: Mutex::new(Some(Fault::Full)) });
    let journal: Arc<dyn Journal> = Arc::clone(&faulty) as Arc<dyn Journal>;
    let alone = Alone::start(&world, &journal, "a").await;
    let mut reports = alone.fleet.reports();
    let mut media = world.sidecar(&alone.address, "media", "media-1", 1).await;
    media.report(1, &[get(5)]).await;
    // Rollouts hear of it all the same.
    tokio::time::timeout(LONG, reports.recv()).await.expect("it is told").unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), media.responses.message()).await.is_err());
    assert_eq!(alone.recorded().await, [], "what is not written is not told");
    // The stream ends while it waits, and the batch comes again on another one.
    let mut again = world.sidecar(&alone.address, "media", "media-1", 1).await;
    again.report(1, &[get(5)]).await;
    let mut third = world.sidecar(&alone.address, "media", "media-1", 1).await;
    third.report(1, &[get(5)]).await;
    drop(media);
    *faulty.fault.lock().unwrap() = None;
    assert_eq!((again.taken().await, third.taken().await), (1, 1));
    assert_eq!(alone.recorded().await, [get(5)]);
    assert!(reports.try_recv().is_err(), "told of once");

    *faulty.fault.lock().unwrap() = Some(Fault::Unconfirmed);
    again.report(2, &[get(10)]).await;
    assert_eq!(again.taken().await, 2);
    assert_eq!(alone.recorded().await, [get(15)], "counted once, whether it was confirmed or not");

    // A sidecar that does not wait has its stream ended before long: it keeps what it was not told is taken.
    *faulty.fault.lock().unwrap() = Some(Fault::Full);
    for sequence in 3..9 {
        again.report(sequence, &[get(1)]).await;
    }
    assert_eq!(again.next().await.unwrap_err().code(), Code::ResourceExhausted);
    *faulty.fault.lock().unwrap() = None;
    let mut anew = world.sidecar(&alone.address, "media", "media-1", 1).await;
    anew.report(9, &[get(1)]).await;
    assert_eq!(anew.taken().await, 9);
    alone.stop().await;
}

/// Named after batches without a flow that counts: each waited for a write, and left a mark.
#[tokio::test]
async fn what_holds_nothing_is_acknowledged_at_once_and_leaves_nothing() {
    let world = World::new();
    let faulty = Arc::new(Faulty { inner: journal(&world), fault: Mutex::new(Some(Fault::Full)) });
    let journal: Arc<dyn Journal> = Arc::clone(&faulty) as Arc<dyn Journal>;
    let alone = Alone::start(&world, &journal, "a").await;
    let mut media = world.sidecar(&alone.address, "media", "media-1", 1).await;
    let others = flow("wiki", "issues", "/issues.v1.Issues/List", Decision::Allowed, 1);
    media.report(1, &[]).await;
    media.report(2, &[others]).await;
    assert_eq!((media.taken().await, media.taken().await), (1, 2));
    // In its place, where one before it waits.
    media.report(3, &[get(5)]).await;
    media.report(4, &[]).await;
    assert!(tokio::time::timeout(Duration::from_millis(200), media.responses.message()).await.is_err());
    *faulty.fault.lock().unwrap() = None;
    assert_eq!((media.taken().await, media.taken().await), (3, 4));
    media.report(3, &[get(5)]).await;
    assert_eq!(media.taken().await, 3);
    assert_eq!(alone.recorded().await, [get(5)]);
    let mut issues = world.sidecar(&alone.address, "issues", "issues-1", 1).await;
    issues.report(1, &[]).await;
    assert_eq!(issues.taken().await, 1);
    alone.stop().await;
    let keys = journal.snapshot().await.unwrap().records.into_iter().map(|record| record.key);
    assert_eq!(keys.filter(|key| key.starts_with("batch/")).collect::<Vec<_>>(), ["batch/media/media-1"]);
}

#[tokio::test]
async fn hours_are_let_go_of_after_thirty_days_whoever_wrote_them() {
    let world = World::new();
    let journal = journal(&world);
    let alone = Alone::start(&world, &journal, "a").await;
    let mut media = world.sidecar(&alone.address, "media", "media-1", 1).await;
    media.report(1, &[get(5)]).await;
    assert_eq!(media.taken().await, 1);
    alone.stop().await;
    // The same as if it had been written at other times.
    let records = journal.snapshot().await.unwrap().records;
    let [mark, hour] = &records[..] else { panic!("{records:?}") };
    let this: u64 = hour.key.split('/').nth(1).unwrap().parse().unwrap();
    let at = |hour: u64, writer: &str| format!("hour/{hour:010}/media/{writer}");
    // Not so near to the limit that it matters if the next hour begins while this runs.
    let mut writes: Vec<_> = [0, this - 722, this - 718, this - 3]
        .into_iter()
        .flat_map(|hour| [at(hour, "a"), at(hour, "b")])
        .map(|key| Write::put(key, hour.value.clone()))
        .collect();
    // Boot 1, sequence 1, at the second 1.
    let old_mark = Bytes::from_static(&[9, 1, 0, 0, 0, 0, 0, 0, 0, 16, 1, 24, 1]);
    writes.push(Write::put("batch/media/media-0", old_mark));
    writes.push(Write::put("batch/media/media-2", mark.value.clone()));
    journal.append(writes).await.unwrap();

    let alone = Alone::start(&world, &journal, "a").await;
    let recorded = alone.fleet.flows(FlowsRequest::default()).await.unwrap();
    assert_eq!((flows(&recorded), recorded.silent_hours), (vec![get(25)], 716), "before anything was let go of");
    let total = &recorded.flows[0];
    let seconds = |hour: u64| i64::try_from(hour * 3600).unwrap();
    assert_eq!(total.first_unix_seconds, seconds(this - 718));
    assert_eq!((recorded.from_unix_seconds, total.last_unix_seconds), (seconds(this - 718), seconds(this)));
    let since = FlowsRequest { since_unix_seconds: seconds(this - 2), ..FlowsRequest::default() };
    assert_eq!(flows(&alone.fleet.flows(since).await.unwrap()), [get(5)]);
    let mut media = world.sidecar(&alone.address, "media", "media-1", 1).await;
    media.report(2, &[get(1)]).await;
    assert_eq!(media.taken().await, 2);
    alone.stop().await;
    let keys: Vec<_> = journal.snapshot().await.unwrap().records.into_iter().map(|record| record.key).collect();
    let mut kept = vec!["batch/media/media-1".to_owned(), "batch/media/media-2".to_owned()];
    kept.extend([this - 718, this - 3].into_iter().flat_map(|hour| [at(hour, "a"), at(hour, "b")]));
    kept.push(at(this, "a"));
    assert!(keys.starts_with(&kept), "{keys:?}");
}

#[test]
fn the_name_that_flows_are_counted_under_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let name = flows::writer(&folder).unwrap();
    assert_eq!((name.len(), &flows::writer(&folder).unwrap()), (16, &name));
    std::fs::write(folder.join("flow-writer"), "half").unwrap();
    let another = flows::writer(&folder).unwrap();
    assert!(another.len() == 16 && another != name);
}
