//! A store that is slow, or away for a while, takes no instance out that lives.

use super::*;

/// The journal of endpoints, whose writes may be made late: also after those who asked for them have given up.
pub(super) struct Slow(pub Arc<Memory>);

impl Slow {
    async fn late<F>(&self, write: impl FnOnce(Arc<Memory>) -> F) -> Result<Position, AppendError>
    where
        F: Future<Output = Result<Position, AppendError>> + Send + 'static,
    {
        let late = Duration::from_millis(self.0.late_ms.load(Relaxed));
        let write = write(Arc::clone(&self.0));
        let made = tokio::spawn(async move {
            if !late.is_zero() {
                sleep(late).await;
            }
            write.await
        });
        made.await.unwrap()
    }
}

#[tonic::async_trait]
impl Journal for Slow {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.late(|memory| async move { memory.append(writes).await }).await
    }

    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.late(|memory| async move { memory.append_at(head, writes).await }).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        self.0.get(key).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.0.snapshot().await
    }

    async fn head(&self) -> Result<Position, ReadError> {
        self.0.head().await
    }

    async fn count(&self) -> Result<u64, ReadError> {
        self.0.count().await
    }

    async fn history(&self) -> Result<History, ReadError> {
        self.0.history().await
    }

    fn tail(&self, from: Position) -> Tail {
        self.0.tail(from)
    }
}

impl World {
    fn writes_take(&self, duration: Duration) {
        self.endpoints.late_ms.store(u64::try_from(duration.as_millis()).unwrap(), Relaxed);
    }

    /// The instances' addresses that were ever taken off the list.
    fn taken_off(&self) -> Vec<String> {
        let log = self.endpoints.log.lock().unwrap();
        log.iter().filter(|entry| entry.value.is_none()).map(|entry| entry.key.clone()).collect()
    }
}

const NEVER: [String; 0] = [];

/// Bug: the sidecar was told that it is not registered, and came again after 5 s; what was written for all that had nobody who
/// spoke for it, and was removed after 3 s.
#[tokio::test(start_paused = true)]
async fn what_was_written_after_nobody_waited_for_it_any_more_stays_until_its_sidecar_comes_again() {
    let world = World::default();
    let service = world.start("a");
    let _others = service.media(1..=3).await;
    sleep(Duration::from_secs(60)).await;
    world.writes_take(Duration::from_secs(6));
    let stream = service.stream("media", "media-4", 4);
    assert!(register(&stream, "10.0.0.4:1").await.contains("store"));
    world.writes_take(Duration::ZERO);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(register(&stream, "10.0.0.4:1").await, "");
    sleep(Duration::from_secs(100)).await;
    assert_eq!((world.records().len(), world.taken_off()), (4, NEVER.to_vec()));
    drop(stream);
    world.left(3).await;
}

/// Bug: who came back while the store was away was removed as soon as it was there again, before it could say so once more.
#[tokio::test(start_paused = true)]
async fn who_comes_back_while_the_store_is_away_stays() {
    let world = World::default();
    let service = world.start("a");
    let mut streams = service.media(1..=5).await;
    sleep(Duration::from_secs(60)).await;
    world.endpoints.away.store(true, Relaxed);
    streams.truncate(3);
    let back: Vec<_> = [4, 5].map(|number| service.stream("media", &format!("media-{number}"), number)).into();
    for _ in 0..4 {
        for (stream, number) in back.iter().zip([4, 5]) {
            // What is there needs no write.
            let _either_way = register_in(stream, &format!("10.0.0.{number}:1"), "eu-west").await;
        }
        sleep(Duration::from_secs(5)).await;
    }
    world.endpoints.away.store(false, Relaxed);
    sleep(Duration::from_millis(4900)).await;
    assert_eq!(world.taken_off(), NEVER);
    for (stream, number) in back.iter().zip([4, 5]) {
        assert_eq!(register_in(stream, &format!("10.0.0.{number}:1"), "eu-west").await, "");
    }
    sleep(Duration::from_secs(100)).await;
    assert_eq!((world.records().len(), world.taken_off()), (5, NEVER.to_vec()));
    // And who goes now is gone after a few seconds, as ever.
    streams.pop();
    let took = world.left(4).await;
    assert!(took < silence::GRACE + Duration::from_secs(1), "{took:?}");
}

/// Bug: a removal that nobody waited for any more took what had come back meanwhile, and had nothing to write for that.
#[tokio::test(start_paused = true)]
async fn a_removal_that_is_made_late_does_not_take_who_has_come_back() {
    let world = World::default();
    let service = world.start("a");
    let mut streams = service.media(1..=3).await;
    sleep(Duration::from_secs(60)).await;
    world.writes_take(Duration::from_secs(6));
    streams.pop();
    sleep(Duration::from_secs(4)).await;
    world.writes_take(Duration::ZERO);
    let _back = service.media(3..=3).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!((world.records().len(), world.taken_off()), (3, NEVER.to_vec()));
}

/// Bug: whoever came back while a write took long was removed before he was heard.
#[tokio::test(start_paused = true)]
async fn who_has_come_back_is_heard_before_it_is_looked_who_is_silent() {
    for _ in 0..10 {
        let world = World::default();
        let service = world.start("a");
        let mut streams = service.media(1..=3).await;
        sleep(Duration::from_secs(60)).await;
        world.writes_take(Duration::from_secs(4));
        let other = service.stream("media", "media-9", 9);
        let registering = tokio::spawn(async move { (register(&other, "10.0.0.9:1").await, other) });
        streams.pop();
        sleep(Duration::from_secs(1)).await;
        world.writes_take(Duration::ZERO);
        let _back = service.media(3..=3).await;
        assert_eq!(registering.await.unwrap().0, "");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(world.taken_off(), NEVER);
    }
}

/// Bug: each stream that ended had a write of its own, and while these were made nobody was told that this policy service lives.
#[tokio::test(start_paused = true)]
async fn a_policy_service_whose_store_is_slow_goes_on_saying_that_it_lives() {
    let world = World::default();
    let (a, _b) = (world.start("a"), world.start("b"));
    let mut streams = a.media(1..=10).await;
    sleep(Duration::from_secs(60)).await;
    world.writes_take(Duration::from_secs(3));
    let mut again = Vec::new();
    for number in 11..=18 {
        let stream = a.stream("media", &format!("media-{number}"), number);
        again.push(tokio::spawn(async move { (register(&stream, &format!("10.0.0.{number}:1")).await, stream) }));
        tokio::task::yield_now().await;
        // Somebody's stream ends, who has one more.
        let number = number - 10;
        let stream = a.stream("media", &format!("media-{number}"), number);
        drop(std::mem::replace(&mut streams[usize::try_from(number).unwrap()], stream));
    }
    sleep(Duration::from_secs(1)).await;
    for (number, stream) in streams.iter().enumerate().skip(1).take(8) {
        assert_eq!(register(stream, &format!("10.0.0.{number}:1")).await, "");
    }
    for registered in again {
        assert_eq!(registered.await.unwrap().0, "");
    }
    assert_eq!(world.taken_off(), NEVER);
}
