//! What a look-up in a replica of a million records costs: present, absent, and while a thousand changes a second are
//! applied. It takes no lock and allocates nothing; allocations are listed below the times where there were any.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use divan::{AllocProfiler, Bencher, black_box};
use futures_util::stream::{self, StreamExt as _};
use replica::{Digest, Follow, Parent, Position, Raw, Replica, Responses};
use tenon_proto::replication::v1::{
    Change, Delta, FollowRequest, FollowResponse, Heartbeat, Record, SnapshotChunk, SnapshotEnd, SnapshotStart,
    follow_response::Response,
};
use tokio::{sync::mpsc, time::interval};
use tokio_util::sync::CancellationToken;
use tonic::Status;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const RECORDS: usize = 1_000_000;
/// About as large as a tenant context of one product.
const VALUE_BYTES: usize = 150;

fn main() {
    divan::main();
}

fn key(number: usize) -> String {
    format!("tenant-{number:07}")
}

/// Sends a snapshot of a million records, then a change each millisecond if it is told to.
struct Million {
    changes: bool,
}

#[tonic::async_trait]
impl Parent for Million {
    async fn follow(&self, requests: mpsc::Receiver<FollowRequest>) -> Result<Responses, Status> {
        let value = Bytes::from(vec![7; VALUE_BYTES]);
        let mut digest = Digest::new();
        let records: Vec<Record> = (0..RECORDS)
            .map(|number| {
                let record = Record { key: key(number), revision: 1, value: value.clone() };
                digest.add(&record.key, record.revision, &record.value);
                record
            })
            .collect();
        let position = Some(Position { epoch: 1, revision: 1 }.into());
        let start = Response::SnapshotStart(SnapshotStart { position, ..SnapshotStart::default() });
        let end = Response::SnapshotEnd(SnapshotEnd { records: RECORDS as u64, digest: digest.fold().to_vec().into() });
        let chunks: Vec<Response> = records
            .chunks(1_000)
            .map(|chunk| Response::SnapshotChunk(SnapshotChunk { records: chunk.to_vec() }))
            .collect();
        let snapshot = stream::iter([start].into_iter().chain(chunks).chain([end]));
        // What the follower says is kept, so that its channel stays open, and not read.
        let live =
            stream::unfold((1, interval(Duration::from_millis(1)), requests), move |(revision, mut tick, requests)| {
                let value = value.clone();
                async move {
                    tick.tick().await;
                    let next = revision + 1;
                    let change = Change { key: key(revision as usize % RECORDS), revision: next, value: Some(value) };
                    let delta = Delta { epoch: 1, previous_revision: revision, revision: next, changes: vec![change] };
                    Some((Response::Delta(delta), (next, tick, requests)))
                }
            });
        let idle = stream::unfold(interval(Duration::from_secs(1)), |mut tick| async move {
            tick.tick().await;
            Some((Response::Heartbeat(Heartbeat::default()), tick))
        });
        let all = if self.changes { snapshot.chain(live).boxed() } else { snapshot.chain(idle).boxed() };
        Ok(Box::pin(all.map(|response| Ok(FollowResponse { response: Some(response) }))))
    }
}

/// A replica that holds the million, and the thread on which it follows.
fn million(changes: bool) -> (Replica<Raw>, CancellationToken) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let shutdown = CancellationToken::new();
    let end = shutdown.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let follow =
                Follow { kind: "tenant", instance: "bench".into(), parents: vec![Million { changes }], state_dir: None };
            let (replica, task) = follow.start::<Raw>(|_| {}, end);
            replica.wait_for(Position { epoch: 1, revision: 1 }).await;
            sender.send(replica).expect("the benchmark waits");
            let _ended = task.await;
        });
    });
    (receiver.recv().expect("the replica is filled"), shutdown)
}

fn bench(bencher: Bencher<'_, '_>, changes: bool, first: usize) {
    let (replica, shutdown) = million(changes);
    let keys: Vec<String> = (0..4_096).map(|index| key(first + index * 7_919 % RECORDS)).collect();
    let next = AtomicUsize::new(0);
    bencher.bench_local(|| {
        let index = next.fetch_add(1, Relaxed) % keys.len();
        let found: Option<Raw> = replica.get(black_box(&keys[index]));
        black_box(found)
    });
    shutdown.cancel();
}

#[divan::bench]
fn present(bencher: Bencher<'_, '_>) {
    bench(bencher, false, 0);
}

#[divan::bench]
fn absent(bencher: Bencher<'_, '_>) {
    bench(bencher, false, RECORDS);
}

#[divan::bench]
fn present_under_a_thousand_changes_a_second(bencher: Bencher<'_, '_>) {
    bench(bencher, true, 0);
}
