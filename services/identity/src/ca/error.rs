//! What can go wrong with a CA.

use std::path::PathBuf;

use mesh_config::names::TrustDomain;
use mesh_identity::{SpiffeId, SpiffeIdError};

use crate::csr::CsrError;

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
    /// The certificate of the CA that signs has come to its end.
    #[error("the certificate of the CA that signs has expired: check the clock, then `tenon identity rotate issuing`")]
    Ended,
    /// The certificate could not be made.
    #[error("the certificate cannot be made")]
    Sign(#[from] rcgen::Error),
    /// What was signed is no SVID.
    #[error("the signed certificate is no SVID")]
    Svid(#[from] mesh_identity::SvidError),
}

/// Why a step of a rotation is not done. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The step does not follow from how things stand.
    #[error("{0}")]
    OutOfTurn(&'static str),
    /// Another step is being done at this moment.
    #[error("another step of a rotation is being done: ask again how things stand")]
    Busy,
    /// The CA's files cannot be read or written, or a certificate cannot be made.
    #[error(transparent)]
    Ca(#[from] CaError),
}
