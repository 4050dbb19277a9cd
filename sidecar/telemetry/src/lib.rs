//! Metrics of a process: the two text formats, what every process shows of itself, RPCs of a gRPC server, and the listener
//! of services that have no other place to show them.
//!
//! Each crate says in a `metrics.rs` of its own what it counts, as [`Observed`]; `docs/telemetry.md` lists everything.
//! Never here: what a number means.

pub mod documented;
mod exemplars;
mod format;
mod histogram;
mod listener;
mod page;
mod process;
mod rpc;
mod runtime;
mod telemetry;

pub use exemplars::{Exemplar, with_exemplars};
pub use format::Format;
pub use histogram::{Counts, Histogram};
pub use page::Page;
pub use process::process;
pub use rpc::{BYTES as RPC_BYTES, Measured, Messages, OTHER as OTHER_METHOD, Rpcs, SECONDS as RPC_SECONDS, code_name};
pub use runtime::runtime;
pub use telemetry::{Observed, Telemetry};
