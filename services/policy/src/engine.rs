//! The one writer of the policy: checks files, remembers them, and makes the journals hold what is compiled from them.
//!
//! The files in force are written first, with where they came from; the records follow from them. So a process that ends
//! in between, or a disk that is full for a while, leaves nothing that the next attempt does not complete.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use journal::{AppendError, Expected, Journal, Position, ReadError, Snapshot, Write};
use mesh_config::{Mesh, Problem, Problems, Records, SourceFile, names::TrustDomain};
use mesh_identity::tls::Outsider;
use prost::Message;
use tenon_proto::policy::v1::{self as proto, ApplyRequest, PolicyFile};

/// The journals that the engine writes. Nobody else does.
#[derive(Clone)]
pub(crate) struct Journals {
    pub allowlists: Arc<dyn Journal>,
    pub routes: Arc<dyn Journal>,
    pub endpoints: Arc<dyn Journal>,
    pub quarantines: Arc<dyn Journal>,
    pub attestors: Arc<dyn Journal>,
    /// Not replicated: the files in force and where they came from.
    pub sources: Arc<dyn Journal>,
}

/// Keys of the journal `sources`.
const FILES: &str = "files";
const ORIGIN: &str = "origin";
const FOLDER_DIGEST: &str = "folder";

/// SHA-256 of the content of a folder.
pub(crate) type Digest = [u8; 32];

/// Where files came from.
pub(crate) enum Origin {
    /// The watched folder with this content.
    Folder { dir: String, digest: Digest },
    /// This operator's `Apply`.
    Operator(String),
}

/// What an application did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applied {
    /// Of the kind `allowlist`.
    pub position: Position,
    /// Records that were changed, over all kinds.
    pub changes: u64,
}

/// Why files did not become the policy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// They are wrong; nothing has changed.
    #[error("{0}")]
    Problems(Problems),
    /// The store did not take the files.
    #[error("the store of the policy service cannot be written; nothing has changed")]
    Store(#[source] AppendError),
    /// The store may have taken the files all the same; then they come into force within seconds.
    #[error("the store of the policy service did not confirm the files, and may have taken them: apply them again")]
    Unconfirmed(#[source] AppendError),
    /// The files are in force, but not every record could be written; the service goes on trying.
    #[error("the policy is taken, but not all of it could be written yet: it is tried again until it is")]
    Unsettled(#[source] StoreError),
}

/// A journal failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the store cannot be read")]
    Read(#[from] ReadError),
    #[error("the store cannot be written")]
    Append(#[from] AppendError),
}

/// What is in force besides the records.
#[derive(Debug, Clone, Default)]
pub(crate) struct InForce {
    /// `metadata.name` of the Mesh document; empty before the first policy.
    pub mesh: String,
    /// "folder DIR" or "applied by OPERATOR"; empty before the first policy.
    pub origin: String,
    /// Of the watched folder when it was last taken.
    pub folder: Option<Digest>,
    /// What is wrong with the watched folder now; empty when nothing is.
    pub problems: Vec<Problem>,
}

pub(crate) struct Engine {
    /// The only one whose policy is taken: identities of another are not known here.
    trust_domain: TrustDomain,
    journals: Journals,
    /// Held by whoever changes the policy.
    writing: tokio::sync::Mutex<()>,
    in_force: Mutex<InForce>,
    /// The journals, or [`Self::in_force`], may not say yet what the stored files do.
    unsettled: AtomicBool,
}

impl Engine {
    /// Reads what is in force, and completes it if the last process could not.
    pub async fn open(trust_domain: TrustDomain, journals: Journals) -> Result<Self, ReadError> {
        let (origin, folder) = stored_origin(&*journals.sources).await?;
        let in_force = InForce { mesh: String::new(), origin, folder, problems: Vec::new() };
        let engine = Self {
            trust_domain,
            journals,
            writing: tokio::sync::Mutex::default(),
            in_force: Mutex::new(in_force),
            unsettled: AtomicBool::new(true),
        };
        engine.settle().await;
        Ok(engine)
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn journals(&self) -> &Journals {
        &self.journals
    }

    pub fn in_force(&self) -> InForce {
        self.lock().clone()
    }

    /// Notes what is wrong with the watched folder, or that nothing is.
    pub fn set_folder_problems(&self, problems: Vec<Problem>) {
        self.lock().problems = problems;
    }

    /// Makes `files` the whole policy.
    pub async fn apply(&self, files: Vec<SourceFile>, origin: Origin) -> Result<Applied, ApplyError> {
        let _alone = self.writing.lock().await;
        let (files, checked) = check(files, self.trust_domain.clone()).await;
        let (mesh, records) = checked.map_err(ApplyError::Problems)?;
        let (text, digest) = match origin {
            Origin::Folder { dir, digest } => (format!("folder {dir}"), Some(digest)),
            Origin::Operator(name) => (format!("applied by {name}"), None),
        };
        let files = files.into_iter().map(|file| PolicyFile { path: file.path, text: file.text }).collect();
        let mut writes = vec![
            Write::put(FILES, ApplyRequest { files, ..ApplyRequest::default() }.encode_to_vec()),
            Write::put(ORIGIN, text.clone()),
        ];
        writes.extend(digest.map(|digest| Write::put(FOLDER_DIGEST, digest.to_vec())));
        self.journals.sources.append(writes).await.map_err(|error| match error {
            AppendError::Unconfirmed(_) => {
                self.unsettled.store(true, Ordering::Release);
                ApplyError::Unconfirmed(error)
            }
            AppendError::Conflict { .. }
            | AppendError::Moved { .. }
            | AppendError::Full(_)
            | AppendError::Failed(_) => ApplyError::Store(error),
        })?;
        {
            let mut in_force = self.lock();
            in_force.mesh = mesh.name().to_string();
            in_force.origin.clone_from(&text);
            in_force.folder = digest.or(in_force.folder);
        }
        self.unsettled.store(true, Ordering::Release);
        let applied = self.write(&records).await.map_err(ApplyError::Unsettled)?;
        self.unsettled.store(false, Ordering::Release);
        let (revision, changes) = (applied.position.revision, applied.changes);
        tracing::info!(origin = text, mesh = %mesh.name(), changes, revision, "policy in force");
        Ok(applied)
    }

    /// Makes the stored files the policy in force, in the journals as well, if that is not certain. Failures are logged,
    /// and the next call tries again.
    pub async fn settle(&self) {
        if !self.unsettled.load(Ordering::Acquire) {
            return;
        }
        let _alone = self.writing.lock().await;
        match self.rewrite().await {
            Ok(changes) => {
                self.unsettled.store(false, Ordering::Release);
                if changes > 0 {
                    tracing::info!(changes, "records completed from the policy files in force");
                }
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the policy in force cannot be completed: trying again")
            }
        }
    }

    async fn rewrite(&self) -> Result<u64, StoreError> {
        let Some(stored) = self.journals.sources.get(FILES).await? else { return Ok(0) };
        let (origin, folder) = stored_origin(&*self.journals.sources).await?;
        {
            let mut in_force = self.lock();
            (in_force.origin, in_force.folder) = (origin, folder);
        }
        let stored = ApplyRequest::decode(stored.value).unwrap_or_default();
        let files = stored.files.into_iter().map(|file| SourceFile { path: file.path, text: file.text }).collect();
        match check(files, self.trust_domain.clone()).await.1 {
            Ok((mesh, records)) => {
                self.lock().mesh = mesh.name().to_string();
                Ok(self.write(&records).await?.changes)
            }
            // Another version took them. The records that it wrote stay in force.
            Err(problems) => {
                tracing::warn!(%problems, "this version does not take the policy files in force: apply them again");
                Ok(0)
            }
        }
    }

    /// One atomic batch per kind. Quarantines first: what cuts off must not wait.
    async fn write(&self, records: &Records) -> Result<Applied, StoreError> {
        let Journals { allowlists, routes, endpoints, quarantines, attestors, sources: _ } = &self.journals;
        let mut changes = write_kind(&**quarantines, &records.quarantines).await?;
        changes += write_kind(&**allowlists, &records.allowlists).await?;
        changes += write_kind(&**routes, &records.routes).await?;
        changes += write_kind(&**endpoints, &records.endpoints).await?;
        changes += write_kind(&**attestors, &records.attestors).await?;
        Ok(Applied { position: allowlists.head().await?, changes })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, InForce> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the stored files came from: in words, and the folder's content when it was last taken.
async fn stored_origin(sources: &dyn Journal) -> Result<(String, Option<Digest>), ReadError> {
    let text =
        async |key| -> Result<Option<Bytes>, ReadError> { Ok(sources.get(key).await?.map(|record| record.value)) };
    let origin = text(ORIGIN).await?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let folder = text(FOLDER_DIGEST).await?.and_then(|bytes| Digest::try_from(&*bytes).ok());
    Ok((origin, folder))
}

/// Parses and compiles where it holds up nobody: a large policy takes a while. Returns the files as well.
async fn check(
    files: Vec<SourceFile>,
    trust_domain: TrustDomain,
) -> (Vec<SourceFile>, Result<(Mesh, Records), Problems>) {
    let work = move || {
        let checked = mesh_config::parse(&files).and_then(|mesh| {
            if *mesh.trust_domain() != trust_domain {
                let message = format!(
                    "trust domain {:?} is not the one of this mesh's identities, expected {:?}",
                    mesh.trust_domain().as_str(),
                    trust_domain.as_str()
                );
                return Err(Problems(vec![mesh.trust_domain_problem(message)]));
            }
            let records = mesh_config::compile(&mesh);
            // What a sidecar would refuse must not become the policy.
            for policy in records.allowlists.values() {
                usable(policy).map_err(|error| {
                    let message = format!("sidecars would refuse the allowlist of {}: {error}", policy.service);
                    Problems(vec![mesh.trust_domain_problem(message)])
                })?;
            }
            Ok((mesh, records))
        });
        (files, checked)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away, and this task with it.
            Err(_) => std::future::pending().await,
        },
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

/// Makes the journal hold exactly these records; returns how many it changed.
async fn write_kind<M: Message>(journal: &dyn Journal, records: &BTreeMap<String, M>) -> Result<u64, StoreError> {
    let writes = difference(&journal.snapshot().await?, records);
    let changes = writes.len() as u64;
    if changes > 0 {
        journal.append(writes).await?;
    }
    Ok(changes)
}

fn difference<M: Message>(held: &Snapshot, wanted: &BTreeMap<String, M>) -> Vec<Write> {
    let mut absent: BTreeMap<&str, &M> = wanted.iter().map(|(key, record)| (key.as_str(), record)).collect();
    let mut writes = Vec::new();
    for record in &held.records {
        let expected = Expected::Revision(record.revision);
        match absent.remove(record.key.as_str()).map(Message::encode_to_vec) {
            None => writes.push(Write::delete(record.key.clone()).expecting(expected)),
            Some(value) if *record.value == *value => {}
            Some(value) => writes.push(Write::put(record.key.clone(), value).expecting(expected)),
        }
    }
    writes.extend(
        absent.into_iter().map(|(key, record)| Write::put(key, record.encode_to_vec()).expecting(Expected::Absent)),
    );
    writes
}

/// Every record of a kind, decoded, and where that is.
pub(crate) async fn records_of<M: Message + Default>(journal: &dyn Journal) -> Result<(Position, Vec<M>), ReadError> {
    let snapshot = journal.snapshot().await?;
    // What another version wrote and this one cannot read is left out: Describe is for people.
    let records = snapshot.records.into_iter().filter_map(|record| M::decode(record.value).ok()).collect();
    Ok((snapshot.position, records))
}

pub(crate) fn to_proto(problem: Problem) -> proto::Problem {
    let Problem { file, line, column, message } = problem;
    proto::Problem { file, line, column, message }
}

/// An error and what led to it, as one line for the log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
