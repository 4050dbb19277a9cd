//! The policy service: compiles mesh policy files and replicates what comes of them (DESIGN §6).
//!
//! Files reach it by a watched folder or by an operator's `Apply`; the later change wins. What is in force is the last
//! set of files that had no problem. The service never decides about a call: sidecars do, from the records.

mod dashboard;
mod engine;
mod fleet;
mod flows;
pub mod json;
mod leases;
mod metrics;
mod rollout;
mod serve;
mod service;
mod views;
mod watch;

pub use serve::{AUTHORIZATION, Config, ServeError, serve, serve_observed};
