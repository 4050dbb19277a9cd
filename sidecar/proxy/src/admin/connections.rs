//! The connections of the admin listener. Whoever is on the machine reaches it, so they are few, and nobody's keep others out:
//! when there are as many as there may be, the one goes that has done nothing for the longest.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, header},
};
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::codegen::Service as _;

use super::rpc::{self, Visitor};

/// Connections that are open at once. A scraper, a probe and an operator have one each.
const CONNECTIONS: usize = 64;
/// How long the first request may take to come, an open connection may do nothing, and an answer may take to be read.
const FIRST: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(90);
const ANSWER: Duration = Duration::from_secs(15);
/// How often it is looked whose time is over.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of the header of a request, requests of a connection at once, and bytes that wait for one that does not read.
const HEADER: u32 = 16 << 10;
const STREAMS: u32 = 8;
const WAITING: usize = 64 << 10;
/// How long open answers may take when the listener ends.
const LAST: Duration = Duration::from_secs(1);
/// After this long it is tried again to accept, where there are too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, and lets what is under way end.
pub(super) async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    let mut open: HashMap<u64, Arc<Connection>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = tasks.join_next() => {
                if let Ok(ended) = ended {
                    open.remove(&ended);
                }
            }
            _ = look.tick() => {
                let now = Instant::now();
                open.values().filter(|connection| connection.doing().is_over(now)).for_each(|over| over.close.cancel());
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    if open.len() >= CONNECTIONS {
                        make_room(&mut open);
                    }
                    number += 1;
                    let connection = Arc::new(Connection::new());
                    open.insert(number, Arc::clone(&connection));
                    let (router, shutdown) = (router.clone(), shutdown.clone());
                    tasks.spawn(async move {
                        connection.serve(stream, from, router, shutdown).await;
                        number
                    });
                }
                // Of the connection, or of all: neither is for ever.
                Err(error) => {
                    tracing::debug!(%error, "a connection to the admin listener cannot be accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    let _too_late = timeout(LAST, tasks.join_all()).await;
    Ok(())
}

/// Ends the connection that has done nothing for the longest; of those that do something, the one that does it for the longest.
fn make_room(open: &mut HashMap<u64, Arc<Connection>>) {
    let least = open.iter().min_by_key(|(_, connection)| {
        let doing = connection.doing();
        (doing.requests + doing.calls > 0, doing.since)
    });
    let Some(least) = least.map(|(number, _)| *number) else { return };
    if let Some(connection) = open.remove(&least) {
        connection.close.cancel();
    }
}

/// One that is open.
struct Connection {
    doing: Mutex<Doing>,
    /// It ends, whatever it does.
    close: CancellationToken,
}

/// What a connection does.
#[derive(Clone, Copy, Debug)]
struct Doing {
    /// Requests that came; after the first it may rest for longer.
    heard: bool,
    /// That are being answered, over HTTP and over gRPC. The second may take as long as they like: health is watched.
    requests: u32,
    calls: u32,
    /// When this last changed.
    since: Instant,
}

impl Doing {
    fn is_over(&self, now: Instant) -> bool {
        let most = match self {
            Self { requests: 1.., .. } => ANSWER,
            Self { calls: 1.., .. } => return false,
            Self { heard: true, .. } => IDLE,
            Self { heard: false, .. } => FIRST,
        };
        now.saturating_duration_since(self.since) > most
    }
}

impl Connection {
    fn new() -> Self {
        let doing = Doing { heard: false, requests: 0, calls: 0, since: Instant::now() };
        Self { doing: Mutex::new(doing), close: CancellationToken::new() }
    }

    fn doing(&self) -> MutexGuard<'_, Doing> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: &Arc<Self>, stream: TcpStream, from: SocketAddr, router: Router, shutdown: CancellationToken) {
        let answer = service_fn(move |mut request: Request<hyper::body::Incoming>| {
            let (mut router, answering) = (router.clone(), Answering::begin(self, &request));
            request.extensions_mut().insert(Visitor(from));
            async move {
                let response = router.call(request).await?;
                // It is answered when its last byte is handed on, or nobody wants it any more.
                Ok::<_, std::convert::Infallible>(response.map(|body| {
                    Body::new(body.map_frame(move |frame| {
                        let _until_the_end = &answering;
                        frame
                    }))
                }))
            }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).max_buf_size(HEADER as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(HEADER)
            .max_concurrent_streams(STREAMS)
            .max_send_buf_size(WAITING);
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), answer));
        tokio::select! {
            _ended = connection.as_mut() => {}
            () = self.close.cancelled() => {}
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let _ended = connection.await;
            }
        }
    }
}

/// A request that is being answered; dropped it is.
struct Answering {
    connection: Arc<Connection>,
    grpc: bool,
}

impl Answering {
    fn begin<B>(connection: &Arc<Connection>, request: &Request<B>) -> Self {
        let content = request.headers().get(header::CONTENT_TYPE);
        // Answers of the admin services end by themselves, and are large.
        let grpc = content.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
            && !rpc::is_meant(request.uri().path());
        let answering = Self { connection: Arc::clone(connection), grpc };
        answering.count(|requests| *requests += 1);
        connection.doing().heard = true;
        answering
    }

    fn count(&self, change: impl FnOnce(&mut u32)) {
        let mut doing = self.connection.doing();
        change(if self.grpc { &mut doing.calls } else { &mut doing.requests });
        doing.since = Instant::now();
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.count(|requests| *requests = requests.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        task::JoinHandle,
    };

    use super::*;

    struct Served {
        address: std::net::SocketAddr,
        shutdown: CancellationToken,
        task: JoinHandle<io::Result<()>>,
    }

    impl Served {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound");
            // More than sockets hold.
            let large = || async { vec![b'x'; 64 << 20] };
            let router = Router::new().route("/live", get(|| async { "live\n" })).route("/large", get(large));
            let shutdown = CancellationToken::new();
            Self { address, task: tokio::spawn(serve(listener, router, shutdown.clone())), shutdown }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.expect("connected")
        }

        async fn get(&self, path: &str) -> TcpStream {
            let mut stream = self.connect().await;
            stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n").as_bytes()).await.expect("sent");
            stream
        }

        async fn is_live(&self) {
            let mut stream = self.get("/live").await;
            assert_eq!(answer(&mut stream).await, "HTTP/1.1 200 OK");
        }
    }

    /// The first line; empty when there is none.
    async fn answer(stream: &mut TcpStream) -> String {
        let mut read = vec![0; 1024];
        let count = timeout(Duration::from_secs(30), stream.read(&mut read)).await.expect("in time").unwrap_or(0);
        String::from_utf8_lossy(&read[..count]).lines().next().unwrap_or_default().to_owned()
    }

    /// Bug: each of them was kept for ever.
    #[tokio::test]
    async fn whoever_says_nothing_keeps_nobody_out_and_is_let_go() {
        let served = Served::start().await;
        let mut silent = Vec::new();
        for _ in 0..4 * CONNECTIONS {
            silent.push(served.connect().await);
        }
        served.is_live().await;
        // Half a request is none.
        let mut slow = served.connect().await;
        slow.write_all(b"GET /live HTTP/1.1\r\nho").await.expect("sent");
        let began = Instant::now();
        for stream in silent.iter_mut().chain([&mut slow]) {
            assert_eq!(answer(stream).await, "");
        }
        assert!(began.elapsed() < FIRST + Duration::from_secs(15), "{:?}", began.elapsed());
        served.is_live().await;
    }

    #[tokio::test]
    async fn whoever_reads_nothing_keeps_nobody_out_and_has_an_end() {
        let served = Served::start().await;
        let mut slow = Vec::new();
        for _ in 0..4 {
            slow.push(served.get("/large").await);
        }
        served.is_live().await;
        let doing = Doing { heard: true, requests: 1, calls: 0, since: Instant::now() };
        assert!(!doing.is_over(doing.since + ANSWER) && doing.is_over(doing.since + ANSWER + LOOK));
        let watched = Doing { requests: 0, calls: 1, ..doing };
        assert!(!watched.is_over(doing.since + 1000 * IDLE));
        let idle = Doing { requests: 0, ..doing };
        assert!(!idle.is_over(doing.since + IDLE) && idle.is_over(doing.since + IDLE + LOOK));
    }

    /// An answer of theirs is large, and it is known when it should have been read.
    #[test]
    fn who_asks_the_admin_services_is_not_waited_for_as_who_watches_health_is() {
        for (path, requests, calls) in
            [("/grpc.health.v1.Health/Watch", 0, 1), ("/tenon.admin.v1.Sidecar/Describe", 1, 0), ("/metrics", 1, 0)]
        {
            let connection = Arc::new(Connection::new());
            let mut request = Request::builder().uri(path);
            if path != "/metrics" {
                request = request.header(header::CONTENT_TYPE, "application/grpc");
            }
            let answering = Answering::begin(&connection, &request.body(()).expect("a request"));
            let doing = *connection.doing();
            assert_eq!((doing.requests, doing.calls), (requests, calls), "{path}");
            drop(answering);
            let doing = *connection.doing();
            assert_eq!((doing.requests, doing.calls), (0, 0), "{path}");
        }
    }

    #[tokio::test]
    async fn a_header_that_is_too_large_is_refused() {
        let served = Served::start().await;
        let mut stream = served.connect().await;
        let header = format!("GET /live HTTP/1.1\r\nhost: here\r\nx: {}\r\n\r\n", "x".repeat(2 * HEADER as usize));
        let _it_may_hang_up = stream.write_all(header.as_bytes()).await;
        assert_eq!(answer(&mut stream).await, "HTTP/1.1 431 Request Header Fields Too Large");
    }

    #[tokio::test]
    async fn at_the_end_open_answers_may_end_and_nobody_holds_it_up() {
        let served = Served::start().await;
        let (_silent, _slow) = (served.connect().await, served.get("/large").await);
        served.is_live().await;
        served.shutdown.cancel();
        timeout(Duration::from_secs(20), served.task).await.expect("in time").expect("it ends").expect("well");
    }
}
