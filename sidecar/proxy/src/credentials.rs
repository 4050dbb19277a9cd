//! ASAP credentials as the sidecar uses them: tokens for destinations, and the verification of those it is handed.

mod from_outside;
mod keeping;
mod minting;
mod transactions;
mod verifying;

pub use keeping::keep_minting;
pub use minting::Minting;
pub use verifying::{KeyRecord, TokenMemory};
