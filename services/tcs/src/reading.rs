//! Reading tenants, wherever they come from: the store of a leader, or what a relay follows.

use std::time::Duration;

use journal::{Position, Tail};
use replica::Replica;
use tenon_proto::tcs::v1::{Revision, TenantContext};

use crate::relay::{Changes, Followed};
use crate::store::{self, Store, StoreError};

/// How long a reader waits for what it must not be older than.
const PATIENCE: Duration = Duration::from_secs(2);

/// Decoded as they are sent, so that a list of any length takes the memory of the encoded records alone.
pub(crate) type Listed = Box<dyn Iterator<Item = Result<TenantContext, StoreError>> + Send>;

/// Where tenants are read. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Reading {
    Store(Store),
    Relay(Replica<Followed>, Changes),
}

/// What a reader asked for has not come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process has not come to revision {wanted} within 2 s: it is at {}", at(*.reached))]
pub(crate) struct Stale {
    wanted: Position,
    reached: Option<Position>,
}

fn at(reached: Option<Position>) -> String {
    reached.map_or_else(|| "none".to_owned(), |position| position.to_string())
}

/// A relay that knows nothing yet must not say of anybody that there is none.
fn known(replica: &Replica<Followed>) -> Result<(), StoreError> {
    replica.position().map(drop).ok_or(StoreError::Nothing)
}

impl Reading {
    pub(crate) async fn get(&self, id: &str) -> Result<TenantContext, StoreError> {
        match self {
            Self::Store(store) => store.get(id).await,
            Self::Relay(replica, _) => {
                known(replica)?;
                replica.get(id).ok_or_else(|| StoreError::Unknown(id.to_owned()))?.tenant()
            }
        }
    }

    /// The tenant whose site this host is.
    pub(crate) async fn by_host(&self, host: &str) -> Result<TenantContext, StoreError> {
        match self {
            Self::Store(store) => store.by_host(host).await,
            Self::Relay(replica, _) => {
                known(replica)?;
                replica.by_alias(host).ok_or_else(|| StoreError::Unknown(format!("with host {host}")))?.tenant()
            }
        }
    }

    /// All tenants, in the order of their ids.
    pub(crate) async fn list(&self) -> Result<Listed, StoreError> {
        match self {
            Self::Store(store) => Ok(Box::new(store.list().await?)),
            Self::Relay(replica, _) => {
                known(replica)?;
                let replica = replica.clone();
                let sorted = store::blocking(move || {
                    let mut all = replica.entries();
                    all.sort_unstable_by(|one, other| replica::Value::key(one).cmp(replica::Value::key(other)));
                    all
                });
                Ok(Box::new(sorted.await.into_iter().map(|found| found.tenant())))
            }
        }
    }

    /// How far this process has come; absent when it knows nothing yet.
    pub(crate) async fn head(&self) -> Result<Option<Position>, StoreError> {
        match self {
            Self::Store(store) => Ok(Some(*store.positions().borrow())),
            Self::Relay(replica, _) => Ok(replica.position()),
        }
    }

    /// Every change after `from`, as [`journal::Journal::tail`] tells them.
    pub(crate) fn tail(&self, from: Position) -> Tail {
        match self {
            Self::Store(store) => store.journal().tail(from),
            Self::Relay(replica, changes) => changes.tail(replica, from),
        }
    }

    /// Waits until nothing older than `wanted` is read here.
    pub(crate) async fn reached(&self, wanted: Option<&Revision>) -> Result<(), Stale> {
        let Some(wanted) = wanted.map(|wanted| Position::new(wanted.epoch, wanted.revision)) else { return Ok(()) };
        match self {
            Self::Store(store) => {
                let mut positions = store.positions();
                let there = tokio::time::timeout(PATIENCE, positions.wait_for(|now| *now >= wanted)).await;
                let there = there.is_ok_and(|there| there.is_ok());
                let reached = Some(*positions.borrow());
                if there { Ok(()) } else { Err(Stale { wanted, reached }) }
            }
            Self::Relay(replica, _) => {
                let mut positions = replica.subscribe();
                let wait = positions.wait_for(|now| now.is_some_and(|now| now >= wanted));
                let there = tokio::time::timeout(PATIENCE, wait).await.is_ok_and(|there| there.is_ok());
                let reached = replica.position();
                if there { Ok(()) } else { Err(Stale { wanted, reached }) }
            }
        }
    }
}
