//! Operators who watch calls.

use tenon_proto::policy::v1::{
    TapFilter, TapRequest, TapResponse, TapState, TappedCall, report_request::Tapped, report_response::Tap,
    tap_response::Response as Told, tapped_call::Outcome,
};

use super::*;

impl Sidecar {
    /// What is wanted by now.
    async fn wanted(&mut self) -> Vec<Tap> {
        let next = self.next().await.unwrap();
        let report_response::Response::Taps(taps) = next else { panic!("something else was wanted: {next:?}") };
        taps.taps
    }

    async fn tell(&self, tap: u64, calls: Vec<TappedCall>, left_out: u64) {
        self.send(report_request::Request::Tapped(Tapped { tap, calls, left_out })).await;
    }
}

async fn next(stream: &mut Streaming<TapResponse>) -> Told {
    let told = tokio::time::timeout(LONG, stream.message()).await.expect("something is told").unwrap();
    told.and_then(|told| told.response).expect("something")
}

async fn call_told(stream: &mut Streaming<TapResponse>) -> TappedCall {
    loop {
        if let Told::Call(call) = next(stream).await {
            return call;
        }
    }
}

fn call(id: &str, service: &str, tenant: &str) -> TappedCall {
    TappedCall {
        request_id: id.to_owned(),
        direction: "inbound".to_owned(),
        caller: "wiki".to_owned(),
        service: service.to_owned(),
        path: "/media.v1.Media/Get".to_owned(),
        tenant: tenant.to_owned(),
        outcome: Outcome::Finished.into(),
        instance: "somebody else".to_owned(),
        ..TappedCall::default()
    }
}

fn of(tenant: &str) -> TapRequest {
    let filter = TapFilter { tenant: tenant.to_owned(), ..TapFilter::default() };
    TapRequest { filter: Some(filter), ..TapRequest::default() }
}

#[tokio::test]
async fn who_watches_is_told_of_calls_that_fit_and_that_the_sidecar_can_have_seen() {
    let world = World::new();
    let running = world.start().await;
    let mut media = world.sidecar(&running.address, "media", "media-1", 1).await;
    let mut operator = world.operator(&running);
    let mut acme = operator.tap(of("acme")).await.unwrap().into_inner();
    assert_eq!(next(&mut acme).await, Told::State(TapState { sidecars: 1, left_out: 0 }), "it begins with how many");
    let wanted = media.wanted().await;
    let [Tap { id, rate: 100, .. }] = wanted.as_slice() else { panic!("{wanted:?}") };
    let forged = TappedCall { caller: "media".into(), ..call("forged", "wiki", "acme") };
    media.tell(*id, vec![forged, call("another", "media", "globex"), call("its", "media", "acme")], 7).await;
    let told = call_told(&mut acme).await;
    assert_eq!((&*told.request_id, &*told.instance), ("its", "media-1"), "under the name that the sidecar proved");
    let state = loop {
        if let Told::State(state) = next(&mut acme).await {
            break state;
        }
    };
    assert_eq!(state, TapState { sidecars: 1, left_out: 7 });

    // A sidecar that comes later, and a tap that ends.
    let mut wiki = world.sidecar(&running.address, "wiki", "wiki-1", 1).await;
    assert_eq!(wiki.wanted().await, wanted);
    drop(acme);
    assert_eq!((media.wanted().await, wiki.wanted().await), (vec![], vec![]));
    media.tell(*id, vec![call("late", "media", "acme")], 0).await;
    running.stop().await;
}

#[tokio::test]
async fn calls_above_the_rate_of_the_whole_mesh_are_counted() {
    let world = World::new();
    let running = world.start().await;
    let mut media = world.sidecar(&running.address, "media", "media-1", 1).await;
    let mut operator = world.operator(&running);
    let mut all = operator.tap(TapRequest { rate: 3, ..TapRequest::default() }).await.unwrap().into_inner();
    let wanted = media.wanted().await;
    media.tell(wanted[0].id, (0..10).map(|number| call(&number.to_string(), "media", "")).collect(), 0).await;
    let (mut told, mut left_out) = (Vec::new(), 0);
    while told.len() as u64 + left_out < 10 {
        match next(&mut all).await {
            Told::Call(call) => told.push(call.request_id),
            Told::State(state) => left_out = state.left_out,
        }
    }
    // A second may end in the middle.
    assert!((3..=6).contains(&told.len()), "{told:?}");
    running.stop().await;
}

#[tokio::test]
async fn what_is_not_told_to_anybody_or_makes_no_sense_is_refused() {
    let world = World::new();
    let running = world.start().await;
    let mut operator = world.operator(&running);
    let path = TapFilter { path: "media".into(), ..TapFilter::default() };
    for (request, problem) in [
        (TapRequest { filter: Some(path), ..TapRequest::default() }, "path is media, expected"),
        (TapRequest { rate: 1_001, ..TapRequest::default() }, "rate is 1001, expected at most 1000"),
        (
            TapRequest { headers: vec!["Authorization".into()], ..TapRequest::default() },
            "header authorization may hold",
        ),
    ] {
        let status = operator.tap(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(problem), "{status}");
    }
    let mut watching = Vec::new();
    for _ in 0..16 {
        watching.push(operator.tap(TapRequest::default()).await.unwrap().into_inner());
    }
    let status = operator.tap(TapRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    drop(watching.pop());
    let again = async {
        while operator.tap(TapRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, again).await.expect("one that ended makes room");
    running.stop().await;
}
