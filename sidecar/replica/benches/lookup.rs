//! What a replica of a million tenants costs: memory, look-ups (present, absent, by host) with and without a thousand
//! changes a second, the longest wait of a reader while the whole map is replaced, saving, and starting from disk.
//!
//! Prints what it measured; times include the clock's, about 30 ns. Memory and allocator are those of a sidecar. With the
//! argument `start` it measures nothing but starting from disk.

use std::{
    hint::black_box,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use prost::Message as _;
use replica::{Digest, Follow, Parent, Position, Replica, Responses, Value};
use tenon_proto::{
    replication::v1::{
        Change, Delta, FollowRequest, FollowResponse, Heartbeat, Record, SnapshotChunk, SnapshotEnd, SnapshotStart,
        follow_response::Response,
    },
    tcs::v1::TenantContext,
};
use tokio::{sync::mpsc, task::JoinHandle, time::interval};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

#[path = "lookup/tenants.rs"]
mod tenants;

use tenants::{Tenant, context, host, id};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const TENANTS: usize = 1_000_000;
const LOOKS: usize = 2_000_000;
const CHUNK: usize = 1_000;
/// How this program tells itself to start from a folder.
const FROM: &str = "from";

type Told = Result<FollowResponse, Status>;

/// Hands the one stream out that the benchmark feeds.
struct Feed(Mutex<Option<mpsc::Receiver<Told>>>);

#[tonic::async_trait]
impl Parent for Feed {
    async fn follow(&self, mut requests: mpsc::Receiver<FollowRequest>) -> Result<Responses, Status> {
        let feed = self.0.lock().ok().and_then(|mut feed| feed.take());
        let feed = feed.ok_or_else(|| Status::unavailable("once is enough"))?;
        tokio::spawn(async move { while requests.recv().await.is_some() {} });
        // A parent is heard each second, whatever else it says.
        let alive = stream::unfold(interval(Duration::from_secs(1)), |mut second| async move {
            second.tick().await;
            Some((Ok(FollowResponse { response: Some(Response::Heartbeat(Heartbeat::default())) }), second))
        });
        Ok(Box::pin(stream::select(ReceiverStream::new(feed), alive)))
    }
}

/// The writing side of a follower's stream.
struct Teller(mpsc::Sender<Told>);

impl Teller {
    fn tell(&self, response: Response) {
        self.0.blocking_send(Ok(FollowResponse { response: Some(response) })).expect("the follower listens");
    }

    /// Everything, as it is at `position`.
    fn snapshot(&self, position: Position, revision: u64) {
        let mut digest = Digest::new();
        self.tell(Response::SnapshotStart(SnapshotStart { position: Some(position.into()), ..Default::default() }));
        for first in (0..TENANTS).step_by(CHUNK) {
            let records = (first..TENANTS.min(first + CHUNK)).map(|number| {
                let record = Record { key: id(number), revision, value: context(number, 0) };
                digest.add(&record.key, record.revision, &record.value);
                record
            });
            self.tell(Response::SnapshotChunk(SnapshotChunk { records: records.collect() }));
        }
        let digest = digest.fold().to_vec().into();
        self.tell(Response::SnapshotEnd(SnapshotEnd { records: TENANTS as u64, digest }));
    }

    /// A thousand changes a second, until `stop`; returns how many there were.
    fn change(&self, from: Position, stop: &AtomicBool) -> u64 {
        let started = Instant::now();
        let mut revision = from.revision;
        while !stop.load(Relaxed) {
            while revision - from.revision < started.elapsed().as_millis() as u64 {
                let number = (revision as usize).wrapping_mul(7_919) % TENANTS;
                let value = Some(context(number, revision as u32));
                let change = Change { key: id(number), revision: revision + 1, value, several: false };
                let (epoch, previous_revision) = (from.epoch, revision);
                revision += 1;
                self.tell(Response::Delta(Delta { epoch, previous_revision, revision, changes: vec![change] }));
            }
            thread::park_timeout(Duration::from_micros(500));
        }
        revision - from.revision
    }
}

struct Run {
    runtime: tokio::runtime::Runtime,
    replica: Replica<Tenant>,
    task: JoinHandle<()>,
    shutdown: CancellationToken,
    /// How long it took until what was on disk could be read.
    started: Duration,
}

fn follow(state_dir: Option<PathBuf>) -> (Run, Teller) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (sender, receiver) = mpsc::channel(4);
    let shutdown = CancellationToken::new();
    let follow =
        Follow { kind: "tenant", instance: "bench".into(), parents: vec![Feed(Mutex::new(Some(receiver)))], state_dir };
    let begun = Instant::now();
    let entered = runtime.enter();
    let (replica, task) = follow.start::<Tenant>(|_| {}, shutdown.clone());
    drop(entered);
    let started = begun.elapsed();
    (Run { runtime, replica, task, shutdown, started }, Teller(sender))
}

impl Run {
    fn reaches(&self, position: Position) {
        self.runtime.block_on(self.replica.wait_for(position));
    }

    fn end(self) {
        self.shutdown.cancel();
        self.runtime.block_on(self.task).expect("it ends");
    }
}

/// Times of single look-ups, in nanoseconds.
#[derive(Default)]
struct Times(Vec<u32>);

impl Times {
    /// `look` is given names that stand ready: finding them is not what is measured.
    fn of(names: &[String], look: impl Fn(&str) -> bool) -> Self {
        let mut times = Vec::with_capacity(LOOKS);
        let mut name = String::new();
        for at in 0..LOOKS {
            name.clone_from(&names[at.wrapping_mul(48_271) % TENANTS]);
            let begun = Instant::now();
            let found = look(black_box(&name));
            times.push(begun.elapsed().as_nanos() as u32);
            black_box(found);
        }
        times.sort_unstable();
        Self(times)
    }

    fn print(&self, what: &str) {
        let at = |share: f64| self.0[((self.0.len() - 1) as f64 * share) as usize];
        let max = f64::from(at(1.0)) / 1e3;
        println!(
            "{what:<44} p50 {:>5} ns   p99 {:>6} ns   p99.9 {:>6} ns   max {max:>8.1} µs",
            at(0.5),
            at(0.99),
            at(0.999)
        );
    }
}

fn look_ups(replica: &Replica<Tenant>, what: &str) {
    let ids: Vec<String> = (0..TENANTS).map(id).collect();
    Times::of(&ids, |id| replica.get(id).is_some()).print(&format!("by id, {what}"));
    drop(ids);
    let hosts: Vec<String> = (0..TENANTS).map(|number| host(number, 1)).collect();
    Times::of(&hosts, |host| replica.by_alias(host).is_some()).print(&format!("by host, {what}"));
    drop(hosts);
    let none: Vec<String> = (0..TENANTS).map(|number| format!("absent-{number}")).collect();
    Times::of(&none, |id| replica.get(id).is_none()).print(&format!("by id, absent, {what}"));
}

/// A field of this process's status, in MiB.
fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    let kib = line.trim_matches(|c: char| !c.is_ascii_digit());
    kib.parse().unwrap_or(0.0) / 1024.0
}

/// As [`memory`], when the allocator has given back what it is not using.
fn settled(field: &str) -> f64 {
    thread::park_timeout(Duration::from_secs(11));
    memory(field)
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [from, dir] = &arguments[..]
        && from == FROM
    {
        return start(dir.into());
    }
    // `cargo test` builds and runs benchmarks too.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let raw: usize = (0..TENANTS).map(|number| context(number, 0).len()).sum();
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!("{TENANTS} tenants of {} bytes each, {:.0} MiB", raw / TENANTS, mib(raw));
    let dir = tempfile::tempdir().expect("a folder");
    let before = memory("VmRSS:");

    let (run, teller) = follow(Some(dir.path().to_owned()));
    let begun = Instant::now();
    let position = Position::new(1, 1);
    teller.snapshot(position, 1);
    run.reaches(position);
    println!("received as a snapshot within {:.2} s", begun.elapsed().as_secs_f64());
    if arguments.iter().any(|argument| argument == "start") {
        run.end();
        return from_disk(dir.path());
    }
    let held = settled("VmRSS:") - before;
    let above = (held - mib(raw)) * f64::from(1 << 20) / TENANTS as f64;
    println!(
        "{held:.0} MiB resident: {above:.0} bytes a tenant above its raw record; at most {:.0} MiB",
        memory("VmHWM:")
    );
    look_ups(&run.replica, "nothing changes");
    let position = changing(&run, &teller, position);
    replacing(&run, &teller, Position::new(2, position.revision));
    run.end();
    from_disk(dir.path());
}

fn changing(run: &Run, teller: &Teller, from: Position) -> Position {
    let (stop, begun) = (AtomicBool::new(false), Instant::now());
    let changes = thread::scope(|scope| {
        let changing = scope.spawn(|| teller.change(from, &stop));
        look_ups(&run.replica, "1,000 changes a second");
        stop.store(true, Relaxed);
        changing.join().expect("it tells")
    });
    let reached = Position::new(from.epoch, from.revision + changes);
    run.reaches(reached);
    println!("{changes} changes were applied within {:.1} s", begun.elapsed().as_secs_f64());
    reached
}

/// Another snapshot, of which nearly all is as it is held, takes the place of the map.
fn replacing(run: &Run, teller: &Teller, position: Position) {
    let (longest, looks, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let ids: Vec<String> = (0..10_000).map(id).collect();
            for key in ids.iter().cycle().take_while(|_| !stop.load(Relaxed)) {
                let begun = Instant::now();
                assert!(run.replica.get(key).is_some(), "a record is missing while the map is replaced");
                longest.fetch_max(begun.elapsed().as_nanos() as u64, Relaxed);
                looks.fetch_add(1, Relaxed);
            }
        });
        teller.snapshot(position, 1);
        run.reaches(position);
        stop.store(true, Relaxed);
    });
    let longest = longest.load(Relaxed) as f64 / 1e6;
    let (seconds, looks) = (begun.elapsed().as_secs_f64(), looks.load(Relaxed));
    println!(
        "replaced within {seconds:.2} s, longest of {looks} look-ups meanwhile {longest:.3} ms, at most {:.0} MiB",
        memory("VmHWM:")
    );
}

/// Each time in a process of its own, as a sidecar starts.
fn from_disk(dir: &Path) {
    let files = std::fs::read_dir(dir).expect("the folder is there").filter_map(Result::ok);
    let size: u64 = files.filter_map(|file| file.metadata().ok()).map(|it| it.len()).sum();
    println!("{:.0} MiB on disk", size as f64 / f64::from(1 << 20));
    for _ in 0..3 {
        let program = std::env::current_exe().expect("it has a name");
        let ended = Command::new(program).arg(FROM).arg(dir).status().expect("it starts");
        assert!(ended.success(), "{ended}");
    }
}

fn start(dir: PathBuf) {
    let before = memory("VmRSS:");
    let (run, _teller) = follow(Some(dir));
    println!(
        "started from disk within {:.2} s, with {:.0} MiB resident, at most {:.0} MiB",
        run.started.as_secs_f64(),
        memory("VmRSS:") - before,
        memory("VmHWM:") - before
    );
    assert_eq!(run.replica.status().records, TENANTS);
    run.end();
}
