//! Keys that nobody confirms any more go, while the service runs.

use std::sync::Arc;
use std::time::Duration;

use mesh_identity::clock;
use tokio_util::sync::CancellationToken;

use crate::audit::Event;
use crate::authority::Authority;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(300);

/// Looks every five minutes until `shutdown`.
pub(crate) async fn keep_pruned(authority: Arc<Authority>, shutdown: CancellationToken) {
    let up_since = clock::unix_seconds();
    loop {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = shutdown.cancelled() => return,
        }
        match authority.keys.prune(up_since, clock::unix_seconds()).await {
            Ok(gone) => {
                for key in gone {
                    authority.audit.note(Event::Prune { kid: &key.kid, issuer: &key.issuer });
                    tracing::info!(kid = key.kid, "a key that nobody confirms any more is gone");
                }
            }
            Err(error) => tracing::warn!(error = crate::service::with_source(&error), "keys cannot be pruned"),
        }
    }
}
