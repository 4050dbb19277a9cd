//! Who sees which records: a service its own allowlist, callers what they need to find a callee, the identity service
//! who attests whom, operators everything.

use bytes::Bytes;
use journal::{ViewName, Views};
use mesh_config::names::{ServiceName, control_plane};
use mesh_identity::{Peer, Workload};
use tonic::Status;

/// Sees every record.
const EVERYTHING: &str = "*";

/// Views of the kind `allowlist`: one a service.
pub(crate) struct Allowlists;

impl Views for Allowlists {
    fn view(&self, peer: &Peer) -> Result<ViewName, Status> {
        match peer.id.workload() {
            Workload::Operator(_) => Ok(EVERYTHING.into()),
            Workload::Service(name) if is_control_plane(name) => Err(denied(name)),
            Workload::Service(name) => Ok(name.as_str().into()),
        }
    }

    fn project(&self, view: &ViewName, key: &str, value: &Bytes) -> Option<Bytes> {
        // No service is named "*". The policy service's own record is for nobody.
        (key != control_plane::POLICY && (**view == *EVERYTHING || **view == *key)).then(|| value.clone())
    }
}

/// Views of what every caller needs of every callee: one for all.
pub(crate) struct ForCallers {
    /// The services of the control plane that see it as well.
    pub control_plane: &'static [&'static str],
}

impl Views for ForCallers {
    fn view(&self, peer: &Peer) -> Result<ViewName, Status> {
        match peer.id.workload() {
            Workload::Service(name) if is_control_plane(name) && !self.control_plane.contains(&name.as_str()) => {
                Err(denied(name))
            }
            Workload::Service(_) | Workload::Operator(_) => Ok(EVERYTHING.into()),
        }
    }

    fn project(&self, _: &ViewName, _: &str, value: &Bytes) -> Option<Bytes> {
        Some(value.clone())
    }
}

/// Views of the kind `attestation`: the identity service's alone. Operators read it by `Describe`.
pub(crate) struct ForIdentity;

impl Views for ForIdentity {
    fn view(&self, peer: &Peer) -> Result<ViewName, Status> {
        match peer.id.workload() {
            Workload::Service(name) if name.as_str() == control_plane::IDENTITY => Ok(EVERYTHING.into()),
            Workload::Service(name) => Err(denied(name)),
            Workload::Operator(_) => {
                Err(Status::permission_denied("operators do not follow this kind: Describe has it"))
            }
        }
    }

    fn project(&self, _: &ViewName, _: &str, value: &Bytes) -> Option<Bytes> {
        Some(value.clone())
    }
}

fn is_control_plane(name: &ServiceName) -> bool {
    name.as_str().starts_with(control_plane::PREFIX)
}

fn denied(name: &ServiceName) -> Status {
    Status::permission_denied(format!("{name} does not follow this kind"))
}
