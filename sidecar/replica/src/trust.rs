//! Trust bundle and revocations, followed straight into a live [`Identity`].
//!
//! Every process of the mesh does this, so that whom it trusts does not depend on when it last spoke with the identity
//! service. What follows from a change, such as closing connections, is for whoever listens to [`Identity::changes`].

use std::{
    collections::HashMap,
    fmt::Display,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use mesh_config::names::{ServiceName, control_plane};
use mesh_identity::{Identity, Revoked, Rotation, TrustBundle, grpc};
use prost::Message as _;
use tenon_proto::{identity::v1 as proto, kind};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{Decode, Decoded, Event, Follow, Parent, Replica, Value};

/// A trust bundle of the key its record has: the trust domain.
#[derive(Debug)]
pub struct BundleRecord {
    bundle: TrustBundle,
}

impl Decode for BundleRecord {
    fn decode(key: &str, _revision: u64, raw: Bytes) -> Result<Self, String> {
        let record = proto::TrustBundle::decode(raw).map_err(|error| error.to_string())?;
        let bundle = TrustBundle::from_proto(&record).map_err(|error| error.to_string())?;
        if bundle.trust_domain().as_str() != key {
            return Err(format!("the record of {key} is a bundle of {}", bundle.trust_domain()));
        }
        Ok(Self { bundle })
    }
}

/// One revocation.
#[derive(Debug)]
pub struct RevocationRecord {
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Service(ServiceName),
    Operator(String),
    Kid(String),
    Serial(String),
}

impl Decode for RevocationRecord {
    fn decode(_key: &str, _revision: u64, raw: Bytes) -> Result<Self, String> {
        use proto::revocation::What as Raw;
        let record = proto::Revocation::decode(raw).map_err(|error| error.to_string())?;
        let what = match record.what.ok_or("a revocation of nothing that this version knows")? {
            Raw::Service(name) => {
                What::Service(ServiceName::try_from(name.as_str()).map_err(|error| error.to_string())?)
            }
            Raw::Operator(name) => What::Operator(name),
            Raw::Kid(kid) => What::Kid(kid),
            Raw::Serial(serial) => What::Serial(serial),
        };
        Ok(Self { what })
    }
}

/// Where [`Trust::follow`] gets its records from, and where it keeps them.
#[derive(Clone, Debug)]
pub struct FollowTrust<P = Channel> {
    /// The identity service: one or two of its processes.
    pub parents: Vec<P>,
    /// Name of this process for the identity service, the same as in its confirmations.
    pub instance: String,
    /// Where the state is kept between runs; absent: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Where the roots come from.
    pub roots: Roots,
}

impl FollowTrust {
    /// Follows the identity service at `address`, with what is kept in `state_dir` and roots that are replicated.
    pub fn new(address: impl Display, identity: &Arc<Identity>, instance: &str, state_dir: PathBuf) -> Self {
        let expected = ServiceName::try_from(control_plane::IDENTITY).expect("a constant that is a service name");
        Self {
            parents: vec![grpc::channel(address, identity, &expected)],
            instance: instance.to_owned(),
            state_dir: Some(state_dir),
            roots: Roots::Replicated,
        }
    }
}

/// Where the roots of an [`Identity`] come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    /// From the replicated bundle.
    Replicated,
    /// From elsewhere, as from a SPIFFE Workload API: of the replicated bundle only the rotations count.
    Elsewhere,
}

/// What is known of the mesh's trust. Kept so that its status can be shown.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Kind `trust_bundle`.
    pub bundle: Replica<Decoded<BundleRecord>>,
    /// Kind `revocation`.
    pub revocation: Replica<Decoded<RevocationRecord>>,
}

impl Trust {
    /// Sets what the last run left into `identity` before it returns, then every change as it comes, until `shutdown`.
    /// The tasks end when their last state is on disk.
    ///
    /// A stored bundle that is older than the one that `identity` joined with is not taken.
    ///
    /// Must be called within a tokio runtime.
    pub fn follow<P: Parent + Clone>(
        from: FollowTrust<P>,
        identity: &Arc<Identity>,
        shutdown: &CancellationToken,
    ) -> (Self, [JoinHandle<()>; 2]) {
        let stored = Arc::new(AtomicBool::new(true));
        let follow = |kind| Follow {
            kind,
            instance: from.instance.clone(),
            parents: from.parents.clone(),
            state_dir: from.state_dir.clone(),
        };
        let bundles = take_bundles(Arc::clone(identity), from.roots, Arc::clone(&stored));
        let (bundle, following_bundle) = follow(kind::TRUST_BUNDLE).start(bundles, shutdown.clone());
        stored.store(false, Relaxed);
        let revocations = take_revocations(Arc::clone(identity));
        let (revocation, following_revocation) = follow(kind::REVOCATION).start(revocations, shutdown.clone());
        (Self { bundle, revocation }, [following_bundle, following_revocation])
    }
}

fn take_bundles(
    identity: Arc<Identity>,
    roots: Roots,
    stored: Arc<AtomicBool>,
) -> impl FnMut(Event<'_, Decoded<BundleRecord>>) + Send {
    move |event| {
        let own = identity.id().trust_domain().as_str();
        let record = match event {
            Event::Replaced(records, _) => records.get(own),
            // A bundle that is deleted is an accident: without roots nobody could be told to trust others.
            Event::Changed { key, new, .. } => new.filter(|_| key == own).cloned(),
            Event::Compared => None,
        };
        let Some(record) = record else { return };
        let in_force = identity.bundle();
        let older = record.bundle.rotation().sequence < in_force.rotation().sequence;
        let bundle = match roots {
            Roots::Replicated => record.bundle.clone(),
            Roots::Elsewhere => {
                // Whoever issues the SVIDs there is none of the mesh's own authorities.
                let rotation = Rotation { issuing_authority: None, ..record.bundle.rotation().clone() };
                TrustBundle::clone(&in_force).with_rotation(rotation)
            }
        };
        if bundle == *in_force || (older && stored.load(Relaxed)) {
            return;
        }
        if let Err(error) = identity.set_bundle(bundle) {
            tracing::warn!(%error, "the replicated trust bundle is unusable; the one in use stays");
        }
    }
}

fn take_revocations(identity: Arc<Identity>) -> impl FnMut(Event<'_, Decoded<RevocationRecord>>) + Send {
    let mut held: HashMap<Box<str>, What> = HashMap::new();
    move |event| {
        match event {
            Event::Replaced(records, _) => {
                held = records.iter().map(|record| (record.key().into(), record.what.clone())).collect();
            }
            Event::Changed { key, new: Some(record), .. } => {
                held.insert(key.into(), record.what.clone());
            }
            Event::Changed { key, new: None, .. } => {
                held.remove(key);
            }
            Event::Compared => return,
        }
        let revoked = revoked(held.values());
        if revoked != *identity.revoked() {
            identity.set_revoked(revoked);
        }
    }
}

fn revoked<'r>(held: impl Iterator<Item = &'r What>) -> Revoked {
    let mut revoked = Revoked::default();
    for what in held {
        match what {
            What::Service(name) => {
                revoked.services.insert(name.clone());
            }
            What::Operator(name) => {
                revoked.operators.insert(name.clone());
            }
            What::Kid(kid) => {
                revoked.kids.insert(kid.clone());
            }
            What::Serial(serial) => {
                revoked.serials.insert(serial.clone());
            }
        }
    }
    revoked
}

#[cfg(test)]
mod tests;
