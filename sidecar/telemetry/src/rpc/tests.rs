use std::convert::Infallible;

use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use tonic::body::Body;
use tower::{Service as _, service_fn};

use super::*;
use crate::{Format, Telemetry};

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0][..], &length, message].concat()
}

/// Answers with a message and this status in the trailers; without one it never ends.
fn answer(status: Option<&'static str>) -> Response<Body> {
    let data = Ok::<_, Infallible>(http_body::Frame::data(bytes::Bytes::from(framed(b"answer"))));
    let trailers = status.map(|status| {
        let trailers =
            HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), status.parse().expect("one"))]);
        Ok(http_body::Frame::trailers(trailers))
    });
    let frames = [Some(data), trailers].into_iter().flatten();
    let body = StreamBody::new(tokio_stream_of(frames, status.is_none()));
    Response::builder().header("content-type", "application/grpc").body(Body::new(body)).expect("an answer")
}

fn tokio_stream_of<T: Send + 'static>(
    items: impl Iterator<Item = T> + Send + 'static,
    hangs: bool,
) -> impl futures_util::Stream<Item = T> + Send + 'static {
    use futures_util::StreamExt as _;
    let rest = if hangs {
        futures_util::stream::pending().left_stream()
    } else {
        futures_util::stream::empty().right_stream()
    };
    futures_util::stream::iter(items).chain(rest)
}

async fn ask(
    measured: &mut Measured<
        impl Clone + tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>,
    >,
    path: &str,
) -> Response<Body> {
    let body = Body::new(Full::new(bytes::Bytes::from(framed(b"ask"))));
    let request = Request::builder().uri(path).body(body).expect("a request");
    let Ok(response) = measured.call(request).await;
    response
}

fn samples(telemetry: &Telemetry, name: &str) -> Vec<String> {
    let text = telemetry.text(Format::Prometheus);
    text.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_call_has_its_method_status_and_sizes_when_its_answer_has_ended() {
    let telemetry = Telemetry::default();
    let rpcs = telemetry.serves(["/a.B/C", "/a.B/C"]);
    let service = service_fn(async |request: Request<Body>| {
        let _all = request.into_body().collect().await.expect("a body");
        Ok::<_, Infallible>(answer(Some("5")))
    });
    let mut measured = Measured::new(service, Some(rpcs));
    let response = ask(&mut measured, "/a.B/C").await;
    assert_eq!(
        samples(&telemetry, "grpc_server_call_started_total"),
        [
            "grpc_server_call_started_total{grpc_method=\"a.B/C\"} 1",
            "grpc_server_call_started_total{grpc_method=\"other\"} 0"
        ]
    );
    assert_eq!(samples(&telemetry, "grpc_server_call_duration_seconds_count"), Vec::<String>::new());
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(body.len(), 11);
    let labels = "{grpc_method=\"a.B/C\",grpc_status=\"NOT_FOUND\"}";
    for (name, value) in [
        ("grpc_server_call_duration_seconds_count", "1"),
        ("grpc_server_call_sent_total_compressed_message_size_bytes_sum", "6.0"),
        ("grpc_server_call_rcvd_total_compressed_message_size_bytes_sum", "3.0"),
    ] {
        assert_eq!(samples(&telemetry, name), [format!("{name}{labels} {value}")]);
    }
}

#[tokio::test]
async fn whoever_goes_away_has_cancelled_and_any_path_is_one_method() {
    let telemetry = Telemetry::default();
    let rpcs = telemetry.serves(["/a.B/C"]);
    let mut measured = Measured::new(service_fn(async |_| Ok::<_, Infallible>(answer(None))), Some(rpcs));
    for path in ["/x", "/a.B/c", "/y/z", "/a.B/C/"] {
        drop(ask(&mut measured, path).await);
    }
    let name = "grpc_server_call_duration_seconds_count";
    let labels = "{grpc_method=\"other\",grpc_status=\"CANCELLED\"}";
    assert_eq!(samples(&telemetry, name), [format!("{name}{labels} 4")]);
}

#[tokio::test]
async fn an_answer_without_a_body_says_its_status_in_its_headers() {
    let telemetry = Telemetry::default();
    let rpcs = telemetry.serves(["/a.B/C", "/token"]);
    let service = service_fn(async |request: Request<Body>| {
        let plain = request.uri().path() == "/token";
        let refused = || tonic::Status::permission_denied("no").into_http();
        let forbidden = || Response::builder().status(429).body(Body::empty()).expect("an answer");
        Ok::<_, Infallible>(if plain { forbidden() } else { refused() })
    });
    let mut measured = Measured::new(service, Some(rpcs));
    drop(ask(&mut measured, "/a.B/C").await);
    drop(ask(&mut measured, "/token").await);
    let name = "grpc_server_call_duration_seconds_count";
    let line = |method, status| format!("{name}{{grpc_method=\"{method}\",grpc_status=\"{status}\"}} 1");
    assert_eq!(samples(&telemetry, name), [line("a.B/C", "PERMISSION_DENIED"), line("token", "UNAVAILABLE")]);
}

#[test]
fn statuses_have_the_names_of_their_numbers() {
    for (number, name) in (0..).zip(status::NAMES) {
        // `Cancelled` is spelled with two l by gRPC, and so by tonic.
        let code = format!("{:?}", Code::from_i32(number)).to_uppercase();
        assert_eq!(code, name.replace('_', ""));
    }
}
