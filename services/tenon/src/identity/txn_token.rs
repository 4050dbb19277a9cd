//! `tenon identity txn-token`.

use tenon_proto::identity::v1::{IssueTransactionTokenRequest, identity_client::IdentityClient};

use crate::{
    cli::TxnToken,
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::{Output, rfc3339},
};

/// Prints the token alone.
///
/// # Errors
/// No mesh, or the identity service refused.
pub async fn run(args: TxnToken) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let TxnToken { tenant, subject, scope, .. } = args;
    let request =
        IssueTransactionTokenRequest { tenant: tenant.clone(), subject: subject.clone(), scope: scope.clone() };
    let answer = IdentityClient::new(mesh.channel(Role::Identity))
        .issue_transaction_token(request)
        .await
        .map_err(|status| mesh.failure(Role::Identity, &format!("no transaction token for {tenant}"), &status))?
        .into_inner();
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&serde_json::json!({
            "tenant": tenant,
            "subject": subject,
            "scope": scope,
            "token": answer.token,
            "expires": rfc3339(answer.expires_unix_seconds),
        }))?;
    } else {
        out.line(&answer.token)?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}
