//! The whole service over mTLS: what operators, sidecars and the TCS see of it.

mod changes;
mod folder;

use std::{fs, time::Duration};

use mesh_identity::{
    grpc::{channel, uncovered},
    testing::{Ca, service},
};
use prost::Message as _;
use replica::{Follow, Raw, Replica, Value as _};
use tempfile::TempDir;
use tenon_proto::policy::v1::{
    ApplyRequest, ApplyResponse, Attestor, DescribeRequest, DescribeResponse, PolicyFile, Route, ServicePolicy,
    policy_client::PolicyClient,
};
use tokio::task::JoinHandle;
use tonic::{Code, transport::Channel};

use super::*;

const MESH: &str = "\
apiVersion: tenon.dev/v1
kind: Mesh
metadata: {name: test}
spec: {trustDomain: test.example, regions: [us-east]}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: media}
spec: {product: media}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
---
apiVersion: tenon.dev/v1
kind: LocalMesh
metadata: {name: local}
spec: {instances: [{service: media, region: us-east}]}
";

/// An allowlist of media with one rule of this name.
fn rule(name: &str) -> String {
    format!(
        "apiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {{name: media}}\nspec:\n  service: media\n  rules: \
         [{{name: {name}, callers: [wiki], paths: [/media.v1.Media/Get]}}]\n"
    )
}

/// Everything that a mesh of one policy service has, between and during its runs.
struct World {
    ca: Ca,
    dir: TempDir,
}

struct Running {
    address: String,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

impl World {
    fn new() -> Self {
        Self { ca: Ca::new("test.example"), dir: tempfile::tempdir().unwrap() }
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("policies")
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.folder()).unwrap();
        let new = self.dir.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.folder().join(name)).unwrap();
    }

    async fn start(&self, folder: Option<PathBuf>) -> Running {
        self.start_accepting(folder, Vec::new()).await
    }

    async fn start_accepting(&self, folder: Option<PathBuf>, accept: Vec<PublicKey>) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        let store = Store::Embedded(self.dir.path().join("store.redb"));
        let config = Config {
            listener,
            store,
            state_dir: self.dir.path().to_owned(),
            folder,
            accept,
            identity: self.ca.identity("tenon-policy"),
            dashboard: Some("127.0.0.1:0".parse().unwrap()),
            tcs: Vec::new(),
        };
        let task = tokio::spawn(serve(config, shutdown.clone()));
        Running { address, shutdown, task }
    }

    fn channel(&self, running: &Running, identity: &Arc<Identity>) -> Channel {
        channel(&running.address, identity, &service("tenon-policy"))
    }

    fn operator(&self, running: &Running) -> PolicyClient<Channel> {
        PolicyClient::new(self.channel(running, &self.ca.operator_identity("ann")))
    }

    fn follow(&self, running: &Running, kind: &'static str, identity: &Arc<Identity>) -> Replica<Raw> {
        let channel = self.channel(running, identity);
        let follow = Follow { kind, instance: "test".to_owned(), parents: vec![channel], state_dir: None };
        follow.start(|_| {}, running.shutdown.clone()).0
    }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Longer than a busy machine's disk takes to sync.
const LONG: Duration = Duration::from_secs(60);

async fn describe(client: &mut PolicyClient<Channel>) -> DescribeResponse {
    client.describe(DescribeRequest::default()).await.unwrap().into_inner()
}

/// Asks until what is described is as wanted: nothing announces the folder's problems.
async fn until(client: &mut PolicyClient<Channel>, wanted: impl Fn(&DescribeResponse) -> bool) -> DescribeResponse {
    let asking = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            let described = describe(client).await;
            if wanted(&described) {
                return described;
            }
        }
    };
    tokio::time::timeout(LONG, asking).await.expect("the policy becomes as wanted")
}

/// Waits until a replica holds what is wanted.
async fn holds(replica: &Replica<Raw>, wanted: impl Fn(&Replica<Raw>) -> bool) {
    let mut positions = replica.subscribe();
    let waiting = positions.wait_for(|position| position.is_some() && wanted(replica));
    tokio::time::timeout(LONG, waiting).await.expect("the replica becomes as wanted").unwrap();
}

fn keys(replica: &Replica<Raw>) -> Vec<String> {
    let mut keys: Vec<String> = replica.entries().iter().map(|record| record.key().to_owned()).collect();
    keys.sort();
    keys
}

fn rules(described: &DescribeResponse) -> Vec<&str> {
    described.services.iter().flat_map(|policy| &policy.rules).map(|rule| rule.name.as_str()).collect()
}

async fn apply(client: &mut PolicyClient<Channel>, files: &[(&str, &str)]) -> ApplyResponse {
    let files = files.iter().map(|(path, text)| PolicyFile { path: (*path).to_owned(), text: (*text).to_owned() });
    client.apply(ApplyRequest { files: files.collect(), ..ApplyRequest::default() }).await.unwrap().into_inner()
}

#[test]
fn every_rpc_stands_in_the_authorization_table() {
    let services = ["tenon.policy.v1.Policy", "tenon.replication.v1.Replication", "tenon.audit.v1.Audit"];
    assert_eq!(uncovered(&services, &AUTHORIZATION), Vec::<String>::new());
}

#[tokio::test]
async fn a_sidecar_sees_its_own_allowlist_and_everything_that_callers_need() {
    let world = World::new();
    world.write("mesh.yaml", MESH);
    world.write("allowlist.yaml", &rule("first"));
    let running = world.start(Some(world.folder())).await;
    let media = world.ca.identity("media");
    let allowlist = world.follow(&running, kind::ALLOWLIST, &media);
    holds(&allowlist, |replica| keys(replica) == ["media"]).await;
    let policy = ServicePolicy::decode(allowlist.get("media").unwrap().raw()).unwrap();
    assert_eq!((policy.rules[0].name.as_str(), policy.rules[0].source.as_str()), ("first", "allowlist.yaml:6"));
    let routes = world.follow(&running, kind::ROUTE, &media);
    holds(&routes, |replica| keys(replica) == ["media", "wiki"]).await;
    let endpoints = world.follow(&running, kind::ENDPOINT, &media);
    holds(&endpoints, |replica| keys(replica) == ["media/us-east/127.0.0.1:15006"]).await;
    let quarantines = world.follow(&running, kind::QUARANTINE, &media);
    holds(&quarantines, |replica| keys(replica).is_empty()).await;

    let quarantine = "apiVersion: tenon.dev/v1\nkind: Quarantine\nmetadata: {name: q}\nspec: {services: [wiki]}\n";
    world.write("q.yaml", quarantine);
    holds(&quarantines, |replica| keys(replica) == ["wiki"]).await;
    fs::remove_file(world.folder().join("q.yaml")).unwrap();
    holds(&quarantines, |replica| keys(replica).is_empty()).await;
    running.stop().await;
}

#[tokio::test]
async fn operators_see_all_allowlists_and_the_tcs_sees_routes_alone() {
    let world = World::new();
    world.write("mesh.yaml", MESH);
    let running = world.start(Some(world.folder())).await;
    let operator = world.follow(&running, kind::ALLOWLIST, &world.ca.operator_identity("ann"));
    holds(&operator, |replica| keys(replica) == ["media", "wiki"]).await;
    let tcs = world.ca.identity("tenon-tcs");
    let routes = world.follow(&running, kind::ROUTE, &tcs);
    holds(&routes, |replica| keys(replica) == ["media", "wiki"]).await;
    for kind in [kind::ALLOWLIST, kind::ENDPOINT, kind::QUARANTINE] {
        assert_eq!(refusal_to_follow(world.channel(&running, &tcs), kind).await, Code::PermissionDenied, "{kind}");
    }
    running.stop().await;
}

const ATTESTOR: &str = "\
apiVersion: tenon.dev/v1
kind: Attestor
metadata: {name: kubernetes}
spec:
  issuer: https://kubernetes.example
  audience: tenon
  rules: [{claims: {sub: 'system:serviceaccount:prod:media'}, service: media}]
";

#[tokio::test]
async fn the_identity_service_alone_follows_who_attests_and_sees_routes_besides() {
    let world = World::new();
    world.write("mesh.yaml", &MESH.replace("spec: {}", "spec: {requestsTransactionTokens: true}"));
    world.write("attestor.yaml", ATTESTOR);
    let running = world.start(Some(world.folder())).await;
    let identity = world.ca.identity("tenon-identity");
    let attestors = world.follow(&running, kind::ATTESTATION, &identity);
    holds(&attestors, |replica| keys(replica) == ["kubernetes"]).await;
    let attestor = Attestor::decode(attestors.get("kubernetes").unwrap().raw()).unwrap();
    assert_eq!((attestor.audience.as_str(), attestor.rules[0].service.as_str()), ("tenon", "media"));
    let routes = world.follow(&running, kind::ROUTE, &identity);
    holds(&routes, |replica| keys(replica) == ["media", "wiki"]).await;
    let requests = |name| Route::decode(routes.get(name).unwrap().raw()).unwrap().requests_transaction_tokens;
    assert_eq!((requests("media"), requests("wiki")), (false, true));
    for kind in [kind::ALLOWLIST, kind::ENDPOINT, kind::QUARANTINE] {
        assert_eq!(refusal_to_follow(world.channel(&running, &identity), kind).await, Code::PermissionDenied, "{kind}");
    }
    for other in ["media", "tenon-tcs", "tenon-policy"].map(|name| world.ca.identity(name)) {
        let refusal = refusal_to_follow(world.channel(&running, &other), kind::ATTESTATION).await;
        assert_eq!(refusal, Code::PermissionDenied, "{}", other.id());
    }
    let operator = world.channel(&running, &world.ca.operator_identity("ann"));
    assert_eq!(refusal_to_follow(operator, kind::ATTESTATION).await, Code::PermissionDenied);

    let described = describe(&mut world.operator(&running)).await;
    assert_eq!(described.attestors, [attestor]);
    fs::remove_file(world.folder().join("attestor.yaml")).unwrap();
    holds(&attestors, |replica| keys(replica).is_empty()).await;
    running.stop().await;
}

/// A client outside of the mesh, and the PEM of its CA.
fn external_client(name: &str, ca: &str) -> String {
    let ca: String = ca.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: tenon.dev/v1\nkind: ExternalClient\nmetadata: {{name: {name}}}\nspec:\n  certificateNames: \
         ['dns:{name}.example']\n  keyRepositories: ['https://keys.{name}.example/']\n  ca: |\n{ca}"
    )
}

#[tokio::test]
async fn clients_outside_of_the_mesh_reach_only_the_services_whose_rules_name_them() {
    let world = World::new();
    let running = world.start(None).await;
    let outside = Ca::new("partner.example");
    let ca = outside.bundle().to_pem();
    let clients = format!("{}---\n{}", external_client("partner", &ca), external_client("stranger", &ca));
    let rules = rule("both").replace("[wiki]", "[wiki, partner]");
    let files = [("a.yaml", MESH), ("b.yaml", rules.as_str()), ("c.yaml", clients.as_str())];
    let applied = apply(&mut world.operator(&running), &files).await;
    assert_eq!(applied.problems, []);
    let of = |name| world.follow(&running, kind::ALLOWLIST, &world.ca.identity(name));
    let (media, wiki) = (of("media"), of("wiki"));
    holds(&media, |replica| keys(replica) == ["media"]).await;
    holds(&wiki, |replica| keys(replica) == ["wiki"]).await;
    let clients = |replica: &Replica<Raw>, name| {
        ServicePolicy::decode(replica.get(name).unwrap().raw()).unwrap().external_clients
    };
    let [partner] = &clients(&media, "media")[..] else { panic!("one client") };
    assert_eq!(
        (partner.name.as_str(), partner.issuer.as_str(), &*partner.ca[0]),
        ("partner", "partner", &outside.root()[..])
    );
    assert_eq!(clients(&wiki, "wiki"), []);
    let described = describe(&mut world.operator(&running)).await;
    let named: Vec<_> = described.services.iter().map(|service| service.external_clients.len()).collect();
    assert_eq!(named, [1, 0], "media and wiki");
    running.stop().await;
}

async fn refusal_to_follow(channel: Channel, kind: &str) -> Code {
    use tenon_proto::replication::v1::{
        FollowRequest, Mode, Start, follow_request::Request, replication_client::ReplicationClient,
    };
    let start = Start { kind: kind.to_owned(), mode: Mode::Full.into(), ..Start::default() };
    let start = FollowRequest { request: Some(Request::Start(start)) };
    let opened = ReplicationClient::new(channel).follow(tokio_stream::once(start)).await;
    match opened {
        Ok(stream) => stream.into_inner().message().await.map(|_| ()).unwrap_err().code(),
        Err(status) => status.code(),
    }
}

#[tokio::test]
async fn services_neither_apply_nor_describe() {
    let world = World::new();
    let running = world.start(None).await;
    let mut client = PolicyClient::new(world.channel(&running, &world.ca.identity("media")));
    let denied = client.apply(ApplyRequest::default()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let denied = client.describe(DescribeRequest::default()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    running.stop().await;
}

#[tokio::test]
async fn a_changed_file_takes_effect_and_a_broken_one_keeps_the_last_good_policy() {
    let world = World::new();
    world.write("mesh.yaml", MESH);
    world.write("allowlist.yaml", &rule("first"));
    let running = world.start(Some(world.folder())).await;
    let mut client = world.operator(&running);
    let first = describe(&mut client).await;
    assert_eq!(
        (rules(&first), first.mesh.as_str(), first.trust_domain.as_str()),
        (vec!["first"], "test", "test.example")
    );
    assert_eq!(first.source, format!("folder {}", world.folder().display()));

    world.write("allowlist.yaml", &rule("second"));
    let second = until(&mut client, |described| rules(described) == ["second"]).await;
    assert_eq!((second.epoch, second.revision), (first.epoch, first.revision + 2), "one record and the reserved one");

    world.write("allowlist.yaml", &rule("third").replace("[wiki]", "[wikki]"));
    let broken = until(&mut client, |described| !described.problems.is_empty()).await;
    assert_eq!((rules(&broken), broken.revision), (vec!["second"], second.revision));
    let problem = &broken.problems[0];
    assert_eq!(problem.file, world.folder().join("allowlist.yaml").display().to_string());
    assert!(problem.line == 6 && problem.message.contains("did you mean \"wiki\"?"), "{problem:?}");

    fs::rename(world.folder(), world.dir.path().join("away")).unwrap();
    let gone =
        until(&mut client, |described| described.problems.iter().any(|it| it.message.contains("cannot read"))).await;
    assert_eq!(rules(&gone), ["second"]);
    fs::rename(world.dir.path().join("away"), world.folder()).unwrap();
    world.write("allowlist.yaml", &rule("third"));
    until(&mut client, |described| rules(described) == ["third"] && described.problems.is_empty()).await;
    running.stop().await;
}

#[tokio::test]
async fn apply_replaces_the_whole_policy_or_changes_nothing() {
    let world = World::new();
    let running = world.start(None).await;
    let mut client = world.operator(&running);
    let empty = describe(&mut client).await;
    assert!(empty.services.is_empty() && empty.source.is_empty());

    let applied = apply(&mut client, &[("a.yaml", MESH), ("b.yaml", &rule("first"))]).await;
    // Two allowlists, two routes, one endpoint.
    assert_eq!((applied.problems.len(), applied.changes, applied.revision), (0, 5, 3));
    let described = describe(&mut client).await;
    assert_eq!(described.source, "applied by spiffe://test.example/operator/ann");
    assert_eq!((described.epoch, described.revision), (applied.epoch, applied.revision));
    assert_eq!(rules(&described), ["first"]);
    assert_eq!(apply(&mut client, &[("a.yaml", MESH), ("b.yaml", &rule("first"))]).await.changes, 0);

    let wrong = apply(&mut client, &[("a.yaml", &MESH.replace("us-east]", "us-east")), ("../b", "a: b")]).await;
    assert_eq!(wrong.problems[0].file, "../b", "{wrong:?}");
    let wrong = apply(&mut client, &[("a.yaml", MESH), ("b.yaml", "kind: X\n"), ("c.yaml", "- 1\n")]).await;
    let places: Vec<String> =
        wrong.problems.iter().map(|it| format!("{}:{}:{}", it.file, it.line, it.column)).collect();
    assert_eq!(places, ["b.yaml:1:1", "b.yaml:1:7", "c.yaml:1:1"]);
    assert_eq!(describe(&mut client).await.revision, applied.revision);

    // What is no longer in the files is gone.
    let less =
        apply(&mut client, &[("a.yaml", MESH.split("---\napiVersion: tenon.dev/v1\nkind: LocalMesh").next().unwrap())])
            .await;
    assert_eq!((less.problems.len(), less.changes), (0, 2));
    let described = describe(&mut client).await;
    assert!(rules(&described).is_empty() && described.endpoints.is_empty() && described.services.len() == 2);
    let filtered = client.describe(DescribeRequest { service: "wiki".to_owned() }).await.unwrap().into_inner();
    assert_eq!((filtered.services.len(), filtered.routes.len()), (1, 1));
    running.stop().await;
}

#[tokio::test]
async fn the_policy_of_another_trust_domain_is_refused_at_its_place() {
    let world = World::new();
    let running = world.start(None).await;
    let wrong = MESH.replace("test.example", "prod.example");
    let refused = apply(&mut world.operator(&running), &[("mesh.yaml", &wrong)]).await;
    let [problem] = refused.problems.as_slice() else { panic!("one problem: {refused:?}") };
    assert_eq!((problem.file.as_str(), problem.line, problem.column), ("mesh.yaml", 4, 21));
    assert!(problem.message.contains("expected \"test.example\""), "{problem:?}");
    running.stop().await;
}

#[tokio::test]
async fn what_was_applied_outlives_a_restart_until_the_folder_changes() {
    let world = World::new();
    world.write("mesh.yaml", MESH);
    world.write("allowlist.yaml", &rule("folder"));
    let running = world.start(Some(world.folder())).await;
    let mut client = world.operator(&running);
    assert_eq!(rules(&describe(&mut client).await), ["folder"]);
    apply(&mut client, &[("a.yaml", MESH), ("b.yaml", &rule("applied"))]).await;
    // A touched file is no changed folder, and neither is one that changes back.
    world.write("allowlist.yaml", &rule("folder"));
    world.write("broken.yaml", "a: [");
    until(&mut client, |described| !described.problems.is_empty()).await;
    fs::remove_file(world.folder().join("broken.yaml")).unwrap();
    let still = until(&mut client, |described| described.problems.is_empty()).await;
    assert_eq!(rules(&still), ["applied"]);
    running.stop().await;

    let running = world.start(Some(world.folder())).await;
    let mut client = world.operator(&running);
    let described = describe(&mut client).await;
    assert_eq!((rules(&described), described.mesh.as_str()), (vec!["applied"], "test"));
    assert_eq!((described.epoch, described.revision), (still.epoch, still.revision));
    assert_eq!(described.source, "applied by spiffe://test.example/operator/ann");
    world.write("allowlist.yaml", &rule("changed"));
    until(&mut client, |described| rules(described) == ["changed"]).await;
    running.stop().await;
}

#[tokio::test]
async fn records_that_the_last_process_could_not_write_are_completed_from_the_files_in_force() {
    let world = World::new();
    let running = world.start(None).await;
    let applied = apply(&mut world.operator(&running), &[("a.yaml", MESH), ("b.yaml", &rule("kept"))]).await;
    running.stop().await;
    fs::remove_file(world.dir.path().join("store.redb")).unwrap();
    let running = world.start(None).await;
    let described = describe(&mut world.operator(&running)).await;
    assert_eq!((rules(&described), described.endpoints.len()), (vec!["kept"], 1));
    assert!(described.epoch > applied.epoch, "a new store is a new history");
    running.stop().await;
}

#[tokio::test]
async fn a_store_in_use_is_a_clear_error() {
    let world = World::new();
    let running = world.start(None).await;
    describe(&mut world.operator(&running)).await;
    let second = world.start(None).await;
    let error = tokio::time::timeout(LONG, second.task).await.unwrap().unwrap().unwrap_err();
    assert!(crate::engine::chain(&error).contains("in use by another process"), "{error:?}");
    running.stop().await;
}
