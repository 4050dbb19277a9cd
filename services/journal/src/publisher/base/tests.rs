use super::*;
use crate::{Everything, Record, ViewName};

/// Hides keys with a slash; a record is known by each word of it.
struct Words;

impl Views for Words {
    fn view(&self, _: &mesh_identity::Peer) -> Result<ViewName, tonic::Status> {
        Ok("".into())
    }

    fn project(&self, _: &ViewName, _: &str, value: &Bytes) -> Option<Bytes> {
        Some(value.clone())
    }

    fn hides(&self, key: &str) -> bool {
        key.contains('/')
    }

    fn aliases<'v>(&self, value: &'v [u8]) -> Vec<&'v str> {
        std::str::from_utf8(value).unwrap().split_whitespace().collect()
    }
}

fn record(key: &str, revision: u64, value: &'static str) -> Record {
    Record { key: key.to_owned(), revision, value: Bytes::from_static(value.as_bytes()) }
}

fn base(revision: u64, records: Vec<Record>) -> Base {
    Base::new(Snapshot { position: Position::new(7, revision), records }, &Words)
}

fn entry(key: &str, revision: u64, value: Option<&'static str>) -> Entry {
    let value = value.map(|value| Bytes::from_static(value.as_bytes()));
    Entry { key: key.to_owned(), revision, value, at_unix_ms: 0 }
}

#[test]
fn what_is_frozen_stays_as_it_is_and_only_what_changes_is_copied() {
    let records = (0..2000).map(|number| record(&format!("k{number}"), 1, "x")).collect();
    let mut base = base(1, records);
    let frozen = base.freeze();
    base.apply(entry("k7", 2, Some("y")), false, &Words).unwrap();
    base.apply(entry("k8", 3, None), false, &Words).unwrap();
    assert_eq!((base.records(), frozen.records()), (1999, 2000));
    assert_eq!(frozen.buckets[Digest::bucket_of("k7")]["k7"].revision, 1);
    let copied = frozen.buckets.iter().zip(&base.buckets).filter(|(before, now)| !Arc::ptr_eq(before, now)).count();
    assert!(copied <= 2, "{copied} buckets were copied");
}

#[test]
fn hidden_records_are_neither_kept_nor_counted() {
    let base = base(2, vec![record("event/1", 1, "x"), record("acme", 2, "x")]);
    assert_eq!((base.records(), base.get("event/1")), (1, None));
}

#[test]
fn a_later_state_is_reached_by_changes_only_where_all_of_them_are_later() {
    let held = base(5, vec![record("a", 1, "1"), record("b", 2, "2"), record("c", 3, "3")]);
    let later = base(9, vec![record("a", 1, "1"), record("b", 8, "other"), record("d", 7, "new")]);
    let changes = Base::leads_to(&held.freeze(), &later).unwrap();
    let changes: Vec<_> = changes.iter().map(|it| (it.key.as_str(), it.revision, it.value.is_some())).collect();
    assert_eq!(changes, [("d", 7, true), ("b", 8, true), ("c", 9, false)]);

    let repaired = base(9, vec![record("a", 1, "mended"), record("b", 2, "2"), record("c", 3, "3")]);
    assert!(Base::leads_to(&held.freeze(), &repaired).is_none(), "an old record differs");
    let lost = base(5, vec![record("a", 1, "1"), record("b", 2, "2")]);
    assert!(Base::leads_to(&held.freeze(), &lost).is_none(), "nothing tells when it went");
}

#[test]
fn aliases_follow_the_records_also_while_they_are_indexed() {
    let mut base = base(3, vec![record("a", 1, "one shared"), record("b", 2, "two")]);
    assert!(base.by_alias("one", &Words).is_none() && !base.knows_aliases());
    let frozen = base.begin_index();
    base.apply(entry("b", 4, Some("zwei shared")), false, &Words);
    let built = build_index(&frozen, &Words);
    base.indexed(built, &Words);
    let of = |base: &Base, alias: &str| base.by_alias(alias, &Words).map(|(key, _)| key.to_string());
    assert_eq!(of(&base, "one").as_deref(), Some("a"));
    assert_eq!(of(&base, "two"), None);
    assert_eq!(of(&base, "shared").as_deref(), Some("b"), "the latest of those that claim it");
    base.apply(entry("b", 5, None), false, &Words);
    assert_eq!(of(&base, "shared").as_deref(), Some("a"));
    base.apply(entry("a", 6, Some("one")), false, &Words);
    assert_eq!((of(&base, "shared"), of(&base, "one").as_deref()), (None, Some("a")));
}

#[test]
fn what_a_batch_leaves_is_counted_by_the_last_change_of_each_key() {
    let base = Base::new(
        Snapshot { position: Position::new(7, 3), records: vec![record("a", 1, ""), record("b", 2, "")] },
        &Everything,
    );
    let entries = [entry("a", 4, None), entry("c", 5, Some("")), entry("b", 6, None), entry("b", 7, Some(""))];
    let (records, gone) = base.after(&entries.iter().collect::<Vec<_>>());
    assert_eq!((records, gone.into_iter().collect::<Vec<_>>()), (2, vec!["a"]));
}
