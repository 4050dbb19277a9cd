//! A real journal, a real publisher, a relay and several followers, of either or of both, through thousands of steps of
//! whatever can go wrong. In the end every follower equals the model; on the way none goes back, and none shows less than
//! it acknowledged.
//!
//! The seed is printed; `TENON_SEED` repeats a run's decisions.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "randomised/link.rs"]
mod link;
#[path = "randomised/model.rs"]
mod model;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    slice,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use journal::{Embedded, Journal, OpenError, Options, Position, Publisher, RelaySource, Settings, Write};
use link::{Faults, Hub, Link};
use model::{Model, Projections, VIEWS};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use replica::{Event, Follow, Guard, ParentStatus, Raw, Replica, Value as _};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

const STEPS: u32 = 10_000;
const KIND: &str = "tenant";
const KEYS: u32 = 120;
const FOLLOWERS: usize = 6;

/// What an observer was told, so that it can be compared with what readers see.
type Told = Arc<Mutex<BTreeMap<String, Bytes>>>;

/// One follower and what the test knows of it.
struct Subject {
    service: String,
    dir: PathBuf,
    /// Its ways to its parents.
    links: Vec<Link>,
    replica: Replica<Raw>,
    told: Told,
    task: JoinHandle<()>,
    shutdown: CancellationToken,
    reached: Option<Position>,
}

impl Subject {
    fn start(service: String, dir: PathBuf, links: Vec<Link>) -> Self {
        let shutdown = CancellationToken::new();
        let told = Told::default();
        let follow = follow(&service, &dir, &links);
        let (replica, task) = follow.start_guarded(Guard::OFF, observer(Arc::clone(&told)), shutdown.clone());
        Self { service, dir, links, replica, told, task, shutdown, reached: None }
    }

    /// Ends it as a shutdown would, or as a kill would.
    async fn end(&mut self, killed: bool) {
        if killed {
            self.task.abort();
        }
        self.shutdown.cancel();
        let _ = (&mut self.task).await;
    }

    fn check_order(&mut self) {
        let position = self.replica.position();
        assert!(position >= self.reached, "{} went from {:?} back to {position:?}", self.service, self.reached);
        self.reached = position;
    }

    fn check(&mut self, model: &Model, views: &[&str]) {
        self.check_order();
        let Some(position) = self.reached else {
            assert!(self.replica.entries().is_empty(), "records without a position");
            return;
        };
        for key in model.keys_of(position.epoch) {
            let seen = self.replica.get(key);
            let seen = seen.as_ref().map(|seen| (seen.revision(), seen.raw()));
            model.check_not_older(views, position, key, seen);
        }
    }
}

fn follow(service: &str, dir: &Path, links: &[Link]) -> Follow<Link> {
    Follow { kind: KIND, instance: service.to_owned(), parents: links.to_vec(), state_dir: Some(dir.to_owned()) }
}

/// Follows the publisher and publishes what it knows.
struct Relay {
    dir: PathBuf,
    link: Link,
    hub: Arc<Hub>,
    views: Arc<Projections>,
    running: Option<(JoinHandle<()>, CancellationToken)>,
}

impl Relay {
    const NAME: &str = "relay";

    fn start(&mut self) {
        let shutdown = CancellationToken::new();
        let follow = follow(Self::NAME, &self.dir, slice::from_ref(&self.link));
        let (source, task) = RelaySource::<Raw>::follow(follow, |_| {}, shutdown.clone());
        let views = Arc::clone(&self.views);
        self.hub.publish(Publisher::start_with(KIND, source, views, settings(), None, shutdown.clone()));
        self.running = Some((task, shutdown));
    }

    async fn end(&mut self) {
        self.hub.unpublish();
        if let Some((task, shutdown)) = self.running.take() {
            shutdown.cancel();
            let _ = task.await;
        }
    }
}

fn settings() -> Settings {
    Settings { ring_changes: 60, snapshots: 2, idle_view: Duration::from_secs(3), ..Settings::default() }
}

/// Keeps a map from the events alone, and checks that each event fits the one before.
fn observer(told: Told) -> impl FnMut(Event<'_, Raw>) + Send + 'static {
    move |event| {
        let mut told = told.lock().unwrap();
        match event {
            Event::Replaced(all, _) => {
                *told = all.iter().map(|record| (record.key().to_owned(), raw(&record))).collect();
            }
            Event::Compared => {}
            Event::Changed { key, old, new, .. } => {
                let before = match new {
                    Some(new) => told.insert(key.to_owned(), raw(new)),
                    None => told.remove(key),
                };
                assert_eq!(before, old.map(raw), "the observer was told another old value of {key}");
            }
        }
    }
}

struct World {
    random: StdRng,
    path: PathBuf,
    model: Model,
    views: Arc<Projections>,
    hub: Arc<Hub>,
    relay: Relay,
    store: Option<Embedded>,
    journal: Option<Arc<dyn Journal>>,
    stop_publisher: CancellationToken,
    subjects: Vec<Subject>,
    counts: BTreeMap<&'static str, u32>,
}

impl World {
    async fn new(seed: u64, dir: &Path) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let (hub, views) = (Arc::<Hub>::default(), Arc::<Projections>::default());
        views.assign(Relay::NAME, "all");
        let relay = Relay {
            dir: dir.join(Relay::NAME),
            link: Link::new(&hub, Relay::NAME, random.random()),
            hub: Arc::default(),
            views: Arc::clone(&views),
            running: None,
        };
        let mut world = Self {
            random,
            path: dir.join("store.redb"),
            model: Model::default(),
            views,
            hub,
            relay,
            store: None,
            journal: None,
            stop_publisher: CancellationToken::new(),
            subjects: Vec::new(),
            counts: BTreeMap::new(),
        };
        world.open().await;
        world.relay.start();
        for index in 0..FOLLOWERS {
            let service = format!("service-{index}");
            world.views.assign(&service, VIEWS[index % VIEWS.len()]);
            let parents = match index {
                2 => vec![&world.relay.hub],
                3 => vec![&world.hub],
                _ => vec![&world.hub, &world.relay.hub],
            };
            let links = parents.into_iter().map(|hub| Link::new(hub, &service, world.random.random())).collect();
            world.subjects.push(Subject::start(service, dir.join(format!("state-{index}")), links));
        }
        world
    }

    /// Opens the store that is at `path`, as a restarted process would, and publishes it.
    async fn open(&mut self) {
        let options = Options { retained_changes: 500, ..Options::DEFAULT };
        let store = loop {
            match Embedded::open_with(&self.path, options) {
                Ok(store) => break store,
                // Streams of the last publisher are still ending.
                Err(OpenError::Held(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(error) => panic!("{error:?}"),
            }
        };
        let journal = store.kind(KIND).unwrap();
        self.stop_publisher = CancellationToken::new();
        let views = Arc::clone(&self.views);
        let publisher =
            Publisher::start_with(KIND, Arc::clone(&journal), views, settings(), None, self.stop_publisher.clone());
        self.hub.publish(publisher);
        self.model.reopened(&journal.snapshot().await.unwrap());
        self.store = Some(store);
        self.journal = Some(journal);
    }

    fn close(&mut self) {
        self.hub.unpublish();
        self.stop_publisher.cancel();
        self.journal = None;
        self.store = None;
    }

    async fn step(&mut self) {
        let what = match self.random.random_range(0..1000) {
            0..450 => self.append(1).await,
            450..500 => self.append(4).await,
            500..515 => self.append(90).await,
            515..530 => self.restart_follower().await,
            530..534 => self.restart_publisher(false).await,
            534..537 => self.restart_publisher(true).await,
            537..542 => self.restart_relay().await,
            542..600 => self.trouble(),
            600..610 => self.change_view(),
            _ => "pass",
        };
        *self.counts.entry(what).or_default() += 1;
        // Mostly a quick succession; at times long enough for heartbeats and backoffs to do their work.
        let longest = if self.random.random_bool(0.02) { 2500 } else { 12 };
        let pause = self.random.random_range(0..longest);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        for subject in &mut self.subjects {
            subject.check_order();
        }
        let looked_at = self.random.random_range(0..self.subjects.len());
        let subject = &mut self.subjects[looked_at];
        subject.check(&self.model, &self.views.ever(&subject.service));
    }

    async fn append(&mut self, most: usize) -> &'static str {
        let count = self.random.random_range(1..=most);
        let writes: Vec<_> = (0..count).map(|_| self.write()).collect();
        let position = self.journal.as_ref().unwrap().append(writes.clone()).await.unwrap();
        self.model.written(&writes, position);
        if most > 10 { "burst" } else { "append" }
    }

    fn write(&mut self) -> Write {
        let key = format!("key-{}", self.random.random_range(0..KEYS));
        if self.random.random_bool(0.25) {
            return Write::delete(key);
        }
        let mut value = vec![0; self.random.random_range(0..60)];
        self.random.fill(&mut value[..]);
        Write::put(key, value)
    }

    async fn restart_follower(&mut self) -> &'static str {
        let index = self.random.random_range(0..self.subjects.len());
        let mut subject = self.subjects.swap_remove(index);
        subject.end(self.random.random_bool(0.5)).await;
        let file = subject.dir.join(format!("{KIND}.state"));
        let what = match self.random.random_range(0..10) {
            0..2 => self.damage(&file),
            2 => {
                let _ = fs::remove_file(&file);
                "lose a state file"
            }
            _ => "restart a follower",
        };
        self.subjects.push(Subject::start(subject.service, subject.dir, subject.links));
        what
    }

    fn damage(&mut self, file: &Path) -> &'static str {
        let Ok(mut bytes) = fs::read(file) else { return "restart a follower" };
        let at = self.random.random_range(0..bytes.len());
        if self.random.random_bool(0.5) {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << self.random.random_range(0..8);
        }
        fs::write(file, bytes).unwrap();
        "damage a state file"
    }

    async fn restart_publisher(&mut self, anew: bool) -> &'static str {
        self.close();
        if anew {
            let before = self.model.epoch();
            while self.model.epoch() <= before {
                self.close();
                fs::remove_file(&self.path).unwrap();
                self.open().await;
            }
            self.append(60).await;
            return "another epoch";
        }
        self.open().await;
        "restart the publisher"
    }

    async fn restart_relay(&mut self) -> &'static str {
        self.relay.end().await;
        if self.random.random_bool(0.2) {
            let _ = fs::remove_dir_all(&self.relay.dir);
        }
        self.relay.start();
        "restart the relay"
    }

    fn trouble(&mut self) -> &'static str {
        let links: Vec<_> = self.subjects.iter().flat_map(|subject| &subject.links).chain([&self.relay.link]).collect();
        let index = self.random.random_range(0..links.len());
        let mut faults = links[index].faults.lock().unwrap();
        match self.random.random_range(0..4) {
            0 => {
                faults.cut = true;
                "cut"
            }
            1 => {
                faults.rate = [0.0, 0.02, 0.3][self.random.random_range(0..3)];
                "lossy"
            }
            2 => {
                faults.delay = Duration::from_millis(self.random.random_range(1..4000));
                "slow"
            }
            _ => {
                *faults = Faults::new(self.random.random());
                "well again"
            }
        }
    }

    fn change_view(&mut self) -> &'static str {
        // Only of some, since what those may see meanwhile cannot be checked as strictly.
        let service = format!("service-{}", self.random.random_range(0..2));
        self.views.assign(&service, VIEWS[self.random.random_range(0..VIEWS.len())]);
        self.hub.refresh();
        self.relay.hub.refresh();
        "change a view"
    }

    /// Waits until everyone is at the head, and compares.
    async fn settle(&mut self) {
        let journal = Arc::clone(self.journal.as_ref().unwrap());
        // More changes, so that being at the head proves something; of every key, since the relay's guard takes no map from
        // another epoch that has shrunk too far.
        let all: Vec<_> = (0..KEYS).map(|key| Write::put(format!("key-{key}"), "the end")).collect();
        let third: Vec<_> = (0..KEYS).step_by(3).map(|key| Write::delete(format!("key-{key}"))).collect();
        let mut head = Position::ZERO;
        for writes in [all, third] {
            head = journal.append(writes.clone()).await.unwrap();
            self.model.written(&writes, head);
        }
        self.model.reopened(&journal.snapshot().await.unwrap());
        for link in self.subjects.iter().flat_map(|subject| &subject.links).chain([&self.relay.link]) {
            link.faults.lock().unwrap().heal();
        }
        for subject in &mut self.subjects {
            let view = self.views.of(&subject.service);
            let wanted = self.model.view(view);
            let agreed = async {
                let mut positions = subject.replica.subscribe();
                while held(&subject.replica) != wanted {
                    positions.changed().await.unwrap();
                }
                subject.replica.wait_for(head).await;
            };
            if timeout(Duration::from_secs(60), agreed).await.is_err() {
                panic!("{} as {view} differs: {:#?}", subject.service, subject.replica.status());
            }
            let proved = async {
                let at_head = |parent: &ParentStatus| parent.connected && parent.position >= Some(head);
                while !subject.replica.status().parents.iter().all(at_head) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            if timeout(Duration::from_secs(60), proved).await.is_err() {
                panic!("{} has lost a parent: {:#?}", subject.service, subject.replica.status());
            }
            let told: BTreeMap<_, _> = subject.told.lock().unwrap().clone();
            let wanted: BTreeMap<_, _> = wanted.into_iter().map(|(key, (_, value))| (key, value)).collect();
            assert_eq!(told, wanted, "the observer of {} knows another map", subject.service);
            subject.check(&self.model, &self.views.ever(&subject.service));
        }
    }
}

fn held(replica: &Replica<Raw>) -> BTreeMap<String, (u64, Bytes)> {
    let entries = replica.entries();
    entries.iter().map(|record| (record.key().to_owned(), (record.revision(), raw(record)))).collect()
}

fn raw(record: &Raw) -> Bytes {
    Bytes::copy_from_slice(record.raw())
}

#[tokio::test(start_paused = true)]
async fn every_follower_equals_the_model_after_ten_thousand_steps_of_trouble() {
    let seed = std::env::var("TENON_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("TENON_SEED={seed}");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut world = World::new(seed, dir.path()).await;
    for step in 1..=STEPS {
        world.step().await;
        if step % 2000 == 0 {
            world.settle().await;
        }
    }
    world.settle().await;
    println!("{:?}", world.counts);
    for subject in &world.subjects {
        let status = subject.replica.status();
        let (snapshots, partial, differed) = (status.snapshots, status.partial_snapshots, status.divergences);
        println!("{}: {snapshots} whole snapshots, {partial} partial ones, {differed} divergences", subject.service);
    }
    world.relay.end().await;
    for mut subject in std::mem::take(&mut world.subjects) {
        subject.end(false).await;
    }
}
