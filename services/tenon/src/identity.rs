//! `tenon identity`: join tokens, keys, and making a CA.

pub mod operator;
pub mod revoke;
pub mod rotate;
pub mod svid;
pub mod txn_token;

use identity::Ca;
use mesh_config::names::TrustDomain;
use tenon_proto::identity::v1::{
    CreateJoinTokenRequest, Key, KeyUse, ListKeysRequest, identity_client::IdentityClient,
};

use crate::{
    cli::{CaInit, JoinToken, Keys},
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::{Output, rfc3339},
    up::{ca_failure, passphrase},
};

/// A list of keys: two hundred bytes each.
const LARGEST_LIST: usize = 64 * 1024 * 1024;

/// `tenon identity join-token`: prints the token alone.
///
/// # Errors
/// No mesh, or the identity service refused.
pub async fn join_token(args: JoinToken) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let request = CreateJoinTokenRequest { service: args.service.clone(), ttl_seconds: args.ttl_seconds };
    let answer = IdentityClient::new(mesh.channel(Role::Identity))
        .create_join_token(request)
        .await
        .map_err(|status| mesh.failure(Role::Identity, &format!("no join token for {}", args.service), &status))?
        .into_inner();
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&serde_json::json!({
            "service": args.service,
            "joinToken": answer.join_token,
            "expires": rfc3339(answer.expires_unix_seconds),
        }))?;
    } else {
        out.line(&answer.join_token)?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

/// `tenon identity keys`.
///
/// # Errors
/// No mesh, or the identity service refused.
pub async fn keys(args: Keys) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let mut keys = IdentityClient::new(mesh.channel(Role::Identity))
        .max_decoding_message_size(LARGEST_LIST)
        .list_keys(ListKeysRequest {})
        .await
        .map_err(|status| mesh.failure(Role::Identity, "cannot list keys", &status))?
        .into_inner()
        .keys;
    keys.sort_by(|a, b| a.kid.cmp(&b.kid));
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| {
                serde_json::json!({
                    "kid": key.kid,
                    "issuer": key.issuer,
                    "use": used_for(key),
                    "created": rfc3339(key.created_unix_seconds),
                    "confirmed": rfc3339(key.confirmed_unix_seconds),
                })
            })
            .collect();
        out.json(&keys)?;
    } else {
        let rows: Vec<_> = keys
            .into_iter()
            .map(|key| {
                let used = used_for(&key).to_owned();
                let (created, confirmed) = (rfc3339(key.created_unix_seconds), rfc3339(key.confirmed_unix_seconds));
                vec![key.kid, key.issuer, used, created, confirmed]
            })
            .collect();
        out.table(&["kid", "issuer", "use", "created", "confirmed"], &rows)?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

/// What a key verifies.
fn used_for(key: &Key) -> &'static str {
    match key.r#use() {
        KeyUse::Unspecified => "asap",
        KeyUse::Transaction => "transaction",
    }
}

/// `tenon identity ca-init`.
///
/// # Errors
/// There is a CA already, or the folder cannot be written to.
pub fn ca_init(args: &CaInit) -> Result<Answer, Failure> {
    let trust_domain = TrustDomain::try_from(args.trust_domain.as_str())
        .map_err(|error| Failure::usage(error.to_string()).next("correct --trust-domain"))?;
    let passphrase = passphrase();
    let ca = Ca::create(&args.out, &trust_domain, passphrase.as_ref(), mesh_identity::clock::unix_seconds())
        .map_err(|error| ca_failure(&error))?;
    let mut out = Output::stdout(args.output.output);
    let (root, key) = (args.out.join("root.pem"), args.out.join("root.key"));
    if out.is_json() {
        out.json(&serde_json::json!({
            "trustDomain": trust_domain.as_str(),
            "trustBundleSha256": ca.bundle().pin(),
            "certificate": root,
            "key": key,
            "encrypted": passphrase.is_some(),
        }))?;
    } else {
        out.line(&format!("root certificate {}", root.display()))?;
        let how = if passphrase.is_some() { "encrypted" } else { "not encrypted: TENON_CA_PASSPHRASE is not set" };
        out.line(&format!("private key      {} ({how})", key.display()))?;
        out.line(&format!("trust domain     {trust_domain}"))?;
        out.line(&format!("SHA-256          {}", ca.bundle().pin()))?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}
