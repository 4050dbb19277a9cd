//! The conversation with the identity service: bootstrap, attest, and what to make of its answers.

use std::time::Duration;

use mesh_asap::SigningKey;
use mesh_config::names::{ServiceName, control_plane};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use tenon_proto::identity::v1 as proto;
use tenon_proto::identity::v1::identity_client::IdentityClient;
use tenon_proto::identity::v1::{AttestRequest, GetTrustBundleRequest, IssueResponse};
use tonic::transport::Channel;
use zeroize::Zeroizing;

use super::proof::Proof;
use super::state;
use super::{Config, JoinError, Joined, instance};
use crate::{Identity, SpiffeId, Svid, TrustBundle, clock, grpc, tls};

/// What one RPC may take.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How often an identity service that does not answer is asked, and how long between: processes of one mesh start
/// together, and it may not listen yet.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// The first SVID of a process whose state folder has none that is of use.
pub(super) async fn join(config: &Config, pin: &str, proofs: &[Proof]) -> Result<Joined, JoinError> {
    let attempt = state::attempt(&config.state_dir, &config.service)?;
    let instance = instance::of(&config.state_dir, &config.service)?;
    let known = state::known_bundle(&config.state_dir, pin);
    let bundle = trusted_bundle(config, pin, known).await?;
    let asap_key = attempt.asap_key;
    let issued = attest(config, bundle, proofs, &attempt.key, &asap_key.key, &instance).await?;
    state::store_all(&config.state_dir, pin, &issued.svid, &issued.bundle, &asap_key)?;
    Ok(Joined {
        identity: Identity::new(issued.svid, issued.bundle),
        asap_key: asap_key.key,
        asap_key_created: asap_key.created,
        instance,
        key_position: Some(issued.key_position),
    })
}

/// Shows each proof until one is taken, to whoever `bundle` proves to be the identity service. `key` is to be the SVID's: a
/// join token whose answer was lost is good again for the same one.
pub(super) async fn attest(
    config: &Config,
    bundle: TrustBundle,
    proofs: &[Proof],
    key: &KeyPair,
    asap_key: &SigningKey,
    instance: &str,
) -> Result<Issued, JoinError> {
    let identity_service = identity_service();
    let id = SpiffeId::service(bundle.trust_domain().clone(), config.service.clone());
    let tls = tls::anonymous_client_config(bundle, &identity_service);
    let mut client = client(grpc::channel_with(config.identity_address, tls, &identity_service));

    let mut refusal = None;
    for proof in proofs {
        let request = Request::of(&id, key)?;
        let (join_token, oidc_token) = match proof {
            Proof::JoinToken(token) => (token.to_string(), String::new()),
            Proof::Oidc { token, .. } => (String::new(), token.to_string()),
        };
        let attest = AttestRequest {
            join_token,
            csr: request.csr.clone().into(),
            asap_key: Some(public_half(asap_key)),
            instance: instance.to_owned(),
            oidc_token,
        };
        match deadline(client.attest(attest)).await {
            Ok(answer) => return request.accept(answer, &id),
            Err(status) if is_refusal(&status) => {
                let refused = refused(config, proof, &status);
                tracing::debug!(error = %refused, "refused");
                refusal = Some(refused);
            }
            Err(status) => return Err(failed(config, "Attest", status)),
        }
    }
    Err(refusal.unwrap_or_else(|| JoinError::Answer("there was nothing to show".to_owned())))
}

/// What to trust for the one conversation that attests: of what whoever answers says, as much as the pin covers; else
/// what this process came to know of the mesh before its roots were rotated. A root that it knows to be retired is not
/// trusted again for the pin's sake: its key may be in other hands. Nothing secret is sent before that.
pub(super) async fn trusted_bundle(
    config: &Config,
    pin: &str,
    known: Option<TrustBundle>,
) -> Result<TrustBundle, JoinError> {
    let answer = unverified_bundle(config).await?;
    // What is no bundle cannot be the pinned one either.
    let pinned = TrustBundle::from_proto(&answer).ok().and_then(|bundle| bundle.pinned_by(pin));
    let retired = known.as_ref().is_some_and(|known| known.pinned_by(pin).is_none());
    pinned.filter(|_| !retired).or(known).ok_or(JoinError::PinMismatch { address: config.identity_address })
}

async fn unverified_bundle(config: &Config) -> Result<proto::TrustBundle, JoinError> {
    let channel = grpc::channel_with(config.identity_address, tls::unverified_client_config(), &identity_service());
    let mut client = client(channel);
    let mut attempt = 0;
    loop {
        attempt += 1;
        match deadline(client.get_trust_bundle(GetTrustBundleRequest {})).await {
            Ok(answer) => return Ok(answer),
            Err(status) if status.code() == tonic::Code::Unavailable && attempt < ATTEMPTS => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(status) => return Err(failed(config, "GetTrustBundle", status)),
        }
    }
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
    /// For a new key.
    pub(super) fn new(id: &SpiffeId) -> Result<Self, JoinError> {
        Self::of(id, &KeyPair::generate().map_err(|error| JoinError::Answer(error.to_string()))?)
    }

    fn of(id: &SpiffeId, key: &KeyPair) -> Result<Self, JoinError> {
        let answer = |error: rcgen::Error| JoinError::Answer(error.to_string());
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().map_err(answer)?)];
        let csr = params.serialize_request(key).map_err(answer)?.der().to_vec();
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

pub(super) fn public_half(key: &SigningKey) -> proto::AsapKey {
    proto::AsapKey { kid: key.kid().to_string(), spki: key.public_spki().into() }
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

/// Whether it was this proof that was wrong: another one may be right.
fn is_refusal(status: &tonic::Status) -> bool {
    use tonic::Code;
    matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::NotFound)
}

fn refused(config: &Config, proof: &Proof, status: &tonic::Status) -> JoinError {
    let (message, service) = (status.message().to_owned(), config.service.clone());
    match proof {
        Proof::JoinToken(_) => JoinError::Refused(message, service),
        Proof::Oidc { path, .. } => JoinError::RefusedPlatform { message, path: path.clone(), service },
    }
}
