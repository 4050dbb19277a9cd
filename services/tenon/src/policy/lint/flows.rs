//! What was called, beside what may be: wildcards that are wider than anybody needs.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use mesh_config::{Caller, compile};
use sidecar_core::{
    Peer,
    policy::{Match, Policy},
};
use tenon_proto::policy::v1::{Flow, flow::Decision};

use super::{
    Finding, Methods, Placed, Subject,
    checks::{ANY_CALLER_TOO_WIDE, WILDCARD_PATH_TOO_WIDE},
    is_infrastructure,
    places::Step,
    some_of, split,
};
use crate::policy::flows::Record;

/// What passed by one rule.
#[derive(Debug, Default)]
struct Used<'f> {
    paths: BTreeSet<&'f str>,
    callers: BTreeSet<&'f str>,
}

pub(super) fn check(subject: &Subject<'_>, record: &Record, methods: &Methods, found: &mut Vec<Finding>) {
    // A record of nothing says nothing of what is needed.
    if record.flows.is_empty() {
        return;
    }
    let mut by_service: BTreeMap<&str, Vec<&Flow>> = BTreeMap::new();
    let flows = record.flows.iter().filter_map(|total| total.flow.as_ref());
    for flow in flows.filter(|flow| flow.decision() != Decision::Refused) {
        by_service.entry(&flow.service).or_default().push(flow);
    }
    let records = compile(subject.mesh);
    let span = format!("in {}", record.words());
    for (service, rules) in &subject.rules {
        let policy = records.allowlists.get(*service).and_then(|record| Policy::try_from(record).ok());
        let flows = by_service.get(service).map(Vec::as_slice).unwrap_or_default();
        let Some(used) = policy.map(|policy| used_by_rule(subject, &policy, flows)) else { continue };
        let paths_are_whole = flows.iter().all(|flow| !flow.path.is_empty());
        let nothing = Used::default();
        for (index, placed) in rules.iter().copied().enumerate() {
            let used = u32::try_from(index).ok().and_then(|index| used.get(&index)).unwrap_or(&nothing);
            if paths_are_whole {
                wide_paths(subject, service, placed, used, methods, &span, found);
            }
            wide_callers(subject, service, placed, used, &span, found);
        }
    }
}

/// The rule that decides each flow by this policy, which need not be the one that was in force then.
fn used_by_rule<'f>(subject: &Subject<'_>, policy: &Policy, flows: &[&'f Flow]) -> BTreeMap<u32, Used<'f>> {
    let mut used: BTreeMap<u32, Used<'_>> = BTreeMap::new();
    for flow in flows {
        let outside = subject.mesh.external_clients().contains_key(flow.caller.as_str());
        let peer = if outside { Peer::Outside(&flow.caller) } else { Peer::Service(&flow.caller) };
        if let Match::Rule(index, _) = policy.authorize(peer, &flow.path) {
            let used = used.entry(index).or_default();
            used.paths.insert(&flow.path);
            used.callers.insert(&flow.caller);
        }
    }
    used
}

fn wide_paths(
    subject: &Subject<'_>,
    service: &str,
    placed: Placed<'_>,
    used: &Used<'_>,
    methods: &Methods,
    span: &str,
    found: &mut Vec<Finding>,
) {
    for (index, path) in placed.rule.paths.iter().enumerate() {
        let Some((grpc, "*")) = split(path).filter(|_| !is_infrastructure(path)) else { continue };
        let called = used.paths.iter().copied().filter(|path| split(path).is_some_and(|(of, _)| of == grpc));
        let called: BTreeSet<&str> = called.filter_map(|path| Some(split(path)?.1)).collect();
        let all = methods.of(service, grpc);
        if all.is_some_and(|all| all.iter().all(|method| called.contains(method.as_str()))) {
            continue;
        }
        let rule = &placed.rule.name;
        let (what, help) = match called.is_empty() {
            true => ("none of its methods".to_owned(), format!("delete {path} unless it is needed at other times")),
            false => {
                let whole: Vec<String> = called.iter().map(|method| format!("/{grpc}/{method}")).collect();
                let whole = whole.join(", ");
                (format!("{} alone", some_of(called.iter().copied())), format!("write {whole} in its place"))
            }
        };
        found.push(Finding {
            check: &WILDCARD_PATH_TOO_WIDE,
            place: subject.place(placed, &[Step::Key("paths"), Step::Item(index)]),
            message: format!("rule {rule} of {service} allows {path}; {span} its callers used {what}"),
            help,
        });
    }
}

fn wide_callers(
    subject: &Subject<'_>,
    service: &str,
    placed: Placed<'_>,
    used: &Used<'_>,
    span: &str,
    found: &mut Vec<Finding>,
) {
    let callers = &placed.rule.callers;
    let Some(index) = callers.iter().position(|caller| *caller == Caller::Any) else { return };
    let others: HashSet<&str> =
        subject.mesh.services().keys().map(|name| name.as_str()).filter(|name| *name != service).collect();
    let all_call = others.iter().all(|name| used.callers.contains(name));
    if all_call || placed.rule.paths.iter().all(|path| is_infrastructure(path)) {
        return;
    }
    // Clients outside of the mesh are named beside the star: they are not what is too wide.
    let called = used.callers.iter().copied().filter(|caller| !subject.mesh.external_clients().contains_key(*caller));
    let called: Vec<&str> = called.collect();
    let rule = &placed.rule.name;
    let (who, help) = match called.is_empty() {
        true => ("nobody did".to_owned(), format!("name the callers, or delete rule {rule}")),
        false => {
            let whole = called.join(", ");
            (format!("{} alone did", some_of(called)), format!("write {whole} in place of \"*\""))
        }
    };
    found.push(Finding {
        check: &ANY_CALLER_TOO_WIDE,
        place: subject.place(placed, &[Step::Key("callers"), Step::Item(index)]),
        message: format!("rule {rule} lets any service call {service}; {span} {who}"),
        help,
    });
}
