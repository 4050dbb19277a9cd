use std::{
    collections::{BTreeMap, HashSet},
    sync::atomic::AtomicBool,
};

use bytes::Bytes;
use tenon_proto::replication::v1::{
    Change, Delta, FetchRequest, FetchResponse, FollowRequest, FollowResponse, GuardRules, Heartbeat, Record,
    SnapshotEnd, SnapshotStart, Start, follow_request::Request, follow_response::Response, guard_rules::Override,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::*;
use crate::Responses;

mod races;

/// A record of which the bytes are its other names, with commas.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Site(Arc<(String, u64, String)>);

impl Value for Site {
    fn decode(key: &str, revision: u64, raw: Bytes) -> Result<Self, String> {
        let names = String::from_utf8(raw.into()).map_err(|error| error.to_string())?;
        Ok(Self(Arc::new((key.to_owned(), revision, names))))
    }

    fn key(&self) -> &str {
        &self.0.0
    }

    fn revision(&self) -> u64 {
        self.0.1
    }

    fn raw(&self) -> &[u8] {
        self.0.2.as_bytes()
    }

    fn aliases(&self) -> impl Iterator<Item = &str> {
        self.0.2.split(',').filter(|name| !name.is_empty())
    }
}

/// The truth, which several parents serve.
#[derive(Debug, Default)]
struct Truth {
    epoch: u64,
    revision: u64,
    records: BTreeMap<String, (u64, String)>,
    rules: Option<GuardRules>,
    streams: Vec<(usize, mpsc::UnboundedSender<Result<FollowResponse, Status>>)>,
    /// Deltas that a stream can be resumed with.
    log: Vec<Delta>,
}

/// How a parent behaves.
#[derive(Debug, Default)]
struct Manners {
    /// Refuses everything.
    dead: AtomicBool,
    /// Takes questions and never answers.
    silent: AtomicBool,
    /// Questions that it was asked.
    asked: Mutex<Vec<FetchRequest>>,
}

#[derive(Clone, Debug)]
struct Mesh {
    truth: Arc<Mutex<Truth>>,
    parents: Vec<Arc<Manners>>,
}

struct Source {
    number: usize,
    mesh: Mesh,
}

#[tonic::async_trait]
impl Parent for Source {
    async fn follow(&self, mut requests: mpsc::Receiver<FollowRequest>) -> Result<Responses, Status> {
        if self.mesh.parents[self.number].dead.load(Relaxed) {
            return Err(Status::unavailable("dead"));
        }
        let Some(FollowRequest { request: Some(Request::Start(start)) }) = requests.recv().await else {
            return Err(Status::invalid_argument("no start"));
        };
        // What the follower answers is of no interest here.
        tokio::spawn(async move { while requests.recv().await.is_some() {} });
        let (sender, receiver) = mpsc::unbounded_channel();
        self.mesh.truth().welcome(self.number, &start, sender);
        Ok(Box::pin(UnboundedReceiverStream::new(receiver)))
    }

    async fn fetch(&self, request: FetchRequest) -> Result<FetchResponse, Status> {
        let manners = &self.mesh.parents[self.number];
        manners.asked.lock().unwrap().push(request.clone());
        if manners.silent.load(Relaxed) {
            std::future::pending::<()>().await;
        }
        // As over a network: others come between.
        tokio::time::sleep(Duration::from_millis(1)).await;
        if manners.dead.load(Relaxed) {
            return Err(Status::unavailable("dead"));
        }
        Ok(self.mesh.truth().answer(&request))
    }
}

impl Truth {
    fn position(&self) -> Position {
        Position::new(self.epoch, self.revision)
    }

    fn welcome(&mut self, number: usize, start: &Start, stream: mpsc::UnboundedSender<Result<FollowResponse, Status>>) {
        let resume = start.resume.map(Position::from);
        let send = |response| stream.send(Ok(FollowResponse { response: Some(response) })).unwrap();
        if let Some(rules) = &self.rules {
            send(Response::GuardRules(rules.clone()));
        }
        let known = self.log.first().map_or(self.revision, |delta| delta.previous_revision);
        match resume.filter(|resume| resume.epoch == self.epoch && resume.revision >= known) {
            Some(resume) => {
                for delta in self.log.iter().filter(|delta| delta.revision > resume.revision) {
                    send(Response::Delta(delta.clone()));
                }
            }
            None => {
                let position = Some(self.position().into());
                send(Response::SnapshotStart(SnapshotStart { position, partial: true, ..SnapshotStart::default() }));
                send(Response::SnapshotEnd(SnapshotEnd::default()));
            }
        }
        send(Response::Heartbeat(Heartbeat { head: Some(self.position().into()), ..Heartbeat::default() }));
        self.streams.push((number, stream));
    }

    fn answer(&self, request: &FetchRequest) -> FetchResponse {
        let owner = |alias: &String| {
            let owner = self.records.iter().find(|(_, (_, names))| names.split(',').any(|name| name == alias));
            owner.map(|(key, _)| (alias.clone(), key.clone()))
        };
        let aliases: BTreeMap<_, _> = request.aliases.iter().filter_map(owner).collect();
        let keys: HashSet<_> = request.keys.iter().chain(aliases.values()).collect();
        let record = |key: &&String| {
            let (revision, names) = self.records.get(*key)?;
            Some(Record { key: (*key).clone(), revision: *revision, value: names.clone().into_bytes().into() })
        };
        let records = keys.iter().filter_map(record).collect();
        FetchResponse { position: Some(self.position().into()), records, aliases, ..FetchResponse::default() }
    }
}

impl Mesh {
    fn new(parents: usize) -> Self {
        let truth = Truth { epoch: 1, revision: 10, ..Truth::default() };
        Self { truth: Arc::new(Mutex::new(truth)), parents: (0..parents).map(|_| Arc::default()).collect() }
    }

    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    /// Writes records and tells every stream; `None` deletes.
    fn write(&self, changes: &[(&str, Option<&str>)]) -> Position {
        let mut truth = self.truth();
        let previous_revision = truth.revision;
        let mut told = Vec::new();
        for (key, names) in changes {
            truth.revision += 1;
            let revision = truth.revision;
            match names {
                Some(names) => truth.records.insert((*key).to_owned(), (revision, (*names).to_owned())),
                None => truth.records.remove(*key),
            };
            let value = names.map(|names| Bytes::copy_from_slice(names.as_bytes()));
            told.push(Change { key: (*key).to_owned(), revision, value, several: false });
        }
        let delta = Delta { epoch: truth.epoch, previous_revision, revision: truth.revision, changes: told };
        for (_, stream) in &truth.streams {
            let _ = stream.send(Ok(FollowResponse { response: Some(Response::Delta(delta.clone())) }));
        }
        truth.log.push(delta);
        truth.position()
    }

    fn kill(&self, parent: usize) {
        self.parents[parent].dead.store(true, Relaxed);
        self.truth().streams.retain(|(number, _)| *number != parent);
    }

    fn revive(&self, parent: usize) {
        self.parents[parent].dead.store(false, Relaxed);
    }

    fn start(&self, capacity: u64, state_dir: Option<PathBuf>) -> Run {
        let parents = (0..self.parents.len()).map(|number| Source { number, mesh: self.clone() }).collect();
        let shutdown = CancellationToken::new();
        let follow = FollowOnDemand { kind: "tenant", instance: "test".to_owned(), parents, state_dir, capacity };
        let (cache, task) = follow.start(shutdown.clone());
        Run { cache, shutdown, task }
    }

    fn questions(&self, parent: usize) -> usize {
        self.parents[parent].asked.lock().unwrap().len()
    }
}

struct Run {
    cache: OnDemand<Site>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Run {
    async fn resolve(&self, name: Name) -> Answer<Site> {
        self.cache.resolve(vec![name]).await.remove(0)
    }

    async fn reaches(&self, position: Position) {
        tokio::time::timeout(Duration::from_secs(30), self.cache.wait_for(position)).await.expect("reached");
    }

    async fn until(&self, what: &str, holds: impl Fn(&OnDemand<Site>) -> bool) {
        let waiting = async {
            while !holds(&self.cache) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert!(waited.is_ok(), "{what}: {:?}", self.cache.status());
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

fn key(key: &str) -> Name {
    Name::Key(key.into())
}

fn alias(alias: &str) -> Name {
    Name::Alias(alias.into())
}

/// The names of the record, or what was said instead.
fn said(answer: &Answer<Site>) -> &str {
    match answer {
        Answer::Found(cached) => &cached.value.0.2,
        Answer::Nobody => "(nobody)",
        Answer::NotHeld => "(not held)",
    }
}

const LARGE: u64 = 1 << 20;

#[tokio::test(start_paused = true)]
async fn a_miss_is_asked_for_once_however_many_wait_for_it() {
    let mesh = Mesh::new(1);
    mesh.write(&[("acme", Some("acme.example,www.example"))]);
    let run = mesh.start(LARGE, None);
    run.reaches(Position::new(1, 11)).await;
    assert_eq!(said(&run.cache.get("acme")), "(not held)");
    let asks = (0..200).map(|_| run.cache.resolve(vec![key("acme"), key("nobody")]));
    for answers in futures_util::future::join_all(asks).await {
        assert_eq!(answers.iter().map(said).collect::<Vec<_>>(), ["acme.example,www.example", "(nobody)"]);
    }
    assert_eq!(mesh.questions(0), 1);
    assert_eq!(said(&run.cache.get("acme")), "acme.example,www.example");
    assert_eq!(said(&run.cache.by_alias("www.example")), "acme.example,www.example", "its names came with it");
    assert_eq!(said(&run.cache.get("nobody")), "(nobody)");
    assert_eq!(said(&run.resolve(alias("nobody.example")).await), "(nobody)");
    assert_eq!(said(&run.cache.by_alias("nobody.example")), "(nobody)");
    let status = run.cache.status();
    assert_eq!((status.records, status.absent, status.fetched.found, status.fetched.nobody), (1, 2, 1, 2));
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn changes_reach_what_is_held_and_what_was_nobodys_without_a_question() {
    let mesh = Mesh::new(2);
    mesh.write(&[("acme", Some("acme.example"))]);
    let run = mesh.start(LARGE, None);
    run.reaches(Position::new(1, 11)).await;
    run.cache.resolve(vec![key("acme"), key("fresh"), alias("fresh.example")]).await;
    let asked = mesh.questions(0);
    let at = mesh.write(&[("acme", Some("moved.example")), ("fresh", Some("fresh.example"))]);
    run.reaches(at).await;
    assert_eq!(said(&run.cache.get("acme")), "moved.example");
    assert_eq!(said(&run.cache.by_alias("moved.example")), "moved.example");
    assert_eq!(said(&run.cache.by_alias("acme.example")), "(not held)", "the name went with the change");
    assert_eq!(said(&run.cache.get("fresh")), "fresh.example", "it was asked for, and nobody had it");
    assert_eq!(said(&run.cache.by_alias("fresh.example")), "fresh.example");
    assert_eq!(mesh.questions(0), asked);
    let at = mesh.write(&[("acme", None)]);
    run.reaches(at).await;
    assert_eq!(said(&run.cache.get("acme")), "(nobody)");
    assert_eq!(said(&run.resolve(key("acme")).await), "(nobody)");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_parent_that_never_answers_costs_nothing_while_the_other_one_does() {
    let mesh = Mesh::new(2);
    mesh.write(&[("acme", Some("acme.example"))]);
    mesh.parents[0].silent.store(true, Relaxed);
    let run = mesh.start(LARGE, None);
    run.reaches(Position::new(1, 11)).await;
    let began = Instant::now();
    assert_eq!(said(&run.resolve(key("acme")).await), "acme.example");
    assert!(began.elapsed() < Duration::from_millis(20), "{:?}", began.elapsed());
    assert_eq!((mesh.questions(0), mesh.questions(1)), (1, 1), "both were asked at once");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_held_outlives_its_parents_and_the_rest_is_not_to_be_had() {
    let mesh = Mesh::new(2);
    mesh.write(&[("acme", Some("acme.example")), ("globex", Some("globex.example"))]);
    let run = mesh.start(LARGE, None);
    run.reaches(Position::new(1, 12)).await;
    run.cache.resolve(vec![key("acme"), key("nobody")]).await;
    mesh.kill(0);
    mesh.kill(1);
    run.until("both are gone", |cache| cache.status().connected == [false, false]).await;
    assert_eq!(said(&run.cache.get("acme")), "acme.example");
    assert_eq!(said(&run.cache.by_alias("acme.example")), "acme.example");
    assert_eq!(said(&run.cache.get("nobody")), "(nobody)");
    assert_eq!(said(&run.resolve(key("globex")).await), "(not held)");
    let asked = mesh.questions(0);
    assert_eq!(said(&run.resolve(key("globex")).await), "(not held)");
    assert_eq!(mesh.questions(0), asked, "a failure is remembered for a moment");
    mesh.revive(1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(said(&run.resolve(key("globex")).await), "globex.example");
    run.until("one is back", |cache| cache.status().connected == [false, true]).await;
    assert_eq!(run.cache.status().gaps, 1, "only the start");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_gap_what_is_held_is_served_and_looked_at_again() {
    let mesh = Mesh::new(1);
    mesh.write(&[("acme", Some("acme.example")), ("globex", Some("globex.example")), ("gone", Some("gone.example"))]);
    let run = mesh.start(LARGE, None);
    run.reaches(Position::new(1, 13)).await;
    run.cache.resolve(vec![key("acme"), key("globex"), key("gone"), key("nobody")]).await;
    mesh.kill(0);
    mesh.write(&[("acme", Some("new.example")), ("gone", None)]);
    {
        let mut truth = mesh.truth();
        (truth.epoch, truth.revision) = (2, 1);
        truth.log.clear();
    }
    mesh.parents[0].silent.store(true, Relaxed);
    mesh.revive(0);
    run.reaches(Position::new(2, 1)).await;
    let Answer::Found(acme) = run.cache.get("acme") else { panic!("it is served") };
    assert_eq!((&*acme.value.0.2, acme.as_of), ("acme.example", Some(Position::new(1, 13))));
    assert_eq!(said(&run.cache.get("nobody")), "(not held)", "that is not certain any more");
    mesh.parents[0].silent.store(false, Relaxed);
    run.until("looked at again", |cache| said(&cache.get("acme")) == "new.example").await;
    let Answer::Found(globex) = run.cache.get("globex") else { panic!("it is there") };
    assert_eq!((&*globex.value.0.2, globex.as_of), ("globex.example", None));
    assert_eq!(said(&run.cache.get("gone")), "(nobody)");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_without_parents_serves_what_was_held() {
    let (mesh, dir) = (Mesh::new(1), tempfile::tempdir().unwrap());
    mesh.write(&[("acme", Some("acme.example")), ("globex", Some("globex.example"))]);
    let run = mesh.start(LARGE, Some(dir.path().to_owned()));
    run.reaches(Position::new(1, 12)).await;
    run.cache.resolve(vec![key("acme")]).await;
    run.stop().await;
    mesh.kill(0);
    let run = mesh.start(LARGE, Some(dir.path().to_owned()));
    assert_eq!(run.cache.position(), Some(Position::new(1, 12)), "at once");
    assert_eq!(said(&run.cache.by_alias("acme.example")), "acme.example");
    assert_eq!(said(&run.resolve(key("globex")).await), "(not held)");
    mesh.write(&[("acme", Some("new.example"))]);
    mesh.revive(0);
    run.reaches(Position::new(1, 13)).await;
    assert_eq!(said(&run.cache.get("acme")), "new.example", "resumed");
    run.stop().await;
    std::fs::write(dir.path().join("tenant.cache"), b"TENONOD1 of something else").unwrap();
    let run = mesh.start(LARGE, Some(dir.path().to_owned()));
    assert_eq!(run.cache.position(), None, "a damaged file is ignored");
    run.reaches(Position::new(1, 13)).await;
    run.stop().await;
}

/// The accident: an empty table upstream poisoned every cache below it.
#[tokio::test(start_paused = true)]
async fn an_emptied_table_upstream_empties_no_cache() {
    let mesh = Mesh::new(1);
    let keys: Vec<String> = (0..100).map(|number| format!("tenant-{number}")).collect();
    let all: Vec<_> = keys.iter().map(|key| (key.as_str(), Some(""))).collect();
    mesh.write(&all);
    mesh.truth().rules = Some(GuardRules { canaries: vec!["tenant-7".to_owned()], ..GuardRules::default() });
    let run = mesh.start(LARGE, None);
    run.reaches(Position::new(1, 110)).await;
    run.cache.resolve(keys.iter().map(|name| key(name)).collect()).await;
    // By deltas...
    let none: Vec<_> = keys.iter().filter(|key| *key != "tenant-7").map(|key| (key.as_str(), None)).collect();
    mesh.write(&none);
    run.until("the delta is refused", |cache| cache.status().guard_refusals > 0).await;
    assert_eq!(run.cache.status().records, 100);
    // ... by a new epoch, and by answers that lack the canary.
    mesh.kill(0);
    {
        let mut truth = mesh.truth();
        (truth.epoch, truth.revision) = (2, 1);
        (truth.log, truth.records) = (Vec::new(), BTreeMap::new());
    }
    mesh.revive(0);
    run.reaches(Position::new(2, 1)).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(said(&run.cache.get("tenant-3")), "", "served on");
    assert_eq!(said(&run.resolve(key("unheld")).await), "(not held)", "an empty table proves no absence");
    assert_eq!((run.cache.status().records, run.cache.status().outdated), (100, 100));
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn where_an_operator_allows_that_canaries_go_answers_without_them_are_believed() {
    let mesh = Mesh::new(1);
    mesh.write(&[("tenant-1", Some("")), ("tenant-7", Some(""))]);
    let canaries = vec!["tenant-7".to_owned()];
    let allowed = Override { smallest_records: 900_000, until_unix_seconds: i64::MAX };
    mesh.truth().rules = Some(GuardRules { canaries, r#override: Some(allowed), ..GuardRules::default() });
    let run = mesh.start(LARGE, None);
    let head = Position::new(1, 12);
    run.reaches(head).await;
    assert_eq!(said(&run.resolve(key("tenant-7")).await), "");
    mesh.write(&[("tenant-7", None)]);
    run.reaches(Position::new(1, 13)).await;
    assert_eq!(said(&run.resolve(key("tenant-1")).await), "");
    assert_eq!((run.cache.status().records, run.cache.status().guard_refusals), (1, 0));
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_changes_overtake_is_never_older_than_they_are() {
    let mesh = Mesh::new(1);
    let run = mesh.start(LARGE, None);
    mesh.write(&[("other", Some("other.example"))]);
    run.reaches(Position::new(1, 11)).await;
    for round in 0..50 {
        let name = format!("tenant-{round}");
        mesh.write(&[(&name, Some("old.example"))]);
        let asking = run.cache.resolve(vec![key(&name), alias("new.example")]);
        let writing = async {
            tokio::time::sleep(Duration::from_micros(100 * (round % 25))).await;
            mesh.write(&[(&name, Some("new.example"))])
        };
        let (_, at) = tokio::join!(asking, writing);
        run.reaches(at).await;
        run.until("the change won", |cache| said(&cache.get(&name)) != "old.example").await;
        let by_alias = run.resolve(alias("new.example")).await;
        assert_eq!(said(&by_alias), "new.example", "round {round}");
        let at = mesh.write(&[(&name, None)]);
        run.reaches(at).await;
        assert_eq!(said(&run.resolve(key(&name)).await), "(nobody)");
    }
    run.stop().await;
}
