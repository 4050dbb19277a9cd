//! A restore into a NATS cluster: by way of a scratch store, whose records become those of the cluster.

use std::{collections::HashMap, path::Path};

use journal::{
    Embedded, Nats, Options, Position, Servers,
    backup::{Moment, Replaced, Restored},
};
use mesh_config::names::TrustDomain;
use tenon_proto::kind;

use super::{key::Key, restore::into};
use crate::failure::{Failure, chain};

/// What a TCS keeps in a store.
const KINDS: [&str; 2] = [kind::TENANT_GUARD, kind::TENANT];

/// Replaces the tenants of a mesh in a cluster, and their guard, by those of a backup. TCS that run take it as they take a write.
pub(super) async fn restore(
    file: &Path,
    key: &Key,
    servers: &Servers,
    trust_domain: &TrustDomain,
    to: Moment,
    replace: bool,
) -> Result<Restored, Failure> {
    let scratch = tempfile::tempdir().map_err(|error| {
        Failure::new(format!("cannot make a scratch folder: {error}"))
            .next("free some space, or set TMPDIR to a folder with room")
    })?;
    let unusable = |error: &dyn std::error::Error| {
        Failure::new(chain(error))
            .next("see that the cluster runs, with a quorum and no stream of another mesh in the way, then repeat it")
    };
    let nats = Nats::connect(servers, trust_domain, &scratch.path().join("held"), Options::DEFAULT).await;
    let nats = nats.map_err(|error| unusable(&error))?;
    // A log may have been cut short, which is why it is replaced.
    let mut replaced = Replaced { epoch: 0, heads: HashMap::new(), whole: false };
    let mut present = None;
    for kind in KINDS {
        if let Some(written) = nats.written(kind).await.map_err(|error| unusable(&error))? {
            let Position { epoch, revision } = written;
            replaced.epoch = replaced.epoch.max(epoch);
            replaced.heads.insert(kind.to_owned(), revision);
            present = Some(written).filter(|_| kind == kind::TENANT && revision > 0).or(present);
        }
    }
    if let Some(present) = present.filter(|_| !replace) {
        return Err(Failure::new(format!("the cluster holds tenants of {trust_domain} at revision {present}")).next(
            "repeat it with --replace if they are to go, or name another store with --store; nothing has changed",
        ));
    }
    let path = scratch.path().join("restored");
    let mut restored = into(file, key, &path, to, replaced)?;
    let store = Embedded::open(&path).map_err(|error| unusable(&error))?;
    for kind in KINDS {
        let journal = store.kind(kind).map_err(|error| unusable(&error))?;
        let position = nats.replace(kind, &*journal).await.map_err(|error| unusable(&error))?;
        if kind == kind::TENANT {
            restored.position = position;
        }
    }
    Ok(restored)
}
