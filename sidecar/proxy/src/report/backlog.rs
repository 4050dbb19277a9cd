//! Flows that the policy service has not acknowledged: merged until they are sent, then kept as they were sent.

use std::collections::VecDeque;

use tenon_proto::policy::v1 as proto;

use crate::decisions::{Flow, Flows};

/// Flows that are told apart while nothing can be sent.
const MERGED: usize = 4_096;
/// Flows of one batch, and roughly the bytes: half of what the policy service takes at once.
const BATCH: usize = 1_000;
const BATCH_BYTES: usize = 512 << 10;
/// What a flow takes in a message besides its texts.
const FLOW_BYTES: usize = 32;
/// When so many batches wait for their acknowledgement no more are made; what is made at once is all there is.
const WINDOW: usize = 4;
/// Batches of one stream that the policy service has to write at once.
const ON_THE_WAY: usize = 2;

type Batch = proto::report_request::FlowBatch;

/// Bounded, however long nobody takes anything.
#[derive(Debug)]
pub struct Backlog {
    /// Never sent.
    merged: Flows,
    /// Formed, and not acknowledged: sent again unchanged, so that they are counted once.
    formed: VecDeque<Batch>,
    /// How many of these are sent on this stream.
    sent: usize,
    /// Of the last batch that was formed.
    sequence: u64,
}

impl Backlog {
    pub fn new() -> Self {
        Self { merged: Flows::new(MERGED), formed: VecDeque::new(), sent: 0, sequence: 0 }
    }

    /// More of this flow.
    pub fn add(&mut self, flow: Flow<'_>, calls: u64) {
        self.merged.add(flow, calls);
    }

    /// Makes batches of all that was added, unless enough wait already. Comes back with the calls that fitted into no flow.
    pub fn form(&mut self) -> u64 {
        if self.formed.len() >= WINDOW {
            return 0;
        }
        let (mut flows, mut bytes) = (Vec::new(), 0);
        let mut form = |flows: Vec<proto::Flow>| {
            self.sequence += 1;
            self.formed.push_back(Batch { sequence: self.sequence, flows });
        };
        let lost = self.merged.take(|flow, calls, ()| {
            bytes += flow.caller.len() + flow.service.len() + flow.path.len() + flow.how.reason().len() + FLOW_BYTES;
            flows.push(to_proto(flow, calls));
            if flows.len() >= BATCH || bytes >= BATCH_BYTES {
                form(std::mem::take(&mut flows));
                bytes = 0;
            }
        });
        if !flows.is_empty() {
            form(flows);
        }
        lost
    }

    /// A new stream: whatever was formed is to be sent on it.
    pub fn begin_again(&mut self) {
        self.sent = 0;
    }

    /// The next batch that this stream has not carried, when it is its turn.
    pub fn next(&self) -> Option<&Batch> {
        self.formed.get(self.sent).filter(|_| self.sent < ON_THE_WAY)
    }

    /// That one is sent.
    pub fn next_is_sent(&mut self) {
        self.sent += 1;
    }

    /// Every batch up to `sequence` need not be kept. Comes back with the flows of those that were.
    pub fn taken(&mut self, sequence: u64) -> usize {
        let mut flows = 0;
        while self.formed.front().is_some_and(|batch| batch.sequence <= sequence) {
            flows += self.formed.pop_front().map_or(0, |batch| batch.flows.len());
            self.sent = self.sent.saturating_sub(1);
        }
        flows
    }

    /// Batches that are not acknowledged.
    pub fn waiting(&self) -> usize {
        self.formed.len()
    }

    /// Whether an acknowledgement is due on this stream.
    pub fn is_sent(&self) -> bool {
        self.sent > 0
    }
}

fn to_proto(flow: Flow<'_>, calls: u64) -> proto::Flow {
    proto::Flow {
        caller: flow.caller.to_owned(),
        service: flow.service.to_owned(),
        path: flow.path.to_owned(),
        decision: flow.how.to_proto().into(),
        reason: flow.how.reason().to_owned(),
        count: calls,
    }
}
