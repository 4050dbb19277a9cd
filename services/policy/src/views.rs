//! Who sees which records: a service its own allowlist, callers what they need to find a callee, operators everything.

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
        // No service is named "*".
        (**view == *EVERYTHING || **view == *key).then(|| value.clone())
    }
}

/// Views of what every caller needs of every callee: one for all.
pub(crate) struct ForCallers {
    /// Whether the TCS sees it as well: routes tell it which product each service is.
    pub tcs: bool,
}

impl Views for ForCallers {
    fn view(&self, peer: &Peer) -> Result<ViewName, Status> {
        match peer.id.workload() {
            Workload::Service(name) if is_control_plane(name) && !(self.tcs && name.as_str() == control_plane::TCS) => {
                Err(denied(name))
            }
            Workload::Service(_) | Workload::Operator(_) => Ok(EVERYTHING.into()),
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
