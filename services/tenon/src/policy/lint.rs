//! What is allowed in a policy and most likely not meant: each finding with the id of its check, a place and a remedy.
//!
//! Takes a policy without problems and what else is known: recorded flows, the methods of servers, tenants. Asks nobody.

mod callers;
mod checks;
mod flows;
mod mesh;
mod methods;
mod overlap;
mod places;
mod routes;
mod tenants;

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use mesh_config::{Allowlist, Mesh, Mode, Rule, SourceFile};
use tenon_proto::tcs::v1::TenantContext;

use self::places::Step;
pub use self::{
    checks::{CHECKS, Check, Severity},
    methods::{Methods, Services, Unanswered, services_of},
    places::{Place, Places},
};
use super::flows::Record;

/// One thing that was found.
#[derive(Debug)]
pub struct Finding {
    pub check: &'static Check,
    pub place: Place,
    /// What is so. One line.
    pub message: String,
    /// What to do about it. One line.
    pub help: String,
}

/// What is looked at.
pub struct Subject<'a> {
    pub mesh: &'a Mesh,
    pub places: Places,
    /// Callee → its rules in deciding order; every defined service is among them.
    rules: BTreeMap<&'a str, Vec<Placed<'a>>>,
}

/// A rule and where it stands.
#[derive(Clone, Copy)]
struct Placed<'a> {
    allowlist: &'a Allowlist,
    /// Within its allowlist.
    index: usize,
    rule: &'a Rule,
}

/// What is known beside the policy itself.
#[derive(Debug, Default)]
pub struct Knowledge {
    pub flows: Option<Record>,
    pub methods: Methods,
    /// All tenants that there are.
    pub tenants: Option<Vec<TenantContext>>,
}

impl<'a> Subject<'a> {
    /// A policy that was parsed from these files.
    pub fn new(mesh: &'a Mesh, folder: &Path, files: &[SourceFile]) -> Self {
        let mut rules: BTreeMap<&str, Vec<Placed<'_>>> =
            mesh.services().keys().map(|service| (service.as_str(), Vec::new())).collect();
        for allowlist in mesh.allowlists() {
            let placed = allowlist.rules.iter().enumerate();
            let placed = placed.map(|(index, rule)| Placed { allowlist, index, rule });
            rules.entry(allowlist.service.as_str()).or_default().extend(placed);
        }
        Self { mesh, places: Places::of(folder, files), rules }
    }

    /// Whether an Allowlist of the service is in audit mode: every service of the mesh may call it then.
    fn audits(&self, service: &str) -> bool {
        let mut allowlists = self.mesh.allowlists().iter();
        allowlists.any(|allowlist| allowlist.service.as_str() == service && allowlist.mode == Mode::Audit)
    }

    fn place(&self, placed: Placed<'_>, steps: &[Step<'_>]) -> Place {
        self.places.rule(placed.allowlist.name.as_str(), placed.index, steps)
    }
}

/// Everything that is found, in the order of the places. Takes time in proportion to the size of the policy.
pub fn findings(subject: &Subject<'_>, knowledge: &Knowledge) -> Vec<Finding> {
    let mut found = Vec::new();
    overlap::check(subject, &mut found);
    callers::check(subject, &mut found);
    mesh::check(subject, &mut found);
    routes::check(subject, &mut found);
    tenants::check(subject, knowledge.tenants.as_deref(), &mut found);
    methods::check(subject, &knowledge.methods, &mut found);
    if let Some(flows) = &knowledge.flows {
        flows::check(subject, flows, &knowledge.methods, &mut found);
    }
    found.sort_by(|a, b| (&a.place, a.check.id, &a.message).cmp(&(&b.place, b.check.id, &b.message)));
    found
}

/// gRPC's own services, which apps serve without having written them and everybody may ask.
const INFRASTRUCTURE: &[&str] = &[
    "grpc.channelz.v1.Channelz",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// `/package.Service/Method` as gRPC service and method; `None` for what no rule can name.
fn split(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.split_once('/')
}

fn is_infrastructure(path: &str) -> bool {
    split(path).is_some_and(|(service, _)| INFRASTRUCTURE.contains(&service))
}

/// The first few of them as text: `a, b, c and 4 more`. For messages: a remedy names them all.
fn some_of<'t>(texts: impl IntoIterator<Item = &'t str>) -> String {
    const SHOWN: usize = 5;
    let texts: Vec<&str> = texts.into_iter().collect();
    let shown = texts.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match texts.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Every caller that a rule of any service names.
fn named_callers<'a>(subject: &Subject<'a>) -> HashSet<&'a str> {
    let rules = subject.rules.values().flatten();
    rules.flat_map(|placed| &placed.rule.callers).map(mesh_config::Caller::as_str).collect()
}
