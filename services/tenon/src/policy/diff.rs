//! `tenon policy diff`: what a new policy would do to the calls that were really made.

mod conditions;

use std::collections::BTreeSet;

use ::policy::json;
use mesh_config::{Records, compile, route_changes};
use serde_json::{Value, json};
use tenon_proto::policy::v1::{DescribeResponse, ServicePolicy};

use self::conditions::{newly_asked, no_longer_asked};
use super::{
    acks,
    decide::{Call, Calls, Decided, Decider, calls},
    describe_policy,
    flows::Record,
    load, same,
    words::{self, moment},
};
use crate::{
    cli::PolicyDiff,
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::Output,
};

/// Runs the command. Exits 1 when calls that passed would newly be refused.
///
/// # Errors
/// Problems of the folder, no mesh, or no answer.
pub async fn run(args: PolicyDiff) -> Result<Answer, Failure> {
    let records = compile(&load(&args.folder)?);
    let mesh = Mesh::find(&args.mesh.data)?;
    let described = describe_policy(&mesh).await?;
    let record = Record::take(&mesh, &args.record, "").await?;
    let told = acks::ask(&mesh).await;
    let told = told.map_err(|status| mesh.failure(Role::Policy, "cannot ask which sidecars are connected", &status))?;
    let connected = acks::count_by_service(&told);
    let touched: Vec<_> = touched(&described, &records)
        .into_iter()
        .map(|service| (service.to_owned(), connected.get(service).copied().unwrap_or_default()))
        .collect();
    let (for_all, routes) = (for_all(&described, &records), routes(&described, &records));
    let diff = Diff { touched, for_all, routes, ..Diff::of(&described, &records, &record)? };
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&diff.json(&record))?;
    } else {
        show(&mut out, &diff, &record)?;
    }
    out.flush()?;
    Ok(diff.refused.is_empty().into())
}

/// One flow that is decided otherwise.
#[derive(Debug, PartialEq)]
struct Changed {
    call: Call,
    calls: Calls,
    /// By the policy in force, in words.
    before: String,
    /// By the new one: the reason, the rule, or what its rule newly asks or no longer does.
    now: Vec<String>,
}

#[derive(Debug, Default, PartialEq)]
struct Diff {
    refused: Vec<Changed>,
    /// A rule still matches, and asks for more than the one before.
    may_be_refused: Vec<Changed>,
    allowed: Vec<Changed>,
    /// A rule matched before, and no longer asks what calls were refused for.
    may_be_allowed: Vec<Changed>,
    /// Calls to paths that the record does not tell apart.
    together: u64,
    /// Services whose own record changes, with how many sidecars are connected.
    touched: Vec<(String, usize)>,
    /// Kinds of which every sidecar gets what changes.
    for_all: Vec<&'static str>,
    /// How services are called otherwise, a line for each.
    routes: Vec<String>,
}

impl Diff {
    fn of(described: &DescribeResponse, records: &Records, record: &Record) -> Result<Self, Failure> {
        let before = Decider::in_force(described)?;
        let now = Decider::new(records.allowlists.values(), records.routes.values(), records.quarantines.values())?;
        let (calls, together) = calls(record);
        let mut diff = Self { together, ..Self::default() };
        for (call, calls) in calls {
            let (was, is) = (before.decide(&call), now.decide(&call));
            let changed =
                |now: Vec<String>| Changed { call: call.clone(), calls: calls.clone(), before: was.words(), now };
            match (was.passes(), is.passes()) {
                // Calls that never passed lose nothing: their tenants, say, were refused.
                (true, false) if calls.passed() > 0 => diff.refused.push(changed(vec![is.words()])),
                (true, true) => {
                    let asked = newly_asked((was, &before), (is, &now), &call);
                    if calls.passed() > 0 && !asked.is_empty() {
                        diff.may_be_refused.push(changed(asked));
                    }
                    let no_longer = no_longer_asked((was, &before), (is, &now), &call, &calls);
                    if !no_longer.is_empty() {
                        diff.may_be_allowed.push(changed(no_longer));
                    }
                }
                (false, true) => diff.allowed.push(changed(vec![is.words()])),
                (true | false, false) => {}
            }
        }
        Ok(diff)
    }

    fn json(&self, record: &Record) -> Value {
        let flows = |changed: &[Changed], key: &str, one: bool| -> Value {
            let flow = |changed: &Changed| {
                let Changed { call, calls, before, now } = changed;
                let mut json = json!({
                    "caller": call.caller, "service": call.service, "path": call.path,
                    "count": calls.all(), "passed": calls.passed(), "last": json::moment(calls.last), "before": before,
                });
                json[key] = if one { now.first().cloned().into() } else { now.clone().into() };
                json
            };
            changed.iter().map(flow).collect()
        };
        let touched = self.touched.iter().map(|(service, sidecars)| json!({"service": service, "sidecars": sidecars}));
        json!({
            "record": {
                "from": json::moment(record.from), "until": json::moment(record.until), "silentHours": record.silent_hours,
            },
            "newlyRefused": flows(&self.refused, "reason", true),
            "mayBeRefused": flows(&self.may_be_refused, "conditions", false),
            "newlyAllowed": flows(&self.allowed, "by", true),
            "mayBeAllowed": flows(&self.may_be_allowed, "conditions", false),
            "notToldApart": self.together,
            "touched": touched.collect::<Vec<_>>(),
            "changedForAll": self.for_all,
            "routes": self.routes,
        })
    }
}

fn show(out: &mut Output, diff: &Diff, record: &Record) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for (effect, changed, says) in [
        ("newly refused", &diff.refused, ""),
        ("may be refused", &diff.may_be_refused, ""),
        ("newly allowed", &diff.allowed, ""),
        ("may be newly allowed", &diff.may_be_allowed, "no longer "),
    ] {
        rows.extend(changed.iter().map(|Changed { call, calls, before, now }| {
            let Call { caller, service, path } = call;
            vec![
                effect.to_owned(),
                words::call(caller, service, path),
                calls.all().to_string(),
                moment(calls.last),
                before.clone(),
                format!("{says}{}", now.join(", ")),
            ]
        }));
    }
    if rows.is_empty() {
        out.line("no recorded call is decided otherwise")?;
    } else {
        out.table(&["effect", "call", "calls", "last", "by the policy in force", "by the new one"], &rows)?;
    }
    if diff.together > 0 {
        out.line(&format!("not judged: {} calls to paths that the record does not tell apart", diff.together))?;
    }
    let sidecars = |count: usize| if count == 1 { "1 sidecar".to_owned() } else { format!("{count} sidecars") };
    let touched: Vec<_> =
        diff.touched.iter().map(|(service, count)| format!("{service} ({})", sidecars(*count))).collect();
    out.line(&match touched.is_empty() {
        true => "touches no service's own policy".to_owned(),
        false => format!("touches {}", touched.join(", ")),
    })?;
    if !diff.for_all.is_empty() {
        out.line(&format!("every sidecar gets changed {}", diff.for_all.join(", ")))?;
    }
    for route in &diff.routes {
        out.line(route)?;
    }
    out.line(&format!("on {}; it has no tenants: conditions on them are only compared", record.words()))
}

/// Services whose sidecars get another record of their own.
fn touched<'r>(described: &'r DescribeResponse, records: &'r Records) -> BTreeSet<&'r str> {
    let before = |name: &str| described.services.iter().find(|record| record.service == name);
    let bare = |record: &ServicePolicy| ServicePolicy { canary: None, signature: None, ..record.clone() };
    let names = described.services.iter().map(|record| record.service.as_str());
    names
        .chain(records.allowlists.keys().map(String::as_str))
        .filter(|name| before(name).map(bare) != records.allowlists.get(*name).map(bare))
        .collect()
}

/// What else changes, for all sidecars alike.
fn for_all(described: &DescribeResponse, records: &Records) -> Vec<&'static str> {
    // Those that sidecars have registered are no part of a policy.
    let static_endpoints: Vec<_> =
        described.endpoints.iter().filter(|endpoint| endpoint.lease.is_none()).cloned().collect();
    let kinds = [
        ("routes", same(&described.routes, records.routes.values())),
        ("endpoints", same(&static_endpoints, records.endpoints.values())),
        ("quarantines", same(&described.quarantines, records.quarantines.values())),
    ];
    kinds.into_iter().filter(|(_, same)| !same).map(|(kind, _)| kind).collect()
}

/// What the Routes would change, in the words of the history.
fn routes(described: &DescribeResponse, records: &Records) -> Vec<String> {
    let before = described.routes.iter().map(|route| (route.service.clone(), route.clone())).collect();
    route_changes(&before, &records.routes)
}

#[cfg(test)]
mod tests;
