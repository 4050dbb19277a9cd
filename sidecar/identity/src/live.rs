//! A process's identity as it is right now.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_config::names::ServiceName;
use tokio::sync::watch;

use crate::{Peer, SpiffeId, Svid, TrustBundle, Workload};

/// Who this process is, whom it trusts and whom no longer. Shared; its parts are swapped while it is in use, and a
/// handshake sees either the old or the new one, never half of each.
#[derive(Debug)]
pub struct Identity {
    /// Fixed: a process never becomes somebody else.
    id: SpiffeId,
    svid: ArcSwap<Svid>,
    bundle: ArcSwap<TrustBundle>,
    revoked: ArcSwap<Revoked>,
    /// Counts the replacements of the three above, each after it can be seen.
    changes: watch::Sender<u64>,
}

/// Peers whose certificates are refused although they are valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Every SVID of these services.
    pub services: HashSet<ServiceName>,
    /// Every certificate of these operators, those that they renewed too: "ann" of `…/operator/ann`.
    pub operators: HashSet<String>,
    /// These certificates: lower hexadecimal without leading zero bytes.
    pub serials: HashSet<String>,
    /// Tokens signed with these ASAP keys. TLS knows nothing of them.
    pub kids: HashSet<String>,
}

/// A new SVID or bundle is somebody else's.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected}, got {got}")]
pub struct Mismatch {
    expected: String,
    got: String,
}

impl Identity {
    /// Starts with nothing revoked.
    pub fn new(svid: Svid, bundle: TrustBundle) -> Arc<Self> {
        Arc::new(Self {
            id: svid.id().clone(),
            svid: ArcSwap::from_pointee(svid),
            bundle: ArcSwap::from_pointee(bundle),
            revoked: ArcSwap::default(),
            changes: watch::Sender::new(0),
        })
    }

    /// Who this process is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The service that this process is; none for an operator.
    pub fn service(&self) -> Option<&ServiceName> {
        self.id.service_name()
    }

    /// The current SVID.
    pub fn svid(&self) -> Arc<Svid> {
        self.svid.load_full()
    }

    /// The current trust bundle.
    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.bundle.load_full()
    }

    /// The current revocations.
    pub fn revoked(&self) -> Arc<Revoked> {
        self.revoked.load_full()
    }

    /// From the next handshake on this SVID is shown. Refuses one with another SPIFFE id and keeps the old.
    pub fn set_svid(&self, svid: Svid) -> Result<(), Mismatch> {
        if *svid.id() != self.id {
            return Err(Mismatch { expected: self.id.to_string(), got: svid.id().to_string() });
        }
        self.svid.store(Arc::new(svid));
        self.changed();
        Ok(())
    }

    /// From the next handshake on these roots are trusted. Refuses those of another trust domain and keeps the old.
    pub fn set_bundle(&self, bundle: TrustBundle) -> Result<(), Mismatch> {
        if bundle.trust_domain() != self.id.trust_domain() {
            return Err(Mismatch {
                expected: self.id.trust_domain().to_string(),
                got: bundle.trust_domain().to_string(),
            });
        }
        if *self.bundle.load_full() != bundle {
            self.bundle.store(Arc::new(bundle));
            self.changed();
        }
        Ok(())
    }

    /// From the next handshake on, and the next request to [`crate::grpc::Server`], these peers are refused. Other
    /// open connections are for their owner to close.
    pub fn set_revoked(&self, revoked: Revoked) {
        if *self.revoked.load_full() != revoked {
            self.revoked.store(Arc::new(revoked));
            self.changed();
        }
    }

    /// Moves after each [`Self::set_svid`], [`Self::set_bundle`] and [`Self::set_revoked`] that changed something, for whoever holds
    /// connections or tasks that depend on them. The number itself means nothing.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Looks at `condition` now and after each change, until it holds.
    pub(crate) async fn until(&self, condition: impl Fn() -> bool) {
        let mut changes = self.changes();
        // `self` holds the sender, so the channel cannot be closed here.
        while !condition() && changes.changed().await.is_ok() {}
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Whether this peer's service, operator or certificate is revoked.
    pub fn is_revoked(&self, peer: &Peer) -> bool {
        self.revoked.load().names(&peer.id, &peer.serial)
    }
}

impl Revoked {
    /// Whether a client outside of the mesh is named, by its name in the policy or its certificate's serial.
    pub(crate) fn names_outside(&self, name: &str, serial: &str) -> bool {
        self.serials.contains(serial) || self.services.contains(name)
    }

    pub(crate) fn names(&self, id: &SpiffeId, serial: &str) -> bool {
        self.serials.contains(serial)
            || match id.workload() {
                Workload::Service(name) => self.services.contains(name),
                Workload::Operator(name) => self.operators.contains(name),
            }
    }
}
