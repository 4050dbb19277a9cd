//! The SPIFFE Workload API (SPIFFE_Workload_API.md), both ways: [`take`] an identity from a socket such as SPIRE's
//! agent has, and [`serve`] the own one to the app beside this process.
//!
//! Only X.509 SVIDs: between services of this mesh ASAP tokens do what JWT-SVIDs would.

mod der;
mod serve;
mod take;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub use serve::serve;
pub use take::{Source, TakeError, follow, take};

/// What every request must carry, so that no URL that somebody else chose makes a process fetch a key (§3).
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// Where a Workload API listens: `unix:PATH`, the form of `SPIFFE_ENDPOINT_SOCKET`, with an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket(PathBuf);

/// Why a text does not name a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected unix:///PATH or unix:/PATH with an absolute path")]
pub struct SocketError;

impl Socket {
    /// The socket's file.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl FromStr for Socket {
    type Err = SocketError;

    fn from_str(text: &str) -> Result<Self, SocketError> {
        let path = text.strip_prefix("unix:").ok_or(SocketError)?;
        // An authority between the slashes names another machine.
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.starts_with('/') && !path.starts_with("//") && path.len() > 1 && !path.contains(['?', '#']) {
            Ok(Self(path.into()))
        } else {
            Err(SocketError)
        }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "unix://{}", self.0.display())
    }
}

#[cfg(test)]
mod tests;
