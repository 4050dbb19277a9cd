//! `tenon.audit.v1.Audit`: the record, for operators. Each list is itself recorded.

use futures_util::{StreamExt as _, stream, stream::BoxStream};
use mesh_identity::{
    OperatorRole, Peer,
    grpc::{Rpc, Who},
};
use tenon_proto::audit::v1::{HeadRequest, HeadResponse, ListRequest, ListResponse, Record, audit_server};
use tonic::{Request, Response, Status};

use super::{Audit, Cursor, Event};
use crate::ReadError;

/// Who may call what: the rows for the authorization table of a control-plane server.
pub const AUDIT_AUTHORIZATION: &[Rpc] = &[
    Rpc { path: "/tenon.audit.v1.Audit/List", who: Who::Operators(OperatorRole::Admin) },
    Rpc { path: "/tenon.audit.v1.Audit/Head", who: Who::Operators(OperatorRole::Admin) },
];

/// What a server routes calls to.
pub type AuditServer = audit_server::AuditServer<AuditService>;

/// The service over one audit record. Expects the [`Peer`] in the extensions of each request.
#[derive(Clone, Debug)]
pub struct AuditService {
    audit: Audit,
}

impl AuditService {
    #[must_use]
    pub const fn new(audit: Audit) -> Self {
        Self { audit }
    }

    #[must_use]
    pub fn into_server(self) -> AuditServer {
        AuditServer::new(self)
    }
}

#[tonic::async_trait]
impl audit_server::Audit for AuditService {
    type ListStream = BoxStream<'static, Result<ListResponse, Status>>;

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let by = request.extensions().get::<Peer>().map(|peer| peer.id.to_string()).unwrap_or_default();
        let wanted = request.into_inner();
        self.audit.note(Event::new(by, "Audit/List", described(&wanted)));
        let state = (self.audit.clone(), Cursor::default(), wanted);
        let pages = stream::try_unfold(state, |(audit, mut cursor, wanted)| async move {
            let page = audit.after(&mut cursor).await.map_err(unreadable)?;
            if page.is_empty() {
                return Ok(None);
            }
            let records = page.into_iter().filter(|record| is_wanted(&wanted, record)).collect();
            Ok(Some((ListResponse { records }, (audit, cursor, wanted))))
        });
        Ok(Response::new(pages.boxed()))
    }

    async fn head(&self, _: Request<HeadRequest>) -> Result<Response<HeadResponse>, Status> {
        let head = self.audit.head().await.map_err(unreadable)?;
        let service = self.audit.service().name().to_owned();
        Ok(Response::new(HeadResponse { service, sequence: head.sequence, hash: head.hash.to_vec().into() }))
    }
}

fn is_wanted(wanted: &ListRequest, record: &Record) -> bool {
    let ListRequest { since_unix_ms, by, action } = wanted;
    let by_whom = || record.by == *by || record.by.strip_suffix(by.as_str()).is_some_and(|rest| rest.ends_with('/'));
    record.at_unix_ms >= *since_unix_ms
        && (by.is_empty() || by_whom())
        && (action.is_empty() || record.action == *action)
}

fn described(wanted: &ListRequest) -> String {
    let ListRequest { since_unix_ms, by, action } = wanted;
    let mut parts = Vec::new();
    if *since_unix_ms > 0 {
        parts.push(format!("since {since_unix_ms}"));
    }
    if !by.is_empty() {
        parts.push(format!("by {by}"));
    }
    if !action.is_empty() {
        parts.push(format!("action {action}"));
    }
    if parts.is_empty() { "all".to_owned() } else { parts.join(", ") }
}

fn unreadable(error: ReadError) -> Status {
    tracing::warn!(%error, source = %error.0, "the audit record cannot be read");
    Status::unavailable("the audit record cannot be read now: try again")
}
