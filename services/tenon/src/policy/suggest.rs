//! `tenon policy suggest`: the tightest allowlists that the recorded calls need.
//!
//! What is suggested never allows what the policy in force does not: a call is taken over only where a rule of today, or
//! audit mode, lets it pass, and with everything that the rule asks.

mod yaml;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use mesh_config::{SourceFile, compile, names::ServiceName, parse, path};
use tenon_proto::policy::v1::{DescribeResponse, Rule};

use super::{
    decide::{Call, Calls, Decided, Decider, calls},
    describe_policy,
    flows::Record,
    words,
};
use crate::{
    cli::PolicySuggest,
    failure::{Answer, Failure},
    operator::Mesh,
    output::Output,
};

/// Runs the command.
///
/// # Errors
/// No mesh, no answer, no recorded call that passed, or the file cannot be written.
pub async fn run(args: PolicySuggest) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let described = describe_policy(&mesh).await?;
    let only = args.service.as_deref();
    if let Some(service) = only
        && !described.routes.iter().any(|route| route.service == service)
    {
        return Err(Failure::new(format!("there is no service {service}"))
            .next("`tenon policy status` lists the services of the mesh"));
    }
    let record = Record::take(&mesh, &args.record, only.unwrap_or_default()).await?;
    let suggestions = suggest(&described, &record, only)?;
    if suggestions.iter().all(|suggestion| suggestion.rules.is_empty()) {
        let to = only.map(|service| format!(" to {service}")).unwrap_or_default();
        return Err(Failure::new(format!(
            "nothing to suggest: no recorded call{to} passes today, on {}",
            record.words()
        ))
        .next("let the mesh work for a while, also what it does once a month; `tenon policy flows` shows the record"));
    }
    let text = yaml::document(&suggestions, &record);
    checked(&text, &described, &suggestions)?;
    let mut out = Output::stdout(crate::cli::Format::Table);
    match &args.out {
        None => out.raw(&text)?,
        Some(file) => {
            fs::write(file, &text).map_err(|error| {
                Failure::new(format!("cannot write {}: {error}", file.display()))
                    .next("make the folder writable, or name another file with --out")
            })?;
            let rules: usize = suggestions.iter().map(|suggestion| suggestion.rules.len()).sum();
            let services = suggestions.iter().filter(|suggestion| !suggestion.rules.is_empty()).count();
            out.line(&format!("{}: {rules} rules for {services} services, from {}", file.display(), record.words()))?;
        }
    }
    out.flush()?;
    Ok(Answer::Yes)
}

/// The Allowlist for one service.
#[derive(Debug)]
struct Suggestion<'r> {
    service: &'r str,
    product: &'r str,
    /// A name that no Allowlist of another service has.
    name: String,
    /// The Allowlists of today, which it takes the place of.
    instead_of: BTreeSet<&'r str>,
    rules: Vec<Suggested<'r>>,
    /// Calls that passed and were not taken over, and why.
    left_out: Vec<String>,
}

/// One rule: these callers each make a call to each of these paths.
#[derive(Debug)]
struct Suggested<'r> {
    name: String,
    callers: BTreeSet<String>,
    paths: BTreeSet<String>,
    /// The rule that decides these calls today; `None`: audit mode lets them pass.
    rule: Option<&'r Rule>,
    passed: u64,
    /// What audit mode let pass, and enforcing refuses.
    audited: BTreeMap<String, u64>,
}

fn suggest<'r>(
    described: &'r DescribeResponse,
    record: &Record,
    only: Option<&str>,
) -> Result<Vec<Suggestion<'r>>, Failure> {
    let decider = Decider::in_force(described)?;
    let (calls, together) = calls(record);
    let mut suggestions: BTreeMap<&str, Vec<(Call, Calls)>> = BTreeMap::new();
    for (call, calls) in calls {
        // What was always refused is none of the suggestion's.
        if calls.passed() == 0 || only.is_some_and(|only| call.service != only) {
            continue;
        }
        if let Some(service) = decider.record(&call.service) {
            suggestions.entry(&service.service).or_default().push((call, calls));
        }
    }
    let one = |(service, calls): (&'r str, Vec<_>)| {
        let mut suggestion = of_service(service, described, &decider, calls);
        if together > 0 {
            let note = format!("{together} calls of the whole record to paths that it does not tell apart");
            suggestion.left_out.push(note);
        }
        suggestion
    };
    Ok(suggestions.into_iter().map(one).collect())
}

fn of_service<'r>(
    service: &'r str,
    described: &'r DescribeResponse,
    decider: &Decider<'r>,
    calls: Vec<(Call, Calls)>,
) -> Suggestion<'r> {
    let record = decider.record(service);
    let rules: &'r [Rule] = record.map(|record| record.rules.as_slice()).unwrap_or_default();
    let mut suggestion = Suggestion {
        service,
        product: record.map(|record| record.product.as_str()).unwrap_or_default(),
        name: free_name(service, described),
        instead_of: rules.iter().map(|rule| rule.allowlist.as_str()).collect(),
        rules: Vec::new(),
        left_out: Vec::new(),
    };
    // By the rule that decides, in its order, those that none decides last; then by path.
    let mut deciding: BTreeMap<usize, BTreeMap<String, Vec<(String, Calls)>>> = BTreeMap::new();
    for (call, calls) in calls {
        let index = match decider.decide(&call) {
            Decided::Rule(rule) => rules.iter().position(|other| std::ptr::eq(other, rule)).unwrap_or(rules.len()),
            Decided::Audit(_) => rules.len(),
            Decided::Refused(reason) => {
                suggestion.left_out.push(left_out(&call, &calls, &format!("refused today: {reason}")));
                continue;
            }
        };
        if ServiceName::try_from(call.caller.as_str()).is_err() || !path::is_method(&call.path) {
            suggestion.left_out.push(left_out(&call, &calls, "cannot be written as caller and path of a rule"));
            continue;
        }
        deciding.entry(index).or_default().entry(call.path).or_default().push((call.caller, calls));
    }
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for (index, paths) in deciding {
        let rule = rules.get(index);
        for (callers, group) in by_callers(paths) {
            let name = free_rule_name(rule.map_or("audited", |rule| &rule.name), rules, &mut taken);
            let mut audited = BTreeMap::new();
            for (reason, count) in group.calls.iter().flat_map(|calls| &calls.audited) {
                *audited.entry(reason.clone()).or_default() += count;
            }
            let passed = group.calls.iter().map(Calls::passed).sum();
            suggestion.rules.push(Suggested { name, callers, paths: group.paths, rule, passed, audited });
        }
    }
    suggestion
}

#[derive(Default)]
struct Group {
    paths: BTreeSet<String>,
    calls: Vec<Calls>,
}

/// Paths that the same callers call are together.
fn by_callers(paths: BTreeMap<String, Vec<(String, Calls)>>) -> BTreeMap<BTreeSet<String>, Group> {
    let mut groups: BTreeMap<BTreeSet<String>, Group> = BTreeMap::new();
    for (path, calls) in paths {
        let callers = calls.iter().map(|(caller, _)| caller.clone()).collect();
        let group = groups.entry(callers).or_default();
        group.paths.insert(path);
        group.calls.extend(calls.into_iter().map(|(_, calls)| calls));
    }
    groups
}

fn left_out(call: &Call, calls: &Calls, why: &str) -> String {
    let Call { caller, service, path } = call;
    format!("{}, {} calls: {why}", words::call(caller, service, path), calls.passed())
}

/// The service's own name, unless an Allowlist of another service has it.
fn free_name(service: &str, described: &DescribeResponse) -> String {
    let others = described.services.iter().filter(|other| other.service != service);
    let others: BTreeSet<&str> = others
        .flat_map(|other| {
            other.rules.iter().map(|rule| rule.allowlist.as_str()).chain([other.audit_allowlist.as_str()])
        })
        .collect();
    numbered(service).find(|name| !others.contains(name.as_str())).unwrap_or_else(|| service.to_owned())
}

/// The name of today's rule, with a number where it becomes several; never that of another rule of today.
fn free_rule_name(base: &str, rules: &[Rule], taken: &mut BTreeSet<String>) -> String {
    let free = |name: &String| !taken.contains(name) && (name == base || !rules.iter().any(|rule| rule.name == *name));
    let name = numbered(base).find(free).unwrap_or_else(|| base.to_owned());
    taken.insert(name.clone());
    name
}

/// `read`, `read-2`, `read-3`, all of them names of 63 characters at most.
fn numbered(base: &str) -> impl Iterator<Item = String> {
    let more = (2_u32..).map(move |number| {
        let short: String = base.chars().take(52).collect();
        format!("{}-{number}", short.trim_end_matches(['-', '.', '_']))
    });
    [base.to_owned()].into_iter().chain(more)
}

/// The suggestion as the policy service would take it: it has no problem together with the mesh, lets every call pass
/// that it was made for, and asks of it what is asked today.
fn checked(text: &str, described: &DescribeResponse, suggestions: &[Suggestion<'_>]) -> Result<(), Failure> {
    let wrong = |what: String| {
        Failure::new(format!("the suggestion would not be what was recorded: {what}"))
            .next("report this; with --service the other services can be suggested for one by one")
    };
    let files = [("mesh.yaml", yaml::frame(described)), ("suggested.yaml", text.to_owned())];
    let files = files.map(|(path, text)| SourceFile { path: path.to_owned(), text });
    let records = compile(&parse(&files).map_err(|problems| wrong(problems.to_string()))?);
    let decider = Decider::new(records.allowlists.values(), records.routes.values(), [])?;
    for suggestion in suggestions {
        for rule in &suggestion.rules {
            for (caller, path) in
                rule.callers.iter().flat_map(|caller| rule.paths.iter().map(move |path| (caller, path)))
            {
                let (service, path) = (suggestion.service.to_owned(), path.clone());
                let call = Call { caller: caller.clone(), service, path };
                let same = match decider.decide(&call) {
                    Decided::Rule(now) => rule.asks_the_same(now),
                    Decided::Audit(_) | Decided::Refused(_) => false,
                };
                if !same {
                    return Err(wrong(words::call(&call.caller, &call.service, &call.path)));
                }
            }
        }
    }
    Ok(())
}

impl Suggested<'_> {
    fn asks_the_same(&self, now: &Rule) -> bool {
        let Some(rule) = self.rule else { return now.tenant() == yaml::OF_AUDIT && !now.audit };
        let asks = |rule: &Rule| (rule.tenant(), rule.proof(), rule.rate, rule.tenants.clone());
        asks(rule) == asks(now) && !now.audit
    }
}

#[cfg(test)]
mod tests;
