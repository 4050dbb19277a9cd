//! What is called now, from what sidecars report every two seconds. Bounded, kept in memory alone, and of the sidecars that
//! report to this process.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use mesh_identity::clock;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{fleet::Report, flows::FlowKey};

/// Over how long calls are counted, in seconds.
pub(super) const WINDOW: u64 = 60;
/// Seconds of one slot.
const SLOT: u64 = 5;
/// Flows that a slot tells apart, and such without path beside them.
const FLOWS: usize = 10_000;
const WITHOUT_PATH: usize = 2_000;

#[derive(Default)]
pub(super) struct Rates(Mutex<VecDeque<Slot>>);

struct Slot {
    /// [`SLOT`]s since 1970.
    number: u64,
    counts: HashMap<FlowKey, u64>,
}

impl Rates {
    /// Counts what is reported, for as long as anything is.
    pub async fn count(&self, mut reports: Receiver<Report>) {
        loop {
            match reports.recv().await {
                Ok(report) => self.add(&report, clock::unix_seconds()),
                // What was missed shows as less than there was, for a minute.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn add(&self, report: &Report, now: u64) {
        let number = now / SLOT;
        let mut slots = self.slots();
        while slots.front().is_some_and(|slot| slot.number + WINDOW / SLOT < number) {
            slots.pop_front();
        }
        if slots.back().is_none_or(|slot| slot.number != number) {
            slots.push_back(Slot { number, counts: HashMap::new() });
        }
        let Some(slot) = slots.back_mut() else { return };
        for flow in report.flows.iter() {
            let key = FlowKey::of(flow);
            let room = |key: &FlowKey, most| slot.counts.contains_key(key) || slot.counts.len() < most;
            let key = if room(&key, FLOWS) { key } else { key.of_any_path() };
            if room(&key, FLOWS + WITHOUT_PATH) {
                let count = slot.counts.entry(key).or_default();
                *count = count.saturating_add(flow.count);
            }
        }
    }

    /// What was called within the last [`WINDOW`].
    pub fn recent(&self, now: u64) -> HashMap<FlowKey, u64> {
        let mut recent = HashMap::new();
        for slot in self.slots().iter().filter(|slot| slot.number * SLOT + WINDOW > now) {
            for (key, count) in &slot.counts {
                *recent.entry(key.clone()).or_default() += count;
            }
        }
        recent
    }

    fn slots(&self) -> MutexGuard<'_, VecDeque<Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tenon_proto::policy::v1::{Flow, flow::Decision};

    use super::*;

    fn report(path: &str, count: u64) -> Report {
        let flow = Flow {
            caller: "wiki".into(),
            service: "media".into(),
            path: path.into(),
            decision: Decision::Allowed.into(),
            reason: String::new(),
            count,
        };
        Report { instance: "m1".into(), service: "media".into(), flows: [flow].into() }
    }

    #[test]
    fn what_was_called_within_a_minute_is_counted_and_then_forgotten() {
        let rates = Rates::default();
        rates.add(&report("/m/Get", 2), 1_000);
        rates.add(&report("/m/Get", 3), 1_030);
        rates.add(&report("/m/Put", 1), 1_031);
        let total = |now| rates.recent(now).values().sum::<u64>();
        assert_eq!((total(1_031), rates.recent(1_031).len()), (6, 2));
        assert_eq!((total(1_060), total(1_091)), (4, 0));
        rates.add(&report("/m/Get", 1), 2_000);
        assert_eq!(rates.slots().len(), 1);
    }

    #[test]
    fn paths_that_somebody_makes_up_take_bounded_room() {
        let rates = Rates::default();
        for number in 0..FLOWS + 100 {
            rates.add(&report(&format!("/m/{number}"), 1), 1_000);
        }
        let recent = rates.recent(1_000);
        assert_eq!((recent.len(), recent.values().sum::<u64>()), (FLOWS + 1, FLOWS as u64 + 100));
    }
}
