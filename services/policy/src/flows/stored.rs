//! What lies in the store of flows. Field numbers are never used again.
//!
//! | key | value |
//! | --- | --- |
//! | `hour/HOUR/SERVICE/WRITER` | [`StoredHour`]: what sidecars of SERVICE told WRITER within an hour |
//! | `batch/SERVICE/INSTANCE` | [`Mark`]: up to where the batches of a sidecar are counted |
//!
//! HOUR is the number of hours since 1970, ten digits. So all marks come before all hours, and the oldest hours first. WRITER
//! is one policy service.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use tenon_proto::policy::v1::{Flow, flow::Decision};

use super::counts::{Counts, FlowKey};

const HOUR: &str = "hour/";
const MARK: &str = "batch/";

/// Which hour of whose flows, counted by whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct HourKey {
    /// Since 1970.
    pub hour: u64,
    /// Whose sidecars reported.
    pub service: Arc<str>,
    pub writer: Arc<str>,
}

impl HourKey {
    pub fn parse(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(HOUR)?.split('/');
        let (hour, service, writer) = (parts.next()?.parse().ok()?, parts.next()?.into(), parts.next()?.into());
        parts.next().is_none().then_some(Self { hour, service, writer })
    }

    pub fn text(&self) -> String {
        format!("{HOUR}{:010}/{}/{}", self.hour, self.service, self.writer)
    }
}

/// Whose mark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct MarkKey {
    pub service: Arc<str>,
    /// May hold any character.
    pub instance: Arc<str>,
}

impl MarkKey {
    pub fn parse(key: &str) -> Option<Self> {
        let (service, instance) = key.strip_prefix(MARK)?.split_once('/')?;
        Some(Self { service: service.into(), instance: instance.into() })
    }

    pub fn text(&self) -> String {
        format!("{MARK}{}/{}", self.service, self.instance)
    }
}

/// Up to where the batches of a sidecar are counted. Written together with the counts.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Mark {
    #[prost(fixed64, tag = "1")]
    pub boot: u64,
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    #[prost(uint64, tag = "3")]
    pub at_unix_seconds: u64,
    /// Who counted.
    #[prost(string, tag = "4")]
    pub writer: String,
    /// What the last batches said was refused, as much as is told here: for rollouts that another writer runs.
    #[prost(message, repeated, tag = "5")]
    pub refused: Vec<Flow>,
}

impl Mark {
    /// Whether a batch is counted already.
    pub const fn covers(&self, boot: u64, sequence: u64) -> bool {
        self.boot == boot && sequence <= self.sequence
    }
}

/// Flows name each text by its number, from 1 on; 0 is the empty one.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredHour {
    #[prost(string, repeated, tag = "1")]
    texts: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    flows: Vec<StoredFlow>,
    /// When it was last written.
    #[prost(uint64, tag = "3")]
    at_unix_seconds: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredFlow {
    #[prost(uint32, tag = "1")]
    caller: u32,
    #[prost(uint32, tag = "2")]
    service: u32,
    #[prost(uint32, tag = "3")]
    path: u32,
    #[prost(enumeration = "Decision", tag = "4")]
    decision: i32,
    #[prost(uint32, tag = "5")]
    reason: u32,
    #[prost(uint64, tag = "6")]
    count: u64,
}

pub(super) fn encode(counts: &Counts, at_unix_seconds: u64) -> Bytes {
    let mut numbers: HashMap<&str, u32> = HashMap::from([("", 0)]);
    let mut stored = StoredHour { at_unix_seconds, ..StoredHour::default() };
    for (key, count) in counts.iter() {
        let [caller, service, path, reason] = [&key.caller, &key.service, &key.path, &key.reason].map(|text| {
            // Fewer than 2^32: see the bounds of `Counts`.
            let next = u32::try_from(numbers.len()).unwrap_or_default();
            *numbers.entry(text).or_insert_with(|| {
                stored.texts.push(text.as_ref().to_owned());
                next
            })
        });
        stored.flows.push(StoredFlow { caller, service, path, decision: key.decision.into(), reason, count });
    }
    stored.encode_to_vec().into()
}

/// The counts and when they were written; what another version wrote and this one cannot read is left out.
pub(super) fn decode(value: &[u8]) -> (Counts, u64) {
    let StoredHour { texts, flows, at_unix_seconds } = StoredHour::decode(value).unwrap_or_default();
    let texts: Vec<Arc<str>> = std::iter::once("".into()).chain(texts.into_iter().map(Arc::from)).collect();
    let text = |number: u32| texts.get(number as usize).cloned();
    let mut counts = Counts::default();
    for flow in flows {
        let key = || {
            Some(FlowKey {
                service: text(flow.service)?,
                caller: text(flow.caller)?,
                path: text(flow.path)?,
                decision: flow.decision(),
                reason: text(flow.reason)?,
            })
        };
        if let Some(key) = key() {
            counts.insert(key, flow.count);
        }
    }
    (counts, at_unix_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written_and_the_oldest_come_first() {
        let hour = HourKey { hour: 495_123, service: "media".into(), writer: "0123456789abcdef".into() };
        assert_eq!(hour.text(), "hour/0000495123/media/0123456789abcdef");
        assert_eq!(HourKey::parse(&hour.text()), Some(hour.clone()));
        assert!(HourKey { hour: 99, ..hour.clone() }.text() < hour.text());
        let mark = MarkKey { service: "media".into(), instance: "media/a b".into() };
        assert_eq!(MarkKey::parse(&mark.text()), Some(mark.clone()));
        assert_eq!((HourKey::parse(&mark.text()), MarkKey::parse(&hour.text())), (None, None));
        for other in ["", "hour/", "hour/x/media/w", "hour/1/media", "hour/1/media/w/more"] {
            assert_eq!(HourKey::parse(other), None, "{other}");
        }
    }

    #[test]
    fn counts_are_read_as_they_are_written_and_each_text_stands_there_once() {
        let mut counts = Counts::default();
        for caller in 0..100_u32 {
            let key = FlowKey {
                service: "media".into(),
                caller: format!("caller-{caller}").into(),
                path: format!("/media.v1.Media/AnyPathOfTheUsualLength{}", caller % 5).into(),
                decision: Decision::Allowed,
                reason: "".into(),
            };
            counts.add("media", key, u64::from(caller) + 1);
        }
        let encoded = encode(&counts, 77);
        let (read, at) = decode(&encoded);
        assert!(read.iter().eq(counts.iter()) && at == 77 && read.bytes() == counts.bytes());
        assert!(encoded.len() < 3000, "{}", encoded.len());
        assert_eq!(decode(b"\xff\xff damaged").0.iter().count(), 0);
    }
}
