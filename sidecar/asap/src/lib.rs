//! ASAP tokens and keys: parse, mint, verify, by the rules A1–A12 and A17 of the specification as this project reads it.
//!
//! Pure: never reads the clock (`now` is an argument, Unix seconds), never does IO, has no tokio. Randomness comes from
//! aws-lc-rs. Fetching keys is somebody else's; [`verify`] asks a [`Keys`] and does so only for a token that has passed
//! everything cheaper.

mod claims;
mod key;
mod kid;
mod memory;
mod minted;
mod signing;
mod token;
mod verify;

pub use key::{Algorithm, KeyError, Keys, Lookup, PublicKey};
pub use kid::{Kid, KidError, path_prefix_conflict};
pub use memory::Memory;
pub use minted::Minted;
pub use signing::{DEFAULT_LIFETIME_SECONDS, SigningKey};
pub use token::{InspectError, Inspected, MAX_TOKEN_BYTES, inspect};
pub use verify::{Expect, Grant, MAX_LEEWAY_SECONDS, MAX_LIFETIME_SECONDS, Verified, VerifyError, verify};
