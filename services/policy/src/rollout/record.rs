//! How a rollout stands, as it is kept in the journal `sources`, so that whoever comes next takes it up.

use std::time::Duration;

use journal::Position;
use prost::{Enumeration, Message};
use tenon_proto::policy::v1::{CanaryStatus, Flow, PolicyRevision, RolloutPlan, RolloutStatus, rollout_status::State};

use super::choice::Sidecar;

/// Flows that are kept of what canaries refused.
const MOST_REFUSED: usize = 100;

/// The last rollout, running or over.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Record {
    /// Of the history's entry that began it: two rollouts are never taken for one.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Position of the kind `allowlist` at which the canaries have it; absent until the records were written.
    #[prost(message, optional, tag = "2")]
    pub revision: Option<PolicyRevision>,
    #[prost(enumeration = "State", tag = "3")]
    pub state: i32,
    #[prost(message, optional, tag = "4")]
    pub plan: Option<RolloutPlan>,
    /// "operator alice".
    #[prost(string, tag = "5")]
    pub by: String,
    /// By the clock of who began it. For people, and to ask what passed before: never to measure with.
    #[prost(int64, tag = "6")]
    pub started_unix_seconds: i64,
    /// Connected sidecars whose policy changes.
    #[prost(uint32, tag = "7")]
    pub touched: u32,
    #[prost(message, repeated, tag = "8")]
    pub canaries: Vec<Canary>,
    #[prost(enumeration = "Phase", tag = "9")]
    pub phase: i32,
    /// How long acknowledgements have been waited for.
    #[prost(uint64, tag = "10")]
    pub waited_ms: u64,
    /// How long all canaries have been doing well.
    #[prost(uint64, tag = "11")]
    pub held_ms: u64,
    /// Why it is over; empty of one that completed by itself.
    #[prost(string, tag = "12")]
    pub reason: String,
    /// What canaries refused that passed before.
    #[prost(message, repeated, tag = "13")]
    pub refused: Vec<Flow>,
    /// The process that drives it: a random number.
    #[prost(uint64, tag = "14")]
    pub owner: u64,
    /// Counts what the owner writes: one that stands still is gone.
    #[prost(uint64, tag = "15")]
    pub beat: u64,
    /// Why it is to be halted, until that is done.
    #[prost(string, tag = "16")]
    pub halts: String,
}

/// A sidecar that decides by the new policy.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Canary {
    #[prost(string, tag = "1")]
    pub instance: String,
    #[prost(string, tag = "2")]
    pub service: String,
    /// It has taken the policy, some time.
    #[prost(bool, tag = "3")]
    pub acknowledged: bool,
    /// Why it refused the policy.
    #[prost(string, tag = "4")]
    pub nack: String,
    /// It has reported its calls since the hold was over.
    #[prost(bool, tag = "5")]
    pub reported: bool,
    /// Counts the times that another policy service than the owner said that it follows there, and has the policy.
    #[prost(uint64, tag = "6")]
    pub follows: u64,
    /// Counts the times that another policy service than the owner said that it reports there.
    #[prost(uint64, tag = "7")]
    pub reports: u64,
}

/// What a rollout that runs waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub(crate) enum Phase {
    /// That every canary takes the policy.
    Acknowledgements = 0,
    /// That they do well for as long as the plan says.
    Hold = 1,
    /// That each has said what it decided in the last seconds.
    Reports = 2,
}

impl Record {
    pub fn new(number: u64, plan: RolloutPlan, by: String, started: i64, touched: u32, canaries: &[Sidecar]) -> Self {
        let canary =
            |it: &Sidecar| Canary { instance: it.instance.clone(), service: it.service.clone(), ..Canary::default() };
        Self {
            number,
            state: State::Running.into(),
            plan: Some(plan),
            by,
            started_unix_seconds: started,
            touched,
            canaries: canaries.iter().map(canary).collect(),
            ..Self::default()
        }
    }

    pub fn is_running(&self) -> bool {
        self.state() == State::Running
    }

    /// Where the canaries have the policy; absent until its records were written.
    pub fn staged(&self) -> Option<Position> {
        self.revision.map(|at| Position::new(at.epoch, at.revision))
    }

    pub fn hold(&self) -> Duration {
        Duration::from_secs(self.plan.as_ref().map_or(0, |plan| plan.hold_seconds).into())
    }

    /// Adds to what canaries refused. More kinds of calls than are kept are not told.
    pub fn refuse(&mut self, flow: &Flow) {
        let same = |it: &&mut Flow| {
            (&it.caller, &it.service, &it.path, &it.reason) == (&flow.caller, &flow.service, &flow.path, &flow.reason)
        };
        let many = self.refused.len() >= MOST_REFUSED;
        match self.refused.iter_mut().find(same) {
            Some(known) => known.count = known.count.saturating_add(flow.count),
            None if many => {}
            None => self.refused.push(flow.clone()),
        }
    }

    /// What is kept at once when it changes.
    pub fn milestones(&self) -> impl PartialEq + use<> {
        let canary = |it: &Canary| (it.acknowledged, it.reported, it.nack.is_empty());
        (self.revision, self.phase, self.halts.is_empty(), self.canaries.iter().map(canary).collect::<Vec<_>>())
    }

    /// The same rollout, over.
    pub fn over(&self, state: State, reason: String) -> Self {
        Self { state: state.into(), reason, ..self.clone() }
    }

    /// For operators.
    pub fn status(&self) -> RolloutStatus {
        let canary = |it: &Canary| CanaryStatus {
            instance: it.instance.clone(),
            service: it.service.clone(),
            acknowledged: it.acknowledged,
            nack: it.nack.clone(),
        };
        RolloutStatus {
            revision: self.revision,
            state: self.state,
            plan: self.plan.clone(),
            by: self.by.clone(),
            started_unix_seconds: self.started_unix_seconds,
            held_seconds: u32::try_from(self.held_ms / 1000).unwrap_or(u32::MAX),
            canaries: self.canaries.iter().map(canary).collect(),
            touched: self.touched,
            reason: self.reason.clone(),
            refused: self.refused.clone(),
        }
    }
}
