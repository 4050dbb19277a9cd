//! Who rules let in: clients that none names, callers that run nowhere, services that let themselves in.

use std::collections::HashSet;

use mesh_config::Caller;

use super::{
    Finding, Subject,
    checks::{CALLER_WITHOUT_INSTANCE, CLIENT_WITHOUT_RULE, SERVICE_CALLS_ITSELF},
    named_callers,
    places::Step,
};

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Finding>) {
    clients_without_rule(subject, found);
    callers_without_instance(subject, found);
    services_that_call_themselves(subject, found);
}

/// Clients outside of the mesh that cannot connect to anybody. No mistake: a rule may follow.
fn clients_without_rule(subject: &Subject<'_>, found: &mut Vec<Finding>) {
    let named = named_callers(subject);
    for name in subject.mesh.external_clients().keys().filter(|name| !named.contains(name.as_str())) {
        found.push(Finding {
            check: &CLIENT_WITHOUT_RULE,
            place: subject.places.name("ExternalClient", name.as_str()),
            message: format!("no rule names ExternalClient {name}: it can call nobody"),
            help: format!("name {name} among the callers of a rule, or delete the document"),
        });
    }
}

/// Where it is known who runs: the instances of the LocalMesh, and whoever an Attestor gives an identity to.
fn callers_without_instance(subject: &Subject<'_>, found: &mut Vec<Finding>) {
    let mesh = subject.mesh;
    let Some(local) = mesh.local() else { return };
    let instances = local.instances.iter().map(|instance| &instance.service);
    let attested = mesh.attestors().iter().flat_map(|attestor| &attestor.rules).map(|rule| &rule.service);
    let running: HashSet<_> = instances.chain(attested).collect();
    let mut told = HashSet::new();
    for placed in subject.rules.values().flatten().copied() {
        for (index, caller) in placed.rule.callers.iter().enumerate() {
            if let Caller::Named(name) = caller
                && mesh.services().contains_key(name)
                && !running.contains(name)
                && told.insert(name)
            {
                found.push(Finding {
                    check: &CALLER_WITHOUT_INSTANCE,
                    place: subject.place(placed, &[Step::Key("callers"), Step::Item(index)]),
                    message: format!(
                        "{name} has no instance in the LocalMesh, and no Attestor lets one in: it calls nobody"
                    ),
                    help: format!("add an instance of {name}, or take it out of the callers"),
                });
            }
        }
    }
}

/// `*` alone is not meant: who writes it thinks of everybody, of health checks say, and a service is then one of many.
fn services_that_call_themselves(subject: &Subject<'_>, found: &mut Vec<Finding>) {
    for (service, rules) in &subject.rules {
        for placed in rules.iter().copied() {
            let Some(index) = placed.rule.callers.iter().position(|caller| caller.as_str() == *service) else {
                continue;
            };
            found.push(Finding {
                check: &SERVICE_CALLS_ITSELF,
                place: subject.place(placed, &[Step::Key("callers"), Step::Item(index)]),
                message: format!("rule {} lets {service} call itself", placed.rule.name),
                help: format!("take {service} out of the callers, unless its instances do call one another"),
            });
        }
    }
}
