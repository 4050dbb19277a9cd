//! A running mesh as the operator's commands reach it: its addresses and the operator's credentials, from the data
//! folder that `tenon up` made.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use mesh_config::names::{ServiceName, TrustDomain, control_plane};
use mesh_identity::{Identity, Svid, TrustBundle, grpc};
use tonic::{Code, Status, transport::Channel};

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

    /// Where a service of the control plane listens.
    pub fn address(&self, role: Role) -> SocketAddr {
        match role {
            Role::Identity => self.file.control_plane.identity,
            Role::Tcs => self.file.control_plane.tcs,
            Role::Policy => self.file.control_plane.policy,
        }
    }

    /// A channel to a service of the control plane; connects when it is used.
    pub fn channel(&self, role: Role) -> Channel {
        grpc::channel(self.address(role), &self.identity, &role.service_name())
    }

    /// A channel to the TCS.
    pub fn tcs(&self) -> Channel {
        self.channel(Role::Tcs)
    }

    /// The failure of a call to the TCS.
    pub fn tcs_failure(&self, what: &str, status: &Status) -> Failure {
        self.failure(Role::Tcs, what, status)
    }

    /// The failure of a call to a service of the control plane: `what` could not be done.
    pub fn failure(&self, role: Role, what: &str, status: &Status) -> Failure {
        if status.code() == Code::Unavailable {
            return Failure::new(format!("{what}: the {} does not answer on {}: {}", role.title(), self.address(role), reason(status)))
                .next("is the mesh running? start it with `tenon up -f DIR`; `tenon check` says what is wrong with a running one");
        }
        let next = match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => {
                "use the data folder of the mesh that listens there: name it with --data"
            }
            Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists | Code::NotFound => {
                "correct what it names and try again"
            }
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
            | Code::DataLoss => {
                "`tenon check` says what is wrong with the mesh; the service's log is in the data folder"
            }
        };
        Failure::new(format!("{what}: {}", reason(status))).next(next)
    }
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
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|error| {
            Failure::new(format!("cannot read the operator's credentials: {}: {error}", path.display()))
                .next("run as the user who started the mesh, or start it again with `tenon up -f DIR`")
        })
    };
    let chain_pem = read(&data.operator_certificate())?;
    let key_pem = read(&data.operator_key())?;
    let svid = Svid::from_pem(&chain_pem, &key_pem)
        .map_err(|error| damaged(&data.operator_certificate().display().to_string(), &error))?;
    let trust_domain = TrustDomain::try_from(trust_domain)
        .map_err(|error| damaged(&data.mesh_file().display().to_string(), &error))?;
    let bundle = TrustBundle::from_pem(trust_domain, &read(&data.trust_bundle())?)
        .map_err(|error| damaged(&data.trust_bundle().display().to_string(), &error))?;
    Ok(Identity::new(svid, bundle))
}
