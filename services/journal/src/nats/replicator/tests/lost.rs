//! What the local store loses when it is opened again after an error of the disk.

use std::sync::atomic::Ordering::SeqCst;

use super::*;
use crate::embedded::begin_on_a_disk;

#[tokio::test]
async fn what_the_local_store_has_lost_is_read_again_and_nothing_is_applied_over_it_meanwhile() {
    for readable_at_once in [true, false] {
        let (mut replicator, dir) = replicator().await;
        let (held, faults) = begin_on_a_disk(dir.path(), AT);
        replicator.held = Some(Arc::new(held.clone()));
        follow(&mut replicator, [Ok((50, commit(1, 49, 11)))]).await.unwrap();

        faults.unreadable.store(true, SeqCst);
        held.journal().get("k1").await.unwrap_err();
        if !readable_at_once {
            let failed = follow(&mut replicator, [Ok((51, commit(2, 50, 12)))]).await;
            assert!(matches!(failed, Err(Failure::Local(_))), "{failed:?}");
            assert!(replicator.lost && replicator.catch_up(51).await.is_err() && replicator.ready().is_err());
        }
        faults.unreadable.store(false, SeqCst);
        let failed = follow(&mut replicator, [Ok((51, commit(2, 50, 12)))]).await;
        assert!(matches!(failed, Err(Failure::Elsewhere)), "{failed:?}");
        assert_eq!((replicator.lost, replicator.seen, replicator.cursor), (false, 49, AT));

        follow(&mut replicator, [Ok((50, commit(1, 49, 11))), Ok((51, commit(2, 50, 12)))]).await.unwrap();
        assert_eq!((replicator.seen, replicator.cursor.head), (51, 12));
        assert_eq!(held.journal().count().await.unwrap(), 2, "of both commits");
    }
}
