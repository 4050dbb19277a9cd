//! The Tenant Context Service: the replicated store of tenant contexts, and their write side (DESIGN §7).
//!
//! Operators write; every service of the mesh follows what it may see: of each context only the part of its own
//! product, as the policy names it. Never decides whether a tenant may be served: sidecars do, from what they follow.

mod backup;
mod events;
mod guard;
mod lifecycle;
mod operations;
mod published;
mod reading;
mod relay;
mod routes;
mod serve;
mod service;
mod staged;
mod store;
mod views;
mod watch;
mod writing;

pub use backup::part_of;
pub use serve::{AUTHORIZATION, Config, PAST, Role, ServeError, serve, serve_observed};
