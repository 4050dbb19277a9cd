//! One suite for every kind of journal: what `Journal` promises, on one file and on a JetStream cluster of three nodes, and
//! there with nodes that are killed and stopped in the middle.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "conformance/backend.rs"]
mod backend;
#[path = "conformance/faults.rs"]
mod faults;
#[path = "conformance/lost_end.rs"]
mod lost_end;
#[path = "conformance/meshes.rs"]
mod meshes;
#[path = "conformance/model.rs"]
mod model;
// The harness of the integration tests, which this crate cannot import.
#[path = "../../../integration/src/nats.rs"]
mod nats;
#[path = "../../../integration/src/ports.rs"]
mod ports;
#[path = "conformance/suite.rs"]
mod suite;

use std::{sync::Arc, time::Duration};

use backend::{InCluster, InFile, cluster, within};
use futures_util::future::join_all;

/// A check that takes longer stands still. On a cluster whose leader is stopped the suite takes 8 s on a quiet machine and 24 s on one with
/// sixteen processes that want a core, of which elections may be 9 s each.
const FOREVER: Duration = Duration::from_secs(150);

/// One test of the suite on an embedded store.
macro_rules! on_one_file {
    ($($check:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                let backend = InFile::new(stringify!($check));
                within(Duration::from_secs(60), stringify!($check), suite::$check(&backend)).await;
            }
        )*

        /// All of the suite at once, each on streams of its own.
        async fn everything_on(cluster: &Arc<nats::Cluster>) {
            let checks: Vec<futures_util::future::BoxFuture<'static, ()>> = vec![$({
                let cluster = Arc::clone(cluster);
                Box::pin(async move {
                    let backend = InCluster::new(&cluster.store(), stringify!($check));
                    if tokio::time::timeout(FOREVER, suite::$check(&backend)).await.is_err() {
                        let stream = format!("TENON_demo=example_{}", stringify!($check).to_uppercase());
                        panic!("{}: not done within {FOREVER:?}\n{}", stringify!($check), cluster.state(&stream).await);
                    }
                })
            }),*];
            join_all(checks.into_iter().map(tokio::spawn)).await.into_iter().for_each(|checked| checked.unwrap());
        }
    };
}

on_one_file!(
    a_batch_is_made_whole_or_not_at_all,
    conditions_see_the_earlier_writes_of_their_batch,
    a_write_at_a_head_that_has_moved_is_refused,
    a_tail_gives_every_change_once_and_in_order_while_two_replicas_write,
    a_snapshot_is_of_one_moment_while_batches_are_written,
    a_replica_that_was_away_catches_up_from_where_it_was,
    counters_that_two_replicas_increment_by_comparing_lose_nothing,
    random_operations_do_what_a_map_does,
    a_batch_of_many_megabytes_is_made_whole,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_suite_holds_on_a_cluster_of_three_nodes() {
    let cluster = Arc::new(cluster().await);
    everything_on(&cluster).await;
}
