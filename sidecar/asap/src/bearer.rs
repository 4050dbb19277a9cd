//! The `authorization` header (A13).

use crate::MAX_TOKEN_BYTES;

/// Why a request has no token in `authorization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BearerError {
    /// No such header, or one of another scheme, which says nothing about tokens: `ASAP_MISSING`.
    #[error("the request has no bearer token")]
    Missing,
    /// Several such headers, white space around the token, no token at all, or one of more than 8 KiB:
    /// `ASAP_MALFORMED`.
    #[error("expected exactly one bearer token of at most {MAX_TOKEN_BYTES} bytes")]
    Malformed,
}

/// The token in the values of all the `authorization` headers of a request, by A13: exactly one value, the scheme
/// `Bearer` in any case, one space, and the token without white space around it, at most 8 KiB. Decodes nothing.
///
/// # Errors
/// There is none, or something that is not exactly one.
pub fn bearer<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<&'a str, BearerError> {
    let mut values = values.into_iter();
    let value = values.next().ok_or(BearerError::Missing)?;
    if values.next().is_some() {
        return Err(BearerError::Malformed);
    }
    let scheme = value.get(..6).ok_or(BearerError::Missing)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Err(BearerError::Missing);
    }
    match &value[6..] {
        [] => Err(BearerError::Malformed),
        [b' ', token @ ..] if !token.is_empty() && token.len() <= MAX_TOKEN_BYTES && token.iter().all(is_visible) => {
            str::from_utf8(token).map_err(|_| BearerError::Malformed)
        }
        [b' ' | b'\t', ..] => Err(BearerError::Malformed),
        // The name of another scheme that begins the same.
        _ => Err(BearerError::Missing),
    }
}

fn is_visible(byte: &u8) -> bool {
    byte.is_ascii_graphic()
}
