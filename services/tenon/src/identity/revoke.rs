//! `tenon identity revoke`.

use std::io::Write as _;

use tenon_proto::identity::v1::{
    LiftRevocationRequest, ListRevocationsRequest, Revocation, RevokeRequest, RevokeResponse,
    identity_client::IdentityClient, lift_revocation_request, revocation, revoke_request,
};

use crate::{
    cli::Revoke,
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::{Output, rfc3339},
    up::operator_name,
};

/// A list of revocations: two hundred bytes each.
const LARGEST_LIST: usize = 64 * 1024 * 1024;

/// What to do when it is not known whether something was revoked. What is listed may not be kept by the disk yet.
const AGAIN: &str = "it may have been done: repeat it until it succeeds, which changes nothing twice";

/// What to do when it is not known whether a revocation was lifted.
const FIND_OUT: &str = "it may have been done: `tenon identity revoke --list` tells";

/// Revokes, lifts or lists.
///
/// # Errors
/// No mesh, or the identity service refused.
pub async fn run(args: Revoke) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let client = IdentityClient::new(mesh.channel(Role::Identity)).max_decoding_message_size(LARGEST_LIST);
    if args.list {
        return list(&mesh, client, args).await;
    }
    let (kind, name) = selected(&args)?;
    let (what, RevokeResponse { epoch, revision, warning }) = if args.lift {
        let what = match kind {
            "service" => lift_revocation_request::What::Service(name.clone()),
            "operator" => lift_revocation_request::What::Operator(name.clone()),
            "kid" => lift_revocation_request::What::Kid(name.clone()),
            _ => lift_revocation_request::What::Serial(name.clone()),
        };
        let answer = client.clone().lift_revocation(LiftRevocationRequest { what: Some(what) }).await;
        let not_done = format!("cannot lift the revocation of {kind} {name}");
        let failed = |status| mesh.write_failure(Role::Identity, &not_done, FIND_OUT, &status);
        ("no longer revoked", answer.map_err(failed)?.into_inner())
    } else {
        let what = match kind {
            "service" => revoke_request::What::Service(name.clone()),
            "operator" => revoke_request::What::Operator(name.clone()),
            "kid" => revoke_request::What::Kid(name.clone()),
            _ => revoke_request::What::Serial(name.clone()),
        };
        let request = RevokeRequest { what: Some(what), reason: args.reason.unwrap_or_default() };
        let not_done = format!("{kind} {name} is not revoked");
        let failed = |status| mesh.write_failure(Role::Identity, &not_done, AGAIN, &status);
        ("revoked", client.clone().revoke(request).await.map_err(failed)?.into_inner())
    };
    let warning = [warning, of_tenon_up(kind, &name, args.lift)].into_iter().filter(|text| !text.is_empty());
    let warning = warning.collect::<Vec<_>>().join("; ");
    if !warning.is_empty() {
        // Also with JSON, and where a pipe takes the output.
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        let warning = Some(warning).filter(|text| !text.is_empty());
        out.json(&serde_json::json!({
            kind: name, "revoked": !args.lift, "epoch": epoch, "revision": revision, "warning": warning,
        }))?;
    } else {
        out.line(&format!("{kind} {name} is {what}, revision {epoch}.{revision}"))?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

/// What to know when the operator is the one that `tenon up` of this user makes a certificate for.
fn of_tenon_up(kind: &str, name: &str, lift: bool) -> String {
    if lift || kind != "operator" || name != operator_name() {
        return String::new();
    }
    "`tenon up` works under this name when you start it ($USER), and is refused until another operator lifts this"
        .to_owned()
}

/// What the flags name; clap lets exactly one through.
fn selected(args: &Revoke) -> Result<(&'static str, String), Failure> {
    let flags =
        [("service", &args.service), ("operator", &args.operator), ("kid", &args.kid), ("serial", &args.serial)];
    let named = flags.into_iter().find_map(|(kind, name)| Some((kind, name.clone()?)));
    named.ok_or_else(|| {
        Failure::usage("nothing is named").next("name a --service, an --operator, a --kid or a --serial")
    })
}

async fn list(
    mesh: &Mesh,
    mut client: IdentityClient<tonic::transport::Channel>,
    args: Revoke,
) -> Result<Answer, Failure> {
    let answer = client.list_revocations(ListRevocationsRequest {}).await;
    let revocations = answer
        .map_err(|status| mesh.failure(Role::Identity, "cannot list revocations", &status))?
        .into_inner()
        .revocations;
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        let revocations: Vec<_> = revocations
            .iter()
            .map(|revocation| {
                let (kind, name) = shown(revocation);
                serde_json::json!({
                    kind: name,
                    "revoked": rfc3339(revocation.revoked_unix_seconds),
                    "by": revocation.by,
                    "reason": revocation.reason,
                })
            })
            .collect();
        out.json(&revocations)?;
    } else {
        let rows: Vec<_> = revocations
            .iter()
            .map(|revocation| {
                let (kind, name) = shown(revocation);
                let revoked = rfc3339(revocation.revoked_unix_seconds);
                vec![kind.to_owned(), name.to_owned(), revoked, revocation.by.clone(), revocation.reason.clone()]
            })
            .collect();
        out.table(&["what", "name", "revoked", "by", "reason"], &rows)?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

fn shown(revocation: &Revocation) -> (&'static str, &str) {
    match &revocation.what {
        Some(revocation::What::Service(service)) => ("service", service),
        Some(revocation::What::Operator(name)) => ("operator", name),
        Some(revocation::What::Kid(kid)) => ("kid", kid),
        Some(revocation::What::Serial(serial)) => ("serial", serial),
        None => ("unknown", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whoever_revokes_the_operator_of_tenon_up_is_warned_of_that() {
        let own = operator_name();
        assert!(of_tenon_up("operator", &own, false).contains("tenon up"));
        for (kind, name, lift) in
            [("operator", own.as_str(), true), ("service", &own, false), ("operator", "x-nobody", false)]
        {
            assert_eq!(of_tenon_up(kind, name, lift), "", "{kind} {name}");
        }
    }
}
