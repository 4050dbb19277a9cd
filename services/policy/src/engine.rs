//! Who changes the policy: checks files, remembers them, and makes the journals hold what is compiled from them.
//!
//! What is in force is one record in the journal of sources ([`stored::State`]), which whoever changes the policy compares
//! and sets, with the files and the entry of the history in the same batch: that is the moment at which a change is made, of
//! any number of policy services on one store exactly once. The records follow from it (`records` tells in which order), and
//! the next change is not begun before they are complete. So a process that ends in between, or a disk that is full for a
//! while, leaves nothing that the next look of any policy service does not complete.
//!
//! The mesh's revision of the policy is the position of the kind `allowlist` at which that is done. No clock decides about
//! anything here; the times in the history are for people.

mod apply;
mod changes;
mod compiled;
mod history;
mod records;
mod staging;
mod stored;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use journal::{AppendError, Expected, Journal, Position, ReadError};
use mesh_config::{Problem, Problems, names::TrustDomain};
use mesh_identity::policy_signature::PublicKey;
use prost::Message;
use tenon_proto::policy::v1::{self as proto, HistoryEntry, KindPosition};

pub(crate) use apply::{Author, Origin, Step};
pub(crate) use compiled::digest_of;
use compiled::{Compiled, Judge};
use records::{Held, KINDS, Positions, RESERVED, Wanted, WriteError};
pub(crate) use staging::Planned;
pub(crate) use stored::to_revision;
use stored::{Loaded, State};

/// The journals that the engine writes. Nobody else does.
#[derive(Clone)]
pub(crate) struct Journals {
    pub allowlists: Arc<dyn Journal>,
    pub routes: Arc<dyn Journal>,
    pub endpoints: Arc<dyn Journal>,
    pub quarantines: Arc<dyn Journal>,
    pub attestors: Arc<dyn Journal>,
    /// Not replicated to sidecars: what is in force, its files, and the history.
    pub sources: Arc<dyn Journal>,
}

/// SHA-256.
pub(crate) type Digest = [u8; 32];

/// How often it is tried again where another policy service was faster.
const TRIES: usize = 20;
/// Of the files in force and of those that are staged, with room for what was staged before.
const COMPILED: usize = 3;

/// What an application did.
#[derive(Debug, Clone)]
pub(crate) struct Applied {
    /// Of the kind `allowlist`: the mesh's policy revision.
    pub position: Position,
    /// Records that were changed, over all kinds.
    pub changes: u64,
    /// What has the whole of it, of each kind.
    pub positions: Vec<KindPosition>,
}

/// Why files did not become the policy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// They are wrong; nothing has changed.
    #[error("{0}")]
    Problems(Problems),
    /// Somebody else was faster; nothing has changed.
    #[error("the policy was changed meanwhile: it is at revision {in_force}")]
    Conflict {
        in_force: Position,
        /// Since what was expected, latest first.
        since: Vec<HistoryEntry>,
    },
    /// No change has this revision.
    #[error("no change of the policy has the revision {0}: the history tells which there are")]
    Unknown(Position),
    /// The change is known, its files are not any more.
    #[error("the files of revision {0} are no longer kept: apply them from where they came from")]
    NotKept(Position),
    /// What is in force was taken by another version, so canaries could not have something else beside it.
    #[error(
        "this version cannot read the policy files in force, so nobody can say which services change: \
         apply without a rollout, or by the version that applied them"
    )]
    NotComparable,
    /// The rollout that was to be completed or given up does not run any more.
    #[error("this rollout has ended")]
    NoRollout,
    /// The store did not take the files.
    #[error("the store of the policy service cannot be used; nothing has changed")]
    Store(#[source] StoreError),
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
    #[error("other policy services write all the time: try again")]
    Busy,
}

/// What is in force besides the records.
#[derive(Debug, Clone, Default)]
pub(crate) struct InForce {
    /// `metadata.name` of the Mesh document; empty before the first policy.
    pub mesh: String,
    /// "folder DIR" or "applied by OPERATOR"; empty before the first policy.
    pub origin: String,
    /// Of the watched folder when it was last taken, by any policy service on this store.
    pub folder: Option<Digest>,
    /// What is wrong with the watched folder now; empty when nothing is.
    pub problems: Vec<Problem>,
}

pub(crate) struct Engine {
    judge: Judge,
    journals: Journals,
    /// Held by whoever of this process changes the policy.
    writing: tokio::sync::Mutex<()>,
    in_force: Mutex<InForce>,
    looks: Mutex<Looks>,
    /// The journals, or [`Self::in_force`], may not say yet what the stored files do, by this process's own doing.
    unsettled: AtomicBool,
    /// What was compiled last, by the id of the files.
    compiled: Mutex<VecDeque<(Vec<u8>, Arc<Compiled>)>>,
}

/// What was seen of the journals: of all kinds, and of the state.
#[derive(Default)]
struct Looks {
    /// Where everything was found as it should be.
    settled: Option<(Positions, Expected)>,
    /// Where the last look found them.
    seen: Option<(Positions, Expected)>,
    /// Head of the journal of sources when the state was read last. Other records there move it as well.
    head: Option<Position>,
    /// What a write that was decided from that state would expect: it tells states apart.
    state: Option<Expected>,
    /// Files in force that this version does not take, so that it is said once.
    refused: Vec<u8>,
}

impl Engine {
    /// Reads what is in force, and completes it if the last process could not.
    pub async fn open(
        trust_domain: TrustDomain,
        accept: Vec<PublicKey>,
        journals: Journals,
    ) -> Result<Self, ReadError> {
        let engine = Self {
            judge: Judge { trust_domain, accept: accept.into() },
            journals,
            writing: tokio::sync::Mutex::default(),
            in_force: Mutex::default(),
            looks: Mutex::default(),
            unsettled: AtomicBool::new(true),
            compiled: Mutex::default(),
        };
        engine.refresh().await?;
        engine.settle().await;
        Ok(engine)
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.judge.trust_domain
    }

    pub fn journals(&self) -> &Journals {
        &self.journals
    }

    pub fn in_force(&self) -> InForce {
        lock(&self.in_force).clone()
    }

    /// The regions of the mesh in force; `None` where this version does not take the files.
    pub async fn regions(&self) -> Result<Option<Vec<String>>, ReadError> {
        let state = stored::load(&*self.journals.sources).await?.state;
        Ok(self.compiled_from(&state.files).await?.map(|compiled| compiled.regions.clone()))
    }

    /// Notes what is wrong with the watched folder, or that nothing is.
    pub fn set_folder_problems(&self, problems: Vec<Problem>) {
        lock(&self.in_force).problems = problems;
    }

    /// Takes over what another policy service has committed since the last look: name, origin, and which folder it took.
    /// Cheap when there is nothing.
    pub async fn refresh(&self) -> Result<(), ReadError> {
        let head = self.journals.sources.head().await?;
        if lock(&self.looks).head == Some(head) {
            return Ok(());
        }
        let loaded = stored::load(&*self.journals.sources).await?;
        self.know(&loaded.state);
        let mut looks = lock(&self.looks);
        looks.head = Some(loaded.at);
        looks.state = Some(loaded.expected);
        // What somebody else found complete is, also where another version compiles the files otherwise: two versions must not
        // take turns.
        if let Some(positions) = loaded.state.positions() {
            looks.settled = Some((positions, loaded.expected));
        }
        Ok(())
    }

    fn know(&self, state: &State) {
        let mut in_force = lock(&self.in_force);
        in_force.mesh.clone_from(&state.mesh);
        in_force.origin.clone_from(&state.origin);
        in_force.folder = state.folder();
    }

    /// Makes the stored files the policy in force, in the journals as well, if that is not certain: because this process could
    /// not, or because another one wrote and has stopped to. Failures are logged, and the next call tries again.
    pub async fn settle(&self) {
        match self.to_settle().await {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => return tracing::warn!(error = chain(&error), "the journals cannot be read: trying again"),
        }
        let _alone = self.writing.lock().await;
        match self.complete().await {
            Ok(Completed { changed: true, .. }) => {
                tracing::info!("records completed from the policy files in force");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = chain(&error), "the policy in force cannot be completed: trying again");
            }
        }
    }

    /// Whether anything has to be looked at. What others write is left to them until a look finds it as the one before did.
    async fn to_settle(&self) -> Result<bool, ReadError> {
        self.refresh().await?;
        let heads = self.journals.heads().await?;
        // Copied: nothing is locked while the journal is read.
        let settled = lock(&self.looks).settled;
        if let Some((positions, _)) = settled
            && records::only_leases_since(&self.journals, &positions, &heads).await?
        {
            let mut looks = lock(&self.looks);
            looks.settled =
                looks.settled.filter(|now| Some(*now) == settled).map(|(_, state)| (heads, state)).or(looks.settled);
        }
        let mut looks = lock(&self.looks);
        let now = (heads, looks.state.unwrap_or(Expected::Absent));
        let still = looks.seen.replace(now) == Some(now);
        Ok(self.unsettled.load(Ordering::Acquire) || (still && looks.settled != Some(now)))
    }

    /// Makes the records what the files in force say, and notes at which revision they are. Under `writing`.
    async fn complete(&self) -> Result<Completed, StoreError> {
        let sources = &*self.journals.sources;
        let mut changed = false;
        for _ in 0..TRIES {
            let loaded = stored::load(sources).await?;
            if let Some(writes) = stored::upgraded(sources, &loaded).await? {
                match sources.append(writes).await {
                    Ok(_) | Err(AppendError::Conflict { .. }) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            if loaded.state.files.is_empty() {
                let positions = self.journals.heads().await?;
                self.settled(&loaded, positions);
                return Ok(Completed { loaded, positions, changed });
            }
            let target = self.target(&loaded.state).await?;
            let readable = target.is_some();
            let held = Held::read(&self.journals).await?;
            let wanted = match target {
                Some((mesh, records)) => Some((mesh, Wanted::new(&records, loaded.state.mark()))),
                // Canaries of a rollout that is over are taken back all the same.
                None if loaded.state.staged.is_none() => {
                    held.without_canaries(loaded.state.mark()).map(|wanted| (loaded.state.mesh.clone(), wanted))
                }
                None => None,
            };
            let Some((mesh, wanted)) = wanted else {
                let positions = self.journals.heads().await?;
                self.settled(&loaded, positions);
                return Ok(Completed { loaded, positions, changed });
            };
            let positions = match records::write(&self.journals, &held, &wanted, loaded.at).await {
                Ok(positions) => positions,
                Err(WriteError::Overtaken) => continue,
                Err(WriteError::Store(error)) => return Err(error),
            };
            changed |= held.position() != positions[0] || held.differences(&wanted) > 0;
            let known = loaded.state.mesh == mesh
                && loaded.state.positions().is_some_and(|known| held.are_still_at(&known, &positions));
            // Who cannot read the files cannot say that there is not more to do.
            if known || !(readable || loaded.state.only_gave_up()) {
                self.settled(&loaded, positions);
                return Ok(Completed { loaded, positions, changed });
            }
            let mut state = loaded.state.clone();
            state.mesh = mesh;
            state.complete(positions);
            match sources.append(vec![loaded.put(&state)]).await {
                Ok(at) => {
                    let loaded = Loaded { state, at, expected: Expected::Revision(at.revision) };
                    self.settled(&loaded, positions);
                    return Ok(Completed { loaded, positions, changed });
                }
                Err(AppendError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Busy)
    }

    fn settled(&self, loaded: &Loaded, positions: Positions) {
        self.know(&loaded.state);
        let mut looks = lock(&self.looks);
        looks.settled = Some((positions, loaded.expected));
        looks.head = Some(loaded.at);
        looks.state = Some(loaded.expected);
        self.unsettled.store(false, Ordering::Release);
    }

    /// The records that everybody should have, with what some instances decide by already. `None` when this version does not
    /// take the files: another one did, and the records that it wrote stay in force.
    async fn target(&self, state: &State) -> Result<Option<(String, mesh_config::Records)>, ReadError> {
        let Some(in_force) = self.compiled_from(&state.files).await? else { return Ok(None) };
        let mut records = in_force.records.clone();
        if let Some(staged) = &state.staged {
            let Some(next) = self.compiled_from(&staged.files).await? else { return Ok(None) };
            staging::overlay(&mut records, &next.records, &staged.canaries);
        }
        Ok(Some((in_force.mesh.clone(), records)))
    }

    /// What kept files mean; `None` when they are gone, or this version does not take them, which is logged.
    async fn compiled_from(&self, id: &[u8]) -> Result<Option<Arc<Compiled>>, ReadError> {
        if let Some((_, compiled)) = lock(&self.compiled).iter().find(|(of, _)| of == id) {
            return Ok(Some(Arc::clone(compiled)));
        }
        let again = match stored::files(&*self.journals.sources, id).await? {
            Some((stored, _)) => self.judge.again(stored).await.map_err(|problems| problems.to_string()),
            None => Err("they are not in the store".to_owned()),
        };
        match again {
            Ok(compiled) => {
                let compiled = Arc::new(compiled);
                self.remember(id, &compiled);
                Ok(Some(compiled))
            }
            Err(why) => {
                let mut looks = lock(&self.looks);
                if looks.refused != id {
                    looks.refused = id.to_vec();
                    tracing::warn!(why, "this version does not take the policy files in force: apply them again");
                }
                Ok(None)
            }
        }
    }

    fn remember(&self, id: &[u8], compiled: &Arc<Compiled>) {
        let mut known = lock(&self.compiled);
        known.retain(|(of, _)| of != id);
        known.push_front((id.to_vec(), Arc::clone(compiled)));
        known.truncate(COMPILED);
    }
}

/// A policy whose records are what its files say, or which this version cannot complete.
struct Completed {
    loaded: Loaded,
    positions: Positions,
    /// Something had to be written.
    changed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every record of a kind that is for others, decoded, and where that is.
pub(crate) async fn records_of<M: Message + Default>(journal: &dyn Journal) -> Result<(Position, Vec<M>), ReadError> {
    let snapshot = journal.snapshot().await?;
    let records = snapshot.records.into_iter().filter(|record| record.key != RESERVED);
    // What another version wrote and this one cannot read is left out: Describe is for people.
    Ok((snapshot.position, records.filter_map(|record| M::decode(record.value).ok()).collect()))
}

pub(crate) fn kind_positions(positions: Positions) -> Vec<KindPosition> {
    let kind = |(kind, position): (&str, Position)| KindPosition {
        kind: kind.to_owned(),
        epoch: position.epoch,
        revision: position.revision,
    };
    KINDS.into_iter().zip(positions).map(kind).collect()
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
