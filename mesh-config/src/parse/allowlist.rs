//! The kind `Allowlist`.

use std::collections::HashSet;

use super::{
    Draft,
    document::{known_caller, or_default, service_name},
    forms::{LABEL, NAME, PATH},
    tenants,
};
use crate::{
    mesh::{Allowlist, Caller, Mode, Proof, Rate, Rule, TenantCondition},
    names::{DocumentName, ServiceName, short},
    path,
    yaml::{
        Form, Map, Node, Reader,
        shape::{optional, required, words},
    },
};

pub(super) static ALLOWLIST: Map = Map {
    what: "the spec of an Allowlist",
    fields: &[
        required("service", LABEL, "The called service. Several Allowlists may name one: their rules add up."),
        optional(
            "mode",
            Form::Choice(|| words(MODES)),
            "enforce: what no rule allows is refused. audit: it is logged and counted, and passes. Default: enforce.",
        ),
        required("rules", Form::List(&Form::Map(&RULE)), "The first that names the caller and the path decides."),
    ],
};

static RULE: Map = Map {
    what: "a rule",
    fields: &[
        required("name", NAME, "Unique within the service."),
        required(
            "callers",
            Form::Set(&Form::Like(r"^(\*|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)$")),
            "Services and ExternalClients. \"*\" is any service of the mesh, and no ExternalClient.",
        ),
        required(
            "paths",
            Form::Set(&PATH),
            "An exact method, /package.Service/Method, or all methods of one gRPC service, /package.Service/*.",
        ),
        optional(
            "tenant",
            Form::Choice(|| words(TENANT)),
            "required: the call names a tenant that can be served. optional: one is verified where it is named. none: \
             tenants are ignored, and the app gets none. Default: required.",
        ),
        optional(
            "tenants",
            Form::SomeMap(&tenants::TENANTS),
            "Which tenants the rule is for: those that meet every list that is given. Default: all.",
        ),
        optional(
            "proof",
            Form::Choice(|| words(PROOF)),
            "transaction: the call carries a transaction token of its tenant. Default: none.",
        ),
        optional("rate", Form::Map(&RATE), "How often one tenant may be called for. Default: unlimited."),
    ],
};

static RATE: Map = Map {
    what: "a rate",
    fields: &[
        required("perTenant", Form::Like("^0*[1-9][0-9]{0,19}/[smh]$"), "N/s, N/m or N/h."),
        optional("burst", Form::Number(1), "Calls at once after a pause. Default: the N of perTenant."),
    ],
};

const MODES: &[(&str, Mode)] = &[("enforce", Mode::Enforce), ("audit", Mode::Audit)];

const TENANT: &[(&str, TenantCondition)] = &[
    ("required", TenantCondition::Required),
    ("optional", TenantCondition::Optional),
    ("none", TenantCondition::None),
];

const PROOF: &[(&str, Proof)] = &[("none", Proof::None), ("transaction", Proof::Transaction)];

pub(super) fn read(reader: &mut Reader<'_>, name: DocumentName, spec: &Node, draft: &mut Draft) -> Option<Allowlist> {
    let fields = reader.fields(spec, &ALLOWLIST)?;
    let service = fields.required(reader, "service", "the name of the called service");
    let service = service.and_then(|node| service_name(reader, node, draft));
    let mode = or_default(reader, fields, "mode", Mode::Enforce, |reader, node| reader.choice(node, MODES));
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

fn rule(reader: &mut Reader<'_>, node: &Node, service: Option<&ServiceName>, draft: &mut Draft) -> Option<Rule> {
    let fields = reader.fields(node, &RULE)?;
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
    let tenant =
        or_default(reader, fields, "tenant", TenantCondition::Required, |reader, node| reader.choice(node, TENANT));
    let narrowed = or_default(reader, fields, "tenants", None, |reader, node| {
        if tenant == Some(TenantCondition::None) {
            reader.problem(
                node.at,
                "tenants beside tenant: none, which ignores them, expected tenant: required or optional",
            );
        }
        tenants::read(reader, node, service, draft).map(Some)
    });
    let proof = or_default(reader, fields, "proof", Proof::None, |reader, node| reader.choice(node, PROOF));
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

/// `/package.Service/Method` or `/package.Service/*`.
pub(super) fn path(reader: &mut Reader<'_>, node: &Node) -> Option<String> {
    let expected = "/package.Service/Method or /package.Service/*";
    let text = reader.form(node, expected)?;
    let good = path::is_pattern(text);
    if !good {
        reader.problem(node.at, format!("path {:?} is not well formed, expected {expected}", short(text)));
    }
    good.then(|| text.to_owned())
}

fn rate(reader: &mut Reader<'_>, node: &Node) -> Option<Rate> {
    let fields = reader.fields(node, &RATE)?;
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
        digits.then_some((count, per_seconds))
    });
    let wrong = match parsed.map(|(count, per_seconds)| (count.parse::<u64>(), per_seconds)) {
        Some((Ok(count @ 1..), per_seconds)) => return Some((count, per_seconds)),
        Some((Err(_), _)) => format!("rate {:?} is too large, expected N of at most {}", short(text), u64::MAX),
        Some((Ok(0), _)) | None => format!("rate {:?} is not well formed, expected {PER_TENANT}", short(text)),
    };
    reader.problem(node.at, wrong);
    None
}
