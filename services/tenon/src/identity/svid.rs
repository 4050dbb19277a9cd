//! `tenon identity svid`.

use std::{fs, net::SocketAddr, os::unix::fs::DirBuilderExt as _, path::Path, time::Duration};

use mesh_asap::SigningKey;
use mesh_identity::{Svid, TrustBundle};
use rcgen::{CertificateParams, KeyPair};
use tenon_proto::{
    identity::v1::{AsapKey, IssueResponse, IssueSvidRequest, identity_client::IdentityClient},
    kind,
    replication::v1::{StatusRequest, replication_client::ReplicationClient},
};
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use crate::{
    cli::IssueSvid,
    failure::{Answer, Failure, chain},
    mesh_file::write_private,
    operator::{Mesh, Role},
    output::{Output, rfc3339},
};

/// How long sidecars may take to know the new key.
const PATIENCE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(50);

/// Asks for the certificate, writes the files, and says how to use them.
///
/// # Errors
/// No mesh, the identity service refused, or the folder cannot be written to.
pub async fn run(args: IssueSvid) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let service = &args.service;
    let what = format!("no certificate for {service}");
    let broken = |error: &dyn std::error::Error| Failure::new(format!("{what}: {}", chain(error)));

    let key = KeyPair::generate().map_err(|error| broken(&error))?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(|error| broken(&error))?;
    let asap = SigningKey::generate(service).map_err(|error| {
        Failure::usage(format!("{what}: {service:?} is no service's name: {error}")).next("correct --service")
    })?;
    let request = IssueSvidRequest {
        service: service.clone(),
        csr: csr.der().to_vec().into(),
        ttl_seconds: args.ttl,
        asap_key: Some(AsapKey { kid: asap.kid().to_string(), spki: asap.public_spki().into() }),
    };
    let answer = IdentityClient::new(mesh.channel(Role::Identity)).issue_svid(request).await;
    let answer = answer.map_err(|status| mesh.failure(Role::Identity, &what, &status))?.into_inner();

    let chain = answer.chain.iter().map(|der| der.to_vec().into()).collect();
    let svid = Svid::from_der(chain, Zeroizing::new(key.serialize_der())).map_err(|error| broken(&error))?;
    let bundle = answer.trust_bundle.as_ref().map(TrustBundle::from_proto).transpose();
    let bundle =
        bundle.map_err(|error| broken(&error))?.map_or_else(|| mesh.identity().bundle().to_pem(), |b| b.to_pem());
    write(&args.out, &svid, &bundle, &asap, mesh.file().control_plane.key_repository)?;
    let known = everybody_knows(&mesh, &answer).await;
    report(&args, &mesh, &svid, &asap, known)?;
    Ok(Answer::Yes)
}

fn write(out: &Path, svid: &Svid, bundle: &str, asap: &SigningKey, repository: SocketAddr) -> Result<(), Failure> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(out).map_err(|error| {
        Failure::new(format!("cannot make {}: {error}", out.display())).next("name another folder with --out")
    })?;
    let key = asap.to_data_uri();
    // Nothing in it needs quoting: kids, URLs and base64.
    let environment = Zeroizing::new(format!(
        "export ASAP_PRIVATE_KEY='{}'\nexport ASAP_KEY_ID='{}'\nexport ASAP_ISSUER='{}'\n\
         export ASAP_PUBLIC_KEY_REPOSITORY_URL='https://{repository}/'\n",
        key.as_str(),
        asap.kid(),
        asap.issuer(),
    ));
    for (name, content) in [
        ("key.pem", svid.key_pem().as_bytes()),
        ("svid.pem", svid.chain_pem().as_bytes()),
        ("bundle.pem", bundle.as_bytes()),
        ("asap.key", key.as_bytes()),
        ("asap.env", environment.as_bytes()),
    ] {
        write_private(&out.join(name), content)?;
    }
    Ok(())
}

/// Waits until every follower has the key; whether it came to that.
async fn everybody_knows(mesh: &Mesh, answer: &IssueResponse) -> bool {
    let wanted = (answer.key_epoch, answer.key_revision);
    let mut client = ReplicationClient::new(mesh.channel(Role::Identity));
    let until = Instant::now() + PATIENCE;
    loop {
        let status = client.status(StatusRequest { kind: kind::KEY.to_owned() }).await;
        let followers = status.ok().and_then(|status| status.into_inner().kinds.into_iter().next());
        let knows = followers.is_some_and(|kind| {
            kind.followers
                .iter()
                .filter(|follower| follower.connected_unix_seconds != 0)
                .all(|follower| follower.acknowledged.as_ref().is_some_and(|at| (at.epoch, at.revision) >= wanted))
        });
        if knows || Instant::now() > until {
            return knows;
        }
        sleep(POLL).await;
    }
}

fn report(args: &IssueSvid, mesh: &Mesh, svid: &Svid, asap: &SigningKey, known: bool) -> Result<(), Failure> {
    let file = |name: &str| args.out.join(name);
    // Any other service's listener will do as an example.
    let other = mesh.file().sidecars.iter().find(|sidecar| sidecar.service != args.service);
    let (callee, address) = other
        .map_or_else(|| ("SERVICE".to_owned(), "HOST:PORT".to_owned()), |s| (s.service.clone(), s.inbound.to_string()));
    let grpcurl = format!(
        "(. {env}; grpcurl -cacert {bundle} -cert {cert} -key {key} -authority {callee}.svc.{domain} \
         -H \"x-asap-token: $(tenon asap mint --audience {callee})\" -H 'x-tenant-id: TENANT' -proto FILE {address} \
         PACKAGE.SERVICE/METHOD)",
        domain = mesh.file().trust_domain,
        bundle = word(&file("bundle.pem")),
        env = word(&file("asap.env")),
        cert = word(&file("svid.pem")),
        key = word(&file("key.pem")),
    );
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&serde_json::json!({
            "service": args.service,
            "id": svid.id().to_string(),
            "serial": svid.serial(),
            "notAfter": rfc3339(svid.not_after()),
            "kid": asap.kid().as_str(),
            "keyIsKnownEverywhere": known,
            "certificate": file("svid.pem"),
            "key": file("key.pem"),
            "trustBundle": file("bundle.pem"),
            "asapKey": file("asap.key"),
            "asapEnvironment": file("asap.env"),
            "grpcurl": grpcurl,
        }))?;
    } else {
        out.line(&format!("certificate   {} ({}, serial {})", file("svid.pem").display(), svid.id(), svid.serial()))?;
        out.line(&format!("private key   {}", file("key.pem").display()))?;
        out.line(&format!("trust bundle  {}", file("bundle.pem").display()))?;
        out.line(&format!("ASAP key      {} ({})", file("asap.key").display(), asap.kid()))?;
        out.line(&format!("ASAP_* values {}", file("asap.env").display()))?;
        out.line(&format!("ends at       {}", rfc3339(svid.not_after())))?;
        if !known {
            out.line("not every sidecar knows the ASAP key yet: `tenon check` names those that are behind")?;
        }
        out.line("")?;
        out.line("To call as this service:")?;
        out.line(&format!("  {grpcurl}"))?;
    }
    out.flush()
}

/// A path as a word of a shell, which `.` does not look for in PATH.
fn word(path: &Path) -> String {
    let text = path.display().to_string();
    let text = if text.starts_with('/') || text.starts_with('.') { text } else { format!("./{text}") };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%".contains(&byte);
    if text.bytes().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn all_files_are_for_their_owner_alone_and_the_environment_gives_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("wiki");
        let domain = "demo.example".parse().unwrap();
        let now = mesh_identity::clock::unix_seconds();
        let ca = identity::Ca::create(&dir.path().join("ca"), &domain, None, now).unwrap();
        let svid = ca.issue_service(&"wiki".parse().unwrap(), Duration::from_secs(60), now).unwrap();
        let asap = SigningKey::generate("wiki").unwrap();
        write(&out, &svid, "bundle", &asap, ([127, 0, 0, 1], 15011).into()).unwrap();
        for name in ["svid.pem", "key.pem", "bundle.pem", "asap.key", "asap.env"] {
            assert_eq!(fs::metadata(out.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        let variables = fs::read_to_string(out.join("asap.env")).unwrap();
        let variables = variables.lines().map(|line| line.strip_prefix("export ").unwrap().split_once('=').unwrap());
        let variables = variables.map(|(name, value)| (name, value.trim_matches('\'').to_owned()));
        let environment = mesh_asap::env::Environment::parse(variables).unwrap();
        assert_eq!(environment.signing_key().unwrap().unwrap().kid(), asap.kid());
        assert_eq!(environment.repositories, ["https://127.0.0.1:15011/".into()]);
    }

    #[test]
    fn a_shell_finds_the_environment_file_wherever_it_lies() {
        assert_eq!(word(Path::new("wiki/asap.env")), "./wiki/asap.env");
        assert_eq!(word(Path::new("../wiki/asap.env")), "../wiki/asap.env");
        assert_eq!(word(Path::new("/tmp/my mesh/asap.env")), "'/tmp/my mesh/asap.env'");
        assert_eq!(word(Path::new("ann's/asap.env")), r"'./ann'\''s/asap.env'");
    }
}
