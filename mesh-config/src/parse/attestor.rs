//! The kind `Attestor`.

use std::collections::BTreeMap;

use super::{
    Draft, certificates,
    document::{or_default, service_name, word},
    url,
};
use crate::{
    mesh::{Attestor, AttestorRule},
    names::{DocumentName, short},
    yaml::{At, Entry, Node, Reader, Value},
};

pub(super) const FIELDS: &[&str] = &["issuer", "audience", "jwksUri", "ca", "rules"];

pub(super) fn read(reader: &mut Reader<'_>, name: DocumentName, spec: &Node, draft: &mut Draft) -> Option<Attestor> {
    let fields = reader.fields(spec, "the spec of an Attestor", FIELDS)?;
    let issuer = fields.required(reader, "issuer", "the iss of the platform's tokens");
    let issuer = issuer.and_then(|node| Some((word(reader, node, "the iss of the platform's tokens")?, node.at)));
    let audience = fields.required(reader, "audience", "the aud that tokens for this mesh have");
    let audience = audience.and_then(|node| word(reader, node, "the aud that tokens for this mesh have"));
    let jwks_uri = or_default(reader, fields, "jwksUri", None, |reader, node| url::document(reader, node).map(Some));
    if let (Some((issuer, at)), Some(None)) = (&issuer, &jwks_uri)
        && !url::is_issuer(issuer)
    {
        let message = format!(
            "issuer {:?} is no https URL below which its keys could be discovered, expected one, or jwksUri beside it",
            short(issuer)
        );
        reader.problem(*at, message);
    }
    if let (Some((issuer, at)), Some(audience)) = (&issuer, &audience) {
        // Who is asked to decide about a token must be clear from the token.
        draft.define(reader, "Attestor for the issuer and audience", &format!("{issuer} {audience}"), *at);
    }
    let ca = or_default(reader, fields, "ca", Vec::new(), certificates::read);
    let rules = fields.required(reader, "rules", "a list of rules").and_then(|node| rules(reader, node, draft));
    let (issuer, _) = issuer?;
    Some(Attestor { name, issuer, audience: audience?, jwks_uri: jwks_uri?, ca: ca?, rules: rules? })
}

fn rules(reader: &mut Reader<'_>, node: &Node, draft: &mut Draft) -> Option<Vec<AttestorRule>> {
    let nodes = reader.some_list(node, "rules")?;
    let mut rules: Vec<(AttestorRule, At)> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(rule) = rule(reader, node, draft) else { continue };
        // A rule before it that wants less decides whatever this one could.
        let before =
            rules.iter().find(|(before, _)| before.claims.iter().all(|claim| rule.claims.iter().any(|c| c == claim)));
        if let Some((_, At { line, column })) = before {
            let message = format!(
                "this rule never decides, expected claims that the rules before it do not match: the first is at \
                 {line}:{column}"
            );
            reader.problem(node.at, message);
        }
        rules.push((rule, node.at));
    }
    (rules.len() == nodes.len()).then(|| rules.into_iter().map(|(rule, _)| rule).collect())
}

fn rule(reader: &mut Reader<'_>, node: &Node, draft: &mut Draft) -> Option<AttestorRule> {
    let fields = reader.fields(node, "a rule of an Attestor", &["claims", "service"])?;
    let claims = fields.required(reader, "claims", CLAIMS).and_then(|node| claims(reader, node));
    let service = fields.required(reader, "service", "the name of a service");
    let service = service.and_then(|node| service_name(reader, node, draft));
    Some(AttestorRule { claims: claims?, service: service? })
}

const CLAIMS: &str = "a map of claims to their values, with at least one of them";

fn claims(reader: &mut Reader<'_>, node: &Node) -> Option<BTreeMap<String, String>> {
    let entries = match &node.value {
        // Without a claim, every token of the issuer would match.
        Value::Map(entries) if !entries.is_empty() => entries,
        Value::Map(_) => {
            reader.problem(node.at, format!("an empty map, expected {CLAIMS}"));
            return None;
        }
        Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_) | Value::List(_) => {
            reader.problem(node.at, format!("found {}, expected {CLAIMS}", node.value.describe()));
            return None;
        }
    };
    let mut claims = BTreeMap::new();
    for Entry { key, at, value } in entries {
        let named = is_claim(key);
        if !named {
            let message = format!("{:?} names no claim, expected its name, or a JSON pointer as {POINTER}", short(key));
            reader.problem(*at, message);
        }
        let value = word(reader, value, "the exact value of the claim");
        if let (true, Some(value)) = (named, value) {
            claims.insert(key.clone(), value);
        }
    }
    (claims.len() == entries.len()).then_some(claims)
}

const POINTER: &str = "/kubernetes.io/namespace";

/// A plain name, or a JSON pointer (RFC 6901) to something below the claims.
fn is_claim(text: &str) -> bool {
    let escapes = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    !text.is_empty() && text != "/" && !text.contains(char::is_control) && (!text.starts_with('/') || escapes)
}
