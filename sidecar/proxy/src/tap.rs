//! Calls that operators watch (`tenon tap`): what is told of them, and to whom.
//!
//! The policy service says which calls are wanted (`report.rs`), and gets those. While nobody watches, a call looks at one
//! flag when it begins and when it ends, and does nothing more. What cannot be told at once is counted and not kept.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::HeaderMap;
use mesh_identity::clock;
use sidecar_core::tap::{Filter, Seen, Telling, telling};
use tenon_proto::policy::v1::{
    TappedCall, TappedHeader, report_request::Tapped, report_response, tapped_call::Outcome as WireOutcome,
};
use tokio::{sync::mpsc, time::sleep};
use tracing::warn;

use crate::{
    call::End,
    metrics::{Direction, Outcome},
};

/// Calls that wait to be told. With [`LONGEST`] of each this is 4 MB at the most.
const WAITING: usize = 512;
/// Bytes that are told of one call, about.
const LONGEST: usize = 8 << 10;
/// Headers that are told of one call.
const HEADERS: usize = 64;
/// Calls of one message to the policy service.
const BATCH: usize = 64;
/// Taps at once, which are few: a policy service has fewer.
const TAPS: usize = 64;
/// Between two looks at what was left out while nothing is told.
const LEFT_OUT: Duration = Duration::from_secs(1);

/// What is watched.
pub struct Taps {
    /// Whether anything is: all that a call looks at while nothing is.
    watched: AtomicBool,
    taps: ArcSwap<Vec<Arc<Tap>>>,
    calls: mpsc::Sender<(Arc<Tap>, TappedCall)>,
    origin: Instant,
}

/// The calls that are wanted, on their way to the policy service.
pub struct Wanted {
    taps: Arc<Taps>,
    calls: mpsc::Receiver<(Arc<Tap>, TappedCall)>,
}

/// What one operator watches.
struct Tap {
    id: u64,
    filter: Filter,
    /// Headers that are told on demand.
    headers: Vec<String>,
    /// Between two calls, in nanoseconds.
    apart: u64,
    /// When the next call may be told if no more than a second's were told at once, in nanoseconds since `Taps::origin`.
    next: AtomicU64,
    left_out: AtomicU64,
}

/// What is noted of a call's head, for whoever watches when it ends.
pub struct Noted {
    headers: Vec<TappedHeader>,
}

impl Taps {
    /// Nothing is watched.
    #[must_use]
    pub fn new() -> (Arc<Self>, Wanted) {
        let (sender, calls) = mpsc::channel(WAITING);
        let taps = Arc::new(Self {
            watched: AtomicBool::new(false),
            taps: ArcSwap::default(),
            calls: sender,
            origin: Instant::now(),
        });
        (Arc::clone(&taps), Wanted { taps, calls })
    }

    /// Whether anything is watched.
    pub fn watched(&self) -> bool {
        self.watched.load(Relaxed)
    }

    /// Notes the head of a call that begins.
    #[must_use]
    pub fn note(&self, headers: &HeaderMap) -> Option<Box<Noted>> {
        if !self.watched() {
            return None;
        }
        let taps = self.taps.load();
        let mut room = LONGEST;
        let told = headers.iter().take(HEADERS).map(|(name, value)| {
            let asked = || taps.iter().any(|tap| tap.asks_for(name.as_str()));
            let told = match telling(name.as_str()) {
                Telling::Always => true,
                Telling::WhenAsked => asked(),
                Telling::Never => false,
            };
            let text = value.to_str().ok().filter(|text| told && text.len() <= room);
            room -= text.map_or(0, str::len);
            TappedHeader {
                name: name.as_str().to_owned(),
                value: text.map(str::to_owned),
                length: u32::try_from(value.len()).unwrap_or(u32::MAX),
            }
        });
        Some(Box::new(Noted { headers: told.collect() }))
    }

    /// Tells of a call that has ended to whoever wants to know.
    pub fn ended(&self, end: &End<'_>, noted: Option<&Noted>) {
        if !self.watched() {
            return;
        }
        let seen = Seen {
            inbound: end.direction == Direction::Inbound,
            refused: end.outcome == Outcome::Refused,
            caller: &end.facts.caller,
            service: &end.facts.service,
            path: end.facts.uri.path(),
            tenant: end.tenant,
        };
        let now = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        for tap in self.taps.load().iter().filter(|tap| tap.filter.matches(&seen)) {
            let told = tap.take(now) && self.calls.try_send((Arc::clone(tap), tap.call(end, noted, &seen))).is_ok();
            if !told {
                tap.left_out.fetch_add(1, Relaxed);
            }
        }
    }

    /// What is watched from now on. What was watched before and still is goes on.
    pub fn set(&self, wanted: Vec<report_response::Tap>) {
        let before = self.taps.load_full();
        let mut taps = Vec::new();
        for tap in wanted.into_iter().take(TAPS) {
            if let Some(known) = before.iter().find(|known| known.id == tap.id) {
                taps.push(Arc::clone(known));
                continue;
            }
            match Filter::try_from(tap.filter.unwrap_or_default()) {
                Ok(filter) => taps.push(Arc::new(Tap {
                    id: tap.id,
                    filter,
                    headers: tap.headers,
                    apart: 1_000_000_000 / u64::from(tap.rate.max(1)),
                    next: AtomicU64::new(0),
                    left_out: AtomicU64::new(0),
                })),
                Err(problem) => {
                    warn!(problem, "the policy service wants to watch calls that this sidecar cannot tell apart")
                }
            }
        }
        self.watched.store(!taps.is_empty(), Relaxed);
        self.taps.store(Arc::new(taps));
    }
}

impl Tap {
    fn asks_for(&self, name: &str) -> bool {
        self.headers.iter().any(|asked| asked == name)
    }

    /// Whether one more call is within the rate (GCRA): a second's worth at once, and then one each `apart`.
    fn take(&self, now: u64) -> bool {
        let taken = self.next.fetch_update(Relaxed, Relaxed, |next| {
            let next = next.max(now) + self.apart;
            (next <= now + 1_000_000_000).then_some(next)
        });
        taken.is_ok()
    }

    fn told(&self, calls: Vec<TappedCall>) -> Tapped {
        Tapped { tap: self.id, calls, left_out: self.left_out.swap(0, Relaxed) }
    }

    fn call(&self, end: &End<'_>, noted: Option<&Noted>, seen: &Seen<'_>) -> TappedCall {
        let headers = noted.iter().flat_map(|noted| &noted.headers).map(|header| {
            let told = telling(&header.name) == Telling::Always || self.asks_for(&header.name);
            TappedHeader { value: header.value.clone().filter(|_| told), ..header.clone() }
        });
        let began = clock::since_epoch().saturating_sub(end.took).as_millis();
        TappedCall {
            request_id: end.facts.request_id().to_owned(),
            at_unix_ms: i64::try_from(began).unwrap_or(i64::MAX),
            instance: String::new(),
            direction: end.direction.as_str().to_owned(),
            caller: seen.caller.to_owned(),
            service: cut(seen.service),
            path: cut(seen.path),
            tenant: cut(seen.tenant),
            outcome: outcome(end.outcome).into(),
            status: cut(end.status.unwrap_or_default()),
            microseconds: u64::try_from(end.took.as_micros()).unwrap_or(u64::MAX),
            headers: headers.collect(),
        }
    }
}

/// What somebody else wrote may be of any length.
fn cut(text: &str) -> String {
    let most = 1024;
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

fn outcome(outcome: Outcome) -> WireOutcome {
    match outcome {
        Outcome::Finished => WireOutcome::Finished,
        Outcome::Refused => WireOutcome::Refused,
        Outcome::Cancelled => WireOutcome::Cancelled,
        Outcome::Broken => WireOutcome::Broken,
    }
}

impl Wanted {
    /// What is watched from now on.
    pub fn set(&self, taps: Vec<report_response::Tap>) {
        self.taps.set(taps);
    }

    /// Comes back when there is something to tell, with a message for each tap that it concerns.
    pub async fn due(&mut self) -> Vec<Tapped> {
        loop {
            let watched = self.taps.watched();
            tokio::select! {
                Some(first) = self.calls.recv() => return self.batch(first),
                () = sleep(LEFT_OUT), if watched => {
                    let told: Vec<_> = self.taps.taps.load().iter().map(|tap| tap.told(Vec::new())).collect();
                    if told.iter().any(|told| told.left_out > 0) {
                        return told;
                    }
                }
            }
        }
    }

    /// The first call, and what waits behind it.
    fn batch(&mut self, first: (Arc<Tap>, TappedCall)) -> Vec<Tapped> {
        let mut taps: Vec<(Arc<Tap>, Vec<TappedCall>)> = Vec::new();
        let behind = std::iter::from_fn(|| self.calls.try_recv().ok());
        for (tap, call) in std::iter::once(first).chain(behind).take(BATCH) {
            match taps.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &tap)) {
                Some((_, calls)) => calls.push(call),
                None => taps.push((tap, vec![call])),
            }
        }
        taps.into_iter().map(|(tap, calls)| tap.told(calls)).collect()
    }
}

#[cfg(test)]
mod tests;
