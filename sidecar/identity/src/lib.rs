//! Identities of the mesh: SPIFFE ids, SVIDs, trust bundles, TLS configurations over live state, gRPC between the
//! parts of the control plane, and how a process joins the mesh and stays in it.
//!
//! Whoever holds an [`Identity`] holds the process's own SVID, the trust bundle and the revocations. All three may be
//! replaced at any time; every TLS configuration made from it reads them at each handshake, so a rotation rebuilds
//! nothing and drops no connection.
//!
//! This crate never decides what a peer may do beyond the authorization tables of [`grpc`]; allowlists are
//! `sidecar-core`'s.

mod bundle;
pub mod clock;
#[cfg(test)]
mod fake;
pub mod grpc;
pub mod join;
mod live;
pub mod metrics;
mod peer;
pub mod policy_signature;
pub mod repository;
mod role;
mod spiffe;
mod svid;
#[doc(hidden)]
pub mod testing;
pub mod tls;
pub mod workload;

pub use bundle::{BundleError, Rotation, TrustBundle};
pub use live::{Identity, Mismatch, Revoked};
pub use peer::{OutsidePeer, Peer};
pub use role::{NotARole, OperatorRole};
pub use spiffe::{SpiffeId, SpiffeIdError, Workload};
pub use svid::{Svid, SvidError};
