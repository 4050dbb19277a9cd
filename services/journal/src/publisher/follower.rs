//! One follower's stream. It is pulled by the transport, so a slow follower costs its cursor and nothing more.

use std::{future::ready, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream};
use mesh_identity::Peer;
use tenon_proto::replication::v1::{FollowRequest, Start, follow_request::Request};
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, watch},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};
use tonic::Status;

use super::{
    FollowStream, Inner,
    followers::Registration,
    shutting_down,
    view::{Frozen, Next, View, sign_of_life},
};
use crate::Position;

type Requests = Pin<Box<dyn Stream<Item = Result<FollowRequest, Status>> + Send>>;

/// The longest text of a NACK that is kept for operators.
const LONGEST_NACK: usize = 1024;

pub(super) fn serve(
    publisher: Arc<Inner>,
    view: Arc<View>,
    peer: Peer,
    start: Start,
    mut refreshed: watch::Receiver<u64>,
    requests: Requests,
) -> FollowStream {
    let registration = publisher.followers.register(&peer, start.instance);
    let resume = start.resume.map(Position::from).filter(|resume| *resume != Position::ZERO);
    let period = publisher.settings.heartbeat;
    let mut heartbeat = interval_at(Instant::now() + period, period);
    // Two in a row after a stall would tell the follower that what lies between is lost.
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The view may have changed between its look-up and now.
    refreshed.mark_changed();
    let phase = match resume {
        Some(resume) if resume.epoch == view.epoch() && start.view == **view.name() => {
            // It holds what it resumes at, and has nothing to acknowledge until something changes.
            registration.acknowledged(resume);
            Phase::Live { cursor: resume.revision, greeted: false }
        }
        Some(_) | None => waiting(&publisher, &view),
    };
    let heads = view.heads();
    let follower = Follower { publisher, view, peer, registration, requests, refreshed, heads, heartbeat, phase };
    Box::pin(stream::unfold(Some(follower), |follower| async move {
        let mut follower = follower?;
        match follower.next().await {
            Ok(message) => Some((Ok(message), Some(follower))),
            Err(Some(status)) => Some((Err(status), None)),
            Err(None) => None,
        }
    }))
}

struct Follower {
    publisher: Arc<Inner>,
    view: Arc<View>,
    peer: Peer,
    registration: Registration,
    requests: Requests,
    refreshed: watch::Receiver<u64>,
    heads: watch::Receiver<u64>,
    heartbeat: Interval,
    phase: Phase,
}

enum Phase {
    /// For its turn to be sent a snapshot, of this revision or later.
    Waiting {
        permit: BoxFuture<'static, Result<OwnedSemaphorePermit, AcquireError>>,
        at_least: u64,
    },
    Starting(Transfer),
    Sending(Transfer),
    /// It has everything up to `cursor`. Once it first is at the head, it is told the digest at once.
    Live {
        cursor: u64,
        greeted: bool,
    },
}

/// A snapshot on its way.
struct Transfer {
    frozen: Arc<Frozen>,
    /// The record that the next chunk begins with.
    next: usize,
    _permit: OwnedSemaphorePermit,
}

fn waiting(publisher: &Inner, view: &View) -> Phase {
    let permit = Arc::clone(&publisher.snapshots).acquire_owned();
    Phase::Waiting { permit: Box::pin(permit), at_least: view.revision() }
}

impl Follower {
    /// The next message, or how the stream ends: with a status, or well.
    async fn next(&mut self) -> Result<Bytes, Option<Status>> {
        loop {
            let due = self.due();
            let Self { publisher, view, requests, refreshed, heads, heartbeat, phase, .. } = &mut *self;
            tokio::select! {
                biased;
                () = publisher.shutdown.cancelled() => return Err(Some(shutting_down())),
                () = view.closed().cancelled() => return Err(Some(Status::aborted("the history was replaced: reconnect"))),
                request = requests.next() => self.received(request)?,
                // The publisher, which this follower keeps alive, holds the sender.
                _ = refreshed.changed() => self.check_view()?,
                _ = heartbeat.tick() => return Ok(self.beat()),
                permit = turn(phase) => {
                    let frozen = match (&*phase, permit) {
                        (Phase::Waiting { at_least, .. }, Ok(permit)) => (view.freeze(*at_least), permit),
                        (_, _) => return Err(Some(shutting_down())),
                    };
                    *phase = Phase::Starting(Transfer { frozen: frozen.0, next: 0, _permit: frozen.1 });
                }
                () = ready(()), if due => {
                    if let Some(message) = self.send() {
                        return Ok(message);
                    }
                }
                _ = heads.changed() => {}
            }
        }
    }

    /// Whether [`Follower::send`] has something to do now.
    fn due(&mut self) -> bool {
        match &self.phase {
            Phase::Waiting { .. } => false,
            Phase::Starting(_) | Phase::Sending(_) => true,
            Phase::Live { cursor, greeted } => *cursor != *self.heads.borrow_and_update() || !greeted,
        }
    }

    /// The next message of the phase, or another phase.
    fn send(&mut self) -> Option<Bytes> {
        let phase = std::mem::replace(&mut self.phase, Phase::Live { cursor: 0, greeted: false });
        let (message, next) = match phase {
            Phase::Waiting { .. } => (None, phase),
            Phase::Starting(transfer) => (Some(transfer.frozen.start()), Phase::Sending(transfer)),
            Phase::Sending(mut transfer) => {
                if let Some((chunk, next)) = transfer.frozen.chunk(transfer.next) {
                    transfer.next = next;
                    (Some(chunk), Phase::Sending(transfer))
                } else {
                    let cursor = transfer.frozen.position.revision;
                    (Some(transfer.frozen.end()), Phase::Live { cursor, greeted: false })
                }
            }
            Phase::Live { cursor, greeted } => match self.view.next(cursor) {
                Next::Delta(delta) => (Some(delta.message), Phase::Live { cursor: delta.revision, greeted }),
                Next::Nothing if greeted => (None, Phase::Live { cursor, greeted }),
                Next::Nothing => (Some(self.view.heartbeat()), Phase::Live { cursor, greeted: true }),
                Next::Snapshot => (None, waiting(&self.publisher, &self.view)),
            },
        };
        self.phase = next;
        message
    }

    /// While a snapshot is due or on its way there is no position to compare.
    fn beat(&self) -> Bytes {
        match self.phase {
            Phase::Live { .. } => self.view.heartbeat(),
            Phase::Waiting { .. } | Phase::Starting(_) | Phase::Sending(_) => sign_of_life(),
        }
    }

    fn received(&self, request: Option<Result<FollowRequest, Status>>) -> Result<(), Option<Status>> {
        let Some(request) = request else { return Err(None) };
        match request.map_err(Some)?.request {
            Some(Request::Ack(ack)) => self.registration.acknowledged(ack.position.unwrap_or_default().into()),
            Some(Request::Nack(nack)) => {
                let position = Position::from(nack.position.unwrap_or_default());
                let error: String = nack.error.chars().filter(|char| !char.is_control()).take(LONGEST_NACK).collect();
                tracing::warn!(
                    kind = self.publisher.kind, follower = %self.peer.id, view = %self.view.name(), %position, %error,
                    "a follower refuses what it was sent",
                );
                self.registration.refused(format!("{position}: {error}"));
            }
            Some(Request::Start(_)) => return Err(Some(Status::invalid_argument("a second start on one stream"))),
            None => {}
        }
        Ok(())
    }

    fn check_view(&self) -> Result<(), Option<Status>> {
        let name = self.publisher.views.view(&self.peer).map_err(Some)?;
        if name == *self.view.name() { Ok(()) } else { Err(Some(Status::aborted("the view changed: reconnect"))) }
    }
}

/// When it is this follower's turn to be sent a snapshot; never when it does not wait for one.
async fn turn(phase: &mut Phase) -> Result<OwnedSemaphorePermit, AcquireError> {
    match phase {
        Phase::Waiting { permit, .. } => permit.await,
        Phase::Starting(_) | Phase::Sending(_) | Phase::Live { .. } => std::future::pending().await,
    }
}
