//! Keeps the state file behind the map, no more often than its cost allows.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tenon_proto::replication::v1::follow_response::Response;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{Position, Value, reader::Shared, state::Recording};

/// What changed is on disk this soon.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// After a large map was written as a whole, at least this often: what is newer comes by resuming.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// Writing takes at most one part in this many of the time.
const COST_SHARE: u32 = 20;
/// Changes that wait for a disk without room; of more, the whole map is written once there is some.
const LARGEST_BACKLOG_BYTES: usize = 4 << 20;

/// What the map took in since the state file was written.
#[derive(Debug, Default)]
pub(crate) struct Unsaved {
    /// Absent: the whole map has to be written, because it was replaced, or because nobody keeps account.
    news: Option<Vec<Response>>,
    bytes: usize,
}

impl Unsaved {
    /// Notes what was applied.
    pub(crate) fn push(&mut self, news: impl FnOnce() -> Response) {
        let Some(kept) = &mut self.news else { return };
        let news = news();
        self.bytes += news.encoded_len();
        kept.push(news);
        if self.bytes > LARGEST_BACKLOG_BYTES {
            self.everything();
        }
    }

    /// Notes that the map is not what the file and what came since make of it.
    pub(crate) fn everything(&mut self) {
        *self = Self::default();
    }

    /// Begins to keep account, after what a file has.
    pub(crate) fn begin(&mut self) {
        *self = Self { news: Some(Vec::new()), bytes: 0 };
    }

    fn take(&mut self) -> Option<Vec<Response>> {
        self.bytes = 0;
        self.news.as_mut().map(std::mem::take)
    }

    /// What could not be written goes first the next time.
    fn put_back(&mut self, mut unwritten: Vec<Response>) {
        let Some(news) = &mut self.news else { return };
        unwritten.append(news);
        self.bytes = unwritten.iter().map(Response::encoded_len).sum();
        *news = unwritten;
    }

    /// The file has everything up to `position`.
    fn saved(&mut self, position: Position) {
        let Some(news) = &mut self.news else { return };
        news.retain(|news| {
            let Response::Delta(delta) = news else { return true };
            Position::new(delta.epoch, delta.revision) > position
        });
        self.bytes = news.iter().map(Response::encoded_len).sum();
    }
}

/// Writes the state file after changes until `stop`, then once more. `recording` is what the file has from the last run.
/// Every change after this call counts, whenever the future is first polled.
pub(crate) fn run<V: Value>(
    shared: Arc<Shared<V>>,
    kind: &'static str,
    path: PathBuf,
    recording: Option<Recording>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let mut announcements = shared.announcements();
    // What is held at the start came from the file.
    announcements.borrow_and_update();
    keep_up(StateFile { shared, kind, path, recording }, announcements, stop)
}

async fn keep_up<V: Value>(
    mut file: StateFile<V>,
    mut announcements: watch::Receiver<Option<Position>>,
    stop: CancellationToken,
) {
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
        unsaved = !file.keep().await;
        interval = (started.elapsed() * COST_SHARE).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
        if unsaved {
            interval = interval.max(Duration::from_secs(1));
        }
    }
}

struct StateFile<V> {
    shared: Arc<Shared<V>>,
    kind: &'static str,
    path: PathBuf,
    /// The file as it was written last; absent when it has to be written as a whole.
    recording: Option<Recording>,
}

impl<V: Value> StateFile<V> {
    /// Whether it is on disk. A failure is an alarm and nothing else: readers are served from memory.
    async fn keep(&mut self) -> bool {
        let (shared, kind, path) = (Arc::clone(&self.shared), self.kind, self.path.clone());
        let recording = self.recording.take();
        let written = tokio::task::spawn_blocking(move || write(&shared, kind, path, recording));
        let error = match written.await {
            Ok((recording, outcome)) => {
                self.recording = recording;
                outcome.err().map(|error| error.to_string())
            }
            Err(error) => Some(error.to_string()),
        };
        let before = std::mem::replace(&mut self.shared.health().status.state_error, error.clone());
        match &error {
            Some(error) if before.is_none() => {
                let path = self.path.display();
                tracing::warn!(kind, %path, %error, "the state cannot be written: serving from memory");
            }
            None if before.is_some() => {
                tracing::info!(kind, path = %self.path.display(), "the state is written again");
            }
            Some(_) | None => {}
        }
        error.is_none()
    }
}

/// Appends what came since, or writes everything. Returns the file as it is now.
fn write<V: Value>(
    shared: &Shared<V>,
    kind: &'static str,
    path: PathBuf,
    recording: Option<Recording>,
) -> (Option<Recording>, io::Result<()>) {
    let recording = recording.filter(|recording| !recording.is_long() && recording.is_at(&path));
    let news = shared.unsaved().take();
    if let (Some(mut recording), Some(news)) = (recording, news) {
        let outcome = if news.is_empty() { Ok(()) } else { recording.append(&news) };
        if outcome.is_err() {
            shared.unsaved().put_back(news);
        }
        return (Some(recording), outcome);
    }
    shared.unsaved().begin();
    let Some(saved) = shared.saved() else {
        shared.unsaved().everything();
        return (None, Ok(()));
    };
    match Recording::write(&path, kind, &saved) {
        Ok(recording) => {
            shared.unsaved().saved(saved.position);
            (Some(recording), Ok(()))
        }
        Err(error) => {
            shared.unsaved().everything();
            (None, Err(error))
        }
    }
}

#[cfg(test)]
mod tests;
