//! SVID and trust bundle on disk, whoever replaced them in memory.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::membership::Membership;
use super::state;
use crate::TrustBundle;

/// Until a full disk is tried again.
const PAUSE: Duration = Duration::from_secs(30);

/// Writes what differs from what is on disk, at once: a restart must know the roots that this run has acknowledged. Once
/// more at the end.
pub(super) async fn run(member: Arc<Membership>, shutdown: CancellationToken) {
    let mut changes = member.identity.changes();
    let mut stored = state::on_disk(&member.state_dir);
    loop {
        let failed = !write(&member, &mut stored).await;
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = changes.changed() => {}
            () = tokio::time::sleep(PAUSE), if failed => {}
        }
    }
    write(&member, &mut stored).await;
}

async fn write(member: &Membership, stored: &mut Option<(String, TrustBundle)>) -> bool {
    let (svid, bundle) = (member.identity.svid(), member.identity.bundle());
    if stored.as_ref().is_some_and(|(serial, roots)| serial == svid.serial() && *roots == *bundle) {
        return true;
    }
    let (shown, trusted) = (Arc::clone(&svid), Arc::clone(&bundle));
    let outcome = member.on_disk(move |dir| state::store_svid(dir, &shown, &trusted)).await;
    member.saved(outcome.as_ref().err());
    match outcome {
        Ok(()) => *stored = Some((svid.serial().to_owned(), TrustBundle::clone(&bundle))),
        Err(error) => {
            tracing::warn!(%error, "SVID and trust bundle are in use but not on disk");
            // Half of it may be there.
            *stored = None;
            return false;
        }
    }
    true
}
