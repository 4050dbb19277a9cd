//! The usual environment of a service that speaks ASAP (A17).

use std::fmt;

use zeroize::Zeroizing;

use crate::{KeyError, Kid, KidError, SigningKey};

/// The variables, which never print the private key. Empty ones count as not set, others that begin with `ASAP_` are
/// other libraries' affair.
#[derive(Clone, Default)]
pub struct Environment {
    /// `ASAP_PRIVATE_KEY`: a data URI with the key's id in it, or PEM.
    pub private_key: Option<Zeroizing<String>>,
    /// `ASAP_KEY_ID`.
    pub key_id: Option<Kid>,
    /// `ASAP_ISSUER`.
    pub issuer: Option<Box<str>>,
    /// `ASAP_AUDIENCE`.
    pub audience: Option<Box<str>>,
    /// `ASAP_PUBLIC_KEY_REPOSITORY_URL`, then `ASAP_PUBLIC_KEY_FALLBACK_REPOSITORY_URL`: to be asked in this order.
    pub repositories: Vec<Box<str>>,
}

/// What is wrong with the environment. Says nothing of what stands in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// The id breaks the grammar of A4.
    #[error("ASAP_KEY_ID: {0}")]
    KeyId(KidError),
    /// Not an absolute URL of http or https without query and fragment.
    #[error("{0}: expected an absolute http or https URL without query and fragment")]
    Repository(&'static str),
    /// The key is of no use, or its id does not belong to the issuer.
    #[error("ASAP_PRIVATE_KEY: {0}")]
    PrivateKey(KeyError),
    /// A key without an id.
    #[error("ASAP_KEY_ID is not set, and ASAP_PRIVATE_KEY is no data URI that has the key's id in it")]
    NoKeyId,
    /// The data URI is that of another key.
    #[error("ASAP_KEY_ID is not the key id in ASAP_PRIVATE_KEY")]
    OtherKeyId,
}

const REPOSITORY: &str = "ASAP_PUBLIC_KEY_REPOSITORY_URL";
const FALLBACK: &str = "ASAP_PUBLIC_KEY_FALLBACK_REPOSITORY_URL";

impl Environment {
    /// From all variables of a process, in any order.
    ///
    /// # Errors
    /// All problems at once.
    pub fn parse<N: AsRef<str>>(variables: impl IntoIterator<Item = (N, String)>) -> Result<Self, Vec<EnvError>> {
        let (mut parsed, mut problems) = (Self::default(), Vec::new());
        let (mut repository, mut fallback) = (None, None);
        for (name, value) in variables.into_iter().filter(|(_, value)| !value.is_empty()) {
            match name.as_ref() {
                "ASAP_PRIVATE_KEY" => parsed.private_key = Some(Zeroizing::new(value)),
                "ASAP_KEY_ID" => match value.parse() {
                    Ok(kid) => parsed.key_id = Some(kid),
                    Err(error) => problems.push(EnvError::KeyId(error)),
                },
                "ASAP_ISSUER" => parsed.issuer = Some(value.into()),
                "ASAP_AUDIENCE" => parsed.audience = Some(value.into()),
                REPOSITORY => repository = url(REPOSITORY, value, &mut problems),
                FALLBACK => fallback = url(FALLBACK, value, &mut problems),
                _ => {}
            }
        }
        parsed.repositories.extend(repository.into_iter().chain(fallback));
        if problems.is_empty() { Ok(parsed) } else { Err(problems) }
    }

    /// The key that these variables give, if they give one.
    ///
    /// # Errors
    /// It is of no use, has no id, or is not the issuer's.
    pub fn signing_key(&self) -> Result<Option<SigningKey>, EnvError> {
        let Some(private) = &self.private_key else { return Ok(None) };
        let key = if private.starts_with("data:") {
            let key = SigningKey::from_data_uri(private).map_err(EnvError::PrivateKey)?;
            if self.key_id.as_ref().is_some_and(|kid| kid != key.kid()) {
                return Err(EnvError::OtherKeyId);
            }
            key
        } else {
            let kid = self.key_id.clone().ok_or(EnvError::NoKeyId)?;
            SigningKey::from_pkcs8_pem(kid, private).map_err(EnvError::PrivateKey)?
        };
        match &self.issuer {
            Some(issuer) => key.with_issuer(issuer).map_err(EnvError::PrivateKey).map(Some),
            None => Ok(Some(key)),
        }
    }
}

fn url(name: &'static str, value: String, problems: &mut Vec<EnvError>) -> Option<Box<str>> {
    let rest = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://")).unwrap_or_default();
    let host = !rest.is_empty() && !rest.starts_with('/');
    if host && rest.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'\\')) {
        return Some(value.into());
    }
    problems.push(EnvError::Repository(name));
    None
}

impl fmt::Debug for Environment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Environment")
            .field("key_id", &self.key_id)
            .field("issuer", &self.issuer)
            .field("audience", &self.audience)
            .field("repositories", &self.repositories)
            .finish_non_exhaustive()
    }
}
