//! Key ids (A4, A5).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest key id, in bytes (A4).
const MAX_BYTES: usize = 256;

/// A key id that has passed the grammar of A4: safe to join to a repository's URL, its segments come out byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kid(Arc<str>);

/// Why a text is not a key id (A4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KidError {
    /// Longer than 256 bytes.
    #[error("the key id is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// A byte outside of `[A-Za-z0-9_.\-+/]`.
    #[error("the key id has a character outside of A-Z a-z 0-9 _ . - + /")]
    Character,
    /// Empty, or a segment that is empty, `.` or `..`.
    #[error("the key id has a segment that is empty, '.' or '..'")]
    Segment,
}

impl Kid {
    /// As it stands in a token's header.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this key is `issuer`'s: the id starts with `issuer` and a slash (A5).
    pub fn belongs_to(&self, issuer: &str) -> bool {
        belongs_to(&self.0, issuer)
    }

    /// The URL of this key in a repository (A15): `base`, a slash if it does not end with one, and the id as it is. `base`
    /// has neither query nor fragment. The segments come out byte for byte; `+` is one of the characters that a path
    /// takes as they are (RFC 3986 §3.3), so nothing is escaped.
    pub fn join(&self, base: &str) -> String {
        let slash = if base.ends_with('/') { "" } else { "/" };
        format!("{base}{slash}{}", self.0)
    }

    /// Of a text that [`check`] has passed.
    pub(crate) fn checked(text: &str) -> Self {
        debug_assert_eq!(check(text), Ok(()));
        Self(text.into())
    }

    /// Everything before the last slash: the issuer, when ids are made as `<issuer>/<key id>`. None without a slash.
    pub fn issuer(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(issuer, _)| issuer)
    }

    /// The segments between the slashes, for a URL's path.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl FromStr for Kid {
    type Err = KidError;

    fn from_str(text: &str) -> Result<Self, KidError> {
        check(text)?;
        Ok(Self(text.into()))
    }
}

impl AsRef<str> for Kid {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Kid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

pub(crate) fn belongs_to(kid: &str, issuer: &str) -> bool {
    !issuer.is_empty() && kid.strip_prefix(issuer).is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'))
}

/// The grammar of A4.
pub(crate) fn check(text: &str) -> Result<(), KidError> {
    if text.len() > MAX_BYTES {
        return Err(KidError::TooLong);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'+' | b'/');
    if !text.bytes().all(allowed) {
        return Err(KidError::Character);
    }
    if text.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(KidError::Segment);
    }
    Ok(())
}
