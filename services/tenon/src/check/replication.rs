//! Does everybody know what they should? Positions of followers against heads, and what they refused.

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tenon_proto::kind;
use tenon_proto::replication::v1::{
    FollowerStatus, KindStatus, Position, StatusRequest, replication_client::ReplicationClient,
};
use tokio::time::{Instant, sleep};

use super::{Finding, catalogue};
use crate::{
    mesh_file::Sidecar,
    operator::{Mesh, Process, Role, reason},
    probe,
};

/// A status names every follower of every kind: some megabytes for ten thousand sidecars.
const LARGEST_STATUS: usize = 64 * 1024 * 1024;
/// How long a follower may take to acknowledge what is being written right now.
const PATIENCE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(100);

/// A sidecar, and the name that it follows under.
pub struct Instance<'m> {
    sidecar: &'m Sidecar,
    /// None when it does not answer.
    name: Option<String>,
}

impl<'m> Instance<'m> {
    /// Asks the sidecar for its name.
    pub async fn of(sidecar: &'m Sidecar) -> Self {
        let config = probe::get(sidecar.admin, "/config").await.ok();
        let config = config.and_then(|answer| serde_json::from_str::<serde_json::Value>(&answer.body).ok());
        let name = config.and_then(|config| Some(config["membership"]["instance"].as_str()?.to_owned()));
        Self { sidecar, name }
    }

    fn is(&self, follower: &FollowerStatus) -> bool {
        follower.spiffe_id.ends_with(&format!("/svc/{}", self.sidecar.service))
            && self.name.as_ref() == Some(&follower.instance)
    }
}

/// What one process says of one kind, and who is it.
struct Told<'p> {
    process: &'p Process,
    /// What findings name: the kind, and the process where several serve it.
    subject: String,
    status: KindStatus,
}

impl Told<'_> {
    /// Those who are connected; others are listed for what they refused.
    fn connected(&self) -> impl Iterator<Item = &FollowerStatus> {
        self.status.followers.iter().filter(|follower| follower.connected_unix_seconds != 0)
    }

    fn is_followed_by(&self, sidecar: &Instance<'_>) -> bool {
        self.connected().any(|follower| sidecar.is(follower))
    }

    /// How it is said that a sidecar does not follow.
    fn missing(&self, sidecar: &Instance<'_>) -> String {
        let name = &sidecar.sidecar.name;
        match self.status.followers.iter().find(|follower| sidecar.is(follower)) {
            Some(gone) => format!("{name} does not follow: it refused {}", gone.nack),
            None => format!("{name} does not follow"),
        }
    }
}

/// Asks each service that was reached.
pub async fn check(mesh: &Mesh, reached: &[Process]) -> Vec<Finding> {
    let sidecars = join_all(mesh.file().sidecars.iter().map(Instance::of)).await;
    join_all(Role::ALL.map(|role| of_role(mesh, role, reached, &sidecars))).await.into_iter().flatten().collect()
}

async fn of_role(mesh: &Mesh, role: Role, reached: &[Process], sidecars: &[Instance<'_>]) -> Vec<Finding> {
    let processes: Vec<&Process> = reached.iter().filter(|process| process.role == role).collect();
    match settled(mesh, &processes, sidecars).await {
        Ok(told) => told
            .iter()
            .flat_map(|one| {
                [Some(positions(one, &told, sidecars)), Some(refusals(one, sidecars)), alarms(one)]
                    .into_iter()
                    .flatten()
            })
            .chain(together(&told))
            .collect(),
        Err((process, status)) => {
            let log = format!("read {}", mesh.data().log(&process.name).display());
            vec![Finding::bad(catalogue::REPLICATION, &process.title, reason(&status), log)]
        }
    }
}

/// The status of all kinds at all processes of a service, once all followers have caught up, or their time to do so is
/// over.
async fn settled<'p>(
    mesh: &Mesh,
    processes: &[&'p Process],
    sidecars: &[Instance<'_>],
) -> Result<Vec<Told<'p>>, (&'p Process, tonic::Status)> {
    let until = Instant::now() + PATIENCE;
    loop {
        let told = try_join_all(processes.iter().map(|process| ask(mesh, process, processes.len() > 1))).await?;
        let told: Vec<_> = told.into_iter().flatten().collect();
        let behind =
            told.iter().any(|one| !positions(one, &told, sidecars).ok) || together(&told).is_some_and(|f| !f.ok);
        if !behind || Instant::now() > until {
            return Ok(told);
        }
        sleep(POLL).await;
    }
}

async fn ask<'p>(
    mesh: &Mesh,
    process: &'p Process,
    several: bool,
) -> Result<Vec<Told<'p>>, (&'p Process, tonic::Status)> {
    let mut client = ReplicationClient::new(mesh.channel_to(process)).max_decoding_message_size(LARGEST_STATUS);
    let answer = client.status(StatusRequest { kind: String::new() }).await.map_err(|status| (process, status))?;
    let told = |status: KindStatus| {
        let subject = if several { format!("{} at {}", status.kind, process.name) } else { status.kind.clone() };
        Told { process, subject, status }
    };
    Ok(answer.into_inner().kinds.into_iter().map(told).collect())
}

/// A sidecar follows at most this many processes of one service.
const PARENTS: usize = 2;

/// Whether the sidecar follows enough of the processes besides this one.
fn follows_others(sidecar: &Instance<'_>, this: &Told<'_>, all: &[Told<'_>]) -> bool {
    let others = all.iter().filter(|other| other.status.kind == this.status.kind && other.process != this.process);
    others.filter(|other| other.is_followed_by(sidecar)).count() >= PARENTS
}

fn positions(told: &Told<'_>, all: &[Told<'_>], sidecars: &[Instance<'_>]) -> Finding {
    let status = &told.status;
    let head = pair(status.head.as_ref());
    // Attestors are the identity service's affair alone.
    let expected = if status.kind == kind::ATTESTATION { &[] } else { sidecars };
    let missing = expected.iter().filter(|sidecar| !told.is_followed_by(sidecar));
    let missing = missing.filter(|sidecar| !follows_others(sidecar, told, all));
    let missing = missing.map(|missing| told.missing(missing));
    let behind = told.connected().filter(|follower| pair(follower.acknowledged.as_ref()) < head);
    let behind =
        behind.map(|follower| format!("{} is at {}", who(follower, sidecars), shown(follower.acknowledged.as_ref())));
    let problems: Vec<_> = missing.chain(behind).collect();
    let head = shown(status.head.as_ref());
    if problems.is_empty() {
        let count = told.connected().count();
        return Finding::ok(
            catalogue::REPLICATION,
            &told.subject,
            format!("{} records at {head}, with all of {count} followers", status.records),
        );
    }
    Finding::bad(
        catalogue::REPLICATION,
        &told.subject,
        format!("head is {head}, but {}", problems.join(", ")),
        "see that these sidecars are ready and not overloaded, and read their logs; each keeps what it had meanwhile",
    )
}

/// Whether several processes that serve a kind are at one position; nothing when there is one process.
fn together(all: &[Told<'_>]) -> Option<Finding> {
    let first = all.first().filter(|first| all.iter().any(|other| other.process != first.process))?;
    let kind = &first.status.kind;
    let same = || all.iter().filter(|told| told.status.kind == *kind);
    let newest = same().map(|told| pair(told.status.head.as_ref())).max()?;
    let behind: Vec<_> = same()
        .filter(|told| pair(told.status.head.as_ref()) < newest)
        .map(|told| format!("{} is at {}", told.process.title, shown(told.status.head.as_ref())))
        .collect();
    let (epoch, revision) = newest;
    if behind.is_empty() {
        return Some(Finding::ok(
            catalogue::TOGETHER,
            kind,
            format!("all {} are at {epoch}.{revision}", same().count()),
        ));
    }
    Some(Finding::bad(
        catalogue::TOGETHER,
        kind,
        format!("the newest is {epoch}.{revision}, but {}", behind.join(", ")),
        "see that it reaches what it follows, and read its log; sidecars take what is newer from the other one meanwhile",
    ))
}

/// What the service itself says is wrong; nothing when all is well.
fn alarms(told: &Told<'_>) -> Option<Finding> {
    let alarms = &told.status.alarms;
    (!alarms.is_empty()).then(|| {
        Finding::bad(
            catalogue::ALARM,
            &told.subject,
            alarms.join("; "),
            "what was good before is served on meanwhile; the service's log has more",
        )
    })
}

fn refusals(told: &Told<'_>, sidecars: &[Instance<'_>]) -> Finding {
    let refused: Vec<_> = told
        .status
        .followers
        .iter()
        .filter(|follower| !follower.nack.is_empty())
        .map(|follower| format!("{}: {}", who(follower, sidecars), follower.nack))
        .collect();
    if refused.is_empty() {
        return Finding::ok(catalogue::ACCEPTED, &told.subject, "nobody refused a change");
    }
    Finding::bad(
        catalogue::ACCEPTED,
        &told.subject,
        format!("refused by {}", refused.join(", ")),
        "correct the record that is named and write it again, or bring the follower to the same version; it keeps what it had",
    )
}

/// The sidecar's name in the mesh, or what the follower calls itself.
fn who<'f>(follower: &'f FollowerStatus, sidecars: &'f [Instance<'_>]) -> &'f str {
    sidecars.iter().find(|sidecar| sidecar.is(follower)).map_or(&follower.instance, |found| &found.sidecar.name)
}

fn pair(position: Option<&Position>) -> (u64, u64) {
    position.map_or((0, 0), |position| (position.epoch, position.revision))
}

fn shown(position: Option<&Position>) -> String {
    let (epoch, revision) = pair(position);
    format!("{epoch}.{revision}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sidecar() -> Sidecar {
        Sidecar {
            name: "media-us-east".into(),
            service: "media".into(),
            region: "us-east".into(),
            zone: None,
            app: None,
            outbound: "127.0.0.1:1".into(),
            inbound: ([127, 0, 0, 1], 2).into(),
            admin: ([127, 0, 0, 1], 3).into(),
            state_dir: "state".into(),
            command: Vec::new(),
        }
    }

    fn named<'m>(sidecar: &'m Sidecar) -> [Instance<'m>; 1] {
        [Instance { sidecar, name: Some("media-0123456789abcdef".into()) }]
    }

    fn follower(revision: u64, nack: &str) -> FollowerStatus {
        FollowerStatus {
            instance: "media-0123456789abcdef".into(),
            spiffe_id: "spiffe://demo.example/svc/media".into(),
            acknowledged: Some(Position { epoch: 5, revision }),
            nack: nack.into(),
            connected_unix_seconds: 1,
            mode: 1,
        }
    }

    fn process(name: &str) -> Process {
        Process { role: Role::Tcs, name: name.into(), title: name.into(), address: ([127, 0, 0, 1], 1).into() }
    }

    fn told(process: &Process, revision: u64, followers: Vec<FollowerStatus>) -> Told<'_> {
        let status = KindStatus {
            kind: "tenant".into(),
            head: Some(Position { epoch: 5, revision }),
            records: 3,
            followers,
            ..KindStatus::default()
        };
        Told { process, subject: "tenant".into(), status }
    }

    /// Of a service that one process serves.
    fn alone(followers: Vec<FollowerStatus>, sidecars: &[Instance<'_>]) -> Finding {
        let process = process("tcs");
        let told = [told(&process, 9, followers)];
        positions(&told[0], &told, sidecars)
    }

    #[test]
    fn followers_at_the_head_are_fine() {
        let finding = alone(vec![follower(9, "")], &named(&sidecar()));
        assert_eq!((finding.ok, finding.detail.as_str()), (true, "3 records at 5.9, with all of 1 followers"));
    }

    #[test]
    fn a_follower_that_is_behind_is_named_with_its_position() {
        let finding = alone(vec![follower(8, "")], &named(&sidecar()));
        assert_eq!((finding.ok, finding.detail.as_str()), (false, "head is 5.9, but media-us-east is at 5.8"));
        let finding = alone(vec![follower(8, "")], &[]);
        assert_eq!(finding.detail, "head is 5.9, but media-0123456789abcdef is at 5.8");
    }

    #[test]
    fn a_sidecar_that_does_not_follow_at_all_is_named() {
        let finding = alone(Vec::new(), &named(&sidecar()));
        assert_eq!((finding.ok, finding.detail.as_str()), (false, "head is 5.9, but media-us-east does not follow"));
        let sidecar = sidecar();
        let silent = [Instance { sidecar: &sidecar, name: None }];
        assert!(!alone(vec![follower(9, "")], &silent).ok, "it is not known to be this follower");
    }

    #[test]
    fn a_refused_change_is_a_failure_with_the_followers_own_words() {
        let process = process("tcs");
        assert!(refusals(&told(&process, 9, vec![follower(9, "")]), &[]).ok);
        let told = told(&process, 9, vec![follower(8, "record acme: not a tenant")]);
        let finding = refusals(&told, &named(&sidecar()));
        assert_eq!(
            (finding.ok, finding.detail.as_str()),
            (false, "refused by media-us-east: record acme: not a tenant")
        );
    }

    #[test]
    fn one_that_refused_and_went_does_not_follow_and_its_reason_is_named() {
        let gone = FollowerStatus { connected_unix_seconds: 0, ..follower(8, "6.1: refused as poisoned") };
        let finding = alone(vec![gone.clone()], &named(&sidecar()));
        assert_eq!(
            (finding.ok, finding.detail.as_str()),
            (false, "head is 5.9, but media-us-east does not follow: it refused 6.1: refused as poisoned")
        );
        let finding = alone(vec![gone], &[]);
        assert_eq!((finding.ok, finding.detail.as_str()), (true, "3 records at 5.9, with all of 0 followers"));
    }

    #[test]
    fn each_of_two_must_be_followed_and_two_of_three_are_enough() {
        let (sidecar, names) = (sidecar(), ["tcs", "tcs-2", "tcs-3"].map(process));
        let sidecars = named(&sidecar);
        let all = [
            told(&names[0], 9, vec![follower(9, "")]),
            told(&names[1], 9, Vec::new()),
            told(&names[2], 9, vec![follower(9, "")]),
        ];
        assert!(!positions(&all[1], &all[..2], &sidecars).ok, "it follows one of two");
        assert!(positions(&all[1], &all, &sidecars).ok, "it follows two of three");
    }

    #[test]
    fn a_tcs_that_is_behind_the_other_is_named() {
        let names = ["tcs", "tcs-2"].map(process);
        let one = |revision| told(&names[1], revision, Vec::new());
        assert_eq!(together(&[told(&names[0], 9, Vec::new())]), None);
        assert!(together(&[told(&names[0], 9, Vec::new()), one(9)]).unwrap().ok);
        let finding = together(&[told(&names[0], 9, Vec::new()), one(8)]).unwrap();
        assert_eq!((finding.ok, finding.detail.as_str()), (false, "the newest is 5.9, but tcs-2 is at 5.8"));
    }

    #[test]
    fn an_alarm_of_the_service_is_a_failure_in_its_own_words() {
        let process = process("tcs");
        let mut told = told(&process, 9, Vec::new());
        assert_eq!(alarms(&told), None);
        told.status.alarms = vec!["revision 5.10 is refused".into()];
        let finding = alarms(&told).unwrap();
        assert_eq!((finding.ok, finding.detail.as_str()), (false, "revision 5.10 is refused"));
    }
}
