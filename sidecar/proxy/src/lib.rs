//! The data plane of Tenon: one process beside each instance of a service.
//!
//! Three listeners: `outbound` for the app's own calls, `inbound` for other sidecars, `admin` for operators. The decisions
//! are `sidecar-core`'s; this crate is the engine that carries them out: it reads heads, asks, and streams bodies through.
//! `docs/life-of-a-call.md` names the phases of a call with their refusals and files.
//!
//! Never here: decoding of messages, decisions that are not in `sidecar-core`, requests to the control plane on the path
//! of a call.

mod access;
mod admin;
mod ahead;
pub mod app;
mod body;
mod call;
mod caller;
pub mod config;
mod cork;
mod credentials;
mod decisions;
mod forward;
mod guard;
mod handover;
mod headers;
mod health;
mod in_flight;
mod inbound;
mod joining;
mod limits;
mod line_budget;
mod listen;
mod live;
pub mod log_filter;
mod lookups;
pub mod metrics;
mod open;
mod outbound;
mod outside;
mod policy_record;
mod pool;
mod pump;
mod ready;
mod reflection;
mod refuse;
mod register;
mod replay;
mod report;
mod said;
mod tap;
pub mod tenants;
mod trace;
pub mod wait;
mod worker;
