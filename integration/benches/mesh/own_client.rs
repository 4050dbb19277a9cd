//! A client of our own, for what h2load does not do: calls at a fixed rate, whose time counts from when they were due, and
//! a new connection for each call.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use http::Request;
use tokio::{net::TcpStream, task::LocalSet};

use crate::{app::MESSAGES, report::histogram, subject::Subject};

/// Connections that the calls of a fixed rate are spread over.
const CONNECTIONS: usize = 4;
/// Callers that open connections.
const OPENERS: usize = 8;

/// What is called.
#[derive(Clone)]
pub struct Calls {
    address: SocketAddr,
    head: Request<()>,
    message: Bytes,
    answer: usize,
}

/// What came of it.
pub struct Timed {
    pub times: Histogram<u64>,
    pub took: Duration,
}

impl Calls {
    /// Calls of `subject` with this message, each answered so many times.
    ///
    /// # Errors
    /// The subject's headers are none.
    pub fn of(subject: &Subject, message: Bytes, messages: usize) -> anyhow::Result<Self> {
        let mut head = Request::post(format!("http://media{}", subject.path));
        for header in ["content-type: application/grpc", "te: trailers"]
            .into_iter()
            .chain(subject.headers.iter().map(String::as_str))
        {
            let (name, value) = header.split_once(": ").context("a header")?;
            head = head.header(name, value);
        }
        if messages > 1 {
            head = head.header(MESSAGES, messages);
        }
        let answer = message.len() * messages;
        Ok(Self { address: subject.address, head: head.body(())?, message, answer })
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Bytes>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(64 << 20);
        let (sender, connection) = builder.handshake(stream).await?;
        tokio::task::spawn_local(connection);
        Ok(sender)
    }

    async fn call(&self, sender: SendRequest<Bytes>) -> anyhow::Result<()> {
        let mut sender = sender.ready().await?;
        let (answer, mut body) = sender.send_request(self.head.clone(), false)?;
        body.send_data(self.message.clone(), true)?;
        let mut answer = answer.await?.into_body();
        let mut received = 0;
        while let Some(data) = answer.data().await {
            let data = data?;
            received += data.len();
            answer.flow_control().release_capacity(data.len())?;
        }
        let status = answer.trailers().await?.and_then(|trailers| trailers.get("grpc-status").cloned());
        ensure!(received == self.answer && status.is_some_and(|status| status == "0"), "a call was not answered");
        Ok(())
    }

    /// Calls so many times a second for this long. A stall counts in every call that was due in it.
    ///
    /// # Errors
    /// A call failed.
    pub fn at_rate(&self, per_second: f64, long: Duration) -> anyhow::Result<Timed> {
        on_this_thread(async {
            let mut senders = Vec::new();
            for _ in 0..CONNECTIONS {
                senders.push(self.connect().await?);
            }
            let (due, mut calls) = tokio::sync::mpsc::unbounded_channel();
            let count = (per_second * long.as_secs_f64()) as u32;
            let began = Instant::now();
            let pace = std::thread::spawn(move || {
                for number in 0..count {
                    let at = began + Duration::from_secs_f64(f64::from(number) / per_second);
                    while let Some(left) = at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                        std::thread::park_timeout(left);
                    }
                    let _gone = due.send(at);
                }
            });
            let (sender, done) = mpsc::channel();
            let (calling, mut next) = (Rc::new(self.clone()), 0);
            while let Some(due) = calls.recv().await {
                let (connection, calling, done) =
                    (senders[next % CONNECTIONS].clone(), Rc::clone(&calling), sender.clone());
                next += 1;
                tokio::task::spawn_local(async move {
                    let outcome = calling.call(connection).await;
                    let _ = done.send(outcome.map(|()| due.elapsed()));
                });
            }
            drop(sender);
            let mut times = histogram();
            while times.len() < u64::from(count) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                for outcome in done.try_iter() {
                    record(&mut times, outcome?)?;
                }
                ensure!(began.elapsed() < long * 4, "calls at {per_second:.0}/s do not end");
            }
            let took = began.elapsed();
            if pace.join().is_err() {
                bail!("the pace maker panicked");
            }
            Ok(Timed { times, took })
        })
    }

    /// Calls for this long, each on a connection of its own.
    ///
    /// # Errors
    /// A call failed.
    pub fn connecting(&self, long: Duration) -> anyhow::Result<Timed> {
        on_this_thread(async {
            let began = Instant::now();
            let opener = |calls: Self| async move {
                let mut times = Vec::new();
                while began.elapsed() < long {
                    let begun = Instant::now();
                    calls.call(calls.connect().await?).await?;
                    times.push(begun.elapsed());
                }
                Ok::<_, anyhow::Error>(times)
            };
            let openers: Vec<_> = (0..OPENERS).map(|_| tokio::task::spawn_local(opener(self.clone()))).collect();
            let mut times = histogram();
            for opener in openers {
                for time in opener.await?? {
                    record(&mut times, time)?;
                }
            }
            Ok(Timed { times, took: began.elapsed() })
        })
    }
}

fn record(times: &mut Histogram<u64>, time: Duration) -> anyhow::Result<()> {
    Ok(times.record(u64::try_from(time.as_nanos())?)?)
}

fn on_this_thread<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}
