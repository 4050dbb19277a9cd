//! A running mesh as the operator's commands reach it: its addresses and the operator's credentials, from the data
//! folder that `tenon up` made.

mod answer;
pub mod files;

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use mesh_config::names::{ServiceName, TrustDomain, control_plane};
use mesh_identity::{Identity, TrustBundle, grpc};
use tonic::{Code, Status, transport::Channel};

pub use answer::{from_the_connection, is_taken, may_be_done};
use files::ReadError;

use crate::{
    data::Data,
    failure::{Failure, chain},
    mesh_file::MeshFile,
    output::rfc3339,
};

/// A mesh that was found, with everything needed to call its control plane. Nothing is connected yet.
pub struct Mesh {
    file: MeshFile,
    data: Data,
    identity: Arc<Identity>,
}

/// One service of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Identity,
    Tcs,
    Policy,
}

impl Role {
    /// In the order in which they start.
    pub const ALL: [Self; 3] = [Self::Identity, Self::Policy, Self::Tcs];

    /// The name that its certificate carries.
    pub fn service_name(self) -> ServiceName {
        let name = match self {
            Self::Identity => control_plane::IDENTITY,
            Self::Tcs => control_plane::TCS,
            Self::Policy => control_plane::POLICY,
        };
        ServiceName::try_from(name).expect("the names of the control plane follow the grammar")
    }

    /// Name of its folder, log file and subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Tcs => "tcs",
            Self::Policy => "policy",
        }
    }

    /// What people call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Identity => "identity service",
            Self::Tcs => "TCS",
            Self::Policy => "policy service",
        }
    }
}

/// One process of the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub role: Role,
    /// Name of its folder and log file: `policy`, `tcs-2`.
    pub name: String,
    /// What people call it.
    pub title: String,
    pub address: SocketAddr,
}

impl Mesh {
    /// Finds the mesh of a data folder.
    ///
    /// # Errors
    /// None runs there, or the operator's credentials are gone or over; the text says what to do.
    pub fn find(data: &Path) -> Result<Self, Failure> {
        let data = Data::new(data);
        let file = MeshFile::read(&data)?;
        let identity = credentials(&data, &file.trust_domain)?;
        let svid = identity.svid();
        if !svid.is_valid_at(mesh_identity::clock::unix_seconds()) {
            return Err(Failure::new(format!(
                "the operator's certificate in {} is valid from {} to {}, not now",
                data.dir().display(),
                rfc3339(svid.not_before()),
                rfc3339(svid.not_after())
            ))
            .next("`tenon up` renews it while it runs: start the mesh with `tenon up -f DIR`, or set this machine's clock"));
        }
        Ok(Self { file, data, identity })
    }

    /// What `tenon up` wrote of it.
    pub fn file(&self) -> &MeshFile {
        &self.file
    }

    /// Its data folder.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The operator, as the control plane sees it.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Where a service of the control plane listens; of the TCS, the first one.
    pub fn address(&self, role: Role) -> SocketAddr {
        match role {
            Role::Identity => self.file.control_plane.identity,
            Role::Tcs => self.file.control_plane.tcs,
            Role::Policy => self.file.control_plane.policy,
        }
    }

    /// Every process of the control plane, in the order in which they start.
    pub fn processes(&self) -> Vec<Process> {
        let first = Role::ALL.map(|role| Process {
            role,
            name: role.name().to_owned(),
            title: role.title().to_owned(),
            address: self.address(role),
        });
        let replicas = self.file.control_plane.tcs_replicas.iter().map(|replica| Process {
            role: Role::Tcs,
            name: replica.name.clone(),
            title: format!("{} {}", Role::Tcs.title(), replica.name),
            address: replica.address,
        });
        let policies = self.file.control_plane.policy_replicas.iter().map(|replica| Process {
            role: Role::Policy,
            name: replica.name.clone(),
            title: format!("{} {}", Role::Policy.title(), replica.name),
            address: replica.address,
        });
        first.into_iter().chain(replicas).chain(policies).collect()
    }

    /// A channel to a service of the control plane; connects when it is used. Of several processes, to the first that answers;
    /// of several TCS, to one that takes writes.
    pub fn channel(&self, role: Role) -> Channel {
        match role {
            Role::Tcs => self.tcs(),
            Role::Policy => {
                grpc::channel_to_any(&self.file.control_plane.every_policy(), &self.identity, &role.service_name())
            }
            Role::Identity => grpc::channel(self.address(role), &self.identity, &role.service_name()),
        }
    }

    /// A channel to one process of the control plane.
    pub fn channel_to(&self, process: &Process) -> Channel {
        grpc::channel(process.address, &self.identity, &process.role.service_name())
    }

    /// What to do when somebody else listens where this mesh should.
    pub fn another_mesh(&self) -> String {
        format!(
            "another mesh listens there, or {} is the data folder of another mesh: name the data folder of the mesh that runs with --data",
            self.data.dir().display()
        )
    }

    /// A channel to the TCS, for writes: to the first of those that take them which answers.
    pub fn tcs(&self) -> Channel {
        grpc::channel_to_any(&self.file.control_plane.writing_tcs(), &self.identity, &Role::Tcs.service_name())
    }

    /// A channel to the TCS, for reads: to the first which answers, with those that take writes first.
    pub fn tcs_for_reads(&self) -> Channel {
        grpc::channel_to_any(&self.reading_tcs(), &self.identity, &Role::Tcs.service_name())
    }

    fn reading_tcs(&self) -> Vec<SocketAddr> {
        let plane = &self.file.control_plane;
        let mut all = plane.writing_tcs();
        all.extend(plane.tcs_replicas.iter().filter(|replica| !replica.writes).map(|replica| replica.address));
        all
    }

    /// The failure of a call to the TCS that takes writes.
    pub fn tcs_failure(&self, what: &str, status: &Status) -> Failure {
        self.failure(Role::Tcs, what, status)
    }

    /// The failure of a call through [`Mesh::tcs_for_reads`].
    pub fn read_failure(&self, what: &str, status: &Status) -> Failure {
        self.failure_of(Role::Tcs, &self.reading_tcs(), what, status)
    }

    /// The failure of a write: `not_done` where that is known. Else `find_out` says how to find out what became of it.
    pub fn write_failure(&self, role: Role, not_done: &str, find_out: &str, status: &Status) -> Failure {
        if is_taken(status) {
            return Failure::new(reason(status)).next("`tenon check` says when all of it is written");
        }
        if may_be_done(status) {
            return Failure::new(format!("the outcome is unknown: {}", reason(status))).next(find_out);
        }
        self.failure(role, not_done, status)
    }

    /// The failure of a call to a service of the control plane: `what` could not be done.
    pub fn failure(&self, role: Role, what: &str, status: &Status) -> Failure {
        let addresses = match role {
            Role::Tcs => self.file.control_plane.writing_tcs(),
            Role::Identity | Role::Policy => vec![self.address(role)],
        };
        self.failure_of(role, &addresses, what, status)
    }

    fn failure_of(&self, role: Role, addresses: &[SocketAddr], what: &str, status: &Status) -> Failure {
        let text = reason(status);
        if is_another_mesh(&text) {
            return Failure::new(format!(
                "{what}: not the {} of this mesh answers on {}: {text}",
                role.title(),
                self.address(role)
            ))
            .next(self.another_mesh());
        }
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        if status.code() == Code::Unavailable && from_the_connection(status) {
            let addresses = addresses.join(", ");
            return Failure::new(format!("{what}: the {} does not answer on {addresses}: {text}", role.title()))
                .next("is the mesh running? start it with `tenon up -f DIR`; `tenon check` says what is wrong with a running one");
        }
        // It answers: what it waits for itself is not there.
        if status.code() == Code::Unavailable {
            let addresses = addresses.join(" or ");
            return Failure::new(format!("{what}: the {} on {addresses} answers: {text}", role.title())).next(CHECK);
        }
        let next = match status.code() {
            Code::Unauthenticated => "use the data folder of the mesh that listens there: name it with --data",
            Code::ResourceExhausted if text.contains(NO_ROOM) => "make room on the disk of the data folder and repeat",
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::AlreadyExists
            | Code::NotFound => "correct what it names and try again",
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => CHECK,
        };
        Failure::new(format!("{what}: {text}")).next(next)
    }
}

/// What to do where nothing better is known.
const CHECK: &str = "`tenon check` says what is wrong with the mesh; the service's log is in the data folder";

/// How a store without room says so: the journal's words.
const NO_ROOM: &str = "no room left on the disk";

/// Whether this is how a handshake fails with a process that speaks TLS, but for another root, or no TLS at all.
pub fn is_another_mesh(problem: &str) -> bool {
    ["UnknownIssuer", "BadSignature", "received corrupt message"].iter().any(|sign| problem.contains(sign))
}

/// The text of a status on one line, with what lies below it; never empty.
pub fn reason(status: &Status) -> String {
    let source = std::error::Error::source(status).map(chain).unwrap_or_default();
    match (status.message(), source.as_str()) {
        ("", "") => format!("{:?}", status.code()),
        ("", source) => source.to_owned(),
        (message, "") => message.to_owned(),
        (message, source) if message.contains(source) || source.contains(message) => message.to_owned(),
        (message, source) => format!("{message}: {source}"),
    }
}

/// The operator's identity as it lies in a data folder.
pub fn credentials(data: &Data, trust_domain: &str) -> Result<Arc<Identity>, Failure> {
    let damaged = |what: &str, error: &dyn std::error::Error| {
        Failure::new(format!("{what} cannot be used: {}", chain(error)))
            .next("start the mesh again with `tenon up -f DIR`: it writes the operator's credentials anew")
    };
    let unreadable = |path: &Path, error: &std::io::Error| {
        Failure::new(format!("cannot read the operator's credentials: {}: {error}", path.display()))
            .next("run as the user who started the mesh, or start it again with `tenon up -f DIR`")
    };
    let read = |path: &Path| fs::read_to_string(path).map_err(|error| unreadable(path, &error));
    let svid = files::read(data).map_err(|error| match error {
        ReadError::File { path, source } => unreadable(&path, &source),
        ReadError::Damaged(error) => damaged(&data.operator_certificate().display().to_string(), &error),
    })?;
    let trust_domain = TrustDomain::try_from(trust_domain)
        .map_err(|error| damaged(&data.mesh_file().display().to_string(), &error))?;
    let bundle = TrustBundle::from_pem(trust_domain, &read(&data.trust_bundle())?)
        .map_err(|error| damaged(&data.trust_bundle().display().to_string(), &error))?;
    Ok(Identity::new(svid, bundle))
}

#[cfg(test)]
mod tests {
    use tonic::ConnectError;

    use super::*;

    /// A mesh that nothing runs of.
    fn mesh(data: &Path) -> (Mesh, identity::Ca) {
        let domain = TrustDomain::try_from("demo.example").unwrap();
        let now = mesh_identity::clock::unix_seconds();
        let ca = identity::Ca::create(&data.join("ca"), &domain, None, now).unwrap();
        let svid = ca
            .issue_operator("ann", mesh_identity::OperatorRole::Admin, std::time::Duration::from_secs(60), now)
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let control_plane = crate::mesh_file::ControlPlane {
            identity: address,
            key_repository: address,
            tcs: address,
            tcs_replicas: Vec::new(),
            policy: address,
            policy_replicas: Vec::new(),
            dashboard: None,
            metrics: std::collections::BTreeMap::new(),
        };
        let file = MeshFile {
            mesh: "demo".into(),
            trust_domain: "demo.example".into(),
            trust_bundle_sha256: ca.bundle().pin(),
            control_plane,
            sidecars: Vec::new(),
        };
        (Mesh { file, data: Data::new(data), identity: Identity::new(svid, ca.bundle().clone()) }, ca)
    }

    #[test]
    fn failures_say_what_helps() {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, _ca) = mesh(dir.path());
        for (status, says) in [
            (Status::from_error(Box::new(ConnectError("refused".into()))), "is the mesh running?"),
            (Status::unavailable("no tenants have arrived here yet"), "the TCS on 127.0.0.1:1 answers: "),
            (Status::unavailable("invalid peer certificate: BadSignature"), "with --data"),
            (Status::unknown("invalid peer certificate: UnknownIssuer"), "another mesh listens there"),
            (
                Status::resource_exhausted("no room left on the disk of the store"),
                "make room on the disk of the data folder and repeat",
            ),
            (Status::permission_denied("no operator"), "correct what it names"),
        ] {
            let failure = mesh.failure(Role::Tcs, "nothing was imported", &status).to_string();
            assert!(failure.contains(says) && failure.contains(status.message()), "{failure}");
            assert_eq!(failure.contains("is the mesh running"), says.starts_with("is the mesh"), "{failure}");
        }
    }

    /// Named after a message that was not true: of a policy that was taken, it was said not to be known.
    #[test]
    fn a_policy_that_is_taken_is_not_said_to_be_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let (mesh, _ca) = mesh(dir.path());
        let text = "the policy is taken, but not all of it could be written yet: it is tried again until it is";
        let failure = |status| mesh.write_failure(Role::Policy, "not applied", "find out", &status).to_string();
        let expected = format!("{text}\n  `tenon check` says when all of it is written");
        assert_eq!(failure(Status::unavailable(text)), expected);
        let unknown = failure(Status::unavailable("the store did not confirm the files"));
        assert_eq!(unknown, "the outcome is unknown: the store did not confirm the files\n  find out");
    }

    #[tokio::test]
    async fn a_control_plane_of_another_mesh_is_told_from_one_that_does_not_run() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ((mut ours, _), (_, ca)) = (mesh(ours.path()), mesh(theirs.path()));
        let now = mesh_identity::clock::unix_seconds();
        let svid = ca.issue_service(&Role::Tcs.service_name(), std::time::Duration::from_secs(60), now).unwrap();
        let theirs = Identity::new(svid, ca.bundle().clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        ours.file.control_plane.tcs = listener.local_addr().unwrap();
        let server = mesh_identity::tls::server_config(&theirs, mesh_identity::tls::Clients::Optional);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _refused = mesh_identity::tls::accept(&server, stream).await;
            }
        });
        let problem = crate::probe::health(ours.tcs()).await.unwrap_err();
        assert!(is_another_mesh(&problem), "{problem}");
    }
}
