//! What a rollout does next. It has no clock, no socket and no store, so that tests can put anything to it.
//!
//! ```text
//! Acknowledgements ──all have it──► Hold ──long enough──► Reports ──each reported──► promote
//!        └───────────────┬───────────┴──────────────────────┘
//!                        └── a NACK, a refusal that the change brought, a canary that is gone: halt
//! ```
//!
//! Time is what passes between two looks while this process runs, and no look counts for more than [`LONGEST_LOOK`]: a
//! clock that steps, a process that was stopped or a machine that slept never make a hold shorter.

use std::{collections::HashMap, time::Duration};

use journal::Position;
use tenon_proto::policy::v1::{Flow, flow::Decision};

use super::record::{Canary, Phase, Record};

/// How long a canary may take to acknowledge, and how long it may be away.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// A sidecar that can report and says nothing for so long has nothing to say.
pub(crate) const SILENCE: Duration = Duration::from_secs(15);
/// For how long another policy service is believed that it sees a canary.
pub(crate) const BELIEVED: Duration = Duration::from_secs(15);
/// The most that passes between two looks.
const LONGEST_LOOK: Duration = Duration::from_secs(5);
/// Canaries and flows that a reason names.
const NAMED: usize = 3;
/// Refusals of which it is not known yet whether such calls passed before.
const MOST_SUSPECTS: usize = 1000;

/// What this process sees of a canary that is connected to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// How far it is with the kind `allowlist`; absent where it does not follow here.
    pub acknowledged: Option<Position>,
    /// What it refuses, and where that was.
    pub nack: Option<(Position, String)>,
    /// It reports its calls here.
    pub reports: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    GoOn,
    /// The new policy becomes everybody's.
    Promote,
    /// It becomes nobody's, for this reason.
    Halt(String),
}

/// One rollout, from when its records were written on.
#[derive(Debug)]
pub(crate) struct Machine {
    record: Record,
    /// Where the canaries have the policy.
    staged: Position,
    /// When it looked last.
    looked: Option<Duration>,
    /// How long in this phase.
    in_phase: Duration,
    /// In the order of the record's canaries.
    watched: Vec<Watched>,
    /// What the change brought, of calls that nobody is known to have made before: others may tell of that later.
    suspects: Vec<Suspect>,
}

/// A refusal that the change brought.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Suspect {
    instance: String,
    flow: Flow,
    /// The rule that decided, or the nearest one.
    rule: String,
}

/// What is asked of each refusal.
pub(crate) trait Judge {
    /// Whether the change can be why, and the rule in words.
    fn brought(&self, flow: &Flow) -> Option<String>;

    /// Whether the change can be why although nobody can say so: the paths were too many to be told apart.
    fn hides(&self, flow: &Flow) -> bool;

    /// Whether such a call is known to have passed, at another time or elsewhere.
    fn passed(&self, flow: &Flow) -> bool;
}

/// What is known of a canary since this process watches it.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    /// Whether it was there and had the policy at the last look.
    well: bool,
    /// For how long it has not been.
    away: Duration,
    /// For how long nobody could have told what it refuses.
    deaf: Duration,
    /// Since when another policy service has not said that it follows there, or reports there; absent: never.
    follows_elsewhere: Option<Duration>,
    reports_elsewhere: Option<Duration>,
}

impl Machine {
    /// Takes a rollout up where it stands. `None` until its records were written.
    pub fn new(record: Record) -> Option<Self> {
        let staged = record.staged()?;
        let watched = vec![Watched::default(); record.canaries.len()];
        Some(Self { record, staged, looked: None, in_phase: Duration::ZERO, watched, suspects: Vec::new() })
    }

    /// How it stands, to be kept.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Makes this process the owner.
    pub fn own(&mut self, me: u64) {
        self.record.owner = me;
    }

    /// How it stands, with a sign of life.
    pub fn beat(&mut self) -> Record {
        self.record.beat += 1;
        self.record.clone()
    }

    /// How it stands with what this process sees of the canaries, of a rollout that another one owns; absent where that is
    /// nothing new. `due`: it is time to say again which are there.
    pub fn told(&mut self, seen: &HashMap<String, Seen>, due: bool) -> Option<Record> {
        let before = self.record.milestones();
        for canary in &mut self.record.canaries {
            let Some(seen) = seen.get(&canary.instance) else { continue };
            canary.see(seen, self.staged);
            let follows = seen.acknowledged >= Some(self.staged);
            canary.follows += u64::from(due && follows);
            canary.reports += u64::from(due && seen.reports);
        }
        let says = |it: &Canary| seen.get(&it.instance).is_some_and(|seen| seen.reports || seen.acknowledged.is_some());
        let news = self.record.milestones() != before || (due && self.record.canaries.iter().any(says));
        news.then(|| self.record.clone())
    }

    /// Whether what others have told meanwhile halts it, of a rollout that another process owns.
    pub fn watch(&mut self, judge: &impl Judge) -> Verdict {
        self.decided().or_else(|| self.convict(judge)).unwrap_or(Verdict::GoOn)
    }

    /// Takes in what is kept of the same rollout. Of one that this process owns, what others say of the canaries.
    pub fn learn(&mut self, kept: &Record, mine: bool) {
        (self.record.owner, self.record.beat) = (kept.owner, kept.beat);
        // What was reported in another phase, or before the hold began anew, is no word about this one.
        let moved = self.record.phase != kept.phase || self.record.held_ms > kept.held_ms;
        if !mine {
            (self.record.phase, self.record.waited_ms) = (kept.phase, kept.waited_ms);
            self.record.held_ms = kept.held_ms;
        }
        let from = kept;
        let kept: HashMap<&str, &Canary> = kept.canaries.iter().map(|it| (it.instance.as_str(), it)).collect();
        for (canary, watched) in self.record.canaries.iter_mut().zip(&mut self.watched) {
            let Some(kept) = kept.get(canary.instance.as_str()) else { continue };
            if kept.follows != canary.follows {
                watched.follows_elsewhere = Some(Duration::ZERO);
            }
            if kept.reports != canary.reports {
                watched.reports_elsewhere = Some(Duration::ZERO);
            }
            (canary.follows, canary.reports) = (kept.follows, kept.reports);
            canary.acknowledged |= kept.acknowledged;
            canary.reported = match (mine, moved) {
                (_, false) => canary.reported || kept.reported,
                (true, true) => canary.reported,
                (false, true) => kept.reported,
            };
            if canary.nack.is_empty() {
                canary.nack.clone_from(&kept.nack);
            }
        }
        if self.record.halts.is_empty() {
            self.record.halts.clone_from(&from.halts);
        }
        if self.record.refused.is_empty() {
            self.record.refused.clone_from(&from.refused);
        }
    }

    /// Looks at the canaries. `now` never steps back and is of this process alone.
    pub fn look(&mut self, now: Duration, seen: &HashMap<String, Seen>, judge: &impl Judge) -> Verdict {
        let passed = now.saturating_sub(self.looked.unwrap_or(now)).min(LONGEST_LOOK);
        self.looked = Some(now);
        let mut refusals = Vec::new();
        for (canary, watched) in self.record.canaries.iter_mut().zip(&mut self.watched) {
            watched.look(canary, seen.get(&canary.instance), self.staged, passed);
            if !canary.nack.is_empty() {
                refusals.push(format!("{}: {}", canary.instance, canary.nack));
            }
        }
        if let Some(decided) = self.decided() {
            return decided;
        }
        if !refusals.is_empty() {
            return self.halt(format!("refused by {}", listed(&refusals)));
        }
        self.convict(judge).unwrap_or_else(|| self.wait(passed))
    }

    /// Takes in what a sidecar reported of its calls.
    pub fn reported(&mut self, service: &str, instance: &str, flows: &[Flow], judge: &impl Judge) -> Verdict {
        let is = |canary: &&mut Canary| canary.instance == instance && canary.service == service;
        let Some(canary) = self.record.canaries.iter_mut().find(is) else {
            return Verdict::GoOn;
        };
        canary.reported |= self.record.phase == i32::from(Phase::Reports);
        let refused = || flows.iter().filter(|flow| flow.decision() == Decision::Refused);
        for flow in refused() {
            if let Some(rule) = judge.brought(flow) {
                self.suspects.push(Suspect { instance: instance.to_owned(), flow: flow.clone(), rule });
            }
        }
        // Made-up paths must not hide what the change refuses: as long as there are so many, nobody knows that all is well.
        if refused().any(|flow| judge.hides(flow)) {
            self.missed_reports();
        }
        let verdict = self.decided().or_else(|| self.convict(judge));
        self.suspects.truncate(MOST_SUSPECTS);
        verdict.unwrap_or(Verdict::GoOn)
    }

    /// Reports were lost on their way here: nobody knows whether the canaries did well.
    pub fn missed_reports(&mut self) {
        if self.record.phase() == Phase::Reports {
            self.enter(Phase::Hold);
        }
        self.record.held_ms = 0;
    }

    /// Halts for refusals of calls that are known by now to have passed before.
    fn convict(&mut self, judge: &impl Judge) -> Option<Verdict> {
        let refused: Vec<Suspect> = self.suspects.extract_if(.., |suspect| judge.passed(&suspect.flow)).collect();
        let instance = &refused.first()?.instance;
        let lines: Vec<String> = refused.iter().map(|it| refusal(&it.flow, &it.rule)).collect();
        let reason = format!("{instance} refused what passed before: {}", listed(&lines));
        refused.iter().for_each(|suspect| self.record.refuse(&suspect.flow));
        Some(self.halt(reason))
    }

    /// What was decided and may not have been done: the store can fail, and what led to it is not seen again.
    fn decided(&self) -> Option<Verdict> {
        (!self.record.halts.is_empty()).then(|| Verdict::Halt(self.record.halts.clone()))
    }

    fn halt(&mut self, reason: String) -> Verdict {
        self.record.halts.clone_from(&reason);
        Verdict::Halt(reason)
    }

    fn wait(&mut self, passed: Duration) -> Verdict {
        let gone: Vec<&Canary> = self.those(|watched| watched.away >= PATIENCE);
        match self.record.phase() {
            Phase::Acknowledgements => {
                if self.record.canaries.iter().all(|canary| canary.acknowledged) {
                    self.enter(Phase::Hold);
                    return self.held(Duration::ZERO);
                }
                self.record.waited_ms = add(self.record.waited_ms, passed);
                if self.record.waited_ms < millis(PATIENCE) {
                    return Verdict::GoOn;
                }
                let missing: Vec<&Canary> = self.record.canaries.iter().filter(|it| !it.acknowledged).collect();
                let reason = format!("not acknowledged within {} s by {}", PATIENCE.as_secs(), named(&missing));
                self.halt(reason)
            }
            Phase::Hold | Phase::Reports if !gone.is_empty() => {
                let reason = format!("without word for {} s from {}", PATIENCE.as_secs(), named(&gone));
                self.halt(reason)
            }
            Phase::Hold => self.held(passed),
            Phase::Reports => self.last_reports(passed),
        }
    }

    fn held(&mut self, passed: Duration) -> Verdict {
        if self.watched.iter().all(|watched| watched.well) {
            self.record.held_ms = add(self.record.held_ms, passed);
            if self.record.held_ms >= millis(self.record.hold()) {
                self.enter(Phase::Reports);
            }
        }
        Verdict::GoOn
    }

    fn last_reports(&mut self, passed: Duration) -> Verdict {
        self.in_phase += passed;
        let deaf = self.those(|watched| watched.deaf >= PATIENCE);
        let deaf: Vec<&Canary> = deaf.into_iter().filter(|canary| !canary.reported).collect();
        if !deaf.is_empty() {
            let reason = format!("nobody knows what was refused by {}, which reports no calls", named(&deaf));
            return self.halt(reason);
        }
        let silent = self.in_phase >= SILENCE;
        let canaries = self.record.canaries.iter().zip(&self.watched);
        let all = canaries
            .into_iter()
            .all(|(canary, watched)| watched.well && (canary.reported || (silent && watched.deaf == Duration::ZERO)));
        if all { Verdict::Promote } else { Verdict::GoOn }
    }

    fn enter(&mut self, phase: Phase) {
        self.record.phase = phase.into();
        self.record.canaries.iter_mut().for_each(|canary| canary.reported = false);
        self.in_phase = Duration::ZERO;
        self.watched.iter_mut().for_each(|watched| watched.deaf = Duration::ZERO);
    }

    fn those(&self, are: impl Fn(&Watched) -> bool) -> Vec<&Canary> {
        let canaries = self.record.canaries.iter().zip(&self.watched);
        canaries.filter(|(_, watched)| are(watched)).map(|(canary, _)| canary).collect()
    }
}

impl Watched {
    fn look(&mut self, canary: &mut Canary, seen: Option<&Seen>, staged: Position, passed: Duration) {
        if let Some(seen) = seen {
            canary.see(seen, staged);
        }
        let position = seen.and_then(|seen| seen.acknowledged);
        let elsewhere = |since: &mut Option<Duration>| {
            *since = since.map(|since| since + passed).filter(|since| *since < BELIEVED);
            since.is_some()
        };
        self.well = position >= Some(staged) || elsewhere(&mut self.follows_elsewhere);
        self.away = if self.well { Duration::ZERO } else { self.away + passed };
        let reports = seen.is_some_and(|seen| seen.reports) || elsewhere(&mut self.reports_elsewhere);
        self.deaf = if reports { Duration::ZERO } else { self.deaf + passed };
    }
}

impl Canary {
    fn see(&mut self, seen: &Seen, staged: Position) {
        // A refusal of something earlier says nothing of this policy.
        if let Some((_, nack)) = seen.nack.as_ref().filter(|(at, _)| *at >= staged) {
            self.nack.clone_from(nack);
        }
        self.acknowledged |= seen.acknowledged >= Some(staged);
    }
}

/// `issues → media /media.v1.Media/Get: 12 calls, PATH_NOT_ALLOWED (rule …)`.
fn refusal(flow: &Flow, rule: &str) -> String {
    let Flow { caller, service, path, reason, count, .. } = flow;
    let calls = if *count == 1 { "call" } else { "calls" };
    let rule = if rule.is_empty() { String::new() } else { format!(" ({rule})") };
    format!("{caller} → {service} {path}: {count} {calls}, {reason}{rule}")
}

fn named(canaries: &[&Canary]) -> String {
    let names: Vec<String> = canaries.iter().map(|canary| canary.instance.clone()).collect();
    listed(&names)
}

fn listed(all: &[String]) -> String {
    let shown = all[..all.len().min(NAMED)].join("; ");
    match all.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn add(to_ms: u64, passed: Duration) -> u64 {
    to_ms.saturating_add(millis(passed))
}

#[cfg(test)]
mod tests;
