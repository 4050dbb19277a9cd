//! What the benchmarks share: parts in processes of their own, calls through proxies, and the table at the end.

pub mod app;
pub mod child;
pub mod envoy;
pub mod h2load;
pub mod report;
