//! ASAP tokens and keys: parse, mint, verify, by the rules A1–A13 and A17 of the specification as this project reads it
//! (`docs/asap.md`); and the transaction tokens of the mesh ([`txn`]).
//!
//! Pure: never reads the clock (`now` is an argument, Unix seconds), never does IO, has no tokio. Randomness comes from
//! aws-lc-rs. Fetching keys is somebody else's; [`verify`] asks a [`Keys`] and does so only for a token that has passed
//! everything cheaper.

mod bearer;
mod claims;
pub mod env;
mod key;
mod kid;
mod memory;
mod minted;
mod signing;
mod token;
pub mod txn;
mod verify;

pub use bearer::{BearerError, bearer};
pub use key::{Algorithm, KeyError, Keys, Lookup, PublicKey};
pub use kid::{Kid, KidError};
pub use memory::Memory;
pub use minted::Minted;
pub use signing::{DEFAULT_LIFETIME_SECONDS, SigningKey};
pub use token::{InspectError, Inspected, MAX_TOKEN_BYTES, inspect};
pub use verify::{
    Expect, Grant, MAX_LEEWAY_SECONDS, MAX_LIFETIME_SECONDS, Precheck, Verified, VerifyError, precheck, verify,
};
