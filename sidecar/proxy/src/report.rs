//! Tells the policy service which flows were decided, and answers what it asks about single calls: the client of
//! `tenon.policy.v1.Fleet/Report`.
//!
//! One task, off the path of every call. While no policy service answers, flows are merged and kept within bounds; calls
//! notice nothing. A batch is sent again until it is acknowledged, always with the same number, and counted once.
//!
//! On the same stream it says where this instance takes calls (`crate::register`), which holds while the stream is open.

mod backlog;
mod registering;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use rand::Rng as _;
use tenon_proto::policy::v1::{
    ReportRequest, ReportResponse,
    fleet_client::FleetClient,
    report_request::{Found, Hello, Request, Tapped},
    report_response::{Find, FlowsTaken, Registered, Response, Taps},
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};
use tracing::{debug, warn};

use self::{backlog::Backlog, registering::Registering};
use crate::{
    decisions::{Decision, Ledgers},
    metrics::Reports,
    register::Registration,
    tap::Wanted,
};

/// How often flows are reported when there are any.
const EVERY: Duration = Duration::from_secs(2);
/// How soon after the last report a refused flow is reported that is new.
const SOON: Duration = Duration::from_millis(250);
/// With more refused flows than these somebody invents paths: nothing of that is urgent.
const FLOOD: usize = 512;
/// How long a policy service may take to answer the opening of a stream.
const OPENING: Duration = Duration::from_secs(10);
/// How long it may take to acknowledge a batch.
const ACKNOWLEDGING: Duration = Duration::from_secs(30);
/// Between two rounds of attempts: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Messages that may wait to be sent. A policy service that does not read so many is given up.
const REQUESTS: usize = 64;
/// The longest that the last batch may hold up the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

type Responses = Pin<Box<dyn Stream<Item = Result<ReportResponse, Status>> + Send>>;

/// A policy service: a gRPC channel in life, an object in memory in tests.
#[tonic::async_trait]
pub trait Fleet: Send + Sync + 'static {
    /// Opens a stream. The first of `requests` is Hello; closing them ends the stream.
    ///
    /// # Errors
    /// The status with which it refused, or why it could not be reached.
    async fn report(&self, requests: mpsc::Receiver<ReportRequest>) -> Result<Responses, Status>;
}

#[tonic::async_trait]
impl Fleet for Channel {
    async fn report(&self, requests: mpsc::Receiver<ReportRequest>) -> Result<Responses, Status> {
        let response = FleetClient::new(self.clone()).report(ReceiverStream::new(requests)).await?;
        Ok(Box::pin(response.into_inner()))
    }
}

/// Reports what stands in the ledgers.
pub struct Reporter<F> {
    /// The first that answers is told.
    fleets: Vec<F>,
    hello: Hello,
    book: Book,
    wanted: Wanted,
    registering: Registering,
    /// What a policy service last said that has too many sidecars.
    full: String,
}

/// What the policy service is told.
pub struct Told {
    /// What the workers decided.
    pub ledgers: Arc<Ledgers>,
    /// How far it is told.
    pub counters: Arc<Reports>,
    /// Calls that operators watch.
    pub wanted: Wanted,
    /// Where this instance takes calls.
    pub registration: Arc<Registration>,
    /// Where it runs; empty: nobody said.
    pub region: String,
    /// Where it runs within the region; empty: nobody said.
    pub zone: String,
}

/// An open stream.
struct Open {
    requests: mpsc::Sender<ReportRequest>,
    responses: Responses,
}

impl<F: Fleet> Reporter<F> {
    /// `instance` names this process as everywhere else.
    pub fn new(fleets: Vec<F>, instance: &str, told: Told) -> Self {
        let hello = Hello { instance: instance.to_owned(), boot: rand::random() };
        let Told { ledgers, counters, wanted, registration, region, zone } = told;
        let registering = Registering::new(registration, Arc::clone(&counters), region, zone);
        Self { fleets, hello, book: Book::new(ledgers, counters), wanted, registering, full: String::new() }
    }

    /// Reports until `end`, and then the last of it, for which it takes no longer than `drain`.
    pub async fn run(mut self, end: CancellationToken, drain: Duration) {
        let mut stream = None;
        let (mut wait, longest) = RETRY;
        while !end.is_cancelled() {
            stream = tokio::select! {
                () = end.cancelled() => None,
                opened = self.open() => opened,
            };
            if let Some(open) = stream.as_mut() {
                let (began, _connected) = (Instant::now(), self.book.counters.connected());
                let talked = tokio::select! {
                    () = end.cancelled() => break,
                    talked = self.talk(open) => talked,
                };
                self.registering.ended();
                // Who wanted to know is told by the next policy service that asks.
                self.wanted.set(Vec::new());
                debug!(error = talked.err().map(tracing::field::display), "the policy service takes no flows any more");
                // One that answers and ends at once is asked no more often than one that is gone.
                wait = if began.elapsed() > longest { RETRY.0 } else { wait };
            }
            stream = None;
            tokio::select! {
                () = end.cancelled() => {}
                () = self.book.read_until(sleep(jittered(wait))) => wait = (wait * 2).min(longest),
            }
        }
        self.book.read();
        let _too_late = timeout(drain.min(LAST_WORDS), self.finish(stream)).await;
    }

    /// Opens a stream to the first policy service that answers.
    async fn open(&mut self) -> Option<Open> {
        for fleet in &self.fleets {
            let (requests, receiver) = mpsc::channel(REQUESTS);
            // An empty channel has room.
            let _sent = requests.try_send(request(Request::Hello(self.hello.clone())));
            match self.book.read_until(timeout(OPENING, fleet.report(receiver))).await {
                Ok(Ok(responses)) => {
                    self.book.backlog.begin_again();
                    return Some(Open { requests, responses });
                }
                // Somebody can do something about it, and it is said once.
                Ok(Err(status)) if status.code() == Code::ResourceExhausted && status.message() != self.full => {
                    warn!(%status, "the policy service takes neither the flows nor the registration of this instance");
                    status.message().clone_into(&mut self.full);
                }
                Ok(Err(status)) => debug!(%status, "the policy service takes no flows"),
                Err(_late) => debug!("the policy service does not answer"),
            }
        }
        None
    }

    /// Reports and answers until the stream ends.
    async fn talk(&mut self, stream: &mut Open) -> Result<(), Status> {
        let mut acknowledged = Instant::now();
        loop {
            if !self.book.backlog.is_sent() {
                acknowledged = Instant::now();
            }
            self.send(stream)?;
            self.registering.send(&stream.requests)?;
            tokio::select! {
                response = stream.responses.next() => match response {
                    None => return Ok(()),
                    Some(response) => {
                        if self.hear(response?, stream)? {
                            acknowledged = Instant::now();
                        }
                    }
                },
                () = self.book.due() => self.book.read(),
                () = self.registering.due() => {}
                told = self.wanted.due() => tell(told, &stream.requests)?,
                () = sleep_until(acknowledged + ACKNOWLEDGING), if self.book.backlog.is_sent() => {
                    return Err(Status::deadline_exceeded("flows are not acknowledged"));
                }
            }
        }
    }

    /// Sends all there is, as far as it may wait for its acknowledgement.
    fn send(&mut self, stream: &Open) -> Result<(), Status> {
        self.book.form();
        while let Some(batch) = self.book.backlog.next() {
            match stream.requests.try_send(request(Request::Flows(batch.clone()))) {
                Ok(()) => self.book.backlog.next_is_sent(),
                // It reads slowly: later. One that reads nothing acknowledges nothing.
                Err(TrySendError::Full(_)) => break,
                Err(TrySendError::Closed(_)) => return Err(Status::cancelled("the stream has ended")),
            }
        }
        Ok(())
    }

    /// Says whether flows were acknowledged.
    fn hear(&mut self, response: ReportResponse, stream: &Open) -> Result<bool, Status> {
        match response.response {
            Some(Response::Taken(FlowsTaken { sequence })) => {
                self.book.taken(sequence);
                Ok(true)
            }
            Some(Response::Find(Find { id, request_id })) => {
                let mut decision = self.book.ledgers.find(&request_id);
                if let Some(decision) = &mut decision {
                    decision.instance.clone_from(&self.hello.instance);
                }
                let found = request(Request::Found(Found { id, decision }));
                let sent = stream.requests.try_send(found);
                sent.map_err(|_full| Status::resource_exhausted("more is asked than answers are read"))?;
                Ok(false)
            }
            Some(Response::Registered(Registered { sequence, problem, .. })) => {
                self.registering.answered(sequence, problem);
                Ok(false)
            }
            Some(Response::Taps(Taps { taps })) => {
                self.wanted.set(taps);
                Ok(false)
            }
            // Something newer than this sidecar.
            None => Ok(false),
        }
    }

    /// Sends what is left, on the stream that is open or one more, until all of it is acknowledged.
    async fn finish(&mut self, stream: Option<Open>) {
        self.book.form();
        if self.book.backlog.waiting() == 0 {
            return;
        }
        let stream = match stream {
            Some(stream) => Some(stream),
            None => self.open().await,
        };
        let Some(mut stream) = stream else { return };
        while self.send(&stream).is_ok() && self.book.backlog.waiting() > 0 {
            let Some(Ok(response)) = stream.responses.next().await else { return };
            if self.hear(response, &stream).is_err() {
                return;
            }
        }
    }
}

/// What was read from the ledgers, and when.
struct Book {
    ledgers: Arc<Ledgers>,
    counters: Arc<Reports>,
    backlog: Backlog,
    read_at: Instant,
    /// A new refused flow waits so long from then.
    soon: Duration,
}

impl Book {
    fn new(ledgers: Arc<Ledgers>, counters: Arc<Reports>) -> Self {
        Self { ledgers, counters, backlog: Backlog::new(), read_at: Instant::now(), soon: SOON }
    }

    /// Comes back when the ledgers are to be read.
    async fn due(&self) {
        let something_new = async {
            sleep_until(self.read_at + self.soon).await;
            self.ledgers.refused_anew().await;
        };
        tokio::select! {
            () = sleep_until(self.read_at + EVERY) => {}
            () = something_new => {}
        }
    }

    /// The ledgers are read on, whatever is waited for: what they hold is bounded, and better told apart here.
    async fn read_until<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = work.as_mut() => return done,
                () = self.due() => self.read(),
            }
        }
    }

    fn read(&mut self) {
        let mut refused = 0;
        let lost = self.ledgers.take_flows(|flow, calls| {
            refused += usize::from(matches!(flow.how, Decision::Refused(_)));
            self.counters.flows().add(flow, calls);
            self.backlog.add(flow, calls);
        });
        self.counters.flows().lost(lost);
        self.counters.lost(lost);
        self.read_at = Instant::now();
        self.soon = if refused > FLOOD { EVERY } else { SOON };
    }

    fn form(&mut self) {
        self.counters.lost(self.backlog.form());
        self.counters.waiting(self.backlog.waiting());
    }

    fn taken(&mut self, sequence: u64) {
        self.counters.reported(self.backlog.taken(sequence));
        self.counters.waiting(self.backlog.waiting());
    }
}

/// Calls that are watched: what a slow policy service has no room for is lost, as what a slow operator does not read.
fn tell(told: Vec<Tapped>, requests: &mpsc::Sender<ReportRequest>) -> Result<(), Status> {
    for tapped in told {
        if let Err(TrySendError::Closed(_)) = requests.try_send(request(Request::Tapped(tapped))) {
            return Err(Status::cancelled("the stream has ended"));
        }
    }
    Ok(())
}

fn request(request: Request) -> ReportRequest {
    ReportRequest { request: Some(request) }
}

/// Between half of `wait` and all of it, so that the sidecars of a restarted policy service do not return at one instant.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests;
