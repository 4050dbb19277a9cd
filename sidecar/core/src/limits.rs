//! What a callee's sidecar takes on (DESIGN §3, "limits"): the rate of a rule per tenant, and how many calls are at the app
//! at once, shared fairly among tenants when that limit bites.
//!
//! Pure like the rest: time is an argument, waiting is nobody's. The cells are atomics, since all workers count in them.

pub mod concurrency;
pub mod gradient;
pub mod rate;
mod unasked;

#[cfg(test)]
mod tests;
