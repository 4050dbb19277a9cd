//! Several policy services over one store in a NATS cluster: processes of their own, which are killed in the middle of a
//! change.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use integration::{nats::Cluster, ports::Ports};
use mesh_identity::{
    grpc::channel,
    testing::{Ca, service},
};
use prost::Message as _;
use replica::{Follow, Raw, Replica, Value as _};
use tempfile::TempDir;
use tenon_proto::{
    kind,
    policy::v1::{
        ApplyRequest, ApplyResponse, DescribeRequest, DescribeResponse, HistoryRequest, PolicyFile, PolicyRevision,
        RollbackRequest, ServicePolicy, policy_client::PolicyClient,
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

const DOMAIN: &str = "test.example";
/// A busy machine, and a store that must notice that somebody has gone.
const LONG: Duration = Duration::from_secs(60);
/// What the process that serves is told, one line each: address, store, state folder, root certificate, key.
const SERVE: &str = "TENON_TEST_POLICY_SERVICE";

/// Not a test: what the other tests start as processes of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_service_of_its_own() {
    let Ok(folder) = std::env::var(SERVE) else { return };
    let folder = PathBuf::from(folder);
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).expect("the test has written it");
    let root = std::fs::read(folder.join("root.der")).expect("the test has written it");
    let ca = Ca::from_parts(DOMAIN, root.into(), &text("key.pem"));
    let config = policy::Config {
        listener: tokio::net::TcpListener::bind(text("address")).await.expect("the port is ours"),
        store: text("store").parse().expect("a store"),
        state_dir: folder,
        folder: None,
        accept: Vec::new(),
        identity: ca.identity("tenon-policy"),
        dashboard: None,
        tcs: Vec::new(),
    };
    policy::serve(config, CancellationToken::new()).await.expect("it serves");
}

struct World {
    ca: Ca,
    cluster: Cluster,
    ports: Ports,
    dir: TempDir,
}

/// One policy service; dropping it kills it.
struct Service {
    address: String,
    folder: PathBuf,
    child: Child,
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Service {
    fn spawn(folder: &Path) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).expect("a log");
        Command::new(std::env::current_exe().expect("this test"))
            .args(["a_policy_service_of_its_own", "--exact", "--nocapture"])
            .env(SERVE, folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("this test starts")
    }

    fn start_again(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        self.child = Self::spawn(&self.folder);
    }

    fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

impl World {
    async fn new() -> Self {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("Cargo's target folder");
        let cluster = Cluster::of(1, target).await.expect("a NATS server");
        let ports = Ports::take(target).expect("ports");
        Self { ca: Ca::new(DOMAIN), cluster, ports, dir: tempfile::tempdir().expect("a folder") }
    }

    async fn start(&mut self, name: &str) -> Service {
        let folder = self.dir.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        let address = format!("127.0.0.1:{}", self.ports.give());
        let write = |name: &str, text: &[u8]| std::fs::write(folder.join(name), text).expect("a file");
        write("address", address.as_bytes());
        write("store", self.cluster.store().as_bytes());
        write("root.der", self.ca.root());
        write("key.pem", self.ca.key_pem().as_bytes());
        let service = Service { address, child: Service::spawn(&folder), folder };
        self.up(&service).await;
        service
    }

    async fn up(&self, service: &Service) {
        until("the service answers", async || self.describe(service).await.is_ok()).await;
    }

    fn operator(&self, service: &Service, name: &str) -> PolicyClient<Channel> {
        let identity = self.ca.operator_identity(name);
        PolicyClient::new(channel(&service.address, &identity, &self::service("tenon-policy")))
    }

    async fn describe(&self, service: &Service) -> Result<DescribeResponse, Status> {
        let mut client = self.operator(service, "ann");
        Ok(client.describe(DescribeRequest::default()).await?.into_inner())
    }

    async fn apply(
        &self,
        service: &Service,
        rule: &str,
        expected: Option<PolicyRevision>,
    ) -> Result<ApplyResponse, Status> {
        let request = ApplyRequest { files: policy(rule), expected, ..ApplyRequest::default() };
        let applied = self.operator(service, "ann").apply(request).await?.into_inner();
        assert_eq!(applied.problems, []);
        Ok(applied)
    }

    fn follow(&self, service: &Service, identity: &str, shutdown: &CancellationToken) -> Replica<Raw> {
        let identity = self.ca.identity(identity);
        let parent = channel(&service.address, &identity, &self::service("tenon-policy"));
        let follow =
            Follow { kind: kind::ALLOWLIST, instance: "test".to_owned(), parents: vec![parent], state_dir: None };
        follow.start(|_| {}, shutdown.clone()).0
    }
}

/// How many services the policy has: enough that a change is not made at once.
const SERVICES: usize = 40;

/// Every service has one rule, of this name, so that a mix of two policies shows.
fn policy(rule: &str) -> Vec<PolicyFile> {
    let mut text = format!(
        "apiVersion: tenon.dev/v1\nkind: Mesh\nmetadata: {{name: test}}\nspec: {{trustDomain: {DOMAIN}, regions: [us-east]}}\n"
    );
    for number in 0..SERVICES {
        text += &format!(
            "---\napiVersion: tenon.dev/v1\nkind: Service\nmetadata: {{name: service-{number}}}\nspec: {{}}\n---\n\
             apiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {{name: service-{number}}}\nspec:\n  service: \
             service-{number}\n  rules: [{{name: {rule}, callers: ['*'], paths: [/a.B/C]}}]\n"
        );
    }
    // The quarantine goes and comes with the rules: another kind.
    text += &format!(
        "---\napiVersion: tenon.dev/v1\nkind: Quarantine\nmetadata: {{name: q}}\nspec: {{services: [service-0], reason: {rule}}}\n"
    );
    vec![PolicyFile { path: "mesh.yaml".to_owned(), text }]
}

/// The one rule that all services have, and the quarantine as well; nothing while it is a mix.
fn whole(described: &DescribeResponse) -> Option<String> {
    let rules = described.services.iter().flat_map(|policy| &policy.rules).map(|rule| &rule.name);
    let mut told: Vec<&String> = rules.chain(described.quarantines.iter().map(|one| &one.reason)).collect();
    if told.len() != SERVICES + 1 {
        return None;
    }
    told.dedup();
    if let [one] = &told[..] { Some((*one).clone()) } else { None }
}

async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !reached().await {
        assert!(Instant::now() < end, "{what}: not within {LONG:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn at(applied: &ApplyResponse) -> PolicyRevision {
    PolicyRevision { epoch: applied.epoch, revision: applied.revision }
}

fn rule_of(replica: &Replica<Raw>) -> Option<String> {
    let policy = ServicePolicy::decode(replica.get("service-7")?.raw()).ok()?;
    Some(policy.rules.first()?.name.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_applied_through_one_is_followed_from_the_other_and_both_tell_the_same() {
    let mut world = World::new().await;
    let (a, b) = (world.start("a").await, world.start("b").await);
    let shutdown = CancellationToken::new();
    let follower = world.follow(&b, "service-7", &shutdown);
    let first = world.apply(&a, "first", None).await.unwrap();
    let mut positions = follower.subscribe();
    let there = positions.wait_for(|_| rule_of(&follower).as_deref() == Some("first"));
    tokio::time::timeout(LONG, there).await.expect("it comes").unwrap();

    until("the other has it in force", async || {
        let described = world.describe(&b).await.unwrap();
        described.source == "applied by spiffe://test.example/operator/ann" && described.mesh == "test"
    })
    .await;
    let second = world.apply(&b, "second", Some(at(&first))).await.unwrap();
    let late = world.apply(&a, "late", Some(at(&first))).await.unwrap();
    let conflict = late.conflict.expect("somebody was faster");
    assert_eq!((conflict.in_force, conflict.since.len()), (Some(at(&second)), 1));
    let there = positions.wait_for(|_| rule_of(&follower).as_deref() == Some("second"));
    tokio::time::timeout(LONG, there).await.expect("it comes").unwrap();
    shutdown.cancel();
    for service in [&a, &b] {
        let mut client = world.operator(service, "ann");
        let entries = client.history(HistoryRequest::default()).await.unwrap().into_inner().entries;
        let told: Vec<_> = entries.iter().map(|entry| entry.revision.unwrap()).collect();
        assert_eq!(told, [at(&second), at(&first)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_operators_at_two_services_at_once_one_wins_and_nothing_is_mixed() {
    let mut world = World::new().await;
    let (a, b) = (world.start("a").await, world.start("b").await);
    let mut at_last = at(&world.apply(&a, "begin", None).await.unwrap());
    for round in 0..5 {
        let rules = [format!("a-{round}"), format!("b-{round}")];
        let (left, right) =
            tokio::join!(world.apply(&a, &rules[0], Some(at_last)), world.apply(&b, &rules[1], Some(at_last)));
        let outcomes = [left.unwrap(), right.unwrap()];
        let won: Vec<_> = (0..2).filter(|&index| outcomes[index].conflict.is_none()).collect();
        let [winner] = won[..] else { panic!("one wins: {outcomes:?}") };
        at_last = at(&outcomes[winner]);
        let conflict = outcomes[1 - winner].conflict.as_ref().unwrap();
        assert_eq!(conflict.in_force, Some(at_last));
        for service in [&a, &b] {
            until("both have the winner's", async || {
                whole(&world.describe(service).await.unwrap()).as_ref() == Some(&rules[winner])
            })
            .await;
        }
    }
    // Expecting nothing, both are made.
    let (left, right) = tokio::join!(world.apply(&a, "left", None), world.apply(&b, "right", None));
    let (left, right) = (at(&left.unwrap()), at(&right.unwrap()));
    assert_ne!(left, right);
    let last = if left.revision > right.revision { "left" } else { "right" };
    for service in [&a, &b] {
        until("the later one stays", async || whole(&world.describe(service).await.unwrap()).as_deref() == Some(last))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_killed_in_the_middle_of_a_change_leaves_the_old_policy_or_the_new_one() {
    let mut world = World::new().await;
    let (mut a, b) = (world.start("a").await, world.start("b").await);
    let mut before = "begin".to_owned();
    world.apply(&a, &before, None).await.unwrap();
    let started = Instant::now();
    world.apply(&a, "timed", None).await.unwrap();
    world.apply(&a, &before, None).await.unwrap();
    let takes = started.elapsed() / 2;
    let (mut old, mut new) = (0, 0);
    for round in 0..8_u32 {
        let rule = format!("round-{round}");
        let mut client = world.operator(&a, "ann");
        let request = ApplyRequest { files: policy(&rule), ..ApplyRequest::default() };
        let applying = tokio::spawn(async move { client.apply(request).await });
        tokio::time::sleep(takes * (round + 1) / 8).await;
        a.kill();
        drop(applying.await);
        // The one that lives notices within seconds, and its history says which it is.
        until("the one that lives has a whole policy, of which the history tells", async || {
            let described = world.describe(&b).await.unwrap();
            let entries = world.operator(&b, "ann").history(HistoryRequest { limit: 1 }).await.unwrap().into_inner();
            let revision = Some(PolicyRevision { epoch: described.epoch, revision: described.revision });
            whole(&described).is_some() && entries.entries[0].revision == revision
        })
        .await;
        let now = whole(&world.describe(&b).await.unwrap()).unwrap();
        assert!(now == rule || now == before, "{now} after {before} and {rule}");
        if now == rule {
            new += 1
        } else {
            old += 1
        }
        before = now;
        a.start_again();
        world.up(&a).await;
        until("the one that comes back has the same", async || {
            whole(&world.describe(&a).await.unwrap()).as_ref() == Some(&before)
        })
        .await;
    }
    println!("killed {} times: {old} changes were not made, {new} were", old + new);
    // And both still take changes.
    for (service, rule) in [(&a, "last-a"), (&b, "last-b")] {
        world.apply(service, rule, None).await.unwrap();
        until("both have it", async || {
            let both = [world.describe(&a).await.unwrap(), world.describe(&b).await.unwrap()];
            both.iter().all(|described| whole(described).as_deref() == Some(rule))
        })
        .await;
    }
}

/// Two files of nearly the largest size; NATS takes messages of a megabyte.
fn large(rule: &str) -> Vec<PolicyFile> {
    let comment = "# nothing but words, as people write them into their policies\n".repeat(60_000);
    let quarantine = |number: usize| {
        format!(
            "apiVersion: tenon.dev/v1\nkind: Quarantine\nmetadata: {{name: large-{number}}}\nspec: {{services: [service-0], \
             reason: {rule}}}\n{comment}"
        )
    };
    let mut files = policy(rule);
    files.extend((0..2).map(|number| PolicyFile { path: format!("q-{number}.yaml"), text: quarantine(number) }));
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_of_many_megabytes_is_applied_seen_by_the_other_and_gone_back_to() {
    let mut world = World::new().await;
    let (a, b) = (world.start("a").await, world.start("b").await);
    let request = ApplyRequest { files: large("large"), ..ApplyRequest::default() };
    let applied = world.operator(&a, "ann").apply(request).await.unwrap().into_inner();
    assert_eq!(applied.problems, []);
    let small = world.apply(&a, "small", None).await.unwrap();
    until("the other has both", async || {
        let entries = world.operator(&b, "ann").history(HistoryRequest::default()).await.unwrap().into_inner().entries;
        let told: Vec<_> = entries.iter().map(|entry| (entry.revision, entry.kept)).collect();
        told == [(Some(at(&small)), true), (Some(at(&applied)), true)]
    })
    .await;
    let request = RollbackRequest { to: Some(at(&applied)), expected: Some(at(&small)), note: String::new() };
    let back = world.operator(&b, "bob").rollback(request).await.unwrap().into_inner();
    assert_eq!((back.problems.len(), back.conflict), (0, None));
    until("the first has them in force again", async || {
        let described = world.describe(&a).await.unwrap();
        described.source == "applied by spiffe://test.example/operator/bob"
            && described.services.iter().all(|service| service.rules[0].name == "large")
    })
    .await;
}
