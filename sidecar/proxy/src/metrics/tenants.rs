//! Calls of the tenants that call most, where the operator wants them: no label tells of more than `--tenant-metrics` says.

use std::{
    cmp::Ordering,
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mesh_telemetry::Page;

use super::Outcome;
use crate::decisions::{Ended, Ledgers, Tenants};

/// After so long a call counts half for who is among the first.
const HALF_LIFE: Duration = Duration::from_secs(300);
/// Tenants of which is remembered how much they called lately, for each that is shown.
const CANDIDATES: usize = 64;
/// Of all tenants that are not shown. No tenant's id has such a letter.
const OTHERS: &str = "_other";

/// The tenants that called most lately.
#[derive(Debug, Default)]
pub struct TopTenants(Mutex<Top>);

#[derive(Debug, Default)]
struct Top {
    /// Calls lately, of some more than are shown.
    lately: HashMap<Box<str>, f64>,
    /// When that was looked at.
    at: Option<Instant>,
    /// Calls since each has been shown.
    shown: HashMap<Box<str>, Ended>,
    others: Ended,
}

/// What a scrape shows.
#[derive(Clone, Debug, Default)]
pub struct Shown(Vec<(String, Ended)>);

impl TopTenants {
    /// Takes what the workers have counted since the last time, and comes back with the `most` first of all.
    pub fn take(&self, ledgers: &Ledgers, most: usize) -> Shown {
        if most == 0 {
            return Shown::default();
        }
        let mut top = self.lock();
        top.fade(Instant::now());
        let mut new: HashMap<Box<str>, Ended> = HashMap::new();
        for Tenants { calls, others } in ledgers.take_tenants() {
            add(&mut top.others, &others);
            calls.into_iter().for_each(|(tenant, ended)| add(new.entry(tenant).or_default(), &ended));
        }
        top.count(new, most);
        Shown(top.rows())
    }

    fn lock(&self) -> MutexGuard<'_, Top> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Top {
    fn fade(&mut self, now: Instant) {
        let since = self.at.replace(now).map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let left = (-since.div_duration_f64(HALF_LIFE)).exp2();
        self.lately.values_mut().for_each(|calls| *calls *= left);
    }

    fn count(&mut self, new: HashMap<Box<str>, Ended>, most: usize) {
        for (tenant, ended) in &new {
            #[expect(clippy::cast_precision_loss, reason = "compared with others of its kind")]
            let calls = ended.iter().sum::<u64>() as f64;
            *self.lately.entry(tenant.clone()).or_default() += calls;
        }
        let mut ranked: Vec<(Box<str>, f64)> = self.lately.drain().collect();
        // Of equals those are shown that were shown.
        let stays = |tenant: &str| self.shown.contains_key(tenant);
        ranked.sort_by(|(a, calls), (b, others)| match others.total_cmp(calls) {
            Ordering::Equal => stays(b).cmp(&stays(a)).then_with(|| a.cmp(b)),
            unequal @ (Ordering::Less | Ordering::Greater) => unequal,
        });
        ranked.truncate(most.saturating_mul(CANDIDATES));
        let first = &ranked[..ranked.len().min(most)];
        self.shown.retain(|tenant, _| first.iter().any(|(of, _)| of == tenant));
        for (tenant, ended) in new {
            add(self.shown.get_mut(&tenant).unwrap_or(&mut self.others), &ended);
        }
        // From 0 on: of a series that begins with more, `rate()` does not see that.
        for (tenant, _) in first {
            self.shown.entry(tenant.clone()).or_default();
        }
        self.lately = ranked.into_iter().collect();
    }

    fn rows(&self) -> Vec<(String, Ended)> {
        let shown = self.shown.iter().map(|(tenant, ended)| (tenant.to_string(), *ended));
        shown.chain([(OTHERS.to_owned(), self.others)]).collect()
    }
}

fn add(ended: &mut Ended, more: &Ended) {
    ended.iter_mut().zip(more).for_each(|(count, more)| *count += more);
}

impl Shown {
    pub(super) fn show(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let mut samples = Vec::new();
        for (tenant, ended) in &self.0 {
            for (outcome, calls) in Outcome::ALL.into_iter().zip(ended) {
                samples.push(([("tenant", tenant.as_str()), ("outcome", outcome.as_str())], *calls));
            }
        }
        page.counter("tenon_tenant_calls", "Calls that ended, of the tenants that are called for most", samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(of: &[(&str, u64)]) -> HashMap<Box<str>, Ended> {
        of.iter().map(|(tenant, calls)| ((*tenant).into(), [*calls, 0, 0, 0])).collect()
    }

    fn shown(top: &Top) -> Vec<(String, u64)> {
        let mut rows: Vec<_> = top.rows().into_iter().map(|(tenant, ended)| (tenant, ended.iter().sum())).collect();
        rows.sort();
        rows
    }

    fn rows(of: &[(&str, u64)]) -> Vec<(String, u64)> {
        of.iter().map(|(tenant, calls)| ((*tenant).to_owned(), *calls)).collect()
    }

    #[test]
    fn those_are_shown_who_call_most_and_no_call_is_counted_twice_or_lost() {
        let mut top = Top::default();
        top.count(calls(&[("acme", 10), ("globex", 5), ("initech", 1)]), 2);
        assert_eq!(shown(&top), rows(&[("_other", 16), ("acme", 0), ("globex", 0)]));
        top.count(calls(&[("initech", 2), ("acme", 3)]), 2);
        assert_eq!(shown(&top), rows(&[("_other", 18), ("acme", 3), ("globex", 0)]), "it is the third still");
        top.count(calls(&[("initech", 100), ("acme", 1)]), 2);
        assert_eq!(shown(&top), rows(&[("_other", 118), ("acme", 4), ("initech", 0)]));
        top.count(calls(&[("initech", 1), ("globex", 1)]), 2);
        assert_eq!(shown(&top), rows(&[("_other", 119), ("acme", 4), ("initech", 1)]));
    }

    #[test]
    fn who_called_much_long_ago_makes_room() {
        let (mut top, start) = (Top::default(), Instant::now());
        top.fade(start);
        top.count(calls(&[("acme", 1_000)]), 1);
        top.fade(start + 4 * HALF_LIFE);
        top.count(calls(&[("globex", 50)]), 1);
        assert_eq!(shown(&top), rows(&[("_other", 1_050), ("acme", 0)]), "1,000 are 62 by now");
        top.fade(start + 5 * HALF_LIFE);
        top.count(calls(&[("globex", 50)]), 1);
        assert_eq!(shown(&top), rows(&[("_other", 1_100), ("globex", 0)]));
    }

    #[test]
    fn a_million_tenants_take_no_more_room_than_some() {
        let mut top = Top::default();
        for round in 0..20 {
            let names: Vec<_> = (0..1_000).map(|number| format!("tenant-{round}-{number}")).collect();
            top.count(names.iter().map(|name| (name.as_str().into(), [1; 4])).collect(), 3);
        }
        assert_eq!(top.lately.len(), 3 * CANDIDATES);
        assert_eq!(shown(&top).iter().map(|(_, calls)| calls).sum::<u64>(), 20 * 1_000 * 4);
        assert_eq!(shown(&top).len(), 4);
    }
}
