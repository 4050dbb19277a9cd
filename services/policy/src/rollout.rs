//! Staged rollouts: a policy that a few sidecars try first (DESIGN §6).
//!
//! What is staged lies with the policy in force, in one record that each change compares and sets (`engine`), so that it
//! survives this process; how the rollout stands is a record of its own, which one policy service at a time moves on: its
//! owner. One that has not changed the record for a while is gone, as measured by the monotonic clock of whoever watches,
//! and another one takes the rollout up. What is decided is decided by the engine's compare-and-set: whoever comes second,
//! or was believed dead, changes nothing any more.
//!
//! `choice` says who begins, `machine` what to do next, `cause` which refusals are the new policy's work, `record` is what is
//! kept, `early` what was refused before anybody knew of it, `driver` does it.
//!
//! Never here: decisions about calls, and policy for anybody who is not a canary.

mod cause;
mod choice;
mod driver;
mod early;
mod machine;
mod record;
pub(crate) mod service;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use journal::{Position, Publisher, ReadError};
use mesh_config::SourceFile;
use mesh_identity::{SpiffeId, Workload, clock};
use prost::Message as _;
use tenon_proto::policy::v1::{
    RecordSignature, RolloutPlan, RolloutStatus, history_entry::Action, rollout_status::State,
};
use tokio::time::Instant;

use crate::{
    engine::{Applied, ApplyError, Author, Engine, Planned, StoreError},
    fleet::Fleet,
};
use choice::{ChoiceError, Sidecar};
pub(crate) use record::Record;

pub(crate) use driver::run;

/// How often it is tried again where others change the policy at the same time.
const TRIES: usize = 5;

/// The rollouts of one policy service.
pub(crate) struct Rollouts {
    engine: Arc<Engine>,
    fleet: Arc<Fleet>,
    /// Of the kind `allowlist`: who follows, and how far each has come.
    followers: Publisher,
    /// Names this process among all that may own a rollout.
    me: u64,
    /// Nobody else can have the store: an owner that is not this process is gone.
    alone: bool,
    /// What time is measured from.
    started: Instant,
    /// How the rollout stands that this process drives: what is kept of it is some seconds old.
    driven: Mutex<Option<Record>>,
}

/// A policy that is to be rolled out in steps.
pub(crate) struct Proposed {
    pub files: Vec<SourceFile>,
    pub signatures: Vec<RecordSignature>,
    pub plan: RolloutPlan,
    /// SPIFFE id.
    pub operator: String,
    pub note: String,
    pub expected: Option<Position>,
}

/// What came of it.
pub(crate) enum Begun {
    /// Some sidecars have it now.
    Staged(Applied),
    /// No service's policy changes, so there is nothing to try: it is everybody's already.
    AtOnce(Applied),
}

/// Why a rollout did not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BeginError {
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// Why a rollout was not ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndError {
    #[error("no rollout runs")]
    None,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// A sidecar that reported calls to itself within this time shows what a new policy refuses.
const CALLED_LATELY: Duration = Duration::from_secs(600);

impl Rollouts {
    /// `followers` publishes the kind `allowlist`. `alone`: the store is of this process alone.
    pub fn new(engine: Arc<Engine>, fleet: Arc<Fleet>, followers: Publisher, alone: bool) -> Self {
        let me = rand::random_range(1..u64::MAX);
        Self { engine, fleet, followers, me, alone, started: Instant::now(), driven: Mutex::default() }
    }

    /// Begins a rollout. One that runs is ended by it.
    pub async fn begin(&self, proposed: Proposed) -> Result<Begun, BeginError> {
        let Proposed { files, signatures, plan, operator, note, expected } = proposed;
        for _ in 0..TRIES {
            let planned = self.engine.plan(files.clone(), signatures.clone()).await?;
            // What was chosen is for the policy that it was compared with.
            let author = Author::operator(&operator, note.clone(), expected.or(Some(planned.position)));
            let begun = self.begin_with(&plan, &planned, &author).await;
            match begun {
                Err(BeginError::Apply(ApplyError::Conflict { .. })) if expected.is_none() => {}
                begun => return begun,
            }
        }
        Err(ApplyError::Store(StoreError::Busy).into())
    }

    async fn begin_with(&self, plan: &RolloutPlan, planned: &Planned, author: &Author) -> Result<Begun, BeginError> {
        choice::check(plan, &planned.defined(), &planned.touched())?;
        if planned.touched().is_empty() {
            return Ok(Begun::AtOnce(self.engine.apply_planned(planned, author).await?));
        }
        let touched: BTreeSet<&str> = planned.touched().into_iter().collect();
        let touched = self.connected(|service| touched.contains(service));
        let chosen = choice::choose(&touched, plan, planned.position.to_string().as_bytes())?;
        let canaries: Vec<(String, String)> =
            chosen.iter().map(|it| (it.service.clone(), it.instance.clone())).collect();
        let touched = u32::try_from(touched.len()).unwrap_or(u32::MAX);
        let record = |number| {
            let record = Record::new(number, plan.clone(), author.by.clone(), unix_seconds(), touched, &chosen);
            Record { owner: self.me, ..record }.encode_to_vec()
        };
        Ok(Begun::Staged(self.engine.stage(planned, &canaries, author, &record).await?))
    }

    /// How the rollout that runs, or the last one, stands.
    pub async fn status(&self) -> Result<Option<RolloutStatus>, ReadError> {
        let Some((kept, _)) = self.kept().await? else { return Ok(None) };
        let driven = self.driven().as_ref().filter(|it| it.number == kept.number && kept.is_running()).cloned();
        Ok(Some(driven.unwrap_or(kept).status()))
    }

    fn driven(&self) -> MutexGuard<'_, Option<Record>> {
        self.driven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what is rolled out everybody's, or nobody's. Comes back with how it ended.
    pub async fn end(&self, complete: bool, operator: &str, note: String) -> Result<RolloutStatus, EndError> {
        let (record, _) = self.kept().await?.filter(|(record, _)| record.is_running()).ok_or(EndError::None)?;
        let author = Author::operator(operator, note, None);
        let why = if author.note.is_empty() { String::new() } else { format!(": {}", author.note) };
        let ended = match complete {
            true => record.over(State::Completed, format!("completed by {}{why}", author.by)),
            false => record.over(State::Ended, format!("given up by {}{why}", author.by)),
        };
        match complete {
            true => self.engine.promote(record.number, &author, ended.encode_to_vec()).await,
            false => self.engine.unstage(record.number, Action::RolloutEnded, &author, ended.encode_to_vec()).await,
        }
        .map_err(|error| if matches!(error, ApplyError::NoRollout) { EndError::None } else { error.into() })?;
        Ok(ended.status())
    }

    /// What is kept of the last rollout, and at which revision of its journal.
    async fn kept(&self) -> Result<Option<(Record, u64)>, ReadError> {
        let Some(kept) = self.engine.rollout().await? else { return Ok(None) };
        let record = Record::decode(kept.value).map_err(|error| ReadError(error.into()))?;
        Ok(Some((record, kept.revision)))
    }

    /// The connected sidecars of some services, each once.
    fn connected(&self, of: impl Fn(&str) -> bool) -> Vec<Sidecar> {
        let followers = self.followers.status().followers.into_iter();
        let connected = followers.filter(|follower| follower.connected_unix_seconds != 0);
        let called = self.fleet.called_since(clock::unix_seconds().saturating_sub(CALLED_LATELY.as_secs()));
        let sidecars = connected.filter_map(|follower| {
            let service = service_of(&follower.spiffe_id)?;
            let called = called.contains(follower.instance.as_str());
            of(&service).then_some(Sidecar { service, instance: follower.instance, called })
        });
        sidecars.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// The service of a sidecar; operators and others follow as well.
fn service_of(spiffe_id: &str) -> Option<String> {
    match spiffe_id.parse::<SpiffeId>().ok()?.workload() {
        Workload::Service(name) => Some(name.to_string()),
        Workload::Operator(_) => None,
    }
}

/// For people.
fn unix_seconds() -> i64 {
    clock::unix_seconds().try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
