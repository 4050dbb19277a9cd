//! Against a policy service in memory, under a clock that stands still while anybody works.

mod registering;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use sidecar_core::Reason;
use tenon_proto::policy::v1::{self as proto, report_request::FlowBatch};
use tokio::{sync::Mutex, task::JoinHandle};

use super::*;
use crate::{
    decisions::{Flow, Grounds, Remembered},
    metrics::Direction,
    tap::Taps,
};

/// One stream as the policy service sees it.
struct Session {
    requests: mpsc::Receiver<ReportRequest>,
    responses: mpsc::Sender<Result<ReportResponse, Status>>,
}

/// A policy service: hands its streams to the test.
struct Fake {
    away: Arc<AtomicBool>,
    sessions: mpsc::UnboundedSender<Session>,
}

#[tonic::async_trait]
impl Fleet for Fake {
    async fn report(&self, requests: mpsc::Receiver<ReportRequest>) -> Result<Responses, Status> {
        if self.away.load(Relaxed) {
            return Err(Status::unavailable("away"));
        }
        let (responses, receiver) = mpsc::channel(256);
        self.sessions.send(Session { requests, responses }).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

impl Session {
    async fn next(&mut self) -> Request {
        self.requests.recv().await.and_then(|request| request.request).expect("a request")
    }

    async fn hello(&mut self) -> Hello {
        let Request::Hello(hello) = self.next().await else { panic!("expected Hello") };
        hello
    }

    async fn batch(&mut self) -> FlowBatch {
        let Request::Flows(batch) = self.next().await else { panic!("expected flows") };
        batch
    }

    async fn take(&self, sequence: u64) {
        self.answer(Response::Taken(FlowsTaken { sequence })).await;
    }

    async fn answer(&self, response: Response) {
        self.responses.send(Ok(ReportResponse { response: Some(response) })).await.expect("the sidecar listens");
    }

    /// What the sidecar answers to a question.
    async fn find(&mut self, id: u64, request_id: &str) -> Found {
        self.answer(Response::Find(Find { id, request_id: request_id.to_owned() })).await;
        let Request::Found(found) = self.next().await else { panic!("expected Found") };
        found
    }
}

/// A reporter with its policy service.
struct Bench {
    ledgers: Arc<Ledgers>,
    counters: Arc<Reports>,
    registration: Arc<Registration>,
    away: Arc<AtomicBool>,
    sessions: Mutex<mpsc::UnboundedReceiver<Session>>,
    end: CancellationToken,
    task: JoinHandle<()>,
}

fn bench() -> Bench {
    bench_with_drain(Duration::from_secs(10))
}

fn bench_with_drain(drain: Duration) -> Bench {
    let (sender, sessions) = mpsc::unbounded_channel();
    let (away, end, counters) = (Arc::default(), CancellationToken::new(), Arc::default());
    let ledgers = Arc::new(Ledgers::new(2));
    let fake = Fake { away: Arc::clone(&away), sessions: sender };
    let registration = Registration::new();
    let reporter = Reporter::new(vec![fake], "media-1", told(&ledgers, &counters, &registration));
    let task = tokio::spawn(reporter.run(end.clone(), drain));
    Bench { ledgers, counters, registration, away, sessions: Mutex::new(sessions), end, task }
}

fn told(ledgers: &Arc<Ledgers>, counters: &Arc<Reports>, registration: &Arc<Registration>) -> Told {
    Told {
        ledgers: Arc::clone(ledgers),
        counters: Arc::clone(counters),
        wanted: Taps::new().1,
        registration: Arc::clone(registration),
        region: "us-east".to_owned(),
        zone: String::new(),
    }
}

impl Bench {
    /// The next stream, behind its Hello.
    async fn session(&self) -> Session {
        let mut session = self.sessions.lock().await.recv().await.expect("a stream");
        assert_eq!(session.hello().await.instance, "media-1");
        session
    }

    fn count(&self, worker: usize, path: &str, decision: Decision) {
        self.ledgers.of(worker).count(Flow { caller: "wiki", service: "media", path, how: decision });
    }
}

const REFUSED: Decision = Decision::Refused(Reason::PathNotAllowed);

fn flow(path: &str, decision: proto::flow::Decision, reason: &str, count: u64) -> proto::Flow {
    proto::Flow {
        caller: "wiki".to_owned(),
        service: "media".to_owned(),
        path: path.to_owned(),
        decision: decision.into(),
        reason: reason.to_owned(),
        count,
    }
}

fn remembered(request_id: &str, at_unix_ms: i64) -> Remembered {
    Remembered {
        at_unix_ms,
        direction: Direction::Inbound,
        decision: REFUSED,
        request_id: request_id.into(),
        caller: "wiki".into(),
        service: "media".into(),
        path: "/m/Erase".into(),
        tenant: "acme".into(),
        message: "no rule".into(),
        nearest: "rule read of media".into(),
        grounds: Grounds { allowlist: "media".into(), ..Grounds::default() },
        tenants: None,
    }
}

#[tokio::test(start_paused = true)]
async fn flows_of_all_workers_are_reported_together_every_two_seconds_when_there_are_any() {
    let bench = bench();
    let mut session = bench.session().await;
    let began = Instant::now();
    bench.count(0, "/m/Get", Decision::Allowed);
    bench.count(1, "/m/Get", Decision::Allowed);
    let batch = session.batch().await;
    assert_eq!(batch, FlowBatch { sequence: 1, flows: vec![flow("/m/Get", proto::flow::Decision::Allowed, "", 2)] });
    assert!(began.elapsed() > EVERY / 2, "{:?}", began.elapsed());
    session.take(1).await;
    // Nothing for a while; then the same flow again, with what is new of it alone.
    sleep(EVERY * 5).await;
    assert!(session.requests.try_recv().is_err());
    bench.count(1, "/m/Get", Decision::Allowed);
    let batch = session.batch().await;
    assert_eq!(batch, FlowBatch { sequence: 2, flows: vec![flow("/m/Get", proto::flow::Decision::Allowed, "", 1)] });
}

#[tokio::test(start_paused = true)]
async fn a_refused_flow_that_is_new_is_reported_within_a_quarter_of_a_second_and_four_times_a_second_at_most() {
    let bench = bench();
    let mut session = bench.session().await;
    sleep(EVERY * 3).await;
    let began = Instant::now();
    bench.count(0, "/m/Erase", REFUSED);
    let batch = session.batch().await;
    assert_eq!(batch.flows, [flow("/m/Erase", proto::flow::Decision::Refused, "PATH_NOT_ALLOWED", 1)]);
    assert!(began.elapsed() <= SOON, "{:?}", began.elapsed());
    session.take(1).await;
    // Somebody tries another path every ten milliseconds.
    let (began, mut batches) = (Instant::now(), 0);
    let mut number = 0;
    while began.elapsed() < Duration::from_secs(2) {
        number += 1;
        bench.count(0, &format!("/m/{number}"), REFUSED);
        sleep(Duration::from_millis(10)).await;
        while let Ok(ReportRequest { request: Some(Request::Flows(batch)) }) = session.requests.try_recv() {
            session.take(batch.sequence).await;
            batches += 1;
        }
    }
    assert!((7..=9).contains(&batches), "{batches}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_flow_that_goes_on_is_no_news() {
    let bench = bench();
    let mut session = bench.session().await;
    let (began, mut batches) = (Instant::now(), 0);
    while began.elapsed() < EVERY * 10 {
        bench.count(0, "/m/Erase", REFUSED);
        sleep(Duration::from_millis(10)).await;
        while let Ok(ReportRequest { request: Some(Request::Flows(batch)) }) = session.requests.try_recv() {
            session.take(batch.sequence).await;
            batches += 1;
        }
    }
    assert!((10..=13).contains(&batches), "{batches}");
}

#[tokio::test(start_paused = true)]
async fn somebody_who_invents_paths_in_a_flood_is_reported_every_two_seconds_and_no_more() {
    let bench = bench();
    let mut session = bench.session().await;
    let (began, mut flows, mut number) = (Instant::now(), 0, 0);
    while began.elapsed() < EVERY * 10 {
        for _ in 0..100 {
            number += 1;
            bench.count(0, &format!("/m/{number}"), REFUSED);
        }
        sleep(Duration::from_millis(10)).await;
        while let Ok(ReportRequest { request: Some(Request::Flows(batch)) }) = session.requests.try_recv() {
            session.take(batch.sequence).await;
            flows += batch.flows.len();
        }
    }
    assert!(flows < 12 * 2_050, "{flows} of {number}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_acknowledged_is_sent_again_unchanged_and_what_is_is_not() {
    let bench = bench();
    let mut session = bench.session().await;
    bench.count(0, "/m/A", REFUSED);
    let first = session.batch().await;
    bench.count(0, "/m/B", REFUSED);
    let second = session.batch().await;
    assert_eq!((first.sequence, second.sequence), (1, 2));
    session.take(1).await;
    // Before its end has arrived, the acknowledgement has.
    session.find(1, "nobody's").await;
    drop(session);
    let mut session = bench.session().await;
    assert_eq!(session.batch().await, second);
    session.take(2).await;
    bench.count(0, "/m/C", REFUSED);
    let third = session.batch().await;
    assert_eq!((third.sequence, third.flows.len()), (3, 1), "{third:?}");
    session.take(3).await;
    session.find(2, "nobody's").await;
    drop(session);
    let mut session = bench.session().await;
    bench.count(0, "/m/D", REFUSED);
    assert_eq!(session.batch().await.sequence, 4);
}

#[tokio::test(start_paused = true)]
async fn the_boot_stays_the_same_over_all_streams() {
    let bench = bench();
    let mut boots = Vec::new();
    for _ in 0..2 {
        let mut session = bench.sessions.lock().await.recv().await.expect("a stream");
        boots.push(session.hello().await.boot);
    }
    assert_eq!(boots[0], boots[1]);
}

#[tokio::test(start_paused = true)]
async fn while_the_policy_service_is_away_flows_are_merged_within_bounds_and_all_calls_are_told_afterwards() {
    let bench = bench();
    let session = bench.session().await;
    bench.away.store(true, Relaxed);
    drop(session);
    let mut counted = 0;
    for round in 0..100 {
        for path in 0..200 {
            bench.count(0, &format!("/m/{round}/{path}"), REFUSED);
            bench.count(1, "/m/Get", Decision::Allowed);
            counted += 2;
        }
        sleep(EVERY).await;
    }
    assert!(!bench.counters.is_connected());
    bench.away.store(false, Relaxed);
    let mut session = bench.session().await;
    let (mut told, mut flows) = (0, 0);
    while told < counted {
        let batch = session.batch().await;
        session.take(batch.sequence).await;
        flows += batch.flows.len();
        told += batch.flows.iter().map(|flow| flow.count).sum::<u64>();
    }
    assert_eq!(told, counted);
    assert!(flows < 5_000, "20,001 were counted, and {flows} told apart");
    assert!(bench.counters.is_connected());
}

#[tokio::test(start_paused = true)]
async fn one_that_acknowledges_nothing_is_given_up_and_few_batches_wait() {
    let bench = bench();
    let mut session = bench.session().await;
    let mut batches = 0;
    let mut number = 0;
    let given_up = loop {
        tokio::select! {
            request = session.requests.recv() => match request {
                Some(_) => batches += 1,
                None => break Instant::now(),
            },
            () = sleep(Duration::from_millis(100)) => {
                number += 1;
                bench.count(0, &format!("/m/{number}"), REFUSED);
            }
        }
    };
    assert!(given_up.elapsed() < ACKNOWLEDGING * 2);
    assert_eq!(batches, 2);
    assert_eq!(bench.counters.waiting_now(), 4, "the rest is merged");
    let mut session = bench.session().await;
    let sequences = [session.batch().await.sequence, session.batch().await.sequence];
    assert_eq!(sequences, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_at_once_from_the_ledgers_of_all_workers() {
    let bench = bench();
    let mut session = bench.session().await;
    bench.ledgers.of(0).remember(remembered("one", 1));
    bench.ledgers.of(1).remember(remembered("two", 2));
    bench.ledgers.of(0).remember(remembered("two", 3));
    let began = Instant::now();
    let found = session.find(7, "one").await;
    let decision = found.decision.expect("a decision");
    assert_eq!((found.id, decision.instance.as_str(), decision.request_id.as_str()), (7, "media-1", "one"));
    assert_eq!((decision.direction.as_str(), decision.reason.as_str()), ("inbound", "PATH_NOT_ALLOWED"));
    assert_eq!((decision.allowlist.as_str(), decision.nearest.as_str()), ("media", "rule read of media"));
    assert_eq!(session.find(8, "two").await.decision.expect("a decision").at_unix_ms, 3);
    assert_eq!(session.find(9, "three").await, Found { id: 9, decision: None });
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn one_that_asks_and_does_not_read_is_given_up() {
    let bench = bench();
    let session = bench.session().await;
    for id in 0..=REQUESTS as u64 {
        let find = Find { id, request_id: "one".to_owned() };
        let _ended = session.responses.send(Ok(ReportResponse { response: Some(Response::Find(find)) })).await;
    }
    session.responses.closed().await;
    bench.session().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_flows_are_told_at_the_end() {
    let bench = bench();
    let mut session = bench.session().await;
    bench.count(0, "/m/Get", Decision::Allowed);
    bench.end.cancel();
    let batch = session.batch().await;
    assert_eq!(batch.flows.len(), 1);
    session.take(batch.sequence).await;
    bench.task.await.expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn the_last_flows_are_told_over_a_new_stream_where_none_is_open() {
    let bench = bench();
    let session = bench.session().await;
    bench.away.store(true, Relaxed);
    drop(session);
    bench.count(0, "/m/Get", Decision::Allowed);
    sleep(EVERY * 10).await;
    bench.away.store(false, Relaxed);
    bench.end.cancel();
    let mut session = bench.session().await;
    let batch = session.batch().await;
    session.take(batch.sequence).await;
    bench.task.await.expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn a_policy_service_that_is_silent_holds_up_the_end_for_two_seconds_and_never_beyond_the_drain_time() {
    for (drain, longest) in
        [(Duration::from_secs(10), LAST_WORDS), (Duration::from_millis(100), Duration::from_millis(100))]
    {
        let bench = bench_with_drain(drain);
        let _session = bench.session().await;
        bench.count(0, "/m/Get", Decision::Allowed);
        let began = Instant::now();
        bench.end.cancel();
        bench.task.await.expect("it ends");
        assert!(began.elapsed() <= longest + Duration::from_millis(10), "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_policy_service_that_answers_is_told() {
    let (sender, mut sessions) = mpsc::unbounded_channel();
    let fake = |away: bool| Fake { away: Arc::new(AtomicBool::new(away)), sessions: sender.clone() };
    let (ledgers, end) = (Arc::new(Ledgers::new(1)), CancellationToken::new());
    let told = told(&ledgers, &Arc::default(), &Registration::new());
    let reporter = Reporter::new(vec![fake(true), fake(false)], "media-1", told);
    let task = tokio::spawn(reporter.run(end.clone(), Duration::ZERO));
    let began = Instant::now();
    let mut session = sessions.recv().await.expect("a stream");
    assert_eq!(session.hello().await.instance, "media-1");
    assert_eq!(began.elapsed(), Duration::ZERO);
    end.cancel();
    task.await.expect("it ends");
}
