//! A policy that some instances have already: begun, completed, or given up.

use journal::{Expected, Journal, Position, ReadError, Record, Write};
use mesh_config::{Records, SourceFile};
use prost::Message as _;
use tenon_proto::policy::v1::{
    Canary, RecordSignature, Residency, ServicePolicy, history_entry::Action, rollout_status::State,
};

use super::{
    Applied, ApplyError, Author, Engine, Step, StoreError,
    apply::RolloutRecord,
    changes,
    compiled::Checked,
    stored::{self, ROLLOUT, to_position},
};
use crate::rollout;

/// Why a rollout ended that another policy has taken the place of.
pub(super) const GAVE_WAY: &str = "another policy was applied";

/// Files that may become the policy, beside what is in force.
pub(crate) struct Planned {
    checked: Checked,
    /// Of the policy in force that they were compared with.
    pub position: Position,
    /// The services of either policy, and whether what is said of each changes.
    services: Vec<(String, bool)>,
}

impl Planned {
    /// The services of either policy.
    pub fn defined(&self) -> Vec<&str> {
        self.services.iter().map(|(service, _)| service.as_str()).collect()
    }

    /// The services in force of which something else is said, or nothing any more: another signature or another place in the
    /// files is nothing to try. New ones are nobody's to try: they are called by nobody yet.
    pub fn touched(&self) -> Vec<&str> {
        self.services.iter().filter(|(_, touched)| *touched).map(|(service, _)| service.as_str()).collect()
    }
}

/// What is staged at the moment, and where.
pub(crate) struct StagedNow {
    /// Of the history's entry that began it.
    pub number: u64,
    /// Since where its records are complete; absent until they are.
    pub position: Option<Position>,
}

impl Engine {
    /// Checks files as [`Engine::apply`] does, and compares what they say with what is in force, without what is staged.
    ///
    /// # Errors
    /// [`ApplyError::NotComparable`] when this version cannot say what is in force; others as [`Engine::apply`].
    pub async fn plan(&self, files: Vec<SourceFile>, signatures: Vec<RecordSignature>) -> Result<Planned, ApplyError> {
        let checked = self.check(files, signatures).await?;
        let _alone = self.writing.lock().await;
        let before = self.complete().await.map_err(ApplyError::Store)?;
        let state = &before.loaded.state;
        let in_force = self.compiled_from(&state.files).await.map_err(unreadable)?;
        // The first policy has nothing before it.
        if in_force.is_none() && !state.files.is_empty() {
            return Err(ApplyError::NotComparable);
        }
        let mut services: Vec<(String, bool)> =
            checked.compiled.records.allowlists.keys().map(|service| (service.clone(), false)).collect();
        for (service, policy) in in_force.iter().flat_map(|compiled| &compiled.records.allowlists) {
            let new = checked.compiled.records.allowlists.get(service);
            services.retain(|(known, _)| known != service);
            services.push((service.clone(), new.is_none_or(|new| !changes::same(policy, new))));
        }
        services.sort_unstable();
        Ok(Planned { position: before.position(), checked, services })
    }

    /// Makes what was planned the policy everywhere.
    pub async fn apply_planned(&self, planned: &Planned, author: &Author) -> Result<Applied, ApplyError> {
        self.commit(author, &Step::Files { checked: &planned.checked, folder: None, back_to: None }, None).await
    }

    /// Gives what was planned to these sidecars, by service and instance. A rollout that runs is ended by it.
    pub async fn stage(
        &self,
        planned: &Planned,
        canaries: &[(String, String)],
        author: &Author,
        record: RolloutRecord<'_>,
    ) -> Result<Applied, ApplyError> {
        let canaries: Vec<String> =
            canaries.iter().map(|(service, instance)| format!("{service}/{instance}")).collect();
        let step = Step::Stage { checked: &planned.checked, canaries: &canaries };
        self.commit(author, &step, Some(record)).await
    }

    /// Makes what was staged by the entry `of` everybody's.
    ///
    /// # Errors
    /// [`ApplyError::NoRollout`] when it is over by now, however it ended.
    pub async fn promote(&self, of: u64, author: &Author, record: Vec<u8>) -> Result<Applied, ApplyError> {
        self.commit(author, &Step::Promote { of }, Some(&move |_| record.clone())).await
    }

    /// Gives up what was staged by the entry `of`.
    ///
    /// # Errors
    /// As [`Engine::promote`].
    pub async fn unstage(
        &self,
        of: u64,
        action: Action,
        author: &Author,
        record: Vec<u8>,
    ) -> Result<Applied, ApplyError> {
        self.commit(author, &Step::Unstage { of, action }, Some(&move |_| record.clone())).await
    }

    /// How the last rollout stands, as it was kept.
    pub async fn rollout(&self) -> Result<Option<Record>, ReadError> {
        self.journals.sources.get(ROLLOUT).await
    }

    /// Keeps how the rollout stands, if what was kept is still of that revision; returns the new one.
    pub async fn keep_rollout(&self, kept: u64, record: Vec<u8>) -> Result<u64, StoreError> {
        let write = Write::put(ROLLOUT, record).expecting(Expected::Revision(kept));
        Ok(self.journals.sources.append(vec![write]).await?.revision)
    }

    /// What is staged now.
    pub async fn staged(&self) -> Result<Option<StagedNow>, ReadError> {
        let state = stored::load(&*self.journals.sources).await?.state;
        let Some(staged) = &state.staged else { return Ok(None) };
        // Absent while the records of a later change are being written.
        let began = state.revision.as_ref().and(state.past.iter().find(|past| past.number == staged.number));
        let position = began.and_then(|past| past.revision.as_ref()).map(to_position);
        Ok(Some(StagedNow { number: staged.number, position }))
    }

    /// The records of these services in force, with what their canaries have.
    pub async fn staged_records(&self, services: &[&str]) -> Result<Vec<ServicePolicy>, ReadError> {
        let mut records = Vec::new();
        for service in services {
            let record = self.journals.allowlists.get(service).await?;
            records.extend(record.and_then(|record| ServicePolicy::decode(record.value).ok()));
        }
        Ok(records)
    }
}

/// Puts what the canaries decide by into the records of the policy in force, of the services that have some. What is new
/// comes with completion. A service that goes allows its canaries nothing, as it will all of its instances.
pub(super) fn overlay(in_force: &mut Records, staged: &Records, canaries: &[String]) {
    for (service, policy) in &mut in_force.allowlists {
        let named = canaries.iter().filter_map(|canary| canary.split_once('/')).filter(|(of, _)| *of == service);
        let instances: Vec<String> = named.map(|(_, instance)| instance.to_owned()).collect();
        let next = staged.allowlists.get(service).cloned().unwrap_or_else(|| nothing(service));
        if !instances.is_empty() && next != *policy {
            policy.canary = Some(Box::new(Canary { policy: Some(Box::new(next)), instances }));
        }
    }
}

/// The record of a service that has none: it allows nothing.
fn nothing(service: &str) -> ServicePolicy {
    let residency = Residency::Any.into();
    ServicePolicy { service: service.to_owned(), residency, ..ServicePolicy::default() }
}

/// What the record `rollout` becomes when `step` ends the rollout that runs, of a caller that has not said it itself.
pub(super) async fn ended(
    sources: &dyn Journal,
    _step: &Step<'_>,
    author: &Author,
) -> Result<Option<Vec<u8>>, ReadError> {
    let Some(kept) = sources.get(ROLLOUT).await? else { return Ok(None) };
    // What this version cannot read it leaves alone.
    let Ok(record) = rollout::Record::decode(kept.value) else { return Ok(None) };
    let reason = format!("{GAVE_WAY}, by {}", author.by);
    Ok(record.is_running().then(|| record.over(State::Ended, reason).encode_to_vec()))
}

fn unreadable(error: ReadError) -> ApplyError {
    ApplyError::Store(StoreError::Read(error))
}
