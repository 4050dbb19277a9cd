//! One `grpc.health.v1.Health/Check`, the way every call between sidecars goes: mTLS, a token, the callee's allowlist.

use std::{future::poll_fn, net::SocketAddr, time::Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Request, header};
use mesh_config::names::ServiceName;
use mesh_identity::clock;
use prost::Message as _;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};

use crate::{
    headers,
    live::Live,
    pool::{Pool, Target},
};

/// An answer is a few bytes; what is longer is none.
const LONGEST: usize = 4 << 10;

/// What an instance says of itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// SERVING.
    Good,
    /// It is not, does not answer, or cannot be reached; why.
    Bad(String),
    /// It has no room for the question: it lives, and says nothing else.
    Busy,
    /// It does not say: its app has no health service, or no rule lets the question in.
    None(String),
}

/// Asks the instance of `service` at `address` for `name`.
pub async fn ask(live: &Live, pool: &Pool, service: &ServiceName, address: SocketAddr, name: &str) -> Answer {
    let token = live.minting.look_at(service.as_str(), clock::unix_seconds(), HeaderValue::clone);
    match answer(pool, service, address, name, token).await {
        Ok((headers, body)) => read(&headers, &body),
        Err(why) => Answer::Bad(why),
    }
}

/// The headers and trailers in one, and the body.
async fn answer(
    pool: &Pool,
    service: &ServiceName,
    address: SocketAddr,
    name: &str,
    token: HeaderValue,
) -> Result<(HeaderMap, Bytes), String> {
    let target = Target::Sidecar(address, service.clone());
    let (mut connection, _lease) = match pool.open(&target, Instant::now()) {
        Some(leased) => leased,
        None => pool.connect(&target).await.map_err(|error| error.to_string())?,
    };
    let told = |error: h2::Error| error.to_string();
    poll_fn(|cx| connection.poll_ready(cx)).await.map_err(told)?;
    let request = Request::post(format!("https://{service}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(headers::ASAP_TOKEN, token)
        .body(())
        .map_err(|error| error.to_string())?;
    let (response, mut stream) = connection.send_request(request, false).map_err(told)?;
    stream.send_data(framed(&HealthCheckRequest { service: name.to_owned() }), true).map_err(told)?;
    let (head, body) = response.await.map_err(told)?.into_parts();
    let (trailers, body) = read_to_end(body).await?;
    let mut headers = head.headers;
    headers.extend(trailers);
    Ok((headers, body))
}

/// A gRPC message: not compressed, its length, itself.
fn framed(message: &HealthCheckRequest) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&message.encode_to_vec());
    frame.freeze()
}

async fn read_to_end(mut body: RecvStream) -> Result<(HeaderMap, Bytes), String> {
    let mut read = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| error.to_string())?;
        if read.len() + data.len() > LONGEST {
            return Err("the answer is longer than one about health".to_owned());
        }
        read.extend_from_slice(&data);
        let _the_stream_has_ended = body.flow_control().release_capacity(data.len());
    }
    let trailers = body.trailers().await.map_err(|error| error.to_string())?;
    Ok((trailers.unwrap_or_default(), read.freeze()))
}

fn read(headers: &HeaderMap, body: &[u8]) -> Answer {
    let header = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let said = |status: &str| format!("grpc-status {status}: {}", header("grpc-message"));
    match header("grpc-status") {
        "0" => match body.get(5..).map(HealthCheckResponse::decode) {
            Some(Ok(response)) if response.status == ServingStatus::Serving as i32 => Answer::Good,
            Some(Ok(response)) => Answer::Bad(response.status().as_str_name().to_owned()),
            Some(Err(_)) | None => Answer::None("the answer is none about health".to_owned()),
        },
        "8" => Answer::Busy,
        // UNIMPLEMENTED; PERMISSION_DENIED and UNAUTHENTICATED, by the callee's sidecar.
        status @ ("12" | "7" | "16") => Answer::None(said(status)),
        status => Answer::Bad(said(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_says() {
        let serving = |status: i32| {
            let mut body = vec![0, 0, 0, 0, 2];
            body.extend(HealthCheckResponse { status }.encode_to_vec());
            body
        };
        let read = |status: &'static str, body: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", HeaderValue::from_static(status));
            read(&headers, body)
        };
        assert_eq!(read("0", &serving(1)), Answer::Good);
        assert_eq!(read("0", &serving(2)), Answer::Bad("NOT_SERVING".to_owned()));
        assert!(matches!(read("0", &[]), Answer::None(_)));
        assert_eq!(read("8", &[]), Answer::Busy);
        for status in ["7", "12", "16"] {
            assert!(matches!(read(status, &[]), Answer::None(_)), "{status}");
        }
        for status in ["5", "14", "13", ""] {
            assert!(matches!(read(status, &[]), Answer::Bad(_)), "{status}");
        }
        let asked = framed(&HealthCheckRequest { service: "media".to_owned() });
        assert_eq!(&asked[..5], [0, 0, 0, 0, 7]);
        assert_eq!(HealthCheckRequest::decode(&asked[5..]).unwrap().service, "media");
    }
}
