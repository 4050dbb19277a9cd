//! What this sidecar takes on for its app: the rate of a rule per tenant, calls at the app at once, and its own memory.
//! The deciding is `sidecar-core`'s (`limits`); here are the clock, the parties by name, and the seats of calls.

mod asked;
mod memory;
mod seats;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use ahash::RandomState;
use sidecar_core::{
    Reason, Refusal,
    inbound::{self, Stop, Verdict},
    limits::{
        concurrency::{Concurrency, Figures, Party},
        gradient::Gradient,
        rate::{Bearer, Rates, Use},
    },
    policy::{Rate, Rule},
    route,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::{live::Live, tenants::TenantRef};

pub use self::{
    memory::{Memory, default_budget},
    seats::{Admission, Seats},
};

/// Between two looks at the limit and at memory.
const LOOK: Duration = Duration::from_millis(100);
/// Looks after which a party that made no call is forgotten: five minutes.
const FORGOTTEN: u64 = 3_000;
/// Between two times that they are forgotten, in looks.
const SWEEP: u64 = 100;
/// Parties that are told apart; those that come above that share [`CROWD`] places until others are forgotten.
const PARTIES: usize = 16_384;
const CROWD: usize = 64;

/// The limits of one sidecar, shared by its workers.
pub struct Limits {
    /// What times are counted from.
    origin: Instant,
    /// What tenants have used of the rates of rules.
    rates: Rates,
    /// Calls at the app.
    app: Concurrency,
    /// What the own Route says.
    bounds: Mutex<route::Limits>,
    tenants: Parties,
    /// Those whose calls name no tenant.
    callers: Parties,
    /// Unknown to tenants and callers.
    hashes: RandomState,
    /// Of the sidecar as a whole.
    pub memory: Memory,
    refused: [AtomicU64; Why::ALL.len()],
}

/// Which limit refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The rate of a rule.
    Rate,
    /// Calls at the app at once.
    Concurrency,
    /// Memory of the sidecar.
    Memory,
}

impl Why {
    /// In the order of their counters.
    pub const ALL: [Self; 3] = [Self::Rate, Self::Concurrency, Self::Memory];

    /// A label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Concurrency => "concurrency",
            Self::Memory => "memory",
        }
    }
}

/// What a scrape shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct LimitGauges {
    /// Of the app.
    pub app: Figures,
    /// Refusals, in the order of [`Why::ALL`].
    pub refused: [u64; Why::ALL.len()],
    /// Bytes in use, and the budget.
    pub memory: (u64, u64),
    /// Calls that were ended for lack of memory.
    pub shed: u64,
}

impl Limits {
    /// With nothing used; `memory_limit` in bytes.
    #[must_use]
    pub fn new(memory_limit: u64) -> Self {
        let bounds = route::Route::default().limits;
        Self {
            origin: Instant::now(),
            rates: Rates::default(),
            app: Concurrency::new(&Gradient::new(bounds)),
            bounds: Mutex::new(bounds),
            tenants: Parties::new(),
            callers: Parties::new(),
            hashes: RandomState::new(),
            memory: Memory::new(memory_limit),
            refused: Default::default(),
        }
    }

    /// What the own Route says by now.
    pub fn set_bounds(&self, bounds: route::Limits) {
        *self.bounds() = bounds;
    }

    /// The rate of the rule that decided, in the snapshot that it decided in. In audit mode a call passes beyond it.
    ///
    /// # Errors
    /// `TENANT_RATE_LIMITED`, with the time after which the next call passes.
    pub fn rate(
        &self,
        state: &inbound::State,
        caller: &str,
        mut verdict: Verdict<TenantRef>,
    ) -> Result<Verdict<TenantRef>, Stop> {
        let rule = verdict.rule.and_then(|index| state.policy.as_ref()?.rule(index));
        let Some((rule, rate)) = rule.and_then(|rule| Some((rule, rule.rate()?))) else { return Ok(verdict) };
        let party = verdict.tenant.as_deref().map_or(Bearer::Caller(caller), |tenant| Bearer::Tenant(tenant.id()));
        let by = Use { allowlist: rule.allowlist(), rule: rule.name(), party };
        let Err(delay) = self.rates.take(rate, &by, self.now_ns()) else { return Ok(verdict) };
        let refusal = used_up(rule, rate, party, delay).by_rule(verdict.rule);
        if rule.audit {
            verdict.audited.get_or_insert(refusal);
            return Ok(verdict);
        }
        self.count(Why::Rate);
        Err(Stop::Refused(refusal))
    }

    /// A seat at the app from `now` on for a call of `path`, for `tenant` or else for whoever calls.
    ///
    /// # Errors
    /// `OVERLOADED`: there is no room for one more call of this tenant, or of anybody.
    pub fn admit(
        &self,
        seats: &Arc<Seats>,
        tenant: Option<&str>,
        caller: &str,
        path: &str,
        now: Instant,
    ) -> Result<Admission, Refusal> {
        self.spare_memory()?;
        let party = seats.party(tenant.map_or(Bearer::Caller(caller), Bearer::Tenant));
        if self.app.admit(&party).is_err() {
            self.count(Why::Concurrency);
            return Err(Refusal::new(Reason::Overloaded, "this instance has no room for more calls of this tenant"));
        }
        Ok(Admission::new(seats, party, self.class(path), now))
    }

    /// Who that is, and whether it is told apart from all others.
    fn party(&self, who: Bearer<'_>) -> (Arc<Party>, bool) {
        match who {
            Bearer::Tenant(tenant) => self.tenants.get(tenant, &self.hashes),
            Bearer::Caller(caller) => self.callers.get(caller, &self.hashes),
        }
    }

    /// # Errors
    /// `OVERLOADED`: the sidecar takes more memory than it may.
    pub fn spare_memory(&self) -> Result<(), Refusal> {
        if self.memory.is_short() {
            self.count(Why::Memory);
            return Err(Memory::refusal());
        }
        Ok(())
    }

    /// For a scrape.
    #[must_use]
    pub fn gauges(&self) -> LimitGauges {
        let refused = Why::ALL.map(|why| self.refused[why as usize].load(Relaxed));
        LimitGauges { app: self.app.figures(), refused, memory: self.memory.figures(), shed: self.memory.ended() }
    }

    fn count(&self, why: Why) {
        self.refused[why as usize].fetch_add(1, Relaxed);
    }

    #[expect(clippy::cast_possible_truncation, reason = "one of a few classes")]
    fn class(&self, path: &str) -> usize {
        self.hashes.hash_one(path) as usize
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn bounds(&self) -> MutexGuard<'_, route::Limits> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the limit and the shares by what happened since `last`.
    fn look(&self, gradient: &mut Gradient, last: &mut Instant) {
        let now = Instant::now();
        let times = (now.duration_since(self.origin), now.duration_since(std::mem::replace(last, now)));
        let bounds = *self.bounds();
        let (tenants, callers) = (self.tenants.known.pin(), self.callers.known.pin());
        let crowd = self.tenants.crowd.iter().chain(&self.callers.crowd).filter(|party| party.seen() > 0);
        let parties = tenants.values().chain(callers.values()).chain(crowd).map(|party| &**party);
        self.app.look(gradient, parties, bounds, times);
    }
}

/// The refusal of a rate that is used up, for so long.
fn used_up(rule: &Rule, rate: Rate, party: Bearer<'_>, delay: Duration) -> Refusal {
    let who = match party {
        Bearer::Tenant(tenant) => format!("tenant {tenant}"),
        Bearer::Caller(caller) => format!("service {caller} without tenant"),
    };
    let (count, seconds) = (rate.count, rate.per.as_secs());
    let message = format!("{who} has used up the rate of rule {}: {count} calls in {seconds} s", rule.name());
    Refusal::new(Reason::TenantRateLimited, message).until(delay)
}

/// Those who share the app, by name.
struct Parties {
    known: papaya::HashMap<Box<str>, Arc<Party>, RandomState>,
    crowd: Box<[Arc<Party>]>,
}

impl Parties {
    fn new() -> Self {
        Self {
            known: papaya::HashMap::with_hasher(RandomState::new()),
            crowd: (0..CROWD).map(|_| Arc::default()).collect(),
        }
    }

    /// Only the first call of a party allocates. Says also whether it shares its place with nobody.
    #[expect(clippy::cast_possible_truncation, reason = "one of a few places")]
    fn get(&self, name: &str, hashes: &RandomState) -> (Arc<Party>, bool) {
        let known = self.known.pin();
        if let Some(party) = known.get(name) {
            return (Arc::clone(party), true);
        }
        if known.len() >= PARTIES {
            return (Arc::clone(&self.crowd[hashes.hash_one(name) as usize % CROWD]), false);
        }
        (Arc::clone(known.get_or_insert_with(name.into(), Arc::default)), true)
    }

    /// Those who have not come for a long time. Should one come this very moment, it is known twice until that call ends.
    /// Seats remember only who came lately.
    fn forget(&self, turn: u64) {
        self.known.pin().retain(|_, party| party.is_busy() || party.seen() + FORGOTTEN > turn);
    }
}

/// Keeps limit, shares and the state of memory current until `shutdown`, off the path of calls.
pub async fn keep(live: Arc<Live>, shutdown: CancellationToken) {
    let limits = &live.limits;
    let mut gradient = Gradient::new(*limits.bounds());
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    for turn in 1_u64.. {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        limits.look(&mut gradient, &mut last);
        limits.memory.look();
        if turn % SWEEP == 0 {
            limits.tenants.forget(turn);
            limits.callers.forget(turn);
        }
    }
}

#[cfg(test)]
mod tests;
