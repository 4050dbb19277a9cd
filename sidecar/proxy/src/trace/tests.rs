use super::*;

fn head(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut head = HeaderMap::new();
    for (name, value) in pairs {
        head.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    head
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNRECORDED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

#[test]
fn a_trace_is_continued_where_who_calls_records_it_and_begun_where_a_share_says_so() {
    for (head, share, begins) in [
        (head(&[("traceparent", PARENT)]), 0.0, true),
        (head(&[("traceparent", UNRECORDED)]), 1.0, false),
        (head(&[]), 0.0, false),
        (head(&[]), 1.0, true),
        (head(&[("traceparent", "nonsense")]), 0.0, false),
        (head(&[("traceparent", "nonsense")]), 1.0, true),
        (head(&[("traceparent", PARENT), ("traceparent", PARENT)]), 0.0, false),
    ] {
        let (tracer, _spans) = Tracer::new(share, Arc::default());
        assert_eq!(tracer.begin(&head).is_some(), begins, "{share} {head:?}");
    }
}

#[test]
fn the_next_hop_is_told_of_this_span_in_the_same_trace() {
    let (tracer, _spans) = Tracer::new(0.0, Arc::default());
    let mut head = head(&[("traceparent", PARENT), ("tracestate", "vendor=1")]);
    let span = tracer.begin(&head).unwrap();
    span.continue_in(&mut head);
    let told = TraceContext::parse(head["traceparent"].as_bytes()).unwrap();
    let parent = TraceContext::parse(PARENT.as_bytes()).unwrap();
    assert_eq!((told.trace, told.sampled), (parent.trace, true));
    assert_ne!(told.span, parent.span);
    assert_eq!(head["tracestate"], "vendor=1");
}

#[test]
fn a_share_of_calls_begins_a_trace() {
    let (tracer, _spans) = Tracer::new(0.25, Arc::default());
    let head = head(&[]);
    let begun = (0..10_000).filter(|_| tracer.begin(&head).is_some()).count();
    // Fourteen standard deviations of it.
    assert!((1_900..3_100).contains(&begun), "{begun}");
}
