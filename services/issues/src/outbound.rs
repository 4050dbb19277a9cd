//! Calling other services, through the outbound listener of this app's own sidecar.

use std::{
    error::Error as _,
    fmt, io,
    iter::successors,
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tenon_proto::media::v1::media_client::MediaClient;
use tokio::net::{TcpStream, UnixStream};
use tonic::{
    Code, Request, Status, TimeoutExpired,
    metadata::MetadataMap,
    transport::{Channel, Endpoint, Uri},
};

/// How long the sidecar, on the same machine, may take to accept.
const CONNECT: Duration = Duration::from_secs(2);
/// Headers that describe the request that is being served and so go on with every call made for it. The sidecar adds
/// everything else.
const PASSED_ON: [&str; 5] = ["x-tenant-id", "traceparent", "tracestate", "baggage", "txn-token"];

/// Where the sidecar takes this app's calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// `127.0.0.1:15101`
    Tcp(SocketAddr),
    /// `unix:PATH`
    Unix(PathBuf),
}

impl FromStr for Outbound {
    type Err = OutboundError;

    fn from_str(text: &str) -> Result<Self, OutboundError> {
        match text.strip_prefix("unix:") {
            Some("") => Err(OutboundError),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| OutboundError),
        }
    }
}

impl fmt::Display for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Text that is no outbound listener.
#[derive(Debug, thiserror::Error)]
#[error("expected an address such as 127.0.0.1:15101, or unix:PATH")]
pub struct OutboundError;

impl Outbound {
    /// A client of `media`: connects when first used, and again when the sidecar was restarted.
    pub fn media(&self) -> MediaClient<Channel> {
        let outbound = self.clone();
        // The host of this URI is the `:authority` by which the sidecar knows the destination; it is never resolved.
        let channel = Endpoint::from_static("http://media")
            .http2_keep_alive_interval(Duration::from_secs(30))
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let outbound = outbound.clone();
                async move { Ok::<_, io::Error>(TokioIo::new(outbound.connect().await?)) }
            }));
        MediaClient::new(channel)
    }

    async fn connect(&self) -> io::Result<Stream> {
        let connecting = async {
            match self {
                Self::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Ok(Stream::Left(stream))
                }
                Self::Unix(path) => UnixStream::connect(path).await.map(Stream::Right),
            }
        };
        tokio::time::timeout(CONNECT, connecting).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// The status of a failed call, for whoever this app is serving: as the mesh or the other service gave it, with its
    /// details, or that the sidecar could not be reached.
    pub fn failed(&self, status: &Status) -> Status {
        // Only what this process made up itself has a source; what came over the wire never has.
        let Some(source) = status.source() else {
            return Status::with_details(status.code(), status.message(), status.details().to_vec().into());
        };
        if successors(Some(source), |&error| error.source()).any(|error| error.is::<TimeoutExpired>()) {
            return Status::deadline_exceeded("the deadline of this request passed while media was called");
        }
        let message = format!("calling media through the sidecar at {self} failed: {}", status.message());
        let code = if status.code() == Code::Unknown { Code::Unavailable } else { status.code() };
        Status::new(code, message)
    }
}

type Stream = tokio_util::either::Either<TcpStream, UnixStream>;

/// What goes on from the request that is being served to the calls made for it.
#[derive(Clone, Debug)]
pub struct Onward {
    headers: MetadataMap,
    deadline: Option<Instant>,
}

impl Onward {
    /// Takes it from the request that is being served, which came at `now`.
    pub fn of(served: &MetadataMap, now: Instant) -> Self {
        let mut headers = MetadataMap::new();
        for name in PASSED_ON {
            for value in served.get_all(name) {
                headers.append(name, value.clone());
            }
        }
        let timeout = served.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout);
        Self { headers, deadline: timeout.and_then(|timeout| now.checked_add(timeout)) }
    }

    /// A request that carries it, with the time that is left at `now`.
    pub fn request<T>(&self, message: T, now: Instant) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline.saturating_duration_since(now));
        }
        request
    }
}

/// `grpc-timeout` as the gRPC specification has it: at most 8 digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outbound_is_an_address_or_a_socket() {
        let read = |text: &str| text.parse::<Outbound>().map(|outbound| outbound.to_string()).ok();
        assert_eq!(read("127.0.0.1:15101").as_deref(), Some("127.0.0.1:15101"));
        assert_eq!(read("unix:/run/a.sock").as_deref(), Some("unix:/run/a.sock"));
        for wrong in ["", "unix:", "15101", "localhost:15101", "/run/a.sock"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_describes_the_request_goes_on_and_nothing_else() {
        let mut served = MetadataMap::new();
        for name in ["x-tenant-id", "traceparent", "txn-token", "authorization", "x-mesh-caller", "cookie"] {
            served.insert(name, "v".parse().unwrap());
        }
        served.insert("grpc-timeout", "5S".parse().unwrap());
        let came = Instant::now();
        let request = Onward::of(&served, came).request((), came + Duration::from_secs(2));
        let mut names: Vec<_> = request.metadata().keys().map(|key| format!("{key:?}").replace('"', "")).collect();
        names.sort();
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(request.metadata().get("x-tenant-id").unwrap(), "v");
        assert_eq!(
            timeout(request.metadata().get("grpc-timeout").unwrap().to_str().unwrap()),
            Some(Duration::from_secs(3))
        );
        assert!(request.metadata().get("authorization").is_none());
    }

    #[test]
    fn timeouts_are_read_strictly() {
        assert_eq!(timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "1", "+1S", "100000000S", "1s", "1 S", "é"] {
            assert_eq!(timeout(wrong), None, "{wrong:?}");
        }
    }
}
