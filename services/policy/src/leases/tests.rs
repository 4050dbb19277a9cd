//! Leases under a clock that stands still while anybody works, over journals in memory.

mod slow_store;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use journal::{AppendError, Entry, Expected, History, ReadError, Record, Snapshot, Tail, Write};
use prost::Message as _;
use tenon_proto::policy::v1::Endpoint;
use tokio::{sync::watch, time::sleep};

use super::*;

/// A kind in memory, which may be cut off.
#[derive(Default)]
struct Memory {
    log: Mutex<Vec<Entry>>,
    head: watch::Sender<u64>,
    away: AtomicBool,
    /// How long a write takes.
    late_ms: AtomicU64,
}

impl Memory {
    fn present(log: &[Entry]) -> BTreeMap<String, Record> {
        let mut records = BTreeMap::new();
        for Entry { key, revision, value, .. } in log {
            match value {
                Some(value) => {
                    let record = Record { key: key.clone(), revision: *revision, value: value.clone() };
                    records.insert(key.clone(), record)
                }
                None => records.remove(key),
            };
        }
        records
    }

    fn try_append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        if self.away.load(Relaxed) {
            return Err(AppendError::Failed("cut off".into()));
        }
        let mut log = self.log.lock().unwrap();
        let mut next = log.clone();
        for Write { key, value, expected } in writes {
            let actual = Self::present(&next).get(&key).map(|record| record.revision);
            let met = match expected {
                Expected::Any => true,
                Expected::Absent => actual.is_none(),
                Expected::Revision(revision) => actual == Some(revision),
            };
            if !met {
                return Err(AppendError::Conflict { key, expected, actual });
            }
            next.push(Entry { key, revision: next.len() as u64 + 1, value, at_unix_ms: 0 });
        }
        *log = next;
        self.head.send_replace(log.len() as u64);
        Ok(Position::new(1, log.len() as u64))
    }
}

#[tonic::async_trait]
impl Journal for Memory {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.try_append(writes)
    }

    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        let actual = self.head().await.unwrap();
        if actual != head {
            return Err(AppendError::Moved { actual });
        }
        self.try_append(writes)
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        Ok(Self::present(&self.log.lock().unwrap()).remove(key))
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let log = self.log.lock().unwrap();
        let position = Position::new(1, log.len() as u64);
        Ok(Snapshot { position, records: Self::present(&log).into_values().collect() })
    }

    async fn head(&self) -> Result<Position, ReadError> {
        Ok(Position::new(1, *self.head.borrow()))
    }

    async fn count(&self) -> Result<u64, ReadError> {
        Ok(Self::present(&self.log.lock().unwrap()).len() as u64)
    }

    async fn history(&self) -> Result<History, ReadError> {
        Err(ReadError("not kept".into()))
    }

    fn tail(&self, from: Position) -> Tail {
        let entries = self.log.lock().unwrap()[from.revision as usize..].to_vec();
        let state = (entries, self.head.subscribe());
        // What comes later is read anew.
        Box::pin(futures_util::stream::unfold(Some(state), |state| async move {
            let (entries, mut head) = state?;
            if entries.is_empty() {
                let _ended = head.changed().await;
                return Some((Err(journal::TailError::Compacted), None));
            }
            Some((Ok(entries), Some((Vec::new(), head))))
        }))
    }
}

struct Map;

#[tonic::async_trait]
impl Places for Map {
    async fn has_service(&self, service: &str) -> Result<bool, ReadError> {
        Ok(service != "nobody")
    }

    async fn regions(&self) -> Result<Option<Vec<String>>, ReadError> {
        Ok(Some(vec!["us-east".to_owned(), "eu-west".to_owned()]))
    }
}

/// A mesh's journals, and its policy services.
#[derive(Default)]
struct World {
    endpoints: Arc<Memory>,
    holders: Arc<Memory>,
}

/// A policy service. Dropped it is gone, without a word.
struct Service {
    leases: Leases,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl World {
    fn start(&self, holder: &str) -> Service {
        let keeping = Keeping {
            endpoints: Arc::new(slow_store::Slow(Arc::clone(&self.endpoints))),
            holders: Some(Arc::clone(&self.holders) as Arc<dyn Journal>),
            holder: holder.into(),
            places: Arc::new(Map),
            publisher: None,
        };
        let shutdown = CancellationToken::new();
        let (leases, task) = Leases::keep(keeping, shutdown.clone());
        Service { leases, shutdown, task }
    }

    /// Address, instance and holder of each record.
    fn records(&self) -> Vec<(String, String, String)> {
        let records = Memory::present(&self.endpoints.log.lock().unwrap());
        let decoded = records.values().map(|record| Endpoint::decode(record.value.clone()).unwrap());
        decoded.map(|it| (it.address, it.lease.clone().unwrap().instance, it.lease.unwrap().holder)).collect()
    }

    fn instances(&self) -> Vec<String> {
        self.records().into_iter().map(|(_, instance, _)| instance).collect()
    }

    /// How long it takes until so many are left.
    async fn left(&self, count: usize) -> Duration {
        let began = tokio::time::Instant::now();
        while self.records().len() != count {
            assert!(began.elapsed() < Duration::from_secs(120), "{:?}", self.records());
            sleep(Duration::from_millis(10)).await;
        }
        began.elapsed()
    }
}

impl Service {
    fn stream(&self, service: &str, instance: &str, boot: u64) -> Stream {
        self.leases.stream(service.into(), instance.into(), boot)
    }

    /// Instances of media at 10.0.0.1 and so on, registered.
    async fn media(&self, numbers: std::ops::RangeInclusive<u64>) -> Vec<Stream> {
        let mut streams = Vec::new();
        for number in numbers {
            let stream = self.stream("media", &format!("media-{number}"), number);
            assert_eq!(register(&stream, &format!("10.0.0.{number}:1")).await, "");
            streams.push(stream);
        }
        streams
    }
}

/// Why it was refused.
async fn register(stream: &Stream, address: &str) -> String {
    register_in(stream, address, "us-east").await
}

async fn register_in(stream: &Stream, address: &str, region: &str) -> String {
    let (address, region) = (address.to_owned(), region.to_owned());
    let registered = stream.register(Register { sequence: 7, address, region, zone: String::new() }).await;
    assert_eq!(registered.sequence, 7);
    assert_eq!(registered.problem.is_empty(), registered.epoch == 1, "{registered:?}");
    registered.problem
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_there_when_it_is_answered_and_gone_when_it_has_left() {
    let (world, began) = (World::default(), tokio::time::Instant::now());
    let service = world.start("a");
    let streams = service.media(1..=3).await;
    assert_eq!(world.instances(), ["media-1", "media-2", "media-3"]);
    assert_eq!(register(&streams[1], "").await, "");
    assert_eq!(world.instances(), ["media-1", "media-3"]);
    assert_eq!(register(&streams[1], "").await, "", "twice is once");
    // All may leave.
    assert_eq!((register(&streams[0], "").await, register(&streams[2], "").await), (String::new(), String::new()));
    assert_eq!((world.records(), began.elapsed()), (vec![], Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn one_that_falls_silent_is_gone_after_some_seconds_unless_it_comes_back() {
    let world = World::default();
    let service = world.start("a");
    let mut streams = service.media(1..=3).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.records().len(), 3, "open streams need no renewal");
    drop(streams.pop());
    let took = world.left(2).await;
    assert!(took >= silence::GRACE && took < silence::GRACE + Duration::from_secs(1), "{took:?}");

    drop(streams.pop());
    sleep(silence::GRACE / 2).await;
    let back = service.media(2..=2).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.instances(), ["media-1", "media-2"]);
    drop(back);
}

/// Named after a sidecar whose old stream ended after it had opened a new one.
#[tokio::test(start_paused = true)]
async fn the_end_of_an_old_stream_takes_nothing_from_the_new_one() {
    let world = World::default();
    let service = world.start("a");
    let old = service.media(1..=1).await;
    let new = service.media(1..=1).await;
    drop(old);
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.instances(), ["media-1"]);
    drop(new);
    world.left(0).await;
}

#[tokio::test(start_paused = true)]
async fn of_two_processes_at_one_address_the_later_wins_and_the_earlier_cannot_take_it_away() {
    let world = World::default();
    let service = world.start("a");
    let old = service.stream("media", "media-1", 1);
    let new = service.stream("media", "media-1", 2);
    assert_eq!(register(&old, "10.0.0.1:1").await, "");
    assert_eq!(register(&new, "10.0.0.1:1").await, "");
    assert_eq!(register(&old, "").await, "");
    drop(old);
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.records().len(), 1);
    assert_eq!(register(&new, "").await, "");
    assert_eq!(world.records(), []);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_moves_has_one_address() {
    let world = World::default();
    let service = world.start("a");
    let stream = service.stream("media", "media-1", 1);
    for address in ["10.0.0.1:1", "10.0.0.2:1", "[2001:db8::1]:1"] {
        assert_eq!(register(&stream, address).await, "");
        assert_eq!(world.records(), [(address.to_owned(), "media-1".to_owned(), "a".to_owned())]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_registers_and_removes_only_its_own() {
    let world = World::default();
    let service = world.start("a");
    let media = service.media(1..=1).await;
    // The same names, address and boot, as another service.
    let wiki = service.stream("wiki", "media-1", 1);
    assert_eq!(register(&wiki, "").await, "");
    assert_eq!(world.records().len(), 1);
    assert_eq!(register(&wiki, "10.0.0.1:1").await, "");
    assert_eq!(world.records().len(), 2);
    assert_eq!(register(&wiki, "").await, "");
    assert_eq!(world.records().len(), 1);
    let key = world.endpoints.snapshot().await.unwrap().records.remove(0).key;
    assert_eq!(key, "media/@lease/10.0.0.1:1");
    drop(media);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_registration_is_said() {
    let world = World::default();
    let service = world.start("a");
    let stream = service.stream("media", "media-1", 1);
    for (address, region, expected) in [
        ("media.example:15006", "us-east", "expected IP:PORT"),
        ("10.0.0.1", "us-east", "expected IP:PORT"),
        ("0.0.0.0:15006", "us-east", "--advertise"),
        ("[::]:15006", "us-east", "--advertise"),
        ("10.0.0.1:0", "us-east", "--advertise"),
        ("10.0.0.1:1", "mars", "expected one of: us-east, eu-west"),
        ("10.0.0.1:1", "", "--region"),
    ] {
        let problem = register_in(&stream, address, region).await;
        assert!(problem.contains(expected), "{address} {region}: {problem}");
    }
    let nobody = service.stream("nobody", "nobody-1", 1);
    assert!(register(&nobody, "10.0.0.1:1").await.contains("the policy has no service nobody"));
    assert_eq!(world.records(), []);
    // Of a service there are so many at most, and what is there may change.
    let streams = service.media(1..=20).await;
    let full = register(&stream, "10.0.1.1:1").await;
    assert!(full.contains("media has 20 registered") && full.contains("no more are taken"), "{full}");
    assert!(full.contains("tenon policy status") && full.contains("--register false"), "{full}");
    assert_eq!(register_in(&streams[3], "10.0.0.4:1", "eu-west").await, "");
    assert_eq!(register(&streams[4], "").await, "");
    assert_eq!(register(&stream, "10.0.1.1:1").await, "");
}

#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_take_is_said_and_may_be_tried_again() {
    let world = World::default();
    let service = world.start("a");
    let stream = service.stream("media", "media-1", 1);
    world.endpoints.away.store(true, Relaxed);
    assert!(register(&stream, "10.0.0.1:1").await.contains("store"));
    world.endpoints.away.store(false, Relaxed);
    assert_eq!(register(&stream, "10.0.0.1:1").await, "");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_all_stay_that_come_back_and_those_that_do_not_go_after_a_while() {
    let world = World::default();
    let service = world.start("a");
    let streams = service.media(1..=5).await;
    let before = world.endpoints.head().await.unwrap();
    drop((service, streams));
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.records().len(), 5, "nobody is there who could remove them");

    let service = world.start("a");
    sleep(Duration::from_secs(10)).await;
    let streams = service.media(1..=4).await;
    assert_eq!(world.endpoints.head().await.unwrap(), before, "who comes back changes nothing");
    let took = world.left(4).await;
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!(world.instances(), ["media-1", "media-2", "media-3", "media-4"]);
    drop(streams);
}

#[tokio::test(start_paused = true)]
async fn who_is_shut_down_removes_nobody() {
    let world = World::default();
    let service = world.start("a");
    let streams = service.media(1..=2).await;
    service.shutdown.cancel();
    drop(streams);
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.records().len(), 2);
}

/// Bug: registrations of other services that came in the same batch counted against the bound of a service.
#[tokio::test(start_paused = true)]
async fn the_bound_of_a_service_is_about_no_other_service() {
    let world = World::default();
    let service = world.start("a");
    let _media = service.media(1..=19).await;
    let asking = (0..5).map(|number| {
        let stream = service.stream(&format!("other-{number}"), "one", 1);
        async move { (register(&stream, &format!("10.1.0.{number}:1")).await, stream) }
    });
    let last = service.stream("media", "media-20", 20);
    let (others, last) = tokio::join!(futures_util::future::join_all(asking), register(&last, "10.0.0.20:1"));
    assert_eq!((others.iter().filter(|(problem, _)| problem.is_empty()).count(), last.as_str()), (5, ""));
}

/// Static stability: a policy service that is cut off from its sidecars must not empty the mesh.
#[tokio::test(start_paused = true)]
async fn when_more_than_half_fall_silent_at_once_or_one_after_the_other_more_than_half_stay() {
    for between in [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(10)] {
        let world = World::default();
        let service = world.start("a");
        let mut streams = service.media(1..=8).await;
        sleep(Duration::from_secs(60)).await;
        while let Some(stream) = streams.pop() {
            drop(stream);
            sleep(between).await;
        }
        sleep(Duration::from_secs(3600)).await;
        let left = world.records().len();
        assert!(left >= 4, "{between:?}: {left}");
        assert!(between > Duration::ZERO || left == 8);
        // They come back, and one of them goes for good.
        let mut streams = service.media(1..=8).await;
        drop(streams.pop());
        world.left(7).await;
    }
}

#[tokio::test(start_paused = true)]
async fn when_every_service_has_one_instance_not_all_of_them_go() {
    let world = World::default();
    let service = world.start("a");
    let mut streams = Vec::new();
    for name in ["media", "wiki", "issues", "search"] {
        let stream = service.stream(name, "one", 1);
        assert_eq!(register(&stream, "10.0.0.1:1").await, "");
        streams.push(stream);
    }
    drop(streams.pop());
    world.left(3).await;
    sleep(Duration::from_secs(100)).await;
    drop(streams);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.records().len(), 3);
}

/// Other services, an instance each, so that a silent one is no large part of the mesh.
async fn others(service: &Service) -> Vec<Stream> {
    let mut streams = Vec::new();
    for number in 0..8 {
        let stream = service.stream(&format!("other-{number}"), "one", 1);
        assert_eq!(register(&stream, &format!("10.1.0.{number}:1")).await, "");
        streams.push(stream);
    }
    streams
}

/// Bug: what another policy service had removed was not counted, and each removed the half of what was left.
#[tokio::test(start_paused = true)]
async fn two_policy_services_that_are_cut_off_from_a_service_do_not_empty_it() {
    let world = World::default();
    let (a, b) = (world.start("a"), world.start("b"));
    let _others = others(&a).await;
    let streams = (a.media(1..=1).await, b.media(2..=2).await);
    sleep(Duration::from_secs(60)).await;
    drop(streams);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.records().len(), 8 + 1);
}

/// Bug: a minute after the first the last instance went as well, in one and the same silence.
#[tokio::test(start_paused = true)]
async fn the_last_instance_does_not_follow_the_one_before_it_a_minute_later() {
    let world = World::default();
    let service = world.start("a");
    let _others = others(&service).await;
    let mut streams = service.media(1..=2).await;
    sleep(Duration::from_secs(60)).await;
    drop(streams.pop());
    sleep(Duration::from_secs(4)).await;
    drop(streams);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.records().len(), 8 + 1);
}

/// Bug: whoever registered many instances that are none kept the dead of all services listed.
#[tokio::test(start_paused = true)]
async fn ghosts_of_one_service_keep_nobody_elses_dead() {
    let world = World::default();
    let service = world.start("a");
    let mut others = others(&service).await;
    drop(service.media(1..=20).await);
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.records().len(), 8 + 20, "more than half of a service");
    drop(others.pop());
    world.left(7 + 20).await;
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_may_go_over_to_another_policy_service() {
    let world = World::default();
    let (a, b) = (world.start("a"), world.start("b"));
    let to_a = a.media(1..=3).await;
    let to_b = b.media(2..=2).await;
    let holders = || world.records().into_iter().map(|(_, _, holder)| holder).collect::<Vec<_>>();
    assert_eq!(holders(), ["a", "b", "a"]);
    drop(to_a);
    sleep(Duration::from_secs(1)).await;
    let to_a = a.media(3..=3).await;
    let _both = b.media(1..=1).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!((world.instances().len(), holders()), (3, ["b", "b", "a"].map(str::to_owned).to_vec()));
    // Whoever it left at, it is gone.
    assert_eq!(register(&a.stream("media", "media-2", 2), "").await, "");
    assert_eq!(world.instances(), ["media-1", "media-3"]);
    drop((to_a, to_b));
}

#[tokio::test(start_paused = true)]
async fn what_a_policy_service_held_that_is_gone_is_swept_by_another_one() {
    let world = World::default();
    let (a, b) = (world.start("a"), world.start("b"));
    let of_b = b.media(4..=6).await;
    let of_a = a.media(1..=2).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.records().len(), 5, "both live");
    drop(a);
    let began = tokio::time::Instant::now();
    let came_over = b.media(1..=1).await;
    let took = world.left(4).await;
    assert!(took > Duration::from_secs(12) && took < Duration::from_secs(30), "{took:?} {:?}", began.elapsed());
    assert_eq!(world.instances(), ["media-1", "media-4", "media-5", "media-6"]);
    drop((of_a, of_b, came_over));
}

/// Time in which nobody could say that he lives counts against nobody.
/// Another policy service removes what this one held while this one was cut off from the store, and its sidecars were not from it.
#[tokio::test(start_paused = true)]
async fn a_live_instance_that_another_policy_service_removed_comes_back_by_itself() {
    let world = World::default();
    let service = world.start("a");
    let streams = service.media(1..=3).await;
    let key = key_of("media", "10.0.0.2:1");
    world.endpoints.append(vec![Write::delete(key)]).await.expect("removed");
    world.left(2).await;
    world.left(3).await;
    assert_eq!(world.instances(), ["media-1", "media-2", "media-3"]);
    // Who has left stays away, and so does whom another one holds and removes.
    assert_eq!(register(&streams[0], "").await, "");
    let other = world.start("b");
    let moved = other.media(2..=2).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(register(&moved[0], "").await, "");
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.instances(), ["media-3"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_away_makes_nobody_look_dead() {
    let world = World::default();
    let (a, b) = (world.start("a"), world.start("b"));
    let streams = (a.media(1..=1).await, b.media(2..=4).await);
    sleep(Duration::from_secs(20)).await;
    world.holders.away.store(true, Relaxed);
    sleep(Duration::from_secs(600)).await;
    world.holders.away.store(false, Relaxed);
    sleep(Duration::from_secs(600)).await;
    assert_eq!(world.records().len(), 4);
    drop(streams);
}

#[test]
fn no_key_of_the_policy_files_is_one_of_a_lease() {
    assert!(is_leased(&key_of("media", "10.0.0.1:15006")));
    for key in ["media/us-east/10.0.0.1:15006", "media/lease/10.0.0.1:15006", "@lease", "media", ""] {
        assert!(!is_leased(key), "{key}");
    }
    assert!(mesh_config::names::RegionName::try_from(LEASED).is_err());
}

#[tokio::test(start_paused = true)]
async fn what_another_version_wrote_is_left_alone() {
    let world = World::default();
    let key = key_of("media", "10.0.0.9:1");
    world.endpoints.try_append(vec![Write::put(key.clone(), Bytes::from_static(b"\xff"))]).unwrap();
    let service = world.start("a");
    drop(service.media(1..=1).await);
    sleep(Duration::from_secs(100)).await;
    let keys: Vec<_> = world.endpoints.snapshot().await.unwrap().records.into_iter().map(|it| it.key).collect();
    assert_eq!(keys, [key]);
}
