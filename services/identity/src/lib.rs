//! The identity service: the mesh's certificate authority and the writer of its ASAP key repository (DESIGN §4).
//!
//! A process proves which service it is with a join token, once, and gets an SVID for one hour; from then on it renews
//! over mTLS. The public half of its ASAP key is durable, and on its way to every sidecar, before it has its answer. This
//! crate never stores a join token (only its SHA-256) and never logs a token or a key.

mod audit;
mod authority;
mod ca;
mod csr;
mod keys;
mod limits;
mod metrics;
mod oidc;
mod operators;
mod policy_follower;
mod registry;
mod repository;
mod revocations;
mod rotation;
mod serve;
mod service;
mod store;
mod svid;
#[cfg(test)]
mod testing;
mod tokens;
mod transaction;

pub use ca::{
    Ca, CaError, IssueError, Issued, OPERATOR_LIFETIME, Passphrase, Phase, RotateError, SVID_LIFETIME,
    ServerCertificate,
};
pub use csr::{Csr, CsrError};
pub use serve::{AUTHORIZATION, Config, ServeError, serve, serve_observed};
