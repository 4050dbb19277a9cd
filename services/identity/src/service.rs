//! `tenon.identity.v1.Identity` over the authority.

use std::sync::Arc;

use journal::AppendError;
use mesh_config::names::ServiceName;
use mesh_identity::grpc::{Rpc, Subject, Who};
use mesh_identity::{OperatorRole, Peer, SpiffeId, clock};
use tenon_proto::identity::v1 as proto;
use tenon_proto::identity::v1::identity_server::Identity;
use tenon_proto::identity::v1::{
    AttestRequest, CreateJoinTokenRequest, CreateJoinTokenResponse, GetTrustBundleRequest, IssueResponse,
    ListKeysRequest, ListKeysResponse, RenewRequest, TrustBundle,
};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use zeroize::Zeroizing;

use crate::audit::AuditError;
use crate::authority::{AdmitError, Admitted, Asked, Authority, CreateTokenError, Proof};
use crate::keys::{KeyStoreError, UnfitKey};
use crate::limits::Limited;
use crate::tokens::TokenError;
use crate::{CsrError, IssueError, operators, registry, revocations, rotation, svid, transaction};

/// Who may call what: the rows of this service in the server's authorization table.
pub const IDENTITY_AUTHORIZATION: &[Rpc] = &[
    Rpc { path: "/tenon.identity.v1.Identity/GetTrustBundle", who: Who::Anyone },
    // The join token is the proof.
    Rpc { path: "/tenon.identity.v1.Identity/Attest", who: Who::Anyone },
    Rpc { path: "/tenon.identity.v1.Identity/Renew", who: Who::ServicesAndOperators },
    Rpc { path: "/tenon.identity.v1.Identity/CreateJoinToken", who: Who::Operators(OperatorRole::Admin) },
    Rpc { path: "/tenon.identity.v1.Identity/ListKeys", who: Who::Operators(OperatorRole::Viewer) },
    Rpc { path: "/tenon.identity.v1.Identity/Confirm", who: Who::Services },
    Rpc { path: "/tenon.identity.v1.Identity/Revoke", who: Who::Operators(OperatorRole::Operator) },
    Rpc { path: "/tenon.identity.v1.Identity/LiftRevocation", who: Who::Operators(OperatorRole::Operator) },
    Rpc { path: "/tenon.identity.v1.Identity/ListRevocations", who: Who::Operators(OperatorRole::Viewer) },
    Rpc { path: "/tenon.identity.v1.Identity/Rotate", who: Who::Operators(OperatorRole::Admin) },
    Rpc { path: "/tenon.identity.v1.Identity/IssueSvid", who: Who::Operators(OperatorRole::Admin) },
    Rpc { path: "/tenon.identity.v1.Identity/IssueOperator", who: Who::Operators(OperatorRole::Admin) },
    Rpc { path: "/tenon.identity.v1.Identity/IssueTransactionToken", who: Who::Operators(OperatorRole::Admin) },
];

/// The service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct IdentityService {
    authority: Arc<Authority>,
}

impl IdentityService {
    pub(crate) fn new(authority: Arc<Authority>) -> Self {
        Self { authority }
    }

    fn bundle(&self) -> TrustBundle {
        self.authority.ca.bundle().to_proto()
    }

    fn issued(admitted: &Admitted) -> Response<IssueResponse> {
        Response::new(IssueResponse {
            chain: admitted.issued.chain.iter().map(|der| der.to_vec().into()).collect(),
            trust_bundle: Some(admitted.bundle.to_proto()),
            key_epoch: admitted.key.epoch,
            key_revision: admitted.key.revision,
        })
    }

    /// The outcome as it is; a refusal is in the audit log then.
    fn audited<T>(&self, rpc: &str, by: &SpiffeId, outcome: Result<T, Status>) -> Result<Response<T>, Status> {
        if let Err(status) = &outcome {
            self.authority.audit.refused(rpc, Some(&by.to_string()), status.message());
        }
        outcome.map(Response::new)
    }

    /// Runs to its end even when the caller goes away, so that nothing is left half done.
    async fn admit<F>(&self, rpc: &str, by: Option<&SpiffeId>, work: F) -> Result<Response<IssueResponse>, Status>
    where
        F: Future<Output = Result<Admitted, AdmitError>> + Send + 'static,
    {
        match tokio::spawn(work).await {
            Ok(Ok(admitted)) => Ok(Self::issued(&admitted)),
            Ok(Err(error)) => {
                let status = Status::from(error);
                let by = by.map(ToString::to_string);
                self.authority.audit.refused(rpc, by.as_deref(), status.message());
                Err(status)
            }
            Err(error) => {
                tracing::error!(%error, "issuing failed");
                Err(Status::internal("issuing failed; the log of the identity service says why"))
            }
        }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_trust_bundle(&self, _: Request<GetTrustBundleRequest>) -> Result<Response<TrustBundle>, Status> {
        Ok(Response::new(self.bundle()))
    }

    async fn attest(&self, request: Request<AttestRequest>) -> Result<Response<IssueResponse>, Status> {
        let AttestRequest { join_token, oidc_token, csr, asap_key, instance } = request.into_inner();
        let (join_token, oidc_token) = (Zeroizing::new(join_token), Zeroizing::new(oidc_token));
        if !join_token.is_empty() && !oidc_token.is_empty() {
            return Err(refused(Status::invalid_argument("a join token and a platform's token at once: send one")));
        }
        let authority = Arc::clone(&self.authority);
        self.admit("Attest", None, async move {
            let platform = !oidc_token.is_empty();
            let proof = if platform { Proof::Oidc(&oidc_token) } else { Proof::JoinToken(&join_token) };
            authority.attest(proof, Asked { csr, asap_key, instance }, clock::unix_seconds()).await
        })
        .await
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<IssueResponse>, Status> {
        let (peer, request) = (peer(&request)?.clone(), request.into_inner());
        let RenewRequest { csr, asap_key, instance } = request;
        let (authority, by, now) = (Arc::clone(&self.authority), peer.id.clone(), clock::unix_seconds());
        let work = async move {
            match peer.id.service_name() {
                Some(service) => authority.renew(service, &peer, Asked { csr, asap_key, instance }, now).await,
                None => authority.renew_operator(&peer, &csr, now).await,
            }
        };
        self.admit("Renew", Some(&by), work).await
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        Subject::of(&request).is(&request.get_ref().service);
        let operator = peer(&request)?.id.clone();
        let CreateJoinTokenRequest { service, ttl_seconds } = request.into_inner();
        let service =
            ServiceName::try_from(service.as_str()).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (by, now) = (operator.to_string(), clock::unix_seconds());
        let created = self.authority.create_join_token(&by, &service, ttl_seconds, now).await.map_err(Status::from);
        let (token, expires_unix_seconds) = self.audited("CreateJoinToken", &operator, created)?.into_inner();
        tracing::info!(%operator, %service, expires_unix_seconds, "join token created");
        Ok(Response::new(CreateJoinTokenResponse { join_token: token.as_str().to_owned(), expires_unix_seconds }))
    }

    async fn list_keys(&self, _: Request<ListKeysRequest>) -> Result<Response<ListKeysResponse>, Status> {
        Ok(Response::new(ListKeysResponse { keys: self.authority.list_keys().await? }))
    }

    async fn confirm(
        &self,
        request: Request<proto::ConfirmRequest>,
    ) -> Result<Response<proto::ConfirmResponse>, Status> {
        let (peer, request) = (peer(&request)?.clone(), request.into_inner());
        let outcome = registry::confirm(&self.authority, &peer, request, clock::unix_seconds()).await;
        self.audited("Confirm", &peer.id, outcome)
    }

    async fn revoke(&self, request: Request<proto::RevokeRequest>) -> Result<Response<proto::RevokeResponse>, Status> {
        Subject::of(&request).is(revoked(request.get_ref()));
        let (peer, request) = (peer(&request)?.clone(), request.into_inner());
        let outcome = revocations::revoke(&self.authority, &peer, request, clock::unix_seconds()).await;
        self.audited("Revoke", &peer.id, outcome)
    }

    async fn lift_revocation(
        &self,
        request: Request<proto::LiftRevocationRequest>,
    ) -> Result<Response<proto::RevokeResponse>, Status> {
        Subject::of(&request).is(lifted(request.get_ref()));
        let (peer, request) = (peer(&request)?.clone(), request.into_inner());
        let outcome = revocations::lift(&self.authority, &peer, request, clock::unix_seconds()).await;
        self.audited("LiftRevocation", &peer.id, outcome)
    }

    async fn list_revocations(
        &self,
        _: Request<proto::ListRevocationsRequest>,
    ) -> Result<Response<proto::ListRevocationsResponse>, Status> {
        revocations::list(&self.authority).await.map(Response::new)
    }

    async fn rotate(&self, request: Request<proto::RotateRequest>) -> Result<Response<proto::RotateResponse>, Status> {
        Subject::of(&request).is(request.get_ref().step().as_str_name());
        let (peer, request) = (peer(&request)?.clone(), request.into_inner());
        rotation::rotate(&self.authority, &peer, request, clock::unix_seconds()).await.map(Response::new)
    }

    async fn issue_svid(&self, request: Request<proto::IssueSvidRequest>) -> Result<Response<IssueResponse>, Status> {
        Subject::of(&request).is(&request.get_ref().service);
        let (peer, request) = (peer(&request)?.clone(), request.into_inner());
        svid::issue(&self.authority, &peer, request, clock::unix_seconds()).await.map(Response::new)
    }

    async fn issue_operator(
        &self,
        request: Request<proto::IssueOperatorRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        Subject::of(&request).is(format!("{} as {}", request.get_ref().name, request.get_ref().role));
        let (peer, request) = (peer(&request)?.clone(), request.into_inner());
        let (authority, by, now) = (Arc::clone(&self.authority), peer.id.clone(), clock::unix_seconds());
        let work = async move { operators::issue(&authority, &peer, &request, now).await };
        self.admit("IssueOperator", Some(&by), work).await
    }

    async fn issue_transaction_token(
        &self,
        request: Request<proto::IssueTransactionTokenRequest>,
    ) -> Result<Response<proto::IssueTransactionTokenResponse>, Status> {
        Subject::of(&request).is(format!(
            "tenant {:?} subject {:?} scope {:?}",
            request.get_ref().tenant,
            request.get_ref().subject,
            request.get_ref().scope
        ));
        let (peer, request) = (peer(&request)?.clone(), request.into_inner());
        let outcome = transaction::issue(&self.authority, &peer, request, clock::unix_seconds()).await;
        self.audited("IssueTransactionToken", &peer.id, outcome)
    }
}

/// For the audit record.
fn revoked(request: &proto::RevokeRequest) -> String {
    use proto::revoke_request::What;
    let reason = &request.reason;
    match &request.what {
        Some(What::Service(name)) => format!("service {name}: {reason}"),
        Some(What::Operator(name)) => format!("operator {name}: {reason}"),
        Some(What::Kid(kid)) => format!("key {kid}: {reason}"),
        Some(What::Serial(serial)) => format!("certificate {serial}: {reason}"),
        None => String::new(),
    }
}

/// For the audit record.
fn lifted(request: &proto::LiftRevocationRequest) -> String {
    use proto::lift_revocation_request::What;
    match &request.what {
        Some(What::Service(name)) => format!("service {name}"),
        Some(What::Operator(name)) => format!("operator {name}"),
        Some(What::Kid(kid)) => format!("key {kid}"),
        Some(What::Serial(serial)) => format!("certificate {serial}"),
        None => String::new(),
    }
}

fn peer<T>(request: &Request<T>) -> Result<&Peer, Status> {
    request.extensions().get().ok_or_else(|| Status::unauthenticated("this call needs a client certificate"))
}

impl From<AdmitError> for Status {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Token(error) => error.into(),
            AdmitError::Keys(error) => error.into(),
            AdmitError::UnfitKey(error @ UnfitKey::Issuer(_)) => refused(Self::permission_denied(error.to_string())),
            AdmitError::UnfitKey(error) => refused(Self::invalid_argument(with_source(&error))),
            AdmitError::Csr(error) => error.into(),
            AdmitError::Instance(error) => refused(error.into()),
            AdmitError::Operator(error) => refused(Self::invalid_argument(error.to_string())),
            AdmitError::Lent | AdmitError::Revoked(_) => refused(Self::permission_denied(error.to_string())),
            AdmitError::Issue(error) => error.into(),
            AdmitError::Limited(error) => error.into(),
            AdmitError::Audit(error) => error.into(),
            AdmitError::Platform(status) => refused(status),
        }
    }
}

impl From<Limited> for Status {
    fn from(error: Limited) -> Self {
        let details = ErrorDetails::with_retry_info(Some(error.retry_after));
        refused(Self::with_error_details(Code::ResourceExhausted, error.to_string(), details))
    }
}

impl From<AuditError> for Status {
    fn from(error: AuditError) -> Self {
        let text = with_source(&error);
        if error.disk_is_full() { Self::resource_exhausted(text) } else { Self::unavailable(text) }
    }
}

impl From<CsrError> for Status {
    fn from(error: CsrError) -> Self {
        match error {
            CsrError::Name { .. } => refused(Self::permission_denied(error.to_string())),
            CsrError::Encoding | CsrError::Signature | CsrError::Key => {
                refused(Self::invalid_argument(error.to_string()))
            }
        }
    }
}

impl From<IssueError> for Status {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Csr(error) => error.into(),
            IssueError::Ended => Self::unavailable(error.to_string()),
            IssueError::Foreign(_) | IssueError::OperatorName(_) | IssueError::Sign(_) | IssueError::Svid(_) => {
                tracing::error!(error = with_source(&error), "the CA cannot sign");
                Self::internal("the CA cannot sign; the log of the identity service says why")
            }
        }
    }
}

impl From<TokenError> for Status {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Unknown | TokenError::Expired | TokenError::Used => {
                refused(Self::unauthenticated(error.to_string()))
            }
            TokenError::Write(AppendError::Full(_)) => store_full(&error),
            TokenError::Read(_) | TokenError::Write(_) => store_failed(&error),
        }
    }
}

impl From<CreateTokenError> for Status {
    fn from(error: CreateTokenError) -> Self {
        match error {
            CreateTokenError::Ttl(_) => Self::invalid_argument(error.to_string()),
            CreateTokenError::Revoked(_) => Self::failed_precondition(error.to_string()),
            CreateTokenError::Own(_) => Self::permission_denied(error.to_string()),
            CreateTokenError::Audit(error) => error.into(),
            CreateTokenError::Token(error) => error.into(),
        }
    }
}

impl From<KeyStoreError> for Status {
    fn from(error: KeyStoreError) -> Self {
        match error {
            KeyStoreError::Taken(_) => refused(Self::already_exists(error.to_string())),
            KeyStoreError::Revoked(_) => refused(Self::permission_denied(error.to_string())),
            KeyStoreError::TooMany(_) => refused(Self::resource_exhausted(error.to_string())),
            KeyStoreError::Write(AppendError::Full(_)) => store_full(&error),
            KeyStoreError::Damaged(_) | KeyStoreError::Read(_) | KeyStoreError::Write(_) => store_failed(&error),
        }
    }
}

/// Somebody wanted an identity and did not get it: worth a line even when nothing is wrong here.
pub(crate) fn refused(status: Status) -> Status {
    tracing::warn!(reason = status.message(), "no certificate issued");
    status
}

/// Nothing was done, and trying again does not help before somebody makes room.
pub(crate) fn store_full(error: &(dyn std::error::Error + 'static)) -> Status {
    let text = with_source(error);
    tracing::error!(error = text, "the store has no room");
    Status::resource_exhausted(text)
}

/// It may work later. That nothing was done is so only where the text says it: a write that the disk did not confirm may
/// have been made.
pub(crate) fn store_failed(error: &(dyn std::error::Error + 'static)) -> Status {
    let text = with_source(error);
    tracing::error!(error = text, "the store failed");
    Status::unavailable(text)
}

/// The error and what it came from, on one line.
pub(crate) fn with_source(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> AppendError {
        AppendError::Full(std::io::Error::from(std::io::ErrorKind::StorageFull).into())
    }

    #[test]
    fn a_full_disk_is_told_to_the_caller_as_resource_exhausted_whichever_store_it_hits() {
        for status in [
            Status::from(AdmitError::Token(full().into())),
            Status::from(AdmitError::Keys(full().into())),
            Status::from(CreateTokenError::Token(full().into())),
        ] {
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert!(status.message().contains("no room left on the disk"), "{status}");
            assert!(!status.message().contains('\n'), "{status}");
        }
    }

    #[test]
    fn whoever_asks_too_often_is_told_when_to_ask_again() {
        let rate = crate::limits::Rate { burst: 1, per_second: 1 };
        let limits = crate::limits::Limits::new(crate::limits::Settings { service: rate, all: rate });
        limits.take("media", 7).unwrap();
        let status = Status::from(AdmitError::Limited(limits.take("media", 7).unwrap_err()));
        assert_eq!(status.code(), Code::ResourceExhausted);
        let retry = status.get_details_retry_info().unwrap().retry_delay.unwrap();
        assert_eq!(retry, std::time::Duration::from_secs(1));
    }

    #[test]
    fn refusals_have_the_code_that_says_whose_fault_it_is() {
        let name = CsrError::Name { named: "a".to_owned(), attested: "b".to_owned() };
        for (error, code) in [
            (AdmitError::Token(TokenError::Used), Code::Unauthenticated),
            (AdmitError::Token(TokenError::Expired), Code::Unauthenticated),
            (AdmitError::Issue(name.into()), Code::PermissionDenied),
            (AdmitError::Csr(CsrError::Signature), Code::InvalidArgument),
            (AdmitError::UnfitKey(UnfitKey::Issuer("media".parse().unwrap())), Code::PermissionDenied),
            (AdmitError::UnfitKey(UnfitKey::Missing), Code::InvalidArgument),
            (AdmitError::Keys(KeyStoreError::Taken("media/1".parse().unwrap())), Code::AlreadyExists),
            (AdmitError::Issue(IssueError::Ended), Code::Unavailable),
        ] {
            assert_eq!(Status::from(error).code(), code);
        }
    }
}
