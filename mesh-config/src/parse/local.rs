//! The kind `LocalMesh`: what `tenon up` runs on one machine.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::{
    Draft,
    document::{or_default, region_name, service_name},
    forms::LABEL,
};
use crate::{
    mesh::{ControlPlaneAddresses, HeldTenants, Instance, LocalMesh, Outbound, ReplicaAddress},
    names::short,
    yaml::{
        At, Form, Map, Node, Reader, Value,
        shape::{optional, required, words},
    },
};

pub(super) static LOCAL_MESH: Map = Map {
    what: "the spec of a LocalMesh",
    fields: &[
        required("instances", Form::Some(&Form::Map(&INSTANCE)), "A sidecar each, with its app."),
        optional("controlPlane", Form::Map(&CONTROL_PLANE), "Where the control plane listens."),
    ],
};

static CONTROL_PLANE: Map = Map {
    what: "the addresses of the control plane",
    fields: &[
        optional("identity", SOCKET, "The identity service. Default: 127.0.0.1:15010."),
        optional("keyRepository", SOCKET, "The key repository. Default: 127.0.0.1:15011."),
        optional(
            TCS,
            Form::Either(&[
                SOCKET,
                Form::Map(&REPLICA_ADDRESS),
                Form::Some(&Form::Either(&[SOCKET, Form::Map(&REPLICA_ADDRESS)])),
            ]),
            "One address or a list, for one process of the Tenant Context Service each. Default: 127.0.0.1:15020.",
        ),
        optional(
            POLICY,
            Form::Either(&[
                SOCKET,
                Form::Map(&REPLICA_ADDRESS),
                Form::Some(&Form::Either(&[SOCKET, Form::Map(&REPLICA_ADDRESS)])),
            ]),
            "One address or a list, for one process of the policy service each. Default: 127.0.0.1:15030.",
        ),
        optional("dashboard", SOCKET, "The dashboard. Default: 127.0.0.1:15080."),
    ],
};

static REPLICA_ADDRESS: Map = Map {
    what: "the address of a process",
    fields: &[
        required("address", SOCKET, "Where it listens."),
        optional("zone", LABEL, "The zone that it stands in: sidecars follow two of different zones."),
    ],
};

static INSTANCE: Map = Map {
    what: "an instance",
    fields: &[
        required("service", LABEL, "The service that it is an instance of."),
        required("region", LABEL, "The region that it stands in."),
        optional("zone", LABEL, "The zone within the region."),
        optional("app", SOCKET, "Where the app listens (h2c). Leave it out for a service that only calls."),
        optional("command", Form::Some(&Form::Text), "Program and arguments of the app, for tenon up to start."),
        optional(
            "outbound",
            Form::Like(r"^(unix:.|(\[[^\]]+\]|[0-9.]+):[0-9]{1,5}$)"),
            "Where the app sends its own calls: a loopback address or unix:PATH. Default: 127.0.0.1:15001.",
        ),
        optional("inbound", SOCKET, "Where other sidecars send calls. Default: 127.0.0.1:15006."),
        optional("admin", SOCKET, "The admin listener. Default: 127.0.0.1:15000."),
        optional(
            "tenants",
            Form::Choice(|| words(HELD)),
            "Which tenants its sidecar holds. on-demand: those that were asked for lately. Default: full, all of them.",
        ),
    ],
};

const HELD: &[(&str, HeldTenants)] = &[("full", HeldTenants::Full), ("on-demand", HeldTenants::OnDemand)];

/// An IP address with a port.
const SOCKET: Form = Form::Like(r"^(\[[^\]]+\]|[0-9.]+):[0-9]{1,5}$");

pub(super) fn read(reader: &mut Reader<'_>, spec: &Node, draft: &mut Draft) -> Option<LocalMesh> {
    let fields = reader.fields(spec, &LOCAL_MESH)?;
    let mut taken = Taken::default();
    let control_plane = match fields.optional("controlPlane") {
        Some(node) => control_plane(reader, node, &mut taken),
        None => {
            let defaults = ControlPlaneAddresses::default();
            let several = [(TCS, &defaults.tcs), (POLICY, &defaults.policy)];
            let several = several.into_iter().flat_map(|(name, all)| all.iter().map(move |one| (name, one.address)));
            for (name, address) in by_name(&defaults).into_iter().chain(several) {
                taken.take(reader, fields.at(), address, format!("the default of the control plane's {name}"));
            }
            Some(defaults)
        }
    };
    let node = fields.required(reader, "instances", "a list of instances")?;
    let nodes = reader.some_list(node, "instances")?;
    let mut apps = Vec::new();
    let instances: Vec<Instance> =
        nodes.iter().filter_map(|node| instance(reader, node, draft, &mut taken, &mut apps)).collect();
    for (at, address) in apps {
        taken.check(reader, at, address);
    }
    (instances.len() == nodes.len()).then_some(())?;
    Some(LocalMesh { instances, control_plane: control_plane? })
}

const TCS: &str = "tcs";
const POLICY: &str = "policy";

/// Those that listen on one address each.
fn by_name(addresses: &ControlPlaneAddresses) -> [(&'static str, SocketAddr); 3] {
    [("identity", addresses.identity), ("keyRepository", addresses.key_repository), ("dashboard", addresses.dashboard)]
}

fn control_plane(reader: &mut Reader<'_>, node: &Node, taken: &mut Taken) -> Option<ControlPlaneAddresses> {
    let fields = reader.fields(node, &CONTROL_PLANE)?;
    let defaults = ControlPlaneAddresses::default();
    let [identity, key_repository, dashboard] = by_name(&defaults).map(|(name, default)| {
        let read = or_default(reader, fields, name, default, address)?;
        let at = fields.optional(name).map_or(fields.at(), |node| node.at);
        taken.take(reader, at, read, format!("the control plane's {name}"));
        Some(read)
    });
    let [tcs, policy] = [(TCS, defaults.tcs), (POLICY, defaults.policy)].map(|(name, default)| {
        if let Some(node) = fields.optional(name) {
            return several(reader, node, taken, name);
        }
        for replica in &default {
            taken.take(reader, fields.at(), replica.address, format!("the control plane's {name}"));
        }
        Some(default)
    });
    Some(ControlPlaneAddresses {
        identity: identity?,
        key_repository: key_repository?,
        tcs: tcs?,
        policy: policy?,
        dashboard: dashboard?,
    })
}

/// One address, or a list of them.
fn several(reader: &mut Reader<'_>, node: &Node, taken: &mut Taken, name: &str) -> Option<Vec<ReplicaAddress>> {
    let Value::List(_) = node.value else {
        return Some(vec![replica(reader, node, taken, format!("the control plane's {name}"))?]);
    };
    let nodes = reader.some_list(node, "addresses")?;
    let number = |n: usize| format!("number {n} of the control plane's {name}");
    let all = nodes.iter().zip(1..).filter_map(|(node, n)| replica(reader, node, taken, number(n)));
    let all: Vec<ReplicaAddress> = all.collect();
    (all.len() == nodes.len()).then_some(all)
}

fn replica(reader: &mut Reader<'_>, node: &Node, taken: &mut Taken, what: String) -> Option<ReplicaAddress> {
    let (at, read) = if let Value::Map(_) = node.value {
        let fields = reader.fields(node, &REPLICA_ADDRESS)?;
        let zone =
            or_default(reader, fields, "zone", None, |reader, node| reader.parsed(node, "a zone name").map(Some));
        let node = fields.required(reader, "address", ADDRESS)?;
        (node.at, ReplicaAddress { address: address(reader, node)?, zone: zone? })
    } else {
        (node.at, ReplicaAddress { address: address(reader, node)?, zone: None })
    };
    taken.take(reader, at, read.address, what);
    Some(read)
}

fn instance(
    reader: &mut Reader<'_>,
    node: &Node,
    draft: &mut Draft,
    taken: &mut Taken,
    apps: &mut Vec<(At, SocketAddr)>,
) -> Option<Instance> {
    let fields = reader.fields(node, &INSTANCE)?;
    let service = fields.required(reader, "service", "the name of a service");
    let service = service.and_then(|node| service_name(reader, node, draft));
    let region = fields.required(reader, "region", "the name of a region");
    let region = region.and_then(|node| region_name(reader, node, draft));
    let zone = or_default(reader, fields, "zone", None, |reader, node| reader.parsed(node, "a zone name").map(Some));
    let app = or_default(reader, fields, "app", None, |reader, node| address(reader, node).map(Some));
    if let (Some(Some(app)), Some(node)) = (app, fields.optional("app")) {
        apps.push((node.at, app));
    }
    let command = or_default(reader, fields, "command", Vec::new(), command);
    let at = |name: &str| fields.optional(name).map_or(fields.at(), |node| node.at);
    let named = |name: &str| format!("the {name} listener of the instance in line {}", node.at.line);
    let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let outbound = or_default(reader, fields, "outbound", Outbound::Tcp(local(15001)), outbound);
    match &outbound {
        Some(Outbound::Tcp(address)) => taken.take(reader, at("outbound"), *address, named("outbound")),
        Some(Outbound::Unix(path)) => taken.take_path(reader, at("outbound"), path, named("outbound")),
        None => {}
    }
    let [inbound, admin] = [("inbound", 15006), ("admin", 15000)].map(|(name, port)| {
        let read = or_default(reader, fields, name, local(port), address)?;
        taken.take(reader, at(name), read, named(name));
        Some(read)
    });
    let tenants = or_default(reader, fields, "tenants", HeldTenants::Full, |reader, node| reader.choice(node, HELD));
    Some(Instance {
        service: service?,
        region: region?,
        zone: zone?,
        app: app?,
        command: command?,
        outbound: outbound?,
        inbound: inbound?,
        admin: admin?,
        tenants: tenants?,
    })
}

const ADDRESS: &str = "an IP address with a port, as 127.0.0.1:9002";

fn address(reader: &mut Reader<'_>, node: &Node) -> Option<SocketAddr> {
    let text = reader.form(node, ADDRESS)?;
    let address: Option<SocketAddr> = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    if address.is_none() {
        reader.problem(node.at, format!("address {:?} is not well formed, expected {ADDRESS}", short(text)));
    }
    address
}

/// The app speaks plaintext there, so nobody else may reach it.
fn outbound(reader: &mut Reader<'_>, node: &Node) -> Option<Outbound> {
    let text = reader.form(node, "a loopback address with a port, or unix:PATH")?;
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() || path.contains('\0') {
            reader.problem(node.at, "no path behind unix:, expected unix:PATH");
            return None;
        }
        return Some(Outbound::Unix(PathBuf::from(path)));
    }
    let address = address(reader, node)?;
    if !address.ip().is_loopback() {
        let message =
            format!("outbound {text:?} can be reached from other machines, expected a loopback address or unix:PATH");
        reader.problem(node.at, message);
        return None;
    }
    Some(Outbound::Tcp(address))
}

fn command(reader: &mut Reader<'_>, node: &Node) -> Option<Vec<String>> {
    let items = reader.some_list(node, "the program and its arguments")?;
    let words: Vec<String> = items
        .iter()
        .filter_map(|item| match reader.text(item, "a program or argument")? {
            text if text.contains('\0') => {
                reader.problem(item.at, "an argument with U+0000, expected one without");
                None
            }
            text => Some(text.to_owned()),
        })
        .collect();
    (words.len() == items.len()).then_some(words)
}

/// The listeners of one machine.
#[derive(Default)]
struct Taken {
    addresses: Vec<(SocketAddr, String)>,
    paths: Vec<(PathBuf, String)>,
}

impl Taken {
    /// Notes a listener; one that collides with another is a problem.
    fn take(&mut self, reader: &mut Reader<'_>, at: At, address: SocketAddr, what: String) {
        if self.check(reader, at, address) {
            self.addresses.push((address, what));
        }
    }

    /// Whether no listener so far stands in the way.
    fn check(&self, reader: &mut Reader<'_>, at: At, address: SocketAddr) -> bool {
        let other = self.addresses.iter().find(|(other, _)| {
            let any = |ip: IpAddr| ip.is_unspecified();
            other.port() == address.port() && (other.ip() == address.ip() || any(other.ip()) || any(address.ip()))
        });
        if let Some((_, what)) = other {
            reader.problem(at, format!("address {address} is taken by {what}, expected one of its own"));
        }
        other.is_none()
    }

    fn take_path(&mut self, reader: &mut Reader<'_>, at: At, path: &PathBuf, what: String) {
        match self.paths.iter().find(|(other, _)| other == path) {
            Some((_, first)) => {
                reader.problem(at, format!("unix:{} is taken by {first}, expected one of its own", path.display()));
            }
            None => self.paths.push((path.clone(), what)),
        }
    }
}
