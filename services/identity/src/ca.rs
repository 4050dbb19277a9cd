//! The certificate authority: one root, and what it signs.
//!
//! Never reads the clock: `now` is an argument, in Unix seconds.

mod encrypted;
mod files;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::rand;
use mesh_config::names::{ServiceName, TrustDomain};
use mesh_identity::{SpiffeId, SpiffeIdError, Svid, TrustBundle};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::Csr;
use crate::csr::CsrError;
pub use encrypted::Passphrase;
use files::Files;

/// How long a service's SVID lives (DESIGN §4).
pub const SVID_LIFETIME: Duration = Duration::from_secs(3600);
/// Certificates are valid from a little before they are made, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(300);
/// Ten years.
const ROOT_LIFETIME: Duration = Duration::from_secs(3653 * 86_400);

/// The mesh's root certificate with its key, ready to sign.
pub struct Ca {
    trust_domain: TrustDomain,
    /// The root alone: what everybody trusts.
    bundle: TrustBundle,
    /// Name and key that sign.
    issuer: Issuer<'static, KeyPair>,
    /// Nothing that is signed outlives the root; Unix seconds.
    not_after: u64,
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

/// Why a CA cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// "read", "write" or "create".
        action: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is one already; it is never overwritten.
    #[error("{} holds a CA already: use it, or name another folder", .0.display())]
    Exists(PathBuf),
    /// Half of a CA is there, and it cannot be told what became of the other half.
    #[error("{} is there, but {} is not: put the missing file back, or name another folder", there.display(), missing.display())]
    Half {
        /// The file that is there.
        there: PathBuf,
        /// The file that is missing.
        missing: PathBuf,
    },
    /// There is none.
    #[error("there is no CA in {}: make one with `tenon identity ca-init`", .0.display())]
    Missing(PathBuf),
    /// A file does not hold what it should.
    #[error("{}: {what}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It is the root of another mesh.
    #[error("{} is the root of trust domain {found}, not of {expected}: name the CA folder of this mesh", path.display())]
    TrustDomain {
        /// The certificate.
        path: PathBuf,
        /// What stands in it.
        found: String,
        /// What this mesh is.
        expected: TrustDomain,
    },
    /// The key is not that of the certificate.
    #[error("{} is not the key of the certificate beside it: put back the two files that belong together", .0.display())]
    KeyOfAnother(PathBuf),
    /// The certificate is past its end.
    #[error("{} expired at Unix time {not_after} and it is {now}: check the clock, or make a new CA", path.display())]
    Expired {
        /// The certificate.
        path: PathBuf,
        /// Its end.
        not_after: u64,
        /// The time that it was opened at.
        now: u64,
    },
    /// The certificate is not valid yet.
    #[error("{} begins at Unix time {not_before} and it is {now}: the clock is wrong", path.display())]
    NotYetValid {
        /// The certificate.
        path: PathBuf,
        /// Its beginning.
        not_before: u64,
        /// The time that it was opened at.
        now: u64,
    },
    /// The key is encrypted and no passphrase was given.
    #[error("{} is encrypted: set TENON_CA_PASSPHRASE", .0.display())]
    Encrypted(PathBuf),
    /// The passphrase does not open the key.
    #[error("the passphrase does not open {}: check TENON_CA_PASSPHRASE", .0.display())]
    Passphrase(PathBuf),
    /// The operating system gave no randomness, or a cipher failed.
    #[error("the cryptographic library failed")]
    Crypto,
    /// A certificate could not be made.
    #[error("the certificate cannot be made")]
    Sign(#[source] rcgen::Error),
    /// The root does not make a trust bundle.
    #[error("the root certificate makes no trust bundle")]
    Bundle(#[from] mesh_identity::BundleError),
    /// It opens and does not sign.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// Why a certificate is not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The request is not one that may be signed.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The identity belongs to another trust domain.
    #[error("{0} is not of the trust domain of this CA")]
    Foreign(SpiffeId),
    /// The operator's name breaks the grammar.
    #[error("not an operator's name: 1 to 63 of a-z, 0-9 and \"-\", with a letter or digit first and last")]
    OperatorName(#[source] SpiffeIdError),
    /// The root has come to its end.
    #[error("the root certificate has expired: check the clock, or make a new CA")]
    RootEnded,
    /// The certificate could not be made.
    #[error("the certificate cannot be made")]
    Sign(#[from] rcgen::Error),
    /// What was signed is no SVID.
    #[error("the signed certificate is no SVID")]
    Svid(#[from] mesh_identity::SvidError),
}

impl Ca {
    /// Whether there is a CA in `dir`, whole or half.
    pub fn exists(dir: &Path) -> bool {
        Files::new(dir).any()
    }

    /// Makes a root for `trust_domain` and writes `root.pem` and `root.key` to `dir`, both 0600 and on disk when this
    /// returns. With a passphrase the key is encrypted (PKCS#8, PBES2), and `openssl pkey` opens it too.
    ///
    /// # Errors
    /// When `dir` holds a CA already, or cannot be written.
    pub fn create(
        dir: &Path,
        trust_domain: &TrustDomain,
        passphrase: Option<&Passphrase>,
        now: u64,
    ) -> Result<Self, CaError> {
        let files = Files::new(dir);
        files.must_be_absent()?;
        let key = KeyPair::generate().map_err(CaError::Sign)?;
        let root = root_params(trust_domain, now).and_then(|root| root.self_signed(&key)).map_err(CaError::Sign)?;
        let plain = Zeroizing::new(key.serialize_der());
        let key_pem = match passphrase {
            None => Zeroizing::new(pem::encode(&pem::Pem::new("PRIVATE KEY", plain.as_slice()))),
            Some(passphrase) => Zeroizing::new(passphrase.encrypt(&plain)?),
        };
        files.write(&root.pem(), &key_pem)?;
        Self::open(dir, trust_domain, passphrase, now)
    }

    /// Opens what [`Ca::create`] wrote.
    ///
    /// # Errors
    /// When the files are not the two halves of a root of `trust_domain` that is valid `now`, or the passphrase does
    /// not open the key. A passphrase is not needed for a key that is not encrypted.
    pub fn open(
        dir: &Path,
        trust_domain: &TrustDomain,
        passphrase: Option<&Passphrase>,
        now: u64,
    ) -> Result<Self, CaError> {
        let files = Files::new(dir);
        let (root_pem, key_pem) = files.read()?;
        let root = root_certificate(files.root(), &root_pem)?;
        let (spki, not_after) = check_root(files.root(), &root, trust_domain, now)?;
        let key = read_key(files.key(), &key_pem, passphrase)?;
        if key.subject_public_key_info() != spki {
            return Err(CaError::KeyOfAnother(files.key().into()));
        }
        let bundle = TrustBundle::new(trust_domain.clone(), vec![root.clone()])?;
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(CaError::Sign)?;
        Ok(Self { trust_domain: trust_domain.clone(), bundle, issuer, not_after })
    }

    /// The mesh whose root this is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root, as everybody trusts it.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// Signs the key of a request for `id`: client and server, from five minutes before `now` to `lifetime` after it,
    /// or to the root's end if that is earlier. Whether the asking process is `id` is for the caller to have proved.
    ///
    /// # Errors
    /// When the request names somebody else, `id` is of another trust domain, or the root has ended.
    pub fn issue(&self, csr: &Csr, id: &SpiffeId, lifetime: Duration, now: u64) -> Result<Issued, IssueError> {
        csr.must_not_contradict(id)?;
        self.sign(csr.public_key(), id, lifetime, now)
    }

    /// Makes a key and an SVID for an operator, `spiffe://<trust domain>/operator/<name>`.
    ///
    /// # Errors
    /// [`CaError::Issue`] when the name breaks the grammar of names, or the root has ended. One type for all that a caller
    /// which prepares an operator's credentials does with a CA.
    pub fn issue_operator(&self, name: &str, lifetime: Duration, now: u64) -> Result<Svid, CaError> {
        let id = SpiffeId::operator(self.trust_domain.clone(), name).map_err(IssueError::OperatorName)?;
        Ok(self.issue_with_key(&id, lifetime, now)?)
    }

    /// Makes a key and an SVID for a service of this process: the identity service itself.
    ///
    /// # Errors
    /// When the root has ended.
    pub fn issue_service(&self, service: &ServiceName, lifetime: Duration, now: u64) -> Result<Svid, IssueError> {
        let id = SpiffeId::service(self.trust_domain.clone(), service.clone());
        self.issue_with_key(&id, lifetime, now)
    }

    fn issue_with_key(&self, id: &SpiffeId, lifetime: Duration, now: u64) -> Result<Svid, IssueError> {
        let key = KeyPair::generate()?;
        let issued = self.sign(&key, id, lifetime, now)?;
        Ok(Svid::from_der(issued.chain, Zeroizing::new(key.serialize_der()))?)
    }

    /// Makes a key and a certificate for an HTTPS listener of this process, for servers only, with `names` (DNS names and
    /// IP addresses) and no SPIFFE ID: nobody of the mesh takes it for an SVID.
    ///
    /// # Errors
    /// When a name is neither, or the CA has ended.
    pub fn issue_server(
        &self,
        names: &[String],
        lifetime: Duration,
        now: u64,
    ) -> Result<ServerCertificate, IssueError> {
        let not_after = self.until(lifetime, now)?;
        let serial = random_serial();
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Tenon key repository");
        set_validity(&mut params, now, not_after);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok(ServerCertificate {
            chain: vec![certificate],
            key_pkcs8: Zeroizing::new(key.serialize_der()),
            serial: hex_without_zero_bytes(&serial),
            not_after,
        })
    }

    /// `now` and a lifetime, but never beyond the end of who signs.
    fn until(&self, lifetime: Duration, now: u64) -> Result<u64, IssueError> {
        if now > self.not_after {
            return Err(IssueError::RootEnded);
        }
        Ok((now + lifetime.as_secs()).min(self.not_after))
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        lifetime: Duration,
        now: u64,
    ) -> Result<Issued, IssueError> {
        if *id.trust_domain() != self.trust_domain {
            return Err(IssueError::Foreign(id.clone()));
        }
        let not_after = self.until(lifetime, now)?;
        let serial = random_serial();
        let mut params = base_params(&id.to_string(), now, not_after)?;
        // The SPIFFE id is the identity. The name only helps people who read a certificate.
        let name = id.service_name().map_or_else(|| id.operator_name().unwrap_or_default(), |name| name.as_str());
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?.der().clone();
        Ok(Issued { chain: vec![certificate], serial: hex_without_zero_bytes(&serial), not_after })
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Ca")
            .field("trust_domain", &self.trust_domain)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// What root and leaf have in common: one URI name and a validity.
fn base_params(uri: &str, now: u64, not_after: u64) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    set_validity(&mut params, now, not_after);
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    Ok(params)
}

/// From a little before `now` to `not_after`, Unix seconds.
fn set_validity(params: &mut CertificateParams, now: u64, not_after: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(BACKDATE.as_secs()));
    params.not_after = epoch + Duration::from_secs(not_after);
}

fn root_params(trust_domain: &TrustDomain, now: u64) -> Result<CertificateParams, rcgen::Error> {
    let uri = format!("spiffe://{trust_domain}");
    let mut params = base_params(&uri, now, now + ROOT_LIFETIME.as_secs())?;
    params.distinguished_name.push(DnType::CommonName, format!("Tenon root of {trust_domain}"));
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// 128 random bits.
fn random_serial() -> [u8; 16] {
    let mut serial = [0; 16];
    rand::fill(&mut serial).expect("the operating system gives randomness");
    serial
}

fn hex_without_zero_bytes(bytes: &[u8]) -> String {
    bytes.iter().skip_while(|byte| **byte == 0).map(|byte| format!("{byte:02x}")).collect()
}

fn root_certificate(path: &Path, text: &str) -> Result<CertificateDer<'static>, CaError> {
    let what = "not one PEM certificate";
    let block = pem::parse(text).map_err(|_| CaError::Content { path: path.into(), what })?;
    if block.tag() != "CERTIFICATE" {
        return Err(CaError::Content { path: path.into(), what });
    }
    Ok(block.into_contents().into())
}

/// Returns the root's public key (SubjectPublicKeyInfo, DER) and its end.
fn check_root(path: &Path, der: &[u8], trust_domain: &TrustDomain, now: u64) -> Result<(Vec<u8>, u64), CaError> {
    let wrong = |what| CaError::Content { path: path.into(), what };
    let (_, root) = X509Certificate::from_der(der).map_err(|_| wrong("not an X.509 certificate"))?;
    if !root.is_ca() || !root.key_usage().is_ok_and(|usage| usage.is_some_and(|usage| usage.value.key_cert_sign())) {
        return Err(wrong("not the certificate of a CA"));
    }
    let names = root.subject_alternative_name().map_err(|_| wrong("its names cannot be read"))?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| {
        let GeneralName::URI(uri) = name else { return None };
        uri.strip_prefix("spiffe://")
    });
    let (Some(found), None) = (uris.next(), uris.next()) else {
        return Err(wrong("it does not say which trust domain it is for: exactly one SPIFFE URI was expected"));
    };
    if trust_domain != found {
        return Err(CaError::TrustDomain {
            path: path.into(),
            found: found.to_owned(),
            expected: trust_domain.clone(),
        });
    }
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let (not_before, not_after) = (seconds(root.validity().not_before), seconds(root.validity().not_after));
    if now > not_after {
        return Err(CaError::Expired { path: path.into(), not_after, now });
    }
    if now < not_before {
        return Err(CaError::NotYetValid { path: path.into(), not_before, now });
    }
    Ok((root.public_key().raw.to_vec(), not_after))
}

fn read_key(path: &Path, text: &str, passphrase: Option<&Passphrase>) -> Result<KeyPair, CaError> {
    let wrong = |what| CaError::Content { path: path.into(), what };
    let block = pem::parse(text).map_err(|_| wrong("not one PEM private key"))?;
    match (block.tag(), passphrase) {
        ("PRIVATE KEY", _) => {
            if passphrase.is_some() {
                tracing::warn!(path = %path.display(), "a passphrase is set, but the key of the CA is not encrypted");
            }
            let der = Zeroizing::new(block.into_contents());
            KeyPair::try_from(der.as_slice()).map_err(|_| wrong("not a PKCS#8 private key that can sign"))
        }
        (encrypted::TAG, None) => Err(CaError::Encrypted(path.into())),
        (encrypted::TAG, Some(passphrase)) => {
            let der = passphrase.decrypt(block.contents()).map_err(|error| error.at(path))?;
            // What a wrong passphrase gives may by chance look padded; it does not look like a key.
            KeyPair::try_from(der.as_slice()).map_err(|_| CaError::Passphrase(path.into()))
        }
        _ => Err(wrong("not a PKCS#8 private key: a PEM block PRIVATE KEY or ENCRYPTED PRIVATE KEY was expected")),
    }
}

#[cfg(test)]
mod tests;
