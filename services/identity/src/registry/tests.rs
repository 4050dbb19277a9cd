use journal::Embedded;

use super::*;

const NOW: u64 = 1_800_000_000;

struct Store {
    registry: Registry,
    journal: Arc<dyn Journal>,
    _dir: tempfile::TempDir,
}

async fn store() -> Store {
    let dir = tempfile::tempdir().unwrap();
    let journal = Embedded::open(&dir.path().join("store.redb")).unwrap().kind(KIND).unwrap();
    let registry = Registry::open(Arc::clone(&journal), Vec::new()).await.unwrap();
    Store { registry, journal, _dir: dir }
}

fn media() -> ServiceName {
    "media".parse().unwrap()
}

fn given(authority: u8, ends: u64, sequence: u64) -> Holding {
    Holding { issuing_authority: vec![authority; 32].into(), svid_not_after: ends, sequence }
}

#[test]
fn names_of_instances_are_short_and_plain() {
    assert_eq!(Registry::name(String::new()).unwrap(), None);
    for good in ["media-3f9a", "A.b_c-1", &"x".repeat(128)] {
        assert_eq!(Registry::name(good.to_owned()).unwrap().as_deref(), Some(good));
    }
    for bad in ["a/b", "a b", "é", "a\n", &"x".repeat(129)] {
        assert!(Registry::name(bad.to_owned()).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn an_instance_lives_until_its_last_certificate_ends() {
    let Store { registry, .. } = store().await;
    registry.attested(&media(), "media-1", given(1, NOW + 3600, 1), "media/k", NOW).await;
    registry.renewed(&media(), "media-1", None, given(1, NOW + 5400, 1), "media/k", NOW + 1800).await;
    assert_eq!(registry.live(NOW + 5400).len(), 1);
    assert!(registry.live(NOW + 5401).is_empty());
    assert_eq!(registry.prune(NOW + 5400).await, 0);
    assert_eq!(registry.prune(NOW + 5401).await, 1);
    assert_eq!(registry.journal.count().await.unwrap(), 0);
}

#[tokio::test]
async fn what_was_given_is_held_once_it_is_confirmed() {
    let Store { registry, .. } = store().await;
    registry.attested(&media(), "media-1", given(1, NOW + 3600, 1), "media/k", NOW).await;
    registry.renewed(&media(), "media-1", None, given(2, NOW + 5400, 7), "media/k", NOW + 1800).await;
    let holds = || registry.live(NOW + 1800)[0].holds.clone();
    assert_eq!(holds(), given(1, NOW + 3600, 1), "the answer may never have arrived");
    let confirm = |authority, ends| {
        registry.confirmed(&media(), "media-1", vec![authority; 32].into(), ends, "media/k", NOW + 1801);
    };
    confirm(1, NOW + 3600);
    assert_eq!(holds(), given(1, NOW + 3600, 1));
    confirm(2, NOW + 5400);
    assert_eq!(holds(), given(2, NOW + 5400, 7), "with the certificate it took the bundle");
}

#[tokio::test]
async fn nobody_lives_longer_than_a_certificate_does_by_saying_so() {
    let Store { registry, .. } = store().await;
    registry.confirmed(&media(), "media-1", Bytes::new(), u64::MAX, "media/k", NOW);
    assert_eq!(registry.live(NOW)[0].ends(), NOW + 3600);
}

#[tokio::test]
async fn who_has_no_name_goes_by_its_certificate_and_is_one_instance_still() {
    let Store { registry, .. } = store().await;
    registry.attested(&media(), "serial-a", given(1, NOW + 3600, 1), "media/k", NOW).await;
    registry.renewed(&media(), "serial-b", Some("serial-a"), given(2, NOW + 5400, 2), "media/k", NOW + 1800).await;
    let live = registry.live(NOW + 1800);
    assert_eq!(live.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["serial-b"]);
    assert_eq!(live[0].holds, given(2, NOW + 5400, 2), "it has no way to confirm it");
}

#[tokio::test]
async fn a_key_is_signed_with_once_everybody_has_it() {
    let Store { registry, .. } = store().await;
    registry.attested(&media(), "media-1", given(1, NOW + 3600, 1), "media/old", NOW).await;
    registry.confirmed(&media(), "media-1", Bytes::new(), NOW + 3600, "media/new", NOW);
    assert_eq!(registry.live(NOW)[0].kid, "media/old");
    registry.signs_with(&media(), "media-1", "media/new", NOW);
    assert_eq!(registry.live(NOW)[0].kid, "media/new");
}

#[tokio::test]
async fn what_is_known_outlives_a_restart_and_costs_one_write_in_ten_minutes() {
    let Store { registry, journal, _dir } = store().await;
    registry.attested(&media(), "media-1", given(1, NOW + 3600, 1), "media/k", NOW).await;
    for minute in 1..10 {
        let (authority, ends) = (vec![1; 32].into(), NOW + 3600);
        registry.confirmed(&media(), "media-1", authority, ends, "media/k", NOW + minute * 60);
        assert!(registry.write_down().await);
    }
    assert_eq!(journal.head().await.unwrap().revision, 1);
    registry.confirmed(&media(), "media-1", vec![1; 32].into(), NOW + 3600, "media/k", NOW + 600);
    assert!(registry.write_down().await);
    assert_eq!(journal.head().await.unwrap().revision, 2);
    let known = registry.live(NOW + 600);
    let again = Registry::open(journal, Vec::new()).await.unwrap();
    assert_eq!(again.live(NOW + 600), known);
}

#[tokio::test]
async fn who_does_not_follow_is_behind() {
    let Store { registry, .. } = store().await;
    registry.attested(&media(), "media-1", given(1, NOW + 3600, 1), "media/k", NOW).await;
    let tcs = "tenon-tcs".parse().unwrap();
    registry.attested(&tcs, "tenon-tcs-1", given(1, NOW + 3600, 1), "tenon-tcs/k", NOW).await;
    let live = registry.live(NOW);
    let domain = "demo.example".parse().unwrap();
    assert_eq!(registry.behind(&live, &domain, "key", Position::new(1, 1)).len(), 2);
    assert_eq!(registry.behind_with_keys(&domain, Position::new(1, 1), NOW, |_| true), 1, "the TCS verifies no tokens");
    registry.attested(&media(), "media-2", given(1, NOW + 3600, 1), "media/k", NOW).await;
    assert_eq!(registry.behind_with_keys(&domain, Position::new(1, 1), NOW, |_| true), 2, "a new one counts at once");
    assert_eq!(registry.behind_with_keys(&domain, Position::new(1, 1), NOW + 1, |one| one.name != "media-1"), 1);
    assert_eq!(registry.behind_with_keys(&domain, Position::new(1, 1), NOW + 3601, |_| true), 0, "dead ones do not");
}

#[tokio::test(start_paused = true)]
async fn those_who_come_together_are_written_together() {
    let Store { registry, journal, _dir } = store().await;
    let registry = Arc::new(registry);
    let (writing, shutdown) = (Arc::clone(&registry), CancellationToken::new());
    let stop = shutdown.clone();
    let task = tokio::spawn(async move { writing.keep_written(stop).await });
    for n in 0..100 {
        registry.confirmed(&media(), &format!("media-{n}"), Bytes::new(), NOW + 3600, "media/k", NOW);
    }
    let mut tail = journal.tail(Position::new(journal.head().await.unwrap().epoch, 0));
    let written = futures_util::StreamExt::next(&mut tail).await.unwrap().unwrap();
    assert_eq!(written.len(), 100);
    registry.signs_with(&media(), "media-0", "media/new", NOW);
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(journal.head().await.unwrap().revision, 101, "nothing is lost at the end");
}

/// Named after an instance that had left, and was waited for after a restart.
#[tokio::test]
async fn who_leaves_after_a_write_that_was_not_confirmed_leaves_no_record() {
    let Store { journal, _dir, .. } = store().await;
    let unsure = crate::testing::Unsure::new(Arc::clone(&journal));
    let registry = Registry::open(Arc::clone(&unsure) as _, Vec::new()).await.unwrap();
    unsure.unconfirmed.store(true, std::sync::atomic::Ordering::SeqCst);
    registry.attested(&media(), "media-1", given(1, NOW + 3600, 1), "media/k", NOW).await;
    assert_eq!(journal.count().await.unwrap(), 1, "it was written all the same");
    unsure.unconfirmed.store(false, std::sync::atomic::Ordering::SeqCst);
    registry.left(&media(), "media-1").await;
    assert_eq!(journal.count().await.unwrap(), 0);
}
