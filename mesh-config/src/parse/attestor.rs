//! The kind `Attestor`.

use std::collections::BTreeMap;

use super::{
    Draft, certificates,
    document::{or_default, service_name, word},
    forms::{CERTIFICATES, LABEL, URL, WORD},
    url,
};
use crate::{
    mesh::{Attestor, AttestorRule},
    names::{DocumentName, short},
    yaml::{
        At, Entry, Form, Map, Node, Reader,
        shape::{optional, required},
    },
};

pub(super) static ATTESTOR: Map = Map {
    what: "the spec of an Attestor",
    fields: &[
        required("issuer", WORD, "iss of the platform's tokens, byte for byte."),
        required("audience", WORD, "One of aud of the tokens that are for this mesh."),
        optional("jwksUri", URL, "Where the keys are. Default: found by OpenID Connect discovery below the issuer."),
        optional(
            "ca",
            CERTIFICATES,
            "CA certificates of discovery and keys as PEM. Default: those that the system trusts.",
        ),
        required("rules", Form::Some(&Form::Map(&RULE)), "The first rule whose claims all match decides."),
    ],
};

static RULE: Map = Map {
    what: "a rule of an Attestor",
    fields: &[
        required(
            "claims",
            Form::SomeNames(&WORD, &WORD),
            "Name of a claim, or a JSON pointer into the claims such as /kubernetes.io/namespace, and its exact value.",
        ),
        required("service", LABEL, "The service whose identity such a token gets."),
    ],
};

pub(super) fn read(reader: &mut Reader<'_>, name: DocumentName, spec: &Node, draft: &mut Draft) -> Option<Attestor> {
    let fields = reader.fields(spec, &ATTESTOR)?;
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
    let fields = reader.fields(node, &RULE)?;
    let claims = fields.required(reader, "claims", CLAIMS).and_then(|node| claims(reader, node));
    let service = fields.required(reader, "service", "the name of a service");
    let service = service.and_then(|node| service_name(reader, node, draft));
    Some(AttestorRule { claims: claims?, service: service? })
}

const CLAIMS: &str = "a map of claims to their values, with at least one of them";

fn claims(reader: &mut Reader<'_>, node: &Node) -> Option<BTreeMap<String, String>> {
    // Without a claim, every token of the issuer would match.
    let entries = reader.some_names(node, CLAIMS)?;
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
