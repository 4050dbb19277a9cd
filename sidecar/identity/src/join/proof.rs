//! What attests a process that has no SVID.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::JoinError;

/// What a process may show instead of an SVID. Files are read anew for each attempt: platforms replace their tokens, and
/// so do people.
#[derive(Clone, Default)]
pub struct Attestation {
    /// A join token, for whoever has it in memory.
    pub join_token: Option<String>,
    /// A file with a join token. Absent or empty is no error: a token that was used up may be gone.
    pub join_token_file: Option<PathBuf>,
    /// A file with a token of the platform, an OIDC ID token, such as a projected service-account token of Kubernetes.
    pub oidc_token_file: Option<PathBuf>,
}

/// One thing to show. Never printed.
pub(super) enum Proof {
    JoinToken(Zeroizing<String>),
    Oidc { token: Zeroizing<String>, path: PathBuf },
}

impl Attestation {
    /// This join token alone.
    pub fn join_token(token: impl Into<String>) -> Self {
        Self { join_token: Some(token.into()), ..Self::default() }
    }

    /// What there is to show now, in the order in which it is tried: join tokens first, since whoever makes one means it.
    pub(super) fn proofs(&self) -> Result<Vec<Proof>, JoinError> {
        let mut proofs = Vec::new();
        proofs.extend(self.join_token.as_deref().and_then(word).map(Proof::JoinToken));
        if let Some(path) = &self.join_token_file {
            match read(path) {
                Ok(token) => proofs.extend(token.map(Proof::JoinToken)),
                Err(error) if self.oidc_token_file.is_some() => tracing::warn!(%error, "going on without a join token"),
                Err(error) => return Err(error),
            }
        }
        if let Some(path) = &self.oidc_token_file {
            match oidc(path) {
                Ok(proof) => proofs.push(proof),
                Err(error) if proofs.is_empty() => return Err(error),
                Err(error) => tracing::warn!(%error, "going on with the join token alone"),
            }
        }
        Ok(proofs)
    }
}

/// The platform writes it before it starts the process, so one that is not there is a mistake.
fn oidc(path: &Path) -> Result<Proof, JoinError> {
    let absent = || io::Error::new(io::ErrorKind::NotFound, "there is no token");
    let token = read(path)?.ok_or_else(|| JoinError::TokenFile { path: path.to_owned(), source: absent() })?;
    Ok(Proof::Oidc { token, path: path.to_owned() })
}

/// None when the file is absent or empty.
fn read(path: &Path) -> Result<Option<Zeroizing<String>>, JoinError> {
    match fs::read_to_string(path).map(Zeroizing::new) {
        Ok(text) => Ok(word(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(JoinError::TokenFile { path: path.to_owned(), source }),
    }
}

fn word(text: &str) -> Option<Zeroizing<String>> {
    let text = text.trim();
    (!text.is_empty()).then(|| Zeroizing::new(text.to_owned()))
}

impl fmt::Debug for Attestation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Attestation")
            .field("join_token", &self.join_token.as_ref().map(|_| "..."))
            .field("join_token_file", &self.join_token_file)
            .field("oidc_token_file", &self.oidc_token_file)
            .finish()
    }
}
