//! Who comes from outside of the mesh: clients with a CA of their own, and processes that a platform vouches for.

use std::collections::BTreeMap;

use crate::names::{DocumentName, Issuer, ServiceName};

/// A document of kind `ExternalClient`: a caller outside of the mesh (DESIGN §6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalClient {
    /// `metadata.name`: what rules and quarantines call it. No Service has this name.
    pub name: ServiceName,
    /// `iss` of its tokens. No path prefix of another client's or of a service's name, nor the other way round (A5).
    pub issuer: Issuer,
    /// CA certificates that its client certificates chain to, DER; never empty.
    pub ca: Vec<Vec<u8>>,
    /// `dns:NAME` or `uri:URI`, one of which its certificate must carry; never empty.
    pub certificate_names: Vec<String>,
    /// Base URLs, `https`, ending in `/`, asked in this order (A15); never empty.
    pub key_repositories: Vec<String>,
    /// CA certificates for the key repositories, DER; empty: those that the system trusts.
    pub key_repository_ca: Vec<Vec<u8>>,
    /// Other subjects that its tokens may name (A12).
    pub subjects: Vec<String>,
}

/// A document of kind `Attestor`: whose tokens of a platform say which service a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestor {
    /// `metadata.name`.
    pub name: DocumentName,
    /// `iss`, byte for byte.
    pub issuer: String,
    /// One of `aud`.
    pub audience: String,
    /// Where its keys are; `None`: found by OpenID Connect discovery below the issuer, which is then an `https` URL.
    pub jwks_uri: Option<String>,
    /// CA certificates for discovery and keys, DER; empty: those that the system trusts.
    pub ca: Vec<Vec<u8>>,
    /// Never empty. The first whose claims all match decides.
    pub rules: Vec<AttestorRule>,
}

/// Which tokens are which service's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestorRule {
    /// Name of a claim, or a JSON pointer into the claims (RFC 6901, begins with `/`) → its exact value; never empty.
    pub claims: BTreeMap<String, String>,
    /// Whose SVID such a token gets.
    pub service: ServiceName,
}
