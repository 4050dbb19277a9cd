//! Why a process cannot join, said to whoever can change it.

use std::net::SocketAddr;
use std::path::PathBuf;

use mesh_config::names::ServiceName;

use crate::{BundleError, SvidError};

/// Why a process cannot join. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The pin is not the SHA-256 of anything.
    #[error(
        "the trust bundle's SHA-256 is given as {0:?}, which is not 64 hexadecimal digits; copy it from `tenon up` or compute it from the mesh's trust bundle"
    )]
    Pin(String),
    /// There is neither a valid SVID on disk nor anything that attests the process.
    #[error("{why} in {}, and no join token was given; make one with `tenon identity join-token --service {service}` and put it into the file of --join-token-file, or name a token of the platform with --oidc-token-file", dir.display())]
    NoToken {
        /// What is wrong with the state.
        why: String,
        /// The state folder.
        dir: PathBuf,
        /// Who wants to join.
        service: ServiceName,
    },
    /// The clock says that the stored SVID is of the future.
    #[error("the stored certificate in {} is not valid yet: it begins at {not_before} (Unix seconds), and the clock of this machine says {now}; set the clock (`timedatectl set-ntp true`)", dir.display())]
    NotYetValid {
        /// The state folder.
        dir: PathBuf,
        /// Begin of the certificate.
        not_before: u64,
        /// What the clock says.
        now: u64,
    },
    /// Somebody else answers, or the mesh has another CA than the one that was pinned.
    #[error(
        "the trust bundle of the identity service at {address} is not the pinned one; if the mesh's CA was replaced, give its new SHA-256, else something else answers at that address: do not go on"
    )]
    PinMismatch {
        /// Who answered.
        address: SocketAddr,
    },
    /// The identity service cannot be reached, or refuses.
    #[error("the identity service at {address} did not answer {call}: {}; check that it runs and that the address is right", root_cause(.status))]
    Call {
        /// Who was asked.
        address: SocketAddr,
        /// Which RPC.
        call: &'static str,
        /// What came back.
        #[source]
        status: Box<tonic::Status>,
    },
    /// The join token is not valid.
    #[error(
        "the identity service refused the join token: {0}; tokens work once and for a short time: make a new one with `tenon identity join-token --service {1}`"
    )]
    Refused(String, ServiceName),
    /// The platform's token attests nobody, or somebody else.
    #[error("the identity service refused the token of {}: {message}; an Attestor document of the mesh policy must accept its issuer and audience and map its claims to {service}", path.display())]
    RefusedPlatform {
        /// What the identity service said.
        message: String,
        /// Where the token was read.
        path: PathBuf,
        /// Who wants to join.
        service: ServiceName,
    },
    /// A token that was named cannot be read.
    #[error("cannot read the token in {}: {source}; see that whatever writes it does, and that this user may read it", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What the identity service answered cannot be used.
    #[error("the identity service issued something of no use: {0}")]
    Answer(String),
    /// State cannot be written.
    #[error("cannot write {}: {source}; check that the folder is writable and that the disk is not full", path.display())]
    State {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl JoinError {
    /// Whether waiting cannot help: somebody must change how the process was started first.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Pin(_) | Self::PinMismatch { .. } | Self::State { .. } => true,
            Self::NoToken { .. }
            | Self::NotYetValid { .. }
            | Self::Call { .. }
            | Self::Refused(..)
            | Self::RefusedPlatform { .. }
            | Self::TokenFile { .. }
            | Self::Answer(_) => false,
        }
    }
}

/// What lies at the bottom of a failed call: tonic's own text stops at "transport error".
fn root_cause(status: &tonic::Status) -> String {
    let mut cause: &dyn std::error::Error = match std::error::Error::source(status) {
        Some(source) => source,
        None => return status.message().to_owned(),
    };
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

impl From<SvidError> for JoinError {
    fn from(error: SvidError) -> Self {
        Self::Answer(error.to_string())
    }
}

impl From<BundleError> for JoinError {
    fn from(error: BundleError) -> Self {
        Self::Answer(error.to_string())
    }
}
