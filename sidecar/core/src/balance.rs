//! Which instance a call goes to: own zone, then own region, then others; among them the better of two random ones by
//! peak-EWMA latency (DESIGN §3, outbound 5). Instances that fail are left out for a while, never more than half of them,
//! and one call decides whether they come back. Never reads the clock: `now` is monotonic nanoseconds from any origin.

mod group;
mod load;
mod outliers;
mod standing;

use std::{
    cell::Cell,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ahash::{AHashMap, AHashSet};
use mesh_config::names::{RegionName, ZoneName};

use crate::route::Route;

pub use self::{
    group::{Cause, Group},
    load::{Ended, Load, Shown, Slot, is_own_fault, shown_by_refusal},
    standing::{State, Turn},
};

/// How many instances one call tries at most.
pub const MAX_ATTEMPTS: usize = 8;
/// A tier takes its calls up to so many times what its healthy share of them is: it spills over when less than 71 % of it
/// are healthy (Envoy's overprovisioning factor).
const OVERPROVISIONED: f64 = 1.4;

/// One instance of a destination.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its inbound listener.
    pub address: SocketAddr,
    /// Where it runs.
    pub region: RegionName,
    /// Where it runs within the region.
    pub zone: Option<ZoneName>,
    /// How it does; shared with the same endpoint of earlier and later states.
    pub load: Arc<Load>,
}

/// How far an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// In the own zone.
    Zone,
    /// In the own region.
    Region,
    /// Elsewhere.
    Other,
}

impl Tier {
    /// Nearest first.
    const ALL: [Self; 3] = [Self::Zone, Self::Region, Self::Other];

    /// In a word, for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zone => "zone",
            Self::Region => "region",
            Self::Other => "other",
        }
    }
}

/// The endpoints of a destination in the order of their nearness to one sidecar.
#[derive(Debug, Default)]
pub struct Endpoints {
    /// Sorted by tier, then region.
    all: Box<[Endpoint]>,
    /// The three tiers as ranges of `all`.
    tiers: [Range<usize>; 3],
    /// Where the next random numbers come from.
    seed: AtomicU64,
    /// What they share.
    group: Arc<Group>,
}

impl Endpoints {
    /// Sorts endpoints as a sidecar in this region and zone sees them. `seed` should differ between sidecars, or they
    /// choose alike.
    pub fn new(endpoints: Vec<Endpoint>, region: Option<&RegionName>, zone: Option<&ZoneName>, seed: u64) -> Self {
        let tier = |endpoint: &Endpoint| match region {
            Some(region) if *region == endpoint.region && zone.is_some() && zone == endpoint.zone.as_ref() => {
                Tier::Zone
            }
            Some(region) if *region == endpoint.region => Tier::Region,
            Some(_) | None => Tier::Other,
        };
        let mut all = endpoints;
        all.sort_by(|a, b| (tier(a), &a.region, a.address).cmp(&(tier(b), &b.region, b.address)));
        let zone_end = all.partition_point(|endpoint| tier(endpoint) < Tier::Region);
        let region_end = all.partition_point(|endpoint| tier(endpoint) < Tier::Other);
        let tiers = [0..zone_end, zone_end..region_end, region_end..all.len()];
        Endpoints { all: all.into(), tiers, seed: AtomicU64::new(seed), group: Arc::default() }
    }

    /// Takes over what `before` had learned, by address, and follows `route`. Where others are known already, an endpoint
    /// that was not among them begins with a slow start.
    #[must_use]
    pub fn succeed(mut self, before: Option<&Endpoints>, route: &Route) -> Self {
        let known = before.map(|before| &*before.all).unwrap_or_default();
        self.group = before.map_or_else(Arc::default, |before| Arc::clone(&before.group));
        let loads: AHashMap<SocketAddr, &Arc<Load>> = known.iter().map(|one| (one.address, &one.load)).collect();
        for endpoint in &mut self.all {
            let load = loads.get(&endpoint.address).map(|load| Arc::clone(load));
            endpoint.load = load.unwrap_or_else(|| Arc::new(Load::new(&self.group, !known.is_empty())));
        }
        let stay: AHashSet<SocketAddr> = self.all.iter().map(|endpoint| endpoint.address).collect();
        known.iter().filter(|one| !stay.contains(&one.address)).for_each(|gone| gone.load.leave());
        self.group.set(route, self.all.len());
        self.pardon();
        self
    }

    /// More are left out than may be, since there are fewer, or the `Route` says so: those come back that would be next.
    fn pardon(&self) {
        let mut out: Vec<&Arc<Load>> =
            self.all.iter().map(|endpoint| &endpoint.load).filter(|load| load.standing.is_out()).collect();
        out.sort_by_key(|load| load.standing.until());
        for load in out {
            if self.group.out() <= self.group.allowed() {
                return;
            }
            load.pardon();
        }
    }

    /// All of them, nearest first.
    pub fn all(&self) -> &[Endpoint] {
        &self.all
    }

    /// What they share.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// The candidates for one call: all endpoints, or those of one region. No allocation.
    pub fn candidates(&self, only: Option<&str>) -> Candidates<'_> {
        let mut tiers = self.tiers.clone();
        if let Some(region) = only {
            for tier in &mut tiers {
                // Within a tier the endpoints are sorted by region.
                let part = &self.all[tier.clone()];
                let begin = tier.start + part.partition_point(|endpoint| endpoint.region.as_str() < region);
                let end = tier.start + part.partition_point(|endpoint| endpoint.region.as_str() <= region);
                *tier = begin..end;
            }
        }
        let seed = self.seed.fetch_add(GOLDEN, Ordering::Relaxed);
        Candidates { endpoints: &self.all, group: &self.group, tiers, seed, tried: [0; MAX_ATTEMPTS], attempts: 0 }
    }
}

/// The endpoints that one call may go to; each is handed out once, best first.
#[derive(Clone, Debug)]
pub struct Candidates<'s> {
    endpoints: &'s [Endpoint],
    group: &'s Group,
    tiers: [Range<usize>; 3],
    seed: u64,
    tried: [usize; MAX_ATTEMPTS],
    attempts: usize,
}

/// Which endpoints of a tier a choice is among, strictest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Among {
    /// In use, but a new one now and then only: its slow start.
    Started,
    /// In use.
    InUse,
    /// Also those that are left out, while they can be connected to.
    Connectable,
}

impl<'s> Candidates<'s> {
    /// How many endpoints there are to choose from.
    pub fn len(&self) -> usize {
        self.tiers.iter().map(ExactSizeIterator::len).sum()
    }

    /// Whether there is no endpoint at all: `NO_ENDPOINT`.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The endpoint to try next at `now` (monotonic ns), or `None` when all, or [`MAX_ATTEMPTS`], were tried.
    /// [`Load::start`] has to follow at once.
    ///
    /// Takes the nearest tier that has a usable endpoint: one that is not ejected, not unhealthy, and not backing off after
    /// failed connects. While less than 71 % of a tier are healthy, a part of its calls goes to the next. When no
    /// endpoint is usable, one that is left out is tried anyway: a wrong guess costs one failed attempt, refusing might cost
    /// the call.
    pub fn next(&mut self, now: u64) -> Option<&'s Endpoint> {
        if self.attempts == MAX_ATTEMPTS {
            return None;
        }
        let index = self.choose(now)?;
        self.tried[self.attempts] = index;
        self.attempts += 1;
        self.endpoints.get(index)
    }

    /// All of them, nearest first. Claims nothing.
    pub fn in_order(&self) -> impl Iterator<Item = (Tier, &'s Endpoint)> {
        let (endpoints, tiers) = (self.endpoints, self.tiers.clone());
        Tier::ALL
            .into_iter()
            .zip(tiers)
            .flat_map(move |(tier, range)| endpoints[range].iter().map(move |one| (tier, one)))
    }

    /// Whether [`Candidates::next`] has another one. Claims nothing.
    pub fn has_next(&self) -> bool {
        let untried = |tier: &Range<usize>| tier.clone().any(|index| !self.was_tried(index));
        self.attempts < MAX_ATTEMPTS && self.tiers.iter().any(untried)
    }

    fn choose(&self, now: u64) -> Option<usize> {
        let tiers = &self.tiers;
        if self.group.is_calm(now) {
            if let Some(index) = tiers.iter().find_map(|tier| self.pick_started(tier, now)) {
                return Some(index);
            }
        } else {
            let first = self.share(now);
            // Only a first attempt: one that failed elsewhere has had its share of trouble.
            if self.attempts == 0
                && let Some(index) = self.probation(first, now)
            {
                return Some(index);
            }
            let spilled = self.pick_started(&tiers[first], now);
            if let Some(index) = spilled.or_else(|| tiers.iter().find_map(|tier| self.pick_started(tier, now))) {
                return Some(index);
            }
        }
        let left_out = tiers.iter().find_map(|tier| self.pick(tier, Among::Connectable, now));
        left_out.or_else(|| tiers.iter().find_map(|tier| tier.clone().find(|index| !self.was_tried(*index))))
    }

    /// The tier that this call falls to: each takes what its healthy endpoints can, the next the rest. Where all together
    /// cannot take everything, each takes its part of it.
    fn share(&self, now: u64) -> usize {
        let mut takes = [0.0; 3];
        let mut rest: f64 = 1.0;
        for (tier, takes) in self.tiers.iter().zip(&mut takes) {
            let healthy = tier.clone().filter(|index| self.endpoints[*index].load.is_usable(now)).count();
            if healthy > 0 {
                *takes = (OVERPROVISIONED * healthy as f64 / tier.len() as f64).min(rest);
                rest -= *takes;
            }
        }
        let mut point = unit(mix(self.seed ^ SPILL)) * (1.0 - rest);
        let found = takes.iter().position(|takes| {
            point -= takes;
            point < 0.0
        });
        found.unwrap_or(0)
    }

    /// An ejected endpoint whose time is over, for one call at a time: of the tier `first` if it has one, else of another,
    /// since a tier without a healthy endpoint gets no calls that could bring one back.
    fn probation(&self, first: usize, now: u64) -> Option<usize> {
        if !self.group.is_due(now) {
            return None;
        }
        let others = (0..self.tiers.len()).filter(|tier| *tier != first);
        let mut all = std::iter::once(first).chain(others).flat_map(|tier| self.tiers[tier].clone());
        let found = all.find(|index| self.endpoints[*index].load.standing.offer(now));
        for endpoint in self.endpoints {
            let standing = &endpoint.load.standing;
            if standing.is_ejected() {
                // What is due and not for this call is looked at again soon, and not with every call.
                let soon = now.saturating_add(LOOK_AGAIN_NS);
                self.group.due(Some(standing.until()).filter(|until| *until > now).unwrap_or(soon));
            }
        }
        found
    }

    fn pick_started(&self, tier: &Range<usize>, now: u64) -> Option<usize> {
        self.pick(tier, Among::Started, now).or_else(|| self.pick(tier, Among::InUse, now))
    }

    /// The cheaper of two random endpoints of a tier that can be used, or failing those the cheapest of all that can.
    fn pick(&self, tier: &Range<usize>, among: Among, now: u64) -> Option<usize> {
        // Each time round another call has claimed the endpoint that could not be connected to before.
        for _ in 0..=tier.len() {
            let index = self.cheaper(tier, among, now)?;
            if self.endpoints[index].load.claim(now) {
                return Some(index);
            }
        }
        None
    }

    fn cheaper(&self, tier: &Range<usize>, among: Among, now: u64) -> Option<usize> {
        // The cheapest that was passed over for its slow start.
        let spared: Cell<Option<usize>> = Cell::new(None);
        let cost = |index: &usize| self.endpoints[*index].load.cost(now);
        let cheapest = |a: &usize, b: &usize| cost(a).total_cmp(&cost(b));
        let usable = |index: &usize| {
            let fits = !self.was_tried(*index) && self.is_among(tier, *index, among, now);
            if !fits && among == Among::Started && self.is_among(tier, *index, Among::InUse, now) {
                spared.set([spared.get(), Some(*index)].into_iter().flatten().min_by(cheapest));
            }
            fits
        };
        let found = if tier.len() < 3 {
            tier.clone().filter(usable).min_by(cheapest)
        } else {
            let random = mix(self.seed.wrapping_add(self.attempts as u64));
            let first = tier.start + below(random as u32, tier.len());
            // One of the others: never the first one again.
            let step = 1 + below((random >> 32) as u32, tier.len() - 1);
            let second = tier.start + (first - tier.start + step) % tier.len();
            let two = [first, second].into_iter().filter(usable).min_by(cheapest);
            two.or_else(|| tier.clone().filter(usable).min_by(cheapest))
        };
        // Who does that much better needs not be spared.
        let better = spared.get().filter(|index| {
            !self.was_tried(*index) && self.endpoints[*index].load.is_measured() && {
                found.is_some_and(|found| cost(index) * NEEDS_NO_START < cost(&found))
            }
        });
        better.or(found)
    }

    fn is_among(&self, tier: &Range<usize>, index: usize, among: Among, now: u64) -> bool {
        let load = &self.endpoints[index].load;
        match among {
            Among::Started => {
                let weight = self.weight(index, now);
                // A number of its own for each endpoint and call.
                let chance = || unit(mix(self.seed ^ (index as u64 + 1).wrapping_mul(GOLDEN)));
                // Beside the furthest of its tier: where all have begun a moment ago nobody is to be spared.
                load.is_usable(now) && (weight == 1.0 || chance() * self.furthest(tier, now) < weight)
            }
            Among::InUse => load.is_usable(now),
            Among::Connectable => load.is_available(now),
        }
    }

    /// How far the endpoint is in its slow start.
    fn weight(&self, index: usize, now: u64) -> f64 {
        self.endpoints[index].load.standing.weight(self.group.slow_start(), now)
    }

    /// How far the furthest of those is that this call may go to.
    fn furthest(&self, tier: &Range<usize>, now: u64) -> f64 {
        let usable = |index: &usize| !self.was_tried(*index) && self.endpoints[*index].load.is_usable(now);
        tier.clone().filter(usable).map(|index| self.weight(index, now)).fold(0.0, f64::max)
    }

    fn was_tried(&self, index: usize) -> bool {
        self.tried[..self.attempts].contains(&index)
    }
}

/// An endpoint that is so many times cheaper than the alternative is chosen also in its slow start.
const NEEDS_NO_START: f64 = 4.0;

/// After this long it is looked again for ejected endpoints that are due.
const LOOK_AGAIN_NS: u64 = 10_000_000;

/// Keeps the number that decides on spill-over apart from the others of a call.
const SPILL: u64 = 0x5350_494c_4c00_0001;

/// From 0 to 1, without 1.
fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1u64 << 53) as f64
}

/// 2^64 divided by the golden ratio: the step of splitmix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of splitmix64 (Steele, Lea, Flood 2014).
fn mix(seed: u64) -> u64 {
    let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number below `bound` from 32 random bits, without division (Lemire 2019).
fn below(random: u32, bound: usize) -> usize {
    ((u64::from(random) * bound as u64) >> 32) as usize
}

#[cfg(test)]
mod tests;
