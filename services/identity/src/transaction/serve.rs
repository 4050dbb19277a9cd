//! The task that keeps the signing keys in order.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use journal::Position;
use mesh_asap::Kid;
use mesh_identity::clock;
use tenon_proto::kind;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::KeyFileError;
use super::keys::{KeyRing, Surroundings};
use crate::Passphrase;
use crate::authority::Authority;
use crate::registry::Instance;
use crate::service::with_source;

/// How often to look whether everybody has the key that is to sign.
const WAITING: Duration = Duration::from_millis(250);
/// How often to look whether a key's day is over.
const IDLE: Duration = Duration::from_secs(30);
/// How often to try what failed.
const FAILED: Duration = Duration::from_secs(5);

/// Opens the keys in `dir` and keeps them in order until `shutdown`. A key signs when this returns, if there is one that
/// may.
///
/// # Errors
/// The keys cannot be read.
pub(crate) async fn start(
    authority: &Arc<Authority>,
    dir: PathBuf,
    passphrase: Option<Passphrase>,
    shutdown: CancellationToken,
) -> Result<JoinHandle<()>, KeyFileError> {
    let authority = Arc::clone(authority);
    let keys = authority.keys.clone();
    let open = move || KeyRing::open(dir, passphrase, keys, clock::unix_seconds());
    // A passphrase takes a while to become a key.
    let ring =
        tokio::task::spawn_blocking(open).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    let mut ring = ring?;
    let pause = settle(&mut ring, &authority).await;
    Ok(tokio::spawn(run(ring, authority, pause, shutdown)))
}

async fn run(mut ring: KeyRing, authority: Arc<Authority>, mut pause: Duration, shutdown: CancellationToken) {
    // A revocation may name the key that signs; a rotation may ask for another.
    let mut changes = authority.identity.changes();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            _ = changes.changed() => {}
        }
        pause = settle(&mut ring, &authority).await;
    }
}

/// One step, and how long to wait for the next.
async fn settle(ring: &mut KeyRing, authority: &Arc<Authority>) -> Duration {
    let (around, now) = (Around(authority), clock::unix_seconds());
    let outcome = ring.settle(&around, now).await;
    authority.transactions.signing.store(ring.signing(&around));
    match outcome {
        Ok(()) if ring.is_due(&around, now) => WAITING,
        Ok(()) => IDLE,
        Err(error) => {
            tracing::error!(error = with_source(&error), "the keys of transaction tokens cannot be brought forward");
            FAILED
        }
    }
}

struct Around<'a>(&'a Arc<Authority>);

impl Surroundings for Around<'_> {
    fn everyone_has(&self, position: Position, now: u64) -> bool {
        let Authority { registry, ca, .. } = &**self.0;
        // After the store was lost nobody is known for a while, and everybody is there.
        if ca.store_is_recovering() {
            return false;
        }
        // The services of the control plane verify no transaction tokens, and revoked ones are let in nowhere.
        let verifies = |instance: &Instance| instance.is_of_the_mesh() && !self.0.is_revoked(instance);
        let live: Vec<_> = registry.live(now).into_iter().filter(verifies).collect();
        registry.behind(&live, ca.trust_domain(), kind::KEY, position).is_empty()
    }

    fn is_revoked(&self, kid: &Kid) -> bool {
        self.0.revocations.names_kid(kid)
    }

    fn replace_older_than(&self) -> u64 {
        self.0.identity.bundle().rotation().rekey_created_before
    }
}
