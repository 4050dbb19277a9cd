//! Ten thousand followers in a process of their own, over real connections: how long a change takes to reach all of them.
//!
//! A follower here takes in every message and acknowledges as the real one does, but keeps no map: 10,800 maps of a million
//! tenants fit no machine.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use hdrhistogram::Histogram;
use mesh_identity::{Identity, grpc, testing};
use replica::Parent as _;
use serde_json::{Value, json};
use tenon_proto::{
    kind,
    replication::v1::{Ack, FollowRequest, Mode, Position, Start, follow_request::Request, follow_response::Response},
};
use tokio::{runtime::Runtime, sync::mpsc, task::JoinSet};
use tonic::transport::Channel;

use crate::{
    child::{answer, next_order, resident},
    report::{histogram, latency},
};

/// A server takes at most 200 streams on one connection.
const STREAMS_PER_CONNECTION: usize = 180;
/// At least this long between two acknowledgements, as in the real follower.
const ACKNOWLEDGE: Duration = Duration::from_millis(200);
/// What stands before the time of writing, in microseconds, in each written record.
pub const WRITTEN: &str = "written=";

/// What all followers share.
#[derive(Default)]
struct Shared {
    /// Those that have been told where the TCS is.
    live: AtomicU64,
    /// How long changes took to arrive.
    times: Mutex<Option<Histogram<u64>>>,
    deltas: AtomicU64,
}

/// Does what it is told until the parent has gone.
pub fn run(tcs: SocketAddr, identity: &Arc<Identity>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let shared = Arc::new(Shared::default());
    let mut following = JoinSet::new();
    while let Some(order) = next_order() {
        let followers = usize::try_from(order["followers"].as_u64().unwrap_or(0))?;
        let done = match order["do"].as_str().context("an order")? {
            "connect" => connect(&runtime, tcs, identity, &shared, &mut following, followers)?,
            "reconnect" => {
                runtime.block_on(following.shutdown());
                connect(&runtime, tcs, identity, &shared, &mut following, followers)?
            }
            // The parent has started another TCS: wait until all have found it.
            "again" => all_live(&shared, followers, Instant::now())?,
            "forget" => {
                shared.live.store(0, Ordering::SeqCst);
                json!({})
            }
            "measure" => {
                *shared.times.lock().expect("nobody panics with it") = Some(histogram());
                shared.deltas.store(0, Ordering::SeqCst);
                json!({})
            }
            "collect" => {
                let times = shared.times.lock().expect("nobody panics with it").take().context("it measures")?;
                let mut figures = latency(&times);
                figures["deltas"] = shared.deltas.load(Ordering::SeqCst).into();
                figures
            }
            other => anyhow::bail!("no such order: {other}"),
        };
        answer(&done);
    }
    Ok(())
}

fn connect(
    runtime: &Runtime,
    tcs: SocketAddr,
    identity: &Arc<Identity>,
    shared: &Arc<Shared>,
    following: &mut JoinSet<()>,
    followers: usize,
) -> anyhow::Result<Value> {
    let began = Instant::now();
    shared.live.store(0, Ordering::SeqCst);
    let mut channel = None;
    for number in 0..followers {
        if number.is_multiple_of(STREAMS_PER_CONNECTION) {
            let _inside = runtime.enter();
            channel = Some(grpc::channel(tcs, identity, &testing::service("tenon-tcs")));
        }
        let channel = channel.clone().context("the first has made one")?;
        following.spawn_on(follow(channel, number, Arc::clone(shared)), runtime.handle());
    }
    all_live(shared, followers, began)
}

fn all_live(shared: &Shared, followers: usize, began: Instant) -> anyhow::Result<Value> {
    while shared.live.load(Ordering::SeqCst) < followers as u64 {
        let live = shared.live.load(Ordering::SeqCst);
        anyhow::ensure!(began.elapsed() < Duration::from_secs(120), "{live} of {followers} follow after 2 min");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let rss = resident(std::process::id())?;
    Ok(json!({"seconds": began.elapsed().as_secs_f64(), "rss": rss}))
}

/// One follower: it comes back when its stream ends.
async fn follow(channel: Channel, number: usize, shared: Arc<Shared>) {
    let mut resume = None;
    loop {
        let _ended = stream(&channel, number, &shared, &mut resume).await;
        let spread = Duration::from_millis(50 + (number as u64 % 100) * 2);
        tokio::time::sleep(spread).await;
    }
}

async fn stream(
    channel: &Channel,
    number: usize,
    shared: &Shared,
    resume: &mut Option<Position>,
) -> Result<(), tonic::Status> {
    let (answers, requests) = mpsc::channel(4);
    let start = Start {
        kind: kind::TENANT.to_owned(),
        mode: Mode::OnDemand.into(),
        resume: *resume,
        instance: format!("media-{number:05}"),
        view: if resume.is_some() { crate::dataset::PRODUCT.to_owned() } else { String::new() },
        ..Start::default()
    };
    let _ = answers.try_send(FollowRequest { request: Some(Request::Start(start)) });
    let mut responses = channel.follow(requests).await?;
    let mut live = false;
    let mut acknowledged = Instant::now();
    while let Some(response) = responses.next().await {
        let reached = match response?.response {
            Some(Response::SnapshotStart(start)) => start.position,
            Some(Response::Delta(delta)) => {
                shared.deltas.fetch_add(1, Ordering::Relaxed);
                let now = micros();
                let values = delta.changes.iter().filter_map(|change| change.value.as_deref());
                note(shared, now, values.filter_map(written));
                Some(Position { epoch: delta.epoch, revision: delta.revision })
            }
            Some(Response::Heartbeat(heartbeat)) => heartbeat.head,
            Some(Response::SnapshotChunk(_) | Response::SnapshotEnd(_) | Response::GuardRules(_)) | None => None,
        };
        let Some(position) = reached else { continue };
        if !std::mem::replace(&mut live, true) {
            shared.live.fetch_add(1, Ordering::SeqCst);
        }
        *resume = Some(position);
        if acknowledged.elapsed() >= ACKNOWLEDGE {
            acknowledged = Instant::now();
            let _ = answers.try_send(FollowRequest { request: Some(Request::Ack(Ack { position: Some(position) })) });
        }
    }
    Ok(())
}

fn note(shared: &Shared, now: u64, written: impl Iterator<Item = u64>) {
    if let Some(times) = shared.times.lock().expect("nobody panics with it").as_mut() {
        for written in written {
            times.saturating_record(now.saturating_sub(written) * 1000);
        }
    }
}

/// When the record was written, as it says itself.
fn written(value: &[u8]) -> Option<u64> {
    let at = value.windows(WRITTEN.len()).position(|window| window == WRITTEN.as_bytes())? + WRITTEN.len();
    let digits = value[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Unix microseconds: the parent's clock and this one's are the same.
pub fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
