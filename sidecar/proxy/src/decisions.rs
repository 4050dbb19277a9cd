//! What this sidecar decided: counted as flows for the flow record, and the last refusals kept for `tenon explain`. And how
//! calls ended, for metrics.
//!
//! Each worker writes a ledger of its own, and only the reporter and a scrape look into it from elsewhere: for as long as
//! two pointers take to be swapped, or one request id to be looked for. Nothing here is sent anywhere (`report.rs`), and
//! no tenant stands in a flow.

mod ends;
mod flows;
mod recent;
mod tenants;

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sidecar_core::Reason;
use tenon_proto::policy::v1::{RecentDecision, flow::Decision as WireDecision};
use tokio::sync::Notify;

pub use self::{
    ends::{Ended, Ending, Measure, Measures},
    flows::{Flow, Flows},
    recent::{Grounds, Recent, Remembered, Wanted},
    tenants::Tenants,
};
use crate::metrics::Outcome;

/// Flows that one worker tells apart between two takings.
const FLOWS_OF_A_WORKER: usize = 2_048;
/// The same of [`Ends`] between two scrapes: each has half a kilobyte.
const ENDS_OF_A_WORKER: usize = 512;
/// Decisions that are remembered, and what they may take, of all workers.
const REMEMBERED: usize = 4_096;
const REMEMBERED_BYTES: usize = 4 << 20;

/// Decisions that are looked at while a worker may wait to remember another.
const AT_ONCE: usize = 128;

/// What was decided about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// It passed.
    Allowed,
    /// It passed in audit mode; enforcing would have refused it.
    Audited(Reason),
    /// It was refused, at its start or while it was open.
    Refused(Reason),
}

impl Decision {
    /// The reason's name; empty for what was allowed.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Allowed => "",
            Self::Audited(reason) | Self::Refused(reason) => reason.as_str(),
        }
    }

    /// As the policy service is told.
    pub const fn to_proto(self) -> WireDecision {
        match self {
            Self::Allowed => WireDecision::Allowed,
            Self::Audited(_) => WireDecision::Audited,
            Self::Refused(_) => WireDecision::Refused,
        }
    }
}

/// How calls ended, by who called whom and what.
pub type Ends = Flows<Ending, Measures>;

/// What one worker decided.
#[derive(Debug)]
pub struct Ledger {
    flows: Mutex<Flows>,
    ends: Mutex<Ends>,
    tenants: Mutex<Tenants>,
    recent: Mutex<Recent>,
    /// Shared by all: a refused flow is new.
    news: Arc<Notify>,
}

impl Ledger {
    fn new(workers: usize, news: &Arc<Notify>) -> Self {
        let share = |all: usize| all / workers;
        Self {
            flows: Mutex::new(Flows::new(FLOWS_OF_A_WORKER)),
            ends: Mutex::new(Ends::new(ENDS_OF_A_WORKER)),
            tenants: Mutex::default(),
            recent: Mutex::new(Recent::new(share(REMEMBERED).max(64), share(REMEMBERED_BYTES).max(64 << 10))),
            news: Arc::clone(news),
        }
    }

    /// Counts one call. Where the flow is known, that is a look-up and an addition.
    pub fn count(&self, flow: Flow<'_>) {
        let new = lock(&self.flows).add(flow, 1);
        if new && matches!(flow.how, Decision::Refused(_)) {
            self.news.notify_one();
        }
    }

    /// Counts one call that has ended. Where there were such, that is a look-up and a few additions.
    pub fn ended(&self, flow: Flow<'_, Ending>, call: &Measure) {
        lock(&self.ends).add_with(flow, 1, |measures| measures.had(call));
    }

    /// Counts one call that has ended, for a tenant that there is.
    pub fn ended_for(&self, tenant: &str, outcome: Outcome) {
        lock(&self.tenants).add(tenant, outcome);
    }

    /// Keeps a refusal, or what audit mode let pass.
    pub fn remember(&self, decision: Remembered) {
        lock(&self.recent).push(decision);
    }
}

/// The ledgers of all workers.
#[derive(Debug)]
pub struct Ledgers {
    ledgers: Box<[Arc<Ledger>]>,
    news: Arc<Notify>,
    /// In place of those that are being counted in: a taking swaps the two, so that no call waits for it.
    spare: Mutex<Vec<(Flows, Ends)>>,
}

impl Ledgers {
    /// One for each worker.
    pub fn new(workers: usize) -> Self {
        let (news, workers) = (Arc::new(Notify::new()), workers.max(1));
        Self {
            ledgers: (0..workers).map(|_| Arc::new(Ledger::new(workers, &news))).collect(),
            spare: Mutex::new((0..workers).map(|_| spare()).collect()),
            news,
        }
    }

    /// The ledger of this worker. Those beyond the number that was planned for share.
    pub fn of(&self, worker: usize) -> &Arc<Ledger> {
        &self.ledgers[worker % self.ledgers.len()]
    }

    /// Hands out what was counted since the last time, and how many calls fitted into no flow.
    pub fn take_flows(&self, mut each: impl FnMut(Flow<'_>, u64)) -> u64 {
        let mut lost = 0;
        for (ledger, (spare, _)) in self.ledgers.iter().zip(lock(&self.spare).iter_mut()) {
            mem::swap(&mut *lock(&ledger.flows), spare);
            lost += spare.take(|flow, calls, ()| each(flow, calls));
        }
        lost
    }

    /// The same of calls that have ended.
    pub fn take_ends(&self, mut each: impl FnMut(Flow<'_, Ending>, u64, Measures)) -> u64 {
        let mut lost = 0;
        for (ledger, (_, spare)) in self.ledgers.iter().zip(lock(&self.spare).iter_mut()) {
            mem::swap(&mut *lock(&ledger.ends), spare);
            lost += spare.take(&mut each);
        }
        lost
    }

    /// The same of tenants.
    pub fn take_tenants(&self) -> impl Iterator<Item = Tenants> {
        self.ledgers.iter().map(|ledger| mem::take(&mut *lock(&ledger.tenants)))
    }

    /// Comes back when a refused flow was counted that was not known.
    pub async fn refused_anew(&self) {
        self.news.notified().await;
    }

    /// The latest decision on this request that is still remembered.
    pub fn find(&self, request_id: &str) -> Option<RecentDecision> {
        let found = |ledger: &Arc<Ledger>| lock(&ledger.recent).find(request_id).map(Remembered::to_proto);
        self.ledgers.iter().filter_map(found).max_by_key(|decision| decision.at_unix_ms)
    }

    /// The latest decisions that are `wanted`, newest first, so many at most; and whether there are more. Workers are kept
    /// waiting for no longer than it takes to look at [`AT_ONCE`] of them.
    pub fn latest(&self, wanted: &Wanted, most: usize) -> (Vec<RecentDecision>, bool) {
        let mut found = Vec::new();
        for ledger in &self.ledgers {
            let (mut next, mut of_worker) = (None, Vec::new());
            // One more, to know that there is one.
            while of_worker.len() <= most {
                next = lock(&ledger.recent).look(wanted, next, AT_ONCE, &mut of_worker);
                if next.is_none() {
                    break;
                }
            }
            found.append(&mut of_worker);
        }
        found.sort_by_key(|decision| std::cmp::Reverse(decision.at_unix_ms));
        let more = found.len() > most;
        found.truncate(most);
        (found, more)
    }

    /// How many decisions are remembered.
    pub fn remembered(&self) -> usize {
        self.ledgers.iter().map(|ledger| lock(&ledger.recent).len()).sum()
    }
}

fn spare() -> (Flows, Ends) {
    (Flows::new(FLOWS_OF_A_WORKER), Ends::new(ENDS_OF_A_WORKER))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn no_call_is_lost_or_told_twice_however_often_flows_are_taken_while_others_count() {
        let (ledgers, calls) = (Ledgers::new(2), 50_000);
        let mut told = 0;
        thread::scope(|scope| {
            let count = |worker: usize| {
                let ledger = ledgers.of(worker);
                for number in 0..calls {
                    let path = format!("/m/{}", number % 3_000);
                    ledger.count(Flow { caller: "wiki", service: "media", path: &path, how: Decision::Allowed });
                }
            };
            let counting = [scope.spawn(move || count(0)), scope.spawn(move || count(1))];
            while counting.iter().any(|worker| !worker.is_finished()) {
                let lost = ledgers.take_flows(|_, calls| told += calls);
                assert_eq!(lost, 0);
            }
        });
        // The one table and the other.
        for _ in 0..2 {
            let lost = ledgers.take_flows(|_, calls| told += calls);
            assert_eq!(lost, 0);
        }
        assert_eq!(told, 2 * calls);
    }
}
