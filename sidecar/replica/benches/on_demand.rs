//! What a hit in a cache of a million tenants' map costs: 100,000 records held, present and absent, in random order.

use std::{hint::black_box, time::Instant};

use bytes::Bytes;
use replica::{Answer, FollowOnDemand, Name, OnDemand, Parent, Position, Raw, Responses};
use tenon_proto::replication::v1::{FetchRequest, FetchResponse, FollowRequest, Record};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// That of a sidecar.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const HELD: usize = 100_000;
/// About as large as a tenant context of one product.
const VALUE_BYTES: usize = 150;

fn key(number: usize) -> String {
    format!("tenant-{number:07}")
}

/// Has every tenant, and no stream.
struct Everybody;

#[tonic::async_trait]
impl Parent for Everybody {
    async fn follow(&self, _requests: mpsc::Receiver<FollowRequest>) -> Result<Responses, Status> {
        Ok(Box::pin(futures_util::stream::pending()))
    }

    async fn fetch(&self, request: FetchRequest) -> Result<FetchResponse, Status> {
        let value = Bytes::from_static(&[7; VALUE_BYTES]);
        let there = request.keys.into_iter().filter(|key| key.starts_with("tenant-"));
        let records = there.map(|key| Record { key, revision: 1, value: value.clone() }).collect();
        let position = Some(Position::new(1, 1).into());
        Ok(FetchResponse { position, records, ..FetchResponse::default() })
    }
}

/// A cache that holds its records, and the runtime that its task lives in.
fn held() -> (Runtime, OnDemand<Raw>) {
    let runtime = Runtime::new().expect("a runtime");
    let cache = runtime.block_on(async {
        let (parents, capacity) = (vec![Everybody], 1 << 30);
        let follow =
            FollowOnDemand { kind: "tenant", instance: "bench".to_owned(), parents, state_dir: None, capacity };
        let (cache, _task) = follow.start(CancellationToken::new());
        let mut names: Vec<_> = (0..HELD).map(|number| Name::Key(key(number).into())).collect();
        names.extend((0..1_000).map(|number| Name::Key(format!("nobody-{number}").into())));
        cache.resolve(names).await;
        cache
    });
    (runtime, cache)
}

/// Mean nanoseconds of a look-up of `keys`, in turn.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn measure(cache: &OnDemand<Raw>, keys: &[String], expected: impl Fn(&Answer<Raw>) -> bool) -> f64 {
    const ROUNDS: usize = 2_000_000;
    let began = Instant::now();
    for key in keys.iter().cycle().take(ROUNDS) {
        assert!(expected(&black_box(cache).get(black_box(key))), "{key}");
    }
    began.elapsed().as_nanos() as f64 / ROUNDS as f64
}

fn main() {
    let (_runtime, cache) = held();
    let present: Vec<String> = (0..HELD).map(|number| key(number * 7919 % HELD)).collect();
    let absent: Vec<String> = (0..1_000).map(|number| format!("nobody-{number}")).collect();
    let status = cache.status();
    println!("{} records, {} names that nobody has, {} bytes as counted", status.records, status.absent, status.bytes);
    println!("present {:.0} ns", measure(&cache, &present, |answer| matches!(answer, Answer::Found(_))));
    println!("absent  {:.0} ns", measure(&cache, &absent, |answer| matches!(answer, Answer::Nobody)));
}
