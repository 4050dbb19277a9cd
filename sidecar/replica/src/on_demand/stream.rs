//! One parent's stream into a cache, opened again whenever it ends.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use rand::Rng as _;
use tenon_proto::replication::v1::{FollowRequest, FollowResponse};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use crate::{Parent, Responses, follow::rest};

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
/// The longest wait before a parent is asked again for what was refused.
const LONGEST_REFUSED_WAIT: Duration = Duration::from_secs(30);
/// Answers that may be on their way. When there are more, an earlier one is left out: the last counts.
const ANSWERS: usize = 16;

/// What a stream tells the cache's task.
pub(super) enum Event {
    /// A stream is about to be opened: with which request?
    Opening(oneshot::Sender<(FollowRequest, mpsc::Receiver<Say>)>),
    /// The parent sent this.
    Message(Box<FollowResponse>),
    /// The stream is over, or could not be opened.
    Ended(String),
}

/// What the cache's task says to a stream.
pub(super) enum Say {
    /// Answer the parent.
    Answer(FollowRequest),
    /// End, after this last word; it was refused what it offers.
    End(Option<FollowRequest>),
}

/// Events that may wait for the cache's task: a stream that is faster waits itself.
pub(super) const EVENTS: usize = 64;

/// Follows `parent` until the cache's task is gone. `wanted` moves when somebody begins to wait for a position.
pub(super) async fn run<P: Parent>(
    parent: Arc<P>,
    number: usize,
    events: mpsc::Sender<(usize, Event)>,
    wanted: watch::Sender<()>,
) {
    let (mut wait, mut hurried) = (SHORTEST_WAIT, false);
    loop {
        let (ask, start) = oneshot::channel();
        if events.send((number, Event::Opening(ask))).await.is_err() {
            return;
        }
        let Ok((start, orders)) = start.await else { return };
        let end = one(&*parent, number, &events, start, orders).await;
        if end.progress && !end.refused {
            wait = SHORTEST_WAIT;
        }
        if events.send((number, Event::Ended(end.error))).await.is_err() {
            return;
        }
        hurried = rest(jittered(wait), (!hurried && !end.refused).then(|| wanted.subscribe())).await;
        wait = (wait * 2).min(if end.refused { LONGEST_REFUSED_WAIT } else { LONGEST_WAIT });
    }
}

/// How a stream ended.
struct End {
    error: String,
    progress: bool,
    refused: bool,
}

async fn one<P: Parent>(
    parent: &P,
    number: usize,
    events: &mpsc::Sender<(usize, Event)>,
    start: FollowRequest,
    mut orders: mpsc::Receiver<Say>,
) -> End {
    let mut end = End { error: String::new(), progress: false, refused: false };
    let (answers, requests) = mpsc::channel(ANSWERS);
    let _ = answers.try_send(start); // An empty channel has room.
    let mut responses = match timeout(OPENING, parent.follow(requests)).await {
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
        let response = tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Say::Answer(answer)) => {
                    let _ = answers.try_send(answer); // A later one says more.
                    continue;
                }
                Some(Say::End(last)) => {
                    end.refused = last.is_some();
                    farewell(answers, last, responses).await;
                    break "the stream was ended here".to_owned();
                }
                None => break "nobody listens any more".to_owned(),
            },
            response = timeout(SILENCE, responses.next()) => response,
        };
        match response {
            Ok(Some(Ok(response))) => {
                end.progress = true;
                if events.send((number, Event::Message(Box::new(response)))).await.is_err() {
                    break "nobody listens any more".to_owned();
                }
            }
            Ok(Some(Err(status))) => break format!("the stream ended: {}", brief(&status)),
            Ok(None) => break "the stream ended".to_owned(),
            Err(_) => break "the parent is silent".to_owned(),
        }
    };
    end
}

/// Sends a last answer and gives it time to arrive: dropping the responses resets the stream.
async fn farewell(answers: mpsc::Sender<FollowRequest>, last: Option<FollowRequest>, mut responses: Responses) {
    let Some(last) = last else { return };
    let _ = timeout(FAREWELL, async {
        let _ = answers.send(last).await;
        drop(answers);
        while let Some(Ok(_)) = responses.next().await {}
    })
    .await;
}

/// Between half of `wait` and all of it, so that followers of a restarted parent do not return at one instant.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// A status in one line.
pub(super) fn brief(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
