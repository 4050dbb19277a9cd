use http::{HeaderValue, Request};
use tenon_proto::policy::v1::TapFilter;

use super::*;
use crate::{call::Facts, said::Said};

fn tap(id: u64, rate: u32, filter: TapFilter) -> report_response::Tap {
    report_response::Tap { id, filter: Some(filter), rate, headers: vec!["baggage".to_owned()] }
}

fn of_tenant(tenant: &str) -> TapFilter {
    TapFilter { tenant: tenant.to_owned(), ..TapFilter::default() }
}

/// A call of this tenant, from its head to its end.
fn call(taps: &Taps, tenant: &'static str, outcome: Outcome) {
    let request = Request::builder()
        .uri("http://media/media.v1.Media/Get")
        .header("x-tenant-id", tenant)
        .header("user-agent", "test")
        .header("baggage", "user=ann")
        .header("x-asap-token", "secret")
        .header("x-more", "mine")
        .body(())
        .unwrap();
    let said = Said::of(request.headers());
    let noted = taps.note(request.headers());
    let facts = Facts::of(&request, &said, ("media".into(), "wiki".into()), HeaderValue::from_static("r-1"));
    let took = Duration::from_millis(3);
    let (direction, status) = (Direction::Inbound, Some("0"));
    taps.ended(&End { direction, facts: &facts, tenant, outcome, status, took }, noted.as_deref());
}

async fn next(wanted: &mut Wanted) -> Vec<Tapped> {
    tokio::time::timeout(Duration::from_secs(60), wanted.due()).await.expect("something is told")
}

#[tokio::test]
async fn a_call_is_told_to_who_wants_it_and_to_nobody_else() {
    let (taps, mut wanted) = Taps::new();
    wanted.set(vec![tap(1, 10, of_tenant("acme")), tap(2, 10, of_tenant("globex"))]);
    call(&taps, "acme", Outcome::Finished);
    let told = next(&mut wanted).await;
    let [Tapped { tap: 1, calls, left_out: 0 }] = told.as_slice() else { panic!("{told:?}") };
    let [told] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!((&*told.request_id, &*told.caller, &*told.service), ("r-1", "wiki", "media"));
    assert_eq!((&*told.path, &*told.tenant, &*told.status), ("/media.v1.Media/Get", "acme", "0"));
    assert_eq!((told.outcome(), told.microseconds, &*told.direction), (WireOutcome::Finished, 3_000, "inbound"));
    call(&taps, "globex", Outcome::Refused);
    let told = next(&mut wanted).await;
    assert_eq!((told.len(), told[0].tap, told[0].calls[0].outcome()), (1, 2, WireOutcome::Refused));
}

#[tokio::test]
async fn no_value_of_a_header_is_told_that_is_not_of_the_protocol_or_asked_for() {
    let (taps, mut wanted) = Taps::new();
    let all = report_response::Tap { headers: Vec::new(), ..tap(1, 10, TapFilter::default()) };
    let asks = report_response::Tap { headers: vec!["baggage".into(), "x-asap-token".into()], ..all.clone() };
    wanted.set(vec![all, report_response::Tap { id: 2, ..asks }]);
    call(&taps, "acme", Outcome::Finished);
    let told = next(&mut wanted).await;
    let values = |index: usize| {
        let headers = told[index].calls[0].headers.iter();
        headers.map(|header| (header.name.as_str(), header.value.as_deref(), header.length)).collect::<Vec<_>>()
    };
    let agent = ("user-agent", Some("test"), 4);
    let (tenant, token, more) = (("x-tenant-id", None, 4), ("x-asap-token", None, 6), ("x-more", None, 4));
    assert_eq!(values(0), [tenant, agent, ("baggage", None, 8), token, more]);
    assert_eq!(values(1), [tenant, agent, ("baggage", Some("user=ann"), 8), token, more], "a token never");
}

#[tokio::test]
async fn above_its_rate_calls_are_counted_and_not_told() {
    let (taps, mut wanted) = Taps::new();
    wanted.set(vec![tap(1, 5, TapFilter::default())]);
    for _ in 0..50 {
        call(&taps, "acme", Outcome::Finished);
    }
    let told = next(&mut wanted).await;
    // A second's worth at once, and what came due meanwhile.
    assert!((5..10).contains(&told[0].calls.len()), "{}", told[0].calls.len());
    assert_eq!(told[0].calls.len() as u64 + told[0].left_out, 50);
    call(&taps, "acme", Outcome::Finished);
    let later = next(&mut wanted).await;
    assert_eq!(later.iter().map(|told| told.calls.len() as u64 + told.left_out).sum::<u64>(), 1, "{later:?}");
}

#[test]
fn while_nobody_watches_nothing_is_noted() {
    let (taps, wanted) = Taps::new();
    let headers = HeaderMap::new();
    assert!(!taps.watched() && taps.note(&headers).is_none());
    wanted.set(vec![tap(1, 5, TapFilter::default())]);
    assert!(taps.watched() && taps.note(&headers).is_some());
    wanted.set(Vec::new());
    assert!(!taps.watched() && taps.note(&headers).is_none());
}

#[tokio::test]
async fn what_is_watched_on_goes_on_with_its_rate_and_an_unknown_filter_is_no_tap() {
    let (taps, mut wanted) = Taps::new();
    wanted.set(vec![tap(1, 1, TapFilter::default())]);
    call(&taps, "acme", Outcome::Finished);
    call(&taps, "acme", Outcome::Finished);
    let strange = TapFilter { path: "no path".into(), ..TapFilter::default() };
    wanted.set(vec![tap(1, 1, TapFilter::default()), tap(2, 1, strange)]);
    call(&taps, "acme", Outcome::Finished);
    let told = next(&mut wanted).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].tap, told[0].calls.len(), told[0].left_out), (1, 1, 2));
}

#[test]
fn what_somebody_wrote_is_told_up_to_a_length() {
    assert_eq!(cut("/short"), "/short");
    assert_eq!(cut(&"ä".repeat(2_000)), format!("{}...", "ä".repeat(1_024)));
}
