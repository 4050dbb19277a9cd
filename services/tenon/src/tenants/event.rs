//! `tenants event`: one lifecycle event, as a provisioning system would send it.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use tenon_proto::tcs::v1::{LifecycleEvent, LifecycleResponse, lifecycle_client::LifecycleClient};
use tonic::{Code, Status};

use crate::{
    cli::LifecycleEventArgs,
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::Output,
};

/// Runs the command.
///
/// # Errors
/// The file is no event, or the TCS refused it, with what would be legal.
pub async fn run(args: LifecycleEventArgs) -> Result<Answer, Failure> {
    let event = read(&args.file)?;
    let mesh = Mesh::find(&args.mesh.data)?;
    let (event_id, tenant) = (event.event_id.clone(), event.tenant_id.clone());
    let answer = LifecycleClient::new(mesh.tcs()).apply(event).await;
    let LifecycleResponse { epoch, revision, repeated_event } =
        answer.map_err(|status| refused(&mesh, &event_id, &status))?.into_inner();
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&serde_json::json!({
            "eventId": event_id, "tenantId": tenant, "epoch": epoch, "revision": revision, "repeatedEvent": repeated_event,
        }))?;
    } else {
        let what = if repeated_event { "was applied before" } else { "is applied" };
        out.line(&format!("{event_id} {what} to {tenant}, revision {epoch}.{revision}"))?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

fn read(file: &Path) -> Result<LifecycleEvent, Failure> {
    let (name, text) = if file == Path::new("-") {
        let mut text = String::new();
        ("standard input".to_owned(), io::stdin().read_to_string(&mut text).map(|_| text))
    } else {
        (file.display().to_string(), fs::read_to_string(file))
    };
    let text = text.map_err(|error| {
        Failure::new(format!("cannot read {name}: {error}"))
            .next("name a file with one event as JSON, or - for standard input")
    })?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::new(format!("{name}:{}:{}: no lifecycle event: {error}", error.line(), error.column())).next(
            "write one like {\"eventId\":\"crm-1\",\"tenantId\":\"acme\",\"suspendTenant\":{}}; docs/tcs.md lists the events",
        )
    })
}

fn refused(mesh: &Mesh, event_id: &str, status: &Status) -> Failure {
    let what = format!("event {event_id} was not applied");
    let again = format!("event {event_id} may have been applied: send the same event again: it is applied once");
    let answer = |next: &str| Failure::new(format!("{what}: {}", status.message())).next(next);
    if status.code() == Code::Aborted {
        return answer("read the tenant with `tenon tenants get`, and decide again with another event id");
    }
    if status.code() == Code::FailedPrecondition {
        return answer("send one of the events that it names, or bring the tenant into another state first");
    }
    mesh.write_failure(Role::Tcs, &what, &again, status)
}
