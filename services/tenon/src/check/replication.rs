//! Does everybody know what they should? Positions of followers against heads, and what they refused.

use std::time::Duration;

use futures_util::future::join_all;
use tenon_proto::kind;
use tenon_proto::replication::v1::{
    FollowerStatus, KindStatus, Position, StatusRequest, replication_client::ReplicationClient,
};
use tokio::time::{Instant, sleep};

use super::Finding;
use crate::{
    mesh_file::Sidecar,
    operator::{Mesh, Role, reason},
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

/// Asks each service that was reached.
pub async fn check(mesh: &Mesh, reached: &[Role]) -> Vec<Finding> {
    let sidecars = join_all(mesh.file().sidecars.iter().map(Instance::of)).await;
    join_all(reached.iter().map(|&role| of_role(mesh, role, &sidecars))).await.into_iter().flatten().collect()
}

async fn of_role(mesh: &Mesh, role: Role, sidecars: &[Instance<'_>]) -> Vec<Finding> {
    match settled(mesh, role, sidecars).await {
        Ok(kinds) => kinds.iter().flat_map(|kind| [positions(kind, sidecars), refusals(kind, sidecars)]).collect(),
        Err(status) => {
            let log = format!("read {}", mesh.data().log(role.name()).display());
            vec![Finding::bad("replication", role.title(), reason(&status), log)]
        }
    }
}

/// The status of all kinds, once all followers have caught up, or their time to do so is over.
async fn settled(mesh: &Mesh, role: Role, sidecars: &[Instance<'_>]) -> Result<Vec<KindStatus>, tonic::Status> {
    let until = Instant::now() + PATIENCE;
    let mut client = ReplicationClient::new(mesh.channel(role)).max_decoding_message_size(LARGEST_STATUS);
    loop {
        let kinds = client.status(StatusRequest { kind: String::new() }).await?.into_inner().kinds;
        let behind = kinds.iter().any(|kind| !positions(kind, sidecars).ok);
        if !behind || Instant::now() > until {
            return Ok(kinds);
        }
        sleep(POLL).await;
    }
}

fn positions(status: &KindStatus, sidecars: &[Instance<'_>]) -> Finding {
    let head = pair(status.head.as_ref());
    // Attestors are the identity service's affair alone.
    let expected = if status.kind == kind::ATTESTATION { &[] } else { sidecars };
    let missing = expected.iter().filter(|sidecar| !status.followers.iter().any(|follower| sidecar.is(follower)));
    let missing = missing.map(|missing| format!("{} does not follow", missing.sidecar.name));
    let behind = status.followers.iter().filter(|follower| pair(follower.acknowledged.as_ref()) < head);
    let behind =
        behind.map(|follower| format!("{} is at {}", who(follower, sidecars), shown(follower.acknowledged.as_ref())));
    let problems: Vec<_> = missing.chain(behind).collect();
    let head = shown(status.head.as_ref());
    if problems.is_empty() {
        let count = status.followers.len();
        return Finding::ok(
            "replication",
            &status.kind,
            format!("{} records at {head}, with all of {count} followers", status.records),
        );
    }
    Finding::bad(
        "replication",
        &status.kind,
        format!("head is {head}, but {}", problems.join(", ")),
        "see that these sidecars are ready and not overloaded, and read their logs; each keeps what it had meanwhile",
    )
}

fn refusals(status: &KindStatus, sidecars: &[Instance<'_>]) -> Finding {
    let refused: Vec<_> = status
        .followers
        .iter()
        .filter(|follower| !follower.nack.is_empty())
        .map(|follower| format!("{}: {}", who(follower, sidecars), follower.nack))
        .collect();
    if refused.is_empty() {
        return Finding::ok("accepted", &status.kind, "nobody refused a change");
    }
    Finding::bad(
        "accepted",
        &status.kind,
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

    fn status(followers: Vec<FollowerStatus>) -> KindStatus {
        KindStatus {
            kind: "tenant".into(),
            head: Some(Position { epoch: 5, revision: 9 }),
            records: 3,
            followers,
            ..KindStatus::default()
        }
    }

    #[test]
    fn followers_at_the_head_are_fine() {
        let finding = positions(&status(vec![follower(9, "")]), &named(&sidecar()));
        assert_eq!((finding.ok, finding.detail.as_str()), (true, "3 records at 5.9, with all of 1 followers"));
    }

    #[test]
    fn a_follower_that_is_behind_is_named_with_its_position() {
        let finding = positions(&status(vec![follower(8, "")]), &named(&sidecar()));
        assert_eq!((finding.ok, finding.detail.as_str()), (false, "head is 5.9, but media-us-east is at 5.8"));
        let finding = positions(&status(vec![follower(8, "")]), &[]);
        assert_eq!(finding.detail, "head is 5.9, but media-0123456789abcdef is at 5.8");
    }

    #[test]
    fn a_sidecar_that_does_not_follow_at_all_is_named() {
        let finding = positions(&status(Vec::new()), &named(&sidecar()));
        assert_eq!((finding.ok, finding.detail.as_str()), (false, "head is 5.9, but media-us-east does not follow"));
        let sidecar = sidecar();
        let silent = [Instance { sidecar: &sidecar, name: None }];
        assert!(!positions(&status(vec![follower(9, "")]), &silent).ok, "it is not known to be this follower");
    }

    #[test]
    fn a_refused_change_is_a_failure_with_the_followers_own_words() {
        assert!(refusals(&status(vec![follower(9, "")]), &[]).ok);
        let finding = refusals(&status(vec![follower(8, "record acme: not a tenant")]), &named(&sidecar()));
        assert_eq!(
            (finding.ok, finding.detail.as_str()),
            (false, "refused by media-us-east: record acme: not a tenant")
        );
    }
}
