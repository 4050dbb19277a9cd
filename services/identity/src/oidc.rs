//! Tokens of platforms that attest which service a process is (OpenID Connect): Kubernetes service-account tokens, tokens
//! of cloud instances, of build systems. Never reads the clock, but for how old an issuer's keys are.
//!
//! An Attestor of the mesh policy says whose tokens count, for which audience, and which claims make a service. A token
//! may attest until it ends, as often as its holder starts anew: a container that is restarted finds the same one again.
//! What it gives each time is a certificate for a key of the caller's own; each is in the audit log.

mod attestor;
mod fetch;
mod keys;
#[cfg(test)]
mod testing;
mod token;

use std::sync::OnceLock;

use mesh_config::names::ServiceName;
use replica::{Decoded, Replica};
use tonic::Status;

pub(crate) use attestor::Attestor;
use fetch::Fetch;
use keys::KeysError;
use token::{TokenError, Unverified};

/// The attestors of the mesh policy.
#[derive(Default)]
pub(crate) struct Attestors {
    /// Absent: this process follows no policy, so there is no Attestor.
    followed: OnceLock<Replica<Decoded<Attestor>>>,
}

/// What a platform's token attests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attested {
    pub service: ServiceName,
    /// The Attestor that says so.
    pub attestor: String,
}

/// Why a platform's token attests nobody. Its text may be told to anybody: it says nothing of the token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttestError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("no Attestor of the mesh policy takes tokens of this issuer: add one, and `tenon policy apply` it")]
    Issuer,
    #[error("no Attestor takes tokens of this issuer for this audience: compare `audience` with what the token is for")]
    Audience,
    #[error("the token is good, but no rule of the Attestor {0} matches its claims")]
    NoRule(String),
    #[error("the token attests {attested}, and not {asked}")]
    Other { attested: ServiceName, asked: String },
    #[error("the keys of the issuer cannot be had now: the log of the identity service says why")]
    Keys(#[source] KeysError),
}

impl Attestors {
    /// From now on those of `replica` count. Once a process.
    pub(crate) fn follow(&self, replica: Replica<Decoded<Attestor>>) {
        let first = self.followed.set(replica).is_ok();
        debug_assert!(first, "the attestors are followed once");
    }

    /// The service that a platform's token attests. `asked` is whom the process wants to be, as far as it says.
    pub(crate) async fn attest(&self, oidc_token: &str, asked: &str, now: u64) -> Result<Attested, AttestError> {
        let mut attestors = self.followed.get().map(Replica::entries).unwrap_or_default();
        // Where several take the token, the first by name is asked first, today and tomorrow.
        attestors.sort_by(|a, b| a.name.cmp(&b.name));
        attest(&attestors, |attestor| &attestor.https, oidc_token, asked, now).await
    }
}

async fn attest<'a, F: Fetch + 'a>(
    attestors: &'a [Decoded<Attestor>],
    https: impl Fn(&'a Attestor) -> &'a F,
    oidc_token: &str,
    asked: &str,
    now: u64,
) -> Result<Attested, AttestError> {
    let token = Unverified::read(oidc_token)?;
    let (issuer, audiences) = (token.issuer()?, token.audiences()?);
    if attestors.iter().all(|attestor| attestor.issuer != issuer) {
        return Err(AttestError::Issuer);
    }
    let mut refused = AttestError::Audience;
    for attestor in attestors.iter().filter(|attestor| attestor.is_for(issuer, &audiences)) {
        match attest_by(attestor, https(attestor), &token, now).await {
            Ok(service) if asked.is_empty() || *asked == *service.as_str() => {
                return Ok(Attested { service, attestor: attestor.name.clone() });
            }
            Ok(attested) => {
                let asked = asked.chars().take(100).collect();
                refused = AttestError::Other { attested, asked };
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

async fn attest_by(
    attestor: &Attestor,
    https: &impl Fetch,
    token: &Unverified<'_>,
    now: u64,
) -> Result<ServiceName, AttestError> {
    let keys = attestor.keys.candidates(token.kid(), https).await.map_err(AttestError::Keys)?;
    let claims = token.verify(&keys, now)?;
    attestor.service_for(&claims).cloned().ok_or_else(|| AttestError::NoRule(attestor.name.clone()))
}

impl From<AttestError> for Status {
    fn from(error: AttestError) -> Self {
        match error {
            AttestError::Token(_) | AttestError::Issuer | AttestError::Audience => {
                Self::unauthenticated(error.to_string())
            }
            AttestError::NoRule(_) | AttestError::Other { .. } => Self::permission_denied(error.to_string()),
            AttestError::Keys(_) => Self::unavailable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
