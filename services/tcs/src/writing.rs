//! Writing tenants: at a leader; a relay refuses, naming where to.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_identity::Peer;
use tenon_proto::replication::v1::GuardRules;
use tenon_proto::tcs::v1::Guard;
use tokio::sync::watch;
use tonic::{Request, Status};

use crate::guard::{self, Guards};
use crate::store::Store;

/// Where writes go. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Writing {
    Leader(Store, Guards),
    /// To these, or to whom they follow; the guard as they told it.
    Elsewhere(Arc<[SocketAddr]>, watch::Receiver<GuardRules>),
}

impl Writing {
    /// The store.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` at a relay.
    pub(crate) fn store(&self) -> Result<&Store, Status> {
        match self {
            Self::Leader(store, _) => Ok(store),
            Self::Elsewhere(parents, _) => Err(elsewhere(parents)),
        }
    }

    /// The guard in force.
    pub(crate) fn guard(&self) -> Guard {
        match self {
            Self::Leader(_, guards) => guards.get(),
            Self::Elsewhere(_, rules) => guard::of_rules(rules.borrow().clone()),
        }
    }

    /// Store and guard, to change it.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` at a relay.
    pub(crate) fn guards(&self) -> Result<(&Store, &Guards), Status> {
        match self {
            Self::Leader(store, guards) => Ok((store, guards)),
            Self::Elsewhere(parents, _) => Err(elsewhere(parents)),
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
