//! Who may call which RPC. Default deny: what no table names is refused.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, Either};
use http::{Request, Response};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::{Recorder, Subject};
use crate::{Identity, OperatorRole, Peer, Workload};

/// One row of an authorization table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rpc {
    /// `/package.Service/Method`, byte for byte; or a path of one segment, which is plain HTTP.
    pub path: &'static str,
    /// Who may call it.
    pub who: Who,
}

/// Who may call an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Whoever can connect; on a server with [`crate::tls::Clients::Optional`] that is without any certificate.
    Anyone,
    /// Any service of the mesh.
    Services,
    /// Operators of this role, and of those above it.
    Operators(OperatorRole),
    /// The same, and these services: of the control plane, for what an operator asks of it.
    OperatorsAnd(OperatorRole, &'static [&'static str]),
    /// Any service and any operator.
    ServicesAndOperators,
    /// These services alone.
    Only(&'static [&'static str]),
}

impl Who {
    fn admits(self, peer: Option<&Peer>) -> bool {
        let workload = peer.map(|peer| peer.id.workload());
        match (self, workload) {
            (Who::Anyone, _)
            | (Who::Services | Who::ServicesAndOperators, Some(Workload::Service(_)))
            | (Who::ServicesAndOperators, Some(Workload::Operator(_))) => true,
            (Who::Operators(least) | Who::OperatorsAnd(least, _), Some(Workload::Operator(_))) => {
                peer.and_then(|peer| peer.role) >= Some(least)
            }
            (Who::Only(names) | Who::OperatorsAnd(_, names), Some(Workload::Service(name))) => {
                names.contains(&name.as_str())
            }
            (
                Who::Services | Who::Operators(_) | Who::OperatorsAnd(..) | Who::ServicesAndOperators | Who::Only(_),
                _,
            ) => false,
        }
    }
}

/// The RPCs of `services` (full names: `tenon.tcs.v1.TenantContextService`) that `table` does not name, from the
/// descriptors of `tenon-proto`; a service that those do not have is named too. For tests: must be empty.
pub fn uncovered(services: &[&str], table: &[Rpc]) -> Vec<String> {
    let files = FileDescriptorSet::decode(tenon_proto::FILE_DESCRIPTOR_SET).expect("our own descriptors decode");
    let mut missing = Vec::new();
    for wanted in services {
        let methods: Vec<String> = files
            .file
            .iter()
            .flat_map(|file| {
                file.service.iter().map(move |service| (format!("{}.{}", file.package(), service.name()), service))
            })
            .filter(|(name, _)| name == wanted)
            .flat_map(|(name, service)| service.method.iter().map(move |method| format!("/{name}/{}", method.name())))
            .collect();
        if methods.is_empty() {
            missing.push(format!("/{wanted}/*"));
        }
        missing.extend(methods.into_iter().filter(|path| table.iter().all(|rpc| rpc.path != path)));
    }
    missing
}

/// The paths that a server with this table answers, for its metrics.
pub fn methods(table: &'static [Rpc]) -> impl Iterator<Item = &'static str> {
    table.iter().chain(BUILT_IN).map(|rpc| rpc.path)
}

/// Health and reflection, which every [`super::Server`] has.
pub(super) const BUILT_IN: &[Rpc] = &[
    Rpc { path: "/grpc.health.v1.Health/Check", who: Who::ServicesAndOperators },
    Rpc { path: "/grpc.health.v1.Health/List", who: Who::ServicesAndOperators },
    Rpc { path: "/grpc.health.v1.Health/Watch", who: Who::ServicesAndOperators },
    Rpc { path: "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", who: Who::ServicesAndOperators },
    Rpc { path: "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", who: Who::ServicesAndOperators },
];

/// What the server's connection proved, as tonic hands it to each request.
#[derive(Clone, Debug)]
pub(super) struct Connection(pub Option<Arc<Peer>>);

/// A service that lets through what its table admits, with the [`Peer`] among the request's extensions. What operators call
/// that viewers may not goes to the log, target `tenon::audit`.
#[derive(Clone)]
pub(super) struct Guard<S> {
    inner: S,
    identity: Arc<Identity>,
    table: Arc<HashMap<&'static str, Who>>,
    recorder: Option<Arc<dyn Recorder>>,
}

impl<S> Guard<S> {
    pub(super) fn new(
        inner: S,
        identity: Arc<Identity>,
        table: &'static [Rpc],
        recorder: Option<Arc<dyn Recorder>>,
    ) -> Self {
        let table = table.iter().chain(BUILT_IN).map(|rpc| (rpc.path, rpc.who)).collect();
        Self { inner, identity, table: Arc::new(table), recorder }
    }

    fn admit(&self, path: &str, peer: Option<&Peer>) -> Result<(), Status> {
        if peer.is_some_and(|peer| self.identity.is_revoked(peer)) {
            return Err(Status::unauthenticated("the caller's identity is revoked"));
        }
        match (self.table.get(path), peer) {
            (Some(who), _) if who.admits(peer) => Ok(()),
            (Some(_), None) => Err(Status::unauthenticated("this call needs a client certificate")),
            (Some(Who::Operators(least) | Who::OperatorsAnd(least, _)), Some(Peer { id, role: Some(role), .. })) => {
                Err(Status::permission_denied(format!(
                    "{id} is {role}, and {path} is for {least}: an admin issues that role (`tenon identity operator`)"
                )))
            }
            (Some(_), Some(peer)) => Err(Status::permission_denied(format!("{} may not call {path}", peer.id))),
            (None, _) => Err(Status::permission_denied("nobody may call this path")),
        }
    }
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<Connection>().and_then(|connection| connection.0.clone());
        if let Err(status) = self.admit(request.uri().path(), peer.as_deref()) {
            if let (Some(recorder), Some(peer)) = (&self.recorder, &peer) {
                recorder.refused(peer, request.uri().path(), &status);
            }
            tracing::info!(path = request.uri().path(), peer = peer.map(|peer| peer.id.to_string()), "call refused");
            return Either::Right(Box::pin(std::future::ready(Ok(refusal(&request, status)))));
        }
        if let (Some(peer), Some(Who::Operators(OperatorRole::Operator | OperatorRole::Admin))) =
            (&peer, self.table.get(request.uri().path()))
        {
            let role = peer.role.map(OperatorRole::as_str);
            tracing::info!(target: "tenon::audit", by = %peer.id, serial = peer.serial, role, path = request.uri().path(), "an operator's call");
        }
        let Some(peer) = peer else { return Either::Left(self.inner.call(request)) };
        request.extensions_mut().insert(Peer::clone(&peer));
        let subject = Subject::default();
        let begun = self.recorder.as_ref().and_then(|it| it.begin(&peer, request.uri().path(), subject.clone()));
        let Some(begun) = begun else { return Either::Left(self.inner.call(request)) };
        request.extensions_mut().insert(subject);
        // The one that is ready makes the call; its copy takes its place.
        let copy = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, copy);
        Either::Right(Box::pin(async move {
            let recorded = match begun.await {
                Ok(recorded) => recorded,
                Err(status) => return Ok(refusal(&request, status)),
            };
            let response = inner.call(request).await?;
            // An answer that is an error has its status among its headers.
            match Status::from_header_map(response.headers()) {
                Some(status) if status.code() != tonic::Code::Ok => recorded.ended(Err(&status)),
                Some(_) | None => recorded.ended(Ok(())),
            }
            Ok(response)
        }))
    }
}

/// As gRPC clients understand it; whoever asked by plain HTTP finds it in the status as well.
fn refusal(request: &Request<Body>, status: Status) -> Response<Body> {
    let content_type = request.headers().get(http::header::CONTENT_TYPE);
    let is_grpc = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let unknown = status.code() == tonic::Code::Unauthenticated;
    let plain = if unknown { http::StatusCode::UNAUTHORIZED } else { http::StatusCode::FORBIDDEN };
    let mut response = status.into_http();
    if !is_grpc {
        *response.status_mut() = plain;
        response.headers_mut().remove(http::header::CONTENT_TYPE);
    }
    response
}
