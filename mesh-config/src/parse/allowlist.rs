//! The kind `Allowlist`.

use std::collections::HashSet;

use super::{
    Draft,
    document::{known_caller, or_default, service_name},
    tenants,
};
use crate::{
    mesh::{Allowlist, Caller, Mode, Proof, Rate, Rule, TenantCondition},
    names::{DocumentName, ServiceName, short},
    yaml::{Node, Reader},
};

pub(super) fn read(reader: &mut Reader<'_>, name: DocumentName, spec: &Node, draft: &mut Draft) -> Option<Allowlist> {
    let fields = reader.fields(spec, "the spec of an Allowlist", &["service", "mode", "rules"])?;
    let service = fields.required(reader, "service", "the name of the called service");
    let service = service.and_then(|node| service_name(reader, node, draft));
    let mode = or_default(reader, fields, "mode", Mode::Enforce, |reader, node| {
        reader.choice(node, &[("enforce", Mode::Enforce), ("audit", Mode::Audit)])
    });
    let rules = fields.required(reader, "rules", "a list of rules");
    let rules = rules.and_then(|node| rules_of(reader, node, service.as_ref(), draft));
    Some(Allowlist { name, service: service?, mode: mode?, rules: rules? })
}

fn rules_of(
    reader: &mut Reader<'_>,
    node: &Node,
    service: Option<&ServiceName>,
    draft: &mut Draft,
) -> Option<Vec<Rule>> {
    let items = reader.list(node, "rules")?;
    let rules: Vec<Rule> = items.iter().filter_map(|item| rule(reader, item, service, draft)).collect();
    (rules.len() == items.len()).then_some(rules)
}

pub(super) const RULE: &[&str] = &["name", "callers", "paths", "tenant", "tenants", "proof", "rate"];

fn rule(reader: &mut Reader<'_>, node: &Node, service: Option<&ServiceName>, draft: &mut Draft) -> Option<Rule> {
    let fields = reader.fields(node, "a rule", RULE)?;
    let name = fields.required(reader, "name", "a name that is unique within the service").and_then(|node| {
        let name: DocumentName = reader.parsed(node, "the name of the rule")?;
        if let Some(service) = service {
            draft.define(reader, &format!("rule of {service}"), name.as_str(), node.at);
        }
        Some(name)
    });
    let callers = fields.required(reader, "callers", "a list of service names, or [\"*\"]");
    let callers = callers.and_then(|node| {
        each(reader, node, "service names", |reader, item| match reader.text(item, "a service name or \"*\"")? {
            "*" => Some(Caller::Any),
            _ => known_caller(reader, item, draft).map(Caller::Named),
        })
    });
    let paths = fields
        .required(reader, "paths", "a list of gRPC paths")
        .and_then(|node| each(reader, node, "gRPC paths", path));
    let tenant = or_default(reader, fields, "tenant", TenantCondition::Required, |reader, node| {
        let (required, optional, none) = (TenantCondition::Required, TenantCondition::Optional, TenantCondition::None);
        reader.choice(node, &[("required", required), ("optional", optional), ("none", none)])
    });
    let narrowed = or_default(reader, fields, "tenants", None, |reader, node| {
        if tenant == Some(TenantCondition::None) {
            reader.problem(node.at, "tenants beside tenant: none, which ignores them, expected tenant: required or optional");
        }
        tenants::read(reader, node, service, draft).map(Some)
    });
    let proof = or_default(reader, fields, "proof", Proof::None, |reader, node| {
        reader.choice(node, &[("none", Proof::None), ("transaction", Proof::Transaction)])
    });
    let rate = or_default(reader, fields, "rate", None, |reader, node| rate(reader, node).map(Some));
    let source = format!("{}:{}", reader.file(), node.at.line);
    Some(Rule {
        name: name?,
        callers: callers?,
        paths: paths?,
        tenant: tenant?,
        tenants: narrowed?,
        proof: proof?,
        rate: rate?,
        source,
    })
}

/// A list whose items are each read the same way, none of them twice.
pub(super) fn each<T>(
    reader: &mut Reader<'_>,
    node: &Node,
    what: &str,
    mut read: impl FnMut(&mut Reader<'_>, &Node) -> Option<T>,
) -> Option<Vec<T>> {
    let nodes = reader.some_list(node, what)?;
    let mut seen = HashSet::new();
    let mut items = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(item) = read(reader, node) else { continue };
        // All kinds of item are text in the file.
        let text = reader.text(node, what)?;
        if seen.insert(text) {
            items.push(item);
        } else {
            reader.problem(node.at, format!("{text:?} stands twice, expected it once"));
        }
    }
    (items.len() == nodes.len()).then_some(items)
}

/// `/package.Service/Method` or `/package.Service/*`, the only patterns that there are (DESIGN §6).
fn path(reader: &mut Reader<'_>, node: &Node) -> Option<String> {
    let expected = "/package.Service/Method or /package.Service/*";
    let text = reader.form(node, expected)?;
    let parts = text.strip_prefix('/').and_then(|rest| rest.split_once('/'));
    let good = parts.is_some_and(|(service, method)| {
        service.split('.').all(is_identifier) && (method == "*" || is_identifier(method))
    });
    if !good {
        reader.problem(node.at, format!("path {:?} is not well formed, expected {expected}", short(text)));
    }
    good.then(|| text.to_owned())
}

/// A protobuf identifier, or what other gRPC stacks put in its place.
fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn rate(reader: &mut Reader<'_>, node: &Node) -> Option<Rate> {
    let fields = reader.fields(node, "a rate", &["perTenant", "burst"])?;
    let per_tenant = fields.required(reader, "perTenant", PER_TENANT).and_then(|node| per_tenant(reader, node));
    let burst = or_default(reader, fields, "burst", None, |reader, node| reader.number(node, 1).map(Some));
    let (count, per_seconds) = per_tenant?;
    Some(Rate { count, per_seconds, burst: burst?.unwrap_or(count) })
}

const PER_TENANT: &str = "N/s, N/m or N/h with a whole number N of at least 1";

fn per_tenant(reader: &mut Reader<'_>, node: &Node) -> Option<(u64, u32)> {
    let text = reader.form(node, PER_TENANT)?;
    let parsed = text.split_once('/').and_then(|(count, unit)| {
        let per_seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return None,
        };
        let digits = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
        let count = count.parse().ok().filter(|count| digits && *count >= 1)?;
        Some((count, per_seconds))
    });
    if parsed.is_none() {
        reader.problem(node.at, format!("rate {:?} is not well formed, expected {PER_TENANT}", short(text)));
    }
    parsed
}
