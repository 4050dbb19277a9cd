//! What concerns services and documents as a whole: nobody may call, audit mode, quarantines, tests.

use std::collections::HashSet;

use mesh_config::Mode;

use super::{
    Finding, Subject,
    checks::{AUDIT_MODE, NO_POLICY_TESTS, QUARANTINE, SERVICE_WITHOUT_CALLERS, UNTESTED_SERVICE},
    named_callers,
    places::Step,
};

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Finding>) {
    services_without_callers(subject, found);
    audit_mode(subject, found);
    quarantines(subject, found);
    tests(subject, found);
}

/// Audit mode lets everybody call. And a service that only calls needs no callers: one of whose instances none has an app that listens or, where nothing
/// is said of instances, one that rules name as a caller.
fn services_without_callers(subject: &Subject<'_>, found: &mut Vec<Finding>) {
    let instances = subject.mesh.local().map(|local| local.instances.as_slice()).unwrap_or_default();
    let with_instance: HashSet<&str> = instances.iter().map(|instance| instance.service.as_str()).collect();
    let listening = instances.iter().filter(|instance| instance.app.is_some());
    let listening: HashSet<&str> = listening.map(|instance| instance.service.as_str()).collect();
    let callers = named_callers(subject);
    for (service, rules) in &subject.rules {
        let only_calls = match with_instance.contains(service) {
            true => !listening.contains(service),
            false => callers.contains(service),
        };
        if rules.is_empty() && !only_calls && !subject.audits(service) {
            found.push(Finding {
                check: &SERVICE_WITHOUT_CALLERS,
                place: subject.places.name("Service", service),
                message: format!("no rule lets anybody call {service}"),
                help: format!("write an Allowlist with service: {service}, or delete the service if nobody needs it"),
            });
        }
    }
}

fn audit_mode(subject: &Subject<'_>, found: &mut Vec<Finding>) {
    for allowlist in subject.mesh.allowlists().iter().filter(|allowlist| allowlist.mode == Mode::Audit) {
        let service = &allowlist.service;
        found.push(Finding {
            check: &AUDIT_MODE,
            place: subject.places.part("Allowlist", allowlist.name.as_str(), &[Step::Key("spec"), Step::Key("mode")]),
            message: format!(
                "allowlist {} is in audit mode: whoever is in the mesh may call {service}",
                allowlist.name
            ),
            help: "set mode: enforce once the calls that it logs are understood".to_owned(),
        });
    }
}

fn quarantines(subject: &Subject<'_>, found: &mut Vec<Finding>) {
    for quarantine in subject.mesh.quarantines() {
        let services: Vec<&str> = quarantine.services.iter().map(|service| service.as_str()).collect();
        let reason = if quarantine.reason.is_empty() { String::new() } else { format!(": {}", quarantine.reason) };
        found.push(Finding {
            check: &QUARANTINE,
            place: subject.places.name("Quarantine", quarantine.name.as_str()),
            message: format!("quarantine {} cuts off {}{reason}", quarantine.name, super::some_of(services)),
            help: "delete the document once its reason is gone".to_owned(),
        });
    }
}

fn tests(subject: &Subject<'_>, found: &mut Vec<Finding>) {
    let mesh = subject.mesh;
    if mesh.tests().is_empty() {
        return found.push(Finding {
            check: &NO_POLICY_TESTS,
            place: subject.places.name("Mesh", mesh.name().as_str()),
            message: "no PolicyTest says what this policy must allow and refuse".to_owned(),
            help: "write one, and run `tenon policy test -f DIR` before each change comes into force".to_owned(),
        });
    }
    let tested: HashSet<&str> =
        mesh.tests().iter().flat_map(|test| &test.calls).map(|call| call.service.as_str()).collect();
    for (service, rules) in &subject.rules {
        let Some(first) = rules.first().filter(|_| !tested.contains(service)) else { continue };
        found.push(Finding {
            check: &UNTESTED_SERVICE,
            place: subject.places.name("Allowlist", first.allowlist.name.as_str()),
            message: format!("no call of a PolicyTest goes to {service}: its {} rules are untested", rules.len()),
            help: "add calls that must pass and calls that must not; `tenon policy test --coverage` tells what is left"
                .to_owned(),
        });
    }
}
