//! Moves a rollout on, or watches how another policy service does.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use journal::{AppendError, Position, ReadError};
use prost::Message as _;
use tenon_proto::policy::v1::{Flow, history_entry::Action, rollout_status::State};
use tokio::{sync::broadcast::error::RecvError, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{
    Rollouts,
    cause::Changed,
    early::Early,
    machine::{Judge, Machine, Seen, Verdict},
    record::{Phase, Record},
    service_of,
};
use crate::{
    engine::{ApplyError, Author, StoreError, chain, to_revision},
    fleet::{Fleet, Report},
};

/// Between two looks at the canaries.
const LOOK: Duration = Duration::from_millis(500);
/// How often what is known is kept although nothing happened: it tells the others that the owner lives.
const BEAT: Duration = Duration::from_secs(5);
/// An owner that has kept nothing for so long is gone.
const GONE: Duration = Duration::from_secs(15);

/// Looks after rollouts until `shutdown`.
pub(crate) async fn run(rollouts: Arc<Rollouts>, shutdown: CancellationToken) {
    let mut reports = rollouts.fleet.reports();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut driver = Driver { rollouts, known: None, early: Early::default() };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = looks.tick() => driver.look().await,
            report = reports.recv() => match report {
                Ok(report) => driver.reported(&report).await,
                Err(RecvError::Lagged(missed)) => driver.missed(missed),
                Err(RecvError::Closed) => return,
            },
        }
    }
}

struct Driver {
    rollouts: Arc<Rollouts>,
    /// The rollout that runs.
    known: Option<Known>,
    /// What was refused while none was known.
    early: Early,
}

/// A rollout that runs.
struct Known {
    machine: Machine,
    rules: Rules,
    /// What is kept, and at which revision.
    kept: Record,
    revision: u64,
    /// Since when the owner has not given a sign of life, by this process's clock.
    still: Duration,
    /// When this process told last which canaries it sees, of a rollout that another one owns.
    told: Duration,
}

/// What decides for the services that have canaries, and what passed before.
struct Rules {
    services: HashMap<String, Changed>,
    fleet: Arc<Fleet>,
}

/// What a rollout that nothing was learnt from says when it completes.
const UNSHOWN: &str = "no canary was called meanwhile: nothing shows what the new policy refuses";

impl Judge for Rules {
    fn brought(&self, flow: &Flow) -> Option<String> {
        let Flow { caller, service, path, reason, .. } = flow;
        if self.services.get(caller).is_some_and(|changed| changed.keeps_from_calling(reason)) {
            return Some(format!("{caller} may no longer originate calls"));
        }
        let changed = self.services.get(service)?;
        changed.refuses(caller, path, reason).then(|| changed.rule(caller, path))
    }

    fn hides(&self, flow: &Flow) -> bool {
        let Flow { caller, service, path, reason, .. } = flow;
        let services = &self.services;
        path.is_empty()
            && (services.get(service).is_some_and(|changed| changed.may_refuse(caller, reason))
                || services.get(caller).is_some_and(|changed| changed.keeps_from_calling(reason)))
    }

    fn passed(&self, flow: &Flow) -> bool {
        // Ever, also on another instance just now.
        self.fleet.passed_before(&flow.caller, &flow.service, &flow.path, u64::MAX)
    }
}

impl Driver {
    async fn look(&mut self) {
        if let Err(error) = self.try_look().await {
            tracing::warn!(error = chain(&error), "a rollout cannot be looked after: trying again");
        }
        let mine = self.known.as_ref().filter(|known| known.kept.owner == self.rollouts.me);
        *self.rollouts.driven() = mine.map(|known| known.machine.record().clone());
    }

    async fn try_look(&mut self) -> Result<(), StoreError> {
        self.learn().await?;
        let rollouts = Arc::clone(&self.rollouts);
        let now = rollouts.started.elapsed();
        let Some(known) = &mut self.known else { return Ok(()) };
        let seen = rollouts.seen(known.machine.record());
        if known.kept.owner != rollouts.me {
            if !rollouts.alone && now.saturating_sub(known.still) < GONE {
                let verdict = known.machine.watch(&known.rules);
                self.act(verdict).await;
                return self.tell(now, &seen).await;
            }
            tracing::info!(target: "tenon::audit", by = known.kept.by, "a rollout is taken up");
            known.machine.own(rollouts.me);
            return self.keep(now).await;
        }
        let before = known.machine.record().phase();
        let verdict = known.machine.look(now, &seen, &known.rules);
        known.log_phase(before);
        let due = now.saturating_sub(known.still) >= BEAT;
        let happened = known.kept.milestones() != known.machine.record().milestones();
        if verdict != Verdict::GoOn {
            self.act(verdict).await;
        } else if due || happened {
            return self.keep(now).await;
        }
        Ok(())
    }

    /// Takes in what is kept of the rollout that runs, if there is one.
    async fn learn(&mut self) -> Result<(), StoreError> {
        let now = self.rollouts.started.elapsed();
        let Some((kept, revision)) = self.rollouts.kept().await?.filter(|(record, _)| record.is_running()) else {
            self.known = None;
            return Ok(());
        };
        match &mut self.known {
            Some(known) if known.kept.number == kept.number => {
                if known.revision != revision {
                    known.machine.learn(&kept, kept.owner == self.rollouts.me);
                    if (kept.owner, kept.beat) != (known.kept.owner, known.kept.beat) {
                        known.still = now;
                    }
                    (known.kept, known.revision) = (kept, revision);
                }
            }
            _ => {
                self.known = self.rollouts.take_up(kept, revision, now).await?;
                self.catch_up(now);
            }
        }
        Ok(())
    }

    /// Takes in what was refused before the rollout was known. A verdict is remembered until the look that follows.
    fn catch_up(&mut self, now: Duration) {
        let Some(known) = &mut self.known else { return };
        let (refused, all) = self.early.take(now);
        for early in &refused {
            known.reported(&early.service, &early.instance, std::slice::from_ref(&early.flow));
        }
        if !all {
            known.machine.missed_reports();
        }
    }

    async fn reported(&mut self, report: &Report) {
        let Some(known) = &mut self.known else {
            return self.early.keep(self.rollouts.started.elapsed(), report);
        };
        let verdict = known.reported(&report.service, &report.instance, &report.flows);
        self.act(verdict).await;
    }

    fn missed(&mut self, missed: u64) {
        if let Some(known) = &mut self.known {
            tracing::warn!(missed, "reports of sidecars were lost: the hold of the rollout begins anew");
            known.machine.missed_reports();
        } else {
            self.early.lose(self.rollouts.started.elapsed());
        }
    }

    /// A change that fails is tried again at the next look: the machine remembers why it halts, and so does the store as
    /// soon as it takes something.
    async fn act(&mut self, verdict: Verdict) {
        let Some(known) = &mut self.known else { return };
        let (engine, record) = (&self.rollouts.engine, known.machine.record());
        let done = match verdict {
            Verdict::GoOn => return,
            Verdict::Promote => {
                let called = self.rollouts.fleet.called_since(record.started_unix_seconds.try_into().unwrap_or(0));
                // Of sidecars that report to another policy service nothing is known here.
                let shown =
                    !self.rollouts.alone || record.canaries.iter().any(|it| called.contains(it.instance.as_str()));
                let note = if shown { "" } else { UNSHOWN };
                let over = record.over(State::Completed, note.to_owned());
                engine.promote(record.number, &Author::rollout(note.to_owned()), over.encode_to_vec()).await
            }
            Verdict::Halt(reason) => {
                tracing::warn!(reason, "a rollout is halted and rolled back");
                let over = record.over(State::Halted, reason.clone());
                let author = Author::rollout(reason);
                engine.unstage(record.number, Action::RolloutHalted, &author, over.encode_to_vec()).await
            }
        };
        match done {
            // Another one was faster, or it is done.
            Ok(_) | Err(ApplyError::NoRollout | ApplyError::Unsettled(_)) => self.known = None,
            Err(error) => {
                tracing::warn!(error = chain(&error), "a rollout cannot be ended: trying again");
                if let Err(error) = self.keep_reason().await {
                    tracing::warn!(error = chain(&error), "why a rollout is halted cannot be kept: trying again");
                }
            }
        }
    }

    /// Keeps why it halts: whoever takes it up must know.
    async fn keep_reason(&mut self) -> Result<(), StoreError> {
        let now = self.rollouts.started.elapsed();
        let Some(known) = &mut self.known else { return Ok(()) };
        let record = known.machine.record().clone();
        if record.halts == known.kept.halts {
            return Ok(());
        }
        if known.kept.owner == self.rollouts.me {
            return self.keep(now).await;
        }
        Self::say(&self.rollouts, known, record, now).await
    }

    /// Keeps how the rollout stands.
    async fn keep(&mut self, now: Duration) -> Result<(), StoreError> {
        let Some(known) = &mut self.known else { return Ok(()) };
        let record = known.machine.beat();
        match self.rollouts.engine.keep_rollout(known.revision, record.encode_to_vec()).await {
            Ok(revision) => (known.kept, known.revision, known.still) = (record, revision, now),
            // Somebody said something, or ended it: the next look takes that in.
            Err(StoreError::Append(AppendError::Conflict { .. })) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Tells the owner what this process sees of the canaries.
    async fn tell(&mut self, now: Duration, seen: &HashMap<String, Seen>) -> Result<(), StoreError> {
        let Some(known) = &mut self.known else { return Ok(()) };
        let due = now.saturating_sub(known.told) >= BEAT;
        let Some(record) = known.machine.told(seen, due) else { return Ok(()) };
        Self::say(&self.rollouts, known, record, now).await
    }

    /// Keeps what this process knows of a rollout that another one owns.
    async fn say(rollouts: &Rollouts, known: &mut Known, record: Record, now: Duration) -> Result<(), StoreError> {
        match rollouts.engine.keep_rollout(known.revision, record.encode_to_vec()).await {
            // What is kept stays as it was learnt: only the owner's changes tell that it lives.
            Ok(revision) => (known.kept, known.revision, known.told) = (record, revision, now),
            Err(StoreError::Append(AppendError::Conflict { .. })) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Known {
    /// Takes in what a sidecar reported of its own calls.
    fn reported(&mut self, service: &str, instance: &str, flows: &[Flow]) -> Verdict {
        let own = |flow: &&Flow| flow.service == service || flow.caller == service;
        let flows: Vec<Flow> = flows.iter().filter(own).cloned().collect();
        let held = self.machine.record().held_ms;
        let verdict = self.machine.reported(service, instance, &flows, &self.rules);
        if self.machine.record().held_ms < held {
            tracing::warn!(
                instance,
                "too many paths were refused to tell them apart: the hold of the rollout begins anew"
            );
        }
        verdict
    }

    fn log_phase(&self, before: Phase) {
        let record = self.machine.record();
        let what = match record.phase() {
            phase if phase == before => return,
            Phase::Acknowledgements => "canaries are waited for",
            Phase::Hold => "every canary has the policy: the hold begins",
            Phase::Reports => "the hold is over: the last reports are waited for",
        };
        tracing::info!(target: "tenon::audit", by = "rollout", number = record.number, what, "a rollout goes on");
    }
}

impl Rollouts {
    /// A rollout that this process did not know of. `None` until its records were written.
    async fn take_up(&self, kept: Record, revision: u64, now: Duration) -> Result<Option<Known>, StoreError> {
        let Some(staged) = self.engine.staged().await?.filter(|staged| staged.number == kept.number) else {
            // Another version ended it without saying so here. Where it ended a moment ago, this is not taken.
            let over = kept.over(State::Ended, "it is not staged any more".to_owned());
            return match self.engine.keep_rollout(revision, over.encode_to_vec()).await {
                Ok(_) | Err(StoreError::Append(AppendError::Conflict { .. })) => Ok(None),
                Err(error) => Err(error),
            };
        };
        let began = kept.revision.or(staged.position.map(to_revision));
        let services: BTreeSet<&str> = kept.canaries.iter().map(|canary| canary.service.as_str()).collect();
        let services: Vec<&str> = services.into_iter().collect();
        let mut rules = HashMap::new();
        for mut record in self.engine.staged_records(&services).await? {
            let Some(new) = record.canary.take().and_then(|canary| canary.policy) else { return Ok(None) };
            let service = record.service.clone();
            // The engine has compiled both before they became records.
            let changed = Changed::new(record, *new).map_err(|error| ReadError(error.into()))?;
            rules.insert(service, changed);
        }
        let rules = Rules { services: rules, fleet: Arc::clone(&self.fleet) };
        let Some(machine) = Machine::new(Record { revision: began, ..kept.clone() }) else { return Ok(None) };
        Ok(Some(Known { machine, rules, kept, revision, still: now, told: Duration::ZERO }))
    }

    /// What this process sees of the canaries.
    fn seen(&self, record: &Record) -> HashMap<String, Seen> {
        let services: HashMap<&str, &str> =
            record.canaries.iter().map(|it| (it.instance.as_str(), it.service.as_str())).collect();
        let is_canary = |instance: &str, service: &str| services.get(instance) == Some(&service);
        let mut seen: HashMap<String, Seen> = HashMap::new();
        for follower in self.followers.status().followers {
            let service = service_of(&follower.spiffe_id).unwrap_or_default();
            if !is_canary(&follower.instance, &service) {
                continue;
            }
            let nack = follower.nack.split_once(':').and_then(|(at, _)| at.parse::<Position>().ok());
            let entry = seen.entry(follower.instance).or_default();
            // Who is listed for a refusal alone is not connected.
            if follower.connected_unix_seconds != 0 {
                entry.acknowledged = entry.acknowledged.max(follower.acknowledged.map(Into::into));
            }
            entry.nack = nack.map(|at| (at, follower.nack)).or(entry.nack.take());
        }
        // What cannot be recorded is not all told: then their silence says nothing.
        let told = self.fleet.is_recording();
        for (instance, service) in self.fleet.connected() {
            if told && is_canary(&instance, &service) {
                seen.entry(instance.to_string()).or_default().reports = true;
            }
        }
        seen
    }
}
