//! A token request: RFC 8693 as draft-ietf-oauth-transaction-tokens profiles it. Reading it needs no key, no store and no
//! clock.

use mesh_config::names::{TenantId, TrustDomain};
use serde_json::{Map, Value};

use super::error::OAuthError;

const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// What is asked for, and what is given.
pub(super) const TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:txn_token";
const SELF_SIGNED: &str = "urn:ietf:params:oauth:token-type:self_signed";
const UNSIGNED_JSON: &str = "urn:ietf:params:oauth:token-type:unsigned_json";

/// Longest request, in bytes.
pub(super) const MAX_REQUEST_BYTES: usize = 32 * 1024;
/// Longest subject, in bytes.
const MAX_SUBJECT_BYTES: usize = 256;
/// Longest scope, in bytes.
const MAX_SCOPE_BYTES: usize = 1024;

/// A request that is complete and well formed. Whether its subject token is good is still to be seen.
#[derive(Debug, PartialEq)]
pub(super) struct Exchange {
    pub scope: Scope,
    pub subject_token: SubjectToken,
    /// `request_details` of a request, which become `tctx`; without the tenant.
    pub details: Map<String, Value>,
    pub tenant: Option<TenantId>,
    /// `request_context`, which becomes `rctx`.
    pub context: Map<String, Value>,
}

/// Who the transaction is for, as the requester says it.
#[derive(Debug, PartialEq)]
pub(super) enum SubjectToken {
    /// A JWT that the requester signed with its ASAP key.
    SelfSigned(String),
    /// The requester's word, over mTLS.
    Unsigned(Map<String, Value>),
}

/// The purpose of a transaction: words, without order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope(String);

/// Who a transaction is for: what stands as `sub`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject(String);

impl Exchange {
    /// From a form (RFC 6749 appendix B). `trust_domain` is the only audience that there is.
    pub(super) fn parse(form: &[u8], trust_domain: &TrustDomain) -> Result<Self, OAuthError> {
        let mut form = Form::parse(form)?;
        match form.take("grant_type") {
            Some(grant) if grant == GRANT_TYPE => {}
            Some(_) => return Err(OAuthError::unsupported_grant_type(format!("grant_type must be {GRANT_TYPE}"))),
            None => return Err(missing("grant_type")),
        }
        if form.need("requested_token_type")? != TOKEN_TYPE {
            return Err(OAuthError::invalid_request(format!("requested_token_type must be {TOKEN_TYPE}")));
        }
        if form.need("audience")? != trust_domain.as_str() {
            return Err(OAuthError::invalid_target(format!("audience must be the trust domain, {trust_domain}")));
        }
        if form.take("actor_token").or(form.take("actor_token_type")).is_some() {
            return Err(OAuthError::invalid_request(
                "actor tokens are not taken: the client certificate names who asks",
            ));
        }
        let scope = form.take("scope").ok_or_else(|| OAuthError::invalid_scope("scope is missing"))?;
        let scope = Scope::parse(&scope).ok_or_else(Scope::malformed)?;
        let (token, kind) = (form.need("subject_token")?, form.need("subject_token_type")?);
        let subject_token = match kind.as_str() {
            SELF_SIGNED => SubjectToken::SelfSigned(token),
            UNSIGNED_JSON => SubjectToken::Unsigned(object("subject_token", &token)?),
            _ => {
                let expected = format!("subject_token_type must be {SELF_SIGNED} or {UNSIGNED_JSON}");
                return Err(OAuthError::invalid_request(expected));
            }
        };
        let object_of = |name: &str, text: Option<String>| text.map_or(Ok(Map::new()), |text| object(name, &text));
        let mut details = object_of("request_details", form.take("request_details"))?;
        let context = object_of("request_context", form.take("request_context"))?;
        let tenant = details.remove("tenant").map(tenant).transpose()?;
        Ok(Self { scope, subject_token, details, tenant, context })
    }
}

fn tenant(value: Value) -> Result<TenantId, OAuthError> {
    let wrong = || OAuthError::invalid_request("the tenant in request_details is not a tenant id");
    TenantId::try_from(value.as_str().ok_or_else(wrong)?).map_err(|_| wrong())
}

fn object(name: &str, text: &str) -> Result<Map<String, Value>, OAuthError> {
    serde_json::from_str(text).map_err(|_| OAuthError::invalid_request(format!("{name} is not one JSON object")))
}

fn missing(name: &str) -> OAuthError {
    OAuthError::invalid_request(format!("{name} is missing"))
}

impl Scope {
    /// RFC 6749 §3.3: words of printable ASCII without quotation mark and backslash, one space between two.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let printable = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        let word = |word: &str| !word.is_empty() && word.bytes().all(printable);
        (text.len() <= MAX_SCOPE_BYTES && text.split(' ').all(word)).then(|| Self(text.to_owned()))
    }

    pub(super) fn malformed() -> OAuthError {
        OAuthError::invalid_scope("scope must be words with one space between two, of at most 1024 bytes")
    }

    /// Whether every word of this one stands in `other`: what is asked for may be no more than what the subject token
    /// allows.
    pub(super) fn is_within(&self, other: &str) -> bool {
        self.0.split(' ').all(|word| other.split(' ').any(|allowed| allowed == word))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Subject {
    /// Anything that can be printed on a line.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let good = !text.trim().is_empty() && text.len() <= MAX_SUBJECT_BYTES && !text.contains(char::is_control);
        good.then(|| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The parameters of a request. Those that nobody knows are ignored (RFC 6749 §3.2).
struct Form(Vec<(String, String)>);

impl Form {
    fn parse(text: &[u8]) -> Result<Self, OAuthError> {
        let mut form: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(text) {
            if form.iter().any(|(other, _)| *other == *name) {
                return Err(OAuthError::invalid_request("a parameter stands twice"));
            }
            form.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(form))
    }

    /// Without a value it counts as absent (RFC 6749 §3.2).
    fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.swap_remove(index).1).filter(|value| !value.is_empty())
    }

    fn need(&mut self, name: &str) -> Result<String, OAuthError> {
        self.take(name).ok_or_else(|| missing(name))
    }
}

#[cfg(test)]
mod tests;
