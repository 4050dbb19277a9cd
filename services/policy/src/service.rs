//! `tenon.policy.v1.Policy`, for operators.

use std::sync::Arc;

use journal::{Position, ReadError};
use mesh_config::{MAX_FILE_BYTES, Problem, Problems, SourceFile};
use mesh_identity::{
    OperatorRole, Peer,
    grpc::{Rpc, Subject, Who},
};
use tenon_proto::policy::v1::{
    ApplyRequest, ApplyResponse, Attestor, Conflict, DescribeRequest, DescribeResponse, EndRolloutRequest, Endpoint,
    ExplainRequest, ExplainResponse, FlowsRequest, FlowsResponse, HistoryRequest, HistoryResponse, PolicyFile,
    PolicyRevision, Quarantine, RollbackRequest, RolloutRequest, RolloutResponse, Route, ServicePolicy, SignInRequest,
    SignInResponse, TapFilter, TapRequest,
    policy_server::{Policy, PolicyServer},
};
use tonic::{Request, Response, Status};

use crate::{
    dashboard::Dashboard,
    engine::{
        Applied, ApplyError, Author, Engine, InForce, Origin, chain, kind_positions, records_of, to_proto, to_revision,
    },
    fleet::{Fleet, TapStream},
    rollout::{self, Proposed, Rollouts},
};

/// Who may call what of this service.
pub(crate) const POLICY_AUTHORIZATION: &[Rpc] = &[
    Rpc { path: "/tenon.policy.v1.Policy/Apply", who: Who::Operators(OperatorRole::Operator) },
    Rpc { path: "/tenon.policy.v1.Policy/Describe", who: Who::Operators(OperatorRole::Viewer) },
    Rpc { path: "/tenon.policy.v1.Policy/History", who: Who::Operators(OperatorRole::Viewer) },
    Rpc { path: "/tenon.policy.v1.Policy/Rollback", who: Who::Operators(OperatorRole::Operator) },
    Rpc { path: "/tenon.policy.v1.Policy/Rollout", who: Who::Operators(OperatorRole::Viewer) },
    Rpc { path: "/tenon.policy.v1.Policy/EndRollout", who: Who::Operators(OperatorRole::Operator) },
    Rpc { path: "/tenon.policy.v1.Policy/Flows", who: Who::Operators(OperatorRole::Viewer) },
    Rpc { path: "/tenon.policy.v1.Policy/Explain", who: Who::Operators(OperatorRole::Viewer) },
    Rpc { path: "/tenon.policy.v1.Policy/Tap", who: Who::Operators(OperatorRole::Operator) },
    Rpc { path: "/tenon.policy.v1.Policy/SignIn", who: Who::Operators(OperatorRole::Viewer) },
];

/// The largest policy that can be applied, all files together.
const MAX_POLICY_BYTES: usize = 64 << 20;
/// Entries of the history, when nobody says how many.
const USUAL_HISTORY: usize = 100;
/// Of a note, in characters.
const MAX_NOTE: usize = 1000;

/// Expects the [`Peer`] in the extensions of each request.
pub(crate) struct PolicyService {
    engine: Arc<Engine>,
    fleet: Arc<Fleet>,
    rollouts: Arc<Rollouts>,
    /// `None`: this process serves none.
    dashboard: Option<Arc<Dashboard>>,
}

impl PolicyService {
    pub fn new(
        engine: Arc<Engine>,
        fleet: Arc<Fleet>,
        rollouts: Arc<Rollouts>,
        dashboard: Option<Arc<Dashboard>>,
    ) -> Self {
        Self { engine, fleet, rollouts, dashboard }
    }

    pub fn into_server(self) -> PolicyServer<Self> {
        PolicyServer::new(self).max_decoding_message_size(MAX_POLICY_BYTES)
    }
}

#[tonic::async_trait]
impl Policy for PolicyService {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let operator = operator(&request)?;
        let subject = Subject::of(&request);
        let ApplyRequest { files, expected, plan, signatures, note } = request.into_inner();
        let steps = if plan.is_some() { ", in steps" } else { "" };
        subject.is(format!("{} files{steps}: {note}", files.len()));
        check_note(&note)?;
        let files = match accept(files) {
            Ok(files) => files,
            Err(problems) => return Ok(Response::new(refused(problems))),
        };
        let (engine, expected) = (Arc::clone(&self.engine), expected.map(position));
        if let Some(plan) = plan {
            let proposed = Proposed { files, signatures, plan, operator, note, expected };
            return rollout::service::begin(Arc::clone(&self.rollouts), proposed).await.map(Response::new);
        }
        let origin = Origin::Operator(operator);
        to_end(async move { engine.apply(files, signatures, origin, note, expected).await }).await
    }

    async fn describe(&self, request: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let described = described(&self.engine, &request.into_inner().service).await;
        described.map(Response::new).map_err(|error| unreadable(&error))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        let limit = match request.into_inner().limit {
            0 => USUAL_HISTORY,
            limit => limit as usize,
        };
        let entries = self.engine.history(limit).await.map_err(|error| unreadable(&error))?;
        Ok(Response::new(HistoryResponse { entries }))
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Result<Response<ApplyResponse>, Status> {
        let operator = operator(&request)?;
        let subject = Subject::of(&request);
        let RollbackRequest { to, expected, note } = request.into_inner();
        subject.is(to.map_or_else(String::new, |to| format!("to {}.{}: {note}", to.epoch, to.revision)));
        check_note(&note)?;
        let to = to.map(position).ok_or_else(|| Status::invalid_argument("to is missing, expected a revision"))?;
        let author = Author::operator(&operator, note, expected.map(position));
        let engine = Arc::clone(&self.engine);
        to_end(async move { engine.rollback(to, &author).await }).await
    }

    async fn rollout(&self, _: Request<RolloutRequest>) -> Result<Response<RolloutResponse>, Status> {
        let rollout = self.rollouts.status().await.map_err(|error| unreadable(&error))?;
        Ok(Response::new(RolloutResponse { rollout }))
    }

    async fn end_rollout(&self, request: Request<EndRolloutRequest>) -> Result<Response<RolloutResponse>, Status> {
        let operator = operator(&request)?;
        let subject = Subject::of(&request);
        let EndRolloutRequest { complete, note } = request.into_inner();
        subject.is(format!("{}: {note}", if complete { "complete" } else { "give up" }));
        check_note(&note)?;
        rollout::service::end(Arc::clone(&self.rollouts), complete, operator, note).await.map(Response::new)
    }

    async fn flows(&self, request: Request<FlowsRequest>) -> Result<Response<FlowsResponse>, Status> {
        self.fleet.flows(request.into_inner()).await.map(Response::new)
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        Subject::of(&request).is(&request.get_ref().request_id);
        self.fleet.explain(request.into_inner()).await.map(Response::new)
    }

    type TapStream = TapStream;

    async fn tap(&self, request: Request<TapRequest>) -> Result<Response<Self::TapStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("who watches is not known: call over mTLS"))?;
        let subject = Subject::of(&request);
        let request = request.into_inner();
        if !request.headers.is_empty() && peer.role != Some(OperatorRole::Admin) {
            return Err(Status::permission_denied("values of headers are told to admins alone: leave the headers out"));
        }
        let TapFilter { service, caller, tenant, path, .. } = request.filter.clone().unwrap_or_default();
        let headers = request.headers.join(",");
        subject
            .is(format!("tenant {tenant:?} service {service:?} caller {caller:?} path {path:?} headers {headers:?}"));
        let stream = self.fleet.tap(request)?;
        tracing::info!(target: "tenon::audit", by = %peer.id, service, caller, tenant, path, headers, "watches calls");
        Ok(Response::new(stream))
    }

    async fn sign_in(&self, request: Request<SignInRequest>) -> Result<Response<SignInResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("who signs in is not known: call over mTLS"))?;
        let dashboard = self.dashboard.as_ref().ok_or_else(|| {
            Status::failed_precondition("this policy service serves no dashboard: start it with --dashboard HOST:PORT")
        })?;
        tracing::info!(target: "tenon::audit", by = %peer.id, "signs in to the dashboard");
        dashboard.sign_in(peer).map(Response::new)
    }
}

/// The policy in force, of one callee or (`service` empty) of all.
pub(crate) async fn described(engine: &Engine, service: &str) -> Result<DescribeResponse, ReadError> {
    let journals = engine.journals();
    // Before the records: who waits until a sidecar has these positions must not wait for what is not there yet.
    let positions = kind_positions(journals.heads().await?);
    let (position, mut services) = records_of::<ServicePolicy>(&*journals.allowlists).await?;
    let (_, mut routes) = records_of::<Route>(&*journals.routes).await?;
    let (_, mut endpoints) = records_of::<Endpoint>(&*journals.endpoints).await?;
    // Of every service: whoever calls the described one is cut off from it as well.
    let (_, quarantines) = records_of::<Quarantine>(&*journals.quarantines).await?;
    let (_, mut attestors) = records_of::<Attestor>(&*journals.attestors).await?;
    if !service.is_empty() {
        attestors.retain(|record| record.rules.iter().any(|rule| rule.service == service));
        services.retain(|record| record.service == service);
        routes.retain(|record| record.service == service);
        endpoints.retain(|record| record.service == service);
    }
    let InForce { mesh, origin, folder: _, problems } = engine.in_force();
    Ok(DescribeResponse {
        mesh,
        trust_domain: engine.trust_domain().to_string(),
        services,
        routes,
        endpoints,
        quarantines,
        epoch: position.epoch,
        revision: position.revision,
        source: origin,
        problems: problems.into_iter().map(to_proto).collect(),
        attestors,
        positions,
    })
}

/// The SPIFFE id of who asks.
fn operator<R>(request: &Request<R>) -> Result<String, Status> {
    let operator = request.extensions().get::<Peer>().map(|peer| peer.id.to_string());
    operator.ok_or_else(|| Status::unauthenticated("who changes the policy is not known: call over mTLS"))
}

/// Does the work on its own: a client that goes away must not stop it halfway.
async fn to_end(
    work: impl Future<Output = Result<Applied, ApplyError>> + Send + 'static,
) -> Result<Response<ApplyResponse>, Status> {
    match tokio::spawn(work).await {
        Ok(applied) => answer(applied).map(Response::new),
        Err(error) => {
            tracing::error!(%error, "changing the policy failed");
            Err(Status::internal("changing the policy failed: see the log of the policy service"))
        }
    }
}

/// What a caller is told of a change, or of why there is none.
pub(crate) fn answer(applied: Result<Applied, ApplyError>) -> Result<ApplyResponse, Status> {
    let error = match applied {
        Ok(Applied { position, changes, positions }) => {
            let (epoch, revision) = (position.epoch, position.revision);
            return Ok(ApplyResponse { epoch, revision, changes, positions, ..ApplyResponse::default() });
        }
        Err(error) => error,
    };
    match error {
        ApplyError::Problems(problems) => Ok(refused(problems)),
        ApplyError::Conflict { in_force, since } => {
            let conflict = Conflict { in_force: Some(to_revision(in_force)), since };
            Ok(ApplyResponse { conflict: Some(conflict), ..ApplyResponse::default() })
        }
        ApplyError::Unknown(_) => Err(Status::not_found(error.to_string())),
        ApplyError::NotKept(_) | ApplyError::NotComparable | ApplyError::NoRollout => {
            Err(Status::failed_precondition(error.to_string()))
        }
        ApplyError::Store(_) | ApplyError::Unconfirmed(_) | ApplyError::Unsettled(_) => {
            // With the cause: a full disk is the operator's to see to.
            let text = chain(&error);
            tracing::warn!(error = text, "a policy could not be applied");
            Err(Status::unavailable(text))
        }
    }
}

pub(crate) fn unreadable(error: &ReadError) -> Status {
    tracing::warn!(error = chain(error), "the policy in force cannot be read");
    Status::unavailable("the store cannot be read now: try again")
}

fn position(revision: PolicyRevision) -> Position {
    Position::new(revision.epoch, revision.revision)
}

pub(crate) fn check_note(note: &str) -> Result<(), Status> {
    let length = note.chars().count();
    if length > MAX_NOTE {
        return Err(Status::invalid_argument(format!("the note has {length} characters, expected at most {MAX_NOTE}")));
    }
    Ok(())
}

/// Files as a folder could hold them.
fn accept(files: Vec<PolicyFile>) -> Result<Vec<SourceFile>, Problems> {
    let mut problems = Vec::new();
    for PolicyFile { path, text } in &files {
        let mut problem = |message: &str| {
            // What names the file badly must not break the line that says so.
            let file = path.escape_debug().collect();
            problems.push(Problem { file, line: 1, column: 1, message: message.to_owned() });
        };
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(char::is_control);
        if path.len() > 1024 || !path.split('/').all(plain) {
            problem("not a path below the policy folder, expected names with \"/\" between them");
        }
        if text.len() as u64 > MAX_FILE_BYTES {
            problem("the file is larger than 4 MiB, expected smaller files: split it");
        }
    }
    match problems.is_empty() {
        true => Ok(files.into_iter().map(|file| SourceFile { path: file.path, text: file.text }).collect()),
        false => Err(Problems(problems)),
    }
}

fn refused(problems: Problems) -> ApplyResponse {
    let problems = problems.0.into_iter().map(to_proto).collect();
    ApplyResponse { problems, ..ApplyResponse::default() }
}
