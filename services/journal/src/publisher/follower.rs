//! One follower's stream. It is pulled by the transport, so a slow follower costs its cursor and nothing more.

use std::{
    future::ready,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream};
use mesh_identity::Peer;
use tenon_proto::replication::v1::{FollowRequest, Mode, Start, follow_request::Request};
use tokio::sync::{AcquireError, Notify, OwnedSemaphorePermit};
use tonic::Status;

use super::{
    FollowStream, Inner,
    bells::Place,
    followers::Registration,
    frozen::Transfer,
    message,
    parked::Parked,
    shutting_down,
    view::{Next, View},
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
    refreshed: u64,
    requests: Requests,
) -> FollowStream {
    let mode = start.mode();
    let registration = publisher.followers.register(peer, start.instance, mode);
    let knows_buckets = !start.bucket_digests.is_empty();
    let resume = start.resume.map(Position::from).filter(|resume| *resume != Position::ZERO);
    // Deltas of another view lead nowhere from what it holds, and its digests are of other records.
    let same = start.view == **view.name();
    let resume = resume.filter(|at| same && at.epoch == view.epoch() && view.reaches_back_to(at.revision));
    let held = if same { start.bucket_digests } else { Bytes::new() };
    let phase = match resume {
        Some(resume) => {
            // It holds what it resumes at, and has nothing to acknowledge until something changes.
            registration.resumed(resume);
            Phase::Live { cursor: resume.revision, greeted: false }
        }
        None => Phase::Opening { held },
    };
    let (bell, place) = view.bells.hang();
    let beaten = view.bells.beats(place);
    let follower = Follower {
        publisher,
        view,
        registration,
        requests,
        bell,
        place,
        mode,
        knows_buckets,
        phase,
        refreshed,
        told_rules: 0,
        beaten,
        passed_over: false,
    };
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
    registration: Registration,
    requests: Requests,
    /// Rings when anything is new: a change, a heartbeat, the end.
    bell: Arc<Notify>,
    place: Place,
    mode: Mode,
    /// It said by bucket what it holds.
    knows_buckets: bool,
    phase: Phase,
    /// How often views had been decided anew when this one was.
    refreshed: u64,
    /// Which guard rules it was told; 0: none.
    told_rules: u64,
    /// Heartbeats that it was sent, or that were due before it came.
    beaten: u64,
    /// A heartbeat was put off once, for what was more urgent.
    passed_over: bool,
}

enum Phase {
    /// To be told how the snapshot goes that it gets.
    Opening {
        held: Bytes,
    },
    /// The start of an empty snapshot was sent; this is its end.
    Closing {
        end: Bytes,
        cursor: u64,
    },
    /// For its turn to be sent a snapshot.
    Waiting {
        turn: BoxFuture<'static, Option<Transfer>>,
    },
    Sending(Parked),
    /// It has everything up to `cursor`. Once it first is at the head, it is told the digest at once.
    Live {
        cursor: u64,
        greeted: bool,
    },
}

/// What a follower was waiting for.
enum Step {
    Request(Option<Result<FollowRequest, Status>>),
    Due,
    Woken,
    /// None: this server is shutting down.
    Turn(Option<Transfer>),
    Sent(Bytes, bool),
    /// The snapshot was given up.
    Stalled,
}

impl Follower {
    /// The next message, or how the stream ends: with a status, or well.
    async fn next(&mut self) -> Result<Bytes, Option<Status>> {
        loop {
            self.check()?;
            if let Some(message) = self.rules().or_else(|| self.beat()) {
                return Ok(message);
            }
            let due = self.due();
            let Self { requests, bell, phase, .. } = &mut *self;
            let step = tokio::select! {
                biased;
                request = requests.next() => Step::Request(request),
                () = ready(()), if due => Step::Due,
                step = transfer(phase) => step,
                () = bell.notified() => Step::Woken,
            };
            match step {
                Step::Request(request) => self.received(request)?,
                Step::Due => {
                    if let Some(message) = self.send()? {
                        return Ok(message);
                    }
                }
                Step::Turn(Some(transfer)) => {
                    self.phase = Phase::Sending(Parked::new(transfer, self.publisher.settings.stalled));
                }
                Step::Stalled => return Err(Some(Status::aborted("the snapshot was not read: reconnect"))),
                Step::Turn(None) => return Err(Some(shutting_down())),
                Step::Sent(message, last) => {
                    if let (Phase::Sending(parked), true) = (&self.phase, last) {
                        self.phase = Phase::Live { cursor: parked.position().revision, greeted: false };
                    }
                    return Ok(message);
                }
                Step::Woken => {}
            }
        }
    }

    /// Whether the stream may go on.
    fn check(&mut self) -> Result<(), Option<Status>> {
        if self.publisher.ended.load(Ordering::Acquire) {
            return Err(Some(shutting_down()));
        }
        if self.view.is_closed() {
            return Err(Some(Status::aborted("the history was replaced: reconnect")));
        }
        let refreshed = self.publisher.refreshed.load(Ordering::Acquire);
        if std::mem::replace(&mut self.refreshed, refreshed) != refreshed {
            let name = self.publisher.views.view(self.registration.peer()).map_err(Some)?;
            if name != *self.view.name() {
                return Err(Some(Status::aborted("the view changed: reconnect")));
            }
        }
        Ok(())
    }

    /// The guard's rules, when it does not know the latest.
    fn rules(&mut self) -> Option<Bytes> {
        let (version, message) = self.publisher.rules.newer_than(self.told_rules)?;
        self.told_rules = version;
        Some(message)
    }

    /// A heartbeat that is due. While a snapshot is due or on its way there is no position to compare.
    fn beat(&mut self) -> Option<Bytes> {
        let beats = self.view.bells.beats(self.place);
        if beats == self.beaten {
            return None;
        }
        let message = match self.phase {
            // The digest says something to who is at the head; two heartbeats in a row from ahead of it would tell the
            // follower that what lies between is lost.
            Phase::Live { cursor, .. } if cursor < self.view.revision() && !self.passed_over => {
                self.passed_over = true;
                return None;
            }
            Phase::Live { .. } => self.view.heartbeat(),
            // Its two messages stay together.
            Phase::Closing { .. } => return None,
            Phase::Opening { .. } | Phase::Waiting { .. } | Phase::Sending(_) => message::sign_of_life(),
        };
        self.passed_over = false;
        self.beaten = beats;
        Some(message)
    }

    /// Whether [`Follower::send`] has something to do now.
    fn due(&self) -> bool {
        match &self.phase {
            Phase::Waiting { .. } | Phase::Sending(_) => false,
            Phase::Opening { .. } | Phase::Closing { .. } => true,
            Phase::Live { cursor, greeted } => !greeted || *cursor < self.view.revision(),
        }
    }

    /// The next message of the phase, or another phase.
    fn send(&mut self) -> Result<Option<Bytes>, Option<Status>> {
        let phase = std::mem::replace(&mut self.phase, Phase::Live { cursor: 0, greeted: false });
        let (message, next) = match phase {
            Phase::Waiting { .. } | Phase::Sending(_) => (None, phase),
            Phase::Opening { held } => self.open(held),
            Phase::Closing { end, cursor } => (Some(end), Phase::Live { cursor, greeted: false }),
            Phase::Live { cursor, greeted } => match self.view.next(cursor, &*self.publisher.views) {
                Next::Delta(delta) => (Some(delta.message), Phase::Live { cursor: delta.revision, greeted }),
                Next::Nothing if greeted => (None, Phase::Live { cursor, greeted }),
                Next::Nothing => (Some(self.view.heartbeat()), Phase::Live { cursor, greeted: true }),
                // It says again what it holds, and is sent what differs.
                Next::Snapshot if self.knows_buckets => return Err(Some(Status::aborted("too far behind: reconnect"))),
                Next::Snapshot => (None, Phase::Opening { held: Bytes::new() }),
            },
        };
        self.phase = next;
        Ok(message)
    }

    /// Begins a snapshot: at once when it is empty, else in its turn.
    fn open(&self, held: Bytes) -> (Option<Bytes>, Phase) {
        let now = self.view.now(&held);
        let empty =
            |differing: &Option<Vec<u32>>| self.mode == Mode::OnDemand || differing.as_ref().is_some_and(Vec::is_empty);
        match now {
            Some(now) if empty(&now.differing) => {
                let start = message::snapshot_start(now.position, self.view.name(), Some(Vec::new()));
                let end = message::snapshot_end(now.records, now.digest);
                (Some(start), Phase::Closing { end, cursor: now.position.revision })
            }
            Some(_) | None => {
                let turn = turn(Arc::clone(&self.publisher), Arc::clone(&self.view), held);
                (None, Phase::Waiting { turn: Box::pin(turn) })
            }
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
                    kind = self.publisher.kind, follower = %self.registration.peer().id, view = %self.view.name(),
                    %position, %error, "a follower refuses what it was sent",
                );
                self.registration.refused(position, &error);
            }
            Some(Request::Start(_)) => return Err(Some(Status::invalid_argument("a second start on one stream"))),
            None => {}
        }
        Ok(())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.view.bells.take_down(self.place);
    }
}

/// Waits until it is this follower's turn to be sent a snapshot. None when there will be no turn.
async fn turn(publisher: Arc<Inner>, view: Arc<View>, held: Bytes) -> Option<Transfer> {
    let at_least = view.revision();
    let permit: Result<OwnedSemaphorePermit, AcquireError> = Arc::clone(&publisher.snapshots).acquire_owned().await;
    let permit = permit.ok()?;
    publisher.snapshots_begun.fetch_add(1, Ordering::Relaxed);
    let frozen = match view.frozen(at_least) {
        Some(frozen) => frozen,
        None => publisher.freeze(&view).await?,
    };
    Some(Transfer::new(frozen, Arc::clone(&publisher.views), &held, permit))
}

/// What a snapshot that is due or on its way needs next; never ends when there is none.
async fn transfer(phase: &mut Phase) -> Step {
    match phase {
        Phase::Waiting { turn } => Step::Turn(turn.await),
        Phase::Sending(parked) => match parked.next().await {
            Some((message, last)) => Step::Sent(message, last),
            None => Step::Stalled,
        },
        Phase::Opening { .. } | Phase::Closing { .. } | Phase::Live { .. } => std::future::pending().await,
    }
}
