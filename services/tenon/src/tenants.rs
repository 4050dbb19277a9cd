//! `tenon tenants`: the write side of the TCS, and reading single tenants.

mod event;
mod import;
mod watch;

use std::fmt::Write as _;

use replica::Position;
use tenon_proto::tcs::v1::{
    DeleteRequest, GetRequest, ListRequest, Revision, SuspendRequest, TenantContext, UnsuspendRequest, WriteResponse,
    get_request::By, product, tenant_context::Status, tenants_client::TenantsClient,
};
use tonic::{Code, transport::Channel};

use crate::{
    cli::{GetTenant, ListTenants, TenantId, Tenants},
    failure::{Answer, Failure},
    operator::{Mesh, Role, from_the_connection},
    output::Output,
};

/// Runs one of the commands.
///
/// # Errors
/// No mesh, no answer, or an answer that is an error; the text says what to do.
pub async fn run(command: Tenants) -> Result<Answer, Failure> {
    match command {
        Tenants::Import(args) | Tenants::Apply(args) => import::run(args).await,
        Tenants::Get(args) => get(args).await,
        Tenants::List(args) => list(args).await,
        Tenants::Watch(args) => watch::run(args).await,
        Tenants::Event(args) => event::run(args).await,
        Tenants::Suspend(args) => write(args, Verb::Suspend).await,
        Tenants::Unsuspend(args) => write(args, Verb::Unsuspend).await,
        Tenants::Delete(args) => write(args, Verb::Delete).await,
    }
}

/// A client of a TCS of the running mesh that takes writes.
fn client(mesh: &Mesh) -> TenantsClient<Channel> {
    TenantsClient::new(mesh.tcs())
}

/// A client of any TCS of the running mesh.
fn reads(mesh: &Mesh) -> TenantsClient<Channel> {
    TenantsClient::new(mesh.tcs_for_reads())
}

async fn get(args: GetTenant) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let at_least = args.at_least.map(|Position { epoch, revision }| Revision { epoch, revision });
    let (by, name) = match (args.id, args.host) {
        (Some(id), _) => (By::TenantId(id.clone()), format!("tenant {id}")),
        (None, Some(host)) => (By::Host(host.clone()), format!("a tenant with the host {host}")),
        (None, None) => return Err(Failure::usage("no tenant named").next("give its id, or a host with --host")),
    };
    let tenant = reads(&mesh)
        .get(GetRequest { by: Some(by), at_least })
        .await
        .map_err(|status| {
            if status.code() == Code::NotFound {
                return unknown(&name);
            }
            let failure = mesh.read_failure(&format!("cannot read {name}"), &status);
            // It has waited for that revision.
            let waited = args.at_least.is_some() && status.code() == Code::Unavailable && !from_the_connection(&status);
            if waited { failure.next("repeat it; `tenon check` shows who is behind") } else { failure }
        })?
        .into_inner();
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&tenant)?;
    } else {
        out.table(&["field", "value"], &fields(&tenant))?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

async fn list(args: ListTenants) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let failed = |status: tonic::Status| mesh.read_failure("cannot list tenants", &status);
    let request = ListRequest { region: args.region.unwrap_or_default() };
    let mut tenants = reads(&mesh).list(request).await.map_err(failed)?.into_inner();
    let mut out = Output::stdout(args.output.output);
    // JSON goes out as it comes in: a million tenants need no memory for it. A table must know its widths first.
    let mut rows = Vec::new();
    let mut separator = "[\n";
    while let Some(tenant) = tenants.message().await.map_err(failed)? {
        if out.is_json() {
            let line = serde_json::to_string(&tenant)
                .map_err(|error| Failure::new(format!("cannot write tenant {} as JSON: {error}", tenant.tenant_id)))?;
            out.raw(&format!("{separator}  {line}"))?;
            separator = ",\n";
        } else {
            rows.push(row(&tenant));
        }
    }
    if out.is_json() {
        out.line(if separator == "[\n" { "[]" } else { "\n]" })?;
    } else {
        out.table(&["tenant", "status", "region", "products", "hosts", "revision"], &rows)?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

/// What is done to one tenant.
#[derive(Debug, Clone, Copy)]
enum Verb {
    Suspend,
    Unsuspend,
    Delete,
}

async fn write(args: TenantId, verb: Verb) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let mut client = client(&mesh);
    let tenant_id = args.id.clone();
    let (is, was, answer) = match verb {
        Verb::Suspend => ("suspended", "suspended", client.suspend(SuspendRequest { tenant_id }).await),
        Verb::Unsuspend => ("active", "unsuspended", client.unsuspend(UnsuspendRequest { tenant_id }).await),
        Verb::Delete => ("deleted", "deleted", client.delete(DeleteRequest { tenant_id }).await),
    };
    let WriteResponse { epoch, revision } =
        answer.map_err(|status| not_written(&mesh, &args.id, was, &status))?.into_inner();
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&serde_json::json!({"tenantId": args.id, "epoch": epoch, "revision": revision}))?;
    } else {
        out.line(&format!("{} is {is}, revision {epoch}.{revision}", args.id))?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

/// The failure of a call that names a tenant which does not exist.
fn unknown(name: &str) -> Failure {
    Failure::new(format!("there is no {name}").replace("no tenant ", "no tenant named ").replace("no a ", "no "))
        .next("`tenon tenants list` shows those that there are")
}

/// The failure of a write by which one tenant would have been `suspended`, or what else it is.
fn not_written(mesh: &Mesh, id: &str, what: &str, status: &tonic::Status) -> Failure {
    if status.code() == Code::NotFound {
        return unknown(&format!("tenant {id}"));
    }
    let find_out = format!("it may have been done: `tenon tenants get {id}` tells");
    mesh.write_failure(Role::Tcs, &format!("tenant {id} was not {what}"), &find_out, status)
}

fn status_name(tenant: &TenantContext) -> String {
    Status::try_from(tenant.status).map_or_else(|_| tenant.status.to_string(), |status| status.as_str_name().to_owned())
}

fn row(tenant: &TenantContext) -> Vec<String> {
    vec![
        tenant.tenant_id.clone(),
        status_name(tenant),
        tenant.region.clone(),
        tenant.products.keys().cloned().collect::<Vec<_>>().join(","),
        tenant.hosts.join(","),
        tenant.revision.to_string(),
    ]
}

/// One tenant, a field a row; parts of products and settings with dots between.
fn fields(tenant: &TenantContext) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut push = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![name.to_owned(), value]);
        }
    };
    push("tenantId", tenant.tenant_id.clone());
    push("revision", tenant.revision.to_string());
    push("status", status_name(tenant));
    push("hosts", tenant.hosts.join(" "));
    push("realm", tenant.realm.clone());
    push("region", tenant.region.clone());
    push("move", tenant.r#move.as_ref().map_or_else(String::new, |to| format!("to {}", to.to_region)));
    for (name, product) in &tenant.products {
        let mut value = product::State::try_from(product.state)
            .map_or_else(|_| product.state.to_string(), |state| state.as_str_name().to_owned());
        if !product.edition.is_empty() {
            let _ = write!(value, ", edition {}", product.edition);
        }
        if product.seats > 0 {
            let _ = write!(value, ", {} seats", product.seats);
        }
        if let Some(end) = &product.license_expires_at {
            let at = u64::try_from(end.seconds).map(crate::output::rfc3339).unwrap_or_default();
            let _ = write!(value, ", licensed until {at}");
        }
        if !product.features.is_empty() {
            let _ = write!(value, ", features {}", product.features.join(" "));
        }
        if let Some(shard) = &product.shard {
            let _ = write!(value, ", shard {}/{}/{}", shard.cluster, shard.database, shard.schema);
        }
        push(&format!("products.{name}"), value);
    }
    for (name, value) in &tenant.settings {
        push(&format!("settings.{name}"), value.clone());
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_shown_with_all_that_it_has() {
        let tenant: TenantContext = serde_json::from_str(
            r#"{"tenantId":"acme","revision":"7","status":"ACTIVE","hosts":["acme.example"],"region":"us-east",
                "products":{"media":{"state":"ACTIVE","seats":5,"shard":{"cluster":"c","database":"d","schema":"s"},
                "licenseExpiresAt":"2027-01-01T00:00:00Z"}},"settings":{"theme":"dark"}}"#,
        )
        .unwrap();
        let text: Vec<String> = fields(&tenant).into_iter().map(|row| row.join("=")).collect();
        assert_eq!(
            text,
            [
                "tenantId=acme",
                "revision=7",
                "status=ACTIVE",
                "hosts=acme.example",
                "region=us-east",
                "products.media=ACTIVE, 5 seats, licensed until 2027-01-01T00:00:00Z, shard c/d/s",
                "settings.theme=dark",
            ]
        );
        assert_eq!(row(&tenant), ["acme", "ACTIVE", "us-east", "media", "acme.example", "7"]);
    }
}
