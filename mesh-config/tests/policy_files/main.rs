//! Policy files through the front door: what is told of each mistake, and whether editors would tell it too.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod documents;
mod malformed;
mod mutations;
mod schema;
