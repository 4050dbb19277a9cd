//! Sidecars as far as policy goes, in a process of their own: each one follows over a connection of its own, and compiles
//! what arrives.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use mesh_identity::{grpc, testing, testing::Ca};
use prost::Message as _;
use replica::{Decode, Decoded, Event, Follow, Replica};
use serde_json::json;
use sidecar_core::policy::Policy;
use tenon_proto::{kind, policy::v1::ServicePolicy};
use tokio_util::sync::CancellationToken;

use crate::{
    child::{answer, next_order, resident},
    files::{self, WRITTEN},
    report::{histogram, latency},
};

/// Which services the sidecars are instances of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    OneService,
    EachService,
}

impl Of {
    /// In orders.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OneService => "one_service",
            Self::EachService => "every_service",
        }
    }
}

/// What decides calls, compiled when it arrives.
struct Compiled(Policy);

impl Decode for Compiled {
    fn decode(_: &str, _: u64, raw: Bytes) -> Result<Self, String> {
        Policy::try_from(&ServicePolicy::decode(raw).map_err(|error| error.to_string())?).map(Self)
    }
}

/// What all sidecars share.
#[derive(Default)]
struct Shared {
    /// How long changes took, and how many sidecars have the last one.
    times: Mutex<Option<Histogram<u64>>>,
    reached: AtomicUsize,
}

/// Does what it is told until the parent has gone.
pub fn run(policy: SocketAddr, ca: &Ca) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let shared = Arc::new(Shared::default());
    let mut replicas: Vec<Replica<Decoded<Compiled>>> = Vec::new();
    while let Some(order) = next_order() {
        let sidecars = usize::try_from(order["sidecars"].as_u64().unwrap_or(0))?;
        let done = match order["do"].as_str().context("an order")? {
            "connect" => {
                let began = Instant::now();
                let services = usize::try_from(order["services"].as_u64().unwrap_or(1))?;
                let _inside = runtime.enter();
                for number in 0..sidecars {
                    let service = if order["of"] == Of::OneService.name() { 0 } else { number % services };
                    replicas.push(follow(policy, ca, &files::name(service), number, &shared));
                }
                while replicas.iter().any(|replica| replica.position().is_none()) {
                    ensure!(began.elapsed() < Duration::from_secs(120), "not every sidecar follows after 2 min");
                    std::thread::park_timeout(Duration::from_millis(10));
                }
                json!({"seconds": began.elapsed().as_secs_f64(), "rss": resident(std::process::id())?})
            }
            "measure" => {
                *shared.times.lock().expect("nobody panics with it") = Some(histogram());
                json!({})
            }
            "wait" => {
                let began = Instant::now();
                while shared.reached.load(Ordering::SeqCst) < sidecars {
                    ensure!(began.elapsed() < Duration::from_secs(60), "a change did not reach every sidecar in 1 min");
                    std::thread::park_timeout(Duration::from_millis(1));
                }
                shared.reached.store(0, Ordering::SeqCst);
                json!({})
            }
            "collect" => latency(&shared.times.lock().expect("nobody panics with it").take().context("it measures")?),
            other => anyhow::bail!("no such order: {other}"),
        };
        answer(&done);
    }
    Ok(())
}

fn follow(
    policy: SocketAddr,
    ca: &Ca,
    service: &str,
    number: usize,
    shared: &Arc<Shared>,
) -> Replica<Decoded<Compiled>> {
    let identity = ca.identity(service);
    let follow = Follow {
        kind: kind::ALLOWLIST,
        instance: format!("{service}-{number:04}"),
        parents: vec![grpc::channel(policy, &identity, &testing::service("tenon-policy"))],
        state_dir: None,
    };
    let shared = Arc::clone(shared);
    let changed = move |event: Event<'_, Decoded<Compiled>>| {
        let Event::Changed { new: Some(record), .. } = event else { return };
        let at = record.0.rules().iter().find_map(|rule| rule.name().strip_prefix(WRITTEN)?.parse::<u64>().ok());
        let Some(at) = at else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let took = now.saturating_sub(Duration::from_micros(at));
        if let Some(times) = &mut *shared.times.lock().expect("nobody panics with it") {
            times.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
        shared.reached.fetch_add(1, Ordering::SeqCst);
    };
    follow.start(changed, CancellationToken::new()).0
}
