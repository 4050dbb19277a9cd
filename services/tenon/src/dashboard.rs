//! `tenon dashboard`: a link that signs a browser in.

use tenon_proto::policy::v1::SignInRequest;

use crate::{
    cli::Dashboard,
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::{Output, rfc3339},
    policy::client,
};

/// Runs the command. The link alone goes to standard output, so that it can be handed on.
///
/// # Errors
/// No mesh, or a policy service that serves no dashboard.
pub async fn run(args: Dashboard) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let answer = client(mesh.channel(Role::Policy)).sign_in(SignInRequest {}).await;
    let answer = answer.map_err(|status| mesh.failure(Role::Policy, "cannot sign in", &status))?.into_inner();
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        let expires = rfc3339(u64::try_from(answer.expires_unix_seconds).unwrap_or(0));
        out.json(&serde_json::json!({"link": answer.link, "expires": expires}))?;
    } else {
        out.line(&answer.link)?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}
