//! Addresses on this host: where the app is, and where its own calls go.

use std::{fmt, net::SocketAddr, path::Path, str::FromStr, sync::Arc};

use serde::Serialize;

/// A socket of this host: `127.0.0.1:9002`, `[::1]:9002`, or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub enum LocalAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(Arc<Path>),
}

impl FromStr for LocalAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some("") => Err("unix: needs a path"),
            Some(path) => Ok(Self::Unix(Path::new(path).into())),
            None => text.parse().map(Self::Tcp).map_err(|_| "expected IP:PORT, [IPv6]:PORT or unix:PATH"),
        }
    }
}

impl fmt::Display for LocalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<LocalAddress> for String {
    fn from(address: LocalAddress) -> Self {
        address.to_string()
    }
}
