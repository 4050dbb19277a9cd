//! From files to records, and what must be right of both before they become the policy.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use mesh_config::{Problem, Problems, Records, SourceFile, names::TrustDomain};
use mesh_identity::{
    policy_signature::{self, PublicKey},
    tls::Outsider,
};
use prost::Message as _;
use tenon_proto::{
    kind,
    policy::v1::{self as proto, ApplyRequest, PolicyFile, RecordSignature},
};

use super::Digest;

/// Of signatures: more than anybody reads.
const MAX_PROBLEMS: usize = 100;

/// What files mean.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// `metadata.name` of the Mesh document.
    pub mesh: String,
    /// Those of the Mesh document.
    pub regions: Vec<String>,
    /// The allowlists with their signatures.
    pub records: Records,
}

/// Files that may become the policy.
#[derive(Clone)]
pub(crate) struct Checked {
    pub compiled: Arc<Compiled>,
    /// As they are kept: an encoded [`ApplyRequest`] of files and signatures alone.
    pub stored: Bytes,
    /// SHA-256 of that.
    pub id: Digest,
    /// SHA-256 of the files.
    pub digest: Digest,
}

/// What files are judged by.
#[derive(Clone)]
pub(crate) struct Judge {
    /// The only one whose policy is taken: identities of another are not known here.
    pub trust_domain: TrustDomain,
    /// When there are any, only what one of them signed is taken.
    pub accept: Arc<[PublicKey]>,
}

impl Judge {
    /// Parses, compiles and verifies where it holds up nobody: a large policy takes a while.
    pub async fn check(&self, files: Vec<SourceFile>, signatures: Vec<RecordSignature>) -> Result<Checked, Problems> {
        let judge = self.clone();
        let work = move || {
            let mut files = files;
            files.sort_by(|a, b| a.path.cmp(&b.path));
            if signatures.is_empty() && !judge.accept.is_empty() {
                let message = "not signed, expected a bundle that is: this policy service takes signed policies only";
                return Err(judge.at(&files, message.to_owned()));
            }
            let compiled = Arc::new(judge.compile(&files, &signatures)?);
            let digest = digest_of(&files);
            let files = files.into_iter().map(|file| PolicyFile { path: file.path, text: file.text }).collect();
            let stored = Bytes::from(ApplyRequest { files, signatures, ..ApplyRequest::default() }.encode_to_vec());
            Ok(Checked { compiled, id: sha256(&stored), stored, digest })
        };
        blocking(work).await
    }

    /// Compiles what is in force already. Not signed, it stays in force all the same.
    pub async fn again(&self, stored: ApplyRequest) -> Result<Compiled, Problems> {
        let judge = self.clone();
        let work = move || {
            let files: Vec<_> =
                stored.files.into_iter().map(|file| SourceFile { path: file.path, text: file.text }).collect();
            judge.compile(&files, &stored.signatures)
        };
        blocking(work).await
    }

    fn compile(&self, files: &[SourceFile], signatures: &[RecordSignature]) -> Result<Compiled, Problems> {
        let mesh = mesh_config::parse(files)?;
        if *mesh.trust_domain() != self.trust_domain {
            let message = format!(
                "trust domain {:?} is not the one of this mesh's identities, expected {:?}",
                mesh.trust_domain().as_str(),
                self.trust_domain.as_str()
            );
            return Err(Problems(vec![mesh.trust_domain_problem(message)]));
        }
        let mut records = mesh_config::compile(&mesh);
        // What a sidecar would refuse must not become the policy.
        for policy in records.allowlists.values() {
            usable(policy).map_err(|error| {
                let message = format!("sidecars would refuse the allowlist of {}: {error}", policy.service);
                Problems(vec![mesh.trust_domain_problem(message)])
            })?;
        }
        self.sign(files, &mut records, signatures)?;
        let regions = mesh.regions().iter().map(ToString::to_string).collect();
        Ok(Compiled { mesh: mesh.name().to_string(), regions, records })
    }

    /// Puts each signature into the record that it is of. Without keys to accept, only its form can be judged.
    fn sign(&self, files: &[SourceFile], records: &mut Records, signed: &[RecordSignature]) -> Result<(), Problems> {
        if signed.is_empty() {
            return Ok(());
        }
        let services = records.allowlists.len();
        if signed.len() != services {
            let message = format!("{} signatures for {services} services, expected one for each", signed.len());
            return Err(self.at(files, message));
        }
        let mut problems = Vec::new();
        for ((service, policy), signature) in records.allowlists.iter_mut().zip(signed) {
            let record = policy_signature::signed_part(policy);
            let fits = match self.accept.is_empty() {
                true => policy_signature::well_formed(signature),
                false => policy_signature::verify(&self.accept, kind::ALLOWLIST, service, &record, signature),
            };
            if let Err(error) = fits {
                problems.extend(self.at(files, format!("the signature for service {service}: {error}")).0);
            }
            policy.signature = Some(signature.clone());
        }
        problems.truncate(MAX_PROBLEMS);
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    /// A problem of all the files together, at the first one.
    fn at(&self, files: &[SourceFile], message: String) -> Problems {
        let file = files.first().map(|file| file.path.clone()).unwrap_or_default();
        Problems(vec![Problem { file, line: 1, column: 1, message }])
    }
}

/// Whether a sidecar of the service can use its record.
fn usable(policy: &proto::ServicePolicy) -> Result<(), String> {
    sidecar_core::policy::Policy::try_from(policy)?;
    for client in &policy.external_clients {
        let ca = client.ca.iter().map(|der| der.to_vec().into()).collect();
        Outsider::new(&client.name, ca, &client.certificate_names).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// SHA-256 over every path and text, each behind its length: no two folders run together. The files are in the byte order of
/// their paths.
pub(crate) fn digest_of(files: &[SourceFile]) -> Digest {
    let mut context = Context::new(&SHA256);
    for part in files.iter().flat_map(|file| [&file.path, &file.text]) {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    aws_lc_rs::digest::digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
