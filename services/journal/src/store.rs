//! `--store`: where journals are kept.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use mesh_config::names::TrustDomain;

use crate::{Embedded, Journal, Nats, OpenError, Options};

/// The port of a NATS server that names none.
const NATS_PORT: u16 = 4222;

/// Where journals are kept, as `--store` says it: `embedded:PATH` or `nats://HOST[:PORT][,HOST[:PORT]...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// In one file, which one process has open.
    Embedded(PathBuf),
    /// In replicated streams of a NATS cluster, which any number of processes write.
    Nats(Servers),
}

/// Servers of one NATS cluster, at least one. The others of the cluster are learned from those that answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers(Vec<String>);

/// Why a text is not a [`Store`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("{0} names no kind of store: write embedded:PATH or nats://HOST:PORT[,HOST:PORT]")]
    Scheme(String),
    #[error("{0} names no file: write embedded:PATH")]
    Path(String),
    #[error("{server:?} in {store} is no server: write nats://HOST:PORT[,HOST:PORT]")]
    Server { store: String, server: String },
    #[error("{0} has a user or a password in it, which others could read: servers are named alone")]
    Credentials(String),
}

/// The journals of one store, opened. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Journals {
    Embedded(Embedded),
    Nats(Nats),
}

/// Opens a store for the mesh of `trust_domain`. A NATS cluster holds each mesh apart from all others, and a log of another
/// one is refused; an embedded store is a file of one mesh, whose it is is not looked at.
///
/// `local` is a folder for what this process holds of a store that is elsewhere; nobody else may use it, and it can be
/// deleted while the process is down: then it is fetched again. An embedded store does not touch it.
///
/// A NATS cluster that does not answer is not an error: what is held locally is served until it does.
///
/// # Errors
/// [`OpenError`]
pub async fn open(
    store: &Store,
    trust_domain: &TrustDomain,
    local: &Path,
    options: Options,
) -> Result<Journals, OpenError> {
    Ok(match store {
        Store::Embedded(path) => {
            let path = path.clone();
            Journals::Embedded(crate::embedded::blocking(move || Embedded::open_with(&path, options)).await?)
        }
        Store::Nats(servers) => Journals::Nats(Nats::connect(servers, trust_domain, local, options).await?),
    })
}

impl Journals {
    /// The journal of `kind`; all callers get the same one. Of a NATS store of which nothing is held yet, this waits for
    /// the first answer of the cluster.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn kind(&self, kind: &'static str) -> Result<Arc<dyn Journal>, OpenError> {
        match self {
            Self::Embedded(embedded) => embedded.kind(kind),
            Self::Nats(nats) => nats.kind(kind).await,
        }
    }
}

impl Servers {
    /// As `host:port`.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl FromStr for Store {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        if let Some(path) = text.strip_prefix("embedded:") {
            return if path.is_empty() {
                Err(StoreError::Path(text.to_owned()))
            } else {
                Ok(Self::Embedded(path.into()))
            };
        }
        let Some(servers) = text.strip_prefix("nats://") else { return Err(StoreError::Scheme(text.to_owned())) };
        if servers.contains('@') {
            let place = servers.rsplit('@').next().unwrap_or_default();
            return Err(StoreError::Credentials(format!("nats://…@{place}")));
        }
        // Also where the scheme is said again before each.
        let servers = servers.split(',').map(|server| server.strip_prefix("nats://").unwrap_or(server));
        let servers = servers.map(|server| {
            address(server).ok_or_else(|| StoreError::Server { store: text.to_owned(), server: server.to_owned() })
        });
        Ok(Self::Nats(Servers(servers.collect::<Result<_, _>>()?)))
    }
}

/// `host:port` of a host with or without a port.
fn address(server: &str) -> Option<String> {
    let is_host = |host: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        bracketed.map_or_else(
            || !host.is_empty() && host.chars().all(plain),
            |address| address.parse::<std::net::Ipv6Addr>().is_ok(),
        )
    };
    match server.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let port = port.parse::<u16>().ok().filter(|port| *port != 0)?;
            is_host(host).then(|| format!("{host}:{port}"))
        }
        _ => is_host(server).then(|| format!("{server}:{NATS_PORT}")),
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(path) => write!(f, "embedded:{}", path.display()),
            Self::Nats(servers) => servers.fmt(f),
        }
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nats://{}", self.0.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_a_file_or_servers_and_is_written_as_it_is_read() {
        for (text, store) in [
            ("embedded:/var/lib/tcs.redb", Store::Embedded("/var/lib/tcs.redb".into())),
            ("nats://127.0.0.1:4222", Store::Nats(Servers(vec!["127.0.0.1:4222".to_owned()]))),
            (
                "nats://a.example:1,b_2:65535,[::1]:7",
                Store::Nats(Servers(vec!["a.example:1".to_owned(), "b_2:65535".to_owned(), "[::1]:7".to_owned()])),
            ),
        ] {
            assert_eq!(text.parse(), Ok(store));
            assert_eq!(text.parse::<Store>().unwrap().to_string(), text);
        }
        let written = |text: &str| text.parse::<Store>().unwrap().to_string();
        assert_eq!(written("nats://a,[::1]"), "nats://a:4222,[::1]:4222", "the port that NATS has by default");
        assert_eq!(written("nats://a:1,nats://b:2"), "nats://a:1,b:2", "as other clients of NATS take it");
    }

    #[test]
    fn what_is_no_store_is_refused_with_what_to_write() {
        for (text, error) in [
            ("", " names no kind of store: write embedded:PATH or nats://HOST:PORT[,HOST:PORT]"),
            ("redis://a:1", "redis://a:1 names no kind of store: write embedded:PATH or nats://HOST:PORT[,HOST:PORT]"),
            ("/a/path", "/a/path names no kind of store: write embedded:PATH or nats://HOST:PORT[,HOST:PORT]"),
            ("embedded:", "embedded: names no file: write embedded:PATH"),
            ("nats://", "\"\" in nats:// is no server: write nats://HOST:PORT[,HOST:PORT]"),
            ("nats://a:1,,b:2", "\"\" in nats://a:1,,b:2 is no server: write nats://HOST:PORT[,HOST:PORT]"),
            ("nats://a:0", "\"a:0\" in nats://a:0 is no server: write nats://HOST:PORT[,HOST:PORT]"),
            ("nats://a:65536", "\"a:65536\" in nats://a:65536 is no server: write nats://HOST:PORT[,HOST:PORT]"),
            ("nats://a/b", "\"a/b\" in nats://a/b is no server: write nats://HOST:PORT[,HOST:PORT]"),
            (
                "nats://me:secret@a:1",
                "nats://…@a:1 has a user or a password in it, which others could read: servers are named alone",
            ),
        ] {
            assert_eq!(text.parse::<Store>().unwrap_err().to_string(), error);
        }
    }
}
