//! TCS processes and nodes of its store that are killed or stopped, under traffic: nothing fails that need not, nothing is
//! lost, nothing is older than promised, and nothing has to be restarted by hand.

use std::time::{Duration, Instant};

use integration::{
    changes,
    mesh::{Plan, target_profile_dir},
    nats::Cluster,
    under_traffic::{CALLS_PER_SECOND, World, first, outbounds},
};
use rustix::process::Signal;
use tonic::Code;

/// The log of the mesh's tenants.
const TENANTS: &str = "TENON_test=example_TENANT";
/// A deadline that no write comes to: the TCS gives up before.
const PATIENT: Duration = Duration::from_secs(30);
/// What a TCS that has nothing else to write may take to say that it cannot, and a little.
const REFUSED_WITHIN: Duration = Duration::from_secs(12);

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

async fn with_nats(writers: &[usize]) -> (Cluster, World) {
    let target = target_profile_dir().expect("a target folder");
    let cluster = Cluster::start(target.parent().unwrap_or(&target)).await.expect("nats-server");
    let plan = Plan::demo().expect("a plan").tcs(2).store(&cluster.store());
    let world = World::start(plan, writers).await;
    (cluster, world)
}

/// First the node that leads the stream of the tenants is gone, then another one as well, then they come back.
async fn one_and_two_nodes_away(away: impl Fn(&Cluster, usize), back: impl Fn(&Cluster, usize)) {
    // The first TCS has one write to make, later: it waits for no other.
    let (cluster, world) = with_nats(&[1]).await;
    let tcs = || ["tcs", "tcs-2"].map(|name| world.mesh.service(name).expect("it runs"));
    let pids = tcs();
    let leader = cluster.leader(TENANTS).await.expect("a leader");
    away(&cluster, leader);
    world.until_all_goes_on("without the node that led").await;
    world.until_all_goes_on("without the node that led, a little later").await;

    let second = (leader + 1) % 3;
    away(&cluster, second);
    // Acknowledgements may be on their way.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (calls, made) = (world.calls.calls(), world.changes.made());
    let mut client =
        changes::operator(world.mesh.tcs().expect("addresses")[0], &world.mesh.operator().expect("credentials"));
    let late = [["late-a", "late-b"].map(str::to_owned)];
    let began = Instant::now();
    let refused = changes::write_within(&mut client, first(&late), PATIENT).await.expect_err("nobody can write");
    let took = began.elapsed();
    assert!(took < REFUSED_WITHIN, "{took:?} until {refused}");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let says = |what: &str| refused.message().contains(what);
    let (nothing, unknown) =
        (says("nothing has changed"), says("which may have been made: read before you write again"));
    assert!(nothing != unknown, "what became of the write is not said: {refused}");
    assert_eq!(world.changes.made(), made, "two of three nodes were needed, and two were away");
    let per_second = (world.calls.calls() - calls) as f64 / took.as_secs_f64();
    assert!(per_second > f64::from(CALLS_PER_SECOND) / 10.0, "{per_second} calls a second: they need no store");

    back(&cluster, leader);
    back(&cluster, second);
    world.until_all_goes_on("with all nodes back").await;
    // Whole or not at all, and not at all when that is what was said.
    let (tenants, reached) = (late.concat(), world.changes.last());
    for outbound in outbounds(&world.mesh) {
        let there = changes::known(outbound, &tenants, reached).await.expect("answered");
        assert!(there == 0 || there == tenants.len(), "half of a write");
        assert!(there == 0 || unknown, "{outbound} has what was said to have changed nothing");
    }
    assert_eq!(tcs(), pids, "nobody had to be started again");
    let end = world.judge().await;
    assert!(!end.written.failed.is_empty(), "two nodes were never away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_one_of_three_nats_nodes_writes_go_on_and_without_two_they_fail_clearly_and_are_never_half_made() {
    let kill = |cluster: &Cluster, node| cluster.kill(node).expect("killed");
    one_and_two_nodes_away(kill, |cluster, node| cluster.launch(node).expect("started")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_of_three_nats_nodes_stopped_writes_go_on_and_with_two_they_fail_clearly_and_are_never_half_made() {
    let stop = |cluster: &Cluster, node| cluster.stop(node).expect("stopped");
    one_and_two_nodes_away(stop, |cluster, node| cluster.go_on(node).expect("it goes on")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_writing_tcs_may_be_killed_at_once_and_writes_go_on_when_they_are_started_again() {
    let (_cluster, world) = with_nats(&[0, 1]).await;
    let made = world.without(&["tcs", "tcs-2"], Signal::KILL).await;
    assert!(made <= 2, "{made} writes were made by nobody");
    let end = world.judge().await;
    assert!(!end.written.failed.is_empty(), "both were never away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_of_two_writing_tcs_may_be_killed_or_stopped_while_the_other_writes_on() {
    let (_cluster, world) = with_nats(&[0, 1]).await;
    for (name, how) in [("tcs", Signal::KILL), ("tcs-2", Signal::STOP)] {
        let made = world.without(&[name], how).await;
        assert!(made >= 10, "{made} writes while {name} was away");
    }
    world.judge().await;
}
