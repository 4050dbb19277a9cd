//! A slow attempt gets a second one beside it, at another instance; the first good answer wins, and the others are reset
//! (gRFC A6, hedging). Only of methods that are named for it, and only when the whole request is here.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use mesh_config::names::ServiceName;
use sidecar_core::{
    Refusal,
    balance::{Candidates, Endpoint, Shown, Slot},
    retry::{Ended, Pushback, Retries},
};
use tokio::time::{Sleep, sleep};

use super::tried::Tried;
use crate::{
    call::{Call, Line},
    forward::{self, Answer, Attempt, Failed, Outgoing},
    health::now,
    metrics::Hedge,
    pool::Target,
    replay::Upload,
    worker::Worker,
};

/// The attempts of one call that are under way.
struct Race<'a> {
    worker: &'a Worker,
    call: &'a Call,
    service: &'a ServiceName,
    /// How long an attempt is given before there is another.
    after: Duration,
    runners: Vec<Runner<'a>>,
    /// When there is another; never where there is none to come.
    due: Option<Pin<Box<Sleep>>>,
}

struct Runner<'a> {
    target: Target,
    slot: Slot,
    began: u64,
    /// It was sent beside others.
    hedge: bool,
    state: State<'a>,
}

enum State<'a> {
    Connecting(BoxFuture<'a, Result<Attempt, Failed>>),
    Sent(Box<Attempt>),
}

/// One that has ended, and with what; nothing when it is time for another.
type Event<'a> = Option<(Runner<'a>, Result<Answer, Failed>)>;

/// Sends the call to `first`, and where that takes longer than `after` to others as well.
pub async fn race<'a>(
    (worker, service): (&'a Worker, &'a ServiceName),
    first: &Endpoint,
    candidates: &mut Candidates<'_>,
    outgoing: &mut Outgoing,
    retries: &mut Retries<'_>,
    after: Duration,
    call: &'a Call,
) -> Tried {
    let due = Some(Box::pin(sleep(after)));
    let mut race = Race { worker, call, service, after, runners: Vec::with_capacity(2), due };
    race.start(first, outgoing, retries);
    loop {
        match forward::until_over(call, poll_fn(|cx| race.poll(cx, &mut outgoing.upload))).await {
            Err(refusal) => return race.over(refusal, retries),
            Ok(None) => race.hedge(candidates, outgoing, retries),
            Ok(Some((runner, result))) => {
                let tried = Tried::of(result, runner.slot, runner.began, retries, call);
                if race.runners.is_empty() || !retries.others_may_do_better(tried.ended) {
                    race.won((runner.hedge, runner.began), retries);
                    return tried;
                }
                race.heed(tried.ended, retries);
            }
        }
    }
}

impl<'a> Race<'a> {
    fn start(&mut self, endpoint: &Endpoint, outgoing: &Outgoing, retries: &Retries<'_>) {
        let target = Target::Sidecar(endpoint.address, self.service.clone());
        let (head, without_body) =
            (outgoing.head(self.call.deadline, retries.previous_attempts()), outgoing.upload.is_empty());
        let (worker, call, to) = (self.worker, self.call, target.clone());
        let begin = Box::pin(async move { forward::begin(worker, &to, head, without_body, call).await });
        let (slot, began, hedge) = (endpoint.load.start(), now(), !self.runners.is_empty());
        self.runners.push(Runner { target, slot, began, hedge, state: State::Connecting(begin) });
    }

    fn poll(&mut self, cx: &mut Context<'_>, upload: &mut Upload<Incoming>) -> Poll<Event<'a>> {
        for index in 0..self.runners.len() {
            let runner = &mut self.runners[index];
            if let Poll::Ready(result) = runner.poll(cx, upload, &self.call.line) {
                let runner = self.runners.remove(index);
                return Poll::Ready(runner.ended(result, self.worker, self.call));
            }
        }
        match &mut self.due {
            Some(due) => due.as_mut().poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    }

    /// Another attempt, where there is somewhere to send it, all of the request is here, and the budget has room.
    fn hedge(&mut self, candidates: &mut Candidates<'_>, outgoing: &Outgoing, retries: &mut Retries<'_>) {
        self.due = None;
        if !outgoing.upload.is_complete() {
            // What is still on its way may be here then; what is too long never is.
            self.due = outgoing.upload.is_kept().then(|| Box::pin(sleep(self.after)));
            return;
        }
        // Before anything is paid for it.
        if !candidates.has_next() {
            return;
        }
        let metrics = self.worker.live.metrics.retries();
        match retries.hedge(now()) {
            Err(why) => metrics.withheld(why),
            Ok(()) => {
                if let Some(endpoint) = candidates.next(now()) {
                    metrics.hedge(Hedge::Sent);
                    self.start(endpoint, outgoing, retries);
                    self.due = Some(Box::pin(sleep(self.after)));
                }
            }
        }
    }

    /// One has failed while others are under way: nobody need wait for it any longer, but for as long as it says.
    fn heed(&mut self, ended: Ended, retries: &mut Retries<'_>) {
        let pause = match ended {
            Ended::Failed { pushback: Pushback::After(pause), .. } => pause,
            Ended::Failed { pushback: Pushback::Never, .. } => {
                retries.heed(Pushback::Never);
                self.due = None;
                return;
            }
            Ended::Failed { pushback: Pushback::None, .. }
            | Ended::ForGood
            | Ended::Unreachable
            | Ended::Unbegun
            | Ended::NoRoom => Duration::ZERO,
        };
        if let Some(due) = &mut self.due {
            due.set(sleep(pause));
        }
    }

    /// The others are dropped, and so reset. What they took is not known, but that it was longer than this.
    fn won(&self, (hedge, began): (bool, u64), retries: &Retries<'_>) {
        let now = now();
        for runner in &self.runners {
            runner.outrun(began, now);
        }
        if hedge {
            self.worker.live.metrics.retries().hedge(Hedge::Won);
            if let Some(first) = self.runners.iter().find(|runner| !runner.hedge) {
                retries.took(self.call.facts().uri.path(), now.saturating_sub(first.began));
            }
        }
    }

    /// The call is over: each instance has shown as much as it has.
    fn over(self, refusal: Refusal, retries: &Retries<'_>) -> Tried {
        for runner in self.runners {
            let failed = if runner.is_sent() { Failed::Over } else { Failed::Waiting };
            let _told = Tried::of(Err(failed(refusal.clone())), runner.slot, runner.began, retries, self.call);
        }
        Tried::over(refusal)
    }
}

impl<'a> Runner<'a> {
    fn is_sent(&self) -> bool {
        matches!(self.state, State::Sent(_))
    }

    /// Notes what it has shown of its instance when one that began at `winner` is answered.
    fn outrun(&self, winner: u64, now: u64) {
        let took = now.saturating_sub(self.began);
        match (self.began < winner, self.is_sent()) {
            (true, true) => self.slot.report(Shown::Outrun { took }, now),
            (true, false) => self.slot.report(Shown::Waited { took }, now),
            (false, _) => self.slot.load().observe_at_least(took, now),
        }
    }

    /// Ready when it has failed to begin, or with what came of it.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Upload<Incoming>,
        line: &Line,
    ) -> Poll<Result<Result<http::Response<h2::RecvStream>, h2::Error>, Failed>> {
        loop {
            match &mut self.state {
                State::Connecting(begin) => match ready!(begin.as_mut().poll(cx)) {
                    Ok(attempt) => self.state = State::Sent(Box::new(attempt)),
                    Err(failed) => return Poll::Ready(Err(failed)),
                },
                State::Sent(attempt) => return attempt.poll(cx, upload, line).map(Ok),
            }
        }
    }

    fn ended(
        mut self,
        result: Result<Result<http::Response<h2::RecvStream>, h2::Error>, Failed>,
        worker: &Worker,
        call: &Call,
    ) -> Event<'a> {
        let connecting = State::Connecting(Box::pin(std::future::pending()));
        let result = match (result, std::mem::replace(&mut self.state, connecting)) {
            (Ok(answer), State::Sent(attempt)) => attempt.ended(answer, worker, &self.target, call),
            (Err(failed), _) => Err(failed),
            (Ok(_), State::Connecting(_)) => unreachable!("only what was sent is answered"),
        };
        Some((self, result))
    }
}
