//! Answers for single keys.

use std::{sync::Arc, time::Duration};

use mesh_identity::Peer;
use tenon_proto::replication::v1::{FetchRequest, FetchResponse, Record};
use tokio::time::timeout;
use tonic::Status;

use super::{Inner, Publisher, base};
use crate::Position;

/// Keys and aliases of one request at most.
const MOST_KEYS: usize = 1000;
/// How long a request waits for the position that it wants.
const PATIENCE: Duration = Duration::from_millis(250);

impl Publisher {
    /// What a snapshot for `peer` would say of some keys.
    ///
    /// # Errors
    /// The status to answer with: the peer may not see this kind, it asks too much, or what it asks for has not come yet.
    pub async fn fetch(&self, peer: &Peer, request: FetchRequest) -> Result<FetchResponse, Status> {
        let inner = &self.inner;
        let view = inner.views.view(peer)?;
        if request.keys.len() + request.aliases.len() > MOST_KEYS {
            return Err(Status::invalid_argument(format!("at most {MOST_KEYS} keys and aliases at once")));
        }
        let at_least = request.at_least.map(Position::from).unwrap_or_default();
        let mut head = inner.head.subscribe();
        let reached = head.wait_for(|head| head.is_some_and(|head| head >= at_least));
        if timeout(PATIENCE, reached).await.is_err() {
            return Err(Status::unavailable(format!("{at_least} has not come here yet: try again")));
        }
        if !request.aliases.is_empty() {
            inner.index().await;
        }
        let mut response = FetchResponse { view: view.as_ref().to_owned(), ..FetchResponse::default() };
        let found = {
            let base = inner.base();
            let base = base.as_ref().ok_or_else(|| Status::unavailable("nothing has come here yet"))?;
            if !request.aliases.is_empty() && !base.knows_aliases() {
                return Err(Status::unavailable("the index of other names is not ready: try again"));
            }
            response.position = Some(base.position().into());
            let mut found = Vec::with_capacity(request.keys.len() + request.aliases.len());
            found.extend(request.keys.into_iter().filter_map(|key| {
                let held = base.get(&key)?.clone();
                Some((None, key, held))
            }));
            found.extend(request.aliases.into_iter().filter_map(|alias| {
                let (key, held) = base.by_alias(&alias, &*inner.views)?;
                Some((Some(alias), key.as_ref().to_owned(), held.clone()))
            }));
            found
        };
        let mut seen = std::collections::HashSet::new();
        for (alias, key, held) in found {
            let Some(value) = inner.views.project(&view, &key, &held.value) else { continue };
            if let Some(alias) = alias {
                response.aliases.insert(alias, key.clone());
            }
            if seen.insert(key.clone()) {
                response.records.push(Record { key, revision: held.revision, value });
            }
        }
        Ok(response)
    }
}

impl Inner {
    /// Sees to it that aliases are indexed: from the first time that anyone asks by them.
    async fn index(self: &Arc<Self>) {
        if self.base().as_ref().is_some_and(base::Base::knows_aliases) {
            return;
        }
        // One makes it, also when who asked goes away.
        let inner = Arc::clone(self);
        let making = tokio::spawn(async move {
            let _alone = inner.indexing.lock().await;
            let frozen = match inner.base().as_mut() {
                Some(base) if !base.knows_aliases() => base.begin_index(),
                Some(_) | None => return,
            };
            let views = Arc::clone(&inner.views);
            let built = tokio::task::spawn_blocking(move || base::build_index(&frozen, &*views)).await;
            // Of a base that took its place meanwhile there will be another one.
            if let (Ok(built), Some(base)) = (built, inner.base().as_mut()) {
                base.indexed(built, &*inner.views);
            }
        });
        drop(making.await);
    }
}
