//! Whoever is at the other end of an inbound connection.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use http::HeaderValue;
use mesh_asap::precheck;
use mesh_identity::{
    Identity, Revoked,
    tls::{Client, Outsiders},
};
use sidecar_core::{Peer, Reason, Refusal};
use tokio_util::sync::CancellationToken;

/// The caller of every call on one connection, as TLS proved it.
#[derive(Debug)]
pub struct Caller {
    /// What rules call it: a service, or a client outside of the mesh. An operator is neither, and no token can be bound
    /// to it.
    pub name: Arc<str>,
    /// The same as a header value.
    pub header: HeaderValue,
    client: Client,
    /// It is not who may be here any more: its calls are refused and its connection closes.
    expelled: AtomicBool,
    /// Takes no new calls once it is cancelled.
    connection: CancellationToken,
}

impl Caller {
    /// Names the peer of a connection, which ends when `connection` is cancelled.
    #[must_use]
    pub fn new(client: Client, connection: CancellationToken) -> Self {
        let name: Arc<str> = match &client {
            Client::Mesh(peer) => match (peer.id.service_name(), peer.id.operator_name()) {
                (Some(name), _) => name.as_str().into(),
                (None, name) => format!("operator/{}", name.unwrap_or_default()).into(),
            },
            Client::Outside(peer) => Arc::clone(&peer.name),
        };
        let header = HeaderValue::from_str(&name).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { name, header, client, expelled: AtomicBool::new(false), connection }
    }

    /// As decisions want it.
    pub fn peer(&self) -> Peer<'_> {
        if self.is_outside() { Peer::Outside(&self.name) } else { Peer::Service(&self.name) }
    }

    /// Whether this is a client outside of the mesh.
    pub fn is_outside(&self) -> bool {
        matches!(self.client, Client::Outside(_))
    }

    /// Whether this is another sidecar, and no operator.
    pub fn is_sidecar(&self) -> bool {
        matches!(&self.client, Client::Mesh(peer) if peer.id.service_name().is_some())
    }

    /// Looks whether it may still be here; if not, its calls are refused from now on and its connection closes.
    pub fn look_again(&self, identity: &Identity, outsiders: &Outsiders) {
        let removed = matches!(&self.client, Client::Outside(peer) if !outsiders.still_knows(peer));
        if (removed || self.client.is_revoked(identity)) && !self.expelled.swap(true, Relaxed) {
            tracing::info!(caller = &*self.name, removed, "a connection is closed: its peer is trusted no more");
            self.connection.cancel();
        }
    }

    /// Whether its connection closes although nobody else's does.
    pub fn is_expelled(&self) -> bool {
        self.expelled.load(Relaxed)
    }

    /// A new or open call of whoever may not be here any more.
    ///
    /// # Errors
    /// `ASAP_ISSUER`: there is nobody any more who could have issued its token.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.is_expelled() {
            let message = match &self.client {
                Client::Mesh(_) => format!("the identity of {} is revoked", self.name),
                Client::Outside(_) => {
                    format!(
                        "{} is revoked, or the policy has no client outside of the mesh like it any more",
                        self.name
                    )
                }
            };
            return Err(Refusal::new(Reason::AsapIssuer, message));
        }
        Ok(())
    }
}

/// An open call whose token was signed with a key that is revoked by now.
///
/// # Errors
/// `ASAP_KEY_UNKNOWN`.
pub fn check_key(token: Option<&HeaderValue>, revoked: &Revoked) -> Result<(), Refusal> {
    if revoked.kids.is_empty() {
        return Ok(());
    }
    let Some(token) = token.and_then(|token| token.to_str().ok()) else { return Ok(()) };
    // As it stands in `authorization`, or bare.
    let token = token.split_once(' ').map_or(token, |(_, token)| token);
    match precheck(token) {
        Ok(token) if revoked.kids.contains(token.kid.as_str()) => {
            Err(Refusal::new(Reason::AsapKeyUnknown, "the key of the call's token is revoked"))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
