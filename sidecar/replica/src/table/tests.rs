use std::collections::{BTreeMap, BTreeSet};

use ahash::RandomState;
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{Decode, Decoded, Digest};

/// A record whose bytes are its aliases, with spaces between them.
type Named = Decoded<Aka>;

#[derive(Debug)]
struct Aka(Vec<String>);

impl Decode for Aka {
    fn decode(_: &str, _: u64, raw: Bytes) -> Result<Self, String> {
        let text = String::from_utf8(raw.to_vec()).map_err(|error| error.to_string())?;
        Ok(Self(text.split_whitespace().map(str::to_owned).collect()))
    }

    fn aliases(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

fn named(key: &str, revision: u64, aliases: &str) -> Named {
    Named::new(key, revision, Bytes::copy_from_slice(aliases.as_bytes())).unwrap()
}

fn owner(table: &Table<Named>, alias: &str) -> Option<String> {
    table.by_alias(alias).map(|value| value.key().to_owned())
}

#[test]
fn names_follow_changes_whatever_their_order_within_a_batch() {
    let (table, globex) = (Table::new(), named("globex", 1, "c.example"));
    table.insert(named("acme", 1, "a.example b.example"));
    table.insert(globex);
    assert_eq!(owner(&table, "a.example").as_deref(), Some("acme"));

    // b.example moves; the new owner's change comes first.
    table.insert(named("globex", 3, "b.example"));
    assert_eq!(owner(&table, "b.example").as_deref(), Some("globex"), "both claim it: the newer one has it");
    table.insert(named("acme", 2, "a.example"));
    assert_eq!(owner(&table, "b.example").as_deref(), Some("globex"));
    assert_eq!(owner(&table, "c.example"), None);

    // And back, the old owner's change first.
    table.insert(named("globex", 4, ""));
    assert_eq!(owner(&table, "b.example"), None);
    table.insert(named("acme", 5, "a.example b.example"));
    assert_eq!(owner(&table, "b.example").as_deref(), Some("acme"));

    table.remove("acme");
    assert_eq!((owner(&table, "a.example"), owner(&table, "b.example")), (None, None));
}

#[test]
fn of_two_that_claim_a_name_the_newer_has_it_and_the_other_when_it_is_gone() {
    for turned in [false, true] {
        let table = Table::new();
        let mut both = [named("acme", 7, "x"), named("globex", 9, "x")];
        if turned {
            both.reverse();
        }
        both.into_iter().for_each(|value| drop(table.insert(value)));
        assert_eq!(owner(&table, "x").as_deref(), Some("globex"));
        table.remove("globex");
        assert_eq!(owner(&table, "x").as_deref(), Some("acme"));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, Vec<u8>),
    Remove(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let insert = (any::<u8>(), prop::collection::vec(0..40u8, 0..4)).prop_map(|(key, names)| Step::Insert(key, names));
    prop::collection::vec(prop_oneof![3 => insert, 1 => any::<u8>().prop_map(Step::Remove)], 0..300)
}

fn check(table: &Table<Named>, model: &BTreeMap<String, Named>) -> Result<(), TestCaseError> {
    prop_assert_eq!(table.len(), model.len());
    let revisions = |value: Option<Named>| value.map(|value| (value.key().to_owned(), value.revision()));
    for key in 0..=u8::MAX {
        let key = format!("k{key}");
        prop_assert_eq!(revisions(table.get(&key)), revisions(model.get(&key).cloned()));
    }
    for name in 0..40u8 {
        let name = format!("n{name}");
        let claims = model.values().filter(|value| value.aliases().any(|it| it == name));
        prop_assert_eq!(revisions(table.by_alias(&name)), revisions(claims.max_by_key(|it| it.revision()).cloned()));
    }
    let entries: usize = (0..BUCKETS).map(|bucket| table.aliases_in(bucket)).sum();
    let names = model.values().map(|value| value.aliases().collect::<BTreeSet<_>>().len()).sum::<usize>();
    prop_assert_eq!(entries, names, "names that nobody has are not kept");
    Ok(())
}

proptest! {
    #[test]
    fn it_holds_what_a_simple_map_would(before in steps(), after in steps()) {
        let (mut model, mut replaced) = (BTreeMap::new(), Vec::new());
        let hasher = RandomState::new();
        let mut pieces = vec![Builder::new(hasher.clone())];
        let mut revisions = 1..;
        let mut value = |key: u8, names: &[u8]| {
            let names: Vec<_> = names.iter().map(|name| format!("n{name}")).collect();
            named(&format!("k{key}"), revisions.next().unwrap(), &names.join(" "))
        };
        for step in &before {
            if let Step::Insert(key, names) = step {
                let value = value(*key, names);
                replaced.extend(model.insert(value.key().to_owned(), value.clone()));
                let piece = pieces.last_mut().unwrap();
                piece.push(value);
                let key = format!("k{key}");
                prop_assert!(piece.has(&key));
            } else {
                pieces.push(Builder::new(hasher.clone()));
            }
        }
        let (table, old) = Builder::finish(pieces, 2);
        check(&table, &model)?;
        let revisions = |values: Vec<Named>| values.iter().map(Value::revision).collect::<BTreeSet<_>>();
        prop_assert_eq!(revisions(old), revisions(replaced));
        for step in &after {
            match step {
                Step::Insert(key, names) => {
                    let value = value(*key, names);
                    let old = model.insert(value.key().to_owned(), value.clone());
                    prop_assert_eq!(table.insert(value).map(|it| it.revision()), old.map(|it| it.revision()));
                }
                Step::Remove(key) => {
                    let key = format!("k{key}");
                    let old = model.remove(&key);
                    prop_assert_eq!(table.remove(&key).map(|it| it.revision()), old.map(|it| it.revision()));
                }
            }
        }
        check(&table, &model)?;
    }
}

#[test]
fn it_grows_under_its_readers_and_is_read_bucket_by_bucket() {
    let table = Table::new();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while table.len() < 20_000 {
                let held = table.len();
                // What was there before the look is there during it.
                assert!(held == 0 || table.get(&format!("t{}", held - 1)).is_some(), "{held}");
                assert!(held == 0 || table.by_alias(&format!("a{}", held - 1)).is_some(), "{held}");
            }
        });
        for number in 0..20_000 {
            table.insert(named(&format!("t{number}"), 1, &format!("a{number} b{number}")));
        }
        reader.join().unwrap();
    });
    let mut seen = BTreeSet::new();
    for bucket in 0..BUCKETS {
        for value in table.bucket(bucket) {
            assert_eq!(Digest::bucket_of(value.key()), bucket);
            assert!(seen.insert(value.key().to_owned()));
        }
    }
    assert_eq!(seen.len(), 20_000);
    assert_eq!(table.iter().count(), 20_000);
}
