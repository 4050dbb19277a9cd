//! The fleet over mTLS: what sidecars report, what operators see of it, and what a store that fails does to it.

mod store;
mod taps;

use std::time::Instant;

use mesh_identity::{
    Identity,
    grpc::{channel, uncovered},
    testing::{Ca, service},
};
use tempfile::TempDir;
use tenon_proto::policy::v1::{
    RecentDecision,
    fleet_client::FleetClient,
    flow::Decision,
    policy_client::PolicyClient,
    report_request::{self, FlowBatch, Found, Hello},
    report_response::{self, Find},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};

use super::*;
use crate::serve::{Config, ServeError, serve};

/// Longer than a busy machine's disk takes to sync.
const LONG: Duration = Duration::from_secs(60);

/// What a policy service has, between and during its runs.
struct World {
    ca: Ca,
    dir: TempDir,
}

struct Running {
    address: String,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

impl World {
    fn new() -> Self {
        Self { ca: Ca::new("test.example"), dir: tempfile::tempdir().unwrap() }
    }

    async fn start(&self) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        let config = Config {
            listener,
            store: Store::Embedded(self.dir.path().join("store.redb")),
            state_dir: self.dir.path().to_owned(),
            folder: None,
            accept: Vec::new(),
            identity: self.ca.identity("tenon-policy"),
            dashboard: None,
            tcs: Vec::new(),
        };
        let task = tokio::spawn(serve(config, shutdown.clone()));
        Running { address, shutdown, task }
    }

    fn channel(&self, address: &str, identity: &Arc<Identity>) -> Channel {
        channel(address, identity, &service("tenon-policy"))
    }

    fn operator(&self, running: &Running) -> PolicyClient<Channel> {
        PolicyClient::new(self.channel(&running.address, &self.ca.operator_identity("ann")))
    }

    async fn sidecar(&self, address: &str, service: &str, instance: &str, boot: u64) -> Sidecar {
        let channel = self.channel(address, &self.ca.identity(service));
        Sidecar::connect(channel, instance, boot).await.unwrap()
    }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// What a sidecar's client does, a step at a time.
struct Sidecar {
    requests: mpsc::Sender<ReportRequest>,
    responses: Streaming<ReportResponse>,
}

impl Sidecar {
    async fn connect(channel: Channel, instance: &str, boot: u64) -> Result<Self, Status> {
        let (requests, sent) = mpsc::channel(16);
        let hello = report_request::Request::Hello(Hello { instance: instance.to_owned(), boot });
        requests.send(ReportRequest { request: Some(hello) }).await.unwrap();
        let responses = FleetClient::new(channel).report(ReceiverStream::new(sent)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn send(&self, request: report_request::Request) {
        self.requests.send(ReportRequest { request: Some(request) }).await.unwrap();
    }

    async fn report(&self, sequence: u64, flows: &[Flow]) {
        self.send(report_request::Request::Flows(FlowBatch { sequence, flows: flows.to_vec() })).await;
    }

    async fn next(&mut self) -> Result<report_response::Response, Status> {
        let next = tokio::time::timeout(LONG, self.responses.message()).await.expect("something comes")?;
        next.and_then(|response| response.response).ok_or_else(|| Status::ok("ended"))
    }

    async fn taken(&mut self) -> u64 {
        let next = self.next().await.unwrap();
        let report_response::Response::Taken(taken) = next else { panic!("not asked for anything: {next:?}") };
        taken.sequence
    }

    async fn asked(&mut self) -> Find {
        let next = self.next().await.unwrap();
        let report_response::Response::Find(find) = next else { panic!("nothing was reported: {next:?}") };
        find
    }

    async fn found(&self, find: &Find, decision: Option<RecentDecision>) {
        self.send(report_request::Request::Found(Found { id: find.id, decision })).await;
    }
}

fn flow(caller: &str, service: &str, path: &str, decision: Decision, count: u64) -> Flow {
    let reason = if decision == Decision::Allowed { "" } else { "PATH_NOT_ALLOWED" }.to_owned();
    let (caller, service, path) = (caller.to_owned(), service.to_owned(), path.to_owned());
    Flow { caller, service, path, decision: decision.into(), reason, count }
}

/// A call of wiki to media that passed.
fn get(count: u64) -> Flow {
    flow("wiki", "media", "/media.v1.Media/Get", Decision::Allowed, count)
}

async fn recorded(client: &mut PolicyClient<Channel>) -> FlowsResponse {
    client.flows(FlowsRequest::default()).await.unwrap().into_inner()
}

fn flows(recorded: &FlowsResponse) -> Vec<Flow> {
    recorded.flows.iter().map(|total| total.flow.clone().unwrap()).collect()
}

#[test]
fn every_rpc_stands_in_the_authorization_table() {
    assert_eq!(uncovered(&["tenon.policy.v1.Fleet"], FLEET_AUTHORIZATION), Vec::<String>::new());
}

#[tokio::test]
async fn what_sidecars_report_is_added_up_and_kept_over_a_restart() {
    let world = World::new();
    let running = world.start().await;
    let mut one = world.sidecar(&running.address, "media", "media-1", 1).await;
    let mut other = world.sidecar(&running.address, "media", "media-2", 1).await;
    let mut caller = world.sidecar(&running.address, "wiki", "wiki-1", 1).await;
    let refused = flow("wiki", "media", "/media.v1.Media/Erase", Decision::Refused, 3);
    one.report(1, &[get(5), refused.clone()]).await;
    other.report(1, &[get(7)]).await;
    let outbound = flow("wiki", "issues", "/issues.v1.Issues/List", Decision::Refused, 2);
    caller.report(1, std::slice::from_ref(&outbound)).await;
    assert_eq!((one.taken().await, other.taken().await, caller.taken().await), (1, 1, 1));
    one.report(2, &[get(1)]).await;
    assert_eq!(one.taken().await, 2);

    let mut client = world.operator(&running);
    let before = recorded(&mut client).await;
    assert_eq!(flows(&before), [outbound.clone(), refused, get(13)]);
    let hour = |seconds: i64| seconds / 3600 * 3600;
    let (from, until) = (before.from_unix_seconds, before.until_unix_seconds);
    let now = i64::try_from(clock::unix_seconds()).unwrap();
    assert!(from == hour(from) && from <= until && now - until < 60, "{before:?}");
    assert!(before.flows.iter().all(|total| total.first_unix_seconds >= from && total.last_unix_seconds <= until));
    let to_issues = FlowsRequest { service: "issues".to_owned(), ..FlowsRequest::default() };
    assert_eq!(flows(&client.flows(to_issues).await.unwrap().into_inner()), [outbound]);
    let later = FlowsRequest { since_unix_seconds: now + 7200, ..FlowsRequest::default() };
    assert_eq!(client.flows(later).await.unwrap().into_inner(), FlowsResponse::default());
    running.stop().await;

    let running = world.start().await;
    let mut client = world.operator(&running);
    assert_eq!(recorded(&mut client).await, before);
    let mut one = world.sidecar(&running.address, "media", "media-1", 1).await;
    one.report(3, &[get(1)]).await;
    assert_eq!(one.taken().await, 3);
    assert_eq!(flows(&recorded(&mut client).await)[2], get(14), "counted on from what was there");
    running.stop().await;
}

#[tokio::test]
async fn a_batch_that_comes_again_is_counted_once_also_after_a_restart() {
    let world = World::new();
    let running = world.start().await;
    let mut sidecar = world.sidecar(&running.address, "media", "media-1", 7).await;
    sidecar.report(1, &[get(5)]).await;
    assert_eq!(sidecar.taken().await, 1);
    // The answer may have been lost.
    let mut again = world.sidecar(&running.address, "media", "media-1", 7).await;
    again.report(1, &[get(5)]).await;
    assert_eq!(again.taken().await, 1);
    running.stop().await;

    let running = world.start().await;
    let mut again = world.sidecar(&running.address, "media", "media-1", 7).await;
    again.report(1, &[get(5)]).await;
    again.report(2, &[get(2)]).await;
    assert_eq!((again.taken().await, again.taken().await), (1, 2));
    // Another start of the process counts from 1 on again; and another service's instance may have the same name.
    let mut anew = world.sidecar(&running.address, "media", "media-1", 8).await;
    anew.report(1, &[get(100)]).await;
    assert_eq!(anew.taken().await, 1);
    let mut stranger = world.sidecar(&running.address, "issues", "media-1", 8).await;
    stranger.report(u64::MAX, &[]).await;
    assert_eq!(stranger.taken().await, u64::MAX);
    anew.report(2, &[get(1000)]).await;
    assert_eq!(anew.taken().await, 2);
    assert_eq!(flows(&recorded(&mut world.operator(&running)).await), [get(1107)]);
    running.stop().await;
}

#[tokio::test]
async fn nobody_reports_of_others() {
    let world = World::new();
    let running = world.start().await;
    let mut sidecar = world.sidecar(&running.address, "wiki", "wiki-1", 1).await;
    let inbound = flow("issues", "wiki", "/wiki.v1.Wiki/Get", Decision::Allowed, 1);
    let others = flow("issues", "media", "/media.v1.Media/Get", Decision::Refused, 1);
    sidecar.report(1, &[get(9), others, inbound.clone()]).await;
    assert_eq!(sidecar.taken().await, 1, "it is not to be sent again");
    assert_eq!(flows(&recorded(&mut world.operator(&running)).await), [inbound]);
    for (identity, code) in [
        (world.ca.operator_identity("ann"), Code::PermissionDenied),
        (world.ca.identity("tenon-tcs"), Code::PermissionDenied),
    ] {
        let channel = world.channel(&running.address, &identity);
        let refused = Sidecar::connect(channel, "x", 1).await.err().map(|status| status.code());
        assert_eq!(refused, Some(code), "{}", identity.id());
    }
    running.stop().await;
}

#[tokio::test]
async fn a_stream_that_does_not_begin_or_go_on_as_it_should_is_ended() {
    let world = World::new();
    let running = world.start().await;
    let media = world.channel(&running.address, &world.ca.identity("media"));
    for instance in ["", "a\nb", "x".repeat(257).as_str()] {
        let refused = Sidecar::connect(media.clone(), instance, 1).await.err().map(|status| status.code());
        assert_eq!(refused, Some(Code::InvalidArgument), "{instance:?}");
    }
    let batch = report_request::Request::Flows(FlowBatch { sequence: 1, flows: vec![get(1)] });
    let first = tokio_stream::once(ReportRequest { request: Some(batch) });
    let refused = FleetClient::new(media.clone()).report(first).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "the first request must be hello"));
    let hello = report_request::Request::Hello(Hello { instance: "media-1".to_owned(), boot: 2 });
    let zero = report_request::Request::Flows(FlowBatch { sequence: 0, flows: vec![] });
    for wrong in [hello, zero] {
        let mut sidecar = Sidecar::connect(media.clone(), "media-1", 1).await.unwrap();
        sidecar.send(wrong).await;
        assert_eq!(sidecar.next().await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(flows(&recorded(&mut world.operator(&running)).await), []);
    running.stop().await;
}

#[tokio::test]
async fn what_one_service_can_make_grow_ends_somewhere_and_others_are_not_kept_from_it() {
    let world = World::new();
    let running = world.start().await;
    // Paths that somebody makes up.
    let mut sidecar = world.sidecar(&running.address, "media", "media-1", 1).await;
    for sequence in 0..3 {
        let refused = |number| flow("wiki", "media", &format!("/x.Y/{sequence}-{number}"), Decision::Refused, 1);
        let batch: Vec<_> = (0..1000).map(refused).collect();
        sidecar.report(sequence + 1, &batch).await;
        assert_eq!(sidecar.taken().await, sequence + 1);
    }
    sidecar.report(4, &[get(1)]).await;
    assert_eq!(sidecar.taken().await, 4);
    let mut client = world.operator(&running);
    let recorded_flows = flows(&recorded(&mut client).await);
    assert_eq!(recorded_flows.iter().map(|flow| flow.count).sum::<u64>(), 3001);
    assert!(recorded_flows.len() == 502 && recorded_flows.contains(&get(1)), "{}", recorded_flows.len());
    assert!(recorded_flows.contains(&flow("wiki", "media", "", Decision::Refused, 2500)));

    // Instances that it makes up, and streams.
    let mut streams = Vec::new();
    let refused = loop {
        let channel = world.channel(&running.address, &world.ca.identity("media"));
        match Sidecar::connect(channel, &format!("media-{}", streams.len() + 2), 1).await {
            Ok(stream) => streams.push(stream),
            Err(status) => break status,
        }
        assert!(streams.len() < 1000);
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let mut taken = 0;
    for stream in &mut streams {
        stream.report(1, &[get(1)]).await;
        match stream.next().await {
            Ok(_) => taken += 1,
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
        }
    }
    assert!((15..streams.len()).contains(&taken), "{taken} of {}", streams.len());
    let mut issues = world.sidecar(&running.address, "issues", "issues-1", 1).await;
    issues.report(1, &[flow("wiki", "issues", "/issues.v1.Issues/List", Decision::Allowed, 1)]).await;
    assert_eq!(issues.taken().await, 1);
    running.stop().await;
}

fn decision(find: &Find, direction: &str) -> RecentDecision {
    RecentDecision {
        request_id: find.request_id.clone(),
        direction: direction.to_owned(),
        caller: "wiki".to_owned(),
        service: "media".to_owned(),
        reason: "PATH_NOT_ALLOWED".to_owned(),
        ..RecentDecision::default()
    }
}

async fn explain(client: &mut PolicyClient<Channel>, id: &str) -> Result<ExplainResponse, Status> {
    Ok(client.explain(ExplainRequest { request_id: id.to_owned() }).await?.into_inner())
}

#[tokio::test]
async fn a_decision_is_found_with_the_sidecar_that_made_it_while_another_is_mute() {
    let world = World::new();
    let running = world.start().await;
    let mut media = world.sidecar(&running.address, "media", "media-1", 1).await;
    let mut wiki = world.sidecar(&running.address, "wiki", "wiki-1", 1).await;
    let _mute = world.sidecar(&running.address, "issues", "issues-1", 1).await;
    let mut client = world.operator(&running);
    let answering = tokio::spawn(async move {
        loop {
            let find = media.asked().await;
            let known = find.request_id == "refused-1";
            media.found(&find, known.then(|| decision(&find, "inbound"))).await;
            let find = wiki.asked().await;
            // Not a call of wiki's own side, and not that request.
            let lie = RecentDecision { request_id: "another".to_owned(), ..decision(&find, "outbound") };
            wiki.found(&find, Some(lie)).await;
            if known {
                return (media, wiki);
            }
        }
    });
    let started = Instant::now();
    let unknown = explain(&mut client, "nobody-knows").await.unwrap();
    assert_eq!((unknown.decisions.len(), unknown.asked, unknown.answered), (0, 3, 2));
    assert!(started.elapsed() >= Duration::from_millis(900), "the mute one may know it");
    let started = Instant::now();
    let found = explain(&mut client, "refused-1").await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let [decision] = &found.decisions[..] else { panic!("{found:?}") };
    assert_eq!((decision.instance.as_str(), decision.reason.as_str()), ("media-1", "PATH_NOT_ALLOWED"));
    assert_eq!(found.asked, 3);
    for id in ["", "a b", "x".repeat(129).as_str()] {
        assert_eq!(explain(&mut client, id).await.unwrap_err().code(), Code::InvalidArgument, "{id:?}");
    }
    // Who has gone is not asked.
    drop(answering.await.unwrap());
    let gone = async {
        while explain(&mut client, "refused-1").await.unwrap().asked != 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, gone).await.expect("streams end");
    running.stop().await;
}

#[tokio::test]
async fn many_operators_ask_at_once_and_each_gets_the_answer_to_his_own_question() {
    let world = World::new();
    let running = world.start().await;
    let mut media = world.sidecar(&running.address, "media", "media-1", 1).await;
    let client = world.operator(&running);
    let answering = tokio::spawn(async move {
        for _ in 0..100 {
            let find = media.asked().await;
            media.found(&find, Some(decision(&find, "inbound"))).await;
        }
        media
    });
    let asking = (0..100).map(|number| {
        let mut client = client.clone();
        async move {
            let id = format!("request-{number}");
            let found = explain(&mut client, &id).await.unwrap();
            assert_eq!(found.decisions.iter().map(|it| it.request_id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
        }
    });
    tokio::time::timeout(LONG, futures_util::future::join_all(asking)).await.expect("all are answered");
    drop(answering.await.unwrap());
    running.stop().await;
}
