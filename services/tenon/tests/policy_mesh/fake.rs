//! A policy service that says what a test tells it to, over mTLS, and the data folder of its mesh.

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    pin::Pin,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh_config::{SourceFile, compile, names::ServiceName, parse};
use mesh_identity::{Identity, OperatorRole, clock, grpc::Server, tls::Clients};
use serde_json::Value;
use tenon::{
    data::Data,
    mesh_file::{ControlPlane, MeshFile},
};
use tenon_proto::{
    policy::v1::{
        ApplyRequest, ApplyResponse, DescribeRequest, DescribeResponse, EndRolloutRequest, ExplainRequest,
        ExplainResponse, FlowsRequest, FlowsResponse, HistoryRequest, HistoryResponse, KindPosition, RollbackRequest,
        RolloutRequest, RolloutResponse, SignInRequest, SignInResponse, TapRequest, TapResponse,
        policy_server::{Policy, PolicyServer},
    },
    replication::v1::{
        FetchRequest, FetchResponse, FollowRequest, FollowResponse, FollowerStatus, KindStatus, Position,
        StatusRequest, StatusResponse,
        replication_server::{Replication, ReplicationServer},
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::Routes};

/// What the fake answers, and what it was asked.
#[derive(Default)]
pub struct Script {
    pub describe: DescribeResponse,
    pub apply: ApplyResponse,
    pub history: HistoryResponse,
    /// The last one stays.
    pub rollouts: VecDeque<RolloutResponse>,
    pub flows: FlowsResponse,
    pub explain: ExplainResponse,
    /// The last one stays.
    pub statuses: VecDeque<Vec<KindStatus>>,
    pub applied: Vec<ApplyRequest>,
    pub rolled_back: Vec<RollbackRequest>,
    pub ended: Vec<EndRolloutRequest>,
}

/// The next one, or the last one again.
fn next<T: Clone>(queue: &mut VecDeque<T>) -> Option<T> {
    if queue.len() > 1 { queue.pop_front() } else { queue.front().cloned() }
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Script>>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Policy for Fake {
    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyResponse> {
        let mut script = self.0.lock().unwrap();
        script.applied.push(request.into_inner());
        Ok(Response::new(script.apply.clone()))
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Answer<DescribeResponse> {
        Ok(Response::new(self.0.lock().unwrap().describe.clone()))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Answer<HistoryResponse> {
        let mut history = self.0.lock().unwrap().history.clone();
        history.entries.truncate(request.into_inner().limit as usize);
        Ok(Response::new(history))
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Answer<ApplyResponse> {
        let mut script = self.0.lock().unwrap();
        script.rolled_back.push(request.into_inner());
        Ok(Response::new(script.apply.clone()))
    }

    async fn rollout(&self, _: Request<RolloutRequest>) -> Answer<RolloutResponse> {
        Ok(Response::new(next(&mut self.0.lock().unwrap().rollouts).unwrap_or_default()))
    }

    async fn end_rollout(&self, request: Request<EndRolloutRequest>) -> Answer<RolloutResponse> {
        let mut script = self.0.lock().unwrap();
        script.ended.push(request.into_inner());
        Ok(Response::new(next(&mut script.rollouts).unwrap_or_default()))
    }

    async fn flows(&self, _: Request<FlowsRequest>) -> Answer<FlowsResponse> {
        Ok(Response::new(self.0.lock().unwrap().flows.clone()))
    }

    async fn explain(&self, _: Request<ExplainRequest>) -> Answer<ExplainResponse> {
        Ok(Response::new(self.0.lock().unwrap().explain.clone()))
    }

    type TapStream = futures_util::stream::Pending<Result<TapResponse, Status>>;

    async fn tap(&self, _: Request<TapRequest>) -> Answer<Self::TapStream> {
        Err(Status::unimplemented("no calls are made here"))
    }

    async fn sign_in(&self, _: Request<SignInRequest>) -> Answer<SignInResponse> {
        Err(Status::unimplemented("there is no dashboard here"))
    }
}

#[tonic::async_trait]
impl Replication for Fake {
    type FollowStream = Pin<Box<dyn futures_util::Stream<Item = Result<FollowResponse, Status>> + Send>>;

    async fn follow(&self, _: Request<Streaming<FollowRequest>>) -> Answer<Self::FollowStream> {
        Err(Status::unimplemented("nobody follows the fake"))
    }

    async fn fetch(&self, _: Request<FetchRequest>) -> Answer<FetchResponse> {
        Err(Status::unimplemented("nobody follows the fake"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let kinds = next(&mut self.0.lock().unwrap().statuses).unwrap_or_default();
        Ok(Response::new(StatusResponse { kinds }))
    }
}

/// A mesh that consists of the fake alone. Dropping it ends it.
pub struct Mesh {
    pub dir: tempfile::TempDir,
    script: Arc<Mutex<Script>>,
    _runtime: tokio::runtime::Runtime,
}

impl Mesh {
    /// In force is [`POLICY`] at revision 7.10.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::new(dir.path());
        let (domain, now) = ("demo.example".parse().unwrap(), clock::unix_seconds());
        let ca = identity::Ca::create(&data.ca(), &domain, None, now).unwrap();
        let operator = ca.issue_operator("ann", OperatorRole::Admin, Duration::from_secs(600), now).unwrap();
        let name = ServiceName::try_from("tenon-policy").unwrap();
        let svid = ca.issue_service(&name, Duration::from_secs(600), now).unwrap();
        let identity = Identity::new(svid, ca.bundle());

        fs::create_dir_all(data.operator_certificate().parent().unwrap()).unwrap();
        fs::write(data.operator_certificate(), operator.chain_pem()).unwrap();
        fs::write(data.operator_key(), operator.key_pem()).unwrap();
        fs::write(data.trust_bundle(), ca.bundle().to_pem()).unwrap();

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script { describe: described(POLICY), ..Script::default() }));
        let fake = Fake(Arc::clone(&script));
        let routes = Routes::new(PolicyServer::new(fake.clone())).add_service(ReplicationServer::new(fake));
        let server = Server {
            listener,
            identity,
            clients: Clients::Required,
            authorization: &policy::AUTHORIZATION,
            routes,
            recorder: None,
        };
        runtime.spawn(server.run(CancellationToken::new()));

        let control_plane: Value = serde_json::json!({
            "identity": address, "keyRepository": address, "tcs": address, "policy": address,
        });
        let control_plane: ControlPlane = serde_json::from_value(control_plane).unwrap();
        let file = MeshFile {
            mesh: "demo".into(),
            trust_domain: "demo.example".into(),
            trust_bundle_sha256: ca.bundle().pin(),
            control_plane,
            sidecars: Vec::new(),
        };
        file.write(&data).unwrap();
        Self { dir, script, _runtime: runtime }
    }

    /// Tells the fake what to answer, or looks at what it was asked.
    pub fn script<T>(&self, tell: impl FnOnce(&mut Script) -> T) -> T {
        tell(&mut self.script.lock().unwrap())
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// A folder with this policy.
    pub fn folder(&self, policy: &str) -> String {
        let file = self.write("policy/mesh.yaml", policy);
        Path::new(&file).parent().unwrap().display().to_string()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TENON_")) {
            command.env_remove(name);
        }
        command.args(args).arg("--data").arg(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Exit code, standard output and standard error.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        outcome(&self.command(args).output().unwrap())
    }

    pub fn json(&self, args: &[&str]) -> (i32, Value) {
        let (code, out, err) = self.run(&[args, &["-o", "json"]].concat());
        (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}")))
    }
}

pub fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

pub const POLICY: &str = "apiVersion: tenon.dev/v1
kind: Mesh
metadata: {name: demo}
spec: {trustDomain: demo.example, regions: [us-east]}
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
kind: Allowlist
metadata: {name: media}
spec:
  service: media
  rules:
    - name: read
      callers: [wiki]
      paths: [/media.v1.Media/Get, /media.v1.Media/List]
";

/// What a policy service that has these files says.
pub fn described(policy: &str) -> DescribeResponse {
    let files = [SourceFile { path: "mesh.yaml".into(), text: policy.into() }];
    let records = compile(&parse(&files).unwrap());
    DescribeResponse {
        mesh: "demo".into(),
        trust_domain: "demo.example".into(),
        services: records.allowlists.into_values().collect(),
        routes: records.routes.into_values().collect(),
        epoch: 7,
        revision: 10,
        source: "applied by operator ann".into(),
        positions: positions(10, 3),
        ..Default::default()
    }
}

pub fn positions(allowlist: u64, route: u64) -> Vec<KindPosition> {
    let position = |kind: &str, revision| KindPosition { kind: kind.into(), epoch: 7, revision };
    vec![position("allowlist", allowlist), position("route", route)]
}

/// Instance, revision of its allowlist, refusal: what the status says of sidecars of media.
pub fn status(sidecars: &[(&str, u64, &str)]) -> Vec<KindStatus> {
    let follower = |instance: &str, revision, nack: &str| FollowerStatus {
        instance: instance.into(),
        spiffe_id: "spiffe://demo.example/svc/media".into(),
        acknowledged: Some(Position { epoch: 7, revision }),
        nack: nack.into(),
        connected_unix_seconds: 1,
        mode: 1,
    };
    let kind = |kind: &str, followers| KindStatus { kind: kind.into(), followers, ..Default::default() };
    vec![
        kind("allowlist", sidecars.iter().map(|(instance, at, nack)| follower(instance, *at, nack)).collect()),
        kind("route", sidecars.iter().map(|(instance, ..)| follower(instance, 9, "")).collect()),
    ]
}
