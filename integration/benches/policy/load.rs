//! Calls, whoever forwards them: the app at the end, h2load at the beginning, and the CPU time of what is in between.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{HeaderMap, Response};
use tokio::net::TcpListener;

/// Streams of each connection at once.
const STREAMS: usize = 8;
const CONNECTIONS: usize = 4;
/// The answer's body: an empty gRPC message with 16 bytes behind it, so that refused calls, which have none, show.
const ANSWER: &[u8] = b"\0\0\0\0\x10sixteen bytes!!!";

/// Answers every call, until the process is killed.
///
/// # Errors
/// The listener cannot be made.
pub fn app(listen: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                builder.max_concurrent_streams(1_000).initial_connection_window_size(5 << 20);
                let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        while let Some(Ok(data)) = body.data().await {
                            let _ = body.flow_control().release_capacity(data.len());
                        }
                        let head = Response::builder().header("content-type", "application/grpc").body(());
                        let Ok(mut answer) = respond.send_response(head.expect("a good head"), false) else { return };
                        let _ = answer.send_data(Bytes::from_static(ANSWER), false);
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                        let _ = answer.send_trailers(trailers);
                    });
                }
            });
        }
    })
}

/// Waits until somebody listens.
///
/// # Errors
/// Nobody does within 20 s.
pub fn listening(address: SocketAddr) -> anyhow::Result<()> {
    for _ in 0..200 {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    anyhow::bail!("nobody listens on {address}")
}

/// CPU microseconds that `pid` spends on a call of `path`, through `proxy`, for `authority`.
///
/// # Errors
/// h2load is not there, or a call was not answered by the app.
pub fn cpu_per_call(
    pid: u32,
    proxy: SocketAddr,
    authority: &str,
    path: &str,
    headers: &[&str],
    calls: usize,
    scratch: &Path,
) -> anyhow::Result<f64> {
    let body = scratch.join("body");
    std::fs::write(&body, b"\0\0\0\0\x05hello")?;
    let run = |calls: usize| -> anyhow::Result<()> {
        let mut load = Command::new("h2load");
        load.args(["-n", &calls.to_string(), "-c", &CONNECTIONS.to_string(), "-m", &STREAMS.to_string(), "-t", "1"]);
        load.args(["--connect-to", &proxy.to_string(), "-H", "content-type: application/grpc", "-H", "te: trailers"]);
        for header in headers {
            load.args(["-H", header]);
        }
        load.arg("-d").arg(&body).arg(format!("http://{authority}{path}"));
        let output = load.output().context("h2load cannot be run: install the package nghttp2-client")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let data = text.lines().find_map(|line| line.strip_prefix("traffic: ")?.rsplit('(').next()?.split(')').next());
        let data: usize = data.context("h2load says nothing of traffic")?.parse()?;
        ensure!(data >= calls * ANSWER.len(), "not every call was answered by the app:\n{text}");
        Ok(())
    };
    run(calls / 10)?;
    let before = cpu(pid)?;
    run(calls)?;
    Ok((cpu(pid)? - before).as_secs_f64() * 1e6 / calls as f64)
}

/// CPU time of a process so far.
fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}
