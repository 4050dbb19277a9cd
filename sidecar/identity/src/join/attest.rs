//! The conversation with the identity service: bootstrap, attest, and what to make of its answers.

use std::sync::Arc;
use std::time::Duration;

use mesh_asap::SigningKey;
use mesh_config::names::{ServiceName, control_plane};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use tenon_proto::identity::v1::identity_client::IdentityClient;
use tenon_proto::identity::v1::{AsapKey, AttestRequest, GetTrustBundleRequest, IssueResponse};
use tonic::transport::Channel;
use zeroize::Zeroizing;

use super::{Config, JoinError, Joined, state};
use crate::{Identity, SpiffeId, Svid, TrustBundle, clock, grpc, tls};

/// What one RPC may take.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How often an identity service that does not answer is asked, and how long between: processes of one mesh start
/// together, and it may not listen yet.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

pub(super) async fn attest(config: &Config, pin: &str, join_token: String) -> Result<Joined, JoinError> {
    let bundle = pinned_bundle(config, pin).await?;
    let identity_service = identity_service();
    let tls = tls::anonymous_client_config(bundle.clone(), &identity_service);
    let mut client = client(grpc::channel_with(config.identity_address, tls, &identity_service));

    let id = SpiffeId::service(bundle.trust_domain().clone(), config.service.clone());
    let request = Request::new(&id)?;
    let asap_key =
        SigningKey::generate(config.service.as_str()).map_err(|error| JoinError::Answer(error.to_string()))?;
    let attest = AttestRequest {
        join_token,
        csr: request.csr.clone().into(),
        asap_key: Some(public_half(&asap_key)),
        ..AttestRequest::default()
    };
    let answer = deadline(client.attest(attest)).await.map_err(|status| refused(config, status))?;

    let issued = request.accept(answer, &id)?;
    state::store_all(&config.state_dir, pin, &issued.svid, &issued.bundle, &asap_key)?;
    Ok(Joined {
        identity: Identity::new(issued.svid, issued.bundle),
        asap_key: Arc::new(asap_key),
        key_position: Some(issued.key_position),
    })
}

/// The bundle of whoever answers, if it is the pinned one. Nothing secret is sent before that.
async fn pinned_bundle(config: &Config, pin: &str) -> Result<TrustBundle, JoinError> {
    let channel = grpc::channel_with(config.identity_address, tls::unverified_client_config(), &identity_service());
    let mut client = client(channel);
    let mut attempt = 0;
    let answer = loop {
        attempt += 1;
        match deadline(client.get_trust_bundle(GetTrustBundleRequest {})).await {
            Ok(answer) => break answer,
            Err(status) if status.code() == tonic::Code::Unavailable && attempt < ATTEMPTS => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(status) => return Err(failed(config, "GetTrustBundle", status)),
        }
    };
    let mismatch = JoinError::PinMismatch { address: config.identity_address };
    // What is no bundle cannot be the pinned one either.
    let Ok(bundle) = TrustBundle::from_proto(&answer) else { return Err(mismatch) };
    if bundle.pin() == pin { Ok(bundle) } else { Err(mismatch) }
}

/// A key pair whose certificate is being asked for.
pub(super) struct Request {
    pub csr: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

/// What the identity service gave.
pub(super) struct Issued {
    pub svid: Svid,
    pub bundle: TrustBundle,
    pub key_position: (u64, u64),
}

impl Request {
    pub(super) fn new(id: &SpiffeId) -> Result<Self, JoinError> {
        let answer = |error: rcgen::Error| JoinError::Answer(error.to_string());
        let key = KeyPair::generate().map_err(answer)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().map_err(answer)?)];
        let csr = params.serialize_request(&key).map_err(answer)?.der().to_vec();
        Ok(Self { csr, key: Zeroizing::new(key.serialize_der()) })
    }

    /// Takes an answer only if it is an SVID of `id` for our key that is valid now under the bundle that came with it.
    pub(super) fn accept(self, answer: IssueResponse, id: &SpiffeId) -> Result<Issued, JoinError> {
        let bundle = answer.trust_bundle.as_ref().ok_or_else(|| JoinError::Answer("no trust bundle".to_owned()))?;
        let bundle = TrustBundle::from_proto(bundle)?;
        let chain = answer.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let svid = Svid::from_der(chain, self.key)?;
        if svid.id() != id || bundle.trust_domain() != id.trust_domain() {
            return Err(JoinError::Answer(format!("a certificate of {} where {id} was expected", svid.id())));
        }
        tls::check_own(&svid, &bundle)
            .map_err(|error| JoinError::Answer(format!("{error}; are the clocks of both machines right?")))?;
        if !svid.is_valid_at(clock::unix_seconds()) {
            return Err(JoinError::Answer("a certificate that is not valid now; check the clocks".to_owned()));
        }
        Ok(Issued { svid, bundle, key_position: (answer.key_epoch, answer.key_revision) })
    }
}

pub(super) fn public_half(key: &SigningKey) -> AsapKey {
    AsapKey { kid: key.kid().to_string(), spki: key.public_spki().into() }
}

pub(super) fn identity_service() -> ServiceName {
    ServiceName::try_from(control_plane::IDENTITY).expect("a constant that is a service name")
}

pub(super) fn client(channel: Channel) -> IdentityClient<Channel> {
    IdentityClient::new(channel)
}

pub(super) async fn deadline<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, tonic::Status> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(tonic::Status::deadline_exceeded("no answer within 10 s")),
    }
}

fn failed(config: &Config, call: &'static str, status: tonic::Status) -> JoinError {
    JoinError::Call { address: config.identity_address, call, status: Box::new(status) }
}

fn refused(config: &Config, status: tonic::Status) -> JoinError {
    use tonic::Code;
    if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::NotFound)
    {
        return JoinError::Refused(status.message().to_owned(), config.service.clone());
    }
    failed(config, "Attest", status)
}
