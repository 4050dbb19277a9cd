//! What of a request's head the decisions look at.

use crate::{Reason, Refusal};

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
    /// The bare token, as its bytes: only who verifies it has to know that they are text.
    One(&'a [u8]),
}

/// Who stands at the other end of a connection, as TLS proved it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer<'a> {
    /// A service of the mesh, by its SVID.
    Service(&'a str),
    /// A client outside of the mesh, by a certificate that an `ExternalClient` document describes; the document's name.
    Outside(&'a str),
}

impl<'a> Peer<'a> {
    /// What rules, quarantines and refusals call it: services and outside clients share one namespace.
    pub const fn name(self) -> &'a str {
        match self {
            Peer::Service(name) | Peer::Outside(name) => name,
        }
    }
}

/// Whose tenant a valid transaction token names, compared with the one that the call names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// The call's; or neither names one.
    SameTenant,
    /// Another one; or just one of the two names any.
    OtherTenant,
}

impl Transaction {
    /// Compares the tenant of a token with what the call names in `x-tenant-id`. Several ids are no tenant of any token.
    pub fn compare(of_token: Option<&str>, of_call: Named<'_>) -> Self {
        let same = match of_call {
            Named::None => of_token.is_none(),
            Named::One(id) => of_token == Some(id),
            Named::Many => false,
        };
        if same { Transaction::SameTenant } else { Transaction::OtherTenant }
    }
}

/// Proves who calls, and within which transaction. The proxy implements it over the verifiers of ASAP and transaction
/// tokens and what they remember.
pub trait Credentials {
    /// `Ok` when the token was signed for this service, by `peer`, and is current at `now` (Unix seconds).
    ///
    /// # Errors
    /// A refusal with one of the `ASAP_*` reasons.
    fn verify(&mut self, peer: Peer<'_>, token: &[u8], now: u64) -> Result<(), Refusal>;

    /// Verifies a transaction token (`txn-token`) at `now` (Unix seconds) and compares its tenant with the call's,
    /// [`Transaction::compare`]. Asked only where the rule wants one. A token that is remembered costs no allocation.
    ///
    /// # Errors
    /// `TXN_INVALID` or `TXN_EXPIRED`; never `TXN_TENANT_MISMATCH`, which depends on the rule.
    fn transaction(&mut self, token: &str, tenant: Named<'_>, now: u64) -> Result<Transaction, Refusal>;
}

/// Credentials that were verified before, or are assumed good: deciding an open stream again, and `policy explain`.
/// Never for a request that has just come in. Goes with [`Token::One`] of anything, for both kinds of tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Proven {
    /// What the call's transaction token proved, [`crate::inbound::Verdict::transaction`]; `None`: there was none, or no
    /// rule looked at it.
    pub transaction: Option<Transaction>,
}

impl Credentials for Proven {
    fn verify(&mut self, _peer: Peer<'_>, _token: &[u8], _now: u64) -> Result<(), Refusal> {
        Ok(())
    }

    fn transaction(&mut self, _token: &str, _tenant: Named<'_>, _now: u64) -> Result<Transaction, Refusal> {
        self.transaction
            .ok_or_else(|| Refusal::new(Reason::TxnMissing, "the call was begun without a transaction token"))
    }
}
