//! Writing tenants: at a leader; a relay refuses, naming where to.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_identity::Peer;
use tonic::{Request, Status};

use crate::guard::Guards;
use crate::store::Store;

/// Where writes go. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Writing {
    Leader(Store, Guards),
    /// To these, or to whom they follow.
    Elsewhere(Arc<[SocketAddr]>),
}

impl Writing {
    /// The store.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` at a relay.
    pub(crate) fn store(&self) -> Result<&Store, Status> {
        match self {
            Self::Leader(store, _) => Ok(store),
            Self::Elsewhere(parents) => Err(elsewhere(parents)),
        }
    }

    /// Store and guard.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` at a relay.
    pub(crate) fn guards(&self) -> Result<(&Store, &Guards), Status> {
        match self {
            Self::Leader(store, guards) => Ok((store, guards)),
            Self::Elsewhere(parents) => Err(elsewhere(parents)),
        }
    }
}

fn elsewhere(parents: &[SocketAddr]) -> Status {
    let parents: Vec<String> = parents.iter().map(SocketAddr::to_string).collect();
    let parents = parents.join(", ");
    Status::failed_precondition(format!(
        "this TCS only relays what it follows: write to {parents}, or to whom that follows; nothing has changed"
    ))
}

/// Who calls, for the log.
pub(crate) fn caller<T>(request: &Request<T>) -> impl fmt::Display + use<T> {
    request.extensions().get::<Peer>().map(|peer| peer.id.to_string()).unwrap_or_default()
}
