//! `tenants watch`: changes as they are made, until somebody has seen enough.

use std::{
    collections::HashMap,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use replica::Position;
use tenon_proto::tcs::v1::{Revision, TenantContext, WatchRequest, WatchResponse, tenants_client::TenantsClient};
use tonic::{Code, Status, transport::Channel};

use super::{fields, status_name};
use crate::{
    cli::Watch,
    failure::{Answer, Failure},
    operator::{Mesh, reason},
};

/// The wait before a TCS that went away is asked again; it doubles.
const SHORTEST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Tenants that are remembered as they were, so that a line can say what of one has changed.
const REMEMBERED: usize = 10_000;

/// Runs the command until Ctrl-C, or until nobody reads its output any more.
///
/// # Errors
/// No mesh, no answer to begin with, or changes that are no longer kept; the text says what to do.
pub async fn run(args: Watch) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let lines = io::stdout().is_terminal() && args.output.output == crate::cli::Format::Table;
    let mut watch = Watching {
        client: TenantsClient::new(mesh.tcs_for_reads()),
        only: args.id.unwrap_or_default(),
        after: args.from,
        shown: lines.then(Shown::default),
        mesh,
    };
    tokio::select! {
        outcome = watch.forever() => outcome.map(|()| Answer::Yes),
        _ = tokio::signal::ctrl_c() => Ok(Answer::Yes),
    }
}

struct Watching {
    mesh: Mesh,
    client: TenantsClient<Channel>,
    only: String,
    /// The last change that was shown, or where the watch began.
    after: Option<Position>,
    /// On a terminal.
    shown: Option<Shown>,
}

/// Why a stream ended.
enum End {
    Broke(Status),
    /// Nobody reads any more.
    SeenEnough,
}

impl Watching {
    async fn forever(&mut self) -> Result<(), Failure> {
        let (mut wait, mut begun) = (SHORTEST_WAIT, false);
        loop {
            let before = self.after;
            let status = match self.stream(&mut begun).await {
                End::SeenEnough => return Ok(()),
                End::Broke(status) => status,
            };
            if !begun || !may_come_back(&status) {
                return Err(self.failure(&status));
            }
            if self.after != before {
                wait = SHORTEST_WAIT;
            }
            if wait > SHORTEST_WAIT {
                let _ = writeln!(io::stderr(), "the TCS is away, trying again: {}", reason(&status));
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn stream(&mut self, begun: &mut bool) -> End {
        let after = self.after.map(|Position { epoch, revision }| Revision { epoch, revision });
        let request = WatchRequest { after, tenant_id: self.only.clone() };
        let mut changes = match self.client.watch(request).await {
            Ok(changes) => changes.into_inner(),
            Err(status) => return End::Broke(status),
        };
        loop {
            match changes.message().await {
                Ok(Some(change)) => {
                    *begun = true;
                    self.after = Some(Position::new(change.epoch, change.revision));
                    // The first one only says where it begins.
                    if !change.tenant_id.is_empty() && self.show(&change).is_err() {
                        return End::SeenEnough;
                    }
                }
                Ok(None) => return End::Broke(Status::unavailable("the TCS ended the stream")),
                Err(status) => return End::Broke(status),
            }
        }
    }

    fn show(&mut self, change: &WatchResponse) -> io::Result<()> {
        let line = match &mut self.shown {
            Some(shown) => shown.line(change),
            None => serde_json::to_string(change)?,
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    }

    fn failure(&self, status: &Status) -> Failure {
        if status.code() == Code::OutOfRange {
            let from = self.after.map_or_else(String::new, |after| format!(" after {after}"));
            return Failure::new(format!("the changes{from} are no longer kept, or are of another epoch")).next(
                "`tenon tenants list` shows how things are now; `tenon tenants watch` without --from begins there",
            );
        }
        self.mesh.read_failure("cannot watch the tenants", status)
    }
}

/// Whether the same may be asked again soon: the process or the connection went away.
fn may_come_back(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded
    )
}

/// What was shown, to tell what has changed.
#[derive(Default)]
struct Shown {
    tenants: HashMap<String, TenantContext>,
}

impl Shown {
    fn line(&mut self, change: &WatchResponse) -> String {
        let at = change.at.as_ref().and_then(|at| jiff::Timestamp::new(at.seconds, at.nanos).ok());
        let at = at.map_or_else(|| "-".to_owned(), |at| format!("{at:.3}"));
        let what = match &change.tenant {
            None => "deleted".to_owned(),
            Some(tenant) => {
                self.tenants.get(&change.tenant_id).map_or_else(|| whole(tenant), |old| differs(old, tenant))
            }
        };
        if self.tenants.len() >= REMEMBERED {
            self.tenants.clear();
        }
        match &change.tenant {
            Some(tenant) => drop(self.tenants.insert(change.tenant_id.clone(), tenant.clone())),
            None => drop(self.tenants.remove(&change.tenant_id)),
        }
        format!("{at:<24}  {:>8}  {:<24}  {what}", change.revision, change.tenant_id)
    }
}

/// A tenant that was not shown before, in short.
fn whole(tenant: &TenantContext) -> String {
    let mut parts = vec![status_name(tenant)];
    if !tenant.region.is_empty() {
        parts.push(tenant.region.clone());
    }
    if let Some(to) = &tenant.r#move {
        parts.push(format!("moves to {}", to.to_region));
    }
    parts.extend(tenant.products.iter().map(|(name, product)| format!("{name} {}", product.state().as_str_name())));
    parts.join(", ")
}

/// The fields that are not as they were.
fn differs(old: &TenantContext, new: &TenantContext) -> String {
    let (old, new) = (fields(old), fields(new));
    let find = |rows: &[Vec<String>], name: &str| rows.iter().find(|row| row[0] == name).map(|row| row[1].clone());
    let mut parts = Vec::new();
    for row in new.iter().filter(|row| row[0] != "revision") {
        match find(&old, &row[0]) {
            Some(before) if before == row[1] => {}
            Some(before) => parts.push(format!("{}: {before} -> {}", row[0], row[1])),
            None => parts.push(format!("{}: {}", row[0], row[1])),
        }
    }
    parts.extend(old.iter().filter(|row| find(&new, &row[0]).is_none()).map(|row| format!("{}: none", row[0])));
    if parts.is_empty() { "written again as it was".to_owned() } else { parts.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64, json: &str) -> WatchResponse {
        let tenant = (!json.is_empty()).then(|| serde_json::from_str(json).unwrap());
        let at = serde_json::from_str("\"2026-11-22T10:00:00.250Z\"").unwrap();
        WatchResponse { epoch: 7, revision, at: Some(at), tenant_id: "acme".into(), tenant }
    }

    #[test]
    fn a_line_says_when_which_and_what() {
        let mut shown = Shown::default();
        let first =
            r#"{"tenantId":"acme","status":"ACTIVE","region":"us-east","products":{"media":{"state":"ACTIVE"}}}"#;
        let line = shown.line(&change(4, first));
        assert_eq!(line, format!("2026-11-22T10:00:00.250Z  {:>8}  {:<24}  ACTIVE, us-east, media ACTIVE", 4, "acme"));
        let second = r#"{"tenantId":"acme","status":"SUSPENDED","region":"us-east","hosts":["a.example"]}"#;
        let line = shown.line(&change(5, second));
        assert!(line.ends_with("status: ACTIVE -> SUSPENDED; hosts: a.example; products.media: none"), "{line}");
        assert!(shown.line(&change(6, second)).ends_with("written again as it was"));
        assert!(shown.line(&change(7, "")).ends_with("  deleted"));
        assert!(shown.line(&change(8, second)).ends_with("SUSPENDED, us-east"), "nothing is known of it any more");
    }
}
