//! Calls that a gRPC server takes, under the names of gRFC A66 in the spelling of Prometheus.
//!
//! A66 and not OpenTelemetry's own `rpc.server.*`: those are a release candidate and count no sizes and no starts.

mod body;
mod measured;
mod messages;
mod status;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tonic::Code;

pub use self::{measured::Measured, messages::Messages, status::code_name};
use crate::{Histogram, Observed, Page, histogram::Counts};

/// Some of the bounds of A66, in seconds: each bucket is a series for each method and status.
pub const SECONDS: &[f64] =
    &[0.0003, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];
/// Likewise, in bytes.
pub const BYTES: &[f64] = &[1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 67_108_864.0];

/// What A66 calls methods that the server does not have: callers can send any path.
pub const OTHER: &str = "other";

/// Counters of the calls of one server.
#[derive(Debug)]
pub struct Rpcs {
    /// Path to the place in `methods`.
    places: HashMap<&'static str, usize>,
    /// The last one is [`OTHER`].
    methods: Vec<Method>,
}

#[derive(Debug)]
struct Method {
    /// Without the leading slash.
    name: &'static str,
    started: AtomicU64,
    /// By status; made when one first ends so.
    ended: [OnceLock<Box<Ended>>; status::NAMES.len()],
}

#[derive(Debug)]
struct Ended {
    took: Histogram,
    sent: Histogram,
    received: Histogram,
}

impl Default for Ended {
    fn default() -> Self {
        Self {
            took: Histogram::of_seconds(SECONDS),
            sent: Histogram::of_bytes(BYTES),
            received: Histogram::of_bytes(BYTES),
        }
    }
}

impl Method {
    fn new(name: &'static str) -> Self {
        Self { name, started: AtomicU64::new(0), ended: Default::default() }
    }
}

impl Rpcs {
    /// `paths` are what the server has: `/package.Service/Method`, or plain HTTP of one segment.
    #[must_use]
    pub fn new(paths: impl IntoIterator<Item = &'static str>) -> Self {
        let (mut places, mut methods) = (HashMap::new(), Vec::new());
        for path in paths {
            places.entry(path).or_insert_with(|| {
                methods.push(Method::new(path.trim_start_matches('/')));
                methods.len() - 1
            });
        }
        methods.push(Method::new(OTHER));
        Self { places, methods }
    }

    /// The place of a path that was asked for.
    fn place(&self, path: &str) -> usize {
        self.places.get(path).copied().unwrap_or(self.methods.len() - 1)
    }

    fn started(&self, place: usize) {
        self.methods[place].started.fetch_add(1, Relaxed);
    }

    fn ended(&self, place: usize, code: Code, took: Duration, sent: u64, received: u64) {
        let ended = self.methods[place].ended[code as usize].get_or_init(Box::default);
        ended.took.took(took);
        ended.sent.had(sent);
        ended.received.had(received);
    }

    /// Method, status and counts of those that ended.
    fn each(&self, of: impl Fn(&Ended) -> &Histogram) -> Vec<([(&'static str, &'static str); 2], Counts)> {
        let statuses = |method: &Method| {
            let ended = method.ended.iter().zip(status::NAMES).filter_map(|(ended, name)| Some((ended.get()?, name)));
            let labelled = ended
                .map(|(ended, status)| ([("grpc_method", method.name), ("grpc_status", status)], of(ended).counts()));
            labelled.collect::<Vec<_>>()
        };
        self.methods.iter().flat_map(statuses).collect()
    }

    /// For tests: a call came and went.
    #[cfg(test)]
    pub(crate) fn once(&self) {
        self.started(0);
        self.ended(0, Code::Ok, Duration::from_millis(1), 1, 1);
    }
}

impl Observed for Rpcs {
    fn show(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let started = self.methods.iter().map(|method| ([("grpc_method", method.name)], method.started.load(Relaxed)));
        page.counter("grpc_server_call_started", "Calls that came in", started)?;
        page.histogram(
            "grpc_server_call_duration_seconds",
            "From the request's headers to the end of the answer",
            self.each(|ended| &ended.took),
        )?;
        page.histogram(
            "grpc_server_call_sent_total_compressed_message_size_bytes",
            "Bytes of the messages of a call that were sent, without their framing",
            self.each(|ended| &ended.sent),
        )?;
        page.histogram(
            "grpc_server_call_rcvd_total_compressed_message_size_bytes",
            "Bytes of the messages of a call that were received, without their framing",
            self.each(|ended| &ended.received),
        )
    }
}

#[cfg(test)]
mod tests;
