//! What the guards refuse, and how it goes on.

use tenon_proto::replication::v1::guard_rules::Override;

use super::*;

fn many(count: u64) -> Vec<(String, u64)> {
    (1..=count).map(|number| (format!("tenant-{number}"), number)).collect()
}

fn borrowed(records: &[(String, u64)]) -> Vec<(&str, u64, &str)> {
    records.iter().map(|(key, revision)| (key.as_str(), *revision, "v")).collect()
}

fn rules(canaries: &[&str], allowed: Option<u64>) -> Response {
    let canaries = canaries.iter().map(|canary| (*canary).to_owned()).collect();
    let r#override =
        allowed.map(|smallest_records| Override { smallest_records, until_unix_seconds: 1_000_000 + 3600 });
    Response::GuardRules(GuardRules { canaries, r#override, ..GuardRules::default() })
}

#[test]
fn an_emptied_table_that_comes_as_deltas_empties_no_cache_however_long_it_takes() {
    let records = many(100);
    let mut it = fixture();
    it.begin();
    it.snapshot(at(100), &borrowed(&records)).unwrap();
    let mut refused = 0;
    for minute in 0..10 {
        it.after(Duration::from_secs(61 * minute));
        it.begin();
        let mut revision = it.replica.position().unwrap().revision;
        for (key, _) in &records[usize::try_from(revision - 100).unwrap()..] {
            match it.delta(1, revision, revision + 1, &[(key, revision + 1, None)]) {
                Ok(_) => revision += 1,
                Err(Break::Refused { error, .. }) => {
                    assert!(error.contains("49 records are offered where 100 are held"), "{error}");
                    refused += 1;
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert_eq!((it.held().len(), refused), (50, 10));
    let status = it.replica.status();
    assert_eq!((status.guard_refusals, status.alarms.len()), (10, 1));

    it.begin();
    it.receive(rules(&[], Some(0))).unwrap();
    let changes: Vec<_> = records[50..].iter().zip(151..).map(|((key, _), at)| (key.as_str(), at, None)).collect();
    assert_eq!(it.delta(1, 150, 200, &changes), ack(at(200)), "an operator means it");
    assert_eq!((it.held().len(), it.replica.status().alarms.len()), (0, 0));
}

#[test]
fn a_snapshot_without_a_canary_is_refused_also_by_who_holds_nothing() {
    let mut it = fixture();
    it.begin();
    it.receive(rules(&["canary"], None)).unwrap();
    assert!(matches!(it.snapshot(at(3), THREE), Err(Break::Refused { .. })));
    assert_eq!(it.replica.position(), None);
    assert!(it.replica.status().alarms[0].contains("canary"));
    it.begin();
    assert_eq!(it.snapshot(at(4), &[("a", 1, "one"), ("canary", 4, "v")]), ack(at(4)), "the parent is good again");
    assert!(it.replica.status().alarms.is_empty());

    it.begin();
    let deletes = it.delta(1, 4, 6, &[("a", 5, Some("x")), ("canary", 6, None)]);
    assert!(matches!(deletes, Err(Break::Refused { position, .. }) if position == at(6)));
    assert_eq!(it.held()["a"], "one", "nothing of it is applied");
    it.begin();
    assert_eq!(it.delta(1, 4, 7, &[("a", 5, Some("x")), ("canary", 7, Some("again"))]), ack(at(7)));
}

#[test]
fn rules_are_kept_over_a_restart() {
    let mut it = fixture();
    it.begin();
    it.receive(rules(&["a"], None)).unwrap();
    it.snapshot(at(3), THREE).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = crate::state::path(dir.path(), "tenant");
    Recording::write(&path, "tenant", &it.shared.saved().unwrap()).unwrap();

    let mut other = fixture();
    other.machine.start_from(Reader::open(&path, "tenant").unwrap()).unwrap();
    other.begin();
    assert!(matches!(other.delta(1, 3, 4, &[("a", 4, None)]), Err(Break::Refused { .. })));
}

#[test]
fn a_poisoned_parent_keeps_nothing_from_the_other() {
    let records = many(100);
    let mut it = fixture();
    it.by(1).begin();
    it.snapshot(at(100), &borrowed(&records)).unwrap();
    it.heartbeat(at(100), &borrowed(&records)).unwrap();
    it.by(0).begin();
    assert!(matches!(it.snapshot(Position::new(2, 1), &[]), Err(Break::Refused { .. })));
    it.machine.end(0);
    assert_eq!(it.by(1).delta(1, 100, 101, &[("tenant-1", 101, None)]), ack(at(101)));
    assert_eq!((it.held().len(), it.replica.status().alarms.len()), (99, 1));
    it.by(0).begin();
    let now: Vec<_> = borrowed(&records)[1..].to_vec();
    it.heartbeat(at(101), &now).unwrap();
    assert!(it.replica.status().alarms.is_empty(), "it is as the other one again");
}
