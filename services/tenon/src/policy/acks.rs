//! Who has the policy: what the sidecars acknowledged of it, as every process of the policy service tells.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mesh_config::names::control_plane;
use replica::Position;
use tenon_proto::{
    kind,
    policy::v1::KindPosition,
    replication::v1::{FollowerStatus, KindStatus, StatusRequest, replication_client::ReplicationClient},
};
use tokio::time::{Instant, sleep_until};
use tonic::{Status, transport::Channel};

use crate::{
    failure::Failure,
    operator::{Mesh, Role},
};

/// A status names every follower of every kind: some megabytes for ten thousand sidecars.
const LARGEST_STATUS: usize = 64 * 1024 * 1024;
/// How often the status is asked for.
const POLL: Duration = Duration::from_millis(100);

/// The kinds of the policy service that sidecars follow.
const KINDS: [&str; 4] = [kind::ALLOWLIST, kind::ROUTE, kind::ENDPOINT, kind::QUARANTINE];

/// A process of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub service: String,
    pub instance: String,
}

/// What a sidecar has of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Has {
    /// Of the kind `allowlist`, which names the policy's revision.
    pub revision: Position,
    pub state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// All of it.
    Acknowledged,
    /// Not all of it yet.
    Late,
    /// Why it does not take it.
    Refused(String),
}

/// Every connected sidecar.
pub(super) type Sidecars = BTreeMap<Name, Has>;

/// What each sidecar must acknowledge to have the whole policy.
#[derive(Debug, Clone)]
pub(super) struct Whole(BTreeMap<&'static str, Position>);

impl Whole {
    /// `positions` as the policy service tells them. One that tells none is of an older version: then the revision counts.
    pub fn new(positions: &[KindPosition], epoch: u64, revision: u64) -> Self {
        let of = |kind: &'static str| {
            let told = positions.iter().find(|position| position.kind == kind)?;
            Some((kind, Position::new(told.epoch, told.revision)))
        };
        let mut whole: BTreeMap<_, _> = KINDS.into_iter().filter_map(of).collect();
        whole.entry(kind::ALLOWLIST).or_insert(Position::new(epoch, revision));
        Self(whole)
    }
}

/// The status of all kinds at every process of the policy service that answers.
///
/// # Errors
/// None answers; what the first one said.
pub(super) async fn ask(mesh: &Mesh) -> Result<Vec<KindStatus>, Status> {
    Asked::new(mesh).look().await
}

/// The processes of the policy service, connected once.
struct Asked(Vec<ReplicationClient<Channel>>);

impl Asked {
    fn new(mesh: &Mesh) -> Self {
        let processes = mesh.processes().into_iter().filter(|process| process.role == Role::Policy);
        let client = |process| ReplicationClient::new(mesh.channel_to(&process));
        Self(processes.map(client).map(|client| client.max_decoding_message_size(LARGEST_STATUS)).collect())
    }

    async fn look(&mut self) -> Result<Vec<KindStatus>, Status> {
        let asked = self.0.iter_mut().map(|client| client.status(StatusRequest { kind: String::new() }));
        let (mut told, mut failed) = (None, None);
        for answer in join_all(asked).await {
            match answer {
                Ok(answer) => told.get_or_insert_with(Vec::new).extend(answer.into_inner().kinds),
                Err(status) => failed = failed.or(Some(status)),
            }
        }
        told.ok_or_else(|| failed.unwrap_or_else(|| Status::unavailable("there is no policy service")))
    }
}

/// What each connected sidecar has, over all kinds and processes.
pub(super) fn judge(told: &[KindStatus], whole: &Whole) -> Sidecars {
    // By kind: the furthest that a sidecar acknowledged anywhere, and the refusals of it.
    let mut said: BTreeMap<Name, BTreeMap<&str, (Position, Option<&str>)>> = BTreeMap::new();
    for status in told.iter().filter(|status| KINDS.contains(&status.kind.as_str())) {
        for follower in status.followers.iter().filter(|follower| follower.connected_unix_seconds != 0) {
            let Some(name) = sidecar(follower) else { continue };
            let one = said.entry(name).or_default().entry(&status.kind).or_default();
            one.0 = one.0.max(follower.acknowledged.map(Position::from).unwrap_or_default());
            one.1 = one.1.or(Some(follower.nack.as_str()).filter(|nack| !nack.is_empty()));
        }
    }
    let has = |kinds: BTreeMap<&str, (Position, Option<&str>)>| {
        let lacking = || whole.0.iter().filter(|(kind, wanted)| kinds.get(*kind).is_none_or(|said| said.0 < **wanted));
        let refused = lacking().find_map(|(kind, _)| Some((kind, kinds.get(kind)?.1?)));
        let state = match (refused, lacking().next()) {
            (Some((kind, error)), _) => State::Refused(format!("{kind} {error}")),
            (None, Some(_)) => State::Late,
            (None, None) => State::Acknowledged,
        };
        Has { revision: kinds.get(kind::ALLOWLIST).map(|said| said.0).unwrap_or_default(), state }
    };
    said.into_iter().map(|(name, kinds)| (name, has(kinds))).collect()
}

/// Connected sidecars of each service.
pub(super) fn count_by_service(told: &[KindStatus]) -> BTreeMap<String, usize> {
    let names = told.iter().flat_map(|status| &status.followers);
    let names = names.filter(|follower| follower.connected_unix_seconds != 0).filter_map(sidecar);
    let mut services = BTreeMap::new();
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        *services.entry(name.service).or_default() += 1;
    }
    services
}

/// The control plane follows some kinds too; its processes are no sidecars.
fn sidecar(follower: &FollowerStatus) -> Option<Name> {
    let (_, service) = follower.spiffe_id.split_once("/svc/")?;
    (!service.starts_with(control_plane::PREFIX))
        .then(|| Name { service: service.to_owned(), instance: follower.instance.clone() })
}

/// How long whoever waits goes on asking.
pub(super) struct Patience {
    pub at_most: Duration,
    /// Shown in front of the count.
    pub progress: ProgressBar,
}

impl Patience {
    /// The count is drawn on standard error, and only when that is a terminal.
    pub fn new(at_most: Duration) -> Self {
        let progress = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            progress.set_style(style);
        }
        progress.enable_steady_tick(Duration::from_millis(200));
        Self { at_most, progress }
    }
}

/// Waits until every connected sidecar has the whole policy or refused it, or the time is over. One that was connected
/// and went away without it is late.
///
/// # Errors
/// No process of the policy service ever answered who follows.
pub(super) async fn wait(mesh: &Mesh, whole: &Whole, patience: &Patience) -> Result<Sidecars, Status> {
    let until = Instant::now() + patience.at_most;
    let mut asked = Asked::new(mesh);
    let (mut seen, mut failed): (Option<Sidecars>, _) = (None, None);
    loop {
        let next = Instant::now() + POLL;
        // Who does not answer in time is asked again: it may have been another process of the same address.
        match tokio::time::timeout_at(until.max(next), asked.look()).await {
            Ok(Ok(told)) => {
                let seen = seen.get_or_insert_default();
                merge(seen, judge(&told, whole));
                let acknowledged = seen.values().filter(|has| has.state == State::Acknowledged).count();
                patience.progress.set_message(format!("acknowledged {acknowledged} of {}", seen.len()));
                if seen.values().all(|has| has.state != State::Late) {
                    break;
                }
            }
            Ok(Err(status)) => failed = Some(status),
            Err(_) => {}
        }
        if Instant::now() >= until {
            break;
        }
        sleep_until(next.min(until)).await;
    }
    patience.progress.finish_and_clear();
    let silent = || Status::deadline_exceeded("the policy service does not say in time who follows it");
    seen.ok_or_else(|| failed.unwrap_or_else(silent))
}

/// What is known of those who are gone stays: who had acknowledged has done so, and who had not is late.
fn merge(seen: &mut Sidecars, now: Sidecars) {
    for (name, has) in seen.iter_mut() {
        if !now.contains_key(name) && has.state != State::Acknowledged {
            has.state = State::Late;
        }
    }
    seen.extend(now);
}

/// What the wait came to, for people and machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub acknowledged: usize,
    pub total: usize,
    /// Instance and error.
    pub refused: Vec<(String, String)>,
    pub late: Vec<String>,
}

impl From<Sidecars> for Outcome {
    fn from(sidecars: Sidecars) -> Self {
        let mut outcome = Self { acknowledged: 0, total: sidecars.len(), refused: Vec::new(), late: Vec::new() };
        for (name, has) in sidecars {
            match has.state {
                State::Acknowledged => outcome.acknowledged += 1,
                State::Late => outcome.late.push(name.instance),
                State::Refused(error) => outcome.refused.push((name.instance, error)),
            }
        }
        outcome
    }
}

impl Outcome {
    pub fn json(&self) -> serde_json::Value {
        let refused =
            self.refused.iter().map(|(instance, error)| serde_json::json!({"instance": instance, "error": error}));
        serde_json::json!({
            "acknowledged": self.acknowledged, "total": self.total, "refused": refused.collect::<Vec<_>>(), "late": self.late,
        })
    }

    /// One line.
    pub fn words(&self) -> String {
        format!("acknowledged by {} of {} sidecars", self.acknowledged, self.total)
    }

    /// When not every sidecar has it: `done` says what is done all the same.
    pub fn failure(&self, done: &str, patience: Duration) -> Option<Failure> {
        let refused = self.refused.iter().map(|(instance, error)| format!("\n{instance} refused it: {error}"));
        let late = self.late.iter().map(|instance| format!("\n{instance} has not acknowledged it"));
        let lines: String = refused.chain(late).collect();
        if !self.refused.is_empty() {
            let count = self.refused.len();
            return Some(Failure::new(format!("{done}, but {count} of {} sidecars refused it{lines}", self.total)).next(
                "they enforce what they had: correct what they name, or `tenon policy rollback REV`; `tenon policy history` has the revisions",
            ));
        }
        let (count, seconds) = (self.late.len(), patience.as_secs());
        (count > 0).then(|| {
            Failure::new(format!(
                "{done}, but {count} of {} sidecars have not acknowledged it after {seconds} s{lines}",
                self.total
            ))
            .next("they take it when they can: `tenon policy status` shows who has, `tenon check` says what is wrong")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follower(service: &str, instance: &str, revision: u64, nack: &str) -> FollowerStatus {
        FollowerStatus {
            instance: instance.into(),
            spiffe_id: format!("spiffe://demo.example/svc/{service}"),
            acknowledged: Some(Position::new(5, revision).into()),
            nack: nack.into(),
            connected_unix_seconds: 1,
            mode: 1,
        }
    }

    fn of(kind: &str, followers: Vec<FollowerStatus>) -> KindStatus {
        KindStatus { kind: kind.into(), followers, ..Default::default() }
    }

    fn whole(allowlist: u64, route: u64) -> Whole {
        let position = |kind: &str, revision| KindPosition { kind: kind.into(), epoch: 5, revision };
        Whole::new(&[position("allowlist", allowlist), position("route", route), position("attestation", 99)], 5, 1)
    }

    fn states(told: &[KindStatus], whole: &Whole) -> Vec<State> {
        judge(told, whole).into_values().map(|has| has.state).collect()
    }

    #[test]
    fn a_sidecar_has_the_policy_when_it_acknowledged_every_kind_at_one_of_its_parents() {
        let told = |allowlist, route| {
            [
                of("allowlist", vec![follower("media", "m1", allowlist, "")]),
                of("route", vec![follower("media", "m1", route, "")]),
                of("attestation", vec![follower("tenon-identity", "i", 1, "")]),
            ]
        };
        assert_eq!(states(&told(7, 3), &whole(7, 3)), [State::Acknowledged]);
        assert_eq!(states(&told(7, 2), &whole(7, 3)), [State::Late], "the route is missing");
        assert_eq!(states(&told(6, 3), &whole(7, 3)), [State::Late]);
        let two = [told(6, 3), told(7, 2)].concat();
        assert_eq!(states(&two, &whole(7, 3)), [State::Acknowledged], "one parent told it this, the other that");
        let one_kind = [of("allowlist", vec![follower("media", "m1", 9, "")])];
        assert_eq!(states(&one_kind, &whole(7, 3)), [State::Late], "it does not follow the routes yet");
    }

    #[test]
    fn a_refusal_counts_until_what_was_refused_is_behind() {
        let told = |revision| [of("allowlist", vec![follower("media", "m1", revision, "5.7: not a policy")])];
        let whole = Whole::new(&[], 5, 7);
        assert_eq!(states(&told(6), &whole), [State::Refused("allowlist 5.7: not a policy".into())]);
        assert_eq!(states(&told(7), &whole), [State::Acknowledged]);
        let mut gone = told(6);
        gone[0].followers[0].connected_unix_seconds = 0;
        assert_eq!(states(&gone, &whole), [], "it is listed for what it refused, and nobody waits for it");
    }

    #[test]
    fn who_goes_away_without_it_is_late_and_who_had_it_has_it() {
        let has = |state| Has { revision: Position::ZERO, state };
        let name = |instance: &str| Name { service: "media".into(), instance: instance.into() };
        let mut seen = Sidecars::from([
            (name("a"), has(State::Acknowledged)),
            (name("b"), has(State::Refused("x".into()))),
            (name("c"), has(State::Late)),
        ]);
        merge(&mut seen, Sidecars::from([(name("c"), has(State::Acknowledged)), (name("d"), has(State::Late))]));
        let states: Vec<_> = seen.into_values().map(|has| has.state).collect();
        assert_eq!(states, [State::Acknowledged, State::Late, State::Acknowledged, State::Late]);
    }

    #[test]
    fn sidecars_are_counted_once_however_many_kinds_and_parents_they_follow() {
        let both =
            vec![follower("media", "m1", 1, ""), follower("media", "m2", 1, ""), follower("tenon-tcs", "t", 1, "")];
        let told = [of("allowlist", both.clone()), of("route", both)];
        assert_eq!(count_by_service(&told), BTreeMap::from([("media".to_owned(), 2)]));
    }
}
