//! The certificate authority: roots, issuing CAs below them, and what those sign.
//!
//! A root signs issuing CAs and nothing else; the issuing CA, which changes every two weeks, signs everything that
//! processes show. Several processes may have the same folder open; one at a time changes it, and [`Ca::reload`] shows
//! the others what became of it.
//!
//! Never reads the clock: `now` is an argument, in Unix seconds.

mod certificates;
mod change;
mod encrypted;
mod error;
mod files;
mod folder;
mod state;

use std::fmt;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_config::names::{ServiceName, TrustDomain};
use mesh_identity::{OperatorRole, SpiffeId, Svid, TrustBundle};
use rcgen::{CertificateParams, Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::Csr;
pub(crate) use certificates::sha256;
pub use encrypted::Passphrase;
pub(crate) use encrypted::TAG as ENCRYPTED_TAG;
pub use error::{CaError, IssueError, RotateError};
use files::Files;
use folder::Folder;
pub use state::Phase;
use state::State;

/// How long a service's SVID lives (DESIGN §4).
pub const SVID_LIFETIME: Duration = Duration::from_secs(3600);
/// How long an operator's SVID lives.
pub const OPERATOR_LIFETIME: Duration = Duration::from_secs(86_400);

/// The CA of a mesh, ready to sign.
pub struct Ca {
    folder: Folder,
    /// What counts now. Signing never waits for a change.
    current: ArcSwap<Current>,
    /// Held by the one change that is being made.
    changing: Mutex<()>,
}

/// A hierarchy, whole.
struct Current {
    state: State,
    bundle: TrustBundle,
    /// The last second of the root that signs, in Unix time.
    root_ends: u64,
    /// Certificate of the issuing CA.
    issuing: CertificateDer<'static>,
    /// Its name and key.
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that was just signed.
#[derive(Debug, Clone)]
pub struct Issued {
    /// DER: the leaf, then the issuing CA's certificate; the root is in the bundle.
    pub chain: Vec<CertificateDer<'static>>,
    /// Lower hexadecimal without leading zero bytes, as revocations name it.
    pub serial: String,
    /// Last second in which it is valid, Unix time.
    pub not_after: u64,
}

/// A certificate for an HTTPS listener, with its key.
pub struct ServerCertificate {
    /// DER, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8, DER.
    pub key_pkcs8: Zeroizing<Vec<u8>>,
    /// Lower hexadecimal without leading zero bytes.
    pub serial: String,
    /// Last second in which it is valid, Unix time.
    pub not_after: u64,
}

impl Ca {
    /// Whether there is a CA in `dir`, whole or half.
    pub fn exists(dir: &Path) -> bool {
        Files::new(dir).any()
    }

    /// Makes a root for `trust_domain` and an issuing CA below it. Their files are 0600 and on disk when this returns.
    /// With a passphrase the keys are encrypted (PKCS#8, PBES2), and `openssl pkey` opens them too.
    ///
    /// # Errors
    /// When `dir` holds a CA already, or cannot be written.
    pub fn create(
        dir: &Path,
        trust_domain: &TrustDomain,
        passphrase: Option<&Passphrase>,
        now: u64,
    ) -> Result<Self, CaError> {
        let folder = Folder::new(dir, trust_domain, passphrase);
        folder.create(now)?;
        let current = folder.open(now)?;
        Ok(Self { folder, current: ArcSwap::from_pointee(current), changing: Mutex::default() })
    }

    /// Opens what [`Ca::create`] wrote. Where there is a root alone, as older versions made it, or the issuing CA has
    /// ended or cannot be used, a new issuing CA is made.
    ///
    /// # Errors
    /// When the files are not a CA of `trust_domain` whose root is valid `now`, or the passphrase does not open the
    /// root's key. A passphrase is not needed for a key that is not encrypted.
    pub fn open(
        dir: &Path,
        trust_domain: &TrustDomain,
        passphrase: Option<&Passphrase>,
        now: u64,
    ) -> Result<Self, CaError> {
        let folder = Folder::new(dir, trust_domain, passphrase);
        let current = folder.open(now)?;
        Ok(Self { folder, current: ArcSwap::from_pointee(current), changing: Mutex::default() })
    }

    /// Takes over what another process has changed. Says whether there was anything.
    ///
    /// # Errors
    /// When the files cannot be read; then it stays as it was.
    pub fn reload(&self) -> Result<bool, CaError> {
        if self.folder.state()?.as_ref() == Some(&self.current.load().state) {
            return Ok(false);
        }
        self.current.store(Arc::new(self.folder.load()?));
        Ok(true)
    }

    /// The mesh whose CA this is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.folder.trust_domain
    }

    /// The roots, as everybody trusts them, and how far rotations are.
    pub fn bundle(&self) -> TrustBundle {
        self.current.load().bundle.clone()
    }

    /// The last second of the issuing CA that signs, in Unix time.
    pub(crate) fn issuing_ends(&self) -> u64 {
        self.current.load().state.signing().not_after
    }

    /// The last second of the root that signs, in Unix time.
    pub(crate) fn root_ends(&self) -> u64 {
        self.current.load().root_ends
    }

    /// How far the rotation of the root is.
    pub fn phase(&self) -> Phase {
        self.current.load().state.phase()
    }

    /// Whether `authority`, the SHA-256 of an issuing CA's certificate, is one below the root that signs now.
    pub fn is_of_active_root(&self, authority: &[u8]) -> bool {
        let current = self.current.load();
        let authority = hex(authority);
        let mut issuing = current.state.issuing.iter();
        issuing.any(|issuing| issuing.root == current.state.active && issuing.sha256 == authority)
    }

    /// What the store that belongs to this CA is marked with, once a service has served with both.
    pub(crate) fn store_mark(&self) -> Option<String> {
        self.current.load().state.store_mark.clone()
    }

    /// Whether the store was lost, or put back from a backup, and instances have not yet had the time to say what is
    /// missing in it.
    pub(crate) fn store_is_recovering(&self) -> bool {
        self.current.load().state.recovering
    }

    /// Signs the key of a request for `id`: client and server, from five minutes before `now` to `lifetime` after it,
    /// or to the end of the issuing CA if that is earlier. Whether the asking process is `id` is for the caller to have
    /// proved.
    ///
    /// # Errors
    /// When the request names somebody else, `id` is of another trust domain, or the issuing CA has ended.
    pub fn issue(&self, csr: &Csr, id: &SpiffeId, lifetime: Duration, now: u64) -> Result<Issued, IssueError> {
        csr.must_not_contradict(id)?;
        self.sign_svid(csr.public_key(), id, None, lifetime, now)
    }

    /// As [`Ca::issue`], to an operator with this role.
    ///
    /// # Errors
    /// As those of [`Ca::issue`].
    pub fn issue_to_operator(
        &self,
        csr: &Csr,
        id: &SpiffeId,
        role: OperatorRole,
        lifetime: Duration,
        now: u64,
    ) -> Result<Issued, IssueError> {
        csr.must_not_contradict(id)?;
        self.sign_svid(csr.public_key(), id, Some(role), lifetime, now)
    }

    /// Makes a key and an SVID for an operator with this role, `spiffe://<trust domain>/operator/<name>`.
    ///
    /// # Errors
    /// [`CaError::Issue`] when the name breaks the grammar of names, or the issuing CA has ended. One type for all that
    /// a caller which prepares an operator's credentials does with a CA.
    pub fn issue_operator(
        &self,
        name: &str,
        role: OperatorRole,
        lifetime: Duration,
        now: u64,
    ) -> Result<Svid, CaError> {
        let id = SpiffeId::operator(self.trust_domain().clone(), name).map_err(IssueError::OperatorName)?;
        Ok(self.issue_with_key(&id, Some(role), lifetime, now)?)
    }

    /// Makes a key and an SVID for a service of this process: the identity service itself.
    ///
    /// # Errors
    /// When the issuing CA has ended.
    pub fn issue_service(&self, service: &ServiceName, lifetime: Duration, now: u64) -> Result<Svid, IssueError> {
        let id = SpiffeId::service(self.trust_domain().clone(), service.clone());
        self.issue_with_key(&id, None, lifetime, now)
    }

    /// Makes a key and a certificate for an HTTPS listener of this process, for servers only, with `names` (DNS names and
    /// IP addresses) and no SPIFFE ID: nobody of the mesh takes it for an SVID.
    ///
    /// # Errors
    /// When a name is neither, or the issuing CA has ended.
    pub fn issue_server(
        &self,
        names: &[String],
        lifetime: Duration,
        now: u64,
    ) -> Result<ServerCertificate, IssueError> {
        let key = KeyPair::generate()?;
        let Issued { chain, serial, not_after } =
            self.sign(&key, lifetime, now, |not_after| certificates::server(names, now, not_after))?;
        Ok(ServerCertificate { chain, key_pkcs8: Zeroizing::new(key.serialize_der()), serial, not_after })
    }

    fn issue_with_key(
        &self,
        id: &SpiffeId,
        role: Option<OperatorRole>,
        lifetime: Duration,
        now: u64,
    ) -> Result<Svid, IssueError> {
        let key = KeyPair::generate()?;
        let issued = self.sign_svid(&key, id, role, lifetime, now)?;
        Ok(Svid::from_der(issued.chain, Zeroizing::new(key.serialize_der()))?)
    }

    fn sign_svid(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        role: Option<OperatorRole>,
        lifetime: Duration,
        now: u64,
    ) -> Result<Issued, IssueError> {
        if id.trust_domain() != self.trust_domain() {
            return Err(IssueError::Foreign(id.clone()));
        }
        self.sign(key, lifetime, now, |not_after| certificates::svid(id, role, now, not_after))
    }

    /// `params` makes what is to be signed, given its end.
    fn sign(
        &self,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: u64,
        params: impl FnOnce(u64) -> Result<CertificateParams, rcgen::Error>,
    ) -> Result<Issued, IssueError> {
        let current = self.current.load();
        let end = current.state.signing().not_after;
        if now > end {
            return Err(IssueError::Ended);
        }
        let not_after = (now + lifetime.as_secs()).min(end);
        let params = params(not_after)?;
        let serial = certificates::serial(&params);
        let certificate = params.signed_by(key, &current.issuer)?.der().clone();
        Ok(Issued { chain: vec![certificate, current.issuing.clone()], serial, not_after })
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = &self.current.load().state;
        out.debug_struct("Ca")
            .field("trust_domain", self.trust_domain())
            .field("sequence", &state.sequence)
            .field("phase", &state.phase())
            .finish_non_exhaustive()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
