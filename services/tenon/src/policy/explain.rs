//! `tenon policy explain`: what the sidecars' own decision code says of one call.

use std::{fs, path::Path};

use mesh_config::{
    compile,
    names::{RegionName, TenantId},
    tenant::read_json_lines,
    yaml::suggestion,
};
use sidecar_core::explain::{Call, Explanation, Limited, Mesh as Model, TransactionToken};
use tenon_proto::tcs::v1::{GetRequest, TenantContext, get_request::By, tenants_client::TenantsClient};
use tonic::Code;

use ::policy::json::change;

use crate::{
    cli::Explain,
    failure::{Answer, Failure},
    operator::Mesh,
    output::{Output, Tone},
};

/// Runs the command: exit code 0 when the call is allowed, 1 when it is not.
///
/// # Errors
/// Wrong usage, also a name that is none; problems of the files, or no mesh.
pub async fn run(args: Explain) -> Result<Answer, Failure> {
    if !args.path.starts_with('/') {
        return Err(Failure::usage(format!("--path {}: expected /package.Service/Method", args.path))
            .next("write the path as it stands in the rules"));
    }
    if let Some(Some(tenant)) = &args.transaction {
        TenantId::try_from(tenant.as_str()).map_err(|error| {
            Failure::usage(format!("--transaction {tenant}: {error}"))
                .next("name a tenant's id, or leave it out for a token of no tenant")
        })?;
    }
    let model = match &args.folder {
        Some(folder) => offline(folder, &args)?,
        None => online(&args).await?,
    };
    let call = Call {
        caller: &args.caller,
        service: &args.service,
        path: without_query(&args.path),
        tenant: args.tenant.as_deref(),
        region: args.region.as_deref(),
        transaction: args.transaction.as_ref().map(|tenant| TransactionToken { tenant: tenant.as_deref() }),
    };
    let explanation = model
        .explain(&call, mesh_identity::clock::unix_seconds())
        .map_err(|problem| Failure::usage(problem).next("give plain names, as they stand in the policy files"))?;
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&json(&explanation))?;
    } else {
        let verdict = match explanation.allowed {
            true => out.toned(Tone::Good, "allowed"),
            false => out.toned(Tone::Bad, "refused"),
        };
        for line in words(&call, &explanation, &verdict) {
            out.line(&line)?;
        }
    }
    out.flush()?;
    Ok(explanation.allowed.into())
}

/// Sidecars compare the path as it stands on the wire, and without its query (DESIGN §8).
fn without_query(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

fn offline(folder: &Path, args: &Explain) -> Result<Model, Failure> {
    let mesh = super::load(folder)?;
    if let Some(region) = &args.region {
        let regions = || mesh.regions().iter().map(RegionName::as_str);
        if !regions().any(|known| known == region) {
            let hint = suggestion(region, regions());
            return Err(Failure::usage(format!("--region {region}: the Mesh has no such region{hint}"))
                .next("name one of the regions of the Mesh document"));
        }
    }
    let records = compile(&mesh);
    let tenants = args.tenants.as_deref().map(read_tenants).transpose()?;
    model(records.allowlists.values(), records.routes.values(), records.quarantines.values(), tenants)
}

pub(super) fn read_tenants(file: &Path) -> Result<Vec<TenantContext>, Failure> {
    let text = fs::read_to_string(file).map_err(|error| {
        Failure::new(format!("cannot read {}: {error}", file.display()))
            .next("name a file of tenants with --tenants, one JSON object a line")
    })?;
    read_json_lines(&file.display().to_string(), &text)
        .map_err(|problems| Failure::new(problems.to_string()).next("correct the file and try again"))
}

async fn online(args: &Explain) -> Result<Model, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let described = super::describe_policy(&mesh).await?;
    let tenants = match &args.tenant {
        None => Vec::new(),
        Some(id) => {
            let request = GetRequest { by: Some(By::TenantId(id.clone())), at_least: None };
            match TenantsClient::new(mesh.tcs_for_reads()).get(request).await {
                Ok(tenant) => vec![tenant.into_inner()],
                // A tenant that does not exist, or whose id cannot be one: unknown to the sidecars too.
                Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => Vec::new(),
                Err(status) => return Err(mesh.read_failure(&format!("cannot ask for tenant {id}"), &status)),
            }
        }
    };
    model(&described.services, &described.routes, &described.quarantines, Some(tenants))
}

fn model<'r>(
    services: impl IntoIterator<Item = &'r tenon_proto::policy::v1::ServicePolicy>,
    routes: impl IntoIterator<Item = &'r tenon_proto::policy::v1::Route>,
    quarantines: impl IntoIterator<Item = &'r tenon_proto::policy::v1::Quarantine>,
    tenants: Option<Vec<TenantContext>>,
) -> Result<Model, Failure> {
    Model::new(services, routes, quarantines, tenants).map_err(|problem| {
        Failure::new(format!("the policy cannot be used: {problem}"))
            .next("`tenon policy status` shows the policy in force; apply one that this version knows")
    })
}

/// The JSON of DESIGN §8, and more for whoever looks closer.
pub(super) fn json(explanation: &Explanation) -> serde_json::Value {
    serde_json::json!({
        "allowed": explanation.allowed,
        "reason": explanation.reason.map(|reason| reason.as_str()),
        "allowlist": explanation.allowlist,
        "rule": explanation.rule,
        "source": explanation.source,
        "message": explanation.message,
        "nearest": explanation.nearest.as_ref().map(|nearest| serde_json::json!({
            "allowlist": nearest.allowlist,
            "rule": nearest.rule,
            "source": nearest.source,
            "missed": nearest.missed.as_str(),
            "allows": nearest.allows,
        })),
        "condition": explanation.condition.map(|condition| condition.as_str()),
        "audited": explanation.audited.map(|reason| reason.as_str()),
        "proposal": explanation.proposal.as_ref().map(|proposal| proposal.changes.iter().map(change).collect::<Vec<_>>()),
        "rate": explanation.limited.map(|Limited { rate, of_the_tenant, audit }| serde_json::json!({
            "calls": rate.count, "seconds": rate.per.as_secs(), "burst": rate.burst,
            "of": if of_the_tenant { "tenant" } else { "caller" }, "audit": audit,
        })),
        "assumed": explanation.assumed,
    })
}

/// `verdict` is `allowed` or `refused`, perhaps in a colour.
fn words(call: &Call<'_>, explanation: &Explanation, verdict: &str) -> Vec<String> {
    let verdict = match explanation.reason {
        None => verdict.to_owned(),
        Some(reason) => {
            format!("{verdict}: {}: {}", reason.as_str(), explanation.message.as_deref().unwrap_or_default())
        }
    };
    let mut lines = vec![format!("{} -> {} {}: {verdict}", call.caller, call.service, call.path)];
    lines.extend(decided(explanation).map(|decided| format!("  {decided}")));
    if let Some(reason) = explanation.audited {
        lines.push(format!("  audit mode let it pass: enforced, it would be refused with {}", reason.as_str()));
    }
    lines.extend(
        explanation.condition.map(|condition| format!("  the rule is not for this tenant: {condition} differs")),
    );
    lines.extend(explanation.limited.map(|limited| format!("  {}", rated(call, limited))));
    lines.extend(nearest(explanation).map(|nearest| format!("  {nearest}")));
    let to_allow = if explanation.audited.is_some() { "to allow it when enforced" } else { "to allow it" };
    for (index, change) in explanation.proposal.iter().flat_map(|proposal| &proposal.changes).enumerate() {
        let and = if index == 0 { to_allow } else { "and" };
        lines.push(format!("  {and:>width$}: {change}", width = to_allow.len()));
    }
    lines.extend(explanation.assumed.iter().map(|assumed| format!("  assumed: {assumed}")));
    lines
}

/// The rule that decided or, when none matches, the one that came closest.
pub(super) fn because(explanation: &Explanation) -> Option<String> {
    decided(explanation).or_else(|| nearest(explanation))
}

fn decided(explanation: &Explanation) -> Option<String> {
    let allowlist = explanation.allowlist.as_ref()?;
    match &explanation.rule {
        Some(rule) => {
            let source = explanation.source.as_deref().unwrap_or_default();
            Some(format!("decided by rule {rule} of allowlist {allowlist}{}", place(source)))
        }
        None if explanation.allowed => {
            Some(format!("no rule matches; allowlist {allowlist} is in audit mode and lets it pass"))
        }
        None => None,
    }
}

/// Whether the call passes also hangs on how many came before it.
fn rated(call: &Call<'_>, limited: Limited) -> String {
    let Limited { rate, of_the_tenant, audit } = limited;
    let whose = match call.tenant.filter(|_| of_the_tenant) {
        Some(tenant) => format!("tenant {tenant}, whoever calls for it"),
        None => format!("{} for calls without tenant", call.caller),
    };
    let (count, seconds, burst) = (rate.count, rate.per.as_secs(), rate.burst);
    let beyond = match audit {
        false => "beyond that it is refused with TENANT_RATE_LIMITED",
        true => "beyond that TENANT_RATE_LIMITED is logged, and not enforced",
    };
    format!("rate of the rule: {count} calls in {seconds} s, {burst} at once, of {whose}, at each instance; {beyond}")
}

fn nearest(explanation: &Explanation) -> Option<String> {
    let nearest = explanation.nearest.as_ref()?;
    Some(format!(
        "nearest: rule {} of allowlist {}{}; it differs by {} and allows {}",
        nearest.rule,
        nearest.allowlist,
        place(&nearest.source),
        nearest.missed.as_str().replace('_', " "),
        nearest.allows.join(", ")
    ))
}

fn place(source: &str) -> String {
    if source.is_empty() { String::new() } else { format!(" at {source}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(caller: &str, path: &str, tenant: Option<&str>) -> Explanation {
        explain_with_rate(caller, path, tenant, None)
    }

    fn explain_with_rate(
        caller: &str,
        path: &str,
        tenant: Option<&str>,
        rate: Option<tenon_proto::policy::v1::Rate>,
    ) -> Explanation {
        let policy: tenon_proto::policy::v1::ServicePolicy = tenon_proto::policy::v1::ServicePolicy {
            service: "media".into(),
            originates: true,
            rules: vec![tenon_proto::policy::v1::Rule {
                allowlist: "media".into(),
                name: "read".into(),
                callers: vec!["issues".into()],
                paths: vec!["/media.v1.Media/Get".into()],
                tenant: tenon_proto::policy::v1::TenantRequirement::Required.into(),
                proof: tenon_proto::policy::v1::Proof::None.into(),
                source: "media.yaml:7".into(),
                rate,
                ..Default::default()
            }],
            residency: tenon_proto::policy::v1::Residency::Any.into(),
            ..Default::default()
        };
        let routes = ["media", "issues", "wiki"].map(|service| tenon_proto::policy::v1::Route {
            service: service.into(),
            residency: tenon_proto::policy::v1::Residency::Any.into(),
            ..Default::default()
        });
        let model = model([&policy], &routes, [], None).unwrap();
        model
            .explain(&Call { caller, service: "media", path, tenant, region: None, transaction: None }, 1_800_000_000)
            .unwrap()
    }

    #[test]
    fn a_query_is_not_compared() {
        assert_eq!(without_query("/media.v1.Media/Get?x=1?y"), "/media.v1.Media/Get");
        assert_eq!(without_query("/media.v1.Media/Get"), "/media.v1.Media/Get");
    }

    #[test]
    fn an_allowed_call_names_its_rule() {
        let json = json(&explain("issues", "/media.v1.Media/Get", Some("acme")));
        assert_eq!(json["allowed"], true);
        assert_eq!(json["reason"], serde_json::Value::Null);
        assert_eq!((&json["allowlist"], &json["rule"]), (&"media".into(), &"read".into()));
    }

    #[test]
    fn a_rule_that_matched_is_named_also_when_its_tenant_condition_refused() {
        let json = json(&explain("issues", "/media.v1.Media/Get", None));
        assert_eq!((&json["allowed"], &json["reason"]), (&false.into(), &"TENANT_REQUIRED".into()));
        assert_eq!((&json["allowlist"], &json["rule"]), (&"media".into(), &"read".into()));
    }

    #[test]
    fn a_caller_that_nobody_defines_is_refused_and_told_so() {
        let json = json(&explain("isues", "/media.v1.Media/Get", Some("acme")));
        assert_eq!((&json["allowed"], &json["reason"]), (&false.into(), &"PATH_NOT_ALLOWED".into()));
        let message = json["message"].as_str().unwrap();
        assert!(message.contains("isues is neither a service of the mesh"), "{message}");
    }

    /// Bug: a call that a rule limits was said to be allowed, and nothing else.
    #[test]
    fn a_call_that_its_rule_limits_is_allowed_so_often() {
        let (path, tenant) = ("/media.v1.Media/Get", Some("acme"));
        let rate = tenon_proto::policy::v1::Rate { count: 100, per_seconds: 60, burst: 20 };
        let limited = explain_with_rate("issues", path, tenant, Some(rate));
        let json_of = |explanation| json(explanation)["rate"].clone();
        let expected = serde_json::json!({"calls": 100, "seconds": 60, "burst": 20, "of": "tenant", "audit": false});
        assert_eq!((limited.allowed, json_of(&limited)), (true, expected));
        let call = Call { caller: "issues", service: "media", path, tenant, region: None, transaction: None };
        let text = words(&call, &limited, "allowed").join("\n");
        let expected = "rate of the rule: 100 calls in 60 s, 20 at once, of tenant acme, whoever calls for it, at each instance; \
                        beyond that it is refused with TENANT_RATE_LIMITED";
        assert!(text.contains(expected), "{text}");
        let unlimited = explain("issues", path, tenant);
        assert_eq!(json_of(&unlimited), serde_json::Value::Null);
        assert!(!words(&call, &unlimited, "allowed").join("\n").contains("rate"));
    }

    #[test]
    fn a_call_that_no_rule_matches_names_the_nearest_and_what_it_missed_by() {
        let explanation = explain("wiki", "/media.v1.Media/Get", Some("acme"));
        let json = json(&explanation);
        assert_eq!((&json["reason"], &json["rule"]), (&"PATH_NOT_ALLOWED".into(), &serde_json::Value::Null));
        assert_eq!((&json["nearest"]["rule"], &json["nearest"]["missed"]), (&"read".into(), &"caller".into()));
        let (path, tenant) = ("/media.v1.Media/Get", Some("acme"));
        let call = Call { caller: "wiki", service: "media", path, tenant, region: None, transaction: None };
        let text = words(&call, &explanation, "refused").join("\n");
        assert!(text.contains("refused: PATH_NOT_ALLOWED: "), "{text}");
        assert!(
            text.contains(
                "nearest: rule read of allowlist media at media.yaml:7; it differs by caller and allows issues"
            ),
            "{text}"
        );
    }
}
