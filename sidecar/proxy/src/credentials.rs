//! ASAP credentials as the sidecar uses them: tokens for destinations, and the verification of those it is handed.

mod minting;
mod transactions;
mod verifying;

pub use minting::Minting;
pub use verifying::{KeyRecord, TokenMemory};
