//! The frame of every document, and the small kinds: `Mesh`, `Service`, `Quarantine`.

use super::{
    CALLER, Draft, EXTERNAL_CLIENT, Header, MESH, REGION, SERVICE, allowlist, attestor, external_client,
    forms::{LABEL, NAME},
    local, policy_test, route,
};
use crate::{
    mesh::{Quarantine, Residency, Service},
    names::{DocumentName, RegionName, ServiceName, control_plane, short},
    problem::FIRST_AT,
    yaml::{
        At, Fields, Form, Map, Node, Reader,
        shape::{optional, required, words},
    },
};

const API_VERSION: &str = "tenon.dev/v1";

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Mesh,
    Service,
    Allowlist,
    Route,
    ExternalClient,
    Attestor,
    LocalMesh,
    Quarantine,
    PolicyTest,
}

pub(super) const KINDS: &[(&str, Kind)] = &[
    ("Mesh", Kind::Mesh),
    ("Service", Kind::Service),
    ("Allowlist", Kind::Allowlist),
    ("Route", Kind::Route),
    ("ExternalClient", Kind::ExternalClient),
    ("Attestor", Kind::Attestor),
    ("LocalMesh", Kind::LocalMesh),
    ("Quarantine", Kind::Quarantine),
    ("PolicyTest", Kind::PolicyTest),
];

/// The frame of every document.
pub(super) static DOCUMENT: Map = Map {
    what: "a document",
    fields: &[
        required("apiVersion", Form::Choice(|| words(API_VERSIONS)), "The version of this format."),
        required("kind", Form::Choice(|| words(KINDS)), "What the document is."),
        required("metadata", Form::Map(&METADATA), "What the document is called."),
        required("spec", Form::Names(&Form::Text), "What the document says."),
    ],
};

static METADATA: Map =
    Map { what: "metadata", fields: &[required("name", NAME, "The name of the document: unique within its kind.")] };

static MESH_SPEC: Map = Map {
    what: "the spec of a Mesh",
    fields: &[
        required(
            "trustDomain",
            Form::Like("^[a-z0-9._-]{1,255}$"),
            "The SPIFFE trust domain of every identity of this mesh.",
        ),
        required("regions", Form::Set(&LABEL), "The regions that there are."),
    ],
};

static SERVICE_SPEC: Map = Map {
    what: "the spec of a Service",
    fields: &[
        optional("product", LABEL, "Tenants need it active and licensed. Leave it out for platform services."),
        optional(
            "residency",
            Form::Choice(|| words(RESIDENCIES)),
            "home: an instance serves only tenants whose home region is its own. Default: any.",
        ),
        optional(
            "originates",
            Form::Boolean,
            "true: may call for any tenant. false: only for those that it is serving at the moment. Default: true.",
        ),
        optional(
            "requestsTransactionTokens",
            Form::Boolean,
            "May ask the identity service for transaction tokens. Default: false.",
        ),
        optional(
            "managesTenants",
            Form::Boolean,
            "May change tenants through tenon.tcs.v1.Lifecycle: a provisioning system. Default: false.",
        ),
    ],
};

static QUARANTINE: Map = Map {
    what: "the spec of a Quarantine",
    fields: &[
        required("services", Form::Set(&LABEL), "Services and ExternalClients that are cut off in both directions."),
        optional("reason", Form::Text, "Why, for people."),
    ],
};

const API_VERSIONS: &[(&str, ())] = &[(API_VERSION, ())];

const RESIDENCIES: &[(&str, Residency)] = &[("any", Residency::Any), ("home", Residency::Home)];

impl Kind {
    /// What its spec is, and what it is for.
    pub(super) fn spec(self) -> (&'static Map, &'static str) {
        match self {
            Self::Mesh => (&MESH_SPEC, "The mesh as a whole: exactly one."),
            Self::Service => (&SERVICE_SPEC, "Something that has a sidecar."),
            Self::Allowlist => (&allowlist::ALLOWLIST, "Who may call one service. What no rule allows is refused."),
            Self::Route => (&route::ROUTE, "How one service is called: timeouts, retries, which instances, limits."),
            Self::ExternalClient => (
                &external_client::EXTERNAL_CLIENT_SPEC,
                "A caller outside of the mesh, with a certificate and keys of its own.",
            ),
            Self::Attestor => {
                (&attestor::ATTESTOR, "Whose tokens say which service a process is, so that it gets a certificate.")
            }
            Self::LocalMesh => (&local::LOCAL_MESH, "What tenon up runs on one machine: at most one."),
            Self::Quarantine => {
                (&QUARANTINE, "Cuts services off, in both directions and at once. Overrules everything.")
            }
            Self::PolicyTest => (&policy_test::POLICY_TEST, "What the policy must decide, for tenon policy test."),
        }
    }

    /// What its name is.
    pub(super) fn name(self) -> Form {
        match self {
            Self::Service | Self::ExternalClient => LABEL,
            Self::Mesh
            | Self::Allowlist
            | Self::Route
            | Self::Attestor
            | Self::LocalMesh
            | Self::Quarantine
            | Self::PolicyTest => NAME,
        }
    }
}

/// Reads one document into the draft.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node, draft: &mut Draft) {
    // Until its kind and name are known, it may define anything.
    let unseen = std::mem::replace(&mut draft.unseen, true);
    let Some(fields) = reader.fields(node, &DOCUMENT) else { return };
    if let Some(version) = fields.required(reader, "apiVersion", API_VERSION) {
        reader.choice(version, API_VERSIONS);
    }
    let Some(kind_node) = fields.required(reader, "kind", "the kind of the document") else { return };
    let Some(kind) = reader.choice(kind_node, KINDS) else { return };
    let name = fields.required(reader, "metadata", "a map with name").and_then(|node| metadata(reader, node));
    let spec = fields.required(reader, "spec", "a map with what the document says");
    let Some((name_node, name)) = name else { return };
    draft.unseen = unseen;
    match kind {
        Kind::Mesh => mesh(reader, name, kind_node.at, spec, draft),
        Kind::Service => service(reader, name_node, spec, draft),
        Kind::Allowlist => {
            draft.define(reader, "Allowlist", name.as_str(), name_node.at);
            let allowlist = spec.and_then(|spec| allowlist::read(reader, name, spec, draft));
            draft.allowlists.extend(allowlist);
        }
        Kind::Route => {
            draft.define(reader, "Route", name.as_str(), name_node.at);
            let route = spec.and_then(|spec| route::read(reader, name, spec, draft));
            draft.routes.extend(route.map(|route| (route.service.clone(), route)));
        }
        Kind::ExternalClient => external_client::read(reader, name_node, spec, draft),
        Kind::Attestor => {
            draft.define(reader, "Attestor", name.as_str(), name_node.at);
            let attestor = spec.and_then(|spec| attestor::read(reader, name, spec, draft));
            draft.attestors.extend(attestor);
        }
        Kind::LocalMesh => {
            draft.define(reader, "LocalMesh", "", kind_node.at);
            let local = spec.and_then(|spec| local::read(reader, spec, draft));
            draft.local = draft.local.take().or(local);
        }
        Kind::Quarantine => {
            draft.define(reader, "Quarantine", name.as_str(), name_node.at);
            let quarantine = spec.and_then(|spec| quarantine(reader, name, spec, draft));
            draft.quarantines.extend(quarantine);
        }
        Kind::PolicyTest => {
            draft.define(reader, "PolicyTest", name.as_str(), name_node.at);
            let test = spec.and_then(|spec| policy_test::read(reader, name, spec, draft));
            draft.tests.extend(test);
        }
    }
}

fn metadata<'n>(reader: &mut Reader<'_>, node: &'n Node) -> Option<(&'n Node, DocumentName)> {
    let fields = reader.fields(node, &METADATA)?;
    let name = fields.required(reader, "name", "the name of the document")?;
    Some((name, reader.parsed(name, "the name of the document")?))
}

fn mesh(reader: &mut Reader<'_>, name: DocumentName, at: At, spec: Option<&Node>, draft: &mut Draft) {
    if !draft.define(reader, MESH, "", at) {
        return;
    }
    let fields = spec.and_then(|spec| reader.fields(spec, &MESH_SPEC));
    let Some(fields) = fields else { return };
    let trust_domain = fields
        .required(reader, "trustDomain", "the SPIFFE trust domain")
        .and_then(|node| Some((reader.parsed(node, "a trust domain")?, (reader.file().to_owned(), node.at))));
    let regions =
        fields.required(reader, "regions", "a list of region names").and_then(|node| regions(reader, node, draft));
    if let (Some((trust_domain, trust_domain_at)), Some(regions)) = (trust_domain, regions) {
        draft.mesh = Some(Header { name, trust_domain, trust_domain_at, regions });
    }
}

fn regions(reader: &mut Reader<'_>, node: &Node, draft: &mut Draft) -> Option<Vec<RegionName>> {
    let mut whole = true;
    let mut regions = Vec::new();
    for item in reader.some_list(node, "region names")? {
        match reader.parsed::<RegionName>(item, "a region name") {
            Some(region) => {
                draft.define(reader, REGION, region.as_str(), item.at);
                regions.push(region);
            }
            None => whole = false,
        }
    }
    whole.then_some(regions)
}

fn service(reader: &mut Reader<'_>, name_node: &Node, spec: Option<&Node>, draft: &mut Draft) {
    let name = caller_name(reader, name_node, SERVICE, draft);
    let fields = spec.and_then(|spec| reader.fields(spec, &SERVICE_SPEC));
    let Some(fields) = fields else { return };
    let product = match fields.optional("product") {
        Some(node) => reader.parsed(node, "a product name").map(Some),
        None => Some(None),
    };
    let residency =
        or_default(reader, fields, "residency", Residency::Any, |reader, node| reader.choice(node, RESIDENCIES));
    let originates = or_default(reader, fields, "originates", true, |reader, node| reader.boolean(node));
    let requests = or_default(reader, fields, "requestsTransactionTokens", false, |reader, node| reader.boolean(node));
    let manages = or_default(reader, fields, "managesTenants", false, |reader, node| reader.boolean(node));
    if let (
        Some(name),
        Some(product),
        Some(residency),
        Some(originates),
        Some(requests_transaction_tokens),
        Some(manages_tenants),
    ) = (name, product, residency, originates, requests, manages)
    {
        let service = Service { name, product, residency, originates, requests_transaction_tokens, manages_tenants };
        draft.services.insert(service.name.clone(), service);
    }
}

/// The name of a document that rules may name as a caller: services and outside clients share one namespace.
pub(super) fn caller_name(
    reader: &mut Reader<'_>,
    node: &Node,
    what: &'static str,
    draft: &mut Draft,
) -> Option<ServiceName> {
    let Some(name) = reader.parsed::<ServiceName>(node, "a service name") else {
        draft.unseen = true;
        return None;
    };
    let other = if what == SERVICE { EXTERNAL_CLIENT } else { SERVICE };
    if let Some(first) = draft.defined.get(other).and_then(|names| names.get(name.as_str())) {
        let message = format!(
            "{what} {:?} has the name of the {other} {:?}, expected one of its own{FIRST_AT}{first}",
            name.as_str(),
            name.as_str()
        );
        reader.problem(node.at, message);
    }
    draft.define(reader, what, name.as_str(), node.at);
    if name.as_str().starts_with(control_plane::PREFIX) {
        let message = "a name of the control plane, expected a service name that does not begin with \"tenon-\"";
        reader.problem(node.at, message);
    }
    Some(name)
}

fn quarantine(reader: &mut Reader<'_>, name: DocumentName, spec: &Node, draft: &mut Draft) -> Option<Quarantine> {
    let fields = reader.fields(spec, &QUARANTINE)?;
    let services = fields.required(reader, "services", "a list of service names");
    let services = services.and_then(|node| caller_names(reader, node, draft));
    let reason = or_default(reader, fields, "reason", String::new(), |reader, node| {
        reader.text(node, "a reason").map(str::to_owned)
    });
    Some(Quarantine { name, services: services?, reason: reason? })
}

fn caller_names(reader: &mut Reader<'_>, node: &Node, draft: &mut Draft) -> Option<Vec<ServiceName>> {
    let mut whole = true;
    let mut names: Vec<ServiceName> = Vec::new();
    for item in reader.some_list(node, "service names")? {
        match known_caller(reader, item, draft) {
            Some(name) if names.contains(&name) => {
                reader.problem(item.at, format!("service {:?} stands twice, expected it once", name.as_str()));
            }
            Some(name) => names.push(name),
            None => whole = false,
        }
    }
    whole.then_some(names)
}

/// A service name that a Service document must define.
pub(super) fn service_name(reader: &mut Reader<'_>, node: &Node, draft: &mut Draft) -> Option<ServiceName> {
    draft.referred(reader, SERVICE, node)
}

/// The name of a service, or of a client outside of the mesh, that a document must define.
pub(super) fn known_caller(reader: &mut Reader<'_>, node: &Node, draft: &mut Draft) -> Option<ServiceName> {
    draft.referred(reader, CALLER, node)
}

/// A region name that the Mesh document must define.
pub(super) fn region_name(reader: &mut Reader<'_>, node: &Node, draft: &mut Draft) -> Option<RegionName> {
    draft.referred(reader, REGION, node)
}

/// Text that is not empty and stays on its line.
pub(super) fn word(reader: &mut Reader<'_>, node: &Node, what: &str) -> Option<String> {
    let text = reader.text(node, what)?;
    if text.is_empty() || text.contains(char::is_control) {
        reader.problem(node.at, format!("found text {:?}, expected {what}", short(text)));
        return None;
    }
    Some(text.to_owned())
}

/// A field's value, its default when it is absent, `None` when it is wrong.
pub(super) fn or_default<T>(
    reader: &mut Reader<'_>,
    fields: Fields<'_>,
    name: &str,
    default: T,
    read: impl FnOnce(&mut Reader<'_>, &Node) -> Option<T>,
) -> Option<T> {
    match fields.optional(name) {
        Some(node) => read(reader, node),
        None => Some(default),
    }
}
