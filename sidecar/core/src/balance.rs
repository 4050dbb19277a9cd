//! Which instance a call goes to: own zone, then own region, then others; among them the better of two random ones by
//! peak-EWMA latency (DESIGN §3, outbound 5). Never reads the clock: `now` is monotonic nanoseconds from any origin.

mod load;

use std::{
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mesh_config::names::{RegionName, ZoneName};

pub use self::load::{Load, Slot};

/// How many instances one call tries at most.
pub const MAX_ATTEMPTS: usize = 8;

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
enum Tier {
    Zone,
    Region,
    Other,
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
        Endpoints { all: all.into(), tiers, seed: AtomicU64::new(seed) }
    }

    /// All of them, nearest first.
    pub fn all(&self) -> &[Endpoint] {
        &self.all
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
        Candidates { endpoints: &self.all, tiers, seed, tried: [0; MAX_ATTEMPTS], attempts: 0 }
    }
}

/// The endpoints that one call may go to; each is handed out once, best first.
#[derive(Clone, Debug)]
pub struct Candidates<'s> {
    endpoints: &'s [Endpoint],
    tiers: [Range<usize>; 3],
    seed: u64,
    tried: [usize; MAX_ATTEMPTS],
    attempts: usize,
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
    ///
    /// Takes the nearest tier that has an endpoint which is not backing off after failed connects. When all are backing
    /// off, the nearest is tried anyway: a wrong guess costs one failed connect, refusing might cost the call.
    pub fn next(&mut self, now: u64) -> Option<&'s Endpoint> {
        if self.attempts == MAX_ATTEMPTS {
            return None;
        }
        let tiers = self.tiers.clone();
        let healthy = tiers.iter().find_map(|tier| self.pick(tier.clone(), now));
        let index = healthy
            .or_else(|| tiers.into_iter().find_map(|tier| tier.into_iter().find(|index| !self.was_tried(*index))))?;
        self.tried[self.attempts] = index;
        self.attempts += 1;
        self.endpoints.get(index)
    }

    /// The cheaper of two random endpoints of a tier that can be used, or failing those the cheapest of all that can.
    fn pick(&mut self, tier: Range<usize>, now: u64) -> Option<usize> {
        let usable = |index: &usize| !self.was_tried(*index) && self.endpoints[*index].load.is_available(now);
        let cost = |index: &usize| self.endpoints[*index].load.cost(now);
        if tier.len() < 3 {
            return tier.filter(usable).min_by(|a, b| cost(a).total_cmp(&cost(b)));
        }
        let random = mix(self.seed.wrapping_add(self.attempts as u64));
        let first = tier.start + below(random as u32, tier.len());
        // One of the others: never the first one again.
        let step = 1 + below((random >> 32) as u32, tier.len() - 1);
        let second = tier.start + (first - tier.start + step) % tier.len();
        let two = [first, second].into_iter().filter(usable).min_by(|a, b| cost(a).total_cmp(&cost(b)));
        two.or_else(|| tier.filter(usable).min_by(|a, b| cost(a).total_cmp(&cost(b))))
    }

    fn was_tried(&self, index: usize) -> bool {
        self.tried[..self.attempts].contains(&index)
    }
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
