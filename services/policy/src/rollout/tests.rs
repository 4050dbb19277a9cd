//! Rollouts over mTLS, with followers that behave as sidecars do; and several policy services on one store.

mod replicas;

use std::{path::Path, time::Duration};

use journal::Store;
use mesh_identity::{
    Identity,
    grpc::channel,
    testing::{Ca, service},
};
use replica::{Follow, Raw, Replica, Value as _};
use tempfile::TempDir;
use tenon_proto::{
    kind,
    policy::v1::{
        ApplyRequest, ApplyResponse, EndRolloutRequest, Flow, HistoryRequest, PolicyFile, PolicyRevision,
        ReportRequest, RollbackRequest, RolloutRequest, ServicePolicy, fleet_client::FleetClient, flow::Decision,
        policy_client::PolicyClient, report_request,
    },
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, transport::Channel};

use super::*;
use crate::serve::{Config, ServeError, serve};

/// Longer than a busy machine's disk takes to sync.
const LONG: Duration = Duration::from_secs(60);
const GET: &str = "/media.v1.Media/Get";

/// A mesh of media and wiki; media lets wiki call these methods, wiki lets media call `Read`.
fn files(methods: &[&str]) -> Vec<PolicyFile> {
    let mut text = "apiVersion: tenon.dev/v1\nkind: Mesh\nmetadata: {name: test}\n\
                    spec: {trustDomain: test.example, regions: [us-east]}\n"
        .to_owned();
    for (service, caller, methods) in [("media", "wiki", methods), ("wiki", "media", &["Read"][..])] {
        let paths: Vec<String> = methods.iter().map(|method| format!("/media.v1.Media/{method}")).collect();
        text += &format!("---\napiVersion: tenon.dev/v1\nkind: Service\nmetadata: {{name: {service}}}\nspec: {{}}\n");
        text += &format!(
            "---\napiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {{name: {service}}}\nspec:\n  service: {service}\n  \
             rules: [{{name: read, callers: [{caller}], paths: [{}], tenant: none}}]\n",
            paths.join(", ")
        );
    }
    vec![PolicyFile { path: "mesh.yaml".to_owned(), text }]
}

fn plan(hold_seconds: u32) -> RolloutPlan {
    RolloutPlan { canary_percent: 40.0, hold_seconds, services: Vec::new() }
}

struct World {
    ca: Ca,
    dir: TempDir,
}

struct Running {
    address: String,
    operator: Channel,
    client: PolicyClient<Channel>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

/// What a sidecar's clients do.
struct FakeSidecar {
    instance: String,
    allowlist: Replica<Raw>,
    reports: mpsc::Sender<ReportRequest>,
    sequence: u64,
    _ends: DropGuard,
}

impl World {
    fn new() -> Self {
        Self { ca: Ca::new("test.example"), dir: tempfile::tempdir().unwrap() }
    }

    fn store(&self) -> &Path {
        self.dir.path()
    }

    async fn start(&self) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        let config = Config {
            listener,
            store: Store::Embedded(self.store().join("store.redb")),
            state_dir: self.store().to_owned(),
            folder: None,
            accept: Vec::new(),
            identity: self.ca.identity("tenon-policy"),
            dashboard: None,
            tcs: Vec::new(),
        };
        let task = tokio::spawn(serve(config, shutdown.clone()));
        let operator = channel(&address, &self.ca.operator_identity("ann"), &service("tenon-policy"));
        Running { client: PolicyClient::new(operator.clone()), operator, address, shutdown, task }
    }

    /// A sidecar of `name` that has the policy in force; it refuses a policy of which it is a canary, if `stubborn`.
    async fn sidecar(&self, running: &Running, name: &str, number: usize, stubborn: bool) -> FakeSidecar {
        let instance = format!("{name}-{number}");
        let identity: Arc<Identity> = self.ca.identity(name);
        let channel = channel(&running.address, &identity, &service("tenon-policy"));
        let ends = CancellationToken::new();
        let follow = Follow {
            kind: kind::ALLOWLIST,
            instance: instance.clone(),
            parents: vec![channel.clone()],
            state_dir: None,
        };
        let me = instance.clone();
        let accept = move |raw: &Raw| {
            let canary = ServicePolicy::decode(raw.raw()).ok().and_then(|policy| policy.canary);
            match canary.is_some_and(|canary| canary.instances.contains(&me)) && stubborn {
                true => Err("it does not like this".to_owned()),
                false => Ok(()),
            }
        };
        let (allowlist, _) = follow.start_accepting(accept, |_| {}, ends.clone());
        let (reports, sent) = mpsc::channel(16);
        let hello = report_request::Hello { instance: instance.clone(), boot: 1 };
        reports.send(ReportRequest { request: Some(report_request::Request::Hello(hello)) }).await.unwrap();
        let mut responses = FleetClient::new(channel).report(ReceiverStream::new(sent)).await.unwrap().into_inner();
        tokio::spawn(async move { while let Some(Ok(_)) = responses.next().await {} });
        let sidecar = FakeSidecar { instance, allowlist, reports, sequence: 0, _ends: ends.drop_guard() };
        sidecar.until(|_| true).await;
        sidecar
    }

    /// Two sidecars of media and one of wiki, with a policy that lets wiki call Get and Put.
    async fn mesh(&self) -> (Running, Vec<FakeSidecar>) {
        let mut running = self.start().await;
        apply(&mut running, &["Get", "Put"], None).await.unwrap();
        let mut sidecars = Vec::new();
        for (name, number) in [("media", 1), ("media", 2), ("wiki", 1)] {
            sidecars.push(self.sidecar(&running, name, number, false).await);
        }
        until_followed_by(&running, 3).await;
        (running, sidecars)
    }
}

/// The service lists a follower before it acknowledges anything; and reports are taken from then on.
async fn until_followed_by(running: &Running, sidecars: usize) {
    let mut client = tenon_proto::replication::v1::replication_client::ReplicationClient::new(running.operator.clone());
    let asking = async {
        loop {
            let kinds =
                client.status(tenon_proto::replication::v1::StatusRequest::default()).await.unwrap().into_inner().kinds;
            let followers = kinds.iter().find(|it| it.kind == kind::ALLOWLIST).map_or(0, |it| it.followers.len());
            if followers >= sidecars {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, asking).await.expect("all follow");
}

async fn apply(running: &mut Running, methods: &[&str], plan: Option<RolloutPlan>) -> Result<ApplyResponse, Status> {
    let request = ApplyRequest { files: files(methods), plan, note: "a note".to_owned(), ..ApplyRequest::default() };
    running.client.apply(request).await.map(tonic::Response::into_inner)
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    async fn status(&mut self) -> Option<RolloutStatus> {
        self.client.rollout(RolloutRequest {}).await.unwrap().into_inner().rollout
    }

    async fn until(&mut self, wanted: impl Fn(&RolloutStatus) -> bool) -> RolloutStatus {
        let asking = async {
            loop {
                if let Some(status) = self.status().await.filter(&wanted) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, asking).await.expect("the rollout becomes as wanted")
    }

    async fn end(&mut self, complete: bool) -> Result<RolloutStatus, Status> {
        let request = EndRolloutRequest { complete, note: "enough".to_owned() };
        self.client.end_rollout(request).await.map(|response| response.into_inner().rollout.unwrap())
    }

    async fn actions(&mut self) -> Vec<(Action, String)> {
        let entries = self.client.history(HistoryRequest::default()).await.unwrap().into_inner().entries;
        entries.iter().map(|entry| (entry.action(), entry.by.clone())).collect()
    }
}

impl FakeSidecar {
    async fn until(&self, wanted: impl Fn(&ServicePolicy) -> bool) {
        let service = self.instance.split('-').next().unwrap();
        let policy = || self.allowlist.get(service).and_then(|raw| ServicePolicy::decode(raw.raw()).ok());
        let mut positions = self.allowlist.subscribe();
        let waiting = positions.wait_for(|_| policy().is_some_and(|policy| wanted(&policy)));
        tokio::time::timeout(LONG, waiting).await.expect("the policy becomes as wanted").unwrap();
    }

    async fn report(&mut self, path: &str, decision: Decision) {
        self.sequence += 1;
        let flow = Flow {
            caller: "wiki".to_owned(),
            service: "media".to_owned(),
            path: path.to_owned(),
            decision: decision.into(),
            reason: if decision == Decision::Refused { "PATH_NOT_ALLOWED".to_owned() } else { String::new() },
            count: 2,
        };
        let batch = report_request::FlowBatch { sequence: self.sequence, flows: vec![flow] };
        let request = Some(report_request::Request::Flows(batch));
        self.reports.send(ReportRequest { request }).await.unwrap();
    }
}

/// The one that is the canary, and the others.
fn split(sidecars: Vec<FakeSidecar>, status: &RolloutStatus) -> (FakeSidecar, Vec<FakeSidecar>) {
    let [canary] = &status.canaries[..] else { panic!("{status:?}") };
    let (mut canaries, others): (Vec<_>, Vec<_>) = sidecars.into_iter().partition(|it| it.instance == canary.instance);
    (canaries.remove(0), others)
}

fn methods(policy: &ServicePolicy) -> Vec<&str> {
    policy.rules[0].paths.iter().map(|path| path.rsplit('/').next().unwrap()).collect()
}

#[tokio::test]
async fn a_rollout_begins_with_a_share_completes_after_its_hold_and_is_then_everybodys() {
    let world = World::new();
    let (mut running, sidecars) = world.mesh().await;
    assert_eq!(running.status().await, None);
    let response = apply(&mut running, &["Get", "Put", "Erase"], Some(plan(2))).await.unwrap();
    assert!(response.problems.is_empty() && response.said.is_empty() && response.changes > 0, "{response:?}");
    let begun = running.until(|status| status.revision.is_some()).await;
    let staged = PolicyRevision { epoch: response.epoch, revision: response.revision };
    assert_eq!((begun.revision, begun.touched, begun.by.as_str()), (Some(staged), 2, "operator ann"));
    let (mut canary, others) = split(sidecars, &begun);
    canary.until(|policy| policy.canary.is_some() && methods(policy) == ["Get", "Put"]).await;
    running.until(|status| status.held_seconds >= 1).await;
    assert!(running.status().await.unwrap().canaries[0].acknowledged);
    let completed = async {
        loop {
            canary.report(GET, Decision::Allowed).await;
            let status = running.status().await.unwrap();
            if status.state() != State::Running {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let completed = tokio::time::timeout(LONG, completed).await.expect("it completes");
    assert_eq!((completed.state(), completed.held_seconds, completed.reason.as_str()), (State::Completed, 2, ""));
    for sidecar in others.iter().filter(|it| it.instance.starts_with("media")).chain([&canary]) {
        sidecar.until(|policy| policy.canary.is_none() && methods(policy) == ["Get", "Put", "Erase"]).await;
    }
    let (ann, itself) = ("operator ann".to_owned(), "rollout".to_owned());
    let steps = [(Action::RolloutCompleted, itself), (Action::RolloutStarted, ann.clone()), (Action::Applied, ann)];
    assert_eq!(running.actions().await, steps);
    running.stop().await;
}

#[tokio::test]
async fn refusals_of_what_passed_before_halt_it_and_ordinary_ones_do_not() {
    let world = World::new();
    let (mut running, mut sidecars) = world.mesh().await;
    for sidecar in sidecars.iter_mut().filter(|it| it.instance.starts_with("media")) {
        sidecar.report(GET, Decision::Allowed).await;
    }
    apply(&mut running, &["Put"], Some(plan(600))).await.unwrap();
    let begun = running.until(|status| status.revision.is_some()).await;
    let (mut canary, others) = split(sidecars, &begun);
    canary.until(|policy| policy.canary.is_some()).await;
    canary.report("/media.v1.Media/Nonsense", Decision::Refused).await;
    canary.report("/media.v1.Media/Put", Decision::Allowed).await;
    running.until(|status| status.held_seconds >= 1).await;
    canary.report(GET, Decision::Refused).await;
    let halted = running.until(|status| status.state() != State::Running).await;
    assert_eq!(halted.state(), State::Halted);
    let reason = format!(
        "{} refused what passed before: wiki → media {GET}: 2 calls, PATH_NOT_ALLOWED (rule read of media \
         (mesh.yaml:16) missed by method: it allows /media.v1.Media/Put)",
        canary.instance
    );
    assert_eq!(halted.reason, reason);
    assert_eq!((halted.refused.len(), halted.refused[0].path.as_str(), halted.refused[0].count), (1, GET, 2));
    for sidecar in others.iter().filter(|it| it.instance.starts_with("media")).chain([&canary]) {
        sidecar.until(|policy| policy.canary.is_none() && methods(policy) == ["Get", "Put"]).await;
    }
    let entries = running.client.history(HistoryRequest { limit: 1 }).await.unwrap().into_inner().entries;
    assert_eq!((entries[0].action(), entries[0].note.as_str()), (Action::RolloutHalted, reason.as_str()));
    running.stop().await;
}

/// Named after a canary that told what it refused before anybody knew that it was one.
#[tokio::test]
async fn what_a_canary_refuses_at_once_halts_it_as_well() {
    let world = World::new();
    let (mut running, mut sidecars) = world.mesh().await;
    for sidecar in sidecars.iter_mut().filter(|it| it.instance.starts_with("media")) {
        sidecar.report(GET, Decision::Allowed).await;
    }
    apply(&mut running, &["Put"], Some(plan(600))).await.unwrap();
    let begun = running.status().await.unwrap();
    let (mut canary, _others) = split(sidecars, &begun);
    canary.until(|policy| policy.canary.is_some()).await;
    canary.report(GET, Decision::Refused).await;
    let halted = running.until(|status| status.state() != State::Running).await;
    assert_eq!((halted.state(), halted.refused.len()), (State::Halted, 1), "{halted:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_canary_that_refuses_the_policy_halts_it() {
    let world = World::new();
    let mut running = world.start().await;
    apply(&mut running, &["Get"], None).await.unwrap();
    let stubborn = world.sidecar(&running, "media", 1, true).await;
    until_followed_by(&running, 1).await;
    apply(&mut running, &["Get", "Put"], Some(plan(600))).await.unwrap();
    let halted = running.until(|status| status.state() != State::Running).await;
    assert_eq!(halted.state(), State::Halted);
    assert!(halted.reason.starts_with("refused by media-1: ") && halted.reason.ends_with("it does not like this"));
    assert!(halted.canaries[0].nack.ends_with("it does not like this"), "{halted:?}");
    stubborn.until(|policy| policy.canary.is_none() && methods(policy) == ["Get"]).await;
    running.stop().await;
}

#[tokio::test]
async fn a_plan_that_nobody_can_try_changes_nothing_and_one_that_concerns_nobody_is_applied_at_once() {
    let world = World::new();
    let mut running = world.start().await;
    let at_once = apply(&mut running, &["Get"], Some(plan(600))).await.unwrap();
    assert!(at_once.said.contains("applied everywhere at once"), "the first policy: {}", at_once.said);
    let nobody = apply(&mut running, &["Put"], Some(plan(600))).await.unwrap_err();
    assert_eq!(nobody.code(), Code::FailedPrecondition);
    assert!(nobody.message().contains("nobody to try it on"), "{}", nobody.message());
    for (wrong, said) in [
        (RolloutPlan { canary_percent: 0.0, ..plan(1) }, "0 % of the sidecars"),
        (RolloutPlan { services: vec!["meda".to_owned()], ..plan(1) }, "unknown service \"meda\""),
        (
            RolloutPlan { services: vec!["wiki".to_owned()], ..plan(1) },
            "the policy of service \"wiki\" does not change",
        ),
    ] {
        let refused = apply(&mut running, &["Put"], Some(wrong)).await.unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains(said), "{refused}");
    }
    let wiki = world.sidecar(&running, "wiki", 1, false).await;
    until_followed_by(&running, 1).await;
    let others = apply(&mut running, &["Put"], Some(plan(600))).await.unwrap_err();
    assert!(others.message().contains("nobody to try it on"), "only wiki is there: {}", others.message());
    let same = apply(&mut running, &["Get"], Some(plan(600))).await.unwrap();
    assert!(same.said.contains("applied everywhere at once") && same.changes == 0);
    let expected = Some(PolicyRevision { epoch: same.epoch, revision: same.revision - 1 });
    let request = ApplyRequest { files: files(&["Put"]), plan: Some(plan(1)), expected, ..ApplyRequest::default() };
    let _media = world.sidecar(&running, "media", 1, false).await;
    until_followed_by(&running, 2).await;
    let conflict = running.client.apply(request).await.unwrap().into_inner().conflict.unwrap();
    assert_eq!(conflict.in_force, Some(PolicyRevision { epoch: same.epoch, revision: same.revision }));
    assert_eq!((running.status().await, running.actions().await.len()), (None, 1));
    drop(wiki);
    running.stop().await;
}

#[tokio::test]
async fn an_operator_completes_it_gives_it_up_or_rolls_back() {
    let world = World::new();
    let (mut running, sidecars) = world.mesh().await;
    let none = running.end(true).await.unwrap_err();
    assert_eq!((none.code(), none.message()), (Code::FailedPrecondition, "no rollout runs"));
    let before = running.client.history(HistoryRequest::default()).await.unwrap().into_inner().entries[0].revision;

    apply(&mut running, &["Get"], Some(plan(600))).await.unwrap();
    let given_up = running.end(false).await.unwrap();
    assert_eq!((given_up.state(), given_up.reason.as_str()), (State::Ended, "given up by operator ann: enough"));
    sidecars[0].until(|policy| policy.canary.is_none() && methods(policy) == ["Get", "Put"]).await;

    apply(&mut running, &["Get"], Some(plan(600))).await.unwrap();
    let completed = running.end(true).await.unwrap();
    assert_eq!((completed.state(), completed.reason.as_str()), (State::Completed, "completed by operator ann: enough"));
    sidecars[0].until(|policy| policy.canary.is_none() && methods(policy) == ["Get"]).await;

    apply(&mut running, &["Erase"], Some(plan(600))).await.unwrap();
    running.until(|status| status.canaries.iter().all(|canary| canary.acknowledged)).await;
    let back = RollbackRequest { to: before, ..RollbackRequest::default() };
    running.client.rollback(back).await.unwrap();
    let ended = running.status().await.unwrap();
    assert_eq!((ended.state(), ended.reason.as_str()), (State::Ended, "another policy was applied, by operator ann"));
    for sidecar in &sidecars[..2] {
        sidecar.until(|policy| policy.canary.is_none() && methods(policy) == ["Get", "Put"]).await;
    }
    let steps: Vec<Action> = running.actions().await.into_iter().map(|(action, _)| action).collect();
    let [rolled_back, ended, started, completed, ..] = steps[..] else { panic!("{steps:?}") };
    assert_eq!((rolled_back, ended), (Action::RolledBack, Action::RolloutEnded));
    assert_eq!((started, completed), (Action::RolloutStarted, Action::RolloutCompleted));
    running.stop().await;
}

#[tokio::test]
async fn a_restarted_service_takes_it_up_where_it_was() {
    let world = World::new();
    let (mut running, sidecars) = world.mesh().await;
    apply(&mut running, &["Get"], Some(plan(10))).await.unwrap();
    let held = running.until(|status| status.held_seconds >= 7).await;
    drop(sidecars);
    running.stop().await;

    let mut running = world.start().await;
    let again = running.status().await.unwrap();
    // What is kept is five seconds old at most; of what is not known it is held again.
    assert!(again.state() == State::Running && (2..=8).contains(&again.held_seconds), "{again:?}");
    let number = held.canaries[0].instance.rsplit('-').next().unwrap().parse().unwrap();
    let mut canary = world.sidecar(&running, "media", number, false).await;
    let completed = async {
        loop {
            canary.report(GET, Decision::Allowed).await;
            let status = running.status().await.unwrap();
            if status.state() != State::Running {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let completed = tokio::time::timeout(LONG, completed).await.expect("it completes");
    assert_eq!((completed.state(), completed.held_seconds), (State::Completed, 10), "{completed:?}");
    canary.until(|policy| policy.canary.is_none() && methods(policy) == ["Get"]).await;
    running.stop().await;
}
