//! Keeps the state file behind the map, no more often than its cost allows.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Value, reader::Shared, state};

/// A small map is on disk this soon after a change.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// A large one at least this often: what is newer comes by resuming.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// Writing takes at most one part in this many of the time.
const COST_SHARE: u32 = 20;

/// Writes the state file after changes until `stop`, then once more.
pub(crate) async fn run<V: Value>(shared: Arc<Shared<V>>, kind: &'static str, path: PathBuf, stop: CancellationToken) {
    let mut announcements = shared.announcements();
    // What is held at the start came from the file.
    announcements.borrow_and_update();
    let mut interval = SHORTEST_INTERVAL;
    let mut unsaved = false;
    loop {
        if !unsaved {
            tokio::select! {
                biased;
                changed = announcements.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        } else if stop.is_cancelled() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = stop.cancelled() => {}
        }
        announcements.borrow_and_update();
        let started = Instant::now();
        unsaved = !write(&shared, kind, path.clone()).await;
        interval = (started.elapsed() * COST_SHARE).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
        if unsaved {
            interval = interval.max(Duration::from_secs(1));
        }
    }
}

/// Whether it is on disk. A failure is an alarm and nothing else: readers are served from memory.
async fn write<V: Value>(shared: &Arc<Shared<V>>, kind: &'static str, path: PathBuf) -> bool {
    let source = Arc::clone(shared);
    let target = path.clone();
    let saved = tokio::task::spawn_blocking(move || match source.saved() {
        Some(saved) => state::save(&target, kind, &saved),
        None => Ok(()),
    });
    let error = match saved.await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    let before = std::mem::replace(&mut shared.health().status.state_error, error.clone());
    match &error {
        Some(error) if before.is_none() => {
            tracing::warn!(kind, path = %path.display(), %error, "the state cannot be written: serving from memory");
        }
        None if before.is_some() => tracing::info!(kind, path = %path.display(), "the state is written again"),
        Some(_) | None => {}
    }
    error.is_none()
}
