//! `tenon.policy.v1.Policy`, for operators.

use std::sync::Arc;

use journal::ReadError;
use mesh_config::{MAX_FILE_BYTES, Problem, Problems, SourceFile};
use mesh_identity::{
    OperatorRole,
    Peer,
    grpc::{Rpc, Who},
};
use tenon_proto::policy::v1::{
    ApplyRequest, ApplyResponse, Attestor, DescribeRequest, DescribeResponse, EndRolloutRequest, Endpoint,
    ExplainRequest, ExplainResponse, FlowsRequest, FlowsResponse, HistoryRequest, HistoryResponse, PolicyFile,
    Quarantine, RollbackRequest, RolloutRequest, RolloutResponse, Route, ServicePolicy,
    policy_server::{Policy, PolicyServer},
};
use tonic::{Request, Response, Status};

use crate::{
    engine::{Applied, ApplyError, Engine, InForce, Origin, chain, records_of, to_proto},
    fleet::Fleet,
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
];

/// The largest policy that can be applied, all files together.
const MAX_POLICY_BYTES: usize = 64 << 20;

/// Expects the [`Peer`] in the extensions of each request.
pub(crate) struct PolicyService {
    engine: Arc<Engine>,
    fleet: Arc<Fleet>,
}

impl PolicyService {
    pub fn new(engine: Arc<Engine>, fleet: Arc<Fleet>) -> Self {
        Self { engine, fleet }
    }

    pub fn into_server(self) -> PolicyServer<Self> {
        PolicyServer::new(self).max_decoding_message_size(MAX_POLICY_BYTES)
    }
}

#[tonic::async_trait]
impl Policy for PolicyService {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let operator = request.extensions().get::<Peer>().map(|peer| peer.id.to_string());
        let operator = operator.ok_or_else(|| Status::unauthenticated("who applies is not known: call over mTLS"))?;
        let files = match accept(request.into_inner().files) {
            Ok(files) => files,
            Err(problems) => return Ok(Response::new(refused(problems))),
        };
        let engine = Arc::clone(&self.engine);
        // On its own: a client that goes away must not stop it halfway.
        let work = tokio::spawn(async move { engine.apply(files, Origin::Operator(operator)).await });
        match work.await {
            Ok(Ok(Applied { position, changes })) => Ok(Response::new(ApplyResponse {
                problems: Vec::new(),
                epoch: position.epoch,
                revision: position.revision,
                changes,
                conflict: None,
                positions: Vec::new(),
            })),
            Ok(Err(ApplyError::Problems(problems))) => Ok(Response::new(refused(problems))),
            Ok(Err(error @ (ApplyError::Store(_) | ApplyError::Unconfirmed(_) | ApplyError::Unsettled(_)))) => {
                tracing::warn!(error = chain(&error), "a policy could not be applied");
                Err(Status::unavailable(error.to_string()))
            }
            Err(error) => {
                tracing::error!(%error, "applying a policy failed");
                Err(Status::internal("applying the policy failed: see the log of the policy service"))
            }
        }
    }

    async fn describe(&self, request: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let described = self.described(&request.into_inner().service).await;
        described.map(Response::new).map_err(|error| {
            tracing::warn!(error = chain(&error), "the policy in force cannot be read");
            Status::unavailable("the store cannot be read now: try again")
        })
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn rollback(&self, _: Request<RollbackRequest>) -> Result<Response<ApplyResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn rollout(&self, _: Request<RolloutRequest>) -> Result<Response<RolloutResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn end_rollout(&self, _: Request<EndRolloutRequest>) -> Result<Response<RolloutResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn flows(&self, request: Request<FlowsRequest>) -> Result<Response<FlowsResponse>, Status> {
        self.fleet.flows(request.into_inner()).await.map(Response::new)
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        self.fleet.explain(request.into_inner()).await.map(Response::new)
    }
}

impl PolicyService {
    async fn described(&self, service: &str) -> Result<DescribeResponse, ReadError> {
        let journals = self.engine.journals();
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
        let InForce { mesh, origin, folder: _, problems } = self.engine.in_force();
        Ok(DescribeResponse {
            mesh,
            trust_domain: self.engine.trust_domain().to_string(),
            services,
            routes,
            endpoints,
            quarantines,
            epoch: position.epoch,
            revision: position.revision,
            source: origin,
            problems: problems.into_iter().map(to_proto).collect(),
            attestors,
            positions: Vec::new(),
        })
    }
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
