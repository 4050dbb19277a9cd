//! The record, added up over hours and writers.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt as _;
use journal::{Journal, Part, ReadError};
use tenon_proto::policy::v1::{FlowTotal, FlowsRequest, FlowsResponse};

use super::{
    HOUR,
    counts::FlowKey,
    prune::kept_since,
    stored::{self, HourKey},
};

/// Flows that one answer tells apart; further ones are told without path, and then without names.
const FLOWS: usize = 200_000;
const WITHOUT_PATH: usize = 20_000;
/// Bytes of their texts: an answer stays below the 64 MiB that operators take.
const TEXT: usize = 40 << 20;

/// How often, and the hours of the first and the last call.
struct Total {
    count: u64,
    first: u64,
    last: u64,
}

#[derive(Default)]
struct Sum {
    totals: BTreeMap<FlowKey, Total>,
    /// Hours of which there is anything, of any service.
    hours: BTreeSet<u64>,
    until: u64,
    text: usize,
}

/// Reads the store a few records at a time; memory is bounded by [`FLOWS`]. Hours that are about to be let go of do not
/// count.
pub(crate) async fn sum(journal: &dyn Journal, request: FlowsRequest, now: u64) -> Result<FlowsResponse, ReadError> {
    let FlowsRequest { since_unix_seconds, service } = request;
    let since = u64::try_from(since_unix_seconds).unwrap_or_default().max(kept_since(now)) / HOUR;
    let mut sum = Sum::default();
    let mut parts = journal.history().await?.parts;
    'read: while let Some(read) = parts.next().await {
        for part in read? {
            let Part::Record(record) = part else { break 'read };
            let Some(key) = HourKey::parse(&record.key).filter(|key| key.hour >= since) else { continue };
            sum.add_hour(&key, &service, &record.value);
        }
    }
    Ok(sum.finish())
}

impl Sum {
    fn add_hour(&mut self, key: &HourKey, service: &str, value: &[u8]) {
        let (counts, at) = stored::decode(value);
        self.hours.insert(key.hour);
        self.until = self.until.max(at);
        for (flow, count) in counts.iter() {
            if service.is_empty() || *flow.service == *service {
                self.add(flow.clone(), &key.service, count, key.hour);
            }
        }
    }

    fn add(&mut self, flow: FlowKey, reporter: &str, count: u64, hour: u64) {
        let fits = |flow: &FlowKey, most| self.totals.len() < most && self.text + flow.text() <= TEXT;
        let room = |flow: &FlowKey, most| self.totals.contains_key(flow) || fits(flow, most);
        let flow = if room(&flow, FLOWS) { flow } else { flow.of_any_path() };
        let flow = if room(&flow, FLOWS + WITHOUT_PATH) { flow } else { flow.of_anybody(reporter) };
        let text = flow.text();
        let total = self.totals.entry(flow).or_insert_with(|| {
            self.text += text;
            Total { count: 0, first: hour, last: hour }
        });
        total.count = total.count.saturating_add(count);
        total.first = total.first.min(hour);
        total.last = total.last.max(hour);
    }

    fn finish(self) -> FlowsResponse {
        let seconds = |hour: u64| i64::try_from(hour * HOUR).unwrap_or(i64::MAX);
        let flows = self.totals.into_iter().map(|(flow, Total { count, first, last })| FlowTotal {
            flow: Some(flow.into_flow(count)),
            first_unix_seconds: seconds(first),
            last_unix_seconds: seconds(last),
        });
        let (first, last) = (self.hours.first().copied(), self.hours.last().copied());
        let between = first.zip(last).map_or(0, |(first, last)| last - first + 1);
        FlowsResponse {
            flows: flows.collect(),
            from_unix_seconds: first.map_or(0, seconds),
            until_unix_seconds: i64::try_from(self.until).unwrap_or(i64::MAX),
            silent_hours: u32::try_from(between - self.hours.len() as u64).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tenon_proto::policy::v1::flow::Decision;

    use super::*;

    #[test]
    fn an_answer_is_not_larger_than_operators_take_and_has_every_call() {
        let mut sum = Sum::default();
        let long = "x".repeat(500);
        for number in 0..150_000 {
            let flow = FlowKey {
                service: format!("s{}", number % 10).into(),
                caller: format!("c{}", number % 100).into(),
                path: format!("/{number}/{long}").into(),
                decision: Decision::Allowed,
                reason: "".into(),
            };
            sum.add(flow, "s1", 2, 1000 + number % 3);
        }
        sum.hours.extend([1000, 1001, 1005]);
        let answer = sum.finish();
        assert!(answer.encoded_len() < 60 << 20, "{}", answer.encoded_len());
        let count = |total: &FlowTotal| total.flow.as_ref().map_or(0, |flow| flow.count);
        assert_eq!(answer.flows.iter().map(count).sum::<u64>(), 300_000);
        assert!(answer.flows.len() > 70_000 && answer.silent_hours == 3, "{}", answer.flows.len());
    }
}
