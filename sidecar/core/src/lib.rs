//! What a sidecar decides: pure functions over snapshots of state, without IO and without a clock.
//!
//! [`inbound::decide`] and [`outbound::decide`] are the two decisions of a call (DESIGN §3). The proxy calls them with a
//! view of the request's head, and once more where they had to wait for something; `tenon policy explain` and `PolicyTest` call the same functions through [`explain`]. On
//! the good path neither allocates. Nothing here knows hyper, tokio or the replication protocol.

pub mod balance;
pub mod deadline;
pub mod explain;
mod fields;
pub mod inbound;
pub mod limits;
pub mod outbound;
pub mod policy;
mod position;
mod quarantine;
mod reason;
mod refusal;
pub mod retry;
pub mod route;
pub mod tap;
pub mod tenancy;
pub mod trace_context;
mod wire;

pub use position::{Position, PositionError};
pub use quarantine::Quarantined;
pub use reason::{Code, Reason};
pub use refusal::Refusal;
pub use tenancy::{Lookup, Tenants, Wanted};
pub use wire::{Credentials, Named, Peer, Proven, Token, Transaction};
