use super::*;

const NOW: u64 = 1_700_000_000;

fn key() -> (Arc<PublicKey>, Box<str>) {
    let key = mesh_asap::SigningKey::generate("partner").unwrap();
    let spki = key.public_spki();
    let text = pem::encode(&pem::Pem::new("PUBLIC KEY", spki.clone()));
    (Arc::new(PublicKey::from_spki(&spki).unwrap()), text.into())
}

fn found(fresh: u64, stale: u64) -> Answer {
    let (key, text) = key();
    Answer::Key(key, text, Freshness { fresh, stale })
}

/// "found", "found, refresh", "unknown" or "unavailable".
fn look(cache: &mut Cache, now: u64) -> &'static str {
    match cache.look("partner/k", now) {
        (Lookup::Found(_), false) => "found",
        (Lookup::Found(_), true) => "found, refresh",
        (Lookup::Unknown, false) => "unknown",
        (Lookup::Unavailable, false) => "unavailable",
        (Lookup::Unknown | Lookup::Unavailable, true) => "nothing to refresh",
    }
}

#[test]
fn a16_a_key_is_fresh_then_stale_then_gone_to_the_second() {
    for (fresh, stale) in [(600, 1200), (60, 30), (1, 2), (60, 0)] {
        let mut cache = Cache::default();
        assert_eq!(look(&mut cache, NOW), "unavailable", "nobody has asked yet");
        cache.store("partner/k", found(fresh, stale), NOW);
        assert_eq!(look(&mut cache, NOW + fresh - 1), "found");
        if stale > 0 {
            assert_eq!(look(&mut cache, NOW + fresh), "found, refresh");
            assert_eq!(look(&mut cache, NOW + fresh + stale - 1), "found, refresh");
        }
        let end = (NOW + fresh + stale).max(NOW + AT_LEAST);
        assert_eq!(look(&mut cache, end), "unavailable", "{fresh} {stale}");
        assert_eq!(cache.need("partner/k", end, false), Need::Fetch);
    }
}

#[test]
fn a16_what_must_not_be_kept_still_serves_those_who_waited_for_it() {
    let mut cache = Cache::default();
    cache.store("partner/k", found(0, 0), NOW);
    assert_eq!(look(&mut cache, NOW + AT_LEAST - 1), "found, refresh");
    assert_eq!(look(&mut cache, NOW + AT_LEAST), "unavailable");
}

#[test]
fn a15_a_missing_key_is_unknown_for_twenty_seconds() {
    let mut cache = Cache::default();
    assert!(!cache.store("partner/k", Answer::Absent, NOW), "nothing was remembered under it");
    assert_eq!(look(&mut cache, NOW + 19), "unknown");
    assert_eq!(cache.need("partner/k", NOW + 19, false), Need::Nothing);
    assert_eq!(look(&mut cache, NOW + 20), "unavailable");
    assert_eq!(cache.need("partner/k", NOW + 20, false), Need::Fetch);
}

#[test]
fn a15_repositories_that_cannot_say_are_left_alone_for_a_moment_and_nothing_is_allowed() {
    let mut cache = Cache::default();
    assert!(!cache.store("partner/k", Answer::Failed, NOW));
    assert_eq!(look(&mut cache, NOW), "unavailable");
    assert_eq!(cache.need("partner/k", NOW + PAUSE - 1, false), Need::Nothing);
    assert_eq!(cache.need("partner/k", NOW + PAUSE, false), Need::Fetch);
}

#[test]
fn a16_a_dead_repository_leaves_a_key_for_its_stale_time_and_no_longer() {
    let mut cache = Cache::default();
    cache.store("partner/k", found(60, 30), NOW);
    assert!(!cache.store("partner/k", Answer::Failed, NOW + 60), "the key still counts");
    assert_eq!(look(&mut cache, NOW + 60), "found", "no further try yet");
    assert_eq!(look(&mut cache, NOW + 60 + RETRY), "found, refresh");
    assert!(!cache.tend(NOW + 89).dropped);
    let due = cache.tend(NOW + 90);
    assert!(due.dropped && due.refresh.is_empty() && due.next.is_none(), "{due:?}");
    assert_eq!(look(&mut cache, NOW + 90), "unavailable");
}

#[test]
fn a16_a_key_that_is_denied_on_refresh_is_gone_with_what_was_remembered_under_it() {
    let mut cache = Cache::default();
    assert!(!cache.store("partner/k", found(60, 30), NOW));
    assert!(cache.store("partner/k", Answer::Absent, NOW + 60), "remembered verifications count no longer");
    assert_eq!(look(&mut cache, NOW + 60), "unknown");
}

#[test]
fn a16_a_key_that_became_another_one_drops_what_was_remembered_and_the_same_one_does_not() {
    let mut cache = Cache::default();
    let ((one, one_text), (other, other_text)) = (key(), key());
    let life = Freshness { fresh: 60, stale: 30 };
    cache.store("partner/k", Answer::Key(Arc::clone(&one), one_text.clone(), life), NOW);
    assert!(!cache.store("partner/k", Answer::Key(one, one_text, life), NOW + 60));
    assert!(cache.store("partner/k", Answer::Key(other, other_text, life), NOW + 120));
}

#[test]
fn a16_a_key_in_use_is_fetched_again_ahead_of_its_end_and_one_that_is_not_is_let_go() {
    let mut cache = Cache::default();
    cache.store("partner/k", found(7200, 600), NOW);
    let due = cache.tend(NOW);
    assert!(due.refresh.is_empty(), "{due:?}");
    assert_eq!(due.next, Some(NOW + 5760), "at four fifths of its time");
    look(&mut cache, NOW + 5000);
    assert!(cache.tend(NOW + 5759).refresh.is_empty());
    assert_eq!(cache.tend(NOW + 5760).refresh.len(), 1);

    // Nobody looked at it for as long as a verification can be remembered.
    cache.store("partner/k", found(7200, 600), NOW + 5760);
    let due = cache.tend(NOW + 5760 + 5760);
    assert!(due.refresh.is_empty(), "{due:?}");
    assert_eq!(due.next, Some(NOW + 5760 + 7800));
}

#[test]
fn a16_a_key_with_a_short_life_is_not_fetched_of_itself_more_often_than_every_five_seconds() {
    let mut cache = Cache::default();
    cache.store("partner/k", found(1, 600), NOW);
    assert!(cache.tend(NOW + 4).refresh.is_empty());
    assert_eq!(cache.tend(NOW + 5).refresh.len(), 1);
}

#[test]
fn a16_a_flood_of_unknown_keys_costs_thirty_fetches_and_then_one_a_second() {
    let mut cache = Cache::default();
    let mut flood = |from: usize, now: u64| {
        (from..from + 500).filter(|n| cache.need(&format!("partner/{n}"), now, false) == Need::Fetch).count()
    };
    assert_eq!(flood(0, NOW), 30);
    assert_eq!(flood(500, NOW), 0);
    assert_eq!(flood(1000, NOW + 1), 1);
    assert_eq!(flood(1500, NOW + 11), 10);
    assert_eq!(flood(2000, NOW + 3600), 30);
    assert_eq!(flood(2500, NOW + 3000), 0, "a look back in time gives nothing");
    assert_eq!(cache.need("partner/k", NOW + 3600, true), Need::Fetch, "joining a fetch under way costs none");
}

#[test]
fn the_number_of_keys_is_bounded_and_those_in_use_stay() {
    let mut cache = Cache::default();
    cache.store("partner/k", found(36_000, 0), NOW);
    let (key, text) = key();
    for n in 0..u64::try_from(MOST).unwrap() + 10 {
        let now = NOW + 1 + n;
        look(&mut cache, now);
        let life = Freshness { fresh: 36_000, stale: 0 };
        cache.store(&format!("partner/{n}"), Answer::Key(Arc::clone(&key), text.clone(), life), now);
    }
    assert_eq!(cache.entries.len(), MOST);
    assert_eq!(look(&mut cache, NOW + 2000), "found");
    assert!(!cache.entries.contains_key("partner/0"), "the one unused for longest has gone");
}
