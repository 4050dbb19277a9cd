//! How a publisher stands, in numbers.

use std::{
    collections::HashMap,
    sync::{PoisonError, atomic::Ordering::Relaxed},
};

use super::{Inner, Publisher, followers::Followers};
use crate::{Position, metrics::Gauges};

impl Publisher {
    /// For metrics: cheaper than [`Publisher::status`], which says who follows.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let Inner { followers, snapshots_begun, .. } = &*self.inner;
        let of_base = self.inner.base().as_ref().map(|base| (base.position(), base.records(), base.ring().clone()));
        let head = of_base.as_ref().map(|(position, ..)| *position);
        let ring = of_base.as_ref().map_or((0, 0), |(.., ring)| {
            let ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
            (ring.changes() as u64, ring.bytes() as u64)
        });
        let (connected, refusing) = followers.counts();
        Gauges {
            revision: head.map(|head| head.revision),
            records: of_base.as_ref().map_or(0, |(_, records, _)| *records),
            followers: connected,
            refusing,
            nacks: followers.nacks(),
            lag: head.map_or(0, |head| lag(head, followers)),
            snapshots: snapshots_begun.load(Relaxed),
            ring,
            views: self.inner.active.lock().unwrap_or_else(PoisonError::into_inner).len() as u64,
            alarms: (self.alarm().iter().len() + self.inner.source.alarms().len()) as u64,
        }
    }
}

/// What the slowest lacks; who is of another epoch holds nothing of this one.
fn lag(head: Position, followers: &Followers) -> u64 {
    let furthest: HashMap<_, _> = followers.acknowledged();
    let lacks = |position: &Position| match position.epoch == head.epoch {
        true => head.revision.saturating_sub(position.revision),
        false => head.revision,
    };
    furthest.values().map(lacks).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_identity::Peer;
    use tenon_proto::replication::v1::Mode;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{Embedded, Everything, Write};

    #[tokio::test]
    async fn connected_followers_are_counted_with_those_that_refuse_and_how_far_the_slowest_is_behind() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Embedded::open(&dir.path().join("store.redb")).unwrap().kind("key").unwrap();
        let head = journal.append((0..5).map(|n| Write::put(n.to_string(), "x")).collect()).await.unwrap();
        let publisher = Publisher::start("key", journal, Arc::new(Everything), CancellationToken::new());
        publisher.published(head).await;
        let follower = |name: &str| {
            let id = "spiffe://demo.example/svc/media".parse().unwrap();
            let peer = Peer { id, serial: String::new(), not_after: 0, role: None };
            publisher.inner.followers.register(peer, name.to_owned(), Mode::Full)
        };
        let (first, second, third) = (follower("a"), follower("b"), follower("c"));
        first.acknowledged(head);
        second.acknowledged(Position { revision: head.revision - 3, ..head });
        second.refused(head, "no");
        let Gauges { revision, records, followers, refusing, nacks, lag, alarms, .. } = publisher.gauges();
        assert_eq!((revision, records), (Some(head.revision), 5));
        assert_eq!((followers, refusing, nacks, lag, alarms), (3, 1, 1, 3, 0));
        // Of another history it holds nothing.
        third.acknowledged(Position { epoch: head.epoch + 1, revision: 1 });
        assert_eq!(publisher.gauges().lag, head.revision);
        drop((first, second, third));
        let Gauges { followers, refusing, nacks, lag, .. } = publisher.gauges();
        assert_eq!((followers, refusing, nacks, lag), (0, 0, 1, 0));
    }
}
