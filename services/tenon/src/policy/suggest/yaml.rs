//! Suggested allowlists as a policy file, and the frame that they are checked in.

use std::{collections::BTreeSet, fmt::Write as _};

use tenon_proto::policy::v1::{DescribeResponse, Proof, Rate, Residency, Rule, TenantConditions, TenantRequirement};

use super::{super::words::moment, Record, Suggested, Suggestion};

/// What is asked of calls that no rule decides today: the record does not say which of them named a tenant.
pub(super) const OF_AUDIT: TenantRequirement = TenantRequirement::Optional;

/// One file; the same record and policy always give the same text.
pub(super) fn document(suggestions: &[Suggestion<'_>], record: &Record) -> String {
    let mut text = format!(
        "# Made by `tenon policy suggest` from {}: {} to {}.\n\
         # Exact callers and paths of the calls that passed. What was refused, or never called, is not in it.\n",
        record.words(),
        moment(record.from),
        moment(record.until),
    );
    for suggestion in suggestions {
        allowlist(&mut text, suggestion);
    }
    text
}

fn allowlist(text: &mut String, suggestion: &Suggestion<'_>) {
    let Suggestion { service, product, name, instead_of, rules, left_out } = suggestion;
    text.push_str("---\n");
    let passed: u64 = rules.iter().map(|rule| rule.passed).sum();
    let instead_of = instead_of.iter().copied().collect::<Vec<_>>().join(", ");
    let instead_of = if instead_of.is_empty() { String::new() } else { format!(" Instead of Allowlist {instead_of}.") };
    comment(text, "", &format!("{service}: {passed} calls.{instead_of}"));
    for line in left_out {
        comment(text, "", &format!("left out: {line}"));
    }
    let (name, service) = (scalar(name), scalar(service));
    let _ = write!(
        text,
        "apiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {{name: {name}}}\nspec:\n  service: {service}\n  mode: enforce\n"
    );
    text.push_str(if rules.is_empty() { "  rules: []\n" } else { "  rules:\n" });
    for one in rules {
        rule(text, one, product);
    }
}

fn rule(text: &mut String, suggested: &Suggested<'_>, product: &str) {
    let Suggested { name, callers, paths, rule, passed, audited } = suggested;
    let indent = "    ";
    match rule {
        Some(Rule { name, allowlist, source, .. }) => {
            let at = if source.is_empty() { String::new() } else { format!(" ({source})") };
            comment(text, indent, &format!("{passed} calls, by rule {name} of {allowlist}{at}"));
        }
        None => {
            comment(
                text,
                indent,
                &format!("{passed} calls that only audit mode let pass: no rule decides them today."),
            );
            comment(text, indent, "The record has no tenants: make it required where every call names one.");
        }
    }
    if rule.is_some() {
        for (reason, count) in audited {
            comment(
                text,
                indent,
                &format!("{count} of them passed in audit mode alone, and are refused by this: {reason}"),
            );
        }
    }
    let _ = writeln!(text, "    - name: {}", scalar(name));
    let callers: Vec<_> = callers.iter().map(|caller| scalar(caller)).collect();
    let _ = writeln!(text, "      callers: [{}]\n      paths:", callers.join(", "));
    for path in paths {
        let _ = writeln!(text, "        - {path}");
    }
    let tenant = match rule.map_or(OF_AUDIT, Rule::tenant) {
        TenantRequirement::Unspecified | TenantRequirement::Required => "required",
        TenantRequirement::Optional => "optional",
        TenantRequirement::None => "none",
    };
    let _ = writeln!(text, "      tenant: {tenant}");
    let Some(rule) = rule else { return };
    if rule.proof() == Proof::Transaction {
        text.push_str("      proof: transaction\n");
    }
    if let Some(Rate { count, per_seconds, burst }) = rule.rate {
        let unit = match per_seconds {
            60 => "m",
            3_600 => "h",
            _ => "s",
        };
        let _ = writeln!(text, "      rate: {{perTenant: {count}/{unit}, burst: {burst}}}");
    }
    if let Some(tenants) = &rule.tenants {
        let _ = writeln!(text, "      tenants: {{{}}}", conditions(tenants, product));
    }
}

fn conditions(tenants: &TenantConditions, product: &str) -> String {
    let TenantConditions { editions, features, regions, ids } = tenants;
    let list = |values: &[String]| values.iter().map(|value| scalar(value)).collect::<Vec<_>>().join(", ");
    let mut parts = Vec::new();
    if !editions.is_empty() {
        parts.push(format!("products: {{{}: {{editions: [{}]}}}}", scalar(product), list(editions)));
    }
    let lists = [("features", features), ("regions", regions), ("ids", ids)];
    parts.extend(
        lists
            .into_iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(key, values)| format!("{key}: [{}]", list(values))),
    );
    parts.join(", ")
}

/// What comes out of the record may hold anything, a line break too.
fn comment(text: &mut String, indent: &str, line: &str) {
    let _ = writeln!(text, "{indent}# {}", line.replace(char::is_control, "\u{fffd}"));
}

/// A text that YAML reads as this text: plain where that is certain.
fn scalar(text: &str) -> String {
    let words = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let plain = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(letters)
        && !words.contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// The mesh, its services and regions, for the suggestion to be checked with. Clients outside of the mesh stand in it as
/// services: callers of both kinds share one namespace.
pub(super) fn frame(described: &DescribeResponse) -> String {
    let conditions =
        described.services.iter().flat_map(|service| &service.rules).filter_map(|rule| rule.tenants.as_ref());
    let mut regions: BTreeSet<&str> = described.endpoints.iter().map(|endpoint| endpoint.region.as_str()).collect();
    regions.extend(conditions.flat_map(|tenants| &tenants.regions).map(String::as_str));
    if regions.is_empty() {
        regions.insert("anywhere");
    }
    let regions: Vec<_> = regions.into_iter().map(scalar).collect();
    let (name, domain) = (scalar(&described.mesh), scalar(&described.trust_domain));
    let mut text = format!(
        "apiVersion: tenon.dev/v1\nkind: Mesh\nmetadata: {{name: {name}}}\nspec: {{trustDomain: {domain}, regions: [{}]}}\n",
        regions.join(", ")
    );
    let mut service = |name: &str, spec: &str| {
        let name = scalar(name);
        let _ = write!(
            text,
            "---\napiVersion: tenon.dev/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
        );
    };
    for record in &described.services {
        let product =
            if record.product.is_empty() { String::new() } else { format!("product: {}, ", scalar(&record.product)) };
        let residency = if record.residency() == Residency::Home { "home" } else { "any" };
        service(&record.service, &format!("{product}residency: {residency}, originates: {}", record.originates));
    }
    let outside: BTreeSet<&str> = described
        .services
        .iter()
        .flat_map(|record| &record.external_clients)
        .map(|client| client.name.as_str())
        .collect();
    for name in outside {
        service(name, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_yaml_reads_as_something_else_is_quoted() {
        for (text, written) in [
            ("media", "media"),
            ("a-b.C_d", "a-b.C_d"),
            ("no", "\"no\""),
            ("Null", "\"Null\""),
            ("1e3", "\"1e3\""),
            ("-x", "\"-x\""),
            ("a: b", "\"a: b\""),
            ("a\"\n", "\"a\\\"\\n\""),
            ("", "\"\""),
        ] {
            assert_eq!(scalar(text), written);
        }
    }

    #[test]
    fn a_comment_stays_a_comment() {
        let mut text = String::new();
        comment(&mut text, "  ", "left out: a\nkind: Mesh\r");
        assert_eq!(text, "  # left out: a\u{fffd}kind: Mesh\u{fffd}\n");
    }
}
