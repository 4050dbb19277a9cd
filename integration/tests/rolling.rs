//! Instances of a service that come and go under load, with their sidecars: their callers notice nothing.

use std::{net::SocketAddr, time::Duration};

use integration::{
    by_hand::{Media, TENANT},
    calls::{channel, for_tenant, outcome},
    mesh::binaries_elsewhere,
    open_loop::{OpenLoop, Record},
};
use rustix::process::Signal;
use tenon_proto::media::v1::{GetRequest, media_client::MediaClient};
use tokio::time::sleep;

/// Calls before, between and after what is done.
const QUIET: Duration = Duration::from_millis(700);
/// How long a caller may send calls to a process that is dead before it hears of it, on a busy machine.
const UNHEARD: Duration = Duration::from_millis(250);

/// Calls a second of each of the two methods: of binaries that are not optimized what two cores bear beside the restarts.
fn per_second() -> u32 {
    if binaries_elsewhere().is_some() { 250 } else { 120 }
}

/// Calls of one that it does not name. The app's own answer is that there is no such item.
async fn unsafe_to_retry(outbound: SocketAddr) -> OpenLoop {
    let client = MediaClient::new(channel(outbound, "media").await.expect("connected"));
    OpenLoop::start(per_second(), move || {
        let mut client = client.clone();
        async move {
            let id = "00000000-0000-0000-0000-000000000000".to_owned();
            match client.get(for_tenant(TENANT, GetRequest { id })).await {
                Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
                answer => Err(outcome(&answer)),
            }
        }
    })
}

fn nothing_failed(what: &str, record: &Record) {
    let failures = record.failures();
    assert!(failures.is_empty(), "of {} calls of {what}: {failures:?}", record.calls.len());
    let (_, p99) = record.summary(Duration::ZERO, Duration::MAX, 0.99);
    println!("{} calls of {what}, p99 {p99:?}", record.calls.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_instances_with_their_sidecars_fails_no_call() {
    let mut world = Media::plan().expect("a mesh").start().await.expect("started");
    let (safe, other) = (world.calls(per_second()).await.expect("calls"), unsafe_to_retry(world.outbound()).await);
    for instance in &mut world.instances {
        sleep(QUIET).await;
        // As a platform ends a pod: app and sidecar hear of it at the same time.
        instance.end_both(Signal::TERM).await.expect("ended");
        instance.start_app().expect("an app");
        instance.start_sidecar().expect("a sidecar");
        instance.registered().await.expect("registered");
    }
    sleep(QUIET).await;
    nothing_failed("a method that is safe to retry", &safe.stop().await);
    nothing_failed("one that is not", &other.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_an_instance_is_killed_only_calls_in_flight_on_it_fail_and_no_safe_one() {
    let mut world = Media::plan().expect("a mesh").start().await.expect("started");
    let (safe, other) = (world.calls(per_second()).await.expect("calls"), unsafe_to_retry(world.outbound()).await);
    sleep(QUIET).await;
    let killed = other.elapsed();
    world.instances[0].end_both(Signal::KILL).await.expect("killed");
    sleep(QUIET * 3).await;
    nothing_failed("a method that is safe to retry", &safe.stop().await);
    let record = other.stop().await;
    let failed: Vec<_> = record.calls.iter().filter(|call| call.failure.is_some()).collect();
    println!("{} of {} calls that are not safe to retry failed", failed.len(), record.calls.len());
    for call in failed {
        assert!(call.due + call.took >= killed && call.due <= killed + UNHEARD, "{killed:?}: {call:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_a_sidecar_at_once() {
    let mut world = Media::plan().expect("a mesh");
    let mut instance = world.instances.remove(0).option("--settle", "60s").option("--drain-seconds", "60");
    instance.start_app().expect("an app");
    instance.start_sidecar().expect("a sidecar");
    instance.registered().await.expect("registered");
    instance.signal_sidecar(Signal::TERM).expect("it runs");
    // It is off the list, says so, and takes calls on until they have settled elsewhere.
    let end = std::time::Instant::now() + integration::mesh::SOON;
    while integration::calls::http_get(instance.admin(), "/ready").await.is_ok() {
        assert!(std::time::Instant::now() < end, "it says that it is ready");
    }
    integration::calls::http_get(instance.admin(), "/live").await.expect("it is there");
    let begun = std::time::Instant::now();
    let status = instance.end_sidecar(Signal::TERM).await.expect("ended");
    assert!(
        begun.elapsed() < Duration::from_secs(5) && status.code() == Some(1),
        "{status} after {:?}",
        begun.elapsed()
    );
}
