//! The listener of a service: `/metrics`, `/live` and `/ready` over HTTP/1.1, to whoever reaches it.
//!
//! One request a connection, which has ten seconds. Of too many connections the oldest goes: nobody keeps others out.

use std::{collections::VecDeque, convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{Format, Telemetry};

/// Connections that are open at once. A scraper and a probe have one each.
const CONNECTIONS: usize = 32;
/// How long one lives.
const LIFE: Duration = Duration::from_secs(10);
/// Bytes of the header of a request.
const HEADER: usize = 16 << 10;
/// After this long it is tried again to accept, where there are too many open files.
const PAUSE: Duration = Duration::from_millis(100);

impl Telemetry {
    /// Shows everything at `listener` until `shutdown`.
    ///
    /// # Errors
    /// None; what goes wrong with a connection ends that connection.
    pub async fn listen(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) -> io::Result<()> {
        let mut tasks = JoinSet::new();
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some(_) = tasks.join_next() => open.retain(|connection| !connection.is_finished()),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        if open.len() >= CONNECTIONS && let Some(oldest) = open.pop_front() {
                            oldest.abort();
                        }
                        open.push_back(tasks.spawn(timeout(LIFE, serve(Arc::clone(&self), stream))));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a connection to the listener of metrics cannot be accepted");
                        sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let plain = "text/plain; charset=utf-8";
        let (status, content_type, text) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => {
                let format = Format::accepted(request.headers());
                (StatusCode::OK, format.content_type(), self.text(format))
            }
            (&Method::GET | &Method::HEAD, "/live") => (StatusCode::OK, plain, "live\n".to_owned()),
            (&Method::GET | &Method::HEAD, "/ready") => match self.missing() {
                missing if missing.is_empty() => (StatusCode::OK, plain, "ready\n".to_owned()),
                missing => (StatusCode::SERVICE_UNAVAILABLE, plain, missing.join("\n") + "\n"),
            },
            (&Method::GET | &Method::HEAD, _) => {
                (StatusCode::NOT_FOUND, plain, "try /metrics, /live or /ready\n".to_owned())
            }
            _ => (StatusCode::METHOD_NOT_ALLOWED, plain, "use GET\n".to_owned()),
        };
        let mut response = Response::new(Full::new(text.into()));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
        response
    }
}

async fn serve(telemetry: Arc<Telemetry>, stream: TcpStream) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let response = telemetry.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).keep_alive(false).max_buf_size(HEADER);
    let _whoever_asked_is_gone = http.serve_connection(TokioIo::new(stream), answer).await;
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        task::JoinHandle,
    };

    use super::*;

    struct Served {
        address: std::net::SocketAddr,
        telemetry: Arc<Telemetry>,
        shutdown: CancellationToken,
        task: JoinHandle<io::Result<()>>,
    }

    impl Served {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound");
            let (telemetry, shutdown) = (Arc::new(Telemetry::default()), CancellationToken::new());
            let task = tokio::spawn(Arc::clone(&telemetry).listen(listener, shutdown.clone()));
            Self { address, telemetry, shutdown, task }
        }

        async fn ask(&self, line: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.expect("connected");
            stream.write_all(format!("{line}\r\nhost: here\r\n\r\n").as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("text");
            answer
        }
    }

    #[tokio::test]
    async fn it_shows_metrics_in_the_asked_format_and_whether_it_is_ready() {
        let served = Served::start().await;
        let plain = served.ask("GET /metrics HTTP/1.1").await;
        assert!(plain.contains("text/plain; version=0.0.4") && plain.contains("process_cpu_seconds_total "), "{plain}");
        let open = served.ask("GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text").await;
        assert!(open.contains("openmetrics-text; version=1.0.0") && open.ends_with("# EOF\n"), "{open}");
        assert!(served.ask("GET /ready HTTP/1.1").await.starts_with("HTTP/1.1 503"));
        let _rpcs = served.telemetry.serves([]);
        for (line, status) in [
            ("GET /ready", "200"),
            ("GET /live", "200"),
            ("GET /", "404"),
            ("POST /metrics", "405"),
            ("HEAD /metrics", "200"),
        ] {
            let answer = served.ask(&format!("{line} HTTP/1.1")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        }
        served.shutdown.cancel();
        served.task.await.expect("no panic").expect("no error");
    }

    #[tokio::test]
    async fn whoever_says_nothing_keeps_nobody_out() {
        let served = Served::start().await;
        let mut silent = Vec::new();
        for _ in 0..3 * CONNECTIONS {
            silent.push(TcpStream::connect(served.address).await.expect("connected"));
        }
        assert!(served.ask("GET /live HTTP/1.1").await.starts_with("HTTP/1.1 200"));
        let mut byte = [0];
        assert!(matches!(silent[0].read(&mut byte).await, Ok(0) | Err(_)), "the oldest has to go");
    }
}
