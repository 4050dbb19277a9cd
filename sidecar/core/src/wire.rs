//! What of a request's head the decisions look at.

use crate::Refusal;

/// What the values of one header name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Named<'a> {
    /// The header is absent.
    #[default]
    None,
    /// It stands once. A value that is not text is `One("")`, which no grammar takes.
    One(&'a str),
    /// It stands several times, be it with equal values.
    Many,
}

impl<'a> Named<'a> {
    /// From all values of the header, each `None` where it is not text.
    pub fn from_values(values: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        let mut values = values.into_iter();
        match (values.next(), values.next()) {
            (None, _) => Named::None,
            (Some(value), None) => Named::One(value.unwrap_or_default()),
            (Some(_), Some(_)) => Named::Many,
        }
    }
}

/// The ASAP token of a request: `x-asap-token`, or where that is absent `authorization: Bearer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// Neither header is there: `ASAP_MISSING`.
    Missing,
    /// Several values, or no bearer token in it: `ASAP_MALFORMED`.
    Ambiguous,
    /// The bare token.
    One(&'a str),
}

/// Proves who calls. The proxy implements it over the ASAP verifier and its memory of verified tokens.
pub trait Credentials {
    /// `Ok` when the token was signed for this service, by the mTLS peer `peer`, and is current at `now` (Unix seconds).
    ///
    /// # Errors
    /// A refusal with one of the `ASAP_*` reasons.
    fn verify(&mut self, peer: &str, token: &str, now: u64) -> Result<(), Refusal>;
}

/// Credentials that were verified before, or are assumed good: deciding an open stream again, and `policy explain`.
/// Never for a request that has just come in. Goes with [`Token::One`] of anything.
#[derive(Clone, Copy, Debug)]
pub struct Proven;

impl Credentials for Proven {
    fn verify(&mut self, _peer: &str, _token: &str, _now: u64) -> Result<(), Refusal> {
        Ok(())
    }
}
