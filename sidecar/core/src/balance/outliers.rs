//! Which endpoints answer fewer calls well than the others do.

use std::net::SocketAddr;

use super::{
    Endpoint, Endpoints,
    group::Cause,
    standing::{ONE, Turn},
};

/// Calls of the last ten seconds or so that make a rate: as Envoy has it.
const VOLUME: u32 = 100 * ONE;
/// Fewer failures than this are chance.
const FAILURES: u32 = 5 * ONE;
/// A standard deviation is taken for no less than this: where nobody else fails at all there is none.
const LEAST_STDEV: f64 = 0.005;

/// An endpoint with enough calls to have a rate.
#[derive(Clone, Copy)]
struct Rated<'e> {
    endpoint: &'e Endpoint,
    volume: f64,
    bad: u32,
    rate: f64,
}

impl Endpoints {
    /// To be called once a second: ejects the one whose success rate lies too far below the others', and tells what became of each
    /// endpoint since the last time.
    ///
    /// The counts fade by a tenth each time, so they are of about the last ten seconds. Each endpoint is compared with the
    /// others and not with all: among three, one that fails can lie no further than 1.4 standard deviations below the
    /// mean of all three.
    pub fn sweep(&self, now: u64) -> Vec<(SocketAddr, Turn)> {
        if let Some(stdevs) = self.group.stdevs() {
            self.eject_outliers(stdevs, now);
        }
        let all = self.all.iter();
        all.filter_map(|endpoint| {
            endpoint.load.standing.fade();
            endpoint.load.look_at_probation(now);
            endpoint.load.standing.turn(now).map(|turn| (endpoint.address, turn))
        })
        .collect()
    }

    fn eject_outliers(&self, stdevs: f64, now: u64) {
        let mut rated: Vec<Rated<'_>> = self.all.iter().filter_map(rate).collect();
        rated.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        // One at a time: without it the others may all look well.
        if let Some((worst, others)) = rated.split_first()
            && !others.is_empty()
            && is_outlier(worst, others, stdevs)
        {
            worst.endpoint.load.eject(Cause::SuccessRate, now);
        }
    }
}

fn rate(endpoint: &Endpoint) -> Option<Rated<'_>> {
    let (ok, bad) = endpoint.load.standing.counts();
    let volume = ok.saturating_add(bad);
    let rated =
        || Rated { endpoint, volume: f64::from(volume) / f64::from(ONE), bad, rate: f64::from(ok) / f64::from(volume) };
    (volume >= VOLUME && !endpoint.load.standing.is_out()).then(rated)
}

/// Whether its rate is further below the mean of the others than so many standard deviations: theirs, or twice that which
/// chance alone gives a rate of so many calls.
fn is_outlier(one: &Rated<'_>, others: &[Rated<'_>], stdevs: f64) -> bool {
    let count = others.len() as f64;
    let mean = others.iter().map(|other| other.rate).sum::<f64>() / count;
    let variance = others.iter().map(|other| (other.rate - mean).powi(2)).sum::<f64>() / count;
    let chance = 2.0 * (mean * (1.0 - mean) / one.volume).sqrt();
    let stdev = variance.sqrt().max(chance).max(LEAST_STDEV);
    one.bad >= FAILURES && one.rate < mean - stdevs * stdev
}
