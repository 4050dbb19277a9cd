//! Which children a LocalMesh needs, and the command line of each.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Display,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use journal::Store;
use mesh_config::{HeldTenants, Instance, LocalMesh, Mesh, Records, ReplicaAddress, compile, names::ServiceName};

use super::{credentials::PASSPHRASE, leftovers, supervisor};
use crate::{
    cli::PastArgs,
    data::Data,
    failure::Failure,
    mesh_file::{ControlPlane, MeshFile, PolicyReplica, Sidecar, TcsReplica},
    operator::Role,
};

/// How long a sidecar lets open calls go on after SIGTERM: less than what it is given before SIGKILL.
const DRAIN_SECONDS: u64 = 6;

/// All that command lines are made of.
pub struct Surroundings<'a> {
    /// The policy folder, absolute.
    pub folder: &'a Path,
    /// The data folder, absolute.
    pub data: &'a Data,
    /// `--store`, if given.
    pub store: Option<&'a Store>,
    /// What each TCS with a store keeps of the past.
    pub past: &'a PastArgs,
    pub mesh: &'a Mesh,
    pub local: &'a LocalMesh,
    /// SHA-256 of the trust bundle.
    pub pin: &'a str,
    /// Where processes of the control plane show metrics, by name.
    pub metrics: &'a BTreeMap<String, SocketAddr>,
}

/// One child to be.
#[derive(Debug, Clone)]
pub struct Planned {
    /// What the supervisor runs.
    pub spec: supervisor::Spec,
    /// The service that it joins the mesh as: it gets a join token for it before each start.
    pub joins: Option<ServiceName>,
}

/// Everything that is going to run.
#[derive(Debug)]
pub struct Plan {
    pub identity: Planned,
    /// In the order of the LocalMesh document.
    pub policy: Vec<Planned>,
    /// In the order of the LocalMesh document; never empty.
    pub tcs: Vec<Planned>,
    /// In the order of `file.sidecars`.
    pub sidecars: Vec<Planned>,
    pub apps: Vec<Planned>,
    /// The policy folder, absolute.
    pub folder: PathBuf,
    /// What the folder says.
    pub records: Records,
    /// What commands read of it.
    pub file: MeshFile,
}

/// The two binaries of Tenon.
pub struct Binaries {
    pub tenon: PathBuf,
    pub sidecar: PathBuf,
}

impl Binaries {
    /// This one, and `tenon-sidecar` beside it.
    ///
    /// # Errors
    /// It is not there.
    pub fn find() -> Result<Self, Failure> {
        let tenon = std::env::current_exe().map_err(|error| {
            Failure::new(format!("cannot find the tenon binary: {error}")).next("start it by its path")
        })?;
        let sidecar = tenon.with_file_name("tenon-sidecar");
        if !sidecar.is_file() {
            return Err(Failure::new(format!("there is no {}", sidecar.display()))
                .next("build it (`cargo build --release`) or install both binaries into one folder"));
        }
        Ok(Self { tenon, sidecar })
    }
}

/// Makes the command lines. Starts nothing.
pub fn plan(around: &Surroundings<'_>, binaries: &Binaries) -> Plan {
    let maker = Maker { around, tie: supervisor::tie(&binaries.tenon), binaries };
    let names = sidecar_names(&around.local.instances);
    let lines: Vec<_> =
        around.local.instances.iter().zip(&names).map(|(i, name)| maker.sidecar_line(i, name)).collect();
    let addresses = &around.local.control_plane;
    let file = MeshFile {
        mesh: around.mesh.name().to_string(),
        trust_domain: around.mesh.trust_domain().to_string(),
        trust_bundle_sha256: around.pin.to_owned(),
        control_plane: ControlPlane {
            identity: addresses.identity,
            key_repository: addresses.key_repository,
            tcs: maker.leader(),
            tcs_replicas: maker.tcs_replicas(),
            policy: addresses.policy[0].address,
            policy_replicas: maker.policy_replicas(),
            dashboard: Some(addresses.dashboard),
            metrics: around.metrics.clone(),
        },
        sidecars: around
            .local
            .instances
            .iter()
            .zip(&names)
            .zip(&lines)
            .map(|((instance, name), line)| described(around.data, instance, name, line))
            .collect(),
    };
    let instances = || around.local.instances.iter().zip(&names);
    Plan {
        identity: maker.identity(),
        policy: (0..addresses.policy.len()).map(|index| maker.policy(index)).collect(),
        tcs: (0..addresses.tcs.len()).map(|index| maker.tcs(index)).collect(),
        sidecars: instances()
            .zip(lines)
            .map(|((instance, name), line)| maker.child(name, line, Some(instance.service.clone())))
            .collect(),
        apps: instances()
            .filter(|(instance, _)| !instance.command.is_empty())
            .map(|(instance, name)| maker.app(instance, name))
            .collect(),
        folder: around.folder.to_owned(),
        records: compile(around.mesh),
        file,
    }
}

fn described(data: &Data, instance: &Instance, name: &str, line: &[OsString]) -> Sidecar {
    Sidecar {
        name: name.to_owned(),
        service: instance.service.to_string(),
        region: instance.region.to_string(),
        zone: instance.zone.as_ref().map(ToString::to_string),
        app: instance.app,
        outbound: instance.outbound.to_string(),
        inbound: instance.inbound,
        admin: instance.admin,
        state_dir: data.sidecar(name),
        command: line.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
    }
}

/// `media-us-east`, and `media-us-east-2` for a second one there.
fn sidecar_names(instances: &[Instance]) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(instances.len());
    for instance in instances {
        let base = format!("{}-{}", instance.service, instance.region);
        let name = (1..)
            .map(|n| if n == 1 { base.clone() } else { format!("{base}-{n}") })
            .find(|name| !names.contains(name))
            .unwrap_or(base.clone());
        names.push(name);
    }
    names
}

/// `tcs`, and `tcs-2` for the second one.
fn process_name(role: Role, index: usize) -> String {
    match index {
        0 => role.name().to_owned(),
        _ => format!("{}-{}", role.name(), index + 1),
    }
}

/// A free loopback address for the metrics of each process of the control plane; none where there are no ports. Whoever
/// finds it taken later serves all the same, and waits for it.
pub fn metrics_addresses(local: &LocalMesh) -> BTreeMap<String, SocketAddr> {
    let plane = &local.control_plane;
    let named = |role: Role, count: usize| (0..count).map(move |index| process_name(role, index));
    let names = named(Role::Identity, 1)
        .chain(named(Role::Policy, plane.policy.len()))
        .chain(named(Role::Tcs, plane.tcs.len()));
    // All are held until the last is known, so that no two are the same.
    let held: Vec<_> =
        names.filter_map(|name| Some((name, TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?))).collect();
    held.into_iter().filter_map(|(name, listener)| Some((name, listener.local_addr().ok()?))).collect()
}

struct Maker<'a> {
    around: &'a Surroundings<'a>,
    tie: Vec<OsString>,
    binaries: &'a Binaries,
}

impl Maker<'_> {
    fn identity(&self) -> Planned {
        let mut line = Line::new(&self.binaries.tenon).words(["identity", "serve"]);
        line = line
            .flag("--listen", self.around.local.control_plane.identity)
            .flag("--key-repository", self.around.local.control_plane.key_repository)
            .flag("--policy", self.policy_addresses())
            .path("--ca", &self.around.data.ca())
            .flag("--trust-domain", self.around.mesh.trust_domain())
            .path("--state-dir", &self.around.data.role("identity"));
        line = self.showing("identity", line);
        let mut child = self.child("identity", line.0, None);
        child.spec.without.retain(|name| name != PASSPHRASE);
        child
    }

    fn policy(&self, index: usize) -> Planned {
        let line = Line::new(&self.binaries.tenon)
            .words(["policy", "serve"])
            .flag("--listen", self.around.local.control_plane.policy[index].address)
            .path("--folder", self.around.folder)
            .flag("--store", self.store(Role::Policy));
        let addresses = &self.around.local.control_plane;
        let line = match index {
            0 => addresses
                .tcs
                .iter()
                .fold(line.flag("--dashboard", addresses.dashboard), |line, tcs| line.flag("--tcs", tcs.address)),
            _ => line,
        };
        self.joining(Role::Policy, &process_name(Role::Policy, index), line)
    }

    /// The first one leads. The others follow it, or write beside it where the store takes several writers.
    fn tcs(&self, index: usize) -> Planned {
        let addresses = &self.around.local.control_plane;
        let line = Line::new(&self.binaries.tenon)
            .words(["tcs", "serve"])
            .flag("--listen", addresses.tcs[index].address)
            .flag("--policy", self.policy_addresses());
        let line = if index == 0 || self.several_write() {
            let line = line.flag("--store", self.store(Role::Tcs));
            self.around.past.flags().into_iter().fold(line, |line, (name, value)| line.flag(name, value))
        } else {
            line.flag("--follow", self.leader())
        };
        self.joining(Role::Tcs, &process_name(Role::Tcs, index), line)
    }

    fn leader(&self) -> SocketAddr {
        self.around.local.control_plane.tcs[0].address
    }

    fn tcs_replicas(&self) -> Vec<TcsReplica> {
        let replica = |(index, tcs): (usize, &ReplicaAddress)| TcsReplica {
            name: process_name(Role::Tcs, index),
            address: tcs.address,
            zone: tcs.zone.as_ref().map(ToString::to_string),
            writes: self.several_write(),
        };
        self.around.local.control_plane.tcs.iter().enumerate().skip(1).map(replica).collect()
    }

    fn policy_replicas(&self) -> Vec<PolicyReplica> {
        let replicas = self.around.local.control_plane.policy.iter().enumerate().skip(1);
        let replica = |(index, policy): (usize, &ReplicaAddress)| PolicyReplica {
            name: process_name(Role::Policy, index),
            address: policy.address,
        };
        replicas.map(replica).collect()
    }

    /// The two that services of the control plane follow.
    fn policy_addresses(&self) -> String {
        let addresses = self.around.local.control_plane.policy.iter().take(2);
        addresses.map(|policy| policy.address.to_string()).collect::<Vec<_>>().join(",")
    }

    /// An embedded store is open in one process alone.
    fn several_write(&self) -> bool {
        matches!(self.around.store, Some(Store::Nats(_)))
    }

    /// Where a service keeps its truth.
    fn store(&self, role: Role) -> Store {
        let in_folder = |folder: &Path| Store::Embedded(folder.join(format!("{}.redb", role.name())));
        match self.around.store {
            None => in_folder(&self.around.data.role(role.name())),
            Some(Store::Embedded(folder)) => in_folder(folder),
            Some(Store::Nats(servers)) => Store::Nats(servers.clone()),
        }
    }

    /// The rest of the command line of a service of the control plane that joins like any other.
    fn joining(&self, role: Role, name: &str, line: Line) -> Planned {
        let dir = self.around.data.role(name);
        let line = line
            .flag("--trust-domain", self.around.mesh.trust_domain())
            .path("--state-dir", &dir)
            .flag("--identity", self.around.local.control_plane.identity)
            .flag("--trust-bundle-sha256", self.around.pin)
            .path("--join-token-file", &dir.join(JOIN_TOKEN));
        let line = self.showing(name, line);
        self.child(name, line.0, Some(role.service_name()))
    }

    fn showing(&self, name: &str, line: Line) -> Line {
        match self.around.metrics.get(name) {
            Some(address) => line.flag("--metrics", address),
            None => line,
        }
    }

    fn sidecar_line(&self, instance: &Instance, name: &str) -> Vec<OsString> {
        let addresses = &self.around.local.control_plane;
        let dir = self.around.data.sidecar(name);
        let mut line = Line::new(&self.binaries.sidecar)
            .flag("--service", &instance.service)
            .flag("--trust-domain", self.around.mesh.trust_domain())
            .flag("--region", &instance.region);
        if let Some(zone) = &instance.zone {
            line = line.flag("--zone", zone);
        }
        if let Some(app) = instance.app {
            line = line.flag("--app", app);
        }
        line = line
            .flag("--outbound", &instance.outbound)
            .flag("--inbound", instance.inbound)
            .flag("--admin", instance.admin)
            .flag("--identity", addresses.identity);
        for (flag, replicas) in [("--tcs", &addresses.tcs), ("--policy", &addresses.policy)] {
            for ReplicaAddress { address, zone } in replicas {
                line = match zone {
                    Some(zone) => line.flag(flag, format_args!("{zone}={address}")),
                    None => line.flag(flag, address),
                };
            }
        }
        if instance.tenants == HeldTenants::OnDemand {
            line = line.flag("--tenants", "on-demand");
        }
        line.flag("--trust-bundle-sha256", self.around.pin)
            .path("--join-token-file", &dir.join(JOIN_TOKEN))
            .path("--state-dir", &dir)
            .flag("--drain-seconds", DRAIN_SECONDS)
            .0
    }

    fn app(&self, instance: &Instance, name: &str) -> Planned {
        let line = instance.command.iter().map(OsString::from).collect();
        let mut child = self.child(&format!("{name}-app"), line, None);
        // An app may have TENON_* variables of its own; the passphrase is nobody's but the CA's.
        child.spec.without = vec![PASSPHRASE.into()];
        child.spec.with = vec![(leftovers::MARK, leftovers::mark(self.around.data))];
        child
    }

    /// Nothing that configures this process may configure a child: its command line says all.
    fn child(&self, name: &str, program: Vec<OsString>, joins: Option<ServiceName>) -> Planned {
        let ours = |name: &OsString| name.to_string_lossy().starts_with("TENON_");
        let spec = supervisor::Spec {
            name: name.to_owned(),
            program,
            log: self.around.data.log(name),
            tie: self.tie.clone(),
            grace: supervisor::GRACE,
            without: std::env::vars_os().map(|(name, _)| name).filter(ours).collect(),
            with: Vec::new(),
        };
        Planned { spec, joins }
    }
}

/// Name of the file with the join token in the folder of whoever joins.
pub const JOIN_TOKEN: &str = "join-token";

/// A command line.
struct Line(Vec<OsString>);

impl Line {
    fn new(program: &Path) -> Self {
        Self(vec![program.into()])
    }

    fn words<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.0.extend(words.map(OsString::from));
        self
    }

    fn flag(mut self, name: &str, value: impl Display) -> Self {
        self.0.extend([name.into(), value.to_string().into()]);
        self
    }

    fn path(mut self, name: &str, value: &Path) -> Self {
        self.0.extend([name.into(), value.into()]);
        self
    }
}

#[cfg(test)]
mod tests;
