//! Calls that ended, by who called whom and what, and with which status: under the names of gRFC A66 in the spelling of
//! Prometheus, with two labels more.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use mesh_telemetry::{Counts, OTHER_METHOD, Page, code_name, with_exemplars};

use super::Direction;
use crate::decisions::{Ending, Ends, Ledgers, Measures};

/// Series with a method of their own; as many again without one.
const MOST: usize = 500;

/// Counted since the start. Written and read by scrapes alone.
#[derive(Debug)]
pub struct RpcCounts(Mutex<Ends>);

impl Default for RpcCounts {
    fn default() -> Self {
        Self(Mutex::new(Ends::new(MOST)))
    }
}

/// One row of each histogram.
#[derive(Clone, Debug)]
struct Row {
    caller: String,
    callee: String,
    method: String,
    ending: Ending,
    measures: Measures,
}

impl Row {
    fn labels(&self) -> [(&'static str, &str); 4] {
        let status = code_name(self.ending.code.into()).unwrap_or("UNKNOWN");
        [("caller", &self.caller), ("callee", &self.callee), ("grpc_method", &self.method), ("grpc_status", status)]
    }
}

/// What a scrape shows.
#[derive(Clone, Debug, Default)]
pub struct Rpcs {
    rows: Vec<Row>,
    beyond: u64,
}

impl RpcCounts {
    /// Takes what the workers have counted since the last time, and comes back with all of it.
    pub fn take(&self, ledgers: &Ledgers) -> Rpcs {
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = ledgers.take_ends(|flow, calls, measures| {
            ends.add_with(flow, calls, |all| all.merge(&measures));
        });
        ends.lose(lost);
        let mut rows = Vec::new();
        ends.each(|flow, _, measures| {
            let named = |name: &str| if name.is_empty() { OTHER_METHOD } else { name }.to_owned();
            rows.push(Row {
                caller: named(flow.caller),
                callee: named(flow.service),
                method: named(flow.path.strip_prefix('/').unwrap_or(flow.path)),
                ending: flow.how,
                measures: measures.clone(),
            });
        });
        Rpcs { rows, beyond: ends.beyond() }
    }
}

/// One of the histograms of a row.
type Counted = fn(&Measures) -> Counts;

/// Prefix and what it is about, in the order of [`Direction::ALL`].
const SIDES: [(&str, &str); 2] = [("grpc_client_call", "of its app"), ("grpc_server_call", "to its app")];

impl Rpcs {
    fn of(&self, side: Direction) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.ending.direction == side)
    }

    fn of_all(&self, side: Direction, counts: Counted) -> Vec<([(&'static str, &str); 4], Counts)> {
        self.of(side).map(|row| (row.labels(), counts(&row.measures))).collect()
    }

    pub(super) fn show(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        for (side, (prefix, whose)) in Direction::ALL.into_iter().zip(SIDES) {
            let (sent, received): (Counted, Counted) = match side {
                Direction::Outbound => (Measures::request, Measures::response),
                Direction::Inbound => (Measures::response, Measures::request),
            };
            page.histogram(
                &format!("{prefix}_duration_seconds"),
                &format!("From the request's headers to the end of the answer, of gRPC calls {whose}"),
                self.of_all(side, Measures::took),
            )?;
            for (what, done, counts) in [("sent", "sent", sent), ("rcvd", "received", received)] {
                page.histogram(
                    &format!("{prefix}_{what}_total_compressed_message_size_bytes"),
                    &format!("Bytes of the messages of a gRPC call {whose} that were {done}, without their framing"),
                    self.of_all(side, counts),
                )?;
            }
        }
        const NONE: [(&str, &str); 0] = [];
        let help =
            "Calls that grpc_client_call_* and grpc_server_call_* lack, because there were too many different ones";
        page.counter("tenon_calls_beyond", help, [(NONE, self.beyond)])
    }

    /// Puts the exemplars into the text that [`Rpcs::show`] has written.
    pub(super) fn with_exemplars(&self, mut text: String) -> String {
        for (side, (prefix, _)) in Direction::ALL.into_iter().zip(SIDES) {
            let exemplars: Vec<_> = self.of(side).flat_map(|row| row.measures.exemplars()).collect();
            text = with_exemplars(&text, &format!("{prefix}_duration_seconds"), &exemplars);
        }
        text
    }
}
