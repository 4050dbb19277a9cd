//! The streams of one parent, one after the other.

use std::time::Duration;

use futures_util::StreamExt as _;
use rand::Rng as _;
use tenon_proto::replication::v1::{FollowRequest, FollowResponse, follow_request::Request};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tonic::Status;

use super::{Follower, acks::Acks};
use crate::{
    Event, Parent, Responses, Value,
    machine::{Break, nack},
};

/// A parent that sends nothing for this long is dead: it sends a heartbeat each second.
pub(super) const SILENCE: Duration = Duration::from_millis(3500);
/// How long a parent may take to answer the opening of a stream.
const OPENING: Duration = Duration::from_secs(5);
/// How long a NACK is given to reach the parent before the stream is dropped.
const FAREWELL: Duration = Duration::from_millis(500);
/// The first wait between two streams; it doubles.
pub(super) const SHORTEST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait for a parent that cannot be reached.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// The longest wait before a parent is asked again for what was refused: each time it sends much.
const LONGEST_REFUSED_WAIT: Duration = Duration::from_secs(10);
/// A parent of which nothing is wanted for this long is shown with the reason.
const QUIET: Duration = Duration::from_secs(10);
/// Answers that may be on their way. When there are more, an earlier one is left out: the last counts.
const ANSWERS: usize = 16;

/// How a stream ended.
struct End {
    error: String,
    /// Something was taken over: the parent is good, come back soon.
    progress: bool,
    /// The parent's offer was refused: the same offer is likely next time.
    refused: bool,
    /// Nothing is wrong: another parent is good, and what this one has is not wanted now.
    quiet: bool,
}

impl End {
    const fn because(error: String) -> Self {
        Self { error, progress: false, refused: false, quiet: false }
    }
}

/// Waits before a parent is asked again; less when somebody begins to wait for a position that only a parent can have told
/// of. Says whether it was: not twice in a row, so that waiting in vain costs a dead parent little.
pub(crate) async fn rest(wait: Duration, wanted: Option<watch::Receiver<()>>) -> bool {
    let hurry = async {
        tokio::time::sleep(SHORTEST_WAIT).await;
        if let Some(mut wanted) = wanted
            && wanted.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    };
    tokio::select! {
        () = tokio::time::sleep(wait) => false,
        () = hurry => true,
    }
}

impl<V: Value, O: FnMut(Event<'_, V>) + Send + 'static> Follower<V, O> {
    /// Follows one parent, for ever.
    pub(super) async fn follow<P: Parent>(&self, number: usize, parent: &P) {
        let mut wait = SHORTEST_WAIT;
        let mut hurried = false;
        let mut quiet_since: Option<Instant> = None;
        loop {
            let mut end = self.stream(number, parent).await;
            self.machine.lock().await.end(number);
            quiet_since = quiet_since.filter(|_| end.quiet).or_else(|| end.quiet.then(Instant::now));
            end.quiet &= quiet_since.is_some_and(|since| since.elapsed() < QUIET);
            self.ended(number, &end);
            if end.progress && !end.refused {
                wait = SHORTEST_WAIT;
            }
            let wanted = (!hurried && !end.refused).then(|| self.shared.wanted.subscribe());
            hurried = rest(jittered(wait), wanted).await;
            wait = (wait * 2).min(if end.refused { LONGEST_REFUSED_WAIT } else { LONGEST_WAIT });
        }
    }

    /// One stream, from its opening to its end.
    async fn stream<P: Parent>(&self, number: usize, parent: &P) -> End {
        let (answers, requests) = mpsc::channel(ANSWERS);
        let mut acks = Acks::new(self.shared.announcements());
        let _ = answers.try_send(self.begin(number).await); // An empty channel has room.
        let mut responses = match timeout(OPENING, parent.follow(requests)).await {
            Ok(Ok(responses)) => responses,
            Ok(Err(status)) => return End::because(format!("the parent refuses the stream: {}", brief(&status))),
            Err(_) => return End::because("the parent does not answer".to_owned()),
        };
        let mut progress = false;
        let mut silent_at = Instant::now() + SILENCE;
        let error = loop {
            let response = tokio::select! {
                biased;
                response = responses.next() => response,
                () = acks.due() => {
                    let answer = self.machine.lock().await.acknowledgement(number);
                    acks.sent();
                    let _ = answer.map(|answer| answers.try_send(answer)); // A later one says more.
                    continue;
                }
                () = tokio::time::sleep_until(silent_at) => break "the parent is silent".to_owned(),
            };
            let response = match response {
                Some(Ok(response)) => response,
                Some(Err(status)) => break format!("the stream ended: {}", brief(&status)),
                None => break "the stream ended".to_owned(),
            };
            match self.taken(number, response).await {
                Ok(None) => {}
                Ok(Some(answer)) => {
                    progress = true;
                    if matches!(answer.request, Some(Request::Nack(_))) {
                        let _ = answers.try_send(answer);
                        acks.sent();
                    } else {
                        acks.owe();
                    }
                }
                Err(broken) => return self.broken(broken, progress, answers, responses).await,
            }
            silent_at = Instant::now() + SILENCE;
        };
        End { progress, ..End::because(error) }
    }

    async fn begin(&self, number: usize) -> FollowRequest {
        loop {
            let start = self.machine.lock().await.begin(number, self.kind, &self.instance, self.clock.now());
            if let Some(start) = start {
                return start;
            }
            tokio::time::sleep(jittered(SHORTEST_WAIT)).await;
        }
    }

    async fn taken(&self, number: usize, response: FollowResponse) -> Result<Option<FollowRequest>, Break> {
        self.heard(number);
        let answer = self.receive(number, response).await;
        self.drop_retired().await;
        answer
    }

    /// What follows from what could not be taken.
    async fn broken(
        &self,
        broken: Break,
        progress: bool,
        answers: mpsc::Sender<FollowRequest>,
        responses: Responses,
    ) -> End {
        let end = End::because(broken.to_string());
        match broken {
            Break::Refused { position, error } => {
                self.shared.health().status.nacks += 1;
                farewell(answers, nack(position, error), responses).await;
                End { refused: true, progress, ..end }
            }
            // Once is an accident; again and again must not become a loop of snapshots.
            Break::Diverged(_) => end,
            Break::Odd(_) => End { refused: true, ..end },
            Break::Gap(_) => End { progress, ..end },
            Break::Damaged => End { progress, quiet: true, ..end },
            Break::Behind { .. } | Break::OtherView { .. } | Break::Outrun => End { quiet: true, ..end },
        }
    }

    fn heard(&self, number: usize) {
        let mut health = self.shared.health();
        health.heard = Some(Instant::now());
        health.status.connected = true;
        let status = &mut health.status.parents[number];
        let first = !std::mem::replace(&mut status.connected, true);
        let name = if first { status.name.clone() } else { String::new() };
        drop(health);
        if first {
            tracing::info!(kind = self.kind, parent = number, name, "the parent is heard");
        }
    }

    fn ended(&self, number: usize, end: &End) {
        let mut health = self.shared.health();
        let status = &mut health.status.parents[number];
        let was_connected = std::mem::replace(&mut status.connected, false);
        let again = status.last_error.as_ref() == Some(&end.error);
        let name = status.name.clone();
        if !end.quiet {
            status.last_error = Some(end.error.clone());
        }
        let another = health.status.parents.iter().any(|parent| parent.connected);
        health.status.connected = another;
        if !another && !end.quiet {
            health.status.last_error = Some(end.error.clone());
        }
        drop(health);
        // Once per cause, not once per attempt.
        if end.quiet {
            tracing::debug!(kind = self.kind, parent = number, name, reason = %end.error, "a stream is begun anew");
        } else if was_connected || !again {
            tracing::warn!(kind = self.kind, parent = number, name, another, error = %end.error, "not following this parent");
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

fn brief(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// Between half of `wait` and all of it, so that followers of a restarted parent do not return at one instant.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..=1.0))
}
