//! `tenon identity operator`.

use mesh_identity::{Identity, Svid, TrustBundle};
use rcgen::{CertificateParams, KeyPair};
use tenon_proto::identity::v1::{IssueOperatorRequest, identity_client::IdentityClient};
use zeroize::Zeroizing;

use crate::{
    cli::IssueOperator,
    data::Data,
    failure::{Answer, Failure, chain},
    operator::{Mesh, Role, files},
    output::{Output, rfc3339},
};

/// Asks for the certificate and writes a data folder that the commands take.
///
/// # Errors
/// No mesh, the identity service refused, the folder has credentials already, or it cannot be written to.
pub async fn run(args: IssueOperator) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let what = format!("no certificate for operator {}", args.name);
    let broken = |error: &dyn std::error::Error| Failure::new(format!("{what}: {}", chain(error)));
    let data = Data::new(&args.out);
    // What lies there may be the folder of a mesh, whose own operator this would replace.
    if data.lock().exists() || data.ca().exists() {
        return Err(Failure::usage(format!("{what}: {} is the data folder of a mesh", args.out.display()))
            .next("name a folder of its own with --out"));
    }
    let key = KeyPair::generate().map_err(|error| broken(&error))?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(|error| broken(&error))?;
    let request = IssueOperatorRequest {
        name: args.name.clone(),
        role: args.role.to_string(),
        csr: csr.der().to_vec().into(),
        ttl_seconds: args.ttl,
    };
    let answer = IdentityClient::new(mesh.channel(Role::Identity)).issue_operator(request).await;
    let answer = answer.map_err(|status| mesh.failure(Role::Identity, &what, &status))?.into_inner();
    let chain = answer.chain.iter().map(|der| der.to_vec().into()).collect();
    let svid = Svid::from_der(chain, Zeroizing::new(key.serialize_der())).map_err(|error| broken(&error))?;
    let bundle = answer.trust_bundle.as_ref().map(TrustBundle::from_proto).transpose();
    let bundle =
        bundle.map_err(|error| broken(&error))?.unwrap_or_else(|| TrustBundle::clone(&mesh.identity().bundle()));
    let identity = Identity::new(svid, bundle);
    files::write(&data, &identity)?;
    mesh.file().write(&data)?;
    let svid = identity.svid();
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&serde_json::json!({
            "id": svid.id().to_string(),
            "role": args.role.as_str(),
            "serial": svid.serial(),
            "notAfter": rfc3339(svid.not_after()),
            "data": args.out,
        }))?;
    } else {
        out.line(&format!("{} ({}), until {}", svid.id(), args.role, rfc3339(svid.not_after())))?;
        out.line(&format!("use it with `--data {}`, or TENON_DATA", args.out.display()))?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}
