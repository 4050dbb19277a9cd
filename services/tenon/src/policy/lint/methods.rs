//! Paths beside the methods that there are: of descriptor sets, and as running servers tell them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
};

use mesh_config::{Route, yaml::suggestion};
use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

use super::{
    Finding, INFRASTRUCTURE, Placed, Subject,
    checks::{METHOD_NOBODY_MAY_CALL, REFLECTION_UNANSWERED, UNKNOWN_GRPC_SERVICE, UNKNOWN_METHOD},
    is_infrastructure,
    places::{Place, Step},
    some_of, split,
};

/// gRPC service → its methods.
pub type Services = BTreeMap<String, BTreeSet<String>>;

/// The methods that are known.
#[derive(Debug, Default)]
pub struct Methods {
    /// Of files: whose they are is not said. `None`: no file was given.
    described: Option<Services>,
    /// Service of the mesh → all that its instances serve.
    served: BTreeMap<String, Services>,
    unanswered: Vec<Unanswered>,
}

/// A server that did not tell its methods.
#[derive(Debug)]
pub struct Unanswered {
    pub service: String,
    pub address: String,
    pub why: String,
}

/// The gRPC services of a file.
pub fn services_of(file: &FileDescriptorProto) -> impl Iterator<Item = (String, BTreeSet<String>)> {
    file.service.iter().map(|service| {
        let name = match file.package() {
            "" => service.name().to_owned(),
            package => format!("{package}.{}", service.name()),
        };
        (name, service.method.iter().map(|method| method.name().to_owned()).collect())
    })
}

impl Methods {
    /// Adds those of a file with a `google.protobuf.FileDescriptorSet`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn describe(&mut self, file: &Path) -> Result<(), String> {
        let bytes = std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let set = FileDescriptorSet::decode(bytes.as_slice())
            .map_err(|error| format!("{} is no FileDescriptorSet: {error}", file.display()))?;
        if set.file.is_empty() {
            return Err(format!("{} is no FileDescriptorSet: it has no file", file.display()));
        }
        self.described.get_or_insert_default().extend(set.file.iter().flat_map(services_of));
        Ok(())
    }

    /// Adds what an instance of a service serves. All that several instances serve is taken together.
    pub fn serve(&mut self, service: String, services: Services) {
        let served = self.served.entry(service).or_default();
        for (name, methods) in services {
            served.entry(name).or_default().extend(methods);
        }
    }

    /// Notes a server that did not tell.
    pub fn unanswered(&mut self, server: Unanswered) {
        self.unanswered.push(server);
    }

    /// The gRPC services that may be a service's; `None` when nothing is known of it. A running server has the last word.
    fn known(&self, service: &str) -> Option<&Services> {
        self.served.get(service).or(self.described.as_ref())
    }

    /// The methods of a gRPC service of this service, where they are known.
    pub(super) fn of(&self, service: &str, grpc: &str) -> Option<&BTreeSet<String>> {
        self.known(service)?.get(grpc)
    }
}

pub(super) fn check(subject: &Subject<'_>, methods: &Methods, found: &mut Vec<Finding>) {
    for Unanswered { service, address, why } in &methods.unanswered {
        found.push(Finding {
            check: &REFLECTION_UNANSWERED,
            place: subject.places.name("Service", service),
            message: format!("{service} at {address} does not tell its methods: {why}"),
            help: "start it, and let it serve gRPC reflection; or name its descriptors with --descriptors".to_owned(),
        });
    }
    for (service, rules) in &subject.rules {
        let Some(known) = methods.known(service) else { continue };
        for placed in rules.iter().copied() {
            unknown(subject, service, placed, known, found);
        }
        if let Some(route) = subject.mesh.routes().get(*service) {
            unknown_in_route(subject, route, known, found);
        }
        let served = methods.served.contains_key(*service);
        nobody_may_call(subject, service, rules, known, served, found);
    }
}

/// Paths of a rule that nothing answers to.
fn unknown(subject: &Subject<'_>, service: &str, placed: Placed<'_>, known: &Services, found: &mut Vec<Finding>) {
    for (index, path) in placed.rule.paths.iter().enumerate() {
        let place = || subject.place(placed, &[Step::Key("paths"), Step::Item(index)]);
        found.extend(unknown_path(path, &format!("rule {} of {service}", placed.rule.name), known, place));
    }
}

/// Paths of a Route that nothing answers to.
fn unknown_in_route(subject: &Subject<'_>, route: &Route, known: &Services, found: &mut Vec<Finding>) {
    for (at, method) in route.methods.iter().enumerate() {
        for (index, path) in method.paths.iter().enumerate() {
            let place = || {
                let steps =
                    [Step::Key("spec"), Step::Key("methods"), Step::Item(at), Step::Key("paths"), Step::Item(index)];
                subject.places.part("Route", route.name.as_str(), &steps)
            };
            found.extend(unknown_path(path, &format!("the Route of {}", route.service), known, place));
        }
    }
}

fn unknown_path(path: &str, whose: &str, known: &Services, place: impl Fn() -> Place) -> Option<Finding> {
    let (grpc, method) = split(path).filter(|_| !is_infrastructure(path))?;
    let help = |what: &str| format!("correct the {what}, or delete the path");
    match known.get(grpc) {
        None => Some(Finding {
            check: &UNKNOWN_GRPC_SERVICE,
            place: place(),
            message: format!(
                "{whose}: there is no gRPC service {grpc}{}",
                suggestion(grpc, known.keys().map(String::as_str))
            ),
            help: help("gRPC service"),
        }),
        Some(methods) if method != "*" && !methods.contains(method) => Some(Finding {
            check: &UNKNOWN_METHOD,
            place: place(),
            message: format!(
                "{whose}: {grpc} has no method {method}{}",
                suggestion(method, methods.iter().map(String::as_str))
            ),
            help: help("method"),
        }),
        Some(_) => None,
    }
}

/// Methods that neither a rule nor audit mode allows to anybody: of each gRPC service that a running server serves, else that a rule names.
fn nobody_may_call(
    subject: &Subject<'_>,
    service: &str,
    rules: &[Placed<'_>],
    known: &Services,
    served: bool,
    found: &mut Vec<Finding>,
) {
    if subject.audits(service) {
        return;
    }
    let mut allowed: HashMap<&str, (Placed<'_>, HashSet<&str>)> = HashMap::new();
    for placed in rules.iter().copied() {
        for (grpc, method) in placed.rule.paths.iter().filter_map(|path| split(path)) {
            allowed.entry(grpc).or_insert_with(|| (placed, HashSet::new())).1.insert(method);
        }
    }
    // In a map of everything that anybody serves only what rules name is this service's; and in any case, that is less.
    let concerned: Vec<&str> = match served {
        true => known.keys().map(String::as_str).collect(),
        false => allowed.keys().copied().collect(),
    };
    for grpc in concerned.into_iter().filter(|grpc| !INFRASTRUCTURE.contains(grpc)) {
        let Some(methods) = known.get(grpc) else { continue };
        let named = allowed.get(grpc);
        let is_allowed = |method: &str| named.is_some_and(|(_, named)| named.contains(method) || named.contains("*"));
        let missing: Vec<&str> = methods.iter().map(String::as_str).filter(|method| !is_allowed(method)).collect();
        if missing.is_empty() {
            continue;
        }
        let place: Place = match named {
            Some((placed, _)) => subject.places.name("Allowlist", placed.allowlist.name.as_str()),
            None => subject.places.name("Service", service),
        };
        found.push(Finding {
            check: &METHOD_NOBODY_MAY_CALL,
            place,
            message: format!(
                "nobody may call {} of the {} methods of {grpc} on {service}: {}",
                missing.len(),
                methods.len(),
                some_of(missing)
            ),
            help: format!("add a rule for whoever calls them, or take them out of {service} if nobody does"),
        });
    }
}
