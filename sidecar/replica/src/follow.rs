//! A follower's life: from its state file, through streams that end, to its shutdown.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use rand::Rng as _;
use tenon_proto::replication::v1::FollowRequest;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{
    Event, Guard, Parent, Replica, Responses, Value,
    machine::{Break, Machine, nack},
    persist,
    reader::Shared,
    state,
};

/// A parent that sends nothing for this long is dead: it sends a heartbeat each second.
const SILENCE: Duration = Duration::from_millis(3500);
/// How long a parent may take to answer the opening of a stream.
const OPENING: Duration = Duration::from_secs(5);
/// How long a NACK is given to reach the parent before the stream is dropped.
const FAREWELL: Duration = Duration::from_millis(500);
/// The first wait between two streams; it doubles.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait for a parent that cannot be reached.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// The longest wait before a parent is asked again for what was refused: each time it sends everything.
const LONGEST_REFUSED_WAIT: Duration = Duration::from_secs(30);
/// Answers that may be on their way. When there are more, an earlier one is left out: the last counts.
const ANSWERS: usize = 16;

/// What to follow, and from whom.
#[derive(Debug)]
pub struct Follow<P = Channel> {
    /// The replicated kind, of `tenon_proto::kind`.
    pub kind: &'static str,
    /// Name of this process for operators: "media/us-east".
    pub instance: String,
    /// The parents, one or two, which are followed at once; of more than two the first two. A channel should connect lazily
    /// and reconnect by itself.
    pub parents: Vec<P>,
    /// Where the state is kept between runs; absent: nowhere.
    pub state_dir: Option<PathBuf>,
}

impl<P: Parent> Follow<P> {
    /// Loads what the last run left (before it returns, and with it the observer is called), then follows until
    /// `shutdown`; the task ends when the last state is on disk.
    ///
    /// Must be called within a tokio runtime, which then runs the follower.
    pub fn start<V: Value>(
        self,
        observer: impl FnMut(Event<'_, V>) + Send + 'static,
        shutdown: CancellationToken,
    ) -> (Replica<V>, JoinHandle<()>) {
        let guard = Guard::of(self.kind);
        self.start_guarded(guard, observer, shutdown)
    }

    /// As [`Follow::start`], with another guard than the usual one.
    pub fn start_guarded<V: Value>(
        self,
        guard: Guard,
        observer: impl FnMut(Event<'_, V>) + Send + 'static,
        shutdown: CancellationToken,
    ) -> (Replica<V>, JoinHandle<()>) {
        let Self { kind, instance, mut parents, state_dir } = self;
        let channel = parents.remove(0);
        let shared = Arc::new(Shared::new());
        let mut machine = Machine::new(Arc::clone(&shared), guard, observer);
        let path = state_dir.map(|dir| state::path(&dir, kind));
        if let Some(path) = &path {
            match state::load(path, kind) {
                Ok(Some(state)) => machine.restore(state),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(kind, path = %path.display(), %error, "the state file is ignored and fetched again");
                }
            }
        }
        let saving = CancellationToken::new();
        let saver = path.map(|path| tokio::spawn(persist::run(Arc::clone(&shared), kind, path, saving.clone())));
        let follower = Follower { kind, instance, parent: channel, shared: Arc::clone(&shared), machine };
        let task = tokio::spawn(async move {
            let stop_saving = saving.drop_guard();
            follower.run(shutdown).await;
            drop(stop_saving);
            if let Some(saver) = saver {
                let _ = saver.await;
            }
        });
        (Replica::of(shared), task)
    }
}

struct Follower<P, V, O> {
    kind: &'static str,
    instance: String,
    parent: P,
    shared: Arc<Shared<V>>,
    machine: Machine<V, O>,
}

/// How a stream ended.
struct End {
    error: String,
    /// Something was taken over: the parent is good, come back soon.
    progress: bool,
    /// The parent's offer was refused: the same offer is likely next time.
    refused: bool,
}

impl<P: Parent, V: Value, O: FnMut(Event<'_, V>) + Send + 'static> Follower<P, V, O> {
    async fn run(mut self, shutdown: CancellationToken) {
        let mut wait = SHORTEST_WAIT;
        loop {
            let end = tokio::select! {
                () = shutdown.cancelled() => return,
                end = self.stream() => end,
            };
            self.ended(&end);
            if end.progress && !end.refused {
                wait = SHORTEST_WAIT;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(jittered(wait)) => {}
            }
            wait = (wait * 2).min(if end.refused { LONGEST_REFUSED_WAIT } else { LONGEST_WAIT });
        }
    }

    /// One stream, from its opening to its end.
    async fn stream(&mut self) -> End {
        let mut end = End { error: String::new(), progress: false, refused: false };
        let (answers, requests) = mpsc::channel(ANSWERS);
        let start = self.machine.begin(self.kind, &self.instance);
        let _ = answers.try_send(start); // An empty channel has room.
        let mut responses = match timeout(OPENING, self.parent.follow(requests)).await {
            Ok(Ok(responses)) => responses,
            Ok(Err(status)) => {
                end.error = format!("the parent refuses the stream: {}", brief(&status));
                return end;
            }
            Err(_) => {
                end.error = "the parent does not answer".to_owned();
                return end;
            }
        };
        end.error = loop {
            let response = match timeout(SILENCE, responses.next()).await {
                Ok(Some(Ok(response))) => response,
                Ok(Some(Err(status))) => break format!("the stream ended: {}", brief(&status)),
                Ok(None) => break "the stream ended".to_owned(),
                Err(_) => break "the parent is silent".to_owned(),
            };
            self.heard();
            match self.machine.receive(response) {
                Ok(None) => {}
                Ok(Some(answer)) => {
                    end.progress = true;
                    let _ = answers.try_send(answer); // A later one says more.
                }
                Err(Break::Refused { position, error }) => {
                    end.refused = true;
                    self.shared.health().status.nacks += 1;
                    farewell(answers, nack(position, error.clone()), responses).await;
                    break error;
                }
                Err(diverged @ Break::Diverged(_)) => {
                    end.progress = false; // Once is an accident; again and again must not become a loop of snapshots.
                    break diverged.to_string();
                }
                Err(gap @ Break::Gap(_)) => break gap.to_string(),
            }
        };
        end
    }

    fn heard(&mut self) {
        let mut health = self.shared.health();
        health.heard = Some(Instant::now());
        let first = !std::mem::replace(&mut health.status.connected, true);
        drop(health);
        if first {
            tracing::info!(kind = self.kind, "the parent is heard");
        }
        let retired = self.machine.drain_retired();
        if !retired.is_empty() {
            tokio::task::spawn_blocking(move || drop(retired));
        }
    }

    fn ended(&self, end: &End) {
        let mut health = self.shared.health();
        let was_connected = std::mem::replace(&mut health.status.connected, false);
        let again = health.status.last_error.as_ref() == Some(&end.error);
        health.status.last_error = Some(end.error.clone());
        drop(health);
        // Once per cause, not once per attempt.
        if was_connected || !again {
            tracing::warn!(kind = self.kind, error = %end.error, "not following: what is held stays in use");
        }
    }
}

/// Sends a last answer and gives it time to arrive: dropping the responses resets the stream.
async fn farewell(answers: mpsc::Sender<FollowRequest>, last: FollowRequest, mut responses: Responses) {
    let _ = timeout(FAREWELL, async {
        let _ = answers.send(last).await;
        drop(answers);
        while let Some(Ok(_)) = responses.next().await {}
    })
    .await;
}

fn brief(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// Between half of `wait` and all of it, so that followers of a restarted parent do not return at one instant.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests;
