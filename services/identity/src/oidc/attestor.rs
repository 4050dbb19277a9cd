//! An Attestor of the mesh policy: whose tokens attest which services.

use bytes::Bytes;
use mesh_config::names::{ServiceName, control_plane};
use prost::Message as _;
use serde_json::{Map, Value};
use tenon_proto::policy::v1 as proto;

use super::fetch::Https;
use super::keys::KeySet;

/// One Attestor, with the keys of its issuer as they are known now. A changed document starts without any.
pub(crate) struct Attestor {
    pub(super) name: String,
    /// `iss`, byte for byte.
    pub(super) issuer: String,
    /// One of `aud`, byte for byte.
    pub(super) audience: String,
    rules: Vec<Rule>,
    pub(super) keys: KeySet,
    pub(super) https: Https,
}

#[derive(Debug)]
struct Rule {
    claims: Vec<Wanted>,
    service: ServiceName,
}

/// What a claim must be.
#[derive(Debug)]
struct Wanted {
    /// A member of the claims, or a JSON pointer (RFC 6901) when it begins with a slash.
    claim: String,
    value: String,
}

impl Attestor {
    /// The service of the first rule whose claims all match.
    pub(super) fn service_for(&self, claims: &Map<String, Value>) -> Option<&ServiceName> {
        self.rules.iter().find(|rule| rule.matches(claims)).map(|rule| &rule.service)
    }

    /// How it could be told apart from one that has come in its place.
    pub(super) fn is_for(&self, issuer: &str, audiences: &[&str]) -> bool {
        self.issuer == issuer && audiences.contains(&self.audience.as_str())
    }
}

impl Rule {
    /// A rule without claims matches nothing: it would make every token of the issuer one of the service.
    fn matches(&self, claims: &Map<String, Value>) -> bool {
        !self.claims.is_empty() && self.claims.iter().all(|wanted| wanted.matches(claims))
    }
}

impl Wanted {
    /// Strings as they are, numbers and truth values as JSON writes them, arrays when they contain it.
    fn matches(&self, claims: &Map<String, Value>) -> bool {
        match find(claims, &self.claim) {
            Some(Value::Array(items)) => items.iter().any(|item| self.is(item)),
            Some(value) => self.is(value),
            None => false,
        }
    }

    fn is(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => *text == self.value,
            Value::Number(number) => number.to_string() == self.value,
            Value::Bool(truth) => truth.to_string() == self.value,
            Value::Null | Value::Array(_) | Value::Object(_) => false,
        }
    }
}

fn find<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let Some(pointer) = path.strip_prefix('/') else { return claims.get(path) };
    let (first, rest) = pointer.split_once('/').map_or((pointer, None), |(first, rest)| (first, Some(rest)));
    let member = claims.get(&first.replace("~1", "/").replace("~0", "~"))?;
    rest.map_or(Some(member), |rest| member.pointer(&format!("/{rest}")))
}

impl replica::Decode for Attestor {
    fn decode(key: &str, _: u64, raw: Bytes) -> Result<Self, String> {
        let wrong = |what: String| format!("attestor {key:?}: {what}");
        let record = proto::Attestor::decode(raw).map_err(|error| wrong(error.to_string()))?;
        let proto::Attestor { name, issuer, audience, jwks_uri, ca, rules } = record;
        let https = |url: &str| url.starts_with("https://");
        if audience.is_empty() {
            return Err(wrong("it names no audience".to_owned()));
        }
        // An issuer need not be a URL when its keys are found without it.
        if !(https(&jwks_uri) || jwks_uri.is_empty() && https(&issuer)) {
            return Err(wrong("its keys must be found over https".to_owned()));
        }
        let rules = rules.into_iter().map(Rule::try_from).collect::<Result<_, _>>().map_err(wrong)?;
        Ok(Self { keys: KeySet::new(issuer.clone(), jwks_uri), https: Https::new(ca), name, issuer, audience, rules })
    }
}

impl TryFrom<proto::AttestorRule> for Rule {
    type Error = String;

    fn try_from(rule: proto::AttestorRule) -> Result<Self, String> {
        let service = ServiceName::try_from(rule.service.as_str()).map_err(|error| error.to_string())?;
        if service.as_str().starts_with(control_plane::PREFIX) {
            return Err(format!("{service} is of the control plane, which joins with join tokens alone"));
        }
        let claims = rule.claims.into_iter().map(|(claim, value)| Wanted { claim, value }).collect();
        Ok(Self { claims, service })
    }
}

impl std::fmt::Debug for Attestor {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Attestor")
            .field("name", &self.name)
            .field("issuer", &self.issuer)
            .field("audience", &self.audience)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
