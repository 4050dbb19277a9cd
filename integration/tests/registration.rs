//! Instances that no policy file names: their sidecars register them, and callers find those that are there.

use std::time::{Duration, Instant};

use integration::{
    by_hand::{Instance, POLICY},
    calls::{channel, for_tenant, http_get, outcome},
    mesh::{Mesh, Plan, SOON, signal, target_profile_dir},
    nats::Cluster,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tenon_proto::media::v1::{ListRequest, media_client::MediaClient};
use tokio::time::sleep;

struct World {
    mesh: Mesh,
    media: Vec<Instance>,
}

impl World {
    /// Three instances of media that registered, and a caller.
    async fn start() -> Self {
        Self::of(Plan::new().expect("a plan"), 3).await
    }

    /// So many instances.
    async fn of(plan: Plan, instances: usize) -> Self {
        let plan = plan.file("policy.yaml", POLICY).caller("wiki", "us-east");
        let mesh = tokio::task::spawn_blocking(|| plan.start().expect("the mesh starts")).await.expect("it starts");
        let shard = json!({"cluster": "local", "database": "product", "schema": "acme"});
        let active = json!({"media": {"state": "ACTIVE", "shard": shard}});
        let tenant = json!({"tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": active});
        mesh.import(&[tenant]).expect("imported");
        let policies = policies(&mesh);
        let plan = |number| {
            let plan = Instance::plan(&mesh, "media", &format!("media-{number}")).expect("a plan");
            plan.with("--policy", &policies)
        };
        let mut media: Vec<_> = (0..instances).map(plan).collect();
        for instance in &mut media {
            instance.start_app().expect("an app");
            instance.start_sidecar().expect("a sidecar");
        }
        let world = Self { mesh, media };
        for instance in &world.media {
            instance.registered().await.expect("registered");
        }
        world
    }

    /// One of the caller's sidecar, or of an instance.
    async fn metric(&self, admin: std::net::SocketAddr, name: &str) -> u64 {
        let metrics = http_get(admin, "/metrics").await.expect("metrics");
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
        // Gauges have a decimal point.
        value.trim().trim_end_matches(".0").parse().expect("a number")
    }

    /// How many instances of media the caller knows: all but its own, which stands in the policy files.
    async fn known(&self) -> u64 {
        let admin = self.mesh.admin("wiki", "us-east");
        self.metric(admin, "tenon_replica_records{kind=\"endpoint\"}").await - 1
    }

    /// How long it takes until the caller knows so many.
    async fn comes_to_know(&self, instances: u64) -> Duration {
        let began = Instant::now();
        loop {
            let known = self.known().await;
            if known == instances {
                return began.elapsed();
            }
            assert!(began.elapsed() < SOON, "{known} are known, and not {instances}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn calls(&self, count: usize) {
        let outbound = self.mesh.outbound("wiki", "us-east");
        let mut client = MediaClient::new(channel(outbound, "media").await.expect("connected"));
        for call in 0..count {
            let answer = client.list(for_tenant("acme", ListRequest {})).await;
            assert_eq!(outcome(&answer), "ALLOWED", "call {call}: {answer:?}");
        }
    }

    /// Those of media as an operator sees them.
    fn endpoints(&self) -> Vec<(String, bool)> {
        let status: Value = serde_json::from_str(
            &self.mesh.tenon_ok(&["policy", "status", "-o", "json"]).expect("the policy service answers"),
        )
        .expect("JSON");
        let endpoints = status["endpoints"].as_array().expect("a list").iter().filter(|it| it["service"] == "media");
        let mut endpoints: Vec<_> = endpoints
            .map(|it| (it["address"].as_str().expect("text").to_owned(), it["registered"].as_bool().expect("a bool")))
            .collect();
        endpoints.sort();
        endpoints
    }

    fn registered(&self, instances: &[usize]) -> Vec<(String, bool)> {
        let mut all: Vec<_> = instances.iter().map(|it| (self.media[*it].inbound().to_string(), true)).collect();
        all.sort();
        all
    }
}

/// Where the policy services are, as a sidecar is told.
fn policies(mesh: &Mesh) -> String {
    let plane = mesh.mesh_file().expect("it was written")["controlPlane"].take();
    let others = plane["policyReplicas"].as_array().into_iter().flatten().map(|replica| &replica["address"]);
    let all = [&plane["policy"]].into_iter().chain(others).map(|address| address.as_str().expect("text"));
    all.collect::<Vec<_>>().join(",")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_come_and_go_by_themselves_and_a_policy_service_that_dies_loses_none() {
    let mut world = World::start().await;
    world.comes_to_know(3).await;
    // The caller, which only calls, is not registered.
    assert_eq!(world.endpoints(), world.registered(&[0, 1, 2]));
    // How many of the first ones an instance gets that is new, or whose first call was slow, is for chance.
    let began = Instant::now();
    for instance in &world.media {
        while world.metric(instance.admin(), "tenon_calls_started_total{direction=\"inbound\"}").await == 0 {
            assert!(began.elapsed() < SOON, "each gets some of the calls");
            world.calls(20).await;
        }
    }

    // What operators apply is not about these.
    let folder = world.mesh.policy_dir().display().to_string();
    let more = POLICY.replace("name: read,", "name: read-all,");
    std::fs::write(world.mesh.policy_dir().join("policy.yaml"), more).expect("written");
    world.mesh.tenon_ok(&["policy", "apply", "-f", &folder]).expect("applied");
    assert_eq!(world.endpoints(), world.registered(&[0, 1, 2]));

    // A policy service that is killed, and started again by `tenon up`.
    let [(pid, _)] = world.mesh.processes("policy serve")[..] else { panic!("one policy service") };
    signal(pid, Signal::KILL).expect("killed");
    let came_back = async {
        while !world.mesh.processes("policy serve").iter().any(|(other, _)| *other != pid) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, came_back).await.expect("it is started again");
    assert_eq!(world.known().await, 3);
    world.calls(10).await;
    for instance in &world.media {
        instance.registered().await.expect("registered again");
    }
    assert_eq!(world.endpoints(), world.registered(&[0, 1, 2]));

    // One whose app ends; it comes back with its app.
    world.media[0].end_app(Signal::KILL).await.expect("ended");
    world.comes_to_know(2).await;
    assert_eq!(world.endpoints(), world.registered(&[1, 2]));
    world.calls(10).await;
    world.media[0].start_app().expect("an app");
    world.comes_to_know(3).await;

    // One that leaves: nobody is told of it any more before it takes its last call.
    let leaving = Instant::now();
    world.media[1].signal_sidecar(Signal::TERM).expect("signalled");
    world.comes_to_know(2).await;
    assert!(leaving.elapsed() < Duration::from_secs(2), "{:?}", leaving.elapsed());
    assert_eq!(world.endpoints(), world.registered(&[0, 2]));
    world.calls(10).await;

    // One that dies.
    world.media[2].end_sidecar(Signal::KILL).await.expect("ended");
    let took = world.comes_to_know(1).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(world.endpoints(), world.registered(&[0]));
    world.calls(10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_not_to_is_not_registered_and_who_has_another_address_says_so() {
    let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY).caller("wiki", "us-east");
    let mesh = plan.start().expect("the mesh starts");
    let plan = |name: &str| Instance::plan(&mesh, "media", name).expect("a plan");
    let quiet = plan("quiet").option("--register", "false");
    let elsewhere = plan("elsewhere").option("--advertise", "192.0.2.7:15006");
    let mut media = vec![quiet, elsewhere];
    for instance in &mut media {
        instance.start_app().expect("an app");
        instance.start_sidecar().expect("a sidecar");
    }
    media[1].registered().await.expect("registered");
    let quiet = media[0].admin();
    let ready = async {
        while !http_get(quiet, "/metrics").await.is_ok_and(|text| text.contains("tenon_flow_reports_connected 1")) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, ready).await.expect("it is ready");
    let world = World { mesh, media };
    assert_eq!(world.endpoints(), [("192.0.2.7:15006".to_owned(), true)]);
}

/// Two policy services over one NATS. A host that dies without a word is a process that is stopped: its connections stay open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_falls_silent_goes_and_comes_back_and_one_whose_policy_service_dies_stays() {
    let target = target_profile_dir().expect("a target folder");
    let cluster = Cluster::of(1, target.parent().unwrap_or(&target)).await.expect("nats-server");
    let plan = Plan::new().expect("a plan").policies(2).store(&cluster.store());
    let world = World::of(plan, 2).await;
    world.comes_to_know(2).await;

    world.media[0].signal_sidecar(Signal::STOP).expect("stopped");
    let took = world.comes_to_know(1).await;
    // It is not asked before 5 s have passed, and then has 5 s, and 3 s to come back.
    assert!(took > Duration::from_secs(3), "{took:?}");
    assert_eq!(world.endpoints(), world.registered(&[1]));
    world.calls(10).await;
    world.media[0].signal_sidecar(Signal::CONT).expect("it goes on");
    world.comes_to_know(2).await;
    assert_eq!(world.endpoints(), world.registered(&[0, 1]));

    // Nobody starts it again.
    let registrations = || world.media.iter().map(|it| it.log().matches("this instance is registered").count());
    let before: Vec<_> = registrations().collect();
    let first = world.mesh.service("policy").expect("it runs");
    signal(world.mesh.pid(), Signal::STOP).expect("stopped");
    signal(first, Signal::KILL).expect("killed");
    let began = Instant::now();
    while registrations().zip(&before).any(|(now, before)| now <= *before) {
        assert!(began.elapsed() < SOON, "they did not go over to the other one");
        assert_eq!(world.known().await, 2);
        sleep(Duration::from_millis(20)).await;
    }
    // Longer than whoever falls silent has.
    let over = Instant::now();
    while over.elapsed() < Duration::from_secs(4) {
        assert_eq!(world.known().await, 2);
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.endpoints(), world.registered(&[0, 1]));
    world.calls(10).await;
    signal(world.mesh.pid(), Signal::CONT).expect("it goes on");
}
