//! TCS processes and nodes of its store that are killed or stopped, under traffic: nothing fails that need not, nothing is
//! lost, nothing is older than promised, and nothing has to be restarted by hand.

use integration::{
    mesh::{Plan, target_profile_dir},
    nats::Cluster,
    under_traffic::{CALLS_PER_SECOND, OUTAGE, World},
};
use rustix::process::Signal;

/// One after the other: the replica, the leader, both.
async fn each_and_both(how: Signal) {
    let world = World::start(Plan::demo().expect("a plan").tcs(2), &[0]).await;
    let made = world.without(&["tcs-2"], how).await;
    assert!(made >= 10, "{made} writes while the replica was away: the leader needs nobody");
    world.without(&["tcs"], how).await;
    world.without(&["tcs", "tcs-2"], how).await;
    let end = world.judge().await;
    assert!(end.looked.made > end.looked.not_yet * 2, "{:?}", end.looked);
    assert!(!end.written.failed.is_empty(), "the leader was never away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_leader_the_replica_or_both_fails_no_call_and_loses_no_write() {
    each_and_both(Signal::KILL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_the_leader_the_replica_or_both_fails_no_call_and_loses_no_write() {
    each_and_both(Signal::STOP).await;
}

async fn with_nats() -> (Cluster, World) {
    let target = target_profile_dir().expect("a target folder");
    let cluster = Cluster::start(target.parent().unwrap_or(&target)).await.expect("nats-server");
    let plan = Plan::demo().expect("a plan").tcs(2).store(&cluster.store());
    let world = World::start(plan, &[0, 1]).await;
    (cluster, world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_one_of_three_nats_nodes_writes_go_on_and_without_two_they_fail_clearly_and_are_never_half_made() {
    let (cluster, world) = with_nats().await;
    let before = world.changes.made();
    cluster.kill(0).expect("killed");
    world.until_all_goes_on("without one node").await;
    assert!(world.changes.made() > before);

    cluster.kill(1).expect("killed");
    let calls = world.calls.calls();
    tokio::time::sleep(OUTAGE).await;
    assert!(world.calls.calls() > calls + u64::from(CALLS_PER_SECOND), "calls need no store");
    cluster.launch(0).expect("started");
    cluster.launch(1).expect("started");
    world.until_all_goes_on("with all nodes back").await;
    let end = world.judge().await;
    assert!(!end.written.failed.is_empty(), "two nodes were never away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_of_two_writing_tcs_may_be_killed_or_stopped_while_the_other_writes_on() {
    let (_cluster, world) = with_nats().await;
    for (name, how) in [("tcs", Signal::KILL), ("tcs-2", Signal::STOP)] {
        let made = world.without(&[name], how).await;
        assert!(made >= 10, "{made} writes while {name} was away");
    }
    world.judge().await;
}
