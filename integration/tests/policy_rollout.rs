//! A policy that some sidecars try first, with traffic: what one of twenty refuses halts it, what all do well by becomes
//! everybody's, also when the policy service dies in between.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use integration::{
    calls::{channel, http_get, outcome},
    mesh::{Mesh, Plan, signal},
};
use mesh_config::names::{ServiceName, control_plane};
use mesh_identity::grpc;
use rustix::process::Signal;
use serde_json::Value;
use tenon_proto::{
    media::v1::{
        DeleteRequest, DeleteResponse, DownloadRequest, DownloadResponse, GetRequest, ListRequest, ListResponse,
        MediaItem, UploadRequest,
        media_client::MediaClient,
        media_server::{Media, MediaServer},
    },
    policy::v1::{
        ApplyRequest, ApplyResponse, FlowsRequest, HistoryRequest, PolicyFile, PolicyRevision, RollbackRequest,
        RolloutPlan, RolloutRequest, RolloutStatus, flow::Decision, history_entry::Action, policy_client::PolicyClient,
        rollout_status::State,
    },
    replication::v1::{FollowerStatus, StatusRequest, replication_client::ReplicationClient},
};
use tokio::{net::TcpListener, task::JoinSet, time::interval};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Channel};

/// Sidecars of media.
const SIDECARS: usize = 20;
const PERCENT: f64 = 5.0;
/// Calls a second of wiki to media.
const CALLS: u32 = 100;
const CALLERS: u32 = 10;
/// A busy machine that runs debug builds.
const LONG: Duration = Duration::from_secs(120);
const GET: &str = "/media.v1.Media/Get";

/// The app of all instances of media: has nothing and says so.
struct App;

type Stream = tokio_stream::Empty<Result<DownloadResponse, Status>>;

#[tonic::async_trait]
impl Media for App {
    type DownloadStream = Stream;

    async fn upload(&self, _: Request<Streaming<UploadRequest>>) -> Result<Response<MediaItem>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<MediaItem>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn download(&self, _: Request<DownloadRequest>) -> Result<Response<Stream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}

/// Calls of wiki, all to the path that is used, until stopped.
struct Traffic {
    counts: Arc<Counts>,
    stop: CancellationToken,
    callers: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    passed: AtomicU64,
    refused: AtomicU64,
    /// Neither: of the mesh, not of the policy.
    failed: AtomicU64,
}

/// Passed, refused, failed.
type Counted = (u64, u64, u64);

impl Traffic {
    async fn start(outbound: SocketAddr) -> Self {
        let media = MediaClient::new(channel(outbound, "media").await.expect("the sidecar answers"));
        let (counts, stop, mut callers) = (Arc::new(Counts::default()), CancellationToken::new(), JoinSet::new());
        for _ in 0..CALLERS {
            let (mut media, counts, stop) = (media.clone(), Arc::clone(&counts), stop.clone());
            callers.spawn(async move {
                let mut ticks = interval(Duration::from_secs(1) * CALLERS / CALLS);
                while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                    let outcome = outcome(&media.get(GetRequest { id: "one".into() }).await);
                    let count = match outcome.as_str() {
                        "ALLOWED" => &counts.passed,
                        "PATH_NOT_ALLOWED" => &counts.refused,
                        _ => &counts.failed,
                    };
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self { counts, stop, callers }
    }

    fn counts(&self) -> Counted {
        let Counts { passed, refused, failed } = &*self.counts;
        (passed.load(Ordering::SeqCst), refused.load(Ordering::SeqCst), failed.load(Ordering::SeqCst))
    }

    /// Waits until so many more calls have passed; what came of all calls meanwhile.
    async fn passes(&self, more: u64) -> Counted {
        let before = self.counts();
        until(&format!("{more} calls pass"), async || self.counts().0 >= before.0 + more).await;
        since(before, self.counts())
    }

    async fn stop(self) -> Counted {
        self.stop.cancel();
        let Self { counts, callers, .. } = self;
        callers.join_all().await;
        (
            counts.passed.load(Ordering::SeqCst),
            counts.refused.load(Ordering::SeqCst),
            counts.failed.load(Ordering::SeqCst),
        )
    }
}

fn since(before: Counted, now: Counted) -> Counted {
    (now.0 - before.0, now.1 - before.1, now.2 - before.2)
}

/// Asks until the answer is yes.
async fn until(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !ask().await {
        assert!(Instant::now() < end, "it did not come true that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct World {
    mesh: Mesh,
    channel: Channel,
    /// By instance: the sidecar's admin listener.
    admins: BTreeMap<String, SocketAddr>,
    traffic: Traffic,
}

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: tenon.dev/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n")
}

/// The services, and an allowlist of media that lets wiki call these methods.
fn policy(methods: &[&str]) -> String {
    let paths: Vec<String> = methods.iter().map(|method| format!("/media.v1.Media/{method}")).collect();
    let rule = format!("{{name: read, callers: [wiki], paths: [{}], tenant: none}}", paths.join(", "));
    document("Service", "media", "{}")
        + &document("Service", "wiki", "{}")
        + &document("Allowlist", "media", &format!("{{service: media, rules: [{rule}]}}"))
}

impl World {
    async fn start() -> Self {
        let plan = Plan::new().expect("a plan").file("policy.yaml", &policy(&["Get"])).caller("wiki", "us-east");
        let mesh = plan.instances("media", "us-east", SIDECARS).start().expect("the mesh starts");
        let app = TcpListener::bind(mesh.app("media", "us-east")).await.expect("the port is ours");
        let serving = tonic::transport::Server::builder().add_service(MediaServer::new(App));
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(app)));

        let mut admins = BTreeMap::new();
        for admin in mesh.admins("media") {
            let config: Value =
                serde_json::from_str(&http_get(admin, "/config").await.expect("/config")).expect("JSON");
            admins.insert(config["membership"]["instance"].as_str().expect("an instance").to_owned(), admin);
        }
        let address = mesh.mesh_file().expect("mesh.json")["controlPlane"]["policy"].as_str().expect("one").to_owned();
        let expected = ServiceName::try_from(control_plane::POLICY).expect("a name");
        let channel = grpc::channel(address, &mesh.operator().expect("credentials"), &expected);
        let traffic = Traffic::start(mesh.outbound("wiki", "us-east")).await;
        let world = Self { mesh, channel, admins, traffic };
        world.traffic.passes(50).await;
        until("all sidecars follow", async || world.followers().await.len() >= SIDECARS).await;
        until("it is known that these calls pass", async || world.passing().await > 0).await;
        world
    }

    fn client(&self) -> PolicyClient<Channel> {
        PolicyClient::new(self.channel.clone())
    }

    /// Calls that the record knows.
    async fn passing(&self) -> u64 {
        let Ok(flows) = self.client().flows(FlowsRequest::default()).await else { return 0 };
        let flows = flows.into_inner().flows.into_iter().filter_map(|total| total.flow);
        flows.filter(|flow| flow.path == GET && flow.decision() == Decision::Allowed).map(|flow| flow.count).sum()
    }

    async fn followers(&self) -> Vec<FollowerStatus> {
        let mut client = ReplicationClient::new(self.channel.clone());
        let Ok(status) = client.status(StatusRequest::default()).await else { return Vec::new() };
        let allowlist = status.into_inner().kinds.into_iter().filter(|kind| kind.kind == "allowlist");
        let all = allowlist.flat_map(|kind| kind.followers);
        all.filter(|follower| self.admins.contains_key(&follower.instance)).collect()
    }

    /// Every sidecar of media has come to this revision.
    async fn all_have(&self, at: PolicyRevision) {
        until("every sidecar has the policy", async || {
            let followers = self.followers().await;
            let has = |follower: &&FollowerStatus| {
                let held = follower.acknowledged.unwrap_or_default();
                (held.epoch, held.revision) >= (at.epoch, at.revision)
            };
            followers.iter().filter(has).count() == SIDECARS
        })
        .await;
    }

    async fn roll_out(&self, methods: &[&str], hold_seconds: u32) -> ApplyResponse {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(self.mesh.policy_dir()).expect("the folder") {
            let entry = entry.expect("an entry");
            let path = entry.file_name().into_string().expect("a name");
            let text = std::fs::read_to_string(entry.path()).expect("a file");
            files.push(PolicyFile { text: if path == "policy.yaml" { policy(methods) } else { text }, path });
        }
        let plan = RolloutPlan { canary_percent: PERCENT, hold_seconds, services: Vec::new() };
        let request = ApplyRequest { files, plan: Some(plan), ..ApplyRequest::default() };
        let response = self.client().apply(request).await.expect("it is taken").into_inner();
        assert!(response.problems.is_empty() && response.conflict.is_none(), "{response:?}");
        response
    }

    async fn status(&self) -> Option<RolloutStatus> {
        // It may be away just now.
        self.client().rollout(RolloutRequest {}).await.ok()?.into_inner().rollout
    }

    async fn rollout(&self, what: &str, is: impl Fn(&RolloutStatus) -> bool) -> RolloutStatus {
        let mut last = None;
        until(what, async || {
            last = self.status().await;
            last.as_ref().is_some_and(&is)
        })
        .await;
        last.expect("it has come true")
    }

    /// The last change of the policy, once its records are written.
    async fn last(&self) -> (PolicyRevision, Action) {
        let mut last = None;
        until("the last change is complete", async || {
            let history = self.client().history(HistoryRequest { limit: 1 }).await;
            let entries = history.map(|history| history.into_inner().entries).unwrap_or_default();
            last = entries.first().and_then(|entry| Some((entry.revision?, entry.action())));
            last.is_some()
        })
        .await;
        last.expect("it has come true")
    }

    /// Refusals that each sidecar of media has made so far, of those that made some.
    async fn refusals(&self) -> BTreeMap<&str, u64> {
        let mut refusals = BTreeMap::new();
        for (instance, admin) in &self.admins {
            let metrics = http_get(*admin, "/metrics").await.expect("/metrics");
            let of = |line: &&str| line.starts_with("tenon_refusals_total") && line.contains("PATH_NOT_ALLOWED");
            let counts = metrics.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            let refused: u64 = counts.sum();
            if refused > 0 {
                refusals.insert(instance.as_str(), refused);
            }
        }
        refusals
    }
}

/// Refuses the path that wiki uses: one of twenty does so, for a moment.
async fn a_policy_that_refuses_what_is_used_halts_by_itself(world: &World) {
    let before = world.traffic.counts();
    let staged = world.roll_out(&["Delete"], 600).await;
    let halted = world.rollout("it halts", |status| status.state() != State::Running).await;
    assert_eq!(halted.state(), State::Halted, "{halted:?}");
    assert_eq!((halted.touched, halted.canaries.len()), (20, 1));
    let canary = halted.canaries[0].instance.as_str();
    let says = format!("{canary} refused what passed before: wiki → media {GET}: ");
    assert!(halted.reason.starts_with(&says) && halted.reason.contains("rule read of media"), "{}", halted.reason);
    assert_eq!((halted.refused[0].path.as_str(), halted.refused[0].reason.as_str()), (GET, "PATH_NOT_ALLOWED"));

    let (back, action) = world.last().await;
    assert_eq!(action, Action::RolloutHalted);
    assert!((back.epoch, back.revision) > (staged.epoch, staged.revision));
    world.all_have(back).await;
    // A call that was decided before has its answer by now.
    world.traffic.passes(u64::from(CALLERS)).await;
    let (passed, refused, failed) = since(before, world.traffic.counts());
    let refusals = world.refusals().await;
    assert!(refused > 0 && failed == 0, "{passed} passed, {refused} were refused, {failed} failed");
    assert_eq!(refusals.keys().collect::<Vec<_>>(), [&canary], "nobody else has refused anything");
    assert_eq!(refusals[canary], refused);
    // Of two that are drawn for each call, the better one is taken: one of twenty gets a tenth at the very most. What is
    // beyond that is chance, in so few calls.
    let most = 2.0 * PERCENT / 100.0 * (passed + refused) as f64;
    assert!(refused as f64 <= most + 3.0 * most.sqrt() + 1.0, "{refused} refused, {passed} passed");

    let (_, refused, failed) = world.traffic.passes(300).await;
    assert_eq!((refused, failed), (0, 0), "after everybody has the old policy again");
}

/// The policy service is killed while the canary is held.
async fn a_good_one_completes_although_the_policy_service_is_killed(world: &World) {
    let before = world.traffic.counts();
    world.roll_out(&["Get", "List"], 8).await;
    let held = world.rollout("it is held", |status| status.held_seconds >= 2).await;
    assert_eq!(held.state(), State::Running, "{held:?}");
    assert!(held.canaries[0].acknowledged);
    let pid = world.mesh.service("policy").expect("it runs");
    signal(pid, Signal::KILL).expect("killed");
    until("another one runs", async || world.mesh.service("policy").is_ok_and(|other| other != pid)).await;
    let completed = world.rollout("it completes", |status| status.state() != State::Running).await;
    assert_eq!((completed.state(), completed.held_seconds), (State::Completed, 8), "{completed:?}");
    assert_eq!(completed.canaries, held.canaries);
    let (at, action) = world.last().await;
    assert_eq!(action, Action::RolloutCompleted);
    world.all_have(at).await;
    let (passed, refused, failed) = since(before, world.traffic.counts());
    assert!(passed > 0 && (refused, failed) == (0, 0), "{passed} passed, {refused} were refused, {failed} failed");
    // Enforced: what is new passes, whoever is asked.
    let outbound = world.mesh.outbound("wiki", "us-east");
    let mut media = MediaClient::new(channel(outbound, "media").await.expect("the sidecar answers"));
    for _ in 0..10 * SIDECARS {
        assert_eq!(outcome(&media.list(ListRequest {}).await), "ALLOWED");
    }
    assert_eq!(outcome(&media.delete(DeleteRequest { id: "one".into() }).await), "PATH_NOT_ALLOWED");
}

/// To where it was before the rollout that has completed.
async fn a_rollback_during_a_rollout_ends_it(world: &World) {
    let entries = world.client().history(HistoryRequest::default()).await.expect("a history").into_inner().entries;
    let first = entries.last().and_then(|entry| entry.revision);
    world.roll_out(&["Get", "Delete"], 600).await;
    world.rollout("it is held", |status| status.held_seconds >= 1).await;
    let back = RollbackRequest { to: first, ..RollbackRequest::default() };
    let back = world.client().rollback(back).await.expect("it goes back").into_inner();
    let ended = world.status().await.expect("a rollout");
    assert_eq!(
        (ended.state(), ended.reason.starts_with("another policy was applied")),
        (State::Ended, true),
        "{ended:?}"
    );
    world.all_have(PolicyRevision { epoch: back.epoch, revision: back.revision }).await;
    let outbound = world.mesh.outbound("wiki", "us-east");
    let mut media = MediaClient::new(channel(outbound, "media").await.expect("the sidecar answers"));
    for _ in 0..5 * SIDECARS {
        assert_eq!(outcome(&media.list(ListRequest {}).await), "PATH_NOT_ALLOWED");
        assert_eq!(outcome(&media.delete(DeleteRequest { id: "one".into() }).await), "PATH_NOT_ALLOWED");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_sidecars_try_a_policy_one_first() {
    let world = World::start().await;
    a_policy_that_refuses_what_is_used_halts_by_itself(&world).await;
    a_good_one_completes_although_the_policy_service_is_killed(&world).await;
    a_rollback_during_a_rollout_ends_it(&world).await;
    let World { mut mesh, traffic, .. } = world;
    let (_, _, failed) = traffic.stop().await;
    assert_eq!(failed, 0);
    mesh.down().expect("it ends well");
}
