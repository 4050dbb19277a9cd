//! A bad network on the way to one of three instances: callers hardly notice.

use std::time::Duration;

use integration::{
    by_hand::{Media, TENANT},
    calls::{channel, outcome, with_headers},
    open_loop::Record,
    trouble::{Relay, Way},
};
use tenon_proto::media::v1::{ListRequest, media_client::MediaClient};
use tokio::time::sleep;

const PER_SECOND: u32 = 200;
/// How long it is quiet before, and how long the trouble lasts.
const QUIET: Duration = Duration::from_secs(3);
const TROUBLE: Duration = Duration::from_secs(9);
/// After this much of the trouble it must not be felt any more.
const RECOVERED: Duration = Duration::from_secs(5);

struct World {
    media: Media,
    relay: Relay,
}

impl World {
    /// Three instances of media, the first of which is reached over a relay.
    async fn start() -> Self {
        Self::of(3).await
    }

    /// So many instances.
    async fn of(count: usize) -> Self {
        let mut media = Media::plan().expect("a mesh");
        media.instances.truncate(count);
        let first = media.instances.remove(0);
        let relay = Relay::start(first.inbound()).await.expect("a relay");
        media.instances.insert(0, first.option("--advertise", &relay.address().to_string()));
        Self { media: media.start().await.expect("started"), relay }
    }

    /// Calls before, in and after the trouble.
    async fn in_trouble(&self, way: Way) -> Record {
        self.relay.set(Way::Clear);
        let calls = self.media.calls(PER_SECOND).await.expect("calls");
        sleep(QUIET).await;
        self.relay.set(way);
        sleep(TROUBLE).await;
        self.relay.set(Way::Clear);
        calls.stop().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latency_loss_and_a_black_hole_on_one_of_three_instances_are_hardly_noticed() {
    let world = World::start().await;
    let mut felt = Vec::new();
    for way in [Way::Slow(Duration::from_millis(100)), Way::Lossy(0.02), Way::BlackHole] {
        let record = world.in_trouble(way).await;
        let (_, quiet) = record.summary(QUIET / 2, QUIET, 0.99);
        let (success, worst) = record.summary(QUIET, QUIET + TROUBLE, 0.99);
        let (_, after) = record.summary(QUIET + RECOVERED, QUIET + TROUBLE, 0.99);
        let failures = record.failures();
        println!(
            "{way:?}: success {success:.4}, p99 quiet {quiet:?}, in trouble {worst:?}, 5 s later {after:?}; {failures:?}"
        );
        // Nothing but the machine's own noise is left: less than one of these ways would add by itself.
        if success < 0.999 || after > quiet + Duration::from_millis(90) {
            felt.push(way);
        }
    }
    assert!(felt.is_empty(), "felt: {felt:?}, see above");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_outlives_the_call_that_began_it() {
    let World { media, relay } = World::of(1).await;
    let mut client = MediaClient::new(channel(media.outbound(), "media").await.expect("connected"));
    let mut list = async |timeout: &str| {
        let request = with_headers(&[("x-tenant-id", TENANT), ("grpc-timeout", timeout)], ListRequest {});
        outcome(&client.list(request).await)
    };
    let before = relay.accepted();
    relay.set(Way::BlackHole);
    assert_ne!(list("200m").await, "ALLOWED", "nothing comes through");
    assert_eq!(relay.accepted(), before + 1, "the call has begun a handshake");
    relay.set(Way::Clear);
    assert_eq!(list("20S").await, "ALLOWED");
    assert_eq!(relay.accepted(), before + 1, "the next call has had to begin another");
}
