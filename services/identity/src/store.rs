//! The store that belongs to a CA, and what is done when it was lost or put back from a backup.
//!
//! Store and CA carry the same mark, a new one from each start and each end of the service. A store without a mark is a
//! new one; a store with another mark is an older copy, whose followers hold more than it knows of. In both cases keys
//! and instances are missing in it. So it begins a new history, and its keys are published to nobody before every
//! instance has had the time to confirm its own: a follower never sees half of a key set.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use bytes::Bytes;
use journal::{AppendError, Embedded, Everything, OpenError, ReadError, ViewName, Views, Write};
use mesh_identity::{Peer, clock};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::ca::hex;
use crate::service::with_source;
use crate::{Ca, RotateError, tokens};

/// Kind and key of the record with the mark. Never replicated.
const MARK: &str = "store_mark";
/// How long instances have to confirm their keys: they do it once a minute.
const RECOVERY: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 90 });

/// Why it cannot be told whether the store is the CA's, or be made so.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be opened.
    #[error("the store of the identity service cannot be used")]
    Open(#[from] OpenError),
    /// It cannot be read.
    #[error("the store of the identity service cannot be used")]
    Read(#[from] ReadError),
    /// It cannot be written.
    #[error("the store of the identity service cannot be marked")]
    Write(#[from] AppendError),
    /// The CA's folder cannot be written.
    #[error("the folder of the CA cannot be written")]
    Note(#[from] RotateError),
}

/// `store` as the one of `ca`: marked anew, and as a new history if it is not the one that the CA last served with.
pub(crate) async fn of(ca: &Arc<Ca>, store: Embedded) -> Result<Embedded, StoreError> {
    let found = store.kind(MARK)?.get(MARK).await?.map(|record| record.value);
    let (store, recovering) = match (ca.store_mark(), found) {
        (Some(_), None) => {
            tracing::warn!(
                seconds = RECOVERY.as_secs(),
                "the store was lost: no keys are published until instances confirm theirs"
            );
            (store, true)
        }
        (Some(expected), Some(found)) if found != expected.as_bytes() => {
            tracing::warn!(
                seconds = RECOVERY.as_secs(),
                "the store was put back from a backup: no keys are published until instances confirm theirs"
            );
            let store = store.renew_epoch()?;
            forget_join_tokens(&store).await?;
            (store, true)
        }
        (_, _) => (store, ca.store_is_recovering()),
    };
    mark(ca, &store, recovering).await?;
    Ok(store)
}

/// Those that were used since the backup would be good again.
async fn forget_join_tokens(store: &Embedded) -> Result<(), StoreError> {
    let journal = store.kind(tokens::KIND)?;
    let tokens: Vec<_> = journal.snapshot().await?.records.into_iter().map(|token| Write::delete(token.key)).collect();
    if !tokens.is_empty() {
        tracing::warn!(tokens = tokens.len(), "join tokens of the backup are good no longer: make others");
        journal.append(tokens).await?;
    }
    Ok(())
}

/// Marks both anew. Who is killed in between comes up with a store that looks put back, which costs followers a snapshot.
async fn mark(ca: &Arc<Ca>, store: &Embedded, recovering: bool) -> Result<(), StoreError> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).expect("the operating system gives randomness");
    let mark = hex(&bytes);
    store.kind(MARK)?.append(vec![Write::put(MARK, mark.clone())]).await?;
    note(ca, mark, recovering).await?;
    Ok(())
}

/// So that a copy that is made while the service runs is told from what the store is at its end.
pub(crate) async fn mark_at_end(ca: &Arc<Ca>, store: &Embedded) {
    if let Err(error) = mark(ca, store, ca.store_is_recovering()).await {
        tracing::warn!(error = with_source(&error), "the store and the CA are not marked anew");
    }
}

async fn note(ca: &Arc<Ca>, mark: String, recovering: bool) -> Result<(), RotateError> {
    let ca = Arc::clone(ca);
    let noted = tokio::task::spawn_blocking(move || ca.note_store(mark, recovering, clock::unix_seconds())).await;
    noted.unwrap_or(Err(RotateError::Busy))
}

/// Ends the recovery of a store when instances have had their time.
pub(crate) async fn recover(ca: Arc<Ca>, shutdown: CancellationToken) {
    while ca.store_is_recovering() {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RECOVERY) => {}
        }
        let Some(mark) = ca.store_mark() else { return };
        match note(&ca, mark, false).await {
            Ok(()) => tracing::info!("the keys are published again"),
            Err(error) => tracing::error!(error = with_source(&error), "the recovery of the store goes on"),
        }
    }
}

/// The keys, for everyone; for nobody while some of them may be missing.
pub(crate) struct WholeKeySet(pub Arc<Ca>);

impl Views for WholeKeySet {
    fn view(&self, peer: &Peer) -> Result<ViewName, Status> {
        if self.0.store_is_recovering() {
            return Err(Status::unavailable("the keys are being collected anew: keep those that you have"));
        }
        Everything.view(peer)
    }

    fn project(&self, view: &ViewName, key: &str, value: &Bytes) -> Option<Bytes> {
        Everything.project(view, key, value)
    }
}
